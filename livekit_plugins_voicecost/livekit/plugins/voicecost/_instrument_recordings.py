"""Legs of whole recordings: one per request of an STT that does not stream.

So they come from LiveKit's StreamAdapter, whose VAD decides what is sent at all, from a
FallbackAdapter, and from tools. What is handed to `recognize` is what is billed, unrounded: by its
duration, or by tokens where the provider reports them.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, cast

from livekit import rtc
from livekit.agents.stt import SpeechEvent, SpeechEventType

from voicecost_ledger.records import Basis, Modality, Outcome

from ._attributes import describe, option_text
from ._instrument_attempts import Attempt, Tally, observed, was_refused
from ._livekit import require
from ._transcript_tokens import TokenRates, is_billed_by_token, rates_of, token_units
from ._wire_audio import audio_protocol
from ._wire_connections import TRANSCRIPTIONS, ConnectionObserver, observe_loaded_libraries


class RecordingAttempt(Attempt, ConnectionObserver):
    """One attempt to recognize a whole recording. Its "stream" is the STT itself."""

    modality = Modality.STT
    _tally: Tally | None = None

    def begin(self, *args: Any) -> None:
        """Open the leg, before the recording is sent. `args[0]` is LiveKit's AudioBuffer."""
        component = self.stream
        protocol = audio_protocol(component)
        if protocol is not None and protocol.reports_tokens:
            # Which the plugin's request would load now in any case.
            importlib.import_module(TRANSCRIPTIONS)
        observe_loaded_libraries()
        self._audio_ms = _audio_ms(args[0])
        self._tokens: dict[str, int] = {}
        tally = self.tally(
            describe(
                component,
                component,
                Modality.STT,
                language=option_text(component, component, "language"),
                streaming=False,
            )
        )
        if not tally.spend({"audio_ms": self._audio_ms}, Basis.OBSERVED):
            tally.stop(Outcome.CUT, {"audio_ms": 0}, Basis.OBSERVED)
            self.end_for_budget()
        self._tally = tally

    def transcription_received(self, transcription: Any) -> None:
        """An OpenAI-compatible answer, with what the plugin does not pass on: its usage."""
        if self._tally is None:
            return
        self._tally.first_answer()
        usage = getattr(transcription, "usage", None)
        if usage is None:
            return
        self._tokens = token_units(usage)
        if self._tokens:
            self._rates().learn(self._audio_ms, self._tokens)

    def finish(self, outcome: Outcome, error: BaseException | None) -> None:
        """Settle the leg; a refused request cost nothing."""
        tally = self._tally
        if tally is None:
            return
        usage, basis = {"audio_ms": self._audio_ms}, Basis.OBSERVED
        if outcome is Outcome.SERVED:
            tally.first_answer()
        if was_refused(error):
            usage["audio_ms"] = 0
        elif self._tokens:
            usage |= self._tokens
            basis = Basis.REPORTED
        elif outcome is not Outcome.SERVED and self._is_billed_by_token():
            # Accepted and never answered: the provider says nothing of what it bills then.
            tokens = self._rates().estimate(self._audio_ms)
            tally.margins = {unit: count // 2 for unit, count in tokens.items()}
            usage |= tokens
            basis = Basis.ESTIMATED
        tally.stop(self.outcome_of(outcome, tally), usage, basis)

    def _rates(self) -> TokenRates:
        tally = self._tally
        assert tally is not None, "asked for by a leg that is open"
        attributes = tally.attributes
        return rates_of(attributes.provider, attributes.model)

    def _is_billed_by_token(self) -> bool:
        tally = self._tally
        assert tally is not None, "asked for by a leg that is open"
        attributes = tally.attributes
        return is_billed_by_token(attributes.provider, attributes.model)


def _audio_ms(buffer: rtc.AudioFrame | list[rtc.AudioFrame]) -> int:
    """The duration of a recording in whole milliseconds."""
    samples: dict[int, int] = {}  # of one channel, by sample rate
    for frame in buffer if isinstance(buffer, list) else [buffer]:
        samples[frame.sample_rate] = samples.get(frame.sample_rate, 0) + frame.samples_per_channel
    return sum(count * 1000 // rate for rate, count in samples.items())


def observe_recordings(
    stt_class: type[Any], *, delegating: tuple[type[Any], ...]
) -> Callable[[], None]:
    """Observe `STT.recognize`, which sends whole recordings; returns the undo.

    Its attempts call `_recognize_impl`, which every plugin overrides: it is shadowed on the
    instance, for the time of the call only.
    """
    require(stt_class, calls={"recognize": "_recognize_impl"})
    recognize = stt_class.recognize

    @functools.wraps(recognize)
    async def observed_recognize(self: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self, delegating):
            return await recognize(self, *args, **kwargs)
        shadows = cast("dict[str, Any]", vars(self))
        own = shadows.setdefault("_recognize_impl", _ObservedRecognize(self, self._recognize_impl))
        if not isinstance(own, _ObservedRecognize):  # somebody else's shadow: leave it alone
            return await recognize(self, *args, **kwargs)
        own.calls += 1
        try:
            return await recognize(self, *args, **kwargs)
        finally:
            own.calls -= 1
            if own.calls == 0 and shadows.get("_recognize_impl") is own:
                del shadows["_recognize_impl"]

    stt_class.recognize = observed_recognize

    def undo() -> None:
        stt_class.recognize = recognize

    return undo


class _ObservedRecognize:
    """Stands for an STT's `_recognize_impl` while recordings are being recognized."""

    def __init__(self, component: Any, recognize_impl: Callable[..., Any]) -> None:
        self.calls = 0
        self._component = component
        self._recognize_impl = recognize_impl

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        results: list[Any] = []

        async def run(*_: Any, **__: Any) -> None:
            results.append(await self._recognize_impl(*args, **kwargs))

        await observed(self._component, RecordingAttempt, run)(*args, **kwargs)
        if not results:  # cut: LiveKit would try an error again; nothing was recognized
            return SpeechEvent(type=SpeechEventType.FINAL_TRANSCRIPT)
        return results[0]

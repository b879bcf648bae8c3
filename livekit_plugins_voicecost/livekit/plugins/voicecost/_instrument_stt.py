"""STT legs: one per connection, by the audio that is sent and the time the connection is open.

Providers bill connections: minimum, rounding and concurrency apply to each. A plugin may connect
anew within one attempt (Deepgram's does when an option changes), so where the wire is seen, each
WebSocket is a leg of its own. The options are read when it opens: they are what it was opened
with.

LiveKit never opens an ended recognition stream again: a call that lost it is deaf. So a stream ends
only with its call; while there is a shortage that may pass, its audio is owed.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, Final, cast

from livekit import rtc
from livekit.agents.stt import SpeechEvent, SpeechEventType
from livekit.agents.utils.audio import calculate_audio_duration

from voicecost_ledger.records import Basis, Modality, Outcome

from . import _faults
from ._instrument_attempts import (
    Attempt,
    Tally,
    describe,
    observed,
    option,
    option_text,
    was_refused,
)
from ._wire_audio import PCM_PROTOCOLS

_FRAMES_UNSEEN_MAX: Final = 100
"""Frames that a plugin takes before we doubt that it sends them as we think: a second or more."""


class RecognizeAttempt(Attempt):
    """One attempt of a recognition stream."""

    modality = Modality.STT
    cancelled_outcome = Outcome.SERVED  # how every STT stream of a session that closes ends

    _tally: Tally | None = None
    _frames_unseen = 0

    def begin(self, *args: Any) -> None:
        """Open the leg before the connection is made; watch what is taken and reported."""
        stream = self.stream
        self._pcm_on_wire = type(stream._stt).__module__ in PCM_PROTOCOLS
        self._reported: dict[str, int] = {}
        self._open(connection=None)
        self._input: Any = stream._input_ch
        self._events: Any = stream._event_ch
        take: Callable[[], Any] = self._input.recv_nowait
        emit: Callable[[Any], None] = self._events.send_nowait

        def observed_take() -> Any:
            item = take()
            if isinstance(item, rtc.AudioFrame):
                try:
                    self._frame_taken(item)
                except Exception as error:
                    _faults.count("stt_audio", error)
            return item

        def observed_emit(event: Any) -> None:
            try:
                self._event_emitted(event)
            except Exception as error:
                _faults.count("stt_event", error)
            emit(event)

        self._input.recv_nowait = observed_take
        self._events.send_nowait = observed_emit

    def text_sending(self, connection: object, payload: str) -> None:
        """Control messages count nothing, but show that the connection is open."""
        if connection is not self._connection:
            self._on(connection)
        self._record()

    def bytes_sending(self, connection: object, payload: bytes | bytearray | memoryview) -> None:
        """Count audio of a known protocol, before it is sent."""
        if connection is not self._connection:
            self._on(connection)
        if not self._pcm_on_wire:
            return
        size = payload.nbytes if isinstance(payload, memoryview) else len(payload)
        self._wire_bytes += size
        if not self._sent_audio():
            self._wire_bytes -= size  # kept back
            self.end_for_budget()

    def finish(self, outcome: Outcome, error: BaseException | None) -> None:
        """Settle the last connection's leg."""
        for channel, name in (("_input", "recv_nowait"), ("_events", "send_nowait")):
            getattr(getattr(self, channel, None), "__dict__", {}).pop(name, None)
        if self._tally is None:
            return
        if outcome is Outcome.FAILED and self._connection is None and was_refused(error):
            self._frames_taken = {}
            self._tally.stop(self.outcome_of(outcome, self._tally), self._usage(), Basis.OBSERVED)
            return
        self._close(outcome)

    # One connection

    def _open(self, connection: object | None) -> None:
        stream, component = self.stream, self.stream._stt
        channels = option(stream, component, "num_channels")
        rate = option(stream, component, "sample_rate")
        self._channel_count = channels if isinstance(channels, int) and channels > 0 else 1
        self._sample_rate = rate if isinstance(rate, int) and rate > 0 else 0
        self._connection = connection
        self._opened_ns = time.monotonic_ns()
        self._wire_bytes = 0
        self._frames_taken: dict[int, int] = {}  # samples by sample rate
        self._tally = None
        tally = self.tally(
            describe(
                stream,
                component,
                Modality.STT,
                language=option_text(stream, component, "language"),
                channel_count=self._channel_count,
            )
        )
        if not self._spend(tally):
            tally.stop(Outcome.CUT, {"audio_ms": 0, "connected_ms": 0}, Basis.OBSERVED)
            self.end_for_budget()  # never connected
        self._tally = tally

    def _on(self, connection: object) -> None:
        if self._connection is None:
            self._connection = connection
            self._opened_ns = time.monotonic_ns()  # the leg was opened before it connected
        else:
            self._close(Outcome.SERVED)
            self._open(connection)

    def _close(self, outcome: Outcome) -> None:
        if self._tally is not None:
            self._tally.stop(self.outcome_of(outcome, self._tally), self._usage(), self._basis)

    def _frame_taken(self, frame: rtc.AudioFrame) -> None:
        taken = self._frames_taken
        if self._pcm_on_wire and self._wire_bytes == 0:
            self._frames_unseen += 1
            if self._frames_unseen > _FRAMES_UNSEEN_MAX:
                self._pcm_on_wire = False
                _faults.count("stt_protocol_unknown")
        taken[frame.sample_rate] = taken.get(frame.sample_rate, 0) + frame.samples_per_channel
        if not self._pcm_on_wire and not self._sent_audio():
            taken[frame.sample_rate] -= frame.samples_per_channel  # kept back
            self.end_for_budget()

    def _sent_audio(self) -> bool:
        """Record the audio so far; False when the call is being ended."""
        return self._tally is None or self._spend(self._tally)

    def _spend(self, tally: Tally) -> bool:
        usage, basis = self._usage(), self._basis
        if not tally.spend(usage, basis):
            if self.must_end():
                return False
            tally.owe(usage, basis)
        return True

    def _record(self) -> None:
        if self._tally is not None:
            self._tally.owe(self._usage(), self._basis)

    def _event_emitted(self, event: SpeechEvent) -> None:
        """Take tokens that the provider reports. The audio's truth is what was sent."""
        usage = event.recognition_usage
        if usage is None:
            return
        for unit, count in (
            ("input_tokens", usage.input_tokens),
            ("output_tokens", usage.output_tokens),
        ):
            if count > 0:
                self._reported[unit] = self._reported.get(unit, 0) + count
                self._record()

    @property
    def _basis(self) -> Basis:
        if self._reported:
            return Basis.REPORTED
        return Basis.OBSERVED if self._pcm_on_wire else Basis.ESTIMATED

    def _usage(self) -> dict[str, int]:
        if self._pcm_on_wire and self._sample_rate:
            per_second = 2 * self._channel_count * self._sample_rate
            audio_ms = self._wire_bytes * 1000 // per_second
        else:
            audio_ms = sum(samples * 1000 // rate for rate, samples in self._frames_taken.items())
        connected_ms = 0
        if self._connection is not None or not self._pcm_on_wire:
            connected_ms = (time.monotonic_ns() - self._opened_ns) // 1_000_000
        return {"audio_ms": audio_ms, "connected_ms": connected_ms, **self._reported}


class RecordingAttempt(Attempt):
    """One attempt to recognize a whole recording. Its "stream" is the STT itself."""

    modality = Modality.STT
    _tally: Tally | None = None

    def begin(self, *args: Any) -> None:
        """Open the leg, before the recording is sent. `args[0]` is LiveKit's AudioBuffer."""
        component = self.stream
        self._audio_ms = round(calculate_audio_duration(args[0]) * 1000)
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

    def finish(self, outcome: Outcome, error: BaseException | None) -> None:
        """Settle the leg; a refused request cost nothing."""
        if self._tally is None:
            return
        usage = {"audio_ms": 0 if was_refused(error) else self._audio_ms}
        self._tally.stop(self.outcome_of(outcome, self._tally), usage, Basis.OBSERVED)


def observe_recordings(
    stt_class: type[Any], *, delegating: tuple[type[Any], ...]
) -> Callable[[], None]:
    """Observe `STT.recognize`, which sends whole recordings; returns the undo.

    Its attempts call `_recognize_impl`, which every plugin overrides: it is shadowed on the
    instance, for the time of the call only.
    """
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

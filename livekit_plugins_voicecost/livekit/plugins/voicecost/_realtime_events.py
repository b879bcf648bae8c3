"""LiveKit's own events of a realtime session, where the provider's raw ones are not to be seen.

They are what a plugin chose to report, under ids that need not be those of the responses. Several
reports of one response are a running total where the prompt is the same, and parts of it (as of
Amazon's model) where it is not. A response without a report is settled by the estimate of its
prompt when another one is reported or the session closes.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from livekit.agents.metrics import LLMMetrics, RealtimeModelMetrics, STTMetrics

from voicecost_ledger.records import Basis, Modality, Outcome

from ._instrument_attempts import Tally
from ._realtime_prompt import Prompt, Size
from ._realtime_session import NO_TOKENS, Response, SessionLegs, settle
from ._reports import believed, milliseconds

_SAID_MOST: Final = 500
"""Tokens of an answer that nobody reports, at the most: 25 s of speech, or the longest so far."""


class _Reported(Response):
    """A response, and what was reported of it."""

    __slots__ = ("earlier", "reported")

    def __init__(self, response_id: str) -> None:
        super().__init__(response_id)
        self.earlier: dict[str, int] = {}
        self.reported: dict[str, int] = {}  # by the last report

    def add(self, units: dict[str, int]) -> dict[str, int]:
        """Take a report; returns all that was reported."""
        said_again = units["input_tokens"] > 0 and (
            units["input_tokens"] == self.reported.get("input_tokens")
        )
        if not said_again:
            self.earlier = {
                unit: count + self.earlier.get(unit, 0) for unit, count in self.reported.items()
            }
        self.reported = units
        return {unit: count + self.earlier.get(unit, 0) for unit, count in units.items()}


class LiveKitEvents:
    """Follows what one session emits."""

    def __init__(self, legs: SessionLegs) -> None:
        self._legs = legs
        self._prompt = Prompt()
        self._open: dict[str, _Reported] = {}
        self._last: _Reported | None = None
        self._last_request_id = ""
        self._said_most = _SAID_MOST
        self._others: dict[tuple[Modality, str], Tally] = {}  # legs of other models

    def response_created(self, response_id: str, speech: Any) -> None:
        """See `WireProtocol`. A duplex model's bursts of speech are no requests of their own."""
        if self._legs.duplex:
            return
        response = self._open[response_id] = _Reported(response_id)
        margins = self._prompt.margins() | {"output_tokens": self._said_most}
        self._legs.begin(response, speech, self.estimate(), margins)

    def reply_asked(self, future: asyncio.Future[Any], speech: Any) -> None:
        """See `WireProtocol`."""

    def estimate(self) -> dict[str, int]:
        """See `WireProtocol`."""
        return self._prompt.estimate() | {"output_tokens": 0}

    def closed(self) -> None:
        """See `WireProtocol`."""
        self._settle_unreported()

    def reported(self, metrics: Any) -> None:
        """The session emitted `metrics_collected`."""
        if isinstance(metrics, RealtimeModelMetrics):
            duration_ms = milliseconds(getattr(metrics, "session_duration", 0.0) or 0.0)
            if duration_ms > 0:
                self._legs.connection_leg().report(more_ms=duration_ms)
            units = _units(metrics)
            if units is not None:
                self._response_reported(metrics, units)
        elif isinstance(metrics, STTMetrics):
            self._transcription_reported(metrics)
        elif isinstance(metrics, LLMMetrics):
            self._other(Modality.LLM, metrics, {
                "input_tokens": metrics.prompt_tokens,
                "cached_input_tokens": metrics.prompt_cached_tokens,
                "output_tokens": metrics.completion_tokens,
            })  # fmt: skip

    def _response_reported(self, metrics: RealtimeModelMetrics, units: dict[str, int]) -> None:
        response = self._response_of(metrics.request_id)
        self._last, self._last_request_id = response, metrics.request_id
        self._said_most = max(self._said_most, units["output_tokens"])
        outcome = Outcome.INTERRUPTED if metrics.cancelled else Outcome.SERVED
        self._legs.settle(response, outcome, response.add(units), Basis.REPORTED)
        if units["input_tokens"] > 0:
            audio, image = units["input_audio_tokens"], units["input_image_tokens"]
            read = Size(max(0, units["input_tokens"] - audio - image), audio, image)
            spoken = units["output_audio_tokens"]
            said = Size(max(0, units["output_tokens"] - spoken), spoken)
            self._prompt.reported(self._prompt.snapshot(), read, units["cached_input_tokens"], said)
        self._settle_unreported()

    def _response_of(self, request_id: str) -> _Reported:
        """Which response a report is of."""
        last = self._last
        if request_id in self._open:
            return self._open.pop(request_id)
        if last is not None and request_id and last.id == request_id:
            return last
        if self._open:  # the plugin reports under ids of its own
            return self._open.popitem()[1]
        if last is not None and request_id and self._last_request_id == request_id:
            return last
        return _Reported(request_id)

    def _settle_unreported(self) -> None:
        """One response at a time: what was not reported by now will not be."""
        for response in self._open.values():
            usage = dict(NO_TOKENS) if response.tally is None else response.tally.usage
            self._legs.settle(response, Outcome.INTERRUPTED, usage, Basis.ESTIMATED)
        self._open.clear()

    def _transcription_reported(self, metrics: STTMetrics) -> None:
        usage = {"audio_ms": milliseconds(metrics.audio_duration)}
        tokens = {
            "input_tokens": getattr(metrics, "input_tokens", 0),
            "input_audio_tokens": getattr(metrics, "input_audio_tokens", 0),
            "output_tokens": getattr(metrics, "output_tokens", 0),
        }
        if any(tokens.values()):
            usage = usage | tokens if usage["audio_ms"] else tokens
        self._other(Modality.STT, metrics, usage)

    def _other(self, modality: Modality, metrics: Any, told: dict[str, int]) -> None:
        """Another model's request over the same connection."""
        usage = believed(told)
        if usage is None:
            return
        key = (modality, str(metrics.request_id))
        known = self._others.get(key) if metrics.request_id else None
        if known is None:
            model = getattr(metrics.metadata, "model_name", None) or ""
            attributes = self._legs.describe(modality, model)
            known = self._legs.tally(attributes)
            if metrics.request_id:
                self._others = {key: known}  # said again at once, if ever
        settle(known, Outcome.SERVED, usage, Basis.REPORTED)


def _units(metrics: RealtimeModelMetrics) -> dict[str, int] | None:
    read, said = metrics.input_token_details, metrics.output_token_details
    cached: Any = read.cached_tokens_details
    return believed({
        "input_tokens": metrics.input_tokens,
        "cached_input_tokens": read.cached_tokens,
        "input_audio_tokens": read.audio_tokens,
        "cached_input_audio_tokens": cached.audio_tokens if cached is not None else 0,
        "input_image_tokens": read.image_tokens,
        "cached_input_image_tokens": cached.image_tokens if cached is not None else 0,
        "output_tokens": metrics.output_tokens,
        "output_audio_tokens": said.audio_tokens,
    })  # fmt: skip

"""LiveKit's own events of a realtime session, where the provider's raw ones are not to be seen.

They are what a plugin chose to report: a response without a report is settled by the estimate of
its prompt when the next one is reported or the session closes.
"""

from __future__ import annotations

import asyncio
from typing import Any

from livekit.agents.metrics import LLMMetrics, RealtimeModelMetrics, STTMetrics

from voicecost_ledger.records import Basis, Modality, Outcome

from ._instrument_attempts import Tally
from ._realtime_prompt import Prompt, Size
from ._realtime_session import NO_TOKENS, Response, SessionLegs, settle


class LiveKitEvents:
    """Follows what one session emits."""

    def __init__(self, legs: SessionLegs) -> None:
        self._legs = legs
        self._prompt = Prompt()
        self._open: dict[str, Response] = {}
        self._last: Response | None = None
        self._others: dict[tuple[Modality, str], Tally] = {}  # legs of other models

    def response_created(self, response_id: str, speech: Any) -> None:
        """See `WireProtocol`. A duplex model's bursts of speech are no requests of their own."""
        if self._legs.duplex:
            return
        response = self._open[response_id] = Response(response_id)
        self._legs.begin(response, speech, self.estimate(), self._prompt.margins())

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
            duration_ms = round((getattr(metrics, "session_duration", 0.0) or 0.0) * 1000)
            if duration_ms > 0:
                self._legs.connection_leg().report(more_ms=duration_ms)
            if metrics.input_tokens > 0 or metrics.output_tokens > 0:
                self._response_reported(metrics)
        elif isinstance(metrics, STTMetrics):
            self._transcription_reported(metrics)
        elif isinstance(metrics, LLMMetrics):
            self._other(Modality.LLM, metrics, {
                "input_tokens": metrics.prompt_tokens,
                "cached_input_tokens": metrics.prompt_cached_tokens,
                "output_tokens": metrics.completion_tokens,
            })  # fmt: skip

    def _response_reported(self, metrics: RealtimeModelMetrics) -> None:
        units = _units(metrics)
        response = self._open.pop(metrics.request_id, None)
        last = self._last
        if response is None:
            if last is not None and metrics.request_id and last.id == metrics.request_id:
                response = last  # said again: the later word stands
            else:
                response = Response(metrics.request_id)
        outcome = Outcome.INTERRUPTED if metrics.cancelled else Outcome.SERVED
        self._legs.settle(response, outcome, units, Basis.REPORTED)
        self._last = response
        audio, image = units["input_audio_tokens"], units["input_image_tokens"]
        read = Size(max(0, units["input_tokens"] - audio - image), audio, image)
        spoken = units["output_audio_tokens"]
        said = Size(max(0, units["output_tokens"] - spoken), spoken)
        self._prompt.reported(self._prompt.snapshot(), read, units["cached_input_tokens"], said)
        self._settle_unreported()

    def _settle_unreported(self) -> None:
        """One response at a time: what was not reported by now will not be."""
        for response in self._open.values():
            usage = dict(NO_TOKENS) if response.tally is None else response.tally.usage
            self._legs.settle(response, Outcome.INTERRUPTED, usage, Basis.ESTIMATED)
        self._open.clear()

    def _transcription_reported(self, metrics: STTMetrics) -> None:
        usage = {"audio_ms": round(metrics.audio_duration * 1000)}
        tokens = {
            "input_tokens": getattr(metrics, "input_tokens", 0),
            "input_audio_tokens": getattr(metrics, "input_audio_tokens", 0),
            "output_tokens": getattr(metrics, "output_tokens", 0),
        }
        if any(tokens.values()):
            usage = usage | tokens if usage["audio_ms"] else tokens
        self._other(Modality.STT, metrics, usage)

    def _other(self, modality: Modality, metrics: Any, usage: dict[str, int]) -> None:
        """Another model's request over the same connection."""
        if not any(usage.values()):
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


def _units(metrics: RealtimeModelMetrics) -> dict[str, int]:
    read, said = metrics.input_token_details, metrics.output_token_details
    cached: Any = read.cached_tokens_details
    return {
        "input_tokens": metrics.input_tokens,
        "cached_input_tokens": read.cached_tokens,
        "input_audio_tokens": read.audio_tokens,
        "cached_input_audio_tokens": cached.audio_tokens if cached is not None else 0,
        "input_image_tokens": read.image_tokens,
        "cached_input_image_tokens": cached.image_tokens if cached is not None else 0,
        "output_tokens": metrics.output_tokens,
        "output_audio_tokens": said.audio_tokens,
    }

"""OpenAI's GPT-Live protocol: a voice billed by the second, and a backend model billed by token.

The voice's seconds are the provider's own count, cumulative for a connection. Delegated work runs
on a Responses model whose events come wrapped in `response.event`: a leg of modality `llm` each.

https://developers.openai.com/api/docs/guides/voice-latency-cost
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

from voicecost_ledger.records import Basis, Modality, Outcome

from ._instrument_attempts import Tally
from ._realtime_session import NO_TOKENS, SessionLegs, settle
from ._reports import believed


class GPTLive:
    """Follows one session's events."""

    def __init__(self, legs: SessionLegs) -> None:
        self._legs = legs
        self._backend_model = ""
        self._delegated: dict[str | None, Tally] = {}
        self._last_usage: dict[str, int] = dict(NO_TOKENS)

    def sent(self, event: dict[str, Any]) -> None:
        """The plugin is about to send this."""
        if event.get("type") in ("session.start", "session.update"):
            delegation = _part(_part(event, "session"), "delegation")
            model = _part(delegation, "responses").get("model")
            if model:
                self._backend_model = str(model)

    def received(self, event: dict[str, Any]) -> None:
        """The provider sent this."""
        match event.get("type"):
            case "session.started":
                self._legs.connection_leg().started()
            case "session.output_audio.delta":
                connection = self._legs.connection_leg()
                connection.answered()
                self._legs.spoke_ms(len(event.get("delta") or "") * 3 // 4 // 48)  # base64, 24 kHz
            case "session.usage.updated" | "session.closed":
                seconds = _part(event, "usage").get("seconds")
                if seconds is not None:
                    final = event["type"] == "session.closed"
                    total_ms = round(float(seconds) * 1000)
                    self._legs.connection_leg().report(total_ms=total_ms, final=final)
            case "response.event":
                self._delegation(event.get("delegation_id"), _part(event, "event"))
            case _:
                pass

    def response_created(self, response_id: str, speech: Any) -> None:
        """See `WireProtocol`: bursts of speech are no requests."""

    def reply_asked(self, future: asyncio.Future[Any], speech: Any) -> None:
        """See `WireProtocol`."""

    def estimate(self) -> dict[str, int]:
        """See `WireProtocol`: a reply costs nothing beside the time."""
        return dict(NO_TOKENS)

    def closed(self) -> None:
        """See `WireProtocol`."""
        self.disconnected(Outcome.INTERRUPTED)

    def disconnected(self, outcome: Outcome) -> None:
        """The connection is gone; delegated work that it carried is not reported any more."""
        for tally in self._delegated.values():
            tally.stop(outcome)
        self._delegated.clear()

    def _delegation(self, delegation_id: str | None, event: dict[str, Any]) -> None:
        """One event of the backend's response; a delegation runs one after the other."""
        response = _part(event, "response")
        model = str(response.get("model") or self._backend_model)
        match event.get("type"):
            case "response.created":
                known = self._delegated.pop(delegation_id, None)
                if known is not None:
                    known.stop(Outcome.INTERRUPTED)
                attributes = self._legs.describe(Modality.LLM, self._backend_model or model)
                tally = self._legs.tally(attributes)
                # Its prompt is not to be seen: the one before is the best that is known of it.
                last = self._last_usage["input_tokens"]
                tally.margins = {"input_tokens": last, "output_tokens": last}
                tally.owe(self._last_usage | {"output_tokens": 0}, Basis.ESTIMATED)
                tally.served_by(model)
                self._delegated[delegation_id] = tally
            case "response.completed" | "response.failed" | "response.incomplete":
                tally = self._delegated.pop(delegation_id, None)
                if tally is None:
                    attributes = self._legs.describe(Modality.LLM, model)
                    tally = self._legs.tally(attributes)
                failed = event["type"] == "response.failed"
                outcome = Outcome.FAILED if failed else Outcome.SERVED
                units = _units(_part(response, "usage"))
                if units is not None:
                    self._last_usage = units
                    settle(tally, outcome, units, Basis.REPORTED)
                elif failed:
                    settle(tally, outcome, dict(NO_TOKENS), Basis.OBSERVED)
                else:
                    tally.stop(outcome)
            case "response.output_text.delta" | "response.output_item.added":
                tally = self._delegated.get(delegation_id)
                if tally is not None:
                    tally.first_answer()
            case _:
                pass


def _units(usage: Mapping[str, Any]) -> dict[str, int] | None:
    read, said = _part(usage, "input_tokens_details"), _part(usage, "output_tokens_details")
    return believed({
        "input_tokens": int(usage.get("input_tokens") or 0),
        "cached_input_tokens": int(read.get("cached_tokens") or 0),
        "cache_write_tokens": int(read.get("cache_write_tokens") or 0),
        "output_tokens": int(usage.get("output_tokens") or 0),
        "reasoning_tokens": int(said.get("reasoning_tokens") or 0),
    })  # fmt: skip


def _part(whole: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = whole.get(name)
    return cast("dict[str, Any]", part) if isinstance(part, dict) else {}

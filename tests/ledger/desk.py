"""A ledger with a clock that the test turns, and prices a reader can sum in the head.

One character, one ms of audio or one token costs 1,000 nano-USD, a cached token nothing; model "?"
has no price, "gpt-dear" costs five times as much; audio is billed per started second, so that
rounding has something to telescope over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voicecost_ledger.books import Books
from voicecost_ledger.calls import CallState
from voicecost_ledger.events import Answer, Effect, EndRoom, Event, Order, Tick
from voicecost_ledger.policy import Policy
from voicecost_ledger.pricing import Price
from voicecost_ledger.protocol import Ack, Action, Command, Grant, Records, Reject, Renew
from voicecost_ledger.records import (
    ADOPTED,
    Basis,
    Coverage,
    Gap,
    LegAttributes,
    LegInterim,
    LegStart,
    LegStop,
    MeterClose,
    MeterOpen,
    Modality,
    Outcome,
    Record,
)
from voicecost_ledger.rooms import ParticipantKind, RoomEvent, RoomParticipant
from voicecost_ledger.stores import CallDetail, CallQuery, CallSummary
from voicecost_ledger.stores.sqlite import SqliteStore

NOON = 1_795_348_800_000  # 2026-11-22T12:00:00Z, at a quarter hour
UNIT_NANO_USD = 1_000
CENT = 10_000_000

TTS = LegAttributes(modality=Modality.TTS, provider="Deepgram", model="aura-2")
STT = LegAttributes(modality=Modality.STT, provider="Deepgram", model="nova-3")
LLM = LegAttributes(modality=Modality.LLM, provider="api.openai.com", model="gpt-4o-mini")
UNKNOWN = LegAttributes(modality=Modality.TTS, provider="New", model="?")


class SumPrice:
    pricing_source = "test@2026-11-22"

    def __init__(self, times: int = 1) -> None:
        self.times = times
        self.price_id = f"sum-{times}"

    def rate(self, usage: Mapping[str, int]) -> int | None:
        audio_ms = -(-usage.get("audio_ms", 0) // 1000) * 1000
        tokens = usage.get("input_tokens", 0) + usage.get("output_tokens", 0)
        tokens -= usage.get("cached_input_tokens", 0)
        characters = usage.get("characters", usage.get("utf8_bytes", 0))
        return (characters + audio_ms + tokens) * UNIT_NANO_USD * self.times

    def converts(self, usage: Mapping[str, int]) -> bool:
        """Bytes stand in for characters that nobody counted."""
        return "characters" not in usage and usage.get("utf8_bytes", 0) > 0

    def document(self) -> bytes:
        return json.dumps({"sum": self.times}).encode()


class MinutePrice:
    """Of a connection to a room: by begun minutes."""

    pricing_source = "test@2026-11-22"

    def __init__(self, minute_nano_usd: int) -> None:
        self.minute_nano_usd = minute_nano_usd
        self.price_id = f"minute-{minute_nano_usd}"

    def rate(self, usage: Mapping[str, int]) -> int | None:
        return -(-usage.get("connected_ms", 0) // 60_000) * self.minute_nano_usd

    def converts(self, usage: Mapping[str, int]) -> bool:
        return False

    def document(self) -> bytes:
        return json.dumps({"minute": self.minute_nano_usd}).encode()


class SumBook:
    def __init__(self) -> None:
        # Rooms are on a server of one's own, which is on nobody's bill; a test may say otherwise.
        self.minute_nano_usd: dict[str, int | None] = {}
        # What it costs, in times of the plain price; a dated name costs what the plain one does.
        self.known = {"aura-2": 1, "nova-3": 1, "gpt-4o-mini": 1, "gpt-4o-mini-2024-07-18": 1}
        self.known["gpt-dear"] = 5

    def price_for(self, leg: LegAttributes, at_unix_ms: int) -> Price | None:
        if leg.modality is Modality.PARTICIPANT:
            minute = self.minute_nano_usd.get(leg.model, 0)
            return None if minute is None else MinutePrice(minute)
        times = self.known.get(leg.model)
        return None if times is None else SumPrice(times)

    def price_as_served(
        self, asked: LegAttributes, served: LegAttributes, at_unix_ms: int
    ) -> Price | None:
        return self.price_for(served, at_unix_ms)

    def restore(self, document: bytes) -> Price:
        stored = json.loads(document)
        return MinutePrice(stored["minute"]) if "minute" in stored else SumPrice(stored["sum"])


class Desk:
    """Hands events to the real books over a real SQLite ledger."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.store = SqliteStore.open(":memory:")
        self.policy = policy or Policy(livekit_project="LK")
        self.prices = SumBook()
        self.books = Books(self.prices, self.policy)
        self.now = NOON
        self.effects: list[Effect] = []

    def receive(self, event: Event) -> list[Effect]:
        with self.store.transaction() as tx:
            effects = self.books.receive(tx, event, self.now)
        self.effects += effects
        return effects

    def order(self, order: Order) -> Answer:
        with self.store.transaction() as tx:
            return self.books.order(tx, order, self.now)

    def wait(self, ms: int) -> list[Effect]:
        """Let time pass, ticking every second as the bookkeeper does (of hours, less often)."""
        effects: list[Effect] = []
        target = self.now + ms
        step = max(1_000, ms // 500)
        while self.now < target:
            self.now = min(target, self.now + step)
            effects += self.receive(Tick())
        return effects

    def meter(self, meter_id: str = "MT_a", **opened: Any) -> TestMeter:
        return TestMeter(self, meter_id, opened)

    def calls(self) -> list[CallSummary]:
        return self.store.calls(CallQuery())

    def call(self, call_id: str | None = None) -> CallDetail:
        if call_id is None:
            (only,) = self.calls()
            call_id = only.call_id
        detail = self.store.call(call_id)
        assert detail is not None
        return detail

    def check(self) -> None:
        """Every total equals what its entries say, and every budget's invariant holds."""
        assert self.store.verify() == []

    def webhook(self, event: RoomEvent) -> list[Effect]:
        return self.receive(event)

    def replay(self, fixture: str, *, until_ms: int | None = None, skip: str = "") -> None:
        """A real webhook sequence, at its real distances; ticks in between."""
        began = self.now
        for t_ms, event in webhooks(fixture, began):
            if until_ms is not None and t_ms > until_ms:
                return
            if began + t_ms > self.now:
                self.wait(began + t_ms - self.now)
            if event.event not in skip.split():
                self.webhook(event)


class TestMeter:
    """A plugin's meter, as far as its records go."""

    __test__ = False

    def __init__(self, desk: Desk, meter_id: str, opened: dict[str, Any]) -> None:
        self.desk = desk
        self.meter_id = meter_id
        self.seq = 0
        self.sent_through = 0
        self.renewal = 0
        self.pending: list[Record] = []
        self.legs = 0
        self.write(MeterOpen, **opened)

    def write(self, make: Any, **fields: Any) -> Record:
        self.seq += 1
        record = make(self.meter_id, self.seq, self.desk.now, **fields)
        self.pending.append(record)
        return record

    def start(
        self,
        attributes: LegAttributes = TTS,
        speech_id: str | None = None,
        margins: dict[str, int] | None = None,
        **usage: int,
    ) -> int:
        self.legs += 1
        self.write(
            LegStart,
            leg=self.legs,
            attributes=attributes,
            usage=usage,
            speech_id=speech_id,
            margins=margins or {},
        )
        return self.legs

    def interim(
        self,
        leg: int,
        basis: Basis = Basis.OBSERVED,
        margins: dict[str, int] | None = None,
        **usage: int,
    ) -> None:
        self.write(LegInterim, leg=leg, usage=usage, basis=basis, margins=margins or {})

    def stop(
        self,
        leg: int,
        outcome: Outcome = Outcome.SERVED,
        basis: Basis = Basis.REPORTED,
        told: dict[str, Any] | None = None,  # more fields of the record
        **usage: int,
    ) -> None:
        self.write(LegStop, leg=leg, usage=usage, basis=basis, outcome=outcome, **(told or {}))

    def close(self) -> None:
        self.write(MeterClose, coverage=Coverage.COMPLETE, reason="user_initiated")

    def adopt(self, skipped: bool = False) -> list[Effect]:
        """The process died; whoever adopted its spool sends what is in it and seals it."""
        if skipped:
            self.write(Gap, reason="spool_skipped")
        self.write(MeterClose, coverage=Coverage.COMPLETE, reason=ADOPTED)
        return self.send()

    def batch(self) -> Records:
        records = Records(self.meter_id, self.sent_through, self.seq, self.pending)
        self.pending, self.sent_through = [], self.seq
        return records

    def send(self) -> list[Effect]:
        return self.desk.receive(self.batch())

    def renew(self, *, exhausted: bool = False) -> Grant:
        self.renewal += 1
        effects = self.desk.receive(Renew(self.meter_id, self.renewal, 0, exhausted))
        return next(effect for effect in effects if isinstance(effect, Grant))


def webhooks(fixture: str, began: int) -> list[tuple[int, RoomEvent]]:
    path = Path(__file__).parents[1] / "sidecar" / "fixtures" / f"{fixture}.json"
    found: list[tuple[int, RoomEvent]] = []
    joined: dict[str, int] = {}
    for item in json.loads(path.read_text()):
        raw = item["event"]
        someone = raw.get("participant")
        participant = None
        if someone:
            identity = someone["identity"]
            is_agent = someone.get("kind") == "AGENT"
            participant = RoomParticipant(
                sid=someone["sid"],
                identity=identity,
                kind=ParticipantKind(someone.get("kind", "STANDARD")),
                joined_at_unix_ms=joined.setdefault(someone["sid"], began + item["t_ms"]),
                disconnect_reason=someone.get("disconnectReason"),
                job_id=identity.removeprefix("agent-") if is_agent else None,
            )
        event = RoomEvent(
            event_id=raw["id"],
            event=raw["event"],
            livekit_project="LK",
            room_sid=raw["room"]["sid"],
            room_name=raw["room"]["name"],
            created_at_unix_ms=(began + item["t_ms"]) // 1000 * 1000,
            participant=participant,
        )
        found.append((item["t_ms"], event))
    return found


def of(kind: type[Any], effects: list[Effect]) -> list[Any]:
    return [effect for effect in effects if isinstance(effect, kind)]


__all__ = [
    "CENT",
    "LLM",
    "NOON",
    "STT",
    "TTS",
    "UNKNOWN",
    "Ack",
    "Action",
    "CallState",
    "Command",
    "Desk",
    "EndRoom",
    "Reject",
    "TestMeter",
    "of",
    "webhooks",
]

"""Where the ledger lives. One `Store` interface; SQLite is its first engine.

A `Session` is one transaction: `Books` reads rows, changes them and saves them back, and nothing
of it is true before `Store.transaction()` has committed. The read side (calls, costs) may be used
from any thread at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from voicecost_ledger.budgets import Window
from voicecost_ledger.calls import Call, Room
from voicecost_ledger.entries import Entry, Leg
from voicecost_ledger.meters import Meter
from voicecost_ledger.records import ControlTotal, Outcome
from voicecost_ledger.rooms import Connection, RoomParticipant
from voicecost_ledger.stores._answers import (
    AuditView,
    CallDetail,
    CallQuery,
    CallSummary,
    ControlView,
    CostQuery,
    CostRow,
    EntryHistory,
    EntryView,
    GapView,
    LatencyQuery,
    LatencyRow,
    LegView,
    MeterView,
    QuarantinedView,
    TurnView,
)


class StoreUnavailable(Exception):
    """The ledger could not be read or committed (disk full, locked, gone): nothing is durable.

    `reason` is one of a few fixed words ("full", "locked", "io", "corrupt", "other"); the text
    says which file and what to do.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class StoreRefused(Exception):
    """The ledger file will not be opened: too new, not ours, or SQLite too old. Says why."""


# ---- write side ------------------------------------------------------------------------------


class Session(Protocol):
    """One transaction's view of the ledger.

    A row is one object for the length of the transaction, however it was found: change it, then
    save it.
    """

    def savepoint(self) -> AbstractContextManager[None]:
        """A part of the transaction that is undone by itself when it raises."""
        ...

    def ledger_identity(self) -> tuple[str, int]:
        """The ledger's id and generation."""
        ...

    def meter(self, meter_id: str) -> Meter | None:
        """The meter with this id, or None."""
        ...

    def save_meter(self, meter: Meter) -> None:
        """Insert or replace a meter."""
        ...

    def meters_of(self, call_id: str) -> list[Meter]:
        """The meters of a call's agents, by id."""
        ...

    def room_meters_of(self, call_id: str) -> list[Meter]:
        """The ledger's own meters of a call's rooms (`Meter.of_rooms`), by id."""
        ...

    def meters_of_job(self, job_id: str) -> list[Meter]:
        """The meters that ran in a LiveKit job, by id."""
        ...

    def meters_with_lease_before(self, at_unix_ms: int) -> list[Meter]:
        """Meters whose lease ran out before an instant."""
        ...

    def meters_holding_before(self, start_unix_ms: int) -> list[Meter]:
        """Leased meters that hold credit on a window that began before an instant (calls aside)."""
        ...

    def call(self, call_id: str) -> Call | None:
        """The call with this id, or None."""
        ...

    def save_call(self, call: Call) -> None:
        """Insert or replace a call."""
        ...

    def withdraw_call(self, call_id: str) -> None:
        """Remove a call that never had a meter (it turned out to be part of another)."""
        ...

    def calls_in_waiting(
        self, now: int, *, ended_before_unix_ms: int, silent_since_unix_ms: int
    ) -> list[Call]:
        """The calls that time alone may move on, by id.

        Those that ended by `ended_before_unix_ms`, those being ended or past their wrap-up's
        deadline, and open ones without an open meter, or with one that was not heard of since
        `silent_since_unix_ms`.
        """
        ...

    def room(self, room_sid: str) -> Room | None:
        """The room with this SID, or None."""
        ...

    def save_room(self, room: Room) -> None:
        """Insert or replace a room."""
        ...

    def rooms_of(self, call_id: str) -> list[Room]:
        """A call's rooms, oldest first."""
        ...

    def live_rooms_named(self, livekit_project: str, name: str) -> list[Room]:
        """Rooms of this name whose end was not seen, newest first."""
        ...

    def live_rooms(self, livekit_project: str) -> list[Room]:
        """Rooms of a LiveKit project whose end was not seen."""
        ...

    def save_participant(
        self,
        participant: RoomParticipant,
        *,
        room_sid: str,
        left_at_unix_ms: int | None,
        told: bool = True,
    ) -> None:
        """Note that somebody is in a room, or left it.

        `told` False: a listing shows it, or its absence. Who has left by LiveKit's word stays so;
        what was only concluded gives way to the next word, and to a listing that shows him.
        """
        ...

    def hear_participants(self, room_sid: str, at_unix_ms: int) -> None:
        """Note that LiveKit has just shown whoever is connected to a room."""
        ...

    def connected_participants(self, room_sids: Sequence[str]) -> list[RoomParticipant]:
        """Who is in these rooms, as far as is known."""
        ...

    def has_left(self, participant_sid: str) -> bool:
        """Whether somebody has left by LiveKit's word."""
        ...

    def connections_of(self, call_id: str) -> list[Connection]:
        """Who was ever in a call's rooms, by number."""
        ...

    def calls_connected_before(self, at_unix_ms: int) -> list[str]:
        """The calls with an open connection that nothing was heard of since an instant."""
        ...

    def jobs_in(self, room_sid: str) -> set[str]:
        """Agent jobs ever seen in a room, by participant or by meter."""
        ...

    def leg(self, meter_id: str, number: int) -> Leg | None:
        """A meter's leg by its number, or None."""
        ...

    def save_leg(self, leg: Leg) -> None:
        """Insert or replace a leg; gives a new one its key."""
        ...

    def legs_of(self, meter_id: str) -> list[Leg]:
        """A meter's legs, by number; those below 0 stand for what only its checkpoint tells of."""
        ...

    def open_legs_of(self, meter_id: str) -> list[Leg]:
        """A meter's legs without an outcome, by number."""
        ...

    def open_legs_before(self, at_unix_ms: int) -> list[Leg]:
        """Open legs whose last record lies before an instant and is not wholly posted."""
        ...

    def closed_legs(
        self,
        *,
        from_unix_ms: int,
        until_unix_ms: int,
        after: tuple[int, int] | None,
        provider: str | None,
        limit: int,
    ) -> list[Leg]:
        """Legs with an outcome that started in a span, by start and key; no fees or adjustments.

        `after` is (start, key) of the last one seen; `provider` is taken without regard to case.
        """
        ...

    def post(self, entry: Entry, leg: Leg, meter: Meter) -> None:
        """Append an entry and move its rollup, in this transaction."""
        ...

    def entries_of(self, leg: Leg) -> list[Entry]:
        """A leg's entries, by part."""
        ...

    def regroup(self, leg: Leg, meter: Meter, *, outcome: Outcome | None, model: str) -> None:
        """Move what is posted for a leg to its outcome and billed model in the rollups.

        `outcome` and `model` are those it was rolled up under.
        """
        ...

    def project_posted(self, project: str, from_unix_ms: int, until_unix_ms: int) -> int:
        """What accrued to a project between two quarter hours, as posted."""
        ...

    def price_document(self, price_id: str) -> bytes | None:
        """What `save_price` stored, or None."""
        ...

    def save_price(self, price_id: str, pricing_source: str, document: bytes) -> None:
        """Keep a price for ever; the same id again changes nothing."""
        ...

    def window(self, scope: str, start_unix_ms: int) -> Window | None:
        """One period of one budget, or None."""
        ...

    def save_window(self, window: Window) -> None:
        """Insert or replace a window."""
        ...

    def seen_event(self, event_id: str, at_unix_ms: int) -> bool:
        """Note a webhook's id; True if it was known already."""
        ...

    def add_gap(
        self, meter_id: str, call_id: str, at_unix_ms: int, reason: str, modality: str | None
    ) -> None:
        """Note usage that nobody could meter."""
        ...

    def withdraw_gaps(self, meter_id: str, reason: str) -> None:
        """Forget a meter's gaps of one reason: it turned out that nothing is missing."""
        ...

    def add_control(self, call_id: str, total: ControlTotal, causes: Mapping[str, int]) -> None:
        """Keep LiveKit's account of a quantity beside ours, and what explains the difference."""
        ...

    def quarantine(self, meter_id: str, seq: int, reason: str, record_json: str) -> None:
        """Keep a refused record to be looked at (capped per meter)."""
        ...

    def audit(self, call_id: str, at_unix_ms: int, step: str, detail: str) -> None:
        """Note a step of enforcement."""
        ...

    def count(self, counter: str, by: int = 1) -> None:
        """Move a counter."""
        ...


class Store(Protocol):
    """A ledger's store. `transaction` is for one writer thread; reads may come from any."""

    def transaction(self) -> AbstractContextManager[Session]:
        """Commit on leaving; roll back on an exception. Raises `StoreUnavailable`."""
        ...

    def calls(self, query: CallQuery) -> list[CallSummary]:
        """The calls asked for, newest first."""
        ...

    def call(self, call_id: str) -> CallDetail | None:
        """Everything known of one call, or None."""
        ...

    def entry(self, number: int) -> EntryHistory | None:
        """One entry and how it came to be, or None."""
        ...

    def last_entry(self, call_id: str, leg: int, meter_id: str | None) -> int | None:
        """The number of the last entry of a call's leg; of its first such meter without one."""
        ...

    def closed_legs(
        self, *, from_unix_ms: int, until_unix_ms: int, after: tuple[int, int] | None, limit: int
    ) -> list[Leg]:
        """Legs with an outcome that started in a span, by start and key; no fees or adjustments."""
        ...

    def costs(self, query: CostQuery) -> list[CostRow]:
        """Accrued cost, grouped."""
        ...

    def latency(self, query: LatencyQuery) -> list[LatencyRow]:
        """How long legs took, grouped."""
        ...

    def accruing(self, project: str | None) -> int:
        """Nano-USD that open legs have cost and that is not posted yet; None: of all projects."""
        ...

    def accruing_billed(self, project: str | None) -> int:
        """The same with markup."""
        ...

    def counters(self) -> dict[str, int]:
        """Counters and gauges, by name."""
        ...

    def verify(self) -> list[str]:
        """Recompute every total from the entries; one sentence per difference, [] when right."""
        ...

    def close(self) -> None:
        """Close every connection."""
        ...


__all__ = [
    "AuditView",
    "CallDetail",
    "CallQuery",
    "CallSummary",
    "ControlView",
    "CostQuery",
    "CostRow",
    "EntryHistory",
    "EntryView",
    "GapView",
    "LatencyQuery",
    "LatencyRow",
    "LegView",
    "MeterView",
    "QuarantinedView",
    "Session",
    "Store",
    "StoreRefused",
    "StoreUnavailable",
    "TurnView",
]

"""Where the ledger lives. One `Store` interface; SQLite is its first engine.

A `Session` is one transaction: `Books` reads rows, changes them and saves them back, and nothing
of it is true before `Store.transaction()` has committed. The read side (calls, costs) may be used
from any thread at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec

from voicecost_ledger.budgets import Window
from voicecost_ledger.calls import Call, CallState, EndReason, Room
from voicecost_ledger.entries import Entry, Leg
from voicecost_ledger.meters import Meter
from voicecost_ledger.records import (
    Basis,
    ControlTotal,
    Coverage,
    Environment,
    Modality,
    Outcome,
)
from voicecost_ledger.rooms import RoomParticipant


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


# ---- read side -------------------------------------------------------------------------------


class CallQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which calls, newest first; those opened at the same time by id.

    `before` is where the page before ended: `opened_at_unix_ms` and `call_id` of its last call.
    """

    project: str | None = None
    state: CallState | None = None
    opened_from_unix_ms: int | None = None
    opened_until_unix_ms: int | None = None
    before: tuple[int, str] | None = None
    limit: int = 50


class CallSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One call in a list. `total_nano_usd` has posted entries and `accruing_nano_usd` in it.

    Waste is the cost of every leg that did not end `served`. `uncertainty_nano_usd` bounds by how
    much the total may be off: the sum over its estimated legs, as if all erred the same way;
    `unknown_uncertainty_leg_count` legs are estimated by nobody knows how much and are not in it.
    Shares are of `total_nano_usd`, in thousandths.
    """

    call_id: str
    state: CallState
    reason: EndReason | None
    project: str
    agent: str | None
    tenant: str | None
    environment: Environment
    room_name: str | None
    opened_at_unix_ms: int
    ended_at_unix_ms: int | None
    settled_at_unix_ms: int | None
    total_nano_usd: int
    accruing_nano_usd: int
    waste_nano_usd: int
    waste_per_mille: int
    estimated_nano_usd: int
    estimated_per_mille: int
    uncertainty_nano_usd: int
    unknown_uncertainty_leg_count: int
    unpriced_leg_count: int
    nano_usd_by_modality: dict[str, int]
    nano_usd_by_outcome: dict[str, int]  # "open" for legs that have none yet
    limit_nano_usd: int | None
    coverage: Coverage
    amended: bool


class LegView(msgspec.Struct, frozen=True, kw_only=True):
    """One leg as the ledger has it now. `amount_nano_usd` None: no price known.

    `model` is what was asked for. `served_model` is what the provider said instead, None where it
    said nothing else; `billed_model` is the one whose price rates the leg. `service_tier` and
    `served_tier` likewise.

    `uncertainty_nano_usd`: by how much the amount may be off, 19 times of 20; 0 where it is exact,
    None where nobody can say. `time_to_first_ms` is from the start to the first token or byte of
    an answer, None where none came; `duration_ms` to the end, None while the leg is open or when
    it was lost.
    """

    meter_id: str
    leg: int  # below 0: no request of its own, but what only a checkpoint tells of
    modality: Modality
    provider: str
    model: str
    served_model: str | None
    billed_model: str
    service_tier: str  # "" where none was asked for
    served_tier: str | None
    host: str
    language: str
    usage: dict[str, int]
    margins: dict[str, int]  # of an estimate: by how much each unit may be off
    basis: Basis
    outcome: Outcome | None  # None while the leg is open
    amount_nano_usd: int | None
    uncertainty_nano_usd: int | None
    posted_nano_usd: int
    price_id: str | None
    pricing_source: str | None
    started_at_unix_ms: int
    stopped_at_unix_ms: int | None
    time_to_first_ms: int | None
    duration_ms: int | None
    speech_id: str | None


class EntryView(msgspec.Struct, frozen=True, kw_only=True):
    """One ledger row as posted.

    `uncertainty_nano_usd` is of the leg's whole amount as it was known with this part: never sum
    it over the parts of a leg. 0 where that is exact, None where nobody can say.
    """

    number: int
    meter_id: str
    leg: int
    part: int
    amount_nano_usd: int | None
    price_id: str | None
    basis: Basis
    uncertainty_nano_usd: int | None
    usage: dict[str, int]  # of this part alone
    accrued_at_unix_ms: int
    posted_at_unix_ms: int


class MeterView(msgspec.Struct, frozen=True, kw_only=True):
    """One meter of a call."""

    meter_id: str
    state: str  # "open", "closed", "adopted", "lost"
    job_id: str | None
    unattributed: bool
    durable_seq: int
    checkpoint_seq: int | None  # of the latest checkpoint that LiveKit gave back
    total_nano_usd: int
    ceiling_nano_usd: int | None
    versions: dict[str, str]


class GapView(msgspec.Struct, frozen=True, kw_only=True):
    """Usage nobody could meter."""

    meter_id: str
    at_unix_ms: int
    reason: str
    modality: str | None


class AuditView(msgspec.Struct, frozen=True, kw_only=True):
    """One step of enforcement."""

    at_unix_ms: int
    step: str
    detail: str


class QuarantinedView(msgspec.Struct, frozen=True, kw_only=True):
    """A record that was refused by the sanity checks; kept, never rated."""

    meter_id: str
    seq: int
    reason: str
    record: str  # as JSON


class ControlView(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity of one run of a session as LiveKit's `session.usage` has it, beside ours.

    `metered` minus `livekit` is the sum of `causes`; `unexplained` among them is a fault of one of
    the two.
    """

    meter_id: str
    at_unix_ms: int
    modality: Modality
    provider: str
    model: str
    unit: str
    metered: int
    livekit: int
    causes: dict[str, int]


class TurnView(msgspec.Struct, frozen=True, kw_only=True):
    """What one speech of the agent cost: the legs with its `speech_id`.

    `speech_id` None: the legs that belong to no speech, such as an STT connection.
    """

    speech_id: str | None
    started_at_unix_ms: int
    total_nano_usd: int
    waste_nano_usd: int
    nano_usd_by_modality: dict[str, int]
    leg_count: int
    unpriced_leg_count: int


class LatencyQuery(msgspec.Struct, frozen=True, kw_only=True):
    """How long the legs took that started between two instants, grouped."""

    from_unix_ms: int
    until_unix_ms: int
    project: str | None = None
    # any of "project", "agent", "tenant", "provider", "model", "modality", "outcome"
    group_by: tuple[str, ...] = ("project", "modality", "provider", "model")


class LatencyRow(msgspec.Struct, frozen=True, kw_only=True):
    """One group of a latency query, exact: the nearest rank, not an estimate.

    `leg_count` legs have ended (lost ones aside); `answered_leg_count` of them brought a first
    token or byte. The percentiles are None where there is nothing to rank.
    """

    group: dict[str, str]
    leg_count: int
    answered_leg_count: int
    time_to_first_p50_ms: int | None
    time_to_first_p95_ms: int | None
    duration_p50_ms: int | None
    duration_p95_ms: int | None


class CallDetail(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the ledger knows of one call."""

    summary: CallSummary
    turns: list[TurnView]  # in the order they began
    latency: list[LatencyRow]  # by modality, provider and model
    control: list[ControlView]
    legs: list[LegView]
    entries: list[EntryView]
    meters: list[MeterView]
    gaps: list[GapView]
    audit: list[AuditView]
    quarantined: list[QuarantinedView]


class CostQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Accrued cost between two instants, grouped. Resolution: quarter hours of UTC."""

    from_unix_ms: int
    until_unix_ms: int
    project: str | None = None
    # any of "project", "agent", "tenant", "provider", "model", "modality", "outcome"
    group_by: tuple[str, ...] = ("project",)


class CostRow(msgspec.Struct, frozen=True, kw_only=True):
    """One group of a cost query; posted entries only.

    Waste is what legs cost that did not end `served`, in thousandths of the amount too.
    """

    group: dict[str, str]
    amount_nano_usd: int
    waste_nano_usd: int
    waste_per_mille: int
    leg_count: int
    unpriced_leg_count: int


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
        """A call's meters, by id."""
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

    def calls_in_waiting(self, now: int, *, silent_since_unix_ms: int) -> list[Call]:
        """The calls that time alone may move on, by id.

        Ended ones, those being ended or past their wrap-up's deadline, and open ones without an
        open meter, or with one that was not heard of since `silent_since_unix_ms`.
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
        self, participant: RoomParticipant, *, room_sid: str, left_at_unix_ms: int | None
    ) -> None:
        """Note that somebody is in a room, or left it; who has left stays so."""
        ...

    def connected_participants(self, room_sids: Sequence[str]) -> list[RoomParticipant]:
        """Who is in these rooms, as far as is known."""
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

    def costs(self, query: CostQuery) -> list[CostRow]:
        """Accrued cost, grouped."""
        ...

    def latency(self, query: LatencyQuery) -> list[LatencyRow]:
        """How long legs took, grouped."""
        ...

    def accruing(self, project: str | None) -> int:
        """Nano-USD that open legs have cost and that is not posted yet; None: of all projects."""
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

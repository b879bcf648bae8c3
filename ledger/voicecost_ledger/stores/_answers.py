"""What may be asked of a ledger, and what it answers: the same structs for API and command line."""

from __future__ import annotations

import msgspec

from voicecost_ledger.calls import CallState, EndReason
from voicecost_ledger.records import Basis, Coverage, Environment, Modality, Outcome


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
    Shares are of `total_nano_usd`, in thousandths. `billed_nano_usd` is the total with markup and
    flat fee.
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
    billed_nano_usd: int
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
    # Below 0: no request of its own, but what only a checkpoint tells of. From 1,000,000,000 on:
    # none either, but the call's flat fee and its adjustments.
    leg: int
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
    billed_nano_usd: int | None  # with markup
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
    billed_nano_usd: int | None  # with markup
    price_id: str | None
    basis: Basis
    uncertainty_nano_usd: int | None
    usage: dict[str, int]  # of this part alone
    accrued_at_unix_ms: int
    posted_at_unix_ms: int


class EntryHistory(msgspec.Struct, frozen=True, kw_only=True):
    """One entry, what its leg was known to have used with it, and what was posted before.

    `price_document` is the price as the ledger keeps it, JSON; of an entry without an amount that
    of its leg, which may have got one later; None where none is known.
    """

    entry: EntryView
    leg: LegView  # as it is now
    call_id: str
    usage: dict[str, int]  # of the whole leg, as known with this part
    posted_before_nano_usd: int
    billed_before_nano_usd: int
    markup_ppm: int
    last_part: int  # of the leg, as it is now
    price_document: str | None


class MeterView(msgspec.Struct, frozen=True, kw_only=True):
    """One meter of a call."""

    meter_id: str
    state: str  # "open", "closed", "adopted", "lost"
    job_id: str | None
    unattributed: bool
    hosted: bool  # its agent is deployed to LiveKit Cloud
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
    billed_nano_usd: int
    waste_nano_usd: int
    waste_per_mille: int
    leg_count: int
    unpriced_leg_count: int

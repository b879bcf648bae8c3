"""The authority's rules in one place: events in, effects out, state in the store (I1, I3, I8, I9).

    with store.transaction() as tx:
        effects = books.receive(tx, event, now_unix_ms)

`Books` keeps no state of its own but a cache of prices, so a crash, a failed commit or a second
process on the same file cost nothing: the next event finds what is durable. It does no I/O, reads
no clock and draws nothing at random.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator
from typing import Final

import msgspec

from voicecost_ledger import budgets, calls, entries
from voicecost_ledger.calls import Call, CallState
from voicecost_ledger.credit import CreditControl
from voicecost_ledger.entries import Leg
from voicecost_ledger.events import Effect, Event, RoomVerifiedGone, Tick
from voicecost_ledger.meters import Meter, MeterState
from voicecost_ledger.money import NANO_USD_PER_USD, format_usd
from voicecost_ledger.policy import Policy
from voicecost_ledger.pricing import Price, PriceBook
from voicecost_ledger.protocol import (
    PROTOCOL_VERSION,
    Ack,
    Hello,
    Records,
    Reject,
    Renew,
    Welcome,
    WrappedUp,
)
from voicecost_ledger.records import (
    ADOPTED,
    MAX_QUANTITY,
    UNITS,
    Basis,
    ControlTotal,
    Coverage,
    Gap,
    LegInterim,
    LegStart,
    LegStop,
    MeterClose,
    MeterOpen,
    Outcome,
    Record,
)
from voicecost_ledger.rooms import RoomEvent, RoomListing
from voicecost_ledger.stores import Session, StoreUnavailable

logger = logging.getLogger("voicecost.ledger")

MAX_LEG_NANO_USD: Final = 10_000 * NANO_USD_PER_USD
"""No request of today's providers costs $10,000: a count that says so is a fault or a fraud, and
sums of what is accepted stay far inside int64."""
SEQ_JUMP_MAX: Final = 1_000_000
"""More records than any meter writes: nobody has lost so many."""
CLOCK_TOLERANCE_MS: Final = 2_000
OLDEST_RECORD_MS: Final = 30 * 24 * 3_600_000
OLDEST_UNTIMED_MS: Final = 3_600_000
"""How far a record's time is believed of a sender that does not say what its clock shows."""


class _Clock:
    """An agent's timestamps as ours: by the difference of both clocks when it sent them.

    A clock that is a day off must not book to another day, nor to a budget of another day.
    """

    def __init__(self, now: int, sent_at_unix_ms: int) -> None:
        self._now = now
        offset = now - sent_at_unix_ms if sent_at_unix_ms > 0 else 0
        self._offset = offset if abs(offset) > CLOCK_TOLERANCE_MS else 0
        self._oldest = now - (OLDEST_RECORD_MS if sent_at_unix_ms > 0 else OLDEST_UNTIMED_MS)

    def ours(self, at_unix_ms: int) -> int:
        at = at_unix_ms + self._offset
        return at if self._oldest <= at <= self._now else self._now


class Books:
    """The rules of the ledger over one transaction at a time.

    Args:
        prices: Where a leg's price comes from when it starts.
        policy: What the operator decided.
    """

    def __init__(self, prices: PriceBook, policy: Policy) -> None:
        self._prices = prices
        self._policy = policy
        self._credit = CreditControl(policy)
        self._restored: dict[str, Price] = {}
        self._logged_faults: set[str] = set()

    def receive(self, tx: Session, event: Event, now: int) -> list[Effect]:
        """Apply one event at `now` (Unix ms).

        Returns:
            Replies for the sender's connection, grants and commands for meters, rooms to end.
        """
        match event:
            case Hello():
                return self._hello(tx, event, now)
            case Records():
                return self._records(tx, event, now)
            case Renew():
                return self._renew(tx, event, now)
            case WrappedUp():
                return self._credit.wrapped_up(tx, event.meter_id, now)
            case RoomEvent():
                touched = calls.receive_room_event(tx, event, now)
                return self._look_at(tx, touched, now)
            case RoomListing():
                touched = calls.receive_listing(tx, event, now)
                return self._look_at(tx, touched, now, told=False)
            case RoomVerifiedGone():
                return self._verified_gone(tx, event, now)
            case Tick():
                return self._tick(tx, now)

    # ---- the protocol --------------------------------------------------------------------------

    def _hello(self, tx: Session, hello: Hello, now: int) -> list[Effect]:
        if hello.version != PROTOCOL_VERSION:
            return [
                Reject(
                    code="version",
                    message=f"protocol version {hello.version} is not spoken here: this sidecar "
                    f"speaks {PROTOCOL_VERSION}; install the same voicecost on both sides",
                )
            ]
        ledger_id, generation = tx.ledger_identity()
        durable: dict[str, int] = {}
        for held in hello.meters:
            meter = tx.meter(held.meter_id)
            seq = meter.durable_seq if meter is not None else 0
            # 0: the client holds nothing, for it was told that everything is durable.
            first = held.first_seq_held or held.last_seq + 1
            opened = held.opened
            strange = not 0 < first <= min(held.last_seq + 1, seq + SEQ_JUMP_MAX)
            if strange or (opened is not None and opened.meter_id != held.meter_id):
                return [
                    Reject(
                        code="malformed",
                        message=f"meter {held.meter_id} cannot hold records from "
                        f"{held.first_seq_held} on when its last is {held.last_seq} and "
                        f"{seq} are durable",
                        meter_id=held.meter_id,
                    )
                ]
            if meter is None and opened is not None and first > 1:
                # A ledger that is new to this meter: the client says again whose it is.
                meter = self._open(tx, opened, now)
                meter.durable_seq = seq = opened.seq
                tx.save_meter(meter)
            if first > seq + 1:
                # Records in between are nowhere any more: never silence, a gap.
                if meter is None:
                    meter = self._open(tx, MeterOpen(held.meter_id, 0, now), now)
                meter.durable_seq = seq = first - 1
                self._gap(tx, meter, now, "records_lost")
                tx.save_meter(meter)
            durable[held.meter_id] = seq
        return [
            Welcome(
                version=PROTOCOL_VERSION,
                ledger_id=ledger_id,
                generation=generation,
                durable_seqs=durable,
            )
        ]

    def _records(self, tx: Session, batch: Records, now: int) -> list[Effect]:
        meter = tx.meter(batch.meter_id)
        durable = meter.durable_seq if meter is not None else 0
        if batch.after_seq > durable:
            return [
                Reject(
                    code="gap",
                    message=f"records of meter {batch.meter_id} after {batch.after_seq} came, but "
                    f"only {durable} are durable: send again from there",
                    meter_id=batch.meter_id,
                    durable_seq=durable,
                )
            ]
        problem = _malformed(batch)
        if problem is not None:
            return [Reject(code="malformed", message=problem, meter_id=batch.meter_id)]
        for record in batch.records:
            if record.seq <= durable:
                continue
            if isinstance(record, MeterOpen):
                if meter is None:
                    meter = self._open(tx, record, now)
                continue
            if meter is None:
                return [
                    Reject(
                        code="malformed",
                        message=f"meter {batch.meter_id} sent {type(record).__name__} before its "
                        "MeterOpen: the first record of a meter opens it",
                        meter_id=batch.meter_id,
                    )
                ]
            self._apply(tx, meter, record, now, _Clock(now, batch.sent_at_unix_ms))
        effects: list[Effect] = []
        if meter is not None:
            if meter.state in (MeterState.CLOSED, MeterState.ADOPTED):
                self._finish(tx, meter, now)  # what came after its close is over too
            if batch.through_seq > meter.durable_seq:
                meter.durable_seq = batch.through_seq
            meter.last_heard_at_unix_ms = now
            tx.save_meter(meter)
            durable = meter.durable_seq
            effects = self._look_at(tx, {meter.call_id}, now)
        ack = Ack(committed={batch.meter_id: durable}, replicated={batch.meter_id: durable})
        return [ack, *effects]

    def _open(self, tx: Session, opened: MeterOpen, now: int) -> Meter:
        call = calls.call_for_meter(tx, opened, self._policy.livekit_project, now)
        meter = Meter(
            meter_id=opened.meter_id,
            call_id=call.call_id,
            project=opened.project,
            opened=opened,
            last_heard_at_unix_ms=now,
        )
        tx.save_meter(meter)
        return meter

    def _apply(self, tx: Session, meter: Meter, record: Record, now: int, clock: _Clock) -> None:
        if meter.state is MeterState.LOST:
            # Given up, and here it is: the call takes what it says and settles again.
            meter.state = MeterState.OPEN
        call = tx.call(meter.call_id)
        assert call is not None
        if call.state is CallState.SETTLED:
            call.state = CallState.ENDED
            call.amended = True
            tx.save_call(call)
        match record:
            case MeterOpen() | ControlTotal():
                pass
            case LegStart() | LegInterim() | LegStop():
                at = clock.ours(record.at_unix_ms)
                problem = self._apply_to_leg(tx, meter, call, record, at, now)
                if problem is not None:
                    self._quarantine(tx, meter, record, problem)
            case Gap():
                at = clock.ours(record.at_unix_ms)
                self._gap(tx, meter, at, record.reason, record.modality)
            case MeterClose():
                adopted = record.reason == ADOPTED
                meter.state = MeterState.ADOPTED if adopted else MeterState.CLOSED
                meter.coverage = _worse(meter.coverage, record.coverage)
                self._finish(tx, meter, now)

    def _apply_to_leg(
        self,
        tx: Session,
        meter: Meter,
        call: Call,
        record: LegStart | LegInterim | LegStop,
        at: int,
        now: int,
    ) -> str | None:
        """Apply a leg's record as of `at`; returns why it was refused, or None."""
        usage = dict(record.usage)
        for unit, quantity in record.usage.items():
            if not 0 <= quantity <= MAX_QUANTITY:
                return f"{unit}={quantity} is outside 0 to 2**40"
            if unit not in UNITS:
                # A newer plugin's: what we know of the leg is counted, what we do not is said.
                del usage[unit]
                self._quarantine(tx, meter, record, f"unknown unit {unit!r}: upgrade the sidecar")
        leg = tx.leg(meter.meter_id, record.leg)
        if isinstance(record, LegStart):
            if leg is not None:
                return f"leg {record.leg} was started before"
            leg = self._start(tx, meter, record, at)
        elif leg is None:
            return f"leg {record.leg} was never started"
        elif leg.basis is not Basis.ESTIMATED:
            for unit, quantity in leg.usage.items():
                if usage.get(unit, 0) < quantity:
                    return f"{unit} shrank from {quantity} to {usage.get(unit, 0)}"
        rated = self._rate(tx, leg, usage)
        if rated is None and leg.rated_nano_usd is not None and leg.usage:
            return "what was priced before cannot be priced any more"
        if rated is not None and rated > MAX_LEG_NANO_USD:
            return f"it would cost {format_usd(rated, places=0)}, more than any one leg can"
        if isinstance(record, LegInterim) and leg.outcome is Outcome.LOST:
            # Given up too early: it goes on from here.
            leg.outcome = leg.stopped_at_unix_ms = None
            if leg.part_count:
                tx.move_outcome(leg, meter, Outcome.LOST)
        was_rated, was_outcome = leg.rated_nano_usd, leg.outcome
        if leg.outcome is None and entries.quarter_hour(at) > entries.quarter_hour(
            leg.last_at_unix_ms
        ):
            self._post(tx, meter, call, leg, now)
        if isinstance(record, LegInterim) and leg.outcome is not None:
            return None  # overtaken by its stop
        leg.usage = usage
        leg.basis = record.basis
        if was_outcome is None or was_outcome is Outcome.LOST:
            # A correction of what is over accrued when it was spent, never on a later day.
            leg.last_at_unix_ms = max(at, leg.last_at_unix_ms)
        leg.rated_nano_usd = rated
        meter.charged_nano_usd += (leg.rated_nano_usd or 0) - (was_rated or 0)
        meter.unpriced_leg_count += (leg.rated_nano_usd is None) - (was_rated is None)
        if isinstance(record, LegStop):
            leg.outcome = record.outcome
            leg.stopped_at_unix_ms = leg.last_at_unix_ms
            if leg.part_count and was_outcome != leg.outcome:
                tx.move_outcome(leg, meter, was_outcome)
            self._post(tx, meter, call, leg, now)
        tx.save_leg(leg)
        return None

    def _start(self, tx: Session, meter: Meter, record: LegStart, at: int) -> Leg:
        price = self._prices.price_for(record.attributes, at)
        leg = Leg(
            meter_id=meter.meter_id,
            number=record.leg,
            call_id=meter.call_id,
            attributes=record.attributes,
            started_at_unix_ms=at,
            speech_id=record.speech_id,
            usage={},
            basis=Basis.ESTIMATED,
            last_at_unix_ms=at,
        )
        if price is not None:
            leg.price_id, leg.pricing_source = price.price_id, price.pricing_source
            tx.save_price(price.price_id, price.pricing_source, price.document())
            self._restored[price.price_id] = price
        leg.rated_nano_usd = self._rate(tx, leg, {})
        meter.unpriced_leg_count += leg.rated_nano_usd is None
        tx.save_leg(leg)
        return leg

    def _rate(self, tx: Session, leg: Leg, usage: dict[str, int]) -> int | None:
        if leg.price_id is None:
            return None
        price = self._restored.get(leg.price_id)
        if price is None:
            document = tx.price_document(leg.price_id)
            assert document is not None  # saved in the transaction that started the leg
            price = self._restored[leg.price_id] = self._prices.restore(document)
        return price.rate(usage)

    def _post(self, tx: Session, meter: Meter, call: Call, leg: Leg, now: int) -> None:
        entry = entries.next_part(leg, posted_at_unix_ms=now)
        if entry is None:
            return
        if entry.amount_nano_usd:
            # Before the entry: a window made now counts what was posted before it.
            at = entry.accrued_at_unix_ms
            self._credit.settle(tx, call, meter, entry.amount_nano_usd, at)
        tx.post(entry, leg, meter)
        tx.save_leg(leg)

    def _quarantine(self, tx: Session, meter: Meter, record: Record, problem: str) -> None:
        tx.count("quarantined_records")
        tx.quarantine(meter.meter_id, record.seq, problem, msgspec.json.encode(record).decode())
        meter.coverage = _worse(meter.coverage, Coverage.PARTIAL)

    def _gap(
        self, tx: Session, meter: Meter, at: int, reason: str, modality: str | None = None
    ) -> None:
        tx.add_gap(meter.meter_id, meter.call_id, at, reason, modality)
        meter.coverage = _worse(meter.coverage, Coverage.PARTIAL)

    def _finish(self, tx: Session, meter: Meter, now: int) -> None:
        """A meter is over: close what it left open as lost, free what it holds."""
        call = tx.call(meter.call_id)
        assert call is not None
        for leg in tx.open_legs_of(meter.meter_id):
            leg.outcome = Outcome.LOST
            leg.basis = Basis.ESTIMATED
            leg.stopped_at_unix_ms = leg.last_at_unix_ms
            if leg.part_count:
                tx.move_outcome(leg, meter, None)
            self._post(tx, meter, call, leg, now)
            tx.save_leg(leg)
        self._credit.release(tx, meter, meter.held_nano_usd)
        meter.lease_until_unix_ms = None
        call.coverage = _worse(call.coverage, meter.coverage)
        tx.save_call(call)
        tx.save_meter(meter)

    def _renew(self, tx: Session, renew: Renew, now: int) -> list[Effect]:
        meter = tx.meter(renew.meter_id)
        call = tx.call(meter.call_id) if meter is not None else None
        if meter is None or call is None or meter.state is not MeterState.OPEN:
            return []
        meter.last_heard_at_unix_ms = now
        meter.renewal = max(meter.renewal, renew.renewal)
        self._close_the_day(tx, meter, call, now)
        grants = self._credit.grant(tx, meter, now, renewal=renew.renewal)
        meter.exhausted = renew.exhausted and meter.final
        tx.save_meter(meter)
        told = self._credit.repeat(tx, call, meter, now)
        return [*grants, *told, *self._look_at(tx, {meter.call_id}, now)]

    def _close_the_day(self, tx: Session, meter: Meter, call: Call, now: int) -> None:
        """Post what accrued before midnight while its hold is still on yesterday's window."""
        if self._credit.day_is_over(tx, meter, now):
            for leg in tx.open_legs_of(meter.meter_id):
                self._post(tx, meter, call, leg, now)

    def _look_at(
        self, tx: Session, call_ids: set[str], now: int, *, told: bool = True
    ) -> list[Effect]:
        """After something happened to calls: their budgets, and whether they are over."""
        effects: list[Effect] = []
        for call_id in sorted(call_ids):
            call = tx.call(call_id)
            if call is None:
                continue
            if call.state is CallState.OPEN:
                effects += self._credit.enforce(tx, call, now)
            if calls.conclude(tx, call, now, self._policy, told=told):
                calls.settle_call(tx, call, now)
        return effects

    def _verified_gone(self, tx: Session, event: RoomVerifiedGone, now: int) -> list[Effect]:
        call = self._credit.verified_gone(tx, event, now)
        return [] if call is None else self._look_at(tx, {call.call_id}, now)

    # ---- time ----------------------------------------------------------------------------------

    def _tick(self, tx: Session, now: int) -> list[Effect]:
        """Every row on its own: one that cannot be moved on must not hold up the others."""
        effects: list[Effect] = []
        # A fault makes the session forget its rows: each is read again where it is worked on.
        for found in tx.open_legs_before(entries.quarter_hour(now)):
            with self._isolated(tx):
                leg = tx.leg(found.meter_id, found.number)
                meter, call = tx.meter(found.meter_id), tx.call(found.call_id)
                assert leg is not None
                assert meter is not None
                assert call is not None
                self._post(tx, meter, call, leg, now)
                tx.save_meter(meter)
        for expired in tx.meters_with_lease_before(now):
            with self._isolated(tx):
                meter = tx.meter(expired.meter_id)
                assert meter is not None
                self._credit.expire(tx, meter)
        today = budgets.day_start(now, self._policy.time_zone)
        for holding in tx.meters_holding_before(today):
            with self._isolated(tx):
                meter, call = tx.meter(holding.meter_id), tx.call(holding.call_id)
                assert meter is not None
                assert call is not None
                self._close_the_day(tx, meter, call, now)
                effects += self._credit.grant(tx, meter, now, renewal=0)
        silent_since = now - self._policy.meter_silence_ms
        for waiting in tx.calls_in_waiting(now, silent_since_unix_ms=silent_since):
            with self._isolated(tx):
                call = tx.call(waiting.call_id)
                assert call is not None
                effects += self._tick_call(tx, call, now)
        return effects

    def _tick_call(self, tx: Session, call: Call, now: int) -> list[Effect]:
        effects = self._credit.tick(tx, call, now)
        meters = tx.meters_of(call.call_id)
        heard = max((meter.last_heard_at_unix_ms for meter in meters), default=0)
        open_meters = [meter for meter in meters if meter.state is MeterState.OPEN]
        silent = now - heard >= self._policy.meter_silence_ms
        # Nobody but the meter itself could tell that it is gone.
        alone = self._policy.livekit_project is None or not tx.rooms_of(call.call_id)
        if call.state is CallState.OPEN and open_meters and silent and alone:
            self._lose(tx, open_meters, now)
        elif call.state is CallState.ENDED:
            since = max(call.ended_at_unix_ms or 0, heard)
            if now - since >= self._policy.meter_grace_ms:
                self._lose(tx, open_meters, now)
        if calls.conclude(tx, call, now, self._policy):
            calls.settle_call(tx, call, now)
        return effects

    @contextlib.contextmanager
    def _isolated(self, tx: Session) -> Generator[None, None, None]:
        """Undo what a faulty row did, count it, say it once, and go on."""
        try:
            with tx.savepoint():
                yield
        except StoreUnavailable:
            raise
        except Exception as error:  # contained: time must go on for every other call
            tx.count("tick_faults")
            kind = type(error).__name__
            if kind not in self._logged_faults:
                self._logged_faults.add(kind)
                logger.error("time could not move a row on: %s; see voicecost_tick_faults", kind)

    def _lose(self, tx: Session, meters: list[Meter], now: int) -> None:
        for meter in meters:
            meter.state = MeterState.LOST
            self._finish(tx, meter, now)


def _malformed(batch: Records) -> str | None:
    last = batch.after_seq
    for record in batch.records:
        if record.meter_id != batch.meter_id:
            return f"a batch of meter {batch.meter_id} holds a record of meter {record.meter_id}"
        if not last < record.seq <= batch.through_seq:
            return (
                f"record {record.seq} of meter {batch.meter_id} is out of order or outside "
                f"{batch.after_seq + 1} to {batch.through_seq}"
            )
        last = record.seq
    if batch.through_seq < batch.after_seq:
        return f"a batch from {batch.after_seq} through {batch.through_seq} is no range"
    return None


_COVERAGE_ORDER = [Coverage.COMPLETE, Coverage.PARTIAL, Coverage.METRICS_ONLY]


def _worse(one: Coverage, other: Coverage) -> Coverage:
    return max(one, other, key=_COVERAGE_ORDER.index)

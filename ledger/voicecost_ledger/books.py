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

from voicecost_ledger import budgets, calls, connections, entries, quantities
from voicecost_ledger.calls import Call, CallState
from voicecost_ledger.checkpoints import Checkpoint
from voicecost_ledger.clocks import AgentClock
from voicecost_ledger.connections import Connections
from voicecost_ledger.corrections import Corrections
from voicecost_ledger.credit import CreditControl
from voicecost_ledger.events import (
    Answer,
    CheckpointSeen,
    Effect,
    Event,
    Order,
    Rerate,
    RoomVerifiedGone,
    Tick,
)
from voicecost_ledger.meters import Meter, MeterState
from voicecost_ledger.policy import Policy
from voicecost_ledger.postings import Postings, worse
from voicecost_ledger.pricing import PriceBook
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
    ControlCause,
    ControlTotal,
    Coverage,
    Gap,
    LegInterim,
    LegStart,
    LegStop,
    MeterClose,
    MeterOpen,
    Record,
)
from voicecost_ledger.rooms import RoomEvent, RoomListing
from voicecost_ledger.stores import Session, StoreUnavailable

logger = logging.getLogger("voicecost.ledger")

SEQ_JUMP_MAX: Final = 1_000_000
"""More records than any meter writes: nobody has lost so many."""
HOST_LOST: Final = "host_lost"
"""The gap of a meter that was given up: what it used after its last word is not known."""
CHECKPOINT_AGE_MAX_MS: Final = 60_000
"""One is written every ten seconds; its agent's departure is seen at most 21 s later and told
within 15 s. An older time is rather a wrong clock."""
_CONTROL_CAUSES: Final = frozenset(ControlCause)


class Books:
    """The rules of the ledger over one transaction at a time.

    Args:
        prices: Where a leg's price comes from when it starts.
        policy: What the operator decided.
    """

    def __init__(self, prices: PriceBook, policy: Policy) -> None:
        self._policy = policy
        self._credit = CreditControl(policy)
        self._postings = Postings(prices, self._credit, policy.billing)
        self._corrections = Corrections(prices, self._postings, policy.billing)
        self._connections = Connections(self._postings, policy)
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
                self._bring_up(tx, touched, now)
                return self._look_at(tx, touched, now)
            case RoomListing():
                touched = calls.receive_listing(tx, event, now)
                self._bring_up(tx, touched, now)
                return self._look_at(tx, touched, now, told=False)
            case RoomVerifiedGone():
                return self._verified_gone(tx, event, now)
            case CheckpointSeen():
                return self._checkpoint_seen(tx, event.checkpoint, now)
            case Tick():
                return self._tick(tx, now)

    def order(self, tx: Session, order: Order, now: int) -> Answer:
        """Carry out what an operator orders."""
        if isinstance(order, Rerate):
            return self._corrections.rerate(tx, order, now)
        return self._corrections.adjust(tx, order, now)

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
            if held.meter_id.startswith(calls.ROOM_METER_PREFIX):
                return [connections.of_no_agent(held.meter_id)]
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
                meter.records_lost = True
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
        if batch.meter_id.startswith(calls.ROOM_METER_PREFIX):
            return [connections.of_no_agent(batch.meter_id)]
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
        problem = batch.problem()
        if problem is not None:
            return [Reject(code="malformed", message=problem, meter_id=batch.meter_id)]
        clock = AgentClock(now, batch.sent_at_unix_ms)
        for record in batch.records:
            if record.seq <= durable:
                continue
            if isinstance(record, MeterOpen):
                if meter is None:
                    meter = self._open(tx, record, now)
                elif meter.durable_seq == 0:
                    # Known by its checkpoint, which has no room for all of this.
                    opened = meter.opened
                    meter.opened = msgspec.structs.replace(
                        opened, tags=record.tags, versions=record.versions
                    )
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
            self._apply(tx, meter, record, now, clock)
        effects: list[Effect] = []
        if meter is not None:
            if batch.through_seq > meter.durable_seq:
                meter.durable_seq = batch.through_seq
            meter.last_heard_at_unix_ms = now
            if meter.state in (MeterState.CLOSED, MeterState.ADOPTED):
                self._finish(tx, meter, now)  # what came after its close is over too
            elif meter.state is MeterState.OPEN:
                call = tx.call(meter.call_id)
                assert call is not None
                self._postings.settle_checkpoint(tx, meter, call, now)
            tx.save_meter(meter)
            durable = meter.durable_seq
            effects = self._look_at(tx, {meter.call_id}, now)
        ack = Ack(committed={batch.meter_id: durable}, replicated={batch.meter_id: durable})
        return [ack, *effects]

    def _open(self, tx: Session, opened: MeterOpen, now: int) -> Meter:
        room = tx.room(opened.room_sid) if opened.room_sid else None
        thought = {room.call_id} if room is not None else set[str]()
        call = calls.call_for_meter(tx, opened, self._policy.livekit_project, now)
        meter = Meter(
            meter_id=opened.meter_id,
            call_id=call.call_id,
            project=opened.project,
            opened=opened,
            last_heard_at_unix_ms=now,
        )
        tx.save_meter(meter)
        # Whose the room's connections are may be known by this, long after they are over.
        self._bring_up(tx, thought | {call.call_id}, now)
        return meter

    def _apply(
        self, tx: Session, meter: Meter, record: Record, now: int, clock: AgentClock
    ) -> None:
        if meter.state is MeterState.LOST:
            # Given up, and here it is: the call takes what it says and settles again.
            meter.state = MeterState.OPEN
        call = self._amend(tx, meter)
        match record:
            case MeterOpen():
                pass
            case ControlTotal():
                self._control(tx, meter, record)
            case LegStart() | LegInterim() | LegStop():
                at = clock.ours(record.at_unix_ms)
                self._postings.apply(tx, meter, call, record, at, now)
            case Gap():
                at = clock.ours(record.at_unix_ms)
                self._gap(tx, meter, at, record.reason, record.modality)
            case MeterClose():
                adopted = record.reason == ADOPTED
                meter.state = MeterState.ADOPTED if adopted else MeterState.CLOSED
                meter.coverage = worse(meter.coverage, record.coverage)

    def _gap(
        self, tx: Session, meter: Meter, at: int, reason: str, modality: str | None = None
    ) -> None:
        tx.add_gap(meter.meter_id, meter.call_id, at, reason, modality)
        meter.coverage = worse(meter.coverage, Coverage.PARTIAL)

    def _finish(self, tx: Session, meter: Meter, now: int) -> None:
        """A meter is over: close what it left open, settle what is missing, free what it holds."""
        call = tx.call(meter.call_id)
        assert call is not None
        self._postings.close_open_legs(tx, meter, call, now)
        self._postings.settle_checkpoint(tx, meter, call, now)
        self._credit.release(tx, meter, meter.held_nano_usd)
        meter.lease_until_unix_ms = None
        # Said again each time: a spool that turns up late tells what its host had taken along.
        tx.withdraw_gaps(meter.meter_id, HOST_LOST)
        seen = meter.checkpoint
        lost = seen is not None and meter.durable_seq < seen.seq
        if lost or meter.state is MeterState.LOST:
            since = seen.at_unix_ms if seen is not None else meter.last_heard_at_unix_ms
            tx.add_gap(meter.meter_id, meter.call_id, since, HOST_LOST, None)
        tx.save_meter(meter)
        call.coverage = Coverage.COMPLETE
        for other in tx.meters_of(call.call_id):
            if other.state is not MeterState.OPEN:
                call.coverage = worse(call.coverage, other.coverage)
                if other.state is MeterState.LOST or other.lacks_records:
                    call.coverage = worse(call.coverage, Coverage.PARTIAL)
        tx.save_call(call)

    def _control(self, tx: Session, meter: Meter, record: ControlTotal) -> None:
        """Keep LiveKit's account beside ours. What no cause explains is a fault of one of us."""
        figures = {"metered": record.metered, "livekit": record.livekit}
        causes: dict[str, int] = {}
        for word, part in record.causes.items():
            cause = word if word in _CONTROL_CAUSES else ControlCause.UNEXPLAINED
            causes[cause] = causes.get(cause, 0) + part
        problem = quantities.out_of_range(figures)
        if problem is None and any(abs(part) > MAX_QUANTITY for part in causes.values()):
            problem = f"{record.unit}: a cause is outside -2**40 to 2**40"
        if problem is not None:
            self._postings.quarantine(tx, meter, record, problem)
            return
        rest = record.metered - record.livekit - sum(causes.values())
        if rest:
            causes[ControlCause.UNEXPLAINED] = causes.get(ControlCause.UNEXPLAINED, 0) + rest
        if causes.get(ControlCause.UNEXPLAINED):
            tx.count("unexplained_control_totals")
        tx.add_control(meter.call_id, record, causes)

    def _checkpoint_seen(self, tx: Session, checkpoint: Checkpoint, now: int) -> list[Effect]:
        if checkpoint.opened.meter_id.startswith(calls.ROOM_METER_PREFIX):
            return []
        meter = tx.meter(checkpoint.opened.meter_id)
        if meter is None:
            # The sidecar was away for the whole call, or the agent was cut off from it.
            meter = self._open(tx, checkpoint.opened, now)
        known = meter.checkpoint
        if known is not None and checkpoint.seq <= known.seq:
            return []
        tx.count("checkpoints")
        if not now - CHECKPOINT_AGE_MAX_MS <= checkpoint.at_unix_ms <= now:
            checkpoint = msgspec.structs.replace(checkpoint, at_unix_ms=now)
        meter.checkpoint = self._postings.believed_checkpoint(tx, meter, checkpoint)
        tx.save_meter(meter)
        if meter.state is not MeterState.OPEN and meter.lacks_records:
            self._amend(tx, meter)
            self._finish(tx, meter, now)
        return self._look_at(tx, {meter.call_id}, now)

    def _amend(self, tx: Session, meter: Meter) -> Call:
        """The meter's call, settled or not, is about to change: it settles again."""
        call = tx.call(meter.call_id)
        assert call is not None
        if call.state is CallState.SETTLED:
            call.state = CallState.ENDED
            call.amended = True
            tx.save_call(call)
        return call

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
                self._postings.post(tx, meter, call, leg, now)

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
            self._conclude(tx, call, now, told=told)
        return effects

    def _bring_up(self, tx: Session, call_ids: set[str], now: int) -> None:
        for call in filter(None, map(tx.call, sorted(call_ids))):
            self._connections.bring_up(tx, call, now)

    def _conclude(self, tx: Session, call: Call, now: int, *, told: bool = True) -> None:
        """Move a call on in its life; settle it when nothing more is expected, or in time."""
        if not calls.conclude(tx, call, now, self._policy, told=told):
            return
        self._connections.bring_up(tx, call, now)
        in_time = now - (call.ended_at_unix_ms or now) < self._policy.meter_grace_ms
        if in_time and self._connections.is_waiting(tx, call):
            return  # until they have left the room, too: that, or the end of the grace, is heard
        self._connections.post(tx, call, now)
        self._corrections.charge_flat_fee(tx, call, now)
        calls.settle_call(tx, call, now)

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
                self._postings.post(tx, meter, call, leg, now)
                tx.save_meter(meter)
        for call_id in tx.calls_connected_before(now - connections.SILENCE_MS):
            with self._isolated(tx):
                self._bring_up(tx, {call_id}, now)
                effects += self._look_at(tx, {call_id}, now)
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
        for waiting in tx.calls_in_waiting(
            now,
            ended_before_unix_ms=now - self._policy.meter_grace_ms,
            silent_since_unix_ms=now - self._policy.meter_silence_ms,
        ):
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
        if not meters and not tx.room_meters_of(call.call_id):
            self._bring_up(tx, {call.call_id}, now)  # an owner is waited for only so long
        self._conclude(tx, call, now)
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

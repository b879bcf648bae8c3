"""The authority's rules in one place: events in, effects out, state in the store (I1, I3, I8, I9).

    with store.transaction() as tx:
        effects = books.receive(tx, event, now_unix_ms)

`Books` keeps no state of its own but a cache of prices, so a crash, a failed commit or a second
process on the same file cost nothing: the next event finds what is durable. It does no I/O, reads
no clock and draws nothing at random.
"""

from __future__ import annotations

import msgspec

from voicecost_ledger import budgets, calls, entries
from voicecost_ledger.budgets import Window
from voicecost_ledger.calls import Call, CallState, Ending
from voicecost_ledger.entries import Leg
from voicecost_ledger.events import Effect, EndRoom, Event, RoomVerifiedGone, Tick
from voicecost_ledger.meters import Meter, MeterState
from voicecost_ledger.policy import BudgetAction, Policy
from voicecost_ledger.pricing import Price, PriceBook
from voicecost_ledger.protocol import (
    PROTOCOL_VERSION,
    Ack,
    Action,
    Command,
    Grant,
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
    Coverage,
    Gap,
    LegInterim,
    LegStart,
    LegStop,
    MeterClose,
    MeterOpen,
    OnBudget,
    Outcome,
    Record,
)
from voicecost_ledger.rooms import RoomEvent, RoomListing
from voicecost_ledger.stores import Session

# The sidecar counts a lease from its commit plus this; the meter counts from when it asked.
LEASE_MARGIN_MS = 5_000
# So that a broken client cannot fill the ledger with refused records.
QUARANTINE_MAX = 100


class Books:
    """The rules of the ledger over one transaction at a time.

    Args:
        prices: Where a leg's price comes from when it starts.
        policy: What the operator decided.
    """

    def __init__(self, prices: PriceBook, policy: Policy) -> None:
        self._prices = prices
        self._policy = policy
        self._restored: dict[str, Price] = {}

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
                return self._wrapped_up(tx, event, now)
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
            self._apply(tx, meter, record, now)
        effects: list[Effect] = []
        if meter is not None:
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

    def _apply(self, tx: Session, meter: Meter, record: Record, now: int) -> None:
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
            case MeterOpen():
                pass
            case LegStart() | LegInterim() | LegStop():
                problem = self._apply_to_leg(tx, meter, call, record, now)
                if problem is not None:
                    self._quarantine(tx, meter, record, problem)
            case Gap():
                at = min(record.at_unix_ms, now)
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
        now: int,
    ) -> str | None:
        """Apply a leg's record; returns why it was refused, or None."""
        for unit, quantity in record.usage.items():
            if unit not in UNITS:
                return f"unknown unit {unit!r}"
            if not 0 <= quantity <= MAX_QUANTITY:
                return f"{unit}={quantity} is outside 0 to 2**40"
        at = min(record.at_unix_ms, now)
        leg = tx.leg(meter.meter_id, record.leg)
        if isinstance(record, LegStart):
            if leg is not None:
                return f"leg {record.leg} was started before"
            leg = self._start(tx, meter, record, at)
        elif leg is None:
            return f"leg {record.leg} was never started"
        elif leg.basis is not Basis.ESTIMATED:
            for unit, quantity in leg.usage.items():
                if record.usage.get(unit, 0) < quantity:
                    return f"{unit} shrank from {quantity} to {record.usage.get(unit, 0)}"
        was_rated, was_outcome = leg.rated_nano_usd, leg.outcome
        if leg.outcome is None and entries.quarter_hour(at) > entries.quarter_hour(
            leg.last_at_unix_ms
        ):
            self._post(tx, meter, call, leg, now)
        if isinstance(record, LegInterim) and leg.outcome is not None:
            return None  # overtaken by its stop
        leg.usage = {**record.usage}
        leg.basis = record.basis
        leg.last_at_unix_ms = max(at, leg.last_at_unix_ms)
        self._rate(tx, leg)
        meter.charged_nano_usd += (leg.rated_nano_usd or 0) - (was_rated or 0)
        meter.unpriced_leg_count += (leg.rated_nano_usd is None) - (was_rated is None)
        if isinstance(record, LegStop):
            leg.outcome = record.outcome
            leg.stopped_at_unix_ms = leg.last_at_unix_ms
            if leg.part_count and was_outcome != leg.outcome:
                tx.move_outcome(leg, call, was_outcome)
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
        self._rate(tx, leg)
        meter.unpriced_leg_count += leg.rated_nano_usd is None
        tx.save_leg(leg)
        return leg

    def _rate(self, tx: Session, leg: Leg) -> None:
        leg.rated_nano_usd = None
        if leg.price_id is None:
            return
        price = self._restored.get(leg.price_id)
        if price is None:
            document = tx.price_document(leg.price_id)
            assert document is not None  # saved in the transaction that started the leg
            price = self._restored[leg.price_id] = self._prices.restore(document)
        leg.rated_nano_usd = price.rate(leg.usage)

    def _post(self, tx: Session, meter: Meter, call: Call, leg: Leg, now: int) -> None:
        entry = entries.next_part(leg, posted_at_unix_ms=now)
        if entry is None:
            return
        tx.post(entry, leg, call)
        tx.save_leg(leg)
        amount = entry.amount_nano_usd or 0
        if amount:
            charged = self._windows(tx, call, entry.accrued_at_unix_ms)
            held = self._held_windows(tx, meter, charged)
            consumed = budgets.settle(charged, held, amount, meter.held_nano_usd)
            meter.held_nano_usd -= consumed
            meter.posted_nano_usd += amount
            for window in {w.key: w for w in (*charged, *held)}.values():
                tx.save_window(window)

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
                tx.move_outcome(leg, call, None)
            self._post(tx, meter, call, leg, now)
            tx.save_leg(leg)
        self._release(tx, meter, meter.held_nano_usd)
        meter.lease_until_unix_ms = None
        call.coverage = _worse(call.coverage, meter.coverage)
        tx.save_call(call)
        tx.save_meter(meter)

    # ---- budgets -------------------------------------------------------------------------------

    def _windows(self, tx: Session, call: Call, at: int) -> list[Window]:
        """Every window an amount of this call counts to at an instant."""
        windows: list[Window] = []
        if call.limit_nano_usd is not None:
            windows.append(
                self._window(
                    tx,
                    f"call:{call.call_id}",
                    0,
                    limit=call.limit_nano_usd,
                    enforcing=call.on_budget is not OnBudget.NOTIFY,
                    warn_at_percent=call.warn_at_percent,
                )
            )
        project = self._policy.projects.get(call.project)
        if project is not None and project.daily_budget_nano_usd is not None:
            windows.append(
                self._window(
                    tx,
                    f"project:{call.project}",
                    budgets.day_start(at, self._policy.time_zone),
                    limit=project.daily_budget_nano_usd,
                    enforcing=project.budget_action is BudgetAction.END,
                )
            )
        return windows

    def _enforcing(self, tx: Session, call: Call, meter: Meter, at: int) -> list[Window]:
        """The windows a meter needs credit on.

        The job's own meter (legs of no session) needs none: nobody could ask for it; what it
        posts counts as overshoot.
        """
        if meter.opened.unattributed:
            return []
        return [window for window in self._windows(tx, call, at) if window.enforcing]

    def _window(
        self,
        tx: Session,
        scope: str,
        start: int,
        *,
        limit: int,
        enforcing: bool,
        warn_at_percent: int = 80,
    ) -> Window:
        window = tx.window(scope, start)
        if window is None:
            window = Window(
                scope=scope, start_unix_ms=start, limit_nano_usd=limit, enforcing=enforcing
            )
        window.limit_nano_usd = limit
        window.enforcing = enforcing
        window.warn_at_percent = warn_at_percent
        return window

    def _held_windows(self, tx: Session, meter: Meter, known: list[Window]) -> list[Window]:
        """The windows a meter's hold is on; the same objects as in `known` where they are there."""
        by_key = {window.key: window for window in known}
        held: list[Window] = []
        for key in meter.held_windows:
            window = by_key.get(key) or tx.window(*key)
            if window is not None:
                held.append(window)
        return held

    def _release(self, tx: Session, meter: Meter, amount: int) -> None:
        held = self._held_windows(tx, meter, [])
        budgets.release(held, amount)
        for window in held:
            tx.save_window(window)
        meter.held_nano_usd -= amount

    def _renew(self, tx: Session, renew: Renew, now: int) -> list[Effect]:
        meter = tx.meter(renew.meter_id)
        if meter is None or meter.state is not MeterState.OPEN:
            return []
        meter.last_heard_at_unix_ms = now
        meter.renewal = max(meter.renewal, renew.renewal)
        grant = self._grant(tx, meter, now, renewal=renew.renewal)
        meter.exhausted = renew.exhausted and grant.final
        tx.save_meter(meter)
        return [grant, *self._look_at(tx, {meter.call_id}, now)]

    def _grant(self, tx: Session, meter: Meter, now: int, *, renewal: int) -> Grant:
        """Extend a meter's credit as far as every window allows, and lease it again."""
        call = tx.call(meter.call_id)
        assert call is not None
        windows = self._enforcing(tx, call, meter, now)
        if meter.held_windows != [window.key for window in windows]:
            # Another day, another limit: the hold moves to the windows that apply now.
            self._release(tx, meter, meter.held_nano_usd)
            windows = self._enforcing(tx, call, meter, now)
            meter.held_windows = [window.key for window in windows]
        meter.epoch += 1
        meter.lease_until_unix_ms = now + self._policy.lease_ms + LEASE_MARGIN_MS
        if not windows:
            return Grant(
                meter_id=meter.meter_id,
                epoch=meter.epoch,
                renewal=renewal,
                ceiling_nano_usd=None,
                soft_nano_usd=None,
                unreported_max_nano_usd=0,
                lease_ms=self._policy.lease_ms,
            )
        if call.ending is Ending.NONE:
            left = max(0, meter.ceiling_nano_usd - meter.charged_nano_usd)
            more = budgets.extension(windows, left)
            if more and budgets.reserve(windows, more):
                meter.held_nano_usd += more
        for window in windows:
            tx.save_window(window)
        meter.final = min(window.free_nano_usd for window in windows) == 0
        meter.unreported_max_nano_usd = budgets.unreported_max(meter.held_nano_usd)
        ceiling = meter.ceiling_nano_usd
        reserve = budgets.closing_reserve(min(window.limit_nano_usd for window in windows))
        return Grant(
            meter_id=meter.meter_id,
            epoch=meter.epoch,
            renewal=renewal,
            ceiling_nano_usd=ceiling,
            soft_nano_usd=max(0, ceiling - reserve) if meter.final else ceiling,
            unreported_max_nano_usd=meter.unreported_max_nano_usd,
            lease_ms=self._policy.lease_ms,
            final=meter.final,
        )

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
                effects += self._enforce(tx, call, now)
            if calls.conclude(tx, call, now, told=told):
                calls.settle_call(tx, call, now)
        return effects

    def _enforce(self, tx: Session, call: Call, now: int) -> list[Effect]:
        meters = tx.meters_of(call.call_id)
        effects = self._warn(tx, call, meters, now)
        if call.ending in (Ending.ENDING, Ending.GONE):
            return effects
        for meter in meters:
            windows = self._enforcing(tx, call, meter, now)
            if meter.state is not MeterState.OPEN or not windows:
                continue
            leased = meter.lease_until_unix_ms is not None
            if leased and not meter.final and meter.charged_nano_usd >= meter.ceiling_nano_usd:
                effects.append(self._grant(tx, meter, now, renewal=0))
                tx.save_meter(meter)
            tightest = min(windows, key=lambda w: w.limit_nano_usd - w.spent_nano_usd)
            spent = sum(m.charged_nano_usd for m in meters)
            over_call = call.limit_nano_usd is not None and spent >= call.limit_nano_usd
            at_ceiling = meter.final and meter.charged_nano_usd >= meter.ceiling_nano_usd
            reserve = budgets.closing_reserve(min(w.limit_nano_usd for w in windows))
            soft = meter.ceiling_nano_usd - reserve
            # The reserve is for the last sentence; "end" says none, and may use all of it.
            spoken = call.on_budget is not OnBudget.END
            over_soft = spoken and meter.final and meter.charged_nano_usd >= soft
            ended = over_call or at_ceiling or meter.exhausted
            if ended and call.on_budget is not OnBudget.WRAP_UP:
                return effects + self._end(tx, call, tightest, now)
            if (ended or over_soft) and call.ending is Ending.NONE:
                effects += self._wrap_up(tx, call, meters, tightest, now)
        return effects

    def _warn(self, tx: Session, call: Call, meters: list[Meter], now: int) -> list[Effect]:
        effects: list[Effect] = []
        accruing = sum(meter.charged_nano_usd - meter.posted_nano_usd for meter in meters)
        for window in self._windows(tx, call, now):
            spent = window.spent_nano_usd + accruing
            if window.warned or spent < window.warn_nano_usd:
                continue
            window.warned = True
            tx.save_window(window)
            tx.audit(call.call_id, now, "warn", f"{window.scope} at {window.warn_at_percent} %")
            effects += _commands(Action.WARN, meters, window, spent)
        return effects

    def _wrap_up(
        self, tx: Session, call: Call, meters: list[Meter], window: Window, now: int
    ) -> list[Effect]:
        call.ending = Ending.WRAPPING_UP
        call.ending_budget = window.scope
        call.ending_deadline_unix_ms = now + self._policy.wrap_up_ms
        tx.save_call(call)
        tx.audit(call.call_id, now, "wrap_up", window.scope)
        return _commands(Action.WRAP_UP, meters, window, window.spent_nano_usd)

    def _wrapped_up(self, tx: Session, event: WrappedUp, now: int) -> list[Effect]:
        meter = tx.meter(event.meter_id)
        call = tx.call(meter.call_id) if meter is not None else None
        if call is None or call.state is not CallState.OPEN:
            return []
        if call.ending in (Ending.ENDING, Ending.GONE):
            return []
        if call.ending is Ending.NONE:
            # The meter saw the end of its credit before we did; it is never trusted with money,
            # but it may always end its own call.
            tx.audit(call.call_id, now, "wrapped_up", "by the meter's own count")
        enforcing = [w for w in self._windows(tx, call, now) if w.enforcing]
        window = enforcing[0] if enforcing else None
        return self._end(tx, call, window, now)

    def _end(self, tx: Session, call: Call, window: Window | None, now: int) -> list[Effect]:
        call.ending = Ending.ENDING
        call.ending_budget = call.ending_budget or (window.scope if window else None)
        call.ending_deadline_unix_ms = None
        tx.save_call(call)
        tx.audit(call.call_id, now, "end", call.ending_budget or "")
        tx.count("budget_ended_calls")
        effects = self._end_rooms(tx, call)
        scope = call.ending_budget or f"call:{call.call_id}"
        spent = window.spent_nano_usd if window else 0
        limit = window.limit_nano_usd if window else 0
        told = Window(scope=scope, start_unix_ms=0, limit_nano_usd=limit, enforcing=True)
        return effects + _commands(Action.END, tx.meters_of(call.call_id), told, spent)

    def _end_rooms(self, tx: Session, call: Call) -> list[Effect]:
        by_name: dict[str, list[str]] = {}
        for room in calls.rooms_to_end(tx, call):
            by_name.setdefault(room.name, []).append(room.sid)
        return [
            EndRoom(
                call_id=call.call_id,
                livekit_project=call.livekit_project or "",
                room_name=name,
                room_sids=sids,
                reason=call.ending_budget or "budget",
            )
            for name, sids in by_name.items()
        ]

    def _verified_gone(self, tx: Session, event: RoomVerifiedGone, now: int) -> list[Effect]:
        room = tx.room(event.room_sid)
        call = tx.call(event.call_id)
        if call is None:
            return []
        if room is not None and room.call_id == call.call_id and room.gone_at_unix_ms is None:
            calls.room_is_gone(tx, room, now)
        if call.ending is Ending.ENDING and not calls.rooms_to_end(tx, call):
            call.ending = Ending.GONE
            tx.save_call(call)
            tx.audit(call.call_id, now, "gone", event.room_sid)
        return self._look_at(tx, {call.call_id}, now)

    # ---- time ----------------------------------------------------------------------------------

    def _tick(self, tx: Session, now: int) -> list[Effect]:
        effects: list[Effect] = []
        for leg in tx.open_legs_before(entries.quarter_hour(now)):
            meter, call = tx.meter(leg.meter_id), tx.call(leg.call_id)
            if meter is not None and call is not None:
                self._post(tx, meter, call, leg, now)
                tx.save_meter(meter)
        for meter in tx.meters_with_lease_before(now):
            self._expire(tx, meter)
        silent_since = now - self._policy.meter_silence_ms
        for call in tx.calls_in_waiting(now, silent_since_unix_ms=silent_since):
            effects += self._tick_call(tx, call, now)
        return effects

    def _expire(self, tx: Session, meter: Meter) -> None:
        """A lease ran out: free all but what may have been spent since the last report."""
        accruing = meter.charged_nano_usd - meter.posted_nano_usd
        keep = min(meter.held_nano_usd, accruing + meter.unreported_max_nano_usd)
        self._release(tx, meter, meter.held_nano_usd - keep)
        meter.lease_until_unix_ms = None
        tx.save_meter(meter)

    def _tick_call(self, tx: Session, call: Call, now: int) -> list[Effect]:
        effects: list[Effect] = []
        deadline = call.ending_deadline_unix_ms
        if call.state is CallState.OPEN and deadline is not None and now >= deadline:
            tx.audit(call.call_id, now, "wrap_up_timeout", call.ending_budget or "")
            window = next((w for w in self._windows(tx, call, now) if w.enforcing), None)
            effects += self._end(tx, call, window, now)
        elif call.ending is Ending.ENDING:
            effects += self._end_rooms(tx, call)
        meters = tx.meters_of(call.call_id)
        heard = max((m.last_heard_at_unix_ms for m in meters), default=0)
        open_meters = [m for m in meters if m.state is MeterState.OPEN]
        silent = now - heard >= self._policy.meter_silence_ms
        roomless = not tx.rooms_of(call.call_id)
        if call.state is CallState.OPEN and open_meters and silent and roomless:
            self._lose(tx, open_meters, now)
        elif call.state is CallState.ENDED:
            since = max(call.ended_at_unix_ms or 0, heard)
            if now - since >= self._policy.meter_grace_ms:
                self._lose(tx, open_meters, now)
        call = tx.call(call.call_id) or call
        if calls.conclude(tx, call, now):
            calls.settle_call(tx, call, now)
        return effects

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


def _commands(action: Action, meters: list[Meter], window: Window, spent: int) -> list[Effect]:
    return [
        Command(
            meter_id=meter.meter_id,
            action=action,
            budget=window.scope,
            limit_nano_usd=window.limit_nano_usd,
            spent_nano_usd=spent,
        )
        for meter in meters
        if meter.state is MeterState.OPEN
    ]


_COVERAGE_ORDER = [Coverage.COMPLETE, Coverage.PARTIAL, Coverage.METRICS_ONLY]


def _worse(one: Coverage, other: Coverage) -> Coverage:
    return max(one, other, key=_COVERAGE_ORDER.index)

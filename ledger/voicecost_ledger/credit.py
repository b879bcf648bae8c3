"""Credit control over calls: grants to meters, and what happens when a budget is used up (I10-I12).

`budgets` has the arithmetic of one window; here are the rules over several: which windows an amount
counts to, how much a meter is granted, when a call is warned, wrapped up, ended, and that it stays
so. State is in the store; nothing here keeps any.
"""

from __future__ import annotations

from typing import Final

from voicecost_ledger import budgets, calls
from voicecost_ledger.budgets import Window
from voicecost_ledger.calls import Call, CallState, Ending
from voicecost_ledger.events import Effect, EndRoom, RoomVerifiedGone
from voicecost_ledger.meters import Meter, MeterState
from voicecost_ledger.policy import BudgetAction, Policy
from voicecost_ledger.protocol import Action, Command, Grant
from voicecost_ledger.records import OnBudget
from voicecost_ledger.stores import Session

LEASE_MARGIN_MS: Final = 5_000
"""The sidecar counts a lease from its commit plus this; the meter counts from when it asked."""


class CreditControl:
    """The budgets of all calls.

    Args:
        policy: Projects with their budgets, time zone, lease and wrap-up times.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    # ---- windows -------------------------------------------------------------------------------

    def windows(self, tx: Session, call: Call, meter: Meter, at: int) -> list[Window]:
        """Every window that an amount of this meter counts to at an instant."""
        windows: list[Window] = []
        if call.limit_nano_usd is not None:
            windows.append(self._call_window(tx, call, call.limit_nano_usd))
        project = self._policy.projects.get(meter.project)
        if project is not None and project.daily_budget_nano_usd is not None:
            start = budgets.day_start(at, self._policy.time_zone)
            scope = _project_scope(meter)
            window = tx.window(scope, start)
            if window is None:
                until = budgets.next_day_start(start, self._policy.time_zone)
                posted = tx.project_posted(meter.project, start, until)
                limit = project.daily_budget_nano_usd
                window = budgets.new_window(scope, start, limit, spent_nano_usd=posted)
            window.enforcing = project.budget_action is BudgetAction.END
            budgets.set_limit(window, project.daily_budget_nano_usd)
            windows.append(window)
        return windows

    def _call_window(self, tx: Session, call: Call, limit: int) -> Window:
        scope = f"call:{call.call_id}"
        window = tx.window(scope, 0)
        if window is None:
            posted = sum(meter.posted_nano_usd for meter in _charged(tx, call))
            window = budgets.new_window(scope, 0, limit, spent_nano_usd=posted)
        window.enforcing = call.on_budget is not OnBudget.NOTIFY
        window.warn_at_percent = call.warn_at_percent
        budgets.set_limit(window, limit)
        return window

    def _enforcing(self, tx: Session, call: Call, meter: Meter, at: int) -> list[Window]:
        """The windows a meter needs credit on.

        The job's own meter (legs of no session) needs none: nobody could ask for it; what it
        posts counts as overshoot.
        """
        if meter.opened.unattributed:
            return []
        return [window for window in self.windows(tx, call, meter, at) if window.enforcing]

    def _held_windows(self, tx: Session, meter: Meter, known: list[Window]) -> list[Window]:
        """The windows a meter's hold is on; the same objects as in `known` where they are there."""
        by_key = {window.key: window for window in known}
        held: list[Window] = []
        for key in meter.held_windows:
            window = by_key.get(key) or tx.window(*key)
            if window is not None:
                held.append(window)
        return held

    def settle(self, tx: Session, call: Call, meter: Meter, amount: int, accrued_at: int) -> None:
        """Count a posted amount to its windows, out of the meter's hold as far as that goes."""
        charged = self.windows(tx, call, meter, accrued_at)
        held = self._held_windows(tx, meter, charged)
        meter.held_nano_usd -= budgets.settle(charged, held, amount, meter.held_nano_usd)
        meter.posted_nano_usd += amount
        for window in {w.key: w for w in (*charged, *held)}.values():
            tx.save_window(window)

    def adjust(self, tx: Session, call: Call, meter: Meter, amount: int, accrued_at: int) -> None:
        """Count an adjustment to the windows it accrued in; the meter's credit stays as it is."""
        charged = self.windows(tx, call, meter, accrued_at)
        budgets.adjust(charged, amount)
        meter.posted_nano_usd += amount
        meter.adjusted_nano_usd += amount
        for window in charged:
            tx.save_window(window)

    def release(self, tx: Session, meter: Meter, amount: int) -> None:
        """Give back so much of a meter's hold."""
        held = self._held_windows(tx, meter, [])
        budgets.release(held, amount)
        for window in held:
            tx.save_window(window)
        meter.held_nano_usd -= amount

    # ---- grants --------------------------------------------------------------------------------

    def day_is_over(self, tx: Session, meter: Meter, now: int) -> bool:
        """Whether the meter's hold is on a window that has ended."""
        today = budgets.day_start(now, self._policy.time_zone)
        return any(start not in (0, today) for _, start in meter.held_windows)

    def grant(self, tx: Session, meter: Meter, now: int, *, renewal: int) -> list[Grant]:
        """Extend a meter's credit as far as every window allows, and lease it again.

        Returns:
            Its grant; then lower ones for other meters of the call that had to share.
        """
        call = tx.call(meter.call_id)
        assert call is not None
        windows = self._enforcing(tx, call, meter, now)
        if meter.held_windows != [window.key for window in windows]:
            # Another day, another limit: the hold moves to the windows that apply now.
            self.release(tx, meter, meter.held_nano_usd)
            windows = self._enforcing(tx, call, meter, now)
            meter.held_windows = [window.key for window in windows]
        meter.lease_until_unix_ms = now + self._policy.lease_ms + LEASE_MARGIN_MS
        lowered: list[Grant] = []
        if windows and call.ending is Ending.NONE:
            siblings = self._spending_siblings(tx, meter)
            more = self._extension(windows, meter, alone=not siblings)
            reserve = budgets.closing_reserve(min(window.limit_nano_usd for window in windows))
            # By halves, and only while a half is worth more than the reserve both keep back.
            if more == 0 and _left(meter) <= reserve < self._spare(tx, meter):
                lowered = self._share(tx, call, siblings, now)
                more = self._extension(windows, meter, alone=False)
            if more and budgets.reserve(windows, more):
                meter.held_nano_usd += more
        for window in windows:
            tx.save_window(window)
        own = self._grant_of(meter, windows, renewal=renewal)
        tx.save_meter(meter)
        return [own, *lowered]

    def _spending_siblings(self, tx: Session, meter: Meter) -> list[Meter]:
        return [
            other
            for other in tx.meters_of(meter.call_id)
            if other.meter_id != meter.meter_id
            and other.state is MeterState.OPEN
            and not other.opened.unattributed
        ]

    def _spare(self, tx: Session, meter: Meter) -> int:
        """What the call's other meters could give up."""
        return (
            sum(_left(other) for other in self._spending_siblings(tx, meter) if _leased(other)) // 2
        )

    def _extension(self, windows: list[Window], meter: Meter, *, alone: bool) -> int:
        return budgets.extension(windows, _left(meter), alone=alone)

    def _share(self, tx: Session, call: Call, siblings: list[Meter], now: int) -> list[Grant]:
        """Take half of what the call's other meters have left; tell them.

        What they spend before they hear of it is overshoot: bounded by one message's way.
        """
        lowered: list[Grant] = []
        for other in siblings:
            # Without a lease it cannot be told: it may be spending what it was granted.
            give = _left(other) // 2 if _leased(other) else 0
            if give:
                self.release(tx, other, give)
                windows = self._enforcing(tx, call, other, now)
                lowered.append(self._grant_of(other, windows, renewal=0))
                tx.save_meter(other)
        return lowered

    def _grant_of(self, meter: Meter, windows: list[Window], *, renewal: int) -> Grant:
        meter.epoch += 1
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
        meter.final = min(window.free_nano_usd for window in windows) == 0
        shared = any(not window.of_call for window in windows)
        hold = meter.held_nano_usd
        # Where no other call waits for the credit, the whole of it may be spent unreported.
        meter.unreported_max_nano_usd = budgets.unreported_max(hold) if shared else hold
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

    def expire(self, tx: Session, meter: Meter) -> None:
        """A lease ran out: free all but what may have been spent since the last report."""
        accruing = meter.charged_nano_usd - meter.posted_nano_usd
        keep = min(meter.held_nano_usd, accruing + meter.unreported_max_nano_usd)
        self.release(tx, meter, meter.held_nano_usd - keep)
        meter.lease_until_unix_ms = None
        tx.save_meter(meter)

    # ---- the end of the money ------------------------------------------------------------------

    def enforce(self, tx: Session, call: Call, now: int) -> list[Effect]:
        """Look at an open call's budgets after something happened to it."""
        meters, of_rooms = tx.meters_of(call.call_id), tx.room_meters_of(call.call_id)
        charged = [*meters, *of_rooms]
        effects = self._warn(tx, call, meters, charged, now)
        if call.ending in (Ending.ENDING, Ending.GONE):
            return effects
        billed_by_livekit = any(meter.charged_nano_usd for meter in of_rooms)
        # Where every meter has closed, nobody is left who could spend, or say goodbye: but what
        # LiveKit bills of a caller who stays goes on.
        unattended = all(meter.state is not MeterState.OPEN for meter in meters)
        for meter in meters:
            windows = self._enforcing(tx, call, meter, now)
            if not windows or (meter.state is not MeterState.OPEN and not unattended):
                continue
            over = any(_accruing(charged, w) >= _left_of(w, 0) for w in windows)
            tightest = min(windows, key=lambda w: w.limit_nano_usd - w.used_nano_usd)
            if unattended:
                if over and billed_by_livekit:
                    return effects + self.end(tx, call, tightest, now)
                continue
            # The reserve is for the last sentence; "end" says none, and may use all of it.
            reserve = (
                0
                if call.on_budget is OnBudget.END
                else budgets.closing_reserve(min(window.limit_nano_usd for window in windows))
            )
            soft = meter.ceiling_nano_usd - reserve
            leased = meter.lease_until_unix_ms is not None
            near = leased and call.ending is Ending.NONE and meter.own_total_nano_usd >= soft
            free = min(window.free_nano_usd for window in windows)
            if near and (free > 0 or self._spare(tx, meter) > reserve):
                # What is free now may not have been when it was granted.
                effects += self.grant(tx, meter, now, renewal=0)
                windows = self._enforcing(tx, call, meter, now)
                soft = meter.ceiling_nano_usd - reserve
            # A limit of zero lets what is free run: it is over only when something was spent.
            own = meter.own_total_nano_usd
            at_ceiling = meter.final and own >= max(1, meter.ceiling_nano_usd)
            over_soft = reserve > 0 and (
                (meter.final and own >= max(1, soft))
                # What LiveKit bills is out of no grant, and leaves less than the grant says.
                or (
                    billed_by_livekit
                    and any(_accruing(charged, w) >= _left_of(w, reserve) for w in windows)
                )
            )
            ended = over or at_ceiling or meter.exhausted
            if ended and call.on_budget is not OnBudget.WRAP_UP:
                return effects + self.end(tx, call, tightest, now)
            if (ended or over_soft) and call.ending is Ending.NONE:
                effects += self._wrap_up(tx, call, meters, tightest, now)
        return effects

    def _warn(
        self, tx: Session, call: Call, meters: list[Meter], charged: list[Meter], now: int
    ) -> list[Effect]:
        effects: list[Effect] = []
        for meter in meters:
            for window in self.windows(tx, call, meter, now):
                spent = window.spent_nano_usd + _accruing(charged, window)
                if window.warned or spent < max(1, window.warn_nano_usd):
                    continue
                window.warned = True
                tx.save_window(window)
                percent = f"{window.scope} at {window.warn_at_percent} %"
                tx.audit(call.call_id, now, "warn", percent)
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

    def wrapped_up(self, tx: Session, meter_id: str, now: int) -> list[Effect]:
        """The agent has said its last sentence: the room may go."""
        meter = tx.meter(meter_id)
        call = tx.call(meter.call_id) if meter is not None else None
        if meter is None or call is None or call.state is not CallState.OPEN or meter.of_rooms:
            return []
        if call.ending in (Ending.ENDING, Ending.GONE):
            return []
        if call.ending is Ending.NONE:
            # The meter saw the end of its credit before we did; it is never trusted with money,
            # but it may always end its own call.
            tx.audit(call.call_id, now, "wrapped_up", "by the meter's own count")
        windows = self._enforcing(tx, call, meter, now)
        return self.end(tx, call, windows[0] if windows else None, now)

    def end(self, tx: Session, call: Call, window: Window | None, now: int) -> list[Effect]:
        """End a call: its rooms are deleted until they are verified gone."""
        call.ending = Ending.ENDING
        call.ending_budget = call.ending_budget or (window.scope if window else None)
        call.ending_deadline_unix_ms = None
        tx.save_call(call)
        tx.audit(call.call_id, now, "end", call.ending_budget or "")
        tx.count("budget_ended_calls")
        return [
            *self.end_rooms(tx, call),
            *self._end_commands(tx, call, tx.meters_of(call.call_id)),
        ]

    def repeat(self, tx: Session, call: Call, meter: Meter, now: int) -> list[Effect]:
        """Say again to a meter that is back what its call was told while it was away."""
        if call.state is CallState.OPEN and call.ending is Ending.WRAPPING_UP:
            windows = self._enforcing(tx, call, meter, now)
            if windows:
                return _commands(Action.WRAP_UP, [meter], windows[0], windows[0].spent_nano_usd)
        if call.ending in (Ending.ENDING, Ending.GONE):
            return self._end_commands(tx, call, [meter])
        return []

    def _end_commands(self, tx: Session, call: Call, meters: list[Meter]) -> list[Effect]:
        scope = call.ending_budget or f"call:{call.call_id}"
        limit = call.limit_nano_usd or 0
        told = Window(scope=scope, start_unix_ms=0, limit_nano_usd=limit, enforcing=True)
        spent = sum(meter.charged_nano_usd for meter in _charged(tx, call))
        return _commands(Action.END, meters, told, spent)

    def end_rooms(self, tx: Session, call: Call) -> list[Effect]:
        """The order to delete each live room of a call."""
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

    def verified_gone(self, tx: Session, event: RoomVerifiedGone, now: int) -> Call | None:
        """The enforcer deleted a room and saw that it is gone; returns its call."""
        room = tx.room(event.room_sid)
        call = tx.call(event.call_id)
        if call is None:
            return None
        if room is not None and room.call_id == call.call_id and room.gone_at_unix_ms is None:
            calls.room_is_gone(tx, room, now)
        if call.ending is Ending.ENDING and not calls.rooms_to_end(tx, call):
            call.ending = Ending.GONE
            tx.save_call(call)
            tx.audit(call.call_id, now, "gone", event.room_sid)
        return call

    def tick(self, tx: Session, call: Call, now: int) -> list[Effect]:
        """Time has passed for a call that is being brought to its end."""
        deadline = call.ending_deadline_unix_ms
        if call.state is CallState.OPEN and deadline is not None and now >= deadline:
            tx.audit(call.call_id, now, "wrap_up_timeout", call.ending_budget or "")
            return self.end(tx, call, None, now)
        if call.ending is Ending.ENDING:
            return self.end_rooms(tx, call)
        return []


def _charged(tx: Session, call: Call) -> list[Meter]:
    """All meters that a call is charged for: its agents', and what LiveKit bills."""
    return [*tx.meters_of(call.call_id), *tx.room_meters_of(call.call_id)]


def _accruing(charged: list[Meter], window: Window) -> int:
    """What a call has cost within a budget's scope and that is not posted yet."""
    return sum(
        meter.charged_nano_usd - meter.posted_nano_usd
        for meter in charged
        if window.of_call or window.scope == _project_scope(meter)
    )


def _project_scope(meter: Meter) -> str:
    return f"project:{meter.project}"


def _left_of(window: Window, reserve: int) -> int:
    """What may accrue before a window is used up but for a reserve; something has to be spent."""
    return max(1, window.limit_nano_usd - reserve) - window.used_nano_usd


def _leased(meter: Meter) -> bool:
    return meter.lease_until_unix_ms is not None


def _left(meter: Meter) -> int:
    """What a meter may still spend on its hold."""
    return max(0, meter.ceiling_nano_usd - meter.own_total_nano_usd)


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

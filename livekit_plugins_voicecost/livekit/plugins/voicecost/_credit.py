"""A meter's money: what it may still spend, what its budgets say, and when its call has to end.

The ledger decides (commands and grants); the meter obeys, and acts by itself only where it has no
credit left and hears of none: then it ends the call (I11). A shortage that a renewal may end any
moment stops nothing: the call goes on, on a bounded credit, until there is a grant or a no.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from voicecost_ledger.budgets import CLOSING_RESERVE_NANO_USD, closing_reserve
from voicecost_ledger.grants import Answer
from voicecost_ledger.money import MAX_NANO_USD
from voicecost_ledger.protocol import Action, Command
from voicecost_ledger.records import OnBudget

from ._room_messages import State
from .log import logger

if TYPE_CHECKING:
    from ._runtime import MeterLink
    from ._settings import Budget, Settings

DECISION_MAX_S: Final = 2.5
"""How long a meter that is short of money waits for more credit, or for the ledger's command,
before it ends the call by itself. Longer than `grants.ANSWER_TIMEOUT_MS`: a ledger that does not
answer is an outage, not a no."""
_CALL: Final = "call"
_ORDER: Final = tuple(State)


class BudgetEvent(msgspec.Struct, frozen=True):
    """What a callback of `meter.on("budget", ...)` is given; each kind comes once per budget.

    Attributes:
        kind: `warn` at the budget's share, `exhausted` when it is used up.
        budget: Which one: `call`, `project:shop`, ...; `credit` when the ledger could not be
            reached and what it had granted is spent.
        limit_nano_usd: Its limit; None for `credit`.
        spent_nano_usd: What was spent of it when this was decided.
    """

    kind: Literal["warn", "exhausted"]
    budget: str
    limit_nano_usd: int | None
    spent_nano_usd: int


BudgetCallback = Callable[[BudgetEvent], object]
EndCall = Callable[[bool], Coroutine[None, None, None]]
"""Brings the call to its end; True: with a last sentence first."""


class Credit:
    """The course of a meter's budgets, forward only: see `State`. On the session's loop."""

    def __init__(
        self,
        settings: Settings,
        *,
        end_call: EndCall,
        changed: Callable[[], None],
        context: contextvars.Context,
    ) -> None:
        """End the call with `end_call` in `context`; say with `changed` that the state moved."""
        self._settings = settings
        self._end_call = end_call
        self._changed = changed
        self._context = context
        self._loop: asyncio.AbstractEventLoop | None = None
        self._link: MeterLink | None = None
        self._total_nano_usd = 0
        self._told: set[tuple[str, str]] = set()
        self._tell_at_nano_usd = _warn_at(settings.budget)
        self._short: asyncio.TimerHandle | None = None  # runs while more credit is needed
        self._refused_nano_usd: int | None = None  # the total that a refused request was to reach
        self._last_words_nano_usd = 0  # the total up to which the last sentence is on credit
        self._ending: asyncio.Task[None] | None = None
        self.callbacks: list[BudgetCallback] = []
        self.state = State.OPEN
        self.cut = False

    def opened(self, link: MeterLink, loop: asyncio.AbstractEventLoop) -> None:
        """The meter has a link to its ledger; before this everything may be spent."""
        self._link, self._loop = link, loop

    def closed(self) -> None:
        """The session is over: nothing is decided any more."""
        self.state = State.CLOSED
        self._stop_waiting()

    def charged(self, total_nano_usd: int) -> None:
        """The meter's total moved. Its own budget is watched here too, ledger or not."""
        self._total_nano_usd = total_nano_usd
        if total_nano_usd < self._tell_at_nano_usd:
            return
        budget = self._settings.budget
        if budget is None or self.state not in (State.OPEN, State.WARNED):
            return
        limit = budget.limit_nano_usd
        if total_nano_usd >= max(1, limit):
            self._tell(BudgetEvent("exhausted", _CALL, limit, total_nano_usd))
        elif total_nano_usd * 100 >= limit * budget.warn_at_percent:
            self._tell(BudgetEvent("warn", _CALL, limit, total_nano_usd))

    def may_spend(self, next_nano_usd: int) -> bool:
        """Whether so much more may be spent; where it is more than granted, more is asked for."""
        if self.cut:
            return False
        link = self._link
        if link is None:
            return True
        after_nano_usd = self._total_nano_usd + next_nano_usd
        if link.clear(after_nano_usd):
            return True
        answer = self._ask(link, after_nano_usd)
        if answer is Answer.YES:
            return True
        if self._ending is None:
            if self._short is None and self._loop is not None:
                self._short = self._loop.call_later(DECISION_MAX_S, self._nothing_came)
                if answer is Answer.MEANWHILE:
                    link.renew(self._total_nano_usd)
            if answer is Answer.NO and self._refused_nano_usd is None:
                self._refused(link, after_nano_usd)
        return answer is not Answer.NO or self._is_last_words(after_nano_usd)

    def _ask(self, link: MeterLink, after_nano_usd: int) -> Answer:
        """Whether the total may become this."""
        if self._settings.on_budget is OnBudget.WRAP_UP and self.state is not State.WRAPPING_UP:
            # What the last sentence will cost is kept for it.
            soft_end = link.soft_end_nano_usd
            if soft_end is not None and after_nano_usd > soft_end:
                return Answer.NO
        total_nano_usd = self._total_nano_usd
        return link.ask(total_nano_usd, max(0, after_nano_usd - total_nano_usd))

    def _is_last_words(self, after_nano_usd: int) -> bool:
        """Whether this is the last sentence of a call that ran into its end on credit.

        What is kept for that sentence is spent then; the call's own budget still holds.
        """
        budget = self._settings.budget
        return (
            self.state is State.WRAPPING_UP
            and after_nano_usd <= self._last_words_nano_usd
            and (budget is None or after_nano_usd <= budget.limit_nano_usd)
        )

    def _refused(self, link: MeterLink, after_nano_usd: int) -> None:
        """A request was refused, or what goes on should have been: the ledger has the last word."""
        self._refused_nano_usd = after_nano_usd
        link.exhausted(self._total_nano_usd)

    @property
    def short(self) -> bool:
        """Whether the meter needs more than it has; then tell it of what comes: `look_again`."""
        return self._short is not None

    def look_again(self) -> None:
        """There is a new grant, or something more is durable."""
        link = self._link
        if self._short is None or link is None:
            return
        answer = self._ask(link, max(self._total_nano_usd, self._refused_nano_usd or 0))
        if answer is Answer.YES:
            self._stop_waiting()
        elif answer is Answer.NO and self._refused_nano_usd is None:
            self._refused(link, self._total_nano_usd)

    def obey(self, command: Command) -> None:
        """Do what the ledger commands."""
        # A call's own budget is `call:ID` to the ledger; there is one per meter.
        name = _CALL if command.budget.startswith(f"{_CALL}:") else command.budget
        kind = "warn" if command.action is Action.WARN else "exhausted"
        self._tell(BudgetEvent(kind, name, command.limit_nano_usd, command.spent_nano_usd))
        if command.action is not Action.WARN:
            self._end(speak=command.action is Action.WRAP_UP)

    def move(self, state: State) -> None:
        """Go on to `state`; never back: a warning after the wrap-up began changes nothing."""
        if _ORDER.index(state) > _ORDER.index(self.state):
            self.state = state
            self.cut = self.cut or state is State.ENDING
            self._changed()

    def _tell(self, event: BudgetEvent) -> None:
        if self.state is State.CLOSED or (event.kind, event.budget) in self._told:
            return
        self._told.add((event.kind, event.budget))
        self.move(State.WARNED if event.kind == "warn" else State.EXHAUSTED)
        for callback in tuple(self.callbacks):
            try:
                callback(event)
            except Exception as error:  # the application's code must not stop the ending
                logger.error('a callback of meter.on("budget") raised %s', type(error).__name__)

    def _nothing_came(self) -> None:
        """What was asked for did not come in time."""
        link, total = self._link, self._total_nano_usd
        reached = max(total, self._refused_nano_usd or 0)
        self._stop_waiting()
        if link is None or self._ask(link, reached) is Answer.YES:
            return  # the ledger is out of reach by now: an outage, which has a credit of its own
        budget = self._settings.budget
        if budget is not None and reached > self._own_end(budget):
            self._tell(BudgetEvent("exhausted", _CALL, budget.limit_nano_usd, total))
        else:
            self._tell(BudgetEvent("exhausted", "credit", None, total))
        self._end(speak=self._settings.on_budget is OnBudget.WRAP_UP)

    def _own_end(self, budget: Budget) -> int:
        """Where the call's own budget ends what it may spend before the last sentence."""
        limit = budget.limit_nano_usd
        reserved = self._settings.on_budget is OnBudget.WRAP_UP
        return limit - closing_reserve(limit) if reserved else limit

    def _end(self, *, speak: bool) -> None:
        """Start the ending; an `end` overtakes a wrap-up, nothing else is started twice."""
        if self.state in (State.CLOSED, State.ENDING) or self._loop is None:
            return
        if self._ending is not None:
            if speak:
                return
            self._ending.cancel()
        self._stop_waiting()
        soft_end = None if self._link is None else self._link.soft_end_nano_usd
        if soft_end is not None and self._total_nano_usd > soft_end:
            self._last_words_nano_usd = self._total_nano_usd + CLOSING_RESERVE_NANO_USD
        self.move(State.WRAPPING_UP if speak else State.ENDING)
        # The ledger's thread asked; the job's API works only in the job's own context.
        self._ending = self._loop.create_task(
            self._end_call(speak), name="voicecost_ending", context=self._context
        )

    def _stop_waiting(self) -> None:
        if self._short is not None:
            self._short.cancel()
        self._short = self._refused_nano_usd = None


def _warn_at(budget: Budget | None) -> int:
    """The lowest total of which there is something to tell."""
    if budget is None:
        return MAX_NANO_USD
    return -(-budget.limit_nano_usd * budget.warn_at_percent // 100)

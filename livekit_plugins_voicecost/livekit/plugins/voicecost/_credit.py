"""A meter's money: what it may still spend, what its budgets say, and when its call has to end.

The ledger decides (commands and grants); the meter obeys, and acts by itself only where it has no
credit left and hears of none: then it ends the call (I11).
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from voicecost_ledger.budgets import closing_reserve
from voicecost_ledger.money import MAX_NANO_USD
from voicecost_ledger.protocol import Action, Command
from voicecost_ledger.records import OnBudget

from ._room_messages import State
from .log import logger

if TYPE_CHECKING:
    from ._runtime import MeterLink
    from ._settings import Budget, Settings

DECISION_MAX_S: Final = 2.0
"""How long a meter whose money is used up waits for more credit, or for the ledger's command,
before it ends the call by itself."""
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
        self._no_credit: asyncio.TimerHandle | None = None
        self._refused_nano_usd = 0  # the total that a refused request would have led to
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
        """Whether so much more may be spent; the first no asks the ledger for more."""
        if self.cut:
            return False
        link = self._link
        if link is None:
            return True
        if link.clear(self._total_nano_usd + next_nano_usd):
            return True
        fits = link.may_spend(self._total_nano_usd, next_nano_usd)
        if fits and not self._touches_reserve(link, self._total_nano_usd + next_nano_usd):
            return True
        if self._no_credit is None and self._ending is None and self._loop is not None:
            self._refused_nano_usd = self._total_nano_usd + next_nano_usd
            link.exhausted(self._total_nano_usd)
            self._no_credit = self._loop.call_later(DECISION_MAX_S, self._nothing_came)
        return False

    def _touches_reserve(self, link: MeterLink, after_nano_usd: int) -> bool:
        """Whether this would eat into what the last sentence will cost, before it is said."""
        if self._settings.on_budget is not OnBudget.WRAP_UP or self.state is State.WRAPPING_UP:
            return False
        soft_end = link.soft_end_nano_usd
        return soft_end is not None and after_nano_usd > soft_end

    def granted(self) -> None:
        """A new grant is in force."""
        link = self._link
        waiting = self._no_credit
        refused = self._refused_nano_usd
        if waiting is None or link is None or self._touches_reserve(link, refused):
            return
        if link.may_spend(self._total_nano_usd, max(0, refused - self._total_nano_usd)):
            waiting.cancel()
            self._no_credit = None

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
        budget, total = self._settings.budget, self._total_nano_usd
        if budget is not None and self._refused_nano_usd > self._own_end(budget):
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
        self.move(State.WRAPPING_UP if speak else State.ENDING)
        # The ledger's thread asked; the job's API works only in the job's own context.
        self._ending = self._loop.create_task(
            self._end_call(speak), name="voicecost_ending", context=self._context
        )

    def _stop_waiting(self) -> None:
        if self._no_credit is not None:
            self._no_credit.cancel()
            self._no_credit = None


def _warn_at(budget: Budget | None) -> int:
    """The lowest total of which there is something to tell."""
    if budget is None:
        return MAX_NANO_USD
    return -(-budget.limit_nano_usd * budget.warn_at_percent // 100)

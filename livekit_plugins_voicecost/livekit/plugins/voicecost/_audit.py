"""Whether a meter has seen all of its session: no gap, no fault, LiveKit's account beside ours.

Nothing is ever booked from here, and nothing that breaks here costs a leg.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from livekit.agents import AgentSession

from voicecost_ledger.records import Coverage, LegAttributes

from . import _faults
from ._control import ControlTotals, Difference
from ._coverage import Turns
from ._faults import contained
from .legs import Leg

if TYPE_CHECKING:
    from livekit.agents import SessionUsageUpdatedEvent


class Audit:
    """What speaks for one meter's legs, and against them.

    Attributes:
        turns: What each turn must have used.
    """

    def __init__(self) -> None:
        self.turns = Turns()
        self._control = ControlTotals()
        self._gap_count = 0
        self._faults_before = _faults.metering_count()
        self._speeches: list[Any] = []

    @property
    def coverage(self) -> Coverage:
        """How much of the session could be seen: `complete`, `partial`, `metrics-only`."""
        # Here, not at import: it knows all of LiveKit's streams.
        from . import _instrument

        at_best = _instrument.coverage()
        if at_best is Coverage.COMPLETE and (self._gap_count or self.had_faults):
            return Coverage.PARTIAL
        return at_best

    @property
    def had_faults(self) -> bool:
        """Whether a fault was contained since this began: nobody knows whose it was."""
        return _faults.metering_count() != self._faults_before

    def gap(self) -> None:
        """Something was used that no leg shows."""
        self._gap_count += 1

    def opened(self, leg: Leg) -> None:
        """Follow a leg of the meter's."""
        with contained("control_total"):
            self._control.opened(leg)

    def sum_up(self, legs: Sequence[Leg]) -> Iterable[Callable[[], None] | None]:
        """See `Register`."""
        with contained("control_total"):
            return self._control.sum_up(legs)
        return [None] * len(legs)

    def overheard(self, attributes: LegAttributes, counts: Mapping[str, int]) -> None:
        """What LiveKit counts of another session's leg for this one too."""
        with contained("control_total"):
            self._control.overheard(attributes, counts)

    def attaching(self) -> AbstractContextManager[None]:
        """What the session used before comes inside, and `attached` is told."""
        return self._control.attaching()

    def attached(self, session: AgentSession[Any], *, saw_all: bool) -> None:
        """The session runs already; `saw_all` says whether all that it used was observed."""
        with contained("control_total"):
            self._control.attached(session.usage, saw_all=saw_all)

    def usage_updated(self, event: SessionUsageUpdatedEvent) -> None:
        """LiveKit has counted more."""
        with contained("control_total"):
            self._control.updated(event.usage)

    def session_ended(self, session: AgentSession[Any] | None, legs: Iterable[Leg]) -> None:
        """No more is counted, also of a session that said nothing."""
        # LiveKit holds them as long as the session; the control total asks what became of them.
        self._speeches = [None if leg.speech is None else leg.speech() for leg in legs]
        ended: Any = session
        with contained("control_total"):
            self._control.updated(ended.usage)

    def differences(self) -> list[Difference]:
        """The control total, where LiveKit's account could be read."""
        found: list[Difference] = []
        with contained("control_total"):
            if self._control.heard:
                found = self._control.differences()
        self._speeches.clear()
        return found

"""Which request each quantity that LiveKit adds to its account is of.

Of requests that used the same nobody can say which is which, and nobody needs to: it is enough to
know how many of them LiveKit has counted, and that it counts those first that it has no reason to
leave out. So all that is open is matched anew each time, in whichever order it came, and a leg that
has not stopped yet, and does not know its quantities, takes its own when it does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from voicecost_ledger.records import ControlCause, Modality, Outcome

from .legs import Leg

EVER: Final = sys.maxsize
"""Instead of a leg's number: also legs that are still to be opened."""

BY_OUTCOME: Final = {
    Outcome.INTERRUPTED: ControlCause.INTERRUPTED,
    Outcome.CUT: ControlCause.INTERRUPTED,
    Outcome.LOST: ControlCause.INTERRUPTED,
    Outcome.FAILED: ControlCause.FAILED_ATTEMPT,
    Outcome.DISCARDED: ControlCause.DISCARDED,
    Outcome.PROBE: ControlCause.PROBE,
}
"""Why LiveKit may leave a leg out, by how it ended."""


class Addition:
    """What LiveKit has added to its account at once: a request, or a part of a realtime response.

    Args:
        counts: Units and quantities, none of them zero.
        newest_leg: The number of the leg that was opened last by then: it is of no later one.
    """

    __slots__ = ("counts", "newest_leg")

    def __init__(self, counts: Mapping[str, int], newest_leg: int) -> None:
        self.counts = counts
        self.newest_leg = newest_leg


class Matching:
    """What of LiveKit's account is whose.

    Attributes:
        of: The additions of each leg, if it has any.
        again: Realtime responses that were counted more than once.
        left: Additions of no leg.
    """

    def __init__(self, legs: Sequence[Leg], additions: Iterable[Addition]) -> None:
        """Match the legs of a model with what LiveKit has added to it."""
        self.of: dict[Leg, list[Addition]] = {}
        self.again: set[Leg] = set()
        self.left = list(additions)
        realtime = [leg for leg in legs if leg.attributes.modality is Modality.REALTIME]
        self._open = [leg for leg in legs if leg.outcome is None and leg not in realtime]
        known = [leg for leg in legs if leg not in self._open]
        self._take_whole([leg for leg in known if not may_be_left_out(leg)])
        self._take_whole([leg for leg in known if may_be_left_out(leg)])
        if realtime:
            self._take_in_parts(realtime)

    def counted(self, leg: Leg) -> dict[str, int] | None:
        """What LiveKit has counted of a leg; None where no event spoke for it."""
        if leg not in self.of:
            return None
        total: dict[str, int] = {}
        for addition in self.of[leg]:
            add_up(total, addition.counts)
        return total

    def may_be_of_another(self, leg: Leg) -> bool:
        """Whether what a leg was given, that LiveKit may have left out, may be one's still open."""
        newest_leg = max((each.newest_leg for each in self.of.get(leg, ())), default=0)
        return may_be_left_out(leg) and any(each.number <= newest_leg for each in self._open)

    def _take_whole(self, legs: Sequence[Leg]) -> None:
        """Give each addition, the oldest first, to a leg that used as much."""
        by_unit: dict[str, dict[int, list[Leg]]] = {}
        left: list[Addition] = []
        for addition in self.left:
            unit, count = next(iter(addition.counts.items()))
            by_count = by_unit.get(unit)
            if by_count is None:
                by_count = by_unit[unit] = {}
                for leg in legs:
                    by_count.setdefault(expected(leg, unit), []).append(leg)
            as_much = by_count.get(count, [])
            leg = next((leg for leg in as_much if self._is_whole(addition, leg)), None)
            if leg is None:
                left.append(addition)
            else:
                as_much.remove(leg)
                self.of[leg] = [addition]
        self.left = left

    def _is_whole(self, addition: Addition, leg: Leg) -> bool:
        return (
            leg.number <= addition.newest_leg
            and leg not in self.of
            and all(expected(leg, unit) == count for unit, count in addition.counts.items())
        )

    def _take_in_parts(self, legs: Sequence[Leg]) -> None:
        """A realtime response may be reported in parts, or its running total again and again."""
        left: list[Addition] = []
        for addition in self.left:
            opened = [leg for leg in legs if leg.number <= addition.newest_leg]
            rests = [(self._rest(leg, addition), may_be_left_out(leg), leg) for leg in opened]
            fits = [(rest, left_out, leg) for rest, left_out, leg in rests if rest is not None]
            if fits:
                _, _, leg = min(fits, key=lambda each: each[:2])
                self.of.setdefault(leg, []).append(addition)
                continue
            prompt = addition.counts.get("input_tokens")
            for leg in reversed(opened):
                if leg in self.of and prompt == expected(leg, "input_tokens"):
                    self.of[leg].append(addition)
                    self.again.add(leg)
                    break
            else:
                left.append(addition)
        self.left = left

    def _rest(self, leg: Leg, addition: Addition) -> int | None:
        """How much more a response has used than was counted with this; None where it is less."""
        counted = self.counted(leg) or {}
        rests = [
            expected(leg, unit) - counted.get(unit, 0) - count
            for unit, count in addition.counts.items()
        ]
        return None if min(rests) < 0 else sum(rests)


def shared_out(
    legs: Sequence[Leg], added: Mapping[str, int]
) -> tuple[list[Addition], dict[str, int]]:
    """One addition for each leg that may be in a sum of several, and what is of none."""
    left = dict(added)
    shares: list[Addition] = []
    for leg in sorted(legs, key=may_be_left_out):
        counts = {unit: expected(leg, unit) for unit in left if expected(leg, unit)}
        if counts and all(count <= left[unit] for unit, count in counts.items()):
            shares.append(Addition(counts, EVER))
            add_up(left, {unit: -count for unit, count in counts.items()})
    return shares, {unit: count for unit, count in left.items() if count}


def may_be_left_out(leg: Leg) -> bool:
    """Whether LiveKit would be expected to leave a leg out."""
    return not leg.heard_by_livekit or leg.outcome in BY_OUTCOME or leg.speech_interrupted


def expected(leg: Leg, unit: str) -> int:
    """What LiveKit counts of a leg, if it counts it at all."""
    counts = leg.livekit_counts
    return counts[unit] if unit in counts else leg.usage.get(unit, 0)


def add_up(total: dict[str, int], added: Mapping[str, int]) -> None:
    """Add quantities to a total, unit by unit."""
    for unit, count in added.items():
        total[unit] = total.get(unit, 0) + count

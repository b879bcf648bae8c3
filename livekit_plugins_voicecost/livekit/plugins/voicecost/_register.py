"""A meter's legs: each on its own as long as it may change, older ones summed up.

A call may go on for hours, and a leg is two kilobytes: what is needed of those that are over is
their sum. One that is corrected after it was summed up is taken out of the sum again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from voicecost_ledger.records import LegAttributes, Outcome

from .legs import Leg

_HELD_MAX: Final = 6
"""Legs that are held on their own before older ones are summed up: the last few turns."""
_ATTRIBUTES_MAX: Final = 64


SumUp = Callable[[Sequence[Leg]], Iterable[Callable[[], None] | None]]


class Kind:
    """What all legs with the same attributes have used together."""

    __slots__ = ("amount_nano_usd", "attributes", "unpriced_leg_count", "usage")

    def __init__(self, attributes: LegAttributes) -> None:
        self.attributes = attributes
        self.usage: dict[str, int] = {}
        self.amount_nano_usd = 0
        self.unpriced_leg_count = 0

    def add(self, usage: dict[str, int], amount_nano_usd: int | None, times: int = 1) -> None:
        """Take a leg in, or out again with `times` -1."""
        for unit, count in usage.items():
            self.usage[unit] = self.usage.get(unit, 0) + count * times
        self.amount_nano_usd += (amount_nano_usd or 0) * times
        self.unpriced_leg_count += (amount_nano_usd is None) * times


class _Summed(NamedTuple):
    """What a leg gave to the sums, for the day that it is corrected."""

    usage: dict[str, int]
    amount_nano_usd: int | None
    outcome: Outcome | None
    undo: Callable[[], None]


class Register:
    """The legs of one meter.

    Args:
        sum_up: Asked before legs are summed up, and told so: whoever follows legs one by one gives
            for each what takes it back, or None to keep it.
    """

    def __init__(self, sum_up: SumUp) -> None:
        self._sum_up = sum_up
        self._held: dict[Leg, int | None] = {}
        self._look_above = _HELD_MAX
        self._sums: dict[LegAttributes, Kind] = {}
        self._counts: Counter[str] = Counter()
        self._wasted_count = 0
        self._waste_nano_usd = 0
        self._attributes: dict[LegAttributes, LegAttributes] = {}

    def __iter__(self) -> Iterator[Leg]:
        """The legs that are held on their own: all that are open are among them."""
        return iter(tuple(self._held))

    def known(self, attributes: LegAttributes) -> LegAttributes:
        """The same attributes, once in memory for all legs that have them."""
        if len(self._attributes) >= _ATTRIBUTES_MAX:
            self._attributes.clear()
        return self._attributes.setdefault(attributes, attributes)

    def charge(self, leg: Leg, amount_nano_usd: int | None) -> int | None:
        """Take over a leg's amount, None where it has no price; returns the one before."""
        if leg.summed is not None:
            self._take_out(leg, leg.summed)
        held = self._held
        before = held.get(leg, 0)
        held[leg] = amount_nano_usd
        if len(held) > self._look_above:
            self.sum_up()
        return before

    def kinds(self) -> list[Kind]:
        """What was used with the same attributes, over all legs."""
        kinds: dict[LegAttributes, Kind] = {}
        for summed in self._sums.values():
            kind = kinds[summed.attributes] = Kind(summed.attributes)
            kind.usage = dict(summed.usage)
            kind.amount_nano_usd = summed.amount_nano_usd
            kind.unpriced_leg_count = summed.unpriced_leg_count
        for leg, amount in self._held.items():
            kind = kinds.get(leg.attributes)
            if kind is None:
                kind = kinds[leg.attributes] = Kind(leg.attributes)
            kind.add(leg.usage, amount)
        return list(kinds.values())

    def counts(self) -> Counter[str]:
        """How many legs there are of each modality."""
        return self._counts + Counter(leg.modality for leg in self._held)

    def waste(self) -> tuple[int, int]:
        """How many legs were not served, and what they cost in nano-USD."""
        lost = [amount for leg, amount in self._held.items() if leg.outcome is not Outcome.SERVED]
        more = sum(amount or 0 for amount in lost)
        return self._wasted_count + len(lost), self._waste_nano_usd + more

    def sum_up(self) -> None:
        """Hold older legs that are over no longer on their own, as far as they may be."""
        over = self._over()
        for leg, undo in zip(over, self._sum_up(over), strict=True):
            if undo is not None:
                amount = self._held.pop(leg)
                leg.summed = _Summed(leg.usage, amount, leg.outcome, undo)
                self._add(leg, leg.summed, 1)
        # What cannot be summed up yet is not gone through with every leg.
        self._look_above = max(_HELD_MAX, len(self._held) * 3 // 2)

    def _over(self) -> list[Leg]:
        oldest = list(self._held)[: -_HELD_MAX // 2]
        return [leg for leg in oldest if leg.outcome is not None]

    def _take_out(self, leg: Leg, summed: _Summed) -> None:
        leg.summed = None
        summed.undo()
        self._add(leg, summed, -1)
        self._held[leg] = summed.amount_nano_usd

    def _add(self, leg: Leg, summed: _Summed, times: int) -> None:
        kind = self._sums.get(leg.attributes)
        if kind is None:
            kind = self._sums[leg.attributes] = Kind(leg.attributes)
        kind.add(summed.usage, summed.amount_nano_usd, times)
        self._counts[leg.modality] += times
        if summed.outcome is not Outcome.SERVED:
            self._wasted_count += times
            self._waste_nano_usd += (summed.amount_nano_usd or 0) * times

"""What the legs of a meter cost together, while it runs."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from voicecost_ledger.money import format_usd
from voicecost_ledger.records import Modality

from ._register import Register, SumUp
from .legs import Leg


class Cost(msgspec.Struct, frozen=True):
    """What a meter has charged so far, by its own price book; the ledger's rating is the bill.

    Attributes:
        total_nano_usd: Nano-USD (one billionth of a dollar) of all legs whose price is known.
        by_modality: The same for each of `stt`, `llm` and `tts`, and for any other kind of
            service that the session used (`realtime`, `avatar` ...).
        unpriced_leg_count: Legs for which no price is known. They are not in the total: unknown
            is not zero.
    """

    total_nano_usd: int
    by_modality: Mapping[str, int]
    unpriced_leg_count: int

    def __str__(self) -> str:
        unpriced = f" + {self.unpriced_leg_count} unpriced" if self.unpriced_leg_count else ""
        return format_usd(self.total_nano_usd) + unpriced


class Charges:
    """The running total of a meter's legs.

    Args:
        sum_up: See `Register`.

    Attributes:
        legs: The legs themselves, as far as they are held on their own.
        total_nano_usd: Of all legs whose price is known.
    """

    def __init__(self, sum_up: SumUp) -> None:
        self.legs = Register(sum_up)
        self.total_nano_usd = 0
        self._by_modality = {each.value: 0 for each in (Modality.STT, Modality.LLM, Modality.TTS)}
        self._unpriced_leg_count = 0

    @property
    def cost(self) -> Cost:
        """What has been charged so far."""
        return Cost(self.total_nano_usd, dict(self._by_modality), self._unpriced_leg_count)

    def opening(self, modality: Modality) -> None:
        """A leg of this kind is about to be charged."""
        self._by_modality.setdefault(modality.value, 0)

    def charge(self, leg: Leg, amount_nano_usd: int | None) -> None:
        """Take over a leg's rated amount; None when no price is known for it."""
        before = self.legs.charge(leg, amount_nano_usd)
        if amount_nano_usd is None or before is None:
            self._unpriced_leg_count += (amount_nano_usd is None) - (before is None)
            change = (amount_nano_usd or 0) - (before or 0)
        else:
            change = amount_nano_usd - before
        self.total_nano_usd += change
        self._by_modality[leg.modality] += change

    def counted(self) -> str:
        """How many legs there were, for a log that names no money."""
        counts, (wasted_count, _) = self.legs.counts(), self.legs.waste()
        legs = ", ".join(f"{name} {counts[name]}" for name in self._by_modality)
        return f"legs: {legs}; wasted: {wasted_count}; unpriced: {self._unpriced_leg_count}"

    def costed(self) -> str:
        """What they cost, for a log that may."""
        parts = ", ".join(f"{name} {format_usd(nano)}" for name, nano in self._by_modality.items())
        _, waste_nano_usd = self.legs.waste()
        total, waste = format_usd(self.total_nano_usd), format_usd(waste_nano_usd)
        return f"cost: {total} ({parts}), of it waste {waste}"

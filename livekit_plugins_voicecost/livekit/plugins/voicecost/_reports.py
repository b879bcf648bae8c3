"""What is believed of a provider's own count: of whatever kind, and by whichever way it came.

Providers, hosts that speak their protocols and plugins all report nonsense at times. What cannot
be is not booked: the estimate stands where there is no report to believe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from voicecost_ledger.quantities import clipped, out_of_range
from voicecost_ledger.records import MAX_QUANTITY

# Parts of one whole that exclude each other: the first is believed.
_DISJOINT: Final = (
    ("cached_input_tokens", "cache_write_tokens", "input_tokens"),
    ("input_audio_tokens", "input_image_tokens", "input_tokens"),
    ("cached_input_audio_tokens", "cached_input_image_tokens", "cached_input_tokens"),
)


def believed(report: Mapping[str, Any]) -> dict[str, int] | None:
    """A report's units as far as they can be true together; None where it says nothing.

    Nobody has used less than nothing, or a trillion tokens, or half of one: such a report is not
    believed at all. Of a part that is more than its whole, the whole is.
    """
    counts = {unit: _whole(quantity) for unit, quantity in report.items()}
    if out_of_range(counts):
        return None
    units = clipped(counts)
    for one, other, whole in _DISJOINT:
        if whole in units and other in units:
            units[other] = min(units[other], units[whole] - units.get(one, 0))
    units = _with_what_was_cached(clipped(units))
    return units if any(units.values()) else None


def milliseconds(seconds: float) -> int:
    """A reported duration; none where it is no number, or one that nobody could have waited for."""
    told_ms = seconds * 1000
    return round(told_ms) if math.isfinite(told_ms) and told_ms <= MAX_QUANTITY else 0


def _whole(quantity: Any) -> int:
    """A whole number; -1, which nobody believes, for anything else."""
    if isinstance(quantity, int):
        return int(quantity)
    return int(quantity) if isinstance(quantity, float) and quantity.is_integer() else -1


def _with_what_was_cached(units: dict[str, int]) -> dict[str, int]:
    """Some say how much was cached and not of what: sound that does not fit in the rest was."""
    cached = units.get("cached_input_tokens", 0)
    if cached and "input_tokens" in units:
        rest = units["input_tokens"] - cached - units.get("cache_write_tokens", 0)
        for kind in ("audio", "image"):
            quantity, of_cached = (
                units.get(f"input_{kind}_tokens", 0),
                f"cached_input_{kind}_tokens",
            )
            if quantity - units.get(of_cached, 0) > rest:
                units[of_cached] = min(quantity - max(0, rest), cached)
            cached -= units.get(of_cached, 0)
            rest -= quantity - units.get(of_cached, 0)
    return units

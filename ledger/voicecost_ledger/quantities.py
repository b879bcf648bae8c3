"""Which quantities make sense together, and how far an estimate of them may be off (I9).

Some units are parts of others: cached tokens of the input, reasoning of the output. A part that is
more than its whole contradicts itself, whoever says so; and where a whole and its part are both
uncertain, moving one of them must not make such a contradiction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from voicecost_ledger.records import MAX_QUANTITY

WHOLES: Final[Mapping[str, tuple[str, ...]]] = {
    "cached_input_tokens": ("input_tokens",),
    "cache_write_tokens": ("input_tokens",),
    "input_audio_tokens": ("input_tokens",),
    "input_image_tokens": ("input_tokens",),
    "cached_input_audio_tokens": ("input_audio_tokens", "cached_input_tokens"),
    "cached_input_image_tokens": ("input_image_tokens", "cached_input_tokens"),
    "reasoning_tokens": ("output_tokens",),
    "output_audio_tokens": ("output_tokens",),
    "double_width_characters": ("characters",),
    "markup_characters": ("characters",),
}
"""A unit that counts a part of others; parts of parts come after what they are parts of."""


def out_of_range(quantities: Mapping[str, int]) -> str | None:
    """Why these cannot be quantities at all, or None."""
    for unit, quantity in quantities.items():
        if not 0 <= quantity <= MAX_QUANTITY:
            return f"{unit}={quantity} is outside 0 to 2**40"
    return None


def contradictions(usage: Mapping[str, int]) -> dict[str, str]:
    """The parts that are more than their wholes, and why; a whole nobody counted says nothing."""
    found: dict[str, str] = {}
    for part, wholes in WHOLES.items():
        for whole in wholes:
            if whole in usage and usage.get(part, 0) > usage[whole]:
                found[part] = (
                    f"{part}={usage[part]} is more than {whole}={usage[whole]}, of which it is a "
                    "part"
                )
    return found


def moved(
    usage: Mapping[str, int], margins: Mapping[str, int], *, wholes: int, parts: int
) -> dict[str, int]:
    """A usage moved by its margins: wholes and parts each up (+1) or down (-1).

    Never below zero, and no part above its whole.
    """
    found = dict(usage)
    for unit, margin in margins.items():
        direction = parts if unit in WHOLES else wholes
        found[unit] = max(0, found.get(unit, 0) + direction * margin)
    return clipped(found)


def clipped(usage: Mapping[str, int]) -> dict[str, int]:
    """The same with every part cut to its wholes, as far as those are counted."""
    found = dict(usage)
    for part, wholes in WHOLES.items():
        if part in found:
            found[part] = min([found[part], *(found[w] for w in wholes if w in found)])
    return found


def uncertainty_nano_usd(
    rate: Callable[[Mapping[str, int]], int | None],
    usage: Mapping[str, int],
    margins: Mapping[str, int],
) -> int | None:
    """By how much the amount of an estimated usage may be off, either way.

    The furthest that the amount moves when every whole is at one end of its margin and every part
    at either end of its own: cached tokens make an answer cheaper, so more input with less of it
    cached is dearer than more of both.

    Args:
        rate: The leg's price.
        usage: What is estimated.
        margins: By how much each unit may be off, 19 times of 20.

    Returns:
        Nano-USD, at least 0; None where the usage has no price.
    """
    amount = rate(usage)
    if amount is None:
        return None
    corners = [
        rate(moved(usage, margins, wholes=wholes, parts=parts))
        for wholes in (1, -1)
        for parts in (1, -1)
    ]
    return max((abs(corner - amount) for corner in corners if corner is not None), default=0)

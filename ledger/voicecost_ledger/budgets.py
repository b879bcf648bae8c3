"""Budgets as credit control (RFC 8506, I10): windows, holds, and how much is granted.

A hold is taken only where spent + held + hold fits the limit of *every* window that applies, all
or nothing. Posting is never refused: it consumes its own hold, and what exceeds it is overshoot.

    reserve(windows, amount)         -> held goes up everywhere, or nowhere
    settle(..., amount, hold)        -> spent goes up, held goes down; returns the hold consumed
    release(windows, hold)           -> held goes down

Always: spent + held <= limit + overshoot + later cuts of the limit, on every window.
"""

from __future__ import annotations

import datetime as dt
import zoneinfo
from collections.abc import Sequence
from typing import Final

import msgspec

# A grant should carry a few requests (a long prompt costs a cent): what is left of a budget below
# twice this is granted whole.
SMALLEST_GRANT_NANO_USD: Final = 20_000_000
# How far a meter may run ahead of its acknowledgements on a shared budget.
UNREPORTED_MAX_NANO_USD: Final = 50_000_000
# What ending a call costs at most: a wrap-up sentence of 150 characters at $0.030 per 1,000
# (Deepgram Aura-2, the catalogue's row) is $0.0045, and 2 s of STT after the close $0.0002.
CLOSING_RESERVE_NANO_USD: Final = 5_000_000


class Window(msgspec.Struct, kw_only=True):
    """One period of one budget. `scope` is `call:ID` or `project:NAME`."""

    scope: str
    start_unix_ms: int
    limit_nano_usd: int
    enforcing: bool  # False: it only warns, so nothing is held on it
    warn_at_percent: int = 80
    spent_nano_usd: int = 0
    held_nano_usd: int = 0
    overshoot_nano_usd: int = 0
    cut_nano_usd: int = 0  # by how much the limit was lowered since the window began
    adjusted_nano_usd: int = 0  # of `spent_nano_usd`, what adjustments added: it ends no live call
    warned: bool = False

    @property
    def key(self) -> tuple[str, int]:
        """Identity: (scope, start)."""
        return self.scope, self.start_unix_ms

    @property
    def of_call(self) -> bool:
        """Whether it is one call's own budget, which no other call shares."""
        return self.scope.startswith("call:")

    @property
    def free_nano_usd(self) -> int:
        """What may still be reserved; never negative."""
        return max(0, self.limit_nano_usd - self.used_nano_usd - self.held_nano_usd)

    @property
    def used_nano_usd(self) -> int:
        """What calls spent, as was known while they did: this may end one, an adjustment not."""
        return self.spent_nano_usd - self.adjusted_nano_usd

    @property
    def warn_nano_usd(self) -> int:
        """Spending at which it warns."""
        return self.limit_nano_usd * self.warn_at_percent // 100


def day_start(at_unix_ms: int, time_zone: str) -> int:
    """Midnight before an instant in an IANA time zone, as Unix milliseconds."""
    zone = zoneinfo.ZoneInfo(time_zone)
    local = dt.datetime.fromtimestamp(at_unix_ms // 1000, tz=zone)
    midnight = dt.datetime(local.year, local.month, local.day, tzinfo=zone)
    return int(midnight.timestamp()) * 1000


def next_day_start(start_unix_ms: int, time_zone: str) -> int:
    """The midnight after one: 23, 24 or 25 hours later."""
    return day_start(start_unix_ms + 26 * 3_600_000, time_zone)


def new_window(scope: str, start_unix_ms: int, limit: int, *, spent_nano_usd: int) -> Window:
    """A window that begins now; what was spent before there was a limit counts as cut from it."""
    return Window(
        scope=scope,
        start_unix_ms=start_unix_ms,
        limit_nano_usd=limit,
        enforcing=False,
        spent_nano_usd=spent_nano_usd,
        cut_nano_usd=max(0, spent_nano_usd - limit),
    )


def set_limit(window: Window, limit_nano_usd: int) -> None:
    """Change a window's limit. What was held under a higher one is remembered as a cut."""
    lowered_by = window.limit_nano_usd - limit_nano_usd
    window.cut_nano_usd = max(0, window.cut_nano_usd + lowered_by)
    window.limit_nano_usd = limit_nano_usd


def reserve(windows: Sequence[Window], amount_nano_usd: int) -> bool:
    """Take a hold on all windows, or on none and answer False."""
    if any(window.free_nano_usd < amount_nano_usd for window in windows):
        return False
    for window in windows:
        window.held_nano_usd += amount_nano_usd
    return True


def release(windows: Sequence[Window], hold_nano_usd: int) -> None:
    """Give a hold back."""
    for window in windows:
        window.held_nano_usd -= hold_nano_usd


def settle(
    charged: Sequence[Window], held: Sequence[Window], amount_nano_usd: int, hold_nano_usd: int
) -> int:
    """Post a charge (or, negative, a correction): spent goes up, and its hold is consumed.

    Args:
        charged: The windows in which the amount accrued.
        held: The windows the hold was taken on; at a window's end not quite the same ones.
        amount_nano_usd: The posted amount.
        hold_nano_usd: What is left of the hold.

    Returns:
        How much of the hold was consumed; the rest of the amount is overshoot.
    """
    consumed = max(0, min(amount_nano_usd, hold_nano_usd))
    held_keys = {window.key for window in held}
    for window in held:
        window.held_nano_usd -= consumed
    for window in charged:
        window.spent_nano_usd += amount_nano_usd
        if window.enforcing:
            covered = consumed if window.key in held_keys else 0
            window.overshoot_nano_usd += max(0, amount_nano_usd - covered)
    return consumed


def adjust(charged: Sequence[Window], amount_nano_usd: int) -> None:
    """Post an adjustment: spent moves where it accrued, no hold is consumed, nothing is ended.

    What it adds is overshoot; what it takes back frees credit, but only after what was added.
    """
    for window in charged:
        window.spent_nano_usd += amount_nano_usd
        window.adjusted_nano_usd = max(0, window.adjusted_nano_usd + amount_nano_usd)
        if window.enforcing:
            window.overshoot_nano_usd += max(0, amount_nano_usd)


def extension(windows: Sequence[Window], left_nano_usd: int, *, alone: bool = False) -> int:
    """How much more a meter is granted that has this much of its grant left.

    A call's own budget is granted whole to its only meter. Else of what is free and left together
    it gets a half of its call's budget, a quarter of a shared one, so that others find credit
    too; a small rest is granted whole.
    """
    amounts: list[int] = []
    for window in windows:
        pool = window.free_nano_usd + left_nano_usd
        if (window.of_call and alone) or pool <= 2 * SMALLEST_GRANT_NANO_USD:
            amounts.append(window.free_nano_usd)
        else:
            target = max(pool // (2 if window.of_call else 4), SMALLEST_GRANT_NANO_USD)
            amounts.append(min(window.free_nano_usd, max(0, target - left_nano_usd)))
    return min(amounts, default=0)


def closing_reserve(limit_nano_usd: int) -> int:
    """What is kept back of a limit for ending the call politely: at most a fifth of it."""
    return min(CLOSING_RESERVE_NANO_USD, limit_nano_usd // 5)


def unreported_max(hold_nano_usd: int) -> int:
    """How much of a hold may be spent before it is acknowledged; kept held after the lease."""
    return min(hold_nano_usd, max(UNREPORTED_MAX_NANO_USD, hold_nano_usd // 4))

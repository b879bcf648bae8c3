"""Spans of time as people name them, in the time zone in which a project's day begins."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import msgspec

from voicecost_ledger.entries import QUARTER_HOUR_MS

PERIODS: Final = ("today", "yesterday", "week", "month", "last_month")
OUTSIDE_CALENDAR: Final = "is no day of a calendar: expected a year from 2 to 9998"


class PeriodError(ValueError):
    """A span of time that is not understood; the text says what is."""


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """From an instant up to, but not including, another."""

    from_unix_ms: int
    until_unix_ms: int


def period(
    *,
    now_unix_ms: int,
    time_zone: str,
    name: str | None = None,
    from_: str | None = None,
    to: str | None = None,
) -> Period:
    """The span a caller asked for, widened to the quarter hours of UTC that costs are kept in.

    Args:
        now_unix_ms: The present.
        time_zone: IANA name; where days begin and where times without an offset are.
        name: One of `PERIODS`; the default is `today` when `from_` is not given either.
        from_: ISO 8601 date or time.
        to: The same, exclusive; a date means the end of that day. Default: now.

    Raises:
        PeriodError: Unknown name, unreadable time, both ways at once, or an empty span.
    """
    zone = ZoneInfo(time_zone)
    now = datetime.fromtimestamp(now_unix_ms / 1000, zone)
    if name is not None and (from_ is not None or to is not None):
        raise PeriodError("give either a period or from and to, not both")
    if from_ is None and to is not None:
        raise PeriodError(f"to={to!r} without from: say where the span begins")
    if from_ is not None:
        begin = _instant(from_, zone, name="from")
        end = now if to is None else _instant(to, zone, name="to", end_of_day=True)
        if end <= begin:
            raise PeriodError(f"the span from {begin.isoformat()} to {end.isoformat()} is empty")
    else:
        begin, end = _named(name or "today", now)
    quarter_s = QUARTER_HOUR_MS // 1000
    return Period(
        from_unix_ms=int(begin.timestamp()) // quarter_s * QUARTER_HOUR_MS,
        until_unix_ms=-(-int(end.timestamp() + 0.999) // quarter_s) * QUARTER_HOUR_MS,
    )


def _named(name: str, now: datetime) -> tuple[datetime, datetime]:
    today = now.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    match name:
        case "today":
            return today, _days_later(today, 1)
        case "yesterday":
            return _days_later(today, -1), today
        case "week":
            monday = _days_later(today, -today.weekday())
            return monday, _days_later(monday, 7)
        case "month":
            first = today.replace(day=1)
            return first, _days_later(first, 32).replace(day=1)
        case "last_month":
            first = today.replace(day=1)
            return _days_later(first, -1).replace(day=1), first
        case _:
            raise PeriodError(f"period {name!r} is unknown: expected one of {', '.join(PERIODS)}")


def _days_later(midnight: datetime, days: int) -> datetime:
    # Wall-clock arithmetic: a day with a time change has 23 or 25 hours, and begins at midnight.
    return midnight + timedelta(days=days)


def _instant(text: str, zone: ZoneInfo, *, name: str, end_of_day: bool = False) -> datetime:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise PeriodError(
            f"{name}={text!r} is not understood: expected ISO 8601, for example 2026-11-22 or "
            "2026-11-22T14:30"
        ) from None
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=zone)
    try:
        if end_of_day and _is_day(text):
            instant = _days_later(instant, 1)
        # Compared and shown as one instant: two times of one zone would compare by wall clock.
        return instant.astimezone(UTC)
    except OverflowError:
        raise PeriodError(f"{name}={text!r} {OUTSIDE_CALENDAR}") from None


def _is_day(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True

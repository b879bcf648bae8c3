"""Spans of time as people name them."""

from __future__ import annotations

from datetime import datetime

import pytest

from voicecost_sidecar.periods import PeriodError, period


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


NOW = at("2026-11-22T14:07:31+00:00")  # a Sunday


@pytest.mark.parametrize(
    ("name", "zone", "begin", "end"),
    [
        ("today", "UTC", "2026-11-22T00:00+00:00", "2026-11-23T00:00+00:00"),
        ("today", "Asia/Kathmandu", "2026-11-21T18:15+00:00", "2026-11-22T18:15+00:00"),
        ("yesterday", "UTC", "2026-11-21T00:00+00:00", "2026-11-22T00:00+00:00"),
        ("week", "UTC", "2026-11-16T00:00+00:00", "2026-11-23T00:00+00:00"),
        ("month", "Europe/Berlin", "2026-10-31T23:00+00:00", "2026-11-30T23:00+00:00"),
        ("last_month", "Europe/Berlin", "2026-09-30T22:00+00:00", "2026-10-31T23:00+00:00"),
    ],
)
def test_a_named_period_begins_at_midnight_there(
    name: str, zone: str, begin: str, end: str
) -> None:
    span = period(now_unix_ms=NOW, time_zone=zone, name=name)
    assert (span.from_unix_ms, span.until_unix_ms) == (at(begin), at(end))


def test_a_day_of_25_hours_is_a_day() -> None:
    """On 2026-10-25 clocks in Berlin are set back."""
    span = period(now_unix_ms=NOW, time_zone="Europe/Berlin", from_="2026-10-25", to="2026-10-25")
    assert span.until_unix_ms - span.from_unix_ms == 25 * 3_600_000


def test_a_span_is_widened_to_quarter_hours_and_ends_now() -> None:
    span = period(now_unix_ms=NOW, time_zone="UTC", from_="2026-11-22T13:59")
    assert span.from_unix_ms == at("2026-11-22T13:45+00:00")
    assert span.until_unix_ms == at("2026-11-22T14:15+00:00")


def test_an_offset_in_a_time_counts() -> None:
    span = period(
        now_unix_ms=NOW,
        time_zone="Europe/Berlin",
        from_="2026-11-22T10:00+00:00",
        to="2026-11-22T12:00",
    )
    assert span.from_unix_ms == at("2026-11-22T10:00+00:00")
    assert span.until_unix_ms == at("2026-11-22T11:00+00:00")


def test_to_without_from_is_refused() -> None:
    with pytest.raises(PeriodError, match="without from"):
        period(now_unix_ms=NOW, time_zone="UTC", to="2026-11-22")


@pytest.mark.parametrize("day", ["2026-11-21", "20261121", "2026-W47-6"])
def test_a_day_is_whole_however_it_is_written(day: str) -> None:
    span = period(now_unix_ms=NOW, time_zone="UTC", from_=day, to=day)
    assert span.from_unix_ms == at("2026-11-21T00:00+00:00")
    assert span.until_unix_ms == at("2026-11-22T00:00+00:00")


@pytest.mark.parametrize(
    ("zone", "from_", "to"),
    [("UTC", "2026-11-01", "9999-12-31"), ("Asia/Tokyo", "0001-01-01", "2026-11-01")],
)
def test_a_day_at_the_end_of_the_calendar_is_refused(zone: str, from_: str, to: str) -> None:
    with pytest.raises(PeriodError, match="no day of a calendar: expected a year from 2 to 9998"):
        period(now_unix_ms=NOW, time_zone=zone, from_=from_, to=to)

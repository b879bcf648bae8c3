"""What people ask the ledger, for the API and the command line alike."""

from __future__ import annotations

import re
import time
from typing import Final

import msgspec

from voicecost_catalog.currency import CurrencyTotals, DisplayCurrency
from voicecost_ledger.calls import CallState
from voicecost_ledger.money import per_mille
from voicecost_ledger.stores import (
    CallDetail,
    CallQuery,
    CallSummary,
    CostQuery,
    CostRow,
    LatencyQuery,
    LatencyRow,
    Store,
)
from voicecost_sidecar.periods import period

GROUPS: Final = ("project", "agent", "tenant", "provider", "model", "modality", "outcome")
LATENCY_GROUPS: Final = "project,modality,provider,model"


class CursorError(ValueError):
    """A place in a list that is none; the text says where one comes from."""


class CallAnswer(CallDetail, frozen=True, kw_only=True):
    """Everything the ledger knows of one call, and its totals in the display currency, if any."""

    display_currency: CurrencyTotals | None


class CallList(msgspec.Struct, frozen=True, kw_only=True):
    """Calls, newest first.

    Where `has_more`, the same question with `before` = `next_before` gives the next of them; calls
    that open meanwhile move nothing. `display_currency` is of the sum of these calls.
    """

    calls: list[CallSummary]
    has_more: bool
    next_before: str | None  # opaque
    display_currency: CurrencyTotals | None


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """Cost accrued in a span. Unpriced legs are in no amount: their cost is not known.

    Rows are of what is posted. `total_nano_usd` has `accruing_nano_usd` in it: what open legs have
    cost since they were last posted, where the span includes the present. Waste is what legs cost
    that did not end `served`; its share is of the total, in thousandths.
    """

    from_unix_ms: int
    until_unix_ms: int
    time_zone: str
    group_by: tuple[str, ...]
    rows: list[CostRow]
    total_nano_usd: int
    billed_nano_usd: int  # the total with markup and flat fees
    accruing_nano_usd: int
    waste_nano_usd: int
    waste_per_mille: int
    leg_count: int
    unpriced_leg_count: int
    display_currency: CurrencyTotals | None  # the totals in it; None: none is configured


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """How long the legs took that started in a span and have ended, lost ones aside."""

    from_unix_ms: int
    until_unix_ms: int
    time_zone: str
    group_by: tuple[str, ...]
    rows: list[LatencyRow]


def read_costs(
    store: Store,
    *,
    time_zone: str,
    name: str | None = None,
    from_: str | None = None,
    to: str | None = None,
    project: str | None = None,
    group_by: str = "project",
    currency: DisplayCurrency | None = None,
) -> Costs:
    """The costs of a span, for the API and the command line alike.

    Args:
        store: The ledger.
        time_zone: Where a day begins.
        name: One of `PERIODS`.
        from_: ISO 8601, instead of `name`.
        to: The same, exclusive.
        project: Only this one.
        group_by: Some of `GROUPS`, separated by commas.
        currency: In which the totals are told too.

    Raises:
        PeriodError: The span is not understood.
        ValueError: A group is unknown.
        StoreUnavailable: The ledger cannot be read.
    """
    groups = _groups(group_by)
    now = now_unix_ms()
    span = period(now_unix_ms=now, time_zone=time_zone, name=name, from_=from_, to=to)
    rows = store.costs(
        CostQuery(
            from_unix_ms=span.from_unix_ms,
            until_unix_ms=span.until_unix_ms,
            project=project,
            group_by=groups,
        )
    )
    present = span.from_unix_ms <= now < span.until_unix_ms
    accruing = store.accruing(project) if present else 0
    accruing_billed = store.accruing_billed(project) if present else 0
    total = sum(row.amount_nano_usd for row in rows) + accruing
    billed = sum(row.billed_nano_usd for row in rows) + accruing_billed
    waste = sum(row.waste_nano_usd for row in rows)
    return Costs(
        from_unix_ms=span.from_unix_ms,
        until_unix_ms=span.until_unix_ms,
        time_zone=time_zone,
        group_by=groups,
        rows=rows,
        total_nano_usd=total,
        billed_nano_usd=billed,
        accruing_nano_usd=accruing,
        waste_nano_usd=waste,
        waste_per_mille=per_mille(waste, total),
        leg_count=sum(row.leg_count for row in rows),
        unpriced_leg_count=sum(row.unpriced_leg_count for row in rows),
        display_currency=currency and currency.totals(total, billed),
    )


def read_call(
    store: Store, call_id: str, *, currency: DisplayCurrency | None = None
) -> CallAnswer | None:
    """One call, or None where the ledger has none of that id; see `read_costs`.

    Raises:
        StoreUnavailable: The ledger cannot be read.
    """
    detail = store.call(call_id)
    if detail is None:
        return None
    call = detail.summary
    totals = currency and currency.totals(call.total_nano_usd, call.billed_nano_usd)
    return CallAnswer(**msgspec.structs.asdict(detail), display_currency=totals)


def read_latency(
    store: Store,
    *,
    time_zone: str,
    name: str | None = None,
    from_: str | None = None,
    to: str | None = None,
    project: str | None = None,
    group_by: str = LATENCY_GROUPS,
) -> Latency:
    """How long the legs of a span took; see `read_costs`.

    Args:
        store: The ledger.
        time_zone: Where a day begins.
        name: One of `PERIODS`.
        from_: ISO 8601, instead of `name`.
        to: The same, exclusive.
        project: Only this one.
        group_by: Some of `GROUPS`, separated by commas.

    Raises:
        PeriodError: The span is not understood.
        ValueError: A group is unknown.
        StoreUnavailable: The ledger cannot be read.
    """
    groups = _groups(group_by)
    span = period(now_unix_ms=now_unix_ms(), time_zone=time_zone, name=name, from_=from_, to=to)
    rows = store.latency(
        LatencyQuery(
            from_unix_ms=span.from_unix_ms,
            until_unix_ms=span.until_unix_ms,
            project=project,
            group_by=groups,
        )
    )
    return Latency(
        from_unix_ms=span.from_unix_ms,
        until_unix_ms=span.until_unix_ms,
        time_zone=time_zone,
        group_by=groups,
        rows=rows,
    )


def _groups(group_by: str) -> tuple[str, ...]:
    groups = tuple(group.strip() for group in group_by.split(",") if group.strip())
    for group in groups:
        if group not in GROUPS:
            raise ValueError(f"cannot group by {group!r}: expected some of {', '.join(GROUPS)}")
    return groups


def read_calls(
    store: Store,
    *,
    time_zone: str,
    name: str | None = None,
    from_: str | None = None,
    to: str | None = None,
    project: str | None = None,
    state: CallState | None = None,
    before: str | None = None,
    limit: int = 50,
    currency: DisplayCurrency | None = None,
) -> CallList:
    """The calls opened in a span (without one: all), newest first; see `read_costs`.

    Args:
        store: The ledger.
        time_zone: Where a day begins.
        name: One of `PERIODS`.
        from_: ISO 8601, instead of `name`.
        to: The same, exclusive.
        project: Only this one.
        state: Only calls in this state.
        before: `next_before` of the page before.
        limit: At most so many.
        currency: In which their sum is told too.

    Raises:
        CursorError: `before` is none of ours.
        PeriodError: The span is not understood.
        StoreUnavailable: The ledger cannot be read.
    """
    span = None
    if name is not None or from_ is not None or to is not None:
        span = period(now_unix_ms=now_unix_ms(), time_zone=time_zone, name=name, from_=from_, to=to)
    found = store.calls(
        CallQuery(
            project=project,
            state=state,
            opened_from_unix_ms=span and span.from_unix_ms,
            opened_until_unix_ms=span and span.until_unix_ms,
            before=None if before is None else _position(before),
            limit=limit + 1,
        )
    )
    page, has_more = found[:limit], len(found) > limit
    total = sum(call.total_nano_usd for call in page)
    billed = sum(call.billed_nano_usd for call in page)
    return CallList(
        calls=page,
        has_more=has_more,
        next_before=_cursor(page[-1]) if has_more else None,
        display_currency=currency and currency.totals(total, billed),
    )


def _cursor(call: CallSummary) -> str:
    """Where a page ends. Not the id alone: a call that was taken for another's may be gone."""
    return f"{call.opened_at_unix_ms}-{call.call_id}"


def _position(cursor: str) -> tuple[int, str]:
    found = re.fullmatch(r"([0-9]{1,15})-(.+)", cursor, re.DOTALL)
    if found is None:
        raise CursorError(
            f"before={cursor!r} is not understood: expected the `next_before` of the page before "
            "(the command line shows it as --before)"
        )
    return int(found[1]), found[2]


def now_unix_ms() -> int:
    """The wall clock."""
    return time.time_ns() // 1_000_000

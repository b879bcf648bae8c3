"""The read API: what happened, and what it cost. All of it from the store, nothing remembered."""

from __future__ import annotations

import time
from typing import Annotated, Final

import msgspec
from litestar import MediaType, Response, get
from litestar.exceptions import ClientException, NotFoundException
from litestar.params import Parameter

from voicecost_ledger._version import __version__
from voicecost_ledger.calls import CallState
from voicecost_ledger.stores import (
    CallDetail,
    CallQuery,
    CallSummary,
    CostQuery,
    CostRow,
    Store,
)
from voicecost_sidecar.config import Config
from voicecost_sidecar.hub import Hub
from voicecost_sidecar.metrics import METRICS_CONTENT_TYPE, Metrics
from voicecost_sidecar.periods import PERIODS, PeriodError, period

GROUPS: Final = ("project", "agent", "tenant", "provider", "model", "modality", "outcome")
CALLS_MAX: Final = 500


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """`ok`, or `degraded` while the ledger cannot commit: agents keep their records meanwhile."""

    status: str
    version: str
    reason: str | None = None  # "full", "locked", "io", ... of the last commit that failed


class CallList(msgspec.Struct, frozen=True, kw_only=True):
    """Calls, newest first. `has_more`: ask again with `to` = the last one's `opened_at_unix_ms`."""

    calls: list[CallSummary]
    has_more: bool


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """Posted cost accrued in a span. Unpriced legs are in no amount: their cost is not known."""

    from_unix_ms: int
    until_unix_ms: int
    time_zone: str
    group_by: tuple[str, ...]
    rows: list[CostRow]
    total_nano_usd: int
    leg_count: int
    unpriced_leg_count: int


def read_costs(
    store: Store,
    *,
    time_zone: str,
    name: str | None = None,
    from_: str | None = None,
    to: str | None = None,
    project: str | None = None,
    group_by: str = "project",
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

    Raises:
        PeriodError: The span is not understood.
        ValueError: A group is unknown.
        StoreUnavailable: The ledger cannot be read.
    """
    groups = tuple(group.strip() for group in group_by.split(",") if group.strip())
    for group in groups:
        if group not in GROUPS:
            raise ValueError(f"cannot group by {group!r}: expected some of {', '.join(GROUPS)}")
    span = period(
        now_unix_ms=now_unix_ms(), time_zone=time_zone, name=name, from_=from_, to=to
    )
    rows = store.costs(
        CostQuery(
            from_unix_ms=span.from_unix_ms,
            until_unix_ms=span.until_unix_ms,
            project=project,
            group_by=groups,
        )
    )
    return Costs(
        from_unix_ms=span.from_unix_ms,
        until_unix_ms=span.until_unix_ms,
        time_zone=time_zone,
        group_by=groups,
        rows=rows,
        total_nano_usd=sum(row.amount_nano_usd for row in rows),
        leg_count=sum(row.leg_count for row in rows),
        unpriced_leg_count=sum(row.unpriced_leg_count for row in rows),
    )


def read_calls(
    store: Store,
    *,
    time_zone: str,
    name: str | None = None,
    from_: str | None = None,
    to: str | None = None,
    project: str | None = None,
    state: CallState | None = None,
    limit: int = 50,
) -> CallList:
    """The calls opened in a span (without one: all), newest first; see `read_costs`.

    Raises:
        PeriodError: The span is not understood.
        StoreUnavailable: The ledger cannot be read.
    """
    span = None
    if name is not None or from_ is not None or to is not None:
        span = period(
            now_unix_ms=now_unix_ms(), time_zone=time_zone, name=name, from_=from_, to=to
        )
    found = store.calls(
        CallQuery(
            project=project,
            state=state,
            opened_from_unix_ms=span and span.from_unix_ms,
            opened_until_unix_ms=span and span.until_unix_ms,
            limit=limit + 1,
        )
    )
    return CallList(calls=found[:limit], has_more=len(found) > limit)


def now_unix_ms() -> int:
    """The wall clock."""
    return time.time_ns() // 1_000_000


Name = Annotated[
    str | None, Parameter(query="period", description=f"One of {', '.join(PERIODS)}.")
]
From = Annotated[
    str | None, Parameter(query="from", description="ISO 8601 date or time, instead of `period`.")
]
To = Annotated[
    str | None, Parameter(query="to", description="The same, exclusive; a date means its end.")
]


@get("/health", opt={"auth": "none"}, sync_to_thread=False)
def health(hub: Hub) -> Health:
    """Whether the sidecar works."""
    reason = hub.unavailable_reason
    return Health(status="degraded" if reason else "ok", version=__version__, reason=reason)


@get("/v1/calls", sync_to_thread=True)
def list_calls(
    store: Store,
    config: Config,
    name: Name = None,
    from_: From = None,
    to: To = None,
    project: str | None = None,
    call_state: Annotated[CallState | None, Parameter(query="state")] = None,
    limit: Annotated[int, Parameter(ge=1, le=CALLS_MAX)] = 50,
) -> CallList:
    """Calls, newest first."""
    try:
        return read_calls(
            store,
            time_zone=config.time_zone,
            name=name,
            from_=from_,
            to=to,
            project=project,
            state=call_state,
            limit=limit,
        )
    except PeriodError as error:
        raise ClientException(str(error)) from None


@get("/v1/calls/{call_id:str}", sync_to_thread=True)
def get_call(store: Store, call_id: str) -> CallDetail:
    """One call: its legs, entries, meters, gaps and the steps of its enforcement."""
    detail = store.call(call_id)
    if detail is None:
        raise NotFoundException(f"no call {call_id!r} in this ledger")
    return detail


@get("/v1/costs", sync_to_thread=True)
def get_costs(
    store: Store,
    config: Config,
    name: Name = None,
    from_: From = None,
    to: To = None,
    project: str | None = None,
    group_by: Annotated[
        str, Parameter(description=f"Some of {', '.join(GROUPS)}, separated by commas.")
    ] = "project",
) -> Costs:
    """What was spent in a span, grouped."""
    try:
        return read_costs(
            store,
            time_zone=config.time_zone,
            name=name,
            from_=from_,
            to=to,
            project=project,
            group_by=group_by,
        )
    except ValueError as error:
        raise ClientException(str(error)) from None


@get("/v1/metrics", sync_to_thread=True, media_type=MediaType.TEXT)
def get_metrics(metrics: Metrics) -> Response[bytes]:
    """Counters for Prometheus."""
    return Response(content=metrics.render(), media_type=METRICS_CONTENT_TYPE)

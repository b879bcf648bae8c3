"""The read API: what happened, and what it cost. All of it from the store, nothing remembered."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from litestar import MediaType, Response, get
from litestar.exceptions import ClientException, NotFoundException
from litestar.params import FromPath, FromQuery, QueryParameter

from voicecost_ledger._version import __version__
from voicecost_ledger.calls import CallState
from voicecost_sidecar.metrics import METRICS_CONTENT_TYPE
from voicecost_sidecar.parts import PartsDependency
from voicecost_sidecar.periods import PERIODS, PeriodError
from voicecost_sidecar.queries import (
    GROUPS,
    LATENCY_GROUPS,
    CallAnswer,
    CallList,
    Costs,
    CursorError,
    Latency,
    read_call,
    read_calls,
    read_costs,
    read_latency,
)

CALLS_MAX: Final = 500


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """`ok`, or `degraded` while the ledger cannot commit: agents keep their records meanwhile."""

    status: str
    version: str
    reason: str | None = None  # "full", "locked", "io", ... of the last commit that failed


Name = Annotated[
    str | None, QueryParameter(name="period", description=f"One of {', '.join(PERIODS)}.")
]
From = Annotated[
    str | None,
    QueryParameter(name="from", description="ISO 8601 date or time, instead of `period`."),
]
To = Annotated[
    str | None, QueryParameter(name="to", description="The same, exclusive; a date means its end.")
]
GroupBy = Annotated[
    str, QueryParameter(description=f"Some of {', '.join(GROUPS)}, separated by commas.")
]


@get("/health", opt={"auth": "none"}, sync_to_thread=False)
def health(parts: PartsDependency) -> Health:
    """Whether the sidecar works."""
    reason = parts.hub.unavailable_reason
    return Health(status="degraded" if reason else "ok", version=__version__, reason=reason)


@get("/v1/calls", sync_to_thread=True)
def list_calls(
    parts: PartsDependency,
    name: Name = None,
    from_: From = None,
    to: To = None,
    project: FromQuery[str | None] = None,
    call_state: Annotated[CallState | None, QueryParameter(name="state")] = None,
    before: Annotated[
        str | None, QueryParameter(description="`next_before` of the page before.")
    ] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=CALLS_MAX)] = 50,
) -> CallList:
    """Calls, newest first."""
    try:
        return read_calls(
            parts.store,
            time_zone=parts.config.time_zone,
            name=name,
            from_=from_,
            to=to,
            project=project,
            state=call_state,
            before=before,
            limit=limit,
            currency=parts.config.display_currency,
        )
    except (PeriodError, CursorError) as error:
        raise ClientException(str(error)) from None


@get("/v1/calls/{call_id:str}", sync_to_thread=True)
def get_call(parts: PartsDependency, call_id: FromPath[str]) -> CallAnswer:
    """One call: its turns, legs, entries, meters, gaps and the steps of its enforcement."""
    call = read_call(parts.store, call_id, currency=parts.config.display_currency)
    if call is None:
        raise NotFoundException(f"no call {call_id!r} in this ledger")
    return call


@get("/v1/costs", sync_to_thread=True)
def get_costs(
    parts: PartsDependency,
    name: Name = None,
    from_: From = None,
    to: To = None,
    project: FromQuery[str | None] = None,
    group_by: GroupBy = "project",
) -> Costs:
    """What was spent in a span, grouped."""
    try:
        return read_costs(
            parts.store,
            time_zone=parts.config.time_zone,
            name=name,
            from_=from_,
            to=to,
            project=project,
            group_by=group_by,
            currency=parts.config.display_currency,
        )
    except ValueError as error:
        raise ClientException(str(error)) from None


@get("/v1/latency", sync_to_thread=True)
def get_latency(
    parts: PartsDependency,
    name: Name = None,
    from_: From = None,
    to: To = None,
    project: FromQuery[str | None] = None,
    group_by: GroupBy = LATENCY_GROUPS,
) -> Latency:
    """How long answers took in a span, grouped: time to the first token or byte, and duration."""
    try:
        return read_latency(
            parts.store,
            time_zone=parts.config.time_zone,
            name=name,
            from_=from_,
            to=to,
            project=project,
            group_by=group_by,
        )
    except ValueError as error:
        raise ClientException(str(error)) from None


@get("/v1/metrics", sync_to_thread=True, media_type=MediaType.TEXT)
def get_metrics(parts: PartsDependency) -> Response[bytes]:
    """Counters for Prometheus."""
    return Response(content=parts.metrics.render(), media_type=METRICS_CONTENT_TYPE)

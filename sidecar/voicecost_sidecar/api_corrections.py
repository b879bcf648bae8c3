"""Routes about what is posted already: why it is so much, and what else it should be."""

from __future__ import annotations

import secrets
from typing import Annotated

import msgspec
from litestar import get, post
from litestar.exceptions import ClientException, NotFoundException
from litestar.params import FromPath, JSONBody, QueryParameter

from voicecost_ledger.events import Adjust, Adjusted, Refused, Rerated
from voicecost_sidecar.api import From, Name, To
from voicecost_sidecar.explanations import EntryExplanation, read_explanation
from voicecost_sidecar.parts import PartsDependency
from voicecost_sidecar.periods import PeriodError, period
from voicecost_sidecar.queries import now_unix_ms
from voicecost_sidecar.rerating import RerateReport, first_order, next_order, report
from voicecost_sidecar.what_if import WhatIf, parse_models, what_if


class RerateRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which legs, by when they began; nothing is posted unless `apply`."""

    period: str | None = None
    from_: str | None = msgspec.field(name="from", default=None)
    to: str | None = None
    provider: str | None = None
    apply: bool = False
    reason: str = ""


class AdjustmentRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A refund (below 0) or a charge, in nano-USD as digits, of what the call is billed.

    The same `id` again does nothing.
    """

    amount_nano_usd: str
    reason: str
    id: str | None = None


@get("/v1/entries/{number:int}/explanation", sync_to_thread=True)
def get_explanation(parts: PartsDependency, number: FromPath[int]) -> EntryExplanation:
    """How an entry's amount came about, rule by rule, with the source of each rate."""
    try:
        return read_explanation(parts.store, number)
    except LookupError as error:
        raise NotFoundException(str(error)) from None


@get("/v1/what-if", sync_to_thread=True)
def get_what_if(
    parts: PartsDependency,
    models: Annotated[
        str, QueryParameter(description="`stt=deepgram/nova-3,llm=openai/gpt-4o-mini`")
    ],
    name: Name = None,
    from_: From = None,
    to: To = None,
) -> WhatIf:
    """What the legs that began in a span would have cost with other models."""
    try:
        span = period(
            now_unix_ms=now_unix_ms(),
            time_zone=parts.config.time_zone,
            name=name,
            from_=from_,
            to=to,
        )
        return what_if(parts.store, parts.prices, span, parse_models(models))
    except ValueError as error:
        raise ClientException(str(error)) from None


@post("/v1/rerate", status_code=200)
async def post_rerate(parts: PartsDependency, data: JSONBody[RerateRequest]) -> RerateReport:
    """Compare legs with today's prices; post the differences where `apply` says so."""
    try:
        span = period(
            now_unix_ms=now_unix_ms(),
            time_zone=parts.config.time_zone,
            name=data.period,
            from_=data.from_,
            to=data.to,
        )
    except PeriodError as error:
        raise ClientException(str(error)) from None
    order = first_order(
        from_unix_ms=span.from_unix_ms,
        until_unix_ms=span.until_unix_ms,
        provider=data.provider,
        apply=data.apply,
        by="the API",
        reason=data.reason,
    )
    answers: list[Rerated] = []
    following = order
    while following is not None:
        answer = await parts.hub.order(following)
        assert isinstance(answer, Rerated)
        answers.append(answer)
        following = next_order(following, answer)
    return report(order, answers)


@post("/v1/calls/{call_id:str}/adjustments")
async def post_adjustment(
    parts: PartsDependency, call_id: FromPath[str], data: JSONBody[AdjustmentRequest]
) -> Adjusted:
    """Post a refund or a charge to a call."""
    try:
        amount = int(data.amount_nano_usd)
    except ValueError:
        raise ClientException(
            f"amount_nano_usd={data.amount_nano_usd!r} is no whole number of nano-USD: expected "
            'for example "-250000000" for a refund of $0.25'
        ) from None
    answer = await parts.hub.order(
        Adjust(
            adjustment_id=data.id or secrets.token_hex(8),
            call_id=call_id,
            amount_nano_usd=amount,
            reason=data.reason,
            by="the API",
        )
    )
    if isinstance(answer, Refused):
        refused = NotFoundException if answer.code == "no_call" else ClientException
        raise refused(answer.message)
    assert isinstance(answer, Adjusted)
    return answer

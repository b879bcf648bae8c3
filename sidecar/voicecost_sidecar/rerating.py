"""`voicecost rerate`: today's price book over what was posted, some legs at a time."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from voicecost_ledger.events import Rerate, Rerated, RerateRow
from voicecost_ledger.money import format_usd
from voicecost_sidecar.tables import harmless, plain_table, span_text


class RerateReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a rerate finds in legs that began in a span, or has posted where `applied`.

    The amounts of a row are of the `leg_count` legs whose amount differs; `unpriced_leg_count` of
    them had no price. `kept_leg_count` keep a price that today's book no longer has.
    """

    from_unix_ms: int
    until_unix_ms: int
    applied: bool
    rows: list[RerateRow]
    leg_count: int  # looked at
    changed_leg_count: int
    difference_nano_usd: int


def first_order(
    *,
    from_unix_ms: int,
    until_unix_ms: int,
    provider: str | None,
    apply: bool,
    by: str,
    reason: str,
) -> Rerate:
    """The order to begin with."""
    return Rerate(
        from_unix_ms=from_unix_ms,
        until_unix_ms=until_unix_ms,
        provider=provider,
        apply=apply,
        by=by,
        reason=reason or "rerated with today's prices",
    )


def next_order(order: Rerate, answer: Rerated) -> Rerate | None:
    """The order to go on with; None after the last one."""
    if answer.next_after is None:
        return None
    return msgspec.structs.replace(order, after=answer.next_after)


def report(order: Rerate, answers: Iterable[Rerated]) -> RerateReport:
    """All answers to one rerate as one."""
    rows: dict[tuple[str, str, str], RerateRow] = {}
    leg_count = 0
    for answer in answers:
        leg_count += answer.leg_count
        for row in answer.rows:
            key = (row.provider, row.model, row.modality)
            sum_row = rows.setdefault(
                key, RerateRow(provider=row.provider, model=row.model, modality=row.modality)
            )
            for name in _COUNTS:
                setattr(sum_row, name, getattr(sum_row, name) + getattr(row, name))
    found = sorted(rows.values(), key=lambda row: -abs(row.difference_nano_usd))
    return RerateReport(
        from_unix_ms=order.from_unix_ms,
        until_unix_ms=order.until_unix_ms,
        applied=order.apply,
        rows=found,
        leg_count=leg_count,
        changed_leg_count=sum(row.leg_count for row in found),
        difference_nano_usd=sum(row.difference_nano_usd for row in found),
    )


_COUNTS = [
    field.name
    for field in msgspec.structs.fields(RerateRow)
    if field.name not in ("provider", "model", "modality")
]


def rerate_table(found: RerateReport, time_zone: str) -> RenderableType:
    """One line per model whose amounts differ or are not known, and what to do."""
    found = harmless(found)
    span = Text(span_text(found.from_unix_ms, found.until_unix_ms, time_zone))
    if not found.rows:
        same = f"Today's prices change nothing in the {found.leg_count} legs of that span."
        return Group(span, Text(same))
    table = plain_table("provider", "model", "kind")
    for name in ("legs", "unpriced before", "was", "is now", "difference", "unpriced today"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found.rows:
        unknown = row.kept_leg_count + row.still_unpriced_leg_count
        table.add_row(
            row.provider,
            row.model,
            row.modality,
            str(row.leg_count),
            str(row.unpriced_leg_count or ""),
            format_usd(row.was_nano_usd, places=6),
            format_usd(row.now_nano_usd, places=6),
            format_usd(row.difference_nano_usd, places=6),
            str(unknown or ""),
        )
    if not found.changed_leg_count:
        same = f"Today's prices change no amount of the {found.leg_count} legs of that span."
        return Group(span, table, Text(same))
    difference = format_usd(found.difference_nano_usd, places=6)
    told = f"{found.changed_leg_count} of {found.leg_count} legs, {difference}"
    done = "posted as adjustments." if found.applied else "not posted: say --apply to post them."
    return Group(span, table, Text(f"{told}, {done}"))

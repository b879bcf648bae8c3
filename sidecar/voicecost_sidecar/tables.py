"""Calls and costs as tables that people like to read. What is not known is shown, never hidden."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from voicecost_ledger.money import format_usd
from voicecost_ledger.stores import CallDetail, CallSummary, LegView
from voicecost_sidecar.queries import CallList, Costs

_STATE_STYLES = {"open": "green", "ended": "yellow", "settled": ""}


def calls_table(found: CallList, time_zone: str) -> RenderableType:
    """One line per call, newest first."""
    if not found.calls:
        return Text("No calls in this ledger yet.")
    table = _table("call", "opened", "state", "project", "agent", "length")
    table.add_column("cost", justify="right")
    table.add_column("waste", justify="right")
    table.add_column("limit", justify="right")
    for call in found.calls:
        table.add_row(
            call.call_id,
            _moment(call.opened_at_unix_ms, time_zone),
            _state(call),
            call.project,
            call.agent or "",
            _length(call),
            cost_text(call.total_nano_usd, call.unpriced_leg_count),
            format_usd(call.waste_nano_usd) if call.waste_nano_usd else "",
            "" if call.limit_nano_usd is None else format_usd(call.limit_nano_usd),
        )
    if not found.has_more:
        return table
    return Group(table, Text("There are more: --limit shows them.", style="dim"))


def call_table(detail: CallDetail, time_zone: str) -> RenderableType:
    """One call: what it is, and each leg with where its price is from."""
    call = detail.summary
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("call", call.call_id),
        ("state", _state(call)),
        ("project", call.project),
        ("agent", call.agent or ""),
        ("room", call.room_name or ""),
        ("opened", _moment(call.opened_at_unix_ms, time_zone)),
        ("length", _length(call)),
        ("cost", cost_text(call.total_nano_usd, call.unpriced_leg_count)),
        ("of it accruing", format_usd(call.accruing_nano_usd) if call.accruing_nano_usd else ""),
        ("waste", format_usd(call.waste_nano_usd) if call.waste_nano_usd else ""),
        ("limit", "" if call.limit_nano_usd is None else format_usd(call.limit_nano_usd)),
        ("coverage", call.coverage.value),
        ("gaps", ", ".join(sorted({gap.reason for gap in detail.gaps}))),
        ("quarantined", str(len(detail.quarantined)) if detail.quarantined else ""),
    ):
        if value:
            facts.add_row(Text(name, style="dim"), value)
    table = _table("leg", "service", "provider", "model", "units", "basis", "outcome")
    table.add_column("cost", justify="right")
    table.add_column("price from")
    for leg in detail.legs:
        table.add_row(
            str(leg.leg),
            leg.modality.value,
            leg.provider,
            leg.model,
            _units(leg),
            leg.basis.value,
            leg.outcome.value if leg.outcome else "open",
            format_usd(leg.amount_nano_usd, places=6),
            leg.pricing_source or "no price known",
        )
    parts: list[RenderableType] = [facts, Text(), table]
    if detail.audit:
        steps = _table("when", "step", "detail")
        for step in detail.audit:
            steps.add_row(_moment(step.at_unix_ms, time_zone), step.step, step.detail)
        parts += [Text(), steps]
    return Group(*parts)


def costs_table(costs: Costs) -> RenderableType:
    """One line per group, dearest first, and the total."""
    span = (
        f"{_moment(costs.from_unix_ms, costs.time_zone)} to "
        f"{_moment(costs.until_unix_ms, costs.time_zone)} ({costs.time_zone})"
    )
    if not costs.rows:
        return Text(f"No cost from {span}.")
    table = _table(*costs.group_by, show_footer=True)
    table.columns[0].footer = "total"
    table.add_column("legs", justify="right", footer=str(costs.leg_count))
    total = cost_text(costs.total_nano_usd, costs.unpriced_leg_count)
    table.add_column("cost", justify="right", footer=total)
    for row in sorted(costs.rows, key=lambda row: -row.amount_nano_usd):
        table.add_row(
            *(row.group.get(name, "") or "-" for name in costs.group_by),
            str(row.leg_count),
            cost_text(row.amount_nano_usd, row.unpriced_leg_count),
        )
    return Group(Text(span, style="dim"), table)


def cost_text(amount_nano_usd: int, unpriced_leg_count: int) -> str:
    """An amount, and how many legs it does not hold."""
    unpriced = f" + {unpriced_leg_count} unpriced" if unpriced_leg_count else ""
    return format_usd(amount_nano_usd) + unpriced


def _table(*columns: str, show_footer: bool = False) -> Table:
    table = Table(show_footer=show_footer, box=None, header_style="bold")
    for name in columns or ("",):
        table.add_column(name, no_wrap=name == "call")
    return table


def _state(call: CallSummary) -> Text:
    words = [call.state.value]
    if call.reason:
        words.append(f"({call.reason.value})")
    if call.amended:
        words.append("amended")
    return Text(" ".join(words), style=_STATE_STYLES.get(call.state.value, ""))


def _length(call: CallSummary) -> str:
    if call.ended_at_unix_ms is None:
        return ""
    seconds = max(0, call.ended_at_unix_ms - call.opened_at_unix_ms) // 1000
    return f"{seconds // 60}:{seconds % 60:02}"


def _moment(unix_ms: int, time_zone: str) -> str:
    moment = datetime.fromtimestamp(unix_ms / 1000, ZoneInfo(time_zone))
    return moment.strftime("%Y-%m-%d %H:%M:%S" if moment.second else "%Y-%m-%d %H:%M")


def _units(leg: LegView) -> str:
    shown = {unit: quantity for unit, quantity in leg.usage.items() if quantity}
    return ", ".join(f"{quantity:,} {unit}" for unit, quantity in sorted(shown.items()))

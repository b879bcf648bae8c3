"""Lists of calls, costs and latency as tables. What is not known is shown, never hidden.

Most words in them are an agent's: they are shown as they are, and do nothing to a terminal.
"""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, TypeVar, cast
from zoneinfo import ZoneInfo

import msgspec
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from voicecost_catalog.currency import CurrencyTotals
from voicecost_ledger.calls import CallState
from voicecost_ledger.money import format_usd, round_half_even
from voicecost_ledger.stores import CallSummary, LatencyRow
from voicecost_sidecar.queries import CallList, Costs, Latency

Found = TypeVar("Found", bound=msgspec.Struct)

WIDE_COLUMNS: Final = 110
_FOLDED: Final = {
    "causes",
    "provider",
    "service",
    "project/agent",
    "project",
    "agent",
    "detail",
    "model",
    "source",
}
# What no text shows but a terminal obeys: escapes and line breaks, changes of direction.
_UNSEEN: Final = {"Cc", "Cf", "Zl", "Zp"}
_STATE_STYLES = {"open": "green", "ended": "yellow", "settled": ""}


class _PlainTable(Table):
    """A table whose cells mean nothing but themselves: no markup, no emoji codes."""

    def add_row(self, *cells: RenderableType | None, **how: Any) -> None:
        """Add a row; text is taken as it is."""
        super().add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells), **how)


def harmless(found: Found) -> Found:
    """The same without control and format characters in any text of it."""
    return msgspec.convert(_stripped(msgspec.to_builtins(found)), type(found))


def _stripped(value: object) -> object:
    if isinstance(value, str):
        return "".join(char for char in value if unicodedata.category(char) not in _UNSEEN)
    if isinstance(value, dict):
        items = cast("dict[str, object]", value).items()
        return {_stripped(name): _stripped(inner) for name, inner in items}
    if isinstance(value, (list, tuple)):
        return [_stripped(inner) for inner in cast("list[object]", value)]
    return value


def calls_table(found: CallList, time_zone: str) -> RenderableType:
    """One line per call, newest first."""
    found = harmless(found)
    if not found.calls:
        return Text("No calls in this ledger yet.")
    parts: list[RenderableType] = [_CallsTable(found.calls, time_zone)]
    if found.display_currency is not None:
        unpriced = sum(call.unpriced_leg_count for call in found.calls)
        amount = currency_text(found.display_currency, unpriced)
        parts.append(Text(f"these {len(found.calls)} calls: {amount}"))
    if found.next_before is not None:
        again = f"There are more: ask again with --before {shlex.quote(found.next_before)}"
        parts.append(Text(again, style="dim", overflow="ignore", no_wrap=True))
    return Group(*parts)


class _CallsTable:
    """One line per call; on a narrow terminal two, without length and limit."""

    def __init__(self, calls: Sequence[CallSummary], time_zone: str) -> None:
        self._calls = calls
        self._time_zone = time_zone

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table that fits."""
        wide = options.max_width >= 100
        table = plain_table("call", *(["opened"] if wide else []), "state", "project/agent")
        billed = any(call.billed_nano_usd != call.total_nano_usd for call in self._calls)
        amounts = ("cost", *(("billed",) if billed else ()), "waste")
        for name in ("length", *amounts, "limit") if wide else amounts:
            table.add_column(name, justify="right", no_wrap=True)  # an amount is never cut short
        for call in self._calls:
            limit = call.limit_nano_usd
            opened = moment_text(call.opened_at_unix_ms, self._time_zone, short=True)
            table.add_row(
                *([call.call_id, opened] if wide else [f"{call.call_id}\n{opened}"]),
                state_text(call),
                f"{call.project}/{call.agent}" if call.agent else call.project,
                *([length_text(call)] if wide else []),
                cost_text(call.total_nano_usd, call.unpriced_leg_count),
                *([format_usd(call.billed_nano_usd)] if billed else []),
                format_usd(call.waste_nano_usd) if call.waste_nano_usd else "",
                *(["" if limit is None else format_usd(limit)] if wide else []),
            )
        yield table


def costs_table(costs: Costs) -> RenderableType:
    """One line per group, dearest first, and the total."""
    costs = harmless(costs)
    span = span_text(costs.from_unix_ms, costs.until_unix_ms, costs.time_zone)
    if not costs.rows and not costs.accruing_nano_usd:
        return Text(f"No cost from {span}.")
    names = costs.group_by or ("",)
    table = plain_table(*names, show_footer=True)
    table.columns[0].footer = "total"
    table.add_column("legs", justify="right", footer=str(costs.leg_count))
    total = cost_text(costs.total_nano_usd, costs.unpriced_leg_count)
    table.add_column("cost", justify="right", footer=total)
    billed = costs.billed_nano_usd != costs.total_nano_usd
    if billed:
        total = format_usd(costs.billed_nano_usd)
        table.add_column("billed", justify="right", footer=total)
    waste = share_text(costs.waste_nano_usd, costs.waste_per_mille)
    table.add_column("waste", justify="right", footer=waste)
    for row in sorted(costs.rows, key=lambda row: -row.amount_nano_usd):
        table.add_row(
            *(row.group.get(name, "") or "-" for name in names),
            str(row.leg_count),
            cost_text(row.amount_nano_usd, row.unpriced_leg_count),
            *([format_usd(row.billed_nano_usd)] if billed else []),
            share_text(row.waste_nano_usd, row.waste_per_mille),
        )
    if costs.accruing_nano_usd:
        table.add_row("accruing", *[""] * len(names), format_usd(costs.accruing_nano_usd))
    parts: list[RenderableType] = [Text(span, style="dim"), table]
    if costs.display_currency is not None:
        amount = currency_text(costs.display_currency, costs.unpriced_leg_count)
        parts.append(Text(f"total: {amount}"))
    return Group(*parts)


def latency_table(latency: Latency) -> RenderableType:
    """One line per group: half of the answers came within P50, 95 of 100 within P95."""
    latency = harmless(latency)
    span = span_text(latency.from_unix_ms, latency.until_unix_ms, latency.time_zone)
    if not latency.rows:
        return Text(f"No leg has ended that started from {span}.")
    return Group(Text(span, style="dim"), LatencyTable(latency.rows, latency.group_by))


class LatencyTable:
    """One line per group, of a span or of one call; a narrow terminal has both ranks in a cell."""

    def __init__(self, rows: Sequence[LatencyRow], group_by: Sequence[str]) -> None:
        self._rows = rows
        self._names = tuple(group_by) or ("",)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table that fits."""
        wide = options.max_width >= WIDE_COLUMNS
        table = plain_table(*self._names)
        ranks = ("first P50", "first P95", "took P50", "took P95")
        for name in ("legs", *(ranks if wide else ("first P50/95", "took P50/95"))):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self._rows:
            first = seconds_text(row.time_to_first_p50_ms), seconds_text(row.time_to_first_p95_ms)
            took = seconds_text(row.duration_p50_ms), seconds_text(row.duration_p95_ms)
            table.add_row(
                *(row.group.get(name, "") or "-" for name in self._names),
                str(row.leg_count),
                *((*first, *took) if wide else ("\n".join(first), "\n".join(took))),
            )
        yield table


def share_text(amount_nano_usd: int, per_mille: int) -> str:
    """An amount and its share of another; nothing where there is none."""
    if not amount_nano_usd:
        return ""
    return f"{format_usd(amount_nano_usd)} ({per_mille // 10}.{per_mille % 10} %)"


def seconds_text(ms: int | None) -> str:
    """Milliseconds as seconds to the hundredth; nothing where nobody measured."""
    if ms is None:
        return ""
    centiseconds = round_half_even(ms, per=10)
    return f"{centiseconds // 100:,}.{centiseconds % 100:02} s"


def cost_text(amount_nano_usd: int, unpriced_leg_count: int, *, places: int = 4) -> str:
    """An amount, and how many legs it does not hold."""
    unpriced = f" + {unpriced_leg_count} unpriced" if unpriced_leg_count else ""
    return format_usd(amount_nano_usd, places=places) + unpriced


def currency_text(totals: CurrencyTotals | None, unpriced_leg_count: int) -> str:
    """A total in the display currency and the rate it was converted at; nothing without one."""
    if totals is None:
        return ""
    code, total, billed = totals.code, Decimal(totals.total), Decimal(totals.billed)
    unpriced = f" + {unpriced_leg_count} unpriced" if unpriced_leg_count else ""
    also = f", billed {code} {billed:,.4f}" if billed != total else ""
    rate = f"at the stated rate of {code} {totals.per_usd} a dollar"
    return f"{code} {total:,.4f}{unpriced}{also}, {rate}"


def plain_table(*columns: str, show_footer: bool = False) -> _PlainTable:
    """A table with these columns, as all of ours look."""
    table = _PlainTable(show_footer=show_footer, box=None, header_style="bold")
    for name in columns:
        # What may be folded on a narrow terminal; nothing is cut off.
        free = name in _FOLDED
        table.add_column(name, no_wrap=not free, overflow="fold", min_width=8 if free else None)
    return table


def plain_grid() -> Table:
    """A table without headings, for names and what they are."""
    return _PlainTable.grid(padding=(0, 2))


def span_text(from_unix_ms: int, until_unix_ms: int, time_zone: str) -> str:
    """From when to when, and in which time zone that is."""
    since = moment_text(from_unix_ms, time_zone)
    return f"{since} to {moment_text(until_unix_ms, time_zone)} ({time_zone})"


def state_text(call: CallSummary) -> Text:
    """What became of a call, or where it is."""
    # A settled call's reason says it all.
    words = [call.reason.value if call.reason else call.state.value]
    if call.reason and call.state is not CallState.SETTLED:
        words.append(f"({call.state.value})")
    if call.amended:
        words.append("amended")
    return Text(" ".join(words), style=_STATE_STYLES.get(call.state.value, ""))


def length_text(call: CallSummary) -> str:
    """How long a call took; nothing while it goes on."""
    if call.ended_at_unix_ms is None:
        return ""
    seconds = max(0, call.ended_at_unix_ms - call.opened_at_unix_ms) // 1000
    return f"{seconds // 60}:{seconds % 60:02}"


def moment_text(unix_ms: int, time_zone: str, *, short: bool = False) -> str:
    """An instant in a time zone, without the year and the seconds where it is to be short."""
    moment = datetime.fromtimestamp(unix_ms / 1000, ZoneInfo(time_zone))
    if short:
        return moment.strftime("%m-%d %H:%M")
    return moment.strftime("%Y-%m-%d %H:%M:%S" if moment.second else "%Y-%m-%d %H:%M")

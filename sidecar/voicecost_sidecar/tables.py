"""Calls and costs as tables that people like to read. What is not known is shown, never hidden.

Most words in them are an agent's: they are shown as they are, and do nothing to a terminal.
"""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, TypeVar, cast
from zoneinfo import ZoneInfo

import msgspec
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from voicecost_ledger.calls import CallState
from voicecost_ledger.money import format_usd, round_half_even
from voicecost_ledger.records import Modality
from voicecost_ledger.stores import CallDetail, CallSummary, LegView
from voicecost_sidecar.queries import CallList, Costs

Found = TypeVar("Found", bound=msgspec.Struct)

WIDE_COLUMNS: Final = 110
_FOLDED: Final = {
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
    table = _CallsTable(found.calls, time_zone)
    if found.next_before is None:
        return table
    again = f"There are more: ask again with --before {shlex.quote(found.next_before)}"
    return Group(table, Text(again, style="dim", overflow="ignore", no_wrap=True))


def call_table(detail: CallDetail, time_zone: str) -> RenderableType:
    """One call: what it is, and each leg with where its price is from."""
    detail = harmless(detail)
    call = detail.summary
    facts = _PlainTable.grid(padding=(0, 2))
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
    parts: list[RenderableType] = [facts, Text(), LegsTable(detail.legs)]
    if detail.audit:
        steps = plain_table("when", "step", "detail")
        for step in detail.audit:
            steps.add_row(_moment(step.at_unix_ms, time_zone), step.step, step.detail)
        parts += [Text(), steps]
    return Group(*parts)


class _CallsTable:
    """One line per call; a narrow terminal goes without length and limit."""

    def __init__(self, calls: Sequence[CallSummary], time_zone: str) -> None:
        self._calls = calls
        self._time_zone = time_zone

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table that fits."""
        wide = options.max_width >= 100
        table = plain_table("call", "opened", "state", "project/agent")
        for name in ("length", "cost", "waste", "limit") if wide else ("cost", "waste"):
            table.add_column(name, justify="right", no_wrap=True)  # an amount is never cut short
        for call in self._calls:
            limit = call.limit_nano_usd
            table.add_row(
                call.call_id,
                _moment(call.opened_at_unix_ms, self._time_zone, short=True),
                _state(call),
                f"{call.project}/{call.agent}" if call.agent else call.project,
                *([_length(call)] if wide else []),
                cost_text(call.total_nano_usd, call.unpriced_leg_count),
                format_usd(call.waste_nano_usd) if call.waste_nano_usd else "",
                *(["" if limit is None else format_usd(limit)] if wide else []),
            )
        yield table


class LegsTable:
    """The legs of a call in the order they started; on a narrow terminal two lines for each."""

    def __init__(self, legs: Sequence[LegView]) -> None:
        self._legs = sorted(legs, key=lambda leg: leg.started_at_unix_ms)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table that fits."""
        wide = options.max_width >= WIDE_COLUMNS
        names = ("provider", "service", "units", "basis", "outcome")
        table = plain_table(*names) if wide else plain_table("service", "units", "basis")
        table.add_column("cost", justify="right", no_wrap=True)
        table.add_column("price from", overflow="fold")
        for leg in self._legs:
            # The provider as LiveKit's plugin names it; OpenAI's gives the host.
            provider, service = leg.provider, f"{leg.modality.upper()} {leg.model}"
            basis, outcome = leg.basis.value, leg.outcome.value if leg.outcome else "open"
            cost = format_usd(leg.amount_nano_usd, places=6)
            source = leg.pricing_source or "no price known"
            if wide:
                table.add_row(provider, service, units_text(leg), basis, outcome, cost, source)
            else:
                name = f"{leg.modality.upper()} {provider}\n{leg.model}"
                lines = source.replace("@", "\n@")
                table.add_row(name, units_text(leg), f"{basis}\n{outcome}", cost, lines)
        yield table


def costs_table(costs: Costs) -> RenderableType:
    """One line per group, dearest first, and the total."""
    costs = harmless(costs)
    span = (
        f"{_moment(costs.from_unix_ms, costs.time_zone)} to "
        f"{_moment(costs.until_unix_ms, costs.time_zone)} ({costs.time_zone})"
    )
    if not costs.rows and not costs.accruing_nano_usd:
        return Text(f"No cost from {span}.")
    names = costs.group_by or ("",)
    table = plain_table(*names, show_footer=True)
    table.columns[0].footer = "total"
    table.add_column("legs", justify="right", footer=str(costs.leg_count))
    total = cost_text(costs.total_nano_usd, costs.unpriced_leg_count)
    table.add_column("cost", justify="right", footer=total)
    for row in sorted(costs.rows, key=lambda row: -row.amount_nano_usd):
        table.add_row(
            *(row.group.get(name, "") or "-" for name in names),
            str(row.leg_count),
            cost_text(row.amount_nano_usd, row.unpriced_leg_count),
        )
    if costs.accruing_nano_usd:
        table.add_row("accruing", *[""] * len(names), format_usd(costs.accruing_nano_usd))
    return Group(Text(span, style="dim"), table)


def cost_text(amount_nano_usd: int, unpriced_leg_count: int) -> str:
    """An amount, and how many legs it does not hold."""
    unpriced = f" + {unpriced_leg_count} unpriced" if unpriced_leg_count else ""
    return format_usd(amount_nano_usd) + unpriced


def units_text(leg: LegView) -> str:
    """What a leg used, in the units that people think in; `--json` has every count."""
    usage = leg.usage
    match leg.modality:
        case Modality.LLM:
            cached = usage.get("cached_input_tokens", 0)
            of_which = f" ({cached:,} cached)" if cached else ""
            sent, received = usage.get("input_tokens", 0), usage.get("output_tokens", 0)
            return f"{sent:,} in{of_which}, {received:,} out"
        case Modality.TTS:
            return f"{usage.get('characters', 0):,} characters"
        case Modality.STT:
            centiseconds = round_half_even(usage.get("audio_ms", 0), per=10)
            return f"{centiseconds // 100:,}.{centiseconds % 100:02} s audio"


def plain_table(*columns: str, show_footer: bool = False) -> _PlainTable:
    """A table with these columns, as all of ours look."""
    table = _PlainTable(show_footer=show_footer, box=None, header_style="bold")
    for name in columns:
        # What may be folded on a narrow terminal; nothing is cut off.
        free = name in _FOLDED
        table.add_column(name, no_wrap=not free, overflow="fold", min_width=8 if free else None)
    return table


def _state(call: CallSummary) -> Text:
    # A settled call's reason says it all.
    words = [call.reason.value if call.reason else call.state.value]
    if call.reason and call.state is not CallState.SETTLED:
        words.append(f"({call.state.value})")
    if call.amended:
        words.append("amended")
    return Text(" ".join(words), style=_STATE_STYLES.get(call.state.value, ""))


def _length(call: CallSummary) -> str:
    if call.ended_at_unix_ms is None:
        return ""
    seconds = max(0, call.ended_at_unix_ms - call.opened_at_unix_ms) // 1000
    return f"{seconds // 60}:{seconds % 60:02}"


def _moment(unix_ms: int, time_zone: str, *, short: bool = False) -> str:
    moment = datetime.fromtimestamp(unix_ms / 1000, ZoneInfo(time_zone))
    if short:
        return moment.strftime("%m-%d %H:%M")
    return moment.strftime("%Y-%m-%d %H:%M:%S" if moment.second else "%Y-%m-%d %H:%M")

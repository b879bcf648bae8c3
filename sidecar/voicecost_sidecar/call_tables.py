"""One call as people like to read it: what it was, its turns or its legs, and how sure we are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from voicecost_ledger.entries import FLAT_FEE_NUMBER
from voicecost_ledger.money import format_usd
from voicecost_ledger.records import Basis, ControlCause, Modality
from voicecost_ledger.stores import (
    CallDetail,
    CallSummary,
    ControlView,
    LatencyRow,
    LegView,
    TurnView,
)
from voicecost_sidecar.queries import CallAnswer
from voicecost_sidecar.tables import (
    WIDE_COLUMNS,
    LatencyTable,
    cost_text,
    currency_text,
    harmless,
    length_text,
    moment_text,
    plain_grid,
    plain_table,
    seconds_text,
    share_text,
    state_text,
)


class Part(StrEnum):
    """Which part of a call is shown below what it was and cost."""

    LEGS = "legs"
    TURNS = "turns"
    LATENCY = "latency"
    CONTROL = "control"


def call_table(detail: CallAnswer, time_zone: str, part: Part = Part.LEGS) -> RenderableType:
    """One call: what it is, and each leg with where its price is from, or another part of it."""
    detail = harmless(detail)
    parts: list[RenderableType] = [_facts(detail, time_zone), Text(), _part(detail, part)]
    if detail.audit:
        steps = plain_table("when", "step", "detail")
        for step in detail.audit:
            steps.add_row(moment_text(step.at_unix_ms, time_zone), step.step, step.detail)
        parts += [Text(), steps]
    return Group(*parts)


def _part(detail: CallDetail, part: Part) -> RenderableType:
    match part:
        case Part.LEGS:
            return _LegsTable(detail.legs)
        case Part.TURNS:
            return _turns_table(detail.turns)
        case Part.LATENCY:
            return _latency_table(detail.latency)
        case Part.CONTROL:
            return _control_table(detail.control)


def _facts(detail: CallAnswer, time_zone: str) -> RenderableType:
    call = detail.summary
    facts = plain_grid()
    for name, value in (
        ("call", call.call_id),
        ("state", state_text(call)),
        ("project", call.project),
        ("agent", call.agent or ""),
        ("room", call.room_name or ""),
        ("opened", moment_text(call.opened_at_unix_ms, time_zone)),
        ("length", length_text(call)),
        ("cost", cost_text(call.total_nano_usd, call.unpriced_leg_count)),
        (
            "billed",
            "" if call.billed_nano_usd == call.total_nano_usd else format_usd(call.billed_nano_usd),
        ),
        ("converted", currency_text(detail.display_currency, call.unpriced_leg_count)),
        ("of it accruing", format_usd(call.accruing_nano_usd) if call.accruing_nano_usd else ""),
        ("of it estimated", _estimated_text(call)),
        ("waste", share_text(call.waste_nano_usd, call.waste_per_mille)),
        ("by outcome", _amounts_text(call.nano_usd_by_outcome) if call.waste_nano_usd else ""),
        ("limit", "" if call.limit_nano_usd is None else format_usd(call.limit_nano_usd)),
        ("coverage", call.coverage.value),
        ("gaps", ", ".join(sorted({gap.reason for gap in detail.gaps}))),
        ("unexplained", _unexplained_text(detail.control)),
        ("quarantined", str(len(detail.quarantined)) if detail.quarantined else ""),
    ):
        if value:
            facts.add_row(Text(name, style="dim"), value)
    return facts


def _estimated_text(call: CallSummary) -> str:
    estimated = share_text(call.estimated_nano_usd, call.estimated_per_mille)
    legs = call.unknown_uncertainty_leg_count
    if not estimated and not legs:
        return ""
    unknown = f", {legs} legs by nobody knows how much" if legs else ""
    off_by = format_usd(call.uncertainty_nano_usd, places=6)
    return f"{estimated or format_usd(0)}, off by at most {off_by}{unknown}"


def _amounts_text(amounts: Mapping[str, int]) -> str:
    dearest_first = sorted(amounts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {format_usd(amount)}" for name, amount in dearest_first if amount)


def _unexplained_text(control: Sequence[ControlView]) -> str:
    odd = sum(ControlCause.UNEXPLAINED in total.causes for total in control)
    return f"{odd} of LiveKit's {len(control)} totals: see --show control" if odd else ""


class _LegsTable:
    """The legs of a call in the order they started; on a narrow terminal two lines for each."""

    def __init__(self, legs: Sequence[LegView]) -> None:
        self._legs = sorted(legs, key=lambda leg: leg.started_at_unix_ms)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table that fits."""
        wide = options.max_width >= WIDE_COLUMNS
        names = ("leg", "provider", "service", "units", "basis", "outcome")
        table = plain_table(*names) if wide else plain_table("service", "units", "basis")
        service = next(column for column in table.columns if column.header == "service")
        service.min_width = max(len(leg.modality) for leg in self._legs) if self._legs else 0
        for name in ("first", "took", "cost") if wide else ("cost",):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("price from", overflow="fold")
        for leg in self._legs:
            # The provider as LiveKit's plugin names it; OpenAI's gives the host.
            provider, model = leg.provider, _model_text(leg)
            basis, outcome = leg.basis.value, leg.outcome.value if leg.outcome else "open"
            source = leg.pricing_source or "no price known"
            if wide:
                table.add_row(
                    str(leg.leg) if leg.leg < FLAT_FEE_NUMBER else "",
                    provider,
                    f"{leg.modality.upper()} {model}",
                    units_text(leg),
                    basis,
                    outcome,
                    seconds_text(leg.time_to_first_ms),
                    seconds_text(leg.duration_ms),
                    _leg_cost_text(leg).replace("\n", " "),
                    source,
                )
            else:
                name = f"{leg.modality.upper()} {provider}\n{model}"
                lines = source.replace("@", "\n@")
                cost = _leg_cost_text(leg)
                table.add_row(name, units_text(leg), f"{basis}\n{outcome}", cost, lines)
        yield table


def _model_text(leg: LegView) -> str:
    served = " ".join(
        filter(None, (leg.served_model, leg.served_tier and f"{leg.served_tier} tier"))
    )
    return f"{leg.model} (served by {served})" if served else leg.model


def _leg_cost_text(leg: LegView) -> str:
    cost = format_usd(leg.amount_nano_usd, places=6)
    if leg.amount_nano_usd is None or leg.basis is not Basis.ESTIMATED:
        return cost
    return f"{cost}\n± {format_usd(leg.uncertainty_nano_usd, places=6)}"


def _turns_table(turns: Sequence[TurnView]) -> RenderableType:
    kinds = [kind.value for kind in Modality if any(kind in t.nano_usd_by_modality for t in turns)]
    table = plain_table("turn")
    for name in ("legs", *kinds, "cost", "waste"):
        table.add_column(name, justify="right", no_wrap=True)
    for turn in turns:
        amounts = turn.nano_usd_by_modality
        table.add_row(
            turn.speech_id or "(no turn)",
            str(turn.leg_count),
            *(format_usd(amounts[kind], places=6) if kind in amounts else "" for kind in kinds),
            cost_text(turn.total_nano_usd, turn.unpriced_leg_count, places=6),
            format_usd(turn.waste_nano_usd, places=6) if turn.waste_nano_usd else "",
        )
    return table


def _latency_table(rows: Sequence[LatencyRow]) -> RenderableType:
    if not rows:
        return Text("No leg of this call has ended yet.")
    return LatencyTable(rows, ("modality", "provider", "model"))


def _control_table(control: Sequence[ControlView]) -> RenderableType:
    if not control:
        return Text("LiveKit's own account of this call has not been reported.")
    table = plain_table("provider", "service", "unit")
    for name in ("ours", "LiveKit's", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("causes", overflow="fold")
    for total in control:
        table.add_row(
            total.provider,
            f"{total.modality.upper()} {total.model}",
            total.unit,
            f"{total.metered:,}",
            f"{total.livekit:,}",
            f"{total.metered - total.livekit:+,}",
            ", ".join(f"{cause} {part:+,}" for cause, part in total.causes.items() if part),
        )
    return table


# ---- units -------------------------------------------------------------------------------------


def units_text(leg: LegView) -> str:
    """What a leg used, in the units that people think in; `--json` has every count."""
    ways = _UNITS_SHOWN[leg.modality]
    texts = [text for show in ways if (text := show(leg.usage, False))]
    return ", ".join(texts) or ways[0](leg.usage, True)


_Show = Callable[[Mapping[str, int], bool], str]


def _tokens(usage: Mapping[str, int], always: bool) -> str:
    if not always and not usage.keys() & {"input_tokens", "output_tokens"}:
        return ""
    sent, received = usage.get("input_tokens", 0), usage.get("output_tokens", 0)
    of_sent = _of_which(
        usage,
        {
            "cached_input_tokens": "cached",
            "cache_write_tokens": "into cache",
            "input_audio_tokens": "audio",
            "input_image_tokens": "image",
        },
    )
    of_received = _of_which(
        usage, {"reasoning_tokens": "reasoning", "output_audio_tokens": "audio"}
    )
    return f"{sent:,} in{of_sent}, {received:,} out{of_received}"


def _of_which(usage: Mapping[str, int], words: Mapping[str, str]) -> str:
    found = [f"{usage[unit]:,} {word}" for unit, word in words.items() if usage.get(unit)]
    return f" ({', '.join(found)})" if found else ""


def _counted(unit: str, word: str) -> _Show:
    def show(usage: Mapping[str, int], always: bool) -> str:
        count = usage.get(unit, 0)
        return f"{count:,} {word}{'' if count == 1 else 's'}" if always or count else ""

    return show


def _timed(unit: str, word: str) -> _Show:
    def show(usage: Mapping[str, int], always: bool) -> str:
        return f"{seconds_text(usage.get(unit, 0))} {word}" if always or usage.get(unit) else ""

    return show


_requests: Final = _counted("requests", "request")
_connected: Final = _timed("connected_ms", "connected")
# Where nothing of it was used, the first says so.
_UNITS_SHOWN: Final[Mapping[Modality, tuple[_Show, ...]]] = {
    Modality.STT: (_timed("audio_ms", "audio"), _tokens),
    Modality.LLM: (_tokens,),
    Modality.TTS: (_counted("characters", "character"), _tokens),
    Modality.REALTIME: (
        _tokens,
        _timed("input_audio_ms", "heard"),
        _timed("output_audio_ms", "spoken"),
    ),
    Modality.DECISION: (_tokens,),
    Modality.AVATAR: (_connected,),
    Modality.TELEPHONY: (_connected,),
    Modality.PARTICIPANT: (_connected,),
    Modality.EGRESS: (_connected,),
    Modality.TURN_DETECTION: (_requests,),
    Modality.INTERRUPTION_DETECTION: (_requests,),
    Modality.OTHER: (
        _requests,
        _tokens,
        _counted("characters", "character"),
        _timed("audio_ms", "audio"),
        _connected,
    ),
}

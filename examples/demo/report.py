"""What the demo shows of a call: the ledger leg by leg, and three sums side by side."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table

from examples.demo.bills import Sum, difference_percent
from voicecost_ledger.money import format_usd
from voicecost_ledger.records import Modality
from voicecost_ledger.stores import CallDetail, LegView
from voicecost_sidecar.call_tables import units_text

_PLACES = 6  # of a dollar: a demo call costs cents
_MODALITIES = (Modality.STT, Modality.LLM, Modality.TTS)  # what the demo uses


def ledger_table(call: CallDetail) -> Table:
    """The legs of a call, as the ledger has them."""
    state = f"{call.summary.state}, {call.summary.reason}"
    table = Table(
        title=f"The ledger: call {call.summary.call_id} ({state})",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,  # to the last letter of a price source in 120 columns
    )
    for heading in ("provider", "service", "units", "basis", "outcome"):
        table.add_column(heading, no_wrap=True)
    table.add_column("cost", justify="right", no_wrap=True)
    table.add_column("price source", no_wrap=True)
    for leg in sorted(call.legs, key=lambda leg: leg.started_at_unix_ms):
        table.add_row(
            leg.provider,  # as LiveKit's plugin names it; OpenAI's gives the host
            _service(leg),
            units_text(leg),
            leg.basis,
            leg.outcome or "open",
            format_usd(leg.amount_nano_usd, places=_PLACES),
            leg.pricing_source or "no price known",
        )
    total = call.summary
    unpriced = f" + {total.unpriced_leg_count} unpriced" if total.unpriced_leg_count else ""
    table.add_section()
    table.add_row(
        "",
        "total",
        f"waste {format_usd(total.waste_nano_usd, places=_PLACES)}",
        "",
        "",
        f"[bold]{format_usd(total.total_nano_usd, places=_PLACES)}[/]{unpriced}",
        f"coverage {total.coverage}",
    )
    return table


def comparison_table(sums: Mapping[str, Sum | None], *, reference: str) -> Table:
    """Sums of one call side by side, each with its difference from the one named `reference`.

    A sum that is None could not be had: its row says so.
    """
    table = Table(
        title="The same call, priced alike",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        # Said as it is: what was complete when the caller interrupted, LiveKit counts right.
        caption="LiveKit leaves out what was cut off while it was still being generated.",
        caption_justify="left",
    )
    table.add_column("according to")
    for modality in _MODALITIES:
        table.add_column(modality.upper(), justify="right")
    table.add_column("total", justify="right")
    table.add_column("difference", justify="right")
    of = sums[reference]
    assert of is not None
    for name, amounts in sums.items():
        if amounts is None:
            table.add_row(name, *["nothing"] * len(_MODALITIES), "nothing", "[red]-100.00 %[/]")
            continue
        cells = [
            format_usd(amounts.nano_usd_by_modality.get(modality, 0), places=_PLACES)
            for modality in _MODALITIES
        ]
        total = format_usd(amounts.total_nano_usd, places=_PLACES)
        unpriced = f" + {amounts.unpriced_count} unpriced" if amounts.unpriced_count else ""
        percent = difference_percent(amounts.total_nano_usd, of.total_nano_usd)
        table.add_row(name, *cells, f"[bold]{total}[/]{unpriced}", _difference(percent))
    return table


def ledger_sum(call: CallDetail) -> Sum:
    """The ledger's own sum of a call."""
    return Sum(call.summary.nano_usd_by_modality, call.summary.unpriced_leg_count)


def _service(leg: LegView) -> str:
    if leg.modality is Modality.PARTICIPANT:
        return leg.model  # what LiveKit bills a connection as; with its kind it would be too wide
    return f"{leg.modality.upper()} {leg.model}"


def _difference(percent: float | None) -> str:
    if percent is None:
        return "?"
    colour = "green" if abs(percent) <= 0.5 else "red"
    return f"[{colour}]{percent:+.2f} %[/]"

"""A case's three sums by one price book, and its legs held against the bill one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from examples.demo.bills import Billed, livekit_bill, sum_up
from tests.simulators.bill import BillRow
from voicecost_ledger.pricing import PriceBook
from voicecost_ledger.records import Basis, LegAttributes, Modality
from voicecost_ledger.stores import LegView

MODALITIES: Final[tuple[str, ...]] = ("llm", "tts", "stt", "realtime")
BILLED_UNITS: Final = {
    "llm": ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens"),
    "tts": ("characters",),
    "stt": ("audio_ms",),
    "realtime": (
        "input_tokens",
        "cached_input_tokens",
        "input_audio_tokens",
        "cached_input_audio_tokens",
        "output_tokens",
        "output_audio_tokens",
    ),
    "transcript": ("input_tokens", "input_audio_tokens", "output_tokens"),
}
"""What the simulators bill; transcripts of a realtime session are STT by the token."""


class Miss(msgspec.Struct):
    """An estimated leg beside what was billed for it, unit by unit."""

    billed: dict[str, int]
    ours: dict[str, int]
    margins: dict[str, int]
    outcome: str


class Result(msgspec.Struct, kw_only=True):
    """One case, summed up. Amounts are nano-USD by modality.

    Attributes:
        kind: `call`, or `ending`.
        error: Why the case could not be played; empty if it was.
        billed: As delivered.
        billed_ahead: With half a second generated ahead.
        ours: The ledger's.
        usage: LiveKit's `session.usage`; a killed process leaves none.
        estimated: The part of `ours` that is estimated.
        estimates: The estimated legs.
        wrong: Legs known to the unit that are not what was billed.
        missing: Billed requests without a leg.
        invented: Legs without a billed request.
        unpriced: Legs without a price.
        seconds: How long it took.
    """

    name: str
    kind: str
    error: str = ""
    billed: dict[str, int] = {}
    billed_ahead: dict[str, int] = {}
    ours: dict[str, int] = {}
    usage: dict[str, int] = {}
    estimated: int = 0
    estimates: list[Miss] = []
    wrong: list[str] = []
    missing: list[str] = []
    invented: list[str] = []
    unpriced: int = 0
    seconds: float = 0.0


def compare(
    result: Result,
    *,
    rows: Sequence[BillRow],
    legs: Sequence[LegView],
    usages: Iterable[list[dict[str, Any]]],
    prices: PriceBook,
    at_unix_ms: int,
) -> None:
    """Fill in a case's sums, and what is wrong leg by leg."""
    billed = [(row, _billed(row, row.units)) for row in rows]
    ahead = [_billed(row, row.units_with_generation_ahead()) for row in rows]
    result.billed = _by_modality([each for _, each in billed], prices, at_unix_ms)
    result.billed_ahead = _by_modality(ahead, prices, at_unix_ms)
    for usage in usages:
        for modality, amount in _by_modality(livekit_bill(usage), prices, at_unix_ms).items():
            result.usage[modality] = result.usage.get(modality, 0) + amount
    for leg in legs:
        if leg.amount_nano_usd is None:
            result.unpriced += 1
            continue
        modality = leg.modality.value
        result.ours[modality] = result.ours.get(modality, 0) + leg.amount_nano_usd
        if leg.basis is Basis.ESTIMATED:
            result.estimated += leg.amount_nano_usd
    for kind in BILLED_UNITS:
        _match(
            result,
            kind,
            [
                row
                for row in rows
                if _kind(row.service, row.units) == kind and any(row.units.values())
            ],
            [leg for leg in legs if _kind(leg.modality.value, leg.usage) == kind],
        )


def _kind(service: str, units: dict[str, int]) -> str:
    return "transcript" if service == "stt" and "input_tokens" in units else service


def _match(result: Result, kind: str, rows: Sequence[BillRow], legs: Sequence[LegView]) -> None:
    """Give each leg its row: what is known to the unit by its units, the rest in order."""
    units = BILLED_UNITS[kind]
    open_rows = sorted(rows, key=lambda row: row.started_at_unix_ms)
    estimated: list[LegView] = []
    wrong: list[LegView] = []
    by_units = Counter(_counts(row.units, units) for row in open_rows)
    for leg in legs:
        counts = _counts(leg.usage, units)
        if leg.basis is Basis.ESTIMATED:
            estimated.append(leg)
        elif by_units[counts]:
            by_units[counts] -= 1
            open_rows.remove(next(row for row in open_rows if _counts(row.units, units) == counts))
        elif any(counts):
            wrong.append(leg)
    rest = sorted([*estimated, *wrong], key=lambda leg: leg.started_at_unix_ms)
    while len(rest) > len(open_rows):  # an estimate of nothing, of a request never accepted
        nothing = next((leg for leg in rest if not any(_counts(leg.usage, units))), None)
        if nothing is None:
            break
        rest.remove(nothing)
    for leg, row in zip(rest, open_rows, strict=False):
        if leg.basis is not Basis.ESTIMATED:
            result.wrong.append(
                f"{kind} leg {leg.leg} {leg.basis}: {_counts(leg.usage, units)}"
                f" billed {_counts(row.units, units)}"
            )
            continue
        result.estimates.append(
            Miss(
                billed={unit: row.units.get(unit, 0) for unit in units},
                ours={unit: leg.usage.get(unit, 0) for unit in units},
                margins=dict(getattr(leg, "margins", {})),
                outcome="open" if leg.outcome is None else leg.outcome.value,
            )
        )
    for row in open_rows[len(rest) :]:
        result.missing.append(f"{kind} {row.request_id} {row.ended}: {row.units}")
    for leg in rest[len(open_rows) :]:
        counts = _counts(leg.usage, units)
        result.invented.append(f"{kind} leg {leg.leg} {leg.basis} {leg.outcome}: {counts}")


def _counts(usage: dict[str, int], units: Sequence[str]) -> tuple[int, ...]:
    return tuple(usage.get(unit, 0) for unit in units)


def _billed(row: BillRow, units: dict[str, int]) -> Billed:
    language = str(row.attributes.get("language", ""))
    attributes = LegAttributes(Modality(row.service), row.provider, row.model, language=language)
    return Billed(attributes, dict(units))


def _by_modality(bill: Iterable[Billed], prices: PriceBook, at_unix_ms: int) -> dict[str, int]:
    summed = sum_up(bill, prices, at_unix_ms)
    assert not summed.unpriced_count, "every simulated model has a price"
    return summed.nano_usd_by_modality

"""The same call, summed up three ways with one price book: ledger, provider's bill, LiveKit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from voicecost_ledger.pricing import PriceBook
from voicecost_ledger.records import LegAttributes, Modality


@dataclass(frozen=True)
class Billed:
    """What one request used, by whoever counts: units as in `voicecost_ledger.records.UNITS`."""

    attributes: LegAttributes
    usage: dict[str, int]


@dataclass(frozen=True)
class Sum:
    """A bill's amount per modality in nano-USD; `unpriced_count` requests had no price."""

    nano_usd_by_modality: dict[str, int]
    unpriced_count: int = 0

    @property
    def total_nano_usd(self) -> int:
        """All modalities together, without what is unpriced."""
        return sum(self.nano_usd_by_modality.values())


def sum_up(bill: Iterable[Billed], prices: PriceBook, at_unix_ms: int) -> Sum:
    """Price each request of a bill by the price in force at that time."""
    amounts: dict[str, int] = {}
    unpriced_count = 0
    for billed in bill:
        price = prices.price_for(billed.attributes, at_unix_ms)
        amount_nano_usd = price.rate(billed.usage) if price is not None else None
        if amount_nano_usd is None:
            unpriced_count += 1
        else:
            modality = billed.attributes.modality.value
            amounts[modality] = amounts.get(modality, 0) + amount_nano_usd
    return Sum(amounts, unpriced_count)


def livekit_bill(usage: Iterable[dict[str, Any]]) -> list[Billed]:
    """LiveKit's `session.usage`, as the agent wrote it down when its session closed."""
    bill: list[Billed] = []
    for model in usage:
        counted = _LIVEKIT_UNITS.get(model["type"])
        if counted is None:
            continue
        modality, units = counted
        if any(model.get(f"{side}_audio_tokens") for side in ("input", "output")):
            modality = Modality.REALTIME
        attributes = LegAttributes(modality, model["provider"], model["model"])
        bill.append(Billed(attributes, {unit: read(model) for unit, read in units.items()}))
    return bill


def _audio_ms(model: dict[str, Any]) -> int:
    return round(model["audio_duration"] * 1000)


_LIVEKIT_UNITS = {
    "llm_usage": (
        Modality.LLM,
        {
            "input_tokens": lambda model: model["input_tokens"],
            "cached_input_tokens": lambda model: model["input_cached_tokens"],
            "output_tokens": lambda model: model["output_tokens"],
            "input_audio_tokens": lambda model: model["input_audio_tokens"],
            "cached_input_audio_tokens": lambda model: model["input_cached_audio_tokens"],
            "output_audio_tokens": lambda model: model["output_audio_tokens"],
        },
    ),
    # One duration for both: whichever of the two a price bills by, this is what LiveKit knows.
    "stt_usage": (Modality.STT, {"audio_ms": _audio_ms, "connected_ms": _audio_ms}),
    "tts_usage": (
        Modality.TTS,
        {"characters": lambda model: model["characters_count"], "audio_ms": _audio_ms},
    ),
}


def difference_percent(amount: int, reference: int) -> float | None:
    """How far `amount` is from `reference`, in percent of it; None where the reference is 0."""
    if reference == 0:
        return 0.0 if amount == 0 else None
    return (amount - reference) * 100 / reference

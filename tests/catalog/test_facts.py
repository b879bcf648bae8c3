"""Every price that was found is in the price book, with its source and its day."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import pytest

from voicecost_catalog import ModelPrice, Rate, open_price_book
from voicecost_ledger.records import LegAttributes, Modality

NOW_UNIX_MS = 1_795_305_600_000  # 2026-11-22
PER_UNIT: Final = {
    "per_second": ("ms", 1_000),
    "per_minute": ("ms", 60_000),
    "per_hour": ("ms", 3_600_000),
    "rule": ("ms", 1),
    "per_1k_chars": ("characters", 1_000),
    "per_1m_chars": ("characters", 1_000_000),
    "per_1m_utf8_bytes": ("utf8_bytes", 1_000_000),
    "per_1m_tokens_text_in": ("input_tokens", 1_000_000),
    "per_1m_tokens_text_in_cached": ("cached_input_tokens", 1_000_000),
    "per_1m_tokens_cache_write": ("cache_write_tokens", 1_000_000),
    "per_1m_tokens_text_out": ("output_tokens", 1_000_000),
    "per_1m_tokens_audio_in": ("input_audio_tokens", 1_000_000),
    "per_1m_tokens_audio_in_cached": ("cached_input_audio_tokens", 1_000_000),
    "per_1m_tokens_audio_out": ("output_audio_tokens", 1_000_000),
    "per_1m_tokens_image_in": ("input_image_tokens", 1_000_000),
    "per_1m_tokens_image_in_cached": ("cached_input_image_tokens", 1_000_000),
    "per_message": ("requests", 1),
    "per_event": ("requests", 1),
    "per_month": ("months", 1),
    "per_gb": ("downstream_bytes", 1_000_000_000),
}
# Models billed by tokens that genai-prices knows: we keep no list of our own beside it. What a
# fact calls them, and what LiveKit's plugins do.
BY_GENAI_PRICES: Final = {
    "gpt-realtime-2 / 2.1": ("api.openai.com", "gpt-realtime-2", "gpt-realtime-2.1"),
    "gpt-realtime / 1.5": ("api.openai.com", "gpt-realtime", "gpt-realtime-1.5"),
    "gpt-realtime-mini / 2.1-mini": (
        "api.openai.com", "gpt-realtime-mini", "gpt-realtime-2.1-mini",
    ),
    "gemini-3.8-live / 3.1-flash-live-preview": (
        "Gemini", "gemini-3.8-live", "gemini-3.1-flash-live-preview",
    ),
    "gemini-2.5-flash-native-audio / live-2.5-flash": (
        "Gemini", "gemini-2.5-flash-native-audio-preview-12-2025",
    ),
    "amazon.nova-2-sonic-v1:0": ("Amazon", "amazon.nova-2-sonic-v1:0"),
    "amazon.nova-sonic-v1:0": ("Amazon", "amazon.nova-sonic-v1:0"),
}  # fmt: skip
MODALITIES: Final = {"livekit": {"participant", "telephony", "egress", "stt"}}
PROVIDERS: Final = {"heygen liveavatar": "liveavatar"}


class Fact(NamedTuple):
    """One line of `fixtures/price_facts.jsonl`: what was found, as it was found."""

    provider: str
    modality: str
    kind: str
    model: str
    unit: str
    usd: str
    plan: str
    source_url: str
    source_date: str
    confidence: str
    via: str
    valid_until: str

    @property
    def nano_usd(self) -> tuple[str, Fraction]:
        unit, per = PER_UNIT[self.unit]
        return unit, Fraction(self.usd) * 10**9 / per


FACTS = [
    Fact(*msgspec.json.decode(line, type=list[str]))
    for line in Path(__file__)
    .with_name("fixtures")
    .joinpath("price_facts.jsonl")
    .read_bytes()
    .splitlines()
]
BOOK = open_price_book()


def rates_by_price() -> dict[tuple[str, str, Fraction], list[tuple[ModelPrice, Rate]]]:
    found: dict[Any, list[tuple[ModelPrice, Rate]]] = defaultdict(list)
    for price in BOOK.own_prices():
        for unit, rate in price.rates.items():
            by = "ms" if unit.endswith("_ms") else unit
            found[price.provider, by, Fraction(rate.nano_usd, rate.per)].append((price, rate))
    return found


def is_represented(fact: Fact, price: ModelPrice, rate: Rate) -> bool:
    return (
        price.modality in MODALITIES.get(fact.modality, {fact.modality})
        and fact.kind in (price.kind, rate.kind)
        and fact.plan in ("", price.plan)
        and (rate.source_url, rate.source_date) == (fact.source_url, fact.source_date)
        and (rate.confidence or "", rate.via) == (fact.confidence, fact.via)
        and ("assumed" in fact.valid_until) <= price.assumed
        and bool(fact.valid_until) <= bool(price.valid_until)
    )


def test_every_fact_is_a_rate_with_its_source_and_its_day() -> None:
    rates = rates_by_price()
    missing: list[Fact] = []
    for fact in FACTS:
        provider = PROVIDERS.get(fact.provider, fact.provider)
        found = rates.get((provider, *fact.nano_usd), [])
        if fact.model not in BY_GENAI_PRICES and not any(
            is_represented(fact, price, rate) for price, rate in found
        ):
            missing.append(fact)
    by_genai = sum(fact.model in BY_GENAI_PRICES for fact in FACTS)
    print(f"{len(FACTS)} facts: {by_genai} by genai-prices, {len(missing)} missing")  # noqa: T201 (the count is shown)
    assert len(FACTS) == 463
    assert missing == []


@pytest.mark.parametrize(
    "fact",
    [fact for fact in FACTS if fact.model in BY_GENAI_PRICES],
    ids=lambda fact: f"{fact.model}, {fact.unit}",
)
def test_what_genai_prices_bills_by_tokens_it_bills_as_the_fact_says(fact: Fact) -> None:
    provider, *models = BY_GENAI_PRICES[fact.model]
    unit, nano_usd = fact.nano_usd
    for model in models:
        price = BOOK.price_for(
            LegAttributes(modality=Modality.REALTIME, provider=provider, model=model), NOW_UNIX_MS
        )
        assert price is not None, model
        assert price.pricing_source.startswith("genai-prices@")
        rate = price.rates[unit]
        assert Fraction(rate.nano_usd, rate.per) == nano_usd


def test_the_model_of_a_fact_is_found_where_its_price_is() -> None:
    """No two models with one price hide each other: LiveKit's facts have rows by their names."""
    named = {(price.provider, price.model) for price in BOOK.own_prices()}
    for fact in FACTS:
        if fact.provider == "livekit":
            assert (fact.provider, fact.model) in named

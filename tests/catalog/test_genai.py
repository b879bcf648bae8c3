"""LLM prices: the same to the nano-dollar as genai-prices gives, wherever it gives one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import genai_prices
import pytest
from genai_prices.data import providers as genai_providers
from genai_prices.types import ModelInfo, Provider
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.catalog.example_prices import UNITS_OF_KINDS, usage_of
from voicecost_catalog import ModelPrice, Rule, open_price_book
from voicecost_catalog.explain import explain
from voicecost_catalog.genai import compile_price
from voicecost_ledger.records import LegAttributes, Modality

BOOK = open_price_book(host_aliases={"127.0.0.1:4010": "openai"})
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
NOW_UNIX_MS = 1_795_348_800_000
MODELS = [(provider, model) for provider in genai_providers for model in provider.models]


def llm(model: str, provider: str = "", *, host: str = "", service_tier: str = "") -> LegAttributes:
    return LegAttributes(
        modality=Modality.LLM,
        provider=provider,
        model=model,
        host=host,
        service_tier=service_tier,
    )


def unix_ms(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def ours(provider: Provider, model: ModelInfo, at: datetime) -> ModelPrice | None:
    return compile_price(
        model.get_prices(at), provider=provider.id, model=model.id, source_url="", pricing_source=""
    )


THEIR_NAMES = {
    "input_tokens": "input_tokens",
    "cached_input_tokens": "cache_read_tokens",
    "cache_write_tokens": "cache_write_tokens",
    "input_audio_tokens": "input_audio_tokens",
    "cached_input_audio_tokens": "cache_audio_read_tokens",
    "input_image_tokens": "input_image_tokens",
    "cached_input_image_tokens": "cache_image_read_tokens",
    "output_tokens": "output_tokens",
    "output_audio_tokens": "output_audio_tokens",
}


def theirs_nano_usd(
    provider: Provider,
    model: ModelInfo,
    at: datetime,
    usage: dict[str, int],
    *,
    service_tier: str = "",
) -> int | None:
    """What genai-prices itself makes of it; None where its own arithmetic refuses."""
    listed = prices_then(model, at)
    theirs: dict[str, Any] = {THEIR_NAMES[u]: n for u, n in usage.items() if u in THEIR_NAMES}
    if "audio_hours" in listed:  # of an open connection
        theirs["audio_seconds"] = Decimal(usage["connected_ms"]) / 1_000
    if "input_video_mtok" in listed:  # a part of it, as no leg tells them apart
        theirs["input_video_tokens"] = theirs["input_image_tokens"] // 3
        theirs["input_image_tokens"] -= theirs["input_video_tokens"]
    try:
        usd = model.calc_price(
            genai_prices.Usage(**theirs),
            provider,
            genai_request_timestamp=at,
            price_context={"service_tier": service_tier} if service_tier else None,
        ).total_price
    except ValueError:  # cached audio between two rates, which names no price for it
        return None
    return int((usd * 10**9).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))


def prices_then(model: ModelInfo, at: datetime) -> dict[str, Any]:
    return {key: usd for key, usd in vars(model.get_prices(at)).items() if usd is not None}


def why_unpriced(model: ModelInfo, at: datetime) -> str | None:
    """The explained list: every reason for which we have no price where genai-prices says one."""
    priced = prices_then(model, at).keys()
    if not priced:
        return "lists no price at all: its own sum is zero"
    if priced & {"output_reasoning_mtok", "output_citation_mtok"}:
        return "bills some output tokens apart, which nobody reports apart"
    if not {"input_mtok", "output_mtok"} <= priced:
        return "is no chat model: no price for input or for output tokens"
    if "input_audio_hours" in priced:
        return "bills sound that is sent to it by the hour, which no leg of an LLM counts"
    return None


def why_not_this_variant(when: dict[str, str]) -> str | None:
    """The same for prices that hold only for some requests."""
    if when.keys() == {"service_tier"}:
        return None
    return {
        "processing": "a batch: no conversation is one",
        "speed": "a mode that no plugin of LiveKit's asks for",
        "search_type": "a search that no plugin of LiveKit's asks for",
        "route": "a route that OpenRouter chooses, and no leg tells",
    }[next(iter(when))]


INSTANTS = [
    st.datetimes(
        datetime(*first),  # noqa: DTZ001  hypothesis takes naive bounds beside `timezones`
        datetime(2027, 6, 1),  # noqa: DTZ001  the same
        timezones=st.just(UTC),
    )
    for first in ((2024, 1, 1), (2026, 10, 1))  # the second: when service tiers have prices
]
instants = st.one_of(INSTANTS)
KINDS = (*UNITS_OF_KINDS["input_tokens"], *UNITS_OF_KINDS["output_tokens"], "connected_ms")


@st.composite
def usages(draw: st.DrawFn) -> dict[str, int]:
    """Everything that legs count of a language or realtime model, wholes with their parts."""
    return usage_of(
        {kind: draw(st.one_of(st.just(0), st.integers(0, 3_000_000))) for kind in KINDS}
    )


def expected_nano_usd(theirs: int | None, usage: dict[str, int], price: ModelPrice) -> int | None:
    """Theirs, but where nothing was used there was no request to bill either."""
    used = usage["input_tokens"] or usage["output_tokens"]
    if "requests" in price.rates and not used:
        return 0
    return theirs


@settings(max_examples=20, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(usages(), instants)
@pytest.mark.slow
def test_every_model_costs_what_genai_prices_says(usage: dict[str, int], at: datetime) -> None:
    compared = 0
    for provider, model in MODELS:
        price = ours(provider, model, at)
        assert (price is None) == (why_unpriced(model, at) is not None), (provider.id, model.id)
        if price is not None:
            compared += 1
            expected = expected_nano_usd(theirs_nano_usd(provider, model, at, usage), usage, price)
            assert price.rate(usage) == expected, (provider.id, model.id, usage, at)
    assert compared > len(MODELS) // 2


TIERED = {
    (provider.id, model.id, variant.when["service_tier"]): (provider, model)
    for provider, model in MODELS
    for variant in model.price_variants or ()
    if why_not_this_variant(variant.when) is None
}


@settings(max_examples=20, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(usages(), instants)
@pytest.mark.slow
def test_every_service_tier_costs_what_genai_prices_says(
    usage: dict[str, int], at: datetime
) -> None:
    """Looked up as a leg is. A tier that was not listed yet has no price, and never another's."""
    assert {tier for *_, tier in TIERED} == {"default", "flex", "priority", "fast"}
    for (_, _, tier), (provider, model) in TIERED.items():
        assert provider.find_model(model.id) is model
        leg = llm(model.id, provider.id, service_tier=tier)
        price = BOOK.price_for(leg, unix_ms(at))
        listed = tier == "default" or any(
            variant.when == {"service_tier": tier}
            and (variant.constraint is None or variant.constraint.active(at))
            for variant in model.price_variants or ()
        )
        assert (price is None) == (not listed or why_unpriced(model, at) is not None), model.id
        if price is not None:
            theirs = theirs_nano_usd(provider, model, at, usage, service_tier=tier)
            assert price.rate(usage) == theirs, (provider.id, model.id, tier, usage, at)


def test_a_realtime_model_by_tokens_and_connected_time_has_both_or_no_amount() -> None:
    """Eleven Realtime v1 Max: $0.08 a connected minute, $1.80 and $9.00 a million tokens.

    https://elevenlabs.io/pricing/api, as genai-prices 0.2.3 quotes it. LiveKit's sessions have a
    leg for the connection and one for each response, whose own time is zero.
    """
    leg = llm("eleven_realtime_v1_max", "elevenlabs")
    price = BOOK.price_for(replace(leg, modality=Modality.REALTIME), NOW_UNIX_MS)
    assert price is not None
    connection = {"connected_ms": 90_000, "input_tokens": 0, "output_tokens": 0}
    response = {"connected_ms": 0, "input_tokens": 1_000, "output_tokens": 200}
    assert price.rate(connection) == 120_000_000
    assert price.rate(response) == 1_800_000 + 1_800_000
    assert price.rate(connection | {"input_tokens": 1_000, "output_tokens": 200}) == 123_600_000
    assert price.rate({"input_tokens": 1_000, "output_tokens": 200}) is None
    explained = explain(price, connection)
    assert [step.unit for step in explained.steps if step.rule == "rate"] == ["connected_ms"]


def test_sound_that_a_language_model_bills_by_the_hour_is_never_left_out() -> None:
    """Voxtral bills it beside the tokens, and no leg of an LLM counts it: no price at all."""
    assert BOOK.price_for(llm("voxtral-small-latest", "mistral"), NOW_UNIX_MS) is None
    assert BOOK.price_for(llm("mistral-small-latest", "mistral"), NOW_UNIX_MS) is not None


SPEECH_UNITS = {"audio_hours": ("audio_ms", 3_600_000), "input_mchars": ("characters", 1_000_000)}


def test_what_genai_prices_bills_by_time_or_text_alone_our_rows_bill_as_it_does() -> None:
    """Ours come first, so a change of theirs must not go by unseen."""
    compared: list[str] = []
    for provider, model in MODELS:
        listed = prices_then(model, NOW)
        keys = listed.keys() & SPEECH_UNITS.keys()
        if not keys or "input_mtok" in listed:
            continue
        prices = [
            price
            for modality in (Modality.STT, Modality.TTS, Modality.REALTIME)
            if (
                price := BOOK.price_for(
                    replace(llm(model.id, provider.id), modality=modality), NOW_UNIX_MS
                )
            )
        ]
        assert prices, model.id
        for price in prices:
            for key in keys:
                unit, per = SPEECH_UNITS[key]
                unit = "connected_ms" if price.rule is Rule.SESSION else unit
                assert price.rate({unit: per}) == listed[key] * 10**9, model.id
        compared += [model.id for _ in prices]
    assert len(compared) == len(set(compared)) == 20


def around_every_change() -> Iterator[tuple[Provider, ModelInfo, datetime]]:
    for provider, model in MODELS:
        for price in model.prices if isinstance(model.prices, list) else ():
            day = getattr(price.constraint, "start_date", None)
            if day is not None:
                start = datetime(day.year, day.month, day.day, tzinfo=UTC)
                for ms in (-1, 0, 1):
                    yield provider, model, start + timedelta(milliseconds=ms)
            edges = (
                getattr(price.constraint, "start_time", None),
                getattr(price.constraint, "end_time", None),
            )
            for edge in edges:
                if edge is not None:
                    for ms in (-1, 0, 1):
                        yield (
                            provider,
                            model,
                            datetime.combine(NOW, edge) + timedelta(milliseconds=ms),
                        )


def test_a_dated_or_daily_price_changes_on_the_millisecond() -> None:
    """Looked up through the book, whose memory must not outlive the change."""
    changes = [
        change for change in around_every_change() if change[0].id in ("openai", "deepseek", "groq")
    ]
    assert {model.id for _, model, _ in changes} >= {"deepseek-chat", "deepseek-v4-flash"}
    usage = {"input_tokens": 1_234, "cached_input_tokens": 234, "output_tokens": 567}
    for provider, model, at in changes:
        # Only where the id finds the model again: some ids are shadowed by an earlier pattern.
        if provider.find_model(model.id) is not model or ours(provider, model, at) is None:
            continue
        price = BOOK.price_for(llm(model.id, provider=provider.id), unix_ms(at))
        assert price is not None
        assert price.rate(usage) == theirs_nano_usd(provider, model, at, usage), (model.id, at)


@pytest.mark.parametrize(
    ("leg", "provider", "model"),
    [
        (llm("gpt-4o-mini", "api.openai.com"), "openai", "gpt-4o-mini"),
        (llm("gpt-4o-mini", "api.openai.com", host="api.openai.com"), "openai", "gpt-4o-mini"),
        (llm("gpt-4o-mini-2024-07-18", "api.openai.com"), "openai", "gpt-4o-mini"),
        (llm("GPT-4o-mini", "api.openai.com"), "openai", "gpt-4o-mini"),
        (llm("gpt-4o", "acme.openai.azure.com"), "azure", "gpt-4o"),
        (llm("llama-3.3-70b-versatile", "api.groq.com"), "groq", "llama-3.3-70b-versatile"),
        (llm("sonar", "openai"), None, None),
        (llm("gpt-4o-mini", "openai"), "openai", "gpt-4o-mini"),
        (llm("gpt-4o-mini", "127.0.0.1:4010", host="127.0.0.1"), "openai", "gpt-4o-mini"),
        (llm("gpt-4o-mini", "127.0.0.1:4012", host="127.0.0.1:4012"), None, None),
        (llm("gpt-4o-mini", "vllm.internal"), None, None),
        (llm("gpt-4o-mini", "api.openai.com.evil.example"), None, None),
        (llm("gpt-4o-mini", "eu.api.openai.com"), None, None),
        (llm("openai/gpt-4.1-mini", "livekit"), "livekit", "openai/gpt-4.1-mini"),
        (
            llm("openai/gpt-4.1-mini", "livekit", host="agent-gateway.livekit.cloud"),
            "livekit",
            "openai/gpt-4.1-mini",
        ),
        (llm("openai/gpt-4o-2024-11-20", "livekit"), "openai", "gpt-4o"),
        (llm("gpt-4o", "livekit"), None, None),
        (llm("livekit/livekit/gpt-4o", "livekit"), None, None),
        (llm("gemini-2.5-flash", "Gemini"), "google", "gemini-2.5-flash"),
        (llm("qwen2.5:7b", "ollama"), "ollama", "any model"),
        (llm("qwen2.5:7b", "localhost:11434", host="localhost:11434"), "ollama", "any model"),
        (llm("qwen2.5:7b", "127.0.0.1", host="127.0.0.1:11434"), "ollama", "any model"),
        (llm("gpt-oss:120b-cloud", "", host="localhost:11434"), None, None),
        (llm("qwen2.5:7b", "localhost:8000", host="localhost:8000"), None, None),
        (llm("gpt-4o-mini", "my openai proxy"), None, None),
        (llm("gpt-4o-mini", ""), None, None),
        (llm("", "api.openai.com"), None, None),
        (llm("gpt-99", "api.openai.com"), None, None),
        (llm("text-embedding-3-small", "api.openai.com"), None, None),
        (llm("sonar-pro", "api.perplexity.ai"), "perplexity", "sonar-pro"),
        (llm("mistral-nemo:free", "api.mistral.ai"), None, None),
    ],
    ids=lambda value: f"{value.provider}/{value.model}" if isinstance(value, LegAttributes) else "",
)
def test_the_host_decides_whose_model_it_is(
    leg: LegAttributes, provider: str | None, model: str | None
) -> None:
    price = BOOK.price_for(leg, NOW_UNIX_MS)
    assert (price and price.provider, price and price.model) == (provider, model)


def test_an_openai_call_worked_by_hand() -> None:
    """gpt-4o-mini, $0.15, $0.075 cached and $0.60 a million tokens: openai.com, 2026-10-12."""
    price = BOOK.price_for(llm("gpt-4o-mini", "api.openai.com"), NOW_UNIX_MS)
    assert price is not None
    assert price.pricing_source == f"genai-prices@{genai_prices.__version__}"
    usage = {"input_tokens": 1_000, "cached_input_tokens": 200, "output_tokens": 50}
    assert price.rate(usage) == 800 * 150 + 200 * 75 + 50 * 600
    assert BOOK.restore(price.document()) == price


@pytest.mark.parametrize(
    ("tier", "input_nano_usd"),
    [("", 150), ("default", 150), ("auto", 150), ("priority", 250), ("turbo", None)],
)
def test_a_service_tier_has_its_own_price_or_none(tier: str, input_nano_usd: int | None) -> None:
    leg = llm("gpt-4o-mini", "api.openai.com", service_tier=tier)
    price = BOOK.price_for(leg, NOW_UNIX_MS)
    assert (price and price.rate({"input_tokens": 1})) == input_nano_usd


def test_a_service_tier_nobody_knew_yet_has_no_price() -> None:
    leg = llm("gpt-4o-mini", "api.openai.com", service_tier="priority")
    before = datetime(2026, 10, 11, 23, 59, tzinfo=UTC)
    assert BOOK.price_for(leg, unix_ms(before)) is None
    assert BOOK.price_for(leg, NOW_UNIX_MS) is not None
    assert BOOK.price_for(leg, unix_ms(before)) is None


def test_genai_prices_is_loaded_when_asked_and_its_updater_never_is() -> None:
    """Opening a book is cheap; nothing of genai-prices fetches anything."""
    program = """
import sys, threading
from voicecost_catalog import open_price_book
from voicecost_ledger.records import LegAttributes, Modality
book = open_price_book()
leg = LegAttributes(modality=Modality.STT, provider="Deepgram", model="nova-3")
assert book.price_for(leg, 1_795_305_600_000) is not None
assert not book.ready
assert not any(name.partition(".")[0] in sys.modules for name in (
    "genai_prices", "ruamel", "pydantic", "litestar", "livekit.agents"))
book.warm()
assert book.ready
assert threading.active_count() == 1
from genai_prices.update_prices import _shared_updater
assert _shared_updater.ref_count == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_two_threads_may_ask_at_once() -> None:
    from concurrent.futures import ThreadPoolExecutor

    book = open_price_book()
    leg = llm("gpt-4o-mini", "api.openai.com")
    with ThreadPoolExecutor(8) as pool:
        prices = list(pool.map(lambda _: book.price_for(leg, NOW_UNIX_MS), range(64)))
    assert len({price.price_id for price in prices if price}) == 1
    assert None not in prices

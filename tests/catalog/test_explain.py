"""An explanation is the same arithmetic, told line by line."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicecost_catalog import ModelPrice, open_price_book
from voicecost_catalog.explain import explain
from voicecost_catalog.rates import BILLED_UNITS, OPTIONAL_UNITS, Rate, Rule, Tier
from voicecost_ledger.records import UNITS, LegAttributes, Modality

AT = 1_795_348_800_000  # 2026-11-22


def genai_prices() -> list[ModelPrice]:
    book = open_price_book()
    names = {
        "openai": ("gpt-4.1", "gpt-4o", "gpt-4o-mini", "gpt-4o-realtime-preview", "gpt-realtime"),
        "anthropic": ("claude-opus-4-7", "claude-sonnet-4-6", "claude-haiku-4-5"),
        "google": ("gemini-2.5-flash", "gemini-2.5-pro", "gemini-2.0-flash"),
        "perplexity": ("sonar", "sonar-pro"),
    }
    found = [
        book.price_for(LegAttributes(Modality.LLM, provider, model), AT)
        for provider, models in names.items()
        for model in models
    ]
    return [price for price in found if price is not None]


PRICES = [*open_price_book(genai=False).own_prices(), *genai_prices()]
USAGES = st.dictionaries(
    st.sampled_from(sorted(UNITS)), st.one_of(st.integers(0, 5), st.integers(0, 10**7))
)


@st.composite
def token_prices(draw: st.DrawFn) -> ModelPrice:
    """A language model's price with any of the rates there may be, over one or two tiers."""
    rate = st.builds(Rate, nano_usd=st.integers(0, 10**7), per=st.sampled_from([1, 7, 1000]))
    optional = draw(st.sets(st.sampled_from(["input_audio_tokens", "output_audio_tokens"])))
    optional |= draw(st.sets(st.sampled_from(OPTIONAL_UNITS[Rule.TOKENS][:-1])))
    units = ["input_tokens", "output_tokens", *sorted(optional)]
    tiers = draw(st.lists(st.integers(0, 2000), max_size=2, unique=True))
    return ModelPrice(
        provider="example",
        model="example",
        modality=Modality.LLM,
        rule=Rule.TOKENS,
        pricing_source="test@1",
        rates={unit: draw(rate) for unit in units},
        tiers=tuple(
            Tier(above_input_tokens=above, rates={unit: draw(rate) for unit in units})
            for above in sorted(tiers)
        ),
    )


@st.composite
def token_usages(draw: st.DrawFn) -> dict[str, int]:
    """Parts that fit their wholes, so that most of these have an amount."""

    def part(of: int) -> int:
        return draw(st.one_of(st.just(0), st.integers(0, of)))

    tokens = draw(st.integers(0, 3000))
    output = draw(st.integers(0, 3000))
    audio = part(tokens)
    image = part(tokens - audio)
    written = part(tokens - audio - image)
    audio_cached, image_cached = part(audio), part(image)
    text_cached = part(tokens - audio - image - written)
    usage = {
        "input_tokens": tokens,
        "cached_input_tokens": audio_cached + image_cached + text_cached,
        "cache_write_tokens": written,
        "input_audio_tokens": audio,
        "cached_input_audio_tokens": audio_cached,
        "input_image_tokens": image,
        "cached_input_image_tokens": image_cached,
        "output_tokens": output,
        "output_audio_tokens": part(output),
        "requests": 1,
    }
    dropped = draw(st.sets(st.sampled_from(["requests", "output_audio_tokens"])))
    return {unit: quantity for unit, quantity in usage.items() if unit not in dropped}


def check(price: ModelPrice, usage: dict[str, int]) -> None:
    found = explain(price, usage)
    assert found.amount_nano_usd == price.rate(usage)
    if found.amount_nano_usd is not None:
        lines = [Fraction(step.exact_amount) for step in found.steps if step.rule == "rate"]
        assert round(sum(lines, Fraction(0))) == found.amount_nano_usd
        assert found.steps[-1].rule == "round"
        assert found.steps[-1].quantity == str(found.amount_nano_usd)


@given(st.sampled_from(PRICES), USAGES)
def test_any_usage_of_any_price_is_explained_to_the_nano_dollar(
    price: ModelPrice, usage: dict[str, int]
) -> None:
    check(price, usage)
    billed = {unit for group in BILLED_UNITS[price.rule] for unit in group}
    billed |= {"double_width_characters", "markup_characters", "audio_ms", "characters"}
    check(price, {unit: quantity for unit, quantity in usage.items() if unit in billed})


@given(token_prices(), token_usages())
def test_every_kind_of_token_is_explained_to_the_nano_dollar(
    price: ModelPrice, usage: dict[str, int]
) -> None:
    check(price, usage)


@given(st.sampled_from([p for p in PRICES if p.rule is Rule.TOKENS]), token_usages())
def test_tokens_of_real_prices_are_explained_to_the_nano_dollar(
    price: ModelPrice, usage: dict[str, int]
) -> None:
    check(price, usage)


def test_each_rule_says_what_it_did_and_where_its_rate_is_from() -> None:
    price = ModelPrice(
        provider="example",
        model="stereo",
        modality=Modality.STT,
        rule=Rule.AUDIO,
        pricing_source="test@1",
        rates={
            "audio_ms": Rate(
                nano_usd=60_000_000,
                per=60_000,
                source_url="https://example.com/prices",
                source_date="2026-10-01",
                checked_on="2026-10-02",
            )
        },
        minimum_ms=10_000,
        step_ms=15_000,
        channel_count=2,
    )
    found = explain(price, {"audio_ms": 1_234})
    assert [(step.rule, step.quantity) for step in found.steps] == [
        ("counted", "1234"),
        ("minimum", "10000"),
        ("step", "15000"),
        ("channels", "30000"),
        ("rate", "30000"),
        ("round", "30000000"),
    ]
    rate = found.steps[4].rate
    assert rate is not None
    assert (rate.source_url, rate.source_date) == ("https://example.com/prices", "2026-10-01")


def test_what_cannot_be_known_is_said() -> None:
    price = ModelPrice(
        provider="example",
        model="example",
        modality=Modality.TTS,
        rule=Rule.CHARACTERS,
        pricing_source="test@1",
        rates={"characters": Rate(nano_usd=1_000, per=1)},
    )
    found = explain(price, {"audio_ms": 5})
    assert found.amount_nano_usd is None
    assert "not known" in found.steps[0].detail


@pytest.mark.parametrize("quantity", [-1, True])
def test_a_quantity_that_is_no_count_is_refused_as_by_the_arithmetic(quantity: int) -> None:
    with pytest.raises(ValueError, match="expected a whole number"):
        explain(PRICES[0], dict.fromkeys(UNITS, quantity))

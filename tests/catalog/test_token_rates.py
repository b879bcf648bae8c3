"""Tokens of every kind in one request: text, audio and pictures, each at its own rate."""

from __future__ import annotations

import pytest

from voicecost_catalog import ModelPrice, Rate, Rule, open_price_book
from voicecost_ledger.records import LegAttributes, Modality

LIVE = ModelPrice(
    provider="openai",
    model="a realtime model",
    modality=Modality.REALTIME,
    rule=Rule.TOKENS,
    pricing_source="test",
    rates={
        unit: Rate(nano_usd=nano_usd, per=1)
        for unit, nano_usd in {
            "input_tokens": 4_000,
            "cached_input_tokens": 400,
            "input_audio_tokens": 32_000,
            "cached_input_audio_tokens": 500,
            "input_image_tokens": 5_000,
            "cached_input_image_tokens": 600,
            "output_tokens": 16_000,
            "output_audio_tokens": 64_000,
        }.items()
    },
)


@pytest.mark.parametrize(
    ("usage", "nano_usd"),
    [
        pytest.param({"input_tokens": 10, "output_tokens": 2}, 72_000, id="text"),
        pytest.param(
            {"input_tokens": 10, "input_audio_tokens": 7, "output_tokens": 5,
             "output_audio_tokens": 4},
            3 * 4_000 + 7 * 32_000 + 16_000 + 4 * 64_000,
            id="text and audio",
        ),
        pytest.param(
            {"input_tokens": 10, "input_audio_tokens": 7, "cached_input_tokens": 6,
             "cached_input_audio_tokens": 5},
            2 * 4_000 + 1 * 400 + 2 * 32_000 + 5 * 500,
            id="cached audio is neither cached text nor audio",
        ),
        pytest.param(
            {"input_tokens": 9, "input_image_tokens": 8, "cached_input_tokens": 3,
             "cached_input_image_tokens": 3},
            1 * 4_000 + 5 * 5_000 + 3 * 600,
            id="a picture",
        ),
        pytest.param({"input_tokens": 3, "input_audio_tokens": 4}, None, id="more than the whole"),
        pytest.param(
            {"input_tokens": 9, "input_audio_tokens": 1, "cached_input_audio_tokens": 2,
             "cached_input_tokens": 2},
            None,
            id="more cached audio than audio",
        ),
    ],
)  # fmt: skip
def test_every_kind_of_token_has_its_own_rate(usage: dict[str, int], nano_usd: int | None) -> None:
    assert LIVE.rate(usage) == nano_usd


def test_a_fee_for_each_request_is_one_for_a_leg_that_nobody_counted() -> None:
    """As Perplexity bills: by tokens and by request."""
    rates = {
        "input_tokens": Rate(nano_usd=1_000, per=1),
        "output_tokens": Rate(nano_usd=1_000, per=1),
        "requests": Rate(nano_usd=6_000_000, per=1),
    }
    price = ModelPrice(
        provider="perplexity",
        model="sonar-pro",
        modality=Modality.LLM,
        rule=Rule.TOKENS,
        pricing_source="test",
        rates=rates,
    )
    assert price.rate({"input_tokens": 100, "output_tokens": 10}) == 6_110_000
    assert price.rate({"input_tokens": 100, "output_tokens": 10, "requests": 2}) == 12_110_000
    assert price.rate({"input_tokens": 0, "output_tokens": 0}) == 0


@pytest.mark.parametrize(
    ("provider", "host", "model", "unit"),
    [
        ("OpenAI", "api.openai.com", "gpt-realtime", "output_audio_tokens"),
        ("OpenAI", "api.openai.com", "gpt-live-1", "connected_ms"),
        ("Gemini", "", "gemini-2.5-flash-native-audio-preview-12-2025", "input_audio_tokens"),
        ("Amazon", "", "amazon.nova-2-sonic-v1:0", "output_audio_tokens"),
        ("api.x.ai", "api.x.ai", "grok-voice-latest", "connected_ms"),
        ("Ultravox", "", "fixie-ai/ultravox", "connected_ms"),
    ],
)
def test_a_realtime_model_is_priced_by_what_its_provider_bills(
    provider: str, host: str, model: str, unit: str
) -> None:
    leg = LegAttributes(Modality.REALTIME, provider, model, host=host)
    price = open_price_book().price_for(leg, 1_795_348_800_000)
    assert price is not None
    assert unit in price.rates

"""Add-ons: what an option costs on top of the model, where its provider bills it apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicecost_catalog import open_price_book
from voicecost_catalog.explain import explain
from voicecost_catalog.override_file import read_prices
from voicecost_catalog.rates import Rate, Rule, restore_price
from voicecost_ledger.records import LegAttributes, Modality

NOW_UNIX_MS = 1_795_305_600_000  # 2026-11-22
BOOK = open_price_book()
MINUTE = {"audio_ms": 60_000, "connected_ms": 60_000}
ALL = ("diarization", "keyterms", "redaction")


def stt(*addons: str, provider: str = "Deepgram", **kwargs: object) -> LegAttributes:
    model = "nova-3" if provider == "Deepgram" else "universal-streaming-english"
    return LegAttributes(Modality.STT, provider, model, addons=addons, **kwargs)  # pyright: ignore[reportArgumentType]  # fields of LegAttributes


@pytest.mark.parametrize(
    ("leg", "amount_nano_usd"),
    [
        pytest.param(stt(), 4_800_000, id="nova-3: $0.0048"),
        pytest.param(stt("keyterms"), 6_100_000, id="with key terms: $0.0013 more"),
        pytest.param(stt("redaction"), 6_800_000, id="with redaction: $0.0020 more"),
        pytest.param(stt("diarization"), 6_800_000, id="with diarization: $0.0020 more"),
        pytest.param(stt(*ALL), 10_100_000, id="with all three"),
        pytest.param(stt(*ALL, channel_count=2), 20_200_000, id="and both channels"),
        pytest.param(stt(*ALL, language="multi"), 11_100_000, id="and in any language"),
        pytest.param(stt(*ALL, streaming=False), 4_300_000, id="a recording has no add-ons"),
        pytest.param(stt("smart_format"), 4_800_000, id="an option that nobody bills"),
        pytest.param(stt(provider="AssemblyAI"), 2_500_000, id="AssemblyAI: $0.15 an hour"),
        pytest.param(
            stt("diarization", provider="AssemblyAI"), 4_500_000, id="with speakers: $0.12 more"
        ),
    ],
)
def test_options_that_are_on_cost_what_the_price_list_says(
    leg: LegAttributes, amount_nano_usd: int
) -> None:
    price = BOOK.price_for(leg, NOW_UNIX_MS)
    assert price is not None
    assert price.rate(MINUTE) == amount_nano_usd
    assert restore_price(price.document()) == price
    assert all(rate.source_url.startswith("https://") for rate in price.addons.values())


def test_an_option_that_nobody_bills_is_the_same_price() -> None:
    plain, optioned = (BOOK.price_for(leg, NOW_UNIX_MS) for leg in (stt(), stt("smart_format")))
    assert plain == optioned


@given(
    st.lists(st.sampled_from(ALL), unique=True),
    st.integers(0, 2**40),
    st.integers(1, 4),
)
def test_the_parts_are_rounded_once_together(
    addons: list[str], audio_ms: int, channel_count: int
) -> None:
    price = BOOK.price_for(stt(*addons, channel_count=channel_count), NOW_UNIX_MS)
    assert price is not None
    explained = explain(price, {"audio_ms": audio_ms})
    assert explained.amount_nano_usd == price.rate({"audio_ms": audio_ms})
    rated = [step.detail for step in explained.steps if step.rule == "rate"]
    assert len(rated) == 1 + len(addons)
    assert all(
        detail.endswith(f" (for {addon})") for detail, addon in zip(rated[1:], addons, strict=True)
    )


CONTRACT = """
prices:
  discounts: {deepgram: 50}
  rows:
    - provider: deepgram
      model: key terms by contract
      modality: stt
      match: ["nova-*"]
      kind: addon
      addon: keyterms
      rule: audio
      rates: {audio_ms: {usd: "0.001", per: minute}}
"""


def test_a_contract_may_have_a_price_of_its_own_for_an_option(tmp_path: Path) -> None:
    """The discount is off the price list, its add-ons too, and not off the contract's own rows."""
    file = tmp_path / "voicecost.yaml"
    file.write_text(CONTRACT)
    book = open_price_book(overrides=read_prices(file).overrides)
    price = book.price_for(stt("keyterms", "redaction"), NOW_UNIX_MS)
    assert price is not None
    assert price.rate(MINUTE) == 2_400_000 + 1_000_000 + 1_000_000
    assert price.pricing_source.startswith("config@")


BY_TOKENS = """\
    - provider: deepgram
      model: by-tokens
      modality: stt
      rule: tokens
      rates: {input_audio_tokens: {usd: 1, per: million}, output_tokens: {usd: 2, per: million}}
"""


@pytest.mark.parametrize("model", ["nova-3", "by-tokens"])
def test_an_option_billed_by_what_its_model_is_not_makes_the_price_unknown(
    tmp_path: Path, model: str
) -> None:
    file = tmp_path / "voicecost.yaml"
    by_time = CONTRACT.replace("rule: audio", "rule: session").replace("audio_ms", "connected_ms")
    file.write_text(by_time.replace('"nova-*"', '"*"') + BY_TOKENS)
    book = open_price_book(overrides=read_prices(file).overrides)
    with_terms = LegAttributes(Modality.STT, "Deepgram", model, addons=("keyterms",))
    without = LegAttributes(Modality.STT, "Deepgram", model)
    assert book.price_for(with_terms, NOW_UNIX_MS) is None
    assert book.price_for(without, NOW_UNIX_MS) is not None


def test_add_ons_are_listed_with_the_model_they_come_on_top_of() -> None:
    listed = BOOK.prices_of("deepgram/nova-3", NOW_UNIX_MS)
    on_top = [price.model for price in listed if price.kind == "addon"]
    assert on_top == [
        "addon: keyterm prompting",
        "addon: redaction",
        "addon: speaker diarization",
        "addon: entity detection",
    ]
    assert all(price.rule is Rule.AUDIO for price in listed)


def test_tokens_have_no_add_ons() -> None:
    (price,) = BOOK.prices_of("openai/gpt-4o-mini", NOW_UNIX_MS)
    with pytest.raises(ValueError, match="add-ons are for what is billed by one unit"):
        type(price)(
            provider="openai",
            model="gpt-4o-mini",
            modality=Modality.LLM,
            rule=Rule.TOKENS,
            pricing_source="test",
            rates=price.rates,
            addons={"thinking": Rate(nano_usd=1, per=1)},
        )

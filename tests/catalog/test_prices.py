"""What a price is: complete, checked, told apart by its id, and no float anywhere."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import voicecost_catalog
from tests.catalog.example_prices import (
    AURA_2,
    AZURE,
    FISH,
    LONG_CONTEXT,
    MINI,
    NOVA_3,
    NOVA_3_STEREO,
    POLLY,
    REALTIME,
    RESEMBLE,
    SOCKET,
    TRANSCRIBE,
    price,
    usd_per_million,
)
from voicecost_catalog import Rate, Rule, Tier
from voicecost_catalog.rates import Derived, restore_price
from voicecost_ledger.pricing import Price
from voicecost_ledger.records import Modality


def test_the_id_is_of_everything_that_changes_an_amount() -> None:
    rates = MINI.rates
    others = [
        MINI,
        price(Rule.TOKENS, {**rates, "output_tokens": usd_per_million("0.61")}),
        price(Rule.TOKENS, {k: v for k, v in rates.items() if k != "cached_input_tokens"}),
        price(Rule.TOKENS, rates, tiers=(Tier(above_input_tokens=5, rates=rates),)),
        price(Rule.TOKENS, rates, tiers=(Tier(above_input_tokens=6, rates=rates),)),
        NOVA_3,
        NOVA_3_STEREO,
        price(Rule.AUDIO, NOVA_3.rates, minimum_ms=1),
        price(Rule.AUDIO, NOVA_3.rates, step_ms=2),
        price(Rule.AUDIO, NOVA_3.rates, derived=RESEMBLE.derived),
        AZURE,
        POLLY,
        REALTIME,
        price(Rule.CHARACTERS, AZURE.rates),
    ]
    assert len({of.price_id for of in others}) == len(others)
    assert price(Rule.TOKENS, dict(reversed(rates.items()))).price_id == MINI.price_id


def test_a_document_that_was_altered_is_refused() -> None:
    cheaper = NOVA_3.document().replace(b"4800000", b"4800")
    with pytest.raises(ValueError, match=f"price '{NOVA_3.price_id}' was altered"):
        restore_price(cheaper)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (b"not json", "cannot be read"),
        (AURA_2.document().replace(b'"characters"}', b'"by_mood"}'), "newer voicecost"),
        (AURA_2.document().replace(b'{"mod', b'{"mood":1,"mod'), "newer voicecost"),
    ],
    ids=["no JSON", "a rule of the future", "a field of the future"],
)
def test_a_document_that_is_not_understood_is_refused(document: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        restore_price(document)


@pytest.mark.parametrize(
    ("rule", "rates", "says"),
    [
        (Rule.TOKENS, {"input_tokens": Rate(nano_usd=1, per=1)}, "'output_tokens', which has no"),
        (
            Rule.AUDIO,
            {"audio_ms": Rate(nano_usd=1, per=1), "prompt_characters": Rate(nano_usd=1, per=1)},
            "does not bill 'prompt_characters': expected audio_ms",
        ),
    ],
    ids=["a billed unit without a rate", "a rate for a raw count"],
)
def test_a_price_covers_exactly_what_its_rule_bills(
    rule: Rule, rates: dict[str, Rate], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        price(rule, rates)


@pytest.mark.parametrize(
    ("rule", "rates", "settings", "says"),
    [
        (Rule.CHARACTERS, AURA_2.rates, {"minimum_ms": 5}, "for audio and session only"),
        (Rule.AUDIO, NOVA_3.rates, {"step_ms": 0}, "step_ms=0: expected at least 1"),
        (Rule.AUDIO, NOVA_3.rates, {"minimum_ms": -1}, "minimum_ms=-1"),
        (Rule.AUDIO, NOVA_3.rates, {"free_markup": True}, "for characters only"),
        (Rule.BYTES, FISH.rates, {"double_width_weight": 2}, "for characters only"),
        (Rule.SESSION, SOCKET.rates, {"channel_count": 2}, "channel_count is for audio only"),
        (
            Rule.CHARACTERS, AURA_2.rates,
            {"derived": {"characters": Derived(of="audio_ms", count=1, per=80)}},
            "'characters' derived of 'audio_ms'",
        ),
        (
            Rule.TOKENS, TRANSCRIBE.rates,
            {"derived": {"input_tokens": Derived(of="audio_ms", count=1, per=80)}},
            "of one without",
        ),
        (
            Rule.TOKENS, TRANSCRIBE.rates,
            {"tiers": LONG_CONTEXT.tiers, "modality": Modality.STT},
            "for language models only",
        ),
        (Rule.TOKENS, TRANSCRIBE.rates, {"tiers": LONG_CONTEXT.tiers}, "for language models only"),
        (
            Rule.TOKENS,
            {**REALTIME.rates, "connected_ms": Rate(nano_usd=1, per=1)},
            {"modality": Modality.TTS},
            "for language models only",
        ),
    ],
)  # fmt: skip
def test_a_setting_that_the_rule_would_pass_over_is_refused(
    rule: Rule, rates: dict[str, Rate], settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        price(rule, rates, **settings)


@pytest.mark.parametrize(("nano_usd", "per"), [(-1, 1), (1, 0)])
def test_a_negative_or_endless_rate_is_refused(nano_usd: int, per: int) -> None:
    with pytest.raises(ValueError, match="is no price"):
        Rate(nano_usd=nano_usd, per=per)


def test_prices_are_what_the_ledger_asks_for() -> None:
    of: Price = NOVA_3
    assert of.pricing_source == "test@1"


MODULES = sorted(Path(voicecost_catalog.__file__).parent.glob("*.py"))
# What `/` does there: joins a path, or divides exactly, to be read and never to be added up.
DIVIDES = {"compile": "Path", "explain": "Fraction", "listing": "Decimal"}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_no_float_is_written_where_money_is_counted(module: Path) -> None:
    for node in ast.walk(ast.parse(module.read_text())):
        assert not (isinstance(node, ast.Constant) and type(node.value) is float), module
        assert not (isinstance(node, ast.Name) and node.id == "float"), module
        assert not isinstance(node, ast.Div) or module.stem in DIVIDES, module
        assert not (isinstance(node, ast.Attribute) and node.attr in ("timestamp", "total_seconds"))

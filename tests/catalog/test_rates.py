"""The arithmetic: worked examples first, then what holds for every price and every usage."""

from __future__ import annotations

import ast
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import voicecost_catalog
from voicecost_catalog import ModelPrice, Rate, Rule, Tier
from voicecost_catalog.rates import restore_price
from voicecost_ledger.pricing import Price
from voicecost_ledger.records import Modality


def price(
    rule: Rule, rates: dict[str, Rate], *, tiers: tuple[Tier, ...] = (), channel_count: int = 1
) -> ModelPrice:
    modality = {Rule.AUDIO: Modality.STT, Rule.CHARACTERS: Modality.TTS, Rule.TOKENS: Modality.LLM}
    return ModelPrice(
        provider="example",
        model="example",
        modality=modality[rule],
        rule=rule,
        pricing_source="test@1",
        rates=rates,
        tiers=tiers,
        channel_count=channel_count,
    )


def usd_per_million(usd: str) -> Rate:
    return Rate(nano_usd=int(Fraction(usd) * 10**9), per=1_000_000)


NOVA_3 = price(Rule.AUDIO, {"audio_ms": Rate(nano_usd=4_800_000, per=60_000)})
NOVA_3_STEREO = price(
    Rule.AUDIO, {"audio_ms": Rate(nano_usd=4_800_000, per=60_000)}, channel_count=2
)
NOVA_2 = price(Rule.AUDIO, {"audio_ms": Rate(nano_usd=350_000_000, per=3_600_000)})
AURA_2 = price(Rule.CHARACTERS, {"characters": Rate(nano_usd=30_000_000, per=1_000)})
MINI = price(
    Rule.TOKENS,
    {
        "input_tokens": usd_per_million("0.15"),
        "cached_input_tokens": usd_per_million("0.075"),
        "output_tokens": usd_per_million("0.6"),
    },
)
UNCACHED = price(
    Rule.TOKENS,
    {"input_tokens": usd_per_million("2.5"), "output_tokens": usd_per_million("10")},
)
LONG_CONTEXT = price(
    Rule.TOKENS,
    {"input_tokens": usd_per_million("3"), "output_tokens": usd_per_million("15")},
    tiers=(
        Tier(
            above_input_tokens=200_000,
            rates={"input_tokens": usd_per_million("6"), "output_tokens": usd_per_million("22.5")},
        ),
    ),
)
FREE = price(Rule.CHARACTERS, {"characters": Rate(nano_usd=0, per=1)})


@pytest.mark.parametrize(
    ("of", "usage", "amount_nano_usd"),
    [
        pytest.param(NOVA_3, {"audio_ms": 60_000}, 4_800_000, id="a minute of audio: $0.0048"),
        pytest.param(NOVA_3, {"audio_ms": 1}, 80, id="a millisecond of it"),
        pytest.param(NOVA_3_STEREO, {"audio_ms": 60_000}, 9_600_000, id="two channels: twice"),
        pytest.param(NOVA_2, {"audio_ms": 60_000}, 5_833_333, id="$0.35 an hour, one minute"),
        pytest.param(NOVA_2, {"audio_ms": 18}, 1_750, id="18 ms at $0.35 an hour: exact"),
        pytest.param(NOVA_2, {"audio_ms": 36 * 3}, 10_500, id="no step, no minimum"),
        pytest.param(AURA_2, {"characters": 1_000}, 30_000_000, id="1,000 characters: $0.030"),
        pytest.param(AURA_2, {"characters": 17}, 510_000, id="by the single character"),
        pytest.param(
            AURA_2, {"characters": 17, "utf8_bytes": 40, "audio_ms": 900}, 510_000,
            id="what is not billed beside it costs nothing",
        ),
        pytest.param(
            MINI, {"input_tokens": 1_000, "cached_input_tokens": 200, "output_tokens": 50}, 165_000,
            id="cached tokens are a part of the input: 800 x 150 + 200 x 75 + 50 x 600",
        ),
        pytest.param(MINI, {"input_tokens": 1_000}, 150_000, id="a prompt without an answer yet"),
        pytest.param(
            MINI, {"input_tokens": 10, "prompt_characters": 40, "completion_chunks": 9}, 1_500,
            id="raw counts are never priced",
        ),
        pytest.param(
            UNCACHED, {"input_tokens": 1_000, "cached_input_tokens": 400}, 2_500_000,
            id="no rate for cached input: it costs what any input costs",
        ),
        pytest.param(
            LONG_CONTEXT, {"input_tokens": 200_000, "output_tokens": 1_000}, 615_000_000,
            id="at the edge of a context tier: the base rates",
        ),
        pytest.param(
            LONG_CONTEXT, {"input_tokens": 200_001, "output_tokens": 1_000}, 1_222_506_000,
            id="one token more: the tier's rates for all of it",
        ),
        pytest.param(FREE, {"characters": 10**6}, 0, id="free is a known zero"),
        pytest.param(NOVA_3, {}, 0, id="nothing used yet"),
        pytest.param(NOVA_3, {"connected_ms": 5_000}, 0, id="an open socket sent nothing yet"),
        pytest.param(AURA_2, {"audio_ms": 900}, None, id="speech whose characters nobody counted"),
        pytest.param(FREE, {"audio_ms": 900}, None, id="free of what, is not known either"),
        pytest.param(MINI, {"prompt_characters": 40}, None, id="a prompt nobody counted in tokens"),
        pytest.param(MINI, {"output_tokens": 9}, None, id="an answer to no prompt"),
        pytest.param(
            MINI, {"input_tokens": 5, "cached_input_tokens": 6}, None,
            id="more cached than there was",
        ),
    ],
)  # fmt: skip
def test_worked_examples(
    of: ModelPrice, usage: dict[str, int], amount_nano_usd: int | None
) -> None:
    assert of.rate(usage) == amount_nano_usd


@pytest.mark.parametrize(
    ("half_nano_usd", "amount"), [(1, 0), (3, 2), (5, 2), (7, 4)], ids=lambda v: str(v)
)
def test_half_a_nano_dollar_goes_to_the_even_one(half_nano_usd: int, amount: int) -> None:
    halves = price(Rule.CHARACTERS, {"characters": Rate(nano_usd=1, per=2)})
    assert halves.rate({"characters": half_nano_usd}) == amount


def test_three_parts_of_a_request_are_rounded_once_together() -> None:
    """Rounded apart, 0.5 + 0.5 would come to 0."""
    half = Rate(nano_usd=1, per=2)
    of = price(Rule.TOKENS, {"input_tokens": half, "output_tokens": half})
    assert of.rate({"input_tokens": 1, "output_tokens": 1}) == 1


@pytest.mark.parametrize("quantity", [-1, 1.5, True], ids=repr)
def test_a_quantity_that_is_no_whole_count_is_refused(quantity: int) -> None:
    for of, unit in ((NOVA_3, "audio_ms"), (AURA_2, "characters"), (MINI, "output_tokens")):
        with pytest.raises(ValueError, match=f"cannot price {unit}={quantity}"):
            of.rate({"input_tokens": 1, unit: quantity})


quantities = st.integers(0, 2**40)
ratios = st.builds(
    Rate, nano_usd=st.integers(0, 10**12), per=st.sampled_from([1, 3, 1_000, 60_000, 10**6, 10**9])
)


@st.composite
def prices(draw: st.DrawFn) -> ModelPrice:
    rule = draw(st.sampled_from(list(Rule)))
    if rule is Rule.AUDIO:
        return price(rule, {"audio_ms": draw(ratios)}, channel_count=draw(st.integers(1, 8)))
    if rule is Rule.CHARACTERS:
        return price(rule, {"characters": draw(ratios)})
    rates = {"input_tokens": draw(ratios), "output_tokens": draw(ratios)}
    if draw(st.booleans()):
        rates["cached_input_tokens"] = draw(ratios)
    dearer = {unit: Rate(nano_usd=rate.nano_usd * 2, per=rate.per) for unit, rate in rates.items()}
    start = draw(st.integers(0, 10**6))
    tiers = (Tier(above_input_tokens=start, rates=dearer),) if draw(st.booleans()) else ()
    return price(rule, rates, tiers=tiers)


usages = st.fixed_dictionaries(
    {
        "audio_ms": quantities,
        "characters": quantities,
        "input_tokens": quantities,
        "output_tokens": quantities,
    }
)


def exact_nano_usd(of: ModelPrice, usage: dict[str, int]) -> Fraction:
    """The same sum in fractions: slow, and plain to see."""
    rates = of.rates
    for tier in of.tiers:
        if usage["input_tokens"] > tier.above_input_tokens:
            rates = tier.rates
    counts = {
        unit: quantity * of.channel_count for unit, quantity in usage.items() if unit in rates
    }
    if "input_tokens" in counts:
        cached = usage.get("cached_input_tokens", 0)
        counts["input_tokens"] -= cached
        counts["cached_input_tokens"] = cached
    return sum(
        (
            Fraction(count * rate.nano_usd, rate.per)
            for unit, count in counts.items()
            if (rate := rates.get(unit, rates.get("input_tokens"))) is not None
        ),
        Fraction(),
    )


@given(prices(), usages, st.integers(0, 100))
def test_the_amount_is_the_exact_sum_rounded_half_even(
    of: ModelPrice, usage: dict[str, int], cached_percent: int
) -> None:
    usage["cached_input_tokens"] = usage["input_tokens"] * cached_percent // 100
    amount = of.rate(usage)
    assert type(amount) is int
    assert amount == round(exact_nano_usd(of, usage))  # Fraction rounds half to even


@given(prices(), st.lists(usages, min_size=1, max_size=6))
def test_posted_parts_sum_to_the_rate_of_the_total(
    of: ModelPrice, increments: list[dict[str, int]]
) -> None:
    """However often a leg is posted, and in steps however small."""
    total = dict.fromkeys(increments[0], 0)
    posted: list[int] = []
    for increment in increments:
        total = {unit: total[unit] + count // 8 for unit, count in increment.items()}
        amount = of.rate(total)
        assert amount is not None
        posted.append(amount - sum(posted))
    assert sum(posted) == of.rate(total)
    assert all(part >= 0 for part in posted)  # using more never costs less


@given(prices())
def test_a_stored_price_comes_back_equal(of: ModelPrice) -> None:
    restored = restore_price(of.document())
    assert restored == of
    assert restored.price_id == of.price_id
    assert restored.document() == of.document()


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
        (AURA_2.document().replace(b'{"mod', b'{"minimum":1,"mod'), "newer voicecost"),
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


@pytest.mark.parametrize(("nano_usd", "per"), [(-1, 1), (1, 0)])
def test_a_negative_or_endless_rate_is_refused(nano_usd: int, per: int) -> None:
    with pytest.raises(ValueError, match="is no price"):
        Rate(nano_usd=nano_usd, per=per)


def test_prices_are_what_the_ledger_asks_for() -> None:
    of: Price = NOVA_3
    assert of.pricing_source == "test@1"


@pytest.mark.parametrize("module", ["rates", "rows", "book", "genai"])
def test_no_float_is_written_where_money_is_counted(module: str) -> None:
    source = (Path(voicecost_catalog.__file__).parent / f"{module}.py").read_text()
    for node in ast.walk(ast.parse(source)):
        assert not (isinstance(node, ast.Constant) and type(node.value) is float), module
        assert not isinstance(node, ast.Div), module
        assert not (isinstance(node, ast.Name) and node.id == "float"), module

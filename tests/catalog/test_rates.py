"""The arithmetic: worked examples first, then what holds for every price and every usage."""

from __future__ import annotations

import ast
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import voicecost_catalog
from voicecost_catalog import ModelPrice, Rate, Rule, Tier
from voicecost_catalog.rates import BILLED_UNITS, Derived, restore_price
from voicecost_ledger.pricing import Price
from voicecost_ledger.records import Modality


def price(rule: Rule, rates: dict[str, Rate], **kwargs: Any) -> ModelPrice:
    modality = {Rule.CHARACTERS: Modality.TTS, Rule.BYTES: Modality.TTS, Rule.TOKENS: Modality.LLM}
    return ModelPrice(
        provider="example",
        model="example",
        modality=kwargs.pop("modality", modality.get(rule, Modality.STT)),
        rule=rule,
        pricing_source="test@1",
        rates=rates,
        **kwargs,
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
PER_MINUTE = Rate(nano_usd=60_000_000, per=60_000)  # $0.06 a minute: a thousand nano-USD per ms
GROQ = price(Rule.AUDIO, {"audio_ms": PER_MINUTE}, minimum_ms=10_000)
GROQ_STEREO = price(Rule.AUDIO, {"audio_ms": PER_MINUTE}, minimum_ms=10_000, channel_count=2)
BY_THE_MINUTE = price(Rule.AUDIO, {"audio_ms": PER_MINUTE}, step_ms=60_000)
SIX_SECONDS = price(Rule.AUDIO, {"audio_ms": PER_MINUTE}, step_ms=6_000, minimum_ms=6_000)
FIFTEEN_SECONDS = price(Rule.AUDIO, {"audio_ms": PER_MINUTE}, step_ms=15_000)
SOCKET = price(Rule.SESSION, {"connected_ms": PER_MINUTE})
INFERENCE = price(Rule.SESSION, {"connected_ms": PER_MINUTE}, minimum_ms=1_000, step_ms=1_000)
AZURE = price(Rule.CHARACTERS, {"characters": Rate(nano_usd=1_000, per=1)}, double_width_weight=2)
POLLY = price(Rule.CHARACTERS, {"characters": Rate(nano_usd=1_000, per=1)}, free_markup=True)
FISH = price(Rule.BYTES, {"utf8_bytes": Rate(nano_usd=15, per=1)})
RESEMBLE = price(
    Rule.AUDIO,
    {"audio_ms": PER_MINUTE},
    modality=Modality.TTS,
    derived={"audio_ms": Derived(of="characters", count=80, per=1)},
)
TRANSCRIBE = price(
    Rule.TOKENS,
    {
        "input_audio_tokens": usd_per_million("6"),
        "input_tokens": usd_per_million("2.5"),
        "output_tokens": usd_per_million("10"),
        "audio_ms": Rate(nano_usd=6_000_000, per=60_000),
    },
    modality=Modality.STT,
)
MINI_TTS = price(
    Rule.TOKENS,
    {
        "input_tokens": usd_per_million("0.6"),
        "output_audio_tokens": usd_per_million("12"),
        "audio_ms": Rate(nano_usd=15_000_000, per=60_000),
    },
    modality=Modality.TTS,
)
SONIOX = price(
    Rule.TOKENS,
    {
        "input_audio_tokens": usd_per_million("2"),
        "input_tokens": usd_per_million("4"),
        "output_tokens": usd_per_million("4"),
    },
    modality=Modality.STT,
    derived={
        "input_audio_tokens": Derived(of="audio_ms", count=30_000, per=3_600_000),
        "output_tokens": Derived(of="audio_ms", count=15_000, per=3_600_000),
    },
)
GEMINI_LIVE = price(
    Rule.TOKENS,
    {
        "input_audio_tokens": usd_per_million("3.5"),
        "input_tokens": usd_per_million("3.5"),
        "output_tokens": usd_per_million("21"),
    },
    modality=Modality.STT,
    derived={"input_audio_tokens": Derived(of="audio_ms", count=25, per=1_000)},
)
GEMINI_TTS = price(
    Rule.TOKENS,
    {"input_tokens": usd_per_million("0.5"), "output_audio_tokens": usd_per_million("10")},
    modality=Modality.TTS,
    derived={
        "input_tokens": Derived(of="characters", count=1, per=4),
        "output_audio_tokens": Derived(of="audio_ms", count=25, per=1_000),
    },
)
REALTIME = price(
    Rule.TOKENS,
    {
        "input_tokens": usd_per_million("4"),
        "cached_input_tokens": usd_per_million("0.4"),
        "input_audio_tokens": usd_per_million("32"),
        "output_tokens": usd_per_million("16"),
        "output_audio_tokens": usd_per_million("64"),
    },
)
TEXT = {"characters": 10, "utf8_bytes": 22, "double_width_characters": 6, "markup_characters": 3}
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
        # Time: minimum a request, begun steps, the open socket
        pytest.param(GROQ, {"audio_ms": 1}, 10_000_000, id="a millisecond of ten seconds"),
        pytest.param(GROQ, {"audio_ms": 10_000}, 10_000_000, id="just the minimum"),
        pytest.param(GROQ, {"audio_ms": 10_001}, 10_001_000, id="above the minimum, no step"),
        pytest.param(GROQ, {"audio_ms": 0}, 0, id="no minimum for a refused request"),
        pytest.param(GROQ, {}, 0, id="nor for one that was not sent yet"),
        pytest.param(GROQ, {"characters": 5}, None, id="a recording nobody measured"),
        pytest.param(GROQ_STEREO, {"audio_ms": 1}, 20_000_000, id="a minimum for each channel"),
        pytest.param(BY_THE_MINUTE, {"audio_ms": 1}, 60_000_000, id="60/60: 1 ms is a minute"),
        pytest.param(BY_THE_MINUTE, {"audio_ms": 60_000}, 60_000_000, id="60/60: a whole one"),
        pytest.param(BY_THE_MINUTE, {"audio_ms": 60_001}, 120_000_000, id="60/60: 70 s are 2 min"),
        pytest.param(SIX_SECONDS, {"audio_ms": 6_001}, 12_000_000, id="6/6"),
        pytest.param(FIFTEEN_SECONDS, {"audio_ms": 31_000}, 45_000_000, id="per 15 s"),
        pytest.param(
            SOCKET, {"audio_ms": 9_000, "connected_ms": 60_000}, 60_000_000,
            id="an open socket costs in silence too",
        ),
        pytest.param(SOCKET, {"connected_ms": 0}, 0, id="not connected yet"),
        pytest.param(SOCKET, {"audio_ms": 9_000}, None, id="nobody saw when it was opened"),
        pytest.param(INFERENCE, {"connected_ms": 40}, 1_000_000, id="at least a second"),
        pytest.param(INFERENCE, {"connected_ms": 1_001}, 2_000_000, id="a begun second is whole"),
        # Text: what a character is
        pytest.param(AZURE, TEXT, 16_000, id="six of ten characters count twice"),
        pytest.param(AZURE, {"characters": 10}, None, id="nobody counted which ones are wide"),
        pytest.param(AZURE, {"characters": 0}, 0, id="no text, nothing to be wide"),
        pytest.param(
            AZURE, {"characters": 1, "double_width_characters": 2}, None, id="more wide than all"
        ),
        pytest.param(POLLY, TEXT, 7_000, id="three of ten characters are tags"),
        pytest.param(POLLY, {"characters": 10}, None, id="nobody counted the tags"),
        pytest.param(FISH, TEXT, 330, id="by the byte"),
        pytest.param(FISH, {"characters": 10}, None, id="nobody counted the bytes"),
        # Audio generated, and what stands in for it
        pytest.param(RESEMBLE, {"characters": 25, "audio_ms": 900}, 900_000, id="by the second"),
        pytest.param(RESEMBLE, {"characters": 25}, 2_000_000, id="by the character until it comes"),
        # Tokens of speech
        pytest.param(
            TRANSCRIBE, {"input_tokens": 600, "output_tokens": 40, "audio_ms": 60_000}, 4_000_000,
            id="what a recognizer is given is audio: 600 x 6 + 40 x 10",
        ),
        pytest.param(
            TRANSCRIBE, {"input_tokens": 600, "input_audio_tokens": 500, "output_tokens": 40},
            3_650_000, id="but for a prompt: 100 x 2.5 + 500 x 6 + 40 x 10",
        ),
        pytest.param(TRANSCRIBE, {"input_tokens": 600}, 3_600_000, id="nothing was said"),
        pytest.param(
            TRANSCRIBE, {"audio_ms": 60_000}, 6_000_000,
            id="only the time is known: OpenAI's estimate of $0.006 a minute",
        ),
        pytest.param(TRANSCRIBE, {"characters": 4}, None, id="not even the time is known"),
        pytest.param(TRANSCRIBE, {"connected_ms": 4}, 0, id="nothing sent yet"),
        pytest.param(
            TRANSCRIBE, {"input_tokens": 5, "input_audio_tokens": 6}, None,
            id="more audio than input",
        ),
        pytest.param(
            MINI_TTS, {"input_tokens": 50, "output_tokens": 1_000, "audio_ms": 50_000}, 12_030_000,
            id="what a synthesizer says is audio",
        ),
        pytest.param(MINI_TTS, {**TEXT, "audio_ms": 60_000}, 15_000_000, id="$0.015 a minute"),
        pytest.param(
            MINI_TTS, {"input_tokens": 50, "audio_ms": 60_000}, None,
            id="it spoke, in a number of tokens nobody counted",
        ),
        pytest.param(
            SONIOX, {"audio_ms": 3_600_000}, 120_000_000, id="Soniox: about $0.12 an hour"
        ),
        pytest.param(
            SONIOX, {"audio_ms": 3_600_000, "output_tokens": 10_000}, 100_000_000,
            id="what was counted comes before what is derived",
        ),
        pytest.param(GEMINI_LIVE, {"audio_ms": 60_000}, None, id="half of a price is no price"),
        pytest.param(
            GEMINI_LIVE, {"audio_ms": 60_000, "output_tokens": 200}, 9_450_000,
            id="25 tokens a second x 3.5 + 200 x 21",
        ),
        pytest.param(
            GEMINI_TTS, {**TEXT, "audio_ms": 60_000}, 15_001_250,
            id="25 tokens a second x 10, and 2.5 tokens of text x 0.5",
        ),
        pytest.param(GEMINI_TTS, {**TEXT, "audio_ms": 0}, 1_250, id="text sent, no audio yet"),
        pytest.param(GEMINI_TTS, TEXT, None, id="text sent, and nobody knows what came of it"),
        pytest.param(
            REALTIME,
            {
                "input_tokens": 300, "cached_input_tokens": 50, "input_audio_tokens": 200,
                "output_tokens": 90, "output_audio_tokens": 80,
            },
            50 * 4_000 + 50 * 400 + 200 * 32_000 + 10 * 16_000 + 80 * 64_000,
            id="cached and audio tokens are parts of the input",
        ),
        pytest.param(
            REALTIME, {"input_tokens": 300, "cached_input_tokens": 101, "input_audio_tokens": 200},
            None, id="cached audio has no price here",
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
    if rule in (Rule.AUDIO, Rule.SESSION):
        unit = "audio_ms" if rule is Rule.AUDIO else "connected_ms"
        return price(
            rule,
            {unit: draw(ratios)},
            channel_count=draw(st.integers(1, 8)) if rule is Rule.AUDIO else 1,
            minimum_ms=draw(st.sampled_from([0, 1, 10_000])),
            step_ms=draw(st.sampled_from([1, 1_000, 6_000, 60_000])),
        )
    if rule is Rule.REQUESTS:
        return price(rule, {"requests": draw(ratios)}, modality=Modality.OTHER)
    if rule in (Rule.TRAFFIC, Rule.RECURRING):
        return price(rule, {BILLED_UNITS[rule][0][0]: draw(ratios)}, modality=Modality.PARTICIPANT)
    if rule is Rule.BYTES:
        return price(rule, {"utf8_bytes": draw(ratios)})
    if rule is Rule.CHARACTERS:
        return price(
            rule, {"characters": draw(ratios)}, double_width_weight=draw(st.integers(1, 3))
        )
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
        "connected_ms": quantities,
        "characters": quantities,
        "utf8_bytes": quantities,
        "input_tokens": quantities,
        "output_tokens": quantities,
        "requests": quantities,
        "downstream_bytes": quantities,
        "months": quantities,
    }
)


@given(usages, st.integers(0, 100))
def test_what_counts_differently_is_a_part_of_the_whole(
    usage: dict[str, int], percent: int
) -> None:
    part = usage["characters"] * percent // 100
    wide = AZURE.rate(usage | {"double_width_characters": part})
    assert wide == (usage["characters"] + part) * 1_000
    assert POLLY.rate(usage | {"markup_characters": part}) == (usage["characters"] - part) * 1_000


@given(st.sampled_from([TRANSCRIBE, SONIOX, REALTIME]), quantities, quantities, st.integers(0, 100))
def test_text_and_audio_tokens_are_summed_exactly(
    of: ModelPrice, read: int, said: int, percent: int
) -> None:
    heard = read * percent // 100
    usage = {"input_tokens": read, "input_audio_tokens": heard, "output_tokens": said}
    parts = {"input_tokens": read - heard, "input_audio_tokens": heard, "output_tokens": said}
    assert of.rate(usage) == round(
        sum(
            Fraction(count * of.rates[unit].nano_usd, of.rates[unit].per)
            for unit, count in parts.items()
        )
    )


def exact_nano_usd(of: ModelPrice, usage: dict[str, int]) -> Fraction:
    """The same sum in fractions: slow, and plain to see."""
    rates = of.rates
    for tier in of.tiers:
        if usage["input_tokens"] > tier.above_input_tokens:
            rates = tier.rates
    counts = {unit: quantity for unit, quantity in usage.items() if unit in rates}
    for unit in counts.keys() & {"audio_ms", "connected_ms"}:
        if counts[unit]:
            steps = Fraction(max(counts[unit], of.minimum_ms), of.step_ms).__ceil__()
            counts[unit] = steps * of.step_ms * of.channel_count
    if "characters" in counts:
        wide = usage.get("double_width_characters", 0)
        counts["characters"] += wide * (of.double_width_weight - 1)
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
    usage["double_width_characters"] = usage["characters"] * cached_percent // 100
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
        total["double_width_characters"] = total["characters"] // 2
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
        price(Rule.AUDIO, NOVA_3.rates, minimum_ms=1),
        price(Rule.AUDIO, NOVA_3.rates, step_ms=2),
        price(Rule.AUDIO, NOVA_3.rates, derived=RESEMBLE.derived),
        AZURE,
        POLLY,
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

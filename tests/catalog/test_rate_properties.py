"""What holds for every price and every usage."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.catalog.example_prices import (
    AZURE,
    POLLY,
    REALTIME,
    SONIOX,
    TRANSCRIBE,
    UNITS_OF_KINDS,
    TheOnlyPrice,
    price,
    usage_of,
)
from tests.ledger.desk import Desk
from voicecost_catalog import ModelPrice, Rate, Rule, Tier, open_price_book
from voicecost_catalog.rates import BILLED_UNITS, OPTIONAL_UNITS, Derived, restore_price
from voicecost_ledger.books import Books
from voicecost_ledger.postings import MAX_LEG_NANO_USD
from voicecost_ledger.records import Basis, LegAttributes, Modality, Outcome

NOW_UNIX_MS = 1_795_305_600_000  # 2026-11-22
THE_BOOK = [*open_price_book().own_prices(), *open_price_book().every_price(NOW_UNIX_MS)]
TOKENS = ("input_tokens", "output_tokens", "input_audio_tokens", "output_audio_tokens")

quantities = st.integers(0, 2**40)
ratios = st.builds(
    Rate, nano_usd=st.integers(0, 10**12), per=st.sampled_from([1, 3, 1_000, 60_000, 10**6, 10**9])
)
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


@st.composite
def prices(draw: st.DrawFn) -> ModelPrice:
    """Of every rule; tokens are text and cached text."""
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
    return price(rule, rates, tiers=draw(dearer_tiers(rates)))


@st.composite
def dearer_tiers(draw: st.DrawFn, rates: dict[str, Rate]) -> tuple[Tier, ...]:
    """No tier, or one above some input in which everything costs twice as much."""
    dearer = {unit: Rate(nano_usd=rate.nano_usd * 2, per=rate.per) for unit, rate in rates.items()}
    start = draw(st.integers(0, 10**6))
    return (Tier(above_input_tokens=start, rates=dearer),) if draw(st.booleans()) else ()


@st.composite
def token_prices(draw: st.DrawFn) -> ModelPrice:
    """Of a language or realtime model, with any of the rates there may be."""
    optional = {"input_audio_tokens", "output_audio_tokens", *OPTIONAL_UNITS[Rule.TOKENS]}
    units = draw(st.sets(st.sampled_from(sorted(optional - {"audio_ms"}))))
    rates = {unit: draw(ratios) for unit in ("input_tokens", "output_tokens", *sorted(units))}
    return price(Rule.TOKENS, rates, tiers=draw(dearer_tiers(rates)))


@st.composite
def speech_prices(draw: st.DrawFn) -> ModelPrice:
    """Of a recognizer or a voice: tokens, what they are derived of, an estimate by the time."""
    units = [*TOKENS[:2], *draw(st.sets(st.sampled_from(TOKENS[2:])))]
    units += draw(st.sets(st.sampled_from(["cached_input_tokens", "audio_ms"])))
    sources = ["characters"] if "audio_ms" in units else ["characters", "audio_ms"]
    derived_units = draw(st.sets(st.sampled_from([unit for unit in units if unit in TOKENS])))
    derived = st.builds(
        Derived,
        of=st.sampled_from(sources),
        count=st.integers(1, 50_000),
        per=st.sampled_from([1, 4, 1_000, 3_600_000]),
    )
    return price(
        Rule.TOKENS,
        {unit: draw(ratios) for unit in units},
        modality=draw(st.sampled_from([Modality.STT, Modality.TTS])),
        derived={unit: draw(derived) for unit in sorted(derived_units)},
    )


@st.composite
def derived_times(draw: st.DrawFn) -> ModelPrice:
    """Of a voice that is billed by the time it speaks, in begun steps, and known by its text."""
    return price(
        Rule.AUDIO,
        {"audio_ms": draw(ratios)},
        modality=Modality.TTS,
        minimum_ms=draw(st.sampled_from([0, 10_000])),
        step_ms=draw(st.sampled_from([1, 1_000])),
        derived={"audio_ms": Derived(of="characters", count=draw(st.integers(1, 99)), per=7)},
    )


@st.composite
def free_markup(draw: st.DrawFn) -> ModelPrice:
    return price(Rule.CHARACTERS, {"characters": draw(ratios)}, free_markup=True)


def every_way_of_billing() -> st.SearchStrategy[ModelPrice]:
    return st.one_of(prices(), token_prices(), speech_prices(), derived_times(), free_markup())


@st.composite
def kinds(draw: st.DrawFn, quantity: st.SearchStrategy[int]) -> dict[str, int]:
    """So much of each kind of which something is counted: often of all of them."""
    every = sorted({kind for counted in UNITS_OF_KINDS.values() for kind in counted})
    spoken = ["audio_ms", "connected_ms", "plain", "wide", "markup"]  # as of a voice
    there = draw(st.one_of(st.just(every), st.just(spoken), st.lists(st.sampled_from(every))))
    return {kind: draw(st.one_of(st.just(0), quantity)) for kind in there}


@settings(max_examples=300)
@given(
    st.one_of(every_way_of_billing(), st.sampled_from(THE_BOOK)),
    kinds(st.integers(0, 400_000)),
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 400_000)), min_size=1, max_size=4),
)
def test_using_more_never_costs_less(
    of: ModelPrice, used: dict[str, int], growth: list[tuple[int, int]]
) -> None:
    """More of any kind, of which none is a part of another: it is in the wholes as well.

    A token more that is cached is a token more; one that turns out to be cached is not more but
    other. The first counted token is other too: it takes the place of an estimate by the time.
    """
    assume(used)
    more = dict(used)
    for which, count in growth:
        more[sorted(used)[which % len(used)]] += count
    less_usage, more_usage = usage_of(used), usage_of(more)
    if "audio_ms" in of.rates and of.rule is Rule.TOKENS:
        assume(any(map(less_usage.get, TOKENS)) == any(map(more_usage.get, TOKENS)))
    less_nano_usd, more_nano_usd = of.rate(less_usage), of.rate(more_usage)
    if less_nano_usd is not None and more_nano_usd is not None:
        assert 0 <= less_nano_usd <= more_nano_usd


@settings(max_examples=40)
@given(
    every_way_of_billing(),
    kinds(st.just(0)),
    st.lists(st.lists(st.integers(0, 30), min_size=5, max_size=5), min_size=1, max_size=5),
)
def test_parts_of_a_leg_sum_to_the_rate_of_its_total(
    of: ModelPrice, used: dict[str, int], growth: list[list[int]]
) -> None:
    """Through the books: a part is posted each quarter hour, rounded with all that was before."""
    for kind in ("downstream_bytes", "months"):  # no leg counts these
        used.pop(kind, None)
    assume(used)
    grown: list[dict[str, Any]] = []
    for more in growth:
        used = {kind: used[kind] + more[place % 5] for place, kind in enumerate(used)}
        grown.append(usage_of(used))
    amounts = [of.rate(usage) for usage in grown]
    # What the books refuse: a leg that nobody could pay, or one whose price is lost on the way.
    assume(max(amount or 0 for amount in amounts) <= MAX_LEG_NANO_USD)
    assume((None in amounts) == (set(amounts) == {None}))
    desk = Desk()
    desk.books = Books(TheOnlyPrice(of), desk.policy)
    meter = desk.meter()
    leg = meter.start(LegAttributes(modality=of.modality, provider=of.provider, model=of.model))
    for usage in grown:
        meter.interim(leg, **usage)
        meter.send()
        desk.wait(15 * 60_000)
    meter.stop(leg, Outcome.SERVED, Basis.OBSERVED, **grown[-1])
    meter.send()
    call = desk.call()
    parts = [entry.amount_nano_usd for entry in call.entries if entry.leg == leg]
    assert len(parts) > 1
    assert sum(part or 0 for part in parts) == (amounts[-1] or 0)
    assert [view.amount_nano_usd for view in call.legs] == [amounts[-1]]
    desk.check()


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


@given(prices())
def test_a_stored_price_comes_back_equal(of: ModelPrice) -> None:
    restored = restore_price(of.document())
    assert restored == of
    assert restored.price_id == of.price_id
    assert restored.document() == of.document()

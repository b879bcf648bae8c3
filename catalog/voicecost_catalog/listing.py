"""The price book as a list to read: what is charged since when, from where, and is it fresh."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Final, NamedTuple

import msgspec

from voicecost_catalog.overrides import CONTRACT
from voicecost_catalog.rates import Derived, Kind, ModelPrice, Rate, Rule
from voicecost_ledger.money import NANO_USD_PER_USD
from voicecost_ledger.records import Modality

FRESH_DAYS: Final = 60
"""A price that nobody compared with its source for longer than this is stale."""

# As price lists word them, the longest first: a rate keeps the one it was written with.
_SCALES: Final[dict[str, tuple[tuple[int, str], ...]]] = {
    "ms": ((3_600_000, "hour"), (60_000, "minute"), (1_000, "second")),
    "characters": ((1_000_000, "million"), (1_000, "thousand"), (1, "character")),
    "months": ((1, "month"),),
    "bytes": (
        (1_000_000_000, "gigabyte"),
        (1_000_000, "million"),
        (1_000, "thousand"),
        (1, "byte"),
    ),
    "tokens": ((1_000_000, "million"), (1_000, "thousand"), (1, "token")),
    "requests": ((1_000_000, "million"), (1_000, "thousand"), (1, "request")),
}
_USUAL: Final = {
    "ms": "minute",
    "characters": "thousand",
    "months": "month",
    "bytes": "million",
    "tokens": "million",
    "requests": "request",
}


class PriceLine(msgspec.Struct, frozen=True, kw_only=True):
    """One rate of one price. `usd` a `per` is what the source says; days are UTC, "" is open."""

    price_id: str
    provider: str
    model: str
    modality: Modality
    plan: str
    kind: Kind
    rule: Rule
    unit: str
    above_input_tokens: int | None  # of a whole request whose input is longer; None: of any other
    usd: str
    per: str
    nano_usd: int
    per_units: int  # `nano_usd` for so many of `unit`
    derived: Derived | None  # what stands in for the unit where nobody counted it
    minimum_ms: int  # of a request that sent anything
    step_ms: int  # begun ones are whole ones
    double_width_weight: int  # what a Chinese character counts for
    free_markup: bool  # SSML tags are no characters
    valid_from: str
    valid_until: str
    assumed: bool
    source_url: str
    source_date: str
    checked_on: str  # "": nobody has
    confidence: str
    stale: bool
    pricing_source: str
    note: str


class PriceChange(msgspec.Struct, frozen=True, kw_only=True):
    """One rate or rule of billing that is another one on a later day; a side without it is ""."""

    provider: str
    model: str
    modality: Modality
    plan: str
    unit: str  # "input_tokens", or "minimum", "step", "input_tokens of characters"
    above_input_tokens: int | None
    before: str  # "$0.05 a thousand", "10000 ms"
    after: str
    source_url: str  # of the later one, of the earlier one where it went
    pricing_source: str


def price_changes(before: Iterable[ModelPrice], after: Iterable[ModelPrice]) -> list[PriceChange]:
    """Which rates and rules came, went or changed."""
    sides = _terms_of(before), _terms_of(after)
    changes: list[PriceChange] = []
    for key in sorted(sides[0].keys() | sides[1].keys()):
        old, new = sides[0].get(key), sides[1].get(key)
        either = new or old
        if either is None or (old and new and old.value == new.value):
            continue
        provider, model, modality, plan, unit, above = key
        changes.append(
            PriceChange(
                provider=provider,
                model=model,
                modality=Modality(modality),
                plan=plan,
                unit=unit,
                above_input_tokens=above if above >= 0 else None,
                before=old.words if old else "",
                after=new.words if new else "",
                source_url=either.source_url,
                pricing_source=either.price.pricing_source,
            )
        )
    return changes


class _Term(NamedTuple):
    """Something that an amount depends on: equal where `value` is, whatever the words."""

    price: ModelPrice
    value: object
    words: str
    source_url: str


_Key = tuple[str, str, str, str, str, int]  # of what; above so many tokens, -1: any


def _terms_of(prices: Iterable[ModelPrice]) -> dict[_Key, _Term]:
    found: dict[_Key, _Term] = {}
    for price in prices:
        for (unit, above), (value, words, source_url) in _terms(price).items():
            key = (price.provider, price.model, price.modality.value, price.plan, unit, above)
            found.setdefault(key, _Term(price, value, words, source_url))
    return found


def _terms(price: ModelPrice) -> dict[tuple[str, int], tuple[object, str, str]]:
    terms: dict[tuple[str, int], tuple[object, str, str]] = {}
    for above, rates in (
        (-1, price.rates),
        *((t.above_input_tokens, t.rates) for t in price.tiers),
    ):
        for unit, rate in rates.items():
            usd, per = worded_rate(unit, rate)
            value = Fraction(rate.nano_usd, rate.per)
            terms[unit, above] = value, f"${usd} a {per}", rate.source_url
    url = next(rate.source_url for rate in price.rates.values())
    for unit, derived in price.derived.items():
        value = Fraction(derived.count, derived.per)
        terms[f"{unit} of {derived.of}", -1] = value, f"{value} for each", derived.source_url or url
    for name, value, usual, words in (
        ("minimum", price.minimum_ms, 0, f"{price.minimum_ms} ms"),
        ("step", price.step_ms, 1, f"{price.step_ms} ms"),
        (
            "a Chinese character",
            price.double_width_weight,
            1,
            f"counts {price.double_width_weight}",
        ),
        ("SSML tags", price.free_markup, False, "are free"),
    ):
        if value != usual:
            terms[name, -1] = value, words, url
    return terms


def price_lines(prices: Iterable[ModelPrice], *, today: date) -> list[PriceLine]:
    """Each rate of the prices as a line; of a higher tier those that are others there."""
    lines: list[PriceLine] = []
    for price in prices:
        lines += [_line(price, unit, rate, today) for unit, rate in price.rates.items()]
        lower = price.rates
        for tier in price.tiers:
            lines += [
                _line(price, unit, rate, today, above_input_tokens=tier.above_input_tokens)
                for unit, rate in tier.rates.items()
                if rate != lower.get(unit)
            ]
            lower = tier.rates
    return lines


def _line(
    price: ModelPrice,
    unit: str,
    rate: Rate,
    today: date,
    *,
    above_input_tokens: int | None = None,
) -> PriceLine:
    usd, per = worded_rate(unit, rate)
    return PriceLine(
        price_id=price.price_id,
        provider=price.provider,
        model=price.model,
        modality=price.modality,
        plan=price.plan,
        kind=price.kind if rate.kind is Kind.BASE else rate.kind,
        rule=price.rule,
        unit=unit,
        above_input_tokens=above_input_tokens,
        usd=usd,
        per=per,
        nano_usd=rate.nano_usd,
        per_units=rate.per,
        derived=price.derived.get(unit),
        minimum_ms=price.minimum_ms,
        step_ms=price.step_ms,
        double_width_weight=price.double_width_weight,
        free_markup=price.free_markup,
        valid_from=price.valid_from,
        valid_until=price.valid_until,
        assumed=price.assumed,
        source_url=rate.source_url,
        source_date=rate.source_date,
        checked_on=rate.checked_on,
        confidence=rate.confidence.value if rate.confidence else "",
        stale=_is_stale(price, rate, today),
        pricing_source=price.pricing_source,
        note=price.note,
    )


def _is_stale(price: ModelPrice, rate: Rate, today: date) -> bool:
    # A zero that nobody charges cannot go stale; what has no plan is of genai-prices, which is as
    # fresh as its version.
    if price.kind is Kind.SELF_HOSTED or not price.plan:
        return False
    if price.valid_until and date.fromisoformat(price.valid_until) <= today:
        return False  # its page says something else by now
    if not rate.checked_on:
        return price.plan != CONTRACT  # the operator's own word is no page to look at again
    return today - date.fromisoformat(rate.checked_on) > timedelta(days=FRESH_DAYS)


def worded_rate(unit: str, rate: Rate) -> tuple[str, str]:
    """A rate as price lists word it, exact: `("0.0048", "minute")`, a fraction where it must be.

    A rate for a number of units that no list words gets the usual words.
    """
    ending = unit.rpartition("_")[2]
    scale, per = next(
        (scale for scale in _SCALES[ending] if rate.per % scale[0] == 0),
        next(scale for scale in _SCALES[ending] if scale[1] == _USUAL[ending]),
    )
    usd = Fraction(rate.nano_usd * scale, rate.per * NANO_USD_PER_USD)
    text = format((Decimal(usd.numerator) / usd.denominator).normalize(), "f")
    return (text if Fraction(text) == usd else str(usd)), per

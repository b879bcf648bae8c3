"""The price book as a list to read: what is charged since when, from where, and is it fresh."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Final

import msgspec

from voicecost_catalog.rates import Kind, ModelPrice, Rate, Rule
from voicecost_catalog.rows import load_rows, row_price
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

    provider: str
    model: str
    modality: Modality
    plan: str
    kind: Kind
    rule: Rule
    unit: str
    usd: str
    per: str
    nano_usd: int
    per_units: int  # `nano_usd` for so many of `unit`
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
    """One rate that is another one on a later day; a side that had none is ""."""

    provider: str
    model: str
    modality: Modality
    plan: str
    unit: str
    before: str  # "0.05 a thousand"
    after: str
    source_url: str  # of the later one, of the earlier one where it went
    pricing_source: str


def price_changes(before: Iterable[ModelPrice], after: Iterable[ModelPrice]) -> list[PriceChange]:
    """Which rates came, went or changed."""
    sides = _rates(before), _rates(after)
    changes: list[PriceChange] = []
    for key in sorted(sides[0].keys() | sides[1].keys()):
        old, new = sides[0].get(key), sides[1].get(key)
        if old and new and old[1].nano_usd * new[1].per == new[1].nano_usd * old[1].per:
            continue
        provider, model, modality, plan, unit = key
        price, rate = new or old or (None, None)
        assert price is not None
        assert rate is not None
        changes.append(
            PriceChange(
                provider=provider,
                model=model,
                modality=Modality(modality),
                plan=plan,
                unit=unit,
                before=_words(unit, old[1]) if old else "",
                after=_words(unit, new[1]) if new else "",
                source_url=rate.source_url,
                pricing_source=price.pricing_source,
            )
        )
    return changes


_RateKey = tuple[str, str, str, str, str]


def _rates(prices: Iterable[ModelPrice]) -> dict[_RateKey, tuple[ModelPrice, Rate]]:
    found: dict[_RateKey, tuple[ModelPrice, Rate]] = {}
    for price in prices:
        for unit, rate in price.rates.items():
            key = (price.provider, price.model, price.modality.value, price.plan, unit)
            found.setdefault(key, (price, rate))
    return found


def _words(unit: str, rate: Rate) -> str:
    usd, per = worded_rate(unit, rate)
    return f"{usd} a {per}"


def own_prices() -> list[ModelPrice]:
    """Every price of our own data files, what rates no leg included."""
    rows = load_rows()
    return [
        row_price(row, of, channel_count=1, pricing_source=rows.pricing_source)
        for of in rows.providers
        for row in of.prices
    ]


def price_lines(prices: Iterable[ModelPrice], *, today: date) -> list[PriceLine]:
    """Each rate of the prices as a line."""
    return [
        _line(price, unit, rate, today) for price in prices for unit, rate in price.rates.items()
    ]


def _line(price: ModelPrice, unit: str, rate: Rate, today: date) -> PriceLine:
    usd, per = worded_rate(unit, rate)
    return PriceLine(
        provider=price.provider,
        model=price.model,
        modality=price.modality,
        plan=price.plan,
        kind=price.kind if rate.kind is Kind.BASE else rate.kind,
        rule=price.rule,
        unit=unit,
        usd=usd,
        per=per,
        nano_usd=rate.nano_usd,
        per_units=rate.per,
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
    # A zero that nobody charges cannot go stale; genai-prices is as fresh as its version.
    if price.kind is Kind.SELF_HOSTED or price.pricing_source.startswith("genai-prices@"):
        return False
    if not rate.checked_on:
        return True
    return today - date.fromisoformat(rate.checked_on) > timedelta(days=FRESH_DAYS)


def worded_rate(unit: str, rate: Rate) -> tuple[str, str]:
    """A rate as price lists word it, exact: `("0.0048", "minute")`, a fraction where it must be.

    A rate that a discount brought to lowest terms has lost the words it was written with; it gets
    the usual ones.
    """
    ending = unit.rpartition("_")[2]
    scale, per = next(
        (scale for scale in _SCALES[ending] if rate.per % scale[0] == 0),
        next(scale for scale in _SCALES[ending] if scale[1] == _USUAL[ending]),
    )
    usd = Fraction(rate.nano_usd * scale, rate.per * NANO_USD_PER_USD)
    text = format((Decimal(usd.numerator) / usd.denominator).normalize(), "f")
    return (text if Fraction(text) == usd else str(usd)), per

"""The price book as a list to read: what is charged since when, from where, and is it fresh."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta
from decimal import Decimal
from typing import Final

import msgspec

from voicecost_catalog.rates import Kind, ModelPrice, Rate, Rule
from voicecost_catalog.rows import load_rows, row_price
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
    usd, per = _worded(unit, rate)
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


def _worded(unit: str, rate: Rate) -> tuple[str, str]:
    scale, per = next(
        (
            (units, word)
            for units, word in _SCALES[unit.rpartition("_")[2]]
            if rate.per % units == 0
        ),
        (1, unit),
    )
    usd = Decimal(rate.nano_usd) * scale / rate.per / 1_000_000_000
    text = format(usd, "f")
    return (text.rstrip("0").rstrip(".") if "." in text else text), per

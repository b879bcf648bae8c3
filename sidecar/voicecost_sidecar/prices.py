"""What `voicecost prices` answers, as structs and as a table."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from fractions import Fraction
from itertools import groupby
from pathlib import Path

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from voicecost_catalog import CatalogPriceBook
from voicecost_catalog.coverage import without_price
from voicecost_catalog.listing import (
    FRESH_DAYS,
    PriceChange,
    PriceLine,
    price_changes,
    price_lines,
)
from voicecost_catalog.overrides import CONTRACT, Overrides
from voicecost_catalog.rows import midnight_unix_ms
from voicecost_ledger.stores import CostQuery, Store
from voicecost_sidecar.tables import harmless, plain_table

_MISSING_BY = ("provider", "model", "modality")


class PriceList(msgspec.Struct, frozen=True, kw_only=True):
    """Prices, one line for each rate, and how many of the lines are stale."""

    on: str
    fresh_days: int
    stale_count: int
    prices: list[PriceLine]


class MissingPrice(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger holds legs of without a price."""

    provider: str
    model: str
    modality: str
    leg_count: int


class UnpricedPlugin(msgspec.Struct, frozen=True, kw_only=True):
    """A model that a plugin of LiveKit's asks for unless told otherwise, without a price."""

    plugin: str
    provider: str
    model: str
    modality: str
    why: str


class MissingPrices(msgspec.Struct, frozen=True, kw_only=True):
    """Every model of the ledger that has legs without a price, most legs first; then LiveKit's."""

    models: list[MissingPrice] | None  # None: there is no ledger yet
    plugins: list[UnpricedPlugin]


class PriceChanges(msgspec.Struct, frozen=True, kw_only=True):
    """Which rates and rules came, went or changed between two days (UTC)."""

    before: str
    after: str
    changes: list[PriceChange]


class CheckedPrices(msgspec.Struct, frozen=True, kw_only=True):
    """A price file that is right, and how much it says."""

    file: str
    rows: int
    rates: int
    plans: int
    discounts: int
    credits: int


def read_prices(
    book: CatalogPriceBook, model: str | None, *, stale: bool, at_unix_ms: int
) -> PriceList:
    """The prices of a model as they are then, or all rows, by contract and of our own.

    Args:
        book: Which prices there are.
        model: Provider and model, `deepgram/nova-3`; None for every row of whatever day.
        stale: Only lines that nobody compared with their source for `FRESH_DAYS`.
        at_unix_ms: When.

    Raises:
        LookupError: No price is known for the model.
    """
    today = datetime.fromtimestamp(at_unix_ms // 1000, tz=UTC).date()
    prices = book.own_prices() if model is None else book.prices_of(model, at_unix_ms)
    if model is not None and not prices:
        raise LookupError(
            f"no price for {model!r} on {today}: expected provider/model, for example "
            "deepgram/nova-3. `voicecost prices` lists our own; others are genai-prices'"
        )
    lines = price_lines(prices, today=today)
    return PriceList(
        on=today.isoformat(),
        fresh_days=FRESH_DAYS,
        stale_count=sum(line.stale for line in lines),
        prices=[line for line in lines if line.stale or not stale],
    )


def read_changes(
    book: CatalogPriceBook, before: date, after: date, *, provider: str | None = None
) -> PriceChanges:
    """What another day's prices are. Loads genai-prices.

    Raises:
        ValueError: The later day is not later.
    """
    if after <= before:
        raise ValueError(f"{after} is not after {before}: give the earlier day first")
    sides = [
        [
            price
            for price in book.every_price(midnight_unix_ms(day))
            if provider is None or price.provider == provider.lower()
        ]
        for day in (before, after)
    ]
    if not any(sides):
        raise ValueError(f"no price of {provider!r}: expected a provider such as deepgram")
    return PriceChanges(
        before=before.isoformat(), after=after.isoformat(), changes=price_changes(*sides)
    )


def check_prices(file: Path) -> CheckedPrices:
    """A provider's price file, or the section `prices:` of a `voicecost.yaml`.

    Raises:
        ValueError: It is wrong; names file, line and field.
    """
    # Here: the YAML reader is no part of a base install.
    from voicecost_catalog.compile import is_provider_file, read_provider
    from voicecost_catalog.override_file import read_prices as read_section
    from voicecost_catalog.override_file import read_sections
    from voicecost_catalog.row_reader import CatalogError
    from voicecost_sidecar._config_file import SECTIONS

    overrides, currency = Overrides(), None
    if is_provider_file(file):
        rows = read_provider(file).prices
    else:
        for section, line in read_sections(file).items():
            if section not in SECTIONS:
                allowed = f"{', '.join(SECTIONS)}, or provider and the rest of a provider's file"
                raise CatalogError(file, line, section, f"unknown key: allowed here are {allowed}")
        section = read_section(file)
        overrides, currency = section.overrides, section.display_currency
        rows = [row for of in overrides.rows for row in of.prices]
    if not rows and not overrides and not currency:
        raise CatalogError(file, 0, "prices", "no price in it: expected rows, plans, discounts ...")
    return CheckedPrices(
        file=str(file),
        rows=len(rows),
        rates=sum(len(row.rates) for row in rows),
        plans=len(overrides.plans),
        discounts=len(overrides.discounts),
        credits=len(overrides.credit_usd),
    )


def read_missing(
    store: Store | None, book: CatalogPriceBook, *, until_unix_ms: int
) -> MissingPrices:
    """What was used without a price, most legs first; without a ledger LiveKit's half alone.

    Loads genai-prices.

    Raises:
        StoreUnavailable: The ledger cannot be read.
    """
    return MissingPrices(
        models=None if store is None else _unpriced_models(store, until_unix_ms),
        plugins=[
            UnpricedPlugin(
                plugin=one.cls,
                provider=one.provider,
                model=one.model,
                modality=one.kind.value,
                why=one.why_no_price,
            )
            for one in without_price(book, until_unix_ms)
        ],
    )


def _unpriced_models(store: Store, until_unix_ms: int) -> list[MissingPrice]:
    rows = store.costs(CostQuery(from_unix_ms=0, until_unix_ms=until_unix_ms, group_by=_MISSING_BY))
    missing = [
        MissingPrice(leg_count=row.unpriced_leg_count, **row.group)
        for row in rows
        if row.unpriced_leg_count
    ]
    return sorted(missing, key=lambda found: -found.leg_count)


def prices_table(found: PriceList) -> RenderableType:
    """Each price with its rates, how it bills, since when, and where that is from."""
    # Lines, not columns: sources are long, and none of them may be cut off.
    shown: list[RenderableType] = []
    for _, lines in groupby(found.prices, key=lambda line: line.price_id):
        rates = list(lines)
        first = rates[0]
        about = ", ".join(filter(None, (f"{first.modality} by {first.rule}", first.plan)))
        name = f"{first.provider}/{first.model}"
        shown.append(Text.assemble((name, "bold"), ("  " + about, "dim")))
        shown += [Text(f"  {words}") for words in _billed(first)]
        for source, of_source in groupby(rates, key=_source):
            shown += [Text(f"  {_rate_words(line)}") for line in of_source]
            shown.append(Text(f"    {source}", style="dim"))
        if first.note:
            shown.append(Text(f"  {first.note}", style="dim"))
    told = f"{found.stale_count} of them not checked for more than {found.fresh_days} days"
    shown.append(Text(f"{len(found.prices)} rates on {found.on}, {told}", style="dim"))
    return Group(*shown)


def _rate_words(line: PriceLine) -> str:
    above = "" if line.above_input_tokens is None else f" above {line.above_input_tokens} of input"
    kind = "" if line.kind == "base" else f" ({line.kind.value.replace('_', ' ')})"
    derived = line.derived
    count = "" if derived is None else f", {Fraction(derived.count, derived.per)} for each"
    made = "" if derived is None else f"{count} of {derived.of} where nobody counted it"
    return f"{line.unit}{above}: ${line.usd} a {line.per}{kind}{made}"


def _billed(line: PriceLine) -> Iterator[str]:
    """How a price bills beside its rates, and on which days."""
    assumed = " (assumed)" if line.assumed else ""
    if line.valid_from or line.valid_until:
        until = f"until {line.valid_until}" if line.valid_until else ""
        yield " ".join(filter(None, (f"since {line.valid_from or 'ever'}", until))) + assumed
    if line.minimum_ms or line.step_ms > 1:
        yield f"at least {line.minimum_ms} ms a request, in begun steps of {line.step_ms} ms"
    if line.double_width_weight > 1:
        yield f"a Chinese character counts {line.double_width_weight}"
    if line.free_markup:
        yield "SSML tags are free"


def _source(line: PriceLine) -> str:
    own_word = line.plan == CONTRACT and not line.checked_on
    checked = "your contract" if own_word else f"checked {line.checked_on or 'never'}"
    if not line.checked_on and not line.stale and not own_word:
        checked = line.pricing_source
    stale = ", stale" if line.stale else ""
    return f"{checked}{stale}  {line.source_url or line.pricing_source}".rstrip()


def missing_table(found: MissingPrices) -> RenderableType:
    """One line for each model without a price."""
    found = harmless(found)
    told = "Every leg in the ledger has a price."
    if found.models is None:
        told = "There is no ledger yet: no leg has met a price, or the want of one."
    shown: list[RenderableType] = [Text(told)]
    if found.models:
        table = plain_table("provider", "model", "kind", "legs")
        for line in found.models:
            table.add_row(line.provider, line.model, line.modality, str(line.leg_count))
        shown = [table]
    if found.plugins:
        shown.append(Text("\nOf LiveKit's plugins, as they are made without arguments:"))
        for why in dict.fromkeys(one.why for one in found.plugins):
            shown.append(Text(why, style="bold"))
            shown += [Text(f"  {it.plugin}  {it.model}") for it in found.plugins if it.why == why]
    return Group(*shown)


def changes_table(found: PriceChanges) -> RenderableType:
    """One line for each rate that came, went or changed."""
    if not found.changes:
        return Text(f"No price known here changed from {found.before} to {found.after}.")
    # Lines, not columns: names and sources are long, and none of them may be cut off.
    shown: list[RenderableType] = []
    of = ""
    for line in found.changes:
        name = f"{line.provider}/{line.model}" + (f" ({line.plan})" if line.plan else "")
        if name != of:
            source = line.source_url or line.pricing_source
            shown.append(Text.assemble((name, "bold"), ("  " + source, "dim")))
            of = name
        above = (
            "" if line.above_input_tokens is None else f" above {line.above_input_tokens} of input"
        )
        before, after = (side or "none" for side in (line.before, line.after))
        shown.append(Text(f"  {line.unit}{above}: {before}, then {after}"))
    told = f"{len(found.changes)} changed from {found.before} to {found.after} (UTC)"
    return Group(*shown, Text(told, style="dim"))


def checked_text(found: CheckedPrices) -> RenderableType:
    """That a file is right, and what it says."""
    counts = {
        "price": found.rows,
        "rate": found.rates,
        "plan": found.plans,
        "discount": found.discounts,
        "credit": found.credits,
    }
    said = [f"{count} {name}{'s' * (count != 1)}" for name, count in counts.items() if count]
    return Text(f"{found.file} is right: {', '.join(said) or 'a currency'}.")

"""What `voicecost prices` answers, as structs and as a table."""

from __future__ import annotations

from datetime import UTC, date, datetime
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
    own_prices,
    price_changes,
    price_lines,
)
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


class MissingPrices(msgspec.Struct, frozen=True, kw_only=True):
    """Every model of the ledger that has legs without a price, most legs first; then LiveKit's."""

    models: list[MissingPrice]
    plugins: list[UnpricedPlugin]


class PriceChanges(msgspec.Struct, frozen=True, kw_only=True):
    """Which rates came, went or changed between two days (UTC)."""

    before: str
    after: str
    changes: list[PriceChange]


class CheckedPrices(msgspec.Struct, frozen=True, kw_only=True):
    """A price file that is right."""

    file: str
    rows: int
    rates: int


def read_prices(
    book: CatalogPriceBook, model: str | None, *, stale: bool, at_unix_ms: int
) -> PriceList:
    """The prices of a model as they are then, or all of our own rows.

    Args:
        book: Which prices there are.
        model: Provider and model, `deepgram/nova-3`; None for everything in our data files.
        stale: Only lines that nobody compared with their source for `FRESH_DAYS`.
        at_unix_ms: When.

    Raises:
        LookupError: No price is known for the model.
    """
    today = datetime.fromtimestamp(at_unix_ms // 1000, tz=UTC).date()
    prices = own_prices() if model is None else book.prices_of(model, at_unix_ms)
    if model is not None and not prices:
        raise LookupError(
            f"no price for {model!r} on {today}: expected provider/model, for example "
            "deepgram/nova-3. `voicecost prices` lists our own; LLM prices are genai-prices'"
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
            if provider in (None, price.provider)
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

    if is_provider_file(file):
        prices = read_provider(file).prices
    else:
        prices = [row for of in read_section(file).overrides.rows for row in of.prices]
    return CheckedPrices(
        file=str(file), rows=len(prices), rates=sum(len(row.rates) for row in prices)
    )


def read_missing(store: Store, book: CatalogPriceBook, *, until_unix_ms: int) -> MissingPrices:
    """What was used without a price, most legs first. Loads genai-prices.

    Raises:
        StoreUnavailable: The ledger cannot be read.
    """
    rows = store.costs(CostQuery(from_unix_ms=0, until_unix_ms=until_unix_ms, group_by=_MISSING_BY))
    missing = [
        MissingPrice(leg_count=row.unpriced_leg_count, **row.group)
        for row in rows
        if row.unpriced_leg_count
    ]
    return MissingPrices(
        models=sorted(missing, key=lambda found: -found.leg_count),
        plugins=[
            UnpricedPlugin(
                plugin=one.cls, provider=one.provider, model=one.model, modality=one.kind.value
            )
            for one in without_price(book, until_unix_ms)
        ],
    )


def prices_table(found: PriceList) -> RenderableType:
    """One line for each rate: what, since when, from where."""
    table = plain_table("model", "plan", "unit", "price", "since", "until", "checked", "source")
    for line in found.prices:
        assumed = "?" if line.assumed else ""
        since = f"{line.valid_from}{assumed}" if line.valid_from else "open"
        until = f"{line.valid_until}{assumed}" if line.valid_until else ""
        checked = line.checked_on or ("never" if line.stale else "-")
        kind = "" if line.kind == "base" else f" ({line.kind.value.replace('_', ' ')})"
        table.add_row(
            f"{line.provider}/{line.model}",
            line.plan,
            line.unit,
            f"${line.usd} a {line.per}{kind}",
            since,
            until,
            checked + (" stale" if line.stale else ""),
            line.source_url or line.pricing_source,
        )
    told = f"{found.stale_count} of them not checked for more than {found.fresh_days} days"
    return Group(table, Text(f"{len(found.prices)} rates on {found.on}, {told}", style="dim"))


def missing_table(found: MissingPrices) -> RenderableType:
    """One line for each model without a price."""
    found = harmless(found)
    shown: list[RenderableType] = [Text("Every leg in the ledger has a price.")]
    if found.models:
        table = plain_table("provider", "model", "kind", "legs")
        for line in found.models:
            table.add_row(line.provider, line.model, line.modality, str(line.leg_count))
        shown = [table]
    if found.plugins:
        plugins = plain_table("plugin", "provider", "model", "kind")
        for one in found.plugins:
            plugins.add_row(one.plugin, one.provider, one.model, one.modality)
        shown += [Text("\nOf LiveKit's plugins, as they are made without arguments:"), plugins]
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
        before, after = (f"${side}" if side else "none" for side in (line.before, line.after))
        shown.append(Text(f"  {line.unit}: {before}, then {after}"))
    told = f"{len(found.changes)} rates changed from {found.before} to {found.after} (UTC)"
    return Group(*shown, Text(told, style="dim"))


def checked_text(found: CheckedPrices) -> RenderableType:
    """That a file is right."""
    return Text(f"{found.file} is right: {found.rows} prices, {found.rates} rates.")

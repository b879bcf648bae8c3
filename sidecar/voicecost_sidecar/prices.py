"""What `voicecost prices` answers, as structs and as a table."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from voicecost_catalog import open_price_book
from voicecost_catalog.listing import FRESH_DAYS, PriceLine, own_prices, price_lines
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


class MissingPrices(msgspec.Struct, frozen=True, kw_only=True):
    """Every model of the ledger that has legs without a price, most legs first."""

    models: list[MissingPrice]


def read_prices(model: str | None, *, stale: bool, at_unix_ms: int) -> PriceList:
    """The prices of a model as they are then, or all of our own rows.

    Args:
        model: Provider and model, `deepgram/nova-3`; None for everything in our data files.
        stale: Only lines that nobody compared with their source for `FRESH_DAYS`.
        at_unix_ms: When.

    Raises:
        LookupError: No price is known for the model.
    """
    today = datetime.fromtimestamp(at_unix_ms // 1000, tz=UTC).date()
    prices = own_prices() if model is None else open_price_book().prices_of(model, at_unix_ms)
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


def read_missing(store: Store, *, until_unix_ms: int) -> MissingPrices:
    """What was used without a price, most legs first.

    Raises:
        StoreUnavailable: The ledger cannot be read.
    """
    rows = store.costs(CostQuery(from_unix_ms=0, until_unix_ms=until_unix_ms, group_by=_MISSING_BY))
    missing = [
        MissingPrice(leg_count=row.unpriced_leg_count, **row.group)
        for row in rows
        if row.unpriced_leg_count
    ]
    return MissingPrices(models=sorted(missing, key=lambda found: -found.leg_count))


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
    if not found.models:
        return Text("Every leg in the ledger has a price.")
    table = plain_table("provider", "model", "kind", "legs")
    for line in found.models:
        table.add_row(line.provider, line.model, line.modality, str(line.leg_count))
    return table

"""What calls would have cost with other models: their usage, priced once more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Final

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from voicecost_catalog import CatalogPriceBook, ModelPrice
from voicecost_catalog.names import vendor_and_models
from voicecost_ledger.entries import Leg
from voicecost_ledger.money import format_usd
from voicecost_ledger.records import LegAttributes, Modality
from voicecost_ledger.stores import Store
from voicecost_sidecar.periods import Period
from voicecost_sidecar.tables import harmless, plain_table, span_text

CALLS_SHOWN_MAX: Final = 100
_LEGS_AT_ONCE: Final = 1_000
CARRIED_OVER: Final = (
    "Quantities are carried over as they are: another model would count the same words as other "
    "numbers of tokens, say more or less, and be interrupted elsewhere."
)
_NO_PRICE_THEN: Final = "had no price"
_NO_PRICE_NOW: Final = "no price then"
_NOT_COUNTED: Final = "was not counted in what it bills by"


class Comparison(msgspec.Struct, kw_only=True):
    """What was charged, and what would have been. `key` is a modality or a call."""

    key: str
    leg_count: int = 0
    was_nano_usd: int = 0
    would_be_nano_usd: int = 0
    difference_nano_usd: int = 0

    def add(self, was: int, would_be: int) -> None:
        """One leg more."""
        self.leg_count += 1
        self.was_nano_usd += was
        self.would_be_nano_usd += would_be
        self.difference_nano_usd += would_be - was


class NotCompared(msgspec.Struct, kw_only=True):
    """Legs that are in neither sum: the amount on one side is not known."""

    modality: str
    model: str  # as it was, provider/model
    other_model: str
    reason: str
    leg_count: int = 0
    was_nano_usd: int = 0


class WhatIf(msgspec.Struct, frozen=True, kw_only=True):
    """Legs that began in a span and are over, as they were and with other models.

    A modality for which no other model is given keeps its cost. `calls` are those that differ
    most, at most 100 of the `call_count`.
    """

    from_unix_ms: int
    until_unix_ms: int
    models: dict[str, str]
    call_count: int
    total: Comparison
    modalities: list[Comparison]
    calls: list[Comparison]
    not_compared: list[NotCompared]
    note: str


def parse_models(text: str) -> dict[Modality, str]:
    """`stt=deepgram/nova-3,llm=openai/gpt-4o-mini` as a mapping.

    Raises:
        ValueError: It is not of that form.
    """
    models: dict[Modality, str] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        word, _, name = item.partition("=")
        known = [modality.value for modality in Modality]
        if word not in known or "/" not in name or Modality(word) in models:
            raise ValueError(
                f"models={item!r} is not understood: expected for example "
                f"stt=deepgram/nova-3,llm=openai/gpt-4o-mini; kinds are {', '.join(known)}, each "
                "once"
            )
        models[Modality(word)] = name
    if not models:
        raise ValueError("no models given: expected for example tts=cartesia/sonic-3")
    return models


def what_if(
    store: Store, prices: CatalogPriceBook, span: Period, models: Mapping[Modality, str]
) -> WhatIf:
    """Price a span's usage with other models, each leg at the prices of when it began.

    Raises:
        ValueError: There is no price of such a model, or none for that kind of service.
        StoreUnavailable: The ledger cannot be read.
    """
    others = {kind: _Other(prices, kind, name) for kind, name in models.items()}
    for other in others.values():
        other.check(span.until_unix_ms - 1)
    total = Comparison(key="total")
    by_modality: dict[str, Comparison] = {}
    by_call: dict[str, Comparison] = {}
    left_out: dict[tuple[str, ...], NotCompared] = {}
    for leg in _legs(store, span):
        kind, was = leg.attributes.modality, leg.rated_nano_usd
        other = others.get(kind)
        would_be, reason = (was, _NO_PRICE_THEN) if other is None else other.amount(leg)
        by_call.setdefault(leg.call_id, Comparison(key=leg.call_id))
        if was is None or would_be is None:
            name = "" if other is None else other.name
            model = f"{leg.attributes.provider}/{leg.billed_model}"
            why = _NO_PRICE_THEN if was is None else reason
            key = (kind.value, model, name, why)
            row = left_out.setdefault(
                key, NotCompared(modality=key[0], model=model, other_model=name, reason=why)
            )
            row.leg_count += 1
            row.was_nano_usd += was or 0
            continue
        own = by_modality.setdefault(kind.value, Comparison(key=kind.value))
        for comparison in (total, own, by_call[leg.call_id]):
            comparison.add(was, would_be)
    return WhatIf(
        from_unix_ms=span.from_unix_ms,
        until_unix_ms=span.until_unix_ms,
        models={kind.value: name for kind, name in models.items()},
        call_count=len(by_call),
        total=total,
        modalities=_furthest_first(by_modality.values()),
        calls=_furthest_first(by_call.values())[:CALLS_SHOWN_MAX],
        not_compared=sorted(left_out.values(), key=lambda row: -row.leg_count),
        note=CARRIED_OVER,
    )


class _Other:
    """Another model for one kind of service."""

    def __init__(self, prices: CatalogPriceBook, kind: Modality, name: str) -> None:
        self.name = name
        self._prices = prices
        self._kind = kind
        self._vendor, self._models = vendor_and_models(name)

    def check(self, at_unix_ms: int) -> None:
        found = self._prices.prices_of(self.name, at_unix_ms)
        if not found:
            raise ValueError(
                f"no price for {self.name!r}: expected provider/model; `voicecost prices` lists "
                "our own, LLM prices are genai-prices'"
            )
        if not any(self._fits(price) for price in found):
            kinds = ", ".join(sorted({price.modality.value for price in found}))
            raise ValueError(f"{self.name!r} is priced as {kinds}, not as {self._kind.value}")

    def amount(self, leg: Leg) -> tuple[int | None, str]:
        """What the leg would have cost, or None and why that is not known."""
        asked = leg.attributes
        # A model may be streamed only, or never.
        for model, streaming in product(self._models, (asked.streaming, not asked.streaming)):
            as_other = LegAttributes(
                modality=asked.modality,
                provider=self._vendor,
                model=model,
                language=asked.language,
                channel_count=asked.channel_count,
                streaming=streaming,
                addons=asked.addons,
            )
            price = self._prices.price_for(as_other, leg.started_at_unix_ms)
            if price is not None:
                return price.rate(leg.usage), _NOT_COUNTED
        return None, _NO_PRICE_NOW

    def _fits(self, price: ModelPrice) -> bool:
        # genai-prices' are all listed as LLMs.
        text = (Modality.LLM, Modality.REALTIME)
        return price.modality is self._kind or (price.modality in text and self._kind in text)


def _legs(store: Store, span: Period) -> Iterator[Leg]:
    after: tuple[int, int] | None = None
    while True:
        legs = store.closed_legs(
            from_unix_ms=span.from_unix_ms,
            until_unix_ms=span.until_unix_ms,
            after=after,
            limit=_LEGS_AT_ONCE,
        )
        yield from legs
        if len(legs) < _LEGS_AT_ONCE:
            return
        after = legs[-1].started_at_unix_ms, legs[-1].key


def _furthest_first(found: Iterable[Comparison]) -> list[Comparison]:
    return sorted(found, key=lambda one: (-abs(one.difference_nano_usd), one.key))


def what_if_table(found: WhatIf, time_zone: str) -> RenderableType:
    """By modality, by call, and what could not be compared."""
    found = harmless(found)
    span = Text(span_text(found.from_unix_ms, found.until_unix_ms, time_zone))
    if not found.call_count:
        return Group(span, Text("No leg that is over began in that span."))
    table = plain_table("kind", "with", show_footer=True)
    table.columns[0].footer = "total"
    names = ("legs", "was", "would be", "difference")
    for name, cell in zip(names, _cells(found.total), strict=True):
        table.add_column(name, justify="right", no_wrap=True, footer=cell)
    for row in found.modalities:
        table.add_row(row.key, found.models.get(row.key, "(as it was)"), *_cells(row))
    parts: list[RenderableType] = [span, table, Text(), _calls(found)]
    if found.not_compared:
        left_out = plain_table("kind", "model", "with", "not compared: it")
        for name in ("legs", "was"):
            left_out.add_column(name, justify="right", no_wrap=True)
        for row in found.not_compared:
            was = format_usd(row.was_nano_usd, places=6) if row.was_nano_usd else ""
            cells = (row.modality, row.model, row.other_model, row.reason)
            left_out.add_row(*cells, str(row.leg_count), was)
        parts += [Text(), left_out]
    return Group(*parts, Text(), Text(found.note, style="dim"))


def _calls(found: WhatIf) -> RenderableType:
    table = plain_table("call")
    for name in ("legs", "was", "would be", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found.calls[:20]:
        table.add_row(row.key, *_cells(row))
    more = found.call_count - min(20, len(found.calls))
    return Group(table, Text(f"and {more} more calls", style="dim")) if more else table


def _cells(row: Comparison) -> tuple[str, str, str, str]:
    amounts = (row.was_nano_usd, row.would_be_nano_usd, row.difference_nano_usd)
    was, would_be, difference = (format_usd(amount, places=6) for amount in amounts)
    return str(row.leg_count), was, would_be, difference

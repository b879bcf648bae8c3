"""How one entry of the ledger came about: from the ledger's own copy of its price, rule by rule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from voicecost_catalog.explain import Step, explain
from voicecost_catalog.listing import worded_rate
from voicecost_catalog.rates import ModelPrice, Rate, restore_price
from voicecost_ledger.billing import PPM
from voicecost_ledger.money import format_usd
from voicecost_ledger.records import Basis, Modality, Outcome
from voicecost_ledger.stores import EntryHistory, Store
from voicecost_sidecar.tables import harmless, moment_text, plain_grid, plain_table

_NUMBER_MAX: Final = 2**63 - 1  # a ledger can count no further, nor be asked


class PriceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The price that rated a leg. Days are UTC; "" is open."""

    price_id: str
    provider: str
    model: str
    rule: str
    plan: str
    kind: str
    pricing_source: str
    valid_from: str
    valid_until: str
    assumed: bool
    note: str


class OrderFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator ordered, where no price gave the amount: a flat fee or an adjustment."""

    kind: str  # "flat_fee", "adjustment"
    reason: str = ""
    by: str = ""


class EntryExplanation(msgspec.Struct, frozen=True, kw_only=True):
    """One entry, and how its amount came about.

    `rated_nano_usd` is the amount of the whole leg as known with this part: what was posted before
    it plus the part's own amount. The `steps` lead to it from `usage`, which is the whole leg's
    too; they are empty where no price was known or an operator ordered the amount, and say so where
    nobody counted what the price bills by. `agrees` is
    False where they lead elsewhere: then the ledger is damaged, or this version of voicecost
    counts otherwise than the one that posted.
    """

    number: int
    call_id: str
    meter_id: str
    leg: int
    part: int
    last_part: int
    modality: Modality
    provider: str
    model: str
    billed_model: str
    basis: Basis
    outcome: Outcome | None  # as it is now
    usage: dict[str, int]
    price: PriceFacts | None
    order: OrderFacts | None
    steps: list[Step]
    agrees: bool
    rated_nano_usd: int | None
    posted_before_nano_usd: int
    amount_nano_usd: int | None
    uncertainty_nano_usd: int | None
    markup_percent: str
    billed_before_nano_usd: int
    billed_nano_usd: int | None
    accrued_at_unix_ms: int
    posted_at_unix_ms: int


def read_explanation(store: Store, number: int) -> EntryExplanation:
    """How an entry came about.

    Args:
        store: The ledger.
        number: The entry's.

    Raises:
        LookupError: There is no such entry.
        ValueError: Its price was altered, or is of a newer version.
        StoreUnavailable: The ledger cannot be read.
    """
    found = store.entry(number) if number <= _NUMBER_MAX else None
    if found is None:
        raise LookupError(
            f"no entry {number} in this ledger: `voicecost call ID --json` lists a call's"
        )
    return _explanation(found)


def entry_of_leg(store: Store, call_id: str, leg: int, meter_id: str | None) -> int:
    """The number of the last entry of a call's leg.

    Raises:
        LookupError: Nothing is posted of such a leg.
        StoreUnavailable: The ledger cannot be read.
    """
    number = store.last_entry(call_id, leg, meter_id) if abs(leg) <= _NUMBER_MAX else None
    if number is None:
        of_meter = f" of meter {meter_id}" if meter_id else ""
        raise LookupError(
            f"nothing is posted of leg {leg}{of_meter} of call {call_id!r}: `voicecost call ID "
            "--json` lists its legs; what is open is posted at each quarter hour and at its end"
        )
    return number


def _explanation(found: EntryHistory) -> EntryExplanation:
    entry, leg = found.entry, found.leg
    amount = entry.amount_nano_usd
    rated = None if amount is None else found.posted_before_nano_usd + amount
    document = None if found.price_document is None else found.price_document.encode()
    order = None if document is None else _order(document)
    price = None if document is None or order is not None else restore_price(document)
    if price is not None and amount is None and price.rate(found.usage) is not None:
        price = None  # the leg got it later
    usage, steps, agrees = found.usage, list[Step](), True
    if price is not None:
        usage, steps, agrees = _steps(found, price, rated)
    return EntryExplanation(
        number=entry.number,
        call_id=found.call_id,
        meter_id=entry.meter_id,
        leg=entry.leg,
        part=entry.part,
        last_part=found.last_part,
        modality=leg.modality,
        provider=leg.provider,
        model=leg.model,
        billed_model=leg.billed_model,
        basis=entry.basis,
        outcome=leg.outcome,
        usage=usage,
        price=None if price is None else _facts(price),
        order=order,
        steps=steps,
        agrees=agrees,
        rated_nano_usd=rated,
        posted_before_nano_usd=found.posted_before_nano_usd,
        amount_nano_usd=amount,
        uncertainty_nano_usd=entry.uncertainty_nano_usd,
        markup_percent=_percent(found.markup_ppm),
        billed_before_nano_usd=found.billed_before_nano_usd,
        billed_nano_usd=entry.billed_nano_usd,
        accrued_at_unix_ms=entry.accrued_at_unix_ms,
        posted_at_unix_ms=entry.posted_at_unix_ms,
    )


def _steps(
    found: EntryHistory, price: ModelPrice, rated: int | None
) -> tuple[dict[str, int], list[Step], bool]:
    for usage in _usages(found):
        explained = explain(price, usage)
        if explained.amount_nano_usd == rated:
            return usage, explained.steps, True
    if not found.usage and rated == 0:
        return {}, [], True  # a checkpoint's leg of which nothing is left
    return found.usage, explain(price, found.usage).steps, False


def _usages(found: EntryHistory) -> Iterator[dict[str, int]]:
    """The usage as it may have been: an entry says what came with it, not which zeros were told."""
    told = {unit: quantity for unit, quantity in found.leg.usage.items() if quantity}
    if told == {unit: quantity for unit, quantity in found.usage.items() if quantity}:
        yield found.leg.usage
    yield found.usage
    yield dict.fromkeys(found.leg.usage, 0) | found.usage


def _order(document: bytes) -> OrderFacts | None:
    raw = msgspec.json.decode(document, type=dict[str, msgspec.Raw])
    for kind in ("adjustment", "flat_fee"):
        if kind in raw:
            told = msgspec.json.decode(raw[kind], type=dict[str, object])
            return OrderFacts(
                kind=kind, reason=str(told.get("reason", "")), by=str(told.get("by", ""))
            )
    return None


def _facts(price: ModelPrice) -> PriceFacts:
    return PriceFacts(
        price_id=price.price_id,
        provider=price.provider,
        model=price.model,
        rule=price.rule.value,
        plan=price.plan,
        kind=price.kind.value,
        pricing_source=price.pricing_source,
        valid_from=price.valid_from,
        valid_until=price.valid_until,
        assumed=price.assumed,
        note=price.note,
    )


def _percent(ppm: int) -> str:
    whole, rest = divmod(ppm, PPM // 100)
    return f"{whole}.{rest:04}".rstrip("0").rstrip(".")


# ---- as people read it -------------------------------------------------------------------------


def explanation_table(found: EntryExplanation, time_zone: str) -> RenderableType:
    """What was asked for, the price, each step, and the sum."""
    found = harmless(found)
    facts = plain_grid()
    outcome = found.outcome.value if found.outcome else "open"
    part = f"{found.part + 1} of {found.last_part + 1}"
    for name, value in (
        ("entry", f"{found.number}, part {part} of leg {found.leg}"),
        ("call", f"{found.call_id}, meter {found.meter_id}"),
        ("service", f"{found.modality.upper()} {found.provider} {_model_text(found)}, {outcome}"),
        ("used", ", ".join(f"{count:,} {unit}" for unit, count in found.usage.items())),
        ("known", found.basis.value),
        ("accrued", moment_text(found.accrued_at_unix_ms, time_zone)),
        ("posted", moment_text(found.posted_at_unix_ms, time_zone)),
        *_price_rows(found),
    ):
        if value:
            facts.add_row(Text(name, style="dim"), value)
    parts: list[RenderableType] = [facts, Text()]
    if found.steps:
        names = ("rule", "detail", "rate", "nano-USD", "source", "dated", "checked", "sure")
        steps = plain_table(*names)
        for step in found.steps:
            rate = step.rate
            steps.add_row(
                step.rule,
                _quantity_text(step) if rate else step.detail,
                _rate_text(step.unit, rate) if rate else "",
                step.exact_amount,
                _source_text(found, rate),
                rate.source_date if rate else "",
                rate.checked_on if rate else "",
                rate.confidence.value if rate and rate.confidence else "",
            )
        parts += [steps, Text()]
    return Group(*parts, _sums(found))


def _quantity_text(step: Step) -> str:
    _, bracket, note = step.detail.partition(" (")
    return f"{step.quantity} {step.unit}{bracket}{note}"


def _rate_text(unit: str, rate: Rate) -> str:
    usd, per = worded_rate(unit, rate)
    return f"${usd} a {per}"


def _source_text(found: EntryExplanation, rate: Rate | None) -> str:
    if rate is None:
        return ""
    return rate.source_url or (found.price.pricing_source if found.price else "")


def _model_text(found: EntryExplanation) -> str:
    other = found.billed_model != found.model
    return f"{found.model} (billed as {found.billed_model})" if other else found.model


def _price_rows(found: EntryExplanation) -> list[tuple[str, str]]:
    price = found.price
    if price is None:
        if found.order is not None:
            words = found.order.kind.replace("_", " ")
            why = f", by {found.order.by}: {found.order.reason}" if found.order.by else ""
            return [("ordered", f"{words}{why}")]
        return [("price", "none known: run `voicecost rerate` when there is one")]
    assumed = " (assumed)" if price.assumed else ""
    since = f"from {price.valid_from}" if price.valid_from else ""
    until = f"until {price.valid_until}" if price.valid_until else ""
    valid = " ".join(filter(None, (since, until))) or "its source names no day"
    plan = f", plan {price.plan}" if price.plan else ""
    return [
        ("price", f"{price.provider}/{price.model}, by {price.rule}{plan}, {price.pricing_source}"),
        ("valid", f"{valid}{assumed}"),
        ("note", price.note),
        ("price id", price.price_id),
    ]


def _sums(found: EntryExplanation) -> RenderableType:
    sums = plain_grid()

    def add(name: str, amount: int | None) -> None:
        sums.add_row(Text(name, style="dim"), format_usd(amount, places=9))

    add("the whole leg", found.rated_nano_usd)
    if found.part:
        add("posted before", found.posted_before_nano_usd)
    add("this entry", found.amount_nano_usd)
    if found.uncertainty_nano_usd is None and found.amount_nano_usd is not None:
        sums.add_row(Text("may be off by", style="dim"), "nobody can say how much")
    elif found.uncertainty_nano_usd:
        add("may be off by", found.uncertainty_nano_usd)
    if found.billed_nano_usd not in (None, found.amount_nano_usd):
        markup = "" if found.order else f", {found.markup_percent} % markup"
        add(f"billed{markup}", found.billed_nano_usd)
    if not found.agrees:
        warning = "These steps do not lead to what is posted: the ledger or its price was changed."
        return Group(sums, Text(warning, style="red"))
    return sums

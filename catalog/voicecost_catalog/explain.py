"""How an amount came about: each quantity, rule and rate that `ModelPrice.rate` applied, in words.

    explained = explain(price, usage)
    explained.amount_nano_usd == price.rate(usage)

Written for people who argue with a bill, so it is slow and plain: exact fractions, one line after
the other. It reckons on its own; a property test holds it equal to the arithmetic in `amounts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Final

import msgspec

from voicecost_catalog.rates import BILLED_UNITS, Kind, ModelPrice, Rate, Rule, is_speech
from voicecost_ledger.records import Modality


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One rule as it was applied, in order.

    `quantity` is what was there after it, exact ("2500/3" where it is no whole number), of `unit`.
    Only steps of the rule `rate` have a `rate` and an `exact_amount`: nano-USD before rounding.
    The step `round` has the sum of them, and the amount it was rounded to as its `quantity`.
    """

    rule: str  # counted, derived, minimum, step, channels, weight, markup, tier, rate, round
    detail: str
    unit: str = ""
    quantity: str = ""
    rate: Rate | None = None
    exact_amount: str = ""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """The steps from a usage to its amount; None: the usage does not tell what was billed."""

    steps: list[Step]
    amount_nano_usd: int | None


_UNKNOWN: Final = (
    "something was used, but not counted in what this price bills by, or the parts contradict "
    "their whole: the amount is not known"
)


def explain(price: ModelPrice, usage: Mapping[str, int]) -> Explanation:
    """How `price.rate(usage)` comes about.

    Args:
        price: The leg's price, restored from the ledger.
        usage: Unit to whole quantity, of the whole leg.

    Raises:
        ValueError: A billed quantity is negative or not an `int`.
    """
    amount = price.rate(usage)
    bill = _Bill(price, usage)
    if amount is None:
        bill.say("counted", _UNKNOWN)
        return Explanation(steps=bill.steps, amount_nano_usd=None)
    if price.rule is not Rule.TOKENS:
        _one_unit(bill)
    elif is_speech(price):
        _speech(bill)
    else:
        _tokens(bill)
    exact = bill.total
    bill.say(
        "round",
        f"{_text(exact)} nano-USD, rounded half to even once for the whole leg",
        "nano_usd",
        Fraction(round(exact)),
        exact_amount=_text(exact),
    )
    return Explanation(steps=bill.steps, amount_nano_usd=round(exact))


class _Bill:
    """The lines so far, and their exact sum."""

    def __init__(self, price: ModelPrice, usage: Mapping[str, int]) -> None:
        self.price = price
        self.usage = usage
        self.steps: list[Step] = []
        self.total = Fraction(0)

    def say(
        self,
        rule: str,
        detail: str,
        unit: str = "",
        quantity: Fraction | None = None,
        *,
        rate: Rate | None = None,
        exact_amount: str = "",
    ) -> None:
        text = "" if quantity is None else _text(quantity)
        self.steps.append(
            Step(
                rule=rule,
                detail=detail,
                unit=unit,
                quantity=text,
                rate=rate,
                exact_amount=exact_amount,
            )
        )

    def charge(self, unit: str, quantity: Fraction, rate: Rate, *, note: str = "") -> None:
        amount = quantity * rate.nano_usd / rate.per
        self.total += amount
        kind = "" if rate.kind is Kind.BASE else f", {rate.kind.value}"
        self.say(
            "rate",
            f"{_text(quantity)} {unit} x {rate.nano_usd} nano-USD per {rate.per}{kind}{note}",
            unit,
            quantity,
            rate=rate,
            exact_amount=_text(amount),
        )


def _one_unit(bill: _Bill) -> None:
    """Audio, time, characters, bytes, requests."""
    price, usage = bill.price, bill.usage
    unit = BILLED_UNITS[price.rule][0][0]
    counted, derived = usage.get(unit), price.derived.get(unit)
    if counted is None and derived is not None and derived.of in usage:
        quantity = Fraction(usage[derived.of] * derived.count, derived.per)
        where = f", as {derived.source_url} says" if derived.source_url else ""
        detail = f"{usage[derived.of]} {derived.of}, {derived.count} for every {derived.per}{where}"
        bill.say("derived", detail, unit, quantity)
    else:
        quantity = Fraction(counted or 0)
        bill.say("counted", f"{counted or 0} {unit}", unit, quantity)
    if price.rule in (Rule.AUDIO, Rule.SESSION) and quantity:
        if quantity < price.minimum_ms:
            quantity = Fraction(price.minimum_ms)
            bill.say("minimum", f"at least {price.minimum_ms} ms a request", unit, quantity)
        if price.step_ms > 1:
            begun = -(-quantity // price.step_ms)
            quantity = Fraction(begun * price.step_ms)
            detail = f"{begun} begun steps of {price.step_ms} ms"
            bill.say("step", detail, unit, quantity)
    if price.rule is Rule.CHARACTERS and quantity:
        wide, markup = (usage.get(f"{word}_characters", 0) for word in ("double_width", "markup"))
        if price.double_width_weight > 1:
            quantity += wide * (price.double_width_weight - 1)
            times = price.double_width_weight
            bill.say("weight", f"{wide} double-width ones count {times} times", unit, quantity)
        if price.free_markup:
            quantity -= markup
            bill.say("markup", f"{markup} in SSML tags are free", unit, quantity)
    if price.channel_count > 1:
        quantity *= price.channel_count
        detail = f"{price.channel_count} channels, each billed apart"
        bill.say("channels", detail, unit, quantity)
    bill.charge(unit, quantity, price.rates[unit])
    for addon, rate in price.addons.items():
        bill.charge(unit, quantity, rate, note=f" (for {addon})")


def _tokens(bill: _Bill) -> None:
    """A language model's request: the tier that its input reaches, then each kind of token."""
    price, get = bill.price, bill.usage.get
    tokens, cached, output = (
        get("input_tokens") or 0,
        get("cached_input_tokens", 0),
        get("output_tokens", 0),
    )
    rates = price.rates
    for tier in price.tiers:
        if tokens > tier.above_input_tokens:
            rates = tier.rates
    if price.tiers:
        reached = [t.above_input_tokens for t in price.tiers if tokens > t.above_input_tokens]
        above = f"the rates above {reached[-1]}" if reached else "the lowest rates"
        detail = f"{tokens} input tokens: {above} hold for the whole request"
        bill.say("tier", detail, "input_tokens", Fraction(tokens))
    parts = ("cache_write_tokens", "input_audio_tokens", "output_audio_tokens")
    on_top = any(
        of[unit].nano_usd
        for of in (price.rates, *(tier.rates for tier in price.tiers))
        for unit in ("requests", "connected_ms")
        if unit in of
    )
    split = on_top or any(get(unit) for unit in (*parts, "input_image_tokens"))
    written, heard, spoken = ((get(unit, 0) if split else 0) for unit in parts)
    seen = get("input_image_tokens", 0) if split else 0
    heard_cached = get("cached_input_audio_tokens", 0) if split else 0
    seen_cached = get("cached_input_image_tokens", 0) if split else 0
    fresh = tokens - cached - written - (heard - heard_cached) - (seen - seen_cached)
    text, said = "input_tokens", "output_tokens"
    for unit, count, rated_by in (
        (text, fresh, (text,)),
        ("cached_input_tokens", cached - heard_cached - seen_cached, ("cached_input_tokens", text)),
        ("cache_write_tokens", written, ("cache_write_tokens", text)),
        ("input_audio_tokens", heard - heard_cached, ("input_audio_tokens", text)),
        ("cached_input_audio_tokens", heard_cached, _rating_cached(rates, "audio")),
        ("input_image_tokens", seen - seen_cached, ("input_image_tokens", text)),
        ("cached_input_image_tokens", seen_cached, _rating_cached(rates, "image")),
        (said, output - spoken, (said,)),
        ("output_audio_tokens", spoken, ("output_audio_tokens", said)),
    ):
        if count:
            rated_as = next(name for name in rated_by if name in rates)
            note = "" if rated_as == unit else f" (no rate of its own: as {rated_as})"
            bill.charge(unit, Fraction(count), rates[rated_as], note=note)
    fee = rates.get("requests")
    if fee is not None and split and (tokens or output):
        bill.charge("requests", Fraction(get("requests", 1)), fee)
    connected_ms = get("connected_ms")
    if connected_ms and "connected_ms" in rates:
        bill.charge("connected_ms", Fraction(connected_ms), rates["connected_ms"])


def _rating_cached(rates: Mapping[str, Rate], kind: str) -> tuple[str, ...]:
    """Whose rate holds for cached audio or pictures, first found, as `amounts.Tokens` has it."""
    own, unit = f"input_{kind}_tokens", f"cached_input_{kind}_tokens"
    return (unit, own) if own in rates else (unit, "cached_input_tokens", "input_tokens")


def _speech(bill: _Bill) -> None:
    """Text and audio tokens of which few are counted: each side counted, else derived."""
    price, usage = bill.price, bill.usage
    counted = ("input_tokens", "output_tokens", "input_audio_tokens", "output_audio_tokens")
    if "audio_ms" in price.rates and not any(usage.get(unit) for unit in counted):
        time = usage.get("audio_ms", 0)
        bill.say("derived", "no token was counted: the provider's estimate by the time stands in")
        bill.charge("audio_ms", Fraction(time), price.rates["audio_ms"])
        return
    listens = price.modality is Modality.STT and "input_audio_tokens" in price.rates
    speaks = price.modality is Modality.TTS and "output_audio_tokens" in price.rates
    read = _side(bill, "input_tokens", "input_audio_tokens", unsplit_is_audio=listens)
    said = _side(bill, "output_tokens", "output_audio_tokens", unsplit_is_audio=speaks)
    cached = usage.get("cached_input_tokens", 0) if read else 0
    for unit, count in (*read, *(said if read else ())):
        if cached and unit == "input_tokens":
            rated_as = "cached_input_tokens" if "cached_input_tokens" in price.rates else unit
            note = "" if rated_as != unit else " (no rate of its own: as input_tokens)"
            bill.charge("cached_input_tokens", Fraction(cached), price.rates[rated_as], note=note)
            count -= cached
        if count:
            bill.charge(unit, count, price.rates[unit])


def _side(
    bill: _Bill, total: str, audio: str, *, unsplit_is_audio: bool
) -> list[tuple[str, Fraction]]:
    """Text and audio tokens of one direction; none where neither was counted or can be derived."""
    usage, price = bill.usage, bill.price
    tokens, spoken = usage.get(total), usage.get(audio)
    if tokens is None and spoken is None:
        found: list[tuple[str, Fraction]] = []
        for unit in (total, audio):
            derived = price.derived.get(unit)
            if derived is not None and derived.of in usage:
                count = Fraction(usage[derived.of] * derived.count, derived.per)
                detail = (
                    f"{usage[derived.of]} {derived.of}, {derived.count} for every {derived.per}"
                )
                where = f", as {derived.source_url} says" if derived.source_url else ""
                bill.say("derived", detail + where, unit, count)
                found.append((unit, count))
        return found
    if tokens is None:
        tokens = spoken or 0
    if spoken is None:
        spoken = tokens if unsplit_is_audio else 0
        if spoken:
            bill.say("counted", f"{tokens} {total}, not split: all of it is audio", total)
    return [(total, Fraction(tokens - spoken)), (audio, Fraction(spoken))]


def _text(quantity: Fraction) -> str:
    return str(quantity)

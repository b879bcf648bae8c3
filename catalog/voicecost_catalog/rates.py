"""What a unit costs, and what a leg's usage comes to: exact integers, no clock, no lookup.

A *rate* is a ratio of integers, nano-USD per so many units, because an audio price is not a whole
number of nano-USD per millisecond. A leg is rounded once, half to even, at the very end, so that
the parts posted of it always sum to the rate of its total.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final, cast

import msgspec

from voicecost_ledger.records import Modality


class Rule(StrEnum):
    """How a service turns raw counts into what it bills."""

    AUDIO = "audio"  # milliseconds of audio sent, silence included, times the channels
    CHARACTERS = "characters"  # Unicode code points submitted, heard or not
    TOKENS = "tokens"  # tokens of one request; cached input is a part of the input


class Confidence(StrEnum):
    """How sure the source of a rate is."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


# The first unit of each rule is the one without which a usage is not known.
BILLED_UNITS: Final[dict[Rule, tuple[str, ...]]] = {
    Rule.AUDIO: ("audio_ms",),
    Rule.CHARACTERS: ("characters",),
    Rule.TOKENS: ("input_tokens", "output_tokens"),
}
OPTIONAL_UNITS: Final[dict[Rule, tuple[str, ...]]] = {
    Rule.AUDIO: (),
    Rule.CHARACTERS: (),
    Rule.TOKENS: ("cached_input_tokens",),  # without its own rate it costs what any input costs
}
# An open connection is no sign that anything billable was sent over it.
_NO_WITNESS: Final = "connected_ms"


class Rate(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """The price of one unit: `nano_usd` for every `per` of it. Zero means free.

    `source_url` and the dates say where the figure was read, on a page of which day, and when it
    was last compared with that page; `via` names who carried it here.
    """

    nano_usd: int
    per: int
    source_url: str = ""
    source_date: str = ""
    checked_on: str = ""
    confidence: Confidence | None = None  # None: the source does not say
    via: str = ""

    def __post_init__(self) -> None:
        """Refuse a rate that is no price."""
        if self.nano_usd < 0 or self.per < 1:
            raise ValueError(
                f"a rate of {self.nano_usd} nano-USD per {self.per} is no price: "
                "expected at least 0, per at least 1"
            )


class Tier(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Rates of a whole request whose input is longer than `above_input_tokens`."""

    above_input_tokens: int
    rates: dict[str, Rate]


class ModelPrice(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    dict=True,  # for `_compiled`, which is no part of the price
):
    """One dated price of one model on one plan. Implements `voicecost_ledger.pricing.Price`.

    Immutable, and complete: everything that can change an amount is in here and in `price_id`.

    Raises:
        ValueError: A unit that the rule bills by has no rate, one it does not know has, tiers do
            not rise, there is no channel, or a stated `price_id` is not that of the content.
    """

    provider: str
    model: str
    modality: Modality
    rule: Rule
    pricing_source: str  # "genai-prices@0.2.3", "voicecost-catalog@2026-11-04"
    rates: dict[str, Rate]
    tiers: tuple[Tier, ...] = ()  # rising; the last one exceeded applies
    channel_count: int = 1  # billed apart: `audio_ms` counts one of them
    plan: str = ""
    valid_from: str = ""  # UTC days, the second one no longer included; "" when open
    valid_until: str = ""
    note: str = ""
    price_id: str = ""  # filled in: hash of all of the above

    def __post_init__(self) -> None:
        """Check the price and give it its id."""
        for rates in (self.rates, *(tier.rates for tier in self.tiers)):
            _check_units(self.rule, rates)
        starts = [tier.above_input_tokens for tier in self.tiers]
        if starts != sorted(set(starts)) or (starts and self.rule is not Rule.TOKENS):
            raise ValueError(f"tiers above {starts} input tokens: expected rising, for tokens only")
        if self.channel_count < 1:
            raise ValueError(f"cannot bill channel_count={self.channel_count}: expected at least 1")
        stated = self.price_id
        msgspec.structs.force_setattr(self, "price_id", "")
        price_id = hashlib.sha256(_encode(self)).hexdigest()[:32]
        if stated not in ("", price_id):
            raise ValueError(f"price {stated!r} was altered: its content has the id {price_id!r}")
        msgspec.structs.force_setattr(self, "price_id", price_id)
        cast("dict[str, object]", self.__dict__)["_compiled"] = _compile(self)

    def rate(self, usage: Mapping[str, int]) -> int | None:
        """Nano-USD for a leg's cumulative usage, rounded half-even once.

        Args:
            usage: Unit to whole quantity. Units that the rule does not bill by are ignored.

        Returns:
            The amount; None when it cannot be known: the usage holds no quantity of the unit that
            is billed although something was used, or more cached than input tokens.

        Raises:
            ValueError: A billed quantity is negative or not an `int`.
        """
        compiled: _Tokens | _Quantity = self.__dict__["_compiled"]
        return compiled.amount(usage)

    def document(self) -> bytes:
        """JSON of the whole price, its id included; `restore_price` reads it."""
        return _encode(self)


class _Quantity:
    """A price by one unit, ready for an agent's event loop: asked for every chunk and frame."""

    __slots__ = ("nano_usd", "per", "unit")

    def __init__(self, unit: str, nano_usd: int, per: int) -> None:
        self.unit = unit
        self.nano_usd = nano_usd
        self.per = per

    def amount(self, usage: Mapping[str, int]) -> int | None:
        quantity = usage.get(self.unit)
        if type(quantity) is not int or quantity < 0:
            quantity = _billed(usage, self.unit)
            if quantity is None:
                return None
        return _half_even(quantity * self.nano_usd, self.per)


class _Tokens:
    """A price by tokens, its rates over one denominator for each tier.

    One fraction: rounding the three products apart would not telescope.
    """

    __slots__ = ("tiers",)

    def __init__(self, tiers: Sequence[tuple[int, dict[str, Rate]]]) -> None:
        # (above, input, cached, output, per), the highest tier first
        self.tiers: list[tuple[int, int, int, int, int]] = []
        for above, rates in reversed(tiers):
            read, said = rates["input_tokens"], rates["output_tokens"]
            cached = rates.get("cached_input_tokens", read)
            per = math.lcm(read.per, cached.per, said.per)
            factors = [rate.nano_usd * (per // rate.per) for rate in (read, cached, said)]
            self.tiers.append((above, factors[0], factors[1], factors[2], per))

    def amount(self, usage: Mapping[str, int]) -> int | None:
        get = usage.get
        tokens, cached, output = (
            get("input_tokens"),
            get("cached_input_tokens", 0),
            get("output_tokens", 0),
        )
        if (
            type(tokens) is not int
            or type(cached) is not int
            or type(output) is not int
            or not 0 <= cached <= tokens
            or output < 0
        ):
            tokens = _billed(usage, "input_tokens")
            cached = _checked("cached_input_tokens", cached)
            output = _checked("output_tokens", output)
            if tokens is None or cached > tokens:
                return None
        amount, per = 0, 1
        for above, read, of_cache, said, per in self.tiers:  # noqa: B007 (the tier that holds)
            if tokens > above:
                amount = (tokens - cached) * read + cached * of_cache + output * said
                break
        return _half_even(amount, per)


def _half_even(numerator: int, per: int) -> int:
    """`money.round_half_even`, without its check: `per` was checked with the rate."""
    quotient, remainder = divmod(numerator, per)
    twice = remainder * 2
    return quotient + 1 if twice > per or (twice == per and quotient % 2) else quotient


def _compile(price: ModelPrice) -> _Tokens | _Quantity:
    if price.rule is Rule.TOKENS:
        above = [(tier.above_input_tokens, tier.rates) for tier in price.tiers]
        return _Tokens([(-1, price.rates), *above])
    unit = "audio_ms" if price.rule is Rule.AUDIO else "characters"
    rate = price.rates[unit]
    return _Quantity(unit, rate.nano_usd * price.channel_count, rate.per)


_encoder: Final = msgspec.json.Encoder(order="sorted")
_decoder: Final = msgspec.json.Decoder(ModelPrice)


def _encode(price: ModelPrice) -> bytes:
    return _encoder.encode(price)


def restore_price(document: bytes) -> ModelPrice:
    """The price a ledger stored, equal to the one it was taken from.

    Raises:
        ValueError: The document is no price, was altered, or was written by a newer version that
            knows a rule this one does not.
    """
    try:
        return _decoder.decode(document)
    except msgspec.DecodeError as error:
        raise ValueError(
            f"a stored price cannot be read: {error}. It was altered, or a newer voicecost wrote "
            "it: use at least that version"
        ) from error


def _check_units(rule: Rule, rates: Mapping[str, Rate]) -> None:
    for unit in BILLED_UNITS[rule]:
        if unit not in rates:
            raise ValueError(f"rule {rule.value!r} bills {unit!r}, which has no rate")
    for unit in rates:
        if unit not in BILLED_UNITS[rule] and unit not in OPTIONAL_UNITS[rule]:
            allowed = ", ".join(BILLED_UNITS[rule] + OPTIONAL_UNITS[rule])
            raise ValueError(f"rule {rule.value!r} does not bill {unit!r}: expected {allowed}")


def _billed(usage: Mapping[str, int], unit: str) -> int | None:
    quantity = usage.get(unit)
    if quantity is not None:
        return _checked(unit, quantity)
    # Nothing used yet is nothing owed; but what was used and not counted in `unit` is not known.
    return None if any(count for name, count in usage.items() if name != _NO_WITNESS) else 0


def _checked(unit: str, quantity: int) -> int:
    # A float or a bool would be billed without a word; type() is exact on purpose.
    if type(quantity) is not int or quantity < 0:
        raise ValueError(f"cannot price {unit}={quantity!r}: expected a whole number, at least 0")
    return quantity

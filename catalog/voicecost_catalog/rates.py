"""What a unit costs, and what a leg's usage comes to: exact integers, no clock, no lookup.

A *rate* is a ratio of integers, nano-USD per so many units, because an audio price is not a whole
number of nano-USD per millisecond. A leg is rounded once, half to even, at the very end, so that
the parts posted of it always sum to the rate of its total.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec

from voicecost_ledger.money import round_half_even
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
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
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
        if self.rule is Rule.TOKENS:
            return self._token_amount(usage)
        unit = "audio_ms" if self.rule is Rule.AUDIO else "characters"
        quantity = _billed(usage, unit)
        if quantity is None:
            return None
        rate = self.rates[unit]
        return round_half_even(quantity * self.channel_count * rate.nano_usd, per=rate.per)

    def document(self) -> bytes:
        """JSON of the whole price, its id included; `restore_price` reads it."""
        return _encode(self)

    def _token_amount(self, usage: Mapping[str, int]) -> int | None:
        input_tokens = _billed(usage, "input_tokens")
        cached_tokens = _checked("cached_input_tokens", usage.get("cached_input_tokens", 0))
        output_tokens = _checked("output_tokens", usage.get("output_tokens", 0))
        if input_tokens is None or cached_tokens > input_tokens:
            return None
        rates = self.rates
        for tier in self.tiers:
            if input_tokens > tier.above_input_tokens:
                rates = tier.rates
        input_rate, output_rate = rates["input_tokens"], rates["output_tokens"]
        cached_rate = rates.get("cached_input_tokens", input_rate)
        # One fraction over one denominator: rounding the three products apart would not telescope.
        per = input_rate.per
        amount = (input_tokens - cached_tokens) * input_rate.nano_usd
        for tokens, rate in ((cached_tokens, cached_rate), (output_tokens, output_rate)):
            if rate.per == per:
                amount += tokens * rate.nano_usd
            else:
                amount = amount * rate.per + tokens * rate.nano_usd * per
                per *= rate.per
        return round_half_even(amount, per=per)


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

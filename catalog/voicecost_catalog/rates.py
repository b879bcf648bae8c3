"""What a unit costs, and what a leg's usage comes to: exact integers, no clock, no lookup.

A *rate* is a ratio of integers, nano-USD per so many units, because an audio price is not a whole
number of nano-USD per millisecond. A leg is rounded once, half to even, at the very end, so that
the parts posted of it always sum to the rate of its total.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Final, cast

import msgspec

from voicecost_catalog.amounts import (
    Amount,
    Characters,
    Quantity,
    Ratio,
    Source,
    SpeechTokens,
    Timed,
    Tokens,
)
from voicecost_ledger.records import Modality


class Rule(StrEnum):
    """How a service turns raw counts into what it bills."""

    AUDIO = "audio"  # milliseconds of audio: STT sent, silence included, x channels; TTS generated
    SESSION = "session"  # wall clock for which the connection was open, silent or not
    CHARACTERS = "characters"  # Unicode code points submitted, heard or not
    BYTES = "bytes"  # the same text as UTF-8
    TOKENS = "tokens"  # tokens of one request; cached and audio tokens are parts of the others
    TRAFFIC = "traffic"  # bytes that left a room for its participants
    RECURRING = "recurring"  # months, such as of a number: no leg has any
    REQUESTS = "requests"  # each request alike, whatever was in it


class Kind(StrEnum):
    """What a price is. Only the first three rate legs; the rest is kept to be read."""

    BASE = "base"
    SUPERSEDED = "superseded"  # held until a known or assumed day
    SELF_HOSTED = "self_hosted"  # runs on the operator's own machine: nobody bills, known zero
    ADDON = "addon"  # comes on top of a base price when an option is on
    ESTIMATE = "estimate"  # the provider's own rule of thumb, for want of what it bills by
    FIXED = "fixed"
    RULE = "rule"


class Confidence(StrEnum):
    """How sure the source of a rate is."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


# One unit of each group must have a rate; without the first group's a usage is not known.
BILLED_UNITS: Final[dict[Rule, tuple[tuple[str, ...], ...]]] = {
    Rule.AUDIO: (("audio_ms",),),
    Rule.SESSION: (("connected_ms",),),
    Rule.CHARACTERS: (("characters",),),
    Rule.BYTES: (("utf8_bytes",),),
    Rule.TOKENS: (
        ("input_tokens", "input_audio_tokens"),
        ("output_tokens", "output_audio_tokens"),
    ),
    Rule.REQUESTS: (("requests",),),
    Rule.TRAFFIC: (("downstream_bytes",),),
    Rule.RECURRING: (("months",),),
}
OPTIONAL_UNITS: Final[dict[Rule, tuple[str, ...]]] = {
    # A part without its own rate costs what the whole does. `requests` is a fee for each request,
    # `connected_ms` one for the time of the connection, both on top of the tokens. `audio_ms` is
    # the provider's estimate of the whole, for a leg whose tokens nobody counted.
    Rule.TOKENS: (
        "cached_input_tokens",
        "cache_write_tokens",
        "cached_input_audio_tokens",
        "input_image_tokens",
        "cached_input_image_tokens",
        "requests",
        "connected_ms",
        "audio_ms",
    ),
}


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
    kind: Kind = Kind.BASE

    def __post_init__(self) -> None:
        """Refuse a rate that is no price."""
        if self.nano_usd < 0 or self.per < 1:
            raise ValueError(
                f"a rate of {self.nano_usd} nano-USD per {self.per} is no price: "
                "expected at least 0, per at least 1"
            )


class Derived(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Where a billed unit comes from when nobody counted it: `count` for every `per` of `of`.

    A rule of thumb that the provider states, such as 25 audio tokens a second.
    """

    of: str
    count: int
    per: int
    source_url: str = ""
    via: str = ""  # how it was arrived at, where no page says it

    def __post_init__(self) -> None:
        """Refuse a conversion that is none."""
        if self.count < 1 or self.per < 1:
            raise ValueError(
                f"a conversion of {self.count} for every {self.per} of {self.of!r} is none: "
                "expected at least 1 and 1"
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
    addons: dict[str, Rate] = {}  # on top, of the same unit: what options that are on cost
    tiers: tuple[Tier, ...] = ()  # rising; the last one exceeded applies
    derived: dict[str, Derived] = {}  # billed unit to what it is made of where it is not counted
    minimum_ms: int = 0  # of a request that sent anything
    step_ms: int = 1  # begun ones are whole ones
    double_width_weight: int = 1  # what a Chinese character counts for
    free_markup: bool = False  # SSML tags are no characters
    channel_count: int = 1  # billed apart: `audio_ms` counts one of them
    plan: str = ""
    valid_from: str = ""  # UTC days, the second one no longer included; "" when open
    valid_until: str = ""
    kind: Kind = Kind.BASE
    assumed: bool = False  # a day of validity is our reading, not the source's word
    note: str = ""
    price_id: str = ""  # filled in: hash of all of the above

    def __post_init__(self) -> None:
        """Check the price and give it its id."""
        for rates in (self.rates, *(tier.rates for tier in self.tiers)):
            _check_units(self.rule, rates)
        starts = [tier.above_input_tokens for tier in self.tiers]
        if starts != sorted(set(starts)) or (starts and self.rule is not Rule.TOKENS):
            raise ValueError(f"tiers above {starts} input tokens: expected rising, for tokens only")
        for name in ("channel_count", "step_ms", "double_width_weight"):
            if getattr(self, name) < 1:
                raise ValueError(f"cannot bill {name}={getattr(self, name)}: expected at least 1")
        _check_rule(self)
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
        compiled: Amount = self.__dict__["_compiled"]
        return compiled.amount(usage)

    def converts(self, usage: Mapping[str, int]) -> bool:
        """Whether the amount rests on a rule of thumb: what is billed was not counted itself."""
        counted = [unit for group in BILLED_UNITS[self.rule] for unit in group]
        if self.rule is Rule.TOKENS and "audio_ms" in self.rates:
            return bool(usage.get("audio_ms")) and not any(usage.get(unit) for unit in counted)
        for group in BILLED_UNITS[self.rule]:
            if all(usage.get(unit) is None for unit in group):
                sources = [self.derived[unit].of for unit in group if unit in self.derived]
                if any(usage.get(of) for of in sources):
                    return True
        return False

    def document(self) -> bytes:
        """JSON of the whole price, its id included; `restore_price` reads it."""
        return _encode(self)


def is_speech(price: ModelPrice) -> bool:
    """Whether tokens are a voice's or a recognizer's, of which few are counted."""
    return price.rule is Rule.TOKENS and (
        price.modality in (Modality.STT, Modality.TTS)
        or bool(price.derived)
        or "audio_ms" in price.rates
    )


def _compile(price: ModelPrice) -> Amount:
    """The price, ready for an agent's event loop: asked for every chunk and frame."""
    if price.rule is Rule.TOKENS:
        rates = _ratios(price.rates)
        if is_speech(price):
            return SpeechTokens(
                rates,
                {unit: _source(derived) for unit, derived in price.derived.items()},
                listens=price.modality is Modality.STT,
                speaks=price.modality is Modality.TTS,
            )
        above = [(tier.above_input_tokens, _ratios(tier.rates)) for tier in price.tiers]
        return Tokens([(-1, rates), *above])
    unit = BILLED_UNITS[price.rule][0][0]
    nano_usd, per = price.rates[unit].nano_usd, price.rates[unit].per
    for addon in price.addons.values():
        nano_usd, per = nano_usd * addon.per + addon.nano_usd * per, per * addon.per
    rate = nano_usd * price.channel_count, per
    if price.minimum_ms or price.step_ms > 1 or price.derived:
        return Timed(
            unit,
            rate,
            minimum_ms=price.minimum_ms,
            step_ms=price.step_ms,
            source=_source(price.derived[unit]) if unit in price.derived else None,
        )
    if price.double_width_weight > 1 or price.free_markup:
        return Characters(
            rate, double_width_weight=price.double_width_weight, free_markup=price.free_markup
        )
    return Quantity(unit, rate)


def _ratios(rates: Mapping[str, Rate]) -> dict[str, Ratio]:
    return {unit: (rate.nano_usd, rate.per) for unit, rate in rates.items()}


def _source(derived: Derived) -> Source:
    return derived.of, derived.count, derived.per


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
    groups = BILLED_UNITS[rule]
    for group in groups:
        if not any(unit in rates for unit in group):
            raise ValueError(f"rule {rule.value!r} bills {group[0]!r}, which has no rate")
    allowed = [unit for group in groups for unit in group] + [*OPTIONAL_UNITS.get(rule, ())]
    for unit in rates:
        if unit not in allowed:
            expected = ", ".join(allowed)
            raise ValueError(f"rule {rule.value!r} does not bill {unit!r}: expected {expected}")


def _check_rule(price: ModelPrice) -> None:
    """Refuse what the price's rule would pass over in silence."""
    timed = price.rule in (Rule.AUDIO, Rule.SESSION)
    if price.minimum_ms < 0 or (not timed and (price.minimum_ms or price.step_ms > 1)):
        raise ValueError(
            f"minimum_ms={price.minimum_ms}, step_ms={price.step_ms}: expected at least 0 and 1, "
            "for audio and session only"
        )
    if price.rule is not Rule.CHARACTERS and (price.double_width_weight > 1 or price.free_markup):
        raise ValueError("double_width_weight and free_markup are for characters only")
    if price.channel_count > 1 and price.rule is not Rule.AUDIO:
        raise ValueError("channel_count is for audio only")
    if price.addons and price.rule is Rule.TOKENS:
        raise ValueError("add-ons are for what is billed by one unit, not for tokens")
    if is_speech(price) and (price.tiers or "connected_ms" in price.rates):
        raise ValueError("tiers and connected_ms are for language models only, and nothing derived")
    convertible = {
        Rule.AUDIO: ("audio_ms",),
        Rule.TOKENS: (*BILLED_UNITS[Rule.TOKENS][0], *BILLED_UNITS[Rule.TOKENS][1]),
    }.get(price.rule, ())
    for unit, derived in price.derived.items():
        if unit not in price.rates or unit not in convertible or derived.of in price.rates:
            raise ValueError(
                f"{unit!r} derived of {derived.of!r}: expected a unit with a rate "
                f"({', '.join(convertible) or 'none for this rule'}) of one without"
            )

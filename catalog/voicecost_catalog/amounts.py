"""From a usage to an amount: one small class for each way of billing, made once for a price.

An agent asks for the amount of every chunk and frame, so everything that does not depend on the
usage is worked out in the constructors. Each amount is one fraction, rounded half to even once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

# Audio tokens are a part of the input and output tokens, as cached ones are.
SPEECH_UNITS: Final = frozenset({"input_audio_tokens", "output_audio_tokens"})
# An open connection is no sign that anything billable was sent over it.
_NO_WITNESS: Final = "connected_ms"


# Plain tuples: this is imported by every job, and a class of named ones costs a millisecond.
Ratio = tuple[int, int]
"""So many for every so many: nano-USD for units, or units for another unit."""
Source = tuple[str, int, int]
"""What stands in for a unit that nobody counted: its unit, and how many for every how many."""
_Part = tuple[str, int, int]
"""Tokens of one unit, as numerator and denominator."""


class Quantity:
    """A price by one unit and nothing else."""

    __slots__ = ("nano_usd", "per", "unit")

    def __init__(self, unit: str, rate: Ratio) -> None:
        self.unit = unit
        self.nano_usd, self.per = rate

    def amount(self, usage: Mapping[str, int]) -> int | None:
        """Quantity x rate."""
        quantity = usage.get(self.unit)
        if type(quantity) is not int or quantity < 0:
            quantity = _billed(usage, self.unit)
            if quantity is None:
                return None
        return _half_even(quantity * self.nano_usd, self.per)


class Timed:
    """A price by time with a minimum a request, begun steps that count whole, or derived time."""

    __slots__ = ("minimum_ms", "nano_usd", "per", "source", "step_ms", "unit")

    def __init__(
        self, unit: str, rate: Ratio, *, minimum_ms: int, step_ms: int, source: Source | None
    ) -> None:
        self.unit = unit
        self.nano_usd, self.per = rate
        self.minimum_ms = minimum_ms
        self.step_ms = step_ms
        self.source = source

    def amount(self, usage: Mapping[str, int]) -> int | None:
        """Minimum, then step, then rate. A request that sent nothing has no minimum."""
        found = _sourced(usage, self.unit, self.source)
        if found is None:
            return None
        time, parts = found  # time / parts milliseconds
        if time:
            time = max(time, self.minimum_ms * parts)
            if self.step_ms > 1:
                step = self.step_ms * parts
                time = -(-time // step) * step
        return _half_even(time * self.nano_usd, self.per * parts)


class Characters:
    """A price by characters of which some count more, or not at all."""

    __slots__ = ("double_width_weight", "free_markup", "nano_usd", "per")

    def __init__(self, rate: Ratio, *, double_width_weight: int, free_markup: bool) -> None:
        self.nano_usd, self.per = rate
        self.double_width_weight = double_width_weight
        self.free_markup = free_markup

    def amount(self, usage: Mapping[str, int]) -> int | None:
        """None too where a part that counts differently was not counted."""
        characters = _billed(usage, "characters")
        if not characters:
            return characters
        if self.double_width_weight > 1:
            wide = _known(usage, "double_width_characters")
            if wide is None or wide > characters:
                return None
            characters += wide * (self.double_width_weight - 1)
        if self.free_markup:
            markup = _known(usage, "markup_characters")
            if markup is None or markup > characters:
                return None
            characters -= markup
        return _half_even(characters * self.nano_usd, self.per)


class Tokens:
    """A price by the tokens of one request, of every kind, its rates over one denominator a tier.

    One fraction: rounding the products apart would not telescope. Where a kind has no rate of its
    own, the nearest wider one holds, as genai-prices has it: cached text costs what text costs,
    audio what text costs. Only cached audio (or a cached picture) between two such rates is not
    known.

    Args:
        tiers: (above so many input tokens, the rates then), the lowest first.
    """

    __slots__ = ("request", "tiers")

    def __init__(self, tiers: Sequence[tuple[int, Mapping[str, Ratio]]]) -> None:
        # (above, input, cached, output, per), the highest tier first; the rest for what is rare
        self.tiers: list[tuple[int, int, int, int, int, dict[str, int | None]]] = []
        for above, rates in reversed(tiers):
            per = math.lcm(*(of for _, of in rates.values()))
            factors = {unit: nano_usd * (per // of) for unit, (nano_usd, of) in rates.items()}
            text, cached = factors["input_tokens"], factors.get("cached_input_tokens")
            rare: dict[str, int | None] = {
                "cache_write_tokens": factors.get("cache_write_tokens", text),
                "output_audio_tokens": factors.get("output_audio_tokens", factors["output_tokens"]),
                "requests": factors.get("requests", 0),
            }
            for kind in ("audio", "image"):
                own = factors.get(f"input_{kind}_tokens")
                both = own if cached is None else cached if own is None else None
                of_cached = factors.get(f"cached_input_{kind}_tokens", both)
                rare[f"input_{kind}_tokens"] = text if own is None else own
                rare[f"cached_input_{kind}_tokens"] = (
                    text if own is None and cached is None else of_cached
                )
            self.tiers.append(
                (
                    above,
                    text,
                    text if cached is None else cached,
                    factors["output_tokens"],
                    per,
                    rare,
                )
            )
        self.request = any(rare["requests"] for *_, rare in self.tiers)

    def amount(self, usage: Mapping[str, int]) -> int | None:
        """The tier that the input reaches holds for the whole request."""
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
        for above, read, of_cache, said, per, rare in self.tiers:  # noqa: B007 (the tier that holds)
            if tokens > above:
                amount = (tokens - cached) * read + cached * of_cache + output * said
                if (
                    self.request
                    or get("cache_write_tokens")
                    or get("input_audio_tokens")
                    or get("output_audio_tokens")
                    or get("input_image_tokens")
                ):
                    more = _rare(usage, tokens, cached, output, read, of_cache, said, rare)
                    if more is None:
                        return None
                    amount += more
                break
        return _half_even(amount, per)


def _rare(
    usage: Mapping[str, int],
    tokens: int,
    cached: int,
    output: int,
    read: int,
    of_cache: int,
    said: int,
    rates: Mapping[str, int | None],
) -> int | None:
    """What parts that are no text add to the amount as if all were text; None: not known."""
    written = _checked("cache_write_tokens", usage.get("cache_write_tokens", 0))
    spoken = _checked("output_audio_tokens", usage.get("output_audio_tokens", 0))
    more = written * ((rates["cache_write_tokens"] or 0) - read)
    more += spoken * ((rates["output_audio_tokens"] or 0) - said)
    plain, plain_cached = tokens - cached - written, cached
    for kind in ("audio", "image"):
        of_kind = _checked(f"input_{kind}_tokens", usage.get(f"input_{kind}_tokens", 0))
        unit = f"cached_input_{kind}_tokens"
        of_kind_cached = _checked(unit, usage.get(unit, 0))
        rate, rate_cached = rates[f"input_{kind}_tokens"], rates[unit]
        if of_kind_cached > of_kind or (of_kind_cached and rate_cached is None):
            return None
        more += (of_kind - of_kind_cached) * ((rate or 0) - read)
        more += of_kind_cached * ((rate_cached or 0) - of_cache)
        plain -= of_kind - of_kind_cached
        plain_cached -= of_kind_cached
    if plain < 0 or plain_cached < 0 or spoken > output:
        return None  # parts that are more than the whole
    if tokens or output:
        more += _checked("requests", usage.get("requests", 1)) * (rates["requests"] or 0)
    return more


class SpeechTokens:
    """A price by text and audio tokens, of which LiveKit's plugins count few.

    What is counted comes first; a side that is not is derived as the provider says; and where no
    token at all is counted, the provider's estimate by the time stands in, if there is one.
    Input that is not split is audio for a recognizer, output is for a synthesizer.
    """

    __slots__ = ("estimate", "listens", "rates", "sources", "speaks")

    def __init__(
        self,
        rates: Mapping[str, Ratio],
        sources: Mapping[str, Source],
        *,
        listens: bool,
        speaks: bool,
    ) -> None:
        self.rates = rates
        self.sources = sources
        self.listens = listens and "input_audio_tokens" in rates
        self.speaks = speaks and "output_audio_tokens" in rates
        estimate = rates.get("audio_ms")
        self.estimate = Quantity("audio_ms", estimate) if estimate else None

    def amount(self, usage: Mapping[str, int]) -> int | None:
        """The exact sum of both sides."""
        if self.estimate and not _counted(usage):
            return self.estimate.amount(usage)
        read = self._side(usage, "input_tokens", "input_audio_tokens", self.listens)
        said = self._side(usage, "output_tokens", "output_audio_tokens", self.speaks)
        if read is None:
            return None if _used(usage) else 0
        if said is None:
            heard_ms = usage.get("audio_ms")
            written = any(tokens for _, tokens, _ in read)
            # Text alone is half of what a voice costs: only where none was heard is it all.
            spoke = self.speaks and (heard_ms or (written and heard_ms is None))
            heard = self.listens and any(tokens for _, tokens, _ in read) and not _counted(usage)
            if spoke or heard:
                return None  # there was output, and nobody knows how many tokens that was
            said = []
        cached = _checked("cached_input_tokens", usage.get("cached_input_tokens", 0))
        if cached:
            unit, tokens, parts = read[0]
            if tokens < cached * parts:
                return None
            rate = "cached_input_tokens" if "cached_input_tokens" in self.rates else unit
            read = [(unit, tokens - cached * parts, parts), (rate, cached, 1), *read[1:]]
        numerator, per = 0, 1
        for unit, tokens, parts in (*read, *said):
            if tokens:
                rate_of = self.rates.get(unit)
                if rate_of is None:
                    return None
                nano_usd, of = rate_of
                whole = math.lcm(per, of * parts)
                numerator = numerator * (whole // per) + tokens * nano_usd * (whole // (of * parts))
                per = whole
        return _half_even(numerator, per)

    def _side(
        self, usage: Mapping[str, int], total: str, audio: str, unsplit_is_audio: bool
    ) -> list[_Part] | None:
        """Text and audio tokens of one direction."""
        tokens, spoken = _known(usage, total), _known(usage, audio)
        if tokens is None and spoken is None:
            text_of = _derived(usage, self.sources.get(total))
            audio_of = _derived(usage, self.sources.get(audio))
            if text_of is None and audio_of is None:
                return None
            written, parts = text_of or (0, 1)
            spoken, parts_spoken = audio_of or (0, 1)
            return [(total, written, parts), (audio, spoken, parts_spoken)]
        if tokens is None:
            tokens = spoken or 0
        if spoken is None:
            spoken = tokens if unsplit_is_audio else 0
        if spoken > tokens:
            return None
        return [(total, tokens - spoken, 1), (audio, spoken, 1)]


def _counted(usage: Mapping[str, int]) -> bool:
    """Whether anybody counted tokens, rather than time or text."""
    return any(usage.get(unit) for unit in _TOKEN_UNITS)


_TOKEN_UNITS: Final = ("input_tokens", "output_tokens", *sorted(SPEECH_UNITS))


def _half_even(numerator: int, per: int) -> int:
    """`money.round_half_even`, without its check: `per` was checked with the rate."""
    quotient, remainder = divmod(numerator, per)
    twice = remainder * 2
    return quotient + 1 if twice > per or (twice == per and quotient % 2) else quotient


def _used(usage: Mapping[str, int]) -> bool:
    return any(count for name, count in usage.items() if name != _NO_WITNESS)


def _billed(usage: Mapping[str, int], unit: str) -> int | None:
    quantity = usage.get(unit)
    if quantity is not None:
        return _checked(unit, quantity)
    # Nothing used yet is nothing owed; but what was used and not counted in `unit` is not known.
    return None if _used(usage) else 0


def _known(usage: Mapping[str, int], unit: str) -> int | None:
    quantity = usage.get(unit)
    return None if quantity is None else _checked(unit, quantity)


def _derived(usage: Mapping[str, int], source: Source | None) -> tuple[int, int] | None:
    """The quantity as numerator and denominator; None when its source was not counted either."""
    if source is None:
        return None
    unit, count, per = source
    quantity = _known(usage, unit)
    return None if quantity is None else (quantity * count, per)


def _sourced(usage: Mapping[str, int], unit: str, source: Source | None) -> tuple[int, int] | None:
    """A counted quantity, else a derived one, as numerator and denominator."""
    derived = _derived(usage, source) if usage.get(unit) is None else None
    if derived is not None:
        return derived
    quantity = _billed(usage, unit)
    return None if quantity is None else (quantity, 1)


def _checked(unit: str, quantity: int) -> int:
    # A float or a bool would be billed without a word; type() is exact on purpose.
    if type(quantity) is not int or quantity < 0:
        raise ValueError(f"cannot price {unit}={quantity!r}: expected a whole number, at least 0")
    return quantity


Amount = Quantity | Timed | Characters | Tokens | SpeechTokens

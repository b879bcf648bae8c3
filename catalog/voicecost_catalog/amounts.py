"""From a usage to an amount: one small class for each way of billing, made once for a price.

An agent asks for the amount of every chunk and frame, so everything that does not depend on the
usage is worked out in the constructors. Each amount is one fraction, rounded half to even once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

# An open connection is no sign that anything billable was sent over it.
_NO_WITNESS: Final = "connected_ms"


# Plain tuples: this is imported by every job, and a class of named ones costs a millisecond.
Ratio = tuple[int, int]
"""So many for every so many: nano-USD for units, or units for another unit."""
Source = tuple[str, int, int]
"""What stands in for a unit that nobody counted: its unit, and how many for every how many."""


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
    """A price by time with a minimum a request, begun steps that count whole, or derived time.

    Derived time may be a fraction of a millisecond, so all is counted in `parts` of one.
    """

    __slots__ = ("minimum", "nano_usd", "parts", "per", "source", "step", "unit")

    def __init__(
        self, unit: str, rate: Ratio, *, minimum_ms: int, step_ms: int, source: Source | None
    ) -> None:
        self.unit = unit
        self.parts = source[2] if source else 1
        self.source = source[:2] if source else None
        self.minimum, self.step = minimum_ms * self.parts, step_ms * self.parts
        self.nano_usd, self.per = rate[0], rate[1] * self.parts

    def amount(self, usage: Mapping[str, int]) -> int | None:
        """Minimum, then step, then rate. A request that sent nothing has no minimum."""
        time = _derived(usage, self.source) if usage.get(self.unit) is None else None
        if time is None:
            time = _billed(usage, self.unit)
            if time is None:
                return None
            time *= self.parts
        if time:
            time = -(-max(time, self.minimum) // self.step) * self.step
        return _half_even(time * self.nano_usd, self.per)


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
    known. A fee for each request and the time of a connection come on top.

    Args:
        tiers: (above so many input tokens, the rates then), the lowest first.
    """

    __slots__ = ("on_top", "tiers")

    def __init__(self, tiers: Sequence[tuple[int, Mapping[str, Ratio]]]) -> None:
        # (above, input, cached, output, per, what is rare), the highest tier first
        self.tiers: list[tuple[int, int, int, int, int, _Rare]] = []
        for above, rates in reversed(tiers):
            per = math.lcm(*(of for _, of in rates.values()))
            factors = {unit: nano_usd * (per // of) for unit, (nano_usd, of) in rates.items()}
            text, said = factors["input_tokens"], factors["output_tokens"]
            cached = factors.get("cached_input_tokens", text)
            audio, cached_audio = _input_of("audio", factors)
            image, cached_image = _input_of("image", factors)
            rare = (
                factors.get("cache_write_tokens", text) - text,
                factors.get("output_audio_tokens", said) - said,
                audio - text,
                None if cached_audio is None else cached_audio - cached,
                image - text,
                None if cached_image is None else cached_image - cached,
                factors.get("requests", 0),
                factors.get("connected_ms", 0),
            )
            self.tiers.append((above, text, cached, said, per, rare))
        self.on_top = any(rare[-1] or rare[-2] for *_, rare in self.tiers)

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
                    self.on_top
                    or get("cache_write_tokens")
                    or get("input_audio_tokens")
                    or get("output_audio_tokens")
                    or get("input_image_tokens")
                ):
                    more = _more(usage, tokens, cached, output, rare)
                    if more is None:
                        return None
                    amount += more
                break
        return _half_even(amount, per)


_Rare = tuple[int, int, int, int | None, int, int | None, int, int]
"""What a token costs more than text does: written to the cache, spoken, audio, cached audio (more
than cached text; None: not known), a picture, a cached one; and a request, and a millisecond."""
_RARE_UNITS: Final = (
    "cache_write_tokens",
    "output_audio_tokens",
    "input_audio_tokens",
    "cached_input_audio_tokens",
)


def _input_of(kind: str, factors: Mapping[str, int]) -> tuple[int, int | None]:
    """What input of a kind costs, and cached input of it, where that is known."""
    text, cached = factors["input_tokens"], factors.get("cached_input_tokens")
    own = factors.get(f"input_{kind}_tokens")
    if own is None:
        own, nearest = text, text if cached is None else cached
    else:
        nearest = own if cached is None else None
    return own, factors.get(f"cached_input_{kind}_tokens", nearest)


def _more(
    usage: Mapping[str, int], tokens: int, cached: int, output: int, rates: _Rare
) -> int | None:
    """What parts that are no text add to the amount as if all were text; None: not known."""
    get = usage.get
    written, spoken = get("cache_write_tokens", 0), get("output_audio_tokens", 0)
    audio, cached_audio = get("input_audio_tokens", 0), get("cached_input_audio_tokens", 0)
    if (
        not (int is type(written) is type(spoken) is type(audio) is type(cached_audio))
        or written | spoken | audio | cached_audio < 0  # one is
    ):
        for unit in _RARE_UNITS:
            _checked(unit, get(unit, 0))
    of_write, of_spoken, of_audio, of_cached_audio, of_image, of_cached_image, request, ms = rates
    audio -= cached_audio
    plain, plain_cached = tokens - cached - written - audio, cached - cached_audio
    more = written * of_write + spoken * of_spoken + audio * of_audio
    if cached_audio:
        if of_cached_audio is None:
            return None
        more += cached_audio * of_cached_audio
    image, cached_image = get("input_image_tokens"), get("cached_input_image_tokens")
    if image or cached_image:
        cached_image = _checked("cached_input_image_tokens", cached_image or 0)
        image = _checked("input_image_tokens", image or 0) - cached_image
        if image < 0 or (cached_image and of_cached_image is None):
            return None
        plain, plain_cached = plain - image, plain_cached - cached_image
        more += image * of_image + cached_image * (of_cached_image or 0)
    if audio < 0 or plain < 0 or plain_cached < 0 or spoken > output:
        return None  # parts that are more than the whole
    if request and (tokens or output):
        more += _checked("requests", get("requests", 1)) * request
    if ms:
        connected_ms = _billed(usage, "connected_ms")
        if connected_ms is None:
            return None
        more += connected_ms * ms
    return more


class SpeechTokens:
    """A price by text and audio tokens, of which LiveKit's plugins count few.

    What is counted comes first; a side that is not is derived as the provider says; and where no
    token at all is counted, the provider's estimate by the time stands in, if there is one.
    Input that is not split is audio for a recognizer, output is for a synthesizer.

    A derived token may be a fraction of one, so all are counted in `parts` of a token.
    """

    __slots__ = (
        "cached", "estimate", "factors", "listens", "parts", "per", "read", "said", "speaks"
    )  # fmt: skip

    def __init__(
        self,
        rates: Mapping[str, Ratio],
        sources: Mapping[str, Source],
        *,
        listens: bool,
        speaks: bool,
    ) -> None:
        self.listens = listens and "input_audio_tokens" in rates
        self.speaks = speaks and "output_audio_tokens" in rates
        estimate = rates.get("audio_ms")
        self.estimate = Quantity("audio_ms", estimate) if estimate else None
        whole = math.lcm(*(of for _, of in rates.values()))
        factors = {unit: nano_usd * (whole // of) for unit, (nano_usd, of) in rates.items()}
        self.parts = math.lcm(*(per for _, _, per in sources.values()))
        self.per = whole * self.parts
        in_parts = {
            unit: (of, count * (self.parts // per)) for unit, (of, count, per) in sources.items()
        }
        self.read = _Side("input", in_parts, self.parts, unsplit_is_audio=self.listens)
        self.said = _Side("output", in_parts, self.parts, unsplit_is_audio=self.speaks)
        self.factors = [
            factors.get(unit)
            for unit in (
                "input_tokens",
                "input_audio_tokens",
                "output_tokens",
                "output_audio_tokens",
            )
        ]
        self.cached = factors.get("cached_input_tokens", factors.get("input_tokens"))

    def amount(self, usage: Mapping[str, int]) -> int | None:
        """The exact sum of both sides."""
        if self.estimate and not _counted(usage):
            return self.estimate.amount(usage)
        read, said = self.read.tokens(usage), self.said.tokens(usage)
        if read is None:
            return None if _used(usage) else 0
        if said is None:
            heard_ms, asked = usage.get("audio_ms"), read[0] or read[1]
            # Text alone is half of what a voice costs: only where none was heard is it all.
            spoke = self.speaks and (heard_ms or (asked and heard_ms is None))
            listened = self.listens and asked and not _counted(usage)
            if spoke or listened:
                return None  # there was output, and nobody knows how many tokens that was
            said = 0, 0
        text, heard = read
        written, spoken = said
        amount = 0
        cached = usage.get("cached_input_tokens")
        if cached:
            cached = _checked("cached_input_tokens", cached) * self.parts
            if cached > text or self.cached is None:
                return None
            text -= cached
            amount = cached * self.cached
        of_text, of_heard, of_written, of_spoken = self.factors
        if (
            (text and of_text is None)
            or (heard and of_heard is None)
            or (written and of_written is None)
            or (spoken and of_spoken is None)
        ):
            return None
        amount += text * (of_text or 0) + heard * (of_heard or 0)
        amount += written * (of_written or 0) + spoken * (of_spoken or 0)
        return _half_even(amount, self.per)


class _Side:
    """How many text and audio tokens there are in one direction."""

    __slots__ = ("audio", "audio_from", "parts", "text_from", "total", "unsplit_is_audio")

    def __init__(
        self,
        direction: str,
        sources: Mapping[str, tuple[str, int]],
        parts: int,
        *,
        unsplit_is_audio: bool,
    ) -> None:
        self.total, self.audio = f"{direction}_tokens", f"{direction}_audio_tokens"
        self.text_from, self.audio_from = sources.get(self.total), sources.get(self.audio)
        self.parts = parts
        self.unsplit_is_audio = unsplit_is_audio

    def tokens(self, usage: Mapping[str, int]) -> tuple[int, int] | None:
        """Text and audio, in parts of a token; None where nothing says how many."""
        total, spoken = usage.get(self.total), usage.get(self.audio)
        if total is None and spoken is None:
            text, audio = _derived(usage, self.text_from), _derived(usage, self.audio_from)
            return None if text is None and audio is None else (text or 0, audio or 0)
        if total is None:
            total = spoken
        elif spoken is None:
            spoken = total if self.unsplit_is_audio else 0
        if type(total) is not int or type(spoken) is not int or not 0 <= spoken <= total:
            _checked(self.total, total or 0)
            _checked(self.audio, spoken or 0)
            return None
        return (total - spoken) * self.parts, spoken * self.parts


def _counted(usage: Mapping[str, int]) -> bool:
    """Whether anybody counted tokens, rather than time or text."""
    get = usage.get
    return bool(
        get("input_tokens")
        or get("output_tokens")
        or get("input_audio_tokens")
        or get("output_audio_tokens")
    )


def _half_even(numerator: int, per: int) -> int:
    """`money.round_half_even`, without its check: `per` was checked with the rate."""
    quotient, remainder = divmod(numerator, per)
    if not remainder:
        return quotient
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


def _derived(usage: Mapping[str, int], source: tuple[str, int] | None) -> int | None:
    """So many parts for each of another unit; None when that was not counted either."""
    if source is None:
        return None
    unit, parts = source
    quantity = _known(usage, unit)
    return None if quantity is None else quantity * parts


def _checked(unit: str, quantity: int) -> int:
    # A float or a bool would be billed without a word; type() is exact on purpose.
    if type(quantity) is not int or quantity < 0:
        raise ValueError(f"cannot price {unit}={quantity!r}: expected a whole number, at least 0")
    return quantity


Amount = Quantity | Timed | Characters | Tokens | SpeechTokens

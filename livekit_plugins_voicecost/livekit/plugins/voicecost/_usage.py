"""What an application tells of itself: usage of a service that nobody but it can see.

A paid API called in a tool, a raw SDK call in an overridden `llm_node`: `Meter.record_usage` checks
what is told here, before anything is booked, and writes it as one whole leg.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast

import msgspec

from voicecost_ledger.records import (
    MAX_QUANTITY,
    UNITS,
    Basis,
    LegAttributes,
    Modality,
    Outcome,
)

from ._attributes import plain

if TYPE_CHECKING:
    from enum import StrEnum

    from .legs import LegMeter

ToldModality = Literal[
    "stt",
    "llm",
    "tts",
    "realtime",
    "decision",
    "avatar",
    "turn_detection",
    "interruption_detection",
    "other",
]
ToldBasis = Literal["reported", "observed", "estimated"]
ToldOutcome = Literal["served", "interrupted", "discarded", "failed", "probe"]

LABEL: Final = "voicecost.record_usage"
"""The class name in the attributes of such a leg: no plugin was seen, the application said so."""

_TEXT_LENGTH_MAX: Final = 4096
_OUTCOMES: Final = tuple(each for each in Outcome if each not in (Outcome.CUT, Outcome.LOST))
# Counts that are part of another one, which includes them.
_PARTS: Final = (
    ("cached_input_tokens", "input_tokens"),
    ("cache_write_tokens", "input_tokens"),
    ("input_audio_tokens", "input_tokens"),
    ("input_image_tokens", "input_tokens"),
    ("cached_input_audio_tokens", "input_audio_tokens"),
    ("cached_input_image_tokens", "input_image_tokens"),
    ("reasoning_tokens", "output_tokens"),
    ("output_audio_tokens", "output_tokens"),
    ("double_width_characters", "characters"),
    ("markup_characters", "characters"),
)
_Word = TypeVar("_Word", bound="StrEnum")


class ToldUsage(msgspec.Struct, frozen=True):
    """One leg as an application tells it, checked."""

    attributes: LegAttributes
    usage: dict[str, int]
    basis: Basis
    outcome: Outcome
    speech_id: str | None

    def book(self, meter: LegMeter) -> None:
        """Write it as a whole leg: it is spent already, so no budget refuses it."""
        leg = meter.open_leg(
            self.attributes, self.usage, basis=self.basis, speech_id=self.speech_id
        )
        leg.stop(self.outcome)


def told_usage(
    *,
    provider: str,
    model: str,
    modality: str,
    usage: Mapping[str, int],
    outcome: str,
    basis: str,
    speech_id: str | None,
    language: str,
    streaming: bool,
    service_tier: str,
) -> ToldUsage:
    """Check what an application tells.

    Raises:
        TypeError: A name is no text, a quantity no whole number, `usage` no mapping.
        ValueError: The provider is empty, a word or a unit is unknown, a quantity is negative or
            too large, a part is larger than its whole, or nothing was used at all.
    """
    provider = _check_text("provider", provider)
    if not provider.strip():
        raise ValueError(
            f'{provider=} is empty: say who bills, by the name the price book knows ("openai")'
        )
    return ToldUsage(
        attributes=LegAttributes(
            modality=_word("modality", modality, tuple(Modality)),
            provider=provider.strip(),
            model=_check_text("model", model).strip(),
            label=LABEL,
            language=_check_text("language", language),
            streaming=bool(streaming),
            service_tier=_check_text("service_tier", service_tier),
        ),
        usage=_check_usage(usage),
        basis=_word("basis", basis, tuple(Basis)),
        outcome=_word("outcome", outcome, _OUTCOMES),
        speech_id=None if speech_id is None else _check_text("speech_id", speech_id),
    )


def _check_text(name: str, text: object) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{name}={text!r} is a {type(text).__name__}: give text")
    if len(text) > _TEXT_LENGTH_MAX:
        raise ValueError(f"{name} has {len(text)} characters: at most {_TEXT_LENGTH_MAX} are kept")
    return plain(text)  # LiveKit's language codes are another kind of text


def _word(name: str, word: object, allowed: tuple[_Word, ...]) -> _Word:
    for each in allowed:
        if word == each.value:
            return each
    words = ", ".join(each.value for each in allowed)
    raise ValueError(f"{name}={word!r} is unknown: expected one of {words}")


def _check_usage(usage: object) -> dict[str, int]:
    if not isinstance(usage, Mapping):
        raise TypeError(
            f"usage={usage!r} is a {type(usage).__name__}: give a mapping of unit to whole "
            'quantity, for example {"input_tokens": 812, "output_tokens": 96}'
        )
    checked: dict[str, int] = {}
    for unit, quantity in cast("Mapping[Any, Any]", usage).items():
        if unit not in UNITS:
            known = ", ".join(sorted(UNITS))
            raise ValueError(f"unit {unit!r} is unknown: expected one of {known}")
        if isinstance(quantity, bool) or not isinstance(quantity, int):
            raise TypeError(
                f"{unit}={quantity!r} is a {type(quantity).__name__}: give a whole number "
                "(milliseconds, tokens, characters), it is rounded only by the price"
            )
        if not 0 <= quantity <= MAX_QUANTITY:
            raise ValueError(f"{unit}={quantity} is out of range: expected 0 to 2**40")
        checked[plain(unit)] = int(quantity)
    if not checked:
        raise ValueError("usage is empty: name what was used, for example {'requests': 1}")
    for part, whole in _PARTS:
        if checked.get(part, 0) > checked.get(whole, MAX_QUANTITY):
            raise ValueError(
                f"{part}={checked[part]} is more than {whole}={checked[whole]}, which includes it"
            )
    return checked

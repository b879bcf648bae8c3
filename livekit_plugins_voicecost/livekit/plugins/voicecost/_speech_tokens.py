"""Tokens and seconds of speech that no provider reported: what a cancelled request had used.

A voice that is billed by tokens says how many only at the end of a request, one that is billed by
the second makes sound that a cancelled request never receives. What completed requests of the same
model used for their text and their audio is the measure; before the first of them, what OpenAI
publishes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final, NamedTuple

from ._text_weight import TOKEN, weight

_MODELS_MAX: Final = 64
_INPUT_PRIOR: Final = 40 * TOKEN
"""The prior of one token a unit of weight counts as a text of 40 tokens."""
_OUTPUT_TOKENS_PER_SECOND: Final = 20
"""One token for 50 ms of spoken answer: https://platform.openai.com/docs/guides/realtime-costs.
The minute that OpenAI gives as 0.015 USD, at 12 USD a million tokens, would be 20.8:
https://platform.openai.com/docs/models/gpt-4o-mini-tts"""
_OUTPUT_PRIOR_MS: Final = 2_000
_CHARACTER_MS: Final = 65
"""An unhurried voice, before anything was heard of this one."""
_CHARACTERS_PRIOR: Final = 40


class Estimate(NamedTuple):
    """A quantity that was not reported, and by how much it may be off, 19 times of 20."""

    quantity: int
    margin: int


class _Voice:
    """What completed requests of one model used, summed up."""

    __slots__ = ("audio_ms", "characters", "input_tokens", "output_tokens", "spoken_ms", "weight")

    def __init__(self) -> None:
        self.weight = 0
        self.input_tokens = 0
        self.audio_ms = 0
        self.output_tokens = 0
        self.characters = 0
        self.spoken_ms = 0


_lock = threading.Lock()  # the thread executor runs many jobs in one process
_voices: OrderedDict[tuple[str, ...], _Voice] = OrderedDict()


def learn_tokens(
    voice: tuple[str, ...], text: str, audio_ms: int, *, input_tokens: int, output_tokens: int
) -> None:
    """Take what a provider reported of a completed request.

    Args:
        voice: Provider and model.
        text: All that was sent.
        audio_ms: All that was received.
        input_tokens: Of the text.
        output_tokens: Of the audio.
    """
    with _lock:
        known = _known(voice)
        known.weight += weight(text)
        known.input_tokens += input_tokens
        known.audio_ms += audio_ms
        known.output_tokens += output_tokens


def learn_duration(voice: tuple[str, ...], characters: int, audio_ms: int) -> None:
    """Take how long a text was that was spoken to its end."""
    with _lock:
        known = _known(voice)
        known.characters += characters
        known.spoken_ms += audio_ms


def reports_tokens(voice: tuple[str, ...]) -> bool:
    """Whether a request of this model was ever reported in tokens."""
    with _lock:
        known = _voices.get(voice)
        return known is not None and known.input_tokens > 0


def input_tokens_of(voice: tuple[str, ...], text: str) -> Estimate:
    """The tokens of a text."""
    text_weight = weight(text)
    with _lock:
        known = _voices.get(voice) or _Voice()
        tokens, of_weight = known.input_tokens, known.weight
    quantity = round(
        text_weight * (tokens + _INPUT_PRIOR // TOKEN) / (of_weight + _INPUT_PRIOR)
    ) or 1  # fmt: skip
    return Estimate(quantity, 2 + quantity // (20 if tokens else 3))


def output_tokens_of(voice: tuple[str, ...], audio_ms: int) -> Estimate:
    """The tokens of so much audio."""
    with _lock:
        known = _voices.get(voice) or _Voice()
        tokens, of_ms = known.output_tokens, known.audio_ms
    prior = _OUTPUT_TOKENS_PER_SECOND * _OUTPUT_PRIOR_MS // 1000
    quantity = round(audio_ms * (tokens + prior) / (of_ms + _OUTPUT_PRIOR_MS))
    return Estimate(quantity, 2 + quantity // (50 if tokens else 20))


def audio_ms_of(voice: tuple[str, ...], characters: int) -> Estimate:
    """How long it takes to say so many characters."""
    with _lock:
        known = _voices.get(voice) or _Voice()
        of_characters, spoken_ms = known.characters, known.spoken_ms
    quantity = (
        characters
        * (spoken_ms + _CHARACTERS_PRIOR * _CHARACTER_MS)
        // (of_characters + _CHARACTERS_PRIOR)
    )
    return Estimate(quantity, 250 + quantity // (10 if of_characters else 3))


def forget() -> None:
    """Forget what was learned; for tests."""
    with _lock:
        _voices.clear()


def _known(voice: tuple[str, ...]) -> _Voice:
    known = _voices.setdefault(voice, _Voice())
    _voices.move_to_end(voice)
    while len(_voices) > _MODELS_MAX:
        _voices.popitem(last=False)
    return known

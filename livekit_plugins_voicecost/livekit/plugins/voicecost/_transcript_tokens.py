"""Tokens of transcriptions that are billed by token: as reported, or as much as they must be.

https://platform.openai.com/docs/api-reference/audio/json-object and
https://platform.openai.com/docs/api-reference/realtime-server-events
"""

from __future__ import annotations

import threading
from typing import Any, Final

import msgspec

from ._reports import believed

_INPUT_TOKENS_PER_S: Final = 10
"""1 token per 100 ms of a user's audio: https://platform.openai.com/docs/guides/realtime-costs"""
_OUTPUT_TOKENS_PER_S: Final = 3
"""Of fluent speech, 150 words a minute; only until a model has reported its own."""


def token_units(usage: Any) -> dict[str, int]:
    """OpenAI's token usage of a transcription, as units; empty for one billed by duration.

    `input_tokens` are those of the audio and of the prompt.
    """
    details = getattr(usage, "input_token_details", None)
    return believed({
        "input_tokens": getattr(usage, "input_tokens", 0) or 0,
        "output_tokens": getattr(usage, "output_tokens", 0) or 0,
        "input_audio_tokens": getattr(details, "audio_tokens", 0) or 0,
    }) or {}  # fmt: skip


class TokenRates:
    """What a model has reported so far, to estimate the transcripts whose report never came."""

    __slots__ = ("_audio_ms", "_tokens")

    def __init__(self) -> None:
        self._audio_ms = 0
        self._tokens: dict[str, int] = {}

    def learn(self, audio_ms: int, tokens: dict[str, int]) -> None:
        """A transcript of so much audio was reported."""
        with _lock:
            self._audio_ms += audio_ms
            for unit, count in tokens.items():
                self._tokens[unit] = self._tokens.get(unit, 0) + count

    @property
    def are_known(self) -> bool:
        """Whether any transcript was reported in tokens."""
        return bool(self._tokens)

    def estimate(self, audio_ms: int) -> dict[str, int]:
        """The tokens of so much audio, by unit."""
        with _lock:
            if self._audio_ms > 0:
                return {
                    unit: count * audio_ms // self._audio_ms for unit, count in self._tokens.items()
                }
        input_tokens = audio_ms * _INPUT_TOKENS_PER_S // 1000
        return {
            "input_tokens": input_tokens,
            "input_audio_tokens": input_tokens,
            "output_tokens": audio_ms * _OUTPUT_TOKENS_PER_S // 1000,
        }


_lock = threading.Lock()  # the thread executor runs many jobs in one process
_rates: dict[tuple[str, str], TokenRates] = {}


def rates_of(provider: str, model: str) -> TokenRates:
    """The rates of this model, the same for all calls of the process."""
    return _rates.setdefault((provider, model), TokenRates())


def is_billed_by_token(provider: str, model: str) -> bool:
    """Whether a model has reported tokens, or is named as those are that do."""
    return rates_of(provider, model).are_known or "-transcribe" in model


class _TokenDetails(msgspec.Struct):
    audio_tokens: int | None = None


class _TokenUsage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_token_details: _TokenDetails | None = None


class _Event(msgspec.Struct):
    type: str = ""
    item_id: str = ""
    audio_start_ms: int = 0
    audio_end_ms: int = 0
    usage: _TokenUsage | None = None


_decoder = msgspec.json.Decoder(_Event)
_TRANSCRIPTION: Final = "conversation.item.input_audio_transcription."
_SPOKEN: Final = "input_audio_buffer.speech_"


class TranscribedItems:
    """The items of one realtime transcription session: what each was billed, or will be.

    A stretch of speech becomes an item when the server's VAD says that it has ended; it is
    transcribed then, and billed, whether or not the client stays to hear it (undocumented: our
    assumption).
    """

    __slots__ = ("_awaited_ms", "_started_ms")

    def __init__(self) -> None:
        self._started_ms: dict[str, int] = {}
        self._awaited_ms: dict[str, int] = {}

    def received(self, payload: str, rates: TokenRates) -> dict[str, int] | None:
        """The tokens that a message reports, empty for a model billed by duration; else None."""
        if _TRANSCRIPTION not in payload and _SPOKEN not in payload:
            return None
        try:
            event = _decoder.decode(payload)
        except msgspec.MsgspecError:
            return None  # of another shape: not ours to judge
        match event.type.removeprefix(_TRANSCRIPTION).removeprefix(_SPOKEN):
            case "started":
                self._started_ms[event.item_id] = event.audio_start_ms
            case "stopped":
                started_ms = self._started_ms.pop(event.item_id, event.audio_end_ms)
                self._awaited_ms[event.item_id] = max(0, event.audio_end_ms - started_ms)
            case "failed":
                self._awaited_ms.pop(event.item_id, None)
            case "completed":
                audio_ms = self._awaited_ms.pop(event.item_id, 0)
                tokens = token_units(event.usage)
                if tokens and audio_ms:
                    rates.learn(audio_ms, tokens)
                return tokens
            case _:
                pass
        return None

    def awaited(self, rates: TokenRates) -> dict[str, int]:
        """The tokens of what was said, and not reported yet; empty where nothing is awaited."""
        audio_ms = sum(self._awaited_ms.values())
        return rates.estimate(audio_ms) if audio_ms else {}

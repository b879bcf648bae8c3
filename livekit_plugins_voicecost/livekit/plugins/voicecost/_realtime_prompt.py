"""What a realtime model will read for its next response, where nobody has said so yet.

A realtime model reads the whole conversation for every response, so a report of one response says
most of the next one's prompt: what it read, what it said, and what came since. Text is weighed,
speech is counted by its length (OpenAI: 1 token per 100 ms of the user, per 50 ms of the assistant,
https://developers.openai.com/api/docs/guides/realtime-costs; Gemini: 25 tokens a second,
https://ai.google.dev/gemini-api/docs/live-api/best-practices).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, cast

from ._text_weight import TOKEN
from ._text_weight import weight as weight_of

ITEM_TOKENS: Final = 3
"""Around the content of an item, special tokens: "a user message with 10 text tokens of content may
count as 12" (https://developers.openai.com/api/docs/guides/realtime-costs)."""
IMAGE_TOKENS: Final = 260  # of one video frame or picture (Gemini: 258); unknown for OpenAI
_CACHE_STEP: Final = 64
_FIRST_OFF: Final = 0.25  # how far the first prompt may be off, of which nothing was reported
_NEW_OFF: Final = 0.1  # the same for what came since a report
_OFF_MIN: Final = 6
_LEARN_MIN: Final = 10  # tokens


class Size(NamedTuple):
    """Tokens of a prompt, or of a part of it, by what they are."""

    text: int = 0
    audio: int = 0
    image: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.text + self.audio + self.image

    def plus(self, other: Size) -> Size:
        """The sum; what falls below zero is none."""
        return Size(*(max(0, mine + its) for mine, its in zip(self, other, strict=True)))


class Scale:
    """How a model's own count of what it said compares with ours, from the reports of a session."""

    def __init__(self) -> None:
        self._guessed = self._reported = Size()

    def learn(self, guessed: Size, reported: Size) -> None:
        """A response was said to its end, and reported."""
        self._guessed = self._guessed.plus(guessed)
        self._reported = self._reported.plus(reported)

    def apply(self, guessed: Size) -> Size:
        """A count of ours as the model would have it."""
        pairs = zip(guessed, self._guessed, self._reported, strict=True)
        return Size(*(_scaled(count, ours, theirs) for count, ours, theirs in pairs))


def _scaled(count: int, ours: int, theirs: int) -> int:
    if ours < _LEARN_MIN or not ours <= 4 * theirs <= 16 * ours:
        return count  # too little is known, or something else than what was said was counted
    return (count * theirs + ours // 2) // ours


class Prompt:
    """The conversation as far as it is known, in tokens."""

    def __init__(self) -> None:
        self._size = Size()
        self._items: dict[str, Size] = {}
        self._instructions = self._tools = 0
        self._last_read: Size | None = None  # by the last response that was reported
        self._new = 0  # tokens that no report has covered
        self._cached_share: float | None = None  # of what the response before had read

    def restart(self) -> None:
        """A new connection: the provider starts with what it is sent from now on."""
        self._size, self._items = Size(), {}
        self._instructions = self._tools = self._new = 0
        self._last_read = None

    def instruct(self, text: str) -> None:
        """The instructions are these from now on."""
        tokens = text_tokens(text)
        self._add(Size(text=tokens - self._instructions))
        self._instructions = tokens

    def offer(self, tools: list[Any]) -> None:
        """The tools are these from now on."""
        tokens = sum(_declaration_tokens(tool) for tool in tools)
        self._add(Size(text=tokens - self._tools))
        self._tools = tokens

    def put(self, item_id: str, size: Size) -> None:
        """An item is that large from now on: it was added, shortened, or its speech was counted."""
        self._add(_difference(size, self.size_of(item_id)))
        self._items[item_id] = size

    def knows(self, item_id: str) -> bool:
        """Whether it was put."""
        return item_id in self._items

    def knew(self, item_id: str, size: Size) -> None:
        """An item of that size is in the prompt already, as part of a response's output."""
        self._items.setdefault(item_id, size)

    def size_of(self, item_id: str) -> Size:
        """How large an item is."""
        return self._items.get(item_id, Size())

    def drop(self, item_id: str) -> None:
        """An item was deleted."""
        size = self._items.pop(item_id, None)
        if size is not None:
            self._add(_difference(Size(), size))

    def estimate(self) -> dict[str, int]:
        """The units of the prompt that would be read now."""
        size = self._size
        cached = cached_audio = 0
        if self._last_read is not None and self._last_read.total:
            share = 1.0 if self._cached_share is None else self._cached_share
            cached = int(self._last_read.total * share) // _CACHE_STEP * _CACHE_STEP
            cached = min(cached, size.total)
            cached_audio = min(
                cached * self._last_read.audio // self._last_read.total, size.audio, cached
            )
        return {
            "input_tokens": size.total,
            "cached_input_tokens": cached,
            "input_audio_tokens": size.audio,
            "cached_input_audio_tokens": cached_audio,
            "input_image_tokens": size.image,
            "cached_input_image_tokens": 0,
        }

    def margins(self) -> dict[str, int]:
        """How far `estimate` may be off, 19 times of 20."""
        estimate = self.estimate()
        if self._last_read is None:
            off = _OFF_MIN + int(estimate["input_tokens"] * _FIRST_OFF)
        else:
            off = _OFF_MIN + int(abs(self._new) * _NEW_OFF)
        cached = estimate["cached_input_tokens"]
        if self._cached_share is not None:
            cached = _CACHE_STEP + cached // 4
        margins = {"input_tokens": off, "cached_input_tokens": cached}
        if estimate["input_audio_tokens"]:
            margins["input_audio_tokens"] = off
            margins["cached_input_audio_tokens"] = cached
        return margins

    def snapshot(self) -> Size:
        """What a response that begins now reads."""
        return self._size

    def reported(self, snapshot: Size, read: Size, cached: int, said: Size) -> None:
        """A response that began at `snapshot` did read and say that much.

        Args:
            snapshot: What `snapshot` gave when it began.
            read: What it reported as its input.
            cached: The part of it that was cached.
            said: What it reported as its output, which is input of the next one.
        """
        if self._last_read is not None and self._last_read.total:
            # Rounded up as it was rounded down: whole steps are cached.
            most = cached + _CACHE_STEP - 1 if cached else 0
            self._cached_share = min(1.0, most / self._last_read.total)
        added = _difference(self._size, snapshot).total
        self._size = Size(
            *(
                max(0, now + exact - guessed + output)
                for now, exact, guessed, output in zip(
                    self._size, read, snapshot, said, strict=True
                )
            )
        )
        self._last_read = read
        self._new = added

    def _add(self, change: Size) -> None:
        self._size = self._size.plus(change)
        self._new += change.total


def text_tokens(text: str) -> int:
    """About how many tokens a text is."""
    return -(-weight_of(text) // TOKEN)


def _difference(size: Size, other: Size) -> Size:
    return Size(*(mine - its for mine, its in zip(size, other, strict=True)))


def _declaration_tokens(schema: Any) -> int:
    """About how many tokens a tool's declaration is: names, descriptions, and their frame."""
    tokens = 0
    if isinstance(schema, dict):
        for key, value in cast("dict[str, Any]", schema).items():
            if key in ("description", "name") and isinstance(value, str):
                tokens += text_tokens(value) + 4
            elif key == "properties" and isinstance(value, dict):
                for name, field in cast("dict[str, Any]", value).items():
                    tokens += text_tokens(name) + 3 + _declaration_tokens(field)
            elif isinstance(value, dict | list):
                tokens += _declaration_tokens(value)
    elif isinstance(schema, list):
        tokens += sum(map(_declaration_tokens, cast("list[Any]", schema)))
    return tokens

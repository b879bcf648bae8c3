"""What is seen of an LLM request: what it asks, and what came of its answer.

Of texts only checksums, lengths and weights are kept.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from typing import Final, NamedTuple, overload

from ._calibration import Answer
from ._text_weight import RunningWeight
from ._thoughts import Thinking

_orders = itertools.count()


_WEIGHT_BITS: Final = 40


class Item(int):
    """A message, tool call or tool result in a prompt: what stands for its text, and its weight.

    Both in one number: a long call has thousands, and as a pair each takes three times the memory.
    """

    __slots__ = ()

    def __new__(cls, key: int, weight: int) -> Item:
        """`key` stands for the text; `weight` as of `_text_weight`."""
        return super().__new__(cls, key << _WEIGHT_BITS | min(weight, (1 << _WEIGHT_BITS) - 1))

    @property
    def key(self) -> int:
        """What stands for its text."""
        return self >> _WEIGHT_BITS

    @property
    def weight(self) -> int:
        """How many tokens it may have, as far as can be told from its text."""
        return self & ((1 << _WEIGHT_BITS) - 1)


class Items(Sequence[Item]):
    """The items of a prompt, in order, in one list with those of the prompts that begin as it does.

    Of a long call every prompt has thousands, and nearly all are the one's before.

    Args:
        items: Belong to this from now on.
        before: Those of an earlier prompt.
    """

    __slots__ = ("_all", "_size")

    def __init__(self, items: list[Item], before: Sequence[Item] = ()) -> None:
        self._all = items
        self._size = len(items)
        if isinstance(before, Items):
            known = before._all
            common = min(len(known), len(items))
            if known[:common] == items[:common]:
                known += items[common:]  # nobody looks beyond their own size
                self._all = known

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            start, stop, step = index.indices(self._size)
            return self._all[start:stop:step]
        return self._all[range(self._size)[index]]


class Prompt(NamedTuple):
    """What a request asks.

    Attributes:
        items: Messages, tool calls and their results, in order.
        tools_weight: Of the declarations of its tools.
        characters: Of all of it.
        weight: Of all of it.
    """

    items: Sequence[Item]
    tools_weight: int
    characters: int
    weight: int


class TextKey:
    """Tells texts apart without keeping them: a checksum and the length."""

    __slots__ = ("_checksum", "_size")

    def __init__(self, text: str = "") -> None:
        self._checksum = self._size = 0
        self.add(text)

    def add(self, text: str) -> None:
        """Take more of the text."""
        self._checksum = zlib.crc32(text.encode("utf-8", "surrogatepass"), self._checksum)
        self._size += len(text)

    @property
    def value(self) -> int:
        """The same for the same text, however it was cut."""
        return self._size << 32 | self._checksum


class Counts:
    """What we saw of a request ourselves.

    Its characters and chunks are recorded raw, so a later rule can settle it again.

    Attributes:
        order: Of requests, the later has the higher.
        reported: Units that the provider has told of a request that goes on, if it does: those of
            the prompt when the answer begins (Anthropic), or all with every chunk (Google).
        waited_ms: From the request to its first token, or to its end where none came.
        asked_to_think: Whether the request asks for thoughts, or its model has them unasked.
    """

    __slots__ = (
        "_call_keys",
        "_chunks_reported",
        "_prose_key",
        "_thought_weight",
        "answer",
        "asked_to_think",
        "completion_chunks",
        "order",
        "prompt",
        "reported",
        "waited_ms",
    )

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self.order = next(_orders)
        self.answer = Answer()
        self.completion_chunks = 0
        self.reported: dict[str, int] = {}
        self.waited_ms = 0
        self.asked_to_think = False
        self._chunks_reported = 0
        self._thought_weight: RunningWeight | None = None
        self._prose_key = TextKey()
        self._call_keys: list[TextKey] = []

    def prose(self, text: str) -> None:
        """Take more of what the model says."""
        answer = self.answer
        answer.prose_weight.add(text)
        answer.prose_chunks += 1
        answer.prose_characters += len(text)
        self._prose_key.add(text)

    def call(self, name: str, arguments: str) -> None:
        """Take more of a tool call; one with a name begins another call."""
        answer = self.answer
        text = name + arguments
        if name:
            answer.calls += 1
            self._call_keys.append(TextKey())
        answer.call_weight.add(text)
        answer.call_chunks += 1
        answer.call_characters += len(text)
        if self._call_keys:
            self._call_keys[-1].add(text)

    def thought(self, text: str) -> None:
        """Take more of the model's thoughts, where its provider shows them or a summary."""
        if self._thought_weight is None:
            self._thought_weight = RunningWeight()
        self._thought_weight.add(text)

    def report(self, usage: dict[str, int]) -> None:
        """Take what the provider tells of a request that goes on, of all that came so far."""
        self.reported.update(usage)
        if "output_tokens" in usage:
            self._chunks_reported = self.completion_chunks

    @property
    def unreported_chunks(self) -> int:
        """Chunks that came after the provider last told the output."""
        return self.completion_chunks - self._chunks_reported

    def thinking(self) -> Thinking:
        """What was seen of its thoughts."""
        weight = self._thought_weight.value if self._thought_weight is not None else 0
        return Thinking(weight, self.completion_chunks > 0, self.waited_ms, self.asked_to_think)

    @property
    def completion_characters(self) -> int:
        """Of what the model said and of its tool calls."""
        return self.answer.prose_characters + self.answer.call_characters

    def only_key(self) -> int | None:
        """The key of the one item that this answer is in later prompts; None if it is several."""
        if self.answer.calls == 0:
            return self._prose_key.value
        if self.answer.calls == 1 and self.answer.prose_chunks == 0:
            return self._call_keys[0].value
        return None


def llm_usage(counts: Counts, input_tokens: int, cached: int, output: int) -> dict[str, int]:
    """All units of an LLM leg."""
    return {
        "input_tokens": input_tokens,
        "cached_input_tokens": cached,
        "output_tokens": output,
        "prompt_characters": counts.prompt.characters,
        "completion_characters": counts.completion_characters,
        "completion_chunks": counts.completion_chunks,
    }

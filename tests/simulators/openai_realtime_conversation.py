"""The conversation of a simulated OpenAI Realtime session, counted as the provider counts it.

Counting (https://developers.openai.com/api/docs/guides/realtime-costs): the whole conversation is
read for every response; audio of the user is 1 token per 100 ms, of the assistant 1 token per
50 ms; an item has a few special tokens besides; a beginning that was read before is cached. The
guide's own example caches 64 of 119 tokens, so beginnings are kept in steps of 64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .tokens import render_prompt, tokenize

USER_TOKEN_MS = 100
ASSISTANT_TOKEN_MS = 50
CACHE_STEP = 64
PICTURE_TOKENS = 85

Token = tuple[str, str]
"""What it is (`text`, `audio` or `image`) and which one: equal tokens are cached."""


def tokens_of_ms(audio_ms: int, token_ms: int) -> int:
    """How many tokens so much audio is; a begun one counts."""
    return -(-audio_ms // token_ms)


@dataclass(slots=True)
class Item:
    """One item of the conversation."""

    id: str
    type: str
    role: str = ""
    texts: list[str] = field(default_factory=list[str])
    audio_ms: int = 0
    picture_count: int = 0
    name: str = ""
    call_id: str = ""
    meaning: str = ""  # of speech: what was said; the model hears it, nobody counts it

    @classmethod
    def from_client(cls, body: dict[str, Any]) -> Item:
        """The item of a `conversation.item.create`."""
        kind = str(body["type"])
        item = cls(id=str(body["id"]), type=kind, role=str(body.get("role", "")))
        if kind == "message":
            for part in body.get("content") or []:
                if part["type"] == "input_image":
                    item.picture_count += 1
                else:
                    item.texts.append(str(part.get("text") or part.get("transcript") or ""))
        elif kind == "function_call":
            item.name, item.call_id = str(body["name"]), str(body["call_id"])
            item.texts.append(str(body["arguments"]))
        elif kind == "function_call_output":
            item.call_id = str(body["call_id"])
            item.texts.append(str(body["output"]))
        else:
            raise ValueError(f"an item of type {kind!r} is not simulated")
        return item

    def tokens(self) -> Iterable[Token]:
        """What the model reads of it."""
        yield ("text", f"<{self.role or self.type}>")
        yield from (("text", piece) for piece in tokenize(self.name))
        for text in self.texts:
            yield from (("text", piece) for piece in tokenize(text))
        token_ms = ASSISTANT_TOKEN_MS if self.role == "assistant" else USER_TOKEN_MS
        for index in range(tokens_of_ms(self.audio_ms, token_ms)):
            yield ("audio", f"{self.id}:{index}")
        for index in range(self.picture_count * PICTURE_TOKENS):
            yield ("image", f"{self.id}:{index}")
        yield ("text", "<end>")

    def as_message(self) -> dict[str, Any]:
        """As `script.choose_reply` reads it."""
        if self.type == "function_call_output":
            return {"role": "tool", "content": "".join(self.texts)}
        if self.type == "function_call":
            return {"role": "assistant", "content": ""}
        return {"role": self.role, "content": self.meaning or " ".join(self.texts)}

    def as_json(self, *, status: str = "completed") -> dict[str, Any]:
        """As the server shows it."""
        shown: dict[str, Any] = {
            "id": self.id,
            "object": "realtime.item",
            "type": self.type,
            "status": status,
        }
        if self.type == "message":
            return shown | {"role": self.role, "content": self._content()}
        if self.type == "function_call":
            arguments = self.texts[0] if status != "in_progress" else ""
            return shown | {"name": self.name, "call_id": self.call_id, "arguments": arguments}
        return shown | {"call_id": self.call_id, "output": "".join(self.texts)}

    def _content(self) -> list[dict[str, Any]]:
        if self.role == "assistant":
            if self.audio_ms:
                return [{"type": "output_audio", "transcript": "".join(self.texts)}]
            return [{"type": "output_text", "text": text} for text in self.texts]
        if self.audio_ms:
            return [{"type": "input_audio", "transcript": None}]
        return [{"type": "input_text", "text": text} for text in self.texts]


class Conversation:
    """All items in their order, and what was read of them so far."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self._read: list[Token] = []

    @property
    def last_id(self) -> str | None:
        """The id of the last item."""
        return self.items[-1].id if self.items else None

    def find(self, item_id: str) -> Item | None:
        """The item with that id."""
        return next((item for item in self.items if item.id == item_id), None)

    def add(self, item: Item, previous_id: str | None) -> None:
        """Add an item after another one, at the beginning (`root`), or at the end (None)."""
        if previous_id is None:
            self.items.append(item)
            return
        before = self.find(previous_id)
        at = self.items.index(before) + 1 if before is not None else 0
        self.items.insert(at, item)

    def read(self, instructions: str, tools: Sequence[dict[str, Any]]) -> dict[str, int]:
        """What one response reads: the units of its input, cached parts apart."""
        functions = [{"type": "function", "function": tool} for tool in tools]
        prompt: list[Token] = [("text", token) for token in render_prompt([], functions)]
        prompt += [("text", token) for token in tokenize(instructions)]
        for item in self.items:
            prompt += item.tokens()
        shared = 0
        for token, known in zip(prompt, self._read, strict=False):
            if token != known:
                break
            shared += 1
        shared -= shared % CACHE_STEP
        self._read = prompt
        kinds = Counter(kind for kind, _ in prompt)
        cached = Counter(kind for kind, _ in prompt[:shared])
        return {
            "input_tokens": len(prompt),
            "input_audio_tokens": kinds["audio"],
            "input_image_tokens": kinds["image"],
            "cached_input_tokens": shared,
            "cached_input_audio_tokens": cached["audio"],
            "cached_input_image_tokens": cached["image"],
        }

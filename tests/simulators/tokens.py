"""A deterministic tokenizer that counts about as a byte-pair encoder does.

It is the simulated provider's own: a client cannot know it, as it cannot know OpenAI's future
ones. Frequent words are one token, rare ones several, digits go in threes, punctuation and
scripts without spaces cost more, so characters per token vary with the text (about 4 in English
prose, 2 to 3 in JSON, 1 in Chinese), which a fixed ratio would hide.

The rendering of messages and tools follows OpenAI's cookbook "How to count tokens with tiktoken"
(https://cookbook.openai.com/examples/how_to_count_tokens_with_tiktoken): 3 tokens around each
message, 3 that prime the answer, functions rendered as TypeScript declarations.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

# As in GPT-4's splitter: contractions, words with their space, digits by three, punctuation runs.
_WORDS = re.compile(
    r"'(?:s|t|re|ve|m|ll|d)\b| ?[A-Za-z]+|\d{1,3}| ?[^\sA-Za-z\d]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    re.IGNORECASE,
)
_ENDINGS = re.compile(
    "(?:ization|ations?|ingly|ments?|ness|[ai]ble|ally|[ts]ion|ings?|ers|est|ous|ful|ity|ies|ed|ly)$",
    re.IGNORECASE,
)
_LONG_BUT_FREQUENT = frozenset(
    re.findall(
        r"\w+",
        """
        about account actually address after again against already although always another
        anything appointment around assistant available because before better between business
        calendar change confirm confirmed customer delivery different difference everything
        example experience first following friday further general hello however hundred
        important information instead invoice little message minutes monday morning nothing
        number options orders people perhaps please possible present problem provide question
        rather really reservation right saturday schedule second service several should
        something special standard started sunday support system thank thanks themselves there
        these things think thousand through thursday today together tomorrow tuesday understand
        weather wednesday welcome without wonderful would yesterday your
        """,
    )
)


def tokenize(text: str) -> list[str]:
    """Cut `text` into tokens; joined, they are `text` again."""
    return [piece for word in _WORDS.findall(text) for piece in _pieces(word)]


def count_tokens(text: str) -> int:
    """How many tokens `text` is."""
    return len(tokenize(text))


def _pieces(word: str) -> Iterator[str]:
    bare = word.lstrip(" ")
    if not bare.isascii():
        # Scripts that the merges hardly cover: a token a character (a space joins the first).
        yield word[: len(word) - len(bare) + 1]
        yield from bare[1:]
        return
    if not bare.isalpha() or len(bare) <= 4 or bare.lower() in _LONG_BUT_FREQUENT:
        yield from _runs(word, 4) if len(bare) > 4 and not bare.isalpha() else [word]
        return
    chance = zlib.crc32(bare.lower().encode())
    if len(bare) <= 7 and chance % 4:  # three of four short words earned a token of their own
        yield word
        return
    ending = _ENDINGS.search(word, len(word) - len(bare) + 3)  # a stem of three letters is left
    stem_length = ending.start() if ending else len(word)
    yield from _runs(word[:stem_length], 4 + chance % 3)
    if ending:
        yield ending[0]


def _runs(text: str, length: int) -> Iterator[str]:
    return (text[start : start + length] for start in range(0, len(text), length))


def render_prompt(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> list[str]:
    """The tokens that the model reads for a request; a shared beginning gives shared tokens.

    Args:
        messages: The request's `messages`, content as text or as text parts.
        tools: The request's `tools`, functions only.

    Raises:
        ValueError: A content part is not text: this provider hears and sees nothing.
    """
    tokens: list[str] = []
    if tools:
        tokens += ["<|tools|>", *tokenize(_declarations(tools))]
    for message in messages:
        tokens += ["<|start|>", *tokenize(str(message["role"])), "<|message|>"]
        if "name" in message:
            tokens += ["<|name|>", *tokenize(str(message["name"]))]
        tokens += tokenize(message_text(message))
        for call in message.get("tool_calls") or []:
            function = call["function"]
            tokens += ["<|call|>", *tokenize(f"functions.{function['name']}")]
            tokens += tokenize(str(function["arguments"]))
        tokens.append("<|end|>")
    return [*tokens, "<|start|>", "assistant", "<|message|>"]


def message_text(message: dict[str, Any]) -> str:
    """The text of a chat message, its parts joined."""
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    for part in content:
        if part.get("type") not in ("text", "refusal"):
            raise ValueError(f"cannot read a content part of type {part.get('type')!r}: only text")
    return "".join(part.get("text") or part.get("refusal") or "" for part in content)


def _declarations(tools: Sequence[dict[str, Any]]) -> str:
    lines = ["# Tools", "", "namespace functions {"]
    for tool in tools:
        function = tool["function"]
        if function.get("description"):
            lines.append(f"// {function['description']}")
        parameters = function.get("parameters") or {}
        lines += [f"type {function['name']} = (_: {_type(parameters)}) => any;", ""]
    return "\n".join([*lines, "} // namespace functions"])


def _type(schema: dict[str, Any]) -> str:
    """A JSON schema as the TypeScript type the model is shown."""
    if "enum" in schema:
        return " | ".join(f'"{value}"' for value in schema["enum"])
    if "anyOf" in schema:
        return " | ".join(_type(option) for option in schema["anyOf"])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"{_type(schema.get('items') or {})}[]"
    if kind != "object":
        return {"integer": "number"}.get(str(kind), str(kind))
    required = schema.get("required") or []
    lines: list[str] = []
    for name, field in (schema.get("properties") or {}).items():
        if field.get("description"):
            lines.append(f"// {field['description']}")
        lines.append(f"{name}{'' if name in required else '?'}: {_type(field)},")
    return "\n".join(["{", *lines, "}"])

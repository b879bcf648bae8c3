"""What a request asks, as far as it can be weighed: the prompt of an LLM request."""

from __future__ import annotations

import contextlib
import re
import weakref
from typing import Any, Final, cast

from livekit.agents.llm import ToolContext

from ._counts import Counts, Item, Items, Prompt, TextKey
from ._text_weight import TOKEN
from ._text_weight import weight as weight_of
from ._wire_answers import field

_PICTURE_WEIGHT: Final = 500 * TOKEN
"""Between what the providers take a picture for: 258 tokens with Gemini, up to 1,600 with Claude.
https://ai.google.dev/gemini-api/docs/tokens https://docs.anthropic.com/en/docs/build-with-claude/vision
"""

# By the LLM: what OpenAI keeps of the conversation, under the id of the last response.
_kept: weakref.WeakKeyDictionary[Any, tuple[str, list[Any]]] = weakref.WeakKeyDictionary()


def options(stream: Any) -> dict[str, Any]:
    """What a plugin adds to its request, by name; nothing where it keeps that elsewhere."""
    given = getattr(stream, "_extra_kwargs", None)
    return cast("dict[str, Any]", given) if isinstance(given, dict) else {}


def billed_items(stream: Any) -> list[Any]:
    """The items of the conversation that a request is billed for.

    With OpenAI's responses only what is new is sent after a `previous_response_id`, and all that
    came before is billed too. What is sent holds the model's own answer, which OpenAI has already:
    then it is billed twice.
    """
    sent: list[Any] = list(stream._chat_ctx.items)  # the agent's own list grows
    previous = options(stream).get("previous_response_id")
    if not previous:
        return sent
    known_id, known = _kept.get(stream._llm, ("", []))
    if known_id != previous:  # as good as can be: the conversation as the agent knows it
        whole: list[Any] = getattr(getattr(stream, "_full_chat_ctx", None), "items", sent)
        known = whole[: len(whole) - len(sent)]
    own = [
        item
        for item in sent
        if item.type == "function_call" or (item.type == "message" and item.role == "assistant")
    ]
    return [*known, *own, *sent]


def answered(stream: Any, billed: list[Any]) -> None:
    """A request was answered: its provider may know these items from now on."""
    response_id = getattr(stream, "_response_id", "")
    if response_id:
        _kept[stream._llm] = (response_id, billed)


_THINKING_MODELS: Final = re.compile(
    r"(^|/)(o[1-9]|gemini-(2\.5|3)|deepseek-reasoner|\S*(?<!non)-reasoning)"
)
_NO_THOUGHTS: Final = frozenset({"", "none", "minimal", "off", "0"})


def asks_to_think(stream: Any, model: str) -> bool:
    """Whether a request asks its model to think, or does not keep one from it that does unasked."""
    given = options(stream)
    asked = given.get("reasoning_effort")
    if (reasoning := given.get("reasoning")) is not None:
        asked = field(reasoning, "effort")
    if (config := given.get("thinking_config")) is not None:
        budget = field(config, "thinking_budget")
        asked = budget if budget is not None else field(config, "thinking_level")
    if asked is not None:
        return str(getattr(asked, "value", asked)).lower() not in _NO_THOUGHTS
    return _THINKING_MODELS.search(model.lower()) is not None


def count_prompt(entries: list[Any], tools: list[Any], before: Prompt | None) -> Counts:
    """The size of a request as it is rendered for the model: messages, tool calls, tools.

    It shares memory with the one `before`, as far as it begins alike.
    """
    items: list[Item] = []
    characters = weight = 0
    for entry in entries:
        if entry.type == "message":
            texts: list[str] = []
            for part in entry.content:
                if getattr(part, "type", "") == "image_content":
                    items.append(Item(TextKey(part.id).value, _PICTURE_WEIGHT))
                    weight += _PICTURE_WEIGHT
                    continue
                # Audio has no characters; a transcript stands for it.
                text = part if isinstance(part, str) else getattr(part, "transcript", None)
                if text:
                    texts.append(text)
            text = texts[0] if len(texts) == 1 else "\n".join(texts)
        elif entry.type == "function_call":
            text = entry.name + entry.arguments
        elif entry.type == "function_call_output":
            text = entry.output
        else:
            continue  # hand-offs and other items are no part of the request
        item = _item(text)
        items.append(item)
        characters += len(text)
        weight += item.weight
    tools_weight = sum(map(_tool_weight, tools))
    shared = Items(items, before.items if before is not None else ())
    return Counts(Prompt(shared, tools_weight, characters, weight + tools_weight))


_known_items: dict[int, Item] = {}
"""By their key: of one request's items most are the next one's too, and weighed once."""
_KNOWN_ITEMS_MAX: Final = 4096


def _item(text: str) -> Item:
    key = TextKey(text).value
    known = _known_items.get(key)
    if known is None:
        if len(_known_items) >= _KNOWN_ITEMS_MAX:
            _known_items.clear()
        known = _known_items[key] = Item(key, weight_of(text))
    return known


_known_tools: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


def _tool_weight(tool: Any) -> int:
    """The weight of a tool's declaration, found once: it is the same for every request."""
    try:
        known = _known_tools.get(tool)
    except TypeError:  # not hashable, or not weakly
        known = None
    if known is not None:
        return known
    schemas = ToolContext([tool]).parse_function_tools("openai", strict=True)
    weight = sum(map(_declaration_weight, schemas))
    with contextlib.suppress(TypeError):
        _known_tools[tool] = weight
    return weight


_NAME_FRAME: Final = 3 * TOKEN  # of every parameter: `name: type,` and its line
_DESCRIPTION_FRAME: Final = 2 * TOKEN  # `// ` and its line
_DECLARATION_FRAME: Final = 10 * TOKEN  # `type name = (_: {` ... `}) => any;`


def _declaration_weight(schema: Any) -> int:
    """The weight of a JSON schema as models are shown it: a declaration, not its JSON.

    https://cookbook.openai.com/examples/how_to_count_tokens_with_tiktoken
    """
    weight = 0
    if isinstance(schema, dict):
        for key, value in cast("dict[str, Any]", schema).items():
            if key == "properties" and isinstance(value, dict):
                for name, field in cast("dict[str, Any]", value).items():
                    weight += weight_of(name) + _NAME_FRAME + _declaration_weight(field)
            elif key == "description" and isinstance(value, str):
                weight += weight_of(value) + _DESCRIPTION_FRAME
            elif key == "name" and isinstance(value, str):
                weight += weight_of(value) + _DECLARATION_FRAME
            elif key == "enum" and isinstance(value, list):
                weight += sum(weight_of(f'"{each}" | ') for each in cast("list[Any]", value))
            elif isinstance(value, dict | list):
                weight += _declaration_weight(value)
    elif isinstance(schema, list):
        weight += sum(map(_declaration_weight, cast("list[Any]", schema)))
    return weight

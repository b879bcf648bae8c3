"""LLM legs: one per attempt of a request, from the prompt's size to the provider's own count."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any, Final, cast

from livekit.agents.llm import ChatChunk, ToolContext

from voicecost_ledger.records import Basis, Modality, Outcome

from . import _faults
from ._estimates import Counts, Estimates, Item, Prompt, TextKey, estimates_for, llm_usage
from ._instrument_attempts import Attempt, describe, was_refused
from ._text_weight import TOKEN
from ._text_weight import weight as weight_of

CHUNKS_AT_ONCE: Final = 4
"""Chunks of an answer that are estimated together while every limit is far: what a SIGKILL in
mid-answer can cost, less one; the answer's end is always settled with all of them."""


class LLMAttempt(Attempt):
    """One attempt of an LLM request."""

    modality = Modality.LLM
    _began = False
    _refused_by_us = False

    def begin(self, *args: Any) -> None:
        """Open the leg with the prompt, before the request goes out."""
        stream = self.stream
        self._counts = count_prompt(stream._chat_ctx, stream._tools)
        attributes = describe(
            stream,
            stream._llm,
            Modality.LLM,
            model=_text(getattr(stream, "_model", "")),
            service_tier=_text(getattr(stream, "_extra_kwargs", {}).get("service_tier", "")),
        )
        self._tally = self.tally(attributes)
        self._estimates: Estimates = estimates_for(self.owner.meter(), attributes)
        self._reported: tuple[int, int, int] | None = None
        self._wire_seen = False
        usage = self._estimates.usage(self._counts)
        self._input_tokens = usage["input_tokens"]
        self._cached_input_tokens = usage["cached_input_tokens"]
        self._began = True
        if not self._tally.spend(usage, Basis.ESTIMATED):
            self._refused_by_us = True
            self.end_for_budget()
        # Answers of clients that are not OpenAI's show as LiveKit's own chunks.
        send_nowait: Callable[[ChatChunk], None] = stream._event_ch.send_nowait

        def observed_send_nowait(chunk: ChatChunk) -> None:
            try:
                self._livekit_chunk(chunk)
            except Exception as error:
                _faults.count("llm_chunk", error)
            send_nowait(chunk)

        stream._event_ch.send_nowait = observed_send_nowait

    def answer_observed(self) -> None:
        """Raw chunks come from the wire: LiveKit's own, made of them, count nothing."""
        self._wire_seen = True
        self.requests_itself()

    def chunk_received(self, chunk: Any) -> None:
        """Count a raw OpenAI chunk; tool arguments come in many, LiveKit shows one."""
        counts, received = self._counts, False
        for choice in chunk.choices:
            delta = choice.delta
            if delta is None:  # Azure's content filter sends such
                continue
            if delta.content:
                counts.prose(delta.content)
                received = True
            for call in delta.tool_calls or ():
                function = call.function
                if function is not None and (function.name or function.arguments):
                    counts.call(function.name or "", function.arguments or "")
                    received = True
        usage = chunk.usage
        if usage is not None:
            details = usage.prompt_tokens_details
            self._report(
                usage.prompt_tokens or 0,
                (details.cached_tokens or 0) if details is not None else 0,
                usage.completion_tokens or 0,
            )
        if received:
            self._received()

    def finish(self, outcome: Outcome, error: BaseException | None) -> None:
        """Settle the leg: as reported, as nothing when it was refused, else as estimated."""
        if not self._began:
            return
        self.stream._event_ch.__dict__.pop("send_nowait", None)
        counts, tally = self._counts, self._tally
        if self._refused_by_us:  # never sent, and said so
            tally.stop(outcome, llm_usage(counts, 0, 0, 0), Basis.OBSERVED)
            return
        outcome = self.outcome_of(outcome, tally)
        if self._reported is not None:
            usage = llm_usage(counts, *self._reported)
            tally.stop(outcome, usage, Basis.REPORTED)
            # Now the meter is known if it ever will be, also where it was attached meanwhile.
            estimates_for(self.owner.meter(), tally.attributes).learn(counts, usage)
        elif counts.completion_chunks == 0 and was_refused(error):
            tally.stop(outcome, llm_usage(counts, 0, 0, 0), Basis.OBSERVED)
        else:
            estimates = estimates_for(self.owner.meter(), tally.attributes)
            tally.stop(outcome, estimates.usage(counts), Basis.ESTIMATED)
            if tally.leg is not None:
                estimates.settle_later(tally.leg, counts)

    def _livekit_chunk(self, chunk: ChatChunk) -> None:
        usage = chunk.usage
        if usage is not None:
            self._report(usage.prompt_tokens, usage.prompt_cached_tokens, usage.completion_tokens)
        delta = chunk.delta
        if delta is None or self._wire_seen:
            return
        if delta.content:
            self._counts.prose(delta.content)
        for call in delta.tool_calls:
            self._counts.call(call.name, call.arguments)
        if delta.content or delta.tool_calls:
            self._received()

    def _report(self, input_tokens: int, cached: int, output_tokens: int) -> None:
        if input_tokens <= 0 and output_tokens <= 0:
            return  # LiveKit's 0/0 is no report
        self._reported = (input_tokens, cached, output_tokens)
        self._tally.owe(llm_usage(self._counts, *self._reported), Basis.REPORTED)

    def _received(self) -> None:
        counts = self._counts
        counts.completion_chunks += 1
        if self._reported is not None:  # some providers report with every chunk
            if self._tally.leg is not None and not self._tally.leg.allow(self._tally.usage):
                self.end_for_budget()
            return
        if counts.completion_chunks % CHUNKS_AT_ONCE:
            # An estimate is 3 µs of the agent's time; with the money far away a few chunks wait.
            leg = self._tally.leg
            if leg is not None and leg.may_lag():
                return
        output_tokens = self._estimates.output_tokens(counts)
        usage = llm_usage(counts, self._input_tokens, self._cached_input_tokens, output_tokens)
        if not self._tally.spend(usage, Basis.ESTIMATED):
            # What has arrived is owed; what may still come is what the budget can refuse.
            self._tally.owe(usage, Basis.ESTIMATED)
            self.end_for_budget()


def count_prompt(chat_ctx: Any, tools: list[Any]) -> Counts:
    """The size of a request as it is rendered for the model: messages, tool calls, tools."""
    items: list[Item] = []
    characters = weight = 0
    for entry in chat_ctx.items:
        if entry.type == "message":
            texts: list[str] = []
            for part in entry.content:
                # Images and audio have no characters; a transcript stands for its audio.
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
    return Counts(Prompt(tuple(items), tools_weight, characters, weight + tools_weight))


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


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""

"""Anthropic's client: messages that stream.

The prompt's tokens come with the first event, without those read from or written to the cache;
output tokens with the last, cumulative.
https://docs.anthropic.com/en/docs/build-with-claude/streaming
https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching#tracking-cache-performance
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import _faults
from ._wire_answers import AnswerObserver, LazyProperty, Undo, count, field, replace_method
from ._wire_openai import observe_requests, observed_answer


def observe_anthropic_clients() -> Undo:
    """Show the answers that Anthropic's client receives to their attempt; returns the undo."""
    from anthropic import AsyncAnthropic

    apis = [
        LazyProperty(
            AsyncAnthropic, "messages", "anthropic.resources.messages.messages", _observe_messages
        ),
        LazyProperty(
            AsyncAnthropic, "beta", "anthropic.resources.beta.messages.messages", _observe_beta
        ),
    ]

    def undo() -> None:
        for api in apis:
            api.undo()

    return undo


def _observe_messages() -> Undo:
    from anthropic.resources.messages import AsyncMessages

    return _observe_requests(AsyncMessages)


def _observe_beta() -> Undo:
    from anthropic.resources.beta.messages import AsyncMessages

    return _observe_requests(AsyncMessages)


def _observe_requests(messages_class: type[Any]) -> Undo:
    undo_requests = observe_requests(messages_class, MessageReader, _read_message)
    undo_stream = replace_method(messages_class, "stream", _observed_stream)

    def undo() -> None:
        undo_stream()
        undo_requests()

    return undo


def _observed_stream(stream: Callable[..., Any]) -> Callable[..., Any]:
    """The client's `stream`: its request goes out when what it returns is entered."""

    def stream_observed(self: Any, *args: Any, **kwargs: Any) -> Any:
        manager = stream(self, *args, **kwargs)
        with _faults.contained("llm_stream"):
            attributes: dict[str, Any] = manager.__dict__
            for name, answering in tuple(attributes.items()):
                if name.endswith("__api_request"):
                    observed = observed_answer(answering, True, MessageReader, _read_message)
                    setattr(manager, name, observed)
        return manager

    return stream_observed


class MessageReader:
    """Reads the events of one message."""

    def __init__(self) -> None:
        self._so_far = {"input_tokens": 0, "cached_input_tokens": 0, "cache_write_tokens": 0}

    def __call__(self, event: Any, answer: AnswerObserver) -> None:
        """Read one event."""
        match event.type:
            case "content_block_delta":
                _read_delta(event.delta, answer)
            case "content_block_start":
                _read_block(event.content_block, answer)
            case "message_start":
                message = event.message
                answer.served_by(message.model or "", field(message.usage, "service_tier") or "")
                answer.report(self.prompt(message.usage), final=False)
                answer.foretell(count(field(message.usage, "output_tokens")))
            case "message_delta":
                ended = field(event.delta, "stop_reason") is not None
                answer.report(self.prompt(event.usage) | _output(event.usage), final=ended)
            case _:
                pass

    def prompt(self, usage: Any) -> dict[str, int]:
        """Units of the prompt; they only grow, where tools of the provider add to it."""
        so_far = self._so_far
        read = count(field(usage, "cache_read_input_tokens"))
        written = count(field(usage, "cache_creation_input_tokens"))
        read = so_far["cached_input_tokens"] = max(so_far["cached_input_tokens"], read)
        written = so_far["cache_write_tokens"] = max(so_far["cache_write_tokens"], written)
        rest = count(field(usage, "input_tokens"))
        so_far["input_tokens"] = max(so_far["input_tokens"], rest)
        return {**so_far, "input_tokens": so_far["input_tokens"] + read + written}


def _read_message(message: Any, answer: AnswerObserver) -> None:
    """A message that did not stream."""
    for block in message.content:
        _read_block(block, answer)
    usage = message.usage
    answer.served_by(message.model or "", field(usage, "service_tier") or "")
    answer.report(MessageReader().prompt(usage) | _output(usage), final=True)


def _read_block(block: Any, answer: AnswerObserver) -> None:
    match block.type:
        case "text":
            if block.text:
                answer.prose(block.text)
        case "tool_use" | "server_tool_use":
            answer.call(block.name, "")
        case "thinking" | "redacted_thinking":
            answer.thought(field(block, "thinking") or "")
        case _:
            pass


def _read_delta(delta: Any, answer: AnswerObserver) -> None:
    match delta.type:
        case "text_delta":
            answer.prose(delta.text)
        case "input_json_delta":
            answer.call("", delta.partial_json)
        case "thinking_delta":
            answer.thought(delta.thinking)
        case _:
            pass


def _output(usage: Any) -> dict[str, int]:
    """Units of the answer so far, searches of the provider's own tool included."""
    units = {
        "output_tokens": count(usage.output_tokens),
        "requests": count(field(field(usage, "server_tool_use"), "web_search_requests")),
    }
    details = field(usage, "output_tokens_details")
    if details is not None:
        units["reasoning_tokens"] = count(field(details, "thinking_tokens"))
    return units

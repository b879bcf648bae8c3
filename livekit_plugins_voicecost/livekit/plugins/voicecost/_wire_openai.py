"""OpenAI's client and its two protocols: chat completions, which many hosts speak, and responses.

https://platform.openai.com/docs/api-reference/chat-streaming
https://platform.openai.com/docs/api-reference/responses-streaming
https://platform.openai.com/docs/guides/websocket-mode
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp
import msgspec
from openai import AsyncOpenAI

from . import _faults
from ._wire import observer
from ._wire_answers import (
    AnswerObserver,
    LazyProperty,
    ObservedEvents,
    Reader,
    Undo,
    count,
    field,
    replace_method,
    show,
)

_COMPLETIONS: Final = "openai.resources.chat.completions.completions"
_RESPONSES: Final = "openai.resources.responses.responses"


def observe_openai_clients() -> Undo:
    """Show the answers that OpenAI's client receives to their attempt; returns the undo."""
    apis = [
        LazyProperty(AsyncOpenAI, "chat", _COMPLETIONS, _observe_completions),
        LazyProperty(AsyncOpenAI, "responses", _RESPONSES, _observe_responses),
    ]

    def undo() -> None:
        for api in apis:
            api.undo()

    return undo


def _observe_completions() -> Undo:
    from openai.resources.chat.completions import AsyncCompletions

    return observe_requests(AsyncCompletions, lambda: read_chunk, read_completion)


def _observe_responses() -> Undo:
    from openai.resources.responses import AsyncResponses

    return observe_requests(AsyncResponses, lambda: read_response_event, _read_response)


def observe_requests(api: type[Any], make_reader: Callable[[], Reader], read_whole: Reader) -> Undo:
    """Show what an API's requests are answered to the attempt that asks; returns the undo.

    Args:
        api: The client's class with `create`, and `parse` where it has that beside it.
        make_reader: Makes what reads one answer's events.
        read_whole: Reads an answer that did not stream.
    """

    def observed(request: Callable[..., Any]) -> Callable[..., Any]:
        async def request_observed(self: Any, *args: Any, **kwargs: Any) -> Any:
            streams = bool(kwargs.get("stream"))
            answering = request(self, *args, **kwargs)
            return await observed_answer(answering, streams, make_reader, read_whole)

        return request_observed

    names = [name for name in ("create", "parse") if hasattr(api, name)]
    undos = [replace_method(api, name, observed) for name in names]

    def undo() -> None:
        for each in undos:
            each()

    return undo


async def observed_answer(
    answering: Awaitable[Any],
    streams: bool,
    make_reader: Callable[[], Reader],
    read_whole: Reader,
) -> Any:
    """A client's answer, shown to the attempt that asks for it; see `observe_requests`."""
    seen_by = observer()
    answer = await answering
    if seen_by is None:
        return answer
    try:
        if streams:
            # The client's own iterator: also what `async for` over the stream reads from.
            events = getattr(answer, "_iterator", None)
            if events is None:  # a raw response, which the caller reads as it likes
                return answer
            told = seen_by.answer_observed()
            if told is not None:
                answer._iterator = ObservedEvents(events, make_reader(), told)
        elif hasattr(answer, "usage"):
            told = seen_by.answer_observed()
            if told is not None:
                show(answer, read_whole, told)
    except Exception as error:
        _faults.count("llm_stream", error)
    return answer


# Chat completions


def read_chunk(chunk: Any, answer: AnswerObserver) -> None:
    """A chunk of a chat completion that streams."""
    ended = not chunk.choices
    for choice in chunk.choices:
        delta = choice.delta
        if choice.finish_reason is not None:
            ended = True
        if delta is not None:  # Azure's content filter sends such
            _read_message(delta, answer)
    answer.served_by(chunk.model or "", field(chunk, "service_tier") or "")
    usage = chunk.usage
    if usage is not None:
        answer.report(_completion_usage(usage), final=ended)


def read_completion(completion: Any, answer: AnswerObserver) -> None:
    """A chat completion that did not stream."""
    for choice in completion.choices:
        _read_message(choice.message, answer)
    answer.served_by(completion.model or "", field(completion, "service_tier") or "")
    if completion.usage is not None:
        answer.report(_completion_usage(completion.usage), final=True)


def _read_message(message: Any, answer: AnswerObserver) -> None:
    if message.content:
        answer.prose(message.content)
    refusal = field(message, "refusal")
    if refusal:
        answer.prose(refusal)
    # Not of OpenAI's: DeepSeek, Moonshot and vLLM show thoughts as the first, Groq as the other.
    more = field(message, "model_extra")
    if more:
        thought = more.get("reasoning_content") or more.get("reasoning")
        if thought and isinstance(thought, str):
            answer.thought(thought)
    for call in message.tool_calls or ():
        function = call.function
        if function is not None and (function.name or function.arguments):
            answer.call(function.name or "", function.arguments or "")


def _completion_usage(usage: Any) -> dict[str, int]:
    read, written = field(usage, "prompt_tokens_details"), field(usage, "completion_tokens_details")
    input_tokens = count(usage.prompt_tokens)
    cached = count(field(read, "cached_tokens"))
    # DeepSeek and Moonshot have had it here.
    cached = cached or count(field(usage, "prompt_cache_hit_tokens"))
    cached = cached or count(field(usage, "cached_tokens"))
    # With xAI, and Gemini's compatible host, thoughts are only in the total.
    output_tokens = max(
        count(usage.completion_tokens), count(field(usage, "total_tokens")) - input_tokens
    )
    return {
        "input_tokens": input_tokens,
        "cached_input_tokens": cached,
        "output_tokens": output_tokens,
        "cache_write_tokens": count(field(read, "cache_write_tokens")),
        "input_audio_tokens": count(field(read, "audio_tokens")),
        "input_image_tokens": count(field(read, "image_tokens")),
        "reasoning_tokens": count(field(written, "reasoning_tokens")),
        "output_audio_tokens": count(field(written, "audio_tokens")),
    }


# Responses

_TOOLS_BILLED_BY_CALL: Final = frozenset({"web_search_call", "file_search_call"})
"""https://platform.openai.com/docs/pricing#built-in-tools"""


def read_response_event(event: Any, answer: AnswerObserver) -> None:
    """An event of a response that streams, as the client's object or as plain JSON."""
    match field(event, "type"):
        case "response.output_text.delta" | "response.refusal.delta":
            answer.prose(field(event, "delta") or "")
        case "response.function_call_arguments.delta" | "response.custom_tool_call_input.delta":
            answer.call("", field(event, "delta") or "")
        case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta":
            answer.thought(field(event, "delta") or "")
        case "response.output_item.added":
            item = field(event, "item")
            if field(item, "type") in ("function_call", "custom_tool_call"):
                answer.call(field(item, "name") or "", "")
            elif field(item, "type") == "reasoning":
                answer.thought("")
        case "response.created":
            response = field(event, "response")
            answer.served_by(field(response, "model") or "", _tier(response))
        case "response.completed" | "response.incomplete" | "response.failed":
            _read_response(field(event, "response"), answer)
        case "error":
            answer.refuse()
        case _:
            pass


def _read_response(response: Any, answer: AnswerObserver) -> None:
    answer.served_by(field(response, "model") or "", _tier(response))
    usage = field(response, "usage")
    if usage is not None:
        answer.report(_response_usage(usage, field(response, "output") or ()), final=True)


def _response_usage(usage: Any, output: Any) -> dict[str, int]:
    read, written = field(usage, "input_tokens_details"), field(usage, "output_tokens_details")
    return {
        "input_tokens": count(field(usage, "input_tokens")),
        "cached_input_tokens": count(field(read, "cached_tokens")),
        "output_tokens": count(field(usage, "output_tokens")),
        "cache_write_tokens": count(field(read, "cache_write_tokens")),
        "input_audio_tokens": count(field(read, "audio_tokens")),
        "input_image_tokens": count(field(read, "image_tokens")),
        "reasoning_tokens": count(field(written, "reasoning_tokens")),
        "requests": sum(field(item, "type") in _TOOLS_BILLED_BY_CALL for item in output),
    }


def _tier(response: Any) -> str:
    return field(response, "service_tier") or ""


FOLLOWED_MAX_S: Final = 60.0
"""How long a response is read that the plugin has left: it keeps the socket to its next request."""


class ResponsesSocket:
    """Reads along on a WebSocket on which a response was asked for, to that response's end.

    Args:
        connection: The WebSocket; for as long as this lasts it carries this one response.
        answer: Told what is received.
    """

    def __init__(self, connection: aiohttp.ClientWebSocketResponse, answer: AnswerObserver) -> None:
        self._connection: Any = connection
        receive: Callable[..., Any] = connection.receive

        async def observed_receive(*args: Any, **kwargs: Any) -> Any:
            message = await receive(*args, **kwargs)
            if message.type is aiohttp.WSMsgType.TEXT:
                show(message.data, _read_message_text, answer)
            return message

        self._connection.receive = observed_receive

    def close(self) -> None:
        """Read no further; the connection goes back to its pool as it was."""
        self._connection.__dict__.pop("receive", None)

    async def follow(self, ended: Callable[[], bool]) -> None:
        """Read on where the plugin has left, until `ended`, or the socket or the time is over.

        A pool closes the socket of an interrupted response only with its next request. Until then
        the provider generates into it, and bills that.
        """
        try:
            async with asyncio.timeout(FOLLOWED_MAX_S):
                while not ended():
                    message = await self._connection.receive()
                    if message.type is not aiohttp.WSMsgType.TEXT:
                        return  # closed
        except TimeoutError:
            pass
        finally:
            self.close()

    async def hang_up(self) -> None:
        """Close the socket: what is generated into it may not be paid any more."""
        self.close()
        await self._connection.close()


def asks_for_response(payload: str) -> bool:
    """Whether a WebSocket message asks for a response."""
    return '"response.create"' in payload[:64]


def _read_message_text(text: str, answer: AnswerObserver) -> None:
    read_response_event(msgspec.json.decode(text), answer)

"""Simulates OpenAI's responses, over HTTP and over a WebSocket, and keeps OpenAI's bill.

Wire: https://platform.openai.com/docs/api-reference/responses-streaming (typed server-sent
events), https://platform.openai.com/docs/guides/websocket-mode (`response.create` messages, one
response at a time on a connection, the same events as JSON messages).

Billing rules: those of `openai_chat`. With `previous_response_id` the whole conversation is input
and billed as such (https://platform.openai.com/docs/guides/conversation-state#managing-context-for-text-generation).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from aiohttp import web

from .bill import BillRow
from .generation import (
    DiedError,
    Generation,
    ModelSimulator,
    Piece,
    PrefixCache,
    abort,
    event_stream,
    send_event,
)
from .openai_chat import CACHE_TOKENS_MIN, CACHE_TOKENS_STEP, count_prompt, error_response
from .script import Fault, choose_reply
from .tokens import render_prompt

Send = Callable[[dict[str, Any]], Awaitable[None]]


class OpenAIResponsesSimulator(ModelSimulator):
    """Responses that stream like OpenAI's.

    Attributes:
        service_tier: What the response says served it; None says what was asked for.
        search_count: How often the model calls the provider's own web search for every answer.
        shows_thoughts: Whether a summary of the thoughts is streamed: here all of them.
    """

    provider = "openai"
    service_tier: str | None = None
    search_count = 0
    shows_thoughts = False

    def __init__(self, **options: Any) -> None:
        """See `ModelSimulator`."""
        super().__init__(**options)
        self._cache = PrefixCache(tokens_min=CACHE_TOKENS_MIN, step=CACHE_TOKENS_STEP)
        self._conversations: dict[str, list[dict[str, Any]]] = {}

    @property
    def base_url(self) -> str:
        """For the client's `base_url` over HTTP."""
        return f"{self.url}/v1"

    @property
    def socket_url(self) -> str:
        """For the plugin's `base_url` over a WebSocket."""
        return f"{self.url}/v1/responses"

    def add_routes(self, app: web.Application) -> None:
        """Add the API's routes to `app`."""
        app.router.add_get("/v1/responses", self._socket)
        app.router.add_post("/v1/responses", self._post)

    async def _post(self, request: web.Request) -> web.StreamResponse:
        if not request.headers.get("Authorization", "").startswith("Bearer "):
            return error_response(401, "You didn't provide an API key.", "invalid_request_error")
        body: dict[str, Any] = await request.json()
        if not body.get("stream"):
            return error_response(400, "Only streaming is simulated.", "invalid_request_error")
        exchange = self._begin(body)
        if isinstance(exchange, tuple):
            status, message = exchange
            return error_response(status, message, "server_error")
        response = event_stream(**{"x-request-id": exchange.row.request_id})

        async def send(event: dict[str, Any]) -> None:
            if not response.prepared:
                await response.prepare(request)
            await send_event(response, event, event=event["type"])

        try:
            await self._serve(exchange, send)
        except DiedError:
            abort(request)
            return response
        await response.write_eof()
        return response

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        if not request.headers.get("Authorization", "").startswith("Bearer "):
            return error_response(401, "You didn't provide an API key.", "invalid_request_error")
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        running: asyncio.Task[None] | None = None
        try:
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    break
                body = json.loads(message.data)
                if body.get("type") == "response.create" and (running is None or running.done()):
                    running = asyncio.create_task(self._answer(request, socket, body))
        finally:  # the client has left
            if running is not None:
                running.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                    await running
        return socket

    async def _answer(
        self, request: web.Request, socket: web.WebSocketResponse, body: dict[str, Any]
    ) -> None:
        exchange = self._begin(body)
        if isinstance(exchange, tuple):
            status, message = exchange
            error = {"type": "server_error", "code": "server_error", "message": message}
            await socket.send_json({"type": "error", "status": status, "error": error})
            return
        try:
            await self._serve(exchange, socket.send_json)
        except DiedError:
            abort(request)

    def _begin(self, body: dict[str, Any]) -> _Exchange | tuple[int, str]:
        """Accept a request, or say why not: status and message."""
        try:
            model = str(body["model"])
            given = body["input"]
            items = [{"role": "user", "content": given}] if isinstance(given, str) else given
            before = body.get("previous_response_id")
            if before is not None:
                items = [*self._conversations[before], *items]
            tools: list[dict[str, Any]] = [
                {"type": "function", "function": tool}
                for tool in body.get("tools") or []
                if tool["type"] == "function"
            ]
            messages = _plain_messages(items)
            prompt = render_prompt(messages, tools)
        except (KeyError, TypeError, ValueError) as error:
            return 400, f"Invalid request: {error!r}"
        self.request_count += 1
        request_id = f"resp_simulated{self.request_count:06d}"
        tier = self.service_tier or str(body.get("service_tier") or "default")
        row, fault = self.open_row(model, request_id, {"stream": 1, "tier": tier})
        if fault is not None and fault.status is not None:
            self.bill.close(row, "refused")
            return fault.status, "The simulated provider was told to refuse this."
        count_prompt(row, model, prompt, self._cache)
        names = {tool["function"]["name"] for tool in tools}
        generation = Generation(
            choose_reply(self.replies, messages, names),
            seed=request_id,
            token_count_max=body.get("max_output_tokens"),
        )
        return _Exchange(row, generation, fault, items, tier)

    async def _serve(self, exchange: _Exchange, send: Send) -> None:
        row, generation = exchange.row, exchange.generation
        events = _Events(exchange, send)
        async with self.billing(row, generation, exchange.fault):
            await events.created()
            for _ in range(self.search_count):
                await events.search()
            async for piece in self.pieces(row, generation, exchange.fault):
                await events.piece(piece, self.shows_thoughts)
            output = await events.completed()
            self._conversations[row.request_id] = [*exchange.items, *output]


class _Exchange:
    """A request that was accepted."""

    def __init__(
        self,
        row: BillRow,
        generation: Generation,
        fault: Fault | None,
        items: list[dict[str, Any]],
        tier: str,
    ) -> None:
        self.row = row
        self.generation = generation
        self.fault = fault
        self.items = items
        self.tier = tier


class _Events:
    """A generation as typed events: items that are added, filled and done."""

    def __init__(self, exchange: _Exchange, send: Send) -> None:
        self._exchange = exchange
        self._row = exchange.row
        self._send = send
        self._sequence = 0
        self._output: list[dict[str, Any]] = []
        self._open: tuple[str, int] | None = None
        self._text = ""
        self._created_at = time.time()

    async def created(self) -> None:
        await self._event("response.created", response=self._response("in_progress"))
        await self._event("response.in_progress", response=self._response("in_progress"))

    async def search(self) -> None:
        item = {
            "type": "web_search_call",
            "id": f"ws_{len(self._output)}",
            "status": "completed",
            "action": {"type": "search", "query": "weather"},
        }
        await self._add(item)
        await self._done(item)

    async def piece(self, piece: Piece, shows_thoughts: bool) -> None:
        kind = "call" if piece.kind == "arguments" else piece.kind
        if (kind, piece.index) != self._open:
            await self._close_item()
            self._open = (kind, piece.index)
            await self._open_item(piece)
        self._text += "" if piece.kind == "call" else piece.text
        match piece.kind:
            case "text":
                await self._text_delta(piece.text)
            case "arguments":
                await self._delta("response.function_call_arguments.delta", piece.text)
            case "thought" if shows_thoughts:
                await self._delta(
                    "response.reasoning_summary_text.delta", piece.text, summary_index=0
                )
            case _:
                pass

    async def completed(self) -> list[dict[str, Any]]:
        """End the response; returns what it said, as items of the conversation."""
        await self._close_item()
        generation = self._exchange.generation
        if generation.cut_off:
            details = {"reason": "max_output_tokens"}
            response = self._response("incomplete") | {"incomplete_details": details}
            await self._event("response.incomplete", response=response)
        else:
            await self._event("response.completed", response=self._response("completed"))
        return [item for item in self._output if item["type"] in ("message", "function_call")]

    async def _open_item(self, piece: Piece) -> None:
        self._text = ""
        item_id = f"{piece.kind}_{len(self._output)}"
        match piece.kind:
            case "text":
                item: dict[str, Any] = {"type": "message", "role": "assistant", "content": []}
            case "thought":
                item = {"type": "reasoning", "summary": []}
            case _:
                call_id = self._exchange.generation.call_id(
                    piece.index, "call_", self._row.request_id
                )
                item = {
                    "type": "function_call",
                    "name": piece.text,
                    "call_id": call_id,
                    "arguments": "",
                }
        await self._add({**item, "id": item_id, "status": "in_progress"})
        if piece.kind == "text":
            part = {"type": "output_text", "text": "", "annotations": []}
            await self._item_event("response.content_part.added", part=part, content_index=0)

    async def _close_item(self) -> None:
        if self._open is None:
            return
        kind, self._open = self._open[0], None
        item = {**self._output[-1], "status": "completed"}
        if kind == "text":
            refused = self._exchange.generation.refused
            part = (
                {"type": "refusal", "refusal": self._text}
                if refused
                else {"type": "output_text", "text": self._text, "annotations": []}
            )
            done = "response.refusal.done" if refused else "response.output_text.done"
            said = {"refusal": self._text} if refused else {"text": self._text, "logprobs": []}
            await self._item_event(done, content_index=0, **said)
            await self._item_event("response.content_part.done", part=part, content_index=0)
            item["content"] = [part]
        elif kind == "call":
            item["arguments"] = self._text
            await self._item_event(
                "response.function_call_arguments.done", arguments=self._text, name=item["name"]
            )
        self._output[-1] = item
        await self._done(item)

    async def _text_delta(self, text: str) -> None:
        if self._exchange.generation.refused:
            await self._delta("response.refusal.delta", text, content_index=0)
        else:
            await self._delta("response.output_text.delta", text, content_index=0, logprobs=[])

    async def _delta(self, kind: str, text: str, **fields: Any) -> None:
        await self._item_event(kind, delta=text, **fields)

    async def _add(self, item: dict[str, Any]) -> None:
        self._output.append(item)
        index = len(self._output) - 1
        await self._event("response.output_item.added", item=item, output_index=index)

    async def _done(self, item: dict[str, Any]) -> None:
        index = len(self._output) - 1
        await self._event("response.output_item.done", item=item, output_index=index)

    async def _item_event(self, kind: str, **fields: Any) -> None:
        index = len(self._output) - 1
        await self._event(kind, item_id=self._output[-1]["id"], output_index=index, **fields)

    async def _event(self, kind: str, **fields: Any) -> None:
        await self._send({"type": kind, "sequence_number": self._sequence, **fields})
        self._sequence += 1

    def _response(self, status: str) -> dict[str, Any]:
        units = self._row.units
        usage = None
        if status != "in_progress":
            details = {
                "cached_tokens": units["cached_input_tokens"],
                "cache_write_tokens": units.get("cache_write_tokens", 0),
            }
            usage = {
                "input_tokens": units["input_tokens"],
                "input_tokens_details": details,
                "output_tokens": units["output_tokens"],
                "output_tokens_details": {"reasoning_tokens": units.get("reasoning_tokens", 0)},
                "total_tokens": units["input_tokens"] + units["output_tokens"],
            }
        return {
            "id": self._row.request_id,
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "model": self._row.model,
            "output": [] if status == "in_progress" else self._output,
            "parallel_tool_calls": True,
            "service_tier": "auto" if status == "in_progress" else self._exchange.tier,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "usage": usage,
        }


def _plain_messages(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items as chat completions have them: the model reads the same either way."""
    messages: list[dict[str, Any]] = []
    for item in items:
        match item.get("type", "message"):
            case "message":
                content = item["content"]
                if not isinstance(content, str):
                    content = "".join(part.get("text") or part.get("refusal") for part in content)
                messages.append({"role": item["role"], "content": content})
            case "function_call":
                call = {"function": {"name": item["name"], "arguments": item["arguments"]}}
                if messages and messages[-1].get("tool_calls"):
                    messages[-1]["tool_calls"].append(call)
                else:
                    messages.append({"role": "assistant", "tool_calls": [call]})
            case "function_call_output":
                messages.append({"role": "tool", "content": str(item["output"])})
            case "reasoning":
                pass
            case kind:
                raise ValueError(f"cannot read an item of type {kind!r}")
    return messages

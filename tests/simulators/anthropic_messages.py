"""Simulates Anthropic's messages over HTTP and keeps Anthropic's bill.

Wire: https://docs.anthropic.com/en/api/messages,
https://docs.anthropic.com/en/docs/build-with-claude/streaming (named server-sent events, pings),
https://docs.anthropic.com/en/api/errors.

Billing rules
- Input: tools, system and messages, once the request is accepted. `usage.input_tokens` leaves out
  what was read from or written to the cache; the bill's `input_tokens` holds all three.
- Cache (https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching): written up to the
  last block marked with `cache_control`, from 1024 tokens on; read is the longest beginning that
  was written before and ends at a marked block of this request, or at one before it. Nothing is
  evicted here.
- Output: every token generated, thinking included whether it is shown, summarized or omitted
  (https://docs.anthropic.com/en/docs/build-with-claude/extended-thinking#pricing).
- A client that disconnects: undocumented. We assume the prompt in full and the tokens generated so
  far: delivered and hidden ones on the first bill, half a second more on the second.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from typing import Any, Literal

from aiohttp import web

from .bill import BillRow
from .generation import (
    DiedError,
    Generation,
    ModelSimulator,
    Piece,
    abort,
    event_stream,
    send_event,
)
from .script import Fault, choose_reply
from .tokens import tokenize

CACHE_TOKENS_MIN = 1024
_FRAME_TOKENS = 4  # around each message
_TOOLS_TOKENS = 346  # the system prompt that comes with tools, as documented for Claude 4


class AnthropicSimulator(ModelSimulator):
    """Messages that stream like Anthropic's.

    Attributes:
        shows_thoughts: In full, or only that there are some, as later models do by default.
        says_why: Whether it ends a scripted death with an error event, as when it is overloaded.
        reports_thoughts: Whether the usage says how many tokens were thinking.
        search_count: How often the model searches with the provider's own tool for every answer.
        service_tier: What the response says served it.
    """

    provider = "anthropic"
    shows_thoughts: Literal["full", "omitted"] = "full"
    says_why = False
    reports_thoughts = True
    search_count = 0
    service_tier = "standard"

    def __init__(self, **options: Any) -> None:
        """See `ModelSimulator`."""
        super().__init__(**options)
        self._written: set[tuple[str, bytes]] = set()

    @property
    def base_url(self) -> str:
        """For the client's `base_url`."""
        return self.url

    def add_routes(self, app: web.Application) -> None:
        """Add the API's routes to `app`."""
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/messages", self._messages)

    async def _models(self, request: web.Request) -> web.Response:
        model = {
            "type": "model",
            "id": "claude-sonnet-4-5",
            "display_name": "Claude Sonnet 4.5",
            "created_at": "2025-09-29T00:00:00Z",
        }
        page = {"data": [model], "has_more": False, "first_id": None, "last_id": None}
        return web.json_response(page)

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        if not request.headers.get("x-api-key") or "anthropic-version" not in request.headers:
            return _error(401, "authentication_error", "x-api-key header is required")
        body: dict[str, Any] = await request.json()
        try:
            model, token_count_max = str(body["model"]), int(body["max_tokens"])
            messages: list[dict[str, Any]] = body["messages"]
            if not messages or messages[0]["role"] != "user":
                raise ValueError("first message must use the user role")
            tools: list[dict[str, Any]] = body.get("tools") or []
            prompt = _Prompt(tools, body.get("system") or [], messages)
        except (KeyError, TypeError, ValueError) as error:
            return _error(400, "invalid_request_error", repr(error))

        self.request_count += 1
        request_id = f"msg_simulated{self.request_count:06d}"
        streams = bool(body.get("stream"))
        attributes: dict[str, str | int] = {"stream": int(streams), "tier": self.service_tier}
        row, fault = self.open_row(model, request_id, attributes)
        if fault is not None and fault.status is not None:
            self.bill.close(row, "refused")
            kind = {429: "rate_limit_error", 529: "overloaded_error"}.get(fault.status, "api_error")
            return _error(fault.status, kind, "The simulated provider was told to refuse this.")

        read, written = self._cached(model, prompt)
        row.units["input_tokens"] = len(prompt.tokens)
        row.units["cached_input_tokens"] = read
        if written:
            row.units["cache_write_tokens"] = written
        tool_names = {tool["name"] for tool in tools}
        generation = Generation(
            choose_reply(self.replies, plain_messages(messages), tool_names),
            seed=request_id,
            token_count_max=token_count_max,
        )
        async with self.billing(row, generation, fault, hidden=not streams):
            if streams:
                return await self._stream(request, row, generation, fault)
            await self.generate_whole(row, generation)
            return web.json_response(self._whole(row, generation))

    async def _stream(
        self, request: web.Request, row: BillRow, generation: Generation, fault: Fault | None
    ) -> web.StreamResponse:
        response = event_stream(**{"request-id": f"req_{row.request_id}"})
        await response.prepare(request)
        # As many as the first chunk of the answer will bring, or so: it is no promise.
        first = random.Random(row.request_id).randint(1, 8)
        message = self._head(row) | {
            "content": [],
            "stop_reason": None,
            "usage": self._prompt_usage(row)
            | {"output_tokens": first, "service_tier": self.service_tier},
        }
        await _send(response, {"type": "message_start", "message": message})
        await _send(response, {"type": "ping"})
        blocks = _Blocks(response, generation, row.request_id, self.shows_thoughts)
        try:
            async for piece in self.pieces(row, generation, fault):
                await blocks.send(piece)
        except DiedError:
            if self.says_why:
                error = {"type": "overloaded_error", "message": "Overloaded"}
                await _send(response, {"type": "error", "error": error})
                await response.write_eof()
            else:
                abort(request)
            return response
        await blocks.end()
        delta = {"stop_reason": _stop_reason(generation), "stop_sequence": None}
        usage = self._output_usage(row)
        await _send(response, {"type": "message_delta", "delta": delta, "usage": usage})
        await _send(response, {"type": "message_stop"})
        await response.write_eof()
        return response

    def _head(self, row: BillRow) -> dict[str, Any]:
        return {
            "id": row.request_id,
            "type": "message",
            "role": "assistant",
            "model": row.model,
            "stop_sequence": None,
        }

    def _whole(self, row: BillRow, generation: Generation) -> dict[str, Any]:
        content: list[dict[str, Any]] = []
        if generation.text:
            content.append({"type": "text", "text": generation.text})
        for index, call in enumerate(generation.calls):
            call_id = generation.call_id(index, "toolu_", row.request_id)
            block = {"type": "tool_use", "id": call_id, "name": call.name, "input": call.arguments}
            content.append(block)
        usage = self._prompt_usage(row) | self._output_usage(row)
        stop_reason = _stop_reason(generation)
        return self._head(row) | {"content": content, "stop_reason": stop_reason, "usage": usage}

    def _prompt_usage(self, row: BillRow) -> dict[str, Any]:
        units = row.units
        read, written = units["cached_input_tokens"], units.get("cache_write_tokens", 0)
        return {
            "input_tokens": units["input_tokens"] - read - written,
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": read,
            "cache_creation": {
                "ephemeral_5m_input_tokens": written,
                "ephemeral_1h_input_tokens": 0,
            },
        }

    def _output_usage(self, row: BillRow) -> dict[str, Any]:
        usage: dict[str, Any] = {"output_tokens": row.units["output_tokens"]}
        if self.reports_thoughts:
            thoughts = row.units.get("reasoning_tokens", 0)
            usage["output_tokens_details"] = {"thinking_tokens": thoughts}
        if self.search_count:
            usage["server_tool_use"] = {"web_search_requests": self.search_count}
        return usage

    def _cached(self, model: str, prompt: _Prompt) -> tuple[int, int]:
        """Tokens read from the cache, and written to it."""
        digest = hashlib.sha256()
        start = read = last = 0
        for end in prompt.ends:
            digest.update("\0".join(prompt.tokens[start:end]).encode())
            start = end
            if end < CACHE_TOKENS_MIN or end > max(prompt.marked, default=0):
                continue
            prefix = (model, digest.digest())
            if prefix in self._written:
                read = end
            if end in prompt.marked:
                last = end
                self._written.add(prefix)
        return read, max(0, last - read)


class _Prompt:
    """A request's prompt as tokens, with the ends of its blocks and of those marked for caching."""

    def __init__(
        self, tools: list[dict[str, Any]], system: Any, messages: list[dict[str, Any]]
    ) -> None:
        self.tokens: list[str] = []
        self.ends: list[int] = []
        self.marked: set[int] = set()
        if tools:
            self.tokens += ["<tools>"] * _TOOLS_TOKENS
        for tool in tools:
            schema = json.dumps(tool.get("input_schema") or {})
            self._add(f"{tool['name']} {tool.get('description', '')} {schema}", tool)
        for block in _blocks_of(system):
            self._add(str(block["text"]), block)
        for message in messages:
            self.tokens += ["<frame>"] * _FRAME_TOKENS
            for block in _blocks_of(message["content"]):
                self._add(_text_of(block), block)

    def _add(self, text: str, block: dict[str, Any]) -> None:
        self.tokens += tokenize(text)
        self.ends.append(len(self.tokens))
        if block.get("cache_control"):
            self.marked.add(len(self.tokens))


class _Blocks:
    """Sends pieces as content blocks, each begun and ended."""

    def __init__(
        self,
        response: web.StreamResponse,
        generation: Generation,
        request_id: str,
        shows_thoughts: Literal["full", "omitted"],
    ) -> None:
        self._response = response
        self._generation = generation
        self._request_id = request_id
        self._shows_thoughts = shows_thoughts
        self._index = -1
        self._open: tuple[str, int] | None = None

    async def send(self, piece: Piece) -> None:
        kind = "call" if piece.kind == "arguments" else piece.kind
        if (kind, piece.index) != self._open:
            await self.end()
            self._index += 1
            self._open = (kind, piece.index)
            await self._event("content_block_start", content_block=self._block(piece))
        match piece.kind:
            case "text":
                await self._delta({"type": "text_delta", "text": piece.text})
            case "thought" if self._shows_thoughts == "full":
                await self._delta({"type": "thinking_delta", "thinking": piece.text})
            case "call":
                await self._delta({"type": "input_json_delta", "partial_json": ""})
            case "arguments":
                await self._delta({"type": "input_json_delta", "partial_json": piece.text})
            case _:
                pass

    async def end(self) -> None:
        if self._open is not None:
            if self._open[0] == "thought":
                await self._delta({"type": "signature_delta", "signature": "c2ltdWxhdGVk"})
            self._open = None
            await self._event("content_block_stop")

    def _block(self, piece: Piece) -> dict[str, Any]:
        match piece.kind:
            case "text":
                return {"type": "text", "text": ""}
            case "thought":
                return {"type": "thinking", "thinking": "", "signature": ""}
            case _:
                call_id = self._generation.call_id(piece.index, "toolu_", self._request_id)
                return {"type": "tool_use", "id": call_id, "name": piece.text, "input": {}}

    async def _delta(self, delta: dict[str, Any]) -> None:
        await self._event("content_block_delta", delta=delta)

    async def _event(self, kind: str, **fields: Any) -> None:
        await _send(self._response, {"type": kind, "index": self._index, **fields})


def plain_messages(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as chat completions have them, so that scripts fit every protocol."""
    plain: list[dict[str, Any]] = []
    for message in messages:
        blocks = _blocks_of(message["content"])
        if any(block["type"] == "tool_result" for block in blocks):
            plain += [{"role": "tool", "content": ""} for _ in blocks]
        else:
            text = "".join(block.get("text", "") for block in blocks)
            plain.append({"role": message["role"], "content": text})
    return plain


def _blocks_of(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _text_of(block: dict[str, Any]) -> str:
    match block["type"]:
        case "text":
            return str(block["text"])
        case "tool_use":
            return f"{block['name']} {json.dumps(block['input'])}"
        case "tool_result":
            return "".join(str(each.get("text", "")) for each in _blocks_of(block["content"]))
        case "thinking" | "redacted_thinking":
            return ""
        case kind:
            raise ValueError(f"cannot read a block of type {kind!r}: only text and tools")


def _stop_reason(generation: Generation) -> str:
    if generation.cut_off:
        return "max_tokens"
    if generation.refused:
        return "refusal"
    return "tool_use" if generation.calls else "end_turn"


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await send_event(response, event, event=event["type"])


def _error(status: int, kind: str, message: str) -> web.Response:
    error = {"type": "error", "error": {"type": kind, "message": message}}
    return web.json_response(error, status=status)

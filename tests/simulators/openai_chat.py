"""Simulates OpenAI's chat completions over HTTP and keeps OpenAI's bill.

Wire: https://platform.openai.com/docs/api-reference/chat (SSE chunks, `stream_options.
include_usage`, error bodies), `GET /v1/models`.

Billing rules
- Input: every token of the rendered messages and tools, once the request is accepted; a refused
  request (4xx, 5xx) costs nothing.
- Cached input: the longest prefix seen before, from 1024 tokens on in steps of 128
  (https://platform.openai.com/docs/guides/prompt-caching; models before GPT-5.6). Nothing is
  evicted here.
- Output: every token generated. OpenAI documents no rule for a client that disconnects
  (https://community.openai.com/t/streaming-interruption-billing-clarification-needed/928978);
  users report the prompt in full, the tokens received, and a few more generated until the
  disconnect is noticed. So the bill counts the tokens delivered, and `generated_ahead` holds
  what half a second of generation adds: the truth lies between these two bills.
- A cancelled request without streaming, where nothing is delivered: the tokens generated so far.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from .bill import Bill, BillRow
from .script import Fault, Faults, Reply, choose_reply
from .server import Simulator
from .tokens import count_tokens, render_prompt, tokenize

CACHE_TOKENS_MIN = 1024
CACHE_TOKENS_STEP = 128
NOTICED_LATE_MS = 500  # second bill: how long generation may go on after the client has left
_CALL_OVERHEAD_TOKENS = 4  # the model writes a tool call's frame too


@dataclass(frozen=True, slots=True)
class _Delta:
    """One SSE delta and how many output tokens it carries."""

    body: dict[str, Any]
    token_count: int


class OpenAISimulator(Simulator):
    """Chat completions that stream like OpenAI's.

    Args:
        replies: What to answer, first match wins; without one, a long answer of several sentences.
        bill: Where to keep the bill; its own by default.
        first_token_delay_ms: From the request to the first token.
        token_delay_ms: From token to token.
    """

    def __init__(
        self,
        *,
        replies: Sequence[Reply] = (),
        bill: Bill | None = None,
        first_token_delay_ms: int = 150,
        token_delay_ms: int = 15,
    ) -> None:
        super().__init__()
        self.replies = list(replies)
        self.bill = bill or Bill()
        self.faults = Faults()
        self.first_token_delay_ms = first_token_delay_ms
        self.token_delay_ms = token_delay_ms
        self._seen_prefixes: set[tuple[str, bytes]] = set()
        self._request_count = 0

    @property
    def base_url(self) -> str:
        """For the client's `base_url`."""
        return f"{self.url}/v1"

    def add_routes(self, app: web.Application) -> None:
        """Add the API's routes to `app`."""
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat_completions)

    async def _models(self, request: web.Request) -> web.Response:
        models = ("gpt-4o", "gpt-4o-mini", "gpt-4.1", "gpt-4.1-mini")
        data = [
            {"id": model, "object": "model", "created": 1_715_367_049, "owned_by": "system"}
            for model in models
        ]
        return web.json_response({"object": "list", "data": data})

    async def _chat_completions(self, request: web.Request) -> web.StreamResponse:
        if not request.headers.get("Authorization", "").startswith("Bearer "):
            return _error(401, "You didn't provide an API key.", "invalid_request_error")
        body: dict[str, Any] = await request.json()
        messages: list[dict[str, Any]] = body.get("messages") or []
        tools: list[dict[str, Any]] = body.get("tools") or []
        try:
            model = str(body["model"])
            if body.get("n") not in (None, 1):
                raise ValueError(f"n={body['n']} is not simulated: one choice only")
            prompt = render_prompt(messages, tools)
        except (KeyError, TypeError, ValueError) as error:
            return _error(400, f"Invalid request: {error!r}", "invalid_request_error")

        self._request_count += 1
        request_id = f"chatcmpl-simulated-{self._request_count:06d}"
        fault = self.faults.take()
        row = self.bill.open(
            provider="openai",
            service="llm",
            model=model,
            request_id=request_id,
            units={"input_tokens": 0, "cached_input_tokens": 0, "output_tokens": 0},
            attributes={"stream": int(bool(body.get("stream")))},
        )
        if fault is not None and fault.status is not None:
            self.bill.close(row, "refused")
            kind = "requests" if fault.status == 429 else "server_error"
            return _error(fault.status, "The simulated provider was told to refuse this.", kind)

        row.units["input_tokens"] = len(prompt)
        row.units["cached_input_tokens"] = self._cached_token_count(model, prompt)
        tool_names = {tool["function"]["name"] for tool in tools}
        reply = choose_reply(self.replies, messages, tool_names)
        completion = _Completion(
            reply,
            request_id=request_id,
            model=model,
            token_count_max=body.get("max_completion_tokens") or body.get("max_tokens"),
        )
        started_ms = time.monotonic_ns() // 1_000_000
        try:
            if fault is not None and fault.silent:
                await asyncio.Event().wait()
            if body.get("stream"):
                include_usage = bool((body.get("stream_options") or {}).get("include_usage"))
                return await self._stream(request, row, completion, fault, include_usage)
            await asyncio.sleep(self._due_ms(completion.token_count) / 1000)
            row.units["output_tokens"] = completion.token_count
            self.bill.close(row, "completed")
            return web.json_response(completion.whole(row.units))
        except (asyncio.CancelledError, ConnectionError):
            elapsed_ms = time.monotonic_ns() // 1_000_000 - started_ms
            if fault is None or not fault.silent:
                self._bill_cancelled(row, completion, elapsed_ms, streamed=bool(body.get("stream")))
            self.bill.close(row, "cancelled")
            raise

    async def _stream(
        self,
        request: web.Request,
        row: BillRow,
        completion: _Completion,
        fault: Fault | None,
        include_usage: bool,
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "x-request-id": row.request_id,
                "openai-processing-ms": str(self.first_token_delay_ms),
            }
        )
        dies_after = fault.dies_after if fault else None
        await asyncio.sleep(self.first_token_delay_ms / 1000)  # headers come with the first token
        await response.prepare(request)
        extra: dict[str, Any] = {"usage": None} if include_usage else {}
        await _send(response, completion.chunk({"role": "assistant", "content": ""}) | extra)
        for delta in completion.deltas:
            if dies_after is not None and row.units["output_tokens"] >= dies_after:
                self.bill.close(row, "died")
                assert request.transport is not None
                request.transport.abort()
                return response
            await _send(response, completion.chunk(delta.body) | extra)
            row.units["output_tokens"] += delta.token_count
            await asyncio.sleep(delta.token_count * self.token_delay_ms / 1000)
        # Everything is generated: whoever leaves now pays in full.
        self.bill.close(row, "completed")
        await _send(response, completion.chunk({}, completion.finish_reason) | extra)
        if include_usage:
            await _send(response, completion.chunk(None) | {"usage": _usage(row.units)})
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def _due_ms(self, token_count: int) -> int:
        return self.first_token_delay_ms + token_count * self.token_delay_ms

    def _bill_cancelled(
        self, row: BillRow, completion: _Completion, elapsed_ms: int, *, streamed: bool
    ) -> None:
        def generated(at_ms: int) -> int:
            if at_ms < self.first_token_delay_ms:
                return 0
            if self.token_delay_ms == 0:
                return completion.token_count
            steps = (at_ms - self.first_token_delay_ms) // self.token_delay_ms + 1
            return min(completion.token_count, steps)

        if not streamed:
            row.units["output_tokens"] = generated(elapsed_ms)
        # The schedule is a lower bound of the delay per token, so never less than was delivered.
        late = max(row.units["output_tokens"], generated(elapsed_ms + NOTICED_LATE_MS))
        row.generated_ahead["output_tokens"] = late - row.units["output_tokens"]

    def _cached_token_count(self, model: str, prompt: list[str]) -> int:
        """How much of the prompt was read before; from now on all of it was."""
        digest = hashlib.sha256()
        cached = 0
        last_end = len(prompt) - len(prompt) % CACHE_TOKENS_STEP
        for end in range(CACHE_TOKENS_STEP, last_end + 1, CACHE_TOKENS_STEP):
            digest.update("\0".join(prompt[end - CACHE_TOKENS_STEP : end]).encode())
            if end >= CACHE_TOKENS_MIN:
                prefix = (model, digest.digest())
                if prefix in self._seen_prefixes:
                    cached = end
                self._seen_prefixes.add(prefix)
        return cached


class _Completion:
    """An answer, cut into the deltas of a stream: irregular, as OpenAI's are."""

    def __init__(
        self, reply: Reply, *, request_id: str, model: str, token_count_max: int | None
    ) -> None:
        self._id = request_id
        self._model = model
        self._created = int(time.time())
        self._tool_calls: list[dict[str, Any]] = []
        self._text: str | None = None
        # Seeded by the id: the same request of the same run is cut the same way.
        sizes = random.Random(request_id)
        self.deltas: list[_Delta] = []
        self.finish_reason = "stop"
        for index, call in enumerate(reply.tool_calls):
            self.finish_reason = "tool_calls"
            name, arguments = call.name, json.dumps(call.arguments)
            call_id = f"call_{hashlib.sha256(f'{request_id}/{index}'.encode()).hexdigest()[:24]}"
            function = {"name": name, "arguments": ""}
            head = {"index": index, "id": call_id, "type": "function", "function": function}
            self.deltas.append(
                _Delta({"tool_calls": [head]}, count_tokens(name) + _CALL_OVERHEAD_TOKENS)
            )
            for piece in _irregular(tokenize(arguments), sizes):
                part = {"index": index, "function": {"arguments": "".join(piece)}}
                self.deltas.append(_Delta({"tool_calls": [part]}, len(piece)))
            self._tool_calls.append(
                {
                    "id": call_id,
                    "type": "function",
                    "function": {"name": name, "arguments": arguments},
                }
            )
        if not reply.tool_calls:
            tokens = tokenize(reply.text)
            if token_count_max is not None and len(tokens) > token_count_max:
                tokens = tokens[:token_count_max]
                self.finish_reason = "length"
            self._text = "".join(tokens)
            self.deltas += [
                _Delta({"content": "".join(piece)}, len(piece))
                for piece in _irregular(tokens, sizes)
            ]
        self.token_count = sum(delta.token_count for delta in self.deltas)

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "service_tier": "default",
            "system_fingerprint": "fp_simulated",
        }

    def chunk(
        self, delta: dict[str, Any] | None, finish_reason: str | None = None
    ) -> dict[str, Any]:
        """One SSE event's body; the usage chunk has no choice (`delta` None)."""
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        return self._head("chat.completion.chunk") | {"choices": [] if delta is None else [choice]}

    def whole(self, units: dict[str, int]) -> dict[str, Any]:
        """The body of a response without streaming."""
        message: dict[str, Any] = {"role": "assistant", "content": self._text, "refusal": None}
        if self._tool_calls:
            message["tool_calls"] = self._tool_calls
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": self.finish_reason,
        }
        return self._head("chat.completion") | {"choices": [choice], "usage": _usage(units)}


def _irregular(tokens: list[str], sizes: random.Random) -> list[list[str]]:
    """Mostly one token a delta, now and then up to four."""
    pieces: list[list[str]] = []
    start = 0
    while start < len(tokens):
        size = sizes.choice((1, 1, 1, 1, 1, 2, 2, 3, 4))
        pieces.append(tokens[start : start + size])
        start += size
    return pieces


def _usage(units: dict[str, int]) -> dict[str, Any]:
    return {
        "prompt_tokens": units["input_tokens"],
        "completion_tokens": units["output_tokens"],
        "total_tokens": units["input_tokens"] + units["output_tokens"],
        "prompt_tokens_details": {"cached_tokens": units["cached_input_tokens"], "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


async def _send(response: web.StreamResponse, body: dict[str, Any]) -> None:
    event = f"data: {json.dumps(body, separators=(',', ':'))}\n\n".encode()
    # TCP knows no events: some arrive in two pieces.
    cut = len(event) // 3 if len(event) % 5 == 0 else len(event)
    await response.write(event[:cut])
    if cut < len(event):
        await response.write(event[cut:])


def _error(status: int, message: str, kind: str) -> web.Response:
    error = {"message": message, "type": kind, "param": None, "code": None}
    return web.json_response({"error": error}, status=status)

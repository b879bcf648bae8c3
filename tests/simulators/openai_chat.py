"""Simulates OpenAI's chat completions over HTTP and keeps OpenAI's bill.

Wire: https://platform.openai.com/docs/api-reference/chat (SSE chunks, `stream_options.
include_usage`, error bodies), `GET /v1/models`. Other hosts speak the same protocol.

Billing rules
- Input: every token of the rendered messages and tools, once the request is accepted; a refused
  request (4xx, 5xx) costs nothing.
- Cached input: the longest prefix seen before, from 1024 tokens on in steps of 128
  (https://platform.openai.com/docs/guides/prompt-caching). Nothing is evicted here.
- Cache writes: reported by models from GPT-5.6 on (`prompt_tokens_details.cache_write_tokens` of
  https://github.com/openai/openai-python/blob/main/src/openai/types/completion_usage.py): here
  what the prefix kept now is longer than the one that was read.
- Output: every token generated, hidden reasoning included
  (https://platform.openai.com/docs/guides/reasoning). OpenAI documents no rule for a client that
  disconnects
  (https://community.openai.com/t/streaming-interruption-billing-clarification-needed/928978);
  users report the prompt in full, the tokens received, and a few more generated until the
  disconnect is noticed. So the bill counts the tokens delivered, and hidden ones until then, and
  `generated_ahead` holds what half a second of generation adds: the truth lies between the two.
- A cancelled request without streaming, where nothing is delivered: the tokens generated so far.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from typing import Any, Literal

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
from .script import Fault, choose_reply
from .tokens import render_prompt

CACHE_TOKENS_MIN = 1024
CACHE_TOKENS_STEP = 128


class OpenAISimulator(ModelSimulator):
    """Chat completions that stream like OpenAI's.

    Attributes:
        provider: Its name in the bill; a host that speaks the same protocol has its own.
        service_tier: What the response says served it; None says what was asked for.
        tells_usage: Where the usage is told; vLLM can do it with every chunk
            (https://docs.vllm.ai/en/latest/api/vllm/entrypoints/openai/protocol.html,
            `continuous_usage_stats`), and older servers never do while streaming.
        counts_thoughts: In `completion_tokens` (OpenAI), beside them and in the total (xAI,
            https://docs.x.ai/docs/guides/reasoning), or not told apart (many that show them).
        tool_calls_at_once: Whether all tool calls come whole in one chunk (Ollama) or in pieces.
        shows_thoughts: The delta's key under which thoughts are sent; None hides them (OpenAI).
    """

    provider = "openai"
    service_tier: str | None = None
    tells_usage: Literal["at the end", "with every chunk", "never"] = "at the end"
    counts_thoughts: Literal["in the output", "in the total", "in nothing apart"] = "in the output"
    tool_calls_at_once = False
    shows_thoughts: str | None = None

    def __init__(self, **options: Any) -> None:
        """See `ModelSimulator`."""
        super().__init__(**options)
        self.cache = PrefixCache(tokens_min=CACHE_TOKENS_MIN, step=CACHE_TOKENS_STEP)

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

    def serving_model(self, model: str) -> str:
        """The model that serves, and is billed, when `model` is asked for."""
        return model

    def refuses(self, request: web.Request) -> web.Response | None:
        """The answer to a request without credentials."""
        if request.headers.get("Authorization", "").startswith("Bearer "):
            return None
        return error_response(401, "You didn't provide an API key.", "invalid_request_error")

    async def _chat_completions(self, request: web.Request) -> web.StreamResponse:
        refusal = self.refuses(request)
        if refusal is not None:
            return refusal
        body: dict[str, Any] = await request.json()
        messages: list[dict[str, Any]] = body.get("messages") or []
        tools: list[dict[str, Any]] = body.get("tools") or []
        try:
            model = self.serving_model(str(body["model"]))
            if body.get("n") not in (None, 1):
                raise ValueError(f"n={body['n']} is not simulated: one choice only")
            prompt = render_prompt(messages, tools)
        except (KeyError, TypeError, ValueError) as error:
            return error_response(400, f"Invalid request: {error!r}", "invalid_request_error")

        self.request_count += 1
        request_id = f"chatcmpl-simulated-{self.request_count:06d}"
        streams = bool(body.get("stream"))
        tier = self.service_tier or str(body.get("service_tier") or "default")
        row, fault = self.open_row(model, request_id, {"stream": int(streams), "tier": tier})
        if fault is not None and fault.status is not None:
            self.bill.close(row, "refused")
            kind = "requests" if fault.status == 429 else "server_error"
            message = "The simulated provider was told to refuse this."
            return error_response(fault.status, message, kind)

        count_prompt(row, model, prompt, self.cache)
        self.read_sound(row)
        tool_names = {tool["function"]["name"] for tool in tools}
        generation = Generation(
            choose_reply(self.replies, messages, tool_names),
            seed=request_id,
            token_count_max=body.get("max_completion_tokens") or body.get("max_tokens"),
        )
        completion = _Completion(self, generation, request_id, model, tier)
        async with self.billing(row, generation, fault, hidden=not streams):
            if streams:
                include_usage = bool((body.get("stream_options") or {}).get("include_usage"))
                include_usage = include_usage and self.tells_usage != "never"
                return await self._stream(request, row, completion, fault, include_usage)
            await self.generate_whole(row, generation)
            return web.json_response(completion.whole(self._usage(row.units)))

    def _usage(self, units: dict[str, int]) -> dict[str, Any]:
        usage = _usage(units)
        thoughts = units.get("reasoning_tokens", 0)
        if self.counts_thoughts == "in the total":
            usage["completion_tokens"] -= thoughts
        elif self.counts_thoughts == "in nothing apart":
            del usage["completion_tokens_details"]
        return usage

    async def _stream(
        self,
        request: web.Request,
        row: BillRow,
        completion: _Completion,
        fault: Fault | None,
        include_usage: bool,
    ) -> web.StreamResponse:
        response = event_stream(
            **{
                "x-request-id": row.request_id,
                "openai-processing-ms": str(self.first_token_delay_ms),
            }
        )
        extra: dict[str, Any] = {"usage": None} if include_usage else {}
        first = completion.chunk({"role": "assistant", "content": ""}) | extra
        try:
            async for piece in self.pieces(row, completion.generation, fault):
                if not response.prepared:  # headers come with the first token
                    await response.prepare(request)
                    await send_event(response, first)
                delta = completion.delta(piece)
                if delta is not None:
                    if self.tells_usage == "with every chunk":
                        so_far = row.units["output_tokens"] + piece.token_count
                        extra = {"usage": self._usage(row.units | {"output_tokens": so_far})}
                    await send_event(response, completion.chunk(delta) | extra)
        except DiedError:
            abort(request)
            return response
        if not response.prepared:
            await response.prepare(request)
            await send_event(response, first)
        if self.tool_calls_at_once and completion.generation.calls:
            calls = {"tool_calls": completion.whole_calls()}
            await send_event(response, completion.chunk(calls) | extra)
        await send_event(response, completion.chunk({}, completion.finish_reason) | extra)
        if include_usage:
            usage = {"usage": self._usage(row.units)}
            await send_event(response, completion.chunk(None) | usage)
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


class _Completion:
    """A generation as chat completions show it."""

    def __init__(
        self,
        simulator: OpenAISimulator,
        generation: Generation,
        request_id: str,
        model: str,
        tier: str,
    ) -> None:
        self.generation = generation
        self._simulator = simulator
        self._id = request_id
        self._model = model
        self._tier = tier
        self._created = int(time.time())
        self.finish_reason = (
            "length" if generation.cut_off else "tool_calls" if generation.calls else "stop"
        )

    def delta(self, piece: Piece) -> dict[str, Any] | None:
        """One SSE delta; None: nothing of it is shown."""
        if piece.kind == "thought":
            key = self._simulator.shows_thoughts
            return {key: piece.text} if key is not None else None
        if piece.kind == "text":
            return {"refusal" if self.generation.refused else "content": piece.text}
        if self._simulator.tool_calls_at_once:
            return None
        if piece.kind == "call":
            function = {"name": piece.text, "arguments": ""}
            call_id = self.generation.call_id(piece.index, "call_", self._id)
            call = {"index": piece.index, "id": call_id, "type": "function", "function": function}
            return {"tool_calls": [call]}
        part = {"index": piece.index, "function": {"arguments": piece.text}}
        return {"tool_calls": [part]}

    def whole_calls(self) -> list[dict[str, Any]]:
        """All tool calls, each whole."""
        return [
            {
                "index": index,
                "id": self.generation.call_id(index, "call_", self._id),
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
            }
            for index, call in enumerate(self.generation.calls)
        ]

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "service_tier": self._tier,
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

    def whole(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The body of a response without streaming."""
        generation = self.generation
        text = generation.text or None
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if generation.refused else text,
            "refusal": text if generation.refused else None,
        }
        if generation.calls:
            message["tool_calls"] = self.whole_calls()
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": self.finish_reason,
        }
        return self._head("chat.completion") | {"choices": [choice], "usage": usage}


def count_prompt(row: BillRow, model: str, prompt: Sequence[str], cache: PrefixCache) -> None:
    """Bill the prompt: what of it was cached, and what is written to the cache."""
    cached = cache.read(model, prompt)
    row.units["input_tokens"] = len(prompt)
    row.units["cached_input_tokens"] = cached
    if writes_cache(model):
        kept = len(prompt) - len(prompt) % CACHE_TOKENS_STEP
        written = kept - cached if kept >= CACHE_TOKENS_MIN else 0
        row.units["cache_write_tokens"] = written


def writes_cache(model: str) -> bool:
    """Whether the model bills what it writes to the cache: GPT-5.6 and later."""
    version = re.search(r"gpt-(\d+)(?:\.(\d+))?", model)
    return version is not None and (int(version[1]), int(version[2] or 0)) >= (5, 6)


def _usage(units: dict[str, int]) -> dict[str, Any]:
    prompt_details = {
        "cached_tokens": units["cached_input_tokens"],
        "audio_tokens": units.get("input_audio_tokens", 0),
    }
    if "cache_write_tokens" in units:
        prompt_details["cache_write_tokens"] = units["cache_write_tokens"]
    return {
        "prompt_tokens": units["input_tokens"],
        "completion_tokens": units["output_tokens"],
        "total_tokens": units["input_tokens"] + units["output_tokens"],
        "prompt_tokens_details": prompt_details,
        "completion_tokens_details": {
            "reasoning_tokens": units.get("reasoning_tokens", 0),
            "audio_tokens": units.get("output_audio_tokens", 0),
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def error_response(status: int, message: str, kind: str) -> web.Response:
    """An error as OpenAI words it."""
    error = {"message": message, "type": kind, "param": None, "code": None}
    return web.json_response({"error": error}, status=status)

"""Simulates Gemini's generateContent over HTTP and keeps Google's bill.

Wire: https://ai.google.dev/api/generate-content (`:streamGenerateContent?alt=sse`,
`:generateContent`); every chunk carries `usageMetadata` of all that was generated so far. Chunks
are larger than other providers', a function call comes whole in one.

Billing rules
- Input: `promptTokenCount`, once the request is accepted.
- Cached input (https://ai.google.dev/gemini-api/docs/caching, implicit caching): here the longest
  prefix seen before, from 1024 tokens on in steps of 256. Nothing is evicted.
- Output: `candidatesTokenCount` and `thoughtsTokenCount`, which are counted apart and billed alike
  (https://ai.google.dev/gemini-api/docs/thinking#pricing).
- Pictures: 258 tokens each (https://ai.google.dev/gemini-api/docs/tokens#multimodal-tokens).
- A client that disconnects: undocumented. We assume the prompt in full and the tokens generated so
  far: delivered and hidden ones on the first bill, half a second more on the second.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

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
from .tokens import tokenize

CACHE_TOKENS_MIN = 1024
CACHE_TOKENS_STEP = 256
PICTURE_TOKENS = 258
_STATUSES = {
    400: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}


class GoogleSimulator(ModelSimulator):
    """Content that streams like Gemini's.

    Attributes:
        search_queries: What the model searched with Google's tool for every answer.
    """

    provider = "google"
    search_queries: Sequence[str] = ()

    def __init__(self, **options: Any) -> None:
        """See `ModelSimulator`."""
        super().__init__(**options)
        self._cache = PrefixCache(tokens_min=CACHE_TOKENS_MIN, step=CACHE_TOKENS_STEP)

    @property
    def base_url(self) -> str:
        """For the client's `http_options`."""
        return self.url

    def add_routes(self, app: web.Application) -> None:
        """Add the API's routes to `app`."""
        app.router.add_post("/{version}/models/{call}", self._generate)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        model, _, method = request.match_info["call"].partition(":")
        streams = method == "streamGenerateContent"
        if not request.headers.get("x-goog-api-key"):
            return _error(403, "PERMISSION_DENIED", "Method doesn't allow unregistered callers.")
        body: dict[str, Any] = await request.json()
        try:
            if not streams and method != "generateContent":
                raise ValueError(f"no such method: {method}")
            if streams and request.query.get("alt") != "sse":
                raise ValueError("a JSON array is not simulated: alt=sse only")
            prompt, picture_count = _render(body)
            messages = _plain_messages(body)
            names = _tool_names(body)
        except (KeyError, TypeError, ValueError) as error:
            return _error(400, "INVALID_ARGUMENT", repr(error))

        self.request_count += 1
        request_id = f"response-simulated-{self.request_count:06d}"
        row, fault = self.open_row(model, request_id, {"stream": int(streams)})
        if fault is not None and fault.status is not None:
            self.bill.close(row, "refused")
            status = _STATUSES.get(fault.status, "UNKNOWN")
            return _error(fault.status, status, "The simulated provider was told to refuse this.")

        row.units["cached_input_tokens"] = self._cache.read(model, prompt)
        row.units["input_tokens"] = len(prompt)
        if picture_count:
            row.units["input_image_tokens"] = picture_count * PICTURE_TOKENS
        self.read_sound(row)
        configured: dict[str, Any] = body.get("generationConfig") or {}
        generation = Generation(
            choose_reply(self.replies, messages, names),
            seed=request_id,
            token_count_max=configured.get("maxOutputTokens"),
        )
        generation.pieces = _in_chunks(generation.pieces, random.Random(request_id))
        includes_thoughts = bool((configured.get("thinkingConfig") or {}).get("includeThoughts"))
        async with self.billing(row, generation, fault, hidden=not streams):
            if streams:
                return await self._stream(request, row, generation, fault, includes_thoughts)
            await self.generate_whole(row, generation)
            parts = [_part(piece, generation) for piece in generation.pieces]
            return web.json_response(self._chunk(row, 0, parts, _finish_reason(generation)))

    async def _stream(
        self,
        request: web.Request,
        row: BillRow,
        generation: Generation,
        fault: Fault | None,
        includes_thoughts: bool,
    ) -> web.StreamResponse:
        response = event_stream()
        last = generation.pieces[-1] if generation.pieces else None
        try:
            async for piece in self.pieces(row, generation, fault):
                if piece.kind == "thought" and not includes_thoughts:
                    continue
                if not response.prepared:
                    await response.prepare(request)
                ended = _finish_reason(generation) if piece is last else None
                parts = [] if generation.refused else [_part(piece, generation)]
                await send_event(response, self._chunk(row, piece.token_count, parts, ended))
        except DiedError:
            abort(request)
            return response
        await response.write_eof()
        return response

    def _chunk(
        self,
        row: BillRow,
        token_count: int,
        parts: list[dict[str, Any]],
        finish_reason: str | None,
    ) -> dict[str, Any]:
        """One chunk; `token_count` is what it brings beyond what the row has counted."""
        candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": 0}
        if finish_reason is not None:
            candidate["finishReason"] = finish_reason
            if self.search_queries:
                candidate["groundingMetadata"] = {"webSearchQueries": list(self.search_queries)}
        units = row.units
        thoughts = units.get("reasoning_tokens", 0)
        output = units["output_tokens"] + token_count
        pictures = units.get("input_image_tokens", 0)
        sound = units.get("input_audio_tokens", 0)
        details = [{"modality": "TEXT", "tokenCount": units["input_tokens"] - pictures - sound}]
        if pictures:
            details.append({"modality": "IMAGE", "tokenCount": pictures})
        if sound:
            details.append({"modality": "AUDIO", "tokenCount": sound})
        usage: dict[str, Any] = {
            "promptTokenCount": units["input_tokens"],
            "totalTokenCount": units["input_tokens"] + output,
            "promptTokensDetails": details,
        }
        if output > thoughts:
            usage["candidatesTokenCount"] = output - thoughts
        spoken = min(self.sound_tokens[1], output - thoughts)
        if spoken:
            text = {"modality": "TEXT", "tokenCount": output - thoughts - spoken}
            usage["candidatesTokensDetails"] = [text, {"modality": "AUDIO", "tokenCount": spoken}]
        if thoughts:
            usage["thoughtsTokenCount"] = thoughts
        if units["cached_input_tokens"]:
            usage["cachedContentTokenCount"] = units["cached_input_tokens"]
        return {
            "candidates": [candidate],
            "usageMetadata": usage,
            "modelVersion": row.model,
            "responseId": row.request_id,
        }


def _in_chunks(pieces: list[Piece], sizes: random.Random) -> list[Piece]:
    """Larger pieces: text of several, a function call with its arguments."""
    chunks: list[Piece] = []
    room = 0
    for piece in pieces:
        last = chunks[-1] if chunks else None
        joins = last is not None and (
            (piece.kind == "arguments")
            or (piece.kind == last.kind and piece.kind != "call" and room > 0)
        )
        if not joins or last is None:
            chunks.append(piece)
            room = sizes.randint(0, 9)
            continue
        text = last.text if piece.kind == "arguments" else last.text + piece.text
        count = last.token_count + piece.token_count
        chunks[-1] = replace(last, text=text, token_count=count)
        room -= 1
    return chunks


def _part(piece: Piece, generation: Generation) -> dict[str, Any]:
    if piece.kind == "thought":
        return {"text": piece.text, "thought": True}
    if piece.kind == "text":
        return {"text": piece.text}
    call = generation.calls[piece.index]
    return {"functionCall": {"name": call.name, "args": call.arguments}}


def _finish_reason(generation: Generation) -> str:
    if generation.refused:
        return "SAFETY"
    return "MAX_TOKENS" if generation.cut_off else "STOP"


def _render(body: dict[str, Any]) -> tuple[list[str], int]:
    """The prompt's tokens, and how many pictures are among them."""
    tokens: list[str] = []
    picture_count = 0
    tools = body.get("tools") or []
    if tools:
        tokens += tokenize(json.dumps(tools))
    system: dict[str, Any] = body.get("systemInstruction") or {}
    for content in ([system] if system else []) + body["contents"]:
        tokens += ["<turn>", str(content.get("role", "system"))]
        for part in content["parts"]:
            if "text" in part:
                tokens += tokenize(part["text"])
            elif "functionCall" in part:
                call = part["functionCall"]
                tokens += tokenize(f"{call['name']} {json.dumps(call.get('args') or {})}")
            elif "functionResponse" in part:
                answer = part["functionResponse"]
                tokens += tokenize(f"{answer['name']} {json.dumps(answer.get('response') or {})}")
            elif "inlineData" in part:
                picture_count += 1
                tokens += ["<picture>"] * PICTURE_TOKENS
            else:
                raise ValueError(f"cannot read a part with {sorted(part)}")
    return tokens, picture_count


def _plain_messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Messages as chat completions have them, so that scripts fit every protocol."""
    plain: list[dict[str, Any]] = []
    for content in body["contents"]:
        parts = content["parts"]
        if any("functionResponse" in part for part in parts):
            plain.append({"role": "tool", "content": ""})
        else:
            role = "assistant" if content.get("role") == "model" else "user"
            text = "".join(part.get("text", "") for part in parts)
            # LiveKit ends with an empty turn of the user's where the last one is the model's.
            if role == "assistant" or text.strip(" ."):
                plain.append({"role": role, "content": text})
    return plain


def _tool_names(body: dict[str, Any]) -> set[str]:
    return {
        declared["name"]
        for tool in body.get("tools") or []
        for declared in tool.get("functionDeclarations") or []
    }


def _error(code: int, status: str, message: str) -> web.Response:
    error = {"error": {"code": code, "message": message, "status": status}}
    return web.json_response(error, status=code)

"""Simulates OpenAI's Realtime API over WebSocket and keeps OpenAI's bill.

Wire: https://platform.openai.com/docs/api-reference/realtime-client-events and `-server-events`
(the general-availability names: `response.output_audio.delta`, `conversation.item.added`).

It hears no words: sound above a loudness is speech, each stretch of it "means" the next transcript
of the script. Replies are spoken by a hum, so many milliseconds a character.

Billing rules (https://developers.openai.com/api/docs/guides/realtime-costs)
- A response costs all input and output tokens of its `usage`; see `openai_realtime_conversation`.
- A cancelled response is billed what it had generated: its `response.done` reports the usage
  (https://platform.openai.com/docs/api-reference/realtime-server-events/response/done).
- A response whose connection is gone before `response.done`: undocumented. We assume the same,
  what was generated until then; `generated_ahead` holds what half a second more generates.
- A response that failed by itself is billed nothing. Connections and silence cost nothing.
- Input transcription is another model's and billed apart: a row of service `stt`, accepted when the
  audio was committed. Undocumented where the client leaves before it is done: billed in full.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import math
import random
import uuid
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from operator import mul
from typing import Any, Literal

from aiohttp import WSMsgType, web

from .bill import Bill, BillRow, Ending
from .openai_realtime_conversation import (
    ASSISTANT_TOKEN_MS,
    USER_TOKEN_MS,
    Conversation,
    Item,
    tokens_of_ms,
)
from .script import Fault, Faults, Reply, choose_reply
from .server import Simulator
from .tokens import count_tokens, tokenize

BYTES_PER_MS = 2 * 24  # 16-bit mono at 24 kHz, the only format that is simulated
AHEAD_MS = 500
COMMIT_MS_MIN = 100
_BLOCK_MS = 10


class OpenAIRealtimeSimulator(Simulator):
    """The Realtime API of OpenAI, and of hosts that speak its protocol.

    Args:
        replies: What to answer, first match wins; without one, a long answer.
        transcripts: What the stretches of speech mean, in order, over all connections.
        bill: Where to keep the bill; its own by default.
        first_token_delay_ms: From the request to the first token.
        token_delay_ms: From text token to text token; speech is generated with its words.
        character_ms: How long one character of a reply is spoken.
        transcription_delay_ms: How long a transcription takes.
        done_delay_ms: From the end of a response to its `response.done`.

    Attributes:
        provider: Its name in the bill.
        faults: Of responses: `dies_after` output tokens the connection breaks, `silent` creates
            the response and generates nothing, `status` fails it.
        connection_faults: Of connections: `status` refuses one.
    """

    provider = "openai"

    def __init__(
        self,
        *,
        replies: Sequence[Reply] = (),
        transcripts: Iterable[str] = (),
        bill: Bill | None = None,
        first_token_delay_ms: int = 20,
        token_delay_ms: int = 4,
        character_ms: int = 60,
        transcription_delay_ms: int = 20,
        done_delay_ms: int = 0,
        speech_rms_min: int = 300,
    ) -> None:
        super().__init__()
        self.replies = list(replies)
        self.transcripts = deque(transcripts)
        self.bill = bill or Bill()
        self.faults = Faults()
        self.connection_faults = Faults()
        self.first_token_delay_ms = first_token_delay_ms
        self.token_delay_ms = token_delay_ms
        self.character_ms = character_ms
        self.transcription_delay_ms = transcription_delay_ms
        self.done_delay_ms = done_delay_ms
        self.speech_rms_min = speech_rms_min
        self.connections: list[_Connection] = []

    @property
    def base_url(self) -> str:
        """For the plugin's `base_url`."""
        return f"{self.url}/v1"

    def add_routes(self, app: web.Application) -> None:
        """Add the API's route to `app`."""
        app.router.add_get("/v1/realtime", self._realtime)

    def drop_connections(self) -> None:
        """Break every open connection off, as a provider's crash does."""
        for connection in list(self.connections):
            connection.drop()

    async def _realtime(self, request: web.Request) -> web.StreamResponse:
        fault = self.connection_faults.take()
        if fault is not None:
            return web.json_response({"error": {"message": "told to"}}, status=fault.status or 500)
        websocket = web.WebSocketResponse(max_msg_size=0)
        await websocket.prepare(request)
        connection = _Connection(self, websocket, request)
        self.connections.append(connection)
        try:
            await connection.serve()
        finally:
            self.connections.remove(connection)
            connection.leave()
        return websocket


class _Response:
    """One response while it is generated."""

    def __init__(self, row: BillRow, metadata: Any, fault: Fault | None) -> None:
        self.row = row
        self.id = row.request_id
        self.metadata = metadata
        self.fault = fault
        self.text_tokens = 0
        self.audio_ms = 0
        self.item: Item | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def output_tokens(self) -> int:
        return self.text_tokens + tokens_of_ms(self.audio_ms, ASSISTANT_TOKEN_MS)

    def count(self) -> None:
        audio_tokens = tokens_of_ms(self.audio_ms, ASSISTANT_TOKEN_MS)
        self.row.units["output_audio_tokens"] = audio_tokens
        self.row.units["output_tokens"] = self.text_tokens + audio_tokens

    def usage(self) -> dict[str, Any]:
        units = self.row.units
        image, audio = units["input_image_tokens"], units["input_audio_tokens"]
        cached_image = units["cached_input_image_tokens"]
        cached_audio = units["cached_input_audio_tokens"]
        cached = units["cached_input_tokens"]
        return {
            "total_tokens": units["input_tokens"] + units["output_tokens"],
            "input_tokens": units["input_tokens"],
            "output_tokens": units["output_tokens"],
            "input_token_details": {
                "text_tokens": units["input_tokens"] - audio - image,
                "audio_tokens": audio,
                "image_tokens": image,
                "cached_tokens": cached,
                "cached_tokens_details": {
                    "text_tokens": cached - cached_audio - cached_image,
                    "audio_tokens": cached_audio,
                    "image_tokens": cached_image,
                },
            },
            "output_token_details": {
                "text_tokens": units["output_tokens"] - units["output_audio_tokens"],
                "audio_tokens": units["output_audio_tokens"],
            },
        }

    def as_json(self, status: str, **more: Any) -> dict[str, Any]:
        shown = {"object": "realtime.response", "id": self.id, "status": status, "output": []}
        return shown | {"metadata": self.metadata, "usage": None, "status_details": None} | more


class _Connection:
    """One session over one WebSocket."""

    def __init__(
        self, simulator: OpenAIRealtimeSimulator, websocket: web.WebSocketResponse, request: Any
    ) -> None:
        self._simulator = simulator
        self._websocket = websocket
        self._request = request
        self._conversation = Conversation()
        self._response: _Response | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._sizes = random.Random(f"{len(simulator.bill.rows)}")
        self._buffer_ms = 0  # uncommitted audio
        self._stream_ms = 0  # all audio
        self._speech_from_ms: int | None = None
        self._speech_item_id = ""
        self._silence_ms = 0
        self._session: dict[str, Any] = {
            "type": "realtime",
            "object": "realtime.session",
            "id": f"sess_{uuid.uuid4().hex[:20]}",
            "model": request.query.get("model", "gpt-realtime"),
            "output_modalities": ["audio"],
            "instructions": "",
            "tools": [],
            "audio": {"input": {}, "output": {}},
        }

    async def serve(self) -> None:
        await self._send("session.created", session=self._session)
        async for message in self._websocket:
            if message.type is not WSMsgType.TEXT:
                break
            await self._take(json.loads(message.data))

    def leave(self) -> None:
        """The client is gone; what was generated by now is billed."""
        response, self._response = self._response, None
        if response is not None:
            if response.task is not None:
                response.task.cancel()
            response.row.generated_ahead = self._ahead(response)
            self._simulator.bill.close(response.row, "cancelled")
        for task in self._tasks:
            task.cancel()

    def drop(self) -> None:
        if self._response is not None:
            if self._response.task is not None:
                self._response.task.cancel()
            self._simulator.bill.close(self._response.row, "died")
            self._response = None
        if self._request.transport is not None:
            self._request.transport.abort()

    def _ahead(self, response: _Response) -> dict[str, int]:
        if response.item is None or not response.text_tokens:
            return {}
        words = AHEAD_MS // max(1, self._simulator.token_delay_ms)
        audio_ms = words * 4 * self._simulator.character_ms if response.audio_ms else 0
        audio = tokens_of_ms(audio_ms, ASSISTANT_TOKEN_MS)
        return {"output_tokens": words + audio, "output_audio_tokens": audio}

    async def _take(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "session.update":
                _merge(self._session, event["session"])
                await self._send("session.updated", session=self._session)
            case "input_audio_buffer.append":
                await self._hear(base64.b64decode(event["audio"]))
            case "input_audio_buffer.commit":
                await self._commit_asked(event)
            case "input_audio_buffer.clear":
                self._buffer_ms, self._speech_from_ms = 0, None
                await self._send("input_audio_buffer.cleared")
            case "conversation.item.create":
                await self._add_item(event)
            case "conversation.item.delete":
                item = self._conversation.find(event["item_id"])
                if item is None:
                    await self._error(event, "item_delete_invalid_item_id", "no such item")
                    return
                self._conversation.items.remove(item)
                await self._send("conversation.item.deleted", item_id=item.id)
            case "conversation.item.truncate":
                await self._truncate(event)
            case "response.create":
                await self._create_response(event.get("response") or {}, event)
            case "response.cancel":
                if self._response is None:
                    message = "Cancellation failed: no active response found"
                    await self._error(event, "response_cancel_not_active", message)
                else:
                    await self._finish("cancelled", "client_cancelled")
            case unknown:
                await self._error(event, "invalid_value", f"Invalid value: {unknown!r}")

    # ---- what the user says ----------------------------------------------------------------------

    @property
    def _turn_detection(self) -> dict[str, Any] | None:
        return self._session["audio"]["input"].get("turn_detection")

    async def _hear(self, audio: bytes) -> None:
        duration_ms = len(audio) // BYTES_PER_MS
        self._stream_ms += duration_ms
        self._buffer_ms += duration_ms
        detection = self._turn_detection
        if detection is None:
            return
        block = _BLOCK_MS * BYTES_PER_MS
        loud_ms = sum(
            _BLOCK_MS
            for start in range(0, len(audio), block)
            if _rms(audio[start : start + block]) >= self._simulator.speech_rms_min
        )
        if loud_ms > duration_ms // 2:
            self._silence_ms = 0
            if self._speech_from_ms is None:
                padding_ms = int(detection.get("prefix_padding_ms") or 300)
                self._speech_from_ms = max(0, self._stream_ms - duration_ms - padding_ms)
                self._speech_item_id = _id("item")
                await self._send(
                    "input_audio_buffer.speech_started",
                    audio_start_ms=self._speech_from_ms,
                    item_id=self._speech_item_id,
                )
                if self._response is not None and detection.get("interrupt_response", True):
                    await self._finish("cancelled", "turn_detected")
        elif self._speech_from_ms is not None:
            self._silence_ms += duration_ms
            if self._silence_ms >= int(detection.get("silence_duration_ms") or 500):
                await self._turn_over(bool(detection.get("create_response", True)))

    async def _turn_over(self, create_response: bool) -> None:
        assert self._speech_from_ms is not None
        await self._send(
            "input_audio_buffer.speech_stopped",
            audio_end_ms=self._stream_ms,
            item_id=self._speech_item_id,
        )
        audio_ms = self._stream_ms - self._speech_from_ms
        self._speech_from_ms, self._silence_ms = None, 0
        await self._commit(self._speech_item_id, audio_ms)
        if create_response and self._response is None:
            await self._create_response({}, {})

    async def _commit_asked(self, event: dict[str, Any]) -> None:
        if self._buffer_ms < COMMIT_MS_MIN:
            message = "Error committing input audio buffer: buffer too small."
            await self._error(event, "input_audio_buffer_commit_empty", message)
            return
        await self._commit(_id("item"), self._buffer_ms)

    async def _commit(self, item_id: str, audio_ms: int) -> None:
        self._buffer_ms = 0
        simulator, previous = self._simulator, self._conversation.last_id
        said = simulator.transcripts.popleft() if simulator.transcripts else ""
        item = Item(id=item_id, type="message", role="user", audio_ms=audio_ms, meaning=said)
        self._conversation.add(item, None)
        await self._send("input_audio_buffer.committed", previous_item_id=previous, item_id=item_id)
        await self._show_item(item, previous)
        model = (self._session["audio"]["input"].get("transcription") or {}).get("model")
        if model:
            self._spawn(self._transcribe(item, str(model)))

    async def _transcribe(self, item: Item, model: str) -> None:
        said = item.meaning
        by_time = model.startswith("whisper")
        units = {"audio_ms": item.audio_ms}
        if not by_time:
            audio = tokens_of_ms(item.audio_ms, USER_TOKEN_MS)
            units = {"input_tokens": audio, "input_audio_tokens": audio}
            units["output_tokens"] = count_tokens(said)
        simulator = self._simulator
        row = simulator.bill.open(
            provider=simulator.provider,
            service="stt",
            model=model,
            request_id=item.id,
            units=units,
        )
        ended: Ending = "cancelled"
        try:
            await asyncio.sleep(simulator.transcription_delay_ms / 1000)
            name = "conversation.item.input_audio_transcription"
            for piece in tokenize(said):
                await self._send(f"{name}.delta", item_id=item.id, content_index=0, delta=piece)
            usage: dict[str, Any] = {"type": "duration", "seconds": item.audio_ms / 1000}
            if not by_time:
                usage = {
                    "type": "tokens",
                    "total_tokens": units["input_tokens"] + units["output_tokens"],
                    "input_tokens": units["input_tokens"],
                    "input_token_details": {
                        "text_tokens": 0,
                        "audio_tokens": units["input_audio_tokens"],
                    },
                    "output_tokens": units["output_tokens"],
                }
            await self._send(
                f"{name}.completed",
                item_id=item.id,
                content_index=0,
                transcript=said,
                usage=usage,
                logprobs=None,
            )
            ended = "completed"
        finally:
            simulator.bill.close(row, ended)

    # ---- the conversation ------------------------------------------------------------------------

    async def _add_item(self, event: dict[str, Any]) -> None:
        body = {"id": _id("item")} | event["item"]
        previous = event.get("previous_item_id")
        if self._conversation.find(body["id"]) is not None:
            await self._error(event, "item_create_duplicate_item_id", "already there")
            return
        item = Item.from_client(body)
        shown = previous or self._conversation.last_id
        self._conversation.add(item, previous)
        await self._show_item(item, None if shown == "root" else shown)

    async def _show_item(self, item: Item, previous: str | None) -> None:
        for event in ("conversation.item.added", "conversation.item.done"):
            await self._send(event, previous_item_id=previous, item=item.as_json())

    async def _truncate(self, event: dict[str, Any]) -> None:
        item = self._conversation.find(event["item_id"])
        audio_end_ms = int(event["audio_end_ms"])
        if item is None or item.role != "assistant" or audio_end_ms > item.audio_ms:
            await self._error(event, "invalid_value", "cannot truncate that")
            return
        item.audio_ms = audio_end_ms
        item.texts.clear()  # "deletes the server-side text transcript"
        await self._send(
            "conversation.item.truncated",
            item_id=item.id,
            content_index=0,
            audio_end_ms=audio_end_ms,
        )

    # ---- responses -------------------------------------------------------------------------------

    async def _create_response(self, params: dict[str, Any], event: dict[str, Any]) -> None:
        if self._response is not None:
            code = "conversation_already_has_active_response"
            await self._error(event, code, "Conversation already has an active response")
            return
        simulator = self._simulator
        tools = params["tools"] if params.get("tools") is not None else self._session["tools"]
        instructions = params.get("instructions") or self._session["instructions"] or ""
        units = self._conversation.read(instructions, tools or [])
        row = simulator.bill.open(
            provider=simulator.provider,
            service="realtime",
            model=str(self._session["model"]),
            request_id=_id("resp"),
            units=units | {"output_tokens": 0, "output_audio_tokens": 0},
        )
        response = _Response(row, params.get("metadata"), simulator.faults.take())
        self._response = response
        await self._send("response.created", response=response.as_json("in_progress"))
        fault = response.fault
        if fault is not None and fault.status is not None:
            await self._finish("failed", "rate_limit_exceeded")
            return
        if fault is not None and fault.silent:
            return
        names = {str(tool["name"]) for tool in tools or []}
        messages = [item.as_message() for item in self._conversation.items]
        if params.get("instructions"):
            messages.append({"role": "system", "content": params["instructions"]})
        reply = choose_reply(simulator.replies, messages, names)
        response.task = self._spawn(self._generate(response, reply))

    async def _generate(self, response: _Response, reply: Reply) -> None:
        simulator = self._simulator
        await asyncio.sleep(simulator.first_token_delay_ms / 1000)
        calls = reply.tool_calls
        for index, call in enumerate(calls):
            item = Item(
                id=_id("item"),
                type="function_call",
                name=call.name,
                call_id=_id("call"),
                texts=[""],
            )
            await self._begin_item(response, item, index)
            response.text_tokens += count_tokens(call.name)
            for piece in tokenize(json.dumps(call.arguments)):
                await self._grow(response, 1, 0)
                item.texts[0] += piece
                await self._delta(
                    "response.function_call_arguments.delta", item, index, delta=piece
                )
            await self._end_item(response, item, index)
        if not calls:
            await self._speak(response, reply.text)
        await self._finish("completed")

    async def _speak(self, response: _Response, text: str) -> None:
        simulator = self._simulator
        spoken = self._session["output_modalities"] == ["audio"]
        item = Item(id=_id("item"), type="message", role="assistant", texts=[""])
        await self._begin_item(response, item, 0)
        part: dict[str, Any] = {"type": "audio", "transcript": ""}
        if not spoken:
            part = {"type": "text", "text": ""}
        await self._delta("response.content_part.added", item, 0, part=part)
        voice = bytearray()
        for piece in tokenize(text):
            await self._grow(response, 1, len(piece) * simulator.character_ms if spoken else 0)
            item.texts[0] += piece
            item.audio_ms = response.audio_ms
            if not spoken:
                await self._delta("response.output_text.delta", item, 0, delta=piece)
                continue
            await self._delta("response.output_audio_transcript.delta", item, 0, delta=piece)
            voice += _hum(len(piece) * simulator.character_ms)
            while voice:
                size = 2 * self._sizes.randrange(1_200, 9_000)
                chunk, voice = voice[:size], voice[size:]
                encoded = base64.b64encode(chunk).decode()
                await self._delta("response.output_audio.delta", item, 0, delta=encoded)
        if spoken:
            await self._delta("response.output_audio.done", item, 0)
            name, key = "response.output_audio_transcript.done", "transcript"
        else:
            name, key = "response.output_text.done", "text"
        await self._delta(name, item, 0, **{key: text})
        await self._end_item(response, item, 0)

    async def _grow(self, response: _Response, text_tokens: int, audio_ms: int) -> None:
        fault = response.fault
        dies_after = fault.dies_after if fault is not None else None
        if dies_after is not None and response.output_tokens >= dies_after:
            self.drop()
            raise asyncio.CancelledError
        await asyncio.sleep(self._simulator.token_delay_ms / 1000)
        response.text_tokens += text_tokens
        response.audio_ms += audio_ms
        response.count()

    async def _begin_item(self, response: _Response, item: Item, index: int) -> None:
        response.item = item
        previous = self._conversation.last_id
        self._conversation.add(item, None)
        shown = item.as_json(status="in_progress")
        await self._send(
            "response.output_item.added", response_id=response.id, output_index=index, item=shown
        )
        await self._send("conversation.item.added", previous_item_id=previous, item=shown)

    async def _end_item(self, response: _Response, item: Item, index: int) -> None:
        if item.type == "function_call":
            await self._delta(
                "response.function_call_arguments.done", item, index, arguments=item.texts[0]
            )
        await self._send(
            "response.output_item.done",
            response_id=response.id,
            output_index=index,
            item=item.as_json(),
        )

    async def _finish(
        self, status: Literal["completed", "cancelled", "failed"], reason: str = ""
    ) -> None:
        response, self._response = self._response, None
        if response is None:
            return
        response.count()
        details: dict[str, Any] | None = None
        usage: dict[str, Any] | None = response.usage()
        if status == "failed":
            details = {"type": "failed", "error": {"type": "server_error", "code": reason}}
            usage, response.row.units = None, dict.fromkeys(response.row.units, 0)
        elif status == "cancelled":
            details = {"type": "cancelled", "reason": reason}
        if response.task is not None and response.task is not asyncio.current_task():
            response.task.cancel()
        endings: dict[str, Ending] = {"failed": "refused", "cancelled": "cancelled"}
        self._simulator.bill.close(response.row, endings.get(status, "completed"))
        done = response.as_json(status, usage=usage, status_details=details)
        if self._simulator.done_delay_ms:  # the connection goes on meanwhile, or closes
            self._spawn(self._send_late("response.done", response=done))
        else:
            await self._send("response.done", response=done)

    async def _send_late(self, event: str, **fields: Any) -> None:
        await asyncio.sleep(self._simulator.done_delay_ms / 1000)
        await self._send(event, **fields)

    # ---- the wire --------------------------------------------------------------------------------

    async def _delta(self, event: str, item: Item, index: int, **fields: Any) -> None:
        response = self._response
        await self._send(
            event,
            response_id=response.id if response is not None else "",
            item_id=item.id,
            output_index=index,
            content_index=0,
            **fields,
        )

    async def _error(self, event: dict[str, Any], code: str, message: str) -> None:
        error = {"type": "invalid_request_error", "code": code, "message": message, "param": None}
        await self._send("error", error=error | {"event_id": event.get("event_id")})

    async def _send(self, event: str, **fields: Any) -> None:
        with contextlib.suppress(ConnectionError):  # the reader sees it, and settles the rest
            await self._websocket.send_str(
                json.dumps({"type": event, "event_id": _id("event"), **fields})
            )

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex[:20]}"


def _rms(samples: bytes) -> float:
    values = array("h", samples[: len(samples) // 2 * 2])
    return math.sqrt(sum(map(mul, values, values)) / len(values)) if values else 0.0


def _hum(duration_ms: int) -> bytes:
    count = duration_ms * BYTES_PER_MS // 2
    return array("h", (int(2_000 * math.sin(0.05 * index)) for index in range(count))).tobytes()


def _merge(into: dict[str, Any], update: dict[str, Any]) -> None:
    for key, value in update.items():
        known = into.get(key)
        if isinstance(known, dict) and isinstance(value, dict):
            _merge(known, value)
        else:
            into[key] = value

"""Simulates OpenAI's GPT-Live over WebSocket (`/v1/live/sessions`) and keeps OpenAI's bill.

Wire: https://developers.openai.com/api/docs/guides/live and, for its field names, the types of the
plugin itself (`livekit/agents/llm/_realtime/gpt_live_types.py`).

The voice says each reply of the script when it is asked to (`session.commentary.append`) or has
heard somebody speak, streams silence in between, and delegates what a reply's tool call names to
its backend model.

Billing rules (https://developers.openai.com/api/docs/guides/voice-latency-cost)
- The voice: every second from `session.started` to the end of the connection, silence included,
  not rounded up to minutes; `usage.seconds` counts them, cumulative for the connection.
- The backend: each response's own tokens, as any Responses model; a row of service `llm`.
- A connection that breaks is billed until then (undocumented: "until it is closed" is assumed).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
import uuid
from array import array
from collections.abc import Sequence
from typing import Any

from aiohttp import WSMsgType, web

from .bill import Bill, BillRow, Ending
from .script import Reply, ToolCall
from .server import Simulator
from .tokens import count_tokens

_FRAME_MS = 20
_SAMPLES_PER_MS = 24
_LOUD = 1_000


class OpenAILiveSimulator(Simulator):
    """GPT-Live.

    Args:
        replies: What the voice says when it is asked to, one after the other.
        bill: Where to keep the bill; its own by default.
        usage_every_ms: How often `session.usage.updated` says the seconds so far.
        reports_closing: Whether `session.closed` is sent when it is asked to close.
    """

    def __init__(
        self,
        *,
        replies: Sequence[Reply] = (),
        bill: Bill | None = None,
        usage_every_ms: int = 100,
        reports_closing: bool = True,
    ) -> None:
        super().__init__()
        self.replies = list(replies)
        self.bill = bill or Bill()
        self.usage_every_ms = usage_every_ms
        self.reports_closing = reports_closing
        self.transports: list[asyncio.Transport] = []

    @property
    def base_url(self) -> str:
        """For the plugin's `base_url`."""
        return f"{self.url}/v1"

    def add_routes(self, app: web.Application) -> None:
        """Add the API's route to `app`."""
        app.router.add_get("/v1/live/sessions", self._session)

    def drop_connections(self) -> None:
        """Break every open connection off."""
        for transport in self.transports:
            transport.abort()
        self.transports.clear()

    async def _session(self, request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse(max_msg_size=0)
        await websocket.prepare(request)
        transport = request.transport
        assert isinstance(transport, asyncio.Transport)
        self.transports.append(transport)
        connection = _Connection(self, websocket)
        try:
            await connection.serve()
        finally:
            connection.end("cancelled")
        return websocket


class _Connection:
    def __init__(self, simulator: OpenAILiveSimulator, websocket: web.WebSocketResponse) -> None:
        self._simulator = simulator
        self._websocket = websocket
        self._row: BillRow | None = None
        self._started_ns = 0
        self._speech: list[bytes] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._backend = ""
        self._call_row: BillRow | None = None
        self._heard = False

    async def serve(self) -> None:
        async for message in self._websocket:
            if message.type is not WSMsgType.TEXT:
                return
            event: dict[str, Any] = json.loads(message.data)
            match event["type"]:
                case "session.start":
                    await self._start(event["session"])
                case "session.commentary.append":
                    await self._say_next()
                case "session.input_audio.append":
                    await self._hear(base64.b64decode(event["audio"]))
                case "response.create":
                    await self._continue()
                case "session.close":
                    await self._close()
                case _:
                    pass

    def end(self, ended: Ending) -> None:
        for task in self._tasks:
            task.cancel()
        if self._row is not None and self._row.ended is None:
            self._row.units["connected_ms"] = self._elapsed_ms()
            self._simulator.bill.close(self._row, ended)

    def _elapsed_ms(self) -> int:
        return (time.monotonic_ns() - self._started_ns) // 1_000_000

    async def _start(self, session: dict[str, Any]) -> None:
        delegation = session.get("delegation") or {}
        self._backend = (delegation.get("responses") or {}).get("model", "")
        self._started_ns = time.monotonic_ns()
        session_id = f"live_{uuid.uuid4().hex[:16]}"
        self._row = self._simulator.bill.open(
            provider="openai",
            service="realtime",
            model=session["model"],
            request_id=session_id,
            units={"connected_ms": 0},
        )
        await self._send("session.started", session={"id": session_id})
        self._tasks += [asyncio.create_task(self._stream()), asyncio.create_task(self._count())]

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(self._simulator.usage_every_ms / 1000)
            await self._send("session.usage.updated", usage={"seconds": self._elapsed_ms() / 1000})

    async def _stream(self) -> None:
        """The output never ends: speech, or silence."""
        silence = bytes(2 * _SAMPLES_PER_MS * _FRAME_MS)
        while True:
            frame = self._speech.pop(0) if self._speech else silence
            await self._send("session.output_audio.delta", delta=base64.b64encode(frame).decode())
            await asyncio.sleep(_FRAME_MS / 1000 / 10)  # ten times as fast as it is spoken

    async def _hear(self, audio: bytes) -> None:
        if max(array("h", audio), default=0) > _LOUD:
            self._heard = True
        elif self._heard:
            self._heard = False
            await self._say_next()

    async def _say_next(self) -> None:
        reply = self._simulator.replies.pop(0) if self._simulator.replies else Reply(text="Yes.")
        if reply.tool_call is not None:
            self._simulator.replies.insert(0, Reply(text=reply.text))
            await self._delegate(reply.tool_call)
            return
        await self._send(
            "session.output_transcript.delta", delta=reply.text, start_ms=0, end_ms=500
        )
        sound = array("h", [4_000, -4_000] * (_SAMPLES_PER_MS * _FRAME_MS // 2)).tobytes()
        self._speech += [sound] * 25

    async def _delegate(self, call: ToolCall) -> None:
        arguments = json.dumps(call.arguments)
        await self._response(count_tokens(arguments) + 4)
        item = {
            "id": "fc_1",
            "type": "function_call",
            "status": "completed",
            "call_id": "call_1",
            "name": call.name,
            "arguments": arguments,
        }
        await self._nested({"type": "response.output_item.done", "item": item})
        await self._done()

    async def _continue(self) -> None:
        await self._response(12)
        await self._done()
        await self._say_next()

    async def _response(self, output_tokens: int) -> None:
        units = {"input_tokens": 240, "cached_input_tokens": 0, "output_tokens": output_tokens}
        self._call_row = self._simulator.bill.open(
            provider="openai",
            service="llm",
            model=self._backend,
            request_id=f"resp_{uuid.uuid4().hex[:16]}",
            units=units | {"reasoning_tokens": 3},
        )
        snapshot = {"id": self._call_row.request_id, "model": self._backend}
        await self._nested({"type": "response.created", "response": snapshot})

    async def _done(self) -> None:
        row = self._call_row
        assert row is not None
        usage = {
            "input_tokens": row.units["input_tokens"],
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": row.units["output_tokens"],
            "output_tokens_details": {"reasoning_tokens": row.units["reasoning_tokens"]},
            "total_tokens": row.units["input_tokens"] + row.units["output_tokens"],
        }
        snapshot = {"id": row.request_id, "model": row.model, "usage": usage}
        await self._nested({"type": "response.completed", "response": snapshot})
        self._simulator.bill.close(row, "completed")

    async def _nested(self, event: dict[str, Any]) -> None:
        await self._send("response.event", delegation_id="dlg_1", event=event)

    async def _close(self) -> None:
        self.end("completed")
        assert self._row is not None
        if self._simulator.reports_closing:
            seconds = self._row.units["connected_ms"] / 1000
            await self._send("session.closed", reason="close_requested", usage={"seconds": seconds})
        await self._websocket.close()

    async def _send(self, kind: str, **fields: Any) -> None:
        with contextlib.suppress(ConnectionError):
            await self._websocket.send_str(json.dumps({"type": kind, **fields}))

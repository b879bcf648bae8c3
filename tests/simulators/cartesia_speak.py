"""Simulates Cartesia's speech synthesis (`/tts/websocket`, `/tts/bytes`) and keeps its bill.

Wire: https://docs.cartesia.ai/api-reference/tts/websocket (generation requests with `context_id`,
`transcript` and `continue`; `cancel`; chunk, timestamps, done and error messages),
https://docs.cartesia.ai/api-reference/tts/working-with-web-sockets/contexts (transcripts of a
context are joined as they are; it ends with the first one that does not continue) and
https://docs.cartesia.ai/api-reference/tts/bytes (`POST`, the whole text).

Billing rules
- About a credit per character of a successful request, blanks included; errors cost nothing
  (https://docs.cartesia.ai/pricing: "the exact number can vary slightly due to transcript
  pre-processing", which is not simulated).
- Cancelled work is not documented: a context that was cancelled, or whose client left, is billed
  all characters that were received, as what was asked for. So the second bill adds nothing.
- A context that the provider itself breaks off has been generated in part: billed as received too.
"""

from __future__ import annotations

import base64
import contextlib
import json
import uuid
from typing import Any

from aiohttp import WSMsgType, web

from .bill import Bill, BillRow
from .server import Simulator
from .speech import Pace, SpeechFaults, Utterance, abort, hum, speak_body


class CartesiaSpeakSimulator(Simulator):
    """Cartesia's text to speech.

    Args:
        bill: Where to keep the bill; its own by default.
        pace: How fast it speaks.

    Attributes:
        faults: A refusal meets the next connection, anything else the next context.
        connection_count: Connections that were accepted.
    """

    def __init__(self, *, bill: Bill | None = None, pace: Pace | None = None) -> None:
        super().__init__()
        self.bill = bill or Bill()
        self.pace = pace or Pace()
        self.faults = SpeechFaults()
        self.connection_count = 0

    def add_routes(self, app: web.Application) -> None:
        """Add the API's routes to `app`."""
        app.router.add_get("/tts/websocket", self._serve_websocket)
        app.router.add_post("/tts/bytes", self._serve_bytes)

    def open(self, model: str, context_id: str) -> BillRow:
        """A row for a text of which nothing was received yet."""
        return self.bill.open(
            provider="cartesia",
            service="tts",
            model=model,
            request_id=context_id,
            units={"characters": 0},
        )

    async def _serve_websocket(self, request: web.Request) -> web.StreamResponse:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        websocket = web.WebSocketResponse(max_msg_size=0)
        websocket.headers["x-request-id"] = str(uuid.uuid4())
        await websocket.prepare(request)
        self.connection_count += 1
        await _Connection(self, request, websocket).serve()
        return websocket

    async def _serve_bytes(self, request: web.Request) -> web.StreamResponse:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        body = await request.json()
        row = self.open(str(body.get("model_id", "")), str(uuid.uuid4()))
        row.units["characters"] = len(str(body["transcript"]))
        sample_rate = int(body["output_format"]["sample_rate"])
        sound = hum(row.units["characters"] * self.pace.character_ms, sample_rate)
        return await speak_body(
            request,
            {"Content-Type": "application/octet-stream"},
            bill=self.bill,
            row=row,
            pace=self.pace,
            sound=sound,
            sample_rate=sample_rate,
            fault=self.faults.of_text(),
        )

    def _refusal(self, request: web.Request) -> web.Response | None:
        headers, query = request.headers, request.query
        if not (headers.get("X-API-Key") or headers.get("Authorization") or query.get("api_key")):
            return web.json_response({"title": "Unauthorized"}, status=401)
        status = self.faults.refusal()
        if status is None:
            return None
        row = self.open("", str(uuid.uuid4()))
        self.bill.close(row, "refused")
        return web.json_response({"title": "Refused as scripted"}, status=status)


class _Connection:
    """One WebSocket with any number of contexts at a time."""

    def __init__(
        self, cartesia: CartesiaSpeakSimulator, request: web.Request, websocket: Any
    ) -> None:
        self._cartesia = cartesia
        self._request = request
        self._websocket = websocket
        self._contexts: dict[str, tuple[Utterance, BillRow]] = {}

    async def serve(self) -> None:
        try:
            async for message in self._websocket:
                if message.type is WSMsgType.TEXT:
                    await self._receive(json.loads(message.data))
        finally:
            for utterance, row in list(self._contexts.values()):
                await utterance.stop()
                self._cartesia.bill.close(row, "cancelled")

    async def _receive(self, body: dict[str, Any]) -> None:
        context_id = str(body.get("context_id", ""))
        if body.get("cancel"):
            known = self._contexts.pop(context_id, None)
            if known is not None:
                await known[0].stop()
                self._cartesia.bill.close(known[1], "cleared")
            return
        if not body.get("model_id") or "transcript" not in body:
            await self._send(
                {
                    "type": "error", "done": True, "status_code": 400, "context_id": context_id,
                    "title": "Invalid request", "message": "model_id and transcript are required",
                }
            )  # fmt: skip
            return
        utterance, row = self._contexts.get(context_id) or self._open(context_id, body)
        transcript = str(body["transcript"])
        row.units["characters"] += len(transcript)  # billed now, whatever becomes of it
        utterance.receive(transcript)
        if not body.get("continue", False):
            utterance.finish()

    def _open(self, context_id: str, body: dict[str, Any]) -> tuple[Utterance, BillRow]:
        cartesia = self._cartesia
        row = cartesia.open(str(body["model_id"]), context_id)

        async def send_audio(audio: bytes, audio_ms: int) -> None:
            data = base64.b64encode(audio).decode()
            await self._send(
                {
                    "type": "chunk", "data": data, "done": False, "status_code": 206,
                    "step_time": 1.0, "context_id": context_id,
                }
            )  # fmt: skip

        async def send_end() -> None:
            self._contexts.pop(context_id, None)
            cartesia.bill.close(row, "completed")
            await self._send(
                {"type": "done", "done": True, "status_code": 206, "context_id": context_id}
            )

        def die() -> None:
            for _, open_row in self._contexts.values():
                cartesia.bill.close(open_row, "died")
            abort(self._request)

        utterance = Utterance(
            cartesia.pace,
            sample_rate=int(body["output_format"]["sample_rate"]),
            send_audio=send_audio,
            send_end=send_end,
            die=die,
            fault=cartesia.faults.of_text(),
        )
        self._contexts[context_id] = (utterance, row)
        return utterance, row

    async def _send(self, body: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):  # the reader sees it too, and closes the rows
            await self._websocket.send_str(json.dumps(body))

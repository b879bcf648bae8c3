"""Simulates Resemble's speech synthesis (`/synthesize` and the `/stream` WebSocket), with its bill.

Wire: https://docs.resemble.ai/voice-generation/text-to-speech/synchronous (`POST`, the sound as
`audio_content` in a JSON body) and
https://docs.resemble.ai/voice-generation/text-to-speech/streaming-websocket (each message a
request with an id; `audio` frames in base64, then `audio_end` with that id).

Billing rules
- By the second of sound that was generated (https://www.resemble.ai/pricing), here by the
  millisecond of the file that holds it; rounding is not documented.
- Cancelled work is not documented: a request goes on until its socket is closed, for nothing in
  the protocol cancels it, and all that was generated until then is billed; `POST` generates the
  whole text before it answers. The second bill adds what half a second more generates.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import uuid
from typing import Any

from aiohttp import WSMsgType, web

from .bill import Bill, BillRow
from .server import Simulator
from .speech import Encoder, Pace, SpeechFaults, Utterance, abort, hum


class ResembleSimulator(Simulator):
    """Resemble's text to speech.

    Args:
        bill: Where to keep the bill; its own by default.
        pace: How fast it speaks.

    Attributes:
        faults: A refusal meets the next connection or `POST`, anything else the next text.
        connection_count: WebSockets that were accepted.
    """

    def __init__(self, *, bill: Bill | None = None, pace: Pace | None = None) -> None:
        super().__init__()
        self.bill = bill or Bill()
        self.pace = pace or Pace()
        self.faults = SpeechFaults()
        self.connection_count = 0

    @property
    def websocket_url(self) -> str:
        """Where the streams are."""
        return f"{self.url.replace('http', 'ws', 1)}/stream"

    @property
    def rest_url(self) -> str:
        """Where whole texts are spoken."""
        return f"{self.url}/synthesize"

    def add_routes(self, app: web.Application) -> None:
        """Add the API's routes to `app`."""
        app.router.add_get("/stream", self._serve_websocket)
        app.router.add_post("/synthesize", self._serve_post)

    def open(self, body: dict[str, Any]) -> BillRow:
        """A row for a request of which no sound was made yet."""
        return self.bill.open(
            provider="resemble",
            service="tts",
            model=str(body.get("model") or ""),
            request_id=uuid.uuid4().hex,
            units={"audio_ms": 0},
            attributes={"characters": len(str(body.get("data", "")))},
        )

    async def _serve_websocket(self, request: web.Request) -> web.StreamResponse:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        websocket = web.WebSocketResponse(max_msg_size=0)
        await websocket.prepare(request)
        self.connection_count += 1
        await _Connection(self, request, websocket).serve()
        return websocket

    async def _serve_post(self, request: web.Request) -> web.StreamResponse:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        body: dict[str, Any] = await request.json()
        row = self.open(body)
        sample_rate = int(body.get("sample_rate", 48_000))
        sound = hum(len(str(body["data"])) * self.pace.character_ms, sample_rate)
        audio_ms = len(sound) * 1000 // (2 * sample_rate)
        row.units["audio_ms"] = audio_ms  # the text is spoken to its end, whoever waits for it
        fault = self.faults.of_text()
        try:
            if fault is not None and fault.silent:
                await asyncio.Event().wait()
            await self.pace.take(audio_ms)
            if fault is not None:
                self.bill.close(row, "died")
                abort(request)
                return web.Response()
            encoder = Encoder("wav", sample_rate)
            file = encoder.encode(sound) + encoder.end()
            content = base64.b64encode(file).decode()
            answer = {"success": True, "audio_content": content, "duration": audio_ms / 1000}
            response = web.json_response(answer | {"issues": [], "sample_rate": sample_rate})
        except asyncio.CancelledError:
            self.bill.close(row, "cancelled")
            raise
        self.bill.close(row, "completed")
        return response

    def _refusal(self, request: web.Request) -> web.Response | None:
        if not request.headers.get("Authorization", "").startswith("Bearer "):
            return web.json_response({"success": False}, status=401)
        status = self.faults.refusal()
        if status is None:
            return None
        self.bill.close(self.open({}), "refused")
        return web.json_response({"success": False}, status=status)


class _Connection:
    """One WebSocket: one request after the other."""

    def __init__(self, resemble: ResembleSimulator, request: web.Request, websocket: Any) -> None:
        self._resemble = resemble
        self._request = request
        self._websocket = websocket
        self._requests: asyncio.Queue[tuple[dict[str, Any], BillRow]] = asyncio.Queue()
        self._open: list[BillRow] = []

    async def serve(self) -> None:
        speaking = asyncio.create_task(self._speak())
        try:
            async for message in self._websocket:
                if message.type is WSMsgType.TEXT:
                    body = json.loads(message.data)
                    row = self._resemble.open(body)
                    self._open.append(row)
                    self._requests.put_nowait((body, row))
        finally:
            speaking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await speaking
            for row in self._open:
                self._resemble.bill.close(row, "cancelled")

    async def _speak(self) -> None:
        while True:
            body, row = await self._requests.get()
            ended = asyncio.Event()
            utterance = self._utter(body, row, ended)
            utterance.receive(str(body["data"]))
            utterance.finish()
            try:
                await ended.wait()
            finally:
                await utterance.stop()

    def _utter(self, body: dict[str, Any], row: BillRow, ended: asyncio.Event) -> Utterance:
        resemble = self._resemble
        sample_rate = int(body.get("sample_rate", 48_000))
        whole_ms = len(str(body["data"])) * resemble.pace.character_ms

        async def send_audio(audio: bytes, audio_ms: int) -> None:
            row.units["audio_ms"] = utterance.encoded_ms
            left_ms = whole_ms - row.units["audio_ms"]
            row.generated_ahead = {"audio_ms": resemble.pace.ahead_ms(max(0, left_ms))}
            if audio:
                content = base64.b64encode(audio).decode()
                await self._send(
                    {
                        "type": "audio",
                        "audio_content": content,
                        "sample_rate": sample_rate,
                        "request_id": body.get("request_id"),
                    }
                )

        async def send_end() -> None:
            row.generated_ahead = {}
            self._open.remove(row)
            resemble.bill.close(row, "completed")
            await self._send({"type": "audio_end", "request_id": body.get("request_id")})
            ended.set()

        def die() -> None:
            for each in self._open:
                resemble.bill.close(each, "died")
            abort(self._request)

        utterance = Utterance(
            resemble.pace,
            sample_rate=sample_rate,
            audio_format=str(body.get("output_format", "wav")),
            send_audio=send_audio,
            send_end=send_end,
            die=die,
            fault=resemble.faults.of_text(),
        )
        return utterance

    async def _send(self, body: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):  # the reader sees it too, and closes the rows
            await self._websocket.send_str(json.dumps(body))

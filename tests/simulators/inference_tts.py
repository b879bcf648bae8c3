"""Simulates LiveKit Inference's speech synthesis (`/v1/tts`) and keeps its bill.

Wire, as livekit-agents speaks it (livekit/agents/inference/tts.py) and agents-js types it
(https://github.com/livekit/agents-js/blob/main/agents/src/inference/api_protos.ts): the client
sends `session.create`, `input_transcript` and `session.flush`; the gateway answers
`session.created`, `output_audio`, `done` and `error`. A session outlives its texts.

Billing rules
- By characters of the model's price list (https://livekit.com/pricing/inference), from when they
  are received, blanks included.
- Cancelled work is not documented: a text whose client left is billed all characters that were
  received. So the second bill adds nothing.
- Where the asked model fails, the gateway serves with one of `fallback` and bills that one; its
  clients are not told (`falls_back`).
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
from .speech import Pace, SpeechFaults, Utterance, abort


class InferenceTTSSimulator(Simulator):
    """LiveKit Inference's text to speech.

    Args:
        bill: Where to keep the bill; its own by default.
        pace: How fast it speaks.

    Attributes:
        faults: A refusal meets the next connection, anything else the next text.
        falls_back: Whether the first model of a session's `fallback` serves it.
        connection_count: Connections that were accepted.
    """

    def __init__(self, *, bill: Bill | None = None, pace: Pace | None = None) -> None:
        super().__init__()
        self.bill = bill or Bill()
        self.pace = pace or Pace()
        self.faults = SpeechFaults()
        self.falls_back = False
        self.connection_count = 0

    @property
    def base_url(self) -> str:
        """For the `base_url` of `livekit.agents.inference.TTS`."""
        return f"{self.url}/v1"

    def add_routes(self, app: web.Application) -> None:
        """Add the gateway's route to `app`."""
        app.router.add_get("/v1/tts", self._serve)

    def open(self, model: str, request_id: str) -> BillRow:
        """A row for a text of which nothing was received yet."""
        return self.bill.open(
            provider="livekit",
            service="tts",
            model=model,
            request_id=request_id,
            units={"characters": 0},
        )

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if not request.headers.get("Authorization", "").startswith("Bearer "):
            return web.json_response({"message": "unauthorized"}, status=401)
        model = request.query.get("model", "")
        status = self.faults.refusal()
        if status is not None:
            self.bill.close(self.open(model, str(uuid.uuid4())), "refused")
            return web.json_response({"message": "refused as scripted"}, status=status)
        websocket = web.WebSocketResponse(max_msg_size=0)
        await websocket.prepare(request)
        self.connection_count += 1
        await _Session(self, request, websocket).serve()
        return websocket


class _Session:
    """One WebSocket: one text after the other."""

    def __init__(
        self, gateway: InferenceTTSSimulator, request: web.Request, websocket: Any
    ) -> None:
        self._gateway = gateway
        self._request = request
        self._websocket = websocket
        self._id = f"tts_{uuid.uuid4().hex}"
        self._model = request.query.get("model", "")
        self._sample_rate = 16_000
        self._text: tuple[Utterance, BillRow] | None = None  # the one that is being received
        self._open: list[tuple[Utterance, BillRow]] = []

    async def serve(self) -> None:
        try:
            async for message in self._websocket:
                if message.type is WSMsgType.TEXT:
                    await self._receive(json.loads(message.data))
        finally:
            for utterance, row in list(self._open):
                await utterance.stop()
                self._gateway.bill.close(row, "cancelled")

    async def _receive(self, body: dict[str, Any]) -> None:
        match body.get("type"):
            case "session.create":
                self._sample_rate = int(body.get("sample_rate", 16_000))
                fallback = (body.get("fallback") or {}).get("models") or []
                if self._gateway.falls_back and fallback:
                    self._model = str(fallback[0]["model"])
                await self._send({"type": "session.created"})
            case "input_transcript":
                utterance, row = self._text = self._text or self._open_text()
                transcript = str(body["transcript"])
                row.units["characters"] += len(transcript)  # billed now, whatever becomes of it
                utterance.receive(transcript)
            case "session.flush":
                if self._text is None:
                    await self._send({"type": "done"})
                else:
                    self._text[0].finish()
                    self._text = None
            case unknown:
                await self._send({"type": "error", "message": f"unknown message {unknown!r}"})

    def _open_text(self) -> tuple[Utterance, BillRow]:
        gateway = self._gateway
        row = gateway.open(self._model, f"{self._id}/{uuid.uuid4().hex}")

        async def send_audio(audio: bytes, audio_ms: int) -> None:
            data = base64.b64encode(audio).decode()
            await self._send({"type": "output_audio", "audio": data})

        async def send_end() -> None:
            self._open.remove((utterance, row))
            gateway.bill.close(row, "completed")
            await self._send({"type": "done"})

        def die() -> None:
            for _, open_row in self._open:
                gateway.bill.close(open_row, "died")
            abort(self._request)

        utterance = Utterance(
            gateway.pace,
            sample_rate=self._sample_rate,
            send_audio=send_audio,
            send_end=send_end,
            die=die,
            fault=gateway.faults.of_text(),
        )
        self._open.append((utterance, row))
        return utterance, row

    async def _send(self, body: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):  # the reader sees it too, and closes the rows
            await self._websocket.send_str(json.dumps(body | {"session_id": self._id}))

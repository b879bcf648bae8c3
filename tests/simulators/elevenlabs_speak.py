"""Simulates ElevenLabs' speech synthesis and keeps its bill.

Wire: the multi-context WebSocket (`/v1/text-to-speech/{voice_id}/multi-stream-input`)
https://elevenlabs.io/docs/api-reference/text-to-speech/v-1-text-to-speech-voice-id-multi-stream-input,
its text-to-dialogue sibling (`/v1/text-to-dialogue/multi-stream-input`, texts in `inputs`), and
`POST /v1/text-to-speech/{voice_id}/stream`
https://elevenlabs.io/docs/api-reference/text-to-speech/stream

A context begins with its first message, whose text "must be a blank space"; speaks from `flush` or
from 50 buffered characters at the end of a sentence on; and ends with `close_context`, after the
rest was spoken, with `isFinal`. An empty text keeps it alive.

Billing rules
- Characters of text to be spoken, blanks included, from when they are received
  (https://elevenlabs.io/pricing: one credit, or half of one, a character).
- The single blank that opens a context, and empty texts and closing messages, are the protocol's
  own and nothing to speak: not billed. ElevenLabs does not say so; this is our assumption.
- Cancelled work is not documented: a context that is closed early, or whose client left, is billed
  all characters that were received. So the second bill adds nothing.
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

_BUFFER_CHARACTERS = 50
_CONTEXTS_MAX = 5


class ElevenLabsSpeakSimulator(Simulator):
    """ElevenLabs' text to speech.

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

    @property
    def base_url(self) -> str:
        """For the plugin's `base_url`."""
        return f"{self.url}/v1"

    def add_routes(self, app: web.Application) -> None:
        """Add the API's routes to `app`."""
        get, post = app.router.add_get, app.router.add_post
        get("/v1/text-to-speech/{voice_id}/multi-stream-input", self._serve_websocket)
        get("/v1/text-to-dialogue/multi-stream-input", self._serve_websocket)
        post("/v1/text-to-speech/{voice_id}/stream", self._serve_stream)
        post("/v1/text-to-dialogue/stream", self._serve_stream)

    def open(self, model: str, request_id: str) -> BillRow:
        """A row for a text of which nothing was received yet."""
        return self.bill.open(
            provider="elevenlabs",
            service="tts",
            model=model,
            request_id=request_id,
            units={"characters": 0},
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

    async def _serve_stream(self, request: web.Request) -> web.StreamResponse:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        body = await request.json()
        texts = [str(part["text"]) for part in body.get("inputs") or [body]]
        row = self.open(str(body.get("model_id", "")), str(uuid.uuid4()))
        row.units["characters"] = sum(map(len, texts))
        audio_format, sample_rate = _output(request)
        sound = hum(row.units["characters"] * self.pace.character_ms, sample_rate)
        content_type = {"mp3": "audio/mpeg", "opus": "audio/opus"}.get(audio_format, "audio/pcm")
        return await speak_body(
            request,
            {"Content-Type": content_type, "character-cost": str(row.units["characters"])},
            bill=self.bill,
            row=row,
            pace=self.pace,
            sound=sound,
            sample_rate=sample_rate,
            audio_format=audio_format,
            fault=self.faults.of_text(),
        )

    def _refusal(self, request: web.Request) -> web.Response | None:
        if not request.headers.get("xi-api-key"):
            return web.json_response({"detail": {"status": "needs_authorization"}}, status=401)
        status = self.faults.refusal()
        if status is None:
            return None
        self.bill.close(self.open("", str(uuid.uuid4())), "refused")
        return web.json_response({"detail": {"status": "as_scripted"}}, status=status)


def _output(request: web.Request) -> tuple[str, int]:
    """Codec and sample rate of `output_format`, such as pcm_24000 or mp3_22050_32."""
    codec, rate, *_ = request.query.get("output_format", "mp3_44100_128").split("_")
    return codec, int(rate)


class _Connection:
    """One WebSocket with several contexts at a time."""

    def __init__(
        self, elevenlabs: ElevenLabsSpeakSimulator, request: web.Request, websocket: Any
    ) -> None:
        self._elevenlabs = elevenlabs
        self._request = request
        self._websocket = websocket
        self._is_dialogue = "text-to-dialogue" in request.path
        self._contexts: dict[str, _Context] = {}

    async def serve(self) -> None:
        try:
            async for message in self._websocket:
                if message.type is WSMsgType.TEXT:
                    await self._receive(json.loads(message.data))
        finally:
            for context in list(self._contexts.values()):
                await context.utterance.stop()
                self._elevenlabs.bill.close(context.row, "cancelled")

    async def _receive(self, body: dict[str, Any]) -> None:
        if body.get("close_socket"):
            await self._websocket.close()
            return
        context_id = str(body.get("context_id") or body.get("contextId") or "default")
        context = self._contexts.get(context_id)
        if body.get("close_context"):
            if context is not None:
                context.utterance.finish()
            return
        if context is None:
            if len(self._contexts) >= _CONTEXTS_MAX:
                await self._send({"error": "max_active_contexts", "contextId": context_id})
                return
            context = self._contexts[context_id] = self._open(context_id)
            if body.get("text", " ") == " " and not body.get("inputs"):
                return  # it was only opened
        text = "".join(str(part["text"]) for part in body.get("inputs") or [])
        text += str(body.get("text", ""))
        context.row.units["characters"] += len(text)  # billed now, whatever becomes of it
        context.receive(text, flush=bool(body.get("flush")))

    def _open(self, context_id: str) -> _Context:
        elevenlabs = self._elevenlabs
        row = elevenlabs.open(self._request.query.get("model_id", ""), context_id)
        audio_format, sample_rate = _output(self._request)
        id_name = "context_id" if self._is_dialogue else "contextId"

        async def send_audio(audio: bytes, audio_ms: int) -> None:
            if audio:
                await self._send({"audio": base64.b64encode(audio).decode(), id_name: context_id})

        async def send_end() -> None:
            self._contexts.pop(context_id, None)
            elevenlabs.bill.close(row, "completed")
            final = "is_final" if self._is_dialogue else "isFinal"
            await self._send({final: True, id_name: context_id})

        def die() -> None:
            for context in self._contexts.values():
                elevenlabs.bill.close(context.row, "died")
            abort(self._request)

        utterance = Utterance(
            elevenlabs.pace,
            sample_rate=sample_rate,
            audio_format=audio_format,
            send_audio=send_audio,
            send_end=send_end,
            die=die,
            fault=elevenlabs.faults.of_text(),
        )
        return _Context(utterance, row)

    async def _send(self, body: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):  # the reader sees it too, and closes the rows
            await self._websocket.send_str(json.dumps(body))


class _Context:
    """One text of a connection; speaks no sooner than it has something worth speaking."""

    def __init__(self, utterance: Utterance, row: BillRow) -> None:
        self.utterance = utterance
        self.row = row
        self._buffer = ""

    def receive(self, text: str, *, flush: bool) -> None:
        self._buffer += text
        if flush or len(self._buffer) >= _BUFFER_CHARACTERS:
            self.utterance.receive(self._buffer)
            self._buffer = ""
        if flush:
            self.utterance.flush()

"""Simulates Cartesia's streaming recognition (ink-2 by turns, ink-whisper) and its bill.

Wire: https://docs.cartesia.ai/api-reference/stt/turns/websocket (connected, turn.start,
turn.update, turn.eager_end, turn.end; binary audio, {"type":"close"}) and
https://docs.cartesia.ai/api-reference/stt/stt (transcript, flush_done, done; binary audio,
`finalize`, `close` or `done`).

Billing rule: by the second of audio streamed in, silence included; errors cost nothing
(https://docs.cartesia.ai/pricing): `audio_ms`. Whether a connection that dies is an error in that
sense is not said; we assume that what was received until then is charged.
"""

from __future__ import annotations

import json

from aiohttp import web

from .bill import Ending
from .hearing import Heard
from .listening import ListenConnection, ListenOptions, ListenSimulator, Refused


class _Turns(ListenConnection):
    """One connection of `/stt/turns/websocket`, which finds the turns itself."""

    async def greet(self) -> None:
        """Tell the connection's id."""
        await self._event("connected")

    async def tell(self, heard: Heard) -> None:
        """A turn, as far as it is heard."""
        match heard.kind:
            case "began":
                await self._event("turn.start")
            case "partial":
                await self._event("turn.update", transcript=heard.text)
            case "ended":
                await self._event("turn.eager_end", transcript=heard.text)
                await self._event("turn.end", transcript=heard.text)

    async def on_text(self, data: str) -> Ending | None:
        """The only command is to close."""
        if json.loads(data).get("type") == "close":
            await self.finish_speech()
            await self.websocket.close()
            return "completed"
        return None

    async def _event(self, type: str, **fields: str) -> None:
        await self.send(type=type, request_id=self.row.request_id, **fields)


class _Whisper(ListenConnection):
    """One connection of `/stt/websocket`, where the client says when a turn is over."""

    async def tell(self, heard: Heard) -> None:
        """Words, once they are final."""
        if heard.kind == "ended":
            await self.send(
                type="transcript",
                request_id=self.row.request_id,
                text=heard.text,
                is_final=True,
                duration=(heard.until_ms - heard.from_ms) / 1000,
                words=[
                    {"word": word, "start": from_ms / 1000, "end": until_ms / 1000}
                    for word, from_ms, until_ms in heard.timed_words()
                ],
            )

    async def on_text(self, data: str) -> Ending | None:
        """`finalize`, `close` or `done`."""
        await self.finish_speech()
        if data == "finalize":
            await self.send(type="flush_done", request_id=self.row.request_id)
            return None
        await self.send(type="done", request_id=self.row.request_id)
        await self.websocket.close()
        return "completed"


class CartesiaListenSimulator(ListenSimulator):
    """Cartesia's two streaming endpoints."""

    provider = "cartesia"
    path = "/stt/turns/websocket"
    connection_class = _Turns

    @property
    def base_url(self) -> str:
        """For the STT's `base_url`."""
        return self.url

    def add_routes(self, app: web.Application) -> None:
        """Add both routes to `app`."""
        super().add_routes(app)
        whisper = _WhisperRoute(self)
        app.router.add_get(whisper.path, whisper.handle)

    def options(self, request: web.Request) -> ListenOptions:
        """What the query asks for; a key and a version of the API are needed."""
        query, headers = request.query, request.headers
        keys = (headers.get("X-API-Key"), headers.get("Authorization"), query.get("api_key"))
        if not any(keys):
            raise Refused(401, "Unauthorized")
        if not (headers.get("Cartesia-Version") or query.get("cartesia_version")):
            raise Refused(400, "missing Cartesia-Version")
        return ListenOptions(
            model=query["model"],
            sample_rate=int(query["sample_rate"]),
            encoding=query["encoding"],
            language=query.get("language", "en"),
        )


class _WhisperRoute(CartesiaListenSimulator):
    """The other endpoint of the same simulator: one script, one bill."""

    path = "/stt/websocket"
    connection_class = _Whisper

    def __init__(self, simulator: CartesiaListenSimulator) -> None:
        super().__init__(bill=simulator.bill, pause_ms=simulator.pause_ms)
        self.speech_rms_min = simulator.speech_rms_min
        self.transcripts = simulator.transcripts
        self.faults = simulator.faults

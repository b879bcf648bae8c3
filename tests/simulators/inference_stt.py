"""Simulates LiveKit Inference's streaming recognition and its bill.

Wire: LiveKit's own client is the only description of it that is public,
https://github.com/livekit/agents/blob/main/livekit-agents/livekit/agents/inference/stt.py
(session.created, start_of_speech, interim_transcript, final_transcript, session.finalized,
session.closed, error; session.create, input_audio with base64 PCM, session.finalize,
session.update, session.close).

Billing rule: seconds of connection time, each connection rounded up to a second
(https://docs.livekit.io/deploy/admin/billing): `connected_ms`. A lost connection is billed to the
loss, as we assume; that a fallback model is charged as itself, too.
"""

from __future__ import annotations

import base64
import json

from aiohttp import web

from .bill import Ending
from .hearing import Heard
from .listening import ListenConnection, ListenOptions, ListenSimulator, Refused


class _Connection(ListenConnection):
    """One session."""

    async def tell(self, heard: Heard) -> None:
        """Words as the gateway passes them on."""
        if heard.kind == "began":
            await self.send(type="start_of_speech", session_id=self.row.request_id)
            return
        await self.send(
            type="final_transcript" if heard.kind == "ended" else "interim_transcript",
            session_id=self.row.request_id,
            transcript=heard.text,
            language=self.options.language,
            start=heard.from_ms / 1000,
            duration=(heard.until_ms - heard.from_ms) / 1000,
            confidence=0.97,
            words=[
                {"word": word, "start": from_ms / 1000, "end": until_ms / 1000, "confidence": 0.97}
                for word, from_ms, until_ms in heard.timed_words()
            ],
        )

    async def on_text(self, data: str) -> Ending | None:
        """A message of the session."""
        message = json.loads(data)
        match message.get("type"):
            case "session.create":
                settings = message.get("settings", {})
                self.options.sample_rate = int(settings["sample_rate"])
                self.options.encoding = settings["encoding"]
                self.options.language = settings.get("language") or "en"
                await self.send(type="session.created", session_id=self.row.request_id)
            case "input_audio":
                await self.take_audio(base64.b64decode(message["audio"]))
            case "session.finalize":
                await self.finish_speech()
                await self.send(type="session.finalized", session_id=self.row.request_id)
            case "session.close":
                await self.send(type="session.closed", session_id=self.row.request_id)
                await self.websocket.close()
                return "completed"
            case _:
                pass  # session.update
        return None


class InferenceSTTSimulator(ListenSimulator):
    """LiveKit Inference's `/v1/stt`."""

    provider = "livekit"
    path = "/v1/stt"
    connection_class = _Connection

    @property
    def base_url(self) -> str:
        """For the STT's `base_url`."""
        return f"{self.url}/v1"

    def options(self, request: web.Request) -> ListenOptions:
        """The model; the rest comes with `session.create`."""
        if not request.headers.get("Authorization", "").startswith("Bearer "):
            raise Refused(401, "invalid token")
        return ListenOptions(model=request.query["model"], sample_rate=16_000)

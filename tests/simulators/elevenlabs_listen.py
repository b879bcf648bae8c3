"""Simulates ElevenLabs' realtime recognition (Scribe v2) and its bill.

Wire: https://elevenlabs.io/docs/api-reference/speech-to-text/v-1-speech-to-text-realtime
(session_started, partial_transcript, committed_transcript and its copy with timestamps; every
input_audio_chunk is JSON with base64 audio and may commit the segment).

Billing rule: by the hour of audio (https://elevenlabs.io/pricing/api), here to the millisecond:
`audio_ms` of what was received, committed or not. What is charged for a connection that dies is
not said; we assume what was received.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from aiohttp import web

from .bill import Ending
from .hearing import Heard
from .listening import ListenConnection, ListenOptions, ListenSimulator, Refused

_COMMIT_MS_MIN = 300  # "commit_throttled" below; the plugin fills up with silence


class _Connection(ListenConnection):
    """One session."""

    _committed_at_ms = 0
    _uncommitted: tuple[Heard, ...] = ()

    async def greet(self) -> None:
        """Tell the session's id and what it is set to."""
        query = self.request.query
        await self.send(
            message_type="session_started",
            session_id=self.row.request_id,
            config={
                "sample_rate": self.options.sample_rate,
                "audio_format": query.get("audio_format", "pcm_16000"),
                "language_code": self.options.language,
                "vad_commit_strategy": query.get("commit_strategy") == "vad",
                "model_id": self.options.model,
                "include_timestamps": query.get("include_timestamps") == "true",
            },
        )

    async def tell(self, heard: Heard) -> None:
        """Words: partial ones, and once they are committed."""
        if heard.kind == "began":
            return
        if heard.kind == "ended":
            self._uncommitted += (heard,)
            if self.request.query.get("commit_strategy") == "vad":
                await self._commit()
                return
        said = [*self._uncommitted] if heard.kind == "ended" else [*self._uncommitted, heard]
        await self.send(
            message_type="partial_transcript", text=" ".join(part.text for part in said)
        )

    async def on_text(self, data: str) -> Ending | None:
        """A chunk of audio, or of nothing, that may commit what came so far."""
        message = json.loads(data)
        if message.get("message_type") != "input_audio_chunk":
            await self.send(message_type="input_error", error="unknown message type")
            await self.websocket.close()
            return "completed"
        await self.take_audio(base64.b64decode(message["audio_base_64"]))
        if message.get("commit"):
            received_ms = self.row.units["audio_ms"]
            if received_ms - self._committed_at_ms < _COMMIT_MS_MIN:
                await self.send(message_type="commit_throttled", error="less than 0.3 s of audio")
                await self.websocket.close()
                return "completed"
            self._committed_at_ms = received_ms
            await self.finish_speech()
            await self._commit()
        return None

    async def on_binary(self, data: bytes) -> Ending | None:
        """There are no binary messages in this protocol."""
        await self.send(message_type="input_error", error="expected a text message")
        await self.websocket.close()
        return "completed"

    async def _commit(self) -> None:
        said, self._uncommitted = self._uncommitted, ()
        text = " ".join(heard.text for heard in said)
        words: list[dict[str, Any]] = [
            {"text": word, "start": from_ms / 1000, "end": until_ms / 1000, "type": "word"}
            for heard in said
            for word, from_ms, until_ms in heard.timed_words()
        ]
        query = self.request.query
        await self.send(message_type="committed_transcript", text=text)
        if "true" in (query.get("include_timestamps"), query.get("include_language_detection")):
            await self.send(
                message_type="committed_transcript_with_timestamps",
                text=text,
                language_code=self.options.language,
                words=words,
            )


class ElevenLabsListenSimulator(ListenSimulator):
    """ElevenLabs' `/v1/speech-to-text/realtime`."""

    provider = "elevenlabs"
    path = "/v1/speech-to-text/realtime"
    connection_class = _Connection

    @property
    def base_url(self) -> str:
        """For the STT's `base_url`."""
        return f"{self.url}/v1"

    def options(self, request: web.Request) -> ListenOptions:
        """What the query asks for; a key is needed."""
        query = request.query
        if not (request.headers.get("xi-api-key") or query.get("token")):
            raise Refused(401, "Invalid API key")
        codec, _, rate = query.get("audio_format", "pcm_16000").partition("_")
        return ListenOptions(
            model=query["model_id"],
            sample_rate=int(rate),
            encoding="mulaw" if codec == "ulaw" else "pcm_s16le",
            language=query.get("language_code", "en"),
        )

"""Simulates AssemblyAI's streaming recognition (v3) and its bill.

Wire: https://www.assemblyai.com/docs/streaming/message-sequence and
https://www.assemblyai.com/docs/api-reference/streaming-api/streaming-api (Begin, SpeechStarted,
Turn, Termination; binary audio, UpdateConfiguration, ForceEndpoint, KeepAlive, Terminate).

Billing rule: the whole time that the WebSocket is open, not the audio
(https://www.assemblyai.com/docs/faq/how-does-universal-streaming-session-based-pricing-work):
`connected_ms`. `Terminate` stops it; a session that nobody closes is closed and billed after three
hours, which is not simulated. A lost connection is billed to the loss, as we assume.
"""

from __future__ import annotations

import json
import time
from typing import Any

from aiohttp import web

from .bill import Ending
from .hearing import Heard
from .listening import ListenConnection, ListenOptions, ListenSimulator, Refused


class _Connection(ListenConnection):
    """One session."""

    _turn = 0
    _opened_s = 0.0

    async def greet(self) -> None:
        """Tell the session's id."""
        self._opened_s = time.monotonic()
        await self.send(type="Begin", id=self.row.request_id, expires_at=int(time.time()) + 10_800)

    async def tell(self, heard: Heard) -> None:
        """A turn, as far as it is heard."""
        if heard.kind == "began":
            await self.send(type="SpeechStarted", timestamp=heard.from_ms, confidence=0.9)
            return
        if not heard.words:
            return
        ended = heard.kind == "ended"
        words: list[dict[str, Any]] = [
            {
                "text": word if ended else word.strip(".,;:!?").lower(),
                "start": from_ms,
                "end": until_ms,
                "confidence": 0.97,
                "word_is_final": ended,
            }
            for word, from_ms, until_ms in heard.timed_words()
        ]
        await self.send(
            type="Turn",
            turn_order=self._turn,
            turn_is_formatted=ended,
            end_of_turn=ended,
            transcript=heard.text if ended else "",
            end_of_turn_confidence=1.0 if ended else 0.1,
            utterance=heard.text if ended else "",
            language_code=self.options.language,
            words=words,
        )
        self._turn += ended

    async def on_text(self, data: str) -> Ending | None:
        """A control message."""
        match json.loads(data).get("type"):
            case "Terminate":
                await self.finish_speech()
                await self.send(
                    type="Termination",
                    audio_duration_seconds=self.row.units["audio_ms"] // 1000,
                    session_duration_seconds=int(time.monotonic() - self._opened_s),
                )
                await self.websocket.close()
                return "completed"
            case "ForceEndpoint":
                await self.finish_speech()
            case _:
                pass  # UpdateConfiguration, KeepAlive
        return None


class AssemblyAISimulator(ListenSimulator):
    """AssemblyAI's `/v3/ws`."""

    provider = "assemblyai"
    path = "/v3/ws"
    connection_class = _Connection

    @property
    def base_url(self) -> str:
        """For the STT's `base_url`."""
        return self.url.replace("http", "ws", 1)

    def options(self, request: web.Request) -> ListenOptions:
        """What the query asks for; a key is needed."""
        query = request.query
        if not (request.headers.get("Authorization") or query.get("token")):
            raise Refused(401, "Not authorized")
        encoding = query.get("encoding", "pcm_s16le")
        if encoding not in ("pcm_s16le", "pcm_mulaw"):
            raise Refused(400, f"encoding {encoding!r} is not supported")
        return ListenOptions(
            model=query["speech_model"],
            sample_rate=int(query["sample_rate"]),
            encoding=encoding,
        )

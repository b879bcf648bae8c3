"""Simulates Speechmatics' Agent STT and its bill.

Wire: https://docs.speechmatics.com/api-ref/realtime-transcription-websocket (StartRecognition,
binary AddAudio, ForceEndOfUtterance, EndOfStream; RecognitionStarted, AudioAdded, EndOfTranscript)
with the segments and turns of its `/agent` endpoint, as in the public client
https://github.com/speechmatics/speechmatics-python-sdk (AddPartialSegment, AddSegment, StartOfTurn,
EndOfTurn).

Billing rule: by the duration of the audio that is processed (https://www.speechmatics.com/pricing),
silence included: `audio_ms`. What is charged for a lost connection is not said; we assume what was
received.
"""

from __future__ import annotations

import json

from aiohttp import web

from .bill import Ending
from .hearing import Heard
from .listening import ListenConnection, ListenOptions, ListenSimulator, Refused


class _Connection(ListenConnection):
    """One session."""

    _added = 0

    async def tell(self, heard: Heard) -> None:
        """Segments and turns."""
        times = {"start_time": heard.from_ms / 1000, "end_time": heard.until_ms / 1000}
        if heard.kind == "began":
            await self.send(message="StartOfTurn", metadata=times)
            return
        name = "AddSegment" if heard.kind == "ended" else "AddPartialSegment"
        segment = {"transcript": heard.text, "speaker": "S1"}
        await self.send(message=name, segment=segment, metadata=times)
        if heard.kind == "ended":
            await self.send(message="EndOfTurn", metadata=times)

    async def on_binary(self, data: bytes) -> Ending | None:
        """Audio; each message is acknowledged."""
        await self.take_audio(data)
        self._added += 1
        await self.send(message="AudioAdded", seq_no=self._added)
        return None

    async def on_text(self, data: str) -> Ending | None:
        """A message of the session."""
        message = json.loads(data)
        match message.get("message"):
            case "StartRecognition":
                audio, config = message["audio_format"], message["transcription_config"]
                self.options.sample_rate = audio["sample_rate"]
                self.options.encoding = audio["encoding"]
                self.row.model = config.get("model") or "default"
                await self.send(message="RecognitionStarted", id=self.row.request_id)
            case "ForceEndOfUtterance":
                await self.finish_speech()
            case "EndOfStream":
                await self.finish_speech()
                await self.send(message="EndOfTranscript")
                await self.websocket.close()
                return "completed"
            case _:
                pass
        return None


class SpeechmaticsSimulator(ListenSimulator):
    """Speechmatics' `/v2/agent`."""

    provider = "speechmatics"
    path = "/v2/agent"
    connection_class = _Connection

    @property
    def base_url(self) -> str:
        """For the STT's `base_url`."""
        return self.url.replace("http", "ws", 1) + self.path

    def options(self, request: web.Request) -> ListenOptions:
        """A key is needed; the rest comes with StartRecognition."""
        if not request.headers.get("Authorization", "").startswith("Bearer "):
            raise Refused(401, "not authorised")
        return ListenOptions(model="default", sample_rate=16_000)

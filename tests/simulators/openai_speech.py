"""Simulates OpenAI's speech synthesis (`POST /v1/audio/speech`) and keeps its bill.

Wire: https://platform.openai.com/docs/api-reference/audio/createSpeech and its stream events
https://platform.openai.com/docs/api-reference/audio/speech-audio-delta-event (`stream_format`
`audio`: the encoded sound; `sse`: speech.audio.delta events, then speech.audio.done with usage;
`sse` is not offered for tts-1 and tts-1-hd).

Billing rules
- tts-1 and tts-1-hd: by characters of `input`, from when the request is accepted
  (https://platform.openai.com/docs/models/tts-1-hd). Cancelled: the same.
- gpt-4o-mini-tts and its kin: text tokens of `input` and `instructions`, and audio tokens of the
  sound that was generated (https://platform.openai.com/docs/models/gpt-4o-mini-tts); 20 tokens a
  second, as OpenAI states for spoken answers
  (https://platform.openai.com/docs/guides/realtime-costs: 1 token per 50 ms) and as the price per
  minute it gives implies (0.015 USD at 12 USD a million tokens: 20.8).
- Cancelled work by tokens is not documented: the input, and the audio that was sent; the second
  bill adds what half a second more generates.
"""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any

from aiohttp import web

from .bill import Bill, BillRow
from .server import Simulator
from .speech import Pace, SpeechFaults, hum, speak_body
from .tokens import count_tokens

_TOKENS_PER_SECOND = 20
_FRAMING_TOKENS = 4
"""Around the text, as a chat template has them."""
_MIME_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/opus",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}


class OpenAISpeechSimulator(Simulator):
    """OpenAI's text to speech.

    Args:
        bill: Where to keep the bill; its own by default.
        pace: How fast it speaks.

    Attributes:
        faults: Each request takes one.
    """

    def __init__(self, *, bill: Bill | None = None, pace: Pace | None = None) -> None:
        super().__init__()
        self.bill = bill or Bill()
        self.pace = pace or Pace()
        self.faults = SpeechFaults()

    @property
    def base_url(self) -> str:
        """For the client's `base_url`."""
        return f"{self.url}/v1"

    def add_routes(self, app: web.Application) -> None:
        """Add the API's route to `app`."""
        app.router.add_post("/v1/audio/speech", self._serve)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if not request.headers.get("Authorization", "").startswith("Bearer "):
            return _error(401, "invalid_api_key")
        body: dict[str, Any] = await request.json()
        model, text = str(body.get("model", "")), str(body.get("input", ""))
        by_characters = model.startswith("tts-1")
        status = self.faults.refusal()
        if status is not None:
            self.bill.close(self._open(model, {}), "refused")
            return _error(status, "as_scripted")
        audio_format = str(body.get("response_format", "mp3"))
        with_events = body.get("stream_format", "audio") == "sse"
        if by_characters and with_events:
            return _error(400, "stream_format 'sse' is not supported for this model")
        if audio_format not in _MIME_TYPES or not text:
            return _error(400, "invalid_request_error")

        spoken_ms = round(len(text) * self.pace.character_ms / float(body.get("speed", 1.0)))
        sample_rate = 48_000 if audio_format == "opus" else 24_000
        headers = {"Content-Type": _MIME_TYPES[audio_format], "x-request-id": uuid.uuid4().hex}
        if by_characters:
            row = self._open(model, {"characters": len(text)})
            return await speak_body(
                request,
                headers,
                bill=self.bill,
                row=row,
                pace=self.pace,
                sound=hum(spoken_ms, sample_rate),
                sample_rate=sample_rate,
                audio_format=audio_format,
                fault=self.faults.of_text(),
            )
        input_tokens = count_tokens(text) + count_tokens(str(body.get("instructions") or ""))
        units = {"input_tokens": input_tokens + _FRAMING_TOKENS}
        row = self._open(model, units | {"output_tokens": 0, "output_audio_tokens": 0})
        made_ms = 0

        def made(piece_ms: int) -> None:
            nonlocal made_ms
            made_ms += piece_ms
            row.units["output_tokens"] = row.units["output_audio_tokens"] = _tokens(made_ms)
            ahead = _tokens(made_ms + self.pace.ahead_ms(spoken_ms - made_ms)) - _tokens(made_ms)
            row.generated_ahead = {"output_tokens": ahead, "output_audio_tokens": ahead}

        def frame(audio: bytes) -> bytes:
            if not with_events:
                return audio
            encoded = base64.b64encode(audio).decode()
            return _event({"type": "speech.audio.delta", "audio": encoded})

        def last() -> bytes:
            row.generated_ahead = {}
            if not with_events:
                return b""
            counts = {name: row.units[name] for name in ("input_tokens", "output_tokens")}
            usage = counts | {"total_tokens": sum(counts.values())}
            return _event({"type": "speech.audio.done", "usage": usage})

        if with_events:
            headers["Content-Type"] = "text/event-stream; charset=utf-8"
        return await speak_body(
            request,
            headers,
            bill=self.bill,
            row=row,
            pace=self.pace,
            sound=hum(spoken_ms, sample_rate),
            sample_rate=sample_rate,
            audio_format=audio_format,
            fault=self.faults.of_text(),
            frame=frame,
            made=made,
            last=last,
        )

    def _open(self, model: str, units: dict[str, int]) -> BillRow:
        return self.bill.open(
            provider="openai",
            service="tts",
            model=model,
            request_id=uuid.uuid4().hex,
            units=units,
        )


def _tokens(audio_ms: int) -> int:
    return -(-audio_ms * _TOKENS_PER_SECOND // 1000)


def _event(body: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(body)}\n\n".encode()


def _error(status: int, code: str) -> web.Response:
    body = {"error": {"message": code, "type": "invalid_request_error", "code": code}}
    return web.json_response(body, status=status)

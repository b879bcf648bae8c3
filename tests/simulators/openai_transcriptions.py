"""Simulates OpenAI's transcriptions, of recordings and over the realtime API, and their bill.

Groq speaks the same protocol for recordings (https://console.groq.com/docs/speech-to-text).

Wire
- `POST /v1/audio/transcriptions`, multipart with a WAV file:
  https://platform.openai.com/docs/api-reference/audio/createTranscription. `json` gives `text`
  and, from models billed by token, `usage`; `verbose_json` (whisper-1) gives `duration` too.
- `/v1/realtime?intent=transcription`: https://platform.openai.com/docs/guides/realtime-transcription
  (session.created, session.updated, input_audio_buffer.speech_started, speech_stopped, committed,
  conversation.item.input_audio_transcription.delta, .completed with `usage`; session.update,
  input_audio_buffer.append with base64 PCM at 24 kHz, input_audio_buffer.commit).

Billing rules
- whisper-1 and Groq by the duration of the file: `audio_ms`, unrounded here; OpenAI rounds to the
  second, Groq charges at least 10 s a request (https://groq.com/pricing): the price's rule does.
- gpt-4o-transcribe and its kin by token, as `usage` reports them: 1 token per 100 ms of audio
  (https://platform.openai.com/docs/guides/realtime-costs), the prompt's and the transcript's.
  Over the realtime API only what the server's VAD or a commit made an item is transcribed.
- gpt-realtime-whisper by duration (https://platform.openai.com/docs/models/gpt-realtime-whisper).
- A request that the client leaves, or that a fault ends, before it is answered: undocumented. We
  assume that the audio's tokens or duration are charged once it was received.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import uuid
import wave
from collections.abc import Iterable
from typing import Any

from aiohttp import web

from .bill import Bill, BillRow, Ending
from .hearing import Heard
from .listening import ListenConnection, ListenOptions, ListenSimulator, Refused
from .script import Fault
from .tokens import count_tokens, tokenize

_MS_PER_AUDIO_TOKEN = 100
_REALTIME_SAMPLE_RATE = 24_000


def is_billed_by_token(model: str) -> bool:
    """Whether `usage` counts tokens rather than seconds."""
    return "whisper" not in model


def _token_usage(units: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "tokens",
        "total_tokens": units["input_tokens"] + units["output_tokens"],
        "input_tokens": units["input_tokens"],
        "input_token_details": {
            "text_tokens": units["input_tokens"] - units["input_audio_tokens"],
            "audio_tokens": units["input_audio_tokens"],
        },
        "output_tokens": units["output_tokens"],
    }


class _Realtime(ListenConnection):
    """One transcription session over a WebSocket. Its items are billed, not its time."""

    _item_id = ""

    async def greet(self) -> None:
        """Tell the session's id."""
        session = {"id": self.row.request_id, "type": "transcription"}
        await self.send(type="session.created", session=session)

    async def tell(self, heard: Heard) -> None:
        """Server VAD: an item per stretch of speech."""
        if heard.kind == "began":
            self._item_id = f"item_{uuid.uuid4().hex[:20]}"
            await self._event("input_audio_buffer.speech_started", audio_start_ms=heard.from_ms)
        elif heard.kind == "ended":
            await self._event("input_audio_buffer.speech_stopped", audio_end_ms=heard.until_ms)
            await self._event("input_audio_buffer.committed")
            await self._transcribe(heard.text, audio_ms=heard.until_ms - heard.from_ms)

    async def on_text(self, data: str) -> Ending | None:
        """An event of the client."""
        event = json.loads(data)
        match event.get("type"):
            case "session.update":
                audio = event["session"]["audio"]["input"]
                assert audio["format"] == {"rate": _REALTIME_SAMPLE_RATE, "type": "audio/pcm"}
                self.row.model = self.options.model = audio["transcription"]["model"]
                await self.send(type="session.updated", session=event["session"])
            case "input_audio_buffer.append":
                await self.take_audio(base64.b64decode(event["audio"]))
            case "input_audio_buffer.commit":
                await self.finish_speech()
            case _:
                await self.send(type="error", error={"message": "unknown event"})
        return None

    async def on_binary(self, data: bytes) -> Ending | None:
        """There are no binary messages in this protocol."""
        await self.send(type="error", error={"message": "expected a text message"})
        return None

    async def _transcribe(self, text: str, *, audio_ms: int) -> None:
        pieces = tokenize(text)
        event = "conversation.item.input_audio_transcription"
        usage: dict[str, Any] = {"type": "duration", "seconds": audio_ms / 1000}
        if is_billed_by_token(self.row.model):
            units = {
                "input_tokens": -(-audio_ms // _MS_PER_AUDIO_TOKEN),
                "input_audio_tokens": -(-audio_ms // _MS_PER_AUDIO_TOKEN),
                "output_tokens": len(pieces),
            }
            for unit, count in units.items():
                self.row.units[unit] = self.row.units.get(unit, 0) + count
            usage = _token_usage(units)
        simulator = self.simulator
        assert isinstance(simulator, OpenAITranscriptionsSimulator)
        await simulator.answering.wait()
        for start in range(0, len(pieces), 3):
            await self._event(f"{event}.delta", delta="".join(pieces[start : start + 3]))
        await self._event(f"{event}.completed", content_index=0, transcript=text, usage=usage)

    async def _event(self, type: str, **fields: Any) -> None:
        event_id = f"event_{uuid.uuid4().hex[:20]}"
        await self.send(type=type, event_id=event_id, item_id=self._item_id, **fields)


class OpenAITranscriptionsSimulator(ListenSimulator):
    """OpenAI's transcriptions, or Groq's.

    Args:
        transcripts: What the recordings, or the stretches of speech in a stream, mean.
        bill: Where to keep the bill; its own by default.
        provider: Whose bill it is.
        answer_delay_ms: How long a recording takes to be transcribed.

    Attributes:
        faults: Of recordings and realtime sessions alike; `silent` never answers a recording.
        accepted: Set once a recording was received.
        answering: Cleared, the items of a realtime session are billed and not answered.
    """

    path = "/v1/realtime"
    connection_class = _Realtime

    def __init__(
        self,
        *,
        transcripts: Iterable[str] = (),
        bill: Bill | None = None,
        provider: str = "openai",
        answer_delay_ms: int = 5,
    ) -> None:
        super().__init__(transcripts=transcripts, bill=bill)
        self.provider = provider
        self.answer_delay_ms = answer_delay_ms
        self.accepted = asyncio.Event()
        self.answering = asyncio.Event()
        self.answering.set()

    @property
    def base_url(self) -> str:
        """For the STT's `base_url`."""
        return f"{self.url}/v1"

    def add_routes(self, app: web.Application) -> None:
        """Add both routes to `app`."""
        super().add_routes(app)
        app.router.add_post("/v1/audio/transcriptions", self.handle_recording)

    def options(self, request: web.Request) -> ListenOptions:
        """The model, which a session may still change; the format is always the same."""
        if not request.headers.get("Authorization", "").startswith("Bearer "):
            raise Refused(401, "Incorrect API key provided")
        if request.query.get("intent") != "transcription":
            raise Refused(400, "only transcription sessions are simulated")
        model = request.query.get("model", "gpt-4o-transcribe")
        return ListenOptions(model=model, sample_rate=_REALTIME_SAMPLE_RATE)

    def refusal(self, status: int, message: str) -> web.Response:
        """An error as OpenAI writes it."""
        return web.json_response({"error": {"message": message, "type": "error"}}, status=status)

    async def handle_recording(self, request: web.Request) -> web.StreamResponse:
        """Transcribe one file."""
        if not request.headers.get("Authorization", "").startswith("Bearer "):
            return self.refusal(401, "Incorrect API key provided")
        form = await request.post()
        file = form["file"]
        if not isinstance(file, web.FileField):
            return self.refusal(400, "file must be an upload")
        with file.file as upload:
            data = upload.read()
        with wave.open(io.BytesIO(data)) as recording:
            audio_ms = recording.getnframes() * 1000 // recording.getframerate()
        model, prompt = str(form["model"]), str(form.get("prompt", ""))
        fault = self.faults.take()
        by_token = is_billed_by_token(model)
        units = {"audio_ms": audio_ms}
        if by_token:
            audio_tokens = -(-audio_ms // _MS_PER_AUDIO_TOKEN)
            units |= {
                "input_tokens": audio_tokens + count_tokens(prompt),
                "input_audio_tokens": audio_tokens,
                "output_tokens": 0,
            }
        refused = fault is not None and fault.status is not None
        row = self.bill.open(
            provider=self.provider,
            service="stt",
            model=model,
            request_id=str(uuid.uuid4()),
            units=dict.fromkeys(units, 0) if refused else units,
            attributes={"language": str(form.get("language", ""))},
        )
        if fault is not None and fault.status is not None:
            self.bill.close(row, "refused")
            return self.refusal(fault.status, "The simulated provider was told to refuse this.")
        self.accepted.set()
        ended: Ending = "cancelled"
        try:
            answer = await self._answer(row, fault, form, audio_ms)
            ended = "completed" if answer is not None else "died"
        finally:
            self.bill.close(row, ended)
        if answer is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return web.json_response(answer, headers={"x-request-id": row.request_id})

    async def _answer(
        self, row: BillRow, fault: Fault | None, form: Any, audio_ms: int
    ) -> dict[str, Any] | None:
        """The body of the response; None: the connection breaks."""
        if fault is not None and fault.silent:
            await asyncio.Event().wait()  # until the client leaves
        await asyncio.sleep(self.answer_delay_ms / 1000)
        if fault is not None:
            return None
        text = self.transcripts.popleft() if self.transcripts else ""
        if is_billed_by_token(row.model):
            row.units["output_tokens"] = count_tokens(text)
            return {"text": text, "usage": _token_usage(row.units)}
        if form.get("response_format") == "verbose_json":
            return {
                "task": "transcribe",
                "language": "english",
                "duration": audio_ms / 1000,
                "text": text,
                "segments": [],
                "usage": {"type": "duration", "seconds": -(-audio_ms // 1000)},
            }
        return {"text": text, "x_groq": {"id": row.request_id}}

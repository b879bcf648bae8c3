"""Simulates Google's Live API (`BidiGenerateContent` over WebSocket) and keeps Google's bill.

Wire: https://ai.google.dev/api/live (`setup`, `clientContent`, `realtimeInput`, `toolResponse`;
`setupComplete`, `serverContent`, `toolCall`, `usageMetadata`), as google-genai's client speaks it,
which insists on TLS: the certificate is made on the spot.

It hears no words: sound above a loudness is speech, each stretch of it "means" the next transcript
of the script. Replies are spoken by a hum, so many milliseconds a character.

Billing rules (https://ai.google.dev/gemini-api/docs/live-api/best-practices#pricing-billing)
- "You are charged per turn for all tokens present in the session's context window": what came
  before, raw sound included, is billed again as input of every turn.
- Sound is 25 tokens a second in both directions; thoughts are output.
- `usageMetadata` is that of the turn, no total of the session
  (https://github.com/pydantic/pydantic-ai/pull/7269); one turn may report several times, as a
  running total (`usage_reports`). A tool call ends a turn, its result begins the next one.
- An interrupted turn costs what was generated. So does, we assume, one whose connection is gone:
  that is undocumented. `generated_ahead` holds what half a second more generates.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import ipaddress
import json
import math
import random
import ssl
import tempfile
import uuid
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import WSMsgType, web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from .bill import Bill, BillRow
from .script import Fault, Faults, Reply, choose_reply
from .tokens import count_tokens, tokenize

TOKENS_PER_S = 25
AHEAD_MS = 500
_LOUD = 1_000
_IN_BYTES_PER_MS = 2 * 16
_OUT_SAMPLES_PER_MS = 24


def sound_tokens(audio_ms: int) -> int:
    """How many tokens so much sound is; a begun one counts."""
    return -(-audio_ms * TOKENS_PER_S // 1000)


class GoogleLiveSimulator:
    """The Live API of Gemini.

    Args:
        replies: What to answer, first match wins; without one, a long answer.
        transcripts: What the stretches of speech mean, in order, over all connections.
        bill: Where to keep the bill; its own by default.
        first_token_delay_ms: From the end of a turn's input to the first sound.
        token_delay_ms: From text token to text token; speech is generated with its words.
        character_ms: How long one character of a reply is spoken.
        pause_ms: Silence that ends a stretch of speech.
        usage_reports: How often a turn says its usage; the last time with its end.

    Attributes:
        faults: Of turns: `dies_after` output tokens the connection breaks.
        tls: For a client that is to trust this server.
    """

    def __init__(
        self,
        *,
        replies: Sequence[Reply] = (),
        transcripts: Iterable[str] = (),
        bill: Bill | None = None,
        first_token_delay_ms: int = 10,
        token_delay_ms: int = 3,
        character_ms: int = 60,
        pause_ms: int = 300,
        usage_reports: int = 1,
    ) -> None:
        self.replies = list(replies)
        self.transcripts = deque(transcripts)
        self.bill = bill or Bill()
        self.faults = Faults()
        self.first_token_delay_ms = first_token_delay_ms
        self.token_delay_ms = token_delay_ms
        self.character_ms = character_ms
        self.pause_ms = pause_ms
        self.usage_reports = usage_reports
        self.tls = ssl.create_default_context()
        self.base_url = ""
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        """Serve on a free port of loopback."""
        server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:
            certificate, key = _certificate(Path(folder))
            server_tls.load_cert_chain(certificate, key)
            self.tls.load_verify_locations(certificate)
        app = web.Application()
        app.router.add_get("/ws/{method}", self._session)
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.05
        )
        self._runner = runner
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_tls).start()
        self.base_url = f"https://127.0.0.1:{runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop serving; the bill stays readable."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _session(self, request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse(max_msg_size=0)
        await websocket.prepare(request)
        connection = _Connection(self, websocket, request)
        try:
            await connection.serve()
        finally:
            connection.leave()
        return websocket


class _Turn:
    """One turn of the model while it is generated."""

    def __init__(self, row: BillRow, prompt: dict[str, int], fault: Fault | None) -> None:
        self.row = row
        self.prompt = prompt
        self.fault = fault
        self.thoughts = 0
        self.text_tokens = 0
        self.audio_ms = 0
        self.said = ""
        self.complete = False
        self.task: asyncio.Task[None] | None = None

    def count(self) -> None:
        audio = sound_tokens(self.audio_ms)
        units = self.row.units
        units["output_audio_tokens"] = audio
        units["reasoning_tokens"] = self.thoughts
        units["output_tokens"] = audio + self.text_tokens + self.thoughts

    def usage(self) -> dict[str, Any]:
        self.count()
        response = self.row.units["output_tokens"] - self.thoughts
        details = [
            {"modality": "AUDIO", "tokenCount": self.row.units["output_audio_tokens"]},
            {"modality": "TEXT", "tokenCount": self.text_tokens},
        ]
        usage: dict[str, Any] = {
            "promptTokenCount": sum(self.prompt.values()),
            "responseTokenCount": response,
            "totalTokenCount": sum(self.prompt.values()) + response + self.thoughts,
            "promptTokensDetails": [
                {"modality": kind, "tokenCount": count}
                for kind, count in self.prompt.items()
                if count
            ],
            "responseTokensDetails": [each for each in details if each["tokenCount"]],
        }
        if self.thoughts:
            usage["thoughtsTokenCount"] = self.thoughts
        return usage


class _Connection:
    def __init__(
        self, simulator: GoogleLiveSimulator, websocket: web.WebSocketResponse, request: web.Request
    ) -> None:
        self._simulator = simulator
        self._websocket = websocket
        self._request = request
        self._setup: dict[str, Any] = {}
        self._context = {"TEXT": 0, "AUDIO": 0, "IMAGE": 0}
        self._messages: list[dict[str, Any]] = []
        self._turn: _Turn | None = None
        self._speech_ms = self._silence_ms = 0
        self._sizes = random.Random(f"{len(simulator.bill.rows)}")
        self._dropped = False

    async def serve(self) -> None:
        async for message in self._websocket:
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                return
            event: dict[str, Any] = _camel_case(json.loads(message.data))
            if "setup" in event:
                await self._set_up(event["setup"])
            elif "clientContent" in event:
                await self._take_content(event["clientContent"])
            elif "realtimeInput" in event:
                await self._take_input(event["realtimeInput"])
            elif "toolResponse" in event:
                await self._take_results(event["toolResponse"])

    def leave(self) -> None:
        """The client is gone; what was generated by now is billed."""
        turn, self._turn = self._turn, None
        if turn is None:
            return
        if turn.task is not None:
            turn.task.cancel()
        turn.count()
        words = AHEAD_MS // max(1, self._simulator.token_delay_ms)
        audio = sound_tokens(words * 4 * self._simulator.character_ms)
        if turn.said and not turn.complete:
            turn.row.generated_ahead = {"output_tokens": audio, "output_audio_tokens": audio}
        self._simulator.bill.close(turn.row, "died" if self._dropped else "cancelled")

    async def _set_up(self, setup: dict[str, Any]) -> None:
        self._setup = setup
        for part in (setup.get("systemInstruction") or {}).get("parts") or []:
            self._context["TEXT"] += count_tokens(part.get("text", ""))
        if setup.get("tools"):
            self._context["TEXT"] += count_tokens(json.dumps(setup["tools"]))
        await self._send({"setupComplete": {}})

    async def _take_content(self, content: dict[str, Any]) -> None:
        for turn in content.get("turns") or []:
            text = "".join(part.get("text", "") for part in turn.get("parts") or [])
            self._context["TEXT"] += count_tokens(text) + 2
            role = "user" if turn.get("role") == "user" else "assistant"
            if text != ".":  # what clients say who have nothing to say, but want an answer
                self._messages.append({"role": role, "content": text})
        if content.get("turnComplete"):
            await self._interrupt()
            await self._answer()

    async def _take_results(self, results: dict[str, Any]) -> None:
        for each in results["functionResponses"]:
            self._context["TEXT"] += count_tokens(json.dumps(each.get("response")))
            self._messages.append({"role": "tool", "content": json.dumps(each.get("response"))})
        await self._answer()

    async def _take_input(self, given: dict[str, Any]) -> None:
        for blob in [given.get("audio"), *(given.get("mediaChunks") or [])]:
            if blob is not None:
                await self._hear(base64.urlsafe_b64decode(blob["data"]))

    async def _hear(self, audio: bytes) -> None:
        duration_ms = len(audio) // _IN_BYTES_PER_MS
        if max(array("h", audio), default=0) > _LOUD:
            if not self._speech_ms:
                await self._interrupt()
            self._speech_ms += duration_ms + self._silence_ms
            self._silence_ms = 0
        elif self._speech_ms:
            self._silence_ms += duration_ms
            if self._silence_ms >= self._simulator.pause_ms:
                self._context["AUDIO"] += sound_tokens(self._speech_ms)
                self._speech_ms = self._silence_ms = 0
                transcripts = self._simulator.transcripts
                said = transcripts.popleft() if transcripts else ""
                self._messages.append({"role": "user", "content": said})
                if "inputAudioTranscription" in self._setup and said:
                    await self._content(inputTranscription={"text": said})
                await self._answer()

    # ---- turns -----------------------------------------------------------------------------------

    async def _answer(self) -> None:
        simulator = self._simulator
        prompt = dict(self._context)
        row = simulator.bill.open(
            provider="google",
            service="realtime",
            model=str(self._setup["model"]).removeprefix("models/"),
            request_id=f"turn_{uuid.uuid4().hex[:16]}",
            units={
                "input_tokens": sum(prompt.values()),
                "input_audio_tokens": prompt["AUDIO"],
                "output_tokens": 0,
                "output_audio_tokens": 0,
                "reasoning_tokens": 0,
            },
        )
        turn = self._turn = _Turn(row, prompt, simulator.faults.take())
        names = {
            function["name"]
            for tool in self._setup.get("tools") or []
            for function in tool.get("functionDeclarations") or []
        }
        turn.task = asyncio.create_task(
            self._generate(turn, choose_reply(simulator.replies, self._messages, names))
        )

    async def _generate(self, turn: _Turn, reply: Reply) -> None:
        simulator = self._simulator
        await asyncio.sleep(simulator.first_token_delay_ms / 1000)
        if reply.thoughts:
            turn.thoughts = count_tokens(reply.thoughts)
            part = {"text": reply.thoughts, "thought": True}
            await self._content(modelTurn={"parts": [part]})
        if reply.tool_call is not None:
            await self._call(turn, reply)
            return
        pieces = tokenize(reply.text)
        reports = {
            len(pieces) * n // simulator.usage_reports for n in range(simulator.usage_reports)
        }
        for index, piece in enumerate(pieces):
            dies_after = turn.fault.dies_after if turn.fault is not None else None
            if dies_after is not None and turn.row.units["output_tokens"] >= dies_after:
                self._dropped = True
                assert self._request.transport is not None
                self._request.transport.abort()
                return
            if index and index in reports:
                await self._send({"usageMetadata": turn.usage()})
            await asyncio.sleep(simulator.token_delay_ms / 1000)
            turn.said += piece
            turn.audio_ms += len(piece) * simulator.character_ms
            turn.count()
            await self._speak(piece)
        turn.complete = True
        await self._content(generationComplete=True)
        await self._end(turn)

    async def _speak(self, piece: str) -> None:
        count = len(piece) * self._simulator.character_ms * _OUT_SAMPLES_PER_MS
        voice = array("h", (int(2_000 * math.sin(0.05 * i)) for i in range(count))).tobytes()
        while voice:
            size = 2 * self._sizes.randrange(1_000, 8_000)
            chunk, voice = voice[:size], voice[size:]
            blob = {"mimeType": "audio/pcm;rate=24000", "data": base64.b64encode(chunk).decode()}
            await self._content(modelTurn={"parts": [{"inlineData": blob}]})
        await self._content(outputTranscription={"text": piece})

    async def _call(self, turn: _Turn, reply: Reply) -> None:
        calls = [
            {"id": f"call_{uuid.uuid4().hex[:8]}", "name": call.name, "args": call.arguments}
            for call in reply.tool_calls
        ]
        turn.text_tokens = count_tokens(json.dumps(calls))
        turn.complete = True
        usage = turn.usage()
        self._close(turn)
        await self._send({"toolCall": {"functionCalls": calls}, "usageMetadata": usage})

    async def _end(self, turn: _Turn) -> None:
        usage = turn.usage()
        self._close(turn)
        await self._send({"serverContent": {"turnComplete": True}, "usageMetadata": usage})

    def _close(self, turn: _Turn) -> None:
        self._turn = None
        self._context["AUDIO"] += turn.row.units["output_audio_tokens"]
        self._context["TEXT"] += turn.text_tokens
        self._messages.append({"role": "assistant", "content": turn.said})
        self._simulator.bill.close(turn.row, "completed" if turn.complete else "cancelled")

    async def _interrupt(self) -> None:
        turn = self._turn
        if turn is not None:
            if turn.task is not None:
                turn.task.cancel()
            await self._content(interrupted=True)
            await self._end(turn)

    async def _content(self, **content: Any) -> None:
        await self._send({"serverContent": content})

    async def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):
            await self._websocket.send_bytes(json.dumps(message).encode())


def _camel_case(value: Any) -> Any:
    """JSON names of protocol buffers may be written either way, and the client does."""
    if isinstance(value, list):
        return [_camel_case(each) for each in value]
    if not isinstance(value, dict):
        return value
    renamed: dict[str, Any] = {}
    for key, each in value.items():
        first, *rest = key.split("_")
        renamed[first + "".join(part.capitalize() for part in rest)] = _camel_case(each)
    return renamed


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_path, key_path = folder / "certificate.pem", folder / "key.pem"
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    return certificate_path, key_path

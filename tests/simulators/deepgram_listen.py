"""Simulates Deepgram's streaming speech recognition (`/v1/listen` as a WebSocket) and its bill.

Wire: https://developers.deepgram.com/reference/speech-to-text/listen-streaming (Results,
SpeechStarted, UtteranceEnd, Metadata; KeepAlive, Finalize, CloseStream).

It understands no speech: sound above a loudness is speech, each stretch of it "means" the next
transcript of the script, and past the script's end nothing is recognised. A pause ends a stretch
after `endpointing` ms, at the least `pause_ms`: real recognition hears words go on through gaps
that a tone published over a network has too.

Billing rules
- Every millisecond of audio received, silence included ("Deepgram charges for all audio, whether
  it's speech or silence", https://developers.deepgram.com/docs/audio-keep-alive), times the
  channels (https://developers.deepgram.com/docs/multichannel). KeepAlive costs nothing.
- LiveKit's plugin takes the connection's lifetime to be billed instead: that is kept beside, as
  `connected_ms`. No minimum of a second is applied.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
import uuid
from array import array
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from operator import mul
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from .bill import Bill, BillRow, Ending
from .script import Fault, Faults

_BLOCK_MS = 10  # loudness is measured over this long
_SPEECH_BLOCKS_MIN = 3  # so long above the threshold is speech; a click is not
_INTERIM_EVERY_MS = 300
_MS_PER_WORD = 250
IDLE_MS_MAX = 10_000  # Deepgram closes with NET-0001 after 10 s without audio or KeepAlive


class Listen:
    """The `/v1/listen` part of the simulated Deepgram.

    Args:
        bill: Where to keep the bill.
        transcripts: What the stretches of speech mean, in order, over all connections.
        pause_ms: Shortest silence that ends a stretch of speech.
        speech_rms_min: Loudness of speech, root mean square of 16-bit samples.
    """

    def __init__(
        self,
        *,
        bill: Bill,
        transcripts: Iterable[str] = (),
        pause_ms: int = 300,
        speech_rms_min: int = 300,
    ) -> None:
        self.bill = bill
        self.transcripts = deque(transcripts)
        self.pause_ms = pause_ms
        self.speech_rms_min = speech_rms_min
        self.faults = Faults()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one connection."""
        query = request.query
        options = _Options.from_query(query, pause_ms=self.pause_ms)
        if isinstance(options, str):
            return _refuse(400, options)
        fault = self.faults.take()
        request_id = str(uuid.uuid4())
        row = self.bill.open(
            provider="deepgram",
            service="stt",
            model=options.model,
            request_id=request_id,
            units={"audio_ms": 0},
            attributes={"language": options.language, "channels": options.channel_count},
        )
        if fault is not None and fault.status is not None:
            self.bill.close(row, "refused")
            return _refuse(fault.status, "The simulated provider was told to refuse this.")

        websocket = web.WebSocketResponse(max_msg_size=0)
        websocket.headers["dg-request-id"] = request_id
        await websocket.prepare(request)
        connection = _Connection(self, websocket, options, row)
        opened_ms = time.monotonic_ns() // 1_000_000
        ended: Ending = "cancelled"
        try:
            ended = await connection.serve(fault, request)
        finally:
            row.connected_ms = time.monotonic_ns() // 1_000_000 - opened_ms
            self.bill.close(row, ended)
        return websocket


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    model: str
    language: str
    sample_rate: int
    channel_count: int
    interim_results: bool
    vad_events: bool
    silence_ms: int | None  # None: endpointing is off
    utterance_end_ms: int | None

    @classmethod
    def from_query(cls, query: Any, *, pause_ms: int) -> _Options | str:
        """The options of a connection, or why it is refused."""
        encoding = query.get("encoding", "linear16")
        if encoding != "linear16":
            return f"encoding {encoding!r} is not simulated: use linear16"
        try:
            endpointing = query.get("endpointing", "10")
            utterance_end = query.get("utterance_end_ms")
            return cls(
                model=query.get("model", "base-general"),
                language=query.get("language", "en"),
                sample_rate=int(query["sample_rate"]),
                channel_count=int(query.get("channels", "1")),
                interim_results=query.get("interim_results", "false") == "true",
                vad_events=query.get("vad_events", "false") == "true",
                silence_ms=None if endpointing == "false" else max(pause_ms, int(endpointing)),
                utterance_end_ms=int(utterance_end) if utterance_end else None,
            )
        except (KeyError, ValueError) as error:
            return f"cannot read the query: {error!r}"


class _Connection:
    """One WebSocket: counts its audio, finds the speech in it, says what it means."""

    def __init__(
        self, listen: Listen, websocket: web.WebSocketResponse, options: _Options, row: BillRow
    ) -> None:
        self._listen = listen
        self._websocket = websocket
        self._options = options
        self._row = row
        self._sample_count = 0  # of all channels
        self._unread = b""
        self._block_size = options.sample_rate * options.channel_count * _BLOCK_MS // 1000 * 2
        self._at_ms = 0  # end of the last block in the stream
        self._loud_blocks = 0
        self._words: list[str] | None = None  # of the speech going on
        self._speech_started_ms = 0
        self._last_loud_ms = 0
        self._last_interim_ms = 0
        self._result_from_ms = 0
        self._awaiting_utterance_end = False

    async def serve(self, fault: Fault | None, request: web.Request) -> Ending:
        """Serve until either side leaves; tells how it ended."""
        while True:
            try:
                async with asyncio.timeout(IDLE_MS_MAX / 1000):
                    message = await self._websocket.receive()
            except TimeoutError:
                reason = b"NET-0001: no audio data or KeepAlive within the timeout window"
                await self._websocket.close(code=WSCloseCode.INTERNAL_ERROR, message=reason)
                return "timed_out"
            if message.type is WSMsgType.BINARY and message.data:
                self._count(message.data)
                if fault is not None:
                    if fault.dies_after is not None:
                        if self._row.units["audio_ms"] >= fault.dies_after:
                            assert request.transport is not None
                            request.transport.abort()
                            return "died"
                    else:
                        continue  # silent: takes the audio, says nothing
                await self._hear(message.data)
            elif message.type is WSMsgType.BINARY:  # the old way to say CloseStream
                return await self._close()
            elif message.type is WSMsgType.TEXT:
                command = json.loads(message.data).get("type")
                if command == "CloseStream":
                    return await self._close()
                if command == "Finalize" and self._words is not None:
                    await self._finish_speech(from_finalize=True)
            else:
                return "cancelled"

    def _count(self, audio: bytes) -> None:
        self._sample_count += len(audio) // 2
        # Summed over the channels: each is billed as if it were alone.
        self._row.units["audio_ms"] = self._sample_count * 1000 // self._options.sample_rate

    async def _hear(self, audio: bytes) -> None:
        audio = self._unread + audio
        whole = len(audio) - len(audio) % self._block_size
        self._unread = audio[whole:]
        for start in range(0, whole, self._block_size):
            block = array("h", audio[start : start + self._block_size])
            rms = math.isqrt(sum(map(mul, block, block)) // len(block))
            self._at_ms += _BLOCK_MS
            await self._advance(is_loud=rms >= self._listen.speech_rms_min)

    async def _advance(self, *, is_loud: bool) -> None:
        """One block further: begin, go on with, or end a stretch of speech."""
        self._loud_blocks = self._loud_blocks + 1 if is_loud else 0
        if is_loud:
            self._last_loud_ms = self._at_ms
        silent_ms = self._at_ms - self._last_loud_ms
        if self._words is None:
            if self._loud_blocks >= _SPEECH_BLOCKS_MIN:
                await self._begin_speech()
            elif (
                self._awaiting_utterance_end
                and self._options.utterance_end_ms is not None
                and silent_ms >= self._options.utterance_end_ms
            ):
                self._awaiting_utterance_end = False
                end = self._last_loud_ms / 1000
                await self._send({"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": end})
        elif self._options.silence_ms is not None and silent_ms >= self._options.silence_ms:
            await self._finish_speech()
        elif (
            self._options.interim_results
            and is_loud
            and self._at_ms - self._last_interim_ms >= _INTERIM_EVERY_MS
        ):
            self._last_interim_ms = self._at_ms
            heard = 1 + (self._at_ms - self._speech_started_ms) // _MS_PER_WORD
            await self._send(self._results(self._words[:heard], is_final=False))

    async def _begin_speech(self) -> None:
        transcripts = self._listen.transcripts
        self._words = transcripts.popleft().split() if transcripts else []
        self._speech_started_ms = self._at_ms - _SPEECH_BLOCKS_MIN * _BLOCK_MS
        self._last_interim_ms = self._speech_started_ms
        if self._options.vad_events:
            at = self._speech_started_ms / 1000
            await self._send({"type": "SpeechStarted", "channel": [0, 1], "timestamp": at})

    async def _finish_speech(self, *, from_finalize: bool = False) -> None:
        words, self._words = self._words or [], None
        results = self._results(words, is_final=True, from_finalize=from_finalize)
        self._result_from_ms = self._at_ms
        self._awaiting_utterance_end = bool(words)
        await self._send(results)

    def _results(
        self, words: list[str], *, is_final: bool, from_finalize: bool = False
    ) -> dict[str, Any]:
        from_ms, until_ms = self._speech_started_ms, max(self._last_loud_ms, 1)
        span_ms = max(until_ms - from_ms, 1)
        timed = [
            {
                "word": word.strip(".,;:!?\"'").lower(),
                "punctuated_word": word,
                "start": round((from_ms + span_ms * index / len(words)) / 1000, 3),
                "end": round((from_ms + span_ms * (index + 1) / len(words)) / 1000, 3),
                "confidence": 0.98,
            }
            for index, word in enumerate(words)
        ]
        alternative = {
            "transcript": " ".join(words),
            "confidence": 0.98 if words else 0.0,
            "words": timed,
            "languages": [self._options.language],
        }
        return {
            "type": "Results",
            "channel_index": [0, self._options.channel_count],
            "start": self._result_from_ms / 1000,
            "duration": (self._at_ms - self._result_from_ms) / 1000,
            "is_final": is_final,
            "speech_final": is_final,
            "from_finalize": from_finalize,
            "channel": {"alternatives": [alternative]},
            "metadata": {
                "request_id": self._row.request_id,
                "model_uuid": str(uuid.NAMESPACE_DNS),
                "model_info": {"name": self._options.model, "version": "simulated", "arch": ""},
            },
        }

    async def _close(self) -> Ending:
        """Answer CloseStream: what is left, a summary, and the end of the connection."""
        if self._words is not None:
            await self._finish_speech(from_finalize=True)
        channels = self._options.channel_count
        await self._send(
            {
                "type": "Metadata",
                "transaction_key": "deprecated",
                "request_id": self._row.request_id,
                "sha256": "",
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "duration": self._row.units["audio_ms"] / 1000 / channels,
                "channels": channels,
                "models": [str(uuid.NAMESPACE_DNS)],
            }
        )
        await self._websocket.close()
        return "completed"

    async def _send(self, body: dict[str, Any]) -> None:
        # A client that has gone: the next receive says so, and what it sent stays counted.
        with contextlib.suppress(ConnectionError):
            await self._websocket.send_str(json.dumps(body))


def _refuse(status: int, message: str) -> web.Response:
    body = {"err_code": str(status), "err_msg": message, "request_id": str(uuid.uuid4())}
    return web.json_response(body, status=status)

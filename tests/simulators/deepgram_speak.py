"""Simulates Deepgram's speech synthesis (`/v1/speak`: WebSocket and HTTP) and keeps its bill.

Wire: https://developers.deepgram.com/reference/text-to-speech/speak-streaming (Speak, Flush,
Clear, Close; audio as binary messages, Metadata, Flushed, Cleared, Warning) and
https://developers.deepgram.com/reference/text-to-speech/speak-request (`POST`, `{"text": ...}`).

Audio is generated from the end of a sentence on or at Flush, faster than it plays, so a client
can be cut off with text paid for and audio not yet made.

Billing rules
- Every character (code point, spaces included) received in Speak messages or in the `POST` body,
  from the moment it is received, played or not, cleared or not
  (https://deepgram.com/pricing: Aura is priced per 1,000 characters; Deepgram documents no refund
  for Clear or for a closed connection). Control messages cost nothing.
- A row is one text from its first Speak to its Flushed, Cleared or the connection's end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import uuid
from array import array
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from aiohttp import WSMsgType, web

from .bill import Bill, BillRow, Ending
from .script import Fault, Faults

_SAMPLE_RATES = (8_000, 16_000, 24_000, 32_000, 44_100, 48_000)
_CHUNK_MS = 100
_SENTENCE_ENDS = (".", "!", "?")


class Speak:
    """The `/v1/speak` part of the simulated Deepgram.

    Args:
        bill: Where to keep the bill.
        character_ms: How long a character sounds; 65 is an unhurried voice.
        first_byte_delay_ms: From the first text that can be spoken to its first audio.
        speed: Seconds of audio made per second of wall clock; 0 makes it all at once.
    """

    def __init__(
        self,
        *,
        bill: Bill,
        character_ms: int = 65,
        first_byte_delay_ms: int = 80,
        speed: float = 6.0,
    ) -> None:
        self.bill = bill
        self.character_ms = character_ms
        self.first_byte_delay_ms = first_byte_delay_ms
        self.speed = speed
        self.faults = Faults()
        self.connection_count = 0

    async def handle_websocket(self, request: web.Request) -> web.StreamResponse:
        """Serve one connection."""
        voice = _Voice.from_query(request.query)
        if isinstance(voice, str):
            return _refuse(400, voice)
        fault = self.faults.take()
        if fault is not None and fault.status is not None:
            self._open(voice, str(uuid.uuid4()), "", ended="refused")
            return _refuse(fault.status, "The simulated provider was told to refuse this.")
        websocket = web.WebSocketResponse(max_msg_size=0)
        request_id = str(uuid.uuid4())
        websocket.headers["dg-request-id"] = request_id
        await websocket.prepare(request)
        self.connection_count += 1
        await _Connection(self, websocket, voice, request_id, fault, request).serve()
        return websocket

    async def handle_post(self, request: web.Request) -> web.StreamResponse:
        """Serve one text, its audio as a chunked body."""
        voice = _Voice.from_query(request.query)
        if isinstance(voice, str):
            return _refuse(400, voice)
        text = str((await request.json()).get("text", ""))
        request_id = str(uuid.uuid4())
        fault = self.faults.take()
        if fault is not None and fault.status is not None:
            self._open(voice, request_id, "", ended="refused")
            return _refuse(fault.status, "The simulated provider was told to refuse this.")
        row = self._open(voice, request_id, text)
        response = web.StreamResponse(
            headers={
                "Content-Type": f"audio/l16;rate={voice.sample_rate};channels=1",
                "dg-request-id": request_id,
                "dg-model-name": voice.model,
                "dg-char-count": str(len(text)),
            }
        )
        dies_after = fault.dies_after if fault else None
        try:
            if fault is not None and fault.silent:
                await asyncio.Event().wait()
            await response.prepare(request)
            await asyncio.sleep(self.first_byte_delay_ms / 1000)
            sent_ms = 0
            for chunk in voice.audio(len(text) * self.character_ms):
                if dies_after is not None and sent_ms >= dies_after:
                    self.bill.close(row, "died")
                    assert request.transport is not None
                    request.transport.abort()
                    return response
                await response.write(chunk)
                sent_ms += voice.duration_ms(chunk)
                await self.pace(voice, chunk)
            await response.write_eof()
        except (asyncio.CancelledError, ConnectionError):
            self.bill.close(row, "cancelled")
            raise
        self.bill.close(row, "completed")
        return response

    def _open(
        self, voice: _Voice, request_id: str, text: str, *, ended: Ending | None = None
    ) -> BillRow:
        row = self.bill.open(
            provider="deepgram",
            service="tts",
            model=voice.model,
            request_id=request_id,
            units={"characters": len(text)},
            attributes={"sample_rate": voice.sample_rate},
        )
        if ended is not None:
            self.bill.close(row, ended)
        return row

    def open_text(self, voice: _Voice, request_id: str) -> BillRow:
        """A row for a text of which nothing has been received yet."""
        return self._open(voice, request_id, "")

    async def pace(self, voice: _Voice, chunk: bytes) -> None:
        """Take as long as making `chunk` takes."""
        if self.speed > 0:
            await asyncio.sleep(voice.duration_ms(chunk) / 1000 / self.speed)
        else:
            await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class _Voice:
    model: str
    sample_rate: int

    @classmethod
    def from_query(cls, query: Any) -> _Voice | str:
        """The voice that was asked for, or why it cannot be had."""
        encoding = query.get("encoding", "linear16")
        sample_rate = query.get("sample_rate", "24000")
        if encoding != "linear16" or query.get("container", "none") != "none":
            return f"encoding {encoding!r} is not simulated: use linear16 without a container"
        if not sample_rate.isdigit() or int(sample_rate) not in _SAMPLE_RATES:
            return f"sample_rate {sample_rate!r} is not one of {_SAMPLE_RATES}"
        return cls(query.get("model", "aura-asteria-en"), int(sample_rate))

    def audio(self, duration_ms: int) -> list[bytes]:
        """Sound of that length, in chunks to send."""
        second = _hum(self.sample_rate)
        byte_count = self.sample_rate * duration_ms // 1000 * 2
        whole = (second * (byte_count // len(second) + 1))[:byte_count]
        size = self.sample_rate * _CHUNK_MS // 1000 * 2
        return [whole[start : start + size] for start in range(0, byte_count, size)]

    def duration_ms(self, chunk: bytes) -> int:
        return len(chunk) * 1000 // (self.sample_rate * 2)


@lru_cache
def _hum(sample_rate: int) -> bytes:
    """One second of a hummed note that swells four times, as syllables do; never quite silent."""
    samples = array("h", bytes(sample_rate * 2))
    for index in range(sample_rate):
        at = index / sample_rate
        swell = 0.55 - 0.45 * math.cos(2 * math.pi * 4 * at)
        tone = math.sin(2 * math.pi * 180 * at) + 0.4 * math.sin(2 * math.pi * 540 * at)
        samples[index] = int(7_000 * swell * tone)
    return samples.tobytes()


class _Connection:
    """One WebSocket: a reader that bills what is said, and a writer that speaks it in order."""

    def __init__(
        self,
        speak: Speak,
        websocket: web.WebSocketResponse,
        voice: _Voice,
        request_id: str,
        fault: Fault | None,
        request: web.Request,
    ) -> None:
        self._speak = speak
        self._websocket = websocket
        self._voice = voice
        self._request_id = request_id
        self._fault = fault
        self._request = request
        self._buffer = ""  # text received, not yet at the end of a sentence
        self._row: BillRow | None = None  # of the text being received
        self._open_rows: list[BillRow] = []  # also those whose audio is still being sent
        # What the writer does next: speak so many characters, or confirm a Flush.
        self._work: asyncio.Queue[int | BillRow | None] = asyncio.Queue()
        self._text_count = 0
        self._flushed_count = 0
        self._cleared_count = 0
        self._sent_ms = 0

    async def serve(self) -> None:
        """Serve until either side leaves."""
        writer: asyncio.Task[None] | None = None
        try:
            await self._send(
                {
                    "type": "Metadata",
                    "request_id": self._request_id,
                    "model_name": self._voice.model,
                    "model_version": "simulated",
                    "model_uuid": str(uuid.NAMESPACE_DNS),
                }
            )
            writer = asyncio.create_task(self._write())
            async for message in self._websocket:
                if message.type is not WSMsgType.TEXT:
                    continue
                command: dict[str, Any] = json.loads(message.data)
                match command.get("type"):
                    case "Speak":
                        self._receive(str(command.get("text", "")))
                    case "Flush":
                        self._flush()
                    case "Clear":
                        writer.cancel()
                        await asyncio.wait([writer])
                        await self._clear()
                        writer = asyncio.create_task(self._write())
                    case "Close":
                        self._say_rest()
                        self._work.put_nowait(None)
                    case unknown:
                        await self._send(
                            {
                                "type": "Warning",
                                "description": f"Unknown message type {unknown!r}",
                                "code": "INVALID_MESSAGE",
                            }
                        )
        finally:
            if writer is not None:
                writer.cancel()
            for row in self._open_rows:
                self._speak.bill.close(row, "cancelled")

    def _receive(self, text: str) -> None:
        if self._row is None:
            self._text_count += 1
            request_id = f"{self._request_id}/{self._text_count}"
            self._row = self._speak.open_text(self._voice, request_id)
            self._open_rows.append(self._row)
        self._row.units["characters"] += len(text)  # billed now, whatever becomes of it
        self._buffer += text
        if self._buffer.rstrip().endswith(_SENTENCE_ENDS):
            self._say_rest()

    def _say_rest(self) -> None:
        if self._buffer:
            self._work.put_nowait(len(self._buffer))
            self._buffer = ""

    def _flush(self) -> None:
        self._say_rest()
        # A Flush without text is confirmed too; it has no row, so it costs nothing.
        row, self._row = self._row, None
        self._work.put_nowait(row if row is not None else 0)

    async def _clear(self) -> None:
        self._buffer = ""
        self._row = None
        while not self._work.empty():
            self._work.get_nowait()
        for row in self._open_rows:
            self._speak.bill.close(row, "cleared")
        self._open_rows.clear()
        await self._send({"type": "Cleared", "sequence_id": self._cleared_count})
        self._cleared_count += 1

    async def _write(self) -> None:
        """Speak in the order received, until Close or the client leaves."""
        is_quiet = True
        while True:
            work = await self._work.get()
            if work is None:
                for row in self._open_rows:  # all that was ever asked for has been sent
                    self._speak.bill.close(row, "completed")
                await self._websocket.close()
                return
            if isinstance(work, BillRow) or work == 0:
                await self._confirm_flush(work if isinstance(work, BillRow) else None)
                is_quiet = True
                continue
            if self._fault is not None and self._fault.silent:
                continue
            if is_quiet:
                await asyncio.sleep(self._speak.first_byte_delay_ms / 1000)
                is_quiet = False
            for chunk in self._voice.audio(work * self._speak.character_ms):
                if self._has_died():
                    return
                try:
                    await self._websocket.send_bytes(chunk)
                except ConnectionError:
                    return  # the reader sees the end too, and closes the rows
                self._sent_ms += self._voice.duration_ms(chunk)
                await self._speak.pace(self._voice, chunk)

    def _has_died(self) -> bool:
        if self._fault is None or self._fault.dies_after is None:
            return False
        if self._sent_ms < self._fault.dies_after:
            return False
        for row in self._open_rows:
            self._speak.bill.close(row, "died")
        assert self._request.transport is not None
        self._request.transport.abort()
        return True

    async def _confirm_flush(self, row: BillRow | None) -> None:
        if self._fault is not None and self._fault.silent:
            return
        if row is not None:
            self._speak.bill.close(row, "completed")
            self._open_rows.remove(row)
        await self._send({"type": "Flushed", "sequence_id": self._flushed_count})
        self._flushed_count += 1

    async def _send(self, body: dict[str, Any]) -> None:
        # A client that has gone: the reader sees it and closes the rows.
        with contextlib.suppress(ConnectionError):
            await self._websocket.send_str(json.dumps(body))


def _refuse(status: int, message: str) -> web.Response:
    body = {"err_code": str(status), "err_msg": message, "request_id": str(uuid.uuid4())}
    return web.json_response(body, status=status)

"""What the simulated voices share: sound, how fast it is made, and texts that are spoken in order.

Nothing here bills: each provider's module says what of a text costs money, and when.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
from array import array
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import cycle
from typing import Any

import av
from aiohttp import web

from .bill import Bill, BillRow
from .script import Fault, Faults

_CHUNK_MS = (100, 60, 140, 20, 90, 230, 80)
"""Audio comes in pieces of no regular size."""

_SENTENCE_ENDS = (".", "!", "?", "。", "！", "？")


@dataclass(slots=True, kw_only=True)
class Pace:
    """How fast a simulated voice speaks and how fast it is.

    Args:
        character_ms: How long a character sounds; 65 is an unhurried voice.
        first_byte_delay_ms: From the first text that can be spoken to its first audio.
        speed: Seconds of audio made per second of wall clock; 0 makes it all at once.
    """

    character_ms: int = 65
    first_byte_delay_ms: int = 80
    speed: float = 6.0

    async def take(self, audio_ms: int) -> None:
        """Take as long as making so much audio takes."""
        await asyncio.sleep(audio_ms / 1000 / self.speed if self.speed > 0 else 0)

    def ahead_ms(self, left_ms: int) -> int:
        """What half a second more makes of `left_ms`, where a disconnect is noticed that late."""
        return left_ms if self.speed <= 0 else min(left_ms, round(500 * self.speed))


class SpeechFaults(Faults):
    """The faults to come: a refusal meets the next connection, all others the next text."""

    def refusal(self) -> int | None:
        """The status that the connection that begins now is refused with, if it is."""
        status = self._next[0].status if self._next else None
        if status is not None:
            self._next.popleft()
        return status

    def of_text(self) -> Fault | None:
        """What goes wrong with the text that begins now, if anything."""
        if self._next and self._next[0].status is None:
            return self._next.popleft()
        return None


@lru_cache
def _second_of_hum(sample_rate: int) -> bytes:
    """A hummed note that swells four times, as syllables do; never quite silent."""
    samples = array("h", bytes(sample_rate * 2))
    for index in range(sample_rate):
        at = index / sample_rate
        swell = 0.55 - 0.45 * math.cos(2 * math.pi * 4 * at)
        tone = math.sin(2 * math.pi * 180 * at) + 0.4 * math.sin(2 * math.pi * 540 * at)
        samples[index] = int(7_000 * swell * tone)
    return samples.tobytes()


def hum(duration_ms: int, sample_rate: int) -> bytes:
    """Sound of that length, 16-bit mono PCM."""
    second = _second_of_hum(sample_rate)
    byte_count = sample_rate * duration_ms // 1000 * 2
    return (second * (byte_count // len(second) + 1))[:byte_count]


def pieces(pcm: bytes, sample_rate: int) -> Iterator[tuple[bytes, int]]:
    """The sound in pieces of irregular size, each with its milliseconds."""
    start = 0
    for duration_ms in cycle(_CHUNK_MS):
        piece = pcm[start : start + sample_rate * duration_ms // 1000 * 2]
        if not piece:
            return
        yield piece, len(piece) * 1000 // (sample_rate * 2)
        start += len(piece)


_CODECS = {
    "mp3": ("mp3", "libmp3lame"),
    "opus": ("ogg", "libopus"),
    "wav": ("wav", "pcm_s16le"),
    "flac": ("flac", "flac"),
    "aac": ("adts", "aac"),
}


class _Sink(io.RawIOBase):
    """Collects what a muxer writes; it cannot seek, as a network cannot."""

    def __init__(self) -> None:
        self._written = bytearray()

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def write(self, data: Any) -> int:
        self._written += data
        return len(data)

    def take(self) -> bytes:
        data = bytes(self._written)
        self._written.clear()
        return data


class Encoder:
    """Encodes sound as it is made, as a stream that nobody can seek in.

    Args:
        audio_format: `pcm`, `mp3`, `opus`, `wav`, `flac` or `aac`.
        sample_rate: Of the sound; Opus is always 48 kHz.
    """

    def __init__(self, audio_format: str, sample_rate: int) -> None:
        self._sink: _Sink | None = None
        self._rate = sample_rate
        self._encoded_s = Fraction(0)
        if audio_format == "pcm":
            return
        container, codec = _CODECS[audio_format]
        self._sink = _Sink()
        # As a live encoder streams it: no tags, and no index that says how long it will be.
        options = {"write_xing": "0", "id3v2_version": "0"} if container == "mp3" else {}
        self._output: Any = av.open(self._sink, "w", format=container, container_options=options)
        self._stream: Any = self._output.add_stream(codec, rate=sample_rate, layout="mono")
        self._resampler: Any = None
        self._samples = 0

    @property
    def encoded_ms(self) -> int:
        """How long the stream is so far: some codecs begin and end with a little silence."""
        return int(self._encoded_s * 1000)

    def encode(self, pcm: bytes) -> bytes:
        """What of the stream is complete with this sound."""
        if self._sink is None:
            self._encoded_s += Fraction(len(pcm), 2 * self._rate)
            return pcm
        frame = av.AudioFrame(format="s16", layout="mono", samples=len(pcm) // 2)
        frame.sample_rate = self._rate
        frame.planes[0].update(pcm)
        frame.pts = self._samples
        self._samples += len(pcm) // 2
        if self._resampler is None:
            context = self._stream.codec_context
            self._resampler = av.AudioResampler(
                format=context.format.name, layout="mono", rate=self._rate,
                frame_size=context.frame_size or None,
            )  # fmt: skip
        self._mux(frame)
        return self._sink.take()

    def end(self) -> bytes:
        """The rest of the stream."""
        if self._sink is None:
            return b""
        if self._resampler is not None:
            self._mux(None)
            self._write(self._stream.encode(None))
        self._output.close()
        return self._sink.take()

    def _mux(self, frame: Any) -> None:
        for part in self._resampler.resample(frame):
            self._write(self._stream.encode(part))

    def _write(self, packets: list[Any]) -> None:
        frame_size = self._stream.codec_context.frame_size
        for packet in packets:
            # A file has whole frames: what the last one is too long nobody is told in a stream.
            samples = frame_size or round(packet.duration * packet.time_base * self._rate)
            self._encoded_s += Fraction(samples, self._rate)
            self._output.mux(packet)


class Utterance:
    """One text: received bit by bit, spoken in order from the end of a sentence on.

    Args:
        pace: How fast.
        sample_rate: Of the sound.
        audio_format: How it is encoded; see `Encoder`.
        send_audio: Sends a piece of audio; told its milliseconds.
        send_end: Says that all of it was sent, after `finish`.
        die: Breaks the connection.
        fault: What goes wrong with it.
    """

    def __init__(
        self,
        pace: Pace,
        *,
        sample_rate: int,
        audio_format: str = "pcm",
        send_audio: Callable[[bytes, int], Awaitable[None]],
        send_end: Callable[[], Awaitable[None]],
        die: Callable[[], None],
        fault: Fault | None = None,
    ) -> None:
        self._pace = pace
        self._sample_rate = sample_rate
        self._encoder = Encoder(audio_format, sample_rate)
        self._send_audio = send_audio
        self._send_end = send_end
        self._die = die
        self._fault = fault
        self._buffer = ""
        self._work: asyncio.Queue[int | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._speak())
        self.sent_ms = 0

    @property
    def encoded_ms(self) -> int:
        """How long the file is that was sent so far."""
        return self._encoder.encoded_ms

    def receive(self, text: str) -> None:
        """Take more text; whole sentences are spoken at once."""
        self._buffer += text
        if self._buffer.rstrip().endswith(_SENTENCE_ENDS):
            self.flush()

    def flush(self) -> None:
        """Speak what is there."""
        if self._buffer:
            self._work.put_nowait(len(self._buffer))
            self._buffer = ""

    def finish(self) -> None:
        """Nothing more will come."""
        self.flush()
        self._work.put_nowait(None)

    async def stop(self) -> None:
        """Forget the rest."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await self._task

    async def _speak(self) -> None:
        fault = self._fault
        if fault is not None and fault.silent:
            await asyncio.Event().wait()
        with contextlib.suppress(ConnectionError):  # the reader sees the end too
            while (characters := await self._work.get()) is not None:
                if not self.sent_ms:
                    await asyncio.sleep(self._pace.first_byte_delay_ms / 1000)
                sound = hum(characters * self._pace.character_ms, self._sample_rate)
                for piece, piece_ms in pieces(sound, self._sample_rate):
                    if dies(fault, self.sent_ms):
                        self._die()
                        return
                    self.sent_ms += piece_ms
                    await self._send_audio(self._encoder.encode(piece), piece_ms)
                    await self._pace.take(piece_ms)
            rest = self._encoder.end()
            if rest:
                await self._send_audio(rest, 0)
            await self._send_end()


async def speak_body(
    request: web.Request,
    headers: dict[str, str],
    *,
    bill: Bill,
    row: BillRow,
    pace: Pace,
    sound: bytes,
    sample_rate: int,
    audio_format: str = "pcm",
    fault: Fault | None = None,
    frame: Callable[[bytes], bytes] = bytes,
    made: Callable[[int], None] = lambda _: None,
    last: Callable[[], bytes] = bytes,
) -> web.StreamResponse:
    """Answer a request with sound, as it is made; its row of the bill ends with it.

    Args:
        request: The request.
        headers: Of the response.
        bill: Where the row is.
        row: The request's.
        pace: How fast the sound is made.
        sound: All of it, 16-bit mono PCM.
        sample_rate: Of the sound.
        audio_format: How it is encoded; see `Encoder`.
        fault: What goes wrong.
        frame: Wraps each piece of the encoded sound for the wire.
        made: Told the milliseconds of each piece, before it is sent.
        last: What follows the sound.
    """
    response = web.StreamResponse(headers=headers)
    encoder = Encoder(audio_format, sample_rate)
    sent_ms = 0
    try:
        if fault is not None and fault.silent:
            await asyncio.Event().wait()
        await asyncio.sleep(pace.first_byte_delay_ms / 1000)
        await response.prepare(request)
        for piece, piece_ms in pieces(sound, sample_rate):
            if dies(fault, sent_ms):
                bill.close(row, "died")
                abort(request)
                return response
            sent_ms += piece_ms
            made(piece_ms)
            encoded = encoder.encode(piece)
            if encoded:
                await response.write(frame(encoded))
            await pace.take(piece_ms)
        rest = encoder.end()
        if rest:
            await response.write(frame(rest))
        await response.write(last())
        await response.write_eof()
    except (asyncio.CancelledError, ConnectionError):
        bill.close(row, "cancelled")
        raise
    bill.close(row, "completed")
    return response


def dies(fault: Fault | None, sent_ms: int) -> bool:
    """Whether the provider breaks off here."""
    return fault is not None and fault.dies_after is not None and sent_ms >= fault.dies_after


def abort(request: web.Request) -> None:
    """Break a connection as a process that dies does."""
    if request.transport is not None:
        request.transport.abort()

"""The demo's agent without a room: `python -m examples.demo.roomless_agent PORT NAME TERMS`."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from livekit import rtc
from livekit.agents import UserInputTranscribedEvent
from livekit.agents.utils import http_context
from livekit.agents.voice import CloseEvent, io
from livekit.agents.voice.transcription import TranscriptSynchronizer

from examples.demo.agent import Waiter, leave_notes, open_session
from examples.demo.caller import FRAME_MS, HEARD_SAMPLE_RATE, SAMPLE_RATE
from examples.demo.roomless import AUDIO, TEXT, read_frame, write_frame

_FRAME_BYTES: Final = HEARD_SAMPLE_RATE * FRAME_MS // 1000 * 2


class Ear(io.AudioInput):
    """The caller's sound; ends when the caller hangs up, and then sets `hung_up`."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        super().__init__(label="caller")
        self.hung_up = asyncio.Event()
        self._reader = reader

    async def __anext__(self) -> rtc.AudioFrame:
        try:
            _, audio = await read_frame(self._reader)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.hung_up.set()
            raise StopAsyncIteration from None
        return rtc.AudioFrame(audio, SAMPLE_RATE, 1, len(audio) // 2)


class Mouth(io.AudioOutput):
    """Plays what it is given at the speed of speech, so that it can be interrupted."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        super().__init__(
            label="caller",
            capabilities=io.AudioOutputCapabilities(pause=False),
            sample_rate=HEARD_SAMPLE_RATE,
        )
        self._writer = writer
        self._waiting: deque[bytes] = deque()
        self._rest = b""
        self._played_ms = 0
        self._flushed = False
        self._player: asyncio.Task[None] | None = None

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        """Queue a frame."""
        await super().capture_frame(frame)
        audio = self._rest + bytes(frame.data)
        whole = len(audio) - len(audio) % _FRAME_BYTES
        self._waiting.extend(
            audio[start : start + _FRAME_BYTES] for start in range(0, whole, _FRAME_BYTES)
        )
        self._rest = audio[whole:]
        if self._player is None:
            self._flushed = False
            self._played_ms = 0
            self._player = asyncio.create_task(self._play())

    def flush(self) -> None:
        """What was given is the whole sentence."""
        super().flush()
        self._flushed = True

    def clear_buffer(self) -> None:
        """Fall silent."""
        if self._player is not None:
            self._player.cancel()
            self._end(interrupted=True)

    async def _play(self) -> None:
        self.on_playback_started(created_at=time.time())
        started_at = time.monotonic()
        while self._waiting or not self._flushed:
            if self._waiting:
                write_frame(self._writer, AUDIO, self._waiting.popleft())
                self._played_ms += FRAME_MS
            else:  # the provider is slower than speech
                started_at += FRAME_MS / 1000
            await asyncio.sleep(started_at + self._played_ms / 1000 - time.monotonic())
        self._end(interrupted=False)

    def _end(self, *, interrupted: bool) -> None:
        self._player = None
        self._waiting.clear()
        self._rest = b""
        self.on_playback_finished(playback_position=self._played_ms / 1000, interrupted=interrupted)


class Words(io.TextOutput):
    """Passes on each sentence, as far as it was spoken."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(label="caller", next_in_chain=None)
        self._say = say
        self._text = ""

    async def capture_text(self, text: str) -> None:
        """Take in what is being spoken just now."""
        self._text += text

    def flush(self) -> None:
        """The sentence is over."""
        text, self._text = self._text, ""
        if text:
            self._say(text)


async def take_call(port: int, name: str, terms: str) -> None:
    """Take one call and return when it is over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    def say(by_agent: bool, text: str) -> None:
        line = json.dumps({"by_agent": by_agent, "text": text})
        write_frame(writer, TEXT, line.encode())

    def on_transcribed(event: UserInputTranscribedEvent) -> None:
        if event.is_final:
            say(False, event.transcript)

    closed = asyncio.Event()

    def on_close(_: CloseEvent) -> None:
        closed.set()

    async with http_context.open():
        session = open_session(json.loads(terms))
        leave_notes(session, name=name, job_id=None)
        session.on("user_input_transcribed", on_transcribed)
        session.on("close", on_close)
        ear = Ear(reader)
        spoken = TranscriptSynchronizer(
            next_in_chain_audio=Mouth(writer),
            next_in_chain_text=Words(lambda text: say(True, text)),
        )
        session.input.audio = ear
        session.output.audio = spoken.audio_output
        session.output.transcription = spoken.text_output
        await session.start(agent=Waiter())
        over = [asyncio.create_task(event.wait()) for event in (closed, ear.hung_up)]
        await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
        await session.aclose()
    writer.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(take_call(int(sys.argv[1]), sys.argv[2], sys.argv[3]))

"""A caller without a body: joins a room, speaks in bursts, listens, interrupts, hangs up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from livekit import rtc

_SAMPLE_RATE: Final = 48_000
_FRAME_MS: Final = 20
_LOUD: Final = 300  # root mean square of a frame, of 32767; silence after Opus is below 10
_PAUSE_S: Final = 0.6  # shorter silence is a breath between two words


class NotHeardError(Exception):
    """What the caller waited for did not come."""


@dataclass(frozen=True)
class Line:
    """Something said, as LiveKit transcribed it to the room."""

    by_agent: bool
    text: str


def _speech(seconds: float) -> np.ndarray[Any, np.dtype[np.int16]]:
    """A voice saying nothing: harmonics of 140 Hz, four syllables a second that never fade out."""
    t = np.arange(int(seconds * _SAMPLE_RATE)) / _SAMPLE_RATE
    voice = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 12))
    syllables = 0.55 + 0.45 * np.sin(2 * np.pi * 4 * t)
    return (6_000 * voice * syllables).astype(np.int16)


class Caller:
    """One participant in one room. Made by `Caller.dial`.

    Attributes:
        heard_ms: How much of the agent's audio was louder than silence.
        lines: What was said so far, both sides, in order.
        messages: Payloads of the topic `voicecost`, only from participants of kind AGENT.
    """

    def __init__(self, room: rtc.Room) -> None:
        self.heard_ms = 0
        self.lines: list[Line] = []
        self.messages: list[dict[str, Any]] = []
        self.disconnect_reason: str | None = None
        self._room = room
        self._source = rtc.AudioSource(_SAMPLE_RATE, 1, queue_size_ms=100)
        self._to_say: list[np.ndarray[Any, np.dtype[np.int16]]] = []
        self._has_said = asyncio.Event()
        self._last_loud_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        room.on("track_subscribed", self._on_track)
        room.on("data_received", self._on_data)
        room.on("disconnected", self._on_disconnected)
        room.register_text_stream_handler("lk.transcription", self._on_transcription)

    @classmethod
    @contextlib.asynccontextmanager
    async def dial(cls, url: str, token: str) -> AsyncGenerator[Caller]:
        """Join the token's room with an open microphone; hang up at the end of the block."""
        room = rtc.Room()
        caller = cls(room)
        await room.connect(url, token)
        try:
            track = rtc.LocalAudioTrack.create_audio_track("microphone", caller._source)
            options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
            await room.local_participant.publish_track(track, options)
            caller._run(caller._microphone())
            yield caller
        finally:
            await caller.hang_up()

    async def hang_up(self) -> None:
        """Leave the room; again is no error."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._room.disconnect()

    async def speak(self, seconds: float) -> None:
        """Make voice-like sound for so long, and return when the last of it was sent."""
        samples = _speech(seconds)
        size = _SAMPLE_RATE * _FRAME_MS // 1000
        self._has_said.clear()
        self._to_say.extend(np.array_split(samples, range(size, len(samples), size)))
        await self._has_said.wait()

    @property
    def hears_speech(self) -> bool:
        """Whether the agent speaks right now, breaths between words included."""
        return time.monotonic() - self._last_loud_at < _PAUSE_S

    async def hears_start(self, *, timeout_s: float = 15.0) -> None:
        """Wait until the agent speaks.

        Raises:
            NotHeardError: It stayed silent, or the call ended.
        """
        await self.until(lambda: self.hears_speech, "the agent to speak", timeout_s=timeout_s)

    async def hears_end(self, *, timeout_s: float = 30.0) -> None:
        """Wait until the agent has been silent for longer than a breath.

        Raises:
            NotHeardError: It spoke on, or the call ended.
        """
        await self.until(
            lambda: not self.hears_speech, "the agent to end its sentence", timeout_s=timeout_s
        )

    async def hears_for(self, seconds: float) -> None:
        """Listen until so much more of the agent was heard.

        Raises:
            NotHeardError: It fell silent, or the call ended.
        """
        enough_ms = self.heard_ms + seconds * 1000
        await self.until(lambda: self.heard_ms >= enough_ms, f"{seconds} s of the agent's voice")

    async def disconnected(self, *, timeout_s: float) -> str:
        """Wait until the server ends the call, and return its reason, `ROOM_DELETED` say.

        Raises:
            NotHeardError: It did not.
        """
        deadline = time.monotonic() + timeout_s
        while self.disconnect_reason is None:
            if time.monotonic() > deadline:
                raise NotHeardError(f"waited {timeout_s} s to be disconnected")
            await asyncio.sleep(0.005)
        return self.disconnect_reason

    async def until(
        self, condition: Callable[[], bool], what: str, *, timeout_s: float = 15.0
    ) -> None:
        """Wait for a condition as long as the call lasts.

        Raises:
            NotHeardError: It did not come true in time, or the call ended before.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self.disconnect_reason is not None:
                raise NotHeardError(f"waited for {what}; the call ended: {self.disconnect_reason}")
            if time.monotonic() > deadline:
                raise NotHeardError(f"waited {timeout_s} s for {what}")
            await asyncio.sleep(_FRAME_MS / 1000)

    async def _microphone(self) -> None:
        size = _SAMPLE_RATE * _FRAME_MS // 1000
        silence = np.zeros(size, dtype=np.int16)
        while True:
            if not self._to_say:
                self._has_said.set()
            chunk = self._to_say.pop(0) if self._to_say else silence
            frame = rtc.AudioFrame(chunk.tobytes(), _SAMPLE_RATE, 1, len(chunk))
            await self._source.capture_frame(frame)  # waits while 100 ms are queued

    async def _listen(self, track: rtc.Track) -> None:
        stream = rtc.AudioStream(track, sample_rate=24_000, num_channels=1, frame_size_ms=_FRAME_MS)
        try:
            async for event in stream:
                samples = np.frombuffer(event.frame.data, dtype=np.int16).astype(np.float64)
                if np.sqrt(np.mean(samples * samples)) > _LOUD:
                    self.heard_ms += _FRAME_MS
                    self._last_loud_at = time.monotonic()
        finally:
            await stream.aclose()

    async def _transcribe(self, reader: rtc.TextStreamReader, by_agent: bool) -> None:
        text = await reader.read_all()
        final = (reader.info.attributes or {}).get("lk.transcription_final") == "true"
        if text and (by_agent or final):  # the caller's interim guesses are of no use here
            self.lines.append(Line(by_agent=by_agent, text=text))

    def _on_track(
        self,
        track: rtc.Track,
        publication: rtc.RemoteTrackPublication,
        participant: rtc.RemoteParticipant,
    ) -> None:
        if track.kind == rtc.TrackKind.KIND_AUDIO:
            self._run(self._listen(track))

    def _on_data(self, packet: rtc.DataPacket) -> None:
        # Anyone in the room can send on any topic: only an agent's word counts.
        if (
            packet.topic == "voicecost"
            and packet.participant is not None
            and packet.participant.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT
        ):
            self.messages.append(json.loads(packet.data))

    def _on_transcription(self, reader: rtc.TextStreamReader, identity: str) -> None:
        by_agent = identity != self._room.local_participant.identity
        self._run(self._transcribe(reader, by_agent))

    def _on_disconnected(self, reason: rtc.DisconnectReason.ValueType) -> None:
        self.disconnect_reason = rtc.DisconnectReason.Name(reason)

    def _run(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

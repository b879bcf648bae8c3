"""A caller without a body: speaks in bursts, listens, interrupts, hangs up."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

Samples = np.ndarray[Any, np.dtype[np.int16]]

SAMPLE_RATE: Final = 48_000  # of what the caller says
HEARD_SAMPLE_RATE: Final = 24_000
FRAME_MS: Final = 20
_LOUD: Final = 300  # root mean square of a frame, of 32767; silence after Opus is below 10
_PAUSE_S: Final = 0.9  # shorter silence is a breath between two words


class NotHeardError(Exception):
    """What the caller waited for did not come."""


@dataclass(frozen=True)
class Line:
    """Something said, as it was transcribed."""

    by_agent: bool
    text: str


def _speech(seconds: float) -> Samples:
    """A voice saying nothing: harmonics of 140 Hz, four syllables a second that never fade out."""
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    voice = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 12))
    syllables = 0.55 + 0.45 * np.sin(2 * np.pi * 4 * t)
    return (6_000 * voice * syllables).astype(np.int16)


class Caller(ABC):
    """One side of a call. How sound travels is for its subclasses.

    Attributes:
        heard_ms: How much of the agent's audio was louder than silence.
        lines: What was said so far, both sides, in order.
        disconnect_reason: Why the call ended, `ROOM_DELETED` say; None while it lasts.
        on_line: Called with every new line.
        on_cost: Called with what the call costs so far, in US dollars, when the agent tells it.
    """

    def __init__(self) -> None:
        self.heard_ms = 0
        self.lines: list[Line] = []
        self.disconnect_reason: str | None = None
        self.on_line: Callable[[Line], None] = lambda line: None
        self.on_cost: Callable[[str], None] = lambda usd: None
        self._to_say: list[Samples] = []
        self._has_said = asyncio.Event()
        self._last_loud_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    async def speak(self, seconds: float) -> None:
        """Make voice-like sound for so long, and return when the last of it was sent."""
        samples = _speech(seconds)
        size = SAMPLE_RATE * FRAME_MS // 1000
        self._has_said.clear()
        self._to_say.extend(np.array_split(samples, range(size, len(samples), size)))
        await self._has_said.wait()

    @property
    def connected(self) -> bool:
        """Whether the connection stands, and is not being made again just now."""
        return self.disconnect_reason is None

    @property
    def hears_speech(self) -> bool:
        """Whether the agent speaks right now, breaths between words included."""
        return time.monotonic() - self._last_loud_at < _PAUSE_S

    async def hears_start(self, *, timeout_s: float = 30.0) -> None:
        """Wait until the agent speaks.

        Raises:
            NotHeardError: It stayed silent, or the call ended.
        """
        await self.until(lambda: self.hears_speech, "the agent to speak", timeout_s=timeout_s)

    async def hears_end(self, *, timeout_s: float = 40.0) -> None:
        """Wait until the agent has been silent for longer than a breath, or the call is over.

        Raises:
            NotHeardError: It spoke on.
        """
        await self.until(
            lambda: not self.hears_speech or self.disconnect_reason is not None,
            "the agent to end its sentence",
            timeout_s=timeout_s,
        )

    async def hears_for(self, seconds: float) -> None:
        """Listen until so much more of the agent was heard.

        Raises:
            NotHeardError: It fell silent, or the call ended.
        """
        enough_ms = self.heard_ms + seconds * 1000
        await self.until(lambda: self.heard_ms >= enough_ms, f"{seconds} s of the agent's voice")

    async def disconnected(self, *, timeout_s: float) -> str:
        """Wait until the other side ends the call, and return the reason.

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
        self, condition: Callable[[], bool], what: str, *, timeout_s: float = 30.0
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
            await asyncio.sleep(FRAME_MS / 1000)

    async def hang_up(self) -> None:
        """Leave the call; again is no error."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._leave()

    @abstractmethod
    async def _send(self, chunk: Samples) -> None:
        """Send sound at the speed of speech: returns when there is room for more."""

    @abstractmethod
    async def _leave(self) -> None:
        """End the connection; again is no error."""

    def _hear(self, audio: bytes) -> None:
        """Take in a frame of the agent's sound, 16-bit mono at `HEARD_SAMPLE_RATE`."""
        samples = np.frombuffer(audio, dtype=np.int16).astype(np.float64)
        if np.sqrt(np.mean(samples * samples)) > _LOUD:
            self.heard_ms += len(samples) * 1000 // HEARD_SAMPLE_RATE
            self._last_loud_at = time.monotonic()

    def _note(self, line: Line) -> None:
        """Something was said."""
        self.lines.append(line)
        self.on_line(line)

    async def _microphone(self) -> None:
        """Say what is to be said, and silence in between, until cancelled."""
        silence = np.zeros(SAMPLE_RATE * FRAME_MS // 1000, dtype=np.int16)
        while True:
            if not self._to_say:
                self._has_said.set()
            await self._send(self._to_say.pop(0) if self._to_say else silence)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

"""A microphone and a loudspeaker at the speed of speech, with nobody at them."""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from typing import Final

from livekit import rtc
from livekit.agents.voice import io

SAMPLE_RATE: Final = 16_000


class Microphone(io.AudioInput):
    """Silence, and sound while `speak` lasts, in frames of 10 to 60 ms."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(label="microphone")
        self._chance = chance
        self._due_at = 0.0
        self._loud_samples = 0
        self._quiet = asyncio.Event()
        self.ended = False

    async def speak(self, seconds: float) -> None:
        """Make sound for so long; returns when the last of it was sent."""
        self._quiet.clear()
        self._loud_samples += int(seconds * SAMPLE_RATE)
        await self._quiet.wait()

    async def __anext__(self) -> rtc.AudioFrame:
        if self.ended:
            raise StopAsyncIteration
        now = time.monotonic()
        size = SAMPLE_RATE * self._chance.choice((10, 20, 20, 20, 30, 60)) // 1000
        self._due_at = max(self._due_at, now - 0.1) + size / SAMPLE_RATE
        await asyncio.sleep(self._due_at - now)
        loud = min(size, self._loud_samples)
        self._loud_samples -= loud
        if not self._loud_samples:
            self._quiet.set()
        samples = _SOUND[:loud].tobytes() + bytes(2 * (size - loud))
        return rtc.AudioFrame(samples, SAMPLE_RATE, 1, size)


_SOUND: Final = array("h", (4_000 if at % 40 < 20 else -4_000 for at in range(SAMPLE_RATE)))


class Loudspeaker(io.AudioOutput):
    """Plays at the speed of speech, to nobody."""

    def __init__(self) -> None:
        super().__init__(
            label="loudspeaker",
            capabilities=io.AudioOutputCapabilities(pause=False),
            sample_rate=24_000,
        )
        self._before_s = 0.0
        self._pushed_s = 0.0
        self._began_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def heard_s(self) -> float:
        """How much was played, all in all."""
        return self._before_s + self._position_s()

    @property
    def playing(self) -> bool:
        """Whether something is being played."""
        return self._pushed_s > 0

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        """Queue a frame."""
        await super().capture_frame(frame)
        now = time.monotonic()
        if not self._pushed_s:
            self._began_at = now
            self.on_playback_started(created_at=time.time())
        # After a pause, of a provider that is slower than speech, it goes on from here.
        self._began_at = max(self._began_at, now - self._pushed_s)
        self._pushed_s += frame.duration

    def flush(self) -> None:
        """What was given is the whole sentence."""
        super().flush()
        if self._pushed_s:
            left_s = self._began_at + self._pushed_s - time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(max(0.0, left_s), self._end, False)

    def clear_buffer(self) -> None:
        """Fall silent."""
        if self._pushed_s:
            self._end(True)

    def _position_s(self) -> float:
        return min(self._pushed_s, time.monotonic() - self._began_at) if self._pushed_s else 0.0

    def _end(self, interrupted: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        position_s = self._position_s()
        self._before_s += position_s
        self._pushed_s = 0.0
        self.on_playback_finished(playback_position=position_s, interrupted=interrupted)

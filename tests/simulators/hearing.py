"""What a simulated recogniser makes of sound: how loud it is, and which words that means.

It understands no speech: sound above a loudness is speech, each stretch of it "means" the next
transcript of the script, and past the script's end nothing is recognised. `deepgram_listen` has
its own, with Deepgram's endpointing.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from operator import mul
from typing import Literal

_BLOCK_MS = 10  # loudness is measured over this long
_SPEECH_BLOCKS_MIN = 3  # so long above the threshold is speech; a click is not
_PARTIAL_EVERY_MS = 300
_MS_PER_WORD = 250


@dataclass(frozen=True, slots=True)
class Heard:
    """Something happened in the sound: speech began, goes on with these words, or ended."""

    kind: Literal["began", "partial", "ended"]
    words: list[str]
    from_ms: int
    until_ms: int

    @property
    def text(self) -> str:
        """The words so far."""
        return " ".join(self.words)

    def timed_words(self) -> Iterator[tuple[str, int, int]]:
        """Each word with when it was said, in milliseconds of the stream."""
        span_ms = max(self.until_ms - self.from_ms, 1)
        for index, word in enumerate(self.words):
            yield (
                word,
                self.from_ms + span_ms * index // len(self.words),
                self.from_ms + span_ms * (index + 1) // len(self.words),
            )


class Hearing:
    """Finds speech in 16-bit PCM.

    Args:
        transcripts: What the stretches of speech mean, in order; taken from the left.
        sample_rate: Samples per second of one channel.
        channel_count: Interleaved channels.
        pause_ms: Silence that ends a stretch of speech.
        speech_rms_min: Loudness of speech, root mean square of the samples.
    """

    def __init__(
        self,
        transcripts: deque[str],
        *,
        sample_rate: int,
        channel_count: int = 1,
        pause_ms: int = 300,
        speech_rms_min: int = 300,
    ) -> None:
        self._transcripts = transcripts
        self._pause_ms = pause_ms
        self._speech_rms_min = speech_rms_min
        self._block_size = sample_rate * channel_count * _BLOCK_MS // 1000 * 2
        self._unread = b""
        self._at_ms = 0
        self._loud_blocks = 0
        self._words: list[str] | None = None
        self._from_ms = self._until_ms = self._last_partial_ms = 0

    def hear(self, pcm: bytes) -> Iterator[Heard]:
        """Listen to more sound; gives what happens in it."""
        pcm = self._unread + pcm
        whole = len(pcm) - len(pcm) % self._block_size
        self._unread = pcm[whole:]
        for start in range(0, whole, self._block_size):
            block = array("h", pcm[start : start + self._block_size])
            loud = math.isqrt(sum(map(mul, block, block)) // len(block)) >= self._speech_rms_min
            self._at_ms += _BLOCK_MS
            yield from self._block(loud)

    def finish(self) -> Heard | None:
        """End the speech that goes on, if any."""
        if self._words is None:
            return None
        words, self._words = self._words, None
        return Heard("ended", words, self._from_ms, self._until_ms)

    def _block(self, loud: bool) -> Iterator[Heard]:
        self._loud_blocks = self._loud_blocks + 1 if loud else 0
        if loud:
            self._until_ms = self._at_ms
        if self._words is None:
            if self._loud_blocks >= _SPEECH_BLOCKS_MIN:
                self._words = self._transcripts.popleft().split() if self._transcripts else []
                self._from_ms = self._at_ms - _SPEECH_BLOCKS_MIN * _BLOCK_MS
                self._last_partial_ms = self._from_ms
                yield Heard("began", [], self._from_ms, self._until_ms)
        elif self._at_ms - self._until_ms >= self._pause_ms:
            ended = self.finish()
            assert ended is not None
            yield ended
        elif loud and self._at_ms - self._last_partial_ms >= _PARTIAL_EVERY_MS:
            self._last_partial_ms = self._at_ms
            words = self._words[: 1 + (self._at_ms - self._from_ms) // _MS_PER_WORD]
            yield Heard("partial", words, self._from_ms, self._until_ms)

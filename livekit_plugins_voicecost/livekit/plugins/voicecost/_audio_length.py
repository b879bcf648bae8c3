"""How long received audio is, known as its bytes arrive: nobody waits for a decoder.

Raw PCM, WAV, MP3 and Ogg Opus say it in their bytes. What else there is (AAC, FLAC, WebM, MP4) is
as long as the frames that LiveKit's decoder has made of it, once it is through.
"""

from __future__ import annotations

from typing import Final, Protocol


class AudioLength(Protocol):
    """Milliseconds of audio in the bytes so far."""

    def push(self, data: bytes) -> None:
        """More bytes, cut anywhere."""
        ...

    @property
    def audio_ms(self) -> int:
        """The length of all of it."""
        ...


class PCMLength:
    """Raw 16-bit samples."""

    __slots__ = ("_bytes", "_bytes_per_second")

    def __init__(self, sample_rate: int, channel_count: int) -> None:
        self._bytes = 0
        self._bytes_per_second = 2 * sample_rate * channel_count

    def push(self, data: bytes) -> None:
        """More samples."""
        self._bytes += len(data)

    @property
    def audio_ms(self) -> int:
        """The length of all of it."""
        return self._bytes * 1000 // self._bytes_per_second


class WAVLength:
    """RIFF files, one after the other; a file whose size is not known yet goes to the end.

    http://soundfile.sapp.org/doc/WaveFormat/
    """

    __slots__ = ("_bytes", "_bytes_per_second", "_head", "_in_data")

    def __init__(self) -> None:
        self._head = b""
        self._in_data = False
        self._bytes_per_second = 0  # the same for all files of a stream
        self._bytes = 0

    def push(self, data: bytes) -> None:
        """More bytes of a file."""
        if self._in_data and data.startswith(b"RIFF"):  # files are pushed each by itself
            self._in_data = False
        if not self._in_data:
            self._head += data
            data = self._parse()
        if self._in_data:
            self._bytes += len(data)

    def _parse(self) -> bytes:
        """Go through the chunks up to the samples; returns those that are there."""
        head, at = self._head, 12
        while len(head) >= at + 8:
            size = int.from_bytes(head[at + 4 : at + 8], "little")
            if head[at : at + 4] == b"data":
                self._in_data, self._head = True, b""
                return head[at + 8 :]
            if head[at : at + 4] == b"fmt " and len(head) >= at + 20:
                self._bytes_per_second = int.from_bytes(head[at + 16 : at + 20], "little")
            at += 8 + size + size % 2
        return b""

    @property
    def audio_ms(self) -> int:
        """The length of all of it."""
        return self._bytes * 1000 // self._bytes_per_second if self._bytes_per_second else 0


_MP3_BITRATES: Final = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),  # MPEG 1, kbit/s
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),  # MPEG 2 and 2.5
)
_MP3_RATES: Final = {3: (44_100, 48_000, 32_000, 0), 2: (22_050, 24_000, 16_000, 0),
                     0: (11_025, 12_000, 8_000, 0)}  # fmt: skip


class MP3Length:
    """MPEG layer III frames, each of which says how long it is; tags between them are skipped.

    http://www.mp3-tech.org/programmer/frame_header.html
    """

    __slots__ = ("_microseconds", "_rest", "_skip")

    def __init__(self) -> None:
        self._rest = b""
        self._skip = 0  # bytes of the running frame or tag that have not come yet
        self._microseconds = 0

    def push(self, data: bytes) -> None:
        """More bytes of frames."""
        data = self._rest + data
        at = self._skip
        while at + 10 <= len(data):
            if data[at : at + 3] == b"ID3":
                size = 0
                for byte in data[at + 6 : at + 10]:
                    size = size << 7 | byte & 0x7F
                at += 10 + size
                continue
            size, microseconds = _mp3_frame(data[at], data[at + 1], data[at + 2])
            self._microseconds += microseconds
            at = at + size if size else _next(data, b"\xff", at + 1)
        self._skip = max(0, at - len(data))
        self._rest = data[at:]

    @property
    def audio_ms(self) -> int:
        """The length of all of it."""
        return self._microseconds // 1000


def _mp3_frame(first: int, second: int, third: int) -> tuple[int, int]:
    """Bytes and microseconds of the frame that begins so; (0, 0): none does."""
    version = second >> 3 & 3
    rates = _MP3_RATES.get(version)
    if first != 0xFF or second & 0xE6 != 0xE2 or rates is None:
        return 0, 0
    kilobits, rate = _MP3_BITRATES[version != 3][third >> 4], rates[third >> 2 & 3]
    if not kilobits or not rate:
        return 0, 0
    samples = 1152 if version == 3 else 576
    return samples // 8 * kilobits * 1000 // rate + (third >> 1 & 1), samples * 1_000_000 // rate


def _next(data: bytes, mark: bytes, at: int) -> int:
    """Where a frame may begin from here on; its mark may be cut off at the end."""
    found = data.find(mark, at)
    return found if found >= 0 else max(at, len(data) - len(mark) + 1)


class OpusLength:
    """Ogg pages, each of which says how many samples of 48 kHz there are up to its end.

    https://www.rfc-editor.org/rfc/rfc7845
    """

    __slots__ = ("_before", "_file", "_pre_skip", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._before = 0  # samples of the files before this one
        self._file = 0
        self._pre_skip = 0

    def push(self, data: bytes) -> None:
        """More bytes of pages."""
        data, at = self._rest + data, 0
        while len(data) - at >= 27:
            if data[at : at + 4] != b"OggS":
                at = _next(data, b"OggS", at + 1)
                continue
            segments = at + 27
            body = segments + data[at + 26]
            if len(data) < body or len(data) < body + sum(data[segments:body]):
                break
            if data[body : body + 8] == b"OpusHead":
                self._before += self._file
                self._file = 0
                self._pre_skip = int.from_bytes(data[body + 10 : body + 12], "little")
            position = int.from_bytes(data[at + 6 : at + 14], "little", signed=True)
            if position > self._pre_skip:
                self._file = position - self._pre_skip
            at = body + sum(data[segments:body])
        self._rest = data[at:]

    @property
    def audio_ms(self) -> int:
        """The length of all of it."""
        return (self._before + self._file) // 48


def length_of(mime_type: str, sample_rate: int, channel_count: int) -> AudioLength | None:
    """What measures audio of this type; None where only its decoder can tell."""
    kind = mime_type.lower().partition(";")[0].strip()
    if kind.startswith(("audio/pcm", "audio/raw")):
        return PCMLength(sample_rate, channel_count)
    if kind in ("audio/mpeg", "audio/mp3", "audio/x-mpeg"):
        return MP3Length()
    if kind in ("audio/wav", "audio/wave", "audio/x-wav"):
        return WAVLength()
    if kind in ("audio/opus", "audio/ogg"):
        return OpusLength()
    return None

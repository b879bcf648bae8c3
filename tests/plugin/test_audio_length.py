"""How long audio is, from its bytes: however a network cuts them, and whatever is between."""

from __future__ import annotations

import random

import pytest

from livekit.plugins.voicecost._audio_length import length_of
from tests.simulators.speech import Encoder, hum


def encoded(audio_format: str, sample_rate: int, duration_ms: int) -> bytes:
    encoder = Encoder(audio_format, sample_rate)
    return encoder.encode(hum(duration_ms, sample_rate)) + encoder.end()


@pytest.mark.parametrize(
    ("mime_type", "audio_format", "sample_rate", "frame_ms"),
    [
        pytest.param("audio/pcm", "pcm", 24_000, 0, id="raw"),
        pytest.param("audio/mpeg", "mp3", 24_000, 24, id="MPEG 2"),
        pytest.param("audio/mp3", "mp3", 44_100, 27, id="MPEG 1"),
        pytest.param("audio/mpeg", "mp3", 8_000, 72, id="MPEG 2.5"),
        pytest.param("audio/wav; codecs=1", "wav", 16_000, 0, id="RIFF"),
        pytest.param("audio/ogg", "opus", 48_000, 1, id="Ogg Opus"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_bytes_cut_anywhere(
    mime_type: str, audio_format: str, sample_rate: int, frame_ms: int, seed: int
) -> None:
    data = encoded(audio_format, sample_rate, 2_500)
    length = length_of(mime_type, sample_rate, 1)
    assert length is not None
    seeded, at = random.Random(seed), 0
    while at < len(data):
        size = seeded.choice((1, 2, 9, 100, 4_000))
        length.push(data[at : at + size])
        at += size
    assert -1 <= length.audio_ms - 2_500 <= 3 * frame_ms


def test_files_one_after_the_other_add_up() -> None:
    for mime_type, audio_format, rate in (
        ("audio/wav", "wav", 24_000),
        ("audio/opus", "opus", 48_000),
    ):
        length = length_of(mime_type, rate, 1)
        assert length is not None
        for duration_ms in (700, 1_300):
            length.push(encoded(audio_format, rate, duration_ms))
        assert 1_999 <= length.audio_ms <= 2_001


def test_tags_and_rubbish_are_not_sound() -> None:
    length = length_of("audio/mpeg", 24_000, 1)
    assert length is not None
    tag = b"ID3\x04\x00\x00\x00\x00\x02\x00" + b"\xff\xfb" * 128  # looks like frames inside
    length.push(tag[:5])
    length.push(tag[5:])
    length.push(b"\x00\x01rubbish")
    assert length.audio_ms == 0
    length.push(encoded("mp3", 24_000, 1_000))
    assert 1_000 <= length.audio_ms <= 1_072


def test_what_only_a_decoder_can_measure() -> None:
    assert length_of("audio/flac", 24_000, 1) is None
    assert length_of("audio/webm; codecs=opus", 48_000, 1) is None


def test_rubbish_before_a_page_is_skipped() -> None:
    length = length_of("audio/ogg", 48_000, 1)
    assert length is not None
    length.push(b"rubbish " * 10 + b"Og")
    length.push(b"x" + encoded("opus", 48_000, 1_000))
    assert 999 <= length.audio_ms <= 1_001

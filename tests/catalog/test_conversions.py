"""Where a provider bills by what nobody counted, its rule of thumb stands in, and is said to."""

from __future__ import annotations

import pytest

from voicecost_catalog import open_price_book
from voicecost_ledger.records import LegAttributes, Modality

NOW_UNIX_MS = 1_795_305_600_000  # 2026-11-22
BOOK = open_price_book()
RESEMBLE = LegAttributes(Modality.TTS, "Resemble", "chatterbox")
WHISPER_4O = LegAttributes(Modality.STT, "api.openai.com", "gpt-4o-transcribe", streaming=False)
GEMINI = LegAttributes(Modality.TTS, "google", "gemini-2.5-flash-tts")
SONIOX = LegAttributes(Modality.STT, "Soniox", "stt-rt-v3")
NOVA = LegAttributes(Modality.STT, "Deepgram", "nova-3")


@pytest.mark.parametrize(
    ("leg", "usage", "amount_nano_usd", "converts"),
    [
        pytest.param(RESEMBLE, {"characters": 450}, 18_000_000, True, id="80 ms a character"),
        pytest.param(
            RESEMBLE, {"characters": 450, "audio_ms": 36_000}, 18_000_000, False, id="heard"
        ),
        pytest.param(RESEMBLE, {"characters": 0}, 0, False, id="nothing said"),
        pytest.param(WHISPER_4O, {"audio_ms": 60_000}, 6_000_000, True, id="$0.006 a minute"),
        pytest.param(
            WHISPER_4O,
            {"audio_ms": 60_000, "input_tokens": 600, "output_tokens": 100},
            4_600_000,
            False,
            id="tokens reported",
        ),
        pytest.param(
            GEMINI, {"characters": 900, "audio_ms": 60_000}, 15_112_500, True, id="25 tokens/s"
        ),
        pytest.param(GEMINI, {"characters": 900, "audio_ms": 0}, 112_500, True, id="none heard"),
        pytest.param(GEMINI, {"characters": 900}, None, True, id="nobody knows what was heard"),
        pytest.param(SONIOX, {"audio_ms": 3_600_000}, 120_000_000, True, id="30,000 tokens/h"),
        pytest.param(NOVA, {"audio_ms": 60_000}, 4_800_000, False, id="counted"),
    ],
)
def test_an_amount_says_whether_it_was_converted(
    leg: LegAttributes, usage: dict[str, int], amount_nano_usd: int | None, converts: bool
) -> None:
    price = BOOK.price_for(leg, NOW_UNIX_MS)
    assert price is not None
    assert (price.rate(usage), price.converts(usage)) == (amount_nano_usd, converts)

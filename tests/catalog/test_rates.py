"""The arithmetic, in worked examples: what a usage costs at a price."""

from __future__ import annotations

import pytest

from tests.catalog.example_prices import (
    AURA_2,
    AZURE,
    BY_THE_MINUTE,
    FIFTEEN_SECONDS,
    FISH,
    FREE,
    GEMINI_LIVE,
    GEMINI_TTS,
    GROQ,
    GROQ_STEREO,
    INFERENCE,
    LONG_CONTEXT,
    MINI,
    MINI_TTS,
    NOVA_2,
    NOVA_3,
    NOVA_3_STEREO,
    POLLY,
    REALTIME,
    RESEMBLE,
    SIX_SECONDS,
    SOCKET,
    SONIOX,
    TEXT,
    TRANSCRIBE,
    UNCACHED,
    price,
)
from voicecost_catalog import ModelPrice, Rate, Rule


@pytest.mark.parametrize(
    ("of", "usage", "amount_nano_usd"),
    [
        pytest.param(NOVA_3, {"audio_ms": 60_000}, 4_800_000, id="a minute of audio: $0.0048"),
        pytest.param(NOVA_3, {"audio_ms": 1}, 80, id="a millisecond of it"),
        pytest.param(NOVA_3_STEREO, {"audio_ms": 60_000}, 9_600_000, id="two channels: twice"),
        pytest.param(NOVA_2, {"audio_ms": 60_000}, 5_833_333, id="$0.35 an hour, one minute"),
        pytest.param(NOVA_2, {"audio_ms": 18}, 1_750, id="18 ms at $0.35 an hour: exact"),
        pytest.param(NOVA_2, {"audio_ms": 36 * 3}, 10_500, id="no step, no minimum"),
        pytest.param(AURA_2, {"characters": 1_000}, 30_000_000, id="1,000 characters: $0.030"),
        pytest.param(AURA_2, {"characters": 17}, 510_000, id="by the single character"),
        pytest.param(
            AURA_2, {"characters": 17, "utf8_bytes": 40, "audio_ms": 900}, 510_000,
            id="what is not billed beside it costs nothing",
        ),
        pytest.param(
            MINI, {"input_tokens": 1_000, "cached_input_tokens": 200, "output_tokens": 50}, 165_000,
            id="cached tokens are a part of the input: 800 x 150 + 200 x 75 + 50 x 600",
        ),
        pytest.param(MINI, {"input_tokens": 1_000}, 150_000, id="a prompt without an answer yet"),
        pytest.param(
            MINI, {"input_tokens": 10, "prompt_characters": 40, "completion_chunks": 9}, 1_500,
            id="raw counts are never priced",
        ),
        pytest.param(
            UNCACHED, {"input_tokens": 1_000, "cached_input_tokens": 400}, 2_500_000,
            id="no rate for cached input: it costs what any input costs",
        ),
        pytest.param(
            LONG_CONTEXT, {"input_tokens": 200_000, "output_tokens": 1_000}, 615_000_000,
            id="at the edge of a context tier: the base rates",
        ),
        pytest.param(
            LONG_CONTEXT, {"input_tokens": 200_001, "output_tokens": 1_000}, 1_222_506_000,
            id="one token more: the tier's rates for all of it",
        ),
        pytest.param(FREE, {"characters": 10**6}, 0, id="free is a known zero"),
        pytest.param(NOVA_3, {}, 0, id="nothing used yet"),
        pytest.param(NOVA_3, {"connected_ms": 5_000}, 0, id="an open socket sent nothing yet"),
        pytest.param(AURA_2, {"audio_ms": 900}, None, id="speech whose characters nobody counted"),
        pytest.param(FREE, {"audio_ms": 900}, None, id="free of what, is not known either"),
        pytest.param(MINI, {"prompt_characters": 40}, None, id="a prompt nobody counted in tokens"),
        pytest.param(MINI, {"output_tokens": 9}, None, id="an answer to no prompt"),
        pytest.param(
            MINI, {"input_tokens": 5, "cached_input_tokens": 6}, None,
            id="more cached than there was",
        ),
        # Time: minimum a request, begun steps, the open socket
        pytest.param(GROQ, {"audio_ms": 1}, 10_000_000, id="a millisecond of ten seconds"),
        pytest.param(GROQ, {"audio_ms": 10_000}, 10_000_000, id="just the minimum"),
        pytest.param(GROQ, {"audio_ms": 10_001}, 10_001_000, id="above the minimum, no step"),
        pytest.param(GROQ, {"audio_ms": 0}, 0, id="no minimum for a refused request"),
        pytest.param(GROQ, {}, 0, id="nor for one that was not sent yet"),
        pytest.param(GROQ, {"characters": 5}, None, id="a recording nobody measured"),
        pytest.param(GROQ_STEREO, {"audio_ms": 1}, 20_000_000, id="a minimum for each channel"),
        pytest.param(BY_THE_MINUTE, {"audio_ms": 1}, 60_000_000, id="60/60: 1 ms is a minute"),
        pytest.param(BY_THE_MINUTE, {"audio_ms": 60_000}, 60_000_000, id="60/60: a whole one"),
        pytest.param(BY_THE_MINUTE, {"audio_ms": 60_001}, 120_000_000, id="60/60: 70 s are 2 min"),
        pytest.param(SIX_SECONDS, {"audio_ms": 6_001}, 12_000_000, id="6/6"),
        pytest.param(FIFTEEN_SECONDS, {"audio_ms": 31_000}, 45_000_000, id="per 15 s"),
        pytest.param(
            SOCKET, {"audio_ms": 9_000, "connected_ms": 60_000}, 60_000_000,
            id="an open socket costs in silence too",
        ),
        pytest.param(SOCKET, {"connected_ms": 0}, 0, id="not connected yet"),
        pytest.param(SOCKET, {"audio_ms": 9_000}, None, id="nobody saw when it was opened"),
        pytest.param(INFERENCE, {"connected_ms": 40}, 1_000_000, id="at least a second"),
        pytest.param(INFERENCE, {"connected_ms": 1_001}, 2_000_000, id="a begun second is whole"),
        # Text: what a character is
        pytest.param(AZURE, TEXT, 16_000, id="six of ten characters count twice"),
        pytest.param(AZURE, {"characters": 10}, None, id="nobody counted which ones are wide"),
        pytest.param(AZURE, {"characters": 0}, 0, id="no text, nothing to be wide"),
        pytest.param(
            AZURE, {"characters": 1, "double_width_characters": 2}, None, id="more wide than all"
        ),
        pytest.param(POLLY, TEXT, 7_000, id="three of ten characters are tags"),
        pytest.param(POLLY, {"characters": 10}, None, id="nobody counted the tags"),
        pytest.param(FISH, TEXT, 330, id="by the byte"),
        pytest.param(FISH, {"characters": 10}, None, id="nobody counted the bytes"),
        # Audio generated, and what stands in for it
        pytest.param(RESEMBLE, {"characters": 25, "audio_ms": 900}, 900_000, id="by the second"),
        pytest.param(RESEMBLE, {"characters": 25}, 2_000_000, id="by the character until it comes"),
        # Tokens of speech
        pytest.param(
            TRANSCRIBE, {"input_tokens": 600, "output_tokens": 40, "audio_ms": 60_000}, 4_000_000,
            id="what a recognizer is given is audio: 600 x 6 + 40 x 10",
        ),
        pytest.param(
            TRANSCRIBE, {"input_tokens": 600, "input_audio_tokens": 500, "output_tokens": 40},
            3_650_000, id="but for a prompt: 100 x 2.5 + 500 x 6 + 40 x 10",
        ),
        pytest.param(TRANSCRIBE, {"input_tokens": 600}, 3_600_000, id="nothing was said"),
        pytest.param(
            TRANSCRIBE, {"audio_ms": 60_000}, 6_000_000,
            id="only the time is known: OpenAI's estimate of $0.006 a minute",
        ),
        pytest.param(TRANSCRIBE, {"characters": 4}, None, id="not even the time is known"),
        pytest.param(TRANSCRIBE, {"connected_ms": 4}, 0, id="nothing sent yet"),
        pytest.param(
            TRANSCRIBE, {"input_tokens": 5, "input_audio_tokens": 6}, None,
            id="more audio than input",
        ),
        pytest.param(
            MINI_TTS, {"input_tokens": 50, "output_tokens": 1_000, "audio_ms": 50_000}, 12_030_000,
            id="what a synthesizer says is audio",
        ),
        pytest.param(MINI_TTS, {**TEXT, "audio_ms": 60_000}, 15_000_000, id="$0.015 a minute"),
        pytest.param(
            MINI_TTS, {"input_tokens": 50, "audio_ms": 60_000}, None,
            id="it spoke, in a number of tokens nobody counted",
        ),
        pytest.param(
            SONIOX, {"audio_ms": 3_600_000}, 120_000_000, id="Soniox: about $0.12 an hour"
        ),
        pytest.param(
            SONIOX, {"audio_ms": 3_600_000, "output_tokens": 10_000}, 100_000_000,
            id="what was counted comes before what is derived",
        ),
        pytest.param(GEMINI_LIVE, {"audio_ms": 60_000}, None, id="half of a price is no price"),
        pytest.param(
            GEMINI_LIVE, {"audio_ms": 60_000, "output_tokens": 200}, 9_450_000,
            id="25 tokens a second x 3.5 + 200 x 21",
        ),
        pytest.param(
            GEMINI_TTS, {**TEXT, "audio_ms": 60_000}, 15_001_250,
            id="25 tokens a second x 10, and 2.5 tokens of text x 0.5",
        ),
        pytest.param(GEMINI_TTS, {**TEXT, "audio_ms": 0}, 1_250, id="text sent, no audio yet"),
        pytest.param(GEMINI_TTS, TEXT, None, id="text sent, and nobody knows what came of it"),
        pytest.param(
            REALTIME,
            {
                "input_tokens": 300, "cached_input_tokens": 50, "input_audio_tokens": 200,
                "output_tokens": 90, "output_audio_tokens": 80,
            },
            50 * 4_000 + 50 * 400 + 200 * 32_000 + 10 * 16_000 + 80 * 64_000,
            id="cached and audio tokens are parts of the input",
        ),
        pytest.param(
            REALTIME, {"input_tokens": 300, "cached_input_tokens": 101, "input_audio_tokens": 200},
            None, id="cached audio has no price here",
        ),
    ],
)  # fmt: skip
def test_worked_examples(
    of: ModelPrice, usage: dict[str, int], amount_nano_usd: int | None
) -> None:
    assert of.rate(usage) == amount_nano_usd


@pytest.mark.parametrize(
    ("half_nano_usd", "amount"), [(1, 0), (3, 2), (5, 2), (7, 4)], ids=lambda v: str(v)
)
def test_half_a_nano_dollar_goes_to_the_even_one(half_nano_usd: int, amount: int) -> None:
    halves = price(Rule.CHARACTERS, {"characters": Rate(nano_usd=1, per=2)})
    assert halves.rate({"characters": half_nano_usd}) == amount


def test_three_parts_of_a_request_are_rounded_once_together() -> None:
    """Rounded apart, 0.5 + 0.5 would come to 0."""
    half = Rate(nano_usd=1, per=2)
    of = price(Rule.TOKENS, {"input_tokens": half, "output_tokens": half})
    assert of.rate({"input_tokens": 1, "output_tokens": 1}) == 1


@pytest.mark.parametrize("quantity", [-1, 1.5, True], ids=repr)
def test_a_quantity_that_is_no_whole_count_is_refused(quantity: int) -> None:
    for of, unit in ((NOVA_3, "audio_ms"), (AURA_2, "characters"), (MINI, "output_tokens")):
        with pytest.raises(ValueError, match=f"cannot price {unit}={quantity}"):
            of.rate({"input_tokens": 1, unit: quantity})

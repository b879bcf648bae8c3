"""Worked examples from the price lists: what a page says, and what a leg then costs.

Each stands below the page that its rates were read on, and the page's day ("" where it has none),
as the price row says too. Numbers for rooms and phones are in `test_rooms_and_phones.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from voicecost_catalog import open_price_book
from voicecost_ledger.records import LegAttributes, Modality

NOW_UNIX_MS = 1_795_305_600_000  # 2026-11-22
BOOK = open_price_book()
OPENAI = "api.openai.com"
GOOGLE = "Google Cloud Platform"


class Page(NamedTuple):
    """Where a price was read."""

    url: str
    day: str
    plan: tuple[str, str] | None = None  # of which provider, where it is not the usual one


Example = tuple[str, LegAttributes, dict[str, int], int]
"""What it shows, a leg, what it used, and nano-USD."""


def stt(model: str, provider: str = "Deepgram", **kwargs: Any) -> LegAttributes:
    return LegAttributes(modality=Modality.STT, provider=provider, model=model, **kwargs)


def tts(model: str, provider: str = "Deepgram", **kwargs: Any) -> LegAttributes:
    return LegAttributes(modality=Modality.TTS, provider=provider, model=model, **kwargs)


def llm(model: str, provider: str, **kwargs: Any) -> LegAttributes:
    return LegAttributes(modality=Modality.LLM, provider=provider, model=model, **kwargs)


def realtime(model: str, provider: str, **kwargs: Any) -> LegAttributes:
    return LegAttributes(modality=Modality.REALTIME, provider=provider, model=model, **kwargs)


MINUTE = {"audio_ms": 60_000, "connected_ms": 61_000}
HOUR = {"audio_ms": 3_600_000}
THOUSAND = {"characters": 1_000, "utf8_bytes": 1_010, "audio_ms": 55_000}

OURS: dict[Page, list[Example]] = {
    Page("https://deepgram.com/pricing", "2026-08-20"): [
        ("nova-3 English", stt("nova-3", language="en-US"), MINUTE, 4_800_000),
        ("nova-3, no language: theirs is English", stt("nova-3"), MINUTE, 4_800_000),
        ("nova-3 multilingual", stt("nova-3", language="multi"), MINUTE, 5_800_000),
        ("nova-3 the same by name", stt("nova-3-multilingual"), MINUTE, 5_800_000),
        ("two channels", stt("nova-3", language="de", channel_count=2), MINUTE, 9_600_000),
        ("nova-3 pre-recorded", stt("nova-3", streaming=False), MINUTE, 4_300_000),
        ("nova-2 any flavour", stt("nova-2-phonecall"), MINUTE, 5_833_333),
        ("enhanced", stt("enhanced-general"), MINUTE, 16_500_000),
        ("base by its use", stt("phonecall"), MINUTE, 14_500_000),
        ("flux English", stt("flux-general-en"), MINUTE, 6_500_000),
        ("two channels of 61.5 s, multilingual",
         stt("nova-3", language="multi", channel_count=2), {"audio_ms": 61_500}, 11_890_000),
    ],
    Page("https://deepgram.com/pricing", "2026-11-04"): [
        ("flux multilingual", stt("flux-general-multi"), MINUTE, 7_800_000),
    ],
    Page("https://deepgram.com/pricing", "2026-05-27"): [
        ("aura-2", tts("aura-2-andromeda-en"), THOUSAND, 30_000_000),
        ("aura-2 in one piece", tts("aura-2-thalia-en", streaming=False), THOUSAND, 30_000_000),
        ("aura-1", tts("aura-asteria-en"), THOUSAND, 15_000_000),
    ],
    Page("https://docs.cartesia.ai/pricing", "2026-08-21"): [
        ("ink-2: 3 credits", stt("ink-2", "Cartesia"), MINUTE, 9_000_000),
        ("ink-whisper", stt("ink-whisper", "Cartesia"), MINUTE, 3_000_000),
    ],
    Page("https://docs.cartesia.ai/pricing", "2026-08-21", plan=("cartesia", "scale")): [
        ("ink-2 on Scale, two channels: 2 x 180 credits x $0.0000374",
         stt("ink-2", "Cartesia", channel_count=2), MINUTE, 13_464_000),
    ],
    Page("https://docs.cartesia.ai/pricing", "2026-08-21", plan=("cartesia", "startup")): [
        ("ink-whisper on Startup: 60 credits x $0.0000392",
         stt("ink-whisper", "Cartesia"), MINUTE, 2_352_000),
    ],
    Page("https://cartesia.ai/pricing", "2026-08-21"): [
        ("sonic", tts("sonic-3", "Cartesia"), THOUSAND, 50_000_000),
    ],
    Page("https://cartesia.ai/pricing", "2026-08-21", plan=("cartesia", "startup")): [
        ("sonic on Startup: 1,000 credits x $0.0000392",
         tts("sonic-3", "Cartesia"), THOUSAND, 39_200_000),
    ],
    Page("https://www.assemblyai.com/pricing", "2026-10-07"): [
        ("assemblyai: $0.45 an hour of open socket, idle or not",
         stt("universal-3-6-pro", "AssemblyAI"), MINUTE, 7_625_000),
        ("assemblyai universal-2: $0.15 an hour of audio",
         stt("universal-2", "AssemblyAI", streaming=False), MINUTE, 2_500_000),
    ],
    Page("https://www.assemblyai.com/pricing", "2026-08-20"): [
        ("assemblyai: a socket left open closes after 3 hours",
         stt("universal-streaming", "AssemblyAI"), {"connected_ms": 10_800_000}, 450_000_000),
    ],
    Page("https://console.groq.com/docs/model/whisper-large-v3", "2026-11-10"): [
        ("groq: 2 s are billed as 10",
         stt("whisper-large-v3", "api.groq.com"), {"audio_ms": 2_000}, 308_333),
        ("groq: above the minimum by the millisecond",
         stt("whisper-large-v3", "api.groq.com"), {"audio_ms": 10_500}, 323_750),
    ],
    Page("https://console.groq.com/docs/model/whisper-large-v3-turbo", "2026-11-10"): [
        ("groq turbo: $0.04 an hour",
         stt("whisper-large-v3-turbo", "api.groq.com"), HOUR, 40_000_000),
    ],
    Page("https://console.groq.com/docs/models", "2026-11-10"): [
        ("groq orpheus: $22 a million characters",
         tts("canopylabs/orpheus-v1-english", "Groq"), THOUSAND, 22_000_000),
    ],
    Page("https://cloud.google.com/speech-to-text/pricing", "2026-08-21"): [
        ("google: rounded up to a second, $0.016 a minute",
         stt("chirp_3", GOOGLE), {"audio_ms": 59_001}, 16_000_000),
        ("google: 59.001 s of two channels are 60 s of each",
         stt("chirp_3", GOOGLE, channel_count=2), {"audio_ms": 59_001}, 32_000_000),
    ],
    Page("https://cloud.google.com/text-to-speech/pricing", "2026-08-21"): [
        ("google chirp 3: $30 a million characters", tts("Chirp3", GOOGLE), THOUSAND, 30_000_000),
        ("google studio voice: $160 a million",
         tts("Chirp3", GOOGLE, voice="en-US-Studio-O"), THOUSAND, 160_000_000),
    ],
    Page("https://ai.google.dev/gemini-api/docs/pricing", "2026-11-12"): [
        ("gemini: 1,500 audio tokens a minute x $10, 225 text tokens x $0.50",
         tts("gemini-2.5-flash-tts", "Gemini"),
         {"characters": 900, "audio_ms": 60_000}, 15_112_500),
        ("gemini: what was counted comes first",
         tts("gemini-2.5-flash-tts", "Gemini"),
         {"characters": 900, "audio_ms": 60_000, "input_tokens": 200, "output_tokens": 1_500},
         15_100_000),
    ],
    Page(
        "https://azure.microsoft.com/en-us/pricing/details/cognitive-services/speech-services/",
        "2026-08-21",
    ): [
        ("azure: $15 a million, Chinese characters twice",
         tts("eastus:zh-CN-XiaoxiaoNeural", "Azure TTS"),
         {"characters": 1_000, "double_width_characters": 900}, 28_500_000),
        ("azure: $1 an hour", stt("unknown", "Azure STT"), HOUR, 1_000_000_000),
    ],
    Page(
        "https://azure.microsoft.com/en-us/pricing/details/cognitive-services/speech-services/",
        "2026-05-19",
    ): [
        ("azure HD voice",
         tts("eastus:en-US-Ava:DragonHDLatestNeural", "Azure TTS"),
         {"characters": 1_000, "double_width_characters": 0}, 22_000_000),
        ("azure HD voice: 1,000 characters of which 400 are Chinese are 1,400",
         tts("eastus:zh-CN-Xiaochen:DragonHDLatestNeural", "Azure TTS"),
         {"characters": 1_000, "double_width_characters": 400}, 30_800_000),
    ],
    Page("https://aws.amazon.com/polly/pricing/", "2026-10-07"): [
        ("polly: $30 a million, tags are free",
         tts("generative", "Amazon Polly"),
         {"characters": 1_015, "markup_characters": 15}, 30_000_000),
    ],
    Page("https://aws.amazon.com/transcribe/pricing/", "2026-08-21"): [
        ("transcribe: two channels are billed once",
         stt("unknown", "Amazon Transcribe", channel_count=2), MINUTE, 10_000_000),
    ],
    Page("https://fish.audio", "2026-09-23"): [
        ("fish audio: $15 a million bytes, Chinese thrice",
         tts("s1", "FishAudio"), {"characters": 1_000, "utf8_bytes": 3_000}, 45_000_000),
    ],
    Page("https://www.resemble.ai/pricing", "2026-05-26"): [
        ("resemble: $0.0005 a second of speech",
         tts("chatterbox", "Resemble"), {"characters": 450, "audio_ms": 30_000}, 15_000_000),
        ("resemble: 450 characters at Arkenos' rate",
         tts("chatterbox", "Resemble"), {"characters": 450}, 18_000_000),
    ],
    Page("https://elevenlabs.io/pricing/api", "2026-08-21"): [
        ("elevenlabs: $0.39 an hour", stt("scribe_v2_realtime", "ElevenLabs"), HOUR, 390_000_000),
    ],
    Page("https://elevenlabs.io/pricing/api", "2026-11-12"): [
        ("elevenlabs flash: $0.04 a thousand characters",
         tts("eleven_flash_v2_5", "ElevenLabs"), THOUSAND, 40_000_000),
        ("LiveKit Inference without a rate of its own: the vendor's",
         tts("elevenlabs/eleven_flash_v2_5", "livekit"), THOUSAND, 40_000_000),
    ],
    Page("https://developers.openai.com/api/docs/models/whisper-1", "2026-11-10"): [
        ("whisper-1", stt("whisper-1", OPENAI), MINUTE, 6_000_000),
    ],
    Page("https://developers.openai.com/api/docs/pricing", "2026-08-20"): [
        ("gpt-4o-transcribe: OpenAI's estimate of $0.006 a minute",
         stt("gpt-4o-transcribe", OPENAI), MINUTE, 6_000_000),
    ],
    Page("https://developers.openai.com/api/docs/pricing", "2026-11-10"): [
        ("gpt-4o-mini-transcribe: 600 x $3 + 100 x $5 a million",
         stt("gpt-4o-mini-transcribe", OPENAI),
         {**MINUTE, "input_tokens": 600, "output_tokens": 100}, 2_300_000),
        ("gpt-4o-transcribe: 600 audio x $6, 100 of a prompt x $2.50, 100 said x $10",
         stt("gpt-4o-transcribe", OPENAI),
         {"input_tokens": 700, "input_audio_tokens": 600, "output_tokens": 100}, 4_850_000),
    ],
    Page("https://developers.openai.com/api/docs/models/tts-1-hd", "2026-11-10"): [
        ("tts-1-hd", tts("tts-1-hd", OPENAI), THOUSAND, 30_000_000),
    ],
    Page("https://developers.openai.com/api/docs/models/gpt-4o-mini-tts", "2026-11-12"): [
        ("gpt-4o-mini-tts: 200 x $0.60 + 1,100 x $12 a million",
         tts("gpt-4o-mini-tts", OPENAI),
         {**THOUSAND, "input_tokens": 200, "output_tokens": 1_100}, 13_320_000),
    ],
    Page("https://soniox.com/pricing", "2026-08-21"): [
        ("soniox: about $0.12 an hour", stt("stt-rt-v5", "Soniox"), HOUR, 120_000_000),
        ("soniox: about $0.70 an hour",
         tts("tts-rt-v1-preview", "Soniox"),
         {"characters": 40_000, "audio_ms": 3_600_000}, 693_000_000),
        ("soniox: 30,000 audio tokens an hour x $2, 10,000 counted of text x $4",
         stt("stt-rt-v5", "Soniox"), {"audio_ms": 3_600_000, "output_tokens": 10_000}, 100_000_000),
    ],
    Page("https://docs.x.ai/developers/models/speech-to-text", "2026-08-21"): [
        ("xai: known by its class alone",
         stt("unknown", "unknown", label="livekit.plugins.xai.stt.STT"), HOUR, 200_000_000),
    ],
    Page("https://telnyx.com/pricing/text-to-speech", "2026-07-17"): [
        ("telnyx", tts("Telnyx.NaturalHD.astra", "telnyx"), THOUSAND, 48_000_000),
    ],
    Page("https://gradium.ai/pricing", "2026-08-24"): [
        ("gradium: 3 credits a second, $6.90 for 100,000", stt("default", "Gradium"),
         {"audio_ms": 100_000}, 20_700_000),
        ("gradium: a credit a character", tts("default", "Gradium"), THOUSAND, 69_000_000),
    ],
    Page("https://docs.smallest.ai/models/model-cards/text-to-speech/lightning-v-3-1-pro",
         "2026-08-13"): [
        ("smallest ai: $0.195 for ten thousand characters",
         tts("lightning_v3.1_pro", "SmallestAI"), THOUSAND, 19_500_000),
    ],
    Page("https://docs.smallest.ai/models/model-cards/speech-to-text/pulse", "2026-08-24"): [
        ("smallest ai: pulse", stt("pulse", "SmallestAI"), MINUTE, 8_000_000),
    ],
    Page("https://www.gladia.io/pricing", "2026-08-21"): [
        ("gladia", stt("solaria-1", "Gladia"), HOUR, 750_000_000),
    ],
    Page("https://www.lmnt.com/pricing", "2026-08-21"): [
        ("lmnt", tts("blizzard", "LMNT"), THOUSAND, 50_000_000),
    ],
    Page("https://rime.ai/pricing", "2026-08-21"): [
        ("rime", tts("mistv2", "Rime"), THOUSAND, 30_000_000),
    ],
    Page("https://livekit.com/pricing/inference", "2026-09-23"): [
        ("LiveKit Inference: 61 s of connection at its own $0.0048",
         stt("deepgram/nova-3", "livekit"), MINUTE, 4_880_000),
        ("LiveKit Inference: multilingual",
         stt("deepgram/nova-3", "livekit", language="multi"), MINUTE, 5_896_667),
        ("LiveKit Inference: at least a second",
         stt("cartesia/ink-2", "livekit"), {"connected_ms": 10}, 150_000),
        ("LiveKit Inference: $50 a million characters",
         tts("cartesia/sonic-3", "livekit"), THOUSAND, 50_000_000),
        ("LiveKit Inference: 1.001 s are two",
         stt("deepgram/nova-3", "livekit"), {"connected_ms": 1_001}, 160_000),
    ],
    Page("https://github.com/SYSTRAN/faster-whisper", ""): [
        ("local: nobody bills for it", stt("whisper-turbo", "local"), MINUTE, 0),
        ("open model beside the agent",
         stt("Systran/faster-whisper-small", host="localhost:8000"), MINUTE, 0),
    ],
    Page("https://docs.livekit.io/agents/models/#plugins", ""): [
        ("declared to be one's own", stt("my-own", "local"), MINUTE, 0),
    ],
    Page("https://github.com/hexgrad/kokoro", ""): [
        ("voice beside us", tts("kokoro", host="127.0.0.1:8880"), THOUSAND, 0),
        ("local voice", tts("kokoro", "local"), THOUSAND, 0),
    ],
    Page("https://developers.openai.com/api/docs/models/gpt-live-1.1", "2026-11-20"): [
        ("gpt-live-1: 90.5 s of connection are 91 at $0.05 a minute",
         realtime("gpt-live-1", OPENAI), {"connected_ms": 90_500}, 75_833_333),
    ],
}  # fmt: skip

# As genai-prices names its pages, which it gives no day: its version is the price's source.
GENAI: dict[Page, list[Example]] = {
    Page("https://ai.google.dev/gemini-api/docs/pricing", ""): [
        ("gemini-2.5-pro: 200,000 tokens are $1.25 a million, 1,000 said $10",
         llm("gemini-2.5-pro", "Gemini"),
         {"input_tokens": 200_000, "output_tokens": 1_000}, 260_000_000),
        ("gemini-2.5-pro: one more, 100,000 of them cached: $2.50, $0.25 and $15 for all",
         llm("gemini-2.5-pro", "Gemini"),
         {"input_tokens": 200_001, "cached_input_tokens": 100_000, "output_tokens": 1_000},
         290_002_500),
        ("gemini-2.5-flash: 250 tokens of sound x $1 beside 100 of text x $0.30, 50 said x $2.50",
         llm("gemini-2.5-flash", "Gemini"),
         {"input_tokens": 350, "input_audio_tokens": 250, "output_tokens": 50}, 405_000),
        ("gemini native audio: 1,500 heard x $3, 500 spoken x $12, 100 of text x $0.50",
         realtime("gemini-2.5-flash-native-audio-preview-12-2025", "Gemini"),
         {"input_tokens": 1_600, "input_audio_tokens": 1_500, "output_tokens": 500,
          "output_audio_tokens": 500}, 10_550_000),
    ],
    Page("https://www.anthropic.com/pricing#api", ""): [
        ("claude-sonnet-4-6: 500 x $3, 8,000 read x $0.30, 1,500 written x $3.75, 300 x $15",
         llm("claude-sonnet-4-6", "Anthropic"),
         {"input_tokens": 10_000, "cached_input_tokens": 8_000, "cache_write_tokens": 1_500,
          "output_tokens": 300}, 14_025_000),
        ("claude-sonnet-4-5 above 200,000: 10,000 x $6, 250,000 x $0.60, 40,000 x $7.50",
         llm("claude-sonnet-4-5", "Anthropic"),
         {"input_tokens": 300_000, "cached_input_tokens": 250_000, "cache_write_tokens": 40_000,
          "output_tokens": 2_000}, 555_000_000),
    ],
    Page("https://developers.openai.com/api/docs/pricing", ""): [
        ("gpt-4o-mini: 800 x $0.15, 200 cached x $0.075, 50 x $0.60",
         llm("gpt-4o-mini", OPENAI),
         {"input_tokens": 1_000, "cached_input_tokens": 200, "output_tokens": 50}, 165_000),
        ("gpt-4o-mini, priority: 1,000 x $0.25",
         llm("gpt-4o-mini", OPENAI, service_tier="priority"), {"input_tokens": 1_000}, 250_000),
        ("gpt-5.4 above 272,000: $5 and $22.50",
         llm("gpt-5.4", OPENAI), {"input_tokens": 272_001, "output_tokens": 100}, 1_362_255_000),
        ("gpt-realtime: sound 200 x $32, 500 cached x $0.40, 200 x $64; text 100 x $4, 200 x $0.40,"
         " 50 x $16",
         realtime("gpt-realtime", OPENAI),
         {"input_tokens": 1_000, "cached_input_tokens": 700, "input_audio_tokens": 700,
          "cached_input_audio_tokens": 500, "output_tokens": 250, "output_audio_tokens": 200},
         20_680_000),
    ],
    Page("https://docs.perplexity.ai/docs/getting-started/pricing", ""): [
        ("sonar-pro: 1,000 x $3, 100 x $15, and $14 a thousand requests",
         llm("sonar-pro", "api.perplexity.ai"),
         {"input_tokens": 1_000, "output_tokens": 100}, 18_500_000),
    ],
    Page("https://aws.amazon.com/bedrock/pricing/", ""): [
        ("nova-sonic: 250 heard x $3.40, 100 of text x $0.06, 200 spoken x $13.60",
         realtime("amazon.nova-sonic-v1:0", "Amazon"),
         {"input_tokens": 350, "input_audio_tokens": 250, "output_tokens": 200,
          "output_audio_tokens": 200}, 3_576_000),
    ],
    Page("https://elevenlabs.io/pricing/api", ""): [
        ("eleven_realtime_v1_mini: $0.08 a connected minute, 1,000 x $0.20, 200 x $6",
         realtime("eleven_realtime_v1_mini", "elevenlabs"),
         {"connected_ms": 60_000, "input_tokens": 1_000, "output_tokens": 200}, 81_400_000),
    ],
}  # fmt: skip


def each(pages: dict[Page, list[Example]]) -> list[Any]:
    return [
        pytest.param(page, leg, usage, amount_nano_usd, id=what)
        for page, examples in pages.items()
        for what, leg, usage, amount_nano_usd in examples
    ]


@pytest.mark.parametrize(("page", "leg", "usage", "amount_nano_usd"), each(OURS))
def test_our_rows_cost_what_the_page_says(
    page: Page, leg: LegAttributes, usage: dict[str, int], amount_nano_usd: int
) -> None:
    book = open_price_book(genai=False, plans=dict([page.plan])) if page.plan else BOOK
    price = book.price_for(leg, NOW_UNIX_MS)
    assert price is not None
    assert price.rate(usage) == amount_nano_usd
    assert page[:2] in {(rate.source_url, rate.source_date) for rate in price.rates.values()}
    assert all(rate.source_url for rate in price.rates.values())


@pytest.mark.parametrize(("page", "leg", "usage", "amount_nano_usd"), each(GENAI))
def test_language_models_cost_what_the_page_says(
    page: Page, leg: LegAttributes, usage: dict[str, int], amount_nano_usd: int
) -> None:
    price = BOOK.price_for(leg, NOW_UNIX_MS)
    assert price is not None
    assert price.rate(usage) == amount_nano_usd
    assert price.pricing_source.startswith("genai-prices@")
    assert {rate.source_url for rate in price.rates.values()} == {page.url}

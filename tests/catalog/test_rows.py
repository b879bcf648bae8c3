"""Our own rows: which one a leg falls under, and what it then costs, against the price lists."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime
from typing import Any

import msgspec
import pytest

from voicecost_catalog import Kind, open_price_book
from voicecost_catalog import compile as catalog_compile
from voicecost_catalog.rows import load_rows, midnight_unix_ms, unix_ms
from voicecost_ledger.records import LegAttributes, Modality

BOOK = open_price_book(genai=False)
NOW_UNIX_MS = 1_795_305_600_000  # 2026-11-22


def stt(model: str, **kwargs: Any) -> LegAttributes:
    kwargs.setdefault("provider", "Deepgram")
    return LegAttributes(modality=Modality.STT, model=model, **kwargs)


def tts(model: str, **kwargs: Any) -> LegAttributes:
    kwargs.setdefault("provider", "Deepgram")
    return LegAttributes(modality=Modality.TTS, model=model, **kwargs)


MINUTE = {"audio_ms": 60_000, "connected_ms": 61_000}
THOUSAND = {"characters": 1_000, "utf8_bytes": 1_010, "audio_ms": 55_000}


@pytest.mark.parametrize(
    ("leg", "usage", "amount_nano_usd"),
    [
        # https://deepgram.com/pricing, 2026-08-20 (Flux multilingual 2026-11-04, Aura 2026-05-27)
        pytest.param(stt("nova-3", language="en-US"), MINUTE, 4_800_000, id="nova-3 English"),
        pytest.param(stt("nova-3"), MINUTE, 4_800_000, id="nova-3, no language: theirs is English"),
        pytest.param(stt("nova-3", language="multi"), MINUTE, 5_800_000, id="nova-3 multilingual"),
        pytest.param(stt("nova-3-multilingual"), MINUTE, 5_800_000, id="nova-3 the same by name"),
        pytest.param(
            stt("nova-3", language="de", channel_count=2), MINUTE, 9_600_000, id="two channels"
        ),
        pytest.param(stt("nova-3", streaming=False), MINUTE, 4_300_000, id="nova-3 pre-recorded"),
        pytest.param(stt("nova-2-phonecall"), MINUTE, 5_833_333, id="nova-2 any flavour"),
        pytest.param(stt("enhanced-general"), MINUTE, 16_500_000, id="enhanced"),
        pytest.param(stt("phonecall"), MINUTE, 14_500_000, id="base by its use"),
        pytest.param(stt("flux-general-en"), MINUTE, 6_500_000, id="flux English"),
        pytest.param(stt("flux-general-multi"), MINUTE, 7_800_000, id="flux multilingual"),
        pytest.param(tts("aura-2-andromeda-en"), THOUSAND, 30_000_000, id="aura-2"),
        pytest.param(
            tts("aura-2-thalia-en", streaming=False), THOUSAND, 30_000_000, id="aura-2 in one piece"
        ),
        pytest.param(tts("aura-asteria-en"), THOUSAND, 15_000_000, id="aura-1"),
        # https://docs.cartesia.ai/pricing, 2026-08-21, at $0.00005 a credit (plan Pro)
        pytest.param(stt("ink-2", provider="Cartesia"), MINUTE, 9_000_000, id="ink-2: 3 credits"),
        pytest.param(stt("ink-whisper", provider="Cartesia"), MINUTE, 3_000_000, id="ink-whisper"),
        pytest.param(tts("sonic-3", provider="Cartesia"), THOUSAND, 50_000_000, id="sonic"),
        pytest.param(
            stt("universal-3-6-pro", provider="AssemblyAI"), MINUTE, 7_625_000,
            id="assemblyai: $0.45 an hour of open socket, idle or not",
        ),
        pytest.param(
            stt("universal-streaming", provider="AssemblyAI"), {"connected_ms": 10_800_000},
            450_000_000, id="assemblyai: a socket left open closes after 3 hours",
        ),
        pytest.param(
            stt("universal-2", provider="AssemblyAI", streaming=False), MINUTE, 2_500_000,
            id="assemblyai universal-2: $0.15 an hour of audio",
        ),
        pytest.param(
            stt("whisper-large-v3", provider="api.groq.com"), {"audio_ms": 2_000}, 308_333,
            id="groq: 2 s are billed as 10",
        ),
        pytest.param(
            stt("whisper-large-v3-turbo", provider="api.groq.com"), {"audio_ms": 3_600_000},
            40_000_000, id="groq turbo: $0.04 an hour",
        ),
        pytest.param(
            tts("canopylabs/orpheus-v1-english", provider="Groq"), THOUSAND, 22_000_000,
            id="groq orpheus: $22 a million characters",
        ),
        pytest.param(
            stt("chirp_3", provider="Google Cloud Platform"), {"audio_ms": 59_001}, 16_000_000,
            id="google: rounded up to a second, $0.016 a minute",
        ),
        pytest.param(
            tts("Chirp3", provider="Google Cloud Platform"), THOUSAND, 30_000_000,
            id="google chirp 3: $30 a million characters",
        ),
        pytest.param(
            tts("Chirp3", provider="Google Cloud Platform", voice="en-US-Studio-O"), THOUSAND,
            160_000_000, id="google studio voice: $160 a million",
        ),
        pytest.param(
            tts("gemini-2.5-flash-tts", provider="Gemini"),
            {"characters": 900, "audio_ms": 60_000}, 15_112_500,
            id="gemini: 1,500 audio tokens a minute x $10, 225 text tokens x $0.50",
        ),
        pytest.param(
            tts("gemini-2.5-flash-tts", provider="Gemini"),
            {"characters": 900, "audio_ms": 60_000, "input_tokens": 200, "output_tokens": 1_500},
            15_100_000, id="gemini: what was counted comes first",
        ),
        pytest.param(
            tts("eastus:zh-CN-XiaoxiaoNeural", provider="Azure TTS"),
            {"characters": 1_000, "double_width_characters": 900}, 28_500_000,
            id="azure: $15 a million, Chinese characters twice",
        ),
        pytest.param(
            tts("eastus:en-US-Ava:DragonHDLatestNeural", provider="Azure TTS"),
            {"characters": 1_000, "double_width_characters": 0}, 22_000_000, id="azure HD voice",
        ),
        pytest.param(
            stt("unknown", provider="Azure STT"), {"audio_ms": 3_600_000}, 1_000_000_000,
            id="azure: $1 an hour",
        ),
        pytest.param(
            tts("generative", provider="Amazon Polly"),
            {"characters": 1_015, "markup_characters": 15}, 30_000_000,
            id="polly: $30 a million, tags are free",
        ),
        pytest.param(
            stt("unknown", provider="Amazon Transcribe", channel_count=2), MINUTE, 10_000_000,
            id="transcribe: two channels are billed once",
        ),
        pytest.param(
            tts("s1", provider="FishAudio"), {"characters": 1_000, "utf8_bytes": 3_000},
            45_000_000, id="fish audio: $15 a million bytes, Chinese thrice",
        ),
        pytest.param(
            tts("chatterbox", provider="Resemble"), {"characters": 450, "audio_ms": 30_000},
            15_000_000, id="resemble: $0.0005 a second of speech",
        ),
        pytest.param(
            tts("chatterbox", provider="Resemble"), {"characters": 450}, 18_000_000,
            id="resemble: 450 characters at Arkenos' rate",
        ),
        pytest.param(
            stt("scribe_v2_realtime", provider="ElevenLabs"), {"audio_ms": 3_600_000},
            390_000_000, id="elevenlabs: $0.39 an hour",
        ),
        pytest.param(
            tts("eleven_flash_v2_5", provider="ElevenLabs"), THOUSAND, 40_000_000,
            id="elevenlabs flash: $0.04 a thousand characters",
        ),
        pytest.param(
            stt("whisper-1", provider="api.openai.com"), MINUTE, 6_000_000, id="whisper-1"
        ),
        pytest.param(
            stt("gpt-4o-transcribe", provider="api.openai.com"), MINUTE, 6_000_000,
            id="gpt-4o-transcribe: OpenAI's estimate of $0.006 a minute",
        ),
        pytest.param(
            stt("gpt-4o-mini-transcribe", provider="api.openai.com"),
            {**MINUTE, "input_tokens": 600, "output_tokens": 100}, 2_300_000,
            id="gpt-4o-mini-transcribe: 600 x $3 + 100 x $5 a million",
        ),
        pytest.param(
            tts("tts-1-hd", provider="api.openai.com"), THOUSAND, 30_000_000, id="tts-1-hd"
        ),
        pytest.param(
            tts("gpt-4o-mini-tts", provider="api.openai.com"),
            {**THOUSAND, "input_tokens": 200, "output_tokens": 1_100}, 13_320_000,
            id="gpt-4o-mini-tts: 200 x $0.60 + 1,100 x $12 a million",
        ),
        pytest.param(
            stt("stt-rt-v5", provider="Soniox"), {"audio_ms": 3_600_000}, 120_000_000,
            id="soniox: about $0.12 an hour",
        ),
        pytest.param(
            tts("tts-rt-v1-preview", provider="Soniox"),
            {"characters": 40_000, "audio_ms": 3_600_000}, 693_000_000,
            id="soniox: about $0.70 an hour",
        ),
        pytest.param(
            stt("unknown", provider="unknown", label="livekit.plugins.xai.stt.STT"),
            {"audio_ms": 3_600_000}, 200_000_000, id="xai: known by its class alone",
        ),
        pytest.param(
            tts("Telnyx.NaturalHD.astra", provider="telnyx"), THOUSAND, 48_000_000, id="telnyx"
        ),
        pytest.param(
            stt("solaria-1", provider="Gladia"), {"audio_ms": 3_600_000}, 750_000_000, id="gladia"
        ),
        pytest.param(tts("blizzard", provider="LMNT"), THOUSAND, 50_000_000, id="lmnt"),
        pytest.param(tts("mistv2", provider="Rime"), THOUSAND, 30_000_000, id="rime"),
        pytest.param(
            stt("deepgram/nova-3", provider="livekit"), MINUTE, 4_880_000,
            id="LiveKit Inference: 61 s of connection at its own $0.0048",
        ),
        pytest.param(
            stt("deepgram/nova-3", provider="livekit", language="multi"), MINUTE, 5_896_667,
            id="LiveKit Inference: multilingual",
        ),
        pytest.param(
            stt("cartesia/ink-2", provider="livekit"), {"connected_ms": 10}, 150_000,
            id="LiveKit Inference: at least a second",
        ),
        pytest.param(
            tts("cartesia/sonic-3", provider="livekit"), THOUSAND, 50_000_000,
            id="LiveKit Inference: $50 a million characters",
        ),
        pytest.param(
            tts("elevenlabs/eleven_flash_v2_5", provider="livekit"), THOUSAND, 40_000_000,
            id="LiveKit Inference without a rate of its own: the vendor's",
        ),
        pytest.param(
            stt("whisper-turbo", provider="local"), MINUTE, 0, id="local: nobody bills for it"
        ),
        pytest.param(stt("my-own", provider="local"), MINUTE, 0, id="declared to be one's own"),
        pytest.param(
            stt("Systran/faster-whisper-small", host="localhost:8000"),
            MINUTE,
            0,
            id="open model beside the agent",
        ),
        pytest.param(tts("kokoro", host="127.0.0.1:8880"), THOUSAND, 0, id="voice beside us"),
        pytest.param(tts("kokoro", provider="local"), THOUSAND, 0, id="local voice"),
    ],
)  # fmt: skip
def test_worked_examples_from_the_price_lists(
    leg: LegAttributes, usage: dict[str, int], amount_nano_usd: int
) -> None:
    price = BOOK.price_for(leg, NOW_UNIX_MS)
    assert price is not None
    assert price.rate(usage) == amount_nano_usd
    assert all(rate.source_url for rate in price.rates.values())


@pytest.mark.parametrize(
    "leg",
    [
        pytest.param(stt("nova-4"), id="a model nobody priced"),
        pytest.param(stt(""), id="no model"),
        pytest.param(stt("whisper-medium", streaming=False), id="a size nobody priced"),
        pytest.param(tts("lightning_v3.1_pro", provider="SmallestAI"), id="dearer than its kin"),
        pytest.param(stt("auto", provider="livekit"), id="LiveKit chooses, and does not say what"),
        pytest.param(stt("whisper-1", provider="vllm.internal"), id="a host nobody spoke for"),
        pytest.param(stt("nova-3", language="multi", streaming=False), id="a mode without a price"),
        pytest.param(stt("whisper-large", streaming=True), id="pre-recorded only"),
        pytest.param(tts("aura-3-andromeda-en"), id="the next generation is not the first"),
        pytest.param(stt("aura-2-andromeda-en"), id="speech synthesis asked to listen"),
        pytest.param(stt("whisper-1", host="localhost:8000"), id="a gateway beside the agent"),
        pytest.param(tts("kokoro", host="kokoro.example.com"), id="an open model elsewhere"),
        pytest.param(stt("nova-3", provider="Gladia"), id="another provider's model of that name"),
        pytest.param(stt("nova-3", channel_count=0), id="no channel"),
        pytest.param(stt("nova-3", channel_count=10**9), id="a billion channels"),
    ],
)
def test_what_has_no_row_has_no_price(leg: LegAttributes) -> None:
    assert BOOK.price_for(leg, NOW_UNIX_MS) is None


def test_a_price_holds_from_its_day_on_and_not_before() -> None:
    """ElevenLabs cut its prices on a day that is only assumed: yesterday's invoice stays."""
    leg = tts("eleven_turbo_v2_5", provider="ElevenLabs")
    first_unix_ms = unix_ms(datetime(2026, 9, 29, tzinfo=UTC))
    # Back and forth, so that what is remembered of one day is not used for another.
    for _ in range(2):
        before, after = BOOK.price_for(leg, first_unix_ms - 1), BOOK.price_for(leg, first_unix_ms)
        assert before is not None
        assert after is not None
        assert (before.valid_until, after.valid_from) == ("2026-09-29", "2026-09-29")
        assert before.rate(THOUSAND) == 50_000_000
        assert after.rate(THOUSAND) == 40_000_000


def test_a_price_without_a_first_day_is_open_to_the_past_and_ends_when_it_ends() -> None:
    leg = tts("gemini-3.8-flash-tts", provider="Gemini")
    end_unix_ms = unix_ms(datetime(2027, 1, 1, tzinfo=UTC))
    for at_unix_ms in (0, NOW_UNIX_MS, end_unix_ms - 1):
        price = BOOK.price_for(leg, at_unix_ms)
        assert price is not None
        assert price.valid_from == ""
    assert BOOK.price_for(leg, end_unix_ms) is None  # it doubles: the new price is not a row yet


@pytest.mark.parametrize("at_unix_ms", [-1, 2**62, -(2**62)])
def test_an_instant_out_of_any_calendar_has_no_price(at_unix_ms: int) -> None:
    assert BOOK.price_for(stt("nova-3"), NOW_UNIX_MS) is not None  # remembered
    assert BOOK.price_for(stt("nova-3"), at_unix_ms) is None


def test_the_source_names_the_newest_row() -> None:
    price = BOOK.price_for(stt("nova-3"), NOW_UNIX_MS)
    assert price is not None
    assert price.pricing_source == "voicecost-catalog@2026-11-21"


def test_the_same_leg_gets_the_same_price_object() -> None:
    """Looking up is a dictionary access after the first time."""
    first = BOOK.price_for(stt("nova-3"), NOW_UNIX_MS)
    assert BOOK.price_for(stt("nova-3"), NOW_UNIX_MS + 1_000) is first


def test_a_book_gives_back_what_it_gave_out() -> None:
    price = BOOK.price_for(tts("aura-2-andromeda-en"), NOW_UNIX_MS)
    assert price is not None
    assert BOOK.restore(price.document()) == price


def test_every_model_is_named_to_be_found() -> None:
    """A row that no leg can reach would be a price nobody is told about."""
    seen: set[str] = set()
    for provider in load_rows().providers:
        for plan in provider.plans:
            book = open_price_book(genai=False, plans={provider.provider: plan})
            for row in provider.prices:
                if provider.plan_of(row) != plan or not row.match or row.addon:
                    continue
                day = row.valid_from or date(2026, 1, 1)
                leg = LegAttributes(
                    modality=row.modality,
                    provider=provider.plugin_names[0],
                    model=row.match[0].replace("*", "anything"),
                    language=row.languages[0] if row.languages else "en",
                    voice=row.voices[0].replace("*", "en-US") if row.voices else "",
                    streaming=row.streaming is not False,
                )
                price = book.price_for(leg, midnight_unix_ms(day) + 3_600_000)
                assert price is not None, row.model
                assert (price.provider, price.model) == (provider.provider, row.model)
                assert price.plan == plan
                seen.add(price.price_id)
    assert len(seen) > 200


def test_only_base_prices_and_what_held_before_them_rate_a_leg() -> None:
    kinds = Counter(
        (row.kind, bool(row.match)) for of in load_rows().providers for row in of.prices
    )
    assert kinds[Kind.ADDON, False] == 3  # no leg tells of these
    assert kinds[Kind.ESTIMATE, False] == 1
    assert kinds[Kind.FIXED, False] == 3
    assert kinds[Kind.RULE, False] == 1
    assert {kind for kind, matched in kinds if matched} == {
        Kind.BASE, Kind.SUPERSEDED, Kind.SELF_HOSTED, Kind.ADDON,
    }  # fmt: skip


def test_a_plan_is_chosen_by_whoever_pays_for_it() -> None:
    sonic = tts("sonic-3", provider="Cartesia")
    for plan, amount in (("pro", 50_000_000), ("startup", 39_200_000), ("scale", 37_400_000)):
        price = open_price_book(genai=False, plans={"cartesia": plan}).price_for(sonic, NOW_UNIX_MS)
        assert price is not None
        assert price.rate(THOUSAND) == amount


@pytest.mark.parametrize(
    ("plans", "says"),
    [
        ({"cartesia": "free"}, "plan 'free' of 'cartesia' has no prices: expected pro, startup"),
        ({"cartesian": "pro"}, "plan 'pro' of 'cartesian' has no prices: expected no such"),
    ],
)
def test_a_plan_without_prices_is_refused(plans: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        open_price_book(plans=plans)


def test_the_packaged_prices_are_the_ones_in_the_data_files() -> None:
    """If this fails: `python -m voicecost_catalog.compile`, and read the difference."""
    packaged = catalog_compile.COMPILED_PATH.read_bytes()
    assert packaged == catalog_compile.encode_rows(catalog_compile.compile_rows())


def test_no_price_is_stored_as_a_float() -> None:
    def values(node: Any) -> list[Any]:
        if isinstance(node, dict):
            return [leaf for child in node.values() for leaf in values(child)]
        if isinstance(node, list):
            return [leaf for child in node for leaf in values(child)]
        return [node]

    packaged = msgspec.json.decode(catalog_compile.COMPILED_PATH.read_bytes())
    assert not any(type(value) is float for value in values(packaged))

"""Our own rows: which one a leg falls under, and on which days."""

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


THOUSAND = {"characters": 1_000, "utf8_bytes": 1_010, "audio_ms": 55_000}


@pytest.mark.parametrize(
    "leg",
    [
        pytest.param(stt("nova-4"), id="a model nobody priced"),
        pytest.param(stt(""), id="no model"),
        pytest.param(stt("whisper-medium", streaming=False), id="a size nobody priced"),
        pytest.param(tts("lightning_v4", provider="SmallestAI"), id="the next generation"),
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


@pytest.mark.parametrize(
    ("snapshot", "model"),
    [
        # A literal in LiveKit's own plugin, then names of the providers' own lists.
        (stt("gpt-4o-mini-transcribe-2025-12-15", provider="OpenAI"), "gpt-4o-mini-transcribe"),
        (stt("gpt-4o-transcribe-2025-03-20", provider="OpenAI"), "gpt-4o-transcribe"),
        (tts("gpt-4o-mini-tts-2025-03-20", provider="OpenAI"), "gpt-4o-mini-tts"),
        (tts("gpt-4o-mini-tts-2025-12-15", provider="OpenAI"), "gpt-4o-mini-tts"),
        (tts("tts-1-1106", provider="OpenAI"), "tts-1"),
        (tts("tts-1-hd-1106", provider="OpenAI"), "tts-1-hd"),
        (stt("ink-whisper-2025-06-04", provider="Cartesia"), "ink-whisper"),
        (stt("ink-whisper-20250604", provider="Cartesia"), "ink-whisper"),
        (stt("gpt-4o-transcribe-2025-13-20", provider="OpenAI"), None),  # no day
        (tts("tts-1-9999", provider="OpenAI"), None),
        (stt("gpt-4o-transcribe-diarize-2025-10-15", provider="OpenAI"), None),
        (stt("voxtral-mini-2602", provider="MistralAI"), "voxtral-mini-2602"),  # its own row
    ],
)
def test_a_name_with_a_date_is_a_snapshot_and_costs_what_the_model_does(
    snapshot: LegAttributes, model: str | None
) -> None:
    price = BOOK.price_for(snapshot, NOW_UNIX_MS)
    assert (price and price.model) == model


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
    after = BOOK.price_for(leg, end_unix_ms)
    assert after is not None
    assert after.valid_from == "2027-01-01"


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
        (
            {"cartesian": "pro"},
            "plan 'pro' of 'cartesian': no such provider: expected one of assemblyai",
        ),
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

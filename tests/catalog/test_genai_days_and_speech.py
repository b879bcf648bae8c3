"""What genai-prices says beside the rates of LLMs: since when they hold, and what speech costs."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime, timedelta

import genai_prices
import pytest
from genai_prices.data import providers as genai_providers
from genai_prices.types import StartDateConstraint

from voicecost_catalog import ModelPrice, Rule, open_price_book
from voicecost_catalog.rows import midnight_unix_ms, unix_ms
from voicecost_ledger.records import LegAttributes, Modality

BOOK = open_price_book()
NOW_UNIX_MS = 1_795_305_600_000  # 2026-11-22


def leg(
    provider: str, model: str, modality: Modality = Modality.LLM, *, service_tier: str = ""
) -> LegAttributes:
    return LegAttributes(
        modality=modality, provider=provider, model=model, service_tier=service_tier
    )


def price_at(day: str, of: LegAttributes) -> ModelPrice:
    at = datetime.fromisoformat(day).replace(tzinfo=UTC)
    price = BOOK.price_for(of, unix_ms(at))
    assert price is not None
    return price


@pytest.mark.parametrize(
    ("at", "valid_from", "valid_until", "note"),
    [
        ("2026-08-16T12:00", "", "2026-08-17", "not 01:00 to 04:00 and 06:00 to 10:00 UTC"),
        ("2026-08-17T00:00", "2026-08-17", "2026-09-10", "not 01:00 to 04:00 and 06:00"),
        ("2026-11-22T12:00", "2026-09-10", "", "not 01:00 to 04:00 and 06:00"),
        ("2026-11-22T03:59", "", "", "01:00 to 04:00 UTC every day"),
        ("2026-11-22T06:00", "", "", "06:00 to 10:00 UTC every day"),
    ],
)
def test_a_dated_price_says_since_when_until_when_and_at_which_hours(
    at: str, valid_from: str, valid_until: str, note: str
) -> None:
    price = price_at(at, leg("deepseek", "deepseek-v4-flash"))
    assert (price.valid_from, price.valid_until) == (valid_from, valid_until)
    assert price.note.startswith(note)


def test_a_price_without_a_date_is_open() -> None:
    price = price_at("2026-11-22", leg("openai", "gpt-4o"))
    assert (price.valid_from, price.valid_until, price.note) == ("", "", "")


def test_a_service_tier_holds_since_it_is_listed() -> None:
    priority = leg("openai", "gpt-4o-mini", service_tier="priority")
    assert price_at("2026-11-22", priority).valid_from == "2026-10-12"


def test_every_dated_price_holds_on_its_days_and_differs_only_in_name_from_its_rates() -> None:
    """One day before it begins, and on the day it ends, another price is in force."""
    dated = 0
    for provider in genai_providers:
        for model in provider.models:
            if provider.find_model(model.id) is not model or not isinstance(model.prices, list):
                continue
            for conditional in model.prices:
                if not isinstance(conditional.constraint, StartDateConstraint):
                    continue
                start = conditional.constraint.start_date
                found = BOOK.price_for(leg(provider.id, model.id), midnight_unix_ms(start))
                if found is None or not found.valid_from:
                    continue  # no chat model, or the first hours of a day are dearer
                assert found.valid_from == start.isoformat()
                before = BOOK.price_for(
                    leg(provider.id, model.id), midnight_unix_ms(start - timedelta(days=1))
                )
                assert before is None or before.valid_until in ("", start.isoformat())
                if found.valid_until:
                    last = date.fromisoformat(found.valid_until) - timedelta(days=1)
                    again = BOOK.price_for(leg(provider.id, model.id), midnight_unix_ms(last))
                    assert again == found
                dated += 1
    assert dated > 50


@pytest.mark.parametrize(
    ("of", "rule", "usage", "nano_usd"),
    [
        pytest.param(
            leg("MistralAI", "voxtral-small-transcribe-3-0", Modality.STT), Rule.AUDIO,
            {"audio_ms": 3_600_000}, 240_000_000, id="a recognizer by the hour of audio",
        ),
        pytest.param(
            leg("xAI", "grok-voice-think-fast-1.0", Modality.REALTIME), Rule.SESSION,
            {"connected_ms": 60_000}, 50_000_000, id="a voice model by its session",
        ),
        pytest.param(
            leg("xAI", "grok-voice-think-fast-2.0", Modality.REALTIME), Rule.SESSION,
            {"connected_ms": 60_000}, 80_000_000, id="the dearer one",
        ),
    ],
)  # fmt: skip
def test_speech_that_no_row_of_ours_knows_is_priced_by_genai_prices(
    of: LegAttributes, rule: Rule, usage: dict[str, int], nano_usd: int
) -> None:
    price = BOOK.price_for(of, NOW_UNIX_MS)
    assert price is not None
    assert (price.modality, price.rule) == (of.modality, rule)
    assert price.pricing_source == f"genai-prices@{genai_prices.__version__}"
    assert price.rate(usage) == nano_usd
    assert price.rate({"characters": 5}) is None  # not counted in what it bills: never zero
    assert BOOK.restore(price.document()) == price


@pytest.mark.parametrize(
    ("of", "source"),
    [
        (leg("openai", "whisper-1", Modality.STT), "voicecost-catalog@"),
        (leg("openai", "tts-1", Modality.TTS), "voicecost-catalog@"),
        (leg("groq", "whisper-large-v3", Modality.STT), "voicecost-catalog@"),
        (leg("openai", "gpt-live-1", Modality.REALTIME), "voicecost-catalog@"),
        (leg("openai", "gpt-realtime", Modality.REALTIME), "genai-prices@"),
    ],
)
def test_our_own_rows_come_first(of: LegAttributes, source: str) -> None:
    price = BOOK.price_for(of, NOW_UNIX_MS)
    assert price is not None
    assert price.pricing_source.startswith(source)


@pytest.mark.parametrize(
    "of",
    [
        pytest.param(leg("openai", "gpt-4o", Modality.STT), id="a chat model asked to listen"),
        pytest.param(leg("openai", "gpt-4o", Modality.TTS), id="or to speak"),
        pytest.param(leg("openai", "tts-1", Modality.STT), id="a voice asked to listen"),
        pytest.param(leg("openai", "whisper-1", Modality.REALTIME), id="one that only listens"),
        pytest.param(leg("x-ai", "grok-voice-think-fast-1.0", Modality.STT), id="a conversation"),
        pytest.param(leg("mistral", "voxtral-small-transcribe-3-0"), id="no chat model"),
        pytest.param(leg("baseten", "anything", Modality.TTS), id="nobody knows it"),
    ],
)
def test_a_price_of_something_else_is_no_price(of: LegAttributes) -> None:
    assert BOOK.price_for(of, NOW_UNIX_MS) is None


def test_a_model_of_genai_prices_that_speaks_is_found_by_its_name_once() -> None:
    (heard,) = BOOK.prices_of("mistral/voxtral-small-transcribe-3-0", NOW_UNIX_MS)
    assert heard.modality is Modality.STT
    (said,) = BOOK.prices_of("openai/tts-1", NOW_UNIX_MS)
    assert said.pricing_source.startswith("voicecost-catalog@")
    names = [
        (price.provider, price.model)
        for price in BOOK.every_price(NOW_UNIX_MS)
        if price.modality is not Modality.LLM and price.pricing_source.startswith("genai-prices@")
    ]
    assert sorted(names) == [
        ("mistral", "voxtral-small-transcribe-3-0"),
        ("x-ai", "grok-voice-think-fast-1.0"),
        ("x-ai", "grok-voice-think-fast-2.0"),
    ]


def test_gemini_s_launch_prices_double_on_new_year_s_day() -> None:
    """As Google's page says, and genai-prices too."""
    text_and_sound = {"input_tokens": 1_000_000, "output_tokens": 1_000_000}
    for model, dollars in (("gemini-3.8-flash-tts", 19), ("gemini-3.8-flash-lite-tts", 13)):
        of = leg("Gemini", model, Modality.TTS)
        for day, usd in (("2026-12-31T23:59:59", dollars / 2), ("2027-01-01", dollars)):
            assert price_at(day, of).rate(text_and_sound) == usd * 10**9


def test_what_can_be_told_without_loading_anything_is_told_at_once() -> None:
    """On an event loop, a second of importing is a second of silence."""
    program = """
import sys
from voicecost_catalog import open_price_book
from voicecost_ledger.records import LegAttributes, Modality
book = open_price_book(host_aliases={"127.0.0.1:9": "groq"})
def at_once(modality, provider, model, host=""):
    leg = LegAttributes(modality=modality, provider=provider, model=model, host=host)
    return book.at_once.price_for(leg, 1_795_305_600_000)
assert at_once(Modality.STT, "Deepgram", "nova-3") is not None
assert at_once(Modality.STT, "", "whisper-large-v3", "127.0.0.1:9") is not None
assert at_once(Modality.LLM, "ollama", "qwen2.5:7b") is not None
for modality in (Modality.LLM, Modality.REALTIME, Modality.STT, Modality.TTS):
    assert at_once(modality, "openai", "no-such-model") is None
    assert at_once(modality, "", "no-such-model", "api.fireworks.ai") is None
assert at_once(Modality.LLM, "openai", "gpt-4o") is None
assert not book.ready and "genai_prices" not in sys.modules
book.warm()
assert at_once(Modality.LLM, "openai", "gpt-4o") is not None
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

"""The price book as a list: every rate with its source, and which nobody looked at lately."""

from __future__ import annotations

from datetime import date
from typing import Any

import msgspec
import pytest

from voicecost_catalog import Kind, ModelPrice, open_price_book
from voicecost_catalog.listing import PriceLine, price_changes, price_lines
from voicecost_ledger.records import LegAttributes, Modality

NOW_UNIX_MS = 1_795_305_600_000  # 2026-11-22
BOOK = open_price_book()


def lines_on(day: date) -> list[PriceLine]:
    return price_lines(BOOK.own_prices(), today=day)


def test_a_rate_is_worded_as_its_source_words_it() -> None:
    worded = {
        (line.provider, line.model, line.unit): (line.usd, line.per)
        for line in lines_on(date(2026, 11, 22))
        if line.plan != "scale"
    }
    assert worded["deepgram", "nova-2", "audio_ms"] == ("0.35", "hour")
    assert worded["cartesia", "sonic", "characters"] == ("0.0000392", "character")
    assert worded["fishaudio", "s1/s2-pro/s2.1-pro", "utf8_bytes"] == ("15", "million")
    assert worded["resemble", "chatterbox / chatterbox-turbo", "audio_ms"] == ("0.0005", "second")
    assert worded["openai", "gpt-4o-transcribe", "input_audio_tokens"] == ("6", "million")
    assert worded["ollama", "any model", "input_tokens"] == ("0", "million")


def test_a_price_is_stale_on_the_sixty_first_day() -> None:
    def nova_3(day: date) -> PriceLine:
        return next(line for line in lines_on(day) if line.model == "nova-3 (monolingual)")

    assert nova_3(date(2026, 8, 20)).checked_on == "2026-08-20"
    assert not nova_3(date(2026, 10, 19)).stale
    assert nova_3(date(2026, 10, 20)).stale


def test_what_nobody_checked_is_stale_at_once_and_what_nobody_bills_never() -> None:
    never_checked = [line for line in lines_on(date(2020, 1, 1)) if line.stale]
    assert {line.provider for line in never_checked} == {"livekit", "liveavatar", "murf", "x-ai"}
    later = lines_on(date(2036, 1, 1))
    fresh = {line.provider for line in later if not line.stale and not line.valid_until}
    assert fresh == {"livekit-server", "local", "loopback", "ollama"}
    ended = [line for line in later if line.valid_until]
    assert len(ended) > 5
    assert not any(line.stale for line in ended)  # no page has an old price any more
    print(f"{sum(line.stale for line in lines_on(date.today()))} stale rates")  # noqa: T201, DTZ011 (shown, never asserted)


def test_every_line_has_a_source_and_no_check_is_later_than_its_page() -> None:
    """Until somebody looks again, a price was last checked on the day of its page."""
    for line in lines_on(date(2026, 11, 22)):
        assert line.source_url.startswith("https://")
        assert line.checked_on == line.source_date


def test_kinds_and_guessed_days_are_kept() -> None:
    lines = lines_on(date(2026, 11, 22))
    estimates = {line.model for line in lines if line.kind is Kind.ESTIMATE}
    assert estimates == {
        "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-4o-mini-tts", "stt-rt-*",
    }  # fmt: skip
    assumed = {line.provider for line in lines if line.assumed}
    assert assumed == {"elevenlabs"}


def test_llm_prices_are_as_fresh_as_their_package() -> None:
    prices = open_price_book().prices_of("openai/gpt-4o", NOW_UNIX_MS)
    lines = price_lines(prices, today=date(2036, 1, 1))
    assert {line.unit for line in lines} == {
        "input_tokens", "cached_input_tokens", "output_tokens",
    }  # fmt: skip
    assert not any(line.stale for line in lines)


def price_of(modality: Modality, provider: str, model: str) -> ModelPrice:
    leg = LegAttributes(modality=modality, provider=provider, model=model)
    price = open_price_book().price_for(leg, NOW_UNIX_MS)
    assert price is not None
    return price


GEMINI = price_of(Modality.LLM, "google", "gemini-2.5-pro")
WHISPER = price_of(Modality.STT, "groq", "whisper-large-v3")
CHATTERBOX = price_of(Modality.TTS, "Resemble", "chatterbox")
AZURE = price_of(Modality.TTS, "Azure TTS", "eastus:zh-CN-XiaoxiaoNeural")


def with_tier_doubled(price: ModelPrice) -> ModelPrice:
    (tier,) = price.tiers
    rate = tier.rates["input_tokens"]
    doubled = msgspec.structs.replace(rate, nano_usd=2 * rate.nano_usd)
    rates = {**tier.rates, "input_tokens": doubled}
    return changed(price, tiers=(msgspec.structs.replace(tier, rates=rates),))


def changed(price: ModelPrice, **fields: Any) -> ModelPrice:
    return msgspec.structs.replace(price, **fields, price_id="")


@pytest.mark.parametrize(
    ("before", "after", "unit", "above", "words"),
    [
        (GEMINI, with_tier_doubled(GEMINI), "input_tokens", 200_000,
         ("$2.5 a million", "$5 a million")),
        (WHISPER, changed(WHISPER, minimum_ms=30_000), "minimum", None, ("10000 ms", "30000 ms")),
        (WHISPER, changed(WHISPER, minimum_ms=0), "minimum", None, ("10000 ms", "")),
        (WHISPER, changed(WHISPER, step_ms=1_000), "step", None, ("", "1000 ms")),
        (CHATTERBOX, changed(CHATTERBOX, derived={}), "audio_ms of characters", None,
         ("80 for each", "")),
        (AZURE, changed(AZURE, double_width_weight=1), "a Chinese character", None,
         ("counts 2", "")),
        (AZURE, changed(AZURE, free_markup=True), "SSML tags", None, ("", "are free")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_whatever_an_amount_depends_on_is_a_change(
    before: ModelPrice,
    after: ModelPrice,
    unit: str,
    above: int | None,
    words: tuple[str, str],
) -> None:
    (change,) = price_changes([before], [after])
    assert (change.unit, change.above_input_tokens) == (unit, above)
    assert (change.before, change.after) == words
    assert change.source_url.startswith("https://")
    assert price_changes([before], [before]) == []


def test_other_words_for_the_same_rate_are_no_change() -> None:
    """A discount that is given and taken back leaves a rate in lowest terms."""
    rate = WHISPER.rates["audio_ms"]
    same = msgspec.structs.replace(rate, nano_usd=rate.nano_usd * 7, per=rate.per * 7)
    assert price_changes([WHISPER], [changed(WHISPER, rates={"audio_ms": same})]) == []


def test_a_tier_lists_the_rates_that_are_others_there() -> None:
    lines = price_lines([GEMINI], today=date(2026, 11, 22))
    tiers = [line.above_input_tokens for line in lines]
    assert tiers == [None] * len(GEMINI.rates) + [200_000] * (len(lines) - len(GEMINI.rates))
    assert {line.price_id for line in lines} == {GEMINI.price_id}

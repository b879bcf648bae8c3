"""The price book as a list: every rate with its source, and which nobody looked at lately."""

from __future__ import annotations

from datetime import date

from voicecost_catalog import Kind, open_price_book
from voicecost_catalog.listing import PriceLine, own_prices, price_lines

NOW_UNIX_MS = 1_795_305_600_000  # 2026-11-22


def lines_on(day: date) -> list[PriceLine]:
    return price_lines(own_prices(), today=day)


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
    fresh = {line.provider for line in later if not line.stale}
    assert fresh == {"livekit-server", "local", "loopback", "ollama"}
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

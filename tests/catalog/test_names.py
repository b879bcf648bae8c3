"""Which price a name finds: what LiveKit's plugins report, and what people write."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from voicecost_catalog import coverage, open_price_book
from voicecost_catalog.names import same_model
from voicecost_catalog.override_file import parse_prices
from voicecost_ledger.records import LegAttributes, Modality

NOW_UNIX_MS = 1_795_305_600_000  # 2026-11-22
BOOK = open_price_book()
# Every component of every plugin of livekit-agents 1.8.9, made once: what it says of itself.
STRINGS: Final = coverage.livekit_strings()


def resolves(one: coverage.LiveKitString) -> bool:
    return BOOK.price_for(one.leg(), NOW_UNIX_MS) is not None


def test_nearly_every_string_of_livekit_with_a_public_price_finds_it() -> None:
    """Realtime models included; the rest is listed with the reason why not."""
    found = [one for one in STRINGS if resolves(one)]
    missing = [one for one in STRINGS if one not in found]
    without = [one for one in missing if {one.cls, one.model} & coverage.NO_PRICE.keys()]
    public = [one for one in missing if one not in without]
    share = len(found) / (len(found) + len(public))
    print(  # noqa: T201 (the bar is shown)
        f"{len(found)} of {len(found) + len(public)} with a public price: {share:.1%}; "
        f"of all {len(STRINGS)}: {len(found) / len(STRINGS):.1%}"
    )
    for one in missing:
        print(f"  {one.kind} {one.provider} {one.model}: {one.why_no_price}")  # noqa: T201 (the same)
    assert share >= 0.95
    assert (len(STRINGS), len(found)) == (102, 70)
    assert {(one.cls, one.model) for one in public} == {("aws.LLM", "amazon.nova-2-lite-v1:0")}
    known = [one for one in without if one.why_no_price != coverage.UNKNOWN]
    assert Counter(one.provider for one in known) == {"Sarvam": 4, "Speechify": 1, "livekit": 2}


def test_what_has_no_price_is_listed_as_livekit_names_it() -> None:
    missing = {one.cls: one.why_no_price for one in coverage.without_price(BOOK, NOW_UNIX_MS)}
    assert missing["sarvam.STT"].startswith("listed in rupees")
    assert missing["aws.LLM"].startswith("priced by region")
    assert "deepgram.STT" not in missing


def test_what_is_said_to_have_no_public_price_has_none_here_either() -> None:
    """A row that was added later must leave the list; and whoever is listed must be LiveKit's."""
    listed = coverage.NO_PRICE | coverage.NOT_FOUND
    named = {name for one in STRINGS for name in (one.cls, one.model)}
    assert listed.keys() <= named
    for one in STRINGS:
        if {one.cls, one.model} & listed.keys():
            assert not resolves(one), one.cls


@pytest.mark.parametrize(
    ("name", "providers"),
    [
        ("deepgram/nova-3", {"deepgram"}),
        ("deepgram/nova-2-conversationalai", {"deepgram"}),
        ("deepgram/aura-2", {"deepgram"}),
        ("assemblyai/universal-2", {"assemblyai"}),
        ("openai/whisper-1", {"openai"}),
        ("openai/gpt-4.1", {"openai"}),
        ("openai/gpt-4o", {"openai"}),
        ("openai/gpt-4o-mini", {"openai"}),
        ("openai/tts-1-hd", {"openai"}),
        ("groq/whisper-large-v3", {"groq"}),
        ("groq/llama-3.3-70b-versatile", {"groq"}),
        ("groq/llama-3.3-70b", {"groq"}),
        ("groq/llama-3.1-8b-instant", {"groq"}),
        ("anthropic/claude-opus-4-7", {"anthropic"}),
        ("anthropic/claude-sonnet-4-6", {"anthropic"}),
        ("anthropic/claude-haiku-4-5", {"anthropic"}),
        ("cartesia/sonic-3", {"cartesia"}),
        ("cartesia/sonic-3:voice_id", {"cartesia"}),
        ("elevenlabs/eleven_turbo_v2_5", {"elevenlabs"}),
        ("elevenlabs/eleven_flash_v2_5", {"elevenlabs"}),
        ("elevenlabs/scribe_v2_realtime", {"elevenlabs"}),
        ("google/gemini-2.5-flash", {"google"}),
        ("resemble/chatterbox", {"resemble"}),
        ("xai/grok-stt", {"x-ai"}),
        ("livekit/deepgram/nova-3", {"livekit"}),
        ("deepgram/nova-9", set[str]()),
        ("nova-3", set[str]()),
        ("nobody/nova-3", set[str]()),
        ("", set[str]()),
    ],
)
def test_a_model_is_found_by_the_name_people_give_it(name: str, providers: set[str]) -> None:
    assert {price.provider for price in BOOK.prices_of(name, NOW_UNIX_MS)} == providers


@pytest.mark.parametrize(
    ("provider", "host"), [("groq", ""), ("openai", "api.groq.com"), ("openai", "llm.internal")]
)
def test_a_leg_may_have_a_short_name_too(provider: str, host: str) -> None:
    book = open_price_book(host_aliases={"llm.internal": "groq"})
    short, full = (
        book.price_for(LegAttributes(Modality.LLM, provider, model, host=host), NOW_UNIX_MS)
        for model in ("llama-3.3-70b", "llama-3.3-70b-versatile")
    )
    assert short is not None
    assert short == full


@pytest.mark.parametrize(
    "name",
    [
        "ollama/qwen2.5:7b", "ollama/qwen2.5:3b", "ollama/llama3.2:3b", "local/whisper-large-v3",
        "local/whisper-turbo", "local/kokoro", "local/piper",
    ],
)  # fmt: skip
def test_what_runs_on_your_own_machine_costs_nothing_and_is_known_to(name: str) -> None:
    (price,) = BOOK.prices_of(name, NOW_UNIX_MS)
    usage = {"audio_ms": 60_000, "characters": 900, "input_tokens": 5_000, "output_tokens": 80}
    assert price.rate(usage) == 0


def test_one_model_has_a_price_for_each_way_it_is_used() -> None:
    prices = BOOK.prices_of("deepgram/nova-3", NOW_UNIX_MS)
    assert [price.model for price in prices if price.kind == "base"] == [
        "nova-3 (monolingual)",
        "nova-3 (multilingual)",
        "nova-3 (monolingual, pre-recorded)",
    ]


def test_a_name_finds_what_was_charged_then() -> None:
    (before,) = BOOK.prices_of("elevenlabs/eleven_v3", 1_788_000_000_000)  # 2026-08-29
    (after,) = BOOK.prices_of("elevenlabs/eleven_v3", NOW_UNIX_MS)
    thousand = {"characters": 1_000}
    assert (before.rate(thousand), after.rate(thousand)) == (100_000_000, 80_000_000)


@pytest.mark.parametrize(
    ("asked", "served", "same"),
    [
        ("gpt-4o-mini", "gpt-4o-mini-2024-07-18", True),
        ("openai/gpt-4o-mini", "gpt-4o-mini", True),
        ("claude-sonnet-4-5", "claude-sonnet-4-5-20250929", True),
        ("claude-3-5-haiku-latest", "claude-3-5-haiku-20241022", True),
        ("gemini-2.0-flash", "gemini-2.0-flash-001", True),
        ("gemini-2.0-flash", "models/gemini-2.0-flash", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("openai/gpt-4o-mini", "google/gemini-2.5-flash", False),
        ("gpt-5", "gpt-5-mini-2025-08-07", False),
        ("", "gpt-4o", False),
    ],
)
def test_a_snapshot_is_the_model_that_was_asked_for(asked: str, served: str, same: bool) -> None:
    assert same_model(asked, served) is same


def test_a_model_is_listed_with_each_price_that_its_legs_may_have() -> None:
    contract = """
prices:
  rows:
    - {provider: deepgram, model: nova-3, modality: stt, rule: audio, languages: [de],
       rates: {audio_ms: {usd: 0.001, per: minute}}}
    - {provider: openai, model: gpt-4o, modality: llm, rule: tokens, service_tier: priority,
       rates: {input_tokens: {usd: 1, per: million}, output_tokens: {usd: 2, per: million}}}
"""
    book = open_price_book(overrides=parse_prices(contract, Path("voicecost.yaml"), {}).overrides)
    for name, model in (("deepgram/nova-3", "nova-3"), ("openai/gpt-4o", "gpt-4o (priority)")):
        listed = book.prices_of(name, NOW_UNIX_MS)
        by_contract = [price.model for price in listed if price.plan == "contract"]
        assert by_contract == [model]
        assert len(listed) > 1

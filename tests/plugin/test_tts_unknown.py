"""Voices whose wire nobody has taught us: how near what their plugins take comes to the bill."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterable, Iterator

import pytest
from livekit.agents import APIConnectOptions

from livekit.plugins.voicecost import _attribution, _instrument_tts
from tests.plugin.metered_session import RecordingMeter
from tests.plugin.voices import BY_CHARACTERS, simulated_voice
from tests.simulators import LONG_ANSWER, Fault
from tests.simulators.speech import Pace
from voicecost_ledger.records import Basis, LegStop, Modality, Outcome

ONE_TRY = APIConnectOptions(max_retry=0, timeout=5)
TEXTS = (
    LONG_ANSWER,
    "It is sunny in Paris today, and it will stay so. Take a hat.",
    "Sure! Your order 12345 ships on Monday; the price is $12.50. Anything else?",
    "Der Zug nach Zürich fährt um 8:15 Uhr ab. Bitte seien Sie pünktlich, ja?",
)


@pytest.fixture
def meter() -> Iterator[RecordingMeter]:
    meter = RecordingMeter()
    with _attribution.scoped(meter):
        yield meter


@pytest.fixture(autouse=True)
def no_protocol_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_instrument_tts, "TEXT_PROTOCOLS", {})


async def _read(stream: AsyncIterable[object]) -> None:
    async for _ in stream:
        pass


@pytest.mark.parametrize("name", BY_CHARACTERS)
async def test_mixed_texts_are_within_a_hundredth_of_the_bill(
    name: str, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words and whole sentences, two of five cut off while the LLM writes."""
    pace = Pace(first_byte_delay_ms=2, speed=0)
    seeded = random.Random(7)
    async with simulated_voice(name, monkeypatch, pace=pace) as voice:
        for _ in range(10):
            text, cut = seeded.choice(TEXTS), seeded.random() < 0.4
            stream = voice.tts.stream(conn_options=ONE_TRY)
            reader = asyncio.create_task(_read(stream))
            start, end = 0, seeded.randint(10, len(text)) if cut else len(text)
            while start < end:
                size = seeded.randint(1, 9)
                stream.push_text(text[start : start + size])
                start += size
                await asyncio.sleep(0)
            if cut:
                await asyncio.sleep(0.01)
                reader.cancel()
                await asyncio.wait([reader])
            else:
                stream.end_input()
                await reader
            await stream.aclose()
        await voice.tts.aclose()
        await voice.bill.settled()
    legs = [leg for leg in meter.of(Modality.TTS) if leg.usage["characters"]]
    assert {leg.basis for leg in legs} == {Basis.ESTIMATED}
    assert len(legs) == len(voice.bill.rows)
    ours = meter.total(Modality.TTS, "characters")
    assert abs(ours - voice.billed) <= voice.billed * 0.01
    stops = [
        fields
        for make, fields in meter.records
        if make is LegStop and any(fields["usage"].values())
    ]
    for fields, row in zip(stops, voice.bill.rows, strict=True):
        off_by = abs(fields["usage"]["characters"] - row.units["characters"])
        assert off_by <= fields["margins"]["characters"]


async def test_a_sentence_that_waits_for_its_end_is_not_counted(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the plugin took was 24 % more than it sent."""
    async with simulated_voice("cartesia", monkeypatch) as voice:
        stream = voice.tts.stream(conn_options=ONE_TRY)
        stream.push_text(
            "It is sunny in Paris today, take a hat. And then there is a long sentence"
        )
        await anext(stream)
        await stream.aclose()
        await voice.tts.aclose()
        await voice.bill.settled()
    (leg,) = meter.of(Modality.TTS)
    assert (leg.outcome, leg.basis) == (Outcome.INTERRUPTED, Basis.ESTIMATED)
    assert leg.usage["characters"] == voice.billed == 40


async def test_a_sentence_that_a_pacer_holds_back_is_not_counted(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has left the tokenizer, and waits until the caller has heard most of the first."""
    async with simulated_voice("cartesia", monkeypatch, text_pacing=True) as voice:
        stream = voice.tts.stream(conn_options=ONE_TRY)
        stream.push_text(
            "It is sunny in Paris today, take a hat. Do not stay out for too long. Well?"
        )
        stream.end_input()
        await anext(stream)
        await stream.aclose()
        await voice.tts.aclose()
        await voice.bill.settled()
    (leg,) = meter.of(Modality.TTS)
    assert leg.usage["characters"] == voice.billed == 40


async def test_a_connection_that_is_refused_costs_nothing_there_either(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = APIConnectOptions(max_retry=1, retry_interval=0, timeout=5)
    async with simulated_voice("cartesia", monkeypatch) as voice:
        voice.faults.add(Fault(status=503))
        async with voice.tts.stream(conn_options=options) as stream:
            stream.push_text("It is sunny in Paris.")
            stream.end_input()
            await _read(stream)
        await voice.tts.aclose()
        await voice.bill.settled()
    refused, served = meter.of(Modality.TTS)
    assert (refused.outcome, served.outcome) == (Outcome.FAILED, Outcome.SERVED)
    assert not any(refused.usage.values())
    assert abs(served.usage["characters"] - voice.billed) <= 1


async def test_a_text_of_which_nothing_was_sent_leaves_no_leg_open(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first stream of a plugin is counted by what it takes, until it asks its tokenizer."""
    monkeypatch.setattr(_instrument_tts, "_tokenizing", set[type[object]]())
    async with simulated_voice("cartesia", monkeypatch) as voice:
        stream = voice.tts.stream(conn_options=ONE_TRY)
        stream.push_text("It is sunny in")
        await meter.until(lambda: meter.of(Modality.TTS))
        for _ in range(5):
            await asyncio.sleep(0)  # until it waits for the rest of the sentence
        await stream.aclose()
        await voice.tts.aclose()
        await voice.bill.settled()
    (leg,) = meter.of(Modality.TTS)
    assert voice.billed == 0
    assert leg.outcome is Outcome.INTERRUPTED
    assert not any(leg.usage.values())

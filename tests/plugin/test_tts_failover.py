"""A FallbackAdapter of voices: the switch, the probe, the way back, and the close."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterator
from contextlib import AsyncExitStack

import pytest
from livekit.agents import APIConnectionError, APIConnectOptions
from livekit.agents.tts import AvailabilityChangedEvent, FallbackAdapter
from livekit.plugins.azure import TTS as AzureTTS

from livekit.plugins.voicecost import _attribution
from tests.plugin.metered_session import RecordingMeter
from tests.plugin.voices import Voice, simulated_voice
from tests.simulators import LONG_ANSWER, Fault
from tests.simulators.speech import Pace
from voicecost_ledger.records import Basis, Modality, Outcome

OPTIONS = APIConnectOptions(max_retry=0, timeout=0.3)
TEXT = "It is sunny in Paris today, so take a hat with you. Do not stay out too long, please."


@pytest.fixture
def meter() -> Iterator[RecordingMeter]:
    meter = RecordingMeter()
    with _attribution.scoped(meter):
        yield meter


async def _read(stream: AsyncIterable[object]) -> None:
    async for _ in stream:
        pass


async def _say(adapter: FallbackAdapter, text: str) -> None:
    async with adapter.stream(conn_options=OPTIONS) as stream:
        stream.push_text(text)
        stream.end_input()
        await _read(stream)


def _recovered(adapter: FallbackAdapter) -> asyncio.Event:
    recovered = asyncio.Event()

    def changed(event: AvailabilityChangedEvent) -> None:
        if event.available:
            recovered.set()

    adapter.on("tts_availability_changed", changed)
    return recovered


async def _settled(*voices: Voice) -> None:
    for voice in voices:
        await voice.tts.aclose()
        await voice.bill.settled()


def _rows(*voices: Voice) -> list[int]:
    return sorted(
        row.units["characters"]
        for voice in voices
        for row in voice.bill.rows
        if any(row.units.values())
    )


@pytest.mark.parametrize("fault", [Fault(silent=True), Fault(status=429)], ids=["hangs", "refuses"])
async def test_the_switch_the_probe_and_the_way_back(
    fault: Fault, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each says the text again, and each is billed."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(simulated_voice("cartesia", monkeypatch))
        second = await stack.enter_async_context(simulated_voice("elevenlabs", monkeypatch))
        adapter = FallbackAdapter([first.tts, second.tts], max_retry_per_tts=0)
        recovered = _recovered(adapter)
        first.faults.add(fault)
        await _say(adapter, TEXT)
        async with asyncio.timeout(5):
            await recovered.wait()
        await _say(adapter, TEXT)
        await adapter.aclose()
        await _settled(first, second)
    legs = meter.of(Modality.TTS)
    assert sorted((leg.attributes.provider, leg.outcome or "") for leg in legs) == [
        ("Cartesia", "failed"),
        ("Cartesia", "probe"),
        ("Cartesia", "served"),
        ("ElevenLabs", "served"),
    ]
    assert {leg.basis for leg in legs} == {Basis.OBSERVED}
    characters = sorted(leg.usage["characters"] for leg in legs if leg.usage["characters"])
    assert characters == _rows(first, second)


async def test_a_voice_that_dies_in_mid_audio_is_not_replaced(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LiveKit goes on with the next voice only as long as nothing was heard; it probes later."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(simulated_voice("cartesia", monkeypatch))
        second = await stack.enter_async_context(simulated_voice("inference", monkeypatch))
        adapter = FallbackAdapter([first.tts, second.tts], max_retry_per_tts=0)
        first.faults.add(Fault(dies_after=1_000))
        await _say(adapter, TEXT)
        await adapter.aclose()
        await _settled(first, second)
    (leg,) = meter.of(Modality.TTS)
    assert leg.outcome is Outcome.FAILED
    assert [leg.usage["characters"]] == _rows(first, second)


async def test_a_probe_that_is_still_open_when_the_adapter_closes(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LiveKit's events lose it; the provider has the whole text."""
    slow = Pace(first_byte_delay_ms=5, speed=2)
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(simulated_voice("cartesia", monkeypatch, pace=slow))
        second = await stack.enter_async_context(simulated_voice("deepgram", monkeypatch))
        adapter = FallbackAdapter([first.tts, second.tts], max_retry_per_tts=0)
        first.faults.add(Fault(status=500))
        await _say(adapter, LONG_ANSWER)
        await first.bill.accepted(2)  # the refused request and the probe
        await meter.until(lambda: meter.of(Modality.TTS)[-1].usage.get("audio_ms", 0) > 0)
        await adapter.aclose()
        await _settled(first, second)
    probes = [leg for leg in meter.of(Modality.TTS) if leg.outcome is Outcome.PROBE]
    assert len(probes) == 1
    legs = [leg for leg in meter.of(Modality.TTS) if leg.usage["characters"]]
    assert sorted(leg.usage["characters"] for leg in legs) == _rows(first, second)


async def test_voices_that_take_whole_texts_fail_over_by_the_sentence(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(simulated_voice("azure", monkeypatch))
        second = await stack.enter_async_context(simulated_voice("cartesia", monkeypatch))
        assert isinstance(first.tts, AzureTTS)
        adapter = FallbackAdapter([first.tts, second.tts], max_retry_per_tts=0)
        recovered = _recovered(adapter)
        first.faults.add(Fault(status=503))
        await _say(adapter, TEXT)
        async with asyncio.timeout(5):
            await recovered.wait()
        await adapter.aclose()
        await _settled(first, second)
    legs = [leg for leg in meter.of(Modality.TTS) if leg.usage["characters"]]
    assert sorted(leg.usage["characters"] for leg in legs) == _rows(first, second)
    assert {leg.outcome for leg in legs} == {Outcome.SERVED, Outcome.PROBE}


async def test_when_all_fail_each_attempt_is_a_leg(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(simulated_voice("cartesia", monkeypatch))
        second = await stack.enter_async_context(simulated_voice("elevenlabs", monkeypatch))
        adapter = FallbackAdapter([first.tts, second.tts], max_retry_per_tts=0)
        first.faults.add(Fault(silent=True), Fault(silent=True))
        second.faults.add(Fault(silent=True), Fault(silent=True))
        with pytest.raises(APIConnectionError):
            await _say(adapter, TEXT)
        await adapter.aclose()
        await _settled(first, second)
    failed = [leg for leg in meter.of(Modality.TTS) if leg.outcome is Outcome.FAILED]
    assert len(failed) == 2
    legs = [leg for leg in meter.of(Modality.TTS) if leg.usage["characters"]]
    assert sorted(leg.usage["characters"] for leg in legs) == _rows(first, second)

"""Connections that change under a stream: options, failover, the end of the money, sessions."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from livekit import rtc
from livekit.agents.stt import FallbackAdapter, SpeechEventType
from livekit.agents.voice import io
from livekit.plugins.assemblyai import STT as AssemblyAISTT
from livekit.plugins.openai import STT as OpenAISTT

from livekit.plugins.voicecost import _attribution, _instrument, _pulse, _transcript_tokens
from tests.plugin.metered_session import RecordingMeter, metered_call, simulated_providers
from tests.plugin.stt_streams import (
    ONE_TRY,
    RECOGNISERS,
    TRANSCRIPTS,
    connected_alike,
    faults_of,
    heard_alike,
    legs_of,
    open_microphone,
    push,
    running,
    said,
    sound,
)
from tests.simulators import Fault
from tests.simulators.assemblyai import AssemblyAISimulator
from voicecost_ledger.records import Basis, LegInterim, Modality, Outcome

BY_NAME = {recogniser.name: recogniser for recogniser in RECOGNISERS}


@pytest.fixture
def meter() -> Iterator[RecordingMeter]:
    meter = RecordingMeter()
    with _attribution.scoped(meter):
        yield meter


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deepgram", {"language": "de"}),
        ("deepgram flux", {"numerals": True}),
        ("cartesia ink-whisper", {"language": "fr"}),
        ("elevenlabs", {"no_verbatim": True}),
        ("google", {"punctuate": False}),
    ],
)
async def test_an_option_that_needs_a_new_connection_makes_a_new_leg(
    name: str, options: dict[str, Any], meter: RecordingMeter
) -> None:
    async with running(BY_NAME[name]) as (simulator, stt):
        stream: Any = stt.stream(conn_options=ONE_TRY)
        async with open_microphone(stream):
            await meter.until(lambda: meter.total(Modality.STT, "audio_ms") > 500)
            stt.update_options(**options)
            await meter.until(lambda: [leg.usage["audio_ms"] > 500 for leg in legs_of(meter)[1:]])
            await meter.until(lambda: legs_of(meter)[1].usage["audio_ms"] > 500)
        await stream.aclose()
        await stt.aclose()
        await simulator.bill.settled()
    legs, rows = legs_of(meter), simulator.bill.rows

    assert [leg.outcome for leg in legs] == [Outcome.SERVED, Outcome.SERVED]
    assert all(heard_alike(leg, row) for leg, row in zip(legs, rows, strict=True))
    assert all(connected_alike(leg, row) for leg, row in zip(legs, rows, strict=True))
    if "language" in options:
        assert [leg.attributes.language for leg in legs][1] == options["language"]


async def test_key_terms_that_livekit_switches_on_are_billed_from_then_on(
    meter: RecordingMeter,
) -> None:
    """A session may hand its recogniser names to listen for in mid-call: Deepgram charges that."""
    async with running(BY_NAME["deepgram"]) as (_, stt):
        stt.update_options(enable_diarization=True)
        stream: Any = stt.stream(conn_options=ONE_TRY)
        async with open_microphone(stream):
            await meter.until(lambda: meter.total(Modality.STT, "audio_ms") > 100)
            stt._update_session_keyterms(["Nonna"])
            await meter.until(lambda: [leg.usage["audio_ms"] > 100 for leg in legs_of(meter)[1:]])
        await stream.aclose()
    legs = legs_of(meter)
    assert [leg.attributes.addons for leg in legs] == [
        ("diarization",),
        ("keyterms", "diarization"),
    ]


async def test_failover_switches_probes_and_returns(meter: RecordingMeter) -> None:
    deepgram, flux = BY_NAME["deepgram"], BY_NAME["deepgram flux"]
    async with running(deepgram) as (first, main), running(flux) as (second, spare):
        faults_of(first).add(Fault(status=503))
        adapter = FallbackAdapter([main, spare], max_retry_per_stt=0)
        async with adapter.stream(conn_options=ONE_TRY) as stream:
            recovered = asyncio.Event()
            adapter.on("stt_availability_changed", lambda ev: ev.available and recovered.set())
            await meter.until(lambda: len(legs_of(meter)) >= 3)  # failed, the other, the probe
            push(stream)
            await said(stream, words=1)
            async with asyncio.timeout(10):
                await recovered.wait()
        await meter.stopped(Modality.STT, 3)
        async with adapter.stream(conn_options=ONE_TRY) as stream:
            push(stream)
            await meter.until(
                lambda: len(legs_of(meter)) == 4 and legs_of(meter)[3].usage["audio_ms"] > 500
            )
        await adapter.aclose()
        await first.bill.settled()
        await second.bill.settled()
    legs = legs_of(meter)

    assert sorted(leg.outcome or "" for leg in legs) == ["failed", "probe", "served", "served"]
    assert legs[3].attributes.model == "nova-3"
    (failed,) = [leg for leg in legs if leg.outcome is Outcome.FAILED]
    assert failed.usage["audio_ms"] == 0
    for simulator, model in ((first, "nova-3"), (second, "flux-general-en")):
        ours = sum(leg.usage["audio_ms"] for leg in legs if leg.attributes.model == model)
        assert ours == simulator.bill.total("audio_ms") > 0


async def test_a_muted_call_ends_when_the_money_is_gone(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open socket may be billed by its time: nobody has to speak for that."""
    monkeypatch.setattr(_pulse, "PULSE_S", 0.02)
    async with running(BY_NAME["assemblyai"]) as (simulator, stt):
        stream = stt.stream(conn_options=ONE_TRY)
        await meter.until(lambda: meter.total(Modality.STT, "connected_ms") > 30)
        meter.cut = True
        assert [event async for event in stream] == []  # it ends, and raises nothing
        await stream.aclose()
        await simulator.bill.settled()
    (leg,) = legs_of(meter)
    assert leg.outcome is Outcome.CUT


async def test_nothing_is_watched_once_streams_are_closed(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pulse, "PULSE_S", 60.0)
    async with running(BY_NAME["assemblyai"]) as (_, stt):
        streams = [stt.stream(conn_options=ONE_TRY) for _ in range(3)]
        await meter.until(lambda: len(legs_of(meter)) == 3)
        pulse = _pulse._pulses[asyncio.get_running_loop()]
        assert len(pulse.members) == 3
        assert pulse.is_timed
        for stream in streams:
            await stream.aclose()
        assert not pulse.members
        pulse.beat()
        assert not pulse.is_timed


async def test_a_pulse_writes_nothing_for_a_leg_that_is_written_anyway(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pulse, "PULSE_S", 60)  # but for the one below
    async with running(BY_NAME["deepgram flux"]) as (_, stt):
        stream = stt.stream(conn_options=ONE_TRY)
        await meter.until(lambda: meter.total(Modality.STT, "connected_ms") >= 0 and legs_of(meter))
        async with open_microphone(stream):
            await meter.until(lambda: meter.total(Modality.STT, "audio_ms") > 300)
            (attempt,) = _pulse._pulses[asyncio.get_running_loop()].members
            spends: list[object] = []
            monkeypatch.setattr(attempt, "_spend", spends.append)
            attempt.pulse()
        assert spends == []
        await stream.aclose()


@pytest.mark.parametrize("name", ["assemblyai", "elevenlabs", "livekit inference", "google"])
async def test_a_session_is_billed_to_its_last_silence(name: str) -> None:
    """`aclose` itself pushes silence, to get the last words out: that is billed too."""
    recogniser = BY_NAME[name]
    async with simulated_providers() as providers, running(recogniser) as (simulator, stt):
        async with metered_call(providers, hears=True, stt=stt) as call:
            await call.meter.until(lambda: call.meter.total(Modality.STT, "audio_ms") > 1_000)
            await call.close()
        await stt.aclose()
        await simulator.bill.settled()
        (leg,), (row,) = legs_of(call.meter), simulator.bill.rows

    assert leg.outcome is Outcome.SERVED
    assert heard_alike(leg, row)
    assert row.units["audio_ms"] > 1_000
    assert connected_alike(leg, row)
    assert any(make is LegInterim for make, _ in call.meter.records)


class _Muted(io.AudioInput):
    """A microphone that is muted: not one frame."""

    def __init__(self) -> None:
        super().__init__(label="muted")

    async def __anext__(self) -> rtc.AudioFrame:
        await asyncio.Event().wait()
        raise StopAsyncIteration


async def test_a_session_whose_caller_is_muted_pays_for_the_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_pulse, "PULSE_S", 0.02)
    recogniser = BY_NAME["livekit inference"]
    async with simulated_providers() as providers, running(recogniser) as (simulator, stt):
        async with metered_call(providers, hears=_Muted(), stt=stt) as call:
            await call.meter.until(lambda: call.meter.total(Modality.STT, "connected_ms") > 100)
            await call.close()
        await simulator.bill.settled()
        (leg,), (row,) = legs_of(call.meter), simulator.bill.rows

    assert leg.outcome is Outcome.SERVED
    # What the plugin buffers of the closing silence is cut off with it.
    assert leg.usage["audio_ms"] == row.units["audio_ms"]
    assert connected_alike(leg, row)


async def test_audio_is_counted_as_it_was_declared(meter: RecordingMeter) -> None:
    """AssemblyAI's plugin sends 16-bit samples whatever it declares; the provider reads µ-law."""
    _instrument.instrument()
    try:
        async with AssemblyAISimulator() as simulator, aiohttp.ClientSession() as http:
            stt = AssemblyAISTT(
                base_url=simulator.base_url, api_key="x", http_session=http, encoding="pcm_mulaw"
            )
            async with stt.stream(conn_options=ONE_TRY) as stream, open_microphone(stream):
                await meter.until(lambda: meter.total(Modality.STT, "audio_ms") > 500)
            await simulator.bill.settled()
    finally:
        _instrument.uninstrument()
    (leg,), (row,) = legs_of(meter), simulator.bill.rows
    assert leg.usage["audio_ms"] == row.units["audio_ms"] > 500


async def test_words_on_their_way_when_a_stream_closes_are_estimated(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenAI bills what it has transcribed; its report comes too late for this stream."""
    monkeypatch.setattr(_transcript_tokens, "_rates", {})
    async with running(BY_NAME["openai"]) as (simulator, stt):
        async with stt.stream(conn_options=ONE_TRY) as stream:
            push(stream)
            await said(stream)
            simulator.transcripts.append(TRANSCRIPTS[0])
            simulator.answering.clear()
            push(stream, sound(sentences=1))
            async for event in stream:
                if event.type is SpeechEventType.END_OF_SPEECH:
                    break
        simulator.answering.set()
        await stt.aclose()
        await simulator.bill.settled()
    (leg,), (row,) = legs_of(meter), simulator.bill.rows

    assert leg.basis is Basis.ESTIMATED
    assert leg.usage["audio_ms"] == row.units["audio_ms"]
    for unit in ("input_tokens", "input_audio_tokens", "output_tokens"):
        off = abs(leg.usage[unit] - row.units[unit])
        assert off <= 4, (unit, leg.usage, row.units)


async def test_words_on_their_way_of_a_model_billed_by_duration_are_no_tokens(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its audio is all that is billed, and that is exact; nor is it taken for another later."""
    monkeypatch.setattr(_transcript_tokens, "_rates", {})
    whisper = dataclasses.replace(BY_NAME["openai"], plugin=_whisper)
    async with running(whisper) as (simulator, stt):
        async with stt.stream(conn_options=ONE_TRY) as stream:
            simulator.answering.clear()
            push(stream, sound(sentences=1))
            async for event in stream:
                if event.type is SpeechEventType.END_OF_SPEECH:
                    break
        simulator.answering.set()
        await stt.aclose()
        await simulator.bill.settled()
    (leg,), (row,) = legs_of(meter), simulator.bill.rows
    assert leg.basis is Basis.OBSERVED
    assert leg.usage.keys() == {"audio_ms", "connected_ms"}
    assert leg.usage["audio_ms"] == row.units["audio_ms"]
    provider, model = leg.attributes.provider, leg.attributes.model
    assert not _transcript_tokens.is_billed_by_token(provider, model)


def _whisper(simulator: Any, http: aiohttp.ClientSession) -> OpenAISTT:
    stt = OpenAISTT(model="whisper-1", use_realtime=True, base_url=simulator.base_url, api_key="x")
    stt._session = http
    return stt


async def test_a_session_that_fails_over_pays_for_both_and_the_probe() -> None:
    deepgram, flux = BY_NAME["deepgram"], BY_NAME["deepgram flux"]
    async with (
        simulated_providers() as providers,
        running(deepgram) as (first, main),
        running(flux) as (second, spare),
    ):
        faults_of(first).add(Fault(dies_after=400))
        adapter = FallbackAdapter([main, spare], max_retry_per_stt=0)
        async with metered_call(providers, hears=True, stt=adapter) as call:
            await call.meter.until(
                lambda: [leg.usage["audio_ms"] > 500 for leg in legs_of(call.meter)].count(True) > 1
            )
            await call.close()
        await adapter.aclose()  # LiveKit leaves the probe's socket open until then
        legs = await call.meter.stopped(Modality.STT, 3)
        await first.bill.settled()
        await second.bill.settled()

    died, *others = sorted(legs, key=lambda leg: leg.outcome is not Outcome.FAILED)
    assert died.outcome is Outcome.FAILED
    received_ms = first.bill.rows[0].units["audio_ms"]
    assert 400 <= received_ms <= died.usage["audio_ms"] <= received_ms + 500
    assert {leg.outcome for leg in others} == {Outcome.SERVED, Outcome.PROBE}
    for leg in others:
        (row,) = second.bill.rows if "flux" in leg.attributes.model else first.bill.rows[1:]
        assert leg.usage["audio_ms"] == row.units["audio_ms"] > 0


@pytest.mark.parametrize("name", ["deepgram", "elevenlabs", "livekit inference"])
async def test_a_session_whose_socket_dies_hears_on_with_another(name: str) -> None:
    recogniser = BY_NAME[name]
    async with simulated_providers() as providers, running(recogniser) as (simulator, stt):
        faults_of(simulator).add(Fault(dies_after=400))
        async with metered_call(providers, hears=True, stt=stt) as call:
            await call.meter.until(
                lambda: [leg.usage["audio_ms"] > 500 for leg in legs_of(call.meter)[1:]] == [True]
            )
            await call.close()
        await simulator.bill.settled()
    (died, served), rows = legs_of(call.meter), simulator.bill.rows

    assert (died.outcome, served.outcome) == (Outcome.FAILED, Outcome.SERVED)
    received_ms = rows[0].units["audio_ms"]
    assert 400 <= received_ms <= died.usage["audio_ms"] <= received_ms + 500
    assert served.usage["audio_ms"] == rows[1].units["audio_ms"] > 500

"""Recognition of whole recordings: a leg per request, by duration or by the tokens reported."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from livekit import rtc
from livekit.agents import APIConnectOptions, APIError
from livekit.agents.stt import STT, FallbackAdapter, StreamAdapter
from livekit.agents.vad import VAD, VADCapabilities, VADEvent, VADEventType, VADStream
from livekit.plugins.groq import STT as GroqSTT
from livekit.plugins.openai import STT as OpenAISTT

from livekit.plugins.voicecost import _attribution, _instrument, _transcript_tokens
from tests.plugin.metered_session import RecordingMeter, metered_call, simulated_providers
from tests.plugin.stt_streams import ONE_TRY, legs_of, said, sound
from tests.simulators import Fault
from tests.simulators.openai_transcriptions import OpenAITranscriptionsSimulator
from voicecost_ledger.records import Basis, Modality, Outcome

TEXT = "And how is the weather in Paris today?"


@pytest.fixture
def meter() -> Iterator[RecordingMeter]:
    meter = RecordingMeter()
    with _attribution.scoped(meter):
        yield meter


@pytest.fixture(autouse=True)
def no_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of any model yet."""
    monkeypatch.setattr(_transcript_tokens, "_rates", {})


_made: list[OpenAISTT] = []


@asynccontextmanager
async def transcriptions(**options: Any) -> AsyncGenerator[OpenAITranscriptionsSimulator]:
    """The simulator, observed."""
    _instrument.instrument()
    try:
        settings: dict[str, Any] = {"transcripts": [TEXT, TEXT]} | options
        async with OpenAITranscriptionsSimulator(**settings) as simulator:
            yield simulator
            while _made:  # the plugin leaves its HTTP client open
                await _made.pop()._client.close()
    finally:
        _instrument.uninstrument()


def whisper(simulator: OpenAITranscriptionsSimulator) -> STT[Any]:
    return _keep(OpenAISTT(model="whisper-1", base_url=simulator.base_url, api_key="x"))


def transcribe(simulator: OpenAITranscriptionsSimulator, **options: Any) -> STT[Any]:
    return _keep(
        OpenAISTT(model="gpt-4o-transcribe", base_url=simulator.base_url, api_key="x", **options)
    )


def groq(simulator: OpenAITranscriptionsSimulator) -> STT[Any]:
    return _keep(GroqSTT(base_url=simulator.base_url, api_key="x"))


def _keep(stt: OpenAISTT) -> OpenAISTT:
    _made.append(stt)
    return stt


def recording(ms: int = 1_237, *, sample_rate: int = 16_000) -> list[rtc.AudioFrame]:
    """Silence in two frames; a duration that no provider's steps fit."""
    frames = [ms // 3, ms - ms // 3]
    return [
        rtc.AudioFrame(bytes(2 * (sample_rate * part // 1000)), sample_rate, 1,
                       sample_rate * part // 1000)
        for part in frames
    ]  # fmt: skip


@pytest.mark.parametrize("make", [whisper, groq])
async def test_a_model_billed_by_duration(
    make: Callable[[OpenAITranscriptionsSimulator], STT[Any]], meter: RecordingMeter
) -> None:
    """Its milliseconds are kept as they are: rounding, or ten seconds at least, is a price's."""
    async with transcriptions() as simulator:
        event = await make(simulator).recognize(recording(), conn_options=ONE_TRY)
        await simulator.bill.settled()
    (leg,), (row,) = legs_of(meter), simulator.bill.rows
    assert event.alternatives[0].text == TEXT
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.OBSERVED)
    assert leg.usage == {"audio_ms": 1_237}
    assert row.units == {"audio_ms": 1_237}
    assert (leg.attributes.model, leg.attributes.streaming) == (row.model, False)


async def test_a_model_billed_by_token_is_taken_at_its_word(meter: RecordingMeter) -> None:
    """LiveKit's event of a recording has no tokens at all."""
    async with transcriptions() as simulator:
        stt = transcribe(simulator, prompt="A call about the weather.")
        await stt.recognize(recording(), conn_options=ONE_TRY)
        await simulator.bill.settled()
    (leg,), (row,) = legs_of(meter), simulator.bill.rows
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.REPORTED)
    assert leg.usage == row.units
    assert leg.usage["input_tokens"] > leg.usage["input_audio_tokens"] == 13
    assert leg.usage["output_tokens"] > 5


async def test_a_refused_request_costs_nothing_and_its_retry_is_a_leg(
    meter: RecordingMeter,
) -> None:
    options = APIConnectOptions(max_retry=1, retry_interval=0, timeout=5)
    async with transcriptions() as simulator:
        simulator.faults.add(Fault(status=429))
        await transcribe(simulator).recognize(recording(), conn_options=options)
        await simulator.bill.settled()
    refused, served = legs_of(meter)
    assert (refused.outcome, served.outcome) == (Outcome.FAILED, Outcome.SERVED)
    assert refused.usage == {"audio_ms": 0}
    assert served.usage == simulator.bill.rows[1].units


async def test_a_request_that_breaks_off_is_estimated_from_what_the_model_reported_before(
    meter: RecordingMeter,
) -> None:
    async with transcriptions() as simulator:
        stt = transcribe(simulator)
        await stt.recognize(recording(), conn_options=ONE_TRY)
        simulator.faults.add(Fault(dies_after=1))
        with pytest.raises(APIError):
            await stt.recognize(recording(2_474), conn_options=ONE_TRY)
        await simulator.bill.settled()
    served, broken = legs_of(meter)
    _, row = simulator.bill.rows
    assert (broken.outcome, broken.basis) == (Outcome.FAILED, Basis.ESTIMATED)
    assert broken.usage["audio_ms"] == row.units["audio_ms"] == 2_474
    assert abs(broken.usage["input_audio_tokens"] - row.units["input_audio_tokens"]) <= 1
    assert broken.usage["output_tokens"] == 2 * served.usage["output_tokens"]


async def test_a_request_that_its_caller_leaves_is_estimated_too(meter: RecordingMeter) -> None:
    async with transcriptions() as simulator:
        simulator.faults.add(Fault(silent=True))
        task = asyncio.create_task(
            transcribe(simulator).recognize(recording(), conn_options=ONE_TRY)
        )
        await meter.until(lambda: legs_of(meter))
        await simulator.accepted.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await simulator.bill.settled()
    (leg,), (row,) = legs_of(meter), simulator.bill.rows
    assert (leg.outcome, leg.basis) == (Outcome.INTERRUPTED, Basis.ESTIMATED)
    assert leg.usage["audio_ms"] == row.units["audio_ms"]
    assert abs(leg.usage["input_audio_tokens"] - row.units["input_audio_tokens"]) <= 1


class EndpointingVAD(VAD):
    """A VAD that is told when speech ends: after so many milliseconds each."""

    def __init__(self, *turns_ms: int) -> None:
        super().__init__(capabilities=VADCapabilities(update_interval=0.01))
        self.turns_ms = list(turns_ms)

    def stream(self) -> VADStream:
        return _EndpointingVADStream(self)


class _EndpointingVADStream(VADStream):
    _vad: EndpointingVAD

    async def _main_task(self) -> None:
        frames: list[rtc.AudioFrame] = []
        turns_ms = self._vad.turns_ms
        async for item in self._input_ch:
            if not isinstance(item, rtc.AudioFrame):
                continue
            frames.append(item)
            samples = sum(frame.samples_per_channel for frame in frames)
            if turns_ms and samples * 1000 // item.sample_rate >= turns_ms[0]:
                turns_ms.pop(0)
                for kind in (VADEventType.START_OF_SPEECH, VADEventType.END_OF_SPEECH):
                    self._event_ch.send_nowait(
                        VADEvent(
                            type=kind,
                            samples_index=samples,
                            timestamp=0.0,
                            speech_duration=0.0,
                            silence_duration=0.0,
                            frames=list(frames),
                        )
                    )
                frames.clear()


async def test_behind_a_vad_only_what_it_lets_through_is_billed(meter: RecordingMeter) -> None:
    async with transcriptions() as simulator:
        adapter = StreamAdapter(stt=transcribe(simulator), vad=EndpointingVAD(700, 900))
        async with adapter.stream(conn_options=ONE_TRY) as stream:
            for frame in sound():
                stream.push_frame(frame)
            stream.end_input()
            assert await said(stream, words=16) == f"{TEXT} {TEXT}"
        await simulator.bill.settled()
    legs, rows = legs_of(meter), simulator.bill.rows
    assert [leg.usage for leg in legs] == [row.units for row in rows]
    assert [leg.basis for leg in legs] == [Basis.REPORTED, Basis.REPORTED]
    assert meter.total(Modality.STT, "audio_ms") < 3_300


async def test_failover_of_recordings_shows_the_failure_the_answer_and_the_probe(
    meter: RecordingMeter,
) -> None:
    async with transcriptions(transcripts=[TEXT] * 3) as simulator:
        simulator.faults.add(Fault(status=503))
        adapter = FallbackAdapter(
            [whisper(simulator), groq(simulator)], vad=EndpointingVAD(), max_retry_per_stt=0
        )
        await adapter.recognize(recording())
        legs = await meter.stopped(Modality.STT, 3)
        await adapter.aclose()
        await simulator.bill.settled()
    assert sorted(leg.outcome or "" for leg in legs) == ["failed", "probe", "served"]
    assert meter.total(Modality.STT, "audio_ms") == simulator.bill.total("audio_ms") == 2_474


class _Voice:
    """Speaks, then is still: enough of it for one turn of the VAD."""

    def frames(self) -> Iterator[rtc.AudioFrame]:
        yield from sound(sample_rate=24_000)


async def test_a_session_with_a_recogniser_of_recordings() -> None:
    """AgentSession puts its own StreamAdapter around it."""
    from livekit.agents.voice import io

    class Microphone(io.AudioInput):
        def __init__(self) -> None:
            super().__init__(label="microphone")
            self._frames = _Voice().frames()

        async def __anext__(self) -> rtc.AudioFrame:
            frame = next(self._frames, None)
            if frame is None:
                await asyncio.Event().wait()
                raise StopAsyncIteration
            await asyncio.sleep(0)
            return frame

    async with simulated_providers() as providers, transcriptions() as simulator:
        stt = StreamAdapter(stt=transcribe(simulator), vad=EndpointingVAD(800))
        async with metered_call(providers, hears=Microphone(), stt=stt) as call:
            legs = await call.meter.stopped(Modality.STT)
            await call.close()
        await simulator.bill.settled()
    assert [leg.usage for leg in legs] == [row.units for row in simulator.bill.rows]
    assert [(leg.outcome, leg.basis) for leg in legs] == [(Outcome.SERVED, Basis.REPORTED)]

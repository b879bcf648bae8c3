"""LiveKit's turn detector and adaptive interruption: counted by request, as sent on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from livekit import rtc
from livekit.agents import inference
from livekit.agents.inference.interruption import (
    _AgentSpeechStartedSentinel,
    _OverlapSpeechEndedSentinel,
    _OverlapSpeechStartedSentinel,
)
from livekit.plugins.silero import VAD as Silero

from livekit.plugins.voicecost import _attribution, _instrument
from tests.plugin.metered_session import RecordingMeter, SeenLeg
from tests.simulators import Fault
from tests.simulators.inference_services import InferenceServicesSimulator
from voicecost_catalog import open_price_book
from voicecost_ledger.records import Basis, LegInterim, Modality, Outcome

FRAME = rtc.AudioFrame(bytes(2 * 1600), 16_000, 1, 1600)  # 100 ms


@dataclass
class World:
    gateway: InferenceServicesSimulator
    http: aiohttp.ClientSession
    meter: RecordingMeter

    def turn_detector(self, **options: Any) -> inference.TurnDetector:
        settings: dict[str, Any] = {
            "version": "v1",
            "base_url": self.gateway.url,
            "api_key": "key",
            "api_secret": "secret" * 6,
            "http_session": self.http,
        }
        return inference.TurnDetector(**(settings | options))

    def interruption_detector(self) -> inference.AdaptiveInterruptionDetector:
        return inference.AdaptiveInterruptionDetector(
            base_url=self.gateway.url,
            api_key="key",
            api_secret="secret" * 6,
            http_session=self.http,
        )

    def legs(self, modality: Modality) -> list[SeenLeg]:
        return self.meter.of(modality)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")
    _instrument.instrument()
    try:
        async with InferenceServicesSimulator() as gateway, aiohttp.ClientSession() as http:
            meter = RecordingMeter()
            with _attribution.scoped(meter):
                yield World(gateway, http, meter)
    finally:
        _instrument.uninstrument()


async def connected(stream: Any) -> None:
    """Return when the stream of a turn detector has a session at the gateway."""
    while stream._transport._ws is None:  # noqa: ASYNC110  (LiveKit tells nobody)
        await asyncio.sleep(0.001)


async def predict(stream: Any) -> float:
    stream.push_audio(FRAME)
    return (await stream.predict()).end_of_turn_probability


# Turns


async def test_a_turn_detectors_stream_is_one_leg_with_its_requests(world: World) -> None:
    stream = world.turn_detector().stream()
    await connected(stream)
    assert world.legs(Modality.TURN_DETECTION) == []  # nothing was asked yet
    assert [await predict(stream) for _ in range(3)] == [pytest.approx(0.9)] * 3
    await stream.aclose()
    await world.gateway.bill.settled()

    (row,), (leg,) = world.gateway.bill.rows, world.legs(Modality.TURN_DETECTION)
    assert leg.usage == row.units == {"requests": 3}
    assert (leg.basis, leg.outcome) == (Basis.OBSERVED, Outcome.SERVED)
    assert (leg.attributes.provider, leg.attributes.model) == ("livekit", "turn-detector-v1")
    assert leg.attributes.host == world.gateway.url.removeprefix("http://")


async def test_what_nobody_waits_for_was_asked_all_the_same(world: World) -> None:
    world.gateway.answer_delay_ms = 20
    stream = world.turn_detector().stream()
    await connected(stream)
    for _ in range(4):
        stream.predict()  # each supersedes the last, as when the caller goes on speaking
    await world.gateway.asked("turn_detection", 4)
    await stream.aclose()
    await world.gateway.bill.settled()
    assert world.meter.total(Modality.TURN_DETECTION, "requests") == 4


async def test_the_requests_so_far_are_recorded_while_it_goes_on(world: World) -> None:
    """A process that is killed loses a quarter of a second of them."""
    stream = world.turn_detector().stream()
    await connected(stream)
    for _ in range(2):
        await predict(stream)
    await world.meter.until(
        lambda: any(
            make is LegInterim and fields["usage"] == {"requests": 2}
            for make, fields in world.meter.records
        )
    )
    await stream.aclose()


async def test_the_local_model_it_falls_back_to_is_a_leg_of_its_own(world: World) -> None:
    world.gateway.turn_faults.add(Fault(dies_after=1))
    stream = world.turn_detector().stream()
    await connected(stream)
    await predict(stream)
    stream.predict()  # the connection breaks at this one
    while not stream.is_fallback:  # noqa: ASYNC110  (LiveKit tells nobody)
        await asyncio.sleep(0.001)
    await predict(stream)
    await stream.aclose()
    await world.gateway.bill.settled()

    hosted, local = world.legs(Modality.TURN_DETECTION)
    assert hosted.attributes.model == "turn-detector-v1"
    assert hosted.usage["requests"] == world.gateway.bill.total("requests") + 1  # sent, not served
    assert (local.attributes.provider, local.attributes.model) == ("local", "turn-detector-v1-mini")
    assert local.usage == {"requests": 1}


async def test_a_gateway_that_refuses_was_asked_nothing(world: World) -> None:
    world.gateway.turn_faults.add(Fault(status=429))
    stream = world.turn_detector(local_fallback=False).stream()
    while not stream.is_degraded:  # noqa: ASYNC110  (LiveKit tells nobody)
        await asyncio.sleep(0.001)
    await stream.aclose()
    assert world.legs(Modality.TURN_DETECTION) == []


async def test_the_local_turn_detector_is_counted(world: World) -> None:
    stream = world.turn_detector(version="v1-mini").stream()
    for _ in range(2):
        await predict(stream)
    await stream.aclose()
    (leg,) = world.legs(Modality.TURN_DETECTION)
    assert leg.usage == {"requests": 2}
    assert (leg.attributes.model, leg.outcome) == ("turn-detector-v1-mini", Outcome.SERVED)
    price = open_price_book().price_for(leg.attributes, 0)
    assert price is not None
    assert price.rate(leg.usage) == 0


@pytest.mark.parametrize("make", [inference.VAD, Silero.load])
async def test_silero_is_counted_and_costs_nothing(world: World, make: Callable[[], Any]) -> None:
    stream = make().stream()
    for _ in range(10):
        stream.push_frame(FRAME)
    events = [await anext(stream) for _ in range(20)]
    await stream.aclose()
    (leg,) = await world.meter.stopped(Modality.OTHER)
    assert leg.usage["requests"] >= len(events)
    assert leg.usage["requests"] <= 10 * 1600 // 512  # windows of 512 samples in a second of audio
    price = open_price_book().price_for(leg.attributes, 0)
    assert price is not None
    assert price.rate(leg.usage) == 0


# Interruptions


async def talk_over(stream: Any, gateway: InferenceServicesSimulator, requests: int) -> None:
    """The agent speaks, the caller talks over it for so many detection intervals."""
    stream.push_frame(_AgentSpeechStartedSentinel())
    stream.push_frame(FRAME)
    stream.push_frame(_OverlapSpeechStartedSentinel(0.1, started_at=0.0))
    for count in range(1, requests + 1):
        stream.push_frame(FRAME)
        await gateway.asked("interruption_detection", count)
    stream.push_frame(_OverlapSpeechEndedSentinel(ended_at=0.0))


async def test_an_interruption_detectors_stream_is_one_leg_with_its_requests(
    world: World,
) -> None:
    stream = world.interruption_detector().stream()
    await talk_over(stream, world.gateway, 3)
    stream.end_input()
    await stream.aclose()
    await world.gateway.bill.settled()

    (row,), (leg,) = world.gateway.bill.rows, world.legs(Modality.INTERRUPTION_DETECTION)
    assert leg.usage == row.units == {"requests": 3}
    assert (leg.basis, leg.outcome) == (Basis.OBSERVED, Outcome.SERVED)
    assert leg.attributes.model == "adaptive interruption"


async def test_a_detector_that_breaks_keeps_what_it_was_asked(world: World) -> None:
    world.gateway.interruption_faults.add(Fault(dies_after=2))
    stream = world.interruption_detector().stream()
    await talk_over(stream, world.gateway, 2)
    stream.push_frame(_AgentSpeechStartedSentinel())
    stream.push_frame(_OverlapSpeechStartedSentinel(0.1, started_at=0.0))
    stream.push_frame(FRAME)
    (leg,) = await world.meter.stopped(Modality.INTERRUPTION_DETECTION)
    assert leg.outcome is Outcome.FAILED
    assert leg.usage["requests"] == world.gateway.bill.total("requests") + 1
    with pytest.raises(Exception, match="closed unexpectedly"):
        await stream._task
    await stream._tee_aiter.aclose()

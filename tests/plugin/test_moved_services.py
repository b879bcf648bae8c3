"""A LiveKit whose younger services moved: their metric events are booked instead.

What LiveKit 1.5 has is in `test_moved_streams.py` and `test_moved_requests.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from livekit import rtc
from livekit.agents import AgentSession, inference
from livekit.agents.inference.eot.base import _BaseStreamingTurnDetectorStream
from livekit.agents.inference.interruption import InterruptionStreamBase
from livekit.agents.llm import DuplexSession
from livekit.agents.llm.decisions import DecisionModel
from livekit.agents.vad import VADStream
from livekit.agents.voice.avatar import AvatarSession
from livekit.plugins.silero import VAD as Silero

from examples.demo.livekit_server import LiveKitServer
from livekit.plugins.voicecost import _attribution, _faults
from tests.plugin.metered_session import RecordingMeter
from tests.plugin.moved import MISSED, instrumented, move, rename
from tests.plugin.realtime_call import realtime_call
from tests.plugin.test_realtime_duplex import simulated_live
from tests.plugin.test_services_avatar import Stage
from tests.plugin.test_services_decisions import ONE_TRY, QUESTIONS
from tests.plugin.test_services_detection import World, connected, predict, talk_over
from tests.plugin.voicecost_rooms import agents_room, livekit_server
from tests.simulators import Reply, ToolCall
from tests.simulators.inference_services import InferenceServicesSimulator
from voicecost_ledger.records import Basis, Coverage, Modality, Outcome

BY_EVENTS = Coverage.METRICS_ONLY


@pytest.fixture
def meter() -> Iterator[RecordingMeter]:
    meter = RecordingMeter()
    with _attribution.scoped(meter):
        yield meter


@pytest.fixture(autouse=True)
def no_faults() -> Iterator[None]:
    before = _faults.counts()
    yield
    assert _faults.counts() == before


async def test_a_duplex_model(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """Its time comes in parts, which are one leg; its backend's tokens are another."""
    move(monkeypatch, DuplexSession)
    weather = ToolCall(name="get_weather", arguments={"city": "Paris"})
    reply = Reply(text="It is sunny in Paris.", tool_call=weather)
    async with simulated_live(replies=[reply]) as live:
        caplog.clear()
        with instrumented(
            caplog,
            gone="DuplexSession._duplex_model",
            coverage=BY_EVENTS,
            says=f"realtime models: {MISSED}",
        ):
            async with realtime_call(live.model()) as call:
                call.caller.says(600)
                await call.meter.stopped(Modality.LLM)
                await call.close()
    (row,), (leg,) = live.rows("realtime"), call.responses
    assert leg.usage["connected_ms"] == row["connected_ms"] > 0
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.REPORTED)
    (row, *_), (leg, *_) = live.rows("llm"), call.meter.of(Modality.LLM)
    assert leg.usage["output_tokens"] == row["output_tokens"]


# Decisions and detectors


@pytest.fixture
async def world(meter: RecordingMeter) -> AsyncIterator[World]:
    async with InferenceServicesSimulator() as gateway, aiohttp.ClientSession() as http:
        yield World(gateway, http, meter)


async def test_decisions(world: World, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    rename(monkeypatch, DecisionModel, "evaluate")
    model = inference.DecisionModel(
        base_url=world.gateway.url, api_key="key", api_secret="secret" * 6, http_session=world.http
    )
    with instrumented(
        caplog,
        gone="DecisionModel._evaluate_impl",
        coverage=BY_EVENTS,
        says=f"decision models: {MISSED}",
    ):
        await model.evaluate(input="user: Hello?", decisions=QUESTIONS, conn_options=ONE_TRY)
        await world.gateway.bill.settled()
    (row,), (leg,) = world.gateway.bill.rows, world.legs(Modality.DECISION)
    assert leg.usage == row.units
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.REPORTED)
    assert (leg.attributes.provider, leg.attributes.model) == ("livekit", row.model)


async def test_a_turn_detector(world: World, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    move(monkeypatch, _BaseStreamingTurnDetectorStream)
    name = "_BaseStreamingTurnDetectorStream"
    gone = ", ".join(
        f"{name}.{each}" for each in ("_transport", "_audio_ch", "_request_id", "_detector")
    )
    with instrumented(caplog, gone=gone, coverage=BY_EVENTS, says=f"turn detectors: {MISSED}"):
        stream = world.turn_detector().stream()
        await connected(stream)
        for _ in range(3):
            await predict(stream)
        await stream.aclose()
        await world.gateway.bill.settled()
    (row,), (leg,) = world.gateway.bill.rows, world.legs(Modality.TURN_DETECTION)
    assert leg.usage == row.units == {"requests": 3}
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.REPORTED)
    assert (leg.attributes.provider, leg.attributes.model) == ("livekit", "turn-detector-v1")


async def test_an_interruption_detector(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    move(monkeypatch, InterruptionStreamBase)
    with instrumented(
        caplog,
        gone="InterruptionStreamBase._model",
        coverage=BY_EVENTS,
        says=f"interruption detectors: {MISSED}",
    ):
        stream = world.interruption_detector().stream()
        await talk_over(stream, world.gateway, 3)
        (leg,) = await world.meter.stopped(Modality.INTERRUPTION_DETECTION)
        stream.end_input()
        await stream.aclose()
        await world.gateway.bill.settled()
    (row,) = world.gateway.bill.rows
    assert leg.usage == row.units == {"requests": 3}
    assert leg.attributes.model == "adaptive interruption"


async def test_a_vad(world: World, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """It says every second how often it was asked; that is no leg a second."""
    move(monkeypatch, VADStream)
    frame = rtc.AudioFrame(bytes(2 * 1600), 16_000, 1, 1600)
    with instrumented(
        caplog,
        gone="VADStream._vad, VADStream._metrics_monitor_task",
        coverage=BY_EVENTS,
        says=f"VADs: {MISSED}",
    ):
        vad = Silero.load()
        reports: list[Any] = []
        vad.on("metrics_collected", reports.append)
        stream = vad.stream()
        for _ in range(30):
            stream.push_frame(frame)
        while len(reports) < 2:
            await anext(stream)
        await stream.aclose()
    (leg,) = world.legs(Modality.OTHER)
    assert leg.usage == {"requests": sum(each.inference_count for each in reports)}
    assert (leg.attributes.provider, leg.attributes.model) == ("local", "silero")


# Avatars


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveKitServer]:
    async with livekit_server(tmp_path_factory.mktemp("livekit")) as server:
        yield server


async def test_an_avatar(
    server: LiveKitServer, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Of its time LiveKit tells nothing: the call says that something is missing."""
    monkeypatch.delattr(AvatarSession, "provider")
    with instrumented(
        caplog,
        gone="AvatarSession.provider",
        coverage=Coverage.PARTIAL,
        says="avatars: not metered, a gap for each that joins",
    ):
        async with InferenceServicesSimulator() as gateway, agents_room(server) as room:
            session: AgentSession[None] = AgentSession()
            meter = RecordingMeter()
            _attribution.register(session, meter)
            stage = Stage(gateway, server, room, session, meter)
            avatar = stage.avatar()
            await stage.start(avatar)
            async with stage.worker(avatar):
                await avatar.aclose()
            await session.aclose()
            _attribution.unregister(session)
    assert stage.legs == []
    assert meter.gaps == [("avatar_without_leg", Modality.AVATAR)]

"""As `test_faults_plugins`, for what is no stream: recordings, decisions, avatars.

Each case is played twice, uninstrumented and instrumented, and must end alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from livekit import rtc
from livekit.agents import Agent, AgentSession, inference
from livekit.agents.voice.avatar import AvatarSession
from livekit.plugins.openai import STT

from examples.demo.livekit_server import LiveKitServer
from livekit.plugins.voicecost import _attribution, _faults, _instrument
from tests.plugin.metered_session import RecordingMeter
from tests.plugin.test_services_decisions import ONE_TRY, QUESTIONS
from tests.plugin.test_stt_recordings import recording
from tests.plugin.voicecost_rooms import Visitor, agents_room, livekit_server, seen_in
from tests.simulators import Bill
from tests.simulators.inference_services import InferenceServicesSimulator
from tests.simulators.openai_transcriptions import OpenAITranscriptionsSimulator
from voicecost_ledger.records import Modality

Breaks = Callable[[pytest.MonkeyPatch], None]


class PluginError(Exception):
    """What the plugin raises."""


@pytest.fixture(autouse=True)
def no_faults() -> Iterator[None]:
    before = _faults.counts()
    yield
    assert _faults.counts() == before


@dataclass
class World:
    openai: OpenAITranscriptionsSimulator
    gateway: InferenceServicesSimulator
    http: aiohttp.ClientSession


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with (
        OpenAITranscriptionsSimulator(transcripts=["Hello?"] * 9) as openai,
        InferenceServicesSimulator() as gateway,
        aiohttp.ClientSession() as http,
    ):
        yield World(openai, gateway, http)


async def recognize(world: World) -> object:
    ears = STT(model="whisper-1", base_url=world.openai.base_url, api_key="x")
    try:
        return (await ears.recognize(recording(), conn_options=ONE_TRY)).alternatives[0].text
    finally:
        await ears._client.close()


async def decide(world: World) -> object:
    model = inference.DecisionModel(
        base_url=world.gateway.url, api_key="key", api_secret="secret" * 6, http_session=world.http
    )
    response = await model.evaluate(input="user: Hello?", decisions=QUESTIONS, conn_options=ONE_TRY)
    return sorted(response.results)


def raises(plugin: type[Any], method: str) -> Breaks:
    def break_it(patched: pytest.MonkeyPatch) -> None:
        def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
            raise PluginError(method)

        patched.setattr(plugin, method, broken)

    return break_it


def raises_after(plugin: type[Any], method: str) -> Breaks:
    """The answer is there, and the plugin fails to make something of it."""

    def break_it(patched: pytest.MonkeyPatch) -> None:
        intact = getattr(plugin, method)

        async def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
            await intact(self, *args, **kwargs)
            raise PluginError(method)

        patched.setattr(plugin, method, broken)

    return break_it


def property_raises(plugin: type[Any], name: str) -> Breaks:
    def broken(self: Any) -> str:
        raise PluginError(name)

    def break_it(patched: pytest.MonkeyPatch) -> None:
        patched.setattr(plugin, name, property(broken))

    return break_it


async def how_it_ends(use: Callable[[World], Awaitable[object]], world: World, it: Breaks) -> Any:
    with pytest.MonkeyPatch.context() as patched:
        it(patched)
        try:
            return await use(world)
        except Exception as error:
            return type(error)


DECIDES = inference.DecisionModel
REQUESTS: list[Any] = [
    *(
        pytest.param(recognize, break_it(STT, name), Modality.STT, id=f"recording {name}")
        for break_it, name in (
            (property_raises, "model"), (property_raises, "provider"), (property_raises, "label"),
            (raises, "emit"), (raises, "_recognize_impl"), (raises_after, "_recognize_impl"),
        )
    ),
    *(
        pytest.param(decide, break_it(DECIDES, name), Modality.DECISION, id=f"decision {name}")
        for break_it, name in (
            (property_raises, "model"), (property_raises, "provider"), (property_raises, "label"),
            (raises, "emit"), (raises, "_evaluate_impl"), (raises_after, "_evaluate_impl"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("use", "break_it", "modality"), REQUESTS)
async def test_a_plugin_that_raises(
    use: Callable[[World], Awaitable[object]], break_it: Breaks, modality: Modality, world: World
) -> None:
    bill: Bill = world.openai.bill if use is recognize else world.gateway.bill
    without_us = await how_it_ends(use, world, break_it)
    requests_before = len(bill.rows)
    meter = RecordingMeter()
    _instrument.instrument()
    with _attribution.scoped(meter):
        with_us = await how_it_ends(use, world, break_it)
    _instrument.uninstrument()
    await bill.settled()

    assert with_us == without_us
    legs = meter.of(modality)
    assert all(leg.outcome is not None for leg in legs)
    unit = "audio_ms" if use is recognize else "input_tokens"
    billed = sum(row.units[unit] for row in bill.rows[requests_before:])
    if billed:  # where its report was lost, the first estimate of a model knows how little it knows
        margin = sum(leg.margins.get(unit, 0) for leg in legs)
        assert abs(sum(leg.usage[unit] for leg in legs) - billed) <= margin


# Avatars


class OwnAvatar(AvatarSession[Any]):
    """A user's own, whose worker is nobody."""

    @property
    def provider(self) -> str:
        return "own"

    @property
    def avatar_identity(self) -> str:
        return "own-avatar"

    async def start(self, agent_session: AgentSession[Any], room: rtc.Room) -> None:
        await super().start(agent_session, room)

    async def aclose(self) -> None:
        await super().aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveKitServer]:
    async with livekit_server(tmp_path_factory.mktemp("livekit")) as server:
        yield server


@asynccontextmanager
async def on_stage(server: LiveKitServer) -> AsyncGenerator[tuple[AgentSession[None], rtc.Room]]:
    async with agents_room(server) as room:
        session: AgentSession[None] = AgentSession()
        await session.start(Agent(instructions=""))
        try:
            yield session, room
        finally:
            await session.aclose()


async def a_life(server: LiveKitServer, break_it: Breaks, meter: RecordingMeter | None) -> Any:
    """From its start over its worker, who comes and goes, to its end; and how each part ended."""
    ended: list[object] = []
    async with on_stage(server) as (session, room):
        if meter is not None:
            _attribution.register(session, meter)
        with pytest.MonkeyPatch.context() as patched:
            break_it(patched)
            try:
                avatar = OwnAvatar()
                await avatar.start(session, room)
                ended.append("started")
                left = asyncio.Event()
                room.on("participant_disconnected", lambda _: left.set())
                async with Visitor("own-avatar").in_room(server):
                    await seen_in(room, {"own-avatar"})
                await left.wait()
                await avatar.aclose()
                ended.append("closed")
            except Exception as error:
                ended.append(type(error))
    if meter is not None:
        _attribution.unregister(session)
    return ended


@pytest.mark.parametrize(
    "break_it",
    [
        pytest.param(property_raises(OwnAvatar, "provider"), id="provider"),
        pytest.param(property_raises(OwnAvatar, "avatar_identity"), id="avatar_identity"),
        pytest.param(raises(OwnAvatar, "on"), id="on"),
        pytest.param(raises(OwnAvatar, "off"), id="off"),
        pytest.param(raises(OwnAvatar, "start"), id="start"),
        pytest.param(raises_after(OwnAvatar, "start"), id="start, after it has"),
        pytest.param(raises(OwnAvatar, "aclose"), id="aclose"),
        pytest.param(raises_after(OwnAvatar, "aclose"), id="aclose, after it has"),
    ],
)
async def test_an_avatar_that_raises(server: LiveKitServer, break_it: Breaks) -> None:
    without_us = await a_life(server, break_it, None)
    meter = RecordingMeter()
    _instrument.instrument()
    with_us = await a_life(server, break_it, meter)
    _instrument.uninstrument()
    assert with_us == without_us
    (leg,) = meter.of(Modality.AVATAR)
    assert leg.outcome is not None

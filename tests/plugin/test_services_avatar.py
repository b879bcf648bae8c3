"""Avatars by the minute: LiveKit's own `inference.AvatarSession` in a real room, and its ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from livekit import api, rtc
from livekit.agents import Agent, AgentSession, APIConnectOptions, APIStatusError, inference
from livekit.agents.voice.avatar import AvatarSession

from examples.demo.livekit_server import LiveKitServer
from livekit.plugins.voicecost import _attribution, _instrument, _instrument_avatar
from tests.plugin.metered_session import RecordingMeter, SeenLeg
from tests.plugin.voicecost_rooms import ROOM, agents_room, livekit_server, seen_in
from tests.simulators import Fault
from tests.simulators.inference_services import InferenceServicesSimulator
from voicecost_ledger.records import Basis, LegInterim, LegStop, Modality, Outcome

ONE_TRY = APIConnectOptions(max_retry=0, timeout=5)
TWO_TRIES = APIConnectOptions(max_retry=1, retry_interval=0, timeout=5)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveKitServer]:
    async with livekit_server(tmp_path_factory.mktemp("livekit")) as server:
        yield server


@dataclass
class Stage:
    gateway: InferenceServicesSimulator
    server: LiveKitServer
    room: rtc.Room
    session: AgentSession[None]
    meter: RecordingMeter

    def avatar(self, conn_options: APIConnectOptions = ONE_TRY) -> inference.AvatarSession:
        return inference.AvatarSession(
            "lemonslice/agent_7",
            base_url=self.gateway.url,
            api_key="key",
            api_secret="secret" * 6,
            conn_options=conn_options,
        )

    async def start(self, avatar: AvatarSession[Any]) -> None:
        await avatar.start(self.session, self.room, livekit_url=self.server.url)  # pyright: ignore[reportCallIssue] every plugin takes it

    @asynccontextmanager
    async def worker(self, avatar: AvatarSession[Any]) -> AsyncGenerator[None]:
        """The provider's worker, in the room for as long as the context lasts."""
        grants = api.VideoGrants(room_join=True, room=ROOM, can_update_own_metadata=True)
        token = api.AccessToken(self.server.api_key, self.server.api_secret)
        worker = rtc.Room()
        identity = avatar.avatar_identity
        await worker.connect(
            self.server.url, token.with_identity(identity).with_grants(grants).to_jwt()
        )
        track = rtc.LocalVideoTrack.create_video_track("avatar", rtc.VideoSource(64, 64))
        await worker.local_participant.publish_track(track)
        await seen_in(self.room, {identity})
        await avatar.wait_for_join()
        left = asyncio.Event()
        self.room.on("participant_disconnected", lambda _: left.set())
        try:
            yield
        finally:
            await worker.disconnect()
            await left.wait()

    @property
    def legs(self) -> list[SeenLeg]:
        return self.meter.of(Modality.AVATAR)


@pytest.fixture
async def stage(server: LiveKitServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")
    _instrument.instrument()
    try:
        async with InferenceServicesSimulator() as gateway, agents_room(server) as room:
            session: AgentSession[None] = AgentSession()
            meter = RecordingMeter()
            _attribution.register(session, meter)
            yield Stage(gateway, server, room, session, meter)
            await session.aclose()
            _attribution.unregister(session)
    finally:
        _instrument.uninstrument()


async def test_an_avatar_costs_from_its_start_to_its_end(stage: Stage) -> None:
    before_ns = time.monotonic_ns()
    avatar = stage.avatar()
    await stage.start(avatar)
    async with stage.worker(avatar):
        await avatar.aclose()
        elapsed_ms = (time.monotonic_ns() - before_ns) // 1_000_000

    (row,), (leg,) = stage.gateway.bill.rows, stage.legs
    assert row.units["connected_ms"] <= leg.usage["connected_ms"] <= elapsed_ms
    assert (leg.basis, leg.outcome) == (Basis.OBSERVED, Outcome.SERVED)
    assert (leg.attributes.provider, leg.attributes.model) == ("livekit", "lemonslice")
    assert leg.stop_count == 1


async def test_the_time_so_far_is_recorded_while_it_runs(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed loses no more than the last second of it."""
    monkeypatch.setattr(_instrument_avatar, "TICK_S", 0.01)
    avatar = stage.avatar()
    await stage.start(avatar)
    await stage.meter.until(
        lambda: any(
            make is LegInterim and fields["usage"]["connected_ms"] > 200
            for make, fields in stage.meter.records
        )
    )
    await avatar.aclose()


async def test_a_worker_that_leaves_by_itself_is_billed_no_longer(stage: Stage) -> None:
    avatar = stage.avatar()
    await stage.start(avatar)
    async with stage.worker(avatar):
        pass
    (leg,) = await stage.meter.stopped(Modality.AVATAR)
    connected_ms = leg.usage["connected_ms"]
    await avatar.aclose()
    assert leg.usage["connected_ms"] == connected_ms
    assert leg.stop_count == 1


async def test_a_worker_that_comes_back_is_a_leg_again(stage: Stage) -> None:
    avatar = stage.avatar()
    await stage.start(avatar)
    async with stage.worker(avatar):
        pass
    async with stage.worker(avatar):
        await avatar.aclose()
    assert [leg.outcome for leg in stage.legs] == [Outcome.SERVED, Outcome.SERVED]


async def test_the_end_of_the_room_is_taken_as_its_end_until_it_is_closed(stage: Stage) -> None:
    """The job's shutdown calls `aclose` after it left the room: the gateway bills until then."""
    avatar = stage.avatar()
    await stage.start(avatar)
    await stage.room.disconnect()
    (leg,) = await stage.meter.stopped(Modality.AVATAR)
    first_ms = leg.usage["connected_ms"]
    await avatar.aclose()
    (row,) = stage.gateway.bill.rows
    assert leg.stop_count == 2
    assert max(first_ms, row.units["connected_ms"]) <= leg.usage["connected_ms"]


async def test_the_end_of_the_session_does_not_wait_for_it(stage: Stage) -> None:
    await stage.session.start(Agent(instructions=""))
    avatar = stage.avatar()
    await stage.start(avatar)
    await stage.session.aclose()
    (leg,) = await stage.meter.stopped(Modality.AVATAR)
    assert leg.outcome is Outcome.SERVED
    await avatar.aclose()
    assert leg.stop_count == 2


async def test_a_refused_avatar_costs_nothing(stage: Stage) -> None:
    stage.gateway.avatar_faults.add(Fault(status=503), Fault(status=503))
    avatar = stage.avatar(TWO_TRIES)
    with pytest.raises(APIStatusError):
        await stage.start(avatar)
    (leg,) = stage.legs
    assert (leg.usage, leg.outcome) == ({"connected_ms": 0}, Outcome.FAILED)
    assert leg.basis is Basis.OBSERVED
    await avatar.aclose()
    assert leg.stop_count == 1


async def test_joining_is_its_first_answer(stage: Stage) -> None:
    avatar = stage.avatar()
    await stage.start(avatar)
    async with stage.worker(avatar):
        await avatar.aclose()
    stop = next(fields for make, fields in stage.meter.records if make is LegStop)
    assert stop["time_to_first_ms"] is not None


async def test_a_users_own_avatar_is_metered_under_its_own_name(stage: Stage) -> None:
    class OwnAvatar(AvatarSession[Any]):
        @property
        def avatar_identity(self) -> str:
            return "own"

    avatar = OwnAvatar()
    await avatar.start(stage.session, stage.room)
    await avatar.aclose()
    (leg,) = stage.legs
    assert (leg.attributes.provider, leg.attributes.model) == ("unknown", "")
    assert leg.attributes.label.endswith("OwnAvatar")

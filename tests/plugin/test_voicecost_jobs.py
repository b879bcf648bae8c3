"""Jobs: whose a meter is, what a job's end waits for, and how it is brought to its end."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from livekit import rtc
from livekit.agents import AgentSession, JobContext, JobExecutorType, JobProcess, Plugin
from livekit.agents.ipc.mock_room import create_mock_room
from livekit.agents.job import JobAcceptArguments, RunningJobInfo, _JobContextVar
from livekit.agents.utils import http_context
from livekit.agents.voice.room_io import RoomOptions
from livekit.plugins.openai import LLM
from livekit.protocol import agent, models

from livekit.plugins.voicecost import VoiceCost, _ending, _faults
from tests.plugin.voicecost_rooms import ROOM, Visitor, agent_token, livekit_server
from tests.plugin.voicecost_sessions import (
    Host,
    Providers,
    forget_process,
    ledger,
    providers,
    say_hello,
)
from voicecost_ledger.records import Environment


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Providers]:
    async with providers(monkeypatch) as world:
        yield world


def job_info(
    job_id: str, *, url: str = "wss://shop.livekit.cloud", token: str = "", fake: bool = False
) -> RunningJobInfo:
    """What a worker is told of a job."""
    return RunningJobInfo(
        accept_arguments=JobAcceptArguments(name="", identity="agent", metadata=""),
        job=agent.Job(
            id=job_id, agent_name="waiter", room=models.Room(name=ROOM, sid=f"RM_{job_id}")
        ),
        url=url,
        token=token,
        worker_id="AW_1",
        fake_job=fake,
    )


def job_context(
    room: rtc.Room | None = None,
    *,
    job_id: str = "AJ_1",
    url: str = "wss://shop.livekit.cloud",
    token: str = "",
    on_shutdown: Callable[[str], None] = lambda reason: None,
) -> JobContext:
    """A job as LiveKit's job process makes it; without a room it is the console's."""
    context = JobContext(
        proc=JobProcess(executor_type=JobExecutorType.THREAD, user_arguments=None, http_proxy=None),
        info=job_info(job_id, url=url, token=token, fake=room is None),
        room=room or create_mock_room(),
        on_connect=lambda: None,
        on_shutdown=on_shutdown,
        inference_executor=None,  # type: ignore[arg-type]  # nothing here infers
    )
    _JobContextVar.set(context)
    http_context._new_session_ctx()
    return context


async def shut_down(context: JobContext) -> None:
    """What LiveKit does at a job's end, after it closed the first session: all at once."""
    await asyncio.gather(*(callback("bye") for callback in context._shutdown_callbacks))
    cleaned: Any = context._on_cleanup()
    if cleaned is not None:  # LiveKit 1.5 does not have to be waited for
        await cleaned
    await http_context._close_http_ctx()


async def test_a_meter_knows_its_job(world: Providers, monkeypatch: pytest.MonkeyPatch) -> None:
    context = job_context(create_mock_room())
    VoiceCost().attach(session := world.session())
    await session.start(Host())
    await session.aclose()
    await shut_down(context)

    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    context = job_context(create_mock_room(), job_id="AJ_2")
    VoiceCost(agent="porter").attach(session := world.session())
    await session.start(Host())
    await session.aclose()
    await shut_down(context)

    context = job_context()
    VoiceCost().attach(session := world.session())
    await session.start(Host())
    await session.aclose()
    await shut_down(context)

    test, job, console = await ledger()
    assert (test.summary.agent, test.summary.environment) == ("waiter", Environment.TEST)
    assert (job.summary.agent, job.summary.environment) == ("porter", Environment.JOB)
    assert (job.summary.room_name, job.meters[0].job_id) == (ROOM, "AJ_2")
    assert (console.summary.agent, console.summary.environment) == ("waiter", Environment.CONSOLE)
    assert (console.summary.room_name, console.meters[0].job_id) == (None, None)


@pytest.mark.parametrize("hosted", [True, False])
async def test_a_meter_tells_whether_its_agent_runs_on_livekits_cloud(
    hosted: bool, world: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LiveKit Cloud bills the minutes of such an agent apart, twenty times as dear."""
    if hosted:  # what LiveKit itself tells it by
        monkeypatch.setenv("LIVEKIT_REMOTE_EOT_URL", "http://127.0.0.1:9")
    context = job_context(create_mock_room())
    VoiceCost().attach(session := world.session())
    await session.start(Host())
    await session.aclose()
    await shut_down(context)
    (call,) = await ledger()
    assert [meter.hosted for meter in call.meters] == [hosted]


async def test_the_job_waits_for_its_meters_and_for_the_ledger(world: Providers) -> None:
    """The second session is none of LiveKit's business: it closes beside our callback."""
    context = job_context(create_mock_room())
    cost = VoiceCost()
    sessions = [world.session(), world.session()]
    meters = [cost.attach(session) for session in sessions]
    for session in sessions:
        await session.start(Host())
    await say_hello(sessions[1])
    await sessions[0].aclose()
    assert [meter.closed for meter in meters] == [True, False]

    await shut_down(context)
    assert [meter.closed for meter in meters] == [True, True]
    (call,) = await ledger()
    assert {meter.state for meter in call.meters} == {"closed"}


@pytest.mark.parametrize("in_a_job", [True, False])
async def test_what_belongs_to_no_session_is_the_jobs_own(in_a_job: bool, world: Providers) -> None:
    """Two sessions in the job, and a request of the application's for neither of them."""
    context = job_context(create_mock_room()) if in_a_job else None
    cost = VoiceCost(budget="1")
    sessions = [world.session(), world.session()]
    meters = [cost.attach(session) for session in sessions]
    for session in sessions:
        await session.start(Host())
    model: LLM = world.models[0]

    async def ask() -> None:
        from livekit.agents.llm import ChatContext

        question = ChatContext()
        question.add_message(role="user", content="hello")
        async with model.chat(chat_ctx=question) as stream:
            async for _ in stream:
                pass

    await ask()
    with meters[1].scope():
        await ask()
    for session in sessions:
        await session.aclose()
    if context is not None:
        await shut_down(context)

    calls = await ledger()
    assert len(calls) == (1 if in_a_job else 3)  # outside a room each meter is a call of its own
    seen = [meter for call in calls for meter in call.meters]
    own = {meter.meter_id for meter in seen if meter.unattributed}
    assert len(own) == 1
    legs = [leg for call in calls for leg in call.legs]
    assert {leg.meter_id for leg in legs} == own | {meters[1].meter_id}
    assert {meter.state for meter in seen} == {"closed"}


def run_session(job_id: str) -> str | None:
    """One job of the thread executor: its own thread, its own loop."""

    async def job() -> str | None:
        context = job_context(create_mock_room(), job_id=job_id)
        session: AgentSession[None] = AgentSession(
            vad=None, turn_handling={"turn_detection": "manual"}
        )
        meter = VoiceCost().attach(session)
        await session.start(Host())
        await session.aclose()
        await shut_down(context)
        return meter.meter_id

    return asyncio.run(job())


async def test_two_jobs_in_threads_have_meters_of_their_own() -> None:
    forget_process()
    with ThreadPoolExecutor(2) as threads:
        ids = [f.result() for f in [threads.submit(run_session, f"AJ_{n}") for n in range(2)]]
    calls = await ledger()
    assert {meter.meter_id for call in calls for meter in call.meters} == set(ids)
    assert {meter.job_id for call in calls for meter in call.meters} == {"AJ_0", "AJ_1"}
    await asyncio.to_thread(forget_process)


def threads_after_import(_: int) -> list[str]:
    assert "livekit.plugins.voicecost._runtime" in sys.modules, "the forkserver did not import it"
    return [thread.name for thread in threading.enumerate()]


def started_modules(_: int) -> dict[str, Any]:
    from livekit.plugins.voicecost import _instrument, _prices

    return {"instrumented": bool(_instrument._undos), "prices": _prices._prices}


def test_forkserver_jobs_start_from_nothing(own_environment: Path) -> None:
    """LiveKit's forkserver imports the plugin; each job process forks from there."""
    context = multiprocessing.get_context("forkserver")
    (ours,) = [each for each in Plugin.registered_plugins if "voicecost" in each.title]
    context.set_forkserver_preload([ours.package])
    with ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1) as pool:
        before = list(pool.map(threads_after_import, range(1)))
        started = list(pool.map(started_modules, range(1)))
        ids = list(pool.map(run_session, ["AJ_0", "AJ_1"]))
    assert all("voicecost" not in name for names in before for name in names)
    assert started == [{"instrumented": False, "prices": None}]
    assert None not in ids
    assert len(set(ids)) == 2


async def test_a_call_is_ended_whatever_fails_on_the_way(
    world: Providers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """LiveKit's API hangs, the session does not close, and what we did before raised."""
    monkeypatch.delenv("VOICECOST_RAISE_FAULTS")
    monkeypatch.setattr(_ending, "HANG_UP_MAX_S", 0.05)
    faults = _faults.counts().get("ending", 0)
    never: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    context = job_context(create_mock_room(), on_shutdown=ended.set_result)
    monkeypatch.setattr(context, "delete_room", lambda: never)
    session = world.session()
    meter = VoiceCost(budget="0.005").attach(session)
    await session.start(Host())

    def fail(_: bool) -> None:
        raise LookupError("what the caller said")

    async def hang() -> None:
        await never

    monkeypatch.setattr(session.input, "set_audio_enabled", fail)
    with monkeypatch.context() as hanging:
        hanging.setattr(session, "aclose", hang)
        session.say("This is a long sentence, and it goes on for rather long. " * 20)
        assert await asyncio.wait_for(ended, 30) == "voicecost: budget used up"
    never.set_result(None)
    await session.aclose()
    assert meter.closed
    assert _faults.counts()["ending"] == faults + 1
    gc.collect()
    assert "what the caller said" not in caplog.text
    await shut_down(context)


@pytest.mark.room
async def test_without_a_sidecar_the_room_is_deleted_and_the_job_ends(
    world: Providers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor = Visitor("caller")
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with livekit_server(tmp_path) as server, visitor.in_room(server):
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        context = job_context(
            rtc.Room(),
            url=server.url,
            token=agent_token(server),
            on_shutdown=ended.set_result,
        )
        session = world.session()
        meter = VoiceCost(budget="0.005", wrap_up_text="Goodbye.", publish_to="all").attach(session)
        quiet = RoomOptions(audio_input=False, audio_output=False, text_output=False)
        await session.start(Host(), room=context.room, room_options=quiet)
        session.say("This is a long sentence, and it goes on for rather long. " * 20)

        reason = await asyncio.wait_for(visitor.disconnected, 30)
        assert reason == rtc.DisconnectReason.ROOM_DELETED
        assert await asyncio.wait_for(ended, 30) == "voicecost: budget used up"
        assert meter.closed
        assert await server.room_sids(ROOM) == []
        await context.room.disconnect()
        await shut_down(context)

    # What they say last races with the end of the room that it announces: test_voicecost_budget.
    assert visitor.messages[0]["meter_id"] == meter.meter_id
    assert world.deepgram.bill.rows[-1].units["characters"] in (8, 9)

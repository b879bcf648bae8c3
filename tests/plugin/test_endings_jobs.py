"""How jobs run and end, in the real ledger: thread executor, console, and a shutdown in mid-speech.

SIGKILL is in `tests/room/test_calls.py`, and without a room in `tests/room/test_roomless.py`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from livekit.agents import AgentServer, AgentSession, JobContext, JobExecutorType
from livekit.agents.inference_runner import _InferenceRunner
from livekit.agents.ipc.job_thread_executor import ThreadJobExecutor
from livekit.agents.ipc.mock_room import create_mock_room
from livekit.agents.voice.events import CloseReason
from livekit.plugins.deepgram import TTS
from livekit.plugins.openai import LLM

from livekit.plugins.voicecost import BudgetEvent, VoiceCost
from tests.plugin.endings import calls_held_against
from tests.plugin.livekit_versions import not_on_1_5
from tests.plugin.test_voicecost_jobs import job_context, job_info, shut_down
from tests.plugin.voicecost_sessions import Host, Providers, Speaker, ledger, providers, say_hello
from tests.simulators import LONG_ANSWER, Reply
from voicecost_ledger.records import Environment


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Providers]:
    async with providers(monkeypatch) as world:
        yield world


Entrypoint = Callable[[JobContext], Awaitable[None]]


def agent_of(world: Providers) -> Entrypoint:
    """The entrypoint of an agent with plugins of its own; LiveKit closes its session."""
    openai_url, speak_url = world.openai.base_url, world.deepgram.speak_url

    async def entrypoint(context: JobContext) -> None:
        model = LLM(model="gpt-4o-mini", base_url=openai_url, api_key="x")
        voice = TTS(base_url=speak_url, api_key="x")

        async def close_plugins() -> None:
            await voice.aclose()
            await model.aclose()

        context.add_shutdown_callback(close_plugins)
        session: AgentSession[None] = AgentSession(
            llm=model, tts=voice, vad=None, turn_handling={"turn_detection": "manual"}
        )
        session.output.audio = Speaker()
        VoiceCost().attach(session)
        await session.start(Host())
        await say_hello(session)
        context.shutdown("it has said hello")

    return entrypoint


@asynccontextmanager
async def thread_executor(entrypoint: Entrypoint) -> AsyncGenerator[ThreadJobExecutor]:
    """LiveKit's own, as its worker makes one for a job."""
    options: dict[str, Any] = {
        "initialize_process_fnc": lambda _: None,
        "job_entrypoint_fnc": entrypoint,
        "session_end_fnc": None,
        "simulation_end_fnc": None,
        "inference_executor": None,
        "initialize_timeout": 30,
        "close_timeout": 30,
        "session_end_timeout": 30,
        "ping_interval": 30,
        "high_ping_threshold": 30,
        "http_proxy": None,
        "loop": asyncio.get_running_loop(),
    }
    known = inspect.signature(ThreadJobExecutor).parameters  # two are not yet in the oldest LiveKit
    executor = ThreadJobExecutor(**{name: options[name] for name in known})
    await executor.start()
    try:
        await executor.initialize()
        yield executor
        await executor.join()
    finally:
        await executor.aclose()


_LEAVES_LOOPS = not_on_1_5("leaves the loops of its job threads open")


@_LEAVES_LOOPS
async def test_two_jobs_of_the_thread_executor(world: Providers) -> None:
    """One process, two calls at once: each is in the ledger with what is its own."""
    entrypoint = agent_of(world)
    async with thread_executor(entrypoint) as first, thread_executor(entrypoint) as second:
        await first.launch_job(job_info("AJ_0"))
        await second.launch_job(job_info("AJ_1"))
    calls = await ledger()
    bills = world.openai.bill, world.deepgram.bill
    assert calls_held_against(calls, *bills) == "llm served served, tts served served"
    assert sorted(call.meters[0].job_id or "" for call in calls) == ["AJ_0", "AJ_1"]
    assert [len(call.legs) for call in calls] == [2, 2]


@_LEAVES_LOOPS
async def test_a_call_in_the_console(world: Providers, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `console` does, but for the sound card: an unregistered server with its only job."""
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    monkeypatch.setenv("LIVEKIT_URL", "ws://127.0.0.1:9")  # nobody asks it anything
    monkeypatch.setenv("LIVEKIT_API_KEY", "key")
    monkeypatch.setenv("LIVEKIT_API_SECRET", "secret" * 6)
    monkeypatch.setattr(_InferenceRunner, "registered_runners", {})  # those of other tests
    ended = asyncio.Event()
    server = AgentServer(
        job_executor_type=JobExecutorType.THREAD, num_idle_processes=0, host="127.0.0.1", port=0
    )
    entrypoint, loop = agent_of(world), asyncio.get_running_loop()

    async def on_session_end(context: JobContext) -> None:
        loop.call_soon_threadsafe(ended.set)

    server.rtc_session(entrypoint, on_session_end=on_session_end)
    started = asyncio.Event()
    server.on("worker_started", started.set)
    running = asyncio.create_task(server.run(devmode=True, unregistered=True))
    await started.wait()
    await server.simulate_job("console-room", agent_identity="console", fake_job=True)
    await ended.wait()
    await server.aclose()
    await running
    (call,) = await ledger()
    bills = world.openai.bill, world.deepgram.bill
    assert calls_held_against([call], *bills) == "llm served, tts served"
    assert call.summary.environment is Environment.CONSOLE


async def test_a_job_that_is_shut_down_in_mid_speech(world: Providers) -> None:
    """All shutdown callbacks at once, ours among them: it waits for the meter and the ledger."""
    world.openai.replies[:] = [Reply(text=LONG_ANSWER)]
    world.openai.token_delay_ms = 15
    context = job_context(create_mock_room())
    session = world.session()
    meter = VoiceCost().attach(session)
    await session.start(Host())
    speech = session.generate_reply(user_input="Please explain everything to me.")
    async with asyncio.timeout(10):
        while len(world.deepgram.bill.rows) == 0:  # noqa: ASYNC110  (it tells nobody)
            await asyncio.sleep(0.001)
    await session._aclose_impl(reason=CloseReason.JOB_SHUTDOWN)
    await shut_down(context)
    assert meter.closed
    assert speech.done()
    (call,) = await ledger()
    await world.close_plugins()
    await world.openai.bill.settled()
    await world.deepgram.bill.settled()
    bills = world.openai.bill, world.deepgram.bill
    told = calls_held_against([call], *bills, input_tokens_off_max=14)
    assert told == "llm interrupted, tts interrupted"


async def test_a_session_started_again_without_a_new_meter(world: Providers) -> None:
    """Its meter closed with the first time; the second time has one of its own, and its budget."""
    session = world.session()
    meter = VoiceCost(budget="0.001", on_budget="notify").attach(session)
    heard: list[BudgetEvent] = []
    meter.on("budget", heard.append)
    await session.start(Host())
    await say_hello(session)
    await session.aclose()
    session.output.audio = Speaker()
    await session.start(Host())
    await say_hello(session)
    await session.aclose()
    calls = await ledger()
    bills = world.openai.bill, world.deepgram.bill
    assert calls_held_against(calls, *bills) == "llm served served, tts served served"
    meters = {each.meter_id: each.unattributed for call in calls for each in call.meters}
    assert list(meters.values()) == [False, False]
    assert [(each.kind, each.limit_nano_usd) for each in heard] == [("warn", 1_000_000)] * 2

"""How jobs run and end, in the real ledger: thread executor, console, and a shutdown in mid-speech.

SIGKILL is in `tests/room/test_calls.py`, and without a room in `tests/room/test_roomless.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import pytest
from livekit.agents import AgentSession
from livekit.agents.ipc.mock_room import create_mock_room
from livekit.agents.voice.events import CloseReason
from livekit.plugins.deepgram import TTS
from livekit.plugins.openai import LLM

from livekit.plugins.voicecost import BudgetEvent, VoiceCost
from tests.plugin.endings import calls_held_against
from tests.plugin.test_voicecost_jobs import job_context, shut_down
from tests.plugin.voicecost_sessions import Host, Providers, Speaker, ledger, providers, say_hello
from tests.simulators import LONG_ANSWER, Reply
from voicecost_ledger.records import Environment


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Providers]:
    async with providers(monkeypatch) as world:
        yield world


def a_job(openai_url: str, speak_url: str, job_id: str, *, console: bool) -> None:
    """A job in a thread with a loop and plugins of its own, as the thread executor runs it."""

    async def job() -> None:
        context = job_context(None if console else create_mock_room(), job_id=job_id)
        async with aiohttp.ClientSession() as http:
            model = LLM(model="gpt-4o-mini", base_url=openai_url, api_key="x")
            voice = TTS(base_url=speak_url, api_key="x", http_session=http)
            session: AgentSession[None] = AgentSession(
                llm=model, tts=voice, vad=None, turn_handling={"turn_detection": "manual"}
            )
            session.output.audio = Speaker()
            VoiceCost().attach(session)
            await session.start(Host())
            await say_hello(session)
            await session.aclose()
            await shut_down(context)
            await voice.aclose()
            await model.aclose()

    asyncio.run(job())


async def test_two_jobs_of_the_thread_executor(world: Providers) -> None:
    """One process, two calls at once: each is in the ledger with what is its own."""
    addresses = (world.openai.base_url, world.deepgram.speak_url)
    with ThreadPoolExecutor(2) as threads:
        jobs = [
            asyncio.wrap_future(threads.submit(a_job, *addresses, f"AJ_{n}", console=False))
            for n in range(2)
        ]
        await asyncio.gather(*jobs)
    calls = await ledger()
    bills = world.openai.bill, world.deepgram.bill
    assert calls_held_against(calls, *bills) == "llm served served, tts served served"
    assert sorted(call.meters[0].job_id or "" for call in calls) == ["AJ_0", "AJ_1"]
    assert [len(call.legs) for call in calls] == [2, 2]


async def test_a_call_in_the_console(world: Providers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The console runs its only job in a thread, without a room."""
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    addresses = (world.openai.base_url, world.deepgram.speak_url)
    await asyncio.to_thread(a_job, *addresses, "AJ_1", console=True)
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
    for model in world.models:
        await model.aclose()
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

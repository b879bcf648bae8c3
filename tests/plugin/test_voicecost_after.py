"""After a call: who pays for what is asked then, and that nothing of it stays behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest
from livekit.agents import Agent, AgentSession
from livekit.agents.ipc.mock_room import create_mock_room
from livekit.agents.llm import ChatContext
from livekit.plugins.openai import LLM

from livekit.plugins.voicecost import VoiceCost
from tests.plugin.test_voicecost_jobs import job_context, shut_down
from tests.plugin.voicecost_sessions import (
    Host,
    Providers,
    forget_process,
    ledger,
    providers,
    say_hello,
)
from tests.simulators import OpenAISimulator
from voicecost_ledger.records import Modality, Outcome
from voicecost_ledger.stores import CallDetail


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Providers]:
    async with providers(monkeypatch) as world:
        yield world


async def summarise(model: LLM) -> None:
    question = ChatContext.empty()
    question.add_message(role="user", content="Summarise: " + "and then " * 100)
    async with model.chat(chat_ctx=question) as stream:
        async for _ in stream:
            pass


def own_legs(call: CallDetail) -> list[Outcome]:
    """The outcomes of what a call's own meter booked, all of it LLM requests here."""
    own = {meter.meter_id for meter in call.meters if meter.unattributed}
    legs = [leg for leg in call.legs if leg.meter_id in own]
    assert {leg.modality for leg in legs} <= {Modality.LLM}
    return [leg.outcome for leg in legs if leg.outcome is not None]


@pytest.mark.parametrize("begins", ["at once", "when the meters are closed"])
async def test_a_summary_in_a_shutdown_callback_is_the_jobs_own(
    begins: str, world: Providers
) -> None:
    context = job_context(create_mock_room())
    session = world.session()
    meter = VoiceCost().attach(session)
    model: LLM = world.models[0]
    await session.start(Host())
    await say_hello(session)
    settled = asyncio.Event()

    async def at_the_end() -> None:
        if begins != "at once":
            await settled.wait()
        await summarise(model)

    callbacks = context._shutdown_callbacks
    (settle,) = [each for each in callbacks if each.__name__ == "settle_voicecost_meters"]
    callbacks.remove(settle)

    async def settle_meters(reason: str) -> None:
        await settle(reason)
        settled.set()

    context.add_shutdown_callback(settle_meters)
    context.add_shutdown_callback(at_the_end)
    await session.aclose()
    assert meter.closed
    await shut_down(context)

    (call,) = await ledger()
    assert own_legs(call) == [Outcome.SERVED]
    assert {each.state for each in call.meters} == {"closed"}
    assert len([leg for leg in call.legs if leg.modality is Modality.LLM]) == 2


async def test_the_next_call_of_a_process_does_not_pay_for_the_last_ones_summary(
    world: Providers,
) -> None:
    first, second = world.session(), world.session()
    VoiceCost(project="first").attach(first)
    await first.start(Host())
    await first.aclose()
    await summarise(world.models[0])
    VoiceCost(project="second").attach(second)
    await second.start(Host())
    await second.aclose()

    calls = await ledger()
    booked = [(call.summary.project, own_legs(call), len(call.legs)) for call in calls]
    assert booked == [("first", [], 0), ("first", [Outcome.SERVED], 1), ("second", [], 0)]
    assert {meter.state for call in calls for meter in call.meters} == {"closed"}


async def test_a_task_that_outlives_its_session_is_not_lost(world: Providers) -> None:
    """A tool's own task, whose context names a session that is over."""
    context = job_context(create_mock_room())
    session = world.session()
    VoiceCost().attach(session)
    model: LLM = world.models[0]
    tasks: list[asyncio.Task[None]] = []
    over = asyncio.Event()

    async def later() -> None:
        await over.wait()
        await summarise(model)

    class Reporter(Host):
        async def on_enter(self) -> None:
            tasks.append(asyncio.create_task(later()))

    await session.start(Reporter())
    await session.aclose()
    over.set()
    await asyncio.gather(*tasks)
    await shut_down(context)
    (call,) = await ledger()
    assert own_legs(call) == [Outcome.SERVED]


@pytest.mark.parametrize("attached", [True, False])
async def test_a_worker_of_the_thread_executor_keeps_no_job(
    attached: bool,
) -> None:
    """Such a process runs one job after another for weeks."""
    forget_process()
    seen: list[tuple[weakref.ref[Any], ...]] = []

    async def job(name: str, openai: OpenAISimulator) -> None:
        create_mock_room.cache_clear()
        context = job_context(create_mock_room(), job_id=name)
        model = LLM(model="gpt-4o-mini", base_url=openai.base_url, api_key="x")
        session: AgentSession[None] = AgentSession(
            llm=model, vad=None, turn_handling={"turn_detection": "manual"}
        )
        never_started: AgentSession[None] = AgentSession(llm=model, vad=None)
        kept: list[Any] = [context, session, never_started]
        cost = VoiceCost()
        if attached:
            kept += [cost.attach(session), cost.attach(never_started)]
        await session.start(Agent(instructions="You are friendly."))
        await summarise(model)  # of several sessions: the job's own
        await session.aclose()
        await shut_down(context)
        await summarise(model)
        await model.aclose()
        seen.append(tuple(map(weakref.ref, kept)))

    async with OpenAISimulator(first_token_delay_ms=1, token_delay_ms=0) as openai:
        for name in ("AJ_0", "AJ_1", "AJ_2"):
            thread = threading.Thread(target=lambda name=name: asyncio.run(job(name, openai)))
            thread.start()
            await asyncio.to_thread(thread.join)
        create_mock_room.cache_clear()
        await ledger()
        for _ in range(3):
            gc.collect()
        alive = [tuple(ref() is not None for ref in refs) for refs in seen]
        assert alive == [(False,) * len(refs) for refs in seen]
    await asyncio.to_thread(forget_process)

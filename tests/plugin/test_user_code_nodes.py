"""An agent's own nodes: what passes no plugin is a gap, unless the application tells it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from typing import Any

import pytest
from livekit import rtc
from livekit.agents import Agent, ModelSettings, RunContext, function_tool, llm, stt
from livekit.agents.llm import ChatContext
from livekit.plugins.deepgram import STT

from livekit.plugins.voicecost import VoiceCost
from tests.plugin.endings import Caller
from tests.plugin.voicecost_sessions import Host, Providers, ledger, providers, say_hello
from tests.simulators import Reply, ToolCall
from voicecost_ledger.records import Coverage, Modality, Outcome


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Providers]:
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")
    async with providers(monkeypatch) as world:
        yield world


# ---- nodes -------------------------------------------------------------------------------------


class OwnVoice(Agent):
    """Speaks by a service that no plugin knows."""

    def __init__(self) -> None:
        super().__init__(instructions="You are friendly.")

    async def tts_node(
        self, text: AsyncIterable[str], model_settings: ModelSettings
    ) -> AsyncGenerator[rtc.AudioFrame, None]:
        async for _ in text:
            yield rtc.AudioFrame(bytes(2 * 2400), 24_000, 1, 2400)


async def test_a_tts_node_of_the_agents_own_is_a_gap(world: Providers) -> None:
    session = world.session()
    VoiceCost().attach(session)
    await session.start(OwnVoice())
    await say_hello(session)
    await session.aclose()
    (call,) = await ledger()
    assert [(gap.reason, gap.modality) for gap in call.gaps] == [("audio_without_tts", "tts")]
    assert call.summary.coverage is Coverage.PARTIAL


class OwnEars(Agent):
    """Listens by a service that no plugin knows."""

    def __init__(self, told: Any = None) -> None:
        super().__init__(instructions="You are friendly.")
        self.told = told

    async def stt_node(
        self, audio: AsyncIterable[rtc.AudioFrame], model_settings: ModelSettings
    ) -> AsyncGenerator[stt.SpeechEvent, None]:
        async for _ in audio:
            if self.told is not None:
                self.told()
            heard = stt.SpeechData(language="en", text="hello")  # pyright: ignore[reportArgumentType] as plugins write it
            yield stt.SpeechEvent(type=stt.SpeechEventType.FINAL_TRANSCRIPT, alternatives=[heard])
            return


async def heard_hello(world: Providers, agent: Agent) -> None:
    """A session in which the caller says hello, as the agent hears it."""
    ears = STT(base_url=world.deepgram.listen_url, api_key="x", http_session=world.http)
    session = world.session(stt=ears)  # without one LiveKit asks no node
    meter = VoiceCost().attach(session)
    if isinstance(agent, OwnEars) and agent.told is not None:
        agent.told = lambda: meter.record_usage(
            provider="acme", model="ears", modality="stt", usage={"audio_ms": 20}
        )
    caller = Caller()
    session.input.audio = caller
    heard = asyncio.Event()
    session.on("user_input_transcribed", lambda event: event.is_final and heard.set())
    await session.start(agent)
    caller.says()
    await asyncio.wait_for(heard.wait(), 10)
    await session.aclose()


async def test_an_stt_node_of_the_agents_own_is_a_gap(world: Providers) -> None:
    await heard_hello(world, OwnEars())
    (call,) = await ledger()
    assert [(gap.reason, gap.modality) for gap in call.gaps] == [("transcript_without_stt", "stt")]


async def test_an_stt_node_that_tells_what_it_used_is_none(world: Providers) -> None:
    await heard_hello(world, OwnEars(told=True))
    (call,) = await ledger()
    assert call.gaps == []


async def test_what_an_stt_plugin_hears_is_no_gap(world: Providers) -> None:
    world.deepgram.listen.transcripts.append("hello")
    await heard_hello(world, Host())
    (call,) = await ledger()
    assert call.gaps == []
    assert [leg.modality for leg in call.legs if leg.modality is Modality.STT] == [Modality.STT]


# ---- plugins called directly -------------------------------------------------------------------


class WithTool(Agent):
    """Asks another model inside a tool."""

    def __init__(self, adviser: llm.LLM[Any]) -> None:
        super().__init__(instructions="You are friendly.")
        self.adviser = adviser

    @function_tool
    async def ask_adviser(self, context: RunContext[None], question: str) -> str:
        """Ask somebody who knows."""
        answer = await self.adviser.chat(chat_ctx=asked(question)).collect()
        return answer.text


def asked(question: str) -> ChatContext:
    context = ChatContext.empty()
    context.add_message(role="user", content=question)
    return context


async def test_a_plugin_called_in_a_tool_is_the_turns(world: Providers) -> None:
    world.openai.replies = [
        Reply(
            match="hello",
            text="He says yes.",
            tool_call=ToolCall(name="ask_adviser", arguments={"question": "Should we?"}),
        ),
        Reply(match="should", text="Yes."),
    ]
    session = world.session()
    VoiceCost().attach(session)
    await session.start(WithTool(world.model("gpt-4o")))
    await say_hello(session)
    await session.aclose()

    (call,) = await ledger()
    legs = [leg for leg in call.legs if leg.modality is Modality.LLM]
    assert sorted(leg.model for leg in legs) == ["gpt-4o", "gpt-4o-mini", "gpt-4o-mini"]
    assert len({leg.speech_id for leg in legs}) == 1
    assert legs[0].speech_id is not None
    for unit in ("input_tokens", "output_tokens"):
        assert sum(leg.usage[unit] for leg in legs) == world.openai.bill.total(unit, service="llm")
    assert call.gaps == []


async def test_a_summary_after_the_session_is_the_jobs_and_shown(world: Providers) -> None:
    session = world.session()
    meter = VoiceCost().attach(session)
    await session.start(Host())
    await session.aclose()
    assert meter.closed
    await world.model("gpt-4o").chat(chat_ctx=asked("Summarise it.")).collect()

    of_session, of_job = await ledger()
    assert of_session.legs == []
    assert [(leg.model, leg.outcome) for leg in of_job.legs] == [("gpt-4o", Outcome.SERVED)]
    assert [view.unattributed for view in of_job.meters] == [True]

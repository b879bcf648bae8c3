"""Whose a leg is, in real sessions: the table of the experiment that decided the rule."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator

import pytest
from livekit.agents import Agent, AgentSession
from livekit.agents.llm import ChatContext

from livekit.plugins.voicecost import _attribution
from tests.plugin.metered_session import (
    Call,
    Providers,
    RecordingMeter,
    metered_call,
    simulated_providers,
)
from tests.simulators import Reply
from voicecost_ledger.records import Modality, Outcome

ONE, TWO = "This is what the first one says.", "And this is what the second one says, longer."


@pytest.fixture(autouse=True)
def faults_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")


@pytest.fixture
async def providers() -> AsyncIterator[Providers]:
    async with simulated_providers(Reply(text="I see.")) as providers:
        yield providers


def spoken(call: Call) -> int:
    return call.meter.total(Modality.TTS, "characters")


class _AtHome(Agent):
    """Runs something in the context of its own session, as a tool or `on_enter` does."""

    def __init__(self) -> None:
        super().__init__(instructions="You talk.")
        self.context: contextvars.Context | None = None
        self.entered = asyncio.Event()

    async def on_enter(self) -> None:
        self.context = contextvars.copy_context()
        self.entered.set()


async def _in(agent: _AtHome, coroutine: object) -> None:
    await agent.entered.wait()
    assert agent.context is not None
    await asyncio.create_task(coroutine, context=agent.context)  # type: ignore[arg-type]


async def _say(session: AgentSession[None], text: str) -> None:
    await session.say(text)


async def test_two_sessions_that_share_one_voice(providers: Providers) -> None:
    voice = providers.tts()
    async with (
        metered_call(providers, tts=voice) as first,
        metered_call(providers, tts=voice) as second,
    ):
        await asyncio.gather(_say(first.session, ONE), _say(second.session, TWO))
        assert spoken(first) == len(ONE) + 1  # the plugin ends each word with a space
        assert spoken(second) == len(TWO) + 1


async def test_say_from_another_sessions_task_is_booked_to_the_one_that_speaks(
    providers: Providers,
) -> None:
    agent = _AtHome()
    async with (
        metered_call(providers, agent=agent) as first,
        metered_call(providers) as second,
    ):
        await _in(agent, _say(second.session, TWO))
        assert spoken(first) == 0
        assert spoken(second) == len(TWO) + 1


async def test_an_agent_that_another_sessions_task_puts_in_hears_for_its_own_session(
    providers: Providers,
) -> None:
    """LiveKit's context variable still names the first session when the STT is born."""
    agent = _AtHome()
    async with (
        metered_call(providers, agent=agent, hears=True) as first,
        metered_call(providers, hears=True) as second,
    ):
        await second.meter.until(lambda: second.meter.of(Modality.STT))
        before = len(first.meter.of(Modality.STT)), len(second.meter.of(Modality.STT))

        async def hand_over() -> None:
            # Its own STT, so that the pipeline cannot be handed on.
            newcomer = Agent(instructions="You take over.", stt=providers.stt(language="de"))
            second.session.update_agent(newcomer)

        await _in(agent, hand_over())
        await second.meter.until(
            lambda: (
                [leg.attributes.language for leg in second.meter.of(Modality.STT)]
                == ["en-US", "de"]
            )
        )
        assert before == (1, 1)
        assert len(first.meter.of(Modality.STT)) == 1


async def test_a_session_that_another_sessions_task_starts_is_its_own(
    providers: Providers,
) -> None:
    agent = _AtHome()
    async with metered_call(providers, agent=agent, hears=True) as first:
        seen: list[RecordingMeter] = []

        async def start_another() -> None:
            async with metered_call(providers, hears=True) as second:
                await second.meter.until(lambda: second.meter.of(Modality.STT))
                await second.session.say(TWO)
                seen.append(second.meter)

        await _in(agent, start_another())
        assert spoken(first) == 0
        assert len(first.meter.of(Modality.STT)) == 1
        (second_meter,) = seen
        assert second_meter.total(Modality.TTS, "characters") == len(TWO) + 1


async def test_a_cleared_turn_opens_a_connection_of_the_same_session(
    providers: Providers,
) -> None:
    """`clear_user_turn` makes a new STT stream, in whichever task calls it."""
    agent = _AtHome()
    async with (
        metered_call(providers, agent=agent, hears=True) as first,
        metered_call(providers, hears=True) as second,
    ):
        await second.meter.until(lambda: second.meter.of(Modality.STT))

        async def clear() -> None:
            second.session.clear_user_turn()

        await _in(agent, clear())
        await second.meter.until(lambda: len(second.meter.of(Modality.STT)) == 2)
        assert len(first.meter.of(Modality.STT)) == 1


async def test_what_was_seen_before_attach_is_adopted(providers: Providers) -> None:
    async with metered_call(providers, hears=True, attach=False) as call:
        await call.session.say(ONE)
        assert call.meter.records == []
        _attribution.register(call.session, call.meter)
        (voice,) = call.meter.of(Modality.TTS)
        assert (voice.usage["characters"], voice.outcome) == (len(ONE) + 1, Outcome.SERVED)
        # The open STT connection follows with its next record, from its very beginning.
        await call.meter.until(lambda: call.meter.of(Modality.STT))
        await call.close()
        (ear,) = call.meter.of(Modality.STT)
    assert ear.usage["audio_ms"] == call.billed("stt", "audio_ms")


async def test_more_before_attach_than_is_kept_is_a_gap(
    providers: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_attribution, "_WAITING_MAX", 2)
    async with metered_call(providers, attach=False) as call:
        for _ in range(3):
            await call.session.say(ONE)
        _attribution.register(call.session, call.meter)
        assert len(call.meter.of(Modality.TTS)) == 2
        assert call.meter.gaps == [("attached_late", None)]


async def test_a_model_called_outside_of_any_session_belongs_to_the_only_one(
    providers: Providers,
) -> None:
    async with metered_call(providers) as call:
        await _ask(providers)
        (leg,) = call.meter.of(Modality.LLM)
        assert leg.speech_id is None


async def test_among_several_sessions_it_is_unattributed_unless_a_scope_says_whose(
    providers: Providers,
) -> None:
    own = RecordingMeter()
    _attribution.set_unattributed(lambda: own)
    try:
        async with metered_call(providers) as first, metered_call(providers) as second:
            await _ask(providers)
            with _attribution.scoped(second.meter):
                await _ask(providers)
            assert first.meter.of(Modality.LLM) == []
            assert len(second.meter.of(Modality.LLM)) == 1
            assert len(own.of(Modality.LLM)) == 1
    finally:
        _attribution.set_unattributed(None)


async def test_a_session_without_a_meter_is_nobody_elses(providers: Providers) -> None:
    async with (
        metered_call(providers) as metered,
        metered_call(providers, attach=False) as other,
    ):
        await other.session.say(TWO)
        assert metered.meter.of(Modality.TTS) == []


async def test_a_model_called_in_a_tool_belongs_to_the_tools_session(
    providers: Providers,
) -> None:
    agent = _AtHome()
    async with (
        metered_call(providers, agent=agent) as first,
        metered_call(providers) as second,
    ):
        await _in(agent, _ask(providers))
        assert len(first.meter.of(Modality.LLM)) == 1
        assert second.meter.of(Modality.LLM) == []


async def _ask(providers: Providers) -> None:
    context = ChatContext.empty()
    context.add_message(role="user", content="Summarise the call.")
    async with providers.llm().chat(chat_ctx=context) as stream:
        async for _ in stream:
            pass

"""How requests around tools end, and whose they are: calls of functions, hand-offs, AgentTask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from livekit.agents import Agent, AgentTask, RunContext, function_tool

from tests.plugin.endings import held_against_the_bill
from tests.plugin.metered_session import Call, Providers, metered_call, simulated_providers
from tests.simulators import Reply, ToolCall
from voicecost_ledger.records import Basis, Modality


@pytest.fixture
async def providers() -> AsyncIterator[Providers]:
    async with simulated_providers() as providers:
        yield providers


async def ask(call: Call, question: str) -> None:
    await call.session.generate_reply(user_input=question)


async def at_work(call: Call, agent_class: type[Agent]) -> None:
    """Wait until such an agent has taken over the session."""
    async with asyncio.timeout(10):
        while not (  # noqa: ASYNC110  (LiveKit tells nobody)
            isinstance(call.session.current_agent, agent_class)
            and (activity := call.session._activity) is not None
            and activity.agent is call.session.current_agent
            and not activity.scheduling_paused
        ):
            await asyncio.sleep(0.001)


class Forecaster(Agent):
    def __init__(self) -> None:
        super().__init__(instructions="You tell people about the weather.")
        self.asked_for: list[str] = []

    @function_tool
    async def get_weather(self, city: str, day: str = "today") -> str:
        """The weather forecast of a city.

        Args:
            city: Where, in English.
            day: Which day of the week, or today.
        """
        self.asked_for.append(city)
        return f"It will be sunny in {city}."


def weather_in(city: str, day: str = "tomorrow") -> ToolCall:
    return ToolCall(name="get_weather", arguments={"city": city, "day": day})


async def test_tool_calls_in_a_row(providers: Providers) -> None:
    """Each result is another request, whose prompt is all that came before."""
    agent = Forecaster()
    providers.openai.replies[:] = [
        Reply(
            tool_call=weather_in("Paris"),
            then=Reply(tool_call=weather_in("Rome"), text="Sunny in both of them."),
        )
    ]
    async with metered_call(providers, agent=agent) as call:
        await ask(call, "How is the weather in Paris, and else in Rome?")
        await call.close()
    assert agent.asked_for == ["Paris", "Rome"]
    assert held_against_the_bill(call) == "stt served, llm served served served, tts served"
    prompts = [leg.usage["input_tokens"] for leg in call.meter.of(Modality.LLM)]
    assert prompts == sorted(set(prompts))


async def test_tool_calls_in_parallel(providers: Providers) -> None:
    """One request calls two functions; their results are one request more."""
    agent = Forecaster()
    providers.openai.replies[:] = [
        Reply(tool_call=weather_in("Paris"), parallel=(weather_in("Rome"),), text="Sunny in both.")
    ]
    async with metered_call(providers, agent=agent) as call:
        await ask(call, "How is the weather in Paris and Rome?")
        await call.close()
    assert sorted(agent.asked_for) == ["Paris", "Rome"]
    assert held_against_the_bill(call) == "stt served, llm served served, tts served"


async def test_a_tool_call_cancelled_with_its_arguments_half_written(
    providers: Providers,
) -> None:
    """On the wire its arguments come in many pieces; LiveKit shows none before it is whole."""
    agent = Forecaster()
    days = ", ".join(["the day after the day before tomorrow"] * 20)
    providers.openai.replies[:] = [
        Reply(match="hello", text="Hello, which city is it about?"),
        Reply(tool_call=weather_in("Paris", days)),
    ]
    async with metered_call(providers, agent=agent) as call:
        await ask(call, "Hello, I have a question.")
        providers.openai.token_delay_ms = 15
        speech = call.session.generate_reply(user_input="How will the weather be in Paris?")
        await call.meter.until(
            lambda: call.meter.of(Modality.LLM)[-1].usage["completion_chunks"] >= 25
        )
        speech.interrupt()
        await speech
        await call.close()
    assert agent.asked_for == []
    assert held_against_the_bill(call) == "stt served, llm served interrupted, tts served"
    interrupted = call.meter.of(Modality.LLM)[1]
    assert interrupted.basis is Basis.ESTIMATED
    assert interrupted.usage["output_tokens"] >= 20


class Receptionist(Agent):
    """Hands the caller on to somebody with an STT, an LLM and a TTS of their own."""

    def __init__(self, providers: Providers) -> None:
        super().__init__(instructions="You receive callers.")
        self.providers = providers

    @function_tool
    async def transfer_to_sales(self) -> Agent:
        """Hand the caller on to the sales department."""
        return Seller(self)


class Seller(Agent):
    def __init__(self, receptionist: Receptionist) -> None:
        providers = receptionist.providers
        super().__init__(
            instructions="You sell things.",
            stt=providers.stt(model="nova-2"),
            llm=providers.llm(model="gpt-4o"),
            tts=providers.tts(model="aura-2-thalia-en"),
        )
        self.receptionist = receptionist

    @function_tool
    async def transfer_back(self) -> Agent:
        """Hand the caller back to the reception."""
        return self.receptionist


async def test_a_hand_off_and_back(providers: Providers) -> None:
    """Three agents' worth of requests in one session: each model's legs are its own."""
    providers.openai.replies[:] = [
        Reply(match="sales", tool_call=ToolCall(name="transfer_to_sales"), text="One moment."),
        Reply(match="back", tool_call=ToolCall(name="transfer_back"), text="As you like."),
        Reply(text="What can I do for you?"),
    ]
    async with metered_call(providers, agent=Receptionist(providers), hears=True) as call:
        await ask(call, "I want to talk to sales.")
        await at_work(call, Seller)
        await ask(call, "What do you sell?")
        await call.meter.until(lambda: len(call.meter.of(Modality.STT)) == 2)
        await ask(call, "Let me go back.")
        await at_work(call, Receptionist)
        await ask(call, "Hello again.")
        await call.meter.until(lambda: len(call.meter.of(Modality.STT)) == 3)
        await call.close()
    told = held_against_the_bill(call)
    assert set(told.replace(",", "").split()) == {"stt", "llm", "tts", "served"}
    models = {
        modality: [leg.attributes.model for leg in call.meter.of(modality)]
        for modality in (Modality.STT, Modality.LLM, Modality.TTS)
    }
    assert models[Modality.STT] == ["nova-3", "nova-2", "nova-3"]
    # Each hand-off is a request of the agent that hands on, and says nothing.
    assert models[Modality.LLM] == ["gpt-4o-mini", "gpt-4o", "gpt-4o", "gpt-4o-mini"]
    assert models[Modality.TTS] == ["aura-2-thalia-en", "aura-2-andromeda-en"]


class AskForConsent(AgentTask[bool]):
    def __init__(self, providers: Providers) -> None:
        super().__init__(
            instructions="Ask whether the call may be recorded.",
            llm=providers.llm(model="gpt-4o"),
        )

    async def on_enter(self) -> None:
        await self.session.generate_reply(user_input="I am asked for consent.")

    @function_tool
    async def consent_given(self) -> None:
        """The caller agrees."""
        self.complete(True)


class Recorder(Agent):
    def __init__(self, providers: Providers) -> None:
        super().__init__(instructions="You record calls.")
        self.providers = providers
        self.consents: list[bool] = []

    @function_tool
    async def record(self, context: RunContext[None]) -> str:
        """Record the call, if the caller agrees."""
        self.consents.append(await AskForConsent(self.providers))
        return "It is being recorded."


async def test_an_agent_task(providers: Providers) -> None:
    """A task inside of a tool has a model of its own, and takes over the session meanwhile."""
    agent = Recorder(providers)
    providers.openai.replies[:] = [
        Reply(match="record", tool_call=ToolCall(name="record"), text="It is being recorded."),
        Reply(match="consent", text="Do you agree to that?"),
        Reply(match="agree", tool_call=ToolCall(name="consent_given"), text="Thank you."),
    ]
    async with metered_call(providers, agent=agent) as call:
        turn = call.session.generate_reply(user_input="Please record the call.")
        await call.meter.stopped(Modality.LLM, 2)
        await call.meter.stopped(Modality.TTS, 1)
        await at_work(call, AskForConsent)
        await ask(call, "Yes, I agree.")
        await turn
        await call.close()
    assert agent.consents == [True]
    told = held_against_the_bill(call)
    assert set(told.replace(",", "").split()) == {"stt", "llm", "tts", "served"}
    models = [leg.attributes.model for leg in call.meter.of(Modality.LLM)]
    assert models[0] == models[-1] == "gpt-4o-mini"
    assert "gpt-4o" in models

"""Duplex models: billed by the time they are connected, their backend by its tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from livekit import rtc
from livekit.agents import Agent, function_tool
from livekit.agents.llm import ChatItem, Tool, ToolContext
from livekit.agents.llm.duplex import (
    DuplexAudioFrame,
    DuplexCapabilities,
    DuplexModel,
    DuplexOutputTranscriptDelta,
    DuplexSession,
)
from livekit.agents.llm.duplex_adapter import DuplexRealtimeAdapter
from livekit.plugins.openai.realtime import GPTLiveModel

from livekit.plugins.voicecost._coverage import Turns
from livekit.plugins.voicecost.legs import Leg
from tests.plugin.realtime_call import ONE_TRY_MORE, RealtimeCall, observed, realtime_call, spoken
from tests.simulators import Reply, ToolCall
from tests.simulators.openai_live import OpenAILiveSimulator
from voicecost_ledger.records import Basis, LegAttributes, Modality, Outcome


@pytest.fixture(autouse=True)
def faults_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")


@dataclass
class SimulatedLive:
    simulator: OpenAILiveSimulator
    http: aiohttp.ClientSession

    def model(self) -> DuplexRealtimeAdapter:
        return DuplexRealtimeAdapter(
            GPTLiveModel(
                base_url=self.simulator.base_url,
                api_key="x",
                http_session=self.http,
                conn_options=ONE_TRY_MORE,
            )
        )

    def rows(self, service: str) -> list[dict[str, int]]:
        return [row.units for row in self.simulator.bill.rows if row.service == service]


@asynccontextmanager
async def simulated_live(**options: Any) -> AsyncGenerator[SimulatedLive]:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(observed())
        simulator = await stack.enter_async_context(OpenAILiveSimulator(**options))
        yield SimulatedLive(simulator, await stack.enter_async_context(aiohttp.ClientSession()))


async def test_a_voice_is_billed_by_its_own_seconds() -> None:
    async with simulated_live(replies=[Reply(text="Good morning!")]) as live:
        async with realtime_call(live.model()) as call:
            await call.session.generate_reply()
            await call.close()
        (row,) = live.rows("realtime")

    (leg,) = call.responses
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.REPORTED)
    assert leg.usage["connected_ms"] == row["connected_ms"] > 0
    assert leg.usage["output_audio_ms"] > 400
    assert leg.attributes.model == "gpt-live-1"
    assert call.meter.of(Modality.LLM) == []


async def test_a_connection_that_breaks_is_billed_until_then() -> None:
    async with simulated_live(replies=[Reply(text="Good morning!")] * 2) as live:
        async with realtime_call(live.model()) as call:
            await call.session.generate_reply()
            live.simulator.drop_connections()
            await call.meter.until(lambda: len(call.responses) == 2)
            await call.session.generate_reply()
            await call.close()
        rows = live.rows("realtime")

    first, second = call.responses
    assert (first.outcome, first.basis) == (Outcome.FAILED, Basis.OBSERVED)
    assert abs(first.usage["connected_ms"] - rows[0]["connected_ms"]) < 1_000
    assert (second.outcome, second.basis) == (Outcome.SERVED, Basis.REPORTED)
    assert second.usage["connected_ms"] == rows[1]["connected_ms"]


class _Forecaster(Agent):
    def __init__(self) -> None:
        super().__init__(instructions="You tell people about the weather.")

    @function_tool
    async def get_weather(self, city: str) -> str:
        """The weather of a city."""
        return f"It is sunny in {city}."


async def test_delegated_work_is_another_models() -> None:
    weather = ToolCall(name="get_weather", arguments={"city": "Paris"})
    reply = Reply(text="It is sunny in Paris.", tool_call=weather)
    async with simulated_live(replies=[reply]) as live:
        async with realtime_call(live.model(), agent=_Forecaster()) as call:
            call.caller.says(600)
            await call.meter.stopped(Modality.LLM, 2)
            await call.close()
        rows = live.rows("llm")

    legs = call.meter.of(Modality.LLM)
    assert {leg.basis for leg in legs} == {Basis.REPORTED}
    assert {leg.attributes.model for leg in legs} == {"gpt-5.6-luna"}
    assert [{unit: leg.usage[unit] for unit in row} for leg, row in zip(legs, rows)] == rows  # noqa: B905 (the lists are compared)


class ScriptedModel(DuplexModel):
    """A duplex model in this process, of which LiveKit knows nothing but its base class."""

    def __init__(self) -> None:
        super().__init__(
            capabilities=DuplexCapabilities(
                user_transcription=False, auto_tool_reply_generation=True
            )
        )
        self.sessions: list[ScriptedSession] = []

    @property
    def model(self) -> str:
        return "scripted-duplex"

    def session(self) -> ScriptedSession:
        self.sessions.append(ScriptedSession(self))
        return self.sessions[-1]

    async def aclose(self) -> None:
        pass


class ScriptedSession(DuplexSession[str]):
    def __init__(self, model: ScriptedModel) -> None:
        super().__init__(model)
        self.heard = 0
        self.speech: asyncio.Queue[rtc.AudioFrame | None] = asyncio.Queue()

    @property
    def audio_stream(self) -> AsyncIterable[DuplexAudioFrame]:
        return self._audio()

    async def _audio(self) -> AsyncGenerator[DuplexAudioFrame]:
        while (frame := await self.speech.get()) is not None:
            yield DuplexAudioFrame(frame)

    @property
    def tools(self) -> ToolContext:
        return ToolContext.empty()

    def push_audio(self, frame: rtc.AudioFrame) -> None:
        self.heard += 1

    def _generate_reply(self, **_: Any) -> None:
        self.emit("transcript_delta", DuplexOutputTranscriptDelta(text="Good morning!"))
        for frame in (*spoken(600, loud=False), *spoken(500), *spoken(1_000, loud=False)):
            self.speech.put_nowait(frame)

    async def aclose(self) -> None:
        await super().aclose()
        self.speech.put_nowait(None)

    async def _update_instructions(self, instructions: str) -> None:
        pass

    async def _append_items(self, items: list[ChatItem]) -> None:
        pass

    async def _update_tools(self, tools: list[Tool]) -> None:
        pass

    def _update_options(self, **_: Any) -> None:
        pass


async def test_a_duplex_model_that_says_nothing_of_itself_is_observed() -> None:
    model = ScriptedModel()
    async with observed(), realtime_call(DuplexRealtimeAdapter(model)) as call:
        call.caller.says(1_000, silence_ms=0)
        await call.caller.until_heard()
        await call.session.generate_reply()
        await call.close()

    (leg,) = call.responses
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.OBSERVED)
    assert leg.attributes.model == "scripted-duplex"
    assert leg.usage["input_audio_ms"] == model.sessions[0].heard * 50 > 800
    assert leg.usage["output_audio_ms"] == 2_100
    assert leg.usage["input_tokens"] == leg.usage["output_tokens"] == 0


async def test_a_duplex_models_turns_are_no_gaps() -> None:
    model = ScriptedModel()
    turns, gaps, said = Turns(), list[Any](), list[Any]()
    async with observed(), realtime_call(DuplexRealtimeAdapter(model)) as call:
        _watch(call, turns, gaps)
        call.session.on("conversation_item_added", said.append)
        await call.session.generate_reply()
        await call.session.generate_reply()
        await call.close()
    assert len(said) == 2
    assert gaps == []


def _watch(call: RealtimeCall, turns: Turns, gaps: list[Any]) -> None:
    open_leg = call.meter.open_leg

    def observed_open_leg(attributes: LegAttributes, usage: dict[str, int], **more: Any) -> Leg:
        turns.leg_opened(attributes.modality, more.get("speech_id"))
        return open_leg(attributes, usage, **more)

    call.meter.open_leg = observed_open_leg
    call.session.on(
        "conversation_item_added", lambda event: gaps.extend(turns.gaps(call.session, event))
    )

"""A real AgentSession on a simulated realtime model, with a meter that keeps its records."""

from __future__ import annotations

import asyncio
import inspect
import math
from array import array
from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from livekit import rtc
from livekit.agents import Agent, AgentSession
from livekit.agents.llm import RealtimeModel as AnyRealtimeModel
from livekit.agents.types import APIConnectOptions
from livekit.agents.voice import io
from livekit.plugins.openai.realtime import RealtimeModel

from livekit.plugins.voicecost import _attribution, _instrument
from tests.plugin.metered_session import Loudspeaker, RecordingMeter, SeenLeg
from tests.simulators.openai_realtime import OpenAIRealtimeSimulator
from voicecost_ledger.pricing import PriceBook
from voicecost_ledger.records import Modality

ONE_TRY_MORE = APIConnectOptions(max_retry=2, retry_interval=0.01, timeout=5)
TOKENS = (
    "input_tokens",
    "cached_input_tokens",
    "input_audio_tokens",
    "cached_input_audio_tokens",
    "output_tokens",
    "output_audio_tokens",
)


def spoken(duration_ms: int, *, loud: bool = True) -> Iterable[rtc.AudioFrame]:
    """So much sound, or silence, in frames of 50 ms."""
    for _ in range(duration_ms // 50):
        wave = array("h", (int(4_000 * math.sin(0.2 * i)) if loud else 0 for i in range(1_200)))
        yield rtc.AudioFrame(wave.tobytes(), 24_000, 1, 1_200)


class Caller(io.AudioInput):
    """Says what it is told to, much faster than it is spoken."""

    def __init__(self) -> None:
        super().__init__(label="caller")
        self._frames: asyncio.Queue[rtc.AudioFrame] = asyncio.Queue()

    def says(self, duration_ms: int, *, silence_ms: int = 700) -> None:
        """Speak, then be silent."""
        for frame in (*spoken(duration_ms), *spoken(silence_ms, loud=False)):
            self._frames.put_nowait(frame)

    async def until_heard(self) -> None:
        """Return when all of it was taken."""
        await self._frames.join()

    async def __anext__(self) -> rtc.AudioFrame:
        frame = await self._frames.get()
        self._frames.task_done()
        await asyncio.sleep(0)
        return frame


@dataclass
class RealtimeCall:
    """A running session with its meter."""

    session: AgentSession[None]
    meter: RecordingMeter
    loudspeaker: Loudspeaker
    caller: Caller

    async def close(self) -> None:
        """Close the session, then its meter."""
        await self.session.aclose()
        _attribution.unregister(self.session)

    @property
    def responses(self) -> list[SeenLeg]:
        return self.meter.of(Modality.REALTIME)

    @property
    def transcriptions(self) -> list[SeenLeg]:
        return self.meter.of(Modality.STT)


@asynccontextmanager
async def observed() -> AsyncGenerator[None]:
    """The instrumentation is in place meanwhile."""
    _instrument.instrument()
    try:
        yield
    finally:
        _instrument.uninstrument()


@asynccontextmanager
async def realtime_call(
    model: AnyRealtimeModel,
    *,
    agent: Agent | None = None,
    limit_nano_usd: int | None = None,
    prices: PriceBook | None = None,
    **options: Any,
) -> AsyncGenerator[RealtimeCall]:
    """A session on `model`, attached to a `RecordingMeter`, with a caller and a loudspeaker."""
    if "session_close_transcript_timeout" in inspect.signature(AgentSession).parameters:
        options["session_close_transcript_timeout"] = 0.1  # not yet in the oldest LiveKit
    session: AgentSession[None] = AgentSession(llm=model, **options)
    meter = RecordingMeter(limit_nano_usd=limit_nano_usd)
    if prices is not None:
        meter.prices = prices
    _attribution.register(session, meter)
    loudspeaker, caller = Loudspeaker(), Caller()
    session.output.audio = loudspeaker
    session.input.audio = caller
    await session.start(agent or Agent(instructions="You are a helpful telephone agent."))
    try:
        yield RealtimeCall(session, meter, loudspeaker, caller)
    finally:
        await session.aclose()
        _attribution.unregister(session)
        await model.aclose()


@asynccontextmanager
async def simulated_openai(**options: Any) -> AsyncGenerator[SimulatedOpenAI]:
    """The simulator, observed, and the real plugins that talk to it."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(observed())
        simulator = await stack.enter_async_context(OpenAIRealtimeSimulator(**options))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        yield SimulatedOpenAI(simulator, http)


@dataclass
class SimulatedOpenAI:
    """OpenAI's Realtime API, simulated."""

    simulator: OpenAIRealtimeSimulator
    http: aiohttp.ClientSession

    def model(self, **options: Any) -> RealtimeModel:
        settings: dict[str, Any] = {"model": "gpt-realtime", "conn_options": ONE_TRY_MORE}
        return RealtimeModel(
            base_url=self.simulator.base_url,
            api_key="x",
            http_session=self.http,
            **(settings | options),
        )

    def rows(self, service: str = "realtime") -> list[dict[str, int]]:
        """The units of each request that was billed."""
        return [row.units for row in self.simulator.bill.rows if row.service == service]

"""A real AgentSession on simulated providers, with a meter that only writes down what it is told.

The meter keeps the records as a spool would, so tests read legs from records alone.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import aiohttp
from livekit import rtc
from livekit.agents import Agent, AgentSession
from livekit.agents.types import APIConnectOptions
from livekit.agents.voice import io
from livekit.agents.voice.agent_session import SessionConnectOptions
from livekit.agents.voice.turn import InterruptionOptions
from livekit.plugins.deepgram import STT, TTS
from livekit.plugins.openai import LLM

from livekit.plugins.voicecost import _attribution, _instrument
from livekit.plugins.voicecost.legs import Leg
from tests.simulators import Bill, DeepgramSimulator, OpenAISimulator, Reply
from voicecost_ledger.pricing import Price, PriceBook
from voicecost_ledger.records import (
    Basis,
    LegAttributes,
    LegInterim,
    LegStart,
    LegStop,
    Modality,
    Outcome,
)

NANO_USD = {"input_tokens": 150, "output_tokens": 600, "characters": 30_000, "audio_ms": 72}


class UnitPrice:
    """So many nano-USD a unit, nothing else."""

    price_id = "test"
    pricing_source = "test@1"

    def converts(self, usage: Mapping[str, int]) -> bool:
        return False

    def rate(self, usage: Mapping[str, int]) -> int | None:
        return sum(NANO_USD.get(unit, 0) * count for unit, count in usage.items())

    def document(self) -> bytes:
        return b"{}"


class UnitPrices:
    def price_for(self, leg: LegAttributes, at_unix_ms: int) -> Price | None:
        return UnitPrice()

    def price_as_served(
        self, asked: LegAttributes, served: LegAttributes, at_unix_ms: int
    ) -> Price | None:
        return self.price_for(served, at_unix_ms)

    def restore(self, document: bytes) -> Price:
        return UnitPrice()


@dataclass
class SeenLeg:
    """A leg as its records tell it."""

    attributes: LegAttributes
    usage: dict[str, int]
    basis: Basis
    speech_id: str | None
    outcome: Outcome | None = None
    stop_count: int = 0
    margins: dict[str, int] = field(default_factory=dict[str, int])
    served_model: str = ""
    served_tier: str = ""
    time_to_first_ms: int | None = None


@dataclass(eq=False)
class RecordingMeter:
    """Keeps what its legs write; allows what stays below `limit_nano_usd`."""

    limit_nano_usd: int | None = None
    legs: dict[int, SeenLeg] = field(default_factory=dict[int, SeenLeg])
    records: list[tuple[type[Any], dict[str, Any]]] = field(
        default_factory=list[tuple[type[Any], dict[str, Any]]]
    )
    gaps: list[tuple[str, Modality | None]] = field(
        default_factory=list[tuple[str, Modality | None]]
    )
    cut: bool = False
    far: bool = False
    prices: PriceBook = field(default_factory=UnitPrices)
    estimates: dict[tuple[str, str], Any] = field(default_factory=dict[tuple[str, str], Any])

    def __post_init__(self) -> None:
        self._amounts: dict[Leg, int] = {}
        self._moved = asyncio.Event()
        self._watchers: list[Callable[[Leg], object]] = []

    def watch_legs(self, watcher: Callable[[Leg], object]) -> None:
        """Tell of every leg, in the order in which they were opened."""
        for leg in self._amounts:
            watcher(leg)
        self._watchers.append(watcher)

    def open_leg(
        self,
        attributes: LegAttributes,
        usage: dict[str, int],
        *,
        basis: Basis = Basis.ESTIMATED,
        speech_id: str | None = None,
        margins: Mapping[str, int] = {},
    ) -> Leg:
        leg = Leg(self, self, attributes, usage, basis=basis, speech_id=speech_id, margins=margins)
        for watcher in self._watchers:
            watcher(leg)
        return leg

    def next_leg(self) -> int:
        return len(self.legs) + 1

    def write(self, make: type[Any], **fields: Any) -> None:
        self.records.append((make, fields))
        if make is LegStart:
            self.legs[fields["leg"]] = SeenLeg(
                fields["attributes"], fields["usage"], fields["basis"], fields["speech_id"]
            )
        leg = self.legs[fields["leg"]]
        leg.usage, leg.basis = dict(fields["usage"]), fields["basis"]
        leg.margins = dict(fields.get("margins", {}))
        if make is LegStop:
            leg.outcome = fields["outcome"]
            leg.served_model = fields["served_model"]
            leg.served_tier = fields["served_tier"]
            leg.time_to_first_ms = fields["time_to_first_ms"]
            leg.stop_count += 1
        assert make in (LegStart, LegInterim, LegStop)
        self._moved.set()

    def gap(self, reason: str, modality: Modality | None = None) -> None:
        self.gaps.append((reason, modality))

    def overheard(self, attributes: LegAttributes, counts: Mapping[str, int]) -> None:
        """For a control total, which it keeps none of."""

    def charge_changed(self, leg: Leg, amount_nano_usd: int | None) -> None:
        self._amounts[leg] = amount_nano_usd or 0
        self._moved.set()

    def far_from_limits(self) -> bool:
        return self.far

    def may_spend(self, next_nano_usd: int) -> bool:
        if self.cut:
            return False
        spent = sum(self._amounts.values())
        return self.limit_nano_usd is None or spent + next_nano_usd <= self.limit_nano_usd

    @property
    def total_nano_usd(self) -> int:
        return sum(self._amounts.values())

    def of(self, modality: Modality) -> list[SeenLeg]:
        return [leg for leg in self.legs.values() if leg.attributes.modality is modality]

    def total(self, modality: Modality, unit: str) -> int:
        return sum(leg.usage.get(unit, 0) for leg in self.of(modality))

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds; looked at after every record."""
        async with asyncio.timeout(20):
            while not condition():
                self._moved.clear()
                await self._moved.wait()

    async def stopped(self, modality: Modality, count: int = 1) -> list[SeenLeg]:
        """Wait until so many legs of this kind have stopped, and give them."""

        def done() -> list[SeenLeg]:
            return [leg for leg in self.of(modality) if leg.outcome is not None]

        await self.until(lambda: len(done()) >= count)
        return done()


async def close_plugin(plugin: Any) -> None:
    """Close a plugin's connections: a pool keeps even an interrupted one until then."""
    try:
        await plugin.aclose()
    except asyncio.CancelledError:  # LiveKit 1.5: of a stream that was interrupted
        plugin._streams.clear()
        await plugin.aclose()


class Microphone(io.AudioInput):
    """Silence in frames of 20 ms, faster than it is spoken, until it is closed."""

    def __init__(self) -> None:
        super().__init__(label="microphone")
        self._frame = rtc.AudioFrame(bytes(2 * 480), 24_000, 1, 480)

    async def __anext__(self) -> rtc.AudioFrame:
        await asyncio.sleep(0.005)
        return self._frame


class Loudspeaker(io.AudioOutput):
    """Plays ten times as fast as it is spoken."""

    def __init__(self) -> None:
        super().__init__(label="loudspeaker", capabilities=io.AudioOutputCapabilities(pause=False))
        self.heard = asyncio.Event()
        self._pushed_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        self._pushed_s += frame.duration
        self.heard.set()

    def flush(self) -> None:
        super().flush()
        if self._pushed_s:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._pushed_s / 10, self._finish, False)

    def clear_buffer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._pushed_s:
            self._finish(True)

    def _finish(self, interrupted: bool) -> None:
        played, self._pushed_s, self._timer = self._pushed_s, 0.0, None
        self.on_playback_finished(playback_position=played, interrupted=interrupted)


@dataclass
class Providers:
    """The simulated providers, and the real plugins that talk to them."""

    openai: OpenAISimulator
    deepgram: DeepgramSimulator
    http: aiohttp.ClientSession
    made: list[LLM | STT | TTS] = field(default_factory=list["LLM | STT | TTS"])

    @property
    def bill(self) -> Bill:
        return self.openai.bill

    async def close_plugins(self) -> None:
        """Close the plugins' connections: a pool keeps even an interrupted one until then."""
        while self.made:
            await close_plugin(self.made.pop())

    def llm(self, **options: Any) -> LLM:
        settings: dict[str, Any] = {"model": "gpt-4o-mini"} | options
        plugin = LLM(base_url=self.openai.base_url, api_key="x", **settings)
        self.made.append(plugin)
        return plugin

    def stt(self, **options: Any) -> STT:
        plugin = STT(
            base_url=self.deepgram.listen_url, api_key="x", http_session=self.http, **options
        )
        self.made.append(plugin)
        return plugin

    def tts(self, **options: Any) -> TTS:
        plugin = TTS(
            base_url=self.deepgram.speak_url, api_key="x", http_session=self.http, **options
        )
        self.made.append(plugin)
        return plugin


@asynccontextmanager
async def simulated_providers(*replies: Reply, **options: Any) -> AsyncGenerator[Providers]:
    """Both providers on loopback, with one bill; the instrumentation is in place meanwhile."""
    bill = Bill()
    speed: float = options.pop("speed", 60.0)
    _instrument.instrument()
    try:
        async with (
            OpenAISimulator(
                replies=replies,
                bill=bill,
                **({"first_token_delay_ms": 20, "token_delay_ms": 4} | options),
            ) as openai,
            DeepgramSimulator(bill=bill, speed=speed) as deepgram,
            aiohttp.ClientSession() as http,
        ):
            providers = Providers(openai, deepgram, http)
            try:
                yield providers
            finally:
                await providers.close_plugins()
    finally:
        _instrument.uninstrument()


@dataclass
class Call:
    """A running session with its meter."""

    session: AgentSession[None]
    meter: RecordingMeter
    loudspeaker: Loudspeaker
    providers: Providers

    async def close(self) -> None:
        """Close the session, then its meter, and let the providers notice."""
        await self.session.aclose()
        _attribution.unregister(self.session)
        await self.providers.close_plugins()
        await self.providers.bill.settled()

    def billed(self, service: str, unit: str) -> int:
        return self.providers.bill.total(unit, service=cast("Any", service))


_NO_RESUMING: InterruptionOptions = {"resume_false_interruption": False}


@asynccontextmanager
async def metered_call(
    providers: Providers,
    *,
    agent: Agent | None = None,
    hears: bool | io.AudioInput = False,
    limit_nano_usd: int | None = None,
    attach: bool = True,
    timeout_s: float = 5,
    **options: Any,
) -> AsyncGenerator[Call]:
    """A session of real plugins without a room, attached to a `RecordingMeter`.

    Args:
        providers: Where its requests go.
        agent: Its agent; a plain one by default.
        hears: Whether there is a microphone, and so an STT connection; or which one.
        limit_nano_usd: The meter allows no more than this.
        attach: Whether the meter is registered before the session starts.
        timeout_s: How long each attempt waits for its provider.
        options: For AgentSession; its plugins by default are all three.
    """
    one_try_more = APIConnectOptions(max_retry=2, retry_interval=0, timeout=timeout_s)
    defaults: dict[str, Any] = {
        "stt": providers.stt,
        "llm": providers.llm,
        "tts": providers.tts,
    }
    plugins = {name: options.pop(name, None) or make() for name, make in defaults.items()}
    settings: dict[str, Any] = {
        "vad": None,
        "turn_handling": {"turn_detection": "manual", "interruption": _NO_RESUMING},
        "conn_options": SessionConnectOptions(
            llm_conn_options=one_try_more,
            tts_conn_options=one_try_more,
            stt_conn_options=one_try_more,
        ),
    }
    if "session_close_transcript_timeout" in inspect.signature(AgentSession).parameters:
        settings["session_close_transcript_timeout"] = 0.05  # not yet in the oldest LiveKit
    session: AgentSession[None] = AgentSession(**plugins, **(settings | options))
    meter = RecordingMeter(limit_nano_usd=limit_nano_usd)
    if attach:
        _attribution.register(session, meter)
    loudspeaker = Loudspeaker()
    session.output.audio = loudspeaker
    if hears:
        session.input.audio = Microphone() if hears is True else hears
    await session.start(agent or Agent(instructions="You are a helpful telephone agent."))
    try:
        yield Call(session, meter, loudspeaker, providers)
    finally:
        await session.aclose()
        _attribution.unregister(session)

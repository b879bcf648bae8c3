"""One call of the benchmark: simulated providers of its own, real plugins, a real AgentSession.

Everything runs at the speed of speech: the loudspeaker plays as long as the audio lasts, the
microphone sends frames as they would be spoken, in irregular sizes. Calls run side by side.
"""

# livekit-agents says little of its generics.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
from livekit.agents import Agent, AgentSession, APIConnectOptions, RunContext, function_tool
from livekit.agents.voice import CloseEvent, io
from livekit.agents.voice.agent_session import SessionConnectOptions
from livekit.agents.voice.transcription import TranscriptSynchronizer
from livekit.plugins.anthropic import LLM as AnthropicLLM
from livekit.plugins.cartesia import TTS as CartesiaTTS
from livekit.plugins.deepgram import STT, TTS
from livekit.plugins.elevenlabs import TTS as ElevenLabsTTS
from livekit.plugins.openai import LLM
from livekit.plugins.openai.realtime import RealtimeModel

from livekit.plugins.voicecost import VoiceCost
from tests.simulators import Bill, DeepgramSimulator, OpenAISimulator, Reply
from tests.simulators.anthropic_messages import AnthropicSimulator
from tests.simulators.cartesia_speak import CartesiaSpeakSimulator
from tests.simulators.elevenlabs_speak import ElevenLabsSpeakSimulator
from tests.simulators.openai_realtime import OpenAIRealtimeSimulator
from tests.simulators.server import Simulator

from .audio import Loudspeaker, Microphone
from .texts import LOOKUP_SCHEMA, ORDER_SCHEMA

MODEL: Final = "gpt-4o-mini"
TOKEN_MS: Final = 20
WAIT_MAX_S: Final = 40.0


class NotReachedError(Exception):
    """The call did not come to the point that its script waits for."""


class _Words(io.TextOutput):
    """Takes what is being spoken, as a room would."""

    def __init__(self) -> None:
        super().__init__(label="loudspeaker", next_in_chain=None)

    async def capture_text(self, text: str) -> None:
        """Nobody reads it."""

    def flush(self) -> None:
        """Nobody reads it."""


class Clerk(Agent):
    """An agent with two tools, whose arguments and results are JSON."""

    def __init__(self, instructions: str, *, tools: bool = True, **options: Any) -> None:
        super().__init__(
            instructions=instructions, tools=[save_order, look_up] if tools else [], **options
        )


@function_tool(raw_schema=ORDER_SCHEMA)
async def save_order(raw_arguments: dict[str, object], context: RunContext[None]) -> dict[str, Any]:
    """Say what was saved."""
    await asyncio.sleep(0.05)
    items: Any = raw_arguments["items"]
    skus = [item["sku"] for item in items]
    return {"saved": True, "order": {"number": "O-77120", "skus": skus, "total_cents": 129_90}}


@function_tool(raw_schema=LOOKUP_SCHEMA)
async def look_up(raw_arguments: dict[str, object], context: RunContext[None]) -> dict[str, Any]:
    """Say what was found."""
    await asyncio.sleep(0.02)
    return {"found": [raw_arguments], "status": "open", "since": "2026-11-02T08:15:00Z"}


class LiveCall:
    """A running session, and what a caller can do with it."""

    def __init__(
        self, stage: Stage, session: AgentSession[None], ear: Microphone, mouth: Loudspeaker
    ) -> None:
        self.stage = stage
        self.session = session
        self.ear = ear
        self.mouth = mouth
        self.closed = asyncio.Event()
        self.turns = 0

    def ask(self, question: str) -> Any:
        """Ask by text; returns the SpeechHandle of the answer."""
        return self.session.generate_reply(user_input=question)

    async def answered(self, question: str) -> None:
        """Ask by text and hear the answer to its end."""
        await self.spoken(self.ask(question))

    async def spoken(self, speech: Any) -> None:
        """Return when a speech is over."""
        await asyncio.wait_for(speech.wait_for_playout(), WAIT_MAX_S)

    async def hears(self, seconds: float) -> None:
        """Return when so much more was heard."""
        enough_s = self.mouth.heard_s + seconds
        await self.until(lambda: self.mouth.heard_s >= enough_s)

    async def until(
        self, condition: Callable[[], object], *, timeout_s: float = WAIT_MAX_S
    ) -> None:
        """Return when the condition holds, or the session is closed.

        Raises:
            NotReachedError: It did not in time.
        """
        deadline = time.monotonic() + timeout_s
        while not condition() and not self.closed.is_set():
            if time.monotonic() > deadline:
                raise NotReachedError(self.stage.name)
            await asyncio.sleep(0.01)

    async def written(self, tokens: int, *, after_rows: int = 0) -> None:
        """Return when the LLM's requests since have delivered so many tokens.

        Args:
            tokens: So many.
            after_rows: How many LLM requests there were before, see `Stage.llm_row_count`.
        """
        await self.until(
            lambda: (
                sum(row.units["output_tokens"] for row in self.stage.llm_rows()[after_rows:])
                >= tokens
            )
        )

    async def close(self) -> None:
        """Close the session."""
        await self.session.aclose()


class Stage:
    """The providers of one call, on loopback, with one bill: an async context manager.

    Two of each, for hand-offs and failover.

    Args:
        name: Of the case.
        seed: Of everything that is random in it.

    Attributes:
        bill: The providers' own.
        usages: LiveKit's `session.usage` of every session, as JSON.
        chance: The seeded randomness.
    """

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.chance = random.Random(f"{name}/{seed}")
        self.bill = Bill()
        self.openai = [
            OpenAISimulator(bill=self.bill, first_token_delay_ms=250, token_delay_ms=TOKEN_MS)
            for _ in range(2)
        ]
        self.deepgram = [DeepgramSimulator(bill=self.bill) for _ in range(2)]
        self.anthropic = AnthropicSimulator(
            bill=self.bill, first_token_delay_ms=250, token_delay_ms=TOKEN_MS
        )
        self.cartesia = CartesiaSpeakSimulator(bill=self.bill)
        self.elevenlabs = ElevenLabsSpeakSimulator(bill=self.bill)
        self.openai_realtime = OpenAIRealtimeSimulator(
            bill=self.bill, first_token_delay_ms=250, token_delay_ms=TOKEN_MS
        )
        self.usages: list[list[dict[str, Any]]] = []
        self.http: aiohttp.ClientSession
        self._plugins: list[Any] = []
        self._rest = contextlib.AsyncExitStack()

    def script(self, *, said: Sequence[str] = (), replies: Sequence[Reply]) -> None:
        """Tell the providers what the caller says and what the model answers."""
        for model in (*self.openai, self.anthropic, self.openai_realtime):
            model.replies = list(replies)
        transcripts = deque(said)  # one for all: what was said is said
        self.openai_realtime.transcripts = transcripts
        for deepgram in self.deepgram:
            deepgram.listen.transcripts = transcripts

    def llm(self, which: int = 0, *, model: str = MODEL) -> LLM:
        """A plugin of the first or the second OpenAI."""
        return self._keep(LLM(model=model, base_url=self.openai[which].base_url, api_key="x"))

    def stt(self, which: int = 0, *, language: str = "en-US") -> STT:
        """A plugin of the first or the second Deepgram."""
        url = self.deepgram[which].listen_url
        return self._keep(
            STT(
                model="nova-3", language=language, base_url=url, api_key="x",
                http_session=self.http,
            )
        )  # fmt: skip

    def tts(self, which: int = 0) -> TTS:
        """A plugin of the first or the second Deepgram."""
        url = self.deepgram[which].speak_url
        return self._keep(TTS(base_url=url, api_key="x", http_session=self.http))

    def claude(self) -> AnthropicLLM:
        """A plugin of Anthropic, which caches what it is told to."""
        return self._keep(
            AnthropicLLM(
                model="claude-haiku-4-5", base_url=self.anthropic.base_url, api_key="x",
                caching="ephemeral",
            )
        )  # fmt: skip

    def realtime(self, **options: Any) -> RealtimeModel:
        """A realtime plugin of OpenAI, which transcribes what it hears, too."""
        url = self.openai_realtime.base_url
        return self._keep(
            RealtimeModel(
                model="gpt-realtime", base_url=url, api_key="x", http_session=self.http, **options
            )
        )

    def sonic(self) -> CartesiaTTS:
        """A plugin of Cartesia."""
        url = self.cartesia.url
        return self._keep(CartesiaTTS(base_url=url, api_key="x", http_session=self.http))

    def eleven(self) -> ElevenLabsTTS:
        """A plugin of ElevenLabs."""
        url = self.elevenlabs.base_url
        return self._keep(ElevenLabsTTS(base_url=url, api_key="x", http_session=self.http))

    def _keep(self, plugin: Any) -> Any:
        self._plugins.append(plugin)
        return plugin

    def llm_rows(self) -> list[Any]:
        """The bill's rows of LLM requests."""
        return [row for row in self.bill.rows if row.service == "llm"]

    def rows(self, service: str) -> int:
        """How many rows the bill has of a kind."""
        return sum(row.service == service for row in self.bill.rows)

    @property
    def hosts(self) -> dict[str, str]:
        """Whose prices hold for them."""
        providers: list[tuple[str, Simulator]] = [("openai", each) for each in self.openai]
        providers += [("deepgram", each) for each in self.deepgram]
        providers += [
            ("anthropic", self.anthropic),
            ("cartesia", self.cartesia),
            ("elevenlabs", self.elevenlabs),
            ("openai", self.openai_realtime),
        ]
        return {simulator.url.removeprefix("http://"): name for name, simulator in providers}

    @asynccontextmanager
    async def call(
        self,
        agent: Agent,
        *,
        hears: bool = True,
        speaks: bool = True,
        turns: str | None = "manual",
        **options: Any,
    ) -> AsyncGenerator[LiveCall]:
        """A metered session; closed at the end of the block at the latest.

        Args:
            agent: Its agent.
            hears: Whether it has a microphone.
            speaks: Whether it has a loudspeaker; without one it is a text-only session.
            turns: `manual`; `stt`: the caller's voice decides, as in a phone call; None: so too,
                and LiveKit generates preemptively.
            options: For AgentSession; by default the first provider of each kind, None for none.
        """
        makers = {"stt": self.stt, "llm": self.llm, "tts": self.tts}
        plugins = {
            name: options.pop(name) if name in options else make() for name, make in makers.items()
        }
        connect = APIConnectOptions(max_retry=3, retry_interval=0.1, timeout=3.0)
        handling: dict[str, Any] = {
            "turn_detection": turns,
            "interruption": {"resume_false_interruption": False},
        }
        session: AgentSession[None] = AgentSession(
            **plugins,
            vad=None,
            turn_handling=handling | options.pop("handling", {}),
            conn_options=options.pop(
                "conn_options",
                SessionConnectOptions(
                    llm_conn_options=connect, tts_conn_options=connect, stt_conn_options=connect
                ),
            ),
            **options,
        )
        VoiceCost(project="accuracy").attach(session)
        ear, mouth = Microphone(self.chance), Loudspeaker()
        call = LiveCall(self, session, ear, mouth)

        def on_close(_: CloseEvent) -> None:
            self.usages.append([model.model_dump() for model in session.usage.model_usage])
            call.closed.set()

        session.on("close", on_close)
        if speaks:
            spoken = TranscriptSynchronizer(next_in_chain_audio=mouth, next_in_chain_text=_Words())
            session.output.audio = spoken.audio_output
            session.output.transcription = spoken.text_output
        if hears:
            session.input.audio = ear
        await session.start(agent)
        try:
            yield call
        finally:
            await session.aclose()

    async def settled(self) -> None:
        """Close the plugins' connections and let the providers notice."""
        for plugin in self._plugins:
            await plugin.aclose()
        self._plugins.clear()
        # A request that hangs is a script's fault, not ours: what was billed so far stands.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.bill.settled(), 10)

    async def __aenter__(self) -> Stage:
        others = (self.anthropic, self.cartesia, self.elevenlabs, self.openai_realtime)
        for simulator in (*self.openai, *self.deepgram, *others):
            await self._rest.enter_async_context(simulator)
        self.http = await self._rest.enter_async_context(aiohttp.ClientSession())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._rest.aclose()

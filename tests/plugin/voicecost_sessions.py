"""Real AgentSessions with real provider plugins, on simulated providers, without a room.

The ledger is the real one too: embedded, in the test's own folder, read as `voicecost call` does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from livekit import rtc
from livekit.agents import Agent, AgentSession
from livekit.agents.voice.io import AudioOutput, AudioOutputCapabilities
from livekit.plugins.deepgram import TTS
from livekit.plugins.openai import LLM

from livekit.plugins.voicecost import _attribution, _instrument, _prices, _runtime, _unattributed
from livekit.plugins.voicecost._embedded import database_path
from tests.plugin.metered_session import close_plugin
from tests.simulators import DeepgramSimulator, OpenAISimulator, Reply
from voicecost_ledger.stores import CallDetail, CallQuery
from voicecost_ledger.stores.sqlite import SqliteStore


class Speaker(AudioOutput):
    """A loudspeaker that has said everything the moment it got it."""

    def __init__(self) -> None:
        super().__init__(label="speaker", capabilities=AudioOutputCapabilities(pause=False))
        self.heard_ms = 0
        self._segment_s = 0.0

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        if not self._segment_s:
            self.on_playback_started(created_at=0.0)
        self._segment_s += frame.duration
        self.heard_ms += round(frame.duration * 1000)

    def flush(self) -> None:
        super().flush()
        self._finish(interrupted=False)

    def clear_buffer(self) -> None:
        self._finish(interrupted=True)

    def _finish(self, *, interrupted: bool) -> None:
        if self._segment_s:
            self.on_playback_finished(playback_position=self._segment_s, interrupted=interrupted)
            self._segment_s = 0.0


@dataclass(slots=True)
class Providers:
    """The simulated providers and what reaches them."""

    openai: OpenAISimulator
    deepgram: DeepgramSimulator
    http: aiohttp.ClientSession
    models: list[Any] = field(default_factory=list[Any])

    @property
    def _openai_url(self) -> str:
        # Another name for the same host: who bills is told by the host.
        return self.openai.base_url.replace("127.0.0.1", "localhost")

    def session(self, **options: Any) -> AgentSession[None]:
        """A session that writes and speaks; nobody is listening to a caller."""
        model = LLM(model="gpt-4o-mini", base_url=self._openai_url, api_key="x")
        voice = TTS(base_url=self.deepgram.speak_url, api_key="x", http_session=self.http)
        self.models += [model, voice]
        settings: dict[str, Any] = {
            "llm": model,
            "tts": voice,
            "vad": None,
            "turn_handling": {"turn_detection": "manual"},
        }
        session: AgentSession[None] = AgentSession(**(settings | options))
        session.output.audio = Speaker()
        return session

    def model(self, name: str) -> LLM:
        """An LLM beside the session's."""
        model = LLM(model=name, base_url=self._openai_url, api_key="x")
        self.models.append(model)
        return model

    async def close_plugins(self) -> None:
        """Close the plugins' connections: a pool keeps even an interrupted one until then."""
        while self.models:
            await close_plugin(self.models.pop())

    async def asked(self) -> None:
        """Return when the LLM has been asked something."""
        while not self.openai.bill.rows:  # noqa: ASYNC110  (the simulator tells nobody)
            await asyncio.sleep(0.001)


@asynccontextmanager
async def providers(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Providers]:
    """Both simulators running, in a process that has not metered anything yet."""
    forget_process()
    replies = [Reply(match="hello", text="Hello! How can I help you?")]
    async with (
        OpenAISimulator(replies=replies, first_token_delay_ms=1, token_delay_ms=0) as openai,
        DeepgramSimulator() as deepgram,
        aiohttp.ClientSession() as http,
    ):
        monkeypatch.setenv("VOICECOST_HOST_ALIASES", "localhost=openai,127.0.0.1=deepgram")
        # Otherwise the first LLM leg may come before its price: true, and of no use here.
        await asyncio.to_thread(_prices.prices().book.warm)
        try:
            running = Providers(openai, deepgram, http)
            yield running
            await running.close_plugins()
        finally:
            await asyncio.to_thread(forget_process)


def forget_process() -> None:
    """End this process's metering, so that the next test starts as a new process does."""
    _runtime._close_all()
    _runtime._runtimes.clear()
    _prices._prices = None
    _unattributed._places.clear()
    _attribution._registry.meters.clear()
    _instrument.uninstrument()


async def ledger() -> list[CallDetail]:
    """Every call in this process's embedded ledger, oldest first, once all is durable in it."""
    await _runtime.runtime().flushed(10)
    return await asyncio.to_thread(_read, database_path())


def _read(path: Path) -> list[CallDetail]:
    if not path.exists():
        return []
    with contextlib.closing(SqliteStore.open(path)) as store:
        details = [store.call(each.call_id) for each in store.calls(CallQuery())]
    return [each for each in details if each is not None][::-1]


class Host(Agent):
    """Says what it is asked to."""

    def __init__(self) -> None:
        super().__init__(instructions="You are friendly.")


async def say_hello(session: AgentSession[None]) -> None:
    """One turn: a question, an answer by the LLM, spoken by the TTS."""
    await asyncio.wait_for(session.generate_reply(user_input="hello").wait_for_playout(), 10)

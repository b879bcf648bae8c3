"""Real AgentSessions with real provider plugins, on simulated providers, without a room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from livekit import rtc
from livekit.agents import Agent, AgentSession
from livekit.agents.voice.io import AudioOutput, AudioOutputCapabilities
from livekit.plugins.deepgram import TTS
from livekit.plugins.openai import LLM

from tests.simulators import DeepgramSimulator, OpenAISimulator, Reply


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

    @property
    def _openai_url(self) -> str:
        # Another name for the same host: who bills is told by the host.
        return self.openai.base_url.replace("127.0.0.1", "localhost")

    def session(self, **options: Any) -> AgentSession[None]:
        """A session that writes and speaks; nobody is listening to a caller."""
        settings: dict[str, Any] = {
            "llm": LLM(model="gpt-4o-mini", base_url=self._openai_url, api_key="x"),
            "tts": TTS(base_url=self.deepgram.speak_url, api_key="x", http_session=self.http),
            "vad": None,
            "turn_handling": {"turn_detection": "manual"},
        }
        session: AgentSession[None] = AgentSession(**(settings | options))
        session.output.audio = Speaker()
        return session


@asynccontextmanager
async def providers(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Providers]:
    """Both simulators running, and an environment that says who bills for their hosts."""
    replies = [Reply(match="hello", text="Hello! How can I help you?")]
    async with (
        OpenAISimulator(replies=replies, first_token_delay_ms=1, token_delay_ms=0) as openai,
        DeepgramSimulator() as deepgram,
        aiohttp.ClientSession() as http,
    ):
        monkeypatch.setenv("VOICECOST_HOST_ALIASES", "localhost=openai,127.0.0.1=deepgram")
        yield Providers(openai, deepgram, http)


class Host(Agent):
    """Says what it is asked to."""

    def __init__(self) -> None:
        super().__init__(instructions="You are friendly.")


async def say_hello(session: AgentSession[None]) -> None:
    """One turn: a question, an answer by the LLM, spoken by the TTS."""
    await asyncio.wait_for(session.generate_reply(user_input="hello").wait_for_playout(), 10)

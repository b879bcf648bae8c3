"""Every simulated voice with the real plugin that speaks through it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from livekit.agents import inference
from livekit.agents.tts import TTS
from livekit.plugins.azure import TTS as AzureTTS
from livekit.plugins.cartesia import TTS as CartesiaTTS
from livekit.plugins.deepgram import TTS as DeepgramTTS
from livekit.plugins.elevenlabs import TTS as ElevenLabsTTS
from livekit.plugins.openai import TTS as OpenAITTS
from livekit.plugins.resemble import TTS as ResembleTTS

from livekit.plugins.voicecost import _instrument, _speech_tokens
from tests.plugin.metered_session import close_plugin
from tests.simulators import Bill, DeepgramSimulator
from tests.simulators.azure_speech import AzureSpeechSimulator
from tests.simulators.cartesia_speak import CartesiaSpeakSimulator
from tests.simulators.elevenlabs_speak import ElevenLabsSpeakSimulator
from tests.simulators.inference_tts import InferenceTTSSimulator
from tests.simulators.openai_speech import OpenAISpeechSimulator
from tests.simulators.resemble_speak import ResembleSimulator
from tests.simulators.script import Faults
from tests.simulators.speech import Pace

STREAMING = ("deepgram", "cartesia", "elevenlabs", "inference", "resemble")
BY_CHARACTERS = ("deepgram", "cartesia", "elevenlabs", "inference")


@dataclass
class Voice:
    """A simulated provider, its bill, and the plugin."""

    name: str
    tts: TTS[Any]
    bill: Bill
    faults: Faults
    simulator: Any

    @property
    def unit(self) -> str:
        """What it is billed by."""
        return "audio_ms" if self.name == "resemble" else "characters"

    @property
    def billed(self) -> int:
        return self.bill.total(self.unit, service="tts")


@asynccontextmanager
async def simulated_voice(
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    pace: Pace | None = None,
    **options: Any,
) -> AsyncGenerator[Voice]:
    """One provider on loopback; the instrumentation is in place meanwhile."""
    pace = pace or Pace(first_byte_delay_ms=20, speed=60)
    bill = Bill()
    _speech_tokens.forget()
    _instrument.instrument()
    async with AsyncExitStack() as stack:
        stack.callback(_instrument.uninstrument)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        simulator: Any
        tts: TTS[Any]
        if name == "deepgram":
            simulator = await stack.enter_async_context(
                DeepgramSimulator(
                    bill=bill,
                    character_ms=pace.character_ms,
                    first_byte_delay_ms=pace.first_byte_delay_ms,
                    speed=pace.speed,
                )
            )
            tts = DeepgramTTS(
                base_url=simulator.speak_url, api_key="x", http_session=http, **options
            )
        elif name == "cartesia":
            simulator = await stack.enter_async_context(
                CartesiaSpeakSimulator(bill=bill, pace=pace)
            )
            tts = CartesiaTTS(base_url=simulator.url, api_key="x", http_session=http, **options)
        elif name == "elevenlabs":
            simulator = await stack.enter_async_context(
                ElevenLabsSpeakSimulator(bill=bill, pace=pace)
            )
            tts = ElevenLabsTTS(
                base_url=simulator.base_url, api_key="x", http_session=http, **options
            )
        elif name == "inference":
            simulator = await stack.enter_async_context(InferenceTTSSimulator(bill=bill, pace=pace))
            settings: dict[str, Any] = {"model": "cartesia/sonic-3", "voice": "x"} | options
            tts = inference.TTS(
                base_url=simulator.base_url,
                api_key="key",
                api_secret="secret-of-32-characters-or-longer",
                http_session=http,
                **settings,
            )
        elif name == "resemble":
            simulator = await stack.enter_async_context(ResembleSimulator(bill=bill, pace=pace))
            module = "livekit.plugins.resemble.tts"  # its addresses are no options
            monkeypatch.setattr(f"{module}.RESEMBLE_WEBSOCKET_URL", simulator.websocket_url)
            monkeypatch.setattr(f"{module}.RESEMBLE_REST_API_URL", simulator.rest_url)
            tts = ResembleTTS(api_key="x", http_session=http, **options)
        elif name == "openai":
            simulator = await stack.enter_async_context(OpenAISpeechSimulator(bill=bill, pace=pace))
            tts = OpenAITTS(base_url=simulator.base_url, api_key="x", **options)
        elif name == "azure":
            simulator = await stack.enter_async_context(AzureSpeechSimulator(bill=bill, pace=pace))
            tts = AzureTTS(
                speech_endpoint=simulator.endpoint, speech_key="x", http_session=http, **options
            )
        else:
            raise ValueError(f"no simulated voice {name!r}")
        faults: Faults = simulator.speak.faults if name == "deepgram" else simulator.faults
        stack.push_async_callback(close_plugin, tts)
        yield Voice(name, tts, bill, faults, simulator)

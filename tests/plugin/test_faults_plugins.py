"""A provider plugin that raises where we stand beside it: the call sees what it would without us.

Each case is played twice, uninstrumented and instrumented, and must end alike.
"""

from __future__ import annotations

import contextlib
import math
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from livekit import rtc
from livekit.agents import APIConnectOptions
from livekit.agents.llm import ChatContext
from livekit.agents.tts import AudioEmitter
from livekit.agents.utils import aio
from livekit.plugins.deepgram import STT, TTS
from livekit.plugins.openai import LLM

from livekit.plugins.voicecost import _attribution, _faults, _instrument
from tests.plugin.metered_session import Providers, RecordingMeter, simulated_providers
from tests.simulators import Reply, deepgram_listen
from voicecost_ledger.records import Modality

ONE_TRY = APIConnectOptions(max_retry=0, timeout=5)


class PluginError(Exception):
    """What the plugin raises."""


@pytest.fixture
async def providers(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Providers]:
    # A plugin that has failed may leave its connection to the provider, which closes it.
    monkeypatch.setattr(deepgram_listen, "IDLE_MS_MAX", 200)
    reply = Reply(text="It is sunny.")
    async with simulated_providers(reply, first_token_delay_ms=1, token_delay_ms=1) as providers:
        yield providers


@pytest.fixture
def meter() -> Iterator[RecordingMeter]:
    meter = RecordingMeter()
    with _attribution.scoped(meter):
        yield meter


@pytest.fixture(autouse=True)
def no_faults() -> Iterator[None]:
    before = _faults.counts()
    yield
    assert _faults.counts() == before


async def write(providers: Providers) -> int:
    """An LLM request; returns how much came of it."""
    context = ChatContext.empty()
    context.add_message(role="user", content="How is the weather?")
    async with providers.llm().chat(chat_ctx=context, conn_options=ONE_TRY) as stream:
        return len([chunk async for chunk in stream if chunk.delta is not None])


async def speak(providers: Providers) -> int:
    async with providers.tts().stream(conn_options=ONE_TRY) as stream:
        stream.push_text("It is sunny.")
        stream.end_input()
        return len([audio async for audio in stream])


async def speak_at_once(providers: Providers) -> int:
    async with providers.tts().synthesize("It is sunny.", conn_options=ONE_TRY) as stream:
        return len([audio async for audio in stream])


async def hear(providers: Providers) -> int:
    providers.deepgram.listen.transcripts.append("Hello?")
    hum = array("h", (int(8_000 * math.sin(i * math.tau * 200 / 16_000)) for i in range(16_000)))
    async with providers.stt().stream(conn_options=ONE_TRY) as stream:
        stream.push_frame(rtc.AudioFrame(hum.tobytes(), 16_000, 1, 16_000))
        stream.push_frame(rtc.AudioFrame(bytes(32_000), 16_000, 1, 16_000))
        async for _ in stream:
            return 1
    return 0


def raises_the(nth: int, *, on: str) -> Callable[[pytest.MonkeyPatch], None]:
    """A method of LiveKit's that the plugin calls raises, the n-th time."""

    def break_it(patched: pytest.MonkeyPatch) -> None:
        name, _, method = on.partition(".")
        holder: Any = {"Chan": aio.Chan, "AudioEmitter": AudioEmitter, "LLM": LLM, "TTS": TTS}[name]
        intact, calls = getattr(holder, method), 0

        def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth:
                raise PluginError(method)
            return intact(self, *args, **kwargs)

        patched.setattr(holder, method, broken)

    return break_it


def property_raises(plugin: type[Any], name: str) -> Callable[[pytest.MonkeyPatch], None]:
    def broken(self: Any) -> str:
        raise PluginError(name)

    def break_it(patched: pytest.MonkeyPatch) -> None:
        patched.setattr(plugin, name, property(broken))

    return break_it


async def how_it_ends(
    use: Callable[[Providers], Awaitable[int]],
    providers: Providers,
    break_it: Callable[[pytest.MonkeyPatch], None],
) -> object:
    with pytest.MonkeyPatch.context() as patched:
        break_it(patched)
        try:
            return await use(providers) > 0
        except Exception as error:
            return type(error)


CASES: list[Any] = [
    pytest.param(write, raises_the(2, on="Chan.send_nowait"), Modality.LLM, id="llm send_nowait"),
    pytest.param(write, raises_the(1, on="LLM.emit"), Modality.LLM, id="llm emit"),
    pytest.param(write, property_raises(LLM, "model"), Modality.LLM, id="llm model"),
    pytest.param(write, property_raises(LLM, "provider"), Modality.LLM, id="llm provider"),
    pytest.param(write, property_raises(LLM, "label"), Modality.LLM, id="llm label"),
    pytest.param(speak, raises_the(1, on="Chan.recv_nowait"), Modality.TTS, id="tts recv_nowait"),
    pytest.param(speak, raises_the(2, on="AudioEmitter.push"), Modality.TTS, id="tts push"),
    pytest.param(speak, raises_the(1, on="AudioEmitter.initialize"), Modality.TTS, id="tts init"),
    pytest.param(speak, raises_the(1, on="TTS.emit"), Modality.TTS, id="tts emit"),
    pytest.param(speak, property_raises(TTS, "model"), Modality.TTS, id="tts model"),
    pytest.param(speak, property_raises(TTS, "provider"), Modality.TTS, id="tts provider"),
    pytest.param(speak, property_raises(TTS, "label"), Modality.TTS, id="tts label"),
    pytest.param(
        speak_at_once, raises_the(1, on="AudioEmitter.push"), Modality.TTS, id="text push"
    ),
    pytest.param(speak_at_once, property_raises(TTS, "label"), Modality.TTS, id="text label"),
    pytest.param(hear, raises_the(1, on="Chan.recv_nowait"), Modality.STT, id="stt recv_nowait"),
    pytest.param(hear, property_raises(STT, "label"), Modality.STT, id="stt label"),
]


# Nor does it close its end of it.
@pytest.mark.filterwarnings("ignore:.*Connection.__del__:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("use", "break_it", "modality"), CASES)
async def test_a_plugin_that_raises(
    use: Callable[[Providers], Awaitable[int]],
    break_it: Callable[[pytest.MonkeyPatch], None],
    modality: Modality,
    meter: RecordingMeter,
    providers: Providers,
) -> None:
    _instrument.uninstrument()
    without_us = await how_it_ends(use, providers, break_it)
    requests_before = len(providers.bill.rows)
    _instrument.instrument()
    with_us = await how_it_ends(use, providers, break_it)
    while providers.made:
        with contextlib.suppress(PluginError):  # what a plugin's own tasks had left
            await providers.close_plugins()
    await providers.bill.settled()

    assert with_us == without_us
    service = modality.value
    rows = [row for row in providers.bill.rows[requests_before:] if row.service == service]
    legs = meter.of(modality)
    assert all(leg.outcome is not None for leg in legs)
    unit = {"llm": "input_tokens", "tts": "characters", "stt": "audio_ms"}[service]
    billed = sum(row.units[unit] for row in rows)
    if billed:
        assert sum(leg.usage[unit] for leg in legs) == billed

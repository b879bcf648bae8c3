"""Plugins of the user's own, around others or a raw client: their own part never vanishes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web
from livekit.agents import APIConnectOptions
from livekit.agents.llm import LLM, ChatChunk, ChatContext, ChoiceDelta, LLMStream
from livekit.agents.tts import TTS, AudioEmitter, ChunkedStream, TTSCapabilities

from livekit.plugins.voicecost import _attribution, _wire_http
from tests.plugin.metered_session import Providers, RecordingMeter, simulated_providers
from tests.simulators import Reply
from tests.simulators.server import LoopbackServer
from voicecost_ledger.records import Basis, Modality, Outcome

ONCE = APIConnectOptions(max_retry=0)


@pytest.fixture
async def providers(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Providers]:
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")
    async with simulated_providers(Reply(text="I see.")) as providers:
        yield providers


class UnknownService:
    """A service of which nobody knows the protocol, nor the price."""

    def add_routes(self, app: web.Application) -> None:
        app.router.add_post("/check", self._check)

    async def _check(self, request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({"verdict": "harmless"})


@pytest.fixture
async def service_url() -> AsyncIterator[str]:
    async with LoopbackServer([UnknownService()]) as server:
        yield f"{server.url}/check"


async def by_aiohttp(url: str) -> None:
    async with aiohttp.ClientSession() as http, http.post(url, json={}) as response:
        await response.read()


async def by_httpx(url: str) -> None:
    async with httpx.AsyncClient() as http:
        await http.post(url, json={})


async def by_httpx2(url: str) -> None:
    """What LiveKit's newest OpenAI client speaks through."""
    client: Any = pytest.importorskip("httpx2")
    async with client.AsyncClient() as http:
        await http.post(url, json={})


class Guard(LLM[Any]):
    """Has each request checked by a service of its own, then hands it on, if to anybody."""

    def __init__(self, inner: LLM[Any] | None, check: Callable[[], Any] | None) -> None:
        super().__init__()
        self.inner = inner
        self.check = check

    def chat(self, *, chat_ctx: ChatContext, **_: Any) -> LLMStream:
        return _GuardedStream(self, chat_ctx=chat_ctx, tools=[], conn_options=ONCE)


class _GuardedStream(LLMStream):
    async def _run(self) -> None:
        guard: Any = self._llm
        if guard.check is not None:
            await guard.check()
        if guard.inner is None:
            delta = ChoiceDelta(role="assistant", content="I see.")
            self._event_ch.send_nowait(ChatChunk(id="1", delta=delta))
            return
        async with guard.inner.chat(chat_ctx=self._chat_ctx, tools=self._tools) as answer:
            async for chunk in answer:
                self._event_ch.send_nowait(chunk)


async def ask(model: LLM[Any]) -> RecordingMeter:
    meter, context = RecordingMeter(), ChatContext.empty()
    context.add_message(role="user", content="Is this all right?")
    with _attribution.scoped(meter):
        await model.chat(chat_ctx=context).collect()
    return meter


@pytest.mark.parametrize("client", [by_aiohttp, by_httpx, by_httpx2])
async def test_a_wrapper_with_a_request_of_its_own_shows_it_as_a_gap(
    providers: Providers, service_url: str, client: Callable[[str], Any]
) -> None:
    meter = await ask(Guard(providers.llm(), lambda: client(service_url)))
    await providers.bill.settled()
    assert meter.gaps == [("unmetered_request", Modality.LLM)]
    for unit in ("input_tokens", "output_tokens"):
        assert meter.total(Modality.LLM, unit) == providers.bill.total(unit, service="llm")


async def test_a_wrapper_that_tells_what_it_used_is_none(
    providers: Providers, service_url: str
) -> None:
    async def check() -> None:
        await by_httpx(service_url)
        _wire_http.usage_told()  # as `meter.record_usage` does

    meter = await ask(Guard(providers.llm(), check))
    assert meter.gaps == []


async def test_a_wrapper_that_only_hands_on_is_none(providers: Providers) -> None:
    meter = await ask(Guard(Guard(providers.llm(), None), None))
    await providers.bill.settled()
    assert meter.gaps == []
    assert meter.total(Modality.LLM, "output_tokens") == providers.bill.total("output_tokens")


async def test_a_plugin_that_asks_only_itself_is_a_leg_by_what_livekit_is_shown(
    providers: Providers, service_url: str
) -> None:
    """Neither its provider nor its model has a price: unpriced, but counted, and no gap."""
    meter = await ask(Guard(None, lambda: by_aiohttp(service_url)))
    (leg,) = meter.of(Modality.LLM)
    assert (leg.attributes.provider, leg.attributes.model) == ("unknown", "unknown")
    assert (leg.basis, leg.outcome) == (Basis.ESTIMATED, Outcome.SERVED)
    assert leg.usage["input_tokens"] > 0 < leg.usage["output_tokens"]
    assert leg.usage["completion_characters"] == len("I see.")
    assert meter.gaps == []


class OwnVoice(TTS[Any]):
    """Synthesizes by a service that no plugin knows."""

    def __init__(self, service_url: str) -> None:
        super().__init__(
            capabilities=TTSCapabilities(streaming=False), sample_rate=24_000, num_channels=1
        )
        self.service_url = service_url

    def synthesize(self, text: str, *, conn_options: APIConnectOptions = ONCE) -> ChunkedStream:
        return _OwnSpeech(tts=self, input_text=text, conn_options=conn_options)


class _OwnSpeech(ChunkedStream):
    async def _run(self, output_emitter: AudioEmitter) -> None:
        voice: Any = self._tts
        await by_httpx(voice.service_url)
        output_emitter.initialize(
            request_id="1", sample_rate=24_000, num_channels=1, mime_type="audio/pcm"
        )
        output_emitter.push(bytes(2 * 24_000))
        output_emitter.flush()


async def test_a_voice_of_the_users_own_is_counted_by_its_text(
    providers: Providers, service_url: str
) -> None:
    meter = RecordingMeter()
    with _attribution.scoped(meter):
        await OwnVoice(service_url).synthesize("Grüße 東京").collect()
    (leg,) = await meter.stopped(Modality.TTS)
    assert leg.usage["characters"] == len("Grüße 東京")
    assert leg.usage["utf8_bytes"] == len("Grüße 東京".encode())
    assert leg.usage["audio_ms"] == 1000
    assert meter.gaps == []

"""Plugins around other plugins (routers, guardrails): what goes through them is billed once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from livekit.agents import APIConnectOptions
from livekit.agents.llm import LLM, ChatChunk, ChatContext, ChoiceDelta, LLMStream
from livekit.agents.tts import TTS, ChunkedStream, SynthesizeStream, TTSCapabilities
from livekit.plugins.openai.llm import LLMStream as OpenAIStream

from livekit.plugins.voicecost import _attribution
from tests.plugin.metered_session import Providers, RecordingMeter, simulated_providers
from tests.simulators import Reply
from voicecost_ledger.records import Modality, Outcome

ONCE = APIConnectOptions(max_retry=0)


@pytest.fixture
async def providers() -> AsyncIterator[Providers]:
    async with simulated_providers(Reply(text="I see.")) as providers:
        yield providers


class _RoutedStream(LLMStream):
    async def _run(self) -> None:
        router: Any = self._llm
        async with router.inner.chat(chat_ctx=self._chat_ctx, tools=self._tools) as answer:
            async for chunk in answer:
                self._event_ch.send_nowait(chunk)


class Router(LLM[Any]):
    """Hands each request on to another LLM."""

    def __init__(self, inner: LLM[Any]) -> None:
        super().__init__()
        self.inner = inner

    def chat(self, *, chat_ctx: ChatContext, **_: Any) -> LLMStream:
        return _RoutedStream(self, chat_ctx=chat_ctx, tools=[], conn_options=ONCE)


def _question() -> ChatContext:
    context = ChatContext.empty()
    context.add_message(role="user", content="Is this all right?")
    return context


async def _read(stream: LLMStream) -> None:
    async with stream:
        async for _ in stream:
            pass


async def test_a_router_is_not_charged_for_what_the_llm_behind_it_answers(
    providers: Providers,
) -> None:
    meter = RecordingMeter()
    with _attribution.scoped(meter):
        await _read(Router(Router(providers.llm())).chat(chat_ctx=_question()))
    await providers.bill.settled()
    for unit in ("input_tokens", "output_tokens"):
        assert meter.total(Modality.LLM, unit) == providers.bill.total(unit, service="llm")
    (leg,) = meter.of(Modality.LLM)  # none of the routers, which would be unpriced
    assert (leg.attributes.model, leg.outcome, leg.stop_count) == ("gpt-4o-mini", Outcome.SERVED, 1)


async def test_a_router_that_answers_itself_is_charged_for_that(providers: Providers) -> None:
    class Own(_RoutedStream):
        async def _run(self) -> None:
            delta = ChoiceDelta(role="assistant", content="No, never.")
            self._event_ch.send_nowait(ChatChunk(id="1", delta=delta))

    meter, router = RecordingMeter(), Router(providers.llm())
    with _attribution.scoped(meter):
        await _read(Own(router, chat_ctx=_question(), tools=[], conn_options=ONCE))
    (leg,) = meter.of(Modality.LLM)
    assert leg.usage["completion_characters"] == len("No, never.")
    assert (leg.attributes.model, leg.outcome) == ("unknown", Outcome.SERVED)


@pytest.mark.parametrize("first", ["the check", "the answer"])
async def test_a_plugin_that_asks_another_and_answers_itself_is_charged(
    providers: Providers, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """A guardrail that is a provider's plugin itself, and has its question checked by another."""
    check, meter = providers.llm(), RecordingMeter()

    class Guarded(OpenAIStream):
        async def _run(self) -> None:
            if first == "the answer":
                await super()._run()
            await _read(check.chat(chat_ctx=_question()))
            if first == "the check":
                await super()._run()

    with _attribution.scoped(meter):
        with monkeypatch.context() as patched:
            patched.setattr("livekit.plugins.openai.llm.LLMStream", Guarded)
            guarded = providers.llm().chat(chat_ctx=_question())
        await _read(guarded)
    await providers.bill.settled()
    for unit in ("input_tokens", "output_tokens"):
        assert meter.total(Modality.LLM, unit) == providers.bill.total(unit, service="llm")
    assert len([leg for leg in meter.of(Modality.LLM) if any(leg.usage.values())]) == 2


class _FilteredStream(SynthesizeStream):
    async def _run(self, output_emitter: Any) -> None:
        outer: Any = self._tts
        output_emitter.initialize(
            request_id="filtered", sample_rate=24_000, num_channels=1, mime_type="audio/pcm",
            stream=True,
        )  # fmt: skip
        output_emitter.start_segment(segment_id="filtered")
        async with outer.inner.stream() as inner:
            async for text in self._input_ch:
                if isinstance(text, str):
                    inner.push_text(text)
            inner.end_input()
            async for audio in inner:
                output_emitter.push(audio.frame.data.tobytes())


class Filter(TTS[Any]):
    """Speaks through another TTS."""

    def __init__(self, inner: TTS[Any]) -> None:
        super().__init__(
            capabilities=TTSCapabilities(streaming=True), sample_rate=24_000, num_channels=1
        )
        self.inner = inner

    def stream(self, **_: Any) -> SynthesizeStream:
        return _FilteredStream(tts=self, conn_options=ONCE)

    def synthesize(self, text: str, **_: Any) -> ChunkedStream:
        raise NotImplementedError


async def test_a_tts_that_speaks_through_another_is_not_charged(providers: Providers) -> None:
    meter = RecordingMeter()
    with _attribution.scoped(meter):
        stream = Filter(providers.tts()).stream()
        stream.push_text("Good morning to you.")
        stream.end_input()
        async with stream:
            async for _ in stream:
                pass
    await providers.close_plugins()
    await providers.bill.settled()
    billed = providers.bill.total("characters", service="tts")
    assert meter.total(Modality.TTS, "characters") == billed > 0

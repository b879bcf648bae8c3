"""Streams of the plugins and of LiveKit's adapters by themselves: which are legs, and what of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterator
from typing import Any

import pytest
from livekit import rtc
from livekit.agents import APIConnectionError, APIConnectOptions, APITimeoutError, tts
from livekit.agents.llm import LLM, ChatChunk, ChatContext, ChoiceDelta, FallbackAdapter, LLMStream
from livekit.agents.tts import StreamAdapter, SynthesizeStream
from livekit.agents.voice import agent_activity
from livekit.agents.voice.speech_handle import SpeechHandle
from livekit.plugins.openai import LLM as OpenAILLM

from livekit.plugins.voicecost import _attribution, _faults, _instrument
from tests.plugin.metered_session import (
    RecordingMeter,
    metered_call,
    simulated_providers,
)
from tests.simulators import LONG_ANSWER, Fault, Reply
from voicecost_ledger.records import Basis, LegStart, Modality, Outcome

ONE_TRY = APIConnectOptions(max_retry=0, timeout=5)
SENTENCES = "It is sunny. Take a hat with you. Do not stay too long."


@pytest.fixture(autouse=True)
def faults_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")


@pytest.fixture
def meter() -> Iterator[RecordingMeter]:
    meter = RecordingMeter()
    with _attribution.scoped(meter):
        yield meter


def _question() -> ChatContext:
    context = ChatContext.empty()
    context.add_message(role="user", content="Please explain everything to me.")
    return context


async def _read(stream: AsyncIterable[object]) -> int:
    return len([item async for item in stream])


async def test_a_voice_that_takes_the_whole_text(meter: RecordingMeter) -> None:
    async with simulated_providers() as providers:
        async with providers.tts().synthesize("It is 5 °C in Zürich.") as stream:
            await _read(stream)
        await providers.bill.settled()
    (leg,) = meter.of(Modality.TTS)
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.OBSERVED)
    assert not leg.attributes.streaming
    assert leg.usage["characters"] == providers.bill.total("characters") == 21
    assert leg.usage["utf8_bytes"] == 23


async def test_an_adapter_that_cuts_text_into_sentences_is_no_leg_its_sentences_are(
    meter: RecordingMeter,
) -> None:
    async with simulated_providers() as providers:
        adapter = StreamAdapter(tts=providers.tts())
        async with adapter.stream() as stream:
            stream.push_text(SENTENCES)
            stream.end_input()
            await _read(stream)
        await providers.bill.settled()
    rows = [row.units["characters"] for row in providers.bill.rows]
    assert [leg.usage["characters"] for leg in meter.of(Modality.TTS)] == rows
    assert len(rows) >= 2


async def test_failover_shows_the_failed_attempt_the_served_one_and_the_probe(
    meter: RecordingMeter,
) -> None:
    async with simulated_providers(Reply(text="Here I am.")) as providers:
        providers.openai.faults.add(Fault(status=503))
        adapter = FallbackAdapter([providers.llm(), providers.llm()], max_retry_per_llm=0)
        async with adapter.chat(chat_ctx=_question()) as stream:
            await _read(stream)
        legs = await meter.stopped(Modality.LLM, 3)
        await providers.bill.settled()
        await adapter.aclose()

    assert sorted(leg.outcome or "" for leg in legs) == ["failed", "probe", "served"]
    for unit in ("input_tokens", "output_tokens"):
        assert meter.total(Modality.LLM, unit) == providers.bill.total(unit)


async def test_a_silent_attempt_is_billed_its_prompt(meter: RecordingMeter) -> None:
    """Accepted, then nothing: LiveKit reports only the retry."""
    options = APIConnectOptions(max_retry=1, retry_interval=0, timeout=0.3)
    async with simulated_providers(Reply(text="Here I am.")) as providers:
        providers.openai.faults.add(Fault(silent=True))
        async with providers.llm().chat(chat_ctx=_question(), conn_options=options) as stream:
            await _read(stream)
        await providers.bill.settled()
    silent, served = meter.of(Modality.LLM)
    assert (silent.outcome, silent.basis) == (Outcome.FAILED, Basis.ESTIMATED)
    assert served.outcome is Outcome.SERVED
    # Settled again by the retry's report: the same prompt costs the same, and that is known.
    assert silent.margins["input_tokens"] == silent.margins["output_tokens"] == 0
    assert meter.total(Modality.LLM, "input_tokens") == providers.bill.total("input_tokens")


async def test_a_provider_that_cannot_be_reached_costs_nothing(meter: RecordingMeter) -> None:
    async with simulated_providers() as providers:
        llm, voice = providers.llm(), providers.tts()
        await providers.openai.__aexit__(None, None, None)
        await providers.deepgram.__aexit__(None, None, None)
        with pytest.raises(APIConnectionError):
            async with llm.chat(chat_ctx=_question(), conn_options=ONE_TRY) as stream:
                await _read(stream)
        with pytest.raises(APIConnectionError):
            async with voice.synthesize("Hello.", conn_options=ONE_TRY) as spoken:
                await _read(spoken)
    (llm_leg,) = meter.of(Modality.LLM)
    (tts_leg,) = meter.of(Modality.TTS)
    assert llm_leg.outcome is tts_leg.outcome is Outcome.FAILED
    assert llm_leg.usage["input_tokens"] == tts_leg.usage["characters"] == 0


async def test_a_preemptive_generation_that_is_thrown_away() -> None:
    """What LiveKit started in advance and never scheduled; here it was even finished."""
    speech = SpeechHandle.create()
    async with (
        simulated_providers(Reply(text="Here I am.")) as providers,
        metered_call(providers) as call,
    ):
        token = agent_activity._SpeechHandleContextVar.set(speech)
        async with providers.llm().chat(chat_ctx=_question()) as stream:
            await _read(stream)
        agent_activity._SpeechHandleContextVar.reset(token)
        (leg,) = call.meter.of(Modality.LLM)
        assert leg.outcome is Outcome.SERVED
        speech._cancel()
        speech._mark_done()
        await call.meter.until(lambda: leg.outcome is not Outcome.SERVED)
    assert (leg.outcome, leg.basis) == (Outcome.DISCARDED, Basis.REPORTED)


async def test_a_recording_is_a_leg(meter: RecordingMeter) -> None:
    """The simulator takes no recordings: it refuses, and what is refused costs nothing."""
    async with simulated_providers() as providers:
        frame = rtc.AudioFrame(bytes(32_000), 16_000, 1, 16_000)
        stt = providers.stt()
        with pytest.raises(Exception):  # noqa: B017, PT011 - whatever LiveKit makes of it
            await stt.recognize([frame], conn_options=ONE_TRY)
    assert [make for make, _ in meter.records][:1] == [LegStart]
    assert meter.records[0][1]["usage"] == {"audio_ms": 1_000}
    assert "_recognize_impl" not in vars(stt)


class _OtherVoice(tts.TTS[Any]):
    """A plugin whose wire we do not know: it takes words and makes no socket."""

    def __init__(self) -> None:
        super().__init__(
            capabilities=tts.TTSCapabilities(streaming=True), sample_rate=24_000, num_channels=1
        )

    def synthesize(self, text: str, *, conn_options: APIConnectOptions = ONE_TRY) -> Any:
        raise NotImplementedError

    def stream(self, *, conn_options: APIConnectOptions = ONE_TRY) -> SynthesizeStream:
        return _OtherStream(tts=self, conn_options=conn_options)


class _OtherStream(SynthesizeStream):
    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        output_emitter.initialize(
            request_id="1", sample_rate=24_000, num_channels=1, mime_type="audio/pcm", stream=True
        )
        output_emitter.start_segment(segment_id="1")
        async for item in self._input_ch:
            if isinstance(item, str):
                self._mark_started()
                output_emitter.push(bytes(4_800))
            else:
                output_emitter.end_segment()


async def test_a_voice_of_an_unknown_protocol_is_metered_by_the_text_it_takes(
    meter: RecordingMeter,
) -> None:
    async with _instrumented(), _OtherVoice().stream() as stream:
        stream.push_text("Hello, ")
        stream.push_text('<break time="1s"/> 世界.')
        stream.end_input()
        await _read(stream)
    (leg,) = meter.of(Modality.TTS)
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.OBSERVED)
    assert leg.usage == {
        "characters": 29,
        "utf8_bytes": 33,
        "double_width_characters": 2,
        "markup_characters": 18,
        "audio_ms": 200,
    }


class _OtherLLM(LLM[Any]):
    def chat(self, *, chat_ctx: ChatContext, **_: Any) -> LLMStream:
        return _OtherAnswer(self, chat_ctx=chat_ctx, tools=[], conn_options=ONE_TRY)


class _OtherAnswer(LLMStream):
    async def _run(self) -> None:
        for word in ("Here ", "I ", "am."):
            self._event_ch.send_nowait(ChatChunk(id="1", delta=ChoiceDelta(content=word)))
            await asyncio.sleep(0)


async def test_an_llm_that_reports_nothing_is_estimated(meter: RecordingMeter) -> None:
    async with _instrumented(), _OtherLLM().chat(chat_ctx=_question()) as stream:
        await _read(stream)
    (leg,) = meter.of(Modality.LLM)
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.ESTIMATED)
    assert (leg.usage["completion_characters"], leg.usage["completion_chunks"]) == (10, 3)
    assert leg.usage["output_tokens"] == 4  # Here, I, am and the full stop


class _instrumented:
    async def __aenter__(self) -> None:
        _instrument.instrument()

    async def __aexit__(self, *_: object) -> None:
        _instrument.uninstrument()


async def test_instrumenting_twice_changes_nothing_and_can_be_undone() -> None:
    import aiohttp
    from openai.resources.chat.completions import AsyncCompletions

    def surface() -> list[object]:
        return [
            LLMStream.__init__,
            SynthesizeStream.__init__,
            tts.ChunkedStream.__init__,
            aiohttp.ClientWebSocketResponse.send_str,
            aiohttp.ClientWebSocketResponse.send_bytes,
            AsyncCompletions.create,
        ]

    before = surface()
    _instrument.instrument()
    once = surface()
    _instrument.instrument()
    assert surface() == once
    assert all(now is not was for now, was in zip(once, before, strict=True))
    _instrument.uninstrument()
    assert surface() == before
    _instrument.uninstrument()


async def test_a_fault_of_ours_does_not_reach_the_call(
    meter: RecordingMeter,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Everything we ask of the meter fails; the caller hears the answer all the same."""
    monkeypatch.delenv("VOICECOST_RAISE_FAULTS")

    def broken(*_: object, **__: object) -> Any:
        raise RuntimeError("the text of a fault may quote the caller")

    for name in ("open_leg", "write", "may_spend", "charge_changed"):
        monkeypatch.setattr(meter, name, broken)
    before = sum(_faults.counts().values())
    async with simulated_providers(Reply(text=LONG_ANSWER)) as providers:
        async with providers.llm().chat(chat_ctx=_question()) as answer:
            said = "".join(
                [chunk.delta.content or "" async for chunk in answer if chunk.delta is not None]
            )
        async with providers.tts().stream() as stream:
            stream.push_text("Hello there.")
            stream.end_input()
            assert await _read(stream) > 0
    assert said == LONG_ANSWER
    assert sum(_faults.counts().values()) > before
    assert "may quote the caller" not in caplog.text


async def test_cancellation_passes_through_untouched(meter: RecordingMeter) -> None:
    async with simulated_providers(Reply(text=LONG_ANSWER)) as providers:
        stream = providers.llm().chat(chat_ctx=_question())
        await anext(stream)
        stream._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stream._task
        assert stream._task.cancelled()
        await stream.aclose()
    (leg,) = meter.of(Modality.LLM)
    assert leg.outcome is Outcome.INTERRUPTED


@pytest.mark.parametrize("eager", [False, pytest.param(True, id="eager")])
async def test_the_first_attempt_is_seen_also_where_tasks_start_at_once(
    meter: RecordingMeter, eager: bool
) -> None:
    loop = asyncio.get_running_loop()
    factory = getattr(asyncio, "eager_task_factory", None)
    if eager and factory is None:
        pytest.skip("eager tasks came with Python 3.12")
    async with _instrumented():
        loop.set_task_factory(factory if eager else None)
        try:
            async with _OtherLLM().chat(chat_ctx=_question()) as stream:
                await _read(stream)
        finally:
            loop.set_task_factory(None)
    assert len(meter.of(Modality.LLM)) == 1


async def test_a_request_that_was_not_taken_whole_until_the_timeout_costs_nothing(
    meter: RecordingMeter,
) -> None:
    """It never was one: nobody bills for a part of it."""
    deaf: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: deaf.append(writer), "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    context = ChatContext.empty()
    context.add_message(role="user", content="word " * 1_600_000)  # more than a socket holds
    model = OpenAILLM(model="gpt-4o-mini", base_url=f"http://127.0.0.1:{port}/v1", api_key="x")
    _instrument.instrument()
    try:
        patience = APIConnectOptions(max_retry=0, timeout=0.3)
        with pytest.raises(APITimeoutError):
            await _read(model.chat(chat_ctx=context, conn_options=patience))
    finally:
        _instrument.uninstrument()
        await model.aclose()
        for writer in deaf:
            writer.close()
        server.close()
    (leg,) = meter.of(Modality.LLM)
    assert leg.outcome is Outcome.FAILED
    assert leg.usage["input_tokens"] == 0

"""At the end of the money: requests end quietly, nothing is tried again, nothing else is asked."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Literal

import pytest
from livekit import rtc
from livekit.agents.llm import ChatContext, FallbackAdapter
from livekit.agents.tts import (
    TTS,
    AudioEmitter,
    ChunkedStream,
    SynthesizeStream,
    TTSCapabilities,
)
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, APIConnectOptions

from livekit.plugins.voicecost import _attribution
from tests.plugin.metered_session import (
    NANO_USD,
    RecordingMeter,
    metered_call,
    simulated_providers,
)
from tests.simulators import LONG_ANSWER, Reply
from voicecost_ledger.records import Modality, Outcome


@pytest.fixture(autouse=True)
def faults_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")


def _question() -> ChatContext:
    context = ChatContext.empty()
    context.add_message(role="user", content="Please explain everything to me.")
    return context


async def test_an_llm_stream_is_cut_without_retry_failover_or_probe() -> None:
    limit = 100 * NANO_USD["output_tokens"]
    async with simulated_providers(Reply(text=LONG_ANSWER)) as providers:
        meter = RecordingMeter(limit_nano_usd=limit)
        first, second = providers.llm(), providers.llm()
        adapter = FallbackAdapter([first, second])
        errors: list[object] = []
        adapter.on("error", errors.append)
        with _attribution.scoped(meter):
            stream = adapter.chat(chat_ctx=_question())
        chunks = [chunk async for chunk in stream]
        await stream.aclose()
        await providers.bill.settled()
        await adapter.aclose()

    (leg,) = meter.of(Modality.LLM)
    (row,) = providers.bill.rows
    assert leg.outcome is Outcome.CUT
    assert 10 < len(chunks) < 120
    assert row.ended == "cancelled"
    assert errors == []
    # One chunk of at most four tokens is owed when it is noticed, no more.
    assert meter.total_nano_usd <= limit + 8 * NANO_USD["output_tokens"]


async def test_a_request_that_the_budget_cannot_start_is_never_sent() -> None:
    async with simulated_providers(Reply(text=LONG_ANSWER)) as providers:
        meter = RecordingMeter(limit_nano_usd=10)
        with _attribution.scoped(meter):
            stream = providers.llm().chat(chat_ctx=_question())
        assert [chunk async for chunk in stream] == []
        await stream.aclose()

    assert providers.bill.rows == []
    # It was refused, and that is to be seen: the agent had nothing to say.
    (leg,) = meter.of(Modality.LLM)
    assert (leg.outcome, leg.usage["input_tokens"]) == (Outcome.CUT, 0)
    assert meter.total_nano_usd == 0


async def test_a_whole_text_that_the_budget_cannot_pay_is_never_sent() -> None:
    async with simulated_providers() as providers:
        meter = RecordingMeter(limit_nano_usd=10)
        with _attribution.scoped(meter):
            stream = providers.tts().synthesize("Good morning!")
        assert [frame async for frame in stream] == []
        await stream.aclose()

    assert providers.bill.rows == []
    (leg,) = meter.of(Modality.TTS)
    assert (leg.outcome, leg.usage["characters"]) == (Outcome.CUT, 0)


async def test_a_voice_is_given_no_word_more_than_the_budget_allows() -> None:
    limit = 100 * NANO_USD["characters"]
    async with simulated_providers() as providers:
        async with metered_call(providers, limit_nano_usd=limit) as call:
            await call.session.say(LONG_ANSWER)
            await call.close()
        (leg,) = call.meter.of(Modality.TTS)
        rows = [row for row in providers.bill.rows if row.service == "tts"]

    assert leg.outcome is Outcome.CUT
    assert leg.usage["characters"] == sum(row.units["characters"] for row in rows)
    assert 80 < leg.usage["characters"] <= 100
    assert len(rows) == 1


class SwallowingTTS(TTS[Literal["error"]]):
    """A plugin that takes a cancellation for the end of its text."""

    def __init__(self) -> None:
        super().__init__(
            capabilities=TTSCapabilities(streaming=True), sample_rate=24_000, num_channels=1
        )
        self.attempts = 0

    def synthesize(self, text: str, **_: object) -> ChunkedStream:
        raise NotImplementedError

    def stream(
        self, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> SynthesizeStream:
        return SwallowingStream(tts=self, conn_options=conn_options)


class SwallowingStream(SynthesizeStream):
    async def _run(self, output_emitter: AudioEmitter) -> None:
        assert isinstance(self._tts, SwallowingTTS)
        self._tts.attempts += 1
        output_emitter.initialize(
            request_id="r", sample_rate=24_000, num_channels=1, mime_type="audio/pcm", stream=True
        )
        output_emitter.start_segment(segment_id="s")
        with contextlib.suppress(asyncio.CancelledError):
            async for _ in self._input_ch:
                pass


async def test_no_second_attempt_follows_where_a_plugin_swallows_the_end() -> None:
    """LiveKit takes a run without audio for a failure, and tries it again."""
    async with simulated_providers():
        meter = RecordingMeter(limit_nano_usd=10)
        voice = SwallowingTTS()
        with _attribution.scoped(meter):
            stream = voice.stream(conn_options=APIConnectOptions(max_retry=2, retry_interval=0))
        stream.push_text("Good morning!")
        stream.end_input()
        assert [frame async for frame in stream] == []
        await stream.aclose()

    assert voice.attempts == 1
    (leg,) = meter.of(Modality.TTS)
    assert (leg.outcome, leg.usage["characters"]) == (Outcome.CUT, 0)


async def test_recognition_ends_with_its_call_and_does_not_connect_again() -> None:
    async with simulated_providers() as providers:
        async with metered_call(providers, hears=True) as call:
            await call.meter.until(lambda: call.meter.total(Modality.STT, "audio_ms") > 300)
            call.meter.cut = True
            (leg,) = await call.meter.stopped(Modality.STT)
            await call.session.say("")  # the session is still alive
            await call.close()
        rows = [row for row in providers.bill.rows if row.service == "stt"]

    assert leg.outcome is Outcome.CUT
    assert [row.units["audio_ms"] for row in rows] == [leg.usage["audio_ms"]]


async def test_a_shortage_that_passes_does_not_make_the_call_deaf() -> None:
    """LiveKit never opens an ended recognition stream again: what is heard meanwhile is owed."""
    async with simulated_providers() as providers:
        async with metered_call(providers, hears=True, limit_nano_usd=0) as call:
            await call.meter.until(lambda: call.meter.total(Modality.STT, "audio_ms") > 1_000)
            (leg,) = call.meter.of(Modality.STT)
            assert leg.outcome is None
            await call.close()
        rows = [row for row in providers.bill.rows if row.service == "stt"]

    assert leg.outcome is Outcome.SERVED
    assert [row.units["audio_ms"] for row in rows] == [leg.usage["audio_ms"]]


async def test_a_meter_that_is_cut_ends_the_stream_that_runs() -> None:
    async with simulated_providers(Reply(text=LONG_ANSWER)) as providers:
        meter = RecordingMeter()
        with _attribution.scoped(meter):
            stream = providers.llm().chat(chat_ctx=_question())
        count = 0
        async for _ in stream:
            count += 1
            meter.cut = True
        await stream.aclose()
        await providers.bill.settled()

    assert count <= 4
    (leg,) = meter.of(Modality.LLM)
    assert leg.outcome is Outcome.CUT


async def test_a_recording_that_the_budget_cannot_pay_is_not_sent_and_not_tried_again() -> None:
    async with simulated_providers() as providers:
        meter = RecordingMeter(cut=True)
        frame = rtc.AudioFrame(bytes(32_000), 16_000, 1, 16_000)
        with _attribution.scoped(meter):
            event = await providers.stt().recognize([frame])
    assert event.alternatives == []
    assert providers.bill.rows == []
    (leg,) = meter.of(Modality.STT)
    assert (leg.outcome, leg.usage["audio_ms"]) == (Outcome.CUT, 0)


async def test_livekit_may_name_what_it_gives_to_an_attempt() -> None:
    """Another LiveKit version may say `_run(output_emitter=...)`: no request fails of it."""
    async with simulated_providers() as providers:
        meter = RecordingMeter()
        with _attribution.scoped(meter):
            stream = providers.tts().synthesize("Good morning!")
        positional = stream._run

        async def by_name(emitter: object) -> None:
            await positional(output_emitter=emitter)  # type: ignore[call-arg]  # as it may be

        stream._run = by_name  # type: ignore[method-assign,assignment]
        frames = [frame async for frame in stream]
        await stream.aclose()

    assert frames
    (leg,) = meter.of(Modality.TTS)
    assert leg.outcome is Outcome.SERVED
    assert leg.usage["audio_ms"] > 0

"""Realtime plugins of which nothing is known but LiveKit's base class and its events."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import pytest
from livekit import rtc
from livekit.agents.llm import (
    ChatContext,
    FunctionCall,
    GenerationCreatedEvent,
    MessageGeneration,
    RealtimeCapabilities,
    RealtimeModel,
    RealtimeSession,
    ToolContext,
)
from livekit.agents.metrics import RealtimeModelMetrics, STTMetrics
from livekit.agents.metrics.base import Metadata

from livekit.plugins.voicecost import _attribution, _faults, _realtime_session
from livekit.plugins.voicecost.legs import Leg
from tests.plugin.livekit_versions import not_on_1_5
from tests.plugin.metered_session import RecordingMeter, UnitPrice, UnitPrices
from tests.plugin.realtime_call import observed, realtime_call, spoken
from voicecost_catalog import open_price_book
from voicecost_ledger.money import round_half_even
from voicecost_ledger.pricing import Price
from voicecost_ledger.records import Basis, LegAttributes, Modality, Outcome


@pytest.fixture(autouse=True)
def faults_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")


class OwnModel(RealtimeModel):
    """A model in this process; each reply is a second of sound."""

    def __init__(self, *, says_what_it_used: bool = True) -> None:
        super().__init__(
            capabilities=RealtimeCapabilities(
                message_truncation=False,
                turn_detection=True,
                user_transcription=False,
                auto_tool_reply_generation=False,
                audio_output=True,
                manual_function_calls=False,
            )
        )
        self.says_what_it_used = says_what_it_used
        self.sessions: list[OwnSession] = []

    @property
    def model(self) -> str:
        return "own-voice"

    @property
    def provider(self) -> str:
        return "own"

    def session(self, *, turn_detection_disabled: bool = False) -> OwnSession:
        self.sessions.append(OwnSession(self))
        return self.sessions[-1]

    async def aclose(self) -> None:
        pass


class OwnSession(RealtimeSession[str]):
    def __init__(self, model: OwnModel) -> None:
        super().__init__(model)
        self._model = model
        self._replies = 0
        self.interrupted = 0

    @property
    def chat_ctx(self) -> ChatContext:
        return ChatContext.empty()

    @property
    def tools(self) -> ToolContext:
        return ToolContext.empty()

    async def update_instructions(self, instructions: str) -> None:
        pass

    async def update_chat_ctx(self, chat_ctx: ChatContext) -> None:
        pass

    async def update_tools(self, tools: list[Any]) -> None:
        pass

    def update_options(self, **_: Any) -> None:
        pass

    def push_audio(self, frame: rtc.AudioFrame) -> None:
        pass

    def push_video(self, frame: rtc.VideoFrame) -> None:
        pass

    def generate_reply(self, **_: Any) -> asyncio.Future[GenerationCreatedEvent]:
        self._replies += 1
        reply_id = f"reply-{self._replies}"
        event = GenerationCreatedEvent(
            message_stream=_messages(reply_id),
            function_stream=_calls(),
            user_initiated=True,
            response_id=reply_id,
        )
        future: asyncio.Future[GenerationCreatedEvent] = asyncio.Future()
        future.set_result(event)
        self.emit("generation_created", event)
        if self._model.says_what_it_used:
            self.report(reply_id, 100 * self._replies, 50)
        return future

    def report(self, reply_id: str, input_tokens: int, output_tokens: int, **more: Any) -> None:
        self.emit("metrics_collected", self.metrics(reply_id, input_tokens, output_tokens, **more))

    def metrics(
        self, reply_id: str, input_tokens: int, output_tokens: int, **more: Any
    ) -> RealtimeModelMetrics:
        details = RealtimeModelMetrics
        return RealtimeModelMetrics(
            request_id=reply_id,
            timestamp=time.time(),
            label=self._model.label,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            total_tokens=input_tokens + output_tokens,
            input_token_details=details.InputTokenDetails(
                audio_tokens=input_tokens // 2, cached_tokens=input_tokens // 4
            ),
            output_token_details=details.OutputTokenDetails(audio_tokens=output_tokens // 2),
            **more,
        )

    def commit_audio(self) -> None:
        pass

    def clear_audio(self) -> None:
        pass

    def interrupt(self) -> None:
        self.interrupted += 1

    def truncate(self, **_: Any) -> None:
        pass

    async def aclose(self) -> None:
        pass


async def _messages(reply_id: str) -> AsyncGenerator[MessageGeneration]:
    modalities: asyncio.Future[Any] = asyncio.Future()
    modalities.set_result(["audio", "text"])
    yield MessageGeneration(reply_id, _text(), _audio(), modalities)


async def _text() -> AsyncGenerator[str]:
    yield "Good morning!"


async def _audio() -> AsyncGenerator[rtc.AudioFrame]:
    for frame in spoken(1_000):
        yield frame


async def _calls() -> AsyncGenerator[FunctionCall]:
    return
    yield


async def test_livekits_own_metrics_are_the_report() -> None:
    model = OwnModel()
    async with observed(), realtime_call(model) as call:
        speeches = [call.session.generate_reply(), call.session.generate_reply()]
        for speech in speeches:
            await speech
        await call.close()

    assert [leg.usage["input_tokens"] for leg in call.responses] == [100, 200]
    for leg, speech in zip(call.responses, speeches, strict=True):
        assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.REPORTED)
        assert (leg.attributes.provider, leg.attributes.model) == ("own", "own-voice")
        assert leg.usage["output_tokens"] == 2 * leg.usage["output_audio_tokens"] == 50
        assert leg.speech_id == speech.id


async def test_a_report_that_comes_twice_or_late_counts_once() -> None:
    model = OwnModel(says_what_it_used=False)
    async with observed(), realtime_call(model) as call:
        await call.session.generate_reply()
        (session,) = model.sessions
        session.report("reply-1", 0, 0)  # nothing is no report
        session.report("reply-1", 100, 50)
        session.report("reply-1", 100, 50)
        session.report("reply-1", 100, 60, cancelled=True)
        await call.close()

    (leg,) = call.responses
    assert (leg.outcome, leg.basis) == (Outcome.INTERRUPTED, Basis.REPORTED)
    assert (leg.usage["input_tokens"], leg.usage["output_tokens"]) == (100, 60)


async def test_a_report_in_parts_and_under_an_id_of_its_own() -> None:
    """As of Amazon Nova Sonic: what was used since the last report, by the id of the session."""
    model = OwnModel(says_what_it_used=False)
    async with observed(), realtime_call(model) as call:
        (session,) = model.sessions
        for tokens in ((100, 0), (0, 30), (0, 30)):
            if tokens[0]:
                await call.session.generate_reply()
            session.report("session-1", *tokens)
        await call.session.generate_reply()
        session.report("session-1", 180, 20)
        await call.close()

    used = [(leg.usage["input_tokens"], leg.usage["output_tokens"]) for leg in call.responses]
    assert used == [(100, 60), (180, 20)]


async def test_a_report_of_what_nobody_announced_is_a_leg() -> None:
    model = OwnModel()
    async with observed(), realtime_call(model) as call:
        (session,) = model.sessions
        session.report("", 70, 30)
        session.report("", 80, 40)
        await call.close()

    assert [leg.usage["input_tokens"] for leg in call.responses] == [70, 80]


async def test_a_response_that_is_never_reported_shows() -> None:
    model = OwnModel(says_what_it_used=False)
    async with observed(), realtime_call(model) as call:
        await call.session.generate_reply()
        model.sessions[0].report("reply-1", 100, 50)
        await call.session.generate_reply()
        await call.close()

    second = call.responses[1]
    assert (second.outcome, second.basis) == (Outcome.INTERRUPTED, Basis.ESTIMATED)
    assert second.usage["input_tokens"] == 150


async def test_another_models_transcription_is_a_leg_of_its_own() -> None:
    model = OwnModel()
    async with observed(), realtime_call(model) as call:
        metrics = STTMetrics(
            label="own",
            request_id="t1",
            timestamp=time.time(),
            duration=0.0,
            audio_duration=2.4,
            streamed=True,
            metadata=Metadata(model_name="own-ears", model_provider="own"),
        )
        model.sessions[0].emit("metrics_collected", metrics)
        await call.close()

    (leg,) = call.transcriptions
    assert leg.attributes.model == "own-ears"
    assert leg.usage == {"audio_ms": 2_400}


class _ByTheMinute(UnitPrice):
    def converts(self, usage: Mapping[str, int]) -> bool:
        return False

    def rate(self, usage: Mapping[str, int]) -> int | None:
        return usage["connected_ms"] * 833


class _PricesByTheMinute(UnitPrices):
    def price_for(self, leg: LegAttributes, at_unix_ms: int) -> Price | None:
        return _ByTheMinute()


@not_on_1_5("does not tell when a realtime model is connected")
async def test_a_model_that_is_billed_by_time_has_a_leg_for_its_connection() -> None:
    model = OwnModel()
    prices = _PricesByTheMinute()
    async with observed(), realtime_call(model, prices=prices) as call:
        model.sessions[0]._report_connection_acquired(0.01)
        await call.session.generate_reply()
        await call.close()

    connection, response = call.responses
    assert (connection.outcome, connection.basis) == (Outcome.SERVED, Basis.OBSERVED)
    assert connection.usage["connected_ms"] > 0 == connection.usage["input_tokens"]
    assert (response.usage["connected_ms"], response.usage["input_tokens"]) == (0, 100)
    assert call.meter.total_nano_usd == connection.usage["connected_ms"] * 833


class _ElevenRealtime(UnitPrices):
    """The catalogue's price of a model that bills tokens and, on top, connected time."""

    def price_for(self, leg: LegAttributes, at_unix_ms: int) -> Price | None:
        eleven = LegAttributes(Modality.REALTIME, "elevenlabs", "eleven_realtime_v1_max")
        return open_price_book().price_for(eleven, at_unix_ms)


@not_on_1_5("does not tell when a realtime model is connected")
async def test_a_model_that_bills_tokens_and_time_is_billed_for_both_once() -> None:
    model = OwnModel()
    async with observed(), realtime_call(model, prices=_ElevenRealtime()) as call:
        model.sessions[0]._report_connection_acquired(0.01)
        await call.session.generate_reply()
        await call.close()

    connection, response = call.responses
    time_nano_usd = round_half_even(connection.usage["connected_ms"] * 80_000_000, per=60_000)
    assert connection.usage["connected_ms"] > 0 == response.usage["connected_ms"]
    counted = ("input_tokens", "cached_input_tokens", "output_tokens")
    assert [response.usage[unit] for unit in counted] == [100, 25, 50]
    assert call.meter.total_nano_usd == time_nano_usd + 75 * 1_800 + 25 * 180 + 50 * 9_000


@not_on_1_5("does not tell when a realtime model is connected")
async def test_a_model_that_reports_its_time_is_billed_by_that() -> None:
    model = OwnModel(says_what_it_used=False)
    async with observed(), realtime_call(model) as call:
        session = model.sessions[0]
        session._report_connection_acquired(0.01)
        session.report("", 0, 0, session_duration=2.5)
        closing = session.aclose

        async def report_and_close() -> None:
            session.report("", 0, 0, session_duration=1.0)
            await closing()

        session.aclose = report_and_close
        await call.close()

    (leg,) = call.responses
    assert leg.usage["connected_ms"] >= 3_500
    assert call.meter.of(Modality.LLM) == []


async def test_a_plugin_that_raises_and_events_that_are_none_harm_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a plugin emits under a known name may be anything: a counted fault, and no more."""
    monkeypatch.delenv("VOICECOST_RAISE_FAULTS")
    before = _faults.metering_count()
    model = OwnModel()
    async with observed(), realtime_call(model) as call:
        session: Any = model.sessions[0]
        session.emit("metrics_collected", None)
        session.emit("openai_server_event_received", {"type": "response.created"})
        session.emit("openai_server_event_received", "what?")
        speech = call.session.generate_reply()
        await speech
        await call.close()
    assert not speech.interrupted
    assert _faults.metering_count() > before


@pytest.mark.parametrize("name", ["label", "model", "provider"])
async def test_a_model_that_cannot_say_what_it_is_is_metered_all_the_same(name: str) -> None:
    class Nameless(OwnModel):
        pass

    def unknown(self: OwnModel) -> str:
        raise NotImplementedError(name)

    setattr(Nameless, name, property(unknown))
    model = Nameless(says_what_it_used=False)
    async with observed():
        meter = RecordingMeter()
        with _attribution.scoped(meter):
            session = model.session()
            session.generate_reply()
            session.emit("metrics_collected", OwnSession(OwnModel()).metrics("reply-1", 100, 50))
            await session.aclose()

    (leg,) = meter.of(Modality.REALTIME)
    assert (leg.outcome, leg.usage["input_tokens"]) == (Outcome.SERVED, 100)
    assert getattr(leg.attributes, name) == ""


class _Demanding(OwnSession):
    """Takes more than LiveKit's base class says, and answers."""

    def push_audio(self, frame: rtc.AudioFrame, *, quietly: bool = False) -> Any:
        return quietly


async def test_a_session_is_given_all_that_it_is_called_with() -> None:
    async with observed():
        session = _Demanding(OwnModel())
        assert session.push_audio(next(iter(spoken(50))), quietly=True) is True


@not_on_1_5("does not tell when a realtime model is connected")
async def test_a_session_that_nobody_closes_is_freed_after_its_meter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_realtime_session, "_TICK_S", 0.01)
    meter = RecordingMeter(prices=_PricesByTheMinute())
    opened: list[Leg] = []
    open_leg = meter.open_leg

    def open_and_keep(*args: Any, **fields: Any) -> Leg:
        opened.append(open_leg(*args, **fields))
        return opened[-1]

    monkeypatch.setattr(meter, "open_leg", open_and_keep)
    async with observed():
        with _attribution.scoped(meter):
            session = OwnSession(OwnModel())
            session._report_connection_acquired(0.01)
    forgotten = weakref.ref(session)
    del session
    for leg in opened:
        leg.stop(Outcome.INTERRUPTED)  # as its meter does when it closes
    async with asyncio.timeout(5):
        while forgotten() is not None:
            await asyncio.sleep(0.01)
            gc.collect()

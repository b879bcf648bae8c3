"""A LiveKit whose streams moved: its metric events are booked instead, once, and it is said."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from livekit.agents.llm import LLM, LLMStream
from livekit.agents.metrics import LLMMetrics, STTMetrics, TTSMetrics
from livekit.agents.stt import STT, RecognizeStream
from livekit.agents.tts import TTS, ChunkedStream, SynthesizeStream

from livekit.plugins.voicecost import _attribution, _instrument
from tests.plugin.livekit_versions import LIVEKIT_1_5
from tests.plugin.metered_session import (
    RecordingMeter,
    metered_call,
    simulated_providers,
)
from tests.plugin.moved import move
from tests.simulators import Reply
from voicecost_ledger.records import Basis, Coverage, LegStart, LegStop, Modality, Outcome

STREAMS: list[tuple[type[Any], str]] = [
    (LLMStream, "_chat_ctx"),
    (SynthesizeStream, "_input_ch"),
    (ChunkedStream, "_input_text"),
    (RecognizeStream, "_input_ch"),
]


@pytest.mark.parametrize(("moved", "name"), STREAMS, ids=[each.__name__ for each, _ in STREAMS])
async def test_a_stream_that_moved_is_metered_by_its_events(
    moved: type[Any], name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The other two are seen as ever; each request is booked once."""
    move(monkeypatch, moved)
    async with simulated_providers(Reply(text="Hello there.")) as providers:
        assert _instrument.coverage() is Coverage.METRICS_ONLY
        (warning,) = [r for r in caplog.records if r.name == "livekit.plugins.voicecost"]
        assert f"{moved.__name__}.{name}" in warning.getMessage()
        assert "metric events" in warning.getMessage()
        async with metered_call(providers, hears=True) as call:
            await call.session.generate_reply(user_input="Hello?")
            # The plugin tells every five seconds what it heard.
            await call.meter.until(lambda: call.meter.total(Modality.STT, "audio_ms") >= 5_000)
            await call.close()
    (llm,) = call.meter.of(Modality.LLM)
    (tts,) = call.meter.of(Modality.TTS)
    assert (llm.outcome, llm.basis) == (Outcome.SERVED, Basis.REPORTED)
    assert llm.usage["output_tokens"] == call.billed("llm", "output_tokens")
    assert llm.usage["input_tokens"] == call.billed("llm", "input_tokens")
    by_events = moved is SynthesizeStream
    assert tts.basis is (Basis.REPORTED if by_events else Basis.OBSERVED)
    # LiveKit counts what was pushed: Deepgram's plugin sends a space more.
    assert tts.usage["characters"] == call.billed("tts", "characters") - by_events
    ears = call.meter.of(Modality.STT)
    if moved is RecognizeStream:
        # A leg for each of its events, which make up for the time the socket was open as well;
        # LiveKit 1.5 does not wait for the last one when it closes.
        assert {(leg.outcome, leg.basis) for leg in ears} == {(Outcome.SERVED, Basis.REPORTED)}
        missed_ms = call.billed("stt", "audio_ms") - call.meter.total(Modality.STT, "audio_ms")
        assert missed_ms < (5_000 if LIVEKIT_1_5 else 1)
    else:
        (ear,) = ears
        assert ear.usage["audio_ms"] == call.billed("stt", "audio_ms")
    assert _instrument.coverage() is Coverage.COMPLETE


@pytest.mark.parametrize("moved", [each for each, _ in STREAMS])
def test_attempts_that_are_no_call_of_run_any_more_are_metered_by_events(
    moved: type[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def moved_main_task(self: Any) -> None:
        await self._attempt()

    monkeypatch.setattr(moved, "_main_task", moved_main_task)
    _instrument.instrument()
    assert _instrument.coverage() is Coverage.METRICS_ONLY
    _instrument.uninstrument()
    (warning,) = [r for r in caplog.records if r.name == "livekit.plugins.voicecost"]
    assert f"{moved.__name__}._run)" in warning.getMessage()


@pytest.fixture
def meter() -> Iterator[RecordingMeter]:
    meter = RecordingMeter()
    with _attribution.scoped(meter):
        yield meter


@pytest.fixture
def all_moved(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for stream_class, _ in STREAMS:
        move(monkeypatch, stream_class)
    emits = [each.emit for each in (LLM, TTS, STT)]
    _instrument.instrument()
    yield
    _instrument.uninstrument()
    assert [each.emit for each in (LLM, TTS, STT)] == emits


def llm_event(
    plugin: Any,
    *,
    prompt: int = 20,
    completion: int = 5,
    cancelled: bool = False,
    **more: Any,
) -> LLMMetrics:
    return LLMMetrics(
        label=plugin.label,
        request_id="1",
        timestamp=time.time(),
        duration=1,
        ttft=0.1,
        completion_tokens=completion,
        prompt_tokens=prompt,
        prompt_cached_tokens=0,
        total_tokens=prompt + completion,
        tokens_per_second=5,
        cancelled=cancelled,
        **more,
    )


def units(meter: RecordingMeter) -> list[dict[str, int]]:
    return [leg.usage for leg in meter.legs.values()]


async def test_an_event_that_is_emitted_twice_is_one_leg(
    all_moved: None, meter: RecordingMeter
) -> None:
    async with simulated_providers() as providers:
        llm = providers.llm()
        event = llm_event(llm)
        llm.emit("metrics_collected", event)
        llm.emit("metrics_collected", event.model_copy())
        llm.emit("metrics_collected", llm_event(llm, completion=6))
    assert [usage["output_tokens"] for usage in units(meter)] == [5, 6]
    kinds = [make for make, _ in meter.records]
    assert kinds == [LegStart, LegStop, LegStart, LegStop]


async def test_less_than_nothing_is_nothing_and_an_interruption_is_shown(
    all_moved: None, meter: RecordingMeter
) -> None:
    async with simulated_providers() as providers:
        llm = providers.llm()
        llm.emit("metrics_collected", llm_event(llm, prompt=-20, completion=5))
        llm.emit("metrics_collected", llm_event(llm, prompt=0, completion=0, cancelled=True))
        llm.emit("metrics_collected", llm_event(llm, prompt=0, completion=0))
    negative, interrupted = meter.of(Modality.LLM)
    assert (negative.usage["input_tokens"], negative.usage["output_tokens"]) == (0, 5)
    assert negative.basis is Basis.ESTIMATED
    assert (interrupted.outcome, interrupted.basis) == (Outcome.INTERRUPTED, Basis.ESTIMATED)


async def test_the_events_of_all_three(all_moved: None, meter: RecordingMeter) -> None:
    async with simulated_providers() as providers:
        llm, tts, stt = providers.llm(), providers.tts(), providers.stt()
        common: dict[str, Any] = {"request_id": "1", "timestamp": 1.0, "duration": 1.0}
        llm.emit("metrics_collected", llm_event(llm, cache_creation_tokens=3, reasoning_tokens=2))
        tts.emit(
            "metrics_collected",
            TTSMetrics(
                label=tts.label, ttfb=0.1, audio_duration=2, cancelled=True, characters_count=30,
                streamed=True, **common,
            ),
        )  # fmt: skip
        stt.emit(
            "metrics_collected",
            STTMetrics(label=stt.label, audio_duration=5, streamed=True, **common),
        )
        stt.emit(  # of something that it wraps, which has emitted it itself
            "metrics_collected",
            STTMetrics(label="another", audio_duration=5, streamed=True, **common),
        )
    told_by_1_5 = {"input_tokens": 20, "cached_input_tokens": 0, "output_tokens": 5}
    told_since = {} if LIVEKIT_1_5 else {"cache_write_tokens": 3, "reasoning_tokens": 2}
    assert units(meter) == [
        told_by_1_5 | told_since,
        {"characters": 30, "audio_ms": 2_000},
        {"audio_ms": 5_000},
    ]
    outcomes = [leg.outcome for leg in meter.legs.values()]
    assert outcomes == [Outcome.SERVED, Outcome.INTERRUPTED, Outcome.SERVED]


async def test_an_event_that_comes_after_the_session_is_not_lost(
    all_moved: None, meter: RecordingMeter
) -> None:
    """Its session is closed: it is the job's own, as every request that is made then."""
    own = RecordingMeter()
    _attribution.set_unattributed(lambda: own)
    try:
        async with simulated_providers() as providers, metered_call(providers) as call:
            llm = providers.llm()
            token = _attribution.enter_change(call.session)
            await call.session.aclose()
            _attribution.unregister(call.session)
            llm.emit("metrics_collected", llm_event(llm))
            _attribution.leave_change(token)
    finally:
        _attribution.set_unattributed(None)
    assert [leg.usage["output_tokens"] for leg in own.of(Modality.LLM)] == [5]

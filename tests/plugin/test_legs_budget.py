"""At the end of the money: requests end quietly, nothing is tried again, nothing else is asked."""

from __future__ import annotations

import pytest
from livekit import rtc
from livekit.agents.llm import ChatContext, FallbackAdapter

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
    assert meter.records == []


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


async def test_recognition_ends_and_does_not_connect_again() -> None:
    limit = 2_000 * NANO_USD["audio_ms"]
    async with simulated_providers() as providers:
        async with metered_call(providers, hears=True, limit_nano_usd=limit) as call:
            (leg,) = await call.meter.stopped(Modality.STT)
            await call.session.say("")  # the session is still alive
            await call.close()
        rows = [row for row in providers.bill.rows if row.service == "stt"]

    assert leg.outcome is Outcome.CUT
    assert [row.units["audio_ms"] for row in rows] == [leg.usage["audio_ms"]]
    assert 1_900 <= leg.usage["audio_ms"] <= 2_000


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
    assert meter.records == providers.bill.rows == []

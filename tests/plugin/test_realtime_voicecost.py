"""Realtime models through the whole plugin: priced, in the ledger, and ended with the money."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
import pytest
from livekit.agents import AgentSession
from livekit.plugins.openai import realtime

from livekit.plugins.voicecost import VoiceCost, _faults, _prices
from tests.plugin.livekit_versions import not_on_1_5
from tests.plugin.realtime_call import Caller
from tests.plugin.voicecost_sessions import Host, Speaker, forget_process, ledger
from tests.simulators import LONG_ANSWER, Reply
from tests.simulators.openai_live import OpenAILiveSimulator
from tests.simulators.openai_realtime import OpenAIRealtimeSimulator
from voicecost_ledger.records import Coverage, Outcome

# gpt-realtime, nano-USD a token: https://developers.openai.com/api/docs/models/gpt-realtime
TEXT_IN, AUDIO_IN, CACHED, TEXT_OUT, AUDIO_OUT = 4_000, 32_000, 400, 16_000, 64_000


@pytest.fixture
async def http(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[aiohttp.ClientSession]:
    forget_process()
    monkeypatch.setenv("VOICECOST_HOST_ALIASES", "localhost=openai")
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")
    await asyncio.to_thread(_prices.prices().book.warm)
    async with aiohttp.ClientSession() as session:
        try:
            yield session
        finally:
            await asyncio.to_thread(forget_process)


def _session(model: Any) -> tuple[AgentSession[None], Caller]:
    session: AgentSession[None] = AgentSession(llm=model)
    caller = Caller()
    session.input.audio, session.output.audio = caller, Speaker()
    return session, caller


def _model(openai: OpenAIRealtimeSimulator, http: aiohttp.ClientSession) -> realtime.RealtimeModel:
    url = openai.base_url.replace("127.0.0.1", "localhost")
    return realtime.RealtimeModel(
        model="gpt-realtime", base_url=url, api_key="x", http_session=http
    )


def _charge(units: dict[str, int]) -> int:
    audio, cached_audio = units["input_audio_tokens"], units["cached_input_audio_tokens"]
    text = units["input_tokens"] - audio
    cached_text = units["cached_input_tokens"] - cached_audio
    spoken = units["output_audio_tokens"]
    return (
        (text - cached_text) * TEXT_IN
        + (audio - cached_audio) * AUDIO_IN
        + (cached_text + cached_audio) * CACHED
        + (units["output_tokens"] - spoken) * TEXT_OUT
        + spoken * AUDIO_OUT
    )


async def test_a_call_costs_what_its_responses_and_transcriptions_do(
    http: aiohttp.ClientSession,
) -> None:
    faults = _faults.metering_count()
    replies = [Reply(text="Good morning, how can I help you?")]
    async with OpenAIRealtimeSimulator(replies=replies, transcripts=["Hello?"]) as openai:
        session, caller = _session(_model(openai, http))
        meter = VoiceCost().attach(session)
        await session.start(Host())
        caller.says(1_000)
        while len(openai.bill.rows) < 2:  # noqa: ASYNC110 (the simulator tells nobody)
            await asyncio.sleep(0.005)
        await openai.bill.settled()
        await session.generate_reply(user_input="Are you still there?")
        await session.aclose()
        await meter.wait_closed()
        rows = [row.units for row in openai.bill.rows if row.service == "realtime"]

    assert meter.cost.by_modality["realtime"] == sum(map(_charge, rows)) > 0
    assert meter.cost.by_modality["stt"] > 0
    assert meter.cost.unpriced_leg_count == 0
    assert meter.coverage is Coverage.COMPLETE
    assert _faults.metering_count() == faults
    (call,) = await ledger()
    assert {leg.outcome for leg in call.legs} == {Outcome.SERVED}
    assert call.gaps == []


async def test_a_realtime_call_ends_with_its_money(http: aiohttp.ClientSession) -> None:
    replies = [Reply(text=LONG_ANSWER)]
    async with OpenAIRealtimeSimulator(replies=replies, token_delay_ms=10) as openai:
        session, _ = _session(_model(openai, http))
        meter = VoiceCost(budget="0.02", on_budget="end").attach(session)
        await session.start(Host())
        session.generate_reply(user_input="Please explain everything to me.")
        await asyncio.wait_for(meter.wait_closed(), 20)
        (row,) = openai.bill.rows

    assert row.ended == "cancelled"
    # What had been said when it was noticed is owed; all of it would have been $0.058.
    assert 20_000_000 <= meter.cost.total_nano_usd == _charge(row.units) < 40_000_000


@not_on_1_5("has no duplex models")
async def test_a_duplex_call_is_billed_by_its_time(http: aiohttp.ClientSession) -> None:
    async with OpenAILiveSimulator(replies=[Reply(text="Good morning!")]) as live:
        url = live.base_url.replace("127.0.0.1", "localhost")
        model = realtime.GPTLiveModel(base_url=url, api_key="x", http_session=http)
        session, _ = _session(model)
        meter = VoiceCost().attach(session)
        await session.start(Host())
        await session.generate_reply()
        await session.aclose()
        await meter.wait_closed()
        (row,) = live.bill.rows

    begun_s = -(-row.units["connected_ms"] // 1000)  # $0.05 a minute, by the second
    assert meter.cost.by_modality["realtime"] == round(begun_s * 50_000_000 / 60)
    assert meter.coverage is Coverage.COMPLETE

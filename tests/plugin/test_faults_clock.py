"""A wall clock that steps an hour in the middle of a call changes nothing that is billed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable

import pytest

from livekit.plugins.voicecost import VoiceCost
from tests.plugin import voicecost_sessions
from tests.plugin.endings import held_against_the_bill
from tests.plugin.metered_session import metered_call, simulated_providers
from tests.simulators import LONG_ANSWER, Reply
from voicecost_ledger.records import LegInterim, LegStop, Modality

HOUR_S = 3_600
DURATION_MS_MAX = 60_000
"""Far more than any of these requests takes, and far less than the step."""


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the wall clock by so many seconds; what runs on no wall clock is left alone."""
    now_s, now_ns, by_s = time.time, time.time_ns, 0

    def set_by(seconds: int) -> None:
        nonlocal by_s
        by_s += seconds

    monkeypatch.setattr(time, "time", lambda: now_s() + by_s)
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + by_s * 1_000_000_000)
    return set_by


@pytest.mark.parametrize("by_s", [-HOUR_S, HOUR_S], ids=["back", "forward"])
async def test_legs_and_their_interims_do_not_notice(
    by_s: int, step: Callable[[int], None]
) -> None:
    replies = (Reply(match="hello", text="Hello there."), Reply(text=LONG_ANSWER[:120]))
    async with (
        simulated_providers(*replies, token_delay_ms=10) as providers,
        metered_call(providers, hears=True) as call,
    ):
        await call.session.generate_reply(user_input="Hello?")
        speech = call.session.generate_reply(user_input="Please explain everything.")
        await call.loudspeaker.heard.wait()
        await call.meter.until(lambda: len(call.meter.of(Modality.LLM)) == 2)
        step(by_s)
        stepped_at = len(call.meter.records)
        await speech
        await call.close()
    assert held_against_the_bill(call) == "stt served, llm served served, tts served served"
    after = call.meter.records[stepped_at:]
    written = {call.meter.legs[fields["leg"]].attributes.modality for make, fields in after
               if make is LegInterim}  # fmt: skip
    assert written == {Modality.STT, Modality.LLM, Modality.TTS}
    stops = [fields for make, fields in call.meter.records if make is LegStop]
    assert all(0 <= fields["duration_ms"] < DURATION_MS_MAX for fields in stops)
    answered = [fields["time_to_first_ms"] for fields in stops if fields["time_to_first_ms"]]
    assert answered
    assert all(0 < each < DURATION_MS_MAX for each in answered)
    (ear,) = call.meter.of(Modality.STT)
    assert 0 < ear.usage["connected_ms"] < DURATION_MS_MAX


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[voicecost_sessions.Providers]:
    async with voicecost_sessions.providers(monkeypatch) as world:
        yield world


@pytest.mark.parametrize("by_s", [-HOUR_S, HOUR_S], ids=["back", "forward"])
async def test_a_budgets_lease_does_not_notice(
    by_s: int, step: Callable[[int], None], world: voicecost_sessions.Providers
) -> None:
    """A lease lasts 30 s: an hour later by the wall clock the call still may spend."""
    session = world.session()
    meter = VoiceCost(budget="5.00").attach(session)
    await session.start(voicecost_sessions.Host())
    await voicecost_sessions.say_hello(session)
    step(by_s)
    await voicecost_sessions.say_hello(session)
    assert not meter.cut
    await session.aclose()
    (call,) = await voicecost_sessions.ledger()
    assert len(call.legs) == 4
    billed = sum(row.units["output_tokens"] for row in world.openai.bill.rows)
    assert sum(leg.usage.get("output_tokens", 0) for leg in call.legs) == billed
    assert call.gaps == []

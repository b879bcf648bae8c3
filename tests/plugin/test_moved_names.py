"""LiveKit's private names outside the stream classes: that one is gone is said, never borne."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from livekit.agents.llm.fallback_adapter import FallbackLLMStream
from livekit.agents.voice import agent_activity, agent_session, audio_recognition, speech_handle

from livekit.plugins.voicecost import VoiceCost, _faults, _instrument
from tests.plugin.voicecost_sessions import Host, Providers, ledger, providers, say_hello
from voicecost_ledger.records import Coverage, Modality

_RECOGNITION = audio_recognition.AudioRecognition
NAMES: list[tuple[Any, str]] = [
    (agent_session.AgentSession, "_update_activity"),
    # It was no private name in 1.5.
    (_RECOGNITION, "_update_stt" if hasattr(_RECOGNITION, "_update_stt") else "update_stt"),
    (agent_activity.AgentActivity, "session"),
    (agent_activity, "_AgentActivityContextVar"),
    (agent_activity, "_SpeechHandleContextVar"),
    (speech_handle.SpeechHandle, "scheduled"),
    (FallbackLLMStream, "_try_recovery"),
]


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Providers]:
    async with providers(monkeypatch) as world:
        yield world


@pytest.mark.parametrize(("holder", "name"), NAMES, ids=[name for _, name in NAMES])
def test_a_name_that_is_gone_makes_calls_partial_and_is_said_once(
    holder: Any, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    faults = _faults.counts()
    with monkeypatch.context() as patched:
        patched.delattr(holder, name)
        _instrument.instrument()
        _instrument.instrument()
        coverage = _instrument.coverage()
        _instrument.uninstrument()
    assert coverage is Coverage.PARTIAL
    (warning,) = [r for r in caplog.records if r.name == "livekit.plugins.voicecost"]
    assert f"{name})" in warning.getMessage()
    assert "coverage=partial" in warning.getMessage()
    assert _faults.counts() == faults
    _instrument.instrument()
    assert _instrument.coverage() is Coverage.COMPLETE
    _instrument.uninstrument()


async def test_without_scheduled_speeches_legs_still_end(
    world: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What became of a preemptive generation cannot be told then; what it cost can."""
    scheduled = speech_handle.SpeechHandle.scheduled
    monkeypatch.delattr(speech_handle.SpeechHandle, "scheduled")
    cost = VoiceCost()
    monkeypatch.setattr(speech_handle.SpeechHandle, "scheduled", scheduled, raising=False)
    session = world.session()
    cost.attach(session)
    await session.start(Host())
    await say_hello(session)
    await session.aclose()
    (call,) = await ledger()
    assert {leg.modality for leg in call.legs} == {Modality.LLM, Modality.TTS}
    assert call.summary.coverage is Coverage.PARTIAL


async def test_a_contained_fault_makes_the_calls_that_it_may_have_cost_partial(
    world: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = VoiceCost()
    sessions = [world.session() for _ in range(3)]
    before, during = cost.attach(sessions[0]), cost.attach(sessions[1])
    await sessions[0].start(Host())
    await sessions[0].aclose()
    await sessions[1].start(Host())
    with monkeypatch.context() as patched:
        patched.delenv("VOICECOST_RAISE_FAULTS")
        _faults.count("adoption", ValueError())  # somebody else's records, which are kept
        assert during.coverage is Coverage.COMPLETE
        _faults.count("llm_chunk", ValueError())
    after = cost.attach(sessions[2])
    await sessions[2].start(Host())
    for session in sessions[1:]:
        await session.aclose()
    assert after.coverage is Coverage.COMPLETE
    calls = {call.meters[0].meter_id: call for call in await ledger()}
    assert {meter: call.summary.coverage for meter, call in calls.items()} == {
        before.meter_id: Coverage.COMPLETE,
        during.meter_id: Coverage.PARTIAL,
        after.meter_id: Coverage.COMPLETE,
    }
    assert [gap.reason for gap in calls[during.meter_id or ""].gaps] == ["metering_fault"]

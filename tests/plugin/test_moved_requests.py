"""A LiveKit whose recordings or realtime sessions moved: their metric events are booked instead.

The streams of LLM, TTS and STT are in `test_moved_streams.py`, what came later than LiveKit 1.5 in
`test_moved_services.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from livekit.agents import APIConnectOptions
from livekit.agents.llm import RealtimeSession
from livekit.agents.stt import STT

from livekit.plugins.voicecost import _attribution, _faults
from tests.plugin.livekit_versions import LIVEKIT_1_5
from tests.plugin.metered_session import RecordingMeter, metered_call, simulated_providers
from tests.plugin.moved import MISSED, instrumented, move, rename
from tests.plugin.realtime_call import realtime_call, simulated_openai
from tests.plugin.test_stt_recordings import recording, transcriptions, whisper
from tests.simulators import Reply
from voicecost_ledger.records import Basis, Coverage, Modality, Outcome

BY_EVENTS = Coverage.METRICS_ONLY
ONE_TRY = APIConnectOptions(max_retry=0, timeout=5)


@pytest.fixture
def meter() -> Iterator[RecordingMeter]:
    meter = RecordingMeter()
    with _attribution.scoped(meter):
        yield meter


@pytest.fixture(autouse=True)
def no_faults() -> Iterator[None]:
    before = _faults.counts()
    yield
    assert _faults.counts() == before


@pytest.mark.parametrize("how", ["its name is gone", "it is not called"])
async def test_recordings(
    how: str, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    if how == "its name is gone":
        monkeypatch.delattr(STT, "_recognize_impl")
    else:
        rename(monkeypatch, STT, "recognize")
    gone = {"gone": "STT._recognize_impl", "says": f"STT of recordings: {MISSED}"}
    async with transcriptions() as openai:
        caplog.clear()
        with instrumented(caplog, coverage=BY_EVENTS, **gone):
            await whisper(openai).recognize(recording(), conn_options=ONE_TRY)
            await openai.bill.settled()
    (row,), (leg,) = openai.bill.rows, meter.of(Modality.STT)
    assert leg.usage == {"audio_ms": row.units["audio_ms"]}
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.REPORTED)
    assert (leg.attributes.model, leg.attributes.streaming) == ("whisper-1", False)


async def test_streams_are_seen_as_ever_where_recordings_have_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their events are of the same class, and of the same plugins."""
    monkeypatch.delattr(STT, "_recognize_impl")
    async with (
        simulated_providers(Reply(text="Hello there.")) as providers,
        metered_call(providers, hears=True) as call,
    ):
        await call.session.generate_reply(user_input="Hello?")
        await call.close()
    (leg,) = call.meter.of(Modality.STT)
    assert leg.basis is Basis.OBSERVED
    assert leg.usage["audio_ms"] == call.billed("stt", "audio_ms")


async def test_a_realtime_model(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """Its responses and its ears; each is booked once, though the session's are repeated."""
    move(monkeypatch, RealtimeSession)
    async with simulated_openai(replies=[Reply(text="Good morning!")] * 2) as openai:
        caplog.clear()
        with instrumented(
            caplog,
            gone="RealtimeSession._realtime_model",
            coverage=BY_EVENTS,
            says=f"realtime models: {MISSED}",
        ):
            async with realtime_call(openai.model()) as call:
                call.caller.says(600)
                await call.meter.until(lambda: call.responses)
                if not LIVEKIT_1_5:  # which tells of no transcriptions
                    await call.meter.until(lambda: call.transcriptions)
                await call.session.generate_reply(user_input="Hello?")
                await call.close()
    for leg, row in zip(call.responses, openai.rows(), strict=True):
        assert {unit: leg.usage[unit] for unit in row} == row
    assert {(leg.outcome, leg.basis) for leg in call.responses} == {
        (Outcome.SERVED, Basis.REPORTED)
    }
    assert {leg.attributes.model for leg in call.responses} == {"gpt-realtime"}
    for leg in call.transcriptions:
        (row,) = openai.rows("stt")
        assert row.items() <= leg.usage.items()

"""What the ledger makes of legs that turn out to have used less than was counted ahead of them."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from livekit.agents import APIConnectOptions, APIError

from livekit.plugins.voicecost import _attribution
from tests.ledger.desk import Desk
from tests.plugin.metered_session import RecordingMeter
from tests.plugin.test_stt_recordings import recording, transcriptions, whisper
from tests.plugin.voices import simulated_voice
from tests.simulators import Fault
from voicecost_ledger.records import Outcome
from voicecost_ledger.stores import CallDetail

ONE_TRY = APIConnectOptions(max_retry=0, timeout=5)
TEXT = "It is sunny in Paris today."


def booked(meter: RecordingMeter) -> CallDetail:
    """The call as the real books have it from the meter's records."""
    desk = Desk()
    records = desk.meter()
    for make, fields in meter.records:
        records.write(make, **fields)
    records.close()
    records.send()
    desk.check()
    return desk.call()


async def test_a_recording_that_is_refused_costs_nothing() -> None:
    meter = RecordingMeter()
    with _attribution.scoped(meter):
        async with transcriptions() as simulator:
            simulator.faults.add(Fault(status=429))
            with pytest.raises(APIError):
                await whisper(simulator).recognize(recording(), conn_options=ONE_TRY)
    call = booked(meter)
    assert not call.quarantined
    assert [(leg.outcome, leg.usage) for leg in call.legs] == [(Outcome.FAILED, {"audio_ms": 0})]


async def test_a_text_that_is_refused_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = RecordingMeter()
    with _attribution.scoped(meter):
        async with simulated_voice("openai", monkeypatch, model="tts-1") as voice:
            voice.faults.add(Fault(status=429))
            with contextlib.suppress(APIError):
                async with voice.tts.synthesize(TEXT, conn_options=ONE_TRY) as stream:
                    async for _ in stream:
                        pass
    call = booked(meter)
    assert not call.quarantined
    (leg,) = call.legs
    assert (leg.outcome, leg.usage["characters"]) == (Outcome.FAILED, 0)


async def test_a_text_that_its_socket_did_not_take_costs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is recorded before it is sent, exactly; and then it was not sent."""
    meter = RecordingMeter()
    with _attribution.scoped(meter):
        async with simulated_voice("deepgram", monkeypatch) as voice:
            for _ in range(2):
                with contextlib.suppress(APIError):
                    async with voice.tts.stream(conn_options=ONE_TRY) as stream:
                        stream.push_text(TEXT)
                        stream.end_input()
                        async for _ in stream:
                            pass
                connections: Any = voice.tts
                for socket in list(connections._pool._connections):
                    socket._response.connection.transport.abort()  # as when the network is gone
    call = booked(meter)
    assert not call.quarantined
    served, failed = call.legs
    assert (served.outcome, served.usage["characters"] > 0) == (Outcome.SERVED, True)
    assert (failed.outcome, failed.usage["characters"]) == (Outcome.FAILED, 0)

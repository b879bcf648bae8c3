"""Streaming recognition: each connection a leg, by the audio its provider received and its time.

The provider's bill is the measure, to the millisecond; plugins report late, or a part, or never.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec

import aiohttp
import pytest

from livekit.plugins.voicecost import _attribution, _pulse
from tests.plugin.metered_session import RecordingMeter
from tests.plugin.stt_streams import (
    ONE_TRY,
    RECOGNISERS,
    THREE_TRIES,
    TRANSCRIPTS,
    Recogniser,
    connected_alike,
    faults_of,
    heard_alike,
    legs_of,
    open_microphone,
    push,
    running,
    said,
    silence,
)
from tests.simulators import Fault
from voicecost_ledger.records import Basis, LegInterim, LegStop, Modality, Outcome


@pytest.fixture(autouse=True)
def soon_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speechmatics' library waits so long for the last words of a socket that is dead."""
    if find_spec("speechmatics.agent_stt") is not None:  # LiveKit 1.5 uses another one
        monkeypatch.setattr("speechmatics.agent_stt._client.DISCONNECT_TIMEOUT_S", 0.05)


every_recogniser = pytest.mark.parametrize("recogniser", RECOGNISERS, ids=str)


@pytest.fixture
def meter() -> Iterator[RecordingMeter]:
    meter = RecordingMeter()
    with _attribution.scoped(meter):
        yield meter


@every_recogniser
async def test_a_stream_that_is_spoken_into_and_ended(
    recogniser: Recogniser, meter: RecordingMeter
) -> None:
    async with running(recogniser) as (simulator, stt):
        async with stt.stream(conn_options=ONE_TRY) as stream:
            push(stream)
            text = await said(stream)
            stream.end_input()
            if recogniser.ends:
                await said(stream)
        await stt.aclose()  # a pool keeps its connection until then
        await simulator.bill.settled()
    (leg,), (row,) = legs_of(meter), simulator.bill.rows

    assert text == " ".join(TRANSCRIPTS)
    basis = Basis.REPORTED if recogniser.tokens else Basis.OBSERVED
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, basis)
    assert row.units["audio_ms"] >= 3_300
    assert leg.usage == row.units | {"connected_ms": leg.usage["connected_ms"]}
    assert connected_alike(leg, row)
    assert leg.attributes.model == row.model
    assert leg.attributes.streaming
    (stop,) = [fields for make, fields in meter.records if make is LegStop]
    assert 0 <= stop["time_to_first_ms"] <= stop["duration_ms"]


@every_recogniser
async def test_a_stream_that_is_closed_while_audio_flows(
    recogniser: Recogniser, meter: RecordingMeter
) -> None:
    """What the plugin still gathers is not sent, and not billed; what was sent is."""
    async with running(recogniser) as (simulator, stt):
        stream = stt.stream(conn_options=ONE_TRY)
        for frame in silence(1_030):
            stream.push_frame(frame)
        await meter.until(lambda: meter.total(Modality.STT, "audio_ms") > 800)
        await stream.aclose()
        await stt.aclose()  # a pool keeps its connection until then
        await simulator.bill.settled()
    (leg,), (row,) = legs_of(meter), simulator.bill.rows

    assert leg.outcome is Outcome.SERVED
    assert heard_alike(leg, row)
    assert row.units["audio_ms"] > 800
    assert connected_alike(leg, row)


@every_recogniser
async def test_a_socket_that_dies_is_a_leg_and_its_successor_another(
    recogniser: Recogniser, meter: RecordingMeter
) -> None:
    async with running(recogniser) as (simulator, stt):
        faults_of(simulator).add(Fault(dies_after=700))
        stream = stt.stream(conn_options=THREE_TRIES)
        async with open_microphone(stream):
            await meter.until(
                lambda: [leg.usage["audio_ms"] > 800 for leg in legs_of(meter)[1:]] == [True]
            )
        await stream.aclose()
        await stt.aclose()  # a pool keeps its connection until then
        await simulator.bill.settled()
    (died, served), rows = legs_of(meter), simulator.bill.rows

    assert (died.outcome, served.outcome) == (Outcome.FAILED, Outcome.SERVED)
    received_ms = rows[0].units["audio_ms"]
    assert received_ms >= 700
    if recogniser.name.startswith("google") and not died.usage["audio_ms"]:
        # gRPC kept its reason to itself, and so soon after the start it may have been a refusal.
        assert died.basis is Basis.ESTIMATED
        assert received_ms <= died.margins["audio_ms"] <= received_ms + 1_000
        assert (rows[0].connected_ms or 0) <= died.margins["connected_ms"] + 400
    else:  # what was on its way when the socket died was sent, and not received
        assert received_ms <= died.usage["audio_ms"] <= received_ms + 1_000
        assert connected_alike(died, rows[0])
    assert heard_alike(served, rows[1])
    assert served.usage["audio_ms"] > 800
    assert connected_alike(served, rows[1])


@every_recogniser
async def test_a_refused_connection_costs_nothing(
    recogniser: Recogniser, meter: RecordingMeter
) -> None:
    async with running(recogniser) as (simulator, stt):
        faults_of(simulator).add(Fault(status=429))
        stream = stt.stream(conn_options=THREE_TRIES)
        for frame in silence(510):
            stream.push_frame(frame)
        (refused,) = await meter.stopped(Modality.STT)
        with contextlib.suppress(aiohttp.WSServerHandshakeError):  # AssemblyAI's does not retry
            await stream.aclose()
        await stt.aclose()  # a pool keeps its connection until then
        await simulator.bill.settled()

    assert refused.outcome is Outcome.FAILED
    assert refused.usage == {"audio_ms": 0, "connected_ms": 0}
    assert meter.total(Modality.STT, "audio_ms") == simulator.bill.total("audio_ms")


@every_recogniser
async def test_a_muted_microphone_still_has_a_socket(
    recogniser: Recogniser, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sent, nothing comes, and the time of the socket goes on in the ledger."""
    monkeypatch.setattr(_pulse, "PULSE_S", 0.02)
    async with running(recogniser) as (simulator, stt):
        stream = stt.stream(conn_options=ONE_TRY)
        await meter.until(lambda: meter.total(Modality.STT, "connected_ms") > 60)
        first = sum(make is LegInterim for make, _ in meter.records)
        await meter.until(lambda: sum(make is LegInterim for make, _ in meter.records) >= first + 2)
        await stream.aclose()
        await stt.aclose()  # a pool keeps its connection until then
        await simulator.bill.settled()
    (leg,), (row,) = legs_of(meter), simulator.bill.rows

    assert leg.usage["audio_ms"] == row.units["audio_ms"] == 0
    assert connected_alike(leg, row)
    assert leg.usage["connected_ms"] > 60

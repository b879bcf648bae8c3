"""Whatever is no stream can be cancelled wherever it waits as well: see `test_faults_cancellation`.

Recordings, decisions, realtime sessions, avatars.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from livekit.agents import AgentSession, inference
from livekit.agents.stt import STT
from livekit.plugins.elevenlabs import STT as Scribe

from examples.demo.livekit_server import LiveKitServer
from livekit.plugins.voicecost import _attribution, _faults, _instrument
from tests.plugin.cancelling import CancelledAt
from tests.plugin.metered_session import RecordingMeter, SeenLeg
from tests.plugin.realtime_call import realtime_call, simulated_openai
from tests.plugin.test_services_avatar import Stage
from tests.plugin.test_services_decisions import ONE_TRY, QUESTIONS
from tests.plugin.test_stt_recordings import recording, transcriptions, whisper
from tests.plugin.voicecost_rooms import agents_room, livekit_server
from tests.simulators import Reply
from tests.simulators.inference_services import InferenceServicesSimulator
from voicecost_ledger.records import Modality, Outcome

SUSPENSIONS_MAX = 200


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


async def walk(life: Callable[[], Coroutine[Any, Any, object]], *, task: str = "life") -> int:
    """Live it again and again, cancelled at the next suspension each time, until it is lived whole.

    Args:
        life: What is to be cancelled.
        task: Part of the name of the task in it whose suspensions they are; by default its own.

    Returns:
        How often it was lived.
    """
    for n in range(1, SUSPENSIONS_MAX):
        with CancelledAt(task, n) as cancelled:
            living = asyncio.create_task(life(), name="life")
            await asyncio.wait([living])
        assert living.cancelled() or not cancelled.reached
        if not living.cancelled():
            living.result()
        if not cancelled.reached:
            return n
    raise AssertionError(f"{SUSPENSIONS_MAX} suspensions, and no end")


def ended(legs: list[SeenLeg], unit: str) -> list[int]:
    """What each leg used, of those that used something; all of them are over."""
    assert all(leg.stop_count > 0 for leg in legs)
    assert {leg.outcome for leg in legs} <= {Outcome.SERVED, Outcome.INTERRUPTED}
    return sorted(leg.usage[unit] for leg in legs if leg.usage[unit])


# The simulator's server leaves the file of a form behind that never came to its end.
@pytest.mark.filterwarnings("ignore:.*SpooledTemporaryFile:pytest.PytestUnraisableExceptionWarning")
async def test_a_recording_in_parts(meter: RecordingMeter) -> None:
    """OpenAI's client writes the form in some sixteen parts: half of it is no request yet."""
    async with transcriptions(transcripts=["Hello?"] * SUSPENSIONS_MAX) as openai:
        ears = whisper(openai)  # a connection that is cancelled is closed: it connects anew
        n = await walk(lambda: ears.recognize(recording(), conn_options=ONE_TRY), task="recognize")
        await openai.bill.settled()
        theirs = [row.units["audio_ms"] for row in openai.bill.rows]
    assert n > 20
    assert len(meter.of(Modality.STT)) == n
    # One more where the end of the form is written, which may have been all of it.
    assert ended(meter.of(Modality.STT), "audio_ms") in (theirs, [1_237, *theirs])


@pytest.fixture
async def scribe() -> AsyncIterator[tuple[STT[Any], list[int]]]:
    """ElevenLabs' plugin, which sends its forms with aiohttp, and what arrived whole."""
    arrived: list[int] = []

    async def transcribe(request: web.Request) -> web.Response:
        arrived.append(len(await request.read()))
        return web.json_response({"text": "Hello?", "language_code": "en", "words": []})

    app = web.Application()
    app.router.add_post("/v1/speech-to-text", transcribe)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    async with aiohttp.ClientSession() as http:
        yield (
            Scribe(api_key="x", base_url=f"http://127.0.0.1:{port}/v1", http_session=http),
            arrived,
        )
    await runner.cleanup()


async def test_a_recording_by_aiohttp(
    scribe: tuple[STT[Any], list[int]], meter: RecordingMeter
) -> None:
    ears, arrived = scribe
    _instrument.instrument()
    n = await walk(lambda: ears.recognize(recording(), conn_options=ONE_TRY), task="recognize")
    _instrument.uninstrument()
    assert n > 3
    assert len(ended(meter.of(Modality.STT), "audio_ms")) == len(arrived)


@pytest.mark.parametrize("task", ["evaluate", "_ObservedEvaluate"])
async def test_a_decision(task: str, meter: RecordingMeter) -> None:
    """Until Python 3.12 its attempt is a task of its own, for the sake of its timeout."""
    _instrument.instrument()
    async with InferenceServicesSimulator() as gateway, aiohttp.ClientSession() as http:
        model = inference.DecisionModel(
            base_url=gateway.url, api_key="key", api_secret="secret" * 6, http_session=http
        )
        n = await walk(
            lambda: model.evaluate(input="user: Hello?", decisions=QUESTIONS, conn_options=ONE_TRY),
            task=task,
        )
        await gateway.bill.settled()
    _instrument.uninstrument()
    assert n > 1
    theirs = sorted(row.units["input_tokens"] for row in gateway.bill.rows)
    assert ended(meter.of(Modality.DECISION), "input_tokens") == theirs


async def test_a_session_on_a_realtime_model() -> None:
    """From its start over an answer to its end, in one task; then it is closed."""
    meters: list[RecordingMeter] = []
    async with simulated_openai(replies=[Reply(text="Good morning!")] * SUSPENSIONS_MAX) as openai:

        async def life() -> None:
            async with realtime_call(openai.model()) as call:
                meters.append(call.meter)
                await call.session.generate_reply(user_input="Hello?")
                await call.close()

        n = await walk(life)
        await openai.simulator.bill.settled()
        rows = openai.rows()
    assert n > 5
    legs = [leg for meter in meters for leg in meter.of(Modality.REALTIME)]
    for unit in ("input_tokens", "output_tokens", "output_audio_tokens"):
        assert ended(legs, unit) == sorted(row[unit] for row in rows)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveKitServer]:
    async with livekit_server(tmp_path_factory.mktemp("livekit")) as server:
        yield server


async def test_an_avatar(server: LiveKitServer) -> None:
    """As long as the provider was not told of its end it bills: a job tells it at its shutdown."""
    _instrument.instrument()
    async with InferenceServicesSimulator() as gateway, agents_room(server) as room:
        session: AgentSession[None] = AgentSession()
        meter = RecordingMeter()
        _attribution.register(session, meter)
        stage = Stage(gateway, server, room, session, meter)
        avatars: list[inference.AvatarSession] = []

        async def life() -> None:
            avatars.append(stage.avatar())
            await stage.start(avatars[-1])
            await avatars[-1].aclose()

        n = await walk(life)
        for avatar in avatars:
            await avatar.aclose()
        await session.aclose()
        _attribution.unregister(session)
    _instrument.uninstrument()
    assert n > 5
    assert len(stage.legs) == n
    ended(stage.legs, "connected_ms")
    rows = gateway.bill.rows
    without, served = stage.legs[: -len(rows)], stage.legs[-len(rows) :]
    assert [leg.usage["connected_ms"] for leg in without] == [0] * len(without)
    for leg, row in zip(served, rows, strict=True):
        assert leg.usage["connected_ms"] >= row.units["connected_ms"]

"""The simulated voices, spoken to directly: what their protocols promise beyond plugins' needs."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.simulators.azure_speech import AzureSpeechSimulator
from tests.simulators.cartesia_speak import CartesiaSpeakSimulator
from tests.simulators.elevenlabs_speak import ElevenLabsSpeakSimulator
from tests.simulators.inference_tts import InferenceTTSSimulator
from tests.simulators.openai_speech import OpenAISpeechSimulator
from tests.simulators.resemble_speak import ResembleSimulator
from tests.simulators.speech import Pace

QUICK = Pace(first_byte_delay_ms=0, speed=0)
SLOW = Pace(first_byte_delay_ms=0, speed=1)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer x"}) as session:
        yield session


async def until(socket: aiohttp.ClientWebSocketResponse, key: str) -> list[dict[str, Any]]:
    """All messages up to the first with a true `key`."""
    messages: list[dict[str, Any]] = []
    while not messages or not messages[-1].get(key):
        messages.append(json.loads(await socket.receive_str(timeout=5)))
    return messages


def generation(context_id: str, transcript: str, *, more: bool) -> dict[str, Any]:
    return {
        "model_id": "sonic-3",
        "transcript": transcript,
        "context_id": context_id,
        "continue": more,
        "output_format": {"container": "raw", "encoding": "pcm_s16le", "sample_rate": 8_000},
    }


async def test_cartesia_speaks_several_contexts_on_one_socket(http: aiohttp.ClientSession) -> None:
    async with CartesiaSpeakSimulator(pace=QUICK) as cartesia:
        async with http.ws_connect(f"{cartesia.url}/tts/websocket") as socket:
            await socket.send_json(generation("a", "It is sunny. ", more=True))
            await socket.send_json(generation("b", "It rains.", more=False))
            await socket.send_json(generation("a", "Take a hat.", more=False))
            done = [
                message["context_id"] for _ in range(2) for message in await until(socket, "done")
            ]
        await cartesia.bill.settled()
    assert {"a", "b"} <= set(done)
    assert {row.request_id: row.units["characters"] for row in cartesia.bill.rows} == {
        "a": 24,
        "b": 9,
    }


async def test_cartesia_bills_a_cancelled_context_as_received(http: aiohttp.ClientSession) -> None:
    async with CartesiaSpeakSimulator(pace=SLOW) as cartesia:
        async with http.ws_connect(f"{cartesia.url}/tts/websocket") as socket:
            await socket.send_json(generation("a", "It is sunny in Paris today.", more=True))
            await until(socket, "data")
            await socket.send_json({"context_id": "a", "cancel": True})
            await socket.send_json({"context_id": "c"})
            (error,) = [m for m in await until(socket, "done") if m["type"] == "error"]
        await cartesia.bill.settled()
    (row,) = cartesia.bill.rows
    assert (row.ended, row.units["characters"]) == ("cleared", 27)
    assert error["status_code"] == 400


async def test_elevenlabs_bills_neither_opening_nor_keeping_alive_nor_closing(
    http: aiohttp.ClientSession,
) -> None:
    async with ElevenLabsSpeakSimulator(pace=QUICK) as elevenlabs:
        url = (
            f"{elevenlabs.base_url}/text-to-speech/voice/multi-stream-input?output_format=pcm_8000"
        )
        async with http.ws_connect(url, headers={"xi-api-key": "x"}) as socket:
            await socket.send_json({"text": " ", "context_id": "a", "voice_settings": {}})
            await socket.send_json({"text": "", "context_id": "a"})
            await socket.send_json({"text": "It is sunny. ", "context_id": "a", "flush": True})
            await socket.send_json({"context_id": "a", "close_context": True})
            messages = await until(socket, "isFinal")
            for number in range(6):
                await socket.send_json({"text": " ", "context_id": str(number)})
            refused = (await until(socket, "error"))[-1]
            await socket.send_json({"close_socket": True})
        await elevenlabs.bill.settled()
    assert refused["contextId"] == "5"
    assert elevenlabs.bill.rows[0].units == {"characters": 13}
    assert elevenlabs.bill.total("characters") == 13
    sound = b"".join(base64.b64decode(message.get("audio", "")) for message in messages)
    assert len(sound) == 13 * 65 * 8 * 2


async def test_inference_serves_by_another_model_and_bills_that(
    http: aiohttp.ClientSession,
) -> None:
    async with InferenceTTSSimulator(pace=QUICK) as gateway:
        gateway.falls_back = True
        async with http.ws_connect(f"{gateway.base_url}/tts?model=cartesia/sonic-3") as socket:
            create = {"type": "session.create", "sample_rate": "8000", "encoding": "pcm_s16le"}
            fallback = {"models": [{"model": "rime/arcana", "voice": "x", "extra": {}}]}
            await socket.send_json(create | {"fallback": fallback})
            await socket.send_json({"type": "input_transcript", "transcript": "It is sunny. "})
            await socket.send_json({"type": "session.flush"})
            types = [m["type"] for m in [await socket.receive_json() for _ in range(3)]]
        await gateway.bill.settled()
    assert types[:2] == ["session.created", "output_audio"]
    (row,) = gateway.bill.rows
    assert (row.model, row.units["characters"]) == ("rime/arcana", 13)


async def test_openai_has_no_events_for_voices_billed_by_characters(
    http: aiohttp.ClientSession,
) -> None:
    async with OpenAISpeechSimulator(pace=QUICK) as openai:
        body = {"input": "It is sunny.", "voice": "ash", "response_format": "pcm"}
        url = f"{openai.base_url}/audio/speech"
        async with http.post(
            url, json=body | {"model": "tts-1", "stream_format": "sse"}
        ) as refused:
            assert refused.status == 400
        model = {"model": "gpt-4o-mini-tts", "stream_format": "sse"}
        async with http.post(url, json=body | model) as answer:
            events = [
                json.loads(line[6:]) async for line in answer.content if line.startswith(b"data")
            ]
        await openai.bill.settled()
    (row,) = openai.bill.rows
    usage = events[-1]["usage"]
    assert {event["type"] for event in events[:-1]} == {"speech.audio.delta"}
    assert usage["output_tokens"] == row.units["output_audio_tokens"] == -(-12 * 65 // 50)
    assert row.generated_ahead == {}


async def test_azure_refuses_what_is_no_document(http: aiohttp.ClientSession) -> None:
    async with AzureSpeechSimulator(pace=QUICK) as azure:
        headers = {"X-Microsoft-OutputFormat": "raw-24khz-16bit-mono-pcm"}
        async with http.post(azure.endpoint, data="Hello", headers=headers) as refused:
            assert refused.status == 400
    assert azure.bill.rows == []


async def test_resemble_goes_on_until_its_socket_closes(http: aiohttp.ClientSession) -> None:
    async with ResembleSimulator(pace=QUICK) as resemble:
        request = {"voice_uuid": "x", "sample_rate": 8_000, "output_format": "wav"}
        async with http.ws_connect(resemble.websocket_url) as socket:
            await socket.send_json(request | {"data": "It is sunny.", "request_id": 1})
            await socket.send_json(request | {"data": "Take a hat.", "request_id": 2})
            ends = [m async for m in _json(socket, 2) if m["type"] == "audio_end"]
        await resemble.bill.settled()
    assert [end["request_id"] for end in ends] == [1, 2]
    assert [row.units["audio_ms"] for row in resemble.bill.rows] == [12 * 65, 11 * 65]


async def _json(
    socket: aiohttp.ClientWebSocketResponse, ends: int
) -> AsyncIterator[dict[str, Any]]:
    while ends:
        message = await socket.receive_json(timeout=5)
        ends -= message["type"] == "audio_end"
        yield message

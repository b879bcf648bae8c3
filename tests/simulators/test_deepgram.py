"""The simulated Deepgram, as the real, unmodified LiveKit plugins see it."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import AsyncIterator

import aiohttp
import pytest
from livekit import rtc
from livekit.agents import APIError
from livekit.agents.stt import SpeechEvent, SpeechEventType
from livekit.agents.types import APIConnectOptions
from livekit.plugins.deepgram import STT, TTS

from tests.simulators import DeepgramSimulator, Fault

ONE_TRY = APIConnectOptions(max_retry=0, timeout=5)
RATE = 16_000


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def audio(duration_ms: int, *, amplitude: int = 0) -> rtc.AudioFrame:
    count = RATE * duration_ms // 1000
    wave = array("h", (int(amplitude * math.sin(0.2 * index)) for index in range(count)))
    return rtc.AudioFrame(wave.tobytes(), RATE, 1, count)


def hearing(deepgram: DeepgramSimulator, http: aiohttp.ClientSession) -> STT:
    return STT(base_url=deepgram.listen_url, api_key="x", http_session=http)


def speaking(deepgram: DeepgramSimulator, http: aiohttp.ClientSession) -> TTS:
    return TTS(base_url=deepgram.speak_url, api_key="x", http_session=http)


async def test_each_stretch_of_sound_is_the_next_transcript(http: aiohttp.ClientSession) -> None:
    transcripts = ["Hello, who is there?", "Tell me about the weather in Paris, please."]
    async with DeepgramSimulator(transcripts=transcripts) as deepgram:
        stream = hearing(deepgram, http).stream(conn_options=ONE_TRY)
        for _ in range(3):  # the third is past the script's end: nobody understands it
            stream.push_frame(audio(400))
            stream.push_frame(audio(1_500, amplitude=8_000))
            stream.push_frame(audio(600))
        stream.end_input()
        events: list[SpeechEvent] = []
        while [event.type for event in events].count(SpeechEventType.END_OF_SPEECH) < 3:
            events.append(await anext(stream))
        await deepgram.bill.settled()
        await stream.aclose()

    heard = [e.alternatives[0].text for e in events if e.type is SpeechEventType.FINAL_TRANSCRIPT]
    kinds = [event.type for event in events]
    assert heard == transcripts
    assert kinds.count(SpeechEventType.START_OF_SPEECH) == 3
    assert kinds.count(SpeechEventType.END_OF_SPEECH) == 3
    assert kinds.count(SpeechEventType.INTERIM_TRANSCRIPT) >= 4
    (row,) = deepgram.bill.rows
    assert (row.ended, row.units, row.model) == ("completed", {"audio_ms": 7_500}, "nova-3")
    assert row.connected_ms is not None


async def test_an_utterance_end_follows_when_it_is_asked_for(http: aiohttp.ClientSession) -> None:
    async with (
        DeepgramSimulator(transcripts=["Good morning."]) as deepgram,
        http.ws_connect(
            f"{deepgram.listen_url}?sample_rate=16000&channels=1&interim_results=true"
            "&utterance_end_ms=1000&vad_events=true",
            headers={"Authorization": "Token x"},
        ) as socket,
    ):
        await socket.send_bytes(audio(500, amplitude=8_000).data.tobytes())
        await socket.send_bytes(audio(2_000).data.tobytes())
        await socket.send_str(json.dumps({"type": "KeepAlive"}))
        await socket.send_str(json.dumps({"type": "CloseStream"}))
        messages = [json.loads(message.data) async for message in socket]

    kinds = [message["type"] for message in messages]
    assert kinds == ["SpeechStarted", "Results", "Results", "UtteranceEnd", "Metadata"]
    assert messages[-1]["duration"] == pytest.approx(2.5)


async def test_what_is_being_said_at_a_finalize_is_given_at_once(
    http: aiohttp.ClientSession,
) -> None:
    async with DeepgramSimulator(transcripts=["I was about to say"]) as deepgram:
        stream = hearing(deepgram, http).stream(conn_options=ONE_TRY)
        stream.push_frame(audio(1_000, amplitude=8_000))
        stream.flush()
        finals = (e async for e in stream if e.type is SpeechEventType.FINAL_TRANSCRIPT)
        final = await anext(finals)
        await stream.aclose()
        await deepgram.bill.settled()
    assert final.alternatives[0].text == "I was about to say"
    assert deepgram.bill.total("audio_ms") == 1_000


async def test_each_channel_is_billed(http: aiohttp.ClientSession) -> None:
    async with (
        DeepgramSimulator() as deepgram,
        http.ws_connect(
            f"{deepgram.listen_url}?sample_rate=8000&channels=2&model=nova-3",
            headers={"Authorization": "Token x"},
        ) as socket,
    ):
        await socket.send_bytes(bytes(8_000 * 2 * 2))  # a second of two channels
        await socket.send_str(json.dumps({"type": "CloseStream"}))
        metadata = await socket.receive_json()
    assert metadata["duration"] == pytest.approx(1.0)
    assert deepgram.bill.total("audio_ms") == 2_000


async def test_audio_sent_before_the_provider_dies_is_billed(http: aiohttp.ClientSession) -> None:
    async with DeepgramSimulator() as deepgram:
        deepgram.listen.faults.add(Fault(dies_after=500))
        stream = hearing(deepgram, http).stream(conn_options=ONE_TRY)
        stream.push_frame(audio(2_000))
        with pytest.raises(APIError):
            [event async for event in stream]
        await stream.aclose()
    (row,) = deepgram.bill.rows
    assert row.ended == "died"
    assert 500 <= row.units["audio_ms"] <= 2_000


async def test_every_character_on_the_wire_is_billed(http: aiohttp.ClientSession) -> None:
    """The plugin sends word by word, each with a space: one more than was pushed."""
    text = "Hello there. How are you today?"
    async with DeepgramSimulator(speed=0) as deepgram:
        tts = speaking(deepgram, http)
        async with tts.stream(conn_options=ONE_TRY) as stream:
            stream.push_text(text)
            stream.end_input()
            frames = [event.frame async for event in stream]
        await tts.aclose()
    (row,) = deepgram.bill.rows
    assert (row.ended, row.model) == ("completed", "aura-2-andromeda-en")
    assert row.units == {"characters": len(text) + 1}
    heard_ms = round(1000 * sum(frame.duration for frame in frames))
    assert heard_ms == pytest.approx(65 * (len(text) + 1), abs=100)
    assert {frame.sample_rate for frame in frames} == {24_000}


async def test_a_speech_cut_short_is_billed_for_all_that_was_sent(
    http: aiohttp.ClientSession,
) -> None:
    text = "This is the first sentence. " + "And here is another one to follow. " * 20
    async with DeepgramSimulator(speed=2) as deepgram:
        tts = speaking(deepgram, http)
        async with tts.stream(conn_options=ONE_TRY) as stream:
            stream.push_text(text)
            stream.end_input()
            heard = await anext(stream)
        await tts.aclose()
        await deepgram.bill.settled()
    (row,) = deepgram.bill.rows
    assert heard.frame.duration > 0
    assert row.ended == "cancelled"
    assert row.units == {"characters": len(text)}


async def test_text_that_is_cleared_is_paid_for(http: aiohttp.ClientSession) -> None:
    async with (
        DeepgramSimulator(speed=1) as deepgram,
        http.ws_connect(
            f"{deepgram.speak_url}?model=aura-2-thalia-en&sample_rate=16000",
            headers={"Authorization": "Token x"},
        ) as socket,
    ):
        assert (await socket.receive_json())["type"] == "Metadata"
        for command in (
            {"type": "Speak", "text": "Forget about this sentence, please. "},
            {"type": "Clear"},
            {"type": "Speak", "text": "Hi."},
            {"type": "Flush"},
            {"type": "Close"},
        ):
            await socket.send_str(json.dumps(command))
        kinds = [
            json.loads(message.data)["type"]
            async for message in socket
            if message.type is aiohttp.WSMsgType.TEXT
        ]
    assert kinds == ["Cleared", "Flushed"]
    rows = [(row.ended, row.units["characters"]) for row in deepgram.bill.rows]
    assert rows == [("cleared", 36), ("completed", 3)]


async def test_a_synthesizer_that_dies_in_mid_audio_bills_its_text(
    http: aiohttp.ClientSession,
) -> None:
    async with DeepgramSimulator(speed=0) as deepgram:
        deepgram.speak.faults.add(Fault(dies_after=300))
        tts = speaking(deepgram, http)
        async with tts.stream(conn_options=ONE_TRY) as stream:
            stream.push_text("This answer will never be heard to its very end.")
            stream.end_input()
            with pytest.raises(APIError):
                [event async for event in stream]
        await tts.aclose()
    (row,) = deepgram.bill.rows
    assert (row.ended, row.units) == ("died", {"characters": 49})


async def test_a_text_in_one_request_is_billed_as_it_is(http: aiohttp.ClientSession) -> None:
    text = "One moment, please."
    async with DeepgramSimulator(speed=0) as deepgram:
        tts = speaking(deepgram, http)
        async with tts.synthesize(text, conn_options=ONE_TRY) as stream:
            frames = [event.frame async for event in stream]
        await tts.aclose()
    assert sum(frame.duration for frame in frames) == pytest.approx(0.065 * len(text), abs=0.1)
    (row,) = deepgram.bill.rows
    assert (row.ended, row.units) == ("completed", {"characters": len(text)})


async def test_a_refusal_costs_nothing(http: aiohttp.ClientSession) -> None:
    async with DeepgramSimulator() as deepgram:
        deepgram.speak.faults.add(Fault(status=429))
        deepgram.listen.faults.add(Fault(status=429))
        tts = speaking(deepgram, http)
        async with tts.synthesize("Hello", conn_options=ONE_TRY) as speech:
            with pytest.raises(APIError):
                await anext(speech)
        stream = hearing(deepgram, http).stream(conn_options=ONE_TRY)
        with pytest.raises(APIError):
            await anext(stream)
        await stream.aclose()
        await tts.aclose()
    assert [(row.service, row.ended) for row in deepgram.bill.rows] == [
        ("tts", "refused"),
        ("stt", "refused"),
    ]
    assert deepgram.bill.total("characters") + deepgram.bill.total("audio_ms") == 0

"""Streaming voices, by the real plugins: what we count is what the provider bills."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from livekit import rtc
from livekit.agents import APIConnectOptions, APIError
from livekit.agents.tts import SynthesizedAudio

from livekit.plugins.voicecost import _attribution
from livekit.plugins.voicecost._coverage import Turns
from tests.plugin.livekit_versions import not_on_1_5
from tests.plugin.metered_session import (
    RecordingMeter,
    close_plugin,
    metered_call,
    simulated_providers,
)
from tests.plugin.voices import BY_CHARACTERS, STREAMING, Voice, simulated_voice
from tests.simulators import LONG_ANSWER, Fault, Reply
from tests.simulators.speech import Pace
from voicecost_ledger.records import Basis, Modality, Outcome

ONE_TRY = APIConnectOptions(max_retry=0, timeout=5)
TEXT = "It is 5 °C in Zürich today. Take a hat with you, 世界! Do not stay out too long, please."

voices = pytest.mark.parametrize("name", STREAMING)
by_characters = pytest.mark.parametrize("name", BY_CHARACTERS)


@pytest.fixture
def meter() -> Iterator[RecordingMeter]:
    meter = RecordingMeter()
    with _attribution.scoped(meter):
        yield meter


async def speak(voice: Voice, text: str, options: APIConnectOptions = ONE_TRY) -> int:
    """Say a text as an LLM writes it; how much was heard, in milliseconds."""
    heard = 0.0
    async with voice.tts.stream(conn_options=options) as stream:
        for start in range(0, len(text), 7):
            stream.push_text(text[start : start + 7])
            await asyncio.sleep(0)
        stream.end_input()
        async for audio in stream:
            heard += audio.frame.duration
    return round(heard * 1000)


def is_billed(units: int, voice: Voice) -> bool:
    """Whether a leg has what the bill has; seconds are rounded for each sentence there."""
    rounded = len(voice.bill.rows) if voice.unit == "audio_ms" else 0
    return 0 <= units - voice.billed <= rounded and voice.billed > 0


async def settled(voice: Voice) -> None:
    """Close the plugin's connections, and let the provider notice."""
    await close_plugin(voice.tts)
    await voice.bill.settled()


@voices
async def test_a_text_that_is_spoken_to_its_end(
    name: str, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with simulated_voice(name, monkeypatch) as voice:
        heard_ms = await speak(voice, TEXT)
        await settled(voice)
    (leg,) = meter.of(Modality.TTS)
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.OBSERVED)
    assert is_billed(leg.usage[voice.unit], voice)
    assert leg.usage["double_width_characters"] == 2
    assert leg.usage["utf8_bytes"] == leg.usage["characters"] + 1 + 1 + 2 * 2
    assert leg.usage["markup_characters"] == 0
    assert abs(leg.usage["audio_ms"] - heard_ms) <= 60
    assert leg.attributes.streaming


@voices
async def test_a_text_that_is_cut_off_while_it_is_sent(
    name: str, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the sentence waits in the plugin: taken from its input, and never sent."""
    async with simulated_voice(name, monkeypatch) as voice:
        stream = voice.tts.stream(conn_options=ONE_TRY)
        stream.push_text("Thank you for asking, I am happy to help you. Let me go through it all. ")
        stream.push_text("First I look at your account, and at which opt")
        await anext(stream)
        await stream.aclose()
        await settled(voice)
    (leg,) = meter.of(Modality.TTS)
    assert leg.outcome is Outcome.INTERRUPTED
    if name == "resemble":
        assert leg.basis is Basis.ESTIMATED
        return
    assert leg.basis is Basis.OBSERVED
    assert leg.usage["characters"] == voice.billed
    assert 0 < voice.billed <= 120


@by_characters
async def test_a_text_that_is_cut_off_when_all_was_sent(
    name: str, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = Pace(first_byte_delay_ms=5, speed=5)
    async with simulated_voice(name, monkeypatch, pace=pace) as voice:
        stream = voice.tts.stream(conn_options=ONE_TRY)
        stream.push_text(LONG_ANSWER)
        stream.end_input()
        await anext(stream)
        await meter.until(lambda: meter.total(Modality.TTS, "characters") >= len(LONG_ANSWER))
        await stream.aclose()
        await settled(voice)
    (leg,) = meter.of(Modality.TTS)
    assert (leg.outcome, leg.basis) == (Outcome.INTERRUPTED, Basis.OBSERVED)
    assert leg.usage["characters"] == voice.billed >= len(LONG_ANSWER)


@by_characters
async def test_a_text_that_is_cut_off_before_it_is_heard(
    name: str, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with simulated_voice(name, monkeypatch) as voice:
        voice.faults.add(Fault(silent=True))
        stream = voice.tts.stream(conn_options=ONE_TRY)
        stream.push_text(TEXT)
        await meter.until(lambda: meter.total(Modality.TTS, "characters") > 20)
        await stream.aclose()
        await settled(voice)
    (leg,) = meter.of(Modality.TTS)
    assert (leg.outcome, leg.basis) == (Outcome.INTERRUPTED, Basis.OBSERVED)
    assert leg.usage["characters"] == voice.billed > 0
    assert leg.usage["audio_ms"] == 0


@voices
async def test_a_connection_that_dies_in_mid_audio(
    name: str, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with simulated_voice(name, monkeypatch) as voice:
        voice.faults.add(Fault(dies_after=1_000))
        stream = voice.tts.stream(conn_options=ONE_TRY)
        stream.push_text(TEXT)
        stream.end_input()
        with pytest.raises(APIError):
            async for _ in stream:
                pass
        await stream.aclose()
        await settled(voice)
    (leg,) = meter.of(Modality.TTS)
    assert leg.outcome is Outcome.FAILED
    if name != "resemble":
        assert leg.basis is Basis.OBSERVED
        assert leg.usage["characters"] == voice.billed > 0
    assert leg.usage["audio_ms"] > 0


@not_on_1_5("waits for a silent voice for ever")
@by_characters
async def test_a_retry_says_the_text_again_and_is_billed_again(
    name: str, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = APIConnectOptions(max_retry=1, retry_interval=0, timeout=0.2)
    async with simulated_voice(name, monkeypatch) as voice:
        voice.faults.add(Fault(silent=True))
        await speak(voice, TEXT, options)
        await settled(voice)
    silent, served = meter.of(Modality.TTS)
    assert (silent.outcome, silent.basis) == (Outcome.FAILED, Basis.OBSERVED)
    assert (served.outcome, served.basis) == (Outcome.SERVED, Basis.OBSERVED)
    assert [leg.usage["characters"] for leg in (silent, served)] == [
        row.units["characters"] for row in voice.bill.rows
    ]


@not_on_1_5("has voices that do not try a refused connection again")
@voices
async def test_a_refused_connection_costs_nothing(
    name: str, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = APIConnectOptions(max_retry=1, retry_interval=0, timeout=5)
    async with simulated_voice(name, monkeypatch) as voice:
        voice.faults.add(Fault(status=429))
        await speak(voice, TEXT, options)
        await settled(voice)
    refused, served = meter.of(Modality.TTS)
    assert (refused.outcome, served.outcome) == (Outcome.FAILED, Outcome.SERVED)
    assert not any(refused.usage.values())
    assert is_billed(served.usage[voice.unit], voice)


@by_characters
async def test_one_text_after_the_other_each_has_its_own_characters(
    name: str, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second after an interruption, on another socket, or in another context of the same."""
    async with simulated_voice(name, monkeypatch) as voice:
        voice.tts.prewarm()
        first = voice.tts.stream(conn_options=ONE_TRY)
        first.push_text(LONG_ANSWER)
        await anext(first)
        await first.aclose()
        await speak(voice, "It is sunny in Paris.")
        await speak(voice, "And it is raining in London.")
        await settled(voice)
    legs = meter.of(Modality.TTS)
    assert [leg.outcome for leg in legs] == [Outcome.INTERRUPTED, Outcome.SERVED, Outcome.SERVED]
    rows = [row.units["characters"] for row in voice.bill.rows]
    assert [leg.usage["characters"] for leg in legs] == rows


async def test_streams_that_share_a_socket_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ElevenLabs' socket is served by a task of the first stream, here of another session."""
    meters = [RecordingMeter() for _ in range(3)]
    texts = [LONG_ANSWER, "It is sunny in Paris.", TEXT]

    async def say(meter: RecordingMeter, voice: Voice, text: str) -> None:
        with _attribution.scoped(meter):
            await speak(voice, text)

    async with simulated_voice("elevenlabs", monkeypatch) as voice:
        await asyncio.gather(
            *(say(meter, voice, text) for meter, text in zip(meters, texts, strict=True))
        )
        await settled(voice)
        assert voice.simulator.connection_count == 1
    for meter, text in zip(meters, texts, strict=True):
        (leg,) = meter.of(Modality.TTS)
        assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.OBSERVED)
        assert leg.usage["characters"] == len(text) + 1
    assert sum(meter.total(Modality.TTS, "characters") for meter in meters) == voice.billed


async def test_a_budget_cuts_one_stream_of_a_shared_socket_and_not_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poor, rich = RecordingMeter(limit_nano_usd=100 * 30_000), RecordingMeter()

    async def say(meter: RecordingMeter, voice: Voice, text: str) -> None:
        with _attribution.scoped(meter):
            await speak(voice, text)

    async with simulated_voice("elevenlabs", monkeypatch) as voice:
        await asyncio.gather(say(poor, voice, LONG_ANSWER), say(rich, voice, LONG_ANSWER))
        await settled(voice)
        assert voice.simulator.connection_count == 1
    (cut,), (served,) = poor.of(Modality.TTS), rich.of(Modality.TTS)
    assert (cut.outcome, served.outcome) == (Outcome.CUT, Outcome.SERVED)
    assert served.usage["characters"] == len(LONG_ANSWER) + 1
    assert cut.usage["characters"] + served.usage["characters"] == voice.billed
    assert poor.total_nano_usd <= 100 * 30_000


@by_characters
async def test_a_barge_in_while_the_llm_writes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """LiveKit reports nothing; what the plugin took from its input would be too much."""
    async with (
        simulated_voice(name, monkeypatch) as voice,
        simulated_providers(Reply(text=LONG_ANSWER), token_delay_ms=6) as providers,
        metered_call(providers, tts=voice.tts) as call,
    ):
        speech = call.session.generate_reply(user_input="Please explain everything to me.")
        await call.loudspeaker.heard.wait()
        await call.meter.until(
            lambda: call.meter.of(Modality.LLM)[0].usage["completion_chunks"] >= 60
        )
        speech.interrupt()
        await speech
        await call.close()
        await settled(voice)
    (leg,) = call.meter.of(Modality.TTS)
    assert (leg.outcome, leg.basis) == (Outcome.INTERRUPTED, Basis.OBSERVED)
    assert 0 < leg.usage["characters"] == voice.billed < len(LONG_ANSWER)


@voices
async def test_the_whole_text_at_once_through_a_streaming_plugin(
    name: str, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`synthesize`: over HTTP, or as a stream of its own where there is no such endpoint."""
    async with simulated_voice(name, monkeypatch) as voice:
        async with voice.tts.synthesize(TEXT, conn_options=ONE_TRY) as stream:
            audio: list[SynthesizedAudio] = [each async for each in stream]
        await settled(voice)
    legs = [leg for leg in meter.of(Modality.TTS) if any(leg.usage.values())]
    (leg,) = legs
    assert audio
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.OBSERVED)
    assert is_billed(leg.usage[voice.unit], voice)


async def test_where_a_known_protocol_is_not_seen_the_text_still_counts(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin of the same name whose messages have changed: said once, and estimated."""
    monkeypatch.delenv("VOICECOST_RAISE_FAULTS")
    tables: Any = "livekit.plugins.voicecost._instrument_tts.TEXT_PROTOCOLS"
    from livekit.plugins.voicecost._wire_text import TextProtocol

    monkeypatch.setattr(tables, {"livekit.plugins.cartesia.tts": TextProtocol(lambda _: "")})
    async with simulated_voice("cartesia", monkeypatch) as voice:
        await speak(voice, TEXT)
        await settled(voice)
    (leg,) = meter.of(Modality.TTS)
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.ESTIMATED)
    assert abs(leg.usage["characters"] - voice.billed) <= 1


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"encoding": "pcm_24000"}, id="pcm"),
        pytest.param({"encoding": "opus_48000_64"}, id="opus"),
        pytest.param({"auto_mode": False}, id="word by word"),
        pytest.param({"model": "eleven_v3"}, id="dialogue"),
        pytest.param({"enable_ssml_parsing": True, "auto_mode": False}, id="markup"),
    ],
)
async def test_each_way_in_which_elevenlabs_can_be_asked(
    options: dict[str, Any], meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'It is sunny in Paris. <break time="1.0s"/> Take a hat with you, and do not stay long.'
    async with simulated_voice("elevenlabs", monkeypatch, **options) as voice:
        heard_ms = await speak(voice, text)
        await settled(voice)
    (leg,) = meter.of(Modality.TTS)
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.OBSERVED)
    assert leg.usage["characters"] == voice.billed > 0
    assert leg.usage["markup_characters"] == len('<break time="1.0s"/>')
    assert abs(leg.usage["audio_ms"] - heard_ms) <= 60


async def test_a_subclass_of_a_plugin_speaks_its_protocol(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with simulated_voice("cartesia", monkeypatch) as voice:

        class OurVoice(type(voice.tts)):
            """A user's own class."""

        voice.tts.__class__ = OurVoice
        await speak(voice, TEXT)
        await settled(voice)
    (leg,) = meter.of(Modality.TTS)
    assert leg.basis is Basis.OBSERVED
    assert leg.usage["characters"] == voice.billed > 0


async def test_cached_audio_is_nobodys_bill_and_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an application has synthesized beforehand, it plays as often as it likes."""

    async def cached() -> AsyncIterator[rtc.AudioFrame]:
        for _ in range(5):
            yield rtc.AudioFrame(bytes(2 * 2_400), 24_000, 1, 2_400)

    turns, gaps = Turns(), list[tuple[str, Modality]]()
    async with (
        simulated_voice("cartesia", monkeypatch) as voice,
        simulated_providers() as providers,
        metered_call(providers, tts=voice.tts) as call,
    ):
        call.session.on(
            "conversation_item_added",
            lambda event: gaps.extend(turns.gaps(call.session, event)),
        )
        await call.session.say("Please hold the line.", audio=cached())
        await call.close()
        await settled(voice)
    assert call.loudspeaker.heard.is_set()
    assert not call.meter.of(Modality.TTS)
    assert not gaps
    assert voice.billed == 0


@pytest.mark.parametrize("name", ["deepgram", "cartesia", "inference", "resemble"])
async def test_a_pooled_socket_that_was_closed_meanwhile_has_taken_nothing(
    name: str, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plugin finds out when it sends the first words; the retry says them on another socket."""
    options = APIConnectOptions(max_retry=1, retry_interval=0, timeout=5)
    async with simulated_voice(name, monkeypatch) as voice:
        await speak(voice, "It is sunny in Paris.")
        connections: Any = voice.tts
        for each in list(connections._pool._connections):
            socket = getattr(each, "ws", each)
            socket._response.connection.transport.abort()  # as when the network is gone
        await asyncio.sleep(0)
        await speak(voice, TEXT, options)
        await settled(voice)
    legs = meter.of(Modality.TTS)
    assert [leg.outcome for leg in legs] == [Outcome.SERVED, Outcome.FAILED, Outcome.SERVED]
    assert not any(legs[1].usage.values())
    assert is_billed(sum(leg.usage[voice.unit] for leg in legs if any(leg.usage.values())), voice)


async def test_text_that_leaves_after_its_stream_has_ended_is_counted(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ElevenLabs' plugin queues text for the task that serves its socket."""
    from livekit.plugins.elevenlabs.tts import _Connection

    send_content = _Connection.send_content
    stream: Any = None

    def send_and_interrupt(self: _Connection, content: Any) -> None:
        send_content(self, content)
        stream._task.cancel()  # before the task that sends has its turn

    async with simulated_voice("elevenlabs", monkeypatch) as voice:
        await speak(voice, "It is sunny in Paris.")
        monkeypatch.setattr(_Connection, "send_content", send_and_interrupt)
        stream = voice.tts.stream(conn_options=ONE_TRY)
        stream.push_text(TEXT)
        stream.end_input()
        with pytest.raises(asyncio.CancelledError):
            await stream._task
        await stream.aclose()
        monkeypatch.undo()
        await settled(voice)
    assert meter.of(Modality.TTS)[-1].outcome is Outcome.INTERRUPTED
    rows = [row.units["characters"] for row in voice.bill.rows]
    assert [leg.usage["characters"] for leg in meter.of(Modality.TTS)] == rows


@not_on_1_5("queues ElevenLabs' text in another way")
async def test_a_first_text_that_leaves_after_its_stream_has_ended_is_a_leg(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket's task was held up; what it then sends is spoken, and nobody hears it."""
    queued = asyncio.Event()
    free = asyncio.Event()

    async with simulated_voice("elevenlabs", monkeypatch) as voice:
        await speak(voice, "It is sunny in Paris.")
        voices: Any = voice.tts
        connection, *_ = await voices._current_connection()
        receive, send_content = connection._input_queue.recv, connection.send_content

        async def held_up() -> Any:
            message = await receive()
            await free.wait()
            return message

        def observed_send(content: Any) -> None:
            send_content(content)
            queued.set()

        connection._input_queue.recv = held_up
        connection.send_content = observed_send
        connection._input_queue.send_nowait(None)  # the task takes the next from there
        stream = voice.tts.stream(conn_options=ONE_TRY)
        stream.push_text(TEXT)
        await queued.wait()
        await stream.aclose()
        del stream
        gc.collect()  # LiveKit keeps no stream that is over
        assert len(meter.of(Modality.TTS)) == 1
        free.set()
        await settled(voice)
    rows = [row.units["characters"] for row in voice.bill.rows]
    assert [leg.usage["characters"] for leg in meter.of(Modality.TTS)] == rows
    assert len(rows) == 2
    assert meter.of(Modality.TTS)[-1].outcome is Outcome.INTERRUPTED

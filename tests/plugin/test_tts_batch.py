"""Voices that take a whole text: by characters, by tokens, by the second; how each of them ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from livekit.agents import APIConnectOptions, APIError
from livekit.agents.tts import StreamAdapter
from livekit.plugins.azure.tts import ProsodyConfig, StyleConfig

from livekit.plugins.voicecost import _attribution, _speech_tokens
from tests.plugin.metered_session import RecordingMeter
from tests.plugin.voices import Voice, simulated_voice
from tests.simulators import LONG_ANSWER, Fault, openai_speech
from tests.simulators.speech import Pace
from voicecost_ledger.records import Basis, Modality, Outcome

ONE_TRY = APIConnectOptions(max_retry=0, timeout=5)
TEXT = "It is 5 °C in Zürich today. Take a hat with you, 世界!"
SLOW = Pace(first_byte_delay_ms=5, speed=8)


@pytest.fixture
def meter() -> Iterator[RecordingMeter]:
    meter = RecordingMeter()
    with _attribution.scoped(meter):
        yield meter


async def say(voice: Voice, text: str, options: APIConnectOptions = ONE_TRY) -> None:
    async with voice.tts.synthesize(text, conn_options=options) as stream:
        async for _ in stream:
            pass


async def begin(voice: Voice, meter: RecordingMeter, text: str, *, heard_ms: int) -> None:
    """Say a text, and stop it when so much was received."""
    stream = voice.tts.synthesize(text, conn_options=ONE_TRY)
    await meter.until(lambda: meter.total(Modality.TTS, "audio_ms") >= heard_ms)
    await stream.aclose()
    await voice.bill.settled()


def off(ours: int, billed: int) -> float:
    return abs(ours - billed) / billed


@pytest.mark.parametrize("audio_format", ["mp3", "opus", "wav", "pcm", "flac", "aac"])
async def test_openai_by_characters_in_every_encoding(
    audio_format: Any, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with simulated_voice(
        "openai", monkeypatch, model="tts-1-hd", response_format=audio_format
    ) as voice:
        await say(voice, TEXT)
        await voice.bill.settled()
    (leg,) = meter.of(Modality.TTS)
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.OBSERVED)
    assert leg.usage["characters"] == voice.billed == len(TEXT)
    spoken_ms = len(TEXT) * 65
    # Encoders begin and end with a little silence; LiveKit's decoder drops the last of a FLAC.
    assert abs(leg.usage["audio_ms"] - spoken_ms) <= 120
    assert "output_tokens" not in leg.usage


async def test_openai_by_characters_cut_off(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with simulated_voice("openai", monkeypatch, pace=SLOW, model="tts-1") as voice:
        await begin(voice, meter, LONG_ANSWER, heard_ms=500)
    (leg,) = meter.of(Modality.TTS)
    assert (leg.outcome, leg.basis) == (Outcome.INTERRUPTED, Basis.OBSERVED)
    assert leg.usage["characters"] == voice.billed == len(LONG_ANSWER)


async def test_openai_by_tokens_as_it_reports_them(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with simulated_voice("openai", monkeypatch) as voice:
        await say(voice, TEXT)
        await voice.bill.settled()
    (leg,) = meter.of(Modality.TTS)
    assert leg.attributes.model == "gpt-4o-mini-tts"
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.REPORTED)
    for unit in ("input_tokens", "output_tokens", "output_audio_tokens"):
        assert leg.usage[unit] == voice.bill.total(unit) > 0


def told(monkeypatch: pytest.MonkeyPatch, *reports: tuple[int, int] | None) -> None:
    """Let OpenAI report that many tokens; None is what it bills."""
    event = openai_speech._event

    def lying(data: dict[str, Any]) -> bytes:
        if data["type"] != "speech.audio.done":
            return event(data)
        usages = [
            data["usage"] if each is None else {"input_tokens": each[0], "output_tokens": each[1]}
            for each in reports
        ]
        return b"".join(event(data | {"usage": usage}) for usage in usages)

    monkeypatch.setattr(openai_speech, "_event", lying)


@pytest.mark.parametrize("report", [(0, 0), (-12, -30), (14, -30), (-12, 90)])
async def test_tokens_that_cannot_be_are_estimated(
    report: tuple[int, int], meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, report)
    async with simulated_voice("openai", monkeypatch) as voice:
        await say(voice, TEXT)
        await voice.bill.settled()
    (leg,), (row,) = meter.of(Modality.TTS), voice.bill.rows
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.ESTIMATED)
    for unit in ("input_tokens", "output_tokens", "output_audio_tokens"):
        assert abs(leg.usage[unit] - row.units[unit]) <= leg.margins[unit]


async def test_tokens_of_a_text_and_none_of_its_sound_are_half_a_report(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, (17, 0))
    async with simulated_voice("openai", monkeypatch) as voice:
        await say(voice, TEXT)
        await voice.bill.settled()
    (leg,), (row,) = meter.of(Modality.TTS), voice.bill.rows
    assert (leg.basis, leg.usage["input_tokens"]) == (Basis.ESTIMATED, 17)
    assert set(leg.margins) == {"output_tokens", "output_audio_tokens"}
    assert abs(leg.usage["output_tokens"] - row.units["output_tokens"]) <= 3


@pytest.mark.parametrize("again", [None, (-1, -1)])
async def test_tokens_that_are_reported_twice_count_once(
    again: tuple[int, int] | None, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, None, again)
    async with simulated_voice("openai", monkeypatch) as voice:
        await say(voice, TEXT)
        await voice.bill.settled()
    (leg,), (row,) = meter.of(Modality.TTS), voice.bill.rows
    assert leg.basis is Basis.REPORTED
    for unit in ("input_tokens", "output_tokens"):
        assert leg.usage[unit] == row.units[unit]


@pytest.mark.parametrize("learned", [False, True], ids=["first of all", "after another"])
async def test_openai_by_tokens_cut_off(
    learned: bool, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LiveKit reports characters and no tokens: both are estimated, and say by how much."""
    async with simulated_voice(
        "openai", monkeypatch, pace=SLOW, response_format="pcm", instructions="Speak like a friend."
    ) as voice:
        if learned:
            voice.simulator.pace.speed = 60
            await say(voice, f"{LONG_ANSWER[:160]} Goodbye.")
        voice.simulator.pace.speed = 2
        stream = voice.tts.synthesize(LONG_ANSWER, conn_options=ONE_TRY)

        def heard(ms: int) -> bool:
            legs = meter.of(Modality.TTS)
            return len(legs) == 1 + learned and legs[-1].usage.get("audio_ms", 0) >= ms

        await meter.until(lambda: heard(2_800))
        voice.simulator.pace.speed = 0.2  # what is on its way when it is cut off is not received
        await meter.until(lambda: heard(3_000))
        await stream.aclose()
        await voice.bill.settled()
    leg, row = meter.of(Modality.TTS)[-1], voice.bill.rows[-1]
    assert (leg.outcome, leg.basis) == (Outcome.INTERRUPTED, Basis.ESTIMATED)
    assert off(leg.usage["output_audio_tokens"], row.units["output_audio_tokens"]) <= 0.05
    assert off(leg.usage["input_tokens"], row.units["input_tokens"]) <= 0.15
    margins = meter.records[-1][1]["margins"]
    for unit in ("input_tokens", "output_tokens", "output_audio_tokens"):
        assert abs(leg.usage[unit] - row.units[unit]) <= margins[unit]


async def test_openai_by_tokens_cut_off_before_it_answers(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with simulated_voice("openai", monkeypatch) as voice:
        voice.faults.add(Fault(silent=True))
        stream = voice.tts.synthesize(TEXT, conn_options=ONE_TRY)
        await voice.bill.accepted()
        await stream.aclose()
        await voice.bill.settled()
    (leg,), (row,) = meter.of(Modality.TTS), voice.bill.rows
    assert (leg.outcome, leg.basis) == (Outcome.INTERRUPTED, Basis.ESTIMATED)
    assert leg.usage["output_tokens"] == row.units["output_tokens"] == 0
    assert abs(leg.usage["input_tokens"] - row.units["input_tokens"]) <= 8


async def test_openai_that_dies_reports_nothing_and_its_retry_only_its_own(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = APIConnectOptions(max_retry=1, retry_interval=0, timeout=5)
    async with simulated_voice("openai", monkeypatch, response_format="pcm") as voice:
        voice.faults.add(Fault(dies_after=1_000))
        await say(voice, TEXT, options)
        await voice.bill.settled()
    died, served = meter.of(Modality.TTS)
    assert (died.outcome, died.basis) == (Outcome.FAILED, Basis.ESTIMATED)
    assert (served.outcome, served.basis) == (Outcome.SERVED, Basis.REPORTED)
    first, second = voice.bill.rows
    assert abs(died.usage["output_tokens"] - first.units["output_tokens"]) <= 2
    assert served.usage["output_tokens"] == second.units["output_tokens"]


@pytest.mark.parametrize("name", ["openai", "azure", "resemble"])
async def test_a_refused_request_costs_nothing(
    name: str, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = APIConnectOptions(max_retry=1, retry_interval=0, timeout=5)
    async with simulated_voice(name, monkeypatch) as voice:
        voice.faults.add(Fault(status=429))
        await say(voice, TEXT, options)
        await voice.bill.settled()
    refused, served = meter.of(Modality.TTS)
    assert (refused.outcome, served.outcome) == (Outcome.FAILED, Outcome.SERVED)
    assert not any(refused.usage.values())


async def test_azure_bills_the_document_without_speak_and_voice(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with simulated_voice(
        "azure",
        monkeypatch,
        voice="en-US-JennyNeural",
        prosody=ProsodyConfig(rate="fast", pitch="low"),
        style=StyleConfig(style="cheerful", degree=1.5),
        lexicon_uri="https://example.com/lexicon.xml",
    ) as voice:
        await say(voice, 'It is <break time="1s"/> sunny in 東京.')
        await voice.bill.settled()
    (leg,), (row,) = meter.of(Modality.TTS), voice.bill.rows
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.OBSERVED)
    assert leg.usage["characters"] == row.units["characters"]
    assert leg.usage["double_width_characters"] == row.units["double_width_characters"] == 2
    spoken = len("It is  sunny in 東京.")
    assert leg.usage["markup_characters"] == leg.usage["characters"] - spoken
    assert leg.attributes.voice == "en-US-JennyNeural"


async def test_azure_counts_as_a_customers_bill_did(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """480 characters for twelve of these:
    https://learn.microsoft.com/answers/questions/5493673"""
    async with simulated_voice("azure", monkeypatch) as voice:
        await say(voice, '<prosody rate="-10.00%">about </prosody>')
        await voice.bill.settled()
    (leg,) = meter.of(Modality.TTS)
    assert leg.usage["characters"] == voice.billed == 480 // 12


@pytest.mark.parametrize("ending", ["cut off", "dies", "silent"])
async def test_azure_by_characters_however_it_ends(
    ending: str, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with simulated_voice("azure", monkeypatch, pace=SLOW) as voice:
        if ending == "cut off":
            await begin(voice, meter, LONG_ANSWER, heard_ms=500)
        else:
            silent = ending == "silent"
            voice.faults.add(Fault(silent=True) if silent else Fault(dies_after=300))
            if silent:
                stream = voice.tts.synthesize(TEXT, conn_options=ONE_TRY)
                await voice.bill.accepted()
                await stream.aclose()
            else:
                with pytest.raises(APIError):
                    await say(voice, TEXT)
        await voice.bill.settled()
    (leg,) = meter.of(Modality.TTS)
    outcome = Outcome.FAILED if ending == "dies" else Outcome.INTERRUPTED
    assert (leg.outcome, leg.basis) == (outcome, Basis.OBSERVED)
    assert leg.usage["characters"] == voice.billed


async def test_resemble_by_the_second(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with simulated_voice("resemble", monkeypatch, use_streaming=False) as voice:
        await say(voice, TEXT)
        await voice.bill.settled()
    (leg,) = meter.of(Modality.TTS)
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.OBSERVED)
    assert leg.usage["audio_ms"] == voice.billed


@pytest.mark.parametrize("streaming", [False, True], ids=["whole text", "stream"])
async def test_resemble_cut_off_generates_on(
    streaming: bool, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing tells it to stop: what it was sent is spoken to its end, and billed."""
    pace = Pace(first_byte_delay_ms=1, speed=100, character_ms=80)
    async with simulated_voice("resemble", monkeypatch, pace=pace) as voice:
        if streaming:
            async with voice.tts.stream(conn_options=ONE_TRY) as known:
                known.push_text(LONG_ANSWER[:300])
                known.end_input()
                async for _ in known:
                    pass
            stream: Any = voice.tts.stream(conn_options=ONE_TRY)
            stream.push_text(LONG_ANSWER)
            stream.end_input()
            await meter.until(
                lambda: (
                    len(meter.of(Modality.TTS)) == 2
                    and meter.of(Modality.TTS)[-1].usage["characters"] > 600
                )
            )
        else:
            await say(voice, LONG_ANSWER[:300])
            stream = voice.tts.synthesize(LONG_ANSWER, conn_options=ONE_TRY)
            await voice.bill.accepted(2)
        first_rows = len(voice.bill.rows)
        await stream.aclose()
        if streaming:  # its socket stays open until the plugin needs the next one
            await voice.bill.settled()
        await voice.tts.aclose()
        await voice.bill.settled()
    assert first_rows >= 2
    leg = meter.of(Modality.TTS)[-1]
    assert (leg.outcome, leg.basis) == (Outcome.INTERRUPTED, Basis.ESTIMATED)
    margin = meter.records[-1][1]["margins"]["audio_ms"]
    assert abs(meter.total(Modality.TTS, "audio_ms") - voice.billed) <= margin
    assert off(meter.total(Modality.TTS, "audio_ms"), voice.billed) <= 0.05


@pytest.mark.parametrize("name", ["openai", "azure", "resemble"])
async def test_each_sentence_of_an_adapter_is_a_request(
    name: str, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"use_streaming": False} if name == "resemble" else {}
    async with simulated_voice(name, monkeypatch, **options) as voice:
        adapter = StreamAdapter(tts=voice.tts)
        async with adapter.stream() as stream:
            stream.push_text(LONG_ANSWER)
            stream.end_input()
            async for _ in stream:
                pass
        await voice.bill.settled()
    legs, rows = meter.of(Modality.TTS), voice.bill.rows
    assert len(legs) == len(rows) >= 3
    unit = "input_tokens" if name == "openai" else voice.unit
    assert [leg.usage[unit] for leg in legs] == [row.units[unit] for row in rows]


async def test_an_adapter_that_is_cut_off_has_only_the_sentences_it_asked_for(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with simulated_voice("azure", monkeypatch, pace=SLOW) as voice:
        stream = StreamAdapter(tts=voice.tts).stream()
        stream.push_text(LONG_ANSWER)
        await anext(stream)
        await stream.aclose()
        await voice.bill.settled()
    rows = [row.units["characters"] for row in voice.bill.rows]
    assert [leg.usage["characters"] for leg in meter.of(Modality.TTS)] == rows
    assert sum(rows) < len(LONG_ANSWER) // 2


async def test_the_first_byte_is_timed(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = Pace(first_byte_delay_ms=40, speed=0)
    async with simulated_voice("azure", monkeypatch, pace=pace) as voice:
        await say(voice, TEXT)
        await voice.bill.settled()
    assert meter.records[-1][1]["time_to_first_ms"] >= 40


async def test_a_request_that_is_cut_off_before_it_leaves_costs_nothing(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for one of its client's connections, which another request has."""
    connector = aiohttp.TCPConnector(limit=1)
    async with (
        aiohttp.ClientSession(connector=connector) as http,
        simulated_voice("azure", monkeypatch) as voice,
    ):
        plugin: Any = voice.tts
        plugin._session = http
        voice.faults.add(Fault(silent=True))
        first = voice.tts.synthesize(TEXT, conn_options=ONE_TRY)
        await voice.bill.accepted()
        waiting = voice.tts.synthesize(LONG_ANSWER, conn_options=ONE_TRY)
        await meter.until(lambda: len(meter.of(Modality.TTS)) == 2)
        await waiting.aclose()
        await first.aclose()
        await voice.bill.settled()
    sent, unsent = meter.of(Modality.TTS)
    assert sent.usage["characters"] == voice.billed == len(TEXT)
    assert (unsent.outcome, unsent.basis) == (Outcome.INTERRUPTED, Basis.OBSERVED)
    assert not any(unsent.usage.values())


async def test_a_voice_that_costs_by_its_sound_is_cut_when_the_money_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A text billed by characters is paid for when it is sent; here each piece of audio costs."""
    tokens = 60
    meter = RecordingMeter(limit_nano_usd=len(LONG_ANSWER) * 30_000 + 300 * 150 + tokens * 600)
    with _attribution.scoped(meter):
        async with simulated_voice(
            "openai", monkeypatch, pace=SLOW, response_format="pcm"
        ) as voice:
            await say(voice, LONG_ANSWER)
            await voice.bill.settled()
    (leg,), (row,) = meter.of(Modality.TTS), voice.bill.rows
    assert (leg.outcome, leg.basis) == (Outcome.CUT, Basis.ESTIMATED)
    assert row.ended == "cancelled"
    assert row.units["output_tokens"] <= 4 * tokens  # it would be a thousand


async def test_a_text_is_weighed_once_and_not_with_every_chunk_of_its_sound(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes half a millisecond for a long one, on the event loop."""
    weighed: list[str] = []
    weigh = _speech_tokens.weight

    def counted(text: str) -> int:
        weighed.append(text)
        return weigh(text)

    monkeypatch.setattr(_speech_tokens, "weight", counted)
    async with simulated_voice("openai", monkeypatch, pace=SLOW, response_format="pcm") as voice:
        await begin(voice, meter, LONG_ANSWER, heard_ms=500)
    (leg,) = meter.of(Modality.TTS)
    assert leg.usage["input_tokens"] > 0
    assert len(weighed) == 1

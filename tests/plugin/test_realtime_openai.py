"""OpenAI's Realtime API through the real plugin: tokens as the provider reports or bills them."""

from __future__ import annotations

from typing import Any

import pytest
from livekit.agents import Agent, function_tool
from livekit.plugins.openai import realtime

from tests.plugin.metered_session import SeenLeg
from tests.plugin.realtime_call import TOKENS, realtime_call, simulated_openai
from tests.simulators import LONG_ANSWER, Fault, Reply, ToolCall
from voicecost_ledger.records import Basis, LegStart, LegStop, Outcome

SHORT = Reply(text="Good morning, how can I help you?")


@pytest.fixture(autouse=True)
def faults_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")


def tokens(units: dict[str, int]) -> dict[str, int]:
    return {unit: units.get(unit, 0) for unit in TOKENS}


def all_tokens(legs: list[SeenLeg]) -> list[dict[str, int]]:
    return [tokens(leg.usage) for leg in legs]


async def test_each_response_is_a_leg_with_what_it_reports() -> None:
    async with simulated_openai(replies=[SHORT]) as openai:
        async with realtime_call(openai.model()) as call:
            first = call.session.generate_reply(user_input="Hello?")
            await first
            second = call.session.generate_reply(user_input="And who is this?")
            await second
            await call.close()
        rows = openai.rows()

    assert len(rows) == 2
    assert all_tokens(call.responses) == [tokens(row) for row in rows]
    assert rows[1]["input_audio_tokens"] > 0
    for leg in call.responses:
        assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.REPORTED)
        assert leg.attributes.model == "gpt-realtime"
    assert [leg.speech_id for leg in call.responses] == [first.id, second.id]


async def test_what_the_caller_says_is_answered_and_transcribed() -> None:
    said = "What is the weather like in Paris tomorrow?"
    async with simulated_openai(replies=[SHORT], transcripts=[said]) as openai:
        async with realtime_call(openai.model()) as call:
            speeches: list[Any] = []
            call.session.on("speech_created", speeches.append)
            call.caller.says(1_400)
            await call.meter.until(lambda: call.responses and call.responses[0].outcome)
            await call.meter.until(lambda: call.transcriptions[0].outcome)
            await call.close()
        (row,), (transcription,) = openai.rows(), openai.rows("stt")

    (response,), (stt,) = call.responses, call.transcriptions
    assert tokens(response.usage) == tokens(row)
    assert row["input_audio_tokens"] > 10
    assert response.speech_id == speeches[0].speech_handle.id
    assert stt.attributes.model == "gpt-4o-mini-transcribe"
    assert (stt.outcome, stt.basis) == (Outcome.SERVED, Basis.REPORTED)
    assert {unit: stt.usage[unit] for unit in transcription} == transcription


async def test_whisper_transcribes_by_time() -> None:
    async with simulated_openai(replies=[SHORT], transcripts=["Hello?"]) as openai:
        model = openai.model(input_audio_transcription={"model": "whisper-1"})
        async with realtime_call(model) as call:
            call.caller.says(900)
            await call.meter.until(lambda: call.transcriptions and call.transcriptions[0].outcome)
            await call.close()
        (transcription,) = openai.rows("stt")

    (stt,) = call.transcriptions
    assert stt.attributes.model == "whisper-1"
    assert stt.usage == {"audio_ms": transcription["audio_ms"]}
    assert stt.basis is Basis.REPORTED


async def test_turns_that_the_application_ends() -> None:
    """Without server VAD what was pushed is committed as it is, silence included."""
    async with simulated_openai(replies=[SHORT], transcripts=["Hello?"]) as openai:
        model = openai.model(turn_detection=None)
        manual: Any = {"turn_detection": "manual"}
        async with realtime_call(model, turn_handling=manual) as call:
            call.caller.says(1_200, silence_ms=300)
            await call.caller.until_heard()
            call.session.commit_user_turn(transcript_timeout=0)
            await call.meter.until(lambda: call.responses and call.responses[0].outcome)
            await call.meter.until(lambda: call.transcriptions[0].outcome)
            await call.close()
        (row,), (transcription,) = openai.rows(), openai.rows("stt")

    (response,), (stt,) = call.responses, call.transcriptions
    assert tokens(response.usage) == tokens(row)
    assert {unit: stt.usage[unit] for unit in transcription} == transcription
    assert -(-stt.usage["audio_ms"] // 100) == transcription["input_audio_tokens"]


@pytest.mark.skipif(
    not hasattr(realtime, "InferenceRealtimeModel"), reason="this LiveKit hosts no realtime model"
)
async def test_livekit_inference_speaks_the_same_protocol() -> None:
    async with simulated_openai(replies=[SHORT]) as openai:
        model = realtime.InferenceRealtimeModel(
            "openai/gpt-realtime",
            base_url=openai.simulator.base_url,
            api_key="key",
            api_secret="a-secret-of-more-than-thirty-two-bytes",
            http_session=openai.http,
        )
        async with realtime_call(model) as call:
            await call.session.generate_reply(user_input="Hello?")
            await call.close()
        (row,) = openai.rows()

    (leg,) = call.responses
    assert tokens(leg.usage) == tokens(row)
    assert (leg.attributes.provider, leg.attributes.model) == ("livekit", "openai/gpt-realtime")


async def test_how_soon_a_response_answers_is_recorded() -> None:
    async with simulated_openai(replies=[SHORT], first_token_delay_ms=60) as openai:
        async with realtime_call(openai.model()) as call:
            await call.session.generate_reply(user_input="Hello?")
            await call.close()
        assert len(openai.rows()) == 1
    (stop,) = [fields for make, fields in call.meter.records if make is LegStop]
    assert 50 <= stop["time_to_first_ms"] <= stop["duration_ms"]


async def test_an_interrupted_response_costs_what_its_report_says() -> None:
    async with simulated_openai(replies=[Reply(text=LONG_ANSWER)], done_delay_ms=20) as openai:
        async with realtime_call(openai.model()) as call:
            speech = call.session.generate_reply(user_input="Please explain everything to me.")
            await call.loudspeaker.heard.wait()
            await call.session.interrupt()
            await speech
            await call.meter.until(lambda: call.responses[0].outcome)
            await call.close()
        (row,) = openai.rows()

    (leg,) = call.responses
    assert (leg.outcome, leg.basis) == (Outcome.INTERRUPTED, Basis.REPORTED)
    assert tokens(leg.usage) == tokens(row)


async def test_a_caller_who_talks_over_the_answer() -> None:
    replies = [Reply(text=LONG_ANSWER)]
    async with simulated_openai(replies=replies, transcripts=["Tell me all.", "Stop!"]) as openai:
        async with realtime_call(openai.model()) as call:
            call.caller.says(900)
            await call.loudspeaker.heard.wait()
            call.caller.says(1_200)
            await call.meter.until(lambda: len(call.responses) == 2)
            await call.close()
        rows, transcriptions = openai.rows(), openai.rows("stt")

    first, _ = call.responses
    assert (first.outcome, first.basis) == (Outcome.INTERRUPTED, Basis.REPORTED)
    assert tokens(first.usage) == tokens(rows[0])
    assert len(call.transcriptions) == len(transcriptions) == 2


async def test_a_response_cancelled_before_its_first_word() -> None:
    async with simulated_openai(first_token_delay_ms=300) as openai:
        async with realtime_call(openai.model()) as call:
            speech = call.session.generate_reply(user_input="Please explain everything to me.")
            await call.meter.until(lambda: call.responses)
            await call.session.interrupt()
            await speech
            await call.meter.until(lambda: call.responses[0].outcome)
            await call.close()
        (row,) = openai.rows()

    (leg,) = call.responses
    assert leg.outcome is Outcome.INTERRUPTED
    assert tokens(leg.usage) == tokens(row)
    assert leg.usage["output_tokens"] == 0 < leg.usage["input_tokens"]


class Forecaster(Agent):
    def __init__(self) -> None:
        super().__init__(instructions="You tell people about the weather.")

    @function_tool
    async def get_weather(self, city: str, day: str = "today") -> str:
        """The weather forecast of a city.

        Args:
            city: Where, in English.
            day: Which day of the week, or today.
        """
        return f"It will be sunny in {city}."


async def test_a_tool_call_is_two_responses() -> None:
    weather = ToolCall(name="get_weather", arguments={"city": "Paris", "day": "tomorrow"})
    reply = Reply(match="weather", text="It will be sunny in Paris.", tool_call=weather)
    async with simulated_openai(replies=[reply]) as openai:
        async with realtime_call(openai.model(), agent=Forecaster()) as call:
            await call.session.generate_reply(user_input="How is the weather in Paris tomorrow?")
            await call.close()
        rows = openai.rows()

    assert len(rows) == 2
    assert all_tokens(call.responses) == [tokens(row) for row in rows]
    assert call.responses[0].usage["output_audio_tokens"] == 0
    assert all(leg.speech_id is not None for leg in call.responses)


async def test_a_leg_starts_once_and_stops_last() -> None:
    async with (
        simulated_openai(replies=[SHORT], transcripts=["Hello?"]) as openai,
        realtime_call(openai.model()) as call,
    ):
        call.caller.says(900)
        await call.meter.until(lambda: call.responses and call.responses[0].outcome)
        await call.close()
    assert len(call.meter.legs) == 2
    for number in call.meter.legs:
        kinds = [make for make, fields in call.meter.records if fields["leg"] == number]
        assert kinds[0] is LegStart
        assert kinds.count(LegStart) == kinds.count(LegStop) == 1
        assert kinds[-1] is LegStop


async def test_a_failed_response_costs_nothing() -> None:
    async with simulated_openai(replies=[SHORT]) as openai:
        openai.simulator.faults.add(Fault(status=500))
        async with realtime_call(openai.model()) as call:
            await call.session.generate_reply(user_input="Hello?")
            await call.close()
        rows = openai.rows()

    assert call.responses[0].outcome is Outcome.FAILED
    assert all_tokens(call.responses) == [tokens(row) for row in rows]
    assert not any(call.responses[0].usage.values())

"""What LiveKit's own account makes of realtime sessions, and why ours differs."""

from __future__ import annotations

import pytest

from livekit.plugins.voicecost._control import ControlTotals
from tests.plugin.livekit_versions import not_on_1_5
from tests.plugin.realtime_call import RealtimeCall, realtime_call, simulated_openai
from tests.plugin.test_realtime_google import simulated_google
from tests.simulators import LONG_ANSWER, Reply

# Google's plugin itself, at every connection.
pytestmark = pytest.mark.filterwarnings("ignore:Setting `LiveConnectConfig:DeprecationWarning")


@pytest.fixture(autouse=True)
def faults_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")


def followed(call: RealtimeCall) -> ControlTotals:
    control = ControlTotals()
    call.meter.watch_legs(control.opened)
    call.session.on("session_usage_updated", lambda event: control.updated(event.usage))
    return control


def causes(control: ControlTotals) -> dict[str, dict[str, int]]:
    return {f"{each.modality} {each.unit}": each.causes for each in control.differences()}


@not_on_1_5("does not count the transcriptions of a realtime session")
async def test_both_count_a_response_that_is_reported() -> None:
    replies = [Reply(match="hello", text="Good morning!"), Reply(text=LONG_ANSWER)]
    async with simulated_openai(replies=replies, transcripts=["Hello?"]) as openai:
        async with realtime_call(openai.model()) as call:
            control = followed(call)
            call.caller.says(900)
            await call.meter.until(lambda: call.responses and call.responses[0].outcome)
            await call.meter.until(lambda: call.transcriptions[0].outcome)
            speech = call.session.generate_reply(user_input="Please explain everything to me.")
            await call.meter.until(lambda: len(call.responses) == 2)
            await call.meter.until(lambda: call.responses[1].usage["output_tokens"] > 50)
            await call.session.interrupt()
            await speech
            await call.meter.until(lambda: call.responses[1].outcome)
            await call.close()
        (audio_ms,) = [units.pop("audio_ms", 1_400) for units in openai.rows("stt")]

    assert causes(control) == {
        "stt audio_ms": {"not_in_usage": audio_ms},  # billed by token, and measured by us
        "stt input_tokens": {},
        "stt output_tokens": {},
        "realtime input_tokens": {},
        "realtime output_tokens": {},
    }


async def test_only_we_count_a_session_that_is_closed_in_mid_speech() -> None:
    replies = [Reply(text=LONG_ANSWER)]
    async with simulated_openai(replies=replies, done_delay_ms=60_000) as openai:
        async with realtime_call(openai.model()) as call:
            control = followed(call)
            call.session.generate_reply(user_input="Please explain everything to me.")
            await call.meter.until(lambda: call.responses)
            await call.meter.until(lambda: call.responses[0].usage["output_tokens"] > 50)
            await call.close()

        assert len(openai.rows()) == 1

    (leg,) = call.responses
    assert causes(control)["realtime output_tokens"] == {"interrupted": leg.usage["output_tokens"]}


async def test_livekit_adds_running_totals_up_and_leaves_thoughts_out() -> None:
    reply = Reply(text="It is noon.", thoughts="The caller wants to know the time of day.")
    async with simulated_google(replies=[reply], usage_reports=3) as google:
        async with realtime_call(google.model()) as call:
            control = followed(call)
            await call.session.generate_reply(user_input="What time is it?")
            await call.close()
        assert len(google.rows) == 1

    (leg,) = call.responses
    found = causes(control)
    assert found["realtime input_tokens"] == {"not_in_usage": -2 * leg.usage["input_tokens"]}
    assert found["realtime output_tokens"].keys() == {"not_in_usage"}


async def test_a_transcription_that_never_came_is_no_fault() -> None:
    said = ["Hello?", "Are you there?"]
    async with simulated_openai(transcripts=said, transcription_delay_ms=30) as openai:
        async with realtime_call(openai.model()) as call:
            control = followed(call)
            call.caller.says(900)
            await call.meter.until(lambda: call.transcriptions)
            openai.simulator.transcription_delay_ms = 60_000
            call.caller.says(900)
            await call.meter.until(lambda: len(call.transcriptions) == 2)
            await call.meter.until(lambda: call.transcriptions[0].outcome)
            await call.close()
        assert len(openai.rows("stt")) == 2

    found = causes(control)
    assert "unexplained" not in found["stt input_tokens"]
    assert "unexplained" not in found["stt output_tokens"]

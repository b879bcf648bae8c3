"""Google's Live API through the real plugin and google-genai's own client."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from google.genai.types import HttpOptions
from livekit.agents import Agent, function_tool
from livekit.plugins.google.realtime import RealtimeModel

from tests.plugin.livekit_versions import LIVEKIT_1_5
from tests.plugin.metered_session import SeenLeg
from tests.plugin.realtime_call import ONE_TRY_MORE, observed, realtime_call
from tests.simulators import LONG_ANSWER, Fault, Reply, ToolCall
from tests.simulators.google_live import GoogleLiveSimulator
from voicecost_ledger.records import Basis, Outcome

# The plugin itself, at every connection.
pytestmark = pytest.mark.filterwarnings("ignore:Setting `LiveConnectConfig:DeprecationWarning")

SHORT = Reply(match="hello", text="Good morning, how can I help you?")
LONG = Reply(text=LONG_ANSWER)


@pytest.fixture(autouse=True)
def faults_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")


@dataclass
class SimulatedGoogle:
    simulator: GoogleLiveSimulator

    def model(self, **options: Any) -> RealtimeModel:
        http = HttpOptions(
            base_url=self.simulator.base_url, async_client_args={"ssl": self.simulator.tls}
        )
        return RealtimeModel(
            model="gemini-2.5-flash-native-audio-preview-12-2025",
            api_key="x",
            http_options=http,
            conn_options=ONE_TRY_MORE,
            **options,
        )

    @property
    def rows(self) -> list[dict[str, int]]:
        return [row.units for row in self.simulator.bill.rows]


@asynccontextmanager
async def simulated_google(**options: Any) -> AsyncGenerator[SimulatedGoogle]:
    async with observed(), GoogleLiveSimulator(**options) as simulator:
        yield SimulatedGoogle(simulator)


def assert_exact(leg: SeenLeg, row: dict[str, int]) -> None:
    assert {unit: leg.usage.get(unit, 0) for unit in row} == row


async def test_each_turn_is_a_leg_with_what_it_reports() -> None:
    async with simulated_google(replies=[SHORT]) as google:
        async with realtime_call(google.model()) as call:
            first = call.session.generate_reply(user_input="Hello?")
            await first
            second = call.session.generate_reply(user_input="Hello, are you there?")
            await second
            await call.close()
        rows = google.rows

    assert len(call.responses) == len(rows) == 2
    for leg, row in zip(call.responses, rows, strict=True):
        assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.REPORTED)
        assert_exact(leg, row)
    assert [leg.speech_id for leg in call.responses] == [first.id, second.id]
    assert call.responses[0].attributes.host.startswith("127.0.0.1:")


async def test_what_the_caller_says_is_answered() -> None:
    async with simulated_google(replies=[SHORT], transcripts=["Hello?"]) as google:
        async with realtime_call(google.model()) as call:
            speeches: list[Any] = []
            call.session.on("speech_created", speeches.append)
            call.caller.says(1_000)
            await call.meter.until(lambda: call.responses and call.responses[0].outcome)
            await call.close()
        rows = google.rows

    (leg,), (row,) = call.responses, rows
    assert row["input_audio_tokens"] > 10
    assert_exact(leg, row)
    assert leg.speech_id == speeches[0].speech_handle.id


async def test_thoughts_are_output_that_nobody_is_shown() -> None:
    """LiveKit's own metrics leave them out."""
    reply = Reply(text="It is noon.", thoughts="The caller wants to know the time of day.")
    async with simulated_google(replies=[reply]) as google:
        async with realtime_call(google.model()) as call:
            await call.session.generate_reply(user_input="What time is it?")
            await call.close()
        rows = google.rows

    (leg,), (row,) = call.responses, rows
    assert row["reasoning_tokens"] > 5
    assert_exact(leg, row)


async def test_a_turn_that_reports_again_and_again_is_billed_once() -> None:
    async with simulated_google(replies=[LONG], usage_reports=5) as google:
        async with realtime_call(google.model()) as call:
            speech = call.session.generate_reply(user_input="Please explain everything to me.")
            await call.meter.until(lambda: call.responses and call.responses[0].outcome)
            speech.interrupt()
            await speech
            await call.close()
        rows = google.rows

    (leg,), (row,) = call.responses, rows
    assert leg.basis is Basis.REPORTED
    assert_exact(leg, row)


async def test_a_caller_who_talks_over_the_answer() -> None:
    async with simulated_google(
        replies=[SHORT, LONG], transcripts=["Tell me all.", "Hello?"]
    ) as google:
        async with realtime_call(google.model()) as call:
            call.caller.says(800)
            await call.loudspeaker.heard.wait()
            call.caller.says(800)
            await call.meter.until(lambda: len(call.responses) == 2)
            await call.meter.until(lambda: call.responses[1].outcome)
            await call.close()
        rows = google.rows

    first, second = call.responses
    assert (first.outcome, first.basis) == (Outcome.INTERRUPTED, Basis.REPORTED)
    assert second.outcome is Outcome.SERVED
    for leg, row in zip(call.responses, rows, strict=True):
        assert_exact(leg, row)


class _Forecaster(Agent):
    def __init__(self) -> None:
        super().__init__(instructions="You tell people about the weather.")

    @function_tool
    async def get_weather(self, city: str) -> str:
        """The weather of a city."""
        return f"It is sunny in {city}."


async def test_a_tool_call_and_its_result_are_two_turns() -> None:
    weather = ToolCall(name="get_weather", arguments={"city": "Paris"})
    reply = Reply(match="weather", text="It is sunny in Paris.", tool_call=weather)
    async with simulated_google(replies=[reply]) as google:
        async with realtime_call(google.model(), agent=_Forecaster()) as call:
            call.session.generate_reply(user_input="How is the weather in Paris?")
            await call.meter.until(lambda: len(call.responses) == 2)
            await call.meter.until(lambda: call.responses[1].outcome)
            await call.close()
        rows = google.rows

    assert len(rows) == 2
    for leg, row in zip(call.responses, rows, strict=True):
        assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.REPORTED)
        assert_exact(leg, row)
        assert leg.speech_id is not None


async def test_a_session_closed_in_mid_speech() -> None:
    async with simulated_google(replies=[SHORT, LONG], token_delay_ms=8) as google:
        async with realtime_call(google.model()) as call:
            await call.session.generate_reply(user_input="Hello?")
            call.session.generate_reply(user_input="Please explain everything to me.")
            await call.meter.until(lambda: len(call.responses) == 2)
            await call.meter.until(lambda: call.responses[1].usage["output_audio_tokens"] > 100)
            await call.close()
        rows = google.rows

    leg, row = call.responses[1], rows[1]
    assert (leg.outcome, leg.basis) == (Outcome.INTERRUPTED, Basis.ESTIMATED)
    assert abs(leg.usage["input_tokens"] - row["input_tokens"]) <= 8
    assert abs(leg.usage["output_tokens"] - row["output_tokens"]) <= 12


async def test_a_connection_that_breaks_is_billed_what_was_said() -> None:
    async with simulated_google(replies=[SHORT, LONG]) as google:
        async with realtime_call(google.model()) as call:
            await call.session.generate_reply(user_input="Hello?")
            google.simulator.faults.add(Fault(dies_after=200))
            call.session.generate_reply(user_input="Please explain everything to me.")
            await call.meter.until(lambda: len(call.responses) == 2)
            await call.meter.until(lambda: call.responses[1].outcome)
            await call.session.generate_reply(user_input="Hello again?")
            await call.close()
        rows = google.rows

    leg, row = call.responses[1], rows[1]
    # The plugin of LiveKit 1.5 does not tell a broken connection from one that it leaves.
    broke = Outcome.INTERRUPTED if LIVEKIT_1_5 else Outcome.FAILED
    assert (leg.outcome, leg.basis) == (broke, Basis.ESTIMATED)
    assert abs(leg.usage["input_tokens"] - row["input_tokens"]) <= 8
    assert abs(leg.usage["output_tokens"] - row["output_tokens"]) <= 12
    assert_exact(call.responses[2], rows[2])

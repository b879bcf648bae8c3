"""Every way a realtime response or session can end, against what the provider bills for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from livekit.agents import Agent, RunContext, function_tool, llm
from livekit.plugins.deepgram import TTS

from tests.plugin.livekit_versions import not_on_1_5
from tests.plugin.metered_session import NANO_USD, SeenLeg
from tests.plugin.realtime_call import TOKENS, realtime_call, simulated_openai
from tests.simulators import LONG_ANSWER, DeepgramSimulator, Fault, Reply, ToolCall
from voicecost_ledger.records import Basis, Modality, Outcome

SHORT = Reply(match="hello", text="Good morning, how can I help you?")
LONG = Reply(text=LONG_ANSWER)


@pytest.fixture(autouse=True)
def faults_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")


def tokens(units: dict[str, int]) -> dict[str, int]:
    return {unit: units.get(unit, 0) for unit in TOKENS}


def assert_close(leg: SeenLeg, row: dict[str, int], **margins: int) -> None:
    for unit, within in margins.items():
        assert abs(leg.usage[unit] - row[unit]) <= within, (unit, leg.usage[unit], row[unit])


async def test_a_session_closed_in_mid_speech_is_billed_what_its_last_report_says() -> None:
    """The report comes while the socket is being closed, where the plugin looks no more."""
    async with simulated_openai(replies=[SHORT, LONG]) as openai:
        async with realtime_call(openai.model()) as call:
            await call.session.generate_reply(user_input="Hello?")
            call.session.generate_reply(user_input="Please explain everything to me.")
            await call.meter.until(lambda: len(call.responses) == 2)
            await call.meter.until(lambda: call.responses[1].usage["output_audio_tokens"] > 40)
            await call.close()
        rows = openai.rows()

    leg = call.responses[1]
    assert (leg.outcome, leg.basis) == (Outcome.INTERRUPTED, Basis.REPORTED)
    assert tokens(leg.usage) == tokens(rows[1])


async def test_a_session_closed_without_a_last_report() -> None:
    """The provider is slow to say what it was: the sound that came is the measure."""
    async with simulated_openai(replies=[SHORT, LONG]) as openai:
        async with realtime_call(openai.model()) as call:
            await call.session.generate_reply(user_input="Hello?")
            openai.simulator.done_delay_ms = 60_000
            call.session.generate_reply(user_input="Please explain everything to me.")
            await call.meter.until(lambda: len(call.responses) == 2)
            await call.meter.until(lambda: call.responses[1].usage["output_audio_tokens"] > 100)
            await call.close()
        rows = openai.rows()

    leg = call.responses[1]
    assert (leg.outcome, leg.basis) == (Outcome.INTERRUPTED, Basis.ESTIMATED)
    assert_close(leg, rows[1], input_tokens=8, input_audio_tokens=0)
    assert_close(leg, rows[1], output_tokens=12, output_audio_tokens=8)


@not_on_1_5("never ends the speech of a realtime connection that died")
async def test_a_socket_that_dies_is_billed_what_was_said_and_the_session_goes_on() -> None:
    async with simulated_openai(replies=[SHORT, LONG]) as openai:
        async with realtime_call(openai.model()) as call:
            await call.session.generate_reply(user_input="Hello?")
            openai.simulator.faults.add(Fault(dies_after=300))
            await call.session.generate_reply(user_input="Please explain everything to me.")
            await call.meter.until(lambda: call.responses[1].outcome)
            await call.session.generate_reply(user_input="Hello again?")
            await call.close()
        rows = openai.rows()

    died, after = call.responses[1], call.responses[2]
    assert (died.outcome, died.basis) == (Outcome.FAILED, Basis.ESTIMATED)
    assert_close(died, rows[1], input_tokens=8, output_tokens=15, output_audio_tokens=8)
    assert (after.outcome, after.basis) == (Outcome.SERVED, Basis.REPORTED)
    assert tokens(after.usage) == tokens(rows[2])


async def test_a_transcription_that_never_comes_is_owed() -> None:
    options = {"transcription_delay_ms": 60_000}
    async with simulated_openai(replies=[SHORT], transcripts=["Hello?"], **options) as openai:
        async with realtime_call(openai.model()) as call:
            call.caller.says(1_500)
            await call.meter.until(lambda: call.responses and call.responses[0].outcome)
            await call.close()
        (row,) = openai.rows("stt")

    (leg,) = call.transcriptions
    assert (leg.outcome, leg.basis) == (Outcome.INTERRUPTED, Basis.ESTIMATED)
    assert_close(leg, row, input_audio_tokens=1, input_tokens=1)


async def test_a_session_that_is_connected_anew_after_a_while() -> None:
    async with simulated_openai(replies=[SHORT]) as openai:
        async with realtime_call(openai.model(max_session_duration=0.4)) as call:
            await call.session.generate_reply(user_input="Hello?")
            while len(openai.simulator.bill.rows) < 3:
                await call.session.generate_reply(user_input="Hello again?")
            await call.close()
        rows = openai.rows()

    assert [tokens(leg.usage) for leg in call.responses] == [tokens(row) for row in rows]
    assert {leg.basis for leg in call.responses} == {Basis.REPORTED}


@not_on_1_5("speaks a response that later versions discard")
async def test_a_response_that_livekit_discards_is_billed() -> None:
    """It was interrupted before the provider had created it: no metric tells of it."""
    options = {"created_delay_ms": 60, "first_token_delay_ms": 200}
    async with simulated_openai(replies=[LONG], **options) as openai:
        async with realtime_call(openai.model()) as call:
            speech = call.session.generate_reply(user_input="Please explain everything to me.")
            await openai.simulator.asked.wait()
            speech.interrupt()
            await speech
            await call.meter.until(lambda: call.responses and call.responses[0].outcome)
            await call.close()
        (row,) = openai.rows()

    (leg,) = call.responses
    assert (leg.outcome, leg.basis) == (Outcome.DISCARDED, Basis.REPORTED)
    assert tokens(leg.usage) == tokens(row)


async def test_two_sessions_with_one_model_pay_for_themselves() -> None:
    async with simulated_openai(replies=[SHORT]) as openai:
        model = openai.model()
        async with realtime_call(model) as one, realtime_call(model) as other:
            await one.session.generate_reply(user_input="Hello?")
            await other.session.generate_reply(user_input="Hello there, who is this?")
            await other.session.generate_reply(user_input="Hello again?")
            await one.close()
            await other.close()
        rows = openai.rows()

    assert [tokens(leg.usage) for leg in one.responses] == [tokens(rows[0])]
    assert [tokens(leg.usage) for leg in other.responses] == [tokens(row) for row in rows[1:]]


class _Clerk(Agent):
    def __init__(self, other: Agent) -> None:
        super().__init__(instructions="You help people to find the right colleague.")
        self._other = other

    @function_tool
    async def transfer(self, context: RunContext[None]) -> Agent:
        """Hand the call over to a colleague."""
        return self._other


class _Colleague(Agent):
    async def on_enter(self) -> None:
        self.session.generate_reply(user_input="Say hello.")


async def test_agents_with_realtime_models_of_their_own() -> None:
    transfer = Reply(match="colleague", text="Goodbye.", tool_call=ToolCall(name="transfer"))
    async with simulated_openai(replies=[transfer, SHORT]) as openai:
        small = openai.model(model="gpt-realtime-mini")
        colleague = _Colleague(instructions="You are a colleague.", llm=small)
        async with realtime_call(openai.model(), agent=_Clerk(colleague)) as call:
            await call.session.generate_reply(user_input="Please get me a colleague.")
            await call.meter.until(lambda: "gpt-realtime-mini" in _models(call.responses))
            await call.meter.until(lambda: call.responses[-1].outcome)
            await call.close()
        rows = openai.simulator.bill.rows

    assert _models(call.responses) == [row.model for row in rows]
    for leg, row in zip(call.responses, rows, strict=True):
        assert tokens(leg.usage) == tokens(row.units)


def _models(legs: list[SeenLeg]) -> list[str]:
    return [leg.attributes.model for leg in legs]


async def test_a_model_that_writes_and_a_voice_that_speaks() -> None:
    async with simulated_openai(replies=[SHORT]) as openai, DeepgramSimulator() as deepgram:
        tts = TTS(base_url=deepgram.speak_url, api_key="x", http_session=openai.http)
        model = openai.model(modalities=["text"])
        async with realtime_call(model, tts=tts) as call:
            await call.session.generate_reply(user_input="Hello?")
            await call.close()
        await tts.aclose()
        (row,) = openai.rows()

    (leg,) = call.responses
    assert tokens(leg.usage) == tokens(row)
    assert leg.usage["output_audio_tokens"] == 0 < leg.usage["output_tokens"]
    (voice,) = call.meter.of(Modality.TTS)
    assert voice.usage["characters"] == deepgram.bill.total("characters") > 0
    assert voice.speech_id == leg.speech_id


@not_on_1_5("has no fallback between realtime models")
async def test_a_fallback_adapter_is_no_model_of_its_own() -> None:
    async with simulated_openai(replies=[SHORT]) as openai:
        first = openai.model(conn_options=_no_retry())
        second = openai.model(model="gpt-realtime-mini")
        adapter = llm.RealtimeModelFallbackAdapter([first, second])
        async with realtime_call(adapter) as call:
            await call.session.generate_reply(user_input="Hello?")
            openai.simulator.drop_connections()
            await _until_second(call.session)
            await call.session.generate_reply(user_input="Hello again?")
            await call.close()
        rows = openai.simulator.bill.rows

    assert _models(call.responses) == [row.model for row in rows]
    assert _models(call.responses)[-1] == "gpt-realtime-mini"
    for leg, row in zip(call.responses, rows, strict=True):
        assert tokens(leg.usage) == tokens(row.units)


def _no_retry() -> Any:
    from livekit.agents.types import APIConnectOptions

    return APIConnectOptions(max_retry=0, timeout=5)


async def _until_second(session: Any) -> None:
    async with asyncio.timeout(5):
        while session.llm._active_instance.model != "gpt-realtime-mini":  # noqa: ASYNC110 (no event)
            await asyncio.sleep(0.01)


async def test_a_response_is_cut_when_the_money_is_gone() -> None:
    limit = 200 * NANO_USD["output_tokens"]
    async with simulated_openai(replies=[LONG], token_delay_ms=10) as openai:
        async with realtime_call(openai.model(), limit_nano_usd=limit) as call:
            await call.session.generate_reply(user_input="Please explain everything to me.")
            await call.meter.until(lambda: call.responses[0].outcome)
            await call.close()
        (row,) = openai.rows()

    (leg,) = call.responses
    assert (leg.outcome, leg.basis) == (Outcome.CUT, Basis.REPORTED)
    assert tokens(leg.usage) == tokens(row)
    assert 150 < row["output_tokens"] < 700  # of more than a thousand


async def test_no_response_is_asked_for_without_money() -> None:
    async with simulated_openai(replies=[LONG]) as openai:
        async with realtime_call(openai.model(), limit_nano_usd=10) as call:
            speech = call.session.generate_reply(user_input="Please explain everything to me.")
            await speech
            await call.close()
        assert openai.rows() == []

    (leg,) = call.responses
    assert (leg.outcome, leg.basis) == (Outcome.CUT, Basis.OBSERVED)
    assert not any(leg.usage.values())


async def test_a_model_hears_nothing_more_once_the_call_is_being_ended() -> None:
    async with simulated_openai(replies=[SHORT], transcripts=["Hello?"]) as openai:
        async with realtime_call(openai.model()) as call:
            await call.session.generate_reply(user_input="Hello?")
            call.meter.cut = True
            call.caller.says(1_500)
            await call.caller.until_heard()
            await call.close()
        assert len(openai.rows()) == 1
        assert openai.rows("stt") == []

"""Real sessions of the unmodified plugins: our units are what the simulated providers bill."""

from __future__ import annotations

import re
from typing import Any

import pytest
from livekit.agents import Agent, function_tool

from tests.plugin.metered_session import metered_call, simulated_providers
from tests.simulators import LONG_ANSWER, Fault, Reply, ToolCall
from voicecost_ledger.records import Basis, LegStart, LegStop, Modality, Outcome


@pytest.fixture(autouse=True)
def faults_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")


async def test_a_turn_that_nobody_interrupts() -> None:
    async with simulated_providers(Reply(text="It is sunny in Paris today.")) as providers:
        async with metered_call(providers) as call:
            await call.session.generate_reply(user_input="What is the weather in Paris?")
            await call.close()
        (llm,) = call.meter.of(Modality.LLM)
        (tts,) = call.meter.of(Modality.TTS)

    assert (llm.outcome, llm.basis) == (Outcome.SERVED, Basis.REPORTED)
    assert (tts.outcome, tts.basis) == (Outcome.SERVED, Basis.OBSERVED)
    for unit in ("input_tokens", "cached_input_tokens", "output_tokens"):
        assert llm.usage[unit] == call.billed("llm", unit)
    assert tts.usage["characters"] == call.billed("tts", "characters")
    assert tts.usage["utf8_bytes"] == tts.usage["characters"]
    assert tts.usage["audio_ms"] > 0
    assert llm.speech_id == tts.speech_id is not None
    assert (llm.attributes.model, tts.attributes.model) == ("gpt-4o-mini", "aura-2-andromeda-en")
    # With the port: an alias may say which of two gateways on one host bills as whom.
    for leg in (llm, tts):
        assert re.fullmatch(r"127\.0\.0\.1:\d+", leg.attributes.host)


def _close_to(estimate: int, billed: int, *, within: int) -> bool:
    return abs(estimate - billed) <= within


@pytest.mark.parametrize("far", [False, True], ids=["each chunk rated", "far from all limits"])
async def test_a_barge_in_while_the_llm_writes(far: bool) -> None:
    """LiveKit reports 0 tokens for it; the provider bills the prompt and what it has written."""
    slow = {"token_delay_ms": 20}
    async with simulated_providers(Reply(match="hello", text="Hello there."), **slow) as providers:
        async with metered_call(providers) as call:
            call.meter.far = far
            await call.session.generate_reply(user_input="Hello, who is this?")
            speech = call.session.generate_reply(user_input="Please explain everything to me.")
            await call.meter.until(
                lambda: call.meter.of(Modality.LLM)[-1].usage["completion_chunks"] >= 20
            )
            speech.interrupt()
            await speech
            await call.close()
        first, second = call.meter.of(Modality.LLM)
        bill = [row for row in providers.bill.rows if row.service == "llm"][1]
        spoken = call.billed("tts", "characters")

    assert first.outcome is Outcome.SERVED
    assert (second.outcome, second.basis) == (Outcome.INTERRUPTED, Basis.ESTIMATED)
    assert bill.ended == "cancelled"
    assert _close_to(second.usage["input_tokens"], bill.units["input_tokens"], within=4)
    assert _close_to(second.usage["output_tokens"], bill.units["output_tokens"], within=8)
    # What was handed to the voice is exact, heard or not.
    assert call.meter.total(Modality.TTS, "characters") == spoken


async def test_a_barge_in_while_the_voice_speaks() -> None:
    async with simulated_providers(Reply(text=LONG_ANSWER), token_delay_ms=0, speed=4) as providers:
        async with metered_call(providers) as call:
            speech = call.session.generate_reply(user_input="Please explain everything to me.")
            await call.loudspeaker.heard.wait()
            await call.meter.until(
                lambda: call.meter.of(Modality.TTS)[0].usage["characters"] >= len(LONG_ANSWER)
            )
            speech.interrupt()
            await speech
            await call.close()
        (llm,) = call.meter.of(Modality.LLM)
        (tts,) = call.meter.of(Modality.TTS)

    assert (llm.outcome, llm.basis) == (Outcome.SERVED, Basis.REPORTED)
    assert (tts.outcome, tts.basis) == (Outcome.INTERRUPTED, Basis.OBSERVED)
    assert tts.usage["characters"] == call.billed("tts", "characters")


class _Forecaster(Agent):
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


async def test_a_tool_call_is_two_requests() -> None:
    weather = ToolCall(name="get_weather", arguments={"city": "Paris", "day": "tomorrow"})
    reply = Reply(match="weather", text="It will be sunny in Paris.", tool_call=weather)
    async with simulated_providers(reply) as providers:
        async with metered_call(providers, agent=_Forecaster()) as call:
            await call.session.generate_reply(user_input="How is the weather in Paris tomorrow?")
            await call.close()
        legs = call.meter.of(Modality.LLM)

    assert [leg.outcome for leg in legs] == [Outcome.SERVED, Outcome.SERVED]
    assert all(leg.usage["completion_chunks"] > 0 for leg in legs)  # of tool arguments too
    for unit in ("input_tokens", "output_tokens"):
        assert call.meter.total(Modality.LLM, unit) == call.billed("llm", unit)
    assert call.meter.total(Modality.TTS, "characters") == call.billed("tts", "characters")


async def test_a_refused_attempt_costs_nothing_and_its_retry_is_a_leg() -> None:
    async with simulated_providers(Reply(text="Here I am again.")) as providers:
        providers.openai.faults.add(Fault(status=500))
        # One for the connection that LiveKit makes beforehand, one for the request.
        providers.deepgram.speak.faults.add(Fault(status=500), Fault(status=500))
        async with metered_call(providers) as call:
            await call.session.generate_reply(user_input="Are you there?")
            await call.close()
        llm, tts = call.meter.of(Modality.LLM), call.meter.of(Modality.TTS)

    assert [leg.outcome for leg in llm] == [Outcome.FAILED, Outcome.SERVED]
    assert [leg.outcome for leg in tts] == [Outcome.FAILED, Outcome.SERVED]
    assert llm[0].usage["input_tokens"] == tts[0].usage["characters"] == 0
    for unit in ("input_tokens", "output_tokens"):
        assert call.meter.total(Modality.LLM, unit) == call.billed("llm", unit)
    assert call.meter.total(Modality.TTS, "characters") == call.billed("tts", "characters")


async def test_an_llm_stream_that_dies_is_billed_and_its_retry_too() -> None:
    async with simulated_providers(Reply(text=LONG_ANSWER)) as providers:
        providers.openai.faults.add(Fault(dies_after=30))
        async with metered_call(providers) as call:
            await call.session.generate_reply(user_input="Please explain everything to me.")
            await call.close()
        died, *_ = call.meter.of(Modality.LLM)
        bill, *_ = [row for row in providers.bill.rows if row.service == "llm"]

    assert (died.outcome, died.basis) == (Outcome.FAILED, Basis.ESTIMATED)
    assert bill.ended == "died"
    assert _close_to(died.usage["input_tokens"], bill.units["input_tokens"], within=4)
    assert _close_to(died.usage["output_tokens"], bill.units["output_tokens"], within=8)


async def test_a_voice_that_dies_in_mid_audio_is_billed_what_it_was_sent() -> None:
    async with simulated_providers(Reply(text=LONG_ANSWER), speed=4) as providers:
        providers.deepgram.speak.faults.add(Fault(dies_after=2_000))
        async with metered_call(providers) as call:
            # All at once: a word on its way to a dying socket is counted here and not there.
            speech = call.session.say(LONG_ANSWER)
            await call.meter.stopped(Modality.TTS)
            await speech
            await call.close()
        tts = call.meter.of(Modality.TTS)[0]

    assert (tts.outcome, tts.basis) == (Outcome.FAILED, Basis.OBSERVED)
    assert call.meter.total(Modality.TTS, "characters") == call.billed("tts", "characters") > 0


async def test_a_session_closed_in_mid_speech() -> None:
    """LiveKit's events lose all of it."""
    async with simulated_providers(
        Reply(text=LONG_ANSWER), token_delay_ms=15, speed=4
    ) as providers:
        async with metered_call(providers, hears=True) as call:
            call.session.generate_reply(user_input="Please explain everything to me.")
            await call.loudspeaker.heard.wait()
            await call.close()
        (llm,) = call.meter.of(Modality.LLM)
        (tts,) = call.meter.of(Modality.TTS)
        (stt,) = call.meter.of(Modality.STT)

    assert llm.outcome is tts.outcome is Outcome.INTERRUPTED
    assert tts.usage["characters"] == call.billed("tts", "characters") > 0
    assert (stt.outcome, stt.basis) == (Outcome.SERVED, Basis.OBSERVED)
    assert stt.usage["audio_ms"] == call.billed("stt", "audio_ms") > 0


async def test_recognition_is_billed_by_the_audio_that_was_sent() -> None:
    async with simulated_providers() as providers:
        async with metered_call(
            providers, hears=True, stt=providers.stt(model="nova-3", language="multi")
        ) as call:
            await call.meter.until(lambda: call.meter.total(Modality.STT, "audio_ms") > 2_000)
            await call.close()
        (stt,) = call.meter.of(Modality.STT)
        (row,) = providers.bill.rows

    assert (stt.attributes.model, stt.attributes.language) == ("nova-3", "multi")
    assert stt.attributes.channel_count == 1
    assert stt.usage["audio_ms"] == row.units["audio_ms"]
    assert row.connected_ms is not None
    assert _close_to(stt.usage["connected_ms"], row.connected_ms, within=100)


async def test_a_changed_option_is_another_connection_and_so_another_leg() -> None:
    async with simulated_providers() as providers:
        stt = providers.stt(language="en-US")
        async with metered_call(providers, hears=True, stt=stt) as call:
            await call.meter.until(lambda: call.meter.total(Modality.STT, "audio_ms") > 500)
            stt.update_options(language="de")
            await call.meter.until(lambda: len(call.meter.of(Modality.STT)) == 2)
            await call.meter.until(lambda: call.meter.of(Modality.STT)[1].usage["audio_ms"] > 500)
            await call.close()
        legs = call.meter.of(Modality.STT)
        rows = providers.bill.rows

    assert [leg.attributes.language for leg in legs] == ["en-US", "de"]
    assert [leg.usage["audio_ms"] for leg in legs] == [row.units["audio_ms"] for row in rows]


async def test_text_is_recorded_before_the_provider_has_it() -> None:
    """A SIGKILL at any moment leaves a spool that holds all that was sent."""
    async with (
        simulated_providers(Reply(text=LONG_ANSWER)) as providers,
        metered_call(providers) as call,
    ):
        speech = call.session.say(LONG_ANSWER)
        ahead: list[bool] = []
        seen = call.meter.write

        def write(make: type[Any], **fields: Any) -> None:
            seen(make, **fields)
            recorded = call.meter.total(Modality.TTS, "characters")
            ahead.append(recorded >= call.billed("tts", "characters"))

        call.meter.write = write
        await call.loudspeaker.heard.wait()
        speech.interrupt()
        await speech
        await call.close()
    assert len(ahead) > 10
    assert all(ahead)


async def test_an_estimate_is_settled_again_when_the_provider_reports_on_another_request() -> None:
    replies = (Reply(match="everything", text=LONG_ANSWER), Reply(text="Certainly."))
    async with simulated_providers(*replies, token_delay_ms=15) as providers:
        async with metered_call(providers, llm=providers.llm()) as call:
            speech = call.session.generate_reply(user_input="Please explain everything to me.")
            await call.meter.until(
                lambda: (
                    call.meter.of(Modality.LLM)
                    and call.meter.of(Modality.LLM)[0].usage["completion_chunks"] >= 5
                )
            )
            speech.interrupt()
            await speech
            alone = dict(call.meter.of(Modality.LLM)[0].usage)
            await call.session.generate_reply(user_input="Never mind.")
            await call.close()
        interrupted = call.meter.of(Modality.LLM)[0]
        bill = next(row for row in providers.bill.rows if row.service == "llm")

    assert interrupted.stop_count >= 2 or alone == interrupted.usage
    assert _close_to(interrupted.usage["input_tokens"], bill.units["input_tokens"], within=4)
    assert interrupted.outcome is Outcome.INTERRUPTED


async def test_a_leg_starts_once_and_stops_last() -> None:
    async with (
        simulated_providers(Reply(text="It is sunny.")) as providers,
        metered_call(providers, hears=True) as call,
    ):
        await call.session.generate_reply(user_input="What is the weather?")
        await call.close()
    for number in call.meter.legs:
        kinds = [make for make, fields in call.meter.records if fields["leg"] == number]
        assert kinds[0] is LegStart
        assert kinds.count(LegStart) == 1
        assert kinds[-1] is LegStop

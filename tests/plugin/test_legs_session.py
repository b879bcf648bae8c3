"""What the records of a real session's legs say, and when. How they end: `test_endings_*`."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.plugin.metered_session import metered_call, simulated_providers
from tests.simulators import LONG_ANSWER, Reply
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

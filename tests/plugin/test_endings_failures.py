"""How a provider can fail a request, on the real AgentSession: retries, failover, and probes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from livekit.agents import llm, stt, tts

from tests.plugin.endings import Caller, held_against_the_bill, of_outcome
from tests.plugin.livekit_versions import not_on_1_5
from tests.plugin.metered_session import Call, Providers, metered_call, simulated_providers
from tests.simulators import LONG_ANSWER, Fault, Reply, deepgram_listen
from voicecost_ledger.records import Basis, Modality, Outcome

ASKED = "Please explain everything to me."


@pytest.fixture
async def providers() -> AsyncIterator[Providers]:
    async with simulated_providers(Reply(text="Here I am again.")) as providers:
        yield providers


async def ask(call: Call) -> None:
    await call.session.generate_reply(user_input="Are you there?")


@pytest.mark.parametrize("status", [429, 500])
async def test_a_refused_request_costs_nothing_and_its_retry_is_a_leg(
    providers: Providers, status: int
) -> None:
    providers.openai.faults.add(Fault(status=status))
    # One for the connection that LiveKit makes beforehand, one for the request.
    providers.deepgram.speak.faults.add(Fault(status=status), Fault(status=status))
    async with metered_call(providers) as call:
        await ask(call)
        await call.close()
    assert held_against_the_bill(call) == "stt served, llm refused served, tts refused served"


@not_on_1_5("has a Deepgram plugin that does not try a refused connection again")
@pytest.mark.parametrize("status", [429, 500])
async def test_a_refused_stt_connection_costs_nothing_and_its_retry_is_a_leg(
    providers: Providers, status: int
) -> None:
    providers.deepgram.listen.faults.add(Fault(status=status))
    async with metered_call(providers, hears=True) as call:
        await call.meter.until(lambda: call.meter.total(Modality.STT, "audio_ms") > 0)
        await call.close()
    assert held_against_the_bill(call) == "stt refused served"


async def test_an_llm_stream_that_dies_after_some_tokens(providers: Providers) -> None:
    """Its tokens are billed. What was said is not said again: there is no retry."""
    providers.openai.replies[:] = [Reply(text=LONG_ANSWER[:300])]
    providers.openai.faults.add(Fault(dies_after=30))
    async with metered_call(providers) as call:
        await call.session.generate_reply(user_input=ASKED)
        await call.close()
    assert held_against_the_bill(call) == "stt served, llm failed, tts served"
    assert call.meter.of(Modality.LLM)[0].basis is Basis.ESTIMATED


async def test_a_tts_socket_that_dies_in_mid_audio(providers: Providers) -> None:
    """LiveKit reports none of it. What was heard is not said again: there is no retry."""
    providers.deepgram.speak.speed = 4
    providers.deepgram.speak.faults.add(Fault(dies_after=2_000))
    async with metered_call(providers) as call:
        # All at once: a word on its way to a dying socket is counted here and not there.
        await call.session.say(LONG_ANSWER)
        await call.close()
    assert held_against_the_bill(call) == "stt served, tts failed"
    assert call.meter.of(Modality.TTS)[0].basis is Basis.OBSERVED


async def test_a_hang_until_the_timeout(providers: Providers) -> None:
    """Accepted, then silence: the prompt is billed, and LiveKit reports only the retry."""
    providers.openai.faults.add(Fault(silent=True))
    async with metered_call(providers, timeout_s=0.3) as call:
        await ask(call)
        await call.close()
    assert held_against_the_bill(call) == "stt served, llm failed served, tts served"


@not_on_1_5("waits for a silent voice for ever")
async def test_a_voice_that_hangs_until_the_timeout(providers: Providers) -> None:
    providers.deepgram.speak.faults.add(Fault(silent=True))
    async with metered_call(providers, timeout_s=0.3) as call:
        await call.session.say("Good morning to you.")
        await call.close()
    assert held_against_the_bill(call) == "stt served, tts failed served"


async def test_an_stt_connection_that_dies_is_followed_by_another(providers: Providers) -> None:
    """Each connection is a leg. What was on its way when it died is at most a few frames."""
    providers.deepgram.listen.faults.add(Fault(dies_after=500))
    async with metered_call(providers, hears=True) as call:
        await call.meter.until(lambda: len(call.meter.of(Modality.STT)) == 2)
        await call.meter.until(lambda: call.meter.of(Modality.STT)[1].usage["audio_ms"] > 500)
        await call.close()
    died, served = call.meter.of(Modality.STT)
    rows = [row for row in providers.bill.rows if row.service == "stt"]
    assert (died.outcome, served.outcome) == (Outcome.FAILED, Outcome.SERVED)
    assert [row.ended for row in rows] == ["died", "completed"]
    assert died.basis is Basis.ESTIMATED
    assert 0 <= died.usage["audio_ms"] - rows[0].units["audio_ms"] <= died.margins["audio_ms"]
    assert served.basis is Basis.OBSERVED
    assert served.usage["audio_ms"] == rows[1].units["audio_ms"]


# Failover. The instances have models of their own, so that each is known by its bill.


def two_llms(providers: Providers) -> llm.FallbackAdapter:
    return llm.FallbackAdapter(
        [providers.llm(), providers.llm(model="gpt-4o")], max_retry_per_llm=0, attempt_timeout=5
    )


async def test_an_llm_that_fails_over_and_comes_back(providers: Providers) -> None:
    """The probe that finds the first one well again is billed, and is nobody's answer."""
    providers.openai.faults.add(Fault(status=503))
    adapter = two_llms(providers)
    async with metered_call(providers, llm=adapter) as call:
        await ask(call)
        await call.meter.stopped(Modality.LLM, 3)
        await ask(call)
        await call.close()
    told = held_against_the_bill(call)
    assert told == "stt served, llm refused probe served served, tts served served" or (
        told == "stt served, llm refused served probe served, tts served served"
    )
    legs = call.meter.of(Modality.LLM)
    models = {leg.outcome: leg.attributes.model for leg in legs[1:3]}
    assert models == {Outcome.PROBE: "gpt-4o-mini", Outcome.SERVED: "gpt-4o"}
    assert legs[3].attributes.model == "gpt-4o-mini"
    await adapter.aclose()


async def test_an_llm_whose_probe_fails_too(providers: Providers) -> None:
    providers.openai.faults.add(Fault(status=503), Fault(status=503))
    adapter = two_llms(providers)
    async with metered_call(providers, llm=adapter) as call:
        await ask(call)
        await call.meter.stopped(Modality.LLM, 3)
        await call.close()
    told = held_against_the_bill(call)
    assert told in (
        "stt served, llm refused probe served, tts served",
        "stt served, llm refused served probe, tts served",
    )
    await adapter.aclose()


async def test_an_llm_probe_that_is_open_when_the_session_closes(providers: Providers) -> None:
    """It runs to its own end, and LiveKit reports it to nobody."""
    providers.openai.faults.add(Fault(status=503))
    adapter = two_llms(providers)
    async with metered_call(providers, llm=adapter) as call:
        providers.openai.first_token_delay_ms = 10_000
        speech = call.session.generate_reply(user_input=ASKED)
        while len(providers.bill.rows) < 4:  # noqa: ASYNC110  (the provider tells nobody)
            await asyncio.sleep(0.001)
        await call.session.aclose()
        assert speech.done()
        (probe,) = (
            leg for leg in call.meter.of(Modality.LLM) if leg.outcome is None
        )  # still being answered
        for status in adapter._status:
            if status.recovering_task is not None:
                status.recovering_task.cancel()
        await call.meter.until(lambda: probe.outcome is not None)
        await call.close()
    told = held_against_the_bill(call, input_tokens_off_max=14)
    assert sorted(told.split(", ")[1].split()) == ["interrupted", "llm", "probe", "refused"]
    await adapter.aclose()


def two_voices(providers: Providers) -> tts.FallbackAdapter:
    return tts.FallbackAdapter(
        [providers.tts(), providers.tts(model="aura-2-thalia-en")], max_retry_per_tts=0
    )


async def test_a_voice_that_fails_over_and_comes_back(providers: Providers) -> None:
    # One for the connection that LiveKit makes beforehand, one for the request.
    providers.deepgram.speak.faults.add(Fault(status=503), Fault(status=503))
    adapter, recovered = two_voices(providers), asyncio.Event()
    adapter.on("tts_availability_changed", lambda event: event.available and recovered.set())
    async with metered_call(providers, tts=adapter) as call:
        await call.session.say("Good morning to you.")
        await recovered.wait()
        await call.session.say("And another good morning.")
        await adapter.aclose()
        await call.close()
    told = held_against_the_bill(call)
    assert told == "stt served, tts refused served probe served"
    assert [leg.attributes.model for leg in call.meter.of(Modality.TTS)] == [
        "aura-2-andromeda-en",
        "aura-2-thalia-en",
        "aura-2-andromeda-en",
        "aura-2-andromeda-en",
    ]


async def test_a_voice_probe_that_is_open_when_the_session_closes(providers: Providers) -> None:
    """The provider has its text, so it is billed in full."""
    providers.deepgram.speak.faults.add(Fault(status=503), Fault(status=503))
    adapter = two_voices(providers)
    async with metered_call(providers, tts=adapter) as call:
        speech = call.session.say("Good morning to you.")
        await call.loudspeaker.heard.wait()
        providers.deepgram.speak.first_byte_delay_ms = 10_000
        await speech
        await call.meter.until(lambda: len(call.meter.of(Modality.TTS)) == 3)
        await call.meter.until(
            lambda: (
                call.meter.of(Modality.TTS)[2].usage["characters"] >= len("Good morning to you.")
            )
        )
        await call.session.aclose()
        await adapter.aclose()  # cancels the probe
        await call.close()
    assert held_against_the_bill(call) == "stt served, tts refused served probe"


async def test_an_stt_that_fails_over_and_is_probed_until_the_end(providers: Providers) -> None:
    """The probe hears all that the other one hears, and is billed for it."""
    providers.deepgram.listen.faults.add(Fault(status=503))
    adapter = stt.FallbackAdapter(
        [providers.stt(), providers.stt(model="nova-2")], max_retry_per_stt=0, retry_interval=0
    )
    async with metered_call(providers, hears=True, stt=adapter) as call:
        await call.meter.until(
            lambda: (
                len(call.meter.of(Modality.STT)) == 3
                and all(leg.usage["audio_ms"] > 300 for leg in call.meter.of(Modality.STT)[1:])
            )
        )
        await call.session.aclose()
        await adapter.aclose()
        await call.close()
    told = held_against_the_bill(call)
    assert told in ("stt refused probe served", "stt refused served probe")


async def test_an_stt_probe_ends_with_what_it_understands(providers: Providers) -> None:
    """A transcript proves the first one well; then its connection is closed."""
    caller = Caller()
    providers.deepgram.listen.faults.add(Fault(status=503))
    providers.deepgram.listen.transcripts.extend(["Hello?", "Hello?"])
    adapter = stt.FallbackAdapter(
        [providers.stt(), providers.stt(model="nova-2")], max_retry_per_stt=0, retry_interval=0
    )
    async with metered_call(providers, hears=caller, stt=adapter) as call:
        await call.meter.until(lambda: len(call.meter.of(Modality.STT)) == 3)
        caller.says()
        await call.meter.until(
            lambda: Outcome.PROBE in [leg.outcome for leg in call.meter.of(Modality.STT)]
        )
        await call.close()
        await adapter.aclose()
    told = held_against_the_bill(call)
    assert told in ("stt refused probe served", "stt refused served probe")


async def test_an_stt_that_fails_over_and_comes_back(
    providers: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the other one ends, the first is asked again: what it hears from then on is served."""
    monkeypatch.setattr(deepgram_listen, "IDLE_MS_MAX", 1_000)
    caller, recovered = Caller(), asyncio.Event()
    providers.deepgram.listen.faults.add(Fault(status=503))
    providers.deepgram.listen.transcripts.extend(["Hello?", "Hello?"])
    adapter = stt.FallbackAdapter(
        [providers.stt(), providers.stt(model="nova-2")], max_retry_per_stt=0, retry_interval=0
    )
    adapter.on("stt_availability_changed", lambda event: event.available and recovered.set())
    async with metered_call(providers, hears=caller, stt=adapter) as call:
        legs = call.meter.legs
        await call.meter.until(lambda: len(legs) == 3)
        caller.says()
        await recovered.wait()
        caller.mute()  # until Deepgram hangs up: nothing is on its way then
        await call.meter.until(lambda: of_outcome(legs.values(), Outcome.FAILED)[1:])
        # LiveKit 1.5 takes longer to close its end.
        monkeypatch.setattr(deepgram_listen, "IDLE_MS_MAX", 10_000)
        caller.mute(False)
        await call.meter.until(
            lambda: [
                leg for leg in legs.values() if not leg.outcome and leg.usage["audio_ms"] > 500
            ]
        )
        await call.session.aclose()
        await adapter.aclose()
        await call.close()
    told = held_against_the_bill(call).split()
    assert sorted(told) == ["failed", "probe", "probe", "refused", "served", "stt"]
    by_outcome = {leg.outcome: leg.attributes.model for leg in legs.values()}
    assert by_outcome[Outcome.SERVED] == "nova-3"
    assert call.meter.total(Modality.STT, "audio_ms") == call.billed("stt", "audio_ms")

"""Real sessions that speak with each provider: a call ends in mid-speech, in one way or another."""

from __future__ import annotations

from typing import Any

import pytest
from livekit.agents import Agent

from tests.plugin.metered_session import metered_call, simulated_providers
from tests.plugin.voices import BY_CHARACTERS, simulated_voice
from tests.simulators import LONG_ANSWER, Fault, Reply
from tests.simulators.speech import Pace
from voicecost_ledger.records import Basis, Modality, Outcome

ALL = (*BY_CHARACTERS, "azure", "openai")
SLOW = Pace(first_byte_delay_ms=5, speed=12)


def _options(name: str) -> dict[str, Any]:
    return {"model": "tts-1"} if name == "openai" else {}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("how", ["interrupted", "closed"])
async def test_a_voice_cut_off_when_the_llm_has_finished(
    name: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All was sent to a streaming voice, and only the sentences asked for to any other."""
    async with (
        simulated_voice(name, monkeypatch, pace=SLOW, **_options(name)) as voice,
        simulated_providers(Reply(text=LONG_ANSWER), token_delay_ms=0) as providers,
        metered_call(providers, tts=voice.tts) as call,
    ):
        speech = call.session.generate_reply(user_input="Please explain everything to me.")
        await call.loudspeaker.heard.wait()
        await call.meter.stopped(Modality.LLM)
        if how == "interrupted":
            speech.interrupt()
            await speech
        await call.close()
        await voice.tts.aclose()
        await voice.bill.settled()
    legs = call.meter.of(Modality.TTS)
    assert [leg.usage["characters"] for leg in legs] == [
        row.units["characters"] for row in voice.bill.rows
    ]
    assert {leg.basis for leg in legs} == {Basis.OBSERVED}
    assert legs[-1].outcome is Outcome.INTERRUPTED
    assert all(leg.speech_id == speech.id for leg in legs)


@pytest.mark.parametrize("name", ALL)
async def test_a_turn_whose_voice_fails_first(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The retry says the text again; the caller hears it all, and it is billed as sent."""
    text = "It is sunny in Paris today, so take a hat with you. Do not stay out too long."
    async with (
        simulated_voice(name, monkeypatch, **_options(name)) as voice,
        simulated_providers(Reply(text=text)) as providers,
        metered_call(providers, tts=voice.tts) as call,
    ):
        refusals = 2 if name in ("deepgram", "cartesia", "inference") else 1
        # One more for the connection that LiveKit makes beforehand.
        voice.faults.add(*[Fault(status=500)] * refusals)
        await call.session.generate_reply(user_input="How is the weather?")
        await call.close()
        await voice.tts.aclose()
        await voice.bill.settled()
    legs = [leg for leg in call.meter.of(Modality.TTS) if leg.usage["characters"]]
    assert {leg.outcome for leg in legs} == {Outcome.SERVED}
    assert sum(leg.usage["characters"] for leg in legs) == voice.billed >= len(text) - 2


async def test_agents_with_voices_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hand-off: each says its greeting by another provider."""

    class Greeter(Agent):
        async def on_enter(self) -> None:
            await self.session.say(str(self.instructions))

    async with (
        simulated_voice("cartesia", monkeypatch) as first,
        simulated_voice("elevenlabs", monkeypatch) as second,
        simulated_providers() as providers,
        metered_call(providers, tts=first.tts) as call,
    ):
        await call.session.say("Let me put you through.")
        call.session.update_agent(Greeter(instructions="Good morning to you.", tts=second.tts))
        await call.meter.stopped(Modality.TTS, 2)
        await call.close()
        for voice in (first, second):
            await voice.tts.aclose()
            await voice.bill.settled()
    legs = call.meter.of(Modality.TTS)
    assert [leg.attributes.provider for leg in legs] == ["Cartesia", "ElevenLabs"]
    assert [leg.usage["characters"] for leg in legs] == [first.billed, second.billed]


async def test_two_sessions_share_one_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    """One plugin instance, one socket, two callers: each pays for its own text."""
    texts = ("Good morning to you, and thank you for asking.", "It is sunny in Paris today.")
    async with (
        simulated_voice("elevenlabs", monkeypatch) as voice,
        simulated_providers() as providers,
        metered_call(providers, tts=voice.tts) as one,
        metered_call(providers, tts=voice.tts) as other,
    ):
        speeches = [each.session.say(text) for each, text in zip((one, other), texts, strict=True)]
        for speech in speeches:
            await speech
        await one.session.aclose()  # the provider's bill is settled when both have left
        await other.close()
        await voice.tts.aclose()
        await voice.bill.settled()
        assert voice.simulator.connection_count == 1
    for call, text in zip((one, other), texts, strict=True):
        (leg,) = call.meter.of(Modality.TTS)
        assert (leg.basis, leg.usage["characters"]) == (Basis.OBSERVED, len(text) + 1)
    assert voice.billed == sum(len(text) + 1 for text in texts)

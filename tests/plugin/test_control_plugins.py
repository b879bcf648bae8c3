"""Our account beside LiveKit's with every real plugin: no difference is left without a cause."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from livekit import rtc
from livekit.agents import Agent
from livekit.agents.voice import io

from livekit.plugins.voicecost._control import ControlTotals
from livekit.plugins.voicecost.legs import Leg
from tests.plugin.llm_providers import PROVIDERS, Provider, served
from tests.plugin.metered_session import Call, RecordingMeter, metered_call, simulated_providers
from tests.plugin.stt_streams import RECOGNISERS, Recogniser, running, sound
from tests.plugin.voices import STREAMING, simulated_voice
from tests.simulators import LONG_ANSWER, Reply
from tests.simulators.speech import Pace
from voicecost_ledger.records import Modality, Outcome

# Google's client subclasses aiohttp's session, which aiohttp advises against.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Inheritance class AiohttpClientSession:DeprecationWarning"
)
ODD = "It is  sunny:\n\n- in Paris,   and\n- in *Zürich* & 東京! <b>Take</b> 3 hats.  Bye. "


@pytest.fixture(autouse=True)
def soon_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speechmatics' library waits so long for the last words of a socket that is dead."""
    monkeypatch.setattr("speechmatics.agent_stt._client.DISCONNECT_TIMEOUT_S", 0.05)


def followed(call: Call) -> ControlTotals:
    control = ControlTotals()
    call.meter.watch_legs(control.opened)
    setattr(call.meter, "overheard", control.overheard)  # noqa: B010 (a method of the class)
    session: Any = call.session
    session.on("session_usage_updated", lambda event: control.updated(event.usage))
    return control


def causes(control: ControlTotals, modality: Modality) -> dict[str, dict[str, int]]:
    return {each.unit: each.causes for each in control.differences() if each.modality is modality}


def explained(control: ControlTotals, modality: Modality) -> dict[str, dict[str, int]]:
    found = causes(control, modality)
    assert found
    assert not any("unexplained" in each for each in found.values()), found
    return found


@pytest.mark.parametrize("provider", PROVIDERS, ids=str)
async def test_language_models(provider: Provider) -> None:
    replies = (
        Reply(match="think", text="It is noon.", thoughts="What time may it be? " * 8),
        Reply(match="hello", text="Hello there."),
        Reply(text=LONG_ANSWER),
    )
    async with (
        simulated_providers() as voices,
        served(provider, RecordingMeter(), *replies, token_delay_ms=2) as service,
    ):
        llm: Any = service.llm
        async with metered_call(voices, llm=llm) as call:
            control = followed(call)
            await call.session.generate_reply(user_input="Hello, who is this?")
            await call.session.generate_reply(user_input="Please think: what time is it?")
            speech = call.session.generate_reply(user_input="Please explain everything to me.")
            await call.meter.until(
                lambda: (
                    len(call.meter.of(Modality.LLM)) == 3
                    and call.meter.of(Modality.LLM)[-1].usage["completion_chunks"] >= 5
                )
            )
            speech.interrupt()
            await speech
            if service.uses_sockets:
                await llm.aclose()
            await service.bill.settled()
            await call.close()
    explained(control, Modality.LLM)


@pytest.mark.parametrize("name", [*STREAMING, "azure", "openai"])
async def test_voices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"model": "tts-1"} if name == "openai" else {}
    pace = Pace(first_byte_delay_ms=5, speed=12)
    async with (
        simulated_voice(name, monkeypatch, pace=pace, **options) as voice,
        simulated_providers(Reply(text=LONG_ANSWER), token_delay_ms=4) as providers,
        metered_call(providers, tts=voice.tts) as call,
    ):
        control = followed(call)
        await call.session.say("Good morning.")
        await call.session.say(ODD)
        call.loudspeaker.heard.clear()
        speech = call.session.generate_reply(user_input="Please explain everything to me.")
        await call.loudspeaker.heard.wait()
        speech.interrupt()
        await speech
        await call.close()
        await voice.tts.aclose()
        await voice.bill.settled()
    explained(control, Modality.TTS)


class _Speaker(io.AudioInput):
    """Says two sentences, then nothing."""

    def __init__(self) -> None:
        super().__init__(label="speaker")
        self._frames = sound(sample_rate=24_000)
        self._silence = rtc.AudioFrame(bytes(2 * 480), 24_000, 1, 480)

    async def __anext__(self) -> rtc.AudioFrame:
        frame = next(self._frames, self._silence)
        await asyncio.sleep(frame.duration / 4)
        return frame


@pytest.mark.parametrize("recogniser", RECOGNISERS, ids=str)
async def test_recognisers(recogniser: Recogniser) -> None:
    async with (
        running(recogniser) as (_, stt),
        simulated_providers(Reply(text="Yes.")) as providers,
        metered_call(providers, stt=stt, hears=_Speaker()) as call,
    ):
        control = followed(call)
        await call.meter.until(lambda: call.meter.total(Modality.STT, "audio_ms") > 12_000)
        await call.close()
    explained(control, Modality.STT)


async def test_a_speech_that_is_interrupted_when_all_of_it_was_made() -> None:
    """LiveKit counts it, or leaves before it does: its leg knows that it may have."""
    async with simulated_providers() as providers, metered_call(providers) as call:
        legs: list[Leg] = []
        call.meter.watch_legs(legs.append)
        first, second = call.session.say("Good morning."), call.session.say("How are you?")
        await first
        await call.meter.stopped(Modality.TTS, 2)
        second.interrupt()
        await second
        await call.close()
    spoken = [leg for leg in legs if leg.modality == Modality.TTS]
    assert [leg.outcome for leg in spoken] == [Outcome.SERVED] * 2
    assert [leg.speech_interrupted for leg in spoken] == [False, True]


async def test_two_sessions_through_the_same_plugins() -> None:
    """Each of LiveKit's accounts has the requests of both."""
    async with simulated_providers(Reply(text="Good morning to you.")) as providers:
        llm, tts, stt = providers.llm(), providers.tts(), providers.stt()
        shared: dict[str, Any] = {"llm": llm, "tts": tts, "stt": stt}
        async with (
            metered_call(providers, hears=True, **shared) as one,
            metered_call(providers, hears=_Speaker(), **shared) as other,
        ):
            controls = [followed(call) for call in (one, other)]
            for question in ("Hello?", "Who is this, please?"):
                await one.session.generate_reply(user_input=question)
                await other.session.generate_reply(user_input=f"And me? {question}")
            await one.meter.until(lambda: one.meter.total(Modality.STT, "audio_ms") > 12_000)
            await other.session.aclose()
            await one.close()
    for control in controls:
        assert "outside_session" in explained(control, Modality.LLM)["input_tokens"]
        assert "outside_session" in explained(control, Modality.TTS)["characters"]
        explained(control, Modality.STT)


async def test_a_hand_over_in_mid_call() -> None:
    """The first agent's recogniser is closed when nobody listens to it any more."""
    async with (
        simulated_providers(Reply(text="Good morning to you.")) as providers,
        metered_call(
            providers,
            agent=Agent(instructions="You greet.", stt=providers.stt()),
            hears=True,
        ) as call,
    ):
        control = followed(call)
        await call.session.generate_reply(user_input="Hello?")
        await call.meter.until(lambda: call.meter.total(Modality.STT, "audio_ms") > 12_000)
        call.session.update_agent(Agent(instructions="You help.", stt=providers.stt()))
        await call.meter.until(lambda: len(call.meter.of(Modality.STT)) > 1)
        await call.meter.until(lambda: call.meter.total(Modality.STT, "audio_ms") > 26_000)
        await call.session.generate_reply(user_input="And now?")
        await call.close()
    for modality in (Modality.LLM, Modality.TTS, Modality.STT):
        explained(control, modality)

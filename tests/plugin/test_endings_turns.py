"""How a turn can end, on the real AgentSession. `endings` says where the others are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from livekit import rtc
from livekit.agents import Agent
from livekit.agents.llm import ChatContext, ChatMessage

from tests.plugin import endings
from tests.plugin.endings import Caller, held_against_the_bill
from tests.plugin.livekit_versions import not_on_1_5
from tests.plugin.metered_session import Call, metered_call, simulated_providers
from tests.simulators import LONG_ANSWER, Reply
from voicecost_ledger.records import Basis, Modality, Outcome

HELLO = Reply(match="hello", text="Hello there, what can I do for you?")
ASKED = "Please explain everything to me."


def heard_and(call: Call) -> str:
    """What became of a call's requests besides its only STT connection."""
    ear, _, others = held_against_the_bill(call).partition(", ")
    assert ear == "stt served"
    return others


async def greet(call: Call) -> None:
    """A turn that is served: the provider's report on it calibrates what follows."""
    await call.session.generate_reply(user_input="Hello, who is this?")


async def llm_wrote(call: Call, chunks: int, *, leg: int) -> None:
    """Wait until the LLM has written so much of its answer number `leg`."""
    await call.meter.until(
        lambda: (
            len(call.meter.of(Modality.LLM)) > leg
            and call.meter.of(Modality.LLM)[leg].usage["completion_chunks"] >= chunks
        )
    )


def test_the_table_of_endings_names_tests_that_exist() -> None:
    source, count = "", 0
    for line in (endings.__doc__ or "").splitlines():
        if line.endswith(".py"):
            source = (Path(__file__).parent / line).read_text()
        elif line.startswith("- "):
            name = line[2:].partition(":")[0]
            assert f"async def {name}(" in source, name
            count += 1
    assert count > 40


async def test_a_clean_turn() -> None:
    async with simulated_providers(HELLO) as providers, metered_call(providers, hears=True) as call:
        await greet(call)
        await call.close()
    assert heard_and(call) == ("llm served, tts served")
    (llm,), (tts,) = call.meter.of(Modality.LLM), call.meter.of(Modality.TTS)
    assert (llm.basis, tts.basis) == (Basis.REPORTED, Basis.OBSERVED)
    assert llm.speech_id == tts.speech_id is not None


@pytest.mark.parametrize("far", [False, True], ids=["each chunk rated", "far from all limits"])
async def test_a_barge_in_while_the_llm_writes(far: bool) -> None:
    """LiveKit reports 0 tokens for it; the provider bills the prompt and what it has written."""
    async with (
        simulated_providers(HELLO, token_delay_ms=20) as providers,
        metered_call(providers) as call,
    ):
        call.meter.far = far
        await greet(call)
        speech = call.session.generate_reply(user_input=ASKED)
        await llm_wrote(call, 20, leg=1)
        speech.interrupt()
        await speech
        await call.close()
    assert heard_and(call) == ("llm served interrupted, tts served interrupted")
    assert call.meter.of(Modality.LLM)[1].basis is Basis.ESTIMATED
    # What was handed to the voice is exact, heard or not.
    assert [leg.basis for leg in call.meter.of(Modality.TTS)] == [Basis.OBSERVED] * 2


async def test_a_barge_in_while_only_the_tts_speaks() -> None:
    async with (
        simulated_providers(token_delay_ms=0, speed=4) as providers,
        metered_call(providers) as call,
    ):
        speech = call.session.generate_reply(user_input=ASKED)
        await call.loudspeaker.heard.wait()
        await call.meter.until(
            lambda: call.meter.total(Modality.TTS, "characters") >= len(LONG_ANSWER)
        )
        speech.interrupt()
        await speech
        await call.close()
    assert heard_and(call) == "llm served, tts interrupted"


async def test_a_barge_in_when_all_is_generated() -> None:
    """Nothing is saved by it: both requests were served in full, long before the end was heard."""
    async with (
        simulated_providers(token_delay_ms=0, speed=0) as providers,
        metered_call(providers) as call,
    ):
        speech = call.session.generate_reply(user_input=ASKED)
        await call.meter.stopped(Modality.TTS)
        assert not speech.done()  # 48 s of speech are being played
        speech.interrupt()
        await speech
        await call.close()
    assert heard_and(call) == "llm served, tts served"


async def test_an_interruption_before_the_first_token() -> None:
    """The prompt is billed, and LiveKit reports nothing at all of it."""
    async with (
        simulated_providers(HELLO, first_token_delay_ms=150) as providers,
        metered_call(providers) as call,
    ):
        await greet(call)
        speech = call.session.generate_reply(user_input=ASKED)
        while len(providers.bill.rows) < 3:  # noqa: ASYNC110  (the provider tells nobody)
            await asyncio.sleep(0.001)
        speech.interrupt()
        await speech
        await call.close()
    assert heard_and(call) == ("llm served interrupted, tts served")
    assert call.meter.of(Modality.LLM)[1].usage["output_tokens"] == 0


async def test_an_interruption_before_the_first_audio() -> None:
    """The voice has words and has not said one; they are billed all the same."""
    async with simulated_providers(HELLO, token_delay_ms=10) as providers:
        providers.deepgram.speak.first_byte_delay_ms = 10_000
        async with metered_call(providers) as call:
            speech = call.session.generate_reply(user_input=ASKED)
            await call.meter.until(lambda: call.meter.total(Modality.TTS, "characters") > 40)
            speech.interrupt()
            await speech
            await call.close()
        assert not call.loudspeaker.heard.is_set()
    assert heard_and(call) == "llm interrupted, tts interrupted"


class _Changeable(Agent):
    """Changes what is asked at the end of the user's turn, if it is told to."""

    def __init__(self, *, changes: bool, waits_for: asyncio.Event | None = None) -> None:
        super().__init__(instructions="You are a helpful telephone agent.")
        self._changes = changes
        self.waits_for = waits_for

    async def on_user_turn_completed(self, turn_ctx: ChatContext, new_message: ChatMessage) -> None:
        if self.waits_for is not None:
            await self.waits_for.wait()
        if self._changes:
            turn_ctx.add_message(role="system", content="It is raining.")


SPOKEN_TURNS: Any = {
    "turn_detection": None,
    "endpointing": {"min_delay": 0.01, "max_delay": 0.05},
    "interruption": {"resume_false_interruption": False},
}


async def test_a_preemptive_generation_that_is_used() -> None:
    """LiveKit asks when it has heard, and only then decides that the caller's turn is over."""
    caller = Caller()
    async with simulated_providers(HELLO) as providers:
        providers.deepgram.listen.transcripts.append("Hello, who is this?")
        async with metered_call(
            providers,
            agent=_Changeable(changes=False),
            hears=caller,
            turn_handling=SPOKEN_TURNS,
        ) as call:
            caller.says()
            await call.meter.stopped(Modality.TTS)
            await call.close()
    assert heard_and(call) == ("llm served, tts served")


@not_on_1_5("begins to speak a preemptive generation before it throws it away")
@pytest.mark.parametrize("written", ["in the middle", "to its end"])
async def test_a_preemptive_generation_that_is_thrown_away(written: str) -> None:
    """The application changes the prompt at the end of the turn: LiveKit asks again."""
    caller, go_on = Caller(), asyncio.Event()
    replies = (Reply(match="raining", text="Take an umbrella."), HELLO)
    token_delay_ms = 20 if written == "in the middle" else 0
    async with simulated_providers(*replies, token_delay_ms=token_delay_ms) as providers:
        providers.deepgram.listen.transcripts.append("Hello, who is this?")
        async with metered_call(
            providers,
            agent=_Changeable(changes=True, waits_for=go_on),
            hears=caller,
            turn_handling=SPOKEN_TURNS,
        ) as call:
            caller.says()
            if written == "in the middle":
                await llm_wrote(call, 3, leg=0)
            else:
                await call.meter.stopped(Modality.LLM)
            go_on.set()
            await call.meter.stopped(Modality.TTS)
            await call.close()
    assert heard_and(call) == ("llm discarded served, tts served")


async def test_a_text_only_session() -> None:
    """Neither heard nor spoken: no leg of a voice, and no gap for want of one."""
    async with simulated_providers(HELLO) as providers, metered_call(providers) as call:
        call.session.output.set_audio_enabled(False)
        await greet(call)
        await call.close()
    assert heard_and(call) == "llm served"


async def test_say_is_a_voice_without_an_llm() -> None:
    async with simulated_providers() as providers, metered_call(providers) as call:
        await call.session.say("Good morning to you.")
        await asyncio.create_task(_say(call, "And from somewhere else."))
        await call.close()
    assert heard_and(call) == "tts served served"


async def _say(call: Call, text: str) -> None:
    await call.session.say(text)


async def test_say_with_cached_audio_costs_nothing() -> None:
    """The application plays what it has: no provider is asked, and there is no leg."""

    async def cached() -> AsyncIterator[rtc.AudioFrame]:
        for _ in range(10):
            yield rtc.AudioFrame(bytes(960), 24_000, 1, 480)

    async with simulated_providers() as providers, metered_call(providers) as call:
        await call.session.say("Good morning to you.", audio=cached())
        assert call.loudspeaker.heard.is_set()
        await call.close()
    assert heard_and(call) == ""


async def test_an_interrupted_say() -> None:
    async with simulated_providers(speed=4) as providers, metered_call(providers) as call:
        speech = call.session.say(LONG_ANSWER)
        await call.loudspeaker.heard.wait()
        speech.interrupt()
        await speech
        await call.close()
    assert heard_and(call) == "tts interrupted"
    (leg,) = call.meter.of(Modality.TTS)
    assert (leg.outcome, leg.basis) == (Outcome.INTERRUPTED, Basis.OBSERVED)

"""How a session can end, and what else may come its way: mute, silence, a second start."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from livekit.agents import Agent
from livekit.agents.voice.events import CloseReason

from livekit.plugins.voicecost import _attribution
from tests.plugin.endings import Caller, held_against_the_bill, meter_held_against
from tests.plugin.metered_session import (
    Call,
    Loudspeaker,
    Providers,
    metered_call,
    simulated_providers,
)
from tests.simulators import LONG_ANSWER, Reply
from voicecost_ledger.records import Basis, Modality, Outcome

ASKED = "Please explain everything to me."
CONNECTED_MS_OFF_MAX = 150
"""Between our clock and the provider's lie a handshake and a close."""


@pytest.fixture
async def providers() -> AsyncIterator[Providers]:
    async with simulated_providers(Reply(match="hello", text="Hello there.")) as providers:
        yield providers


async def aclose(call: Call) -> None:
    await call.session.aclose()


async def hang_up(call: Call) -> None:
    """What LiveKit's RoomIO does when the caller has left."""
    call.session._close_soon(reason=CloseReason.PARTICIPANT_DISCONNECTED)
    await closed(call)


async def shut_the_job_down(call: Call) -> None:
    """What LiveKit's job process does at its end, for the session that is still running."""
    await call.session._aclose_impl(reason=CloseReason.JOB_SHUTDOWN)


async def drain(call: Call) -> None:
    """A worker that is told to go lets its calls say what they have begun."""
    call.session.shutdown(drain=True)
    await closed(call)


async def closed(call: Call) -> None:
    while call.session._started:  # noqa: ASYNC110  (its event `close` may be over already)
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("end", [aclose, hang_up, shut_the_job_down])
async def test_a_session_that_ends_in_mid_speech(
    providers: Providers, end: Callable[[Call], Awaitable[None]]
) -> None:
    """The session is closed, the caller hangs up, the job ends: LiveKit's events lose all of it."""
    providers.openai.token_delay_ms, providers.deepgram.speak.speed = 15, 4
    async with metered_call(providers, hears=True) as call:
        await call.session.generate_reply(user_input="Hello, who is this?")
        call.loudspeaker.heard.clear()
        call.session.generate_reply(user_input=ASKED)
        await call.loudspeaker.heard.wait()
        await end(call)
        await call.close()
    assert held_against_the_bill(call) == (
        "stt served, llm served interrupted, tts served interrupted"
    )


async def test_a_job_that_is_drained_says_what_it_has_begun(providers: Providers) -> None:
    async with metered_call(providers, hears=True) as call:
        call.session.generate_reply(user_input="Hello, who is this?")
        await drain(call)
        await call.close()
    assert held_against_the_bill(call) == "stt served, llm served, tts served"


async def test_two_sessions_that_share_all_plugins(providers: Providers) -> None:
    """One process, one LLM, STT and TTS object: each session has what is its own."""
    shared: dict[str, Any] = {
        "llm": providers.llm(),
        "stt": providers.stt(),
        "tts": providers.tts(),
    }
    async with (
        metered_call(providers, hears=True, **shared) as first,
        metered_call(providers, hears=True, **shared) as second,
    ):
        await asyncio.gather(
            _say(first, "This is what the first one says."),
            _say(second, "And this is what the second one says, longer."),
        )
        await _ask(second)
        await first.session.aclose()
        await second.session.aclose()
        await providers.close_plugins()
        await providers.bill.settled()
    told = meter_held_against(first.meter, second.meter, providers.bill)
    assert told == "stt served served, llm served, tts served served served"
    assert [len(call.meter.legs) for call in (first, second)] == [2, 4]


async def _say(call: Call, text: str) -> None:
    await call.session.say(text)


async def _ask(call: Call) -> None:
    await call.session.generate_reply(user_input="Hello, who is this?")


async def test_a_session_that_is_started_twice(providers: Providers) -> None:
    """LiveKit's `session.usage` forgets the first time; the meter goes on counting."""
    async with metered_call(providers, hears=True) as call:
        await _ask(call)
        await call.session.aclose()
        call.session.output.audio = Loudspeaker()
        await call.session.start(Agent(instructions="You are another one."))
        await _ask(call)
        await call.close()
    assert held_against_the_bill(call) == "stt served served, llm served served, tts served served"


async def test_a_muted_microphone(providers: Providers) -> None:
    """No audio is sent, and the connection stays open: both numbers are kept, prices choose."""
    caller = Caller()
    async with metered_call(providers, hears=caller) as call:
        await call.meter.until(lambda: call.meter.total(Modality.STT, "audio_ms") > 300)
        caller.mute()
        muted_ms = call.meter.total(Modality.STT, "audio_ms")
        await _ask(call)
        await call.close()
    assert held_against_the_bill(call) == "stt served, llm served, tts served"
    (ear,) = call.meter.of(Modality.STT)
    (row,) = (row for row in providers.bill.rows if row.service == "stt")
    # What LiveKit pushes at the end to hear the last word is all that was added.
    assert ear.usage["audio_ms"] < muted_ms + 2_500
    assert row.connected_ms is not None
    assert abs(ear.usage["connected_ms"] - row.connected_ms) <= CONNECTED_MS_OFF_MAX


async def test_a_long_silence(providers: Providers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten minutes pass in which nobody says a word: the connection is open all the time."""
    monotonic_ns, passed_ns = time.monotonic_ns, 0
    monkeypatch.setattr(time, "monotonic_ns", lambda: monotonic_ns() + passed_ns)
    caller = Caller()
    async with metered_call(providers, hears=caller) as call:
        await call.meter.until(lambda: call.meter.total(Modality.STT, "audio_ms") > 300)
        caller.mute()
        passed_ns = 600_000_000_000
        caller.mute(False)
        # The next audio shows that the connection is still there, and how long.
        await call.meter.until(lambda: call.meter.total(Modality.STT, "connected_ms") > 600_000)
        await call.close()
    assert held_against_the_bill(call) == "stt served"
    (ear,) = call.meter.of(Modality.STT)
    (row,) = providers.bill.rows
    assert row.connected_ms is not None
    assert row.connected_ms > 600_000
    assert abs(ear.usage["connected_ms"] - row.connected_ms) <= CONNECTED_MS_OFF_MAX
    assert ear.usage["audio_ms"] < 10_000


async def test_a_reconnect_is_another_leg(providers: Providers) -> None:
    """An option that changes, as Deepgram's plugin does it: close, and connect anew."""
    ear = providers.stt(language="en-US")
    async with metered_call(providers, hears=True, stt=ear) as call:
        await call.meter.until(lambda: call.meter.total(Modality.STT, "audio_ms") > 500)
        ear.update_options(language="de")
        await call.meter.until(lambda: len(call.meter.of(Modality.STT)) == 2)
        await call.meter.until(lambda: call.meter.of(Modality.STT)[1].usage["audio_ms"] > 500)
        await call.close()
    assert held_against_the_bill(call) == "stt served served"
    legs = call.meter.of(Modality.STT)
    assert [leg.attributes.language for leg in legs] == ["en-US", "de"]


async def test_say_from_another_sessions_task(providers: Providers) -> None:
    """`session.say` is booked to the session that speaks, whoever makes it."""
    said: list[Call] = []

    class Gossip(Agent):
        async def on_enter(self) -> None:
            await said[0].session.say("I heard it from somebody else.")

    async with metered_call(providers, hears=True) as quiet:
        said.append(quiet)
        async with metered_call(providers, agent=Gossip(instructions="You gossip.")) as gossip:
            await quiet.meter.stopped(Modality.TTS)
            await gossip.session.aclose()
            await quiet.close()
    assert gossip.meter.of(Modality.TTS) == []
    (leg,) = quiet.meter.of(Modality.TTS)
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.OBSERVED)
    assert leg.usage["characters"] == providers.bill.total("characters")


async def test_what_was_used_before_a_meter_was_attached(providers: Providers) -> None:
    async with metered_call(providers, hears=True, attach=False) as call:
        await _ask(call)
        assert call.meter.records == []
        _attribution.register(call.session, call.meter)
        speech = call.session.say(LONG_ANSWER)
        await call.meter.until(lambda: call.meter.total(Modality.TTS, "characters") > 100)
        speech.interrupt()
        await call.close()
    told = held_against_the_bill(call)
    assert told == "stt served, llm served, tts served interrupted"

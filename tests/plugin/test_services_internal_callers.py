"""LiveKit's own callers of models: metered, and booked to the session they work for.

Two sessions run in one process, so that "the only session" can never be the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from livekit.agents import AMD, inference
from livekit.agents.evals import JudgeGroup, task_completion_judge
from livekit.agents.llm import ChatContext
from livekit.agents.vad import VAD, VADCapabilities, VADEvent, VADEventType, VADStream

from livekit.plugins.voicecost import _attribution, _instrument
from tests.plugin.endings import Caller, meter_held_against
from tests.plugin.metered_session import (
    Call,
    Providers,
    metered_call,
    simulated_providers,
)
from tests.simulators import Reply, ToolCall
from tests.simulators.inference_services import InferenceServicesSimulator
from voicecost_ledger.records import Modality, Outcome

VOICEMAIL = "You have reached the mailbox of John Smith, please leave a message."
REPLIES = (
    Reply(
        match="mailbox",
        tool_call=ToolCall(name="save_prediction", arguments={"label": "machine-vm"}),
    ),
    Reply(
        match="conversation",
        text="Done.",
        tool_call=ToolCall(
            name="submit_verdict", arguments={"verdict": "pass", "reasoning": "It was done."}
        ),
    ),
    Reply(match="", text="Certainly."),
)


@dataclass
class World:
    providers: Providers
    stack: AsyncExitStack

    async def call(self, **options: object) -> Call:
        return await self.stack.enter_async_context(metered_call(self.providers, **options))  # pyright: ignore[reportArgumentType] options of AgentSession


async def ended(call: Call, other: Call) -> None:
    """Both sessions are closed, and the providers have noticed; the other one asked for nothing."""
    for each in (call, other):
        await each.session.aclose()
    for each in (call, other):
        await each.close()
    assert {leg.attributes.modality for leg in other.meter.legs.values()} <= {Modality.STT}
    assert other.meter.total(Modality.STT, "audio_ms") == 0  # connected for nothing


async def connected(stream: Any) -> None:
    """Return when a turn detector's stream has a session at the gateway."""
    while stream._transport._ws is None:  # noqa: ASYNC110  (LiveKit tells nobody)
        await asyncio.sleep(0.001)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")
    async with simulated_providers(*REPLIES) as providers, AsyncExitStack() as stack:
        yield World(providers, stack)


async def test_answering_machine_detection_is_the_sessions(world: World) -> None:
    world.providers.deepgram.listen.transcripts.extend([VOICEMAIL] * 2)  # both hear it
    caller = Caller()
    other = await world.call()
    call = await world.call(hears=caller)
    detector = AMD(
        call.session,
        llm=world.providers.llm(),
        stt=world.providers.stt(),
        interrupt_on_machine=False,
        suppress_compatibility_warning=True,
        detection_options={"max_endpointing_delay": 0.05},
    )
    async with detector:
        while detector._audio_ch is None:  # noqa: ASYNC110  (LiveKit tells nobody)
            await asyncio.sleep(0.001)
        caller.says()
        result = await detector.execute()
    assert result.is_machine
    await ended(call, other)

    heard = meter_held_against(call.meter, other.meter, world.providers.bill)
    assert heard == "stt served served served, llm served"


async def test_keyterm_detection_is_the_sessions(world: World) -> None:
    other = await world.call()
    call = await world.call(
        keyterms_options={
            "keyterm_detection": {
                "enabled": True,
                "llm": world.providers.llm(model="gpt-4o"),
                "turn_interval": 1,
            }
        }
    )
    await asyncio.wait_for(
        call.session.generate_reply(user_input="I am Xanthippe Papadopoulos").wait_for_playout(),
        10,
    )
    await call.meter.stopped(Modality.LLM, 2)
    await ended(call, other)

    assert {leg.attributes.model for leg in call.meter.of(Modality.LLM)} == {
        "gpt-4o-mini",
        "gpt-4o",
    }
    meter_held_against(call.meter, other.meter, world.providers.bill)


async def test_judges_are_booked_where_they_are_asked_in_scope(world: World) -> None:
    """They are given a transcript and know of no session: `meter.scope()` says whose they are."""
    call = await world.call()
    other = await world.call()
    conversation = ChatContext.empty()
    conversation.add_message(role="user", content="Please cancel my order.")
    conversation.add_message(role="assistant", content="It is cancelled.")
    judges = JudgeGroup(llm=world.providers.llm(), judges=[task_completion_judge()])
    with _attribution.scoped(call.meter):
        result = await judges.evaluate(conversation)
    assert result.all_passed
    await ended(call, other)

    assert [leg.outcome for leg in call.meter.of(Modality.LLM)] == [Outcome.SERVED]
    meter_held_against(call.meter, other.meter, world.providers.bill)


async def test_a_turn_detector_changed_in_mid_call_is_the_sessions(world: World) -> None:
    gateway = await world.stack.enter_async_context(InferenceServicesSimulator())
    other = await world.call()
    call = await world.call()
    activity: Any = call.session._activity
    recognition = activity._audio_recognition
    recognition._update_turn_detector(
        inference.TurnDetector(
            version="v1",
            base_url=gateway.url,
            api_key="key",
            api_secret="secret" * 6,
            http_session=world.providers.http,
        )
    )
    stream = recognition._turn_detector_stream
    await connected(stream)
    await stream.predict()
    await ended(call, other)
    (leg,) = call.meter.of(Modality.TURN_DETECTION)
    assert leg.usage == {"requests": 1}


class LoudnessVAD(VAD):
    """Hears speech in any frame that is not silent, and its end after ten silent ones."""

    def __init__(self) -> None:
        super().__init__(capabilities=VADCapabilities(update_interval=0.02))

    def stream(self) -> VADStream:
        return _LoudnessStream(self)


class _LoudnessStream(VADStream):
    async def _main_task(self) -> None:
        speaking, silent_s = False, 0.0
        async for frame in self._input_ch:
            if isinstance(frame, self._FlushSentinel):
                continue
            loud = any(frame.data)
            silent_s = 0.0 if loud else silent_s + frame.duration
            if loud and not speaking:
                speaking = True
                self._tell(VADEventType.START_OF_SPEECH, silent_s)
            self._tell(VADEventType.INFERENCE_DONE, silent_s)
            if speaking and silent_s >= 0.5:
                speaking = False
                self._tell(VADEventType.END_OF_SPEECH, silent_s)

    def _tell(self, kind: VADEventType, silent_s: float) -> None:
        self._event_ch.send_nowait(
            VADEvent(
                type=kind,
                samples_index=0,
                timestamp=0.0,
                speech_duration=0.3,
                silence_duration=silent_s,
                raw_accumulated_silence=silent_s,
                raw_accumulated_speech=0.0 if silent_s else 0.3,
            )
        )


async def test_the_end_of_a_callers_turn_is_asked_for_in_the_callers_session(
    world: World,
) -> None:
    gateway = await world.stack.enter_async_context(InferenceServicesSimulator())
    detector = inference.TurnDetector(
        version="v1",
        base_url=gateway.url,
        api_key="key",
        api_secret="secret" * 6,
        http_session=world.providers.http,
    )
    caller = Caller()
    other = await world.call()
    call = await world.call(
        hears=caller, vad=LoudnessVAD(), turn_handling={"turn_detection": detector}
    )
    activity: Any = call.session._activity
    await connected(activity._audio_recognition._turn_detector_stream)
    caller.says()
    await gateway.asked("turn_detection", 1)
    await ended(call, other)
    await gateway.bill.settled()
    (leg,) = call.meter.of(Modality.TURN_DETECTION)
    assert leg.usage == gateway.bill.rows[0].units
    assert leg.outcome is Outcome.SERVED


async def test_the_names_are_put_back() -> None:
    before = AMD._run
    _instrument.instrument()
    assert AMD._run is not before
    _instrument.uninstrument()
    assert AMD._run is before


async def test_a_caller_that_no_longer_knows_its_session_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = pytest.importorskip("livekit.agents.voice.keyterm_detection")  # not in the oldest
    detector_class: Any = module.KeytermDetector
    taken: list[object] = []

    def take(self: object, event: object) -> None:
        taken.append(event)

    monkeypatch.setattr(detector_class, "_on_conversation_item_added", take)
    _instrument.instrument()
    try:
        detector = object.__new__(detector_class)
        detector._on_conversation_item_added("an item")
    finally:
        _instrument.uninstrument()
    assert taken == ["an item"]

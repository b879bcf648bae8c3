"""Seeded calls of 20 to 30 s: what a caller does is drawn turn by turn.

The caller's voice goes through the microphone, speech recognition decides the turns, so barge-ins
are LiveKit's own. What a seed does not say is when exactly: that is the machine's.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from typing import Final

from tests.simulators import Fault, Reply, ToolCall

from .stage import Clerk, LiveCall, NotReachedError, Stage
from .texts import LANGUAGES, Language, lookup, order

CALL_S: Final = (20.0, 30.0)
_BARGE_IN_SHARE: Final = 0.35
_MODELS: Final = ("openai", "openai", "anthropic")
_VOICES: Final = ("deepgram", "deepgram", "cartesia", "elevenlabs")
_TOKEN_MS: Final = (7, 12, 20, 35)  # 30 to 140 tokens a second


async def converse(stage: Stage) -> None:
    """Play one call to its end."""
    chance = stage.chance
    language = LANGUAGES[chance.choice(list(LANGUAGES))]
    with_tools = chance.random() < 0.5
    model, voice = chance.choice(_MODELS), chance.choice(_VOICES)
    served_by = stage.openai[0] if model == "openai" else stage.anthropic
    served_by.token_delay_ms = chance.choice(_TOKEN_MS)
    # A third of all agents carry a manual: then part of every prompt is cached.
    sentence_count = chance.choice((4, 8, 60))
    questions = list(language.questions)
    chance.shuffle(questions)
    replies = [_reply(language, each, chance, with_tools=with_tools) for each in questions]
    stage.script(said=questions, replies=replies)
    if chance.random() < 0.15:
        fault = chance.choice((Fault(status=429), Fault(status=500), Fault(dies_after=12)))
        served_by.faults.add(fault)
    if voice == "deepgram" and chance.random() < 0.2:
        stage.deepgram[0].speak.faults.add(Fault(dies_after=900))
    agent = Clerk(language.manual(chance, sentence_count), tools=with_tools)
    ends_at = time.monotonic() + chance.uniform(*CALL_S)
    async with stage.call(
        agent,
        turns="stt",
        stt=stage.stt(language=language.code),
        llm=stage.llm() if model == "openai" else stage.claude(),
        tts={"deepgram": stage.tts, "cartesia": stage.sonic, "elevenlabs": stage.eleven}[voice](),
        handling={"preemptive_generation": {"enabled": chance.random() < 0.5}},
    ) as call:
        await call.spoken(call.session.say(language.greeting))
        for barges_in in _turns(chance):
            if time.monotonic() > ends_at - 2:
                break
            # A caller does not hang up before the first answer.
            patience_s = ends_at - time.monotonic() if call.turns else None
            call.turns += 1
            try:
                await asyncio.wait_for(_turn(call, barges_in), patience_s)
            except (TimeoutError, NotReachedError):
                break  # the caller hangs up, in mid-sentence
        call.ear.ended = True


def _turns(chance: random.Random) -> Iterator[float | None]:
    """For each turn: hear the answer to its end (None), or speak after so much of it.

    The first is heard: a call whose every request is interrupted is an ending of its own.
    """
    yield None
    while True:
        if chance.random() < _BARGE_IN_SHARE:
            yield chance.choice((0.0, 0.3, 1.0, 2.5, 4.0))
        else:
            yield None


async def _turn(call: LiveCall, barges_in_after_s: float | None) -> None:
    chance = call.stage.chance
    rows = len(call.stage.llm_rows())
    await call.ear.speak(chance.uniform(0.6, 1.4))
    if barges_in_after_s == 0.0:  # before a word of the answer was heard
        await call.until(lambda: len(call.stage.llm_rows()) > rows)
        await asyncio.sleep(chance.uniform(0.0, 0.4))
        return
    await call.until(lambda: call.mouth.playing, timeout_s=12)
    if barges_in_after_s is not None:
        await call.hears(barges_in_after_s)
        return
    await call.until(lambda: not call.mouth.playing)
    await asyncio.sleep(chance.uniform(0.1, 0.6))


def _reply(language: Language, question: str, chance: random.Random, *, with_tools: bool) -> Reply:
    tool_call = None
    parallel: tuple[ToolCall, ...] = ()
    if with_tools and chance.random() < 0.5:
        if chance.random() < 0.6:
            tool_call = ToolCall(name="save_order", arguments=order(chance, chance.randint(1, 5)))
        else:
            tool_call = ToolCall(name="look_up", arguments=lookup(chance))
            if chance.random() < 0.5:
                parallel = (ToolCall(name="look_up", arguments=lookup(chance)),)
    text = language.answer(chance, chance.choice((1, 2, 2, 3, 4, 6)))
    return Reply(match=question, text=text, tool_call=tool_call, parallel=parallel)

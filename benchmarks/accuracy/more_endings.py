"""More endings: realtime models, a session that is started again, a probe that nobody waits for."""

# livekit-agents says little of its generics.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

from typing import Any

from livekit.agents.llm import FallbackAdapter

from tests.simulators import LONG_ANSWER, Fault, Reply

from .endings import ENDINGS as ENDINGS
from .endings import clerk, ending, first_turn, last_turn, script
from .stage import LiveCall, Stage


async def _answered_and_interrupted(call: LiveCall) -> None:
    """Two spoken turns, one of them interrupted by the caller's voice, and a written one."""
    stage = call.stage
    await call.ear.speak(1.2)
    await call.until(lambda: call.mouth.playing)
    await call.until(lambda: not call.mouth.playing)
    rows = stage.rows("realtime")
    speech = call.ask("Please explain all of it.")
    await call.hears(1.5)
    await call.ear.speak(0.8)
    await call.spoken(speech)
    await call.until(lambda: stage.rows("realtime") > rows + 1)
    await call.until(lambda: call.mouth.playing)
    await call.until(lambda: not call.mouth.playing)


@ending("realtime: a barge-in while it speaks")
async def _realtime(stage: Stage) -> None:
    script(stage)
    options: dict[str, Any] = {"llm": stage.realtime(), "stt": None, "tts": None}
    async with stage.call(clerk(stage, tools=False), turns=None, **options) as call:
        await _answered_and_interrupted(call)


@ending("realtime: text, and a voice of its own")
async def _realtime_voice(stage: Stage) -> None:
    script(stage)
    options: dict[str, Any] = {"llm": stage.realtime(modalities=["text"]), "stt": None}
    async with stage.call(clerk(stage, tools=False), turns=None, **options) as call:
        await _answered_and_interrupted(call)


@ending("realtime: closed while it speaks")
async def _realtime_closed(stage: Stage) -> None:
    script(stage, Reply(text=LONG_ANSWER))
    options: dict[str, Any] = {"llm": stage.realtime(), "stt": None, "tts": None}
    async with stage.call(clerk(stage, tools=False), turns=None, **options) as call:
        call.ask("Please explain all of it.")
        await call.hears(2.0)


@ending("session started again")
async def _started_again(stage: Stage) -> None:
    script(stage)
    agent = clerk(stage)
    async with stage.call(agent) as call:
        await first_turn(call)
        await call.close()
        call.closed.clear()
        await call.session.start(agent)
        await last_turn(call)


@ending("LLM probe open at the close")
async def _probe_open(stage: Stage) -> None:
    script(stage)
    models = FallbackAdapter([stage.llm(0), stage.llm(1)], max_retry_per_llm=0)
    async with stage.call(clerk(stage), llm=models) as call:
        await first_turn(call)
        stage.openai[0].faults.add(Fault(status=500), Fault(silent=True))
        await call.answered("Is it open on Sunday?")

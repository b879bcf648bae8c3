"""One call for each way in which a request can end and money be lost on the way.

Each has a clean turn before and, where it lives on, one after, as a call has.
"""

# livekit-agents says little of its generics.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, cast

from livekit import rtc
from livekit.agents import AgentSession, AgentTask, RunContext, function_tool
from livekit.agents.llm import ChatContext, ChatMessage, FallbackAdapter
from livekit.agents.stt import FallbackAdapter as STTFallbackAdapter
from livekit.agents.tts import FallbackAdapter as TTSFallbackAdapter

from tests.simulators import LONG_ANSWER, Fault, Reply, ToolCall

from .stage import Clerk, LiveCall, Stage
from .texts import LANGUAGES, lookup, order

Play = Callable[[Stage], Awaitable[None]]
ENDINGS: Final[dict[str, Play]] = {}

_ENGLISH: Final = LANGUAGES["en"]
_SHORT: Final = "Your booking is confirmed for the fourteenth, and the invoice is on its way."


def ending(title: str) -> Callable[[Play], Play]:
    """Add a case to the list under this title."""

    def add(play: Play) -> Play:
        ENDINGS[title] = play
        return play

    return add


def script(stage: Stage, *replies: Reply) -> None:
    stage.script(
        said=_ENGLISH.questions,
        replies=[*replies, Reply(match="explain", text=LONG_ANSWER), Reply(text=_SHORT)],
    )


def clerk(stage: Stage, **options: Any) -> Clerk:
    return Clerk(_ENGLISH.manual(stage.chance, 12), **options)


async def first_turn(call: LiveCall) -> None:
    await call.spoken(call.session.say(_ENGLISH.greeting))
    await call.answered(_ENGLISH.questions[0])


async def last_turn(call: LiveCall) -> None:
    await call.answered(_ENGLISH.questions[1])


async def _interrupted(call: LiveCall, speech: Any) -> None:
    speech.interrupt()
    await call.spoken(speech)


@ending("clean turns")
async def _clean(stage: Stage) -> None:
    script(stage)
    async with stage.call(clerk(stage)) as call:
        await first_turn(call)
        await last_turn(call)


@ending("barge-in while the LLM writes")
async def _while_the_llm_writes(stage: Stage) -> None:
    script(stage)
    async with stage.call(clerk(stage)) as call:
        await first_turn(call)
        speech, rows = call.ask("Please explain all of it."), len(stage.llm_rows())
        await call.written(45, after_rows=rows)
        await _interrupted(call, speech)
        await last_turn(call)


@ending("barge-in while only the TTS speaks")
async def _while_the_tts_speaks(stage: Stage) -> None:
    script(stage)
    stage.deepgram[0].speak.speed = 1.5  # still making sound when the text is complete
    stage.openai[0].token_delay_ms = 2
    async with stage.call(clerk(stage)) as call:
        await first_turn(call)
        rows = len(stage.llm_rows())
        speech = call.ask("Please explain all of it.")
        await call.until(
            lambda: (
                len(stage.llm_rows()) > rows
                and stage.llm_rows()[-1].ended == "completed"
                and call.mouth.playing
            )
        )
        await call.hears(1.0)
        await _interrupted(call, speech)
        await last_turn(call)


@ending("barge-in when all is generated")
async def _when_all_is_generated(stage: Stage) -> None:
    script(stage)
    stage.deepgram[0].speak.speed = 0
    stage.openai[0].token_delay_ms = 1
    async with stage.call(clerk(stage)) as call:
        await first_turn(call)
        speech = call.ask("Please explain all of it.")
        await call.hears(3.0)
        await _interrupted(call, speech)
        await last_turn(call)


@ending("interrupted before the first audio")
async def _before_the_first_audio(stage: Stage) -> None:
    script(stage)
    stage.deepgram[0].speak.first_byte_delay_ms = 800
    async with stage.call(clerk(stage)) as call:
        await first_turn(call)
        for tokens in (8, 20):
            rows = len(stage.llm_rows())
            speech = call.ask("Please explain all of it.")
            await call.written(tokens, after_rows=rows)
            await _interrupted(call, speech)
        await last_turn(call)


@ending("interrupted before the first token")
async def _before_the_first_token(stage: Stage) -> None:
    script(stage)
    async with stage.call(clerk(stage)) as call:
        await first_turn(call)
        rows = len(stage.llm_rows())
        speech = call.ask("Please explain all of it.")
        await call.until(lambda: len(stage.llm_rows()) > rows)
        await _interrupted(call, speech)
        await last_turn(call)


class _Undecided(Clerk):
    """Every other turn changes what is asked, once the answer to it is being written."""

    changes = False

    def wrote(self) -> Awaitable[None]:
        raise NotImplementedError

    async def on_user_turn_completed(self, turn_ctx: ChatContext, new_message: ChatMessage) -> None:
        if self.changes:
            await self.wrote()
            turn_ctx.add_message(role="system", content="The caller is a frequent flyer.")


@ending("every request interrupted: nothing to learn from")
async def _every_request(stage: Stage) -> None:
    script(stage)
    async with stage.call(clerk(stage)) as call:
        await call.spoken(call.session.say(_ENGLISH.greeting))
        for _ in range(3):
            rows = len(stage.llm_rows())
            speech = call.ask("Please explain all of it.")
            await call.written(40, after_rows=rows)
            await call.hears(0.5)
            await _interrupted(call, speech)


@ending("preemptive generation, used or thrown away")
async def _preemptive(stage: Stage) -> None:
    script(stage)
    agent = _Undecided(_ENGLISH.manual(stage.chance, 12))
    async with stage.call(agent, turns=None) as call:
        await call.spoken(call.session.say(_ENGLISH.greeting))
        for changes in (False, True):
            rows = len(stage.llm_rows())
            agent.changes = changes
            agent.wrote = functools.partial(call.written, 9, after_rows=rows)
            await call.ear.speak(0.8)
            await call.until(lambda: call.mouth.playing)
            await call.until(lambda: not call.mouth.playing)


@ending("tool calls in a row")
async def _tools_in_a_row(stage: Stage) -> None:
    then = Reply(
        match="order",
        text=_SHORT,
        tool_call=ToolCall(name="save_order", arguments=order(stage.chance, 5)),
    )
    first = Reply(
        match="order",
        tool_call=ToolCall(name="look_up", arguments=lookup(stage.chance)),
        then=then,
    )
    script(stage, first)
    async with stage.call(clerk(stage)) as call:
        await first_turn(call)
        await call.answered("Please order them for me.")
        await last_turn(call)


@ending("tool calls in parallel")
async def _tools_in_parallel(stage: Stage) -> None:
    calls = [ToolCall(name="look_up", arguments=lookup(stage.chance)) for _ in range(3)]
    reply = Reply(match="order", text=_SHORT, tool_call=calls[0], parallel=tuple(calls[1:]))
    script(stage, reply)
    async with stage.call(clerk(stage)) as call:
        await first_turn(call)
        await call.answered("What about my three orders?")
        await last_turn(call)


@ending("tool call cancelled, arguments half written")
async def _half_written(stage: Stage) -> None:
    call_it = ToolCall(name="save_order", arguments=order(stage.chance, 9))
    script(stage, Reply(match="order", text=_SHORT, tool_call=call_it))
    async with stage.call(clerk(stage)) as call:
        await first_turn(call)
        rows = len(stage.llm_rows())
        speech = call.ask("Please order them for me.")
        await call.written(120, after_rows=rows)
        await _interrupted(call, speech)
        await last_turn(call)


@ending("hand-off to an agent with its own models, and back")
async def _hand_off(stage: Stage) -> None:
    class Expected(Clerk):
        async def on_enter(self) -> None:
            entered.set()

    entered = asyncio.Event()

    @function_tool
    async def transfer(context: RunContext[None]) -> Any:
        """Put the caller through to a specialist."""
        return Expected(
            _ENGLISH.manual(stage.chance, 20),
            stt=stage.stt(1),
            llm=stage.llm(1),
            tts=stage.tts(1),
        ), "transferred"

    transfer_reply = Reply(match="specialist", text=_SHORT, tool_call=ToolCall(name="transfer"))
    script(stage, transfer_reply)
    agent = Clerk(_ENGLISH.manual(stage.chance, 12), tools=False)
    async with stage.call(agent) as call:
        await agent.update_tools([transfer])
        await first_turn(call)
        await call.answered("May I talk to a specialist?")
        await asyncio.wait_for(entered.wait(), 20)
        await call.until(lambda: not call.mouth.playing)
        entered.clear()
        await call.answered(_ENGLISH.questions[2])
        call.session.update_agent(Expected(_ENGLISH.manual(stage.chance, 12)))
        await asyncio.wait_for(entered.wait(), 20)
        await last_turn(call)


class _Consent(AgentTask[bool]):
    def __init__(self) -> None:
        super().__init__(instructions="Ask whether the call may be recorded. Be brief.")

    async def on_enter(self) -> None:
        """Ask, then take the answer as a yes."""
        session = cast("AgentSession[None]", self.session)
        await session.say("May we record this call?").wait_for_playout()
        await session.generate_reply(user_input="Yes, that is fine.").wait_for_playout()
        self.complete(True)


@ending("AgentTask")
async def _agent_task(stage: Stage) -> None:
    class Asker(Clerk):
        async def on_enter(self) -> None:
            await _Consent()
            consented.set()

    consented = asyncio.Event()
    script(stage)
    async with stage.call(Asker(_ENGLISH.manual(stage.chance, 12))) as call:
        await asyncio.wait_for(consented.wait(), 30)
        await call.until(lambda: isinstance(call.session.current_agent, Asker))
        await asyncio.sleep(0.5)  # LiveKit says nowhere when the agent may speak again
        await first_turn(call)


@ending("retry after 429 and 500")
async def _refused(stage: Stage) -> None:
    script(stage)
    async with stage.call(clerk(stage)) as call:
        await first_turn(call)
        stage.openai[0].faults.add(Fault(status=429), Fault(status=500))
        await call.answered(_ENGLISH.questions[2])
        stage.deepgram[0].speak.faults.add(Fault(status=500))
        await last_turn(call)


@ending("LLM stream dies")
async def _stream_dies(stage: Stage) -> None:
    script(stage)
    async with stage.call(clerk(stage)) as call:
        await first_turn(call)
        stage.openai[0].faults.add(Fault(dies_after=20))
        await call.spoken(call.ask("Please explain all of it."))
        await last_turn(call)


@ending("TTS socket dies mid-audio")
async def _socket_dies(stage: Stage) -> None:
    script(stage)
    async with stage.call(clerk(stage)) as call:
        stage.deepgram[0].speak.faults.add(Fault(dies_after=4000))
        await call.spoken(call.session.say(LONG_ANSWER))
        # LiveKit leaves the dead sentence's audio open: now and then the next waits for its end.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(call.ask(_ENGLISH.questions[1]).wait_for_playout(), 15)


@ending("LLM hangs until the timeout")
async def _hangs(stage: Stage) -> None:
    script(stage)
    async with stage.call(clerk(stage)) as call:
        await first_turn(call)
        stage.openai[0].faults.add(Fault(silent=True))
        await call.answered(_ENGLISH.questions[2])
        await last_turn(call)


@ending("fallback of the LLM: switch, probe, return")
async def _llm_falls_back(stage: Stage) -> None:
    script(stage)
    models = FallbackAdapter([stage.llm(0), stage.llm(1)], attempt_timeout=2.0)
    async with stage.call(clerk(stage), llm=models) as call:
        await first_turn(call)
        stage.openai[0].faults.add(Fault(status=500), Fault(status=500), Fault(dies_after=10))
        await call.answered(_ENGLISH.questions[2])
        await call.answered(_ENGLISH.questions[3])
        await last_turn(call)


@ending("fallback of the TTS: switch and probe")
async def _tts_falls_back(stage: Stage) -> None:
    script(stage)
    voices = TTSFallbackAdapter([stage.tts(0), stage.tts(1)], max_retry_per_tts=0)
    async with stage.call(clerk(stage), tts=voices) as call:
        stage.deepgram[0].speak.faults.add(Fault(status=500), Fault(status=500))
        await first_turn(call)
        await call.answered(_ENGLISH.questions[2])
        await last_turn(call)


@ending("fallback of the STT: switch and probe")
async def _stt_falls_back(stage: Stage) -> None:
    script(stage)
    ears = STTFallbackAdapter([stage.stt(0), stage.stt(1)], max_retry_per_stt=0)
    stage.deepgram[0].listen.faults.add(Fault(status=500))
    async with stage.call(clerk(stage), stt=ears) as call:
        await first_turn(call)
        await last_turn(call)


@ending("closed in mid-speech")
async def _closed_in_mid_speech(stage: Stage) -> None:
    script(stage)
    async with stage.call(clerk(stage)) as call:
        await first_turn(call)
        rows = len(stage.llm_rows())
        call.ask("Please explain all of it.")
        await call.written(40, after_rows=rows)
        await call.hears(0.5)


@ending("two sessions on one plugin")
async def _two_sessions(stage: Stage) -> None:
    script(stage)
    shared: dict[str, Any] = {"llm": stage.llm(), "tts": stage.tts(), "stt": stage.stt()}
    async with (
        stage.call(clerk(stage), **shared) as one,
        stage.call(clerk(stage), **shared) as other,
    ):
        await asyncio.gather(first_turn(one), first_turn(other))
        speech = one.ask("Please explain all of it.")
        await one.hears(2.0)
        await asyncio.gather(_interrupted(one, speech), last_turn(other))


@ending("say with cached audio")
async def _cached_audio(stage: Stage) -> None:
    async def cached() -> AsyncIterator[rtc.AudioFrame]:
        for _ in range(20):
            yield rtc.AudioFrame(bytes(2 * 2400), 24_000, 1, 2400)

    script(stage)
    async with stage.call(clerk(stage)) as call:
        await first_turn(call)
        await call.spoken(call.session.say(_ENGLISH.greeting, audio=cached()))
        await last_turn(call)


@ending("muted microphone")
async def _muted(stage: Stage) -> None:
    script(stage)
    async with stage.call(clerk(stage)) as call:
        await first_turn(call)
        call.session.input.set_audio_enabled(False)
        await asyncio.sleep(6)
        call.session.input.set_audio_enabled(True)
        await last_turn(call)


@ending("STT reconnects")
async def _stt_reconnects(stage: Stage) -> None:
    script(stage)
    stage.deepgram[0].listen.faults.add(Fault(dies_after=4000))
    async with stage.call(clerk(stage)) as call:
        await first_turn(call)
        await last_turn(call)
        call.stage.deepgram[0].listen.faults.add(Fault(dies_after=1500))
        await asyncio.sleep(3)


@ending("long silence")
async def _silence(stage: Stage) -> None:
    script(stage)
    async with stage.call(clerk(stage)) as call:
        await first_turn(call)
        await asyncio.sleep(20)


@ending("text only")
async def _text_only(stage: Stage) -> None:
    script(stage)
    async with stage.call(clerk(stage), hears=False, speaks=False) as call:
        for question in _ENGLISH.questions[:4]:
            await call.answered(question)


@ending("a model asked in a tool")
async def _in_a_tool(stage: Stage) -> None:
    model = stage.llm(1)

    @function_tool
    async def summarize(context: RunContext[None]) -> str:
        """Sum up the call so far."""
        about = ChatContext.empty()
        about.add_message(role="user", content=_ENGLISH.manual(stage.chance, 10))
        async with model.chat(chat_ctx=about) as stream:
            return "".join(
                [chunk.delta.content or "" async for chunk in stream if chunk.delta is not None]
            )

    reply = Reply(match="sum up", text=_SHORT, tool_call=ToolCall(name="summarize"))
    script(stage, reply)
    agent = clerk(stage, tools=False)
    async with stage.call(agent) as call:
        await agent.update_tools([summarize])
        await first_turn(call)
        await call.answered("Could you sum up the call?")
        await last_turn(call)

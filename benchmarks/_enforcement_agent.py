"""The agent of bench_enforcement: uses up its call's budget, and notes the instant it does.

An ordinary LiveKit worker with the unmodified Deepgram TTS, started by the benchmark. What to do
comes with the call: `talk` on and on until a word does not fit the budget any more, or be silent
while a request is `reported` to have used more than it looked like.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from livekit.agents import Agent, AgentServer, AgentSession, JobContext
from livekit.plugins.deepgram import TTS

from livekit.plugins.voicecost import Meter, VoiceCost
from voicecost_ledger.money import parse_usd
from voicecost_ledger.records import Basis, LegAttributes, Modality, Outcome

WORD_PAUSE_S = 0.02  # as a model writes: the budget runs out in mid-sentence
WORDS = ("this agent talks on and on without ever coming to an end " * 10).split()

# load_fnc: a busy machine would make the worker refuse calls, and LiveKit never asks again.
server = AgentServer(load_fnc=lambda: 0.0, num_idle_processes=2, host="127.0.0.1", port=0)


async def endless_sentence() -> AsyncIterator[str]:
    for word in WORDS:
        yield f"{word} "
        await asyncio.sleep(WORD_PAUSE_S)


def report_too_much(meter: Meter) -> None:
    """A request that is over, and whose provider only now says what it used."""
    attributes = LegAttributes(
        Modality.TTS, "Deepgram", "aura-2-andromeda-en", host="127.0.0.1", language="en"
    )
    leg = meter.open_leg(attributes, {"characters": 1})
    leg.stop(Outcome.SERVED, {"characters": 1_000_000}, Basis.REPORTED)


def note_breach(meter: Meter, limit_nano_usd: int, note: Path) -> None:
    """Write down the instant at which the budget is used up, on the clock all processes share.

    It is taken before anything is done about it: when the meter is asked for what the budget does
    not have any more, or when a charge takes it over, whichever comes first.
    """
    may_spend, charge_changed = meter.may_spend, meter.charge_changed
    breached = False

    def breach(at_ns: int) -> None:
        nonlocal breached
        if not breached:
            breached = True
            unix_ms = time.time_ns() // 1_000_000
            note.write_text(json.dumps({"monotonic_ns": at_ns, "unix_ms": unix_ms}))

    def observed_may_spend(next_nano_usd: int) -> bool:
        at_ns = time.monotonic_ns()
        allowed = may_spend(next_nano_usd)
        if not allowed:
            breach(at_ns)
        return allowed

    def observed_charge_changed(leg: Any, amount_nano_usd: int | None) -> None:
        at_ns = time.monotonic_ns()
        charge_changed(leg, amount_nano_usd)
        if meter.cost.total_nano_usd >= limit_nano_usd:
            breach(at_ns)

    meter.may_spend = observed_may_spend
    meter.charge_changed = observed_charge_changed


@server.rtc_session(agent_name="spender")
async def answer(ctx: JobContext) -> None:
    """Take one call."""
    terms = json.loads(ctx.job.metadata)
    voice = TTS(base_url=os.environ["DEEPGRAM_TTS_URL"])
    # Any: LiveKit's `on` and `start` are typed in part only.
    session: Any = AgentSession[None](tts=voice, vad=None)
    room: Any = ctx.room
    budget: str | None = terms["budget_usd"]
    meter = VoiceCost(project="bench", budget=budget, on_budget="end").attach(session)
    if budget is not None:
        note_breach(meter, parse_usd(budget), Path(terms["note"]))

    def on_asked(_: object) -> None:
        if terms["does"] == "talk":
            session.say(endless_sentence())
        else:
            report_too_much(meter)

    room.on("data_received", on_asked)
    await session.start(agent=Agent(instructions="You talk."), room=room)

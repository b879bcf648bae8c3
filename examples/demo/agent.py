"""The demo's agent: an ordinary LiveKit worker, metered by one line of VoiceCost.

    python -m livekit.agents start examples/demo/agent.py

The providers' base URLs come from the environment, so that the demo can point the unmodified
provider plugins at its simulators; without them, and with API keys, it talks to the real ones.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from livekit.agents import Agent, AgentServer, AgentSession, JobContext, function_tool
from livekit.agents.voice import CloseEvent
from livekit.plugins.deepgram import STT, TTS
from livekit.plugins.openai import LLM

from livekit.plugins.voicecost import VoiceCost

GREETING = "Trattoria Nonna, good evening! What can I do for you?"

# load_fnc: a busy laptop would make the worker refuse the call, and LiveKit never asks again.
# port 0: any free port for the health check, which the demo does not use.
server = AgentServer(load_fnc=lambda: 0.0, num_idle_processes=1, host="127.0.0.1", port=0)


class Waiter(Agent):
    """Answers the phone of a small restaurant."""

    def __init__(self) -> None:
        super().__init__(
            instructions=(
                "You answer the phone of Trattoria Nonna, a small restaurant. Be warm and brief."
                " Look up free tables before you promise one."
            )
        )

    async def on_enter(self) -> None:
        """Greet the caller."""
        self.session.say(GREETING)

    @function_tool
    async def find_table(self, guest_count: int, time: str) -> str:
        """Find a free table tonight.

        Args:
            guest_count: How many people will come.
            time: When, as HH:MM.
        """
        return f"table 7 by the window is free for {guest_count} at {time}"


def open_session(terms: dict[str, Any]) -> AgentSession[None]:
    """A metered session: one line more than without VoiceCost, before `session.start`."""
    session: AgentSession[None] = AgentSession(
        stt=STT(base_url=os.environ.get("DEEPGRAM_STT_URL", "https://api.deepgram.com/v1/listen")),
        llm=LLM(
            model="gpt-4o-mini",
            base_url=os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1"),
        ),
        tts=TTS(base_url=os.environ.get("DEEPGRAM_TTS_URL", "https://api.deepgram.com/v1/speak")),
        vad=None,
        turn_handling={"turn_detection": "stt"},
    )
    VoiceCost(
        project="demo",
        budget=terms.get("budget_usd"),
        wrap_up_text=terms.get("wrap_up_text"),
        publish_to="all",
    ).attach(session)
    return session


@server.rtc_session(agent_name="waiter")
async def answer(ctx: JobContext) -> None:
    """Take one call."""
    session = open_session(json.loads(ctx.job.metadata or "{}"))
    leave_notes(session, name=ctx.room.name, job_id=ctx.job.id)
    await session.start(agent=Waiter(), room=ctx.room)


def leave_notes(session: AgentSession[None], *, name: str, job_id: str | None) -> None:
    """Leave the demo what it compares with: this process's id now, `session.usage` at the end."""
    if "DEMO_NOTES" not in os.environ:
        return
    notes = Path(os.environ["DEMO_NOTES"])
    (notes / f"{name}.job.json").write_text(json.dumps({"pid": os.getpid(), "job_id": job_id}))

    def on_close(_: CloseEvent) -> None:
        usage = [model.model_dump() for model in session.usage.model_usage]
        (notes / f"{name}.usage.json").write_text(json.dumps(usage))

    session.on("close", on_close)

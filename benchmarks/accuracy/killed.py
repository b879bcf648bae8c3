"""The agent that is killed: `python -m benchmarks.accuracy.killed OPENAI LISTEN SPEAK`.

It answers one question after another until a SIGKILL ends it; its parent adopts its spool.
"""

# livekit-agents says little of its generics.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import asyncio
import random
import sys

from livekit.agents import AgentSession
from livekit.agents.utils import http_context
from livekit.plugins.deepgram import STT, TTS
from livekit.plugins.openai import LLM

from livekit.plugins.voicecost import VoiceCost

from .audio import Loudspeaker, Microphone
from .stage import MODEL, Clerk
from .texts import LANGUAGES


async def main(openai_url: str, listen_url: str, speak_url: str) -> None:
    """Talk until killed."""
    language, chance = LANGUAGES["en"], random.Random(7)
    async with http_context.open():
        session: AgentSession[None] = AgentSession(
            stt=STT(model="nova-3", base_url=listen_url, api_key="x"),
            llm=LLM(model=MODEL, base_url=openai_url, api_key="x"),
            tts=TTS(base_url=speak_url, api_key="x"),
            vad=None,
            turn_handling={"turn_detection": "manual"},
        )
        VoiceCost(project="accuracy").attach(session)
        session.input.audio = Microphone(chance)
        session.output.audio = Loudspeaker()
        await session.start(Clerk(language.manual(chance, 12)))
        await session.say(language.greeting)
        await session.generate_reply(user_input=language.questions[0])
        while True:
            await session.generate_reply(user_input="Please explain all of it.")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))

"""Several calls at once in one process, for `bench_overhead`: what they take of it, as JSON.

    python -m benchmarks._overhead_agent ADDRESSES CALLS SECONDS plain|metered [TURNS]

The same calls each time: every one asks, hears the answer, and interrupts every third; its
microphone is open all along. `plain` never loads voicecost. With TURNS the calls have so many,
which nobody waits to hear the end of, and their memory is traced.
"""

# livekit-agents says little of its generics.
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import asyncio
import gc
import json
import random
import resource
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any, Final

import aiohttp
from livekit.agents import Agent, AgentSession
from livekit.plugins.deepgram import STT, TTS
from livekit.plugins.openai import LLM

from benchmarks.accuracy.audio import Loudspeaker, Microphone
from benchmarks.accuracy.texts import LANGUAGES

STALL_S: Final = 0.1
TURN_S: Final = 1.0
"""Both ways take as long: LiveKit keeps every event of a session, and of an open microphone most
come with time."""
OURS: Final = ("/voicecost/", "/voicecost_ledger/", "/voicecost_catalog/")
METERED: Final = "metered" in sys.argv
TURNS: Final = int(sys.argv[5]) if len(sys.argv) > 5 else 0


class NobodyListens(Loudspeaker):
    """What is given to it was heard."""

    def _position_s(self) -> float:
        return self._pushed_s

    def flush(self) -> None:
        """It is over."""
        if self._pushed_s:
            asyncio.get_running_loop().call_soon(self._end, False)


class Watch:
    """Looks every 20 ms whether the loop still turns, and in whose code it is when it does not."""

    def __init__(self) -> None:
        self.worst_s = 0.0
        self.ours_worst_s = 0.0
        self._ticked_at = time.monotonic()
        self._loop_thread = threading.get_ident()
        self._ended = threading.Event()
        self.thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self.thread.start()

    async def tick(self) -> None:
        """Turn with the loop, until cancelled."""
        while True:
            now = time.monotonic()
            self.worst_s = max(self.worst_s, now - self._ticked_at - 0.01)
            self._ticked_at = now
            await asyncio.sleep(0.01)

    def _look(self) -> None:
        while not self._ended.wait(0.02):
            stalled_s = time.monotonic() - self._ticked_at
            if stalled_s < STALL_S / 2:
                continue
            frame: Any = sys._current_frames().get(self._loop_thread)  # pyright: ignore[reportPrivateUsage]  # documented, for debugging
            while frame is not None:
                # The innermost frame that is somebody's: under ours may be the plugin's own work.
                name = frame.f_code.co_filename
                if any(part in name for part in OURS):
                    self.ours_worst_s = max(self.ours_worst_s, stalled_s)
                if "site-packages" in name or any(part in name for part in OURS):
                    break
                frame = frame.f_back

    def end(self) -> None:
        """Stop looking."""
        self._ended.set()


async def call(
    addresses: dict[str, str],
    http: aiohttp.ClientSession,
    number: int,
    until: asyncio.Event,
    reached: asyncio.Semaphore,
) -> None:
    """One call, until the event; tells when it has had all the turns of a long one."""
    language, chance = LANGUAGES["en"], random.Random(number)
    session: AgentSession[None] = AgentSession(
        stt=STT(base_url=addresses["deepgram_listen_url"], api_key="x", http_session=http),
        llm=LLM(model="gpt-4o-mini", base_url=addresses["openai_base_url"], api_key="x"),
        tts=TTS(base_url=addresses["deepgram_speak_url"], api_key="x", http_session=http),
        vad=None,
        turn_handling={
            "turn_detection": "manual",
            "interruption": {"resume_false_interruption": False},
        },
    )
    if METERED:
        from livekit.plugins.voicecost import VoiceCost

        VoiceCost(project="overhead", budget="1000").attach(session)
    session.input.audio = Microphone(chance)
    mouth = session.output.audio = NobodyListens() if TURNS else Loudspeaker()
    await session.start(Agent(instructions=language.manual(chance, 20)))
    turn = 0
    while not until.is_set():
        turn += 1
        if TURNS and turn > TURNS:
            reached.release()
            await until.wait()
            break
        speech = session.generate_reply(user_input=chance.choice(language.questions))
        if turn % 3 == 0:
            enough_s = mouth.heard_s + 1.5
            while mouth.heard_s < enough_s and not until.is_set() and not speech.done():  # noqa: ASYNC110 (a loudspeaker tells nobody)
                await asyncio.sleep(0.05)
            speech.interrupt()
        over = asyncio.ensure_future(speech.wait_for_playout())
        ended = asyncio.ensure_future(until.wait())
        await asyncio.wait([over, ended], return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
    await session.aclose()


def held_bytes() -> int:
    """What everything holds that was made since tracing began.

    Not by whose line made it: Python hands memory on, and a freed dictionary's to anybody's next.
    """
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def main(addresses: dict[str, str], count: int, seconds: float) -> None:
    """Run the calls; the first 3 s, with all the imports, do not count."""
    async with aiohttp.ClientSession() as http:
        first_over = asyncio.Event()
        reached = asyncio.Semaphore(0)
        first = asyncio.create_task(call(addresses, http, 0, first_over, reached))
        await asyncio.sleep(3)  # a call before: what is loaded once is loaded
        first_over.set()
        await first
        if TURNS:
            tracemalloc.start(1)
        before_bytes = held_bytes()
        over = asyncio.Event()
        calls = [
            asyncio.create_task(call(addresses, http, number, over, reached))
            for number in range(1, count + 1)
        ]
        if TURNS:
            started_at_s = time.monotonic()
            for _ in calls:
                await reached.acquire()
            await asyncio.sleep(started_at_s + TURNS * TURN_S - time.monotonic())
        await asyncio.sleep(3)
        watch = Watch()
        ticking = asyncio.create_task(watch.tick())
        cpu_s, at_s = time.thread_time(), time.monotonic()
        await asyncio.sleep(seconds)
        cpu_s, at_s = time.thread_time() - cpu_s, time.monotonic() - at_s
        after_bytes = held_bytes()
        threads = [
            thread.name
            for thread in threading.enumerate()
            if thread.name.replace("-", "_").startswith("voicecost")
        ]
        watch.end()
        ticking.cancel()
        over.set()
        await asyncio.gather(*calls)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "loop_percent": cpu_s * 100 / at_s / count,
                "stall_ms": watch.worst_s * 1000,
                "our_stall_ms": watch.ours_worst_s * 1000,
                "threads": threads,
                "call_bytes": (after_bytes - before_bytes) // count,
                "peak_rss_kb": usage.ru_maxrss,
            }
        )
    )


if __name__ == "__main__":
    known = json.loads(Path(sys.argv[1]).read_text())
    asyncio.run(main(known, int(sys.argv[2]), float(sys.argv[3])))

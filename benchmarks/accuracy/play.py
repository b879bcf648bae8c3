"""Plays cases side by side in one process and sums each up: `python -m benchmarks.accuracy.play`.

`bench_accuracy` starts some of these. The ledger and the spool are where the environment says.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from livekit.plugins.voicecost import _prices, _runtime
from livekit.plugins.voicecost._embedded import database_path
from tests.simulators import LONG_ANSWER, Reply
from voicecost_ledger.stores import CallDetail, CallQuery
from voicecost_ledger.stores.sqlite import SqliteStore

from .bills import Result, compare
from .blind import see_nothing_on_the_wire
from .conversations import converse
from .more_endings import ENDINGS
from .stage import Stage
from .texts import LANGUAGES

CASE_MAX_S: Final = 150.0
KILLED: Final = "SIGKILL in mid-speech"
LIBRARY_LOGS: Final = ("livekit.agents", "livekit.plugins", "openai", "asyncio")


async def killed(stage: Stage) -> None:
    """Kill an agent's process while it writes and speaks."""
    stage.script(
        said=LANGUAGES["en"].questions,
        replies=[Reply(match="explain", text=LONG_ANSWER), Reply(text="It is all confirmed.")],
    )
    openai, deepgram = stage.openai[0], stage.deepgram[0]
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.accuracy.killed",
        openai.base_url, deepgram.listen_url, deepgram.speak_url,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(90):
            while sum(row.units["output_tokens"] for row in stage.llm_rows()) < 160:  # noqa: ASYNC110 (a bill tells nobody)
                await asyncio.sleep(0.02)
            await asyncio.sleep(stage.chance.uniform(0.1, 1.0))
    finally:
        child.send_signal(signal.SIGKILL)
        await child.wait()


CASES: Final[dict[str, Callable[[Stage], Awaitable[None]]]] = {**ENDINGS, KILLED: killed}


async def play(names: list[str], *, at_once: int) -> list[Result]:
    """Play cases (endings by their title, calls by their seed) and sum them up.

    Every call has providers of its own, at addresses of their own, so it learns nothing from the
    others: as in production, where a process has one call.
    """
    async with contextlib.AsyncExitStack() as stack:
        stages: list[Stage] = []
        for name in names:
            seed = 0 if name in CASES else int(name)
            stages.append(await stack.enter_async_context(Stage(name, seed)))
        # All addresses before the first meter: whose price holds for which is read once.
        hosts = [f"{host}={name}" for stage in stages for host, name in stage.hosts.items()]
        os.environ["VOICECOST_HOST_ALIASES"] = ",".join(hosts)
        prices = _prices.prices().book
        await asyncio.to_thread(prices.warm)
        limit = asyncio.Semaphore(at_once)
        played = await asyncio.gather(*(_play(stage, limit) for stage in stages))
        calls = await _ledger([KILLED] if KILLED in names else [])
        legs = [leg for call in calls for leg in call.legs]
        for stage, result in zip(stages, played, strict=True):
            compare(
                result,
                rows=stage.bill.rows,
                legs=[leg for leg in legs if leg.host in stage.hosts],
                usages=stage.usages,
                prices=prices,
                at_unix_ms=time.time_ns() // 1_000_000,
            )
    return list(played)


async def _play(stage: Stage, limit: asyncio.Semaphore) -> Result:
    case = CASES.get(stage.name)
    result = Result(name=stage.name, kind="call" if case is None else "ending")
    async with limit:
        began_at = time.monotonic()
        try:
            async with asyncio.timeout(CASE_MAX_S):
                await (case or converse)(stage)
                await stage.settled()
        except Exception as error:  # one case must not take the others with it; it is reported
            logging.getLogger(__name__).exception("%s", stage.name)
            result.error = f"{type(error).__name__}: {error}"
        result.seconds = time.monotonic() - began_at
    return result


async def _ledger(killed_cases: list[str]) -> list[CallDetail]:
    """Every call, once all is durable in the ledger and what was killed is adopted."""
    runtime = _runtime.runtime()
    deadline = time.monotonic() + 30
    if killed_cases:
        runtime.adopt()
    while True:
        await runtime.flushed(10)
        calls = await asyncio.to_thread(_read)
        adopted = sum(meter.state == "adopted" for call in calls for meter in call.meters)
        if adopted >= len(killed_cases) or time.monotonic() > deadline:
            return calls
        await asyncio.sleep(0.2)


def _read() -> list[CallDetail]:
    with contextlib.closing(SqliteStore.open(database_path())) as store:
        calls = store.calls(CallQuery(limit=100_000))
        details = [store.call(call.call_id) for call in calls]
    return [detail for detail in details if detail is not None]


def main() -> None:
    """Read names from the command line, print the results as JSON."""
    command = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    command.add_argument("names", nargs="+")
    command.add_argument("--at-once", type=int, default=8)
    command.add_argument("--verbose", action="store_true")
    command.add_argument("--blind", action="store_true", help="see nothing on the wire")
    arguments = command.parse_args()
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.WARNING)
    if not arguments.verbose:
        for name in LIBRARY_LOGS:  # of errors that the scripts ask for
            logging.getLogger(name).setLevel(logging.CRITICAL)
    if arguments.blind:
        see_nothing_on_the_wire()
    results = asyncio.run(play(arguments.names, at_once=arguments.at_once))
    sys.stdout.buffer.write(msgspec.json.encode(results))


if __name__ == "__main__":
    main()

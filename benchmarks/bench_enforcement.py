"""How long a caller stays after the budget is used up, beside a bare DeleteRoom.

    python -m benchmarks.bench_enforcement --calls 50

Real livekit-server, real `voicecost serve`, a real worker with a process per job, all on loopback;
only the TTS provider is simulated, in a process of its own. Two kinds of call alternate:

- breach: the call's budget is used up (on_budget="end"), every other time by a word that is refused
  while the agent talks, else by a request that turns out dearer than it looked. From that instant,
  taken in the agent's process before anything is done about it, to the caller's `disconnected`.
- bare: this process calls DeleteRoom while the agent talks. From before the request to the
  caller's `disconnected`.

All instants are of CLOCK_MONOTONIC, one clock for all processes of a machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from livekit import api, rtc

from benchmarks._report import Bar, conclude, parser
from examples.demo.livekit_server import LiveKitServer, free_ports
from examples.demo.processes import Child, Processes
from examples.demo.sidecar import Sidecar
from scripts.tools import ToolMissingError, livekit_server

BUDGET_USD = "0.005"  # some thirty words of speech
CONVERSATION_S = 1.0  # before the agent is asked to talk; a fresh job process is still loading
TALK_S = 0.5  # before the bare DeleteRoom
CALL_TIMEOUT_S = 30.0
BAR_MEDIAN_MS, BAR_WORST_MS = 100, 300


@dataclass
class Samples:
    """Milliseconds, one per call."""

    bare: list[float] = field(default_factory=list[float])
    refused: list[float] = field(default_factory=list[float])
    reported: list[float] = field(default_factory=list[float])
    decided: list[float] = field(default_factory=list[float])  # breach to the ledger's decision

    @property
    def breach(self) -> list[float]:
        """Both kinds of breach."""
        return self.refused + self.reported


class Caller:
    """Someone in a room who hears an agent, and notices when it is over."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._room: Any = rtc.Room()  # `on` is typed in part only
        self._agent: asyncio.Future[None] = loop.create_future()
        self._over: asyncio.Future[tuple[int, str]] = loop.create_future()
        self._room.on("track_subscribed", self._on_track)
        self._room.on("disconnected", self._on_disconnected)

    async def dial(self, url: str, token: str) -> None:
        """Join, and wait until the agent is there with its voice."""
        await self._room.connect(url, token)
        await asyncio.wait_for(self._agent, CALL_TIMEOUT_S)

    async def ask(self) -> None:
        """Have the agent talk."""
        await self._room.local_participant.publish_data(b"talk", reliable=True)

    async def disconnected(self) -> int:
        """Wait for the end; returns its instant in ns of CLOCK_MONOTONIC."""
        at_ns, reason = await asyncio.wait_for(self._over, CALL_TIMEOUT_S)
        if reason != "ROOM_DELETED":
            raise RuntimeError(f"the caller was disconnected by {reason}, not by ROOM_DELETED")
        return at_ns

    async def hang_up(self) -> None:
        """Leave; after the end that is no error."""
        await self._room.disconnect()

    def _on_track(self, *_: object) -> None:
        if not self._agent.done():
            self._agent.set_result(None)

    def _on_disconnected(self, reason: rtc.DisconnectReason.ValueType) -> None:
        at_ns = time.monotonic_ns()
        if not self._over.done():
            self._over.set_result((at_ns, rtc.DisconnectReason.Name(reason)))


class Bench:
    """The parts that run, and the two kinds of call."""

    def __init__(self, livekit: LiveKitServer, sidecar: Sidecar, folder: Path) -> None:
        self._livekit = livekit
        self._sidecar = sidecar
        self._folder = folder
        self.samples = Samples()

    async def bare(self, name: str, client: api.LiveKitAPI) -> None:
        """A call that this process ends."""
        async with self._call(name, does="talk") as caller:
            await asyncio.sleep(TALK_S)
            began_ns = time.monotonic_ns()
            await client.room.delete_room(api.DeleteRoomRequest(room=name))
            self.samples.bare.append((await caller.disconnected() - began_ns) / 1e6)

    async def breach(self, name: str, *, does: str, samples: list[float]) -> None:
        """A call that its budget ends."""
        async with self._call(name, does=does, budget_usd=BUDGET_USD) as caller:
            over_ns = await caller.disconnected()
        began = json.loads(self._note(name).read_text())
        samples.append((over_ns - began["monotonic_ns"]) / 1e6)
        (summary,) = await self._sidecar.calls_in(name)
        audit = (await self._sidecar.call(summary.call_id)).audit
        ended = [step.at_unix_ms for step in audit if step.step == "end"]
        steps = [step.step for step in audit]
        if not ended or "wrap_up" in steps:
            raise RuntimeError(f"{name} was not ended at once: its audit log has {steps}")
        self.samples.decided.append(ended[0] - began["unix_ms"])

    @contextlib.asynccontextmanager
    async def _call(
        self, name: str, *, does: str, budget_usd: str | None = None
    ) -> AsyncGenerator[Caller]:
        terms = json.dumps({"does": does, "budget_usd": budget_usd, "note": str(self._note(name))})
        token = self._livekit.token(name, "caller", agent_name="spender", metadata=terms)
        caller = Caller()
        try:
            await caller.dial(self._livekit.url, token)
            await asyncio.sleep(CONVERSATION_S)
            await caller.ask()
            yield caller
        finally:
            await caller.hang_up()

    def _note(self, name: str) -> Path:
        return self._folder / f"{name}.json"


async def run(binary: Path, call_count: int) -> Samples:
    """Start everything, play the calls in turn, end everything."""
    async with contextlib.AsyncExitStack() as rest:
        folder = Path(rest.enter_context(tempfile.TemporaryDirectory(prefix="voicecost-bench-")))
        processes = rest.enter_context(Processes(folder / "logs"))
        (port,) = free_ports(1)
        livekit = LiveKitServer(
            processes, binary, folder, webhook_urls=[f"http://127.0.0.1:{port}/livekit/webhook"]
        )
        await livekit.start()
        simulators = processes.start("providers", [sys.executable, "-m", "tests.simulators"])
        urls = json.loads(await simulators.ready(lambda output: output.endswith("\n")))
        sidecar = Sidecar(
            processes, folder, port, env=livekit.env, host_aliases={"127.0.0.1": "deepgram"}
        )
        env = livekit.env | sidecar.env
        env |= {"DEEPGRAM_API_KEY": "simulated", "DEEPGRAM_TTS_URL": urls["deepgram_speak_url"]}
        worker = start_worker(processes, env)
        await rest.enter_async_context(sidecar)
        await worker.ready(lambda output: '"registered worker"' in output)
        client = await rest.enter_async_context(livekit.api())
        bench = Bench(livekit, sidecar, folder)
        for number in range(call_count):
            await bench.bare(f"bare-{number}", client)
            if number % 2 == 0:
                await bench.breach(f"refused-{number}", does="talk", samples=bench.samples.refused)
            else:
                await bench.breach(
                    f"reported-{number}", does="report", samples=bench.samples.reported
                )
            print(f"\r{number + 1} of {call_count} calls of each kind", end="", file=sys.stderr)
        print(file=sys.stderr)
        return bench.samples


def start_worker(processes: Processes, env: dict[str, str]) -> Child:
    agent = Path(__file__).with_name("_enforcement_agent.py")
    command = [sys.executable, "-m", "livekit.agents", "start", agent]
    return processes.start("agent", command, env=env)


def main() -> int:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--calls", type=int, default=50, help="of each kind")
    arguments = arguments_parser.parse_args()
    try:
        binary = livekit_server(print)
    except ToolMissingError as error:
        print(f"SKIPPED: {error}")
        return int(arguments.strict)
    # To the SDK every deleted room is an error of its data channels.
    logging.getLogger("livekit").setLevel(logging.CRITICAL)
    samples = asyncio.run(run(binary, arguments.calls))

    reference_ms = median(samples.bare)
    title = f"{arguments.calls} calls of each kind, ms"
    print(f"\n{title:<50}{'median':>8}{'p95':>8}{'worst':>8}{'of ref.':>9}")
    for name, row in (
        ("bare DeleteRoom to caller disconnected: reference", samples.bare),
        ("breach to the ledger's decision", samples.decided),
        ("breach to caller disconnected, by a refused word", samples.refused),
        ("breach to caller disconnected, by a report", samples.reported),
        ("breach to caller disconnected, all", samples.breach),
    ):
        if row:
            p95 = quantiles(row, n=20, method="inclusive")[18] if len(row) > 1 else row[0]
            ratio = median(row) / reference_ms
            print(f"{name:<50}{median(row):>8.1f}{p95:>8.1f}{max(row):>8.1f}{ratio:>8.2f}×")
    bars = [
        Bar("breach to disconnected, median", median(samples.breach), BAR_MEDIAN_MS, "ms"),
        Bar("breach to disconnected, worst", max(samples.breach), BAR_WORST_MS, "ms"),
    ]
    return conclude(bars, distributions=("livekit-agents", "livekit"), strict=arguments.strict)


if __name__ == "__main__":
    sys.exit(main())

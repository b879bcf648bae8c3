"""What metering takes of an agent's process: loop time, stalls, threads and memory per live call.

    python -m benchmarks.bench_overhead [--calls N] [--seconds N] [--rounds N] [--strict]

The same calls with and without VoiceCost, in turn, each in a process of its own; the simulated
providers and the sidecar are other processes. Loop time is the CPU time of the event loop's thread.
Memory is what calls hold that have had twenty turns and a hundred, as in three minutes and in a
quarter of an hour, by tracemalloc in runs of their own: the difference of both ways.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from benchmarks import _report
from examples.demo.livekit_server import free_ports
from examples.demo.processes import Processes
from examples.demo.sidecar import Sidecar
from scripts.tools import ROOT

QUICK: Final = {
    "token_delay_ms": 2,
    "replies": [{"text": "Your booking is confirmed for the fourteenth, and the invoice follows."}],
}
TURNS: Final = (20, 100)
LOOP_MAX_PERCENT, STALL_MAX_MS, THREADS_MAX, CALL_MAX_KB = 0.3, 100, 1, 100


async def run(
    folder: Path, env: dict[str, str], calls: int, seconds: float, *mode: str
) -> dict[str, Any]:
    """One process full of calls."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks._overhead_agent",
        str(folder / "addresses.json"), str(calls), str(seconds), *mode,
        stdout=asyncio.subprocess.PIPE, env=env, cwd=ROOT,
    )  # fmt: skip
    output, _ = await child.communicate()
    if child.returncode:
        raise SystemExit(f"bench_overhead: the agent failed with exit code {child.returncode}")
    return json.loads(output.splitlines()[-1])


async def measure(
    folder: Path, calls: int, seconds: float, rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """The runs of each mode, plain and metered in turn."""
    with contextlib.ExitStack() as stack:
        processes = stack.enter_context(Processes(folder / "logs"))
        (folder / "script.json").write_text(json.dumps({"token_delay_ms": 20}))
        command = [sys.executable, "-m", "tests.simulators", "--port", "0"]
        simulators = processes.start(
            "simulators", [*command, "--script", str(folder / "script.json")], env={}
        )
        printed = await simulators.ready(lambda output: "openai_base_url" in output)
        addresses = next(line for line in printed.splitlines() if "openai_base_url" in line)
        (folder / "addresses.json").write_text(addresses)
        host = urlsplit(str(json.loads(addresses)["openai_base_url"])).netloc
        aliases = {host: "openai", host.replace("127.0.0.1", "localhost"): "openai"}
        (port,) = free_ports(1)
        async with Sidecar(processes, folder, port, env={}, host_aliases=aliases) as sidecar:
            env = {**os.environ, **sidecar.env}
            runs: dict[str, list[dict[str, Any]]] = {
                "plain": [],
                "metered": [],
            }
            for _ in range(rounds):
                for mode in ("plain", "metered"):
                    runs[mode].append(await run(folder, env, calls, seconds, mode))
            async with aiohttp.ClientSession() as http:
                await http.post(json.loads(addresses)["script_url"], json=QUICK)
            for turns in TURNS:
                for mode in ("plain", "metered"):
                    traced = await run(folder, env, 4, 1, mode, str(turns))
                    runs[f"{mode}, {turns} turns"] = [traced]
    return runs


async def main() -> int:
    command = _report.parser(__doc__)
    command.add_argument("--calls", type=int, default=8, help="live calls at once")
    command.add_argument("--seconds", type=float, default=30, help="of each run")
    command.add_argument("--rounds", type=int, default=3, help="runs of each kind")
    arguments = command.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = await measure(Path(folder), arguments.calls, arguments.seconds, arguments.rounds)
    print(f"{arguments.calls} calls at once, {arguments.rounds} runs of {arguments.seconds:g} s\n")
    print(f"{'':<10}{'loop % of a core per call':>27}{'worst stall ms':>16}{'peak RSS MB':>13}")
    for mode in ("plain", "metered"):
        for each in runs[mode]:
            print(
                f"{mode:<10}{each['loop_percent']:>27.3f}{each['stall_ms']:>16.0f}"
                f"{each['peak_rss_kb'] / 1024:>13.0f}"
            )
    plain, metered = (
        [each["loop_percent"] for each in runs[mode]] for mode in ("plain", "metered")
    )
    pairs = [with_us - without for without, with_us in zip(plain, metered, strict=True)]
    held_kb: dict[int, float] = {}
    print()
    for turns in TURNS:
        with_us, without = (
            runs[f"{mode}, {turns} turns"][0]["call_bytes"] / 1024 for mode in ("metered", "plain")
        )
        held_kb[turns] = with_us - without
        print(f"memory per call of {turns} turns: {with_us:.0f} KB, without {without:.0f} KB")
    threads = max((each["threads"] for each in runs["metered"]), key=len)
    print(f"threads of ours: {', '.join(threads) or 'none'}")
    bars = [
        _report.Bar("loop time per live call", statistics.median(pairs), LOOP_MAX_PERCENT, "%"),
        _report.Bar(
            "longest stall of the loop in our code",
            max(each["our_stall_ms"] for each in runs["metered"]), STALL_MAX_MS, "ms",
        ),
        _report.Bar("threads of ours", len(threads), THREADS_MAX, ""),
        *(
            _report.Bar(f"memory per live call, after {turns} turns", more_kb, CALL_MAX_KB, "KB")
            for turns, more_kb in held_kb.items()
        ),
    ]  # fmt: skip
    return _report.conclude(bars, strict=arguments.strict)


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))

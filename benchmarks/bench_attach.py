"""What a user waits for before the first call: the import, and attaching to a session.

    python -m benchmarks.bench_attach --runs 15

Fresh processes throughout, because all of it costs most the first time, with byte code compiled
as pip leaves it. Two kinds: a job process, forked from where LiveKit's forkserver has imported
what our plugin names (what production runs), and a program that has only imported the plugin
(`console`, tests, no fork). Sessions after the first are measured in both. Beside them: importing
livekit.agents, and making the AgentSession that is attached to.

Every run also checks that importing starts no thread and opens no file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._report import Bar, conclude, parser

BAR_IMPORT_MS, BAR_ATTACH_MS = 50, 5
SESSIONS = 50

# Its own program: whatever this file imports would be there before the measurement.
_FRESH = """
import json, os, sys, threading, time

def milliseconds(since_ns):
    return (time.perf_counter_ns() - since_ns) / 1e6

def held():
    fds = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    return {"threads": threading.active_count(), "files": len(fds)}

start = time.perf_counter_ns()
import livekit.agents
agents_ms = milliseconds(start)

before = held()
start = time.perf_counter_ns()
import livekit.plugins.voicecost
import_ms = milliseconds(start)

import asyncio, importlib
from livekit.agents import AgentSession, Plugin
from livekit.plugins.voicecost import VoiceCost

sessions, is_job = int(sys.argv[1]), sys.argv[2] == "job"
if is_job:
    for plugin in Plugin.registered_plugins:  # as LiveKit's forkserver does
        importlib.import_module(plugin.package)
after = held()
if is_job and os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))

async def attach():
    made, configured, attached = [], [], []
    for _ in range(sessions):
        start = time.perf_counter_ns()
        session = AgentSession(vad=None)
        made.append(milliseconds(start))
        start = time.perf_counter_ns()
        cost = VoiceCost(project="bench", budget="0.50")
        configured.append(milliseconds(start))
        start = time.perf_counter_ns()
        cost.attach(session)
        attached.append(milliseconds(start))
        await asyncio.sleep(0)
    return {"made": made, "configured": configured, "attached": attached}

figures = asyncio.run(attach())
figures |= {"agents": agents_ms, "import": import_ms, "before": before, "after": after}
print(json.dumps(figures))
"""


def fresh_process(folder: Path, kind: str) -> dict[str, Any]:
    """One process's figures in ms; `kind` is "job" or "program"."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("VOICECOST_")}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    env |= {
        "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
        "VOICECOST_SPOOL_DIR": str(folder / "spool"),
        "VOICECOST_DATABASE_URL": f"sqlite:///{folder / 'ledger.db'}",
    }
    command = [sys.executable, "-c", _FRESH, str(SESSIONS), kind]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    return json.loads(done.stdout)


def main() -> int:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--runs", type=int, default=15, help="processes of each kind")
    arguments = arguments_parser.parse_args()
    jobs: list[dict[str, Any]] = []
    programs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="voicecost-bench-") as name:
        for kind in ("job", "program"):  # byte code is compiled, files are in memory
            fresh_process(Path(name), kind)
        for _ in range(arguments.runs):
            jobs.append(fresh_process(Path(name), "job"))
            programs.append(fresh_process(Path(name), "program"))
    both = jobs + programs
    for run in both:
        if run["before"] != run["after"]:
            print(f"importing started something: {run['before']} became {run['after']}")
            return 1

    def first(runs: list[dict[str, Any]], *steps: str) -> list[float]:
        return [sum(run[step][0] for step in steps) for run in runs]

    def later(*steps: str) -> list[float]:
        return [sum(ms) for run in both for ms in zip(*(run[s][1:] for s in steps), strict=True)]

    imports = [run["import"] for run in both]
    both_steps = ("configured", "attached")
    rows: list[tuple[str, list[float]]] = [
        ("import livekit.agents: reference", [run["agents"] for run in both]),
        ("import livekit.plugins.voicecost, after it", imports),
        ("AgentSession(), first: reference", first(both, "made")),
        ("VoiceCost(), first in a job", first(jobs, "configured")),
        ("attach(), first in a job", first(jobs, "attached")),
        ("VoiceCost(), first in a program", first(programs, "configured")),
        ("attach(), first in a program", first(programs, "attached")),
        ("AgentSession(), later: reference", later("made")),
        ("VoiceCost(), later", later("configured")),
        ("attach(), later", later("attached")),
    ]
    title = f"{len(both)} fresh processes, ms"
    print(f"{title:<52}{'median':>9}{'worst':>9}{'of ref.':>9}")
    reference_ms = 0.0
    for name, row in rows:
        if name.endswith("reference"):
            reference_ms = median(row)
        ratio = median(row) / reference_ms
        print(f"{name:<52}{median(row):>9.2f}{max(row):>9.2f}{ratio:>8.2f}×")
    print(f"\nstarted by importing: nothing ({runs_held(both)})")

    def bar(what: str, samples: list[float], limit_ms: float) -> Bar:
        return Bar(f"{what}, median", median(samples), limit_ms, "ms")

    bars = [
        bar("import after livekit.agents", imports, BAR_IMPORT_MS),
        bar("VoiceCost().attach(), first in a job", first(jobs, *both_steps), BAR_ATTACH_MS),
        bar(
            "VoiceCost().attach(), first in a program", first(programs, *both_steps), BAR_ATTACH_MS
        ),
        bar("VoiceCost().attach(), later", later(*both_steps), BAR_ATTACH_MS),
    ]
    return conclude(bars, strict=arguments.strict)


def runs_held(runs: list[dict[str, Any]]) -> str:
    held = runs[0]["after"]
    return f"{held['threads']} thread and {held['files']} open files before and after"


if __name__ == "__main__":
    sys.exit(main())

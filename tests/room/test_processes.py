"""Whatever happens to the demo, nothing it started goes on without it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples.demo.processes import NotReadyError, Processes

# A child with a child of its own; both turn a deaf ear to SIGTERM. Prints both process ids.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""

# Starts the above under supervision, prints its ids, and waits to be killed.
PARENT = f"""
import asyncio, pathlib, sys, time
from examples.demo.processes import Processes
command = [sys.executable, "-c", '''{STUBBORN}''']
child = Processes(pathlib.Path(sys.argv[1])).start("child", command)
print(asyncio.run(child.ready(lambda output: len(output.split()) == 2)), flush=True)
time.sleep(600)
"""


def runs(pid: str) -> bool:
    """Whether the process runs; one that nobody has waited for yet does not."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True, check=False
    ).stdout.strip()
    return bool(state) and not state.startswith("Z")


async def play_and_fail(folder: Path, pids: list[str]) -> None:
    with Processes(folder, grace_s=0.2) as processes:
        child = processes.start("stubborn", [sys.executable, "-c", STUBBORN])
        pids += (await child.ready(lambda output: len(output.split()) == 2)).split()
        raise RuntimeError("the demo failed")


async def test_a_failure_ends_children_and_grandchildren(tmp_path: Path) -> None:
    pids: list[str] = []

    with pytest.raises(RuntimeError, match="the demo failed"):
        await play_and_fail(tmp_path, pids)

    assert len(pids) == 2
    assert not any(map(runs, pids))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a child to its parent")
def test_a_killed_parent_takes_its_children_along(tmp_path: Path) -> None:
    """SIGKILL leaves no time to clean up: the kernel does it."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, tmp_path],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        child_pid, grandchild_pid = parent.stdout.readline().split()
        parent.kill()

    deadline = time.monotonic() + 20
    while runs(child_pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not runs(child_pid)
    # The kernel's promise is for the child alone; LiveKit's worker takes care of its own.
    subprocess.run(["kill", "-9", grandchild_pid], check=True)


async def test_a_program_that_ends_early_says_its_last_words(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        child = processes.start("broken", [sys.executable, "-c", "exit('no such port')"])

        with pytest.raises(NotReadyError, match=r"broken ended with code 1(?s:.*)no such port"):
            await child.ready(lambda output: "listening" in output)

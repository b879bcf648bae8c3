"""Child processes that never outlive their parent, each with its log file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

# Run between us and the program, so that the kernel kills it when we die, however we die. In a
# program of its own rather than a preexec_fn, which deadlocks when other threads hold locks.
_LAUNCHER: Final = """
import os, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL; survives the exec
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class NotReadyError(Exception):
    """A process ended, or did not become ready in time; the message ends with its last lines."""


class Child:
    """One running program: its own process group, its output in `log`."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process

    @property
    def pid(self) -> int:
        """Its process id, also the id of its process group."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    async def ready(self, is_ready: Callable[[str], bool], *, timeout_s: float = 90.0) -> str:
        """Wait until `is_ready(its output so far)` holds, and return that output.

        Raises:
            NotReadyError: It ended before, or time is up.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            alive = self.alive  # before the log is read: its last words count
            output = self.output()
            if is_ready(output):
                return output
            if not alive or time.monotonic() > deadline:
                what = "is not ready" if alive else f"ended with code {self._process.returncode}"
                last = "\n".join(output.splitlines()[-15:])
                raise NotReadyError(f"{self.name} {what}; the end of {self.log}:\n{last}")
            await asyncio.sleep(0.05)

    def output(self) -> str:
        """Everything it wrote so far."""
        return self.log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its whole process group; none left is no error."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def reap(self, *, timeout_s: float) -> bool:
        """Wait for its end; whether it came."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True


class Processes:
    """A supervisor: starts programs, and ends every one of them on the way out.

    Used as a context manager. On the way out, also through an exception, all get SIGTERM, and
    after `grace_s` whatever is left of their process groups gets SIGKILL.

    Args:
        logs: The folder for their output, one `NAME.log` each; made when missing.
        grace_s: How long they may take to end by themselves.
    """

    def __init__(self, logs: Path, *, grace_s: float = 3.0) -> None:
        self._logs = logs
        self._grace_s = grace_s
        self._children: list[Child] = []

    def start(
        self, name: str, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None
    ) -> Child:
        """Start a program. Its log goes on where an earlier one of that name ended.

        Args:
            name: For its log file and for messages.
            command: What to run.
            env: Added to our environment, of which no setting of LiveKit, of a provider or of
                voicecost is passed on: the person who runs this may have an account.
        """
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-ISc", _LAUNCHER, str(os.getpid()), *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_neutral_environment() | dict(env or {}),
                start_new_session=True,  # its own group, so that its children can be ended too
            )
        child = Child(name, process, log)
        self._children.append(child)
        return child

    def stop(self, *children: Child, kill: bool = False) -> None:
        """End these and everything they started; politely first unless `kill`."""
        deadline = time.monotonic() + self._grace_s
        if not kill:
            for child in children:
                child.signal(signal.SIGTERM)
            for child in children:
                child.reap(timeout_s=max(0.0, deadline - time.monotonic()))
        for child in children:
            # Also when the leader is gone: its group may live on.
            child.signal(signal.SIGKILL)
            child.reap(timeout_s=5.0)
            self._children.remove(child)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop(*reversed(self._children))


def _neutral_environment() -> dict[str, str]:
    foreign = ("VOICECOST_", "LIVEKIT_", "OPENAI_", "DEEPGRAM_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}

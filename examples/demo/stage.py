"""Everything a call needs, on loopback: LiveKit, the providers' simulators, the sidecar, the agent.

The demo and the room tests both play on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

from examples.demo.bills import Billed
from examples.demo.caller import Caller
from examples.demo.livekit_server import LiveKitServer, free_ports
from examples.demo.processes import Child, Processes
from examples.demo.room_caller import RoomCaller
from examples.demo.roomless import WireCaller
from examples.demo.sidecar import Sidecar
from tests.simulators.bill import Bill, BillRow
from tests.simulators.deepgram import DeepgramSimulator
from tests.simulators.openai_chat import OpenAISimulator
from tests.simulators.script import Reply
from voicecost_ledger.records import LegAttributes, Modality

_AGENT: Final = Path(__file__).with_name("agent.py")
_AGENT_NAME: Final = "waiter"
_REGISTERED: Final = '"registered worker"'


class Providers:
    """The simulated providers, one bill for all of them; an async context manager."""

    def __init__(self) -> None:
        self.bill = Bill()
        # Slow enough that the caller interrupts a sentence while it is still being written.
        self._openai = OpenAISimulator(bill=self.bill, token_delay_ms=70)
        self._deepgram = DeepgramSimulator(bill=self.bill)
        self._rest = contextlib.AsyncExitStack()

    def prepare(self, *, said: Sequence[str], replies: Sequence[Reply]) -> None:
        """Tell them what the next caller says, and what to answer."""
        self._openai.replies = list(replies)
        self._deepgram.listen.transcripts = deque(said)

    @property
    def env(self) -> dict[str, str]:
        """What the agent needs to use them instead of the real ones."""
        return {
            "OPENAI_BASE_URL": self._openai.base_url,
            "DEEPGRAM_STT_URL": self._deepgram.listen_url,
            "DEEPGRAM_TTS_URL": self._deepgram.speak_url,
            "OPENAI_API_KEY": "simulated",
            "DEEPGRAM_API_KEY": "simulated",
        }

    @property
    def host_aliases(self) -> dict[str, str]:
        """Whose prices hold for them, as `host_aliases` in voicecost.yaml."""
        return {
            urlsplit(self._openai.url).netloc: "openai",
            urlsplit(self._deepgram.url).netloc: "deepgram",
        }

    async def billed_since(self, row_count: int, *, timeout_s: float = 30.0) -> list[Billed]:
        """The bill of every request after the first `row_count`, once nothing is added any more.

        Raises:
            TimeoutError: Something is being recognised or generated still.
        """
        rows = self.bill.rows[row_count:]
        async with asyncio.timeout(timeout_s):
            # An interrupted TTS connection stays open in the plugin's pool until the job's process
            # ends, 20 s after a hang-up; what was sent over it is on the bill already.
            while any(row.ended is None and row.service != "tts" for row in rows):  # noqa: ASYNC110 (a bill tells only of its last open row)
                await asyncio.sleep(0.05)
        return [_billed(row) for row in rows]

    async def __aenter__(self) -> Self:
        await self._rest.enter_async_context(self._openai)
        await self._rest.enter_async_context(self._deepgram)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._rest.aclose()


def _billed(row: BillRow) -> Billed:
    attributes = LegAttributes(
        Modality(row.service),
        row.provider,
        row.model,
        language=str(row.attributes.get("language", "")),
    )
    return Billed(attributes, dict(row.units))


class Stage:
    """All parts of a call, started in order and ended in reverse; an async context manager.

    Args:
        folder: Everything that is written goes here: logs, spool, ledger, configuration.
        binary: The livekit-server program; None plays without rooms.

    Attributes:
        providers: The simulated providers.
        sidecar: The sidecar.
        livekit: The LiveKit server; None without rooms.
    """

    def __init__(self, folder: Path, binary: Path | None) -> None:
        self._folder = folder.absolute()
        self._notes = self._folder / "notes"
        self._binary = binary
        self._rest = contextlib.AsyncExitStack()
        self._processes: Processes
        self._agent_env: dict[str, str] = {}
        self._worker: Child | None = None
        self.providers = Providers()
        self.sidecar: Sidecar
        self.livekit: LiveKitServer | None = None

    @contextlib.asynccontextmanager
    async def call(
        self, name: str, *, budget_usd: str | None = None, wrap_up_text: str | None = None
    ) -> AsyncGenerator[Caller]:
        """A caller in conversation with the agent; hangs up at the end of the block.

        Args:
            name: The room's name, and of the notes that the agent leaves.
            budget_usd: The call's budget; None for none.
            wrap_up_text: What the agent says when it is used up.
        """
        terms = json.dumps({"budget_usd": budget_usd, "wrap_up_text": wrap_up_text})
        if self.livekit is None:
            dialled = WireCaller.dial(lambda port: self._start_roomless_agent(port, name, terms))
        else:
            token = self.livekit.token(name, "caller", agent_name=_AGENT_NAME, metadata=terms)
            dialled = RoomCaller.dial(self.livekit.url, token)
        async with dialled as caller:
            yield caller

    async def restart_livekit(self) -> None:
        """SIGKILL the LiveKit server, start it again, and wait until the worker is back.

        Raises:
            NotReadyError: The server does not start, or the worker does not come back.
        """
        assert self.livekit is not None, "there is no LiveKit server on this stage"
        assert self._worker is not None
        times = self._worker.output().count(_REGISTERED)
        self.livekit.kill()
        await self.livekit.start()
        await self._worker_registered(times)

    async def replace_worker(self) -> Child:
        """Tell the worker to go, as a rolling deployment does, and start another.

        Returns:
            The old worker: it takes no more calls, and ends when those that it has are over.

        Raises:
            NotReadyError: The other one does not register.
        """
        assert self._worker is not None, "without rooms there is no worker"
        old = self._worker
        times = old.output().count(_REGISTERED)
        os.kill(old.pid, signal.SIGTERM)  # not its jobs: it lets them end
        self._start_worker()
        await self._worker_registered(times)
        return old

    def kill_agent(self, name: str) -> None:
        """SIGKILL the process of that call's agent, and nothing else."""
        os.kill(self.note(name, "job")["pid"], signal.SIGKILL)

    def note(self, name: str, kind: str) -> Any:
        """What the agent wrote down: `job` at its start, `usage` when its session closed.

        Raises:
            FileNotFoundError: It has not (a killed agent writes no `usage`).
        """
        return json.loads((self._notes / f"{name}.{kind}.json").read_text())

    async def usage(self, name: str, *, timeout_s: float = 30.0) -> list[dict[str, Any]]:
        """LiveKit's `session.usage` of the call's agent, once its session has closed.

        Raises:
            FileNotFoundError: It has not, in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self.note(name, "usage")
            except (FileNotFoundError, json.JSONDecodeError):  # not there, or half written
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.05)

    async def __aenter__(self) -> Self:
        self._notes.mkdir(parents=True, exist_ok=True)
        try:
            await self._raise()
        except BaseException:
            await self._rest.aclose()
            raise
        return self

    async def _raise(self) -> None:
        self._processes = self._rest.enter_context(Processes(self._folder / "logs"))
        await self._rest.enter_async_context(self.providers)
        (port,) = free_ports(1)
        livekit_env: dict[str, str] = {}
        if self._binary is not None:
            webhook = f"http://127.0.0.1:{port}/livekit/webhook"
            self.livekit = LiveKitServer(
                self._processes, self._binary, self._folder, webhook_urls=[webhook]
            )
            await self.livekit.start()
            livekit_env = self.livekit.env
        self.sidecar = Sidecar(
            self._processes,
            self._folder,
            port,
            env=livekit_env,
            host_aliases=self.providers.host_aliases,
        )
        self._agent_env = (
            livekit_env | self.providers.env | self.sidecar.env | {"DEMO_NOTES": str(self._notes)}
        )
        # Both take seconds to import what they need: side by side.
        if self.livekit is not None:
            self._start_worker()
        await self._rest.enter_async_context(self.sidecar)
        if self._worker is not None:
            await self._worker_registered()

    def _start_worker(self) -> None:
        command = [sys.executable, "-m", "livekit.agents", "start", _AGENT]
        self._worker = self._processes.start("agent", command, env=self._agent_env)

    async def _worker_registered(self, times: int = 0) -> None:
        """Return when that was logged more often; a call that comes before gets no agent, ever."""
        assert self._worker is not None
        await self._worker.ready(lambda output: output.count(_REGISTERED) > times)

    def _start_roomless_agent(self, port: int, name: str, terms: str) -> None:
        module = "examples.demo.roomless_agent"
        command = [sys.executable, "-m", module, str(port), name, terms]
        self._processes.start("agent", command, env=self._agent_env)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._rest.aclose()

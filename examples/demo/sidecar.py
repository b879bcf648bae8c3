"""The sidecar as a child process, and what the demo asks of its API."""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import msgspec

from examples.demo.processes import Child, NotReadyError, Processes
from voicecost_ledger.calls import CallState
from voicecost_ledger.stores import CallDetail, CallSummary

_VOICECOST: Final = Path(sys.executable).with_name("voicecost")


class Sidecar:
    """`voicecost serve` on loopback; an async context manager around a client of its API.

    Args:
        processes: Who supervises it.
        folder: Where its configuration, ledger and spool are.
        port: Where it listens.
        env: Added to its environment; LiveKit's url and keys among it.
        host_aliases: Whose prices are charged for requests to a host, `127.0.0.1:4010=openai`.

    Attributes:
        url: `http://127.0.0.1:PORT`.
        token: The operator's token, new for every instance.
    """

    def __init__(
        self,
        processes: Processes,
        folder: Path,
        port: int,
        *,
        env: Mapping[str, str],
        host_aliases: Mapping[str, str],
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.token = secrets.token_urlsafe(24)
        self._processes = processes
        self._port = port
        self._env = dict(env)
        self._folder = folder
        self._host_aliases = dict(host_aliases)
        self._child: Child | None = None
        self._http: aiohttp.ClientSession | None = None

    @property
    def env(self) -> dict[str, str]:
        """What an agent process, and the command `voicecost`, need to know of it."""
        return {
            "VOICECOST_URL": self.url,
            "VOICECOST_TOKEN": self.token,
            "VOICECOST_SPOOL_DIR": str(self._folder / "spool"),
            "VOICECOST_DATABASE_URL": f"sqlite:///{self._folder / 'ledger.db'}",
            "VOICECOST_HOST_ALIASES": ",".join(
                f"{host}={provider}" for host, provider in self._host_aliases.items()
            ),
        }

    async def start(self) -> None:
        """Start it and wait until it is healthy.

        Raises:
            NotReadyError: It ended, or was not healthy within 30 s.
        """
        config = self._folder / "voicecost.yaml"
        aliases = "".join(f'  "{host}": {name}\n' for host, name in self._host_aliases.items())
        config.write_text(f"host_aliases:\n{aliases}projects:\n  demo:\n    name: Demo\n")
        command = [_VOICECOST, "serve", "--config", config, "--port", str(self._port)]
        self._child = self._processes.start("sidecar", command, env=self._env | self.env)
        deadline = time.monotonic() + 30
        async with aiohttp.ClientSession() as http:
            while self._child.alive and time.monotonic() < deadline:
                try:
                    async with http.get(f"{self.url}/health") as response:
                        if response.status == 200:
                            return
                except aiohttp.ClientConnectionError:
                    pass
                await asyncio.sleep(0.05)
        lines = "\n".join(self._child.output().splitlines()[-15:])
        raise NotReadyError(f"the sidecar is not healthy at {self.url}:\n{lines}")

    def kill(self) -> None:
        """SIGKILL it."""
        assert self._child is not None, "start it first"
        self._processes.stop(self._child, kill=True)
        self._child = None

    async def calls(self) -> list[CallSummary]:
        """All calls, newest first."""
        body = await self._get("/v1/calls")
        return msgspec.convert(body["calls"], list[CallSummary], strict=False)

    async def calls_in(self, room_name: str | None, *, since_unix_ms: int = 0) -> list[CallSummary]:
        """The calls of a room name (None: those without a room), oldest first."""
        return [
            call
            for call in reversed(await self.calls())
            if call.room_name == room_name and call.opened_at_unix_ms >= since_unix_ms
        ]

    async def call(self, call_id: str) -> CallDetail:
        """One call with its legs and entries."""
        return msgspec.convert(await self._get(f"/v1/calls/{call_id}"), CallDetail, strict=False)

    async def settled(
        self,
        room_name: str | None,
        *,
        count: int = 1,
        since_unix_ms: int = 0,
        timeout_s: float = 30.0,
    ) -> list[CallDetail]:
        """Wait until a room name has so many calls and all are settled; oldest first.

        Raises:
            TimeoutError: They are not, in time; says what they are.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            found = await self.calls_in(room_name, since_unix_ms=since_unix_ms)
            if len(found) >= count and all(call.state is CallState.SETTLED for call in found):
                return [await self.call(call.call_id) for call in found]
            if time.monotonic() > deadline:
                states = [f"{call.call_id} is {call.state}" for call in found]
                raise TimeoutError(
                    f"after {timeout_s} s not {count} settled calls in room {room_name!r}: "
                    f"{', '.join(states) or 'there is none'}"
                )
            await asyncio.sleep(0.05)

    async def _get(self, path: str) -> Any:
        assert self._http is not None, "used outside its context"
        async with self._http.get(
            f"{self.url}{path}", headers={"Authorization": f"Bearer {self.token}"}
        ) as response:
            response.raise_for_status()
            return await response.json()

    async def __aenter__(self) -> Self:
        await self.start()
        self._http = aiohttp.ClientSession()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._http is not None:
            await self._http.close()
        if self._child is not None:
            self._processes.stop(self._child)
            self._child = None

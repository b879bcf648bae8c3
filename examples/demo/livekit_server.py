"""A livekit-server on loopback: its configuration, its start, its API and its callers' tokens."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import socket
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

import aiohttp
from livekit import api

from examples.demo.processes import Child, NotReadyError, Processes

_API_KEY: Final = "demo"


def free_ports(count: int) -> list[int]:
    """Ports that are free for TCP and UDP on every address, not only on loopback.

    livekit-server listens with `rtc.tcp_port` on all addresses. Below 32768 no outgoing
    connection takes one away between this look and its use.
    """
    found: list[int] = []
    for port in random.sample(range(20_000, 32_000), 2_000):
        if _is_free(port):
            found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"cannot find {count} free ports between 20000 and 32000")


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            try:
                with socket.socket(family, kind) as probe:
                    if family == socket.AF_INET6:
                        probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    probe.bind((address, port))
            except OSError as error:
                if family == socket.AF_INET6 and error.errno != 98:  # a machine without IPv6
                    continue
                return False
    return True


class LiveKitServer:
    """One livekit-server process on loopback, startable again on the same ports and keys.

    Args:
        processes: Who supervises it.
        binary: The program.
        folder: Where its configuration file goes.
        webhook_urls: Where it sends its webhooks.

    Attributes:
        url: `ws://127.0.0.1:PORT`.
        api_key: Name of the API key.
        api_secret: Its secret, new for every instance.
    """

    def __init__(
        self,
        processes: Processes,
        binary: Path,
        folder: Path,
        *,
        webhook_urls: Sequence[str] = (),
    ) -> None:
        port, tcp_port, udp_port = free_ports(3)
        self.url = f"ws://127.0.0.1:{port}"
        self.api_key = _API_KEY
        self.api_secret = secrets.token_hex(32)
        self._http_url = f"http://127.0.0.1:{port}/"
        self._processes = processes
        self._binary = binary
        self._child: Child | None = None
        self._config = folder / "livekit.json"
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "port": port,
            "bind_addresses": ["127.0.0.1"],
            "keys": {self.api_key: self.api_secret},
            "rtc": {
                "tcp_port": tcp_port,
                "udp_port": udp_port,
                "node_ip": "127.0.0.1",
                "use_external_ip": False,
                # Media over loopback works only with both of these.
                "interfaces": {"includes": ["lo0" if sys.platform == "darwin" else "lo"]},
                "enable_loopback_candidate": True,
            },
            "webhook": {
                "api_key": self.api_key,
                "urls": list(webhook_urls),
                # By default whatever waited 30 s for the sidecar is dropped untried.
                "resource_url_notifier": {"max_age": "1h"},
            },
        }
        self._config.touch(mode=0o600)  # it holds a secret
        self._config.write_text(json.dumps(config, indent=2))

    @property
    def env(self) -> dict[str, str]:
        """What LiveKit's SDKs, and the sidecar, read from the environment."""
        return {
            "LIVEKIT_URL": self.url,
            "LIVEKIT_API_KEY": self.api_key,
            "LIVEKIT_API_SECRET": self.api_secret,
        }

    async def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            NotReadyError: It ended, or did not answer within 20 s.
        """
        self._child = self._processes.start(
            "livekit-server", [self._binary, "--config", self._config]
        )
        async with aiohttp.ClientSession() as http:
            for _ in range(400):
                try:
                    async with http.get(self._http_url) as response:
                        if response.status == 200:
                            return
                except aiohttp.ClientConnectionError:
                    pass
                if not self._child.alive:
                    break
                await asyncio.sleep(0.05)
        lines = "\n".join(self._child.output().splitlines()[-15:])
        raise NotReadyError(f"livekit-server does not answer at {self._http_url}:\n{lines}")

    def kill(self) -> None:
        """SIGKILL it: no farewell to anyone."""
        assert self._child is not None, "start it first"
        self._processes.stop(self._child, kill=True)
        self._child = None

    def stop(self) -> None:
        """End it."""
        if self._child is not None:
            self._processes.stop(self._child)
            self._child = None

    def api(self) -> api.LiveKitAPI:
        """A client of its server API, to be used as an async context manager."""
        return api.LiveKitAPI(self.url, self.api_key, self.api_secret)

    def token(
        self, room_name: str, identity: str, *, agent_name: str | None = None, metadata: str = ""
    ) -> str:
        """A caller's token; the room it makes is given the agent, with `metadata` for its job."""
        token = (
            api.AccessToken(self.api_key, self.api_secret)
            .with_identity(identity)
            .with_ttl(timedelta(minutes=10))
            .with_grants(api.VideoGrants(room_join=True, room=room_name))
        )
        if agent_name is not None:
            dispatch = api.RoomAgentDispatch(agent_name=agent_name, metadata=metadata)
            token = token.with_room_config(api.RoomConfiguration(agents=[dispatch]))
        return token.to_jwt()

    async def room_sids(self, room_name: str) -> list[str]:
        """SIDs of the live rooms of that name, as the server lists them: none or one."""
        async with self.api() as client:
            rooms = await client.room.list_rooms(api.ListRoomsRequest(names=[room_name]))
        return [room.sid for room in rooms.rooms]

    async def is_gone(self, room_name: str, *, timeout_s: float = 5.0) -> bool:
        """Whether the server lists no such room any more.

        A room that is being deleted lets its participants go some milliseconds before it leaves
        the list, so it is given `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while await self.room_sids(room_name):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    async def delete_room(self, room_name: str) -> None:
        """End the room and everybody's connection to it."""
        async with self.api() as client:
            await client.room.delete_room(api.DeleteRoomRequest(room=room_name))

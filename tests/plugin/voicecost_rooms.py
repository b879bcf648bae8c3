"""A real livekit-server with a room in it: somebody who listens, and the agent's own connection."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from livekit import api, rtc

from examples.demo.livekit_server import LiveKitServer
from examples.demo.processes import Processes
from scripts.tools import find_livekit_server

ROOM = "lounge"


@asynccontextmanager
async def livekit_server(folder: Path) -> AsyncGenerator[LiveKitServer]:
    """A server of the test's own; without the program the test is skipped, in CI it fails."""
    binary = find_livekit_server()
    if binary is None:
        reason = "no livekit-server: put it on PATH, or run `make tools` with Go installed"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(f"{reason} (with CI=true this is a failure)")
        pytest.skip(reason)
    with Processes(folder) as processes:
        server = LiveKitServer(processes, binary, folder)
        await server.start()
        yield server


def agent_token(server: LiveKitServer) -> str:
    """What LiveKit gives a worker for its job."""
    grants = api.VideoGrants(room_join=True, room=ROOM, agent=True, can_update_own_metadata=True)
    token = api.AccessToken(server.api_key, server.api_secret)
    return token.with_identity("agent").with_kind("agent").with_grants(grants).to_jwt()


@asynccontextmanager
async def agents_room(server: LiveKitServer) -> AsyncGenerator[rtc.Room]:
    """The agent's own connection to the room."""
    room = rtc.Room()
    await room.connect(server.url, agent_token(server))
    try:
        yield room
    finally:
        await room.disconnect()


async def seen_in(room: rtc.Room, names: set[str]) -> None:
    """Return when the room shows all of these."""
    someone_came = asyncio.Event()
    room.on("participant_connected", lambda _: someone_came.set())
    while not names <= set(room.remote_participants):
        await someone_came.wait()
        someone_came.clear()


class Visitor:
    """Somebody in the room who writes down what arrives on our topic, and from whom."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.room = rtc.Room()
        self.messages: list[dict[str, Any]] = []
        self.senders: set[int] = set()
        self.closed = asyncio.Event()
        self.disconnected: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.room.on("data_received", self._on_data)
        self.room.on("disconnected", self._on_disconnected)

    @asynccontextmanager
    async def in_room(self, server: LiveKitServer) -> AsyncGenerator[None]:
        token = (
            api.AccessToken(server.api_key, server.api_secret)
            .with_identity(self.name)
            .with_grants(api.VideoGrants(room_join=True, room=ROOM, can_update_own_metadata=True))
        )
        await self.room.connect(server.url, token.to_jwt())
        # LiveKit shows others only who has published something, or set an attribute.
        await self.room.local_participant.set_attributes({"role": self.name})
        try:
            yield
        finally:
            await self.room.disconnect()

    def _on_disconnected(self, reason: int) -> None:
        if not self.disconnected.done():
            self.disconnected.set_result(reason)

    def _on_data(self, packet: rtc.DataPacket) -> None:
        if packet.topic != "voicecost":
            return
        # The rule for clients: only from an agent. Nobody is named until LiveKit shows the sender.
        if packet.participant is None:
            return
        self.senders.add(packet.participant.kind)
        self.messages.append(json.loads(packet.data))
        if self.messages[-1]["state"] == "closed":
            self.closed.set()

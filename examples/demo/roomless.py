"""The same conversation without LiveKit's server: the caller's sound goes over a loopback socket.

    framed both ways: kind (1 byte), length (4 bytes, big-endian), that many bytes
    A   16-bit mono audio: to the agent at 48 kHz, from it at 24 kHz
    T   what was said, as JSON: {"by_agent": true, "text": "..."}; from the agent alone

`roomless_agent.py` is the other end, a process of its own, so that it can be killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from typing import Final

from examples.demo.caller import FRAME_MS, Caller, Line, Samples

AUDIO: Final = b"A"
TEXT: Final = b"T"


async def read_frame(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The next frame's kind and content.

    Raises:
        asyncio.IncompleteReadError, ConnectionError: The other side has gone.
    """
    head = await reader.readexactly(5)
    return head[:1], await reader.readexactly(int.from_bytes(head[1:]))


def write_frame(writer: asyncio.StreamWriter, kind: bytes, content: bytes) -> None:
    """Send a frame; to nobody, when the other side has gone."""
    if not writer.is_closing():
        writer.write(kind + len(content).to_bytes(4) + content)


class WireCaller(Caller):
    """A caller on a socket. Made by `WireCaller.dial`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__()
        self._reader = reader
        self._writer = writer

    @classmethod
    @contextlib.asynccontextmanager
    async def dial(cls, start_agent: Callable[[int], None]) -> AsyncGenerator[WireCaller]:
        """Call an agent process; hang up at the end of the block.

        Args:
            start_agent: Starts a process that connects to this loopback port.

        Raises:
            TimeoutError: It did not connect.
        """
        answered: asyncio.Future[WireCaller] = asyncio.get_running_loop().create_future()

        async def on_connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            answered.set_result(cls(reader, writer))

        listener = await asyncio.start_server(on_connect, "127.0.0.1", 0)
        async with listener:
            start_agent(listener.sockets[0].getsockname()[1])
            async with asyncio.timeout(30):
                caller = await answered
        caller._run(caller._listen())
        caller._run(caller._microphone())
        try:
            yield caller
        finally:
            await caller.hang_up()

    async def _send(self, chunk: Samples) -> None:
        write_frame(self._writer, AUDIO, chunk.tobytes())
        await asyncio.sleep(FRAME_MS / 1000)

    async def _leave(self) -> None:
        self._writer.close()

    async def _listen(self) -> None:
        try:
            while True:
                kind, content = await read_frame(self._reader)
                if kind == AUDIO:
                    self._hear(content)
                else:
                    self._note(Line(**json.loads(content)))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.disconnect_reason = "AGENT_LEFT"

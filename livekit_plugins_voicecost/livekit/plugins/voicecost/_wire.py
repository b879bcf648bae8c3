"""What really goes over the wire, seen with the context of the attempt that sends it.

Tasks made inside an attempt inherit its context, so whoever sends or reads there belongs to it.
Here is the observer's variable and aiohttp's client WebSocket; `_wire_openai` has the chunks of
OpenAI-compatible answers, `_wire_text` and `_wire_audio` say where a plugin's messages carry what
is billed.

A connection that several streams share cannot be told apart by context: its protocol names a
context id in every message, and is matched by that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol

import aiohttp

from . import _faults


class WireObserver(Protocol):
    """An attempt that wants to see what it sends. Only cancellation may come out of it."""

    def text_sending(self, connection: object, payload: str) -> None:
        """A text message is about to be sent; raises CancelledError to keep it from that."""
        ...

    def bytes_sending(self, connection: object, payload: bytes | bytearray | memoryview) -> None:
        """A binary message is about to be sent; raises CancelledError to keep it from that."""
        ...

    def answer_observed(self) -> None:
        """An OpenAI-compatible answer begins; its raw chunks follow one by one."""
        ...

    def chunk_received(self, chunk: Any) -> None:
        """A raw chunk of its answer arrived; raises CancelledError to end the stream."""
        ...


observer: ContextVar[WireObserver | None] = ContextVar("voicecost_attempt", default=None)


def observe_websockets() -> Callable[[], None]:
    """Show what aiohttp's WebSocket clients send to the attempt that sends it; returns the undo."""
    client = aiohttp.ClientWebSocketResponse
    send_str, send_bytes = client.send_str, client.send_bytes

    @functools.wraps(send_str)
    async def observed_send_str(self: Any, data: str, *args: Any, **kwargs: Any) -> None:
        seen_by = observer.get()
        if seen_by is not None:
            try:
                seen_by.text_sending(self, data)
            except Exception as error:
                _faults.count("wire_text", error)
        await send_str(self, data, *args, **kwargs)

    @functools.wraps(send_bytes)
    async def observed_send_bytes(self: Any, data: bytes, *args: Any, **kwargs: Any) -> None:
        seen_by = observer.get()
        if seen_by is not None:
            try:
                seen_by.bytes_sending(self, data)
            except Exception as error:
                _faults.count("wire_bytes", error)
        await send_bytes(self, data, *args, **kwargs)

    client.send_str = observed_send_str
    client.send_bytes = observed_send_bytes

    def undo() -> None:
        client.send_str = send_str
        client.send_bytes = send_bytes

    return undo

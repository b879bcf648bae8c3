"""What really goes over the wire, seen with the context of the attempt that sends it.

Tasks made inside an attempt inherit its context, so whoever sends or reads there belongs to it.
Here is who observes it and aiohttp's client WebSocket; `_wire_openai` has the chunks of
OpenAI-compatible answers, `_wire_text` and `_wire_audio` say where a plugin's messages carry what
is billed.

A connection that several streams share cannot be told apart by context: its protocol names a
context id in every message, and is matched by that (`claim`).
"""

from __future__ import annotations

import asyncio
import functools
import re
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Final, Protocol

import aiohttp

from . import _faults
from ._wire_answers import AnswerObserver


class WireObserver(Protocol):
    """An attempt that wants to see what it sends. Only cancellation may come out of it."""

    def text_sending(self, connection: object, payload: str) -> None:
        """A text message is about to be sent; raises CancelledError to keep it from that."""
        ...

    def bytes_sending(self, connection: object, payload: bytes | bytearray | memoryview) -> None:
        """A binary message is about to be sent; raises CancelledError to keep it from that."""
        ...

    def answer_observed(self) -> AnswerObserver | None:
        """A language model's answer begins; whoever is given is told of it. None: nobody."""
        ...


class TextObserver:
    """An attempt that also wants to know what became of its text."""

    def text_unsent(self, connection: object, payload: str) -> None:
        """A text message was shown and then not sent: its connection was gone."""

    def request_sending(self, url: str, body: str) -> None:
        """An HTTP request is about to be made; raises CancelledError to keep it from that.

        `body` is empty where it is no text as it stands: bytes, JSON or a form.
        """


class _Watch:
    """Who observes a context; nobody, once the run is over that it was for.

    A timer, or a connection that is kept, holds the context it was begun in for minutes. It must
    not hold the run for as long, with its stream and all that came over it.
    """

    __slots__ = ("by",)

    def __init__(self, by: WireObserver | None) -> None:
        self.by = by


_watch: ContextVar[_Watch | None] = ContextVar("voicecost_attempt", default=None)

_CONTEXT_ID: Final = re.compile(r'"context_?[iI]d"\s*:\s*"([^"\\]+)"')
_claimed: weakref.WeakValueDictionary[str, WireObserver] = weakref.WeakValueDictionary()
_QUEUED_S: Final = 10.0
"""How long a message may wait for a shared connection: LiveKit's own patience with it."""
_observed_websockets = 0


def observer() -> WireObserver | None:
    """Whoever observes what is sent and read here."""
    watch = _watch.get()
    return None if watch is None else watch.by


@contextmanager
def observing(by: WireObserver | None) -> Generator[None]:
    """Show what is sent and read inside, and by tasks begun there, to this observer, or nobody."""
    watch = _Watch(by)
    token = _watch.set(watch)
    try:
        yield
    finally:
        watch.by = None
        # Of another context when the loop is gone, and the coroutine is thrown away.
        with suppress(ValueError):
            _watch.reset(token)


def claim(context_id: str, seen_by: WireObserver) -> None:
    """Messages that name this context id are this observer's, as long as it lives.

    Whoever sends them: the task that serves a shared connection belongs to nobody's request.
    """
    if context_id:
        _claimed[context_id] = seen_by


def await_queued(seen_by: WireObserver) -> None:
    """Live a while longer: what was queued for a shared connection may leave after the run."""
    with suppress(RuntimeError):  # the loop is gone, and the connection with it
        asyncio.get_running_loop().call_later(_QUEUED_S, _let_go, seen_by)


def _let_go(_: WireObserver) -> None:
    """Until now the timer has held it."""


def websockets_observed() -> bool:
    """Whether text that is sent now would be seen."""
    return _observed_websockets > 0


def _claimant(payload: str) -> WireObserver | None:
    """Whose a message on a shared connection is, if it names a claimed context."""
    named = _CONTEXT_ID.search(payload) if _claimed else None
    return _claimed.get(named.group(1)) if named is not None else None


def observe_websockets() -> Callable[[], None]:
    """Show what aiohttp's WebSocket clients send to the attempt that sends it; returns the undo."""
    global _observed_websockets
    client = aiohttp.ClientWebSocketResponse
    send_str, send_bytes = client.send_str, client.send_bytes

    @functools.wraps(send_str)
    async def observed_send_str(self: Any, data: str, *args: Any, **kwargs: Any) -> None:
        try:
            claimant = _claimant(data)
        except Exception as error:
            _faults.count("wire_text", error)
            claimant = None
        seen_by = claimant or observer()
        if seen_by is not None:
            try:
                seen_by.text_sending(self, data)
            except asyncio.CancelledError:
                if claimant is None:
                    raise
                return  # only this message is not sent: others share the connection and its task
            except Exception as error:
                _faults.count("wire_text", error)
        try:
            await send_str(self, data, *args, **kwargs)
        except aiohttp.ClientConnectionResetError:
            _unsent(seen_by, self, data)
            raise

    @functools.wraps(send_bytes)
    async def observed_send_bytes(self: Any, data: bytes, *args: Any, **kwargs: Any) -> None:
        seen_by = observer()
        if seen_by is not None:
            try:
                seen_by.bytes_sending(self, data)
            except Exception as error:
                _faults.count("wire_bytes", error)
        await send_bytes(self, data, *args, **kwargs)

    client.send_str = observed_send_str
    client.send_bytes = observed_send_bytes
    _observed_websockets += 1

    def undo() -> None:
        global _observed_websockets
        client.send_str = send_str
        client.send_bytes = send_bytes
        _observed_websockets -= 1

    return undo


def _unsent(seen_by: WireObserver | None, connection: object, payload: str) -> None:
    if isinstance(seen_by, TextObserver):
        try:
            seen_by.text_unsent(connection, payload)
        except Exception as error:
            _faults.count("wire_text", error)


def observe_requests() -> Callable[[], None]:
    """Show what aiohttp's client asks to the attempt that asks it; returns the undo."""
    client: Any = aiohttp.ClientSession
    request = client._request

    @functools.wraps(request)
    async def observed_request(
        self: Any, method: str, str_or_url: Any, *args: Any, **kwargs: Any
    ) -> Any:
        seen_by = observer()
        if isinstance(seen_by, TextObserver):
            body = kwargs.get("data")
            try:
                seen_by.request_sending(str(str_or_url), body if isinstance(body, str) else "")
            except Exception as error:
                _faults.count("wire_request", error)
        return await request(self, method, str_or_url, *args, **kwargs)

    client._request = observed_request

    def undo() -> None:
        client._request = request

    return undo

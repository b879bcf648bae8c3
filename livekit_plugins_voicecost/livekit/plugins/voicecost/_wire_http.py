"""HTTP requests of an attempt: that there was one, whatever was in it.

A plugin around other plugins (a router, a guardrail) is not charged for what goes through them.
One that asks a service of its own as well, in a protocol we cannot read, is known by this alone.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

import aiohttp

from . import _faults
from ._wire import observer


class HttpObserver:
    """An attempt that wants to know of its requests."""

    def http_sending(self) -> None:
        """A request is about to be sent, by aiohttp or httpx; a WebSocket's handshake is one."""

    def usage_told(self) -> None:
        """The application has told what its requests used."""


def usage_told() -> None:
    """The application tells what it used: inside an attempt it means that attempt's requests."""
    seen_by = observer()
    if isinstance(seen_by, HttpObserver):
        seen_by.usage_told()


class _Late:
    """Client libraries that are observed once they are loaded; nobody waits for their import."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.observing = False
        self.undos: dict[str, Callable[[], None]] = {}


_late = _Late()
_LATE: Final = ("httpx", "httpx2")


def observe_http() -> Callable[[], None]:
    """Tell an attempt of the HTTP requests it makes; returns the undo."""
    client: Any = aiohttp.ClientSession
    undo_aiohttp = _observe(client, "_request")
    _late.observing = True
    observe_loaded()

    def undo() -> None:
        undo_aiohttp()
        with _late.lock:
            _late.observing = False
            while _late.undos:
                _late.undos.popitem()[1]()

    return undo


def observe_loaded() -> None:
    """Observe what was loaded since; cheap where there is nothing to do."""
    if not _late.observing or len(_late.undos) == len(_LATE):
        return
    for name in _LATE:
        client = getattr(sys.modules.get(name), "AsyncClient", None)
        if client is not None and name not in _late.undos:
            with _late.lock:
                if _late.observing and name not in _late.undos:
                    _late.undos[name] = _observe(client, "send")


def _observe(client: Any, name: str) -> Callable[[], None]:
    request = getattr(client, name)

    @functools.wraps(request)
    async def observed_request(*args: Any, **kwargs: Any) -> Any:
        _tell()
        return await request(*args, **kwargs)

    setattr(client, name, observed_request)

    def undo() -> None:
        setattr(client, name, request)

    return undo


def _tell() -> None:
    seen_by = observer()
    if isinstance(seen_by, HttpObserver):
        try:
            seen_by.http_sending()
        except Exception as error:
            _faults.count("wire_http", error)

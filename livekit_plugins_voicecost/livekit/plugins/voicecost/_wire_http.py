"""HTTP requests of an attempt: that there was one, whatever was in it.

A plugin around other plugins (a router, a guardrail) is not charged for what goes through them.
One that asks a service of its own as well, in a protocol we cannot read, is known by this alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import aiohttp
import httpx

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
    seen_by = observer.get()
    if isinstance(seen_by, HttpObserver):
        seen_by.usage_told()


def observe_http() -> Callable[[], None]:
    """Tell an attempt of the HTTP requests it makes; returns the undo."""
    client: Any = aiohttp.ClientSession
    aiohttp_request, httpx_send = client._request, httpx.AsyncClient.send

    @functools.wraps(aiohttp_request)
    async def observed_request(*args: Any, **kwargs: Any) -> Any:
        _tell()
        return await aiohttp_request(*args, **kwargs)

    @functools.wraps(httpx_send)
    async def observed_send(*args: Any, **kwargs: Any) -> Any:
        _tell()
        return await httpx_send(*args, **kwargs)

    client._request = observed_request
    httpx.AsyncClient.send = observed_send

    def undo() -> None:
        client._request = aiohttp_request
        httpx.AsyncClient.send = httpx_send

    return undo


def _tell() -> None:
    seen_by = observer.get()
    if isinstance(seen_by, HttpObserver):
        try:
            seen_by.http_sending()
        except Exception as error:
            _faults.count("wire_http", error)

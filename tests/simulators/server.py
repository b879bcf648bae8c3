"""Serves simulators on loopback: in a test's own event loop, or several of them in one process."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from aiohttp import web


class HasRoutes(Protocol):
    """Anything that adds its routes to a web application."""

    def add_routes(self, app: web.Application) -> None:
        """Add them."""
        ...


class LoopbackServer:
    """One web server on 127.0.0.1; a context manager."""

    def __init__(self, parts: Sequence[HasRoutes], *, port: int = 0) -> None:
        self._parts = parts
        self._port = port
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        """Listen; `url` is known from here on."""
        app = web.Application()
        for part in self._parts:
            part.add_routes(app)
        # handler_cancellation: a client that disconnects is noticed at once, also between writes.
        # shutdown_timeout: nobody waits for a silent or a long answer when the test is over.
        self._runner = runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.05
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self._port).start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close every connection and stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None


class Simulator:
    """A provider that can be served alone: `async with OpenAISimulator() as openai: ...`."""

    def __init__(self) -> None:
        self._server: LoopbackServer | None = None

    def add_routes(self, app: web.Application) -> None:
        """Add the provider's routes to `app`."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        """Where it listens, `http://127.0.0.1:PORT`.

        Raises:
            RuntimeError: It is not being served (yet, or any more).
        """
        if self._server is None:
            raise RuntimeError(f"{type(self).__name__} is not served: use it in 'async with'")
        return self._server.url

    async def __aenter__(self) -> Self:
        """Serve this provider alone, on a free port."""
        self._server = await LoopbackServer([self]).__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop serving; the bill stays readable."""
        if self._server is not None:
            await self._server.__aexit__(exc_type, exc, traceback)
            self._server = None

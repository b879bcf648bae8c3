"""The authority inside this process: the same books on a SQLite file, off the event loop.

Several job processes share one file; SQLite's lock takes turns. `voicecost serve` and the CLI open
the same file by default.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from voicecost_ledger.database_url import DatabaseUrlError, sqlite_path
from voicecost_ledger.events import Effect, EndRoom
from voicecost_ledger.protocol import ClientMessage, Hello, Reject, ServerMessage

from ._connection import AuthorityUnreachableError, Channel
from ._prices import prices

if TYPE_CHECKING:
    from voicecost_ledger.bookkeeper import Bookkeeper
    from voicecost_ledger.stores.sqlite import SqliteStore


def database_path() -> Path:
    """`VOICECOST_DATABASE_URL` (`sqlite:///PATH`), else `voicecost/ledger.db` in the data folder.

    Raises:
        DatabaseUrlError: The variable names something else than a SQLite file.
    """
    try:
        return sqlite_path(os.environ.get("VOICECOST_DATABASE_URL") or None)
    except DatabaseUrlError as error:
        raise DatabaseUrlError(
            f"VOICECOST_DATABASE_URL: {error}; or set VOICECOST_URL to a sidecar"
        ) from None


class EmbeddedAuthority:
    """The books in this process; the file is opened at the first connection."""

    def __init__(self) -> None:
        """Say where the ledger is; nothing is opened yet.

        Raises:
            ValueError: `VOICECOST_DATABASE_URL` is none that can be embedded.
        """
        self._path = database_path()
        self._store: SqliteStore | None = None
        self._bookkeeper: Bookkeeper | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._replies: asyncio.Queue[ServerMessage | EndRoom] | None = None

    @property
    def place(self) -> str:
        """The ledger's file."""
        return str(self._path)

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[Channel, None]:
        """Start the books if they are not running, and talk to them."""
        self._loop = asyncio.get_running_loop()
        self._replies = asyncio.Queue()
        if self._bookkeeper is None:
            self._bookkeeper = self._start()
        try:
            yield _EmbeddedChannel(self._bookkeeper, self._loop, self._replies)
        finally:
            self._replies = None

    def _start(self) -> Bookkeeper:
        """Open the file and the books; slow, but this is the uplink's own thread."""
        # Here, not at the top: SQLite and the books are 80 ms that no agent's loop should wait for.
        from voicecost_ledger.bookkeeper import Bookkeeper
        from voicecost_ledger.policy import Policy
        from voicecost_ledger.stores import StoreRefused, StoreUnavailable
        from voicecost_ledger.stores.sqlite import SqliteStore

        try:
            self._store = self._store or SqliteStore.open(self._path)
        except (StoreUnavailable, StoreRefused) as error:
            raise AuthorityUnreachableError(str(error)) from None
        book = prices().book
        book.warm()  # the first leg must find every price
        bookkeeper = Bookkeeper(self._store, book, Policy(), on_effects=self._effects_of_tick)
        bookkeeper.start()
        return bookkeeper

    async def close(self) -> None:
        """Work off what was handed in and close the file."""
        # In place: when the interpreter ends, no thread may be started any more.
        if self._bookkeeper is not None:
            self._bookkeeper.close()
        if self._store is not None:
            self._store.close()

    def _effects_of_tick(self, effects: list[Effect]) -> None:
        loop, replies = self._loop, self._replies
        if loop is not None and replies is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(_put_all, replies, effects)


class _EmbeddedChannel:
    def __init__(
        self,
        bookkeeper: Bookkeeper,
        loop: asyncio.AbstractEventLoop,
        replies: asyncio.Queue[ServerMessage | EndRoom],
    ) -> None:
        self._bookkeeper = bookkeeper
        self._loop = loop
        self._replies = replies

    async def send(self, message: ClientMessage) -> None:
        def answered(future: Future[list[Effect]]) -> None:
            error = future.exception()
            effects: list[Effect]
            if error is None:
                effects = future.result()
            else:  # nothing of it was committed: it stays in the spool and is sent again
                meter_id = None if isinstance(message, Hello) else message.meter_id
                effects = [Reject("unavailable", type(error).__name__, meter_id)]
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
                self._loop.call_soon_threadsafe(_put_all, self._replies, effects)

        self._bookkeeper.submit(message).add_done_callback(answered)

    async def messages(self) -> AsyncIterator[ServerMessage | EndRoom]:
        while True:
            yield await self._replies.get()


def _put_all(replies: asyncio.Queue[ServerMessage | EndRoom], effects: list[Effect]) -> None:
    for effect in effects:
        replies.put_nowait(effect)

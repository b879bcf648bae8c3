"""The authority inside this process: the same books on a SQLite file, off the event loop.

Several job processes share one file; SQLite's lock takes turns. `voicecost serve` and the CLI open
the same file by default.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
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

    @property
    def place(self) -> str:
        """The ledger's file."""
        return str(self._path)

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[Channel, None]:
        """Start the books if they are not running, and talk to them."""
        bookkeeper = self._bookkeeper = self._bookkeeper or self._start()
        channel = _EmbeddedChannel(bookkeeper)
        ticking = asyncio.create_task(channel.tick())
        try:
            yield channel
        finally:
            ticking.cancel()

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
        own = prices()
        own.warm()  # the first leg must find every price
        return Bookkeeper(self._store, own.book, Policy())

    async def close(self) -> None:
        """Close the file."""
        if self._store is not None:
            self._store.close()


class _EmbeddedChannel:
    """Commits on the uplink's own thread: it has nothing to do beside that cannot wait for it."""

    def __init__(self, bookkeeper: Bookkeeper) -> None:
        self._bookkeeper = bookkeeper
        self._replies: asyncio.Queue[ServerMessage | EndRoom] = asyncio.Queue()

    async def send(self, message: ClientMessage) -> None:
        effects: list[Effect]
        try:
            effects = self._bookkeeper.receive(message)
        except Exception as error:  # nothing was committed: it stays in the spool, and comes again
            meter_id = None if isinstance(message, Hello) else message.meter_id
            effects = [Reject("unavailable", type(error).__name__, meter_id)]
        self._answer(effects)

    async def messages(self) -> AsyncIterator[ServerMessage | EndRoom]:
        while True:
            yield await self._replies.get()

    async def tick(self) -> None:
        """Let time pass for the books."""
        while True:
            await asyncio.sleep(self._bookkeeper.tick_s)
            self._answer(self._bookkeeper.tick())

    def _answer(self, effects: list[Effect]) -> None:
        for effect in effects:
            self._replies.put_nowait(effect)

"""The ledger in one SQLite file, through apsw.

apsw brings its own SQLite: the one inside most Pythons is older than 3.51.3 and can lose committed
pages when one connection checkpoints while another commits (a writer beside Litestream is just
that). Never open the same file with the stdlib `sqlite3` in this process: two SQLite copies break
each other's POSIX locks.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Final

import apsw

from voicecost_ledger.entries import Leg
from voicecost_ledger.stores import (
    CallDetail,
    CallQuery,
    CallSummary,
    CostQuery,
    CostRow,
    EntryHistory,
    LatencyQuery,
    LatencyRow,
    StoreRefused,
    StoreUnavailable,
    _sqlite_calls,
    _sqlite_entries,
    _sqlite_reads,
)
from voicecost_ledger.stores._schema import MIGRATIONS
from voicecost_ledger.stores._sqlite_query import query
from voicecost_ledger.stores._sqlite_session import SqliteSession

OLDEST_SQLITE: Final = (3, 51, 3)
BUSY_TIMEOUT_MS: Final = 2_000


class SqliteStore:
    """The ledger in a SQLite file; one writer at a time, reads from any thread.

    Several processes may hold one store each on the same file: SQLite's lock serialises writers,
    and `Books` reads everything it decides by inside the transaction.
    """

    def __init__(self, path: Path, connection: apsw.Connection) -> None:
        self.path = path
        self._db = connection
        self._lock = threading.Lock()
        self._readers = threading.local()
        self._all_readers: list[apsw.Connection] = []

    @classmethod
    def open(cls, path: Path | str, *, busy_timeout_ms: int = BUSY_TIMEOUT_MS) -> SqliteStore:
        """Open or create the ledger at `path` (`:memory:` for a ledger that is not kept).

        Args:
            path: The file; its folder is made.
            busy_timeout_ms: How long to wait for another process's transaction.

        Raises:
            StoreRefused: SQLite is too old, or the file is no ledger or one of a newer version.
            StoreUnavailable: The file or its folder cannot be opened for writing.
        """
        version = tuple(int(part) for part in apsw.sqlite_lib_version().split(".")[:3])
        if version < OLDEST_SQLITE:
            raise StoreRefused(
                f"SQLite {apsw.sqlite_lib_version()} can lose committed pages (fixed in 3.51.3): "
                "install apsw 3.51.3 or newer"
            )
        path = Path(path)
        with _translated(path):
            if str(path) != ":memory:":
                path.parent.mkdir(parents=True, exist_ok=True)
                # Amounts and room names are nobody else's business: before SQLite creates it.
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            db = apsw.Connection(str(path))
            db.set_busy_timeout(busy_timeout_ms)
            query(db, "PRAGMA journal_mode = WAL")
            query(db, "PRAGMA synchronous = FULL")
            _migrate(path, db)
        return cls(path, db)

    @contextlib.contextmanager
    def transaction(self) -> Generator[SqliteSession, None, None]:
        """One transaction; commits on leaving, rolls back on any exception.

        Raises:
            StoreUnavailable: Nothing of it is durable.
        """
        with self._lock, _translated(self.path):
            query(self._db, "BEGIN IMMEDIATE")
            try:
                yield SqliteSession(self._db)
                query(self._db, "COMMIT")
            except BaseException:
                # A full disk may have rolled back already.
                if not self._db.get_autocommit():
                    query(self._db, "ROLLBACK")
                raise

    def calls(self, query: CallQuery) -> list[CallSummary]:
        """The calls a query asks for, newest first."""
        with self._read() as db:
            return _sqlite_calls.calls(db, query)

    def call(self, call_id: str) -> CallDetail | None:
        """Everything known of one call, or None."""
        with self._read() as db:
            return _sqlite_calls.call(db, call_id)

    def entry(self, number: int) -> EntryHistory | None:
        """One entry and how it came to be, or None."""
        with self._read() as db:
            return _sqlite_entries.history(db, number)

    def last_entry(self, call_id: str, leg: int, meter_id: str | None) -> int | None:
        """The number of the last entry of a call's leg; of its first such meter without one."""
        with self._read() as db:
            return _sqlite_entries.last_entry(db, call_id, leg, meter_id)

    def closed_legs(
        self, *, from_unix_ms: int, until_unix_ms: int, after: tuple[int, int] | None, limit: int
    ) -> list[Leg]:
        """Legs with an outcome that started in a span, by start and key; no fees or adjustments."""
        with self._read() as db:
            return SqliteSession(db).closed_legs(
                from_unix_ms=from_unix_ms,
                until_unix_ms=until_unix_ms,
                after=after,
                provider=None,
                limit=limit,
            )

    def costs(self, query: CostQuery) -> list[CostRow]:
        """Accrued cost, grouped."""
        with self._read() as db:
            return _sqlite_reads.costs(db, query)

    def latency(self, query: LatencyQuery) -> list[LatencyRow]:
        """How long legs took, grouped."""
        with self._read() as db:
            return _sqlite_reads.latency(db, query)

    def accruing(self, project: str | None) -> int:
        """Nano-USD that open legs have cost and that is not posted yet; None: of all projects."""
        with self._read() as db:
            return _sqlite_reads.accruing(db, project)

    def accruing_billed(self, project: str | None) -> int:
        """The same with markup."""
        with self._read() as db:
            return _sqlite_reads.accruing(db, project, amount="billed")

    def counters(self) -> dict[str, int]:
        """Counters and gauges for metrics: names are fixed words, never personal data."""
        with self._read() as db:
            return _sqlite_reads.counters(db)

    def verify(self) -> list[str]:
        """Recompute every total from the entries; one sentence per difference."""
        with self._read() as db:
            return _sqlite_reads.verify(db)

    def close(self) -> None:
        """Close every connection; the store cannot be used afterwards."""
        with self._lock:
            for connection in (self._db, *self._all_readers):
                connection.close()
            self._all_readers.clear()

    @contextlib.contextmanager
    def _read(self) -> Generator[apsw.Connection, None, None]:
        if str(self.path) == ":memory:":
            with self._lock, _translated(self.path):
                yield self._db
            return
        db: apsw.Connection | None = getattr(self._readers, "db", None)
        with _translated(self.path):
            if db is None:
                db = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY)
                db.set_busy_timeout(BUSY_TIMEOUT_MS)
                self._readers.db = db
                self._all_readers.append(db)
            # One snapshot for all statements of a question.
            query(db, "BEGIN")
            try:
                yield db
            finally:
                query(db, "COMMIT")


def _migrate(path: Path, db: apsw.Connection) -> None:
    done: int = query(db, "PRAGMA user_version")[0][0]
    if done > len(MIGRATIONS):
        raise StoreRefused(
            f"{path} was written by a newer voicecost (schema {done}, this one knows "
            f"{len(MIGRATIONS)}): upgrade, or give another --database"
        )
    if done == len(MIGRATIONS):
        return
    query(db, "BEGIN IMMEDIATE")
    try:
        # Another process may have been faster while we waited for the lock.
        done = query(db, "PRAGMA user_version")[0][0]
        tables = query(db, "SELECT count(*) FROM sqlite_schema")[0][0]
        if done == 0 and tables:
            raise StoreRefused(f"{path} is a SQLite file, but no ledger of voicecost")
        for script in MIGRATIONS[done:]:
            query(db, script)
        if done == 0:
            identity = ("LG_" + secrets.token_hex(8), 1, time.time_ns() // 1_000_000)
            query(db, "INSERT INTO ledger VALUES (?, ?, ?)", identity)
        query(db, f"PRAGMA user_version = {len(MIGRATIONS)}")
        query(db, "COMMIT")
    except BaseException:
        if not db.get_autocommit():
            query(db, "ROLLBACK")
        raise


@contextlib.contextmanager
def _translated(path: Path) -> Generator[None, None, None]:
    """SQLite's and the file system's errors as ours, with what to do."""
    try:
        yield
    except apsw.FullError as error:
        raise StoreUnavailable(
            f"the disk of {path} is full: free some space; nothing was acknowledged", reason="full"
        ) from error
    except (apsw.BusyError, apsw.LockedError) as error:
        raise StoreUnavailable(
            f"{path} is locked by another program for too long: end it; nothing was acknowledged",
            reason="locked",
        ) from error
    except (apsw.NotADBError, apsw.CorruptError) as error:
        raise StoreUnavailable(
            f"{path} is damaged or no SQLite file: restore it from its replica", reason="corrupt"
        ) from error
    except (apsw.IOError, apsw.CantOpenError, apsw.ReadOnlyError, OSError) as error:
        raise StoreUnavailable(
            f"{path} cannot be read or written: {type(error).__name__}; check the folder, its "
            "permissions and the disk",
            reason="io",
        ) from error


__all__ = ["SqliteSession", "SqliteStore"]

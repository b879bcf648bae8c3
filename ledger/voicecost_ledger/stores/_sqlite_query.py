"""The one door to apsw: its type stubs name a type that pyright does not know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import apsw


def query(db: apsw.Connection, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Run one statement (or, without values, a script) and fetch all of its rows."""
    return _execute(db, sql, values).fetchall()


def each_row(
    db: apsw.Connection, sql: str, values: Sequence[Any] = ()
) -> Iterator[tuple[Any, ...]]:
    """Run one statement and take its rows one by one: for many of them."""
    return iter(_execute(db, sql, values))


def _execute(db: apsw.Connection, sql: str, values: Sequence[Any]) -> Any:
    # apsw's stubs use `Buffer` of Python 3.12 in a way that reads as Unknown on 3.11.
    execute = cast("Any", db.execute)  # pyright: ignore[reportUnknownMemberType]
    return execute(sql, values or None)

"""The one door to apsw: its type stubs name a type that pyright does not know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import apsw


def query(db: apsw.Connection, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Run one statement (or, without values, a script) and fetch all of its rows."""
    # apsw's stubs use `Buffer` of Python 3.12 in a way that reads as Unknown on 3.11.
    execute = cast("Any", db.execute)  # pyright: ignore[reportUnknownMemberType]
    return execute(sql, values or None).fetchall()

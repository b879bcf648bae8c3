"""Who is and was in a SQLite ledger's rooms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import apsw
import msgspec

from voicecost_ledger.entries import CONNECTION_NUMBER
from voicecost_ledger.rooms import Connection, RoomParticipant
from voicecost_ledger.stores._sqlite_query import query

_SAVE: Final = """
INSERT INTO participants (sid, room_sid, identity, kind, job_id, joined_at_unix_ms,
  left_at_unix_ms, disconnect_reason, left_told, number)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9,
  (SELECT coalesce(max(number), ?10) + 1 FROM participants INDEXED BY participants_by_number
   WHERE number IS NOT NULL))
ON CONFLICT (sid) DO UPDATE SET left_at_unix_ms = excluded.left_at_unix_ms,
  left_told = excluded.left_told, disconnect_reason = excluded.disconnect_reason
-- Of somebody who was concluded to have left: told to have left, or shown to be there.
WHERE left_at_unix_ms IS NULL
  OR (NOT left_told AND excluded.left_told <> (excluded.left_at_unix_ms IS NULL))
"""
_CONNECTION: Final = [field.encode_name for field in msgspec.structs.fields(Connection)]
_CONNECTED: Final = ("sid", "identity", "kind", "job_id", "joined_at_unix_ms")


def save(
    db: apsw.Connection,
    participant: RoomParticipant,
    *,
    room_sid: str,
    left_at_unix_ms: int | None,
    told: bool,
) -> None:
    """See `Session.save_participant`."""
    query(
        db,
        _SAVE,
        (
            participant.sid,
            room_sid,
            participant.identity,
            str(participant.kind),
            participant.job_id,
            participant.joined_at_unix_ms,
            left_at_unix_ms,
            participant.disconnect_reason,
            int(told),
            CONNECTION_NUMBER,
        ),
    )


def hear(db: apsw.Connection, room_sid: str, at_unix_ms: int) -> None:
    """See `Session.hear_participants`."""
    query(
        db,
        "UPDATE participants SET heard_at_unix_ms = ? "
        "WHERE room_sid = ? AND left_at_unix_ms IS NULL",
        (at_unix_ms, room_sid),
    )


def connected(db: apsw.Connection, room_sids: Sequence[str]) -> list[RoomParticipant]:
    """See `Session.connected_participants`."""
    return [
        msgspec.convert(dict(zip(_CONNECTED, row, strict=True)), RoomParticipant)
        for room_sid in room_sids
        for row in query(
            db,
            f"SELECT {', '.join(_CONNECTED)} FROM participants "
            "WHERE room_sid = ? AND left_at_unix_ms IS NULL ORDER BY sid",
            (room_sid,),
        )
    ]


def has_left(db: apsw.Connection, sid: str) -> bool:
    """See `Session.has_left`."""
    sql = "SELECT 1 FROM participants WHERE sid = ? AND left_at_unix_ms IS NOT NULL AND left_told"
    return bool(query(db, sql, (sid,)))


def connections(db: apsw.Connection, call_id: str) -> list[Connection]:
    """See `Session.connections_of`."""
    rows = query(
        db,
        f"SELECT {', '.join(_CONNECTION)} FROM participants p JOIN rooms r ON r.sid = p.room_sid "
        "WHERE r.call_id = ? AND number IS NOT NULL ORDER BY number",
        (call_id,),
    )
    return [
        # lax: a truth value is an integer in the table
        msgspec.convert(dict(zip(_CONNECTION, row, strict=True)), Connection, strict=False)
        for row in rows
    ]


def jobs(db: apsw.Connection, room_sid: str) -> set[str]:
    """See `Session.jobs_in`."""
    rows = query(
        db,
        "SELECT job_id FROM participants WHERE room_sid = ?1 AND job_id IS NOT NULL "
        "UNION SELECT job_id FROM meters WHERE room_sid = ?1 AND job_id IS NOT NULL",
        (room_sid,),
    )
    return {row[0] for row in rows}

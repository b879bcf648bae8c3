"""One transaction on a SQLite ledger: rows in and out, entries, rollups."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final

import apsw
import msgspec

from voicecost_ledger.budgets import Window
from voicecost_ledger.calls import Call, Room
from voicecost_ledger.entries import FLAT_FEE_NUMBER, Entry, Leg, quarter_hour
from voicecost_ledger.meters import Meter
from voicecost_ledger.records import ControlTotal, Modality, Outcome
from voicecost_ledger.rooms import Connection, RoomParticipant
from voicecost_ledger.stores import _sqlite_participants
from voicecost_ledger.stores._schema import UNIT_COLUMNS
from voicecost_ledger.stores._sqlite_query import query
from voicecost_ledger.stores._sqlite_table import Table

QUARANTINE_MAX_PER_METER: Final = 100


_CALLS = Table(Call, "calls", ["call_id"])
_METERS = Table(
    Meter,
    "meters",
    ["meter_id"],
    job_id="opened.job_id",
    room_sid="opened.room_sid",
    agent="opened.agent",
    tenant="opened.tenant",
)
_ROOMS = Table(Room, "rooms", ["sid"])
_LEGS = Table(
    Leg,
    "legs",
    ["meter_id", "number"],
    modality="attributes.modality",
    provider="attributes.provider",
    model="billed_model",
)
_WINDOWS = Table(Window, "windows", ["scope", "start_unix_ms"])

_UNIT_LIST = ", ".join(UNIT_COLUMNS)
_POST = (
    "INSERT INTO entries (leg_key, part, call_id, amount_nano_usd, billed_nano_usd, price_id, "
    f"basis, uncertainty_nano_usd, accrued_at_unix_ms, posted_at_unix_ms, {_UNIT_LIST}) "
    f"VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, {', '.join('?' * len(UNIT_COLUMNS))})"
)
_ENTRIES_OF = (
    "SELECT leg_key, part, amount_nano_usd, billed_nano_usd, price_id, basis, "
    f"uncertainty_nano_usd, accrued_at_unix_ms, posted_at_unix_ms, {_UNIT_LIST} FROM entries "
    "WHERE leg_key = ? ORDER BY part"
)
_ROLL = (
    "INSERT INTO rollups VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
    "amount_nano_usd = amount_nano_usd + excluded.amount_nano_usd, "
    "billed_nano_usd = billed_nano_usd + excluded.billed_nano_usd, "
    "leg_count = leg_count + excluded.leg_count, "
    "unpriced_leg_count = unpriced_leg_count + excluded.unpriced_leg_count"
)


class SqliteSession:
    """One transaction on the writer connection; see `voicecost_ledger.stores.Session`."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._db = connection
        self._known: dict[tuple[str, Any], Any] = {}

    def _find(self, table: Table, where: str, *values: Any, index: str | None = None) -> list[Any]:
        found: list[Any] = []
        # A scan of a whole table, history included, would be paid at every tick: rather an error.
        by = f" INDEXED BY {index}" if index else ""
        for raw in query(self._db, f"{table.select}{by} WHERE {where}", values):
            identity = table.identity(raw)
            row = self._known.get(identity)
            if row is None:
                row = self._known[identity] = table.row(raw)
            found.append(row)
        return found

    def _get(self, table: Table, identity: tuple[str, Any], where: str, *values: Any) -> Any:
        known = self._known.get(identity)
        if known is not None:
            return known
        rows = self._find(table, where, *values)
        return rows[0] if rows else None

    def _save(self, table: Table, row: Any) -> None:
        query(self._db, table.upsert, table.values(row))
        self._known[_identity(row)] = row

    @contextlib.contextmanager
    def savepoint(self) -> Generator[None, None, None]:
        query(self._db, "SAVEPOINT part")
        try:
            yield
        except BaseException:
            self._known.clear()  # what was changed in them is undone in the file
            query(self._db, "ROLLBACK TO part")
            raise
        finally:
            query(self._db, "RELEASE part")

    def ledger_identity(self) -> tuple[str, int]:
        row = query(self._db, "SELECT id, generation FROM ledger")[0]
        return row[0], row[1]

    def meter(self, meter_id: str) -> Meter | None:
        return self._get(_METERS, ("Meter", meter_id), "meter_id = ?", meter_id)

    def save_meter(self, meter: Meter) -> None:
        self._save(_METERS, meter)

    def meters_of(self, call_id: str) -> list[Meter]:
        return self._find(_METERS, "call_id = ? AND NOT of_rooms ORDER BY meter_id", call_id)

    def room_meters_of(self, call_id: str) -> list[Meter]:
        return self._find(_METERS, "call_id = ? AND of_rooms ORDER BY meter_id", call_id)

    def meters_of_job(self, job_id: str) -> list[Meter]:
        return self._find(_METERS, "job_id = ? ORDER BY meter_id", job_id)

    def meters_with_lease_before(self, at_unix_ms: int) -> list[Meter]:
        return self._find(_METERS, "lease_until_unix_ms < ?", at_unix_ms, index="meters_by_lease")

    def meters_holding_before(self, start_unix_ms: int) -> list[Meter]:
        held = query(
            self._db,
            "SELECT 1 FROM windows INDEXED BY windows_held WHERE held_nano_usd > 0 "
            "AND start_unix_ms > 0 AND start_unix_ms < ? LIMIT 1",
            (start_unix_ms,),
        )
        if not held:  # but for the first second of a day
            return []
        return self._find(
            _METERS,
            "lease_until_unix_ms > 0 AND EXISTS (SELECT 1 FROM json_each(held_windows) w "
            "WHERE json_extract(w.value, '$[1]') NOT IN (0) "
            "AND json_extract(w.value, '$[1]') < ?) ORDER BY meter_id",
            start_unix_ms,
            index="meters_by_lease",
        )

    def call(self, call_id: str) -> Call | None:
        return self._get(_CALLS, ("Call", call_id), "call_id = ?", call_id)

    def save_call(self, call: Call) -> None:
        self._save(_CALLS, call)

    def withdraw_call(self, call_id: str) -> None:
        self._known.pop(("Call", call_id), None)
        query(self._db, "DELETE FROM calls WHERE call_id = ? AND meter_count = 0", (call_id,))

    def calls_in_waiting(
        self, now: int, *, ended_before_unix_ms: int, silent_since_unix_ms: int
    ) -> list[Call]:
        return self._find(
            _CALLS,
            "state <> 'settled' AND (ending = 'ending' OR ended_at_unix_ms <= ? "
            "OR (state = 'open' AND (ending_deadline_unix_ms <= ? "
            "OR call_id IN (SELECT call_id FROM meters "
            "WHERE state = 'open' AND last_heard_at_unix_ms <= ?) "
            "OR NOT EXISTS (SELECT 1 FROM meters m WHERE m.call_id = calls.call_id "
            "AND m.state = 'open')))) ORDER BY call_id",
            ended_before_unix_ms,
            now,
            silent_since_unix_ms,
            index="calls_unsettled",
        )

    def room(self, room_sid: str) -> Room | None:
        return self._get(_ROOMS, ("Room", room_sid), "sid = ?", room_sid)

    def save_room(self, room: Room) -> None:
        self._save(_ROOMS, room)

    def rooms_of(self, call_id: str) -> list[Room]:
        return self._find(_ROOMS, "call_id = ? ORDER BY seen_at_unix_ms, sid", call_id)

    def live_rooms_named(self, livekit_project: str, name: str) -> list[Room]:
        return self._find(
            _ROOMS,
            "livekit_project = ? AND name = ? AND gone_at_unix_ms IS NULL "
            "ORDER BY seen_at_unix_ms DESC",
            livekit_project,
            name,
        )

    def live_rooms(self, livekit_project: str) -> list[Room]:
        return self._find(
            _ROOMS, "livekit_project = ? AND gone_at_unix_ms IS NULL ORDER BY sid", livekit_project
        )

    def save_participant(
        self,
        participant: RoomParticipant,
        *,
        room_sid: str,
        left_at_unix_ms: int | None,
        told: bool = True,
    ) -> None:
        _sqlite_participants.save(
            self._db, participant, room_sid=room_sid, left_at_unix_ms=left_at_unix_ms, told=told
        )

    def hear_participants(self, room_sid: str, at_unix_ms: int) -> None:
        _sqlite_participants.hear(self._db, room_sid, at_unix_ms)

    def connected_participants(self, room_sids: Sequence[str]) -> list[RoomParticipant]:
        return _sqlite_participants.connected(self._db, room_sids)

    def has_left(self, participant_sid: str) -> bool:
        return _sqlite_participants.has_left(self._db, participant_sid)

    def connections_of(self, call_id: str) -> list[Connection]:
        return _sqlite_participants.connections(self._db, call_id)

    def calls_connected_before(self, at_unix_ms: int) -> list[str]:
        rows = query(
            self._db,
            "SELECT DISTINCT call_id FROM legs INDEXED BY legs_open WHERE outcome IS NULL "
            "AND last_at_unix_ms < ? AND modality = ? ORDER BY call_id",
            (at_unix_ms, str(Modality.PARTICIPANT)),
        )
        return [row[0] for row in rows]

    def jobs_in(self, room_sid: str) -> set[str]:
        return _sqlite_participants.jobs(self._db, room_sid)

    def leg(self, meter_id: str, number: int) -> Leg | None:
        where = "meter_id = ? AND number = ?"
        return self._get(_LEGS, ("Leg", (meter_id, number)), where, meter_id, number)

    def save_leg(self, leg: Leg) -> None:
        if leg.key == 0:
            last = query(self._db, "SELECT coalesce(max(key), 0) FROM legs")[0][0]
            leg.key = last + 1
        self._save(_LEGS, leg)

    def legs_of(self, meter_id: str) -> list[Leg]:
        return self._find(_LEGS, "meter_id = ? ORDER BY number", meter_id)

    def open_legs_of(self, meter_id: str) -> list[Leg]:
        return self._find(_LEGS, "meter_id = ? AND outcome IS NULL ORDER BY number", meter_id)

    def open_legs_before(self, at_unix_ms: int) -> list[Leg]:
        return self._find(
            _LEGS,
            "outcome IS NULL AND last_at_unix_ms < ? AND rated_nano_usd IS NOT NULL "
            "AND rated_nano_usd <> posted_nano_usd ORDER BY key",
            at_unix_ms,
            index="legs_open",
        )

    def closed_legs(
        self,
        *,
        from_unix_ms: int,
        until_unix_ms: int,
        after: tuple[int, int] | None,
        provider: str | None,
        limit: int,
    ) -> list[Leg]:
        return self._find(
            _LEGS,
            "started_at_unix_ms >= ?1 AND started_at_unix_ms < ?2 "
            "AND (started_at_unix_ms, key) > (?3, ?4) AND outcome IS NOT NULL AND number < ?5 "
            "AND (?6 IS NULL OR lower(provider) = lower(?6)) "
            "ORDER BY started_at_unix_ms, key LIMIT ?7",
            from_unix_ms,
            until_unix_ms,
            *(after or (from_unix_ms, -1)),
            FLAT_FEE_NUMBER,
            provider,
            limit,
            index="legs_by_start",
        )

    def post(self, entry: Entry, leg: Leg, meter: Meter) -> None:
        query(
            self._db,
            _POST,
            (
                entry.leg_key,
                entry.part,
                meter.call_id,
                entry.amount_nano_usd,
                entry.billed_nano_usd,
                entry.price_id,
                str(entry.basis),
                entry.uncertainty_nano_usd,
                entry.accrued_at_unix_ms,
                entry.posted_at_unix_ms,
                *(entry.usage.get(unit) for unit in UNIT_COLUMNS),
            ),
        )
        unpriced = entry.amount_nano_usd is None
        first = entry.part == 0
        # A leg counts as unpriced from its first null entry until an amount is posted for it.
        was_unpriced = not first and self._unpriced_before(leg.key, entry.part)
        self._roll(
            meter,
            leg,
            leg.outcome,
            leg.billed_model,
            entry.accrued_at_unix_ms,
            (entry.amount_nano_usd or 0, entry.billed_nano_usd or 0),
            int(first),
            int(unpriced) - int(was_unpriced),
        )

    def _unpriced_before(self, leg_key: int, part: int) -> bool:
        row = query(
            self._db,
            "SELECT amount_nano_usd IS NULL FROM entries WHERE leg_key = ? AND part = ?",
            (leg_key, part - 1),
        )
        return bool(row and row[0][0])

    def _roll(
        self,
        meter: Meter,
        leg: Leg,
        outcome: Outcome | None,
        model: str,
        at_unix_ms: int,
        amounts: tuple[int, int],  # cost and billed
        leg_count: int,
        unpriced_leg_count: int,
    ) -> None:
        query(
            self._db,
            _ROLL,
            (
                quarter_hour(at_unix_ms),
                meter.project,
                meter.opened.agent or "",
                meter.opened.tenant or "",
                leg.attributes.provider,
                model,
                str(leg.attributes.modality),
                str(outcome or ""),
                amounts[0],
                leg_count,
                unpriced_leg_count,
                amounts[1],
            ),
        )

    def entries_of(self, leg: Leg) -> list[Entry]:
        return [
            msgspec.convert(
                {
                    "leg_key": raw[0],
                    "part": raw[1],
                    "amount_nano_usd": raw[2],
                    "billed_nano_usd": raw[3],
                    "price_id": raw[4],
                    "basis": raw[5],
                    "uncertainty_nano_usd": raw[6],
                    "accrued_at_unix_ms": raw[7],
                    "posted_at_unix_ms": raw[8],
                    "usage": _usage(raw[9:]),
                },
                Entry,
            )
            for raw in query(self._db, _ENTRIES_OF, (leg.key,))
        ]

    def regroup(self, leg: Leg, meter: Meter, *, outcome: Outcome | None, model: str) -> None:
        unpriced = False
        for entry in self.entries_of(leg):
            null = entry.amount_nano_usd is None
            counts = int(entry.part == 0), int(null) - int(unpriced)
            cost, billed, at = (
                entry.amount_nano_usd or 0,
                entry.billed_nano_usd or 0,
                entry.accrued_at_unix_ms,
            )
            self._roll(meter, leg, outcome, model, at, (-cost, -billed), -counts[0], -counts[1])
            self._roll(meter, leg, leg.outcome, leg.billed_model, at, (cost, billed), *counts)
            unpriced = null

    def project_posted(self, project: str, from_unix_ms: int, until_unix_ms: int) -> int:
        sql = (
            "SELECT coalesce(sum(amount_nano_usd), 0) FROM rollups "
            "WHERE quarter_unix_ms >= ? AND quarter_unix_ms < ? AND project = ?"
        )
        return query(self._db, sql, (from_unix_ms, until_unix_ms, project))[0][0]

    def price_document(self, price_id: str) -> bytes | None:
        sql = "SELECT document FROM prices WHERE price_id = ?"
        rows = query(self._db, sql, (price_id,))
        return rows[0][0] if rows else None

    def save_price(self, price_id: str, pricing_source: str, document: bytes) -> None:
        sql = "INSERT INTO prices VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
        query(self._db, sql, (price_id, pricing_source, document))

    def window(self, scope: str, start_unix_ms: int) -> Window | None:
        identity = ("Window", (scope, start_unix_ms))
        where = "scope = ? AND start_unix_ms = ?"
        return self._get(_WINDOWS, identity, where, scope, start_unix_ms)

    def save_window(self, window: Window) -> None:
        self._save(_WINDOWS, window)

    def seen_event(self, event_id: str, at_unix_ms: int) -> bool:
        before = self._db.total_changes()
        sql = "INSERT INTO webhooks VALUES (?, ?) ON CONFLICT DO NOTHING"
        query(self._db, sql, (event_id, at_unix_ms))
        return self._db.total_changes() == before

    def add_gap(
        self, meter_id: str, call_id: str, at_unix_ms: int, reason: str, modality: str | None
    ) -> None:
        word = str(modality) if modality is not None else None
        values = (meter_id, call_id, at_unix_ms, reason, word)
        query(self._db, "INSERT INTO gaps VALUES (?, ?, ?, ?, ?)", values)

    def withdraw_gaps(self, meter_id: str, reason: str) -> None:
        query(self._db, "DELETE FROM gaps WHERE meter_id = ? AND reason = ?", (meter_id, reason))

    def add_control(self, call_id: str, total: ControlTotal, causes: Mapping[str, int]) -> None:
        query(
            self._db,
            "INSERT INTO control_totals VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                total.meter_id,
                call_id,
                total.at_unix_ms,
                str(total.modality),
                total.provider,
                total.model,
                total.unit,
                total.metered,
                total.livekit,
                msgspec.json.encode(causes).decode(),
            ),
        )

    def quarantine(self, meter_id: str, seq: int, reason: str, record_json: str) -> None:
        # Capped, so that a broken client cannot fill the disk; the counter goes on counting.
        query(
            self._db,
            "INSERT INTO quarantine SELECT ?1, ?2, ?3, ?4 WHERE "
            "(SELECT count(*) FROM quarantine WHERE meter_id = ?1) < ?5 ON CONFLICT DO NOTHING",
            (meter_id, seq, reason, record_json, QUARANTINE_MAX_PER_METER),
        )

    def audit(self, call_id: str, at_unix_ms: int, step: str, detail: str) -> None:
        values = (call_id, at_unix_ms, step, detail)
        query(self._db, "INSERT INTO audit VALUES (?, ?, ?, ?)", values)

    def count(self, counter: str, by: int = 1) -> None:
        sql = (
            "INSERT INTO counters VALUES (?, ?) "
            "ON CONFLICT DO UPDATE SET value = value + excluded.value"
        )
        query(self._db, sql, (counter, by))


def _identity(row: Any) -> tuple[str, Any]:
    match row:
        case Meter():
            return "Meter", row.meter_id
        case Call():
            return "Call", row.call_id
        case Room():
            return "Room", row.sid
        case Leg():
            return "Leg", (row.meter_id, row.number)
        case Window():
            return "Window", row.key
        case _:
            raise TypeError(f"{type(row).__name__} is no row of the ledger")


def _usage(quantities: Sequence[int | None]) -> dict[str, int]:
    pairs = zip(UNIT_COLUMNS, quantities, strict=True)
    return {unit: quantity for unit, quantity in pairs if quantity is not None}

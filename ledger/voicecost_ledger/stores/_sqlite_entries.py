"""A SQLite ledger's legs and entries as they are shown, and how one entry came to be."""

from __future__ import annotations

import apsw
import msgspec

from voicecost_ledger.records import LegAttributes, Outcome
from voicecost_ledger.stores import EntryHistory, EntryView, LegView
from voicecost_ledger.stores._schema import UNIT_COLUMNS
from voicecost_ledger.stores._sqlite_query import query

_LEG_COLUMNS = (
    "meter_id",
    "number",
    "served_model",
    "served_tier",
    "model",  # the billed one
    "basis",
    "outcome",
    "rated_nano_usd",
    "uncertainty_nano_usd",
    "billed_nano_usd",
    "posted_nano_usd",
    "price_id",
    "pricing_source",
    "started_at_unix_ms",
    "stopped_at_unix_ms",
    "time_to_first_ms",
    "duration_ms",
    "speech_id",
    "attributes",
    "usage",
    "margins",
)
_SHOWN_ATTRIBUTES = ("modality", "provider", "model", "service_tier", "host", "language")
_LEG_NAMES = {"number": "leg", "model": "billed_model", "rated_nano_usd": "amount_nano_usd"}


def legs(db: apsw.Connection, where: str, value: str | int) -> list[LegView]:
    """The legs for which a condition of ours on one value holds, oldest first."""
    views: list[LegView] = []
    for row in query(
        db,
        f"SELECT {', '.join(_LEG_COLUMNS)} FROM legs WHERE {where} "
        "ORDER BY started_at_unix_ms, key",
        (value,),
    ):
        raw = {
            _LEG_NAMES.get(column, column): value
            for column, value in zip(_LEG_COLUMNS, row, strict=True)
        }
        attributes = msgspec.json.decode(raw.pop("attributes"), type=LegAttributes)
        began, ended = raw["started_at_unix_ms"], raw["stopped_at_unix_ms"]
        if raw["duration_ms"] is None and ended is not None and raw["outcome"] != Outcome.LOST:
            raw["duration_ms"] = max(0, ended - began)  # by the clock on the wall, for want of one
        raw |= {name: getattr(attributes, name) for name in _SHOWN_ATTRIBUTES}
        raw |= {name: msgspec.json.decode(raw[name]) for name in ("usage", "margins")}
        views.append(msgspec.convert(raw, LegView))
    return views


_ENTRY_SELECT = (
    "SELECT e.number, l.meter_id, l.number, e.part, e.amount_nano_usd, e.price_id, e.basis, "
    "e.uncertainty_nano_usd, e.billed_nano_usd, e.accrued_at_unix_ms, e.posted_at_unix_ms, "
    f"{', '.join(f'e.{unit}' for unit in UNIT_COLUMNS)} "
    "FROM entries e JOIN legs l ON l.key = e.leg_key"
)


def entries_of_call(db: apsw.Connection, call_id: str) -> list[EntryView]:
    """A call's entries, by number."""
    return _entries(db, "e.call_id = ?", call_id)


def _entries(db: apsw.Connection, where: str, *values: str | int) -> list[EntryView]:
    sql = f"{_ENTRY_SELECT} WHERE {where} ORDER BY e.number"
    return [
        msgspec.convert(
            {
                "number": row[0],
                "meter_id": row[1],
                "leg": row[2],
                "part": row[3],
                "amount_nano_usd": row[4],
                "price_id": row[5],
                "basis": row[6],
                "uncertainty_nano_usd": row[7],
                "billed_nano_usd": row[8],
                "accrued_at_unix_ms": row[9],
                "posted_at_unix_ms": row[10],
                "usage": {
                    unit: quantity
                    for unit, quantity in zip(UNIT_COLUMNS, row[11:], strict=True)
                    if quantity is not None
                },
            },
            EntryView,
        )
        for row in query(db, sql, values)
    ]


def last_entry(db: apsw.Connection, call_id: str, leg: int, meter_id: str | None) -> int | None:
    """The number of the last entry of a call's leg, or None."""
    sql = (
        "SELECT max(number) FROM entries WHERE leg_key = (SELECT key FROM legs "
        "WHERE call_id = ?1 AND number = ?2 AND (?3 IS NULL OR meter_id = ?3) "
        "ORDER BY started_at_unix_ms, key LIMIT 1)"
    )
    return query(db, sql, (call_id, leg, meter_id))[0][0]


def history(db: apsw.Connection, number: int) -> EntryHistory | None:
    """One entry and how it came to be, or None."""
    owner = query(
        db,
        "SELECT e.leg_key, e.part, e.call_id, l.markup_ppm, l.part_count, "
        "CAST(p.document AS TEXT) FROM entries e JOIN legs l ON l.key = e.leg_key "
        "LEFT JOIN prices p ON p.price_id = coalesce(e.price_id, l.price_id) WHERE e.number = ?",
        (number,),
    )
    if not owner:
        return None
    leg_key, part, call_id, markup_ppm, part_count, document = owner[0]
    (leg,) = legs(db, "key = ?", leg_key)
    parts = _entries(db, "e.leg_key = ? AND e.part <= ?", leg_key, part)
    usage: dict[str, int] = {}
    for posted in parts:
        for unit, quantity in posted.usage.items():
            usage[unit] = usage.get(unit, 0) + quantity
    return EntryHistory(
        entry=parts[-1],
        leg=leg,
        call_id=call_id,
        usage=usage,
        posted_before_nano_usd=sum(posted.amount_nano_usd or 0 for posted in parts[:-1]),
        billed_before_nano_usd=sum(posted.billed_nano_usd or 0 for posted in parts[:-1]),
        markup_ppm=markup_ppm,
        last_part=part_count - 1,
        price_document=document,
    )

"""A SQLite ledger's calls: lists of them, and everything that is known of one."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import apsw
import msgspec

from voicecost_ledger.checkpoints import Checkpoint
from voicecost_ledger.money import per_mille
from voicecost_ledger.records import Basis, MeterOpen, Outcome
from voicecost_ledger.stores import (
    AuditView,
    CallDetail,
    CallQuery,
    CallSummary,
    ControlView,
    GapView,
    MeterView,
    QuarantinedView,
)
from voicecost_ledger.stores._sqlite_entries import entries_of_call, legs
from voicecost_ledger.stores._sqlite_query import query
from voicecost_ledger.stores._views import latency_of, turns_of

_SUMMARY = """
SELECT c.call_id, c.state, c.reason, c.project, c.agent, c.tenant, c.environment,
  (SELECT name FROM rooms r WHERE r.call_id = c.call_id ORDER BY seen_at_unix_ms LIMIT 1),
  c.opened_at_unix_ms, c.ended_at_unix_ms, c.settled_at_unix_ms, c.limit_nano_usd, c.coverage,
  c.amended
FROM calls c"""
_SUMMARY_FIELDS = (
    "call_id",
    "state",
    "reason",
    "project",
    "agent",
    "tenant",
    "environment",
    "room_name",
    "opened_at_unix_ms",
    "ended_at_unix_ms",
    "settled_at_unix_ms",
    "limit_nano_usd",
    "coverage",
    "amended",
)


def calls(db: apsw.Connection, asked: CallQuery) -> list[CallSummary]:
    """The calls a query asks for, newest first."""
    where, values = ["1"], list[Any]()
    for condition, value in (
        ("c.project = ?", asked.project),
        ("c.state = ?", str(asked.state) if asked.state else None),
        ("c.opened_at_unix_ms >= ?", asked.opened_from_unix_ms),
        ("c.opened_at_unix_ms < ?", asked.opened_until_unix_ms),
    ):
        if value is not None:
            where.append(condition)
            values.append(value)
    if asked.before is not None:
        opened_at_unix_ms, call_id = asked.before
        where += ["c.opened_at_unix_ms <= ?", "(c.opened_at_unix_ms < ? OR c.call_id > ?)"]
        values += [opened_at_unix_ms, opened_at_unix_ms, call_id]
    sql = (
        f"{_SUMMARY} WHERE {' AND '.join(where)} "
        "ORDER BY c.opened_at_unix_ms DESC, c.call_id LIMIT ?"
    )
    return [_summary(db, row) for row in query(db, sql, (*values, asked.limit))]


def _summary(db: apsw.Connection, row: tuple[Any, ...]) -> CallSummary:
    raw: dict[str, Any] = dict(zip(_SUMMARY_FIELDS, row, strict=True))
    raw["amended"] = bool(raw["amended"])
    by_modality: dict[str, int] = defaultdict(int)
    by_outcome: dict[str, int] = defaultdict(int)
    accruing = waste = estimated = unpriced = uncertainty = unknown = billed_total = 0
    for modality, outcome, basis, rated, posted, null, margin, no_margin, billed in query(
        db,
        "SELECT modality, outcome, basis, sum(coalesce(rated_nano_usd, 0)), sum(posted_nano_usd), "
        "sum(rated_nano_usd IS NULL), sum(coalesce(uncertainty_nano_usd, 0)), "
        "sum(rated_nano_usd IS NOT NULL AND uncertainty_nano_usd IS NULL), "
        "sum(coalesce(billed_nano_usd, 0)) "
        "FROM legs WHERE call_id = ? GROUP BY modality, outcome, basis",
        (raw["call_id"],),
    ):
        billed_total += billed
        by_modality[modality] += rated
        by_outcome[outcome or "open"] += rated
        accruing += rated - posted
        unpriced += null
        uncertainty += margin
        unknown += no_margin
        if basis == Basis.ESTIMATED:
            estimated += rated
        if outcome is not None and outcome != Outcome.SERVED:
            waste += rated
    total = sum(by_modality.values())
    return msgspec.convert(
        {
            **raw,
            "total_nano_usd": total,
            "billed_nano_usd": billed_total,
            "accruing_nano_usd": accruing,
            "waste_nano_usd": waste,
            "waste_per_mille": per_mille(waste, total),
            "estimated_nano_usd": estimated,
            "estimated_per_mille": per_mille(estimated, total),
            "uncertainty_nano_usd": uncertainty,
            "unknown_uncertainty_leg_count": unknown,
            "unpriced_leg_count": unpriced,
            "nano_usd_by_modality": dict(by_modality),
            "nano_usd_by_outcome": dict(by_outcome),
        },
        CallSummary,
    )


def call(db: apsw.Connection, call_id: str) -> CallDetail | None:
    """Everything known of one call, or None."""
    found = query(db, f"{_SUMMARY} WHERE c.call_id = ?", (call_id,))
    if not found:
        return None
    found_legs = legs(db, "call_id = ?", call_id)
    return CallDetail(
        summary=_summary(db, found[0]),
        turns=turns_of(found_legs),
        latency=latency_of(found_legs),
        control=_control(db, call_id),
        legs=found_legs,
        entries=entries_of_call(db, call_id),
        meters=_meters(db, call_id),
        gaps=[
            GapView(meter_id=row[0], at_unix_ms=row[1], reason=row[2], modality=row[3])
            for row in query(
                db,
                "SELECT meter_id, at_unix_ms, reason, modality FROM gaps WHERE call_id = ? "
                "ORDER BY rowid",
                (call_id,),
            )
        ],
        audit=[
            AuditView(at_unix_ms=row[0], step=row[1], detail=row[2])
            for row in query(
                db,
                "SELECT at_unix_ms, step, detail FROM audit WHERE call_id = ? ORDER BY rowid",
                (call_id,),
            )
        ],
        quarantined=[
            QuarantinedView(meter_id=row[0], seq=row[1], reason=row[2], record=row[3])
            for row in query(
                db,
                "SELECT q.meter_id, q.seq, q.reason, q.record FROM quarantine q "
                "JOIN meters m USING (meter_id) WHERE m.call_id = ? ORDER BY q.meter_id, q.seq",
                (call_id,),
            )
        ],
    )


def _meters(db: apsw.Connection, call_id: str) -> list[MeterView]:
    views: list[MeterView] = []
    for row in query(
        db,
        "SELECT meter_id, state, job_id, opened, durable_seq, charged_nano_usd, posted_nano_usd, "
        "held_nano_usd, held_windows, checkpoint, adjusted_nano_usd FROM meters "
        "WHERE call_id = ? AND NOT of_rooms ORDER BY meter_id",
        (call_id,),
    ):
        opened = msgspec.json.decode(row[3], type=MeterOpen)
        seen = msgspec.json.decode(row[9], type=Checkpoint | None)
        views.append(
            MeterView(
                meter_id=row[0],
                state=row[1],
                job_id=row[2],
                unattributed=opened.unattributed,
                hosted=opened.hosted,
                durable_seq=row[4],
                checkpoint_seq=None if seen is None else seen.seq,
                total_nano_usd=row[5],
                ceiling_nano_usd=row[6] - row[10] + row[7] if msgspec.json.decode(row[8]) else None,
                versions=opened.versions,
            )
        )
    return views


def _control(db: apsw.Connection, call_id: str) -> list[ControlView]:
    columns = [field.encode_name for field in msgspec.structs.fields(ControlView)]
    views: list[ControlView] = []
    for row in query(
        db,
        f"SELECT {', '.join(columns)} FROM control_totals WHERE call_id = ? ORDER BY rowid",
        (call_id,),
    ):
        raw = dict(zip(columns, row, strict=True))
        views.append(
            msgspec.convert(raw | {"causes": msgspec.json.decode(raw["causes"])}, ControlView)
        )
    return views

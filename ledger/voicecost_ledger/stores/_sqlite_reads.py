"""The questions a SQLite ledger answers: calls, one call, costs, counters, and whether it is right.

Every query is parameterised; only column names from our own lists are ever put into the text.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

import apsw
import msgspec

from voicecost_ledger.records import MeterOpen, Outcome
from voicecost_ledger.stores import (
    AuditView,
    CallDetail,
    CallQuery,
    CallSummary,
    CostQuery,
    CostRow,
    EntryView,
    GapView,
    LegView,
    MeterView,
    QuarantinedView,
)
from voicecost_ledger.stores._schema import UNIT_COLUMNS
from voicecost_ledger.stores._sqlite_query import query

GROUPS: Final = ("project", "agent", "tenant", "provider", "model", "modality", "outcome")

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
    accruing = waste = unpriced = 0
    for modality, outcome, rated, posted, null in query(
        db,
        "SELECT modality, outcome, sum(coalesce(rated_nano_usd, 0)), sum(posted_nano_usd), "
        "sum(rated_nano_usd IS NULL) FROM legs WHERE call_id = ? GROUP BY modality, outcome",
        (raw["call_id"],),
    ):
        by_modality[modality] += rated
        accruing += rated - posted
        unpriced += null
        if outcome is not None and outcome != Outcome.SERVED:
            waste += rated
    return msgspec.convert(
        {
            **raw,
            "total_nano_usd": sum(by_modality.values()),
            "accruing_nano_usd": accruing,
            "waste_nano_usd": waste,
            "unpriced_leg_count": unpriced,
            "nano_usd_by_modality": dict(by_modality),
        },
        CallSummary,
    )


def call(db: apsw.Connection, call_id: str) -> CallDetail | None:
    """Everything known of one call, or None."""
    found = query(db, f"{_SUMMARY} WHERE c.call_id = ?", (call_id,))
    if not found:
        return None
    return CallDetail(
        summary=_summary(db, found[0]),
        legs=_legs(db, call_id),
        entries=_entries(db, call_id),
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


def _legs(db: apsw.Connection, call_id: str) -> list[LegView]:
    fields = (
        "meter_id, number, attributes, usage, basis, outcome, rated_nano_usd, posted_nano_usd, "
        "price_id, pricing_source, started_at_unix_ms, stopped_at_unix_ms, speech_id"
    )
    views: list[LegView] = []
    for row in query(
        db,
        f"SELECT {fields} FROM legs WHERE call_id = ? ORDER BY started_at_unix_ms, key",
        (call_id,),
    ):
        attributes = msgspec.json.decode(row[2])
        views.append(
            msgspec.convert(
                {
                    "meter_id": row[0],
                    "leg": row[1],
                    "modality": attributes[0],
                    "provider": attributes[1],
                    "model": attributes[2],
                    "host": attributes[4],
                    "language": attributes[5],
                    "usage": msgspec.json.decode(row[3]),
                    "basis": row[4],
                    "outcome": row[5],
                    "amount_nano_usd": row[6],
                    "posted_nano_usd": row[7],
                    "price_id": row[8],
                    "pricing_source": row[9],
                    "started_at_unix_ms": row[10],
                    "stopped_at_unix_ms": row[11],
                    "speech_id": row[12],
                },
                LegView,
            )
        )
    return views


def _entries(db: apsw.Connection, call_id: str) -> list[EntryView]:
    columns = ", ".join(f"e.{unit}" for unit in UNIT_COLUMNS)
    sql = (
        "SELECT e.number, l.meter_id, l.number, e.part, e.amount_nano_usd, e.price_id, e.basis, "
        f"e.accrued_at_unix_ms, e.posted_at_unix_ms, {columns} "
        "FROM entries e JOIN legs l ON l.key = e.leg_key WHERE e.call_id = ? ORDER BY e.number"
    )
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
                "accrued_at_unix_ms": row[7],
                "posted_at_unix_ms": row[8],
                "usage": {
                    unit: quantity
                    for unit, quantity in zip(UNIT_COLUMNS, row[9:], strict=True)
                    if quantity is not None
                },
            },
            EntryView,
        )
        for row in query(db, sql, (call_id,))
    ]


def _meters(db: apsw.Connection, call_id: str) -> list[MeterView]:
    views: list[MeterView] = []
    for row in query(
        db,
        "SELECT meter_id, state, job_id, opened, durable_seq, charged_nano_usd, posted_nano_usd, "
        "held_nano_usd, held_windows FROM meters WHERE call_id = ? ORDER BY meter_id",
        (call_id,),
    ):
        opened = msgspec.json.decode(row[3], type=MeterOpen)
        views.append(
            MeterView(
                meter_id=row[0],
                state=row[1],
                job_id=row[2],
                unattributed=opened.unattributed,
                durable_seq=row[4],
                total_nano_usd=row[5],
                ceiling_nano_usd=row[6] + row[7] if msgspec.json.decode(row[8]) else None,
                versions=opened.versions,
            )
        )
    return views


def costs(db: apsw.Connection, asked: CostQuery) -> list[CostRow]:
    """Accrued cost between two instants, by any of `GROUPS`."""
    unknown = [group for group in asked.group_by if group not in GROUPS]
    if unknown:
        raise ValueError(
            f"cannot group costs by {unknown[0]!r}: expected one of {', '.join(GROUPS)}"
        )
    columns = ", ".join(asked.group_by)
    where = "quarter_unix_ms >= ? AND quarter_unix_ms < ?"
    values: list[int | str] = [asked.from_unix_ms, asked.until_unix_ms]
    if asked.project is not None:
        where += " AND project = ?"
        values.append(asked.project)
    select = f"{columns}, " if columns else ""
    group = f" GROUP BY {columns} ORDER BY 1" if columns else ""
    sql = (
        f"SELECT {select}sum(amount_nano_usd), sum(leg_count), sum(unpriced_leg_count) "
        f"FROM rollups WHERE {where}{group}"
    )
    return [
        CostRow(
            group=dict(zip(asked.group_by, row[:-3], strict=True)),
            amount_nano_usd=row[-3],
            leg_count=row[-2],
            unpriced_leg_count=row[-1],
        )
        for row in query(db, sql, values)
        if row[-1] or row[-2] or row[-3]  # a group that everything has moved out of is no group
    ]


def accruing(db: apsw.Connection, project: str | None) -> int:
    """What open legs have cost and that is not posted yet."""
    sql = (
        "SELECT coalesce(sum(coalesce(l.rated_nano_usd, 0) - l.posted_nano_usd), 0) "
        "FROM legs l JOIN meters m USING (meter_id) "
        "WHERE l.outcome IS NULL AND (?1 IS NULL OR m.project = ?1)"
    )
    return query(db, sql, (project,))[0][0]


def counters(db: apsw.Connection) -> dict[str, int]:
    """Counters, and gauges read off the tables; names are fixed words."""
    found: dict[str, int] = {
        row[0]: row[1] for row in query(db, "SELECT name, value FROM counters")
    }
    for state, count in query(db, "SELECT state, count(*) FROM calls GROUP BY state"):
        found[f"calls_{state}"] = count
    for name, sql in (
        ("entries", "SELECT count(*) FROM entries"),
        ("posted_nano_usd", "SELECT coalesce(sum(amount_nano_usd), 0) FROM entries"),
        ("gaps", "SELECT count(*) FROM gaps"),
        ("unpriced_legs", "SELECT count(*) FROM legs WHERE rated_nano_usd IS NULL"),
        ("amended_calls", "SELECT count(*) FROM calls WHERE amended"),
        ("webhooks", "SELECT count(*) FROM webhooks"),
        ("overshoot_nano_usd", "SELECT coalesce(sum(overshoot_nano_usd), 0) FROM windows"),
    ):
        found[name] = query(db, sql)[0][0]
    return found


_DIFFERENCES: Final = (
    (
        "leg {0}/{1}: posted_nano_usd is {2}, its entries sum to {3}",
        "SELECT l.meter_id, l.number, l.posted_nano_usd, "
        "coalesce((SELECT sum(amount_nano_usd) FROM entries e WHERE e.leg_key = l.key), 0) AS s "
        "FROM legs l WHERE l.posted_nano_usd <> s",
    ),
    (
        "leg {0}/{1} is closed and rated {2}, but {3} are posted",
        "SELECT meter_id, number, rated_nano_usd, posted_nano_usd FROM legs "
        "WHERE outcome IS NOT NULL AND coalesce(rated_nano_usd, 0) <> posted_nano_usd",
    ),
    (
        "meter {0}: charged_nano_usd is {1}, its legs are rated {2}",
        "SELECT meter_id, charged_nano_usd, coalesce((SELECT sum(rated_nano_usd) FROM legs l "
        "WHERE l.meter_id = m.meter_id), 0) AS s FROM meters m WHERE charged_nano_usd <> s",
    ),
    (
        "meter {0}: posted_nano_usd is {1}, its legs' entries sum to {2}",
        "SELECT meter_id, posted_nano_usd, coalesce((SELECT sum(posted_nano_usd) FROM legs l "
        "WHERE l.meter_id = m.meter_id), 0) AS s FROM meters m WHERE posted_nano_usd <> s",
    ),
    (
        "meter {0}: unpriced_leg_count is {1}, counted {2}",
        "SELECT meter_id, unpriced_leg_count, (SELECT count(*) FROM legs l "
        "WHERE l.meter_id = m.meter_id AND rated_nano_usd IS NULL) AS s FROM meters m "
        "WHERE unpriced_leg_count <> s",
    ),
    (
        "window {0}: spent {1}, but its call's entries sum to {2}",
        "SELECT scope, spent_nano_usd, coalesce((SELECT sum(amount_nano_usd) FROM entries e "
        "WHERE e.call_id = substr(w.scope, 6)), 0) AS s FROM windows w "
        "WHERE scope LIKE 'call:%' AND spent_nano_usd <> s",
    ),
    (
        "window {0} from {1}: spent {2} + held {3} is over limit {4} + overshoot {5} + cuts {6}",
        "SELECT scope, start_unix_ms, spent_nano_usd, held_nano_usd, limit_nano_usd, "
        "overshoot_nano_usd, cut_nano_usd FROM windows WHERE enforcing AND spent_nano_usd "
        "+ held_nano_usd > limit_nano_usd + overshoot_nano_usd + cut_nano_usd",
    ),
    (
        "window {0} from {1}: held {2}, but the meters hold {3} on it",
        "SELECT scope, start_unix_ms, held_nano_usd, coalesce((SELECT sum(m.held_nano_usd) "
        "FROM meters m, json_each(m.held_windows) h WHERE json_extract(h.value, '$[0]') = w.scope "
        "AND json_extract(h.value, '$[1]') = w.start_unix_ms), 0) AS s FROM windows w "
        "WHERE held_nano_usd <> s",
    ),
    (
        # A day has 23 to 25 hours: from its start to the next window's, or for 25 hours.
        "window {0} from {1}: spent {2}, but its project's entries of that day sum to {3}",
        "SELECT scope, start_unix_ms, spent_nano_usd, coalesce((SELECT sum(e.amount_nano_usd) "
        "FROM entries e JOIN legs l ON l.key = e.leg_key JOIN meters m USING (meter_id) "
        "WHERE m.project = substr(w.scope, 9) AND e.accrued_at_unix_ms >= w.start_unix_ms "
        "AND e.accrued_at_unix_ms < coalesce((SELECT min(n.start_unix_ms) FROM windows n "
        "WHERE n.scope = w.scope AND n.start_unix_ms > w.start_unix_ms), "
        "w.start_unix_ms + 90000000)), 0) AS s FROM windows w "
        "WHERE scope LIKE 'project:%' AND spent_nano_usd <> s",
    ),
    (
        "meter {0} is {1} and still holds {2}",
        "SELECT meter_id, state, held_nano_usd FROM meters "
        "WHERE state <> 'open' AND held_nano_usd <> 0",
    ),
    (
        "quarter {0}, {1}: rolled up to {2} in {3} legs, its entries sum to {4} in {5}",
        "WITH e AS (SELECT e.accrued_at_unix_ms - e.accrued_at_unix_ms % 900000 AS q, "
        "json_array(m.project, coalesce(m.agent, ''), coalesce(m.tenant, ''), l.provider, l.model, "
        "l.modality, coalesce(l.outcome, '')) AS dimensions, "
        "sum(coalesce(e.amount_nano_usd, 0)) AS amount, sum(e.part = 0) AS legs FROM entries e "
        "JOIN legs l ON l.key = e.leg_key JOIN meters m USING (meter_id) GROUP BY 1, 2), "
        "r AS (SELECT quarter_unix_ms AS q, json_array(project, agent, tenant, provider, model, "
        "modality, outcome) AS dimensions, amount_nano_usd AS amount, leg_count AS legs "
        "FROM rollups WHERE amount_nano_usd <> 0 OR leg_count <> 0) "
        "SELECT coalesce(r.q, e.q), coalesce(r.dimensions, e.dimensions), r.amount, r.legs, "
        "e.amount, e.legs FROM r FULL JOIN e ON r.q = e.q AND r.dimensions = e.dimensions "
        "WHERE coalesce(r.amount, 0) <> coalesce(e.amount, 0) "
        "OR coalesce(r.legs, 0) <> coalesce(e.legs, 0)",
    ),
    (
        "the rollups sum to {0}, the entries to {1}",
        "SELECT a, b FROM (SELECT (SELECT coalesce(sum(amount_nano_usd), 0) FROM rollups) AS a, "
        "(SELECT coalesce(sum(amount_nano_usd), 0) FROM entries) AS b) WHERE a <> b",
    ),
    (
        "rollups count {0} legs ({1} unpriced), the entries {2} ({3})",
        "SELECT * FROM (SELECT coalesce(sum(leg_count), 0) AS a, "
        "coalesce(sum(unpriced_leg_count), 0) AS b FROM rollups), "
        "(SELECT count(*) AS c, coalesce(sum(unpriced_posted), 0) AS d FROM legs "
        "WHERE part_count > 0) WHERE a <> c OR b <> d",
    ),
)


def verify(db: apsw.Connection) -> list[str]:
    """Recompute every total from the entries; one sentence per difference."""
    return [sentence.format(*row) for sentence, sql in _DIFFERENCES for row in query(db, sql)]

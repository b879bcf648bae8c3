"""The questions a SQLite ledger answers over all calls: costs, latency, counters, correctness.

Every query is parameterised; only column names from our own lists are ever put into the text.
"""

from __future__ import annotations

from array import array
from typing import Final

import apsw

from voicecost_ledger.billing import marked_up
from voicecost_ledger.entries import FLAT_FEE_NUMBER
from voicecost_ledger.money import per_mille
from voicecost_ledger.records import Modality
from voicecost_ledger.stores import CostQuery, CostRow, LatencyQuery, LatencyRow
from voicecost_ledger.stores._sqlite_query import each_row, query
from voicecost_ledger.stores._views import latency_row

GROUPS: Final = ("project", "agent", "tenant", "provider", "model", "modality", "outcome")


def costs(db: apsw.Connection, asked: CostQuery) -> list[CostRow]:
    """Accrued cost between two instants, by any of `GROUPS`."""
    _check_groups(asked.group_by, "costs")
    columns = ", ".join(asked.group_by)
    where = "quarter_unix_ms >= ? AND quarter_unix_ms < ?"
    values: list[int | str] = [asked.from_unix_ms, asked.until_unix_ms]
    if asked.project is not None:
        where += " AND project = ?"
        values.append(asked.project)
    select = f"{columns}, " if columns else ""
    group = f" GROUP BY {columns} ORDER BY 1" if columns else ""
    sql = (
        f"SELECT {select}sum(amount_nano_usd), "
        "sum(CASE WHEN outcome NOT IN ('', 'served') THEN amount_nano_usd ELSE 0 END), "
        "sum(billed_nano_usd), sum(leg_count), sum(unpriced_leg_count) "
        f"FROM rollups WHERE {where}{group}"
    )
    return [
        CostRow(
            group=dict(zip(asked.group_by, row[:-5], strict=True)),
            amount_nano_usd=row[-5],
            billed_nano_usd=row[-3],
            waste_nano_usd=row[-4],
            waste_per_mille=per_mille(row[-4], row[-5]),
            leg_count=row[-2],
            unpriced_leg_count=row[-1],
        )
        for row in query(db, sql, values)
        if row[-1]
        or row[-2]
        or row[-3]
        or row[-5]  # a group that everything has moved out of is no group
    ]


_LEG_GROUPS: Final = {
    "project": "m.project",
    "agent": "coalesce(m.agent, '')",
    "tenant": "coalesce(m.tenant, '')",
    "provider": "l.provider",
    "model": "l.model",
    "modality": "l.modality",
    "outcome": "l.outcome",
}


def latency(db: apsw.Connection, asked: LatencyQuery) -> list[LatencyRow]:
    """How long the legs took that started between two instants and ended, by any of `GROUPS`."""
    _check_groups(asked.group_by, "latency")
    columns = "".join(f"{_LEG_GROUPS[group]}, " for group in asked.group_by)
    sql = (
        f"SELECT {columns}l.time_to_first_ms, "
        # By the clock on the wall, where the meter did not measure.
        "coalesce(l.duration_ms, max(0, l.stopped_at_unix_ms - l.started_at_unix_ms)) "
        "FROM legs l INDEXED BY legs_by_start JOIN meters m USING (meter_id) "
        "WHERE l.started_at_unix_ms >= ?1 AND l.started_at_unix_ms < ?2 "
        "AND l.outcome <> 'lost' AND l.number < ?4 AND l.modality <> ?5 "
        "AND (?3 IS NULL OR m.project = ?3)"
    )
    groups: dict[tuple[str, ...], tuple[array[int], array[int]]] = {}
    # Row by row into arrays: a month may have millions of legs, and SQLite's window functions take
    # several times as long to rank them.
    values = (
        asked.from_unix_ms,
        asked.until_unix_ms,
        asked.project,
        FLAT_FEE_NUMBER,
        str(Modality.PARTICIPANT),  # how long somebody stayed is no latency
    )
    for row in each_row(db, sql, values):
        found = groups.get(row[:-2])
        if found is None:
            found = groups[row[:-2]] = array("q"), array("q")
        if row[-2] is not None:
            found[0].append(row[-2])
        found[1].append(row[-1])
    return [
        latency_row(
            dict(zip(asked.group_by, group, strict=True)), len(durations), firsts, durations
        )
        for group, (firsts, durations) in sorted(groups.items())
    ]


def _check_groups(group_by: tuple[str, ...], what: str) -> None:
    unknown = [group for group in group_by if group not in GROUPS]
    if unknown:
        raise ValueError(
            f"cannot group {what} by {unknown[0]!r}: expected one of {', '.join(GROUPS)}"
        )


_ACCRUING: Final = {
    "cost": "coalesce(l.rated_nano_usd, 0) - l.posted_nano_usd",
    "billed": "coalesce(l.billed_nano_usd, 0) - l.posted_billed_nano_usd",
}


def accruing(db: apsw.Connection, project: str | None, *, amount: str = "cost") -> int:
    """What open legs have cost, or are to be billed for, and that is not posted yet."""
    sql = (
        f"SELECT coalesce(sum({_ACCRUING[amount]}), 0) "
        "FROM legs l JOIN meters m USING (meter_id) "
        "WHERE l.outcome IS NULL AND (?1 IS NULL OR m.project = ?1)"
    )
    return query(db, sql, (project,))[0][0]


_COUNTED: Final[tuple[str, ...]] = (
    "budget_ended_calls",
    "checkpoints",
    "quarantined_records",
    "tick_faults",
    "unexplained_control_totals",
)


def counters(db: apsw.Connection) -> dict[str, int]:
    """Counters, and gauges read off the tables; names are fixed words."""
    found: dict[str, int] = dict.fromkeys(
        _COUNTED, 0
    )  # an alert can tell "none yet" from "not counted"
    found.update({row[0]: row[1] for row in query(db, "SELECT name, value FROM counters")})
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
        "leg {0}/{1}: posted_billed_nano_usd is {2}, its entries sum to {3}",
        "SELECT l.meter_id, l.number, l.posted_billed_nano_usd, "
        "coalesce((SELECT sum(billed_nano_usd) FROM entries e WHERE e.leg_key = l.key), 0) AS s "
        "FROM legs l WHERE l.posted_billed_nano_usd <> s",
    ),
    (
        "leg {0}/{1} is closed and billed {2}, but {3} are posted",
        "SELECT meter_id, number, billed_nano_usd, posted_billed_nano_usd FROM legs "
        "WHERE outcome IS NOT NULL AND coalesce(billed_nano_usd, 0) <> posted_billed_nano_usd",
    ),
    (
        "leg {0}/{1} is {2} and billed {3}, but its order says {4}",
        "SELECT meter_id, number, rated_nano_usd, billed_nano_usd, "
        "CAST(p.document AS TEXT) AS ordered FROM legs l LEFT JOIN prices p USING (price_id) "
        f"WHERE number >= {FLAT_FEE_NUMBER} AND (rated_nano_usd, billed_nano_usd) IS NOT ("
        "coalesce(json_extract(ordered, '$.adjustment.amount_nano_usd'), 0), "
        "coalesce(json_extract(ordered, '$.adjustment.billed_nano_usd'), "
        "json_extract(ordered, '$.adjustment.amount_nano_usd'), "
        "json_extract(ordered, '$.flat_fee.billed_nano_usd')))",
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
        "quarter {0}, {1}: rolled up to {2} in {3} legs, its entries sum to {4} in {5}; "
        "billed {6}, its entries {7}",
        "WITH e AS (SELECT e.accrued_at_unix_ms - e.accrued_at_unix_ms % 900000 AS q, "
        "json_array(m.project, coalesce(m.agent, ''), coalesce(m.tenant, ''), l.provider, l.model, "
        "l.modality, coalesce(l.outcome, '')) AS dimensions, "
        "sum(coalesce(e.amount_nano_usd, 0)) AS amount, sum(e.part = 0) AS legs, "
        "sum(coalesce(e.billed_nano_usd, 0)) AS billed FROM entries e "
        "JOIN legs l ON l.key = e.leg_key JOIN meters m USING (meter_id) GROUP BY 1, 2), "
        "r AS (SELECT quarter_unix_ms AS q, json_array(project, agent, tenant, provider, model, "
        "modality, outcome) AS dimensions, amount_nano_usd AS amount, leg_count AS legs, "
        "billed_nano_usd AS billed FROM rollups "
        "WHERE amount_nano_usd <> 0 OR leg_count <> 0 OR billed_nano_usd <> 0) "
        "SELECT coalesce(r.q, e.q), coalesce(r.dimensions, e.dimensions), r.amount, r.legs, "
        "e.amount, e.legs, r.billed, e.billed FROM r FULL JOIN e "
        "ON r.q = e.q AND r.dimensions = e.dimensions "
        "WHERE coalesce(r.amount, 0) <> coalesce(e.amount, 0) "
        "OR coalesce(r.legs, 0) <> coalesce(e.legs, 0) "
        "OR coalesce(r.billed, 0) <> coalesce(e.billed, 0)",
    ),
    (
        "the rollups sum to {0}, the entries to {1}",
        "SELECT a, b FROM (SELECT (SELECT coalesce(sum(amount_nano_usd), 0) FROM rollups) AS a, "
        "(SELECT coalesce(sum(amount_nano_usd), 0) FROM entries) AS b) WHERE a <> b",
    ),
    (
        "leg {0}/{1} is {2} and may be off by {3}: expected 0",
        "SELECT meter_id, number, basis, uncertainty_nano_usd FROM legs WHERE basis <> 'estimated' "
        "AND rated_nano_usd IS NOT NULL AND coalesce(uncertainty_nano_usd, -1) <> 0",
    ),
    (
        "leg {0}/{1} stands for records after {2}, but {3} are durable: {4} count twice",
        "SELECT l.meter_id, l.number, json_extract(m.checkpoint, '$[1]') AS seq, m.durable_seq, "
        "l.rated_nano_usd FROM legs l JOIN meters m USING (meter_id) WHERE l.number < 0 "
        "AND coalesce(l.rated_nano_usd, 0) <> 0 AND NOT m.records_lost AND m.durable_seq > seq",
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
    found = [sentence.format(*row) for sentence, sql in _DIFFERENCES for row in query(db, sql)]
    legs = each_row(
        db,
        "SELECT meter_id, number, rated_nano_usd, markup_ppm, billed_nano_usd FROM legs "
        "WHERE number < ?",
        (FLAT_FEE_NUMBER,),
    )
    for meter_id, number, rated, markup_ppm, billed in legs:
        # Not in SQL: the product of the two may be too large for it.
        expected = marked_up(rated, markup_ppm)
        if billed != expected:
            found.append(
                f"leg {meter_id}/{number} is rated {rated} with a markup of {markup_ppm} ppm and "
                f"billed {billed}: expected {expected}"
            )
    return found

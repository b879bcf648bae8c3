"""The ledger's file: kept, shared, refused, full, locked."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.ledger.desk import TTS, SumBook
from voicecost_ledger.books import Books
from voicecost_ledger.policy import Policy
from voicecost_ledger.protocol import Records
from voicecost_ledger.records import Basis, LegStart, LegStop, MeterOpen, Outcome
from voicecost_ledger.stores import CallQuery, CostQuery, StoreRefused, StoreUnavailable
from voicecost_ledger.stores.sqlite import SqliteStore

NOW = 1_795_348_800_000


def post(store: SqliteStore, meter_id: str, characters: int = 100) -> None:
    books = Books(SumBook(), Policy())
    records = [
        MeterOpen(meter_id, 1, NOW),
        LegStart(meter_id, 2, NOW, 1, TTS, {}),
        LegStop(meter_id, 3, NOW, 1, {"characters": characters}, Basis.OBSERVED, Outcome.SERVED),
    ]
    with store.transaction() as tx:
        books.receive(tx, Records(meter_id, 0, 3, [*records]), NOW)


def page_limit(store: SqliteStore, pages: int) -> None:
    """A limit counts for the connection that sets it: it must be the writer's."""
    db: Any = store._db
    db.execute(f"PRAGMA max_page_count = {pages}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "ledger.db"


def test_what_was_committed_is_there_after_a_restart(path: Path) -> None:
    store = SqliteStore.open(path)
    post(store, "MT_a")
    with store.transaction() as tx:
        identity = tx.ledger_identity()
    store.close()
    store = SqliteStore.open(path)
    with store.transaction() as tx:
        assert tx.ledger_identity() == identity
    assert [call.total_nano_usd for call in store.calls(CallQuery())] == [100_000]
    assert store.verify() == []
    store.close()


def test_a_ledger_from_before_there_were_markups_was_billed_its_cost(path: Path) -> None:
    store = SqliteStore.open(path)
    post(store, "MT_a")
    store.close()
    db: Any = apsw.Connection(str(path))
    db.execute("DROP INDEX participants_by_number")
    for table, columns in {
        "legs": ("markup_ppm", "billed_nano_usd", "posted_billed_nano_usd", "recorded_basis"),
        "entries": ("billed_nano_usd",),
        "rollups": ("billed_nano_usd",),
        "meters": ("adjusted_nano_usd", "of_rooms"),
        "windows": ("adjusted_nano_usd",),
        "participants": ("number", "left_told", "heard_at_unix_ms"),
    }.items():
        for column in columns:
            db.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    db.execute("PRAGMA user_version = 1")
    db.close()
    store = SqliteStore.open(path)
    assert store.verify() == []
    (call,) = store.calls(CallQuery())
    assert (call.total_nano_usd, call.billed_nano_usd) == (100_000, 100_000)
    other = apsw.Connection(str(path))
    with pytest.raises(apsw.ConstraintError, match="append-only"):
        other.execute("UPDATE entries SET amount_nano_usd = 0")
    other.close()
    post(store, "MT_b")
    assert store.verify() == []
    store.close()


def test_the_file_is_for_its_owner_only(path: Path) -> None:
    SqliteStore.open(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_several_processes_may_share_one_file(path: Path) -> None:
    stores = [SqliteStore.open(path) for _ in range(3)]
    for n, store in enumerate(stores):
        post(store, f"MT_{n}")
    for store in stores:
        assert len(store.calls(CallQuery())) == 3
        store.close()


def test_an_entry_can_be_neither_changed_nor_deleted(path: Path) -> None:
    store = SqliteStore.open(path)
    post(store, "MT_a")
    other = apsw.Connection(str(path))
    for sql in ("UPDATE entries SET amount_nano_usd = 0", "DELETE FROM entries"):
        with pytest.raises(apsw.ConstraintError, match="append-only"):
            other.execute(sql)
    other.close()
    store.close()


def test_an_overflowing_sum_is_an_error_and_never_a_real(path: Path) -> None:
    store = SqliteStore.open(path)
    post(store, "MT_a")
    other = apsw.Connection(str(path))
    with pytest.raises(apsw.ConstraintError):
        other.execute("UPDATE rollups SET amount_nano_usd = 9223372036854775807 + 1")
    other.close()
    store.close()


def test_with_the_disk_full_nothing_of_a_group_is_durable(path: Path) -> None:
    store = SqliteStore.open(path)
    post(store, "MT_0")
    # The real SQLITE_FULL, without filling a disk: no page may be added.
    page_limit(store, 1)

    def post_until_full() -> None:
        for n in range(1, 200):
            post(store, f"MT_{n}")

    with pytest.raises(StoreUnavailable, match="full: free some space") as caught:
        post_until_full()
    assert caught.value.reason == "full"
    kept = len(store.calls(CallQuery(limit=1000)))
    assert store.verify() == []
    page_limit(store, 100000)
    post(store, "MT_again")
    assert len(store.calls(CallQuery(limit=1000))) == kept + 1
    store.close()


def test_a_tick_reads_no_table_whole(path: Path) -> None:
    """History grows for ever; what time may move on is little."""
    store = SqliteStore.open(path)
    seen: list[str] = []
    db: Any = store._db

    def plan(cursor: Any, statement: str, bindings: Any) -> bool:
        if statement.startswith("SELECT"):
            for row in apsw.Cursor(db).execute("EXPLAIN QUERY PLAN " + statement, bindings):
                seen.append(row[3])
        return True

    with store.transaction() as tx:
        db.exec_trace = plan
        tx.open_legs_before(NOW)
        tx.meters_with_lease_before(NOW)
        tx.meters_holding_before(NOW)
        tx.calls_in_waiting(NOW, ended_before_unix_ms=NOW, silent_since_unix_ms=NOW)
        tx.calls_connected_before(NOW)
        db.exec_trace = None
    whole = [step for step in seen if step.startswith("SCAN") and "INDEX" not in step]
    assert seen
    assert whole == []
    store.close()


def test_a_locked_ledger_says_who_to_look_for(path: Path) -> None:
    store = SqliteStore.open(path, busy_timeout_ms=20)
    other = apsw.Connection(str(path))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked by another program") as caught:
        post(store, "MT_a")
    assert caught.value.reason == "locked"
    other.execute("ROLLBACK")
    post(store, "MT_a")
    other.close()
    store.close()


def test_a_failed_transaction_leaves_the_store_usable(path: Path) -> None:
    store = SqliteStore.open(path)

    def fail() -> None:
        with store.transaction() as tx:
            tx.count("never")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "never" not in store.counters()
    post(store, "MT_a")
    store.close()


def test_a_ledger_of_a_newer_version_is_refused(path: Path) -> None:
    SqliteStore.open(path).close()
    db = apsw.Connection(str(path))
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreRefused, match="written by a newer voicecost"):
        SqliteStore.open(path)


def test_a_file_that_is_no_ledger_is_refused(path: Path) -> None:
    path.parent.mkdir()
    db = apsw.Connection(str(path))
    db.execute("CREATE TABLE theirs (x)")
    db.close()
    with pytest.raises(StoreRefused, match="no ledger of voicecost"):
        SqliteStore.open(path)
    garbage = path.with_name("garbage.db")
    garbage.write_text("this is no database, whatever its name says" * 100)
    with pytest.raises(StoreUnavailable, match="damaged or no SQLite file"):
        SqliteStore.open(garbage)


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="check the folder"):
        SqliteStore.open(tmp_path / "file" / "ledger.db")


def test_costs_are_grouped_by_what_was_asked(path: Path) -> None:
    store = SqliteStore.open(path)
    post(store, "MT_a")
    post(store, "MT_b", characters=50)
    asked = CostQuery(
        from_unix_ms=NOW, until_unix_ms=NOW + 1, group_by=("modality", "outcome"), project="default"
    )
    (row,) = store.costs(asked)
    assert row.group == {"modality": "tts", "outcome": "served"}
    assert (row.amount_nano_usd, row.leg_count) == (150_000, 2)
    assert store.costs(CostQuery(from_unix_ms=0, until_unix_ms=NOW)) == []
    with pytest.raises(ValueError, match="cannot group costs by 'colour'"):
        store.costs(CostQuery(from_unix_ms=0, until_unix_ms=NOW, group_by=("colour",)))
    store.close()

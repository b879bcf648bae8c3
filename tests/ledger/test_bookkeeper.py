"""The writer thread: durable before it answers, and never stopped by one bad event."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.ledger.desk import TTS, SumBook
from voicecost_ledger.bookkeeper import Bookkeeper
from voicecost_ledger.events import Effect, EndRoom
from voicecost_ledger.policy import Policy
from voicecost_ledger.pricing import Price
from voicecost_ledger.protocol import Ack, Records, WrappedUp
from voicecost_ledger.records import Basis, LegAttributes, LegInterim, LegStart, MeterOpen
from voicecost_ledger.stores import CallQuery, StoreUnavailable
from voicecost_ledger.stores.sqlite import SqliteStore

NOW = 1_795_348_800_000


class TroubledBook(SumBook):
    def price_for(self, leg: LegAttributes, at_unix_ms: int) -> Price | None:
        if leg.model == "trouble":
            raise RuntimeError("a fault of ours")
        return super().price_for(leg, at_unix_ms)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore.open(tmp_path / "ledger.db", busy_timeout_ms=20)
    yield store
    store.close()


@pytest.fixture
def bookkeeper(store: SqliteStore) -> Iterator[Bookkeeper]:
    bookkeeper = Bookkeeper(store, TroubledBook(), Policy(), clock_ms=lambda: NOW)
    bookkeeper.start()
    yield bookkeeper
    bookkeeper.close()


def opening(meter_id: str, model: str = "aura-2", **opened: Any) -> Records:
    attributes = LegAttributes(modality=TTS.modality, provider="Deepgram", model=model)
    records = [
        MeterOpen(meter_id, 1, NOW, **opened),
        LegStart(meter_id, 2, NOW, 1, attributes, {"characters": 3}),
    ]
    return Records(meter_id, 0, 2, [*records])


def test_an_acknowledgement_means_it_is_in_the_file(
    store: SqliteStore, bookkeeper: Bookkeeper
) -> None:
    futures = [bookkeeper.submit(opening(f"MT_{n}")) for n in range(100)]
    for n, future in enumerate(futures):
        (ack,) = future.result(10)
        assert isinstance(ack, Ack)
        assert ack.committed == {f"MT_{n}": 2}
    assert len(store.calls(CallQuery(limit=1000))) == 100


def test_one_event_at_fault_costs_only_itself(store: SqliteStore, bookkeeper: Bookkeeper) -> None:
    futures = [
        bookkeeper.submit(opening(f"MT_{n}", model="trouble" if n == 3 else "aura-2"))
        for n in range(8)
    ]
    assert [future.exception(10) is None for future in futures] == [n != 3 for n in range(8)]
    assert bookkeeper.fault_count == 1
    assert len(store.calls(CallQuery())) == 7
    assert store.verify() == []


def test_while_the_ledger_is_locked_nothing_is_acknowledged_and_nothing_is_lost(
    store: SqliteStore, bookkeeper: Bookkeeper
) -> None:
    other = apsw.Connection(str(store.path))
    other.execute("BEGIN IMMEDIATE")
    refused = bookkeeper.submit(opening("MT_a"))
    assert isinstance(refused.exception(10), StoreUnavailable)
    other.execute("ROLLBACK")
    other.close()
    # The client still holds it and sends it again.
    assert isinstance(bookkeeper.submit(opening("MT_a")).result(10)[0], Ack)
    assert len(store.calls(CallQuery())) == 1


def test_what_was_handed_in_before_the_close_is_committed(store: SqliteStore) -> None:
    bookkeeper = Bookkeeper(store, SumBook(), Policy(), clock_ms=lambda: NOW)
    bookkeeper.start()
    futures = [bookkeeper.submit(opening(f"MT_{n}")) for n in range(50)]
    bookkeeper.close()
    assert all(future.done() for future in futures)
    assert len(store.calls(CallQuery(limit=1000))) == 50
    assert isinstance(bookkeeper.submit(opening("MT_late")).exception(1), StoreUnavailable)


def test_a_room_that_must_end_is_named_again_by_every_tick(store: SqliteStore) -> None:
    seen: list[Effect] = []
    policy = Policy(tick_ms=5)
    bookkeeper = Bookkeeper(store, SumBook(), policy, clock_ms=lambda: NOW, on_effects=seen.extend)
    bookkeeper.start()
    batch = opening("MT_a", room_sid="RM_x", room_name="x", job_id="AJ_x", budget_nano_usd=10_000)
    bookkeeper.submit(batch).result(10)
    interim = LegInterim("MT_a", 3, NOW, 1, {"characters": 900}, Basis.OBSERVED)
    bookkeeper.submit(Records("MT_a", 2, 3, [interim])).result(10)
    first = bookkeeper.submit(WrappedUp("MT_a")).result(10)
    assert any(isinstance(effect, EndRoom) for effect in first)
    while not seen:
        bookkeeper.submit(WrappedUp("MT_none")).result(10)
    bookkeeper.close()
    assert all(isinstance(effect, EndRoom) and effect.room_sids == ["RM_x"] for effect in seen)

"""Whatever is dropped, repeated, reordered, killed or frozen: the books are right (I3 to I12).

`VOICECOST_SIMULATION_SEEDS` says how many seeds (make soak: as many as asked); a failing one is
named, and `pytest -k 'seed17-'` plays it again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from tests.simulation.world import NOON, World, totals_of
from voicecost_ledger.calls import CallState, EndReason
from voicecost_ledger.checkpoints import Checkpoint
from voicecost_ledger.entries import FLAT_FEE_NUMBER
from voicecost_ledger.records import (
    Basis,
    LegAttributes,
    LegInterim,
    LegStart,
    LegStop,
    Outcome,
    Record,
)
from voicecost_ledger.stores import CallDetail, CallQuery
from voicecost_ledger.stores.sqlite import SqliteStore

SEEDS = int(os.environ.get("VOICECOST_SIMULATION_SEEDS", "60"))


@pytest.mark.parametrize("seed", range(SEEDS), ids=lambda seed: f"seed{seed}-")
def test_the_books_are_right_after_any_trouble(seed: int) -> None:
    world = World(seed)
    for _ in range(12):
        world.run(world.now + 10_000)
        assert world.sidecar.store.verify() == []
    world.play()
    store = world.sidecar.store
    assert store.verify() == []
    calls = [store.call(call.call_id) for call in store.calls(CallQuery(limit=1000))]
    by_meter = {meter.meter_id: call for call in calls if call for meter in call.meters}
    for agent in world.agents:
        call = by_meter.get(agent.meter_id)
        if call is None and not agent.spool:
            continue  # it came when the room was empty
        if call is None:
            # Nothing of it ever reached anybody before its host was lost.
            assert agent.host_lost
            assert agent.meter_id not in world.sidecar.checkpoints
            continue
        assert call.summary.state is CallState.SETTLED, agent.meter_id
        if not agent.host_lost:
            assert_all_counted(call, agent.spool, agent.meter_id)
        elif agent.meter_id in world.sidecar.checkpoints:
            assert_checkpoint_counted(
                store, agent.spool, agent.meter_id, world.sidecar.checkpoints[agent.meter_id]
            )
        if agent.closed and call.summary.reason is not EndReason.BUDGET:
            assert call.summary.reason in (EndReason.COMPLETED, EndReason.CRASHED)
        # A life of the room in which no agent was ever seen may stand apart, without a cent in it.
        metered = [c for c in calls if c and c.meters and agent.room_name == c.summary.room_name]
        assert len(metered) <= 1
        assert call.quarantined == []
        # However wrong the agent's clock was.
        assert all(world.began <= e.accrued_at_unix_ms <= world.wall_clock for e in call.entries)
    assert_connections_counted(world, [call.summary.call_id for call in calls if call])
    late = world.began != NOON or any(call and call.summary.amended for call in calls)
    if world.strict and not late and not world.limit_cut:
        # Late is what is reported after its day, or after its meter was given up: its hold is gone.
        # A new limit finds calls that hold nothing of it.
        assert store.counters()["overshoot_nano_usd"] == 0
    for call in calls:
        assert call is not None
        if call.summary.reason is EndReason.BUDGET:
            assert call.summary.room_name not in world.livekit.rooms


def assert_connections_counted(world: World, call_ids: Sequence[str]) -> None:
    """Whoever the ledger knows of was connected as long as LiveKit's own bill says, once."""
    bill = dict(world.livekit.bill)
    with world.sidecar.store.transaction() as tx:
        meters = [meter for call_id in call_ids for meter in tx.room_meters_of(call_id)]
        legs = [leg for meter in meters for leg in tx.legs_of(meter.meter_id)]
    for leg in legs:
        if leg.outcome is Outcome.DISCARDED:
            assert (leg.usage, leg.rated_nano_usd, leg.posted_nano_usd) == ({}, 0, 0)
            continue
        left = bill.pop(leg.started_at_unix_ms)
        assert left is not None
        assert leg.outcome is Outcome.SERVED
        off = abs(leg.usage["connected_ms"] - (left - leg.started_at_unix_ms))
        # What was told is right to LiveKit's second.
        assert off <= (999 if leg.basis is Basis.OBSERVED else leg.margins["connected_ms"])


def assert_all_counted(call: CallDetail, spool: Sequence[object], meter_id: str) -> None:
    """Every leg of the spool stands in the ledger with its last totals."""
    last: dict[int, dict[str, int]] = {}
    for record in spool:
        if isinstance(record, (LegStart, LegInterim, LegStop)):
            last[record.leg] = record.usage
    requests = [leg for leg in call.legs if leg.meter_id == meter_id and leg.leg < FLAT_FEE_NUMBER]
    booked = {leg.leg: leg.usage for leg in requests if leg.leg > 0}
    assert booked == last
    # What stood in for late records has made way for them.
    stand_ins = [leg for leg in call.legs if leg.meter_id == meter_id and leg.leg < 0]
    assert [leg.amount_nano_usd for leg in stand_ins] == [0] * len(stand_ins)
    assert "host_lost" not in [gap.reason for gap in call.gaps if gap.meter_id == meter_id]
    rated = sum(leg.amount_nano_usd or 0 for leg in call.legs)
    assert sum(entry.amount_nano_usd or 0 for entry in call.entries) == rated


def assert_checkpoint_counted(
    store: SqliteStore, spool: Sequence[Record], meter_id: str, checkpoint: Checkpoint
) -> None:
    """A lost host's meter has of each kind what was told of it, by record or checkpoint."""
    with store.transaction() as tx:
        meter, legs = tx.meter(meter_id), tx.legs_of(meter_id)
    assert meter is not None
    told = totals_of([record for record in spool if record.seq <= meter.durable_seq])
    if checkpoint.seq > meter.durable_seq:
        for total in checkpoint.totals:
            best = told.setdefault(total.attributes, {})
            for unit, quantity in total.usage.items():
                best[unit] = max(best.get(unit, 0), quantity)
    booked: dict[LegAttributes, dict[str, int]] = {}
    for leg in legs:
        total = booked.setdefault(leg.attributes, {})
        for unit, quantity in leg.usage.items():
            total[unit] = total.get(unit, 0) + quantity
    assert {k: u for k, u in booked.items() if u} == {k: u for k, u in told.items() if u}

"""A host that vanished: its last checkpoint stands for the records that never came, never twice."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ledger.desk import (
    CENT,
    LLM,
    NOON,
    STT,
    TTS,
    UNKNOWN,
    CallState,
    Desk,
    EndRoom,
    TestMeter,
    of,
)
from voicecost_ledger.calls import EndReason
from voicecost_ledger.checkpoints import Checkpoint, CheckpointTotal
from voicecost_ledger.events import CheckpointSeen
from voicecost_ledger.protocol import Hello, MeterHeld, Records
from voicecost_ledger.records import (
    Basis,
    Coverage,
    LegAttributes,
    LegInterim,
    LegStart,
    LegStop,
    MeterOpen,
    Outcome,
    Record,
)
from voicecost_ledger.rooms import RoomListing
from voicecost_ledger.stores import CostQuery

IN_ROOM: dict[str, Any] = {"room_sid": "RM_1", "room_name": "x", "job_id": "AJ_1"}


def checkpoint(meter: TestMeter, *totals: tuple[LegAttributes, dict[str, int]]) -> CheckpointSeen:
    """What the plugin sealed when it had written all of the meter's records so far."""
    opened = MeterOpen(meter.meter_id, 1, NOON, "shop", **IN_ROOM)
    found = [CheckpointTotal(attributes, usage) for attributes, usage in totals]
    return CheckpointSeen(checkpoint=Checkpoint(opened, meter.seq, meter.desk.now, found))


def summed(records: list[Record]) -> dict[LegAttributes, dict[str, int]]:
    """The totals of a meter's records, as its plugin sums them."""
    attributes: dict[int, LegAttributes] = {}
    last: dict[int, dict[str, int]] = {}
    for record in records:
        if isinstance(record, LegStart):
            attributes[record.leg] = record.attributes
        if isinstance(record, (LegStart, LegInterim, LegStop)):
            last[record.leg] = record.usage
    totals: dict[LegAttributes, dict[str, int]] = {}
    for leg, usage in last.items():
        total = totals.setdefault(attributes[leg], {})
        for unit, quantity in usage.items():
            total[unit] = total.get(unit, 0) + quantity
    return totals


def gone(desk: Desk) -> None:
    """The room is over, and nobody else will speak for the meter."""
    desk.now += 1_000
    desk.receive(RoomListing(livekit_project="LK", requested_at_unix_ms=desk.now, rooms=[]))
    desk.wait(desk.policy.meter_grace_ms + 10_000)


def booked(desk: Desk) -> dict[int, tuple[int | None, Outcome | None]]:
    return {leg.leg: (leg.amount_nano_usd, leg.outcome) for leg in desk.call().legs}


def test_what_a_lost_host_used_beyond_its_last_record_is_settled_from_its_checkpoint() -> None:
    desk = Desk()
    meter = desk.meter(**IN_ROOM)
    leg = meter.start(TTS)
    meter.interim(leg, characters=30)
    meter.send()
    meter.interim(leg, characters=100)  # written, never sent
    meter.start(LLM, input_tokens=7)
    meter.batch()
    desk.receive(checkpoint(meter, (TTS, {"characters": 100}), (LLM, {"input_tokens": 7})))
    assert booked(desk) == {leg: (30_000, None)}  # it may still come
    gone(desk)
    call = desk.call()
    assert booked(desk) == {
        leg: (30_000, Outcome.LOST),
        -1: (70_000, Outcome.LOST),
        -2: (7_000, Outcome.LOST),
    }
    assert [leg.basis for leg in call.legs] == [Basis.ESTIMATED] * 3
    assert [leg.uncertainty_nano_usd for leg in call.legs] == [None] * 3
    assert [gap.reason for gap in call.gaps] == ["host_lost"]
    assert (call.summary.coverage, call.summary.reason) == (Coverage.PARTIAL, EndReason.CRASHED)
    assert (call.summary.state, call.summary.total_nano_usd) == (CallState.SETTLED, 107_000)
    assert call.meters[0].checkpoint_seq == 5
    desk.check()


def test_a_spool_that_turns_up_late_is_the_truth_and_nothing_counts_twice() -> None:
    desk = Desk()
    meter = desk.meter(**IN_ROOM)
    leg = meter.start(TTS)
    meter.send()
    meter.interim(leg, characters=90)
    part = meter.batch()
    meter.interim(leg, characters=100)
    rest = meter.batch()
    desk.receive(checkpoint(meter, (TTS, {"characters": 100})))
    gone(desk)
    assert booked(desk) == {leg: (0, Outcome.LOST), -1: (100_000, Outcome.LOST)}
    desk.receive(part)
    assert booked(desk) == {leg: (90_000, None), -1: (10_000, Outcome.LOST)}
    assert desk.call().summary.total_nano_usd == 100_000
    desk.check()
    desk.receive(rest)
    assert booked(desk) == {leg: (100_000, None), -1: (0, Outcome.LOST)}
    meter.stop(leg, Outcome.INTERRUPTED, characters=103)
    meter.adopt()
    call = desk.call()
    assert booked(desk) == {leg: (103_000, Outcome.INTERRUPTED), -1: (0, Outcome.LOST)}
    assert (call.summary.state, call.summary.amended) == (CallState.SETTLED, True)
    # Nothing is missing any more, and nobody says it were.
    assert (call.gaps, call.summary.coverage) == ([], Coverage.COMPLETE)
    desk.check()


def test_records_up_to_the_checkpoint_overrule_its_estimates() -> None:
    """The checkpoint had an estimate that the next record but one corrected downwards."""
    desk = Desk()
    meter = desk.meter(**IN_ROOM)
    leg = meter.start(LLM, input_tokens=120)
    seen = checkpoint(meter, (LLM, {"input_tokens": 120}))
    meter.stop(leg, basis=Basis.REPORTED, input_tokens=100)
    meter.send()
    desk.receive(seen)
    gone(desk)
    assert booked(desk) == {leg: (100_000, Outcome.SERVED)}
    assert [gap.reason for gap in desk.call().gaps] == ["host_lost"]  # after it, who knows


def test_what_was_used_after_the_last_record_was_written_is_settled_too() -> None:
    """Text and audio are recorded in steps; the checkpoint is of the moment."""
    desk = Desk()
    meter = desk.meter(**IN_ROOM)
    leg = meter.start(TTS)
    meter.interim(leg, characters=90)
    seen = checkpoint(meter, (TTS, {"characters": 100}))
    meter.send()
    desk.receive(seen)
    gone(desk)
    assert booked(desk) == {leg: (90_000, Outcome.LOST), -1: (10_000, Outcome.LOST)}
    meter.interim(leg, characters=100)
    meter.adopt()
    assert booked(desk) == {leg: (100_000, Outcome.LOST), -1: (0, Outcome.LOST)}
    desk.check()


def test_a_meter_nobody_heard_of_is_opened_from_its_checkpoint() -> None:
    """The sidecar was away for the whole call, and so is the host by now."""
    desk = Desk()
    meter = desk.meter(**IN_ROOM, tags={"a": "b"}, versions={"voicecost": "1"})
    leg = meter.start(TTS)
    meter.interim(leg, characters=100)
    spool = meter.batch()
    desk.receive(checkpoint(meter, (TTS, {"characters": 100})))
    assert desk.call().summary.state is CallState.OPEN
    gone(desk)
    call = desk.call()
    assert call.summary.call_id == "CA_1"
    assert (call.summary.project, call.summary.state) == ("shop", CallState.SETTLED)
    assert call.summary.total_nano_usd == 100_000
    desk.receive(Hello(1, "p", [MeterHeld("MT_a", 1, meter.seq, None)]))
    desk.receive(spool)
    meter.adopt()
    call = desk.call()
    assert booked(desk) == {leg: (100_000, Outcome.LOST), -1: (0, Outcome.LOST)}
    assert (call.gaps, call.meters[0].versions) == ([], {"voicecost": "1"})
    desk.check()


def test_an_older_checkpoint_or_the_same_again_says_nothing_new() -> None:
    desk = Desk()
    meter = desk.meter(**IN_ROOM)
    old = checkpoint(meter, (TTS, {"characters": 900}))
    meter.start(TTS)
    new = checkpoint(meter, (TTS, {"characters": 50}))
    for seen in (new, old, new):
        desk.receive(seen)
    gone(desk)
    assert desk.call().summary.total_nano_usd == 50_000
    assert desk.store.counters()["checkpoints"] == 1
    desk.check()


def test_a_checkpoint_that_comes_after_the_grace_amends_the_call() -> None:
    desk = Desk()
    meter = desk.meter(**IN_ROOM)
    meter.send()
    gone(desk)
    assert desk.call().summary.state is CallState.SETTLED
    meter.start(TTS)
    desk.receive(checkpoint(meter, (TTS, {"characters": 50})))
    call = desk.call().summary
    assert (call.state, call.amended, call.total_nano_usd) == (CallState.SETTLED, True, 50_000)
    desk.check()


def test_a_closed_meter_whose_records_are_all_there_needs_no_checkpoint() -> None:
    desk = Desk()
    meter = desk.meter(**IN_ROOM)
    meter.stop(meter.start(TTS), characters=10)
    meter.close()
    seen = checkpoint(meter, (TTS, {"characters": 10}))
    meter.send()
    settled = desk.call()
    desk.receive(seen)
    gone(desk)
    call = desk.call()
    assert (call.legs, call.gaps) == (settled.legs, [])
    assert not call.summary.amended


def test_a_damaged_spool_is_filled_up_from_the_checkpoint() -> None:
    """Its tail was never on the disk: the adopter seals what is left."""
    desk = Desk()
    meter = desk.meter(**IN_ROOM)
    leg = meter.start(TTS)
    meter.interim(leg, characters=40)
    meter.seq += 5  # records that the power cut took along
    seen = checkpoint(meter, (TTS, {"characters": 100}))
    meter.seq -= 5
    desk.receive(seen)
    meter.adopt()
    assert booked(desk) == {leg: (40_000, Outcome.LOST), -1: (60_000, Outcome.LOST)}
    assert [gap.reason for gap in desk.call().gaps] == ["host_lost"]
    assert desk.call().summary.coverage is Coverage.PARTIAL


def test_records_that_nobody_holds_any_more_are_filled_up_too() -> None:
    desk = Desk()
    meter = desk.meter(**IN_ROOM)
    meter.send()
    meter.stop(meter.start(TTS), characters=100)
    meter.batch()
    desk.receive(Hello(1, "p", [MeterHeld("MT_a", 4, 4)]))
    desk.receive(checkpoint(meter, (TTS, {"characters": 100})))
    meter.close()
    meter.send()
    assert booked(desk) == {-1: (100_000, Outcome.LOST)}
    assert [gap.reason for gap in desk.call().gaps] == ["records_lost"]
    desk.check()


def test_an_unpriced_kind_is_counted_and_known_kinds_are_charged() -> None:
    desk = Desk()
    meter = desk.meter(**IN_ROOM)
    desk.receive(checkpoint(meter, (UNKNOWN, {"characters": 5}), (TTS, {"characters": 5})))
    gone(desk)
    call = desk.call()
    assert (call.summary.unpriced_leg_count, call.summary.total_nano_usd) == (1, 5_000)
    desk.check()


@pytest.mark.parametrize(
    ("usage", "says"),
    [
        ({"characters": -1}, "characters=-1 is outside"),
        ({"bananas": 1}, "unknown unit 'bananas'"),
        ({"characters": 2**40}, "more than any one leg can"),
    ],
)
def test_a_total_that_cannot_be_true_is_quarantined_the_others_count(
    usage: dict[str, int], says: str
) -> None:
    desk = Desk()
    meter = desk.meter(**IN_ROOM)
    meter.send()
    meter.start(LLM)
    desk.receive(checkpoint(meter, (TTS, usage), (LLM, {"output_tokens": 5})))
    gone(desk)
    call = desk.call()
    assert says in call.quarantined[0].reason
    assert call.summary.total_nano_usd == 5_000
    desk.check()


def test_a_part_is_missing_only_as_far_as_its_whole_is() -> None:
    desk = Desk()
    meter = desk.meter(**IN_ROOM)
    leg = meter.start(LLM)
    meter.interim(leg, Basis.ESTIMATED, input_tokens=100, cached_input_tokens=40)
    meter.send()
    meter.interim(leg, Basis.ESTIMATED, input_tokens=100, cached_input_tokens=50)
    desk.receive(checkpoint(meter, (LLM, {"input_tokens": 100, "cached_input_tokens": 50})))
    gone(desk)
    assert booked(desk) == {leg: (60_000, Outcome.LOST)}


def test_a_checkpoint_is_booked_to_its_own_day_by_our_clock() -> None:
    desk = Desk()
    meter = desk.meter(**IN_ROOM)
    seen = checkpoint(meter, (TTS, {"characters": 5}))
    wrong = msgspec.structs.replace(seen.checkpoint, at_unix_ms=NOON - 86_400_000)
    desk.now += 30_000
    desk.receive(CheckpointSeen(checkpoint=wrong))
    gone(desk)
    assert [entry.accrued_at_unix_ms for entry in desk.call().entries] == [NOON + 30_000]


def test_what_a_checkpoint_adds_comes_out_of_the_meters_own_hold() -> None:
    desk = Desk()
    meter = desk.meter(**IN_ROOM, budget_nano_usd=CENT)
    meter.send()
    meter.renew()
    meter.stop(meter.start(TTS), characters=4_000)
    desk.receive(checkpoint(meter, (TTS, {"characters": 4_000})))
    gone(desk)
    assert desk.call().summary.total_nano_usd == 4_000_000
    assert desk.store.counters()["overshoot_nano_usd"] == 0
    assert of(EndRoom, desk.effects) == []
    desk.check()


# ---- whatever comes, in whatever order ---------------------------------------------------------

KINDS = (TTS, LLM, STT, UNKNOWN)
UNIT = {TTS: "characters", LLM: "output_tokens", STT: "audio_ms", UNKNOWN: "characters"}


@st.composite
def lives(draw: st.DrawFn) -> tuple[list[tuple[Any, ...]], int, int, list[int]]:
    """A meter's life; where its last checkpoint was; how much arrived in time, and later."""
    steps = draw(
        st.lists(
            st.one_of(
                st.tuples(st.just("start"), st.sampled_from(range(4))),
                st.tuples(st.just("more"), st.integers(0, 5), st.integers(1, 3_000)),
                st.tuples(st.just("stop"), st.integers(0, 5), st.integers(0, 500)),
            ),
            min_size=1,
            max_size=14,
        )
    )
    sealed = draw(st.integers(0, len(steps)))
    in_time = draw(st.integers(0, len(steps)))
    late = draw(st.lists(st.integers(0, len(steps)), max_size=4))
    return steps, sealed, in_time, late


@settings(max_examples=60, deadline=None)
@given(lives())
def test_every_kind_totals_the_greater_of_records_and_checkpoint_then_the_records_alone(
    life: tuple[list[tuple[Any, ...]], int, int, list[int]],
) -> None:
    steps, sealed, in_time, late = life
    desk = Desk()
    meter = desk.meter(**IN_ROOM)
    written: list[Record] = [*meter.pending]
    usages: dict[int, tuple[LegAttributes, int]] = {}
    marks = [len(written)]
    seen = checkpoint(meter)
    if sealed == 0:
        seen = checkpoint(meter, *summed(written).items())
    for index, step in enumerate(steps, start=1):
        match step:
            case ("start", kind):
                leg = meter.start(KINDS[kind])
                usages[leg] = (KINDS[kind], 0)
            case (verb, which, quantity) if usages:
                leg = sorted(usages)[which % len(usages)]
                attributes, total = usages[leg]
                usages[leg] = attributes, total + quantity
                usage = {UNIT[attributes]: total + quantity}
                if verb == "more":
                    meter.interim(leg, Basis.OBSERVED, **usage)
                else:
                    meter.stop(leg, Outcome.INTERRUPTED, Basis.OBSERVED, **usage)
                    del usages[leg]
            case _:
                pass
        written = [*meter.pending]
        marks.append(len(written))
        if index == sealed:
            seen = checkpoint(meter, *summed(written).items())

    def send(through: int) -> None:
        records = written[: marks[through]]
        desk.receive(Records("MT_a", 0, records[-1].seq, records))
        desk.check()

    def amounts() -> dict[LegAttributes, dict[str, int]]:
        totals: dict[LegAttributes, dict[str, int]] = {}
        with desk.store.transaction() as tx:
            for leg in tx.legs_of("MT_a"):
                total = totals.setdefault(leg.attributes, {})
                for unit, quantity in leg.usage.items():
                    total[unit] = total.get(unit, 0) + quantity
                assert leg.posted_nano_usd == (leg.rated_nano_usd or 0) or leg.outcome is None
        return {kind: total for kind, total in totals.items() if any(total.values())}

    def expected(through: int) -> dict[LegAttributes, dict[str, int]]:
        have = summed(written[: marks[through]])
        if written[marks[through] - 1].seq >= seen.checkpoint.seq:
            best = have
        else:
            best = dict(have)
            for total in seen.checkpoint.totals:
                mine = have.get(total.attributes, {})
                best[total.attributes] = {
                    unit: max(mine.get(unit, 0), total.usage.get(unit, 0))
                    for unit in {*mine, *total.usage}
                }
        return {kind: total for kind, total in best.items() if any(total.values())}

    send(in_time)
    desk.receive(seen)
    gone(desk)
    desk.check()
    assert amounts() == expected(in_time)
    furthest = in_time
    for through in late:  # in any order, and again
        send(through)
        furthest = max(furthest, through)
        assert amounts() == expected(furthest)
    send(len(steps))
    assert amounts() == expected(len(steps))
    meter.pending = []
    meter.sent_through = written[-1].seq
    meter.adopt()
    desk.check()
    call = desk.call()
    assert amounts() == {k: t for k, t in summed(written).items() if any(t.values())}
    assert sum(e.amount_nano_usd or 0 for e in call.entries) == call.summary.total_nano_usd
    assert (call.gaps, call.summary.state) == ([], CallState.SETTLED)
    (row,) = desk.store.costs(
        CostQuery(from_unix_ms=0, until_unix_ms=NOON * 2, group_by=("project",))
    ) or [None]
    assert row is None or row.amount_nano_usd == call.summary.total_nano_usd

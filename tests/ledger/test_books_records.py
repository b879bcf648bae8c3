"""What a record does to the ledger: once, whatever happens to it on the way."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ledger.desk import (
    CENT,
    LLM,
    NOON,
    STT,
    TTS,
    UNIT_NANO_USD,
    UNKNOWN,
    Ack,
    CallState,
    Desk,
    Reject,
    of,
)
from voicecost_ledger.calls import EndReason
from voicecost_ledger.protocol import Hello, MeterHeld, Records, Welcome
from voicecost_ledger.records import Basis, Coverage, Gap, Outcome


def test_a_leg_is_posted_when_it_stops_at_the_rate_of_its_total() -> None:
    desk = Desk()
    meter = desk.meter()
    leg = meter.start(TTS)
    meter.interim(leg, characters=40)
    meter.send()
    assert desk.call().summary.accruing_nano_usd == 40 * UNIT_NANO_USD
    assert desk.call().entries == []
    meter.stop(leg, characters=100)
    meter.send()
    (entry,) = desk.call().entries
    assert (entry.amount_nano_usd, entry.usage) == (100 * UNIT_NANO_USD, {"characters": 100})
    assert desk.call().summary.accruing_nano_usd == 0
    desk.check()


def test_a_batch_sent_again_changes_nothing() -> None:
    desk = Desk()
    meter = desk.meter()
    leg = meter.start(TTS)
    meter.stop(leg, characters=100)
    batch = meter.batch()
    first = desk.receive(batch)
    assert of(Ack, desk.receive(batch)) == of(Ack, first)
    assert len(desk.call().entries) == 1
    desk.check()


def test_a_batch_with_something_missing_before_it_is_refused_whole() -> None:
    """Nothing is applied out of order: a lost stop would be money lost."""
    desk = Desk()
    meter = desk.meter()
    early = meter.batch()
    leg = meter.start(TTS)
    meter.stop(leg, characters=100)
    late = meter.batch()
    (reject,) = of(Reject, desk.receive(late))
    assert (reject.code, reject.durable_seq) == ("gap", 0)
    assert desk.calls() == []
    desk.receive(early)
    desk.receive(late)
    assert desk.call().summary.total_nano_usd == 100 * UNIT_NANO_USD


def test_interims_may_be_left_out() -> None:
    desk = Desk()
    meter = desk.meter()
    leg = meter.start(TTS)
    meter.interim(leg, characters=10)
    meter.interim(leg, characters=90)
    batch = meter.batch()
    (ack,) = of(
        Ack,
        desk.receive(
            Records(batch.meter_id, 0, batch.through_seq, [*batch.records[:2], batch.records[3]])
        ),
    )
    assert ack.committed == {"MT_a": 4}
    assert desk.call().summary.total_nano_usd == 90 * UNIT_NANO_USD


def test_a_negative_or_shrinking_count_is_quarantined_and_visible() -> None:
    desk = Desk()
    meter = desk.meter()
    leg = meter.start(TTS)
    meter.interim(leg, characters=50)
    meter.interim(leg, characters=-1)
    meter.interim(leg, characters=49)
    meter.interim(leg, characters=50, bananas=1)  # a newer plugin's
    meter.interim(leg, characters=2**41)
    meter.send()
    call = desk.call()
    assert call.summary.total_nano_usd == 50 * UNIT_NANO_USD
    assert [row.seq for row in call.quarantined] == [4, 5, 6, 7]
    assert "shrank from 50 to 49" in call.quarantined[1].reason
    meter.close()
    meter.send()
    assert desk.call().summary.coverage is Coverage.PARTIAL
    assert desk.store.counters()["quarantined_records"] == 4


def test_a_stop_may_take_back_what_was_counted_before_it_was_sent() -> None:
    """A request is recorded before it goes out, exactly; one that is refused has used nothing."""
    desk = Desk()
    meter = desk.meter()
    leg = meter.start(TTS)
    meter.interim(leg, characters=50)
    meter.stop(leg, Outcome.FAILED, Basis.OBSERVED, characters=0)
    meter.stop(leg, Outcome.FAILED, Basis.OBSERVED, characters=20)
    meter.stop(leg, Outcome.FAILED, Basis.OBSERVED, characters=19)  # it was over, and exact
    meter.send()
    call = desk.call()
    assert call.summary.total_nano_usd == 20 * UNIT_NANO_USD
    assert [row.reason for row in call.quarantined] == ["characters shrank from 20 to 19"]
    desk.check()


def test_an_estimate_may_be_corrected_downwards_by_what_the_provider_reports() -> None:
    desk = Desk()
    meter = desk.meter()
    leg = meter.start(LLM, input_tokens=1000)
    meter.stop(leg, Outcome.INTERRUPTED, Basis.ESTIMATED, input_tokens=1000, output_tokens=50)
    meter.stop(leg, Outcome.INTERRUPTED, Basis.REPORTED, input_tokens=900, output_tokens=52)
    meter.send()
    call = desk.call()
    assert [entry.amount_nano_usd for entry in call.entries] == [1_050_000, -98_000]
    assert call.legs[0].basis is Basis.REPORTED
    desk.check()


def test_a_model_without_a_price_is_null_and_counted_never_zero() -> None:
    desk = Desk()
    meter = desk.meter()
    leg = meter.start(UNKNOWN)
    meter.stop(leg, characters=100)
    meter.send()
    call = desk.call()
    assert call.summary.unpriced_leg_count == 1
    assert call.legs[0].amount_nano_usd is None
    assert call.entries[0].amount_nano_usd is None
    assert call.entries[0].usage == {"characters": 100}
    desk.check()


def test_a_leg_that_never_stops_is_settled_as_lost_from_its_last_record() -> None:
    desk = Desk()
    meter = desk.meter()
    leg = meter.start(TTS)
    meter.interim(leg, characters=70)
    meter.send()
    meter.adopt()
    call = desk.call()
    assert call.legs[0].outcome is Outcome.LOST
    assert call.legs[0].basis is Basis.ESTIMATED
    assert call.summary.state is CallState.SETTLED
    assert call.summary.reason is EndReason.CRASHED
    assert call.summary.total_nano_usd == call.summary.waste_nano_usd == 70 * UNIT_NANO_USD
    desk.check()


def test_what_arrives_after_the_call_settled_is_posted_and_the_call_marked_amended() -> None:
    desk = Desk()
    meter = desk.meter()
    leg = meter.start(TTS)
    meter.interim(leg, characters=70)
    meter.send()
    meter.adopt()
    meter.stop(leg, Outcome.INTERRUPTED, Basis.OBSERVED, characters=80)
    meter.close()
    meter.send()
    call = desk.call()
    assert call.summary.amended
    assert call.summary.state is CallState.SETTLED
    assert [entry.amount_nano_usd for entry in call.entries] == [70_000, 10_000]
    assert call.legs[0].outcome is Outcome.INTERRUPTED
    desk.check()


def test_records_that_no_spool_holds_any_more_are_a_gap_not_silence() -> None:
    desk = Desk()
    meter = desk.meter()
    meter.send()
    effects = desk.receive(Hello(1, "p", [MeterHeld("MT_a", 5, 9)]))
    (welcome,) = of(Welcome, effects)
    assert welcome.durable_seqs == {"MT_a": 4}
    (gap,) = desk.call().gaps
    assert gap.reason == "records_lost"


def test_what_a_restored_ledger_has_forgotten_and_nobody_holds_is_a_gap_too() -> None:
    """The client was told once that all of it is durable, and has deleted it."""
    desk = Desk()
    desk.meter().send()
    (welcome,) = of(Welcome, desk.receive(Hello(1, "p", [MeterHeld("MT_a", 0, 7)])))
    assert welcome.durable_seqs == {"MT_a": 7}
    assert [gap.reason for gap in desk.call().gaps] == ["records_lost"]


def test_meters_named_without_our_prefix_are_calls_of_their_own() -> None:
    desk = Desk()
    desk.meter("one").send()
    desk.meter("two").send()
    assert {call.call_id for call in desk.calls()} == {"CA_one", "CA_two"}


def test_a_meter_whose_opening_was_lost_is_still_counted() -> None:
    desk = Desk()
    meter = desk.meter()
    leg = meter.start(TTS)
    meter.batch()
    meter.stop(leg, characters=10)
    batch = meter.batch()
    desk.receive(Hello(1, "p", [MeterHeld("MT_a", 3, 3)]))
    desk.receive(batch)
    call = desk.call()
    assert [gap.reason for gap in call.gaps] == ["records_lost"]
    # What it cost cannot be known without its start: kept, and said.
    assert call.quarantined[0].reason == "leg 1 was never started"


def test_another_protocol_version_is_told_what_to_do() -> None:
    (reject,) = of(Reject, Desk().receive(Hello(99, "p", [])))
    assert reject.code == "version"
    assert "install the same voicecost" in reject.message


def test_a_batch_that_is_no_range_is_refused() -> None:
    desk = Desk()
    meter = desk.meter()
    batch = meter.batch()
    (reject,) = of(Reject, desk.receive(Records("MT_b", 0, 1, batch.records)))
    assert (reject.code, desk.calls()) == ("malformed", [])


def test_a_long_leg_is_posted_in_quarter_hours_that_sum_to_the_rate_of_its_total() -> None:
    desk = Desk()
    meter = desk.meter()
    leg = meter.start(STT)
    audio_ms = 0
    for _ in range(40):
        desk.wait(60_000)
        audio_ms += 60_001  # every part would round up a second of its own
        meter.interim(leg, audio_ms=audio_ms)
        meter.send()
    meter.stop(leg, basis=Basis.OBSERVED, audio_ms=audio_ms)
    meter.send()
    entries = desk.call().entries
    assert len(entries) == 3
    assert [e.accrued_at_unix_ms // 900_000 - NOON // 900_000 for e in entries] == [0, 1, 2]
    total_ms = -(-audio_ms // 1000) * 1000
    assert sum(entry.amount_nano_usd or 0 for entry in entries) == total_ms * UNIT_NANO_USD
    desk.check()


def test_an_open_leg_of_a_silent_meter_is_posted_at_the_quarter_hour_too() -> None:
    desk = Desk()
    meter = desk.meter()
    leg = meter.start(STT)
    desk.wait(10 * 60_000)
    meter.interim(leg, audio_ms=5_000)
    meter.send()
    assert desk.call().entries == []
    desk.wait(6 * 60_000)
    (entry,) = desk.call().entries
    assert entry.accrued_at_unix_ms == NOON + 10 * 60_000
    meter.stop(leg, Outcome.INTERRUPTED, Basis.OBSERVED, audio_ms=9_000)
    meter.send()
    assert desk.call().summary.waste_nano_usd == 9_000 * UNIT_NANO_USD
    desk.check()


def test_a_clock_ahead_of_ours_books_nothing_in_the_future() -> None:
    desk = Desk()
    meter = desk.meter()
    leg = meter.start(TTS)
    desk.now += 3_600_000
    meter.stop(leg, characters=1)
    desk.now -= 3_600_000
    meter.send()
    assert desk.call().entries[0].accrued_at_unix_ms == NOON


def test_gaps_are_kept_with_the_call() -> None:
    desk = Desk()
    meter = desk.meter()
    meter.write(Gap, reason="attached_late")
    meter.close()
    meter.send()
    assert [gap.reason for gap in desk.call().gaps] == ["attached_late"]
    assert desk.call().summary.coverage is Coverage.PARTIAL


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    """Some legs with growing counts, and an order of batches with repeats and losses."""
    legs = draw(
        st.lists(st.lists(st.integers(0, 500), min_size=1, max_size=5), min_size=1, max_size=4)
    )
    order = draw(st.lists(st.integers(0, 30), max_size=40))
    return legs, order


@settings(max_examples=60, deadline=None)
@given(deliveries())
def test_any_order_loss_and_repetition_ends_in_the_same_books(
    delivery: tuple[list[list[int]], list[int]],
) -> None:
    legs, order = delivery
    desk = Desk()
    meter = desk.meter(budget_nano_usd=CENT)
    batches = [meter.batch()]
    for steps in legs:
        leg = meter.start(TTS)
        characters = 0
        for step in steps:
            characters += step
            meter.interim(leg, characters=characters)
            batches.append(meter.batch())
        meter.stop(leg, characters=characters)
        batches.append(meter.batch())
    meter.close()
    batches.append(meter.batch())
    for index in order:
        desk.receive(batches[index % len(batches)])
        desk.check()
    durable = 0
    for batch in batches:  # what a client does after its reconnect: all of it, in order
        for ack in of(Ack, desk.receive(batch)):
            durable = max(durable, ack.committed["MT_a"])
    assert durable == meter.seq
    call = desk.call()
    assert call.summary.total_nano_usd == sum(map(sum, legs)) * UNIT_NANO_USD
    assert call.summary.state is CallState.SETTLED
    desk.check()


def test_a_record_after_its_stop_that_is_no_correction_is_not_a_new_leg() -> None:
    desk = Desk()
    meter = desk.meter()
    leg = meter.start(TTS)
    meter.stop(leg, characters=5)
    meter.interim(leg, characters=6)
    meter.send()
    assert desk.call().summary.total_nano_usd == 5 * UNIT_NANO_USD
    meter.stop(9, characters=7)
    meter.send()
    assert desk.call().quarantined[0].reason == "leg 9 was never started"

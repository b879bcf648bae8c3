"""How sure the books are of an amount, what really served, how soon, and what was for nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ledger.desk import LLM, NOON, STT, TTS, UNKNOWN, Desk, TestMeter
from voicecost_ledger.checkpoints import Checkpoint, CheckpointTotal
from voicecost_ledger.events import CheckpointSeen
from voicecost_ledger.records import (
    Basis,
    ControlTotal,
    Coverage,
    MeterOpen,
    Modality,
    Outcome,
)
from voicecost_ledger.rooms import RoomListing
from voicecost_ledger.stores import CostQuery, LatencyQuery

FROM, UNTIL = NOON - 86_400_000, NOON + 86_400_000


def estimate(
    meter: TestMeter,
    leg: int,
    margins: dict[str, int],
    told: dict[str, Any] | None = None,
    **u: int,
) -> None:
    meter.stop(leg, Outcome.INTERRUPTED, Basis.ESTIMATED, {"margins": margins} | (told or {}), **u)


# ---- uncertainty -----------------------------------------------------------------------------


def test_an_estimate_says_by_how_much_it_may_be_off_until_it_is_reported() -> None:
    desk = Desk()
    meter = desk.meter()
    leg = meter.start(LLM, input_tokens=100)
    estimate(meter, leg, {"output_tokens": 8, "input_tokens": 2}, input_tokens=100, output_tokens=9)
    meter.send()
    call = desk.call()
    assert call.legs[0].uncertainty_nano_usd == 10_000
    assert call.entries[0].uncertainty_nano_usd == 10_000
    assert (call.summary.uncertainty_nano_usd, call.summary.estimated_per_mille) == (10_000, 1000)
    meter.stop(leg, Outcome.INTERRUPTED, input_tokens=99, output_tokens=12)
    meter.send()
    call = desk.call()
    assert call.legs[0].uncertainty_nano_usd == 0
    assert call.legs[0].margins == {}
    # What was thought before stays as it was posted.
    assert [entry.uncertainty_nano_usd for entry in call.entries] == [10_000, 0]
    assert (call.summary.uncertainty_nano_usd, call.summary.estimated_nano_usd) == (0, 0)
    desk.check()


def test_a_call_bounds_its_uncertainty_by_the_sum_and_says_what_share_is_estimated() -> None:
    desk = Desk()
    meter = desk.meter()
    for _ in range(2):
        leg = meter.start(LLM)
        estimate(meter, leg, {"output_tokens": 3}, output_tokens=10)
    meter.stop(meter.start(TTS), characters=60)
    meter.stop(meter.start(UNKNOWN), characters=60)
    meter.send()
    call = desk.call().summary
    assert (call.total_nano_usd, call.estimated_nano_usd) == (80_000, 20_000)
    assert (call.uncertainty_nano_usd, call.estimated_per_mille) == (6_000, 250)
    assert call.unknown_uncertainty_leg_count == 0


def test_a_lost_leg_keeps_its_last_margins_and_without_them_nobody_knows() -> None:
    desk = Desk()
    meter = desk.meter()
    known, unknown, observed = meter.start(LLM), meter.start(LLM, input_tokens=5), meter.start(TTS)
    begun = meter.start(LLM, margins={"input_tokens": 1, "output_tokens": 0}, input_tokens=8)
    meter.interim(known, Basis.ESTIMATED, {"output_tokens": 4}, output_tokens=10)
    meter.interim(observed, margins={"characters": 3}, characters=10)
    meter.send()
    assert desk.call().legs[2].uncertainty_nano_usd == 0  # it goes on, and was counted so far
    meter.adopt()
    call = desk.call()
    assert [leg.outcome for leg in call.legs] == [Outcome.LOST] * 4
    assert {leg.leg: leg.uncertainty_nano_usd for leg in call.legs} == {
        known: 4_000,
        unknown: None,
        observed: 3_000,
        begun: 1_000,
    }
    assert call.summary.unknown_uncertainty_leg_count == 1
    desk.check()


def test_an_amount_that_the_price_has_to_convert_is_estimated_until_it_is_counted() -> None:
    """The usage is known to the unit, and is not what the provider bills by."""
    desk = Desk()
    meter = desk.meter()
    leg = meter.start(TTS)
    meter.stop(leg, utf8_bytes=60)
    meter.send()
    call = desk.call()
    assert (call.legs[0].basis, call.entries[0].basis) == (Basis.ESTIMATED, Basis.ESTIMATED)
    assert call.legs[0].uncertainty_nano_usd is None
    assert (call.summary.estimated_nano_usd, call.summary.unknown_uncertainty_leg_count) == (
        60_000, 1,
    )  # fmt: skip
    meter.stop(leg, utf8_bytes=60, characters=58)
    meter.send()
    call = desk.call()
    assert (call.legs[0].basis, call.legs[0].uncertainty_nano_usd) == (Basis.REPORTED, 0)
    assert [entry.amount_nano_usd for entry in call.entries] == [60_000, -2_000]
    # It was reported all along: a count that shrinks is still refused.
    meter.stop(leg, utf8_bytes=40, characters=58)
    meter.send()
    assert desk.call().legs[0].usage["utf8_bytes"] == 60
    desk.check()


def test_nobody_knows_how_long_a_meter_went_on_that_was_given_up() -> None:
    """Its host is gone, and with it what it may have recorded after what came."""
    desk = Desk()
    meter = desk.meter(room_sid="RM_1", room_name="x", job_id="AJ_1")
    leg = meter.start(TTS)
    meter.interim(leg, margins={"characters": 3}, characters=10)
    meter.send()
    desk.now += 1_000
    desk.receive(RoomListing(livekit_project="LK", requested_at_unix_ms=desk.now, rooms=[]))
    desk.wait(desk.policy.meter_grace_ms + 10_000)
    (lost,) = desk.call().legs
    assert (lost.outcome, lost.uncertainty_nano_usd) == (Outcome.LOST, None)
    meter.interim(leg, margins={"characters": 2}, characters=15)
    meter.adopt()  # its spool turns up after all
    (lost,) = desk.call().legs
    assert (lost.outcome, lost.uncertainty_nano_usd) == (Outcome.LOST, 2_000)
    desk.check()


def test_an_estimate_may_be_exact() -> None:
    """A retry of the same prompt reported it, and nothing was answered."""
    desk = Desk()
    meter = desk.meter()
    leg = meter.start(LLM)
    estimate(meter, leg, {"input_tokens": 0, "output_tokens": 0}, input_tokens=18, output_tokens=0)
    meter.send()
    assert desk.call().legs[0].uncertainty_nano_usd == 0
    assert desk.call().summary.unknown_uncertainty_leg_count == 0


def test_an_unpriced_estimate_is_of_unknown_amount_and_of_unknown_uncertainty() -> None:
    desk = Desk()
    meter = desk.meter()
    estimate(meter, meter.start(UNKNOWN), {"characters": 5}, characters=50)
    meter.send()
    call = desk.call()
    assert (call.legs[0].amount_nano_usd, call.legs[0].uncertainty_nano_usd) == (None, None)
    assert call.summary.unknown_uncertainty_leg_count == 0  # it is counted as unpriced


@pytest.mark.parametrize(
    ("basis", "margins", "says"),
    [
        (Basis.REPORTED, {"characters": 3}, "margins of what is reported, which is exact"),
        (Basis.ESTIMATED, {"characters": -3}, "characters=-3 is outside"),
        (Basis.ESTIMATED, {"bananas": 3}, "margin of the unknown unit 'bananas'"),
    ],
)
def test_margins_that_make_no_sense_are_not_believed_the_leg_is(
    basis: Basis, margins: dict[str, int], says: str
) -> None:
    desk = Desk()
    meter = desk.meter()
    meter.stop(meter.start(TTS), Outcome.SERVED, basis, {"margins": margins}, characters=50)
    meter.send()
    call = desk.call()
    assert says in call.quarantined[0].reason
    assert (call.legs[0].amount_nano_usd, call.legs[0].margins) == (50_000, {})
    assert call.legs[0].outcome is Outcome.SERVED
    desk.check()


def test_a_part_above_its_whole_is_not_believed_the_rest_is() -> None:
    """Some hosts count the prompt without what was cached."""
    desk = Desk()
    meter = desk.meter()
    leg = meter.start(LLM)
    meter.stop(leg, input_tokens=100, cached_input_tokens=900, output_tokens=5)
    meter.close()
    meter.send()
    call = desk.call()
    assert call.legs[0].usage == {"input_tokens": 100, "output_tokens": 5}
    assert "cached_input_tokens=900 is more than input_tokens=100" in call.quarantined[0].reason
    assert call.summary.coverage is Coverage.PARTIAL
    assert desk.store.counters()["quarantined_records"] == 1


def test_a_leg_that_no_meter_numbers_is_refused() -> None:
    """Numbers below 1 are the ledger's own."""
    desk = Desk()
    meter = desk.meter()
    meter.stop(meter.start(TTS), characters=1)
    meter.stop(-1, characters=500)
    meter.stop(0, characters=500)
    meter.send()
    call = desk.call()
    assert [row.reason[:10] for row in call.quarantined] == ["-1 is no l", "0 is no le"]
    assert call.summary.total_nano_usd == 1_000


# ---- what served it ---------------------------------------------------------------------------


def test_a_leg_is_charged_what_the_model_costs_that_served_it() -> None:
    """A gateway fell back to another model, and bills that one."""
    desk = Desk()
    meter = desk.meter()
    leg = meter.start(LLM)
    meter.stop(leg, told={"served_model": "gpt-dear"}, input_tokens=10)
    meter.send()
    (shown,) = desk.call().legs
    assert (shown.model, shown.served_model, shown.billed_model) == (
        "gpt-4o-mini",
        "gpt-dear",
        "gpt-dear",
    )
    assert (shown.amount_nano_usd, shown.price_id) == (50_000, "sum-5")
    (row,) = desk.store.costs(
        CostQuery(from_unix_ms=FROM, until_unix_ms=UNTIL, group_by=("model",))
    )
    assert (row.group, row.amount_nano_usd) == ({"model": "gpt-dear"}, 50_000)
    desk.check()


def test_what_was_posted_before_moves_to_the_model_that_served() -> None:
    desk = Desk()
    meter = desk.meter()
    leg = meter.start(LLM)
    meter.interim(leg, Basis.ESTIMATED, output_tokens=10)
    meter.send()
    desk.wait(1_000_000)
    assert len(desk.call().entries) == 1
    meter.stop(leg, told={"served_model": "gpt-dear"}, output_tokens=10)
    meter.send()
    assert [(e.amount_nano_usd, e.price_id) for e in desk.call().entries] == [
        (10_000, "sum-1"),
        (40_000, "sum-5"),
    ]
    (row,) = desk.store.costs(
        CostQuery(from_unix_ms=FROM, until_unix_ms=UNTIL, group_by=("model", "outcome"))
    )
    assert (row.group, row.leg_count) == ({"model": "gpt-dear", "outcome": "served"}, 1)
    desk.check()


@pytest.mark.parametrize(
    ("served", "shown"),
    [
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini-2024-07-18"),  # a name of the same
        ("gpt-nobody-prices", "gpt-nobody-prices"),
        ("", None),
    ],
)
def test_a_name_without_a_price_of_its_own_is_shown_and_changes_no_amount(
    served: str, shown: str | None
) -> None:
    desk = Desk()
    meter = desk.meter()
    meter.stop(meter.start(LLM), told={"served_model": served}, input_tokens=10)
    meter.send()
    (leg,) = desk.call().legs
    assert (leg.served_model, leg.billed_model, leg.amount_nano_usd) == (
        shown,
        "gpt-4o-mini",
        10_000,
    )
    desk.check()


def test_what_was_asked_for_has_no_price_but_what_served_has() -> None:
    desk = Desk()
    meter = desk.meter()
    leg = meter.start(UNKNOWN)
    meter.stop(leg, told={"served_model": "aura-2"}, characters=10)
    meter.send()
    call = desk.call()
    assert (call.summary.unpriced_leg_count, call.summary.total_nano_usd) == (0, 10_000)
    desk.check()


def test_the_tier_that_served_is_shown_beside_the_one_that_was_asked_for() -> None:
    desk = Desk()
    meter = desk.meter()
    asked = msgspec.structs.replace(LLM, service_tier="priority")
    meter.stop(meter.start(asked), told={"served_tier": "default"}, input_tokens=1)
    meter.stop(meter.start(asked), told={"served_tier": "\x00"}, input_tokens=1)
    meter.send()
    tiers = [(leg.service_tier, leg.served_tier) for leg in desk.call().legs]
    assert tiers == [("priority", "default"), ("priority", None)]
    assert "served_tier is no such name" in desk.call().quarantined[0].reason


@pytest.mark.parametrize("garbage", ["x" * 257, "a\nb", "\x1b[2J", " gpt ", "\u202egpt"])
def test_garbage_for_a_model_is_not_believed(garbage: str) -> None:
    desk = Desk()
    meter = desk.meter()
    meter.stop(meter.start(LLM), told={"served_model": garbage}, input_tokens=10)
    meter.send()
    call = desk.call()
    assert (call.legs[0].served_model, call.legs[0].outcome) == (None, Outcome.SERVED)
    assert "served_model is no such name" in call.quarantined[0].reason


# ---- how soon, how long -------------------------------------------------------------------------


def test_the_time_to_the_first_token_and_the_duration_are_of_each_leg() -> None:
    desk = Desk()
    meter = desk.meter()
    timed, untimed, silent = meter.start(LLM), meter.start(TTS), meter.start(TTS)
    desk.now += 700
    meter.stop(timed, told={"time_to_first_ms": 250, "duration_ms": 690}, output_tokens=1)
    meter.stop(untimed, told={"time_to_first_ms": -5}, characters=1)
    meter.stop(silent, Outcome.FAILED, characters=1)
    meter.start(STT)
    meter.send()
    legs = {leg.leg: (leg.time_to_first_ms, leg.duration_ms) for leg in desk.call().legs}
    assert legs == {timed: (250, 690), untimed: (None, 700), silent: (None, 700), 4: (None, None)}
    assert "time_to_first_ms=-5" in desk.call().quarantined[0].reason


def test_percentiles_are_exact_and_of_answers_only() -> None:
    desk = Desk()
    meter = desk.meter(project="shop", agent="greeter")
    for ms in range(1, 101):
        leg = meter.start(LLM)
        told = {"time_to_first_ms": ms, "duration_ms": ms * 10}
        meter.stop(leg, told=told, output_tokens=1)
    meter.stop(meter.start(LLM), Outcome.FAILED, told={"duration_ms": 5_000}, input_tokens=1)
    meter.interim(meter.start(LLM), output_tokens=1)  # lost below: how long it took nobody knows
    meter.adopt()
    (of_call,) = desk.call().latency
    (of_project,) = desk.store.latency(
        LatencyQuery(from_unix_ms=FROM, until_unix_ms=UNTIL, group_by=("project", "agent"))
    )
    assert of_call.group == {"modality": "llm", "provider": LLM.provider, "model": LLM.model}
    assert of_project.group == {"project": "shop", "agent": "greeter"}
    (of_all,) = desk.store.latency(
        LatencyQuery(from_unix_ms=FROM, until_unix_ms=UNTIL, group_by=())
    )
    for row in (of_call, of_project, of_all):
        assert (row.leg_count, row.answered_leg_count) == (101, 100)
        assert (row.time_to_first_p50_ms, row.time_to_first_p95_ms) == (50, 95)
        assert (row.duration_p50_ms, row.duration_p95_ms) == (510, 960)


def test_latency_is_of_the_span_and_the_project_that_were_asked_for() -> None:
    desk = Desk()
    meter = desk.meter(project="shop")
    meter.stop(meter.start(LLM), told={"time_to_first_ms": 9}, output_tokens=1)
    meter.send()
    other = LatencyQuery(from_unix_ms=FROM, until_unix_ms=UNTIL, project="lab")
    tomorrow = LatencyQuery(from_unix_ms=NOON + 1, until_unix_ms=NOON + 86_400_000)
    nothing = LatencyQuery(from_unix_ms=0, until_unix_ms=1, group_by=())
    for query in (other, tomorrow, nothing):
        assert desk.store.latency(query) == []
    (row,) = desk.store.latency(
        LatencyQuery(from_unix_ms=FROM, until_unix_ms=UNTIL, project="shop")
    )
    assert list(row.group) == ["project", "modality", "provider", "model"]
    with pytest.raises(ValueError, match="cannot group latency by 'colour'"):
        desk.store.latency(
            LatencyQuery(from_unix_ms=FROM, until_unix_ms=UNTIL, group_by=("colour",))
        )


# ---- turns and waste ---------------------------------------------------------------------------


def test_a_turn_costs_what_the_legs_of_its_speech_cost() -> None:
    desk = Desk()
    meter = desk.meter()
    stt = meter.start(STT)
    desk.now += 10
    for speech, outcome in (("SP_1", Outcome.SERVED), ("SP_2", Outcome.INTERRUPTED)):
        llm, tts = meter.start(LLM, speech), meter.start(TTS, speech)
        meter.stop(llm, output_tokens=7)
        meter.stop(tts, outcome, characters=20)
        desk.now += 10
    meter.stop(meter.start(UNKNOWN, "SP_2"), characters=1)
    meter.stop(stt, audio_ms=1000)
    meter.send()
    turns = desk.call().turns
    assert [turn.speech_id for turn in turns] == [None, "SP_1", "SP_2"]
    assert [turn.total_nano_usd for turn in turns] == [1_000_000, 27_000, 27_000]
    assert turns[1].nano_usd_by_modality == {"llm": 7_000, "tts": 20_000}
    assert [turn.waste_nano_usd for turn in turns] == [0, 0, 20_000]
    assert [(turn.leg_count, turn.unpriced_leg_count) for turn in turns] == [
        (1, 0),
        (2, 0),
        (3, 1),
    ]


def test_waste_is_what_did_not_end_served_in_the_call_and_in_its_project() -> None:
    desk = Desk()
    meter = desk.meter(project="shop")
    for outcome in Outcome:
        meter.stop(meter.start(TTS), outcome, characters=10)
    open_leg = meter.start(TTS)
    meter.interim(open_leg, characters=10)
    meter.send()
    call = desk.call().summary
    assert call.nano_usd_by_outcome == {
        **{outcome.value: 10_000 for outcome in Outcome},
        "open": 10_000,
    }
    assert (call.waste_nano_usd, call.waste_per_mille) == (60_000, 750)
    (row,) = desk.store.costs(CostQuery(from_unix_ms=FROM, until_unix_ms=UNTIL))
    assert (row.amount_nano_usd, row.waste_nano_usd, row.waste_per_mille) == (70_000, 60_000, 857)


# ---- LiveKit's own account ----------------------------------------------------------------------


def control(
    meter: TestMeter, metered: int, livekit: int, causes: dict[str, int], unit: str = "characters"
) -> None:
    meter.write(
        ControlTotal, modality=Modality.TTS, provider="Deepgram", model="aura-2", unit=unit,
        metered=metered, livekit=livekit, causes=causes,
    )  # fmt: skip


def test_livekits_account_is_kept_beside_ours_and_what_nobody_explains_is_counted() -> None:
    desk = Desk()
    meter = desk.meter()
    control(meter, 100, 60, {"interrupted": 40})
    control(meter, 100, 50, {"interrupted": 40})
    control(meter, 100, 90, {"sunspots": 10})
    control(meter, 60, 100, {"stt_tail": 10, "probe": -50})
    meter.close()
    meter.send()
    call = desk.call()
    assert [row.causes for row in call.control] == [
        {"interrupted": 40},
        {"interrupted": 40, "unexplained": 10},
        {"unexplained": 10},
        {"stt_tail": 10, "probe": -50},
    ]
    assert (call.control[0].metered, call.control[0].livekit) == (100, 60)
    assert desk.store.counters()["unexplained_control_totals"] == 2
    assert (call.summary.total_nano_usd, call.quarantined) == (0, [])


def test_an_account_beyond_reason_is_quarantined() -> None:
    desk = Desk()
    meter = desk.meter()
    control(meter, -1, 0, {})
    control(meter, 1, 0, {"probe": 2**63})
    meter.send()
    call = desk.call()
    assert (len(call.quarantined), call.control) == (2, [])


@given(st.lists(st.integers(0, 300), min_size=1, max_size=60))
@settings(max_examples=40, deadline=None)
def test_a_calls_percentiles_are_the_projects_where_it_is_the_only_call(values: list[int]) -> None:
    """Ranked here and in the store: the same legs, the same figures."""
    desk = Desk()
    meter = desk.meter()
    for ms in values:
        meter.stop(
            meter.start(LLM), told={"time_to_first_ms": ms, "duration_ms": ms}, output_tokens=1
        )
    meter.send()
    (of_call,) = desk.call().latency
    (of_all,) = desk.store.latency(
        LatencyQuery(
            from_unix_ms=FROM, until_unix_ms=UNTIL, group_by=("modality", "provider", "model")
        )
    )
    assert of_call == of_all
    ranked = sorted(values)
    p95 = of_all.duration_p95_ms
    assert p95 is not None
    assert sum(ms <= p95 for ms in ranked) * 100 >= 95 * len(ranked)
    assert sum(ms < p95 for ms in ranked) * 100 < 95 * len(ranked)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("UPDATE legs SET uncertainty_nano_usd = 5 WHERE number = 1", "may be off by 5"),
        ("UPDATE meters SET durable_seq = 900", "count twice"),
    ],
)
def test_a_damaged_ledger_is_told_by_its_verification(damage: str, says: str) -> None:
    desk = Desk()
    meter = desk.meter(room_sid="RM_1", room_name="x", job_id="AJ_1")
    meter.stop(meter.start(TTS), characters=10)
    meter.send()
    opened = MeterOpen("MT_a", 1, NOON, room_sid="RM_1", room_name="x", job_id="AJ_1")
    totals = [CheckpointTotal(TTS, {"characters": 15})]
    desk.receive(CheckpointSeen(checkpoint=Checkpoint(opened, 99, NOON, totals)))
    meter.adopt()
    desk.check()
    db: Any = desk.store._db
    db.execute(damage)
    assert [says in sentence for sentence in desk.store.verify()] == [True]

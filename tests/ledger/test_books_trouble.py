"""What a billing engineer tried to break: clocks, days, recycled names, limits that change."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.ledger.desk import (
    CENT,
    LLM,
    NOON,
    TTS,
    Action,
    CallState,
    Command,
    Desk,
    EndRoom,
    Grant,
    Reject,
    SumPrice,
    TestMeter,
    of,
)
from voicecost_ledger.calls import EndReason
from voicecost_ledger.entries import Entry, Leg
from voicecost_ledger.events import RoomVerifiedGone
from voicecost_ledger.meters import Meter
from voicecost_ledger.policy import BudgetAction, Policy, ProjectPolicy
from voicecost_ledger.protocol import Hello, MeterHeld
from voicecost_ledger.records import Basis, MeterOpen, Outcome
from voicecost_ledger.rooms import (
    ListedRoom,
    ParticipantKind,
    RoomEvent,
    RoomListing,
    RoomParticipant,
)
from voicecost_ledger.stores import CostQuery
from voicecost_ledger.stores.sqlite import SqliteSession

MIDNIGHT = NOON + 12 * 3_600_000
DAY_MS = 24 * 3_600_000


def shop(limit: int, action: BudgetAction = BudgetAction.END) -> Desk:
    return Desk(shop_policy(limit, action))


def shop_policy(limit: int, action: BudgetAction = BudgetAction.END) -> Policy:
    project = ProjectPolicy(name="Shop", daily_budget_nano_usd=limit, budget_action=action)
    return Policy(livekit_project="LK", projects={"shop": project})


def in_room(desk: Desk, meter_id: str = "MT_a", n: int = 1, **opened: Any) -> TestMeter:
    meter = desk.meter(
        meter_id, room_sid=f"RM_{n}", room_name="x", job_id=f"AJ_{meter_id}", **opened
    )
    meter.send()
    return meter


def spend(meter: TestMeter, characters: int) -> None:
    meter.stop(meter.start(TTS), characters=characters)
    meter.send()


def listing(desk: Desk, *rooms: ListedRoom) -> None:
    desk.receive(
        RoomListing(livekit_project="LK", requested_at_unix_ms=desk.now, rooms=list(rooms))
    )


def agent_joined(sid: str, job: str, *, created_at: int, event_id: str) -> RoomEvent:
    return RoomEvent(
        event_id=event_id,
        event="participant_joined",
        livekit_project="LK",
        room_sid=sid,
        room_name="x",
        created_at_unix_ms=created_at,
        room_created_at_unix_ms=created_at,
        participant=RoomParticipant(
            sid=f"PA_{job}", identity=f"agent-{job}", kind=ParticipantKind.AGENT, job_id=job
        ),
    )


# ---- counts and clocks -----------------------------------------------------------------------


def test_late_interims_of_a_meter_that_was_given_up_are_counted() -> None:
    """Killed, its host cut off for longer than the grace, its spool adopted at last."""
    desk = Desk()
    meter = in_room(desk)
    leg = meter.start(TTS)
    meter.interim(leg, characters=10)
    meter.send()
    desk.wait(1_000)
    listing(desk)
    desk.wait(70_000)
    assert desk.call().legs[0].outcome is Outcome.LOST
    meter.interim(leg, characters=50_000)
    meter.adopt()
    call = desk.call()
    assert call.summary.total_nano_usd == 50_000_000
    assert (call.summary.state, call.summary.amended) == (CallState.SETTLED, True)
    assert call.legs[0].outcome is Outcome.LOST
    desk.check()


def test_a_leg_dearer_than_any_request_can_be_is_quarantined() -> None:
    desk = Desk()
    meter = desk.meter()
    meter.interim(meter.start(TTS), characters=2**40)
    meter.send()
    assert "more than any one leg can" in desk.call().quarantined[0].reason
    assert desk.call().summary.total_nano_usd == 0
    desk.check()


def test_what_was_priced_stays_priced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A correction in units that the price does not know is no reason to forget the charge."""

    def rate(self: SumPrice, usage: dict[str, int]) -> int | None:
        return None if "audio_ms" in usage else usage.get("input_tokens", 0) * 1000

    monkeypatch.setattr(SumPrice, "rate", rate)
    desk = Desk()
    meter = desk.meter()
    leg = meter.start(LLM, input_tokens=100)
    meter.stop(leg, basis=Basis.ESTIMATED, input_tokens=100)
    meter.stop(leg, audio_ms=200)
    meter.send()
    call = desk.call()
    assert (call.summary.total_nano_usd, call.summary.accruing_nano_usd) == (100_000, 0)
    assert "cannot be priced" in call.quarantined[0].reason
    desk.check()


@pytest.mark.parametrize("off_ms", [-DAY_MS, -3_600_000, 3_600_000, -NOON + 5])
def test_an_agent_whose_clock_is_wrong_books_to_our_day_and_our_budget(off_ms: int) -> None:
    desk = shop(5 * CENT)
    meter = in_room(desk, project="shop", on_budget="end")
    meter.renew()
    for _ in range(6):
        leg = meter.start(TTS)
        meter.stop(leg, characters=10_000)
        batch = meter.batch()
        records = [
            msgspec.structs.replace(record, at_unix_ms=record.at_unix_ms + off_ms)
            for record in batch.records
        ]
        desk.receive(
            msgspec.structs.replace(batch, records=records, sent_at_unix_ms=desk.now + off_ms)
        )
        desk.now += 1_000
    assert of(EndRoom, desk.effects)
    assert all(abs(e.accrued_at_unix_ms - NOON) < 10_000 for e in desk.call().entries)
    desk.check()


def test_one_row_that_cannot_be_moved_on_does_not_stop_the_time_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk()
    bad, good = desk.meter("MT_bad"), desk.meter("MT_good")
    for meter in (bad, good):
        leg = meter.start(TTS)
        desk.now += 600_000
        meter.interim(leg, characters=10)
        meter.send()
    real = SqliteSession.post

    def post(self: SqliteSession, entry: Entry, leg: Leg, meter: Meter) -> None:
        real(self, entry, leg, meter)
        if meter.meter_id == "MT_bad":
            raise OverflowError

    monkeypatch.setattr(SqliteSession, "post", post)
    desk.wait(600_000)
    assert desk.call("CA_good").legs[0].posted_nano_usd == 10_000
    assert desk.call("CA_bad").legs[0].posted_nano_usd == 0
    assert desk.store.counters()["tick_faults"] > 0
    desk.check()


# ---- rooms and their names -------------------------------------------------------------------


def test_late_webhooks_of_an_earlier_life_do_not_end_the_present_one() -> None:
    """A sidecar outage, and LiveKit's retries of a room that is long gone."""
    desk = Desk()
    present = in_room(desk, "MT_2", n=2, budget_nano_usd=CENT, on_budget="end")
    began = desk.now
    desk.wait(2_000)
    desk.webhook(agent_joined("RM_1", "AJ_1", created_at=began - 60_000, event_id="EV_1"))
    assert desk.call("CA_2").summary.state is CallState.OPEN
    spend(present, 20_000)
    (end,) = of(EndRoom, desk.effects)
    assert end.room_sids == ["RM_2"]


def test_a_room_that_is_listed_is_alive_whatever_was_thought_before() -> None:
    desk = Desk()
    meter = in_room(desk, budget_nano_usd=CENT, on_budget="end")
    desk.wait(1_000)
    listing(desk)  # one answer without it
    assert desk.call().summary.state is CallState.ENDED
    desk.wait(10_000)
    listing(desk, ListedRoom(sid="RM_1", name="x"))
    assert desk.call().summary.state is CallState.OPEN
    spend(meter, 20_000)
    assert of(EndRoom, desk.effects)


def test_a_call_that_wraps_up_while_livekit_restarts_is_ended_all_the_same() -> None:
    desk = Desk()
    meter = in_room(desk, budget_nano_usd=CENT)
    meter.renew()
    spend(meter, 9_000)
    assert of(Command, desk.effects)[-1].action is Action.WRAP_UP
    desk.wait(1_000)
    listing(desk)
    desk.wait(1_000)
    back = agent_joined("RM_2", "AJ_MT_a", created_at=desk.now, event_id="EV_2")
    desk.webhook(back)
    ended = of(EndRoom, desk.wait(20_000))
    assert ended
    assert ended[-1].room_sids == ["RM_2"]


def test_a_call_that_was_ended_and_is_here_again_is_ended_again() -> None:
    desk = Desk()
    meter = in_room(desk, budget_nano_usd=CENT, on_budget="end")
    spend(meter, 20_000)
    desk.receive(RoomVerifiedGone(call_id="CA_1", room_sid="RM_1"))
    desk.webhook(agent_joined("RM_2", "AJ_MT_a", created_at=desk.now, event_id="EV_2"))
    assert of(EndRoom, desk.wait(1_000))[-1].room_sids == ["RM_2"]


def test_a_meter_that_closes_before_livekit_has_told_of_the_room_does_not_end_the_call() -> None:
    desk = Desk()
    meter = in_room(desk)
    meter.close()
    meter.send()
    assert desk.call().summary.state is CallState.OPEN  # a caller may be inside
    caller = RoomParticipant(sid="PA_1", identity="caller")
    listing(desk, ListedRoom(sid="RM_1", name="x", participants=[caller]))
    desk.wait(120_000)
    assert desk.call().summary.state is CallState.OPEN


# ---- budgets ---------------------------------------------------------------------------------


def test_a_call_that_only_notifies_is_not_ended_by_its_own_budget_in_a_project_that_ends() -> None:
    desk = shop(1000 * CENT)
    meter = in_room(desk, project="shop", budget_nano_usd=2 * CENT, on_budget="notify")
    meter.renew()
    spend(meter, 50_000)
    assert of(EndRoom, desk.wait(30_000)) == []


def test_a_second_meter_of_a_call_gets_its_share_of_a_small_budget() -> None:
    """A hand-off: two agents in one room, one budget of four cents."""
    desk = Desk()
    first = in_room(desk, "MT_1", budget_nano_usd=4 * CENT, on_budget="end")
    first.renew()
    spend(first, 10_000)
    second = in_room(desk, "MT_2", budget_nano_usd=4 * CENT, on_budget="end")
    grant = second.renew()
    assert (grant.ceiling_nano_usd or 0) == 15_000_000
    lowered = [g for g in of(Grant, desk.effects) if g.meter_id == "MT_1"][-1]
    assert lowered.ceiling_nano_usd == 25_000_000
    assert of(EndRoom, desk.effects) == []
    desk.check()
    spend(first, 15_000)
    spend(second, 15_000)
    assert of(EndRoom, desk.effects)  # all of it is usable, by both
    desk.check()


def test_a_call_with_two_sessions_may_use_nearly_all_of_its_budget_in_one() -> None:
    desk = Desk()
    idle = in_room(desk, "MT_1", budget_nano_usd=100 * CENT)
    busy = in_room(desk, "MT_2", budget_nano_usd=100 * CENT)
    for meter in (idle, busy):
        meter.renew()
    spent = 0
    while not [c for c in of(Command, desk.effects) if c.action is Action.WRAP_UP]:
        spend(busy, 500)
        spent += 500_000
        desk.check()
    assert spent > 95 * CENT


def test_nothing_is_taken_from_a_meter_that_cannot_be_told() -> None:
    """Cut off, its lease over, it may be spending all that it was granted."""
    desk = Desk()
    away = in_room(desk, "MT_1", budget_nano_usd=100 * CENT)
    away.renew()
    desk.wait(60_000)
    late = in_room(desk, "MT_2", budget_nano_usd=100 * CENT)
    assert late.renew().ceiling_nano_usd == 0
    spend(away, 100_000)
    assert desk.store.counters()["overshoot_nano_usd"] == 0
    desk.check()


def test_a_listing_on_the_heels_of_a_rooms_end_does_not_bring_it_back() -> None:
    desk = Desk()
    desk.replay("call_hangup")
    desk.now += 10
    sid = desk.call().summary.call_id.replace("CA_", "RM_")
    listing(desk, ListedRoom(sid=sid, name="call_hangup"))
    desk.wait(2_000)
    listing(desk)
    call = desk.call().summary
    assert (call.state, call.amended) == (CallState.SETTLED, False)


def test_credit_that_became_free_is_used_before_a_call_is_ended() -> None:
    desk = Desk()
    first = in_room(desk, "MT_1", budget_nano_usd=8 * CENT)
    second = in_room(desk, "MT_2", budget_nano_usd=8 * CENT)
    for meter in (first, second):
        meter.renew()
    first.close()
    first.send()
    spend(second, 50_000)
    assert [c.action for c in of(Command, desk.effects) if c.action is not Action.WARN] == []
    desk.check()


def test_what_a_budget_does_is_said_by_the_meter_that_sets_it() -> None:
    desk = Desk()
    first = in_room(desk, "MT_1", on_budget="end")
    spend(first, 15_000)
    second = in_room(desk, "MT_2", budget_nano_usd=2 * CENT, on_budget="notify")
    spend(second, 10_000)
    assert of(EndRoom, desk.wait(30_000)) == []
    desk.check()  # what was spent before the budget came counts to it


def test_a_limit_that_is_lowered_ends_the_calls_that_are_over_it() -> None:
    desk = shop(100 * CENT)
    meter = in_room(desk, project="shop", on_budget="end")
    meter.renew()
    spend(meter, 15_000)
    desk.policy = shop_policy(CENT)
    desk.books = type(desk.books)(desk.prices, desk.policy)
    spend(meter, 1)
    assert of(EndRoom, desk.effects)
    desk.check()


def test_a_budget_that_is_set_during_the_day_knows_what_was_spent_before() -> None:
    desk = Desk()
    spend(in_room(desk, project="shop"), 15_000)
    desk.policy = shop_policy(2 * CENT)
    desk.books = type(desk.books)(desk.prices, desk.policy)
    meter = in_room(desk, "MT_b", n=2, project="shop")
    assert meter.renew().ceiling_nano_usd == 5_000_000
    desk.check()


def test_at_midnight_the_hold_moves_to_the_new_day_by_itself() -> None:
    desk = shop(10 * CENT)
    meter = in_room(desk, project="shop")
    meter.renew()
    leg = meter.start(TTS)
    desk.wait(MIDNIGHT - 20_000 - desk.now)
    meter.renew()
    meter.interim(leg, characters=5_000)
    meter.send()
    moved = of(Grant, desk.wait(25_000))
    assert moved
    assert moved[-1].ceiling_nano_usd is not None
    meter.stop(leg, characters=9_000)
    meter.send()
    assert desk.store.counters()["overshoot_nano_usd"] == 0
    desk.check()


def test_a_correction_after_midnight_goes_to_the_day_on_which_it_was_spent() -> None:
    desk = shop(10 * CENT)
    meter = in_room(desk, project="shop")
    meter.renew()
    desk.wait(MIDNIGHT - 10_000 - desk.now)
    leg = meter.start(TTS)
    meter.stop(leg, Outcome.INTERRUPTED, Basis.ESTIMATED, characters=50_000)
    meter.send()
    desk.wait(11_000)
    meter.stop(leg, Outcome.INTERRUPTED, Basis.REPORTED, characters=100)
    meter.send()
    today = CostQuery(from_unix_ms=MIDNIGHT, until_unix_ms=MIDNIGHT + DAY_MS)
    assert desk.store.costs(today) == []
    desk.check()


def test_a_ledger_that_is_new_to_a_meter_learns_whose_it_is() -> None:
    """The old ledger is lost; the agent holds only its latest records."""
    desk = Desk()
    meter = desk.meter(
        room_sid="RM_1", room_name="x", job_id="AJ_1", budget_nano_usd=CENT, on_budget="end"
    )
    opened = meter.pending[0]
    assert isinstance(opened, MeterOpen)
    meter.batch()
    desk.receive(Hello(1, "p", [MeterHeld("MT_a", 2, 3, opened)]))
    spend(meter, 20_000)
    assert of(EndRoom, desk.effects)
    assert [gap.reason for gap in desk.call("CA_1").gaps] == []


def test_a_meter_that_was_away_is_told_again_that_its_call_ends() -> None:
    desk = Desk()
    meter = in_room(desk, budget_nano_usd=CENT)
    meter.renew()
    spend(meter, 9_000)
    before = len(of(Command, desk.effects))
    meter.renew()
    again = of(Command, desk.effects)[before:]
    assert [command.action for command in again] == [Action.WRAP_UP]


def test_each_meter_is_charged_to_its_own_project_and_agent() -> None:
    """Two companies' agents in one room."""
    desk = Desk()
    spend(in_room(desk, "MT_1", project="ours", agent="host"), 10)
    spend(in_room(desk, "MT_2", project="theirs", agent="guest"), 20)
    asked = CostQuery(
        from_unix_ms=NOON - DAY_MS, until_unix_ms=NOON + DAY_MS, group_by=("project", "agent")
    )
    assert [(row.group, row.amount_nano_usd) for row in desk.store.costs(asked)] == [
        ({"project": "ours", "agent": "host"}, 10_000),
        ({"project": "theirs", "agent": "guest"}, 20_000),
    ]
    assert len(desk.calls()) == 1
    desk.check()


def test_a_call_of_a_lost_host_without_livekit_is_given_up_at_last() -> None:
    desk = Desk(Policy(livekit_project=None))
    in_room(desk, budget_nano_usd=CENT)
    desk.wait(desk.policy.meter_silence_ms + 70_000)
    call = desk.call().summary
    assert (call.state, call.reason) == (CallState.SETTLED, EndReason.CRASHED)


def test_an_ended_leg_moves_its_cost_out_of_the_open_ones() -> None:
    desk = Desk()
    meter = desk.meter()
    leg = meter.start(TTS)
    meter.interim(leg, characters=10)
    meter.send()
    desk.wait(899_000)
    meter.interim(leg, characters=20)  # in the next quarter hour
    desk.now += 2_000
    meter.interim(leg, characters=30)
    meter.stop(leg, Outcome.INTERRUPTED, characters=40)
    meter.send()
    asked = CostQuery(from_unix_ms=NOON, until_unix_ms=NOON + DAY_MS, group_by=("outcome",))
    (row,) = desk.store.costs(asked)
    assert (row.group, row.amount_nano_usd) == ({"outcome": "interrupted"}, 40_000)
    desk.check()


def test_a_leg_of_a_meter_that_is_over_is_closed_and_posted_too() -> None:
    """A request in a shutdown callback, after the session's close."""
    desk = Desk()
    meter = desk.meter()
    meter.close()
    meter.send()
    meter.start(LLM, input_tokens=100)
    meter.send()
    call = desk.call()
    assert (call.summary.state, call.summary.amended) == (CallState.SETTLED, True)
    assert call.legs[0].posted_nano_usd == 100_000
    meter.stop(1, input_tokens=100, output_tokens=5)
    meter.send()
    assert desk.call().legs[0].outcome is Outcome.SERVED
    assert desk.call().summary.total_nano_usd == 105_000
    desk.check()


@pytest.mark.parametrize("held", [(10**12, 10**12), (5, 2), (-3, 1)])
def test_nobody_can_make_a_ledger_forget_what_is_still_to_come(held: tuple[int, int]) -> None:
    desk = Desk()
    meter = desk.meter()
    meter.send()
    (reject,) = of(Reject, desk.receive(Hello(1, "p", [MeterHeld("MT_a", *held)])))
    assert reject.code == "malformed"
    spend(meter, 10)
    assert desk.call().summary.total_nano_usd == 10_000

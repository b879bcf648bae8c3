"""What is known late of LiveKit's minutes: whose they are, at which price, and who pays."""

from __future__ import annotations

import pytest

from tests.ledger.desk import CENT, NOON, CallState, Desk, EndRoom, of
from tests.ledger.test_connections import (
    AGENT,
    CALLER,
    MINUTE,
    Room,
    a_call,
    a_desk,
    connected_ms,
    connections,
    costs_by,
)
from voicecost_ledger.policy import BudgetAction, Policy, ProjectPolicy
from voicecost_ledger.records import OnBudget
from voicecost_ledger.rooms import ListedRoom, ParticipantKind, RoomListing, RoomParticipant


def everybody(desk: Desk) -> list[int]:
    """How long each connection was counted, over all calls."""
    return sorted(ms for call in desk.calls() for _, ms in connected_ms(desk.call(call.call_id)))


def an_agent_joins(room: Room, sid: str, job_id: str) -> None:
    room.inside[sid] = RoomParticipant(
        sid=sid,
        identity=f"agent-{job_id}",
        kind=ParticipantKind.AGENT,
        joined_at_unix_ms=room.desk.now,
        job_id=job_id,
    )
    room.tell("participant_joined", room.inside[sid])


def listed_as_of(desk: Desk, at_unix_ms: int, people: list[RoomParticipant]) -> None:
    """A listing that was made some time ago arrives now."""
    rooms = [ListedRoom(sid="RM_1", name="r", participants=people)]
    desk.receive(RoomListing(livekit_project="LK", requested_at_unix_ms=at_unix_ms, rooms=rooms))


# ---- whose ---------------------------------------------------------------------------------------


def test_a_room_that_comes_back_to_its_first_call_brings_its_minutes_back() -> None:
    """After a restart of LiveKit a new agent is there before the old one is back."""
    desk = a_desk()
    first, _ = a_call(desk)
    first.stays(30_000)
    second = Room(desk, "RM_2")
    second.joins("PA_back")
    second.joins("PA_brief")
    desk.wait(10_000)
    second.leaves("PA_brief")
    an_agent_joins(second, "PA_new", "AJ_2")  # another job: another call
    desk.wait(10_000)
    an_agent_joins(second, "PA_old", "AJ_1")  # but the first call's is here, too
    second.stays(20_000)
    second.closes()
    desk.wait(3 * MINUTE)
    # The first room was over, though nobody said so, 10 s after it was last heard of.
    assert everybody(desk) == [10_000, 20_000, 30_000, 35_000, 35_000, 40_000]
    desk.check()


def test_a_meter_that_comes_when_all_is_over_takes_the_room_along_and_nothing_twice() -> None:
    desk = a_desk()
    first, meter = a_call(desk)
    first.stays(30_000)
    second = Room(desk, "RM_2")
    second.joins("PA_other")  # as far as the name tells, the same call
    second.stays(30_000)
    second.closes()
    first.closes()
    meter.close()
    meter.send()
    desk.wait(3 * MINUTE)
    assert len(connected_ms(desk.call())) == 3
    late = desk.meter("MT_late", room_sid="RM_2", room_name="r", job_id="AJ_2")
    late.close()
    late.send()
    by_call = [connected_ms(desk.call(call.call_id)) for call in desk.calls()]
    assert sorted(map(len, by_call)) == [1, 2]
    assert all(call.state is CallState.SETTLED for call in desk.calls())
    assert {call.call_id: call.amended for call in desk.calls()} == {"CA_1": True, "CA_2": False}
    desk.check()


@pytest.mark.parametrize("over", [True, False])
def test_whose_it_is_changes_nothing_of_how_long_somebody_was_there(over: bool) -> None:
    """Nobody tells departures, and the agent's meter is heard of late."""
    desk = a_desk()
    room = Room(desk)
    room.joins()
    room.stays(20 * MINUTE)
    if over:
        room.is_not_listed()
        desk.wait(2 * MINUTE)
    meter = desk.meter(room_sid="RM_1", room_name="r", job_id="AJ_1", project="shop")
    meter.close()
    meter.send()
    room.is_not_listed()
    desk.wait(2 * MINUTE)
    assert connected_ms(desk.call()) == [("standard", 20 * MINUTE)]
    assert costs_by(desk, "project") == {"default": 0, "shop": 20 * CENT}
    desk.check()


@pytest.mark.parametrize("over", [True, False])
def test_an_agent_that_says_late_that_it_is_hosted_costs_what_such_an_agent_does(
    over: bool,
) -> None:
    """It waits for a caller to pick up, or the sidecar was away when it began."""
    desk = a_desk()
    room = Room(desk)
    room.joins()
    room.joins(AGENT, ParticipantKind.AGENT)
    room.stays(16 * MINUTE)
    if over:
        room.closes()
        desk.wait(2 * MINUTE)
    assert desk.call().summary.total_nano_usd == 16 * (CENT + CENT // 2)
    meter = desk.meter(room_sid="RM_1", room_name="r", job_id="AJ_1", hosted=True)
    meter.close()
    meter.send()
    assert desk.call().summary.total_nano_usd == 16 * (CENT + 10 * CENT)
    desk.check()
    if not over:
        room.closes()
    desk.wait(2 * MINUTE)
    assert connected_ms(desk.call()) == [("standard", 16 * MINUTE), ("agent", 16 * MINUTE)]
    assert costs_by(desk, "model") == {"standard": 16 * CENT, "agent": 160 * CENT}
    assert desk.call().summary.amended is over
    desk.check()


# ---- a late word to a call that is settled -------------------------------------------------------


def a_settled_call(desk: Desk) -> tuple[Room, list[RoomParticipant]]:
    room, meter = a_call(desk)
    room.stays(30_000)
    people = list(room.inside.values())
    room.closes()
    meter.close()
    meter.send()
    assert desk.call().summary.state is CallState.SETTLED
    return room, people


def test_a_late_word_that_costs_nothing_amends_nothing() -> None:
    desk = a_desk()
    room, people = a_settled_call(desk)
    before = desk.call()
    room.tell("participant_left", people[0])
    room.tell("room_finished")
    assert desk.call() == before


def test_a_late_word_of_what_has_no_price_amends_a_call() -> None:
    desk = a_desk(ingress=None)
    room, _ = a_settled_call(desk)
    joined = desk.now - 20_000
    unpriced = RoomParticipant(
        sid="PA_in", identity="i", kind=ParticipantKind.INGRESS, joined_at_unix_ms=joined
    )
    room.tell("participant_left", unpriced)
    call = desk.call().summary
    assert (call.unpriced_leg_count, call.amended) == (1, True)
    desk.check()


def test_a_listing_that_was_made_before_everybody_left_changes_nothing() -> None:
    desk = a_desk()
    room, meter = a_call(desk)
    room.stays(30_000)
    made, people = desk.now, list(room.inside.values())
    desk.wait(500)
    room.leaves(CALLER)
    room.leaves(AGENT)
    meter.close()
    meter.send()
    before = desk.call()
    assert before.summary.state is CallState.SETTLED
    listed_as_of(desk, made, people)
    assert desk.call() == before


# ---- who pays ------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_budget", OnBudget)
@pytest.mark.parametrize("minute_nano_usd", [CENT, 0])
def test_a_caller_whom_every_agent_has_left_uses_the_budget_up_too(
    on_budget: OnBudget, minute_nano_usd: int
) -> None:
    desk = a_desk(standard=minute_nano_usd)
    room, meter = a_call(desk, budget_nano_usd=6 * CENT, on_budget=on_budget)
    meter.renew()
    room.stays(30_000)
    room.leaves(AGENT)
    meter.close()
    meter.send()
    room.stays(5 * MINUTE - 30_000)
    assert of(EndRoom, desk.effects) == []
    room.stays(MINUTE)
    is_ended = on_budget is not OnBudget.NOTIFY and minute_nano_usd > 0
    assert bool(of(EndRoom, desk.effects)) is is_ended
    desk.check()


def of_projects(**daily_nano_usd: int) -> Policy:
    projects = {
        name: ProjectPolicy(name=name, daily_budget_nano_usd=limit, budget_action=BudgetAction.END)
        for name, limit in daily_nano_usd.items()
    }
    return Policy(livekit_project="LK", projects=projects)


def test_what_is_another_projects_uses_no_budget_up() -> None:
    """The call's second agent is of a project with a small budget, and has spent nothing of it."""
    desk = a_desk(of_projects(small=2 * CENT))
    room, meter = a_call(desk, project="rich")
    other = desk.meter(
        "MT_b",
        room_sid="RM_1",
        room_name="r",
        job_id="AJ_1",
        project="small",
        on_budget=OnBudget.END,
    )
    other.send()
    meter.renew()
    other.renew()
    room.stays(5 * MINUTE)
    assert desk.call().summary.total_nano_usd > 2 * CENT
    assert of(EndRoom, desk.effects) == []
    room.stays(15 * MINUTE)  # posted by now
    assert of(EndRoom, desk.effects) == []
    desk.check()


def test_each_day_pays_for_its_own_minutes() -> None:
    desk = a_desk(of_projects(default=1_000 * CENT))
    midnight = NOON + 12 * 60 * MINUTE
    desk.now = midnight - 20 * MINUTE
    room, meter = a_call(desk)
    for _ in range(8):
        room.stays(5 * MINUTE)
        meter.renew()
    room.closes()
    meter.close()
    meter.send()
    with desk.store.transaction() as tx:
        windows = [
            tx.window("project:default", midnight - 24 * 60 * MINUTE),
            tx.window("project:default", midnight),
        ]
    assert [window and window.spent_nano_usd for window in windows] == [30 * CENT, 30 * CENT]
    desk.check()


def test_a_room_without_any_meter_counts_to_a_budget_and_is_ended_by_none() -> None:
    """It may be no agent's at all, and nobody asked for it to be bounded."""
    desk = a_desk(of_projects(default=5 * CENT))
    room = Room(desk)
    room.joins()
    room.stays(30 * MINUTE)
    assert of(EndRoom, desk.effects) == []
    with desk.store.transaction() as tx:
        window = tx.window("project:default", NOON - 12 * 60 * MINUTE)
    assert window is not None
    assert window.overshoot_nano_usd >= 15 * CENT
    assert connections(desk.call())[0].amount_nano_usd == 30 * CENT
    desk.check()

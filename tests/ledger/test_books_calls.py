"""Which rooms and jobs are one call, when it ends, and when its books are closed (I9).

The webhook sequences are real ones, recorded from a livekit-server at their real distances.
"""

from __future__ import annotations

import random

import pytest

from tests.ledger.desk import NOON, TTS, CallState, Desk, EndRoom, of, webhooks
from voicecost_ledger.calls import EndReason
from voicecost_ledger.events import RoomVerifiedGone
from voicecost_ledger.protocol import WrappedUp
from voicecost_ledger.rooms import ListedRoom, RoomEvent, RoomListing


def agent_job(fixture: str) -> str:
    jobs = {
        event.participant.job_id
        for _, event in webhooks(fixture, NOON)
        if event.participant is not None and event.participant.job_id
    }
    (job,) = jobs
    assert job is not None
    return job


def room_sids(fixture: str) -> list[str]:
    return list(dict.fromkeys(event.room_sid for _, event in webhooks(fixture, NOON)))


def listing(desk: Desk, *rooms: ListedRoom) -> None:
    desk.receive(
        RoomListing(livekit_project="LK", requested_at_unix_ms=desk.now, rooms=list(rooms))
    )


def test_a_hang_up_ends_the_call_without_waiting_for_the_room() -> None:
    desk = Desk()
    desk.replay("call_hangup", until_ms=600)
    meter = desk.meter(
        room_sid=room_sids("call_hangup")[0],
        room_name="call_hangup",
        job_id=agent_job("call_hangup"),
    )
    meter.stop(meter.start(TTS), characters=10)
    meter.send()
    assert desk.call().summary.state is CallState.OPEN
    meter.close()
    meter.send()
    assert desk.call().summary.state is CallState.OPEN  # the caller is still there
    desk.now = NOON
    desk.replay("call_hangup", until_ms=5_700)
    call = desk.call().summary
    assert (call.state, call.reason) == (CallState.SETTLED, EndReason.COMPLETED)
    assert call.ended_at_unix_ms is not None
    assert call.ended_at_unix_ms < NOON + 6_000
    desk.check()


def test_a_room_without_any_meter_is_a_call_too() -> None:
    desk = Desk()
    desk.replay("call_hangup")
    call = desk.call().summary
    assert (call.state, call.reason) == (CallState.SETTLED, EndReason.COMPLETED)
    assert call.room_name == "call_hangup"


@pytest.mark.parametrize("first", ["webhooks", "meter"])
def test_meter_and_webhooks_meet_in_one_call_whichever_comes_first(first: str) -> None:
    desk = Desk()
    sid, job = room_sids("call_hangup")[0], agent_job("call_hangup")
    if first == "webhooks":
        desk.replay("call_hangup", until_ms=600)
    desk.meter(room_sid=sid, room_name="call_hangup", job_id=job, project="shop").send()
    if first == "meter":
        desk.replay("call_hangup", until_ms=600)
    assert [call.project for call in desk.calls()] == ["shop"]


@pytest.mark.parametrize("between", ["server_restart", "with a poll in between"])
def test_a_server_restart_in_mid_call_is_still_one_call(between: str) -> None:
    """The same job is in again under a new room SID; the first SID is never finished."""
    desk = Desk()
    job = agent_job("server_restart")
    first, second = room_sids("server_restart")
    desk.replay("server_restart", until_ms=600)
    meter = desk.meter(room_sid=first, room_name="server_restart", job_id=job)
    meter.send()
    if between != "server_restart":
        desk.wait(3_000)
        listing(desk)  # the new server knows no room yet
        assert desk.call().summary.state is CallState.ENDED
        began = NOON
        for t_ms, event in webhooks("server_restart", began):
            if t_ms > 600:
                desk.now = max(desk.now, began + t_ms)
                desk.webhook(event)
    else:
        desk.now = NOON
        desk.replay("server_restart")
    call = desk.call()
    assert call.summary.state is CallState.OPEN
    assert len(desk.calls()) == 1
    meter.close()
    meter.send()
    desk.wait(1_000)
    listing(desk, ListedRoom(sid=second, name="server_restart"))
    assert desk.call().summary.state is CallState.OPEN
    desk.wait(1_000)
    listing(desk)
    assert desk.call().summary.state is CallState.SETTLED


def rename(event: RoomEvent, fixture: str, sid: str, job: str, began: int) -> RoomEvent:
    """The same sequence as another life of the same name."""
    participant = event.participant
    if participant is not None:
        participant = type(participant)(
            sid=participant.sid + sid,
            identity=participant.identity,
            kind=participant.kind,
            joined_at_unix_ms=began,
            job_id=job if participant.job_id else None,
        )
    return RoomEvent(
        event_id=event.event_id + sid,
        event=event.event,
        livekit_project="LK",
        room_sid=sid,
        room_name=fixture,
        created_at_unix_ms=began,
        participant=participant,
    )


@pytest.mark.parametrize("lost", ["", "room_finished", "room_finished participant_left"])
def test_a_reused_room_name_is_two_calls_even_when_the_first_end_was_never_seen(
    lost: str,
) -> None:
    desk = Desk()
    first_meter = desk.meter(
        "MT_1",
        room_sid=room_sids("call_hangup")[0],
        room_name="call_hangup",
        job_id=agent_job("call_hangup"),
    )
    first_meter.send()
    desk.replay("call_hangup", skip=lost)
    began = desk.now = NOON + 60_000
    for _, event in webhooks("call_hangup", began):
        if event.event not in ("participant_left", "room_finished"):
            desk.webhook(rename(event, "call_hangup", "RM_second", "AJ_second", began))
    assert len(desk.calls()) == 2
    second = next(call for call in desk.calls() if call.call_id == "CA_second")
    first = next(call for call in desk.calls() if call.call_id != "CA_second")
    assert second.state is CallState.OPEN
    assert first.state is not CallState.OPEN


def test_deleting_the_first_call_never_names_the_second_life_of_its_room() -> None:
    """The first call's end is being enforced while its room name already lives again."""
    desk = Desk()
    first_sid = room_sids("call_hangup")[0]
    meter = desk.meter(
        "MT_1",
        room_sid=first_sid,
        room_name="call_hangup",
        job_id=agent_job("call_hangup"),
        budget_nano_usd=10_000,
        on_budget="end",
    )
    meter.send()
    desk.replay("call_hangup", until_ms=600)
    meter.interim(meter.start(TTS), characters=100)
    (end,) = of(EndRoom, meter.send())
    assert end.room_sids == [first_sid]
    began = desk.now
    _, started = webhooks("call_hangup", began)[0]
    desk.webhook(rename(started, "call_hangup", "RM_second", "AJ_second", began))
    for effect in of(EndRoom, desk.wait(3_000)):
        assert effect.room_sids == [first_sid]
    desk.receive(RoomVerifiedGone(call_id=end.call_id, room_sid=first_sid))
    assert desk.call(end.call_id).summary.reason is EndReason.BUDGET
    assert desk.call("CA_second").summary.state is CallState.OPEN
    assert of(EndRoom, desk.wait(3_000)) == []


def test_webhooks_delivered_twice_change_nothing() -> None:
    desk = Desk()
    for _, event in webhooks("call_hangup", NOON):
        desk.webhook(event)
        once = desk.call()
        desk.webhook(event)
        assert desk.call() == once


def test_webhooks_of_a_whole_call_in_any_order_leave_no_open_call_behind() -> None:
    for seed in range(40):
        desk = Desk()
        events = [event for _, event in webhooks("call_hangup", NOON)]
        random.Random(seed).shuffle(events)
        for event in events:
            desk.now += 100
            desk.webhook(event)
        desk.wait(1_000)
        listing(desk)
        desk.wait(61_000)
        assert [call.state for call in desk.calls()] == [CallState.SETTLED]


def test_with_all_webhooks_lost_the_poller_closes_the_call() -> None:
    desk = Desk()
    meter = desk.meter(room_sid="RM_x", room_name="x", job_id="AJ_x")
    leg = meter.start(TTS)
    meter.interim(leg, characters=10)
    meter.send()
    desk.wait(1_000)
    listing(desk, ListedRoom(sid="RM_x", name="x"))
    assert desk.call().summary.state is CallState.OPEN
    desk.wait(1_000)
    listing(desk)
    assert desk.call().summary.state is CallState.ENDED
    desk.wait(61_000)  # the agent's host is gone: nothing more comes
    call = desk.call().summary
    assert (call.state, call.reason) == (CallState.SETTLED, EndReason.CRASHED)
    assert call.total_nano_usd == 10_000
    desk.check()


def test_a_room_only_a_listing_ever_showed_ends_for_an_unknown_reason() -> None:
    desk = Desk()
    listing(desk, ListedRoom(sid="RM_x", name="x"))
    desk.wait(1_000)
    listing(desk)
    assert desk.call().summary.reason is EndReason.UNKNOWN


def test_a_listing_made_before_the_room_was_seen_does_not_end_it() -> None:
    desk = Desk()
    requested = desk.now
    desk.now += 50
    desk.meter(room_sid="RM_x", room_name="x", job_id="AJ_x").send()
    desk.receive(RoomListing(livekit_project="LK", requested_at_unix_ms=requested, rooms=[]))
    assert desk.call().summary.state is CallState.OPEN


def test_a_killed_agent_settles_when_its_spool_is_adopted_and_the_caller_has_left() -> None:
    """Without waiting for LiveKit's 21 s."""
    desk = Desk()
    fixture = "agent_job_sigkill"
    desk.replay(fixture, until_ms=600)
    meter = desk.meter(room_sid=room_sids(fixture)[0], room_name=fixture, job_id=agent_job(fixture))
    leg = meter.start(TTS)
    meter.interim(leg, characters=10)
    meter.send()
    desk.wait(1_000)
    meter.adopt(skipped=True)
    assert desk.call().summary.state is CallState.OPEN  # the caller sits there alone
    left = next(
        event
        for _, event in webhooks(fixture, NOON)
        if event.event == "participant_left"
        and event.participant
        and event.participant.identity == "caller"
    )
    desk.webhook(left)
    call = desk.call()
    assert (call.summary.state, call.summary.reason) == (CallState.SETTLED, EndReason.CRASHED)
    assert [gap.reason for gap in call.gaps] == ["spool_skipped"]
    assert desk.now < NOON + 5_000


def test_a_caller_who_comes_back_within_the_departure_timeout_is_in_the_same_call() -> None:
    desk = Desk()
    desk.replay("rejoin_in_departure_timeout")
    desk.wait(1_000)
    listing(desk)
    assert [call.state for call in desk.calls()] == [CallState.SETTLED]


def test_a_hand_off_between_two_jobs_in_one_room_is_one_call() -> None:
    desk = Desk()
    desk.replay("call_hangup", until_ms=600)
    sid = room_sids("call_hangup")[0]
    first = desk.meter("MT_1", room_sid=sid, room_name="call_hangup", job_id="AJ_1")
    first.close()
    first.send()
    second = desk.meter("MT_2", room_sid=sid, room_name="call_hangup", job_id="AJ_2")
    second.send()
    assert len(desk.call().meters) == 2
    assert desk.call().summary.state is CallState.OPEN


def test_a_session_outside_any_room_ends_with_its_meter() -> None:
    desk = Desk()
    meter = desk.meter(environment="console")
    meter.send()
    desk.wait(5_000)
    assert desk.call().summary.state is CallState.OPEN
    meter.close()
    meter.send()
    assert desk.call().summary.state is CallState.SETTLED


def test_a_meter_outside_any_room_that_falls_silent_is_lost_at_last() -> None:
    desk = Desk()
    desk.meter().send()
    desk.wait(desk.policy.meter_silence_ms + 70_000)
    call = desk.call().summary
    assert (call.state, call.reason) == (CallState.SETTLED, EndReason.CRASHED)


def test_a_meter_may_end_its_own_call_after_its_wrap_up() -> None:
    desk = Desk()
    meter = desk.meter(room_sid="RM_x", room_name="x", job_id="AJ_x", budget_nano_usd=10_000)
    meter.send()
    (end,) = of(EndRoom, desk.receive(WrappedUp("MT_a")))
    assert (end.room_name, end.room_sids) == ("x", ["RM_x"])

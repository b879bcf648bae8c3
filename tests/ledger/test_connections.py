"""What LiveKit bills: each connection to a room, from joining to leaving, told or not (I8, I9).

A minute of a caller costs a cent here, and one of the agent half of that; begun minutes are whole.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest

from tests.ledger.desk import CENT, NOON, TTS, CallState, Desk, EndRoom, of, webhooks
from voicecost_ledger.billing import Billing, BillingTerms
from voicecost_ledger.calls import EndReason
from voicecost_ledger.events import Adjust, Adjusted
from voicecost_ledger.policy import BudgetAction, Policy, ProjectPolicy
from voicecost_ledger.protocol import Action, Command, Hello, MeterHeld, Records, Reject
from voicecost_ledger.records import Basis, MeterOpen, Modality, OnBudget, Outcome
from voicecost_ledger.rooms import (
    ListedRoom,
    ParticipantKind,
    RoomEvent,
    RoomListing,
    RoomParticipant,
)
from voicecost_ledger.stores import CallDetail, CostQuery, LegView

MINUTE = 60_000
QUARTER_HOUR = 15 * MINUTE
CALLER, AGENT = "PA_caller", "PA_agent"


class Room:
    """A room of a LiveKit whose clock shows what the desk's does, and what it tells."""

    def __init__(self, desk: Desk, sid: str = "RM_1") -> None:
        self.desk = desk
        self.sid = sid
        self.inside: dict[str, RoomParticipant] = {}
        self.told = 0

    def joins(
        self, sid: str = CALLER, kind: ParticipantKind = ParticipantKind.STANDARD, **heard: Any
    ) -> None:
        is_agent = kind is ParticipantKind.AGENT
        self.inside[sid] = RoomParticipant(
            sid=sid,
            identity="agent-AJ_1" if is_agent else "caller",
            kind=kind,
            joined_at_unix_ms=self.desk.now,
            job_id="AJ_1" if is_agent else None,
        )
        self.tell("participant_joined", self.inside[sid], **heard)

    def leaves(self, sid: str = CALLER, **heard: Any) -> None:
        self.tell("participant_left", self.inside.pop(sid), **heard)

    def tell(
        self,
        event: str,
        who: RoomParticipant | None = None,
        *,
        heard: bool = True,
        late_ms: int = 0,
    ) -> RoomEvent:
        self.told += 1
        webhook = RoomEvent(
            event_id=f"EV_{self.sid}_{self.told}",
            event=event,
            livekit_project="LK",
            room_sid=self.sid,
            room_name="r",
            created_at_unix_ms=self.desk.now // 1000 * 1000,  # LiveKit gives whole seconds
            participant=who,
        )
        self.desk.now += late_ms
        if heard:
            self.desk.receive(webhook)
        return webhook

    def closes(self, **heard: Any) -> None:
        for sid in list(self.inside):
            self.leaves(sid, **heard)
        self.tell("room_finished", **heard)

    def is_listed(self, *, looked_into: bool = True) -> None:
        people = list(self.inside.values()) if looked_into else None
        self.list([ListedRoom(sid=self.sid, name="r", participants=people)])

    def is_not_listed(self) -> None:
        self.list([])

    def list(self, rooms: list[ListedRoom]) -> None:
        now = self.desk.now
        self.desk.receive(RoomListing(livekit_project="LK", requested_at_unix_ms=now, rooms=rooms))

    def stays(self, ms: int) -> None:
        """Time in which only the poller hears of it."""
        for _ in range(ms // 10_000):
            self.desk.wait(10_000)
            self.is_listed(looked_into=False)
        self.desk.wait(ms % 10_000)


def a_desk(policy: Policy | None = None, **minute_nano_usd: int | None) -> Desk:
    desk = Desk(policy)
    desk.prices.minute_nano_usd = {
        "standard": CENT,
        "self-hosted-agent": CENT // 2,
        "agent": 10 * CENT,
        **minute_nano_usd,
    }
    return desk


def a_call(desk: Desk, **opened: Any) -> tuple[Room, Any]:
    """A caller and an agent in a room, with a meter."""
    room = Room(desk)
    room.joins()
    meter = desk.meter(room_sid="RM_1", room_name="r", job_id="AJ_1", **opened)
    meter.send()
    room.joins(AGENT, ParticipantKind.AGENT)
    return room, meter


def connections(call: CallDetail) -> list[LegView]:
    return [leg for leg in call.legs if leg.modality is Modality.PARTICIPANT]


def connected_ms(call: CallDetail) -> list[tuple[str, int]]:
    return [(leg.model, leg.usage["connected_ms"]) for leg in connections(call) if leg.usage]


def costs_by(desk: Desk, group: str) -> dict[str, int]:
    asked = CostQuery(from_unix_ms=0, until_unix_ms=2 * NOON, group_by=(group,))
    return {row.group[group]: row.amount_nano_usd for row in desk.store.costs(asked)}


def of_fixture(fixture: str) -> dict[str, int]:
    """How long each participant of a real sequence was connected, by its distances."""
    joined: dict[str, int] = {}
    left: dict[str, int] = {}
    for t_ms, event in webhooks(fixture, 0):
        if event.participant is not None:
            at = {"participant_joined": joined, "participant_left": left}.get(event.event)
            if at is not None:
                at.setdefault(event.participant.sid, t_ms)
    return {sid: left[sid] - joined[sid] for sid in joined if sid in left}


@pytest.mark.parametrize(
    "fixture",
    [
        "call_hangup",
        "call_delete_room",
        "call_remove_caller",
        "caller_sigkill",
        "agent_worker_sigkill",
        "duplicate_identity",
        "rejoin_in_departure_timeout",
        "server_sigterm",
    ],
)
def test_every_connection_of_a_real_call_is_counted_once(fixture: str) -> None:
    desk = a_desk()
    desk.replay(fixture)
    desk.wait(3 * MINUTE)
    counted = [ms for call in desk.calls() for _, ms in connected_ms(desk.call(call.call_id))]
    assert sorted(counted) == sorted(of_fixture(fixture).values())
    desk.check()


@pytest.mark.parametrize("fixture", ["created_never_joined", "join_aborted"])
def test_who_never_came_in_costs_nothing(fixture: str) -> None:
    desk = a_desk()
    desk.replay(fixture)
    desk.wait(3 * MINUTE)
    assert connections(desk.call()) == []
    assert desk.call().summary.total_nano_usd == 0


@pytest.mark.parametrize("seed", range(20))
def test_webhooks_in_any_order_and_twice_come_to_the_same(seed: int) -> None:
    desk = a_desk()
    desk.now += MINUTE
    events = [event for _, event in webhooks("call_hangup", NOON)]
    events += random.Random(seed).sample(events, 5)
    random.Random(seed).shuffle(events)
    for event in events:
        desk.receive(event)
    desk.wait(3 * MINUTE)
    counted = sorted(ms for _, ms in connected_ms(desk.call()))
    # All of them came late: then LiveKit's whole seconds are all that is known.
    assert all(
        0 <= ms - true <= 999
        for ms, true in zip(counted, sorted(of_fixture("call_hangup").values()), strict=True)
    )
    desk.check()


def test_a_long_silence_costs_livekits_minutes() -> None:
    """Nobody says a word; each begun minute is in the call's total while it goes on."""
    desk = a_desk()
    room, _ = a_call(desk)
    room.is_listed()
    assert desk.call().summary.total_nano_usd == 0  # not a second yet
    totals: list[int] = []
    for _ in range(3):
        room.stays(MINUTE)
        totals.append(desk.call().summary.total_nano_usd)
    assert totals == [CENT * 3 // 2, 3 * CENT, CENT * 9 // 2]
    assert desk.call().summary.accruing_nano_usd == totals[-1]
    assert connected_ms(desk.call()) == [
        ("standard", 3 * MINUTE),
        ("self-hosted-agent", 3 * MINUTE),
    ]
    desk.check()


def test_each_quarter_hour_bears_its_own_minutes() -> None:
    desk = a_desk()
    room, meter = a_call(desk)
    room.stays(40 * MINUTE)
    room.closes()
    meter.close()
    meter.send()
    call = desk.call()
    assert call.summary.total_nano_usd == 40 * CENT * 3 // 2
    quarters: dict[int, int] = {}
    for entry in call.entries:
        quarter = (entry.accrued_at_unix_ms - NOON) // QUARTER_HOUR
        quarters[quarter] = quarters.get(quarter, 0) + (entry.amount_nano_usd or 0)
    assert quarters == {
        0: 15 * CENT * 3 // 2,
        1: 15 * CENT * 3 // 2,
        2: 10 * CENT * 3 // 2,
    }
    assert call.summary.state is CallState.SETTLED
    desk.check()


def test_a_room_that_was_there_before_the_sidecar_is_counted_from_its_beginning() -> None:
    desk = a_desk()
    room = Room(desk)
    room.joins(heard=False)
    desk.now += 40 * MINUTE
    room.is_listed()
    meter = desk.meter(room_sid="RM_1", room_name="r", job_id="AJ_1")
    meter.send()
    room.stays(20_000)
    assert connected_ms(desk.call()) == [("standard", 40 * MINUTE + 20_000)]
    assert {entry.accrued_at_unix_ms for entry in desk.call().entries} == {
        NOON + QUARTER_HOUR - 1,
        NOON + 2 * QUARTER_HOUR - 1,
    }
    desk.check()


def test_a_departure_that_is_told_late_is_of_the_time_it_happened() -> None:
    desk = a_desk()
    room, _ = a_call(desk)
    room.stays(50_400)
    room.leaves(late_ms=15_000)  # the last of LiveKit's five tries; it says which second it was
    room.is_listed()
    caller, _ = connections(desk.call())
    assert caller.usage == {"connected_ms": 50_999}
    assert (caller.basis, caller.amount_nano_usd) == (Basis.OBSERVED, CENT)
    desk.check()


def test_a_departure_that_nobody_told_is_estimated_between_two_listings() -> None:
    desk = a_desk()
    room, _ = a_call(desk)
    room.stays(2 * MINUTE - 5_000)
    room.is_listed()
    left = room.inside[CALLER]
    desk.wait(2_000)
    room.leaves(heard=False)
    desk.wait(8_000)
    room.is_listed()
    caller, _ = connections(desk.call())
    assert caller.usage == {"connected_ms": 2 * MINUTE}
    assert (caller.basis, caller.outcome) == (Basis.ESTIMATED, Outcome.SERVED)
    # Up to 5 s sooner or later: it may be another minute.
    assert caller.uncertainty_nano_usd == CENT
    room.inside[CALLER] = left
    desk.now -= 8_000
    told = room.tell("participant_left", room.inside.pop(CALLER), heard=False)
    desk.now += 10_000
    desk.receive(told)  # the fifth try got through after all
    caller, _ = connections(desk.call())
    assert caller.usage == {"connected_ms": 2 * MINUTE - 3_000 + 999}
    assert (caller.basis, caller.uncertainty_nano_usd) == (Basis.OBSERVED, 0)
    desk.check()


def test_while_livekit_is_silent_time_goes_on_and_the_doubt_grows() -> None:
    desk = a_desk()
    room, meter = a_call(desk)
    room.stays(30_000)
    room.is_listed()
    desk.wait(10 * MINUTE)
    assert connected_ms(desk.call())[0][1] >= 9 * MINUTE
    room.is_not_listed()
    meter.close()
    meter.send()
    desk.wait(2 * MINUTE)
    caller, _ = connections(desk.call())
    assert caller.usage == {"connected_ms": 30_000 + 5 * MINUTE}
    assert caller.basis is Basis.ESTIMATED
    assert caller.uncertainty_nano_usd == 5 * CENT
    assert desk.call().summary.state is CallState.SETTLED
    desk.check()


def test_whoever_was_thought_gone_and_is_listed_again_was_there_all_the_time() -> None:
    desk = a_desk()
    room, meter = a_call(desk)
    room.stays(30_000)
    room.is_not_listed()  # a LiveKit that did not know of all its rooms
    meter.send()
    desk.wait(30_000)
    room.is_listed()
    assert connected_ms(desk.call()) == [("standard", MINUTE), ("self-hosted-agent", MINUTE)]
    assert [leg.outcome for leg in connections(desk.call())] == [None, None]
    assert desk.call().summary.state is CallState.OPEN
    room.stays(30_000)
    room.closes()
    meter.close()
    meter.send()
    assert {ms for _, ms in connected_ms(desk.call())} == {90_000}
    desk.check()


def test_a_call_is_settled_when_the_agent_has_left_the_room_too() -> None:
    desk = a_desk()
    room, meter = a_call(desk)
    room.stays(50_000)
    room.leaves()
    meter.close()
    meter.send()
    assert desk.call().summary.state is CallState.ENDED  # LiveKit keeps the agent 20 s more
    desk.wait(20_000)
    room.closes()
    call = desk.call()
    assert (call.summary.state, call.summary.amended) == (CallState.SETTLED, False)
    assert connected_ms(call) == [("standard", 50_000), ("self-hosted-agent", 70_000)]
    desk.check()


def test_what_costs_nothing_holds_no_call_up() -> None:
    desk = Desk()  # a LiveKit server of one's own
    room, meter = a_call(desk)
    room.stays(50_000)
    room.leaves()
    meter.close()
    meter.send()
    assert desk.call().summary.state is CallState.SETTLED
    desk.wait(20_000)
    room.closes()
    call = desk.call()
    assert (call.summary.state, call.summary.amended) == (CallState.SETTLED, False)
    assert connected_ms(call) == [("standard", 50_000), ("self-hosted-agent", 70_000)]
    desk.check()


def test_an_agent_that_stays_is_waited_for_a_minute_and_paid_for_all_the_same() -> None:
    desk = a_desk()
    room, meter = a_call(desk)
    room.stays(50_000)
    room.leaves()
    meter.close()
    meter.send()
    room.stays(70_000)
    call = desk.call()
    assert (call.summary.state, call.summary.amended) == (CallState.SETTLED, False)
    assert call.summary.accruing_nano_usd == 0
    room.stays(MINUTE)
    room.closes()
    call = desk.call()
    assert (call.summary.state, call.summary.amended) == (CallState.SETTLED, True)
    assert call.summary.total_nano_usd == CENT + 3 * CENT // 2
    desk.check()


# ---- whose ---------------------------------------------------------------------------------------


def test_who_waits_for_the_agent_is_on_the_agents_project() -> None:
    desk = a_desk()
    room = Room(desk)
    room.joins()
    room.stays(20_000)
    assert connections(desk.call()) == []
    desk.meter(room_sid="RM_1", room_name="r", job_id="AJ_1", project="shop", agent="Ann").send()
    room.is_listed()
    room.stays(10_000)
    room.closes()
    assert connected_ms(desk.call()) == [("standard", 30_000)]
    assert costs_by(desk, "project") == {"shop": CENT}
    assert costs_by(desk, "agent") == {"Ann": CENT}
    desk.check()


def test_a_meter_that_is_heard_of_late_takes_the_minutes_to_its_project() -> None:
    policy = Policy(
        livekit_project="LK",
        projects={
            name: ProjectPolicy(
                name=name, daily_budget_nano_usd=90 * CENT, budget_action=BudgetAction.WARN
            )
            for name in ("default", "shop")
        },
    )
    desk = a_desk(policy)
    room = Room(desk)
    room.joins()
    room.stays(20 * MINUTE)
    room.closes()
    desk.wait(2 * MINUTE)
    assert desk.call().summary.state is CallState.SETTLED
    assert costs_by(desk, "project") == {"default": 20 * CENT}
    meter = desk.meter(room_sid="RM_1", room_name="r", job_id="AJ_1", project="shop")
    meter.stop(meter.start(TTS), characters=10)
    meter.close()
    meter.send()
    desk.wait(2 * MINUTE)
    call = desk.call()
    assert costs_by(desk, "project") == {"default": 0, "shop": 20 * CENT + 10_000}
    assert call.summary.total_nano_usd == 20 * CENT + 10_000
    assert (call.summary.state, call.summary.amended) == (CallState.SETTLED, True)
    desk.check()


def test_a_room_without_any_agent_is_billed_too() -> None:
    desk = a_desk()
    room = Room(desk)
    room.joins()
    room.stays(90_000)
    assert desk.call().summary.total_nano_usd == 2 * CENT
    room.closes()
    desk.wait(2 * MINUTE)
    call = desk.call().summary
    assert (call.state, call.reason, call.total_nano_usd) == (
        CallState.SETTLED,
        EndReason.COMPLETED,
        2 * CENT,
    )
    assert desk.call().meters == []
    assert desk.call().latency == []
    desk.check()


def test_a_room_that_turns_out_to_be_another_calls_takes_its_minutes_along() -> None:
    """A name whose first life nobody saw end is taken for the same call, until a job is seen."""
    desk = a_desk()
    first = Room(desk)
    first.joins()
    desk.meter("MT_a", room_sid="RM_1", room_name="r", job_id="AJ_1").send()
    first.joins(AGENT, ParticipantKind.AGENT)
    first.stays(30_000)
    desk.wait(1_000)
    second = Room(desk, "RM_2")
    second.joins("PA_other")
    second.list([])  # neither is listed: LiveKit was restarted
    second.joins("PA_third")
    second.is_listed()
    assert len(connected_ms(desk.call())) == 4  # one call, as far as anybody knows
    desk.meter("MT_b", room_sid="RM_2", room_name="r", job_id="AJ_2", project="shop").send()
    second.stays(30_000)
    second.closes()
    desk.wait(3 * MINUTE)
    by_call = {
        call.project: sorted(ms for _, ms in connected_ms(desk.call(call.call_id)))
        for call in desk.calls()
    }
    assert by_call == {"default": [30_500, 30_500], "shop": [30_000, 30_000]}
    desk.check()


def test_an_agent_on_livekits_cloud_costs_its_own_minutes() -> None:
    desk = a_desk()
    room, _ = a_call(desk, hosted=True)
    room.stays(30_000)
    assert connected_ms(desk.call()) == [("standard", 30_000), ("agent", 30_000)]
    assert desk.call().summary.total_nano_usd == 11 * CENT


def test_an_agent_without_a_meter_runs_elsewhere_as_far_as_anybody_knows() -> None:
    desk = a_desk()
    room = Room(desk)
    room.joins(AGENT, ParticipantKind.AGENT)
    room.stays(70_000)
    assert connected_ms(desk.call()) == [("self-hosted-agent", 70_000)]


def test_a_kind_that_has_no_price_is_shown_as_unpriced() -> None:
    desk = a_desk(ingress=None)
    room, _ = a_call(desk)
    room.joins("PA_stream", ParticipantKind.INGRESS)
    room.stays(30_000)
    room.closes()
    assert connected_ms(desk.call())[2] == ("ingress", 30_000)
    assert desk.call().summary.unpriced_leg_count == 1
    desk.check()


@pytest.mark.parametrize("joined_at_unix_ms", [None, 0, 1, 2 * NOON])
def test_a_time_of_joining_that_cannot_be_is_the_time_it_was_heard_of(
    joined_at_unix_ms: int | None,
) -> None:
    desk = a_desk()
    room, _ = a_call(desk)
    odd = RoomParticipant(sid="PA_odd", identity="odd", joined_at_unix_ms=joined_at_unix_ms)
    room.inside["PA_odd"] = odd
    room.tell("participant_joined", odd)
    room.stays(30_000)
    assert connected_ms(desk.call())[2] == ("standard", 30_000)


def test_a_livekit_whose_clock_is_ahead_counts_by_its_own() -> None:
    desk = a_desk()
    room = Room(desk)
    ahead = 3_600_000
    who = RoomParticipant(sid=CALLER, identity="c", joined_at_unix_ms=NOON + ahead)
    left = RoomEvent(
        event_id="EV_2",
        event="participant_left",
        livekit_project="LK",
        room_sid="RM_1",
        room_name="r",
        created_at_unix_ms=NOON + ahead + 30_000,
        participant=who,
    )
    desk.meter(room_sid="RM_1", room_name="r", job_id="AJ_1").send()
    room.tell("participant_joined", who)
    room.stays(30_000)
    assert connected_ms(desk.call()) == [("standard", 0)]
    desk.receive(left)
    assert connected_ms(desk.call()) == [("standard", 30_000)]
    assert all(entry.accrued_at_unix_ms <= desk.now for entry in desk.call().entries)
    desk.check()


# ---- money ---------------------------------------------------------------------------------------


def commands(effects: Iterable[object]) -> list[Action]:
    return [command.action for command in effects if isinstance(command, Command)]


@pytest.mark.parametrize("on_budget", [OnBudget.WRAP_UP, OnBudget.END])
def test_silence_uses_a_budget_up_too(on_budget: OnBudget) -> None:
    desk = a_desk()
    room, meter = a_call(desk, budget_nano_usd=6 * CENT, on_budget=on_budget)
    meter.renew()
    for _ in range(3):
        room.stays(MINUTE)
        meter.renew()
    assert Action.WRAP_UP not in commands(desk.effects)
    assert Action.END not in commands(desk.effects)
    room.stays(MINUTE)  # its first second makes it 6 cents
    first = next(a for a in commands(desk.effects) if a is not Action.WARN)
    assert first is (Action.END if on_budget is OnBudget.END else Action.WRAP_UP)
    desk.wait(20_000)
    assert of(EndRoom, desk.effects)
    room.closes()
    meter.close()
    meter.send()
    desk.wait(2 * MINUTE)
    call = desk.call().summary
    assert (call.state, call.reason) == (CallState.SETTLED, EndReason.BUDGET)
    desk.check()


def test_the_last_sentence_is_kept_back_of_what_livekit_bills() -> None:
    """4.5 of 5 cents are LiveKit's: what is left is the closing reserve, so it is wrapped up."""
    desk = a_desk()
    room, meter = a_call(desk, budget_nano_usd=5 * CENT)
    meter.renew()
    room.stays(2 * MINUTE)
    assert Action.WRAP_UP not in commands(desk.effects)
    room.stays(10_000)
    assert Action.WRAP_UP in commands(desk.effects)
    assert of(EndRoom, desk.effects) == []


def test_under_a_budget_of_nothing_only_a_server_of_ones_own_runs() -> None:
    for desk, runs in ((Desk(), True), (a_desk(), False)):
        room, meter = a_call(desk, budget_nano_usd=0, on_budget=OnBudget.END)
        meter.renew()
        room.stays(30_000)
        assert (Action.END not in commands(desk.effects)) is runs


def test_markup_fee_and_refund_are_of_these_minutes_too() -> None:
    terms = BillingTerms(markup_ppm=100_000, flat_fee_nano_usd=7)
    desk = a_desk(Policy(livekit_project="LK", billing=Billing(everybody=terms)))
    room, meter = a_call(desk)
    room.stays(30_000)
    room.closes()
    meter.close()
    meter.send()
    call = desk.call().summary
    assert (call.total_nano_usd, call.billed_nano_usd) == (
        CENT * 3 // 2,
        CENT * 3 // 2 * 11 // 10 + 7,
    )
    refund = Adjust(
        adjustment_id="A1",
        call_id=call.call_id,
        amount_nano_usd=-call.billed_nano_usd,
        reason="a bad line",
        by="ann",
    )
    answer = desk.order(refund)
    assert isinstance(answer, Adjusted)
    assert (answer.total_nano_usd, answer.billed_nano_usd) == (0, 0)
    desk.check()


def test_the_number_of_a_connection_is_no_other_legs() -> None:
    desk = a_desk()
    room, meter = a_call(desk)
    meter.stop(meter.start(TTS), characters=10)
    meter.send()
    room.stays(30_000)
    room.closes()
    call = desk.call()
    numbers = [leg.leg for leg in call.legs]
    assert len(set(numbers)) == len(numbers) == 3
    found = desk.store.last_entry(call.summary.call_id, numbers[0], None)
    assert found is not None
    history = desk.store.entry(found)
    assert history is not None
    assert history.leg == call.legs[0]


def test_no_agent_speaks_for_the_ledgers_own_meters() -> None:
    desk = a_desk()
    room, _ = a_call(desk)
    room.stays(30_000)
    (meter_id,) = {leg.meter_id for leg in connections(desk.call())}
    before = desk.call()
    batch = Records(meter_id, 0, 1, [MeterOpen(meter_id, 1, desk.now, project="mine")])
    hello = Hello(1, "P", [MeterHeld(meter_id, 1, 1)])
    for message in (batch, hello):
        (answer,) = desk.receive(message)
        assert isinstance(answer, Reject)
        assert answer.code == "malformed"
        assert meter_id in answer.message
    assert desk.call() == before

"""Budgets as tables: what is reserved, what is spent, what is over (I10)."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ledger.desk import CENT, NOON, TTS, Action, Command, Desk, EndRoom, TestMeter, of
from voicecost_ledger import budgets
from voicecost_ledger.budgets import Window
from voicecost_ledger.events import RoomVerifiedGone
from voicecost_ledger.policy import BudgetAction, Policy, ProjectPolicy
from voicecost_ledger.records import Outcome

DOLLAR = 100 * CENT


def check(table: str) -> None:
    """Replay a table of verbs on one window against the real rules."""
    window: Window | None = None
    holds: dict[str, int] = {}
    for line in table.strip().splitlines():
        cells = line.split("#")[0].split()
        if not cells:
            continue
        verb, hold, amount, result, spent, held, over = cells
        got = "-"
        if verb == "limit":
            window = Window(
                scope="project:p", start_unix_ms=0, limit_nano_usd=int(amount), enforcing=True
            )
        assert window is not None
        if verb == "reserve":
            granted = budgets.reserve([window], int(amount))
            holds[hold] = holds.get(hold, 0) + (int(amount) if granted else 0)
            got = "granted" if granted else "refused"
        elif verb == "settle":
            holds[hold] -= budgets.settle([window], [window], int(amount), holds[hold])
            got = "settled"
        elif verb == "release":
            budgets.release([window], holds.pop(hold))
            got = "released"
        assert got == result, line
        assert (window.spent_nano_usd, window.held_nano_usd, window.overshoot_nano_usd) == (
            int(spent),
            int(held),
            int(over),
        ), line
        assert window.spent_nano_usd + window.held_nano_usd <= (
            window.limit_nano_usd + window.overshoot_nano_usd
        ), line


def test_a_hold_is_money_until_it_is_settled_or_released() -> None:
    check("""
        # verb   hold amount result   spent held over
        limit    -    100    -        0     0    0
        reserve  A    60     granted  0     60   0
        reserve  B    60     refused  0     60   0    # two workers, one budget
        settle   A    45     settled  45    15   0
        release  A    0      released 45    0    0
        reserve  C    55     granted  45    55   0    # to the last unit
        settle   C    60     settled  105   0    5    # posting is never refused
        reserve  D    1      refused  105   0    5
    """)


def test_a_correction_downwards_gives_the_window_its_money_back() -> None:
    check("""
        limit    -    100    -        0     0    0
        reserve  A    100    granted  0     100  0
        settle   A    100    settled  100   0    0
        settle   A    -30    settled  70    0    0
        reserve  B    30     granted  70    30   0
    """)


@pytest.mark.parametrize(
    ("at", "time_zone", "expected"),
    [
        pytest.param("2026-11-22T12:00+00:00", "UTC", "2026-11-22T00:00+00:00", id="noon in UTC"),
        pytest.param(
            "2026-11-22T03:00+00:00",
            "America/New_York",
            "2026-11-21T05:00+00:00",
            id="still yesterday in New York",
        ),
        pytest.param(
            "2026-10-25T12:00+00:00",
            "Europe/Berlin",
            "2026-10-24T22:00+00:00",
            id="the day summer time ends begins in summer time",
        ),
    ],
)
def test_a_day_begins_at_midnight_of_the_time_zone(at: str, time_zone: str, expected: str) -> None:
    moment = int(dt.datetime.fromisoformat(at).timestamp()) * 1000
    start = int(dt.datetime.fromisoformat(expected).timestamp()) * 1000
    assert budgets.day_start(moment, time_zone) == start


def call_with_budget(desk: Desk, budget_nano_usd: int, **opened: Any) -> TestMeter:
    meter = desk.meter(
        room_sid="RM_x", room_name="x", job_id="AJ_x", budget_nano_usd=budget_nano_usd, **opened
    )
    meter.send()
    return meter


def test_without_a_budget_credit_has_no_end() -> None:
    desk = Desk()
    meter = desk.meter()
    meter.send()
    assert meter.renew().ceiling_nano_usd is None


def test_a_small_budget_is_granted_whole_with_its_closing_reserve_kept_back() -> None:
    desk = Desk()
    grant = call_with_budget(desk, 2 * CENT).renew()
    assert (grant.ceiling_nano_usd, grant.final) == (2 * CENT, True)
    assert grant.soft_nano_usd == 2 * CENT - 4_000_000  # a fifth


def test_a_calls_own_budget_is_granted_whole_to_its_only_meter() -> None:
    grant = call_with_budget(Desk(), DOLLAR).renew()
    assert (grant.ceiling_nano_usd, grant.final) == (DOLLAR, True)
    assert grant.unreported_max_nano_usd == DOLLAR


def test_a_shared_budget_is_granted_by_quarters_and_is_all_usable() -> None:
    desk = project_desk(DOLLAR)
    meter = desk.meter(project="shop", room_sid="RM_x", room_name="x", on_budget="end")
    meter.send()
    grant = meter.renew()
    assert (grant.ceiling_nano_usd, grant.final) == (DOLLAR // 4, False)
    spent = 0
    while not (grant.final and spent >= (grant.ceiling_nano_usd or 0)):
        spent += CENT // 2
        meter.stop(meter.start(TTS), characters=CENT // 2 // 1000)
        meter.send()
        grant = meter.renew()
        desk.check()
    assert spent == DOLLAR
    assert of(EndRoom, desk.effects)


def test_at_the_soft_end_the_agent_wraps_up_and_at_the_ceiling_the_call_is_ended() -> None:
    desk = Desk()
    meter = call_with_budget(desk, 2 * CENT)
    meter.renew()
    leg = meter.start(TTS)
    meter.interim(leg, characters=15_000)
    meter.send()
    assert of(Command, desk.effects) == []
    meter.interim(leg, characters=16_000)
    meter.send()
    assert [command.action for command in of(Command, desk.effects)] == [
        Action.WARN,
        Action.WRAP_UP,
    ]
    assert of(EndRoom, desk.effects) == []
    # Nobody says that the sentence was spoken: after its time the room goes all the same.
    assert of(EndRoom, desk.wait(desk.policy.wrap_up_ms + 1_000))


def test_with_on_budget_end_the_room_goes_with_the_record_that_reaches_the_limit() -> None:
    desk = Desk()
    meter = call_with_budget(desk, 2 * CENT, on_budget="end")
    meter.renew()
    meter.interim(meter.start(TTS), characters=20_000)
    (end,) = of(EndRoom, meter.send())
    assert end.room_sids == ["RM_x"]
    assert of(EndRoom, desk.wait(1_000)) == [end]  # again until it is verified
    desk.receive(RoomVerifiedGone(call_id=end.call_id, room_sid="RM_x"))
    assert of(EndRoom, desk.wait(5_000)) == []
    steps = [step.step for step in desk.call().audit]
    assert steps == ["warn", "end", "gone"]


def test_with_on_budget_end_nothing_is_said_first_and_the_whole_limit_can_be_used() -> None:
    desk = Desk()
    meter = call_with_budget(desk, 2 * CENT, on_budget="end")
    meter.renew()
    leg = meter.start(TTS)
    meter.interim(leg, characters=19_999)  # far beyond what a last sentence would be kept from
    meter.send()
    assert [command.action for command in of(Command, desk.effects)] == [Action.WARN]
    meter.interim(leg, characters=20_000)
    meter.send()
    assert [command.action for command in of(Command, desk.effects)] == [Action.WARN, Action.END]


def test_on_budget_notify_warns_and_never_touches_the_call() -> None:
    desk = Desk()
    meter = call_with_budget(desk, 2 * CENT, on_budget="notify")
    assert meter.renew().ceiling_nano_usd is None
    meter.interim(meter.start(TTS), characters=50_000)
    meter.send()
    assert [command.action for command in of(Command, desk.effects)] == [Action.WARN]
    assert of(EndRoom, desk.wait(60_000)) == []


def test_a_meter_that_stopped_for_want_of_credit_ends_its_call() -> None:
    desk = Desk()
    meter = call_with_budget(desk, 2 * CENT, on_budget="end")
    meter.renew()
    # The next request would not have fitted: the meter refused it at 19,000 characters.
    meter.interim(meter.start(TTS), characters=19_000)
    meter.send()
    assert of(EndRoom, desk.effects) == []
    meter.renew(exhausted=True)
    assert of(EndRoom, desk.effects)


def project_desk(limit: int, action: BudgetAction = BudgetAction.END) -> Desk:
    project = ProjectPolicy(name="Shop", daily_budget_nano_usd=limit, budget_action=action)
    return Desk(Policy(livekit_project="LK", projects={"shop": project}))


def test_calls_of_a_project_share_its_day_and_none_can_spend_what_another_holds() -> None:
    desk = project_desk(40 * CENT)
    meters = [desk.meter(f"MT_{n}", project="shop") for n in range(6)]
    for meter in meters:
        meter.send()
    ceilings = [meter.renew().ceiling_nano_usd or 0 for meter in meters]
    assert sum(ceilings) <= 40 * CENT
    assert ceilings[0] == 10 * CENT
    desk.check()


def test_a_project_that_only_warns_holds_nothing_and_ends_nothing() -> None:
    desk = project_desk(CENT, BudgetAction.WARN)
    meter = desk.meter(project="shop")
    meter.send()
    assert meter.renew().ceiling_nano_usd is None
    meter.stop(meter.start(TTS), characters=90_000)
    meter.send()
    meter.stop(meter.start(TTS), characters=90_000)
    meter.send()
    assert [command.budget for command in of(Command, desk.effects)] == ["project:shop"]


def test_a_budget_of_zero_grants_nothing() -> None:
    desk = project_desk(0)
    meter = desk.meter(project="shop", room_sid="RM_x", room_name="x", job_id="AJ_x")
    meter.send()
    grant = meter.renew()
    assert (grant.ceiling_nano_usd, grant.final) == (0, True)


def test_tomorrow_is_another_window() -> None:
    desk = project_desk(4 * CENT)
    meter = desk.meter(project="shop")
    meter.send()
    meter.renew()
    meter.stop(meter.start(TTS), Outcome.SERVED, characters=30_000)
    meter.send()
    desk.wait(12 * 3_600_000 + 1_000 - (desk.now - NOON))
    meter = desk.meter("MT_b", project="shop")
    meter.send()
    assert meter.renew().ceiling_nano_usd == 4 * CENT
    desk.check()


def test_when_a_lease_runs_out_only_what_may_have_been_spent_unreported_stays_held() -> None:
    desk = project_desk(10 * DOLLAR)
    silent = desk.meter("MT_silent", project="shop", room_sid="RM_1", room_name="1", job_id="AJ_1")
    silent.send()
    grant = silent.renew()
    assert grant.ceiling_nano_usd == 250 * CENT
    desk.wait(40_000)
    other = desk.meter("MT_other", project="shop")
    other.send()
    free = 10 * DOLLAR - grant.unreported_max_nano_usd
    assert other.renew().ceiling_nano_usd == free // 4
    # It comes back, with everything it was allowed to spend: still no window is broken.
    silent.stop(silent.start(TTS), characters=grant.unreported_max_nano_usd // 1000)
    silent.send()
    silent.renew()
    desk.check()
    assert desk.store.counters()["overshoot_nano_usd"] == 0


def test_the_jobs_own_meter_needs_no_credit_and_cannot_end_the_call() -> None:
    desk = Desk()
    meter = call_with_budget(desk, 2 * CENT)
    job = desk.meter("MT_job", room_sid="RM_x", room_name="x", job_id="AJ_x", unattributed=True)
    job.send()
    assert job.renew().ceiling_nano_usd is None
    assert meter.renew().ceiling_nano_usd == 2 * CENT


@st.composite
def actions(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    verbs = st.sampled_from(["spend", "renew", "wait", "close"])
    return draw(
        st.lists(
            st.tuples(verbs, st.integers(0, 2), st.integers(0, 6_000)), min_size=1, max_size=40
        )
    )


@settings(max_examples=80, deadline=None)
@given(actions(), st.integers(0, 60 * CENT))
def test_meters_that_keep_to_their_grants_never_overshoot(
    steps: list[tuple[str, int, int]], limit: int
) -> None:
    """Whatever the order of spending, renewing, falling silent and closing."""
    desk = project_desk(limit)
    meters = [desk.meter(f"MT_{n}", project="shop") for n in range(3)]
    ceilings, leases, totals, closed = [0] * 3, [0] * 3, [0] * 3, [False] * 3
    for meter in meters:
        meter.send()
    for verb, n, amount in steps:
        meter = meters[n]
        if closed[n]:
            continue
        if verb == "renew":
            grant = meter.renew()
            ceilings[n] = grant.ceiling_nano_usd or 0
            leases[n] = desk.now + grant.lease_ms
        elif verb == "spend":
            room = ceilings[n] - totals[n] if desk.now < leases[n] else 0
            characters = min(amount, room // 1000)
            totals[n] += characters * 1000
            meter.stop(meter.start(TTS), characters=characters)
            meter.send()
        elif verb == "wait":
            desk.wait(amount * 5)
        else:
            closed[n] = True
            meter.close()
            meter.send()
        desk.check()
    assert desk.store.counters()["overshoot_nano_usd"] == 0

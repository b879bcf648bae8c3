"""What LiveKit does not tell is found out; what is to end is gone, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sidecar.running import (
    RunningSidecar,
    a_call,
    batch,
    recorded,
    running_sidecar,
    until,
)
from tests.sidecar.simulated_livekit import SimulatedLiveKit, agent, person
from voicecost_ledger.protocol import Ack, Action, Command, Renew, WrappedUp
from voicecost_ledger.records import OnBudget

LIMIT_NANO_USD = 1_000_000


@pytest.fixture
def polling(tmp_path: Path, livekit: SimulatedLiveKit) -> Iterator[RunningSidecar]:
    """A sidecar that lists the rooms as often as it can, and gets no webhook."""
    with running_sidecar(tmp_path, livekit=livekit.config, poll_interval_s=0.02) as running:
        yield running


def states(sidecar: RunningSidecar) -> list[str]:
    return [call["state"] for call in sidecar.get("/v1/calls")["calls"]]


def overspend(
    sidecar: RunningSidecar, *, on_budget: OnBudget = OnBudget.END, room_sid: str = "RM_1"
) -> None:
    """An agent in room "r" spends more than its call may."""
    records = a_call(
        "M_1",
        room_name="r",
        room_sid=room_sid,
        job_id="AJ_1",
        budget_nano_usd=LIMIT_NANO_USD,
        on_budget=on_budget,
    )
    with sidecar.agent() as meter:
        meter.send(batch(records[:1]))
        meter.send(Renew("M_1", 1, 0))
        meter.send(batch(records[1:3]))
        while meter.hear_a(Command).action not in (Action.WRAP_UP, Action.END):
            pass
        if on_budget is OnBudget.WRAP_UP:
            meter.send(WrappedUp("M_1"))
            while meter.hear_a(Command).action is not Action.END:
                pass


def test_all_webhooks_lost_and_the_poller_closes_the_call(
    polling: RunningSidecar, livekit: SimulatedLiveKit
) -> None:
    livekit.open_room("r", "RM_1", person("caller", "PA_1"), agent("AJ_1", "PA_2"))
    with polling.agent() as meter:
        meter.send(batch(a_call(room_name="r", room_sid="RM_1", job_id="AJ_1")))
        meter.hear_a(Ack)
    assert until(
        lambda: states(polling) == ["open"]
    )  # its meter is closed, but the caller is still connected
    livekit.close_room("r")
    assert until(lambda: states(polling) == ["settled"])
    (call,) = polling.get("/v1/calls")["calls"]
    assert (call["room_name"], call["reason"]) == ("r", "completed")


def test_a_room_that_webhooks_told_everything_of_is_not_looked_into(
    tmp_path: Path, livekit: SimulatedLiveKit
) -> None:
    events = recorded("call_hangup")[:5]  # until both are in the room
    room = events[0]["room"]
    livekit.open_room(room["name"], room["sid"], person("caller", "PA_uo58S8yC3YKW"))
    with running_sidecar(tmp_path, livekit=livekit.config, poll_interval_s=0.2) as sidecar:
        until(lambda: livekit.requests["ListParticipants"])  # at start nobody knows the room
        for event in events:
            assert sidecar.webhook(event).status_code == 200
        livekit.requests.clear()
        assert until(lambda: livekit.requests["ListRooms"] >= 3)
        # At most the look that was under way when the agent's joining was told.
        assert livekit.requests["ListParticipants"] <= 1


def test_a_head_count_that_differs_is_looked_into(
    polling: RunningSidecar, livekit: SimulatedLiveKit
) -> None:
    livekit.open_room("r", "RM_1", person("caller", "PA_1"), agent("AJ_1", "PA_2"))
    until(lambda: livekit.requests["ListParticipants"])
    before = livekit.requests["ListParticipants"]
    livekit.open_room(
        "r", "RM_1", person("caller", "PA_1"), person("other", "PA_3"), agent("AJ_1", "PA_2")
    )
    assert until(lambda: livekit.requests["ListParticipants"] > before)


def test_an_agent_that_left_is_missed_without_any_webhook(
    polling: RunningSidecar, livekit: SimulatedLiveKit
) -> None:
    """Agents are in no head count, and LiveKit bills them until they leave."""
    livekit.open_room("r", "RM_1", person("caller", "PA_1"), agent("AJ_1", "PA_2"))
    with polling.agent() as meter:
        meter.send(batch(a_call(room_name="r", room_sid="RM_1", job_id="AJ_1")[:1]))
        meter.hear_a(Ack)

    def outcomes() -> dict[str, str | None]:
        (call,) = polling.get("/v1/calls")["calls"]
        legs = polling.get(f"/v1/calls/{call['call_id']}")["legs"]
        return {leg["model"]: leg["outcome"] for leg in legs}

    assert until(lambda: outcomes() == {"standard": None, "self-hosted-agent": None})
    livekit.open_room("r", "RM_1", person("caller", "PA_1"))
    assert until(lambda: outcomes() == {"standard": None, "self-hosted-agent": "served"})


def test_the_people_of_a_room_that_takes_over_the_name_are_its_own(
    polling: RunningSidecar, livekit: SimulatedLiveKit
) -> None:
    """ListParticipants works by name: between two requests it may be another room's."""
    livekit.open_room("r", "RM_1", person("caller", "PA_1"), agent("AJ_1", "PA_2"))
    with polling.agent() as meter:
        meter.send(batch(a_call("M_1", room_name="r", room_sid="RM_1", job_id="AJ_1")[:1]))
        meter.hear_a(Ack)
    assert until(lambda: livekit.requests["ListParticipants"])
    livekit.taken_over["r"] = ("RM_2", [person("other", "PA_3"), agent("AJ_2", "PA_4")])
    livekit.rooms["r"].num_participants = 2  # so that RM_1 is looked into
    # With AJ_2 among the people of RM_1, RM_2 would pass for the same call.
    assert until(lambda: len(polling.get("/v1/calls")["calls"]) == 2)
    second, first = polling.get("/v1/calls")["calls"]
    assert (first["state"], second["state"]) == ("ended", "open")


@pytest.mark.parametrize("unit", ["ms", "s"])  # older servers tell whole seconds only
def test_a_late_webhook_of_an_earlier_life_of_the_name_is_no_part_of_this_call(
    tmp_path: Path, livekit: SimulatedLiveKit, unit: str
) -> None:
    livekit.open_room("r", "RM_2", person("caller", "PA_1"), agent("AJ_2", "PA_2"))
    if unit == "ms":
        livekit.rooms["r"].creation_time_ms = 1_795_311_270_393
        earlier = {"creationTime": "1795311200", "creationTimeMs": "1795311200123"}
    else:
        livekit.rooms["r"].creation_time = 1_795_311_270
        earlier = {"creationTime": "1795311200"}
    started = {
        "event": "room_started",
        "id": "EV_late",
        "createdAt": "1795311200",
        "room": {"sid": "RM_1", "name": "r"} | earlier,
    }
    with running_sidecar(tmp_path, livekit=livekit.config) as sidecar:
        assert until(lambda: states(sidecar) == ["open"])
        assert sidecar.webhook(started).status_code == 200
        assert len(states(sidecar)) == 2


def test_a_refused_listing_is_tried_again(
    polling: RunningSidecar, livekit: SimulatedLiveKit
) -> None:
    livekit.refusals += [("ListRooms", 429, "resource_exhausted")] * 3
    livekit.open_room("r", "RM_1", person("caller", "PA_1"))
    assert until(lambda: states(polling) == ["open"])
    assert not livekit.refusals


def test_a_breach_ends_the_room_and_it_is_verified_gone(
    polling: RunningSidecar, livekit: SimulatedLiveKit
) -> None:
    livekit.open_room("r", "RM_1", person("caller", "PA_1"), agent("AJ_1", "PA_2"))
    overspend(polling)
    assert until(lambda: livekit.deleted_sids) == ["RM_1"]
    (call,) = until(lambda: _with_state(polling, "ended", "settled"))
    assert call["reason"] == "budget"
    steps = [s["step"] for s in polling.get(f"/v1/calls/{call['call_id']}")["audit"]]
    assert steps[-2:] == ["end", "gone"]


def test_a_wrap_up_that_was_spoken_lets_the_room_go(
    polling: RunningSidecar, livekit: SimulatedLiveKit
) -> None:
    livekit.open_room("r", "RM_1", person("caller", "PA_1"), agent("AJ_1", "PA_2"))
    overspend(polling, on_budget=OnBudget.WRAP_UP)
    assert until(lambda: livekit.deleted_sids) == ["RM_1"]


def test_no_deletion_hits_a_room_that_took_over_the_name(
    tmp_path: Path, livekit: SimulatedLiveKit
) -> None:
    """DeleteRoom works by name: the SID is read again first (I9)."""
    livekit.open_room("r", "RM_2", person("other", "PA_9"), agent("AJ_2", "PA_8"))
    with running_sidecar(tmp_path, livekit=livekit.config) as sidecar:
        overspend(sidecar, room_sid="RM_1")
        # The one listing at start cannot have seen that RM_1 is gone; the stop asks for another.
        assert until(lambda: livekit.requests["ListRooms"] >= 4)
        assert until(
            lambda: [c for c in sidecar.get("/v1/calls")["calls"] if c["reason"] == "budget"]
        )
    assert livekit.requests["DeleteRoom"] == 0
    assert livekit.rooms["r"].sid == "RM_2"


def test_a_room_that_is_created_again_meanwhile_is_another_one(
    tmp_path: Path, livekit: SimulatedLiveKit
) -> None:
    """The same token re-creates a room in a tenth of a second: the first is gone all the same."""
    livekit.open_room("r", "RM_1", person("caller", "PA_1"), agent("AJ_1", "PA_2"))
    livekit.rejoin_as["r"] = "RM_2"
    with running_sidecar(tmp_path, livekit=livekit.config) as sidecar:
        overspend(sidecar)
        assert until(lambda: _with_state(sidecar, "ended", "settled"))
    assert livekit.deleted_sids == ["RM_1"]


def test_a_deletion_that_is_refused_or_late_is_repeated(
    polling: RunningSidecar, livekit: SimulatedLiveKit
) -> None:
    livekit.open_room("r", "RM_1", person("caller", "PA_1"), agent("AJ_1", "PA_2"))
    livekit.refusals += [("DeleteRoom", 503, "unavailable")]
    overspend(polling)
    assert until(lambda: livekit.deleted_sids) == ["RM_1"]
    assert livekit.requests["DeleteRoom"] == 2
    assert until(lambda: _with_state(polling, "ended", "settled"))


def test_a_room_that_outlives_its_deletion_is_deleted_again(
    polling: RunningSidecar, livekit: SimulatedLiveKit
) -> None:
    livekit.open_room("r", "RM_1", person("caller", "PA_1"), agent("AJ_1", "PA_2"))
    livekit.outlives_deletions = 1
    overspend(polling)
    assert until(lambda: livekit.deleted_sids) == ["RM_1"]


def _with_state(sidecar: RunningSidecar, *wanted: str) -> list[dict[str, object]]:
    return [call for call in sidecar.get("/v1/calls")["calls"] if call["state"] in wanted]

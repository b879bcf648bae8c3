"""How calls end in a real room, and what the ledger makes of it.

Every test holds the ledger against the providers' own bill.
"""

from __future__ import annotations

from examples.demo.conversations import KILLED, TOO_DEAR
from examples.demo.stage import Stage
from tests.room.bills import assert_equals_the_bill, begin
from tests.room.marks import ROOM
from voicecost_ledger.calls import CallState, EndReason
from voicecost_ledger.money import parse_usd

pytestmark = ROOM

STORY = KILLED  # a question, and an answer long enough to end the call in the middle of it


async def test_a_room_that_is_deleted_in_mid_sentence_is_billed_to_its_end(stage: Stage) -> None:
    """The session closes 2 s after the room is gone, and STT bills those too."""
    assert stage.livekit is not None
    row_count = begin(stage, STORY)
    async with stage.call("delete-room") as caller:
        await STORY.play(caller)
        await stage.livekit.delete_room("delete-room")
        assert await caller.disconnected(timeout_s=5) == "ROOM_DELETED"

    (call,) = await stage.sidecar.settled("delete-room")

    assert call.summary.reason is EndReason.COMPLETED
    await assert_equals_the_bill(stage, row_count, call)


async def test_a_room_name_used_again_is_another_call(stage: Stage) -> None:
    """Each life of a name with a job of its own is a call, and the end of one leaves the other."""
    assert stage.livekit is not None
    row_count = begin(stage, TOO_DEAR, STORY)
    async with stage.call("reused", budget_usd=TOO_DEAR.budget_usd) as caller:
        await TOO_DEAR.play(caller)
        await caller.disconnected(timeout_s=30)
    # At once: while the sidecar still ends the first call, which LiveKit does by name.
    async with stage.call("reused") as caller:
        await STORY.play(caller)
        assert caller.connected

    first, second = await stage.sidecar.settled("reused", count=2)

    assert first.summary.reason is EndReason.BUDGET
    assert second.summary.reason is EndReason.COMPLETED
    assert [len(call.meters) for call in (first, second)] == [1, 1]
    await assert_equals_the_bill(stage, row_count, first, second)


async def test_a_killed_agent_loses_nothing(stage: Stage) -> None:
    """SIGKILL in mid-sentence: its spool is adopted, long before LiveKit notices (20 s)."""
    row_count = begin(stage, STORY)
    async with stage.call("sigkill") as caller:
        await STORY.play(caller)
        stage.kill_agent("sigkill")
        await caller.hears_end()

    (call,) = await stage.sidecar.settled("sigkill", timeout_s=15)

    assert call.summary.reason is EndReason.CRASHED
    assert [meter.state for meter in call.meters] == ["adopted"]
    await assert_equals_the_bill(stage, row_count, call)


async def test_a_used_up_budget_ends_the_call_after_the_wrap_up_sentence(stage: Stage) -> None:
    assert stage.livekit is not None
    row_count = begin(stage, TOO_DEAR)
    async with stage.call(
        "budget", budget_usd=TOO_DEAR.budget_usd, wrap_up_text=TOO_DEAR.wrap_up_text
    ) as caller:
        await TOO_DEAR.play(caller)
        assert await caller.disconnected(timeout_s=30) == "ROOM_DELETED"
        assert await stage.livekit.is_gone("budget")

    assert [line.text for line in caller.lines if line.by_agent][-1] == TOO_DEAR.wrap_up_text
    (call,) = await stage.sidecar.settled("budget")
    assert call.summary.reason is EndReason.BUDGET
    assert call.summary.total_nano_usd <= parse_usd(TOO_DEAR.budget_usd or "0")
    assert [step.step for step in call.audit][-1] == "gone"
    await assert_equals_the_bill(stage, row_count, call)


async def test_a_call_outlives_its_livekit_server(stage: Stage) -> None:
    """The server dies and comes back: the same job goes on in a room with a new SID. One call."""
    assert stage.livekit is not None
    row_count = begin(stage, STORY)
    async with stage.call("restart") as caller:
        await caller.hears_start()
        await caller.hears_end()
        (first_sid,) = await stage.livekit.room_sids("restart")
        await stage.restart_livekit()
        await caller.until(lambda: caller.connected, "the caller to be connected again")
        (second_sid,) = await stage.livekit.room_sids("restart")
        assert second_sid != first_sid
        await caller.speak(1.2)
        await caller.hears_start()
        await caller.hears_for(2.0)

    (call,) = await stage.sidecar.settled("restart", timeout_s=40)

    assert call.summary.reason is EndReason.COMPLETED
    assert len(call.meters) == 1
    await assert_equals_the_bill(stage, row_count, call)


async def test_a_call_without_a_sidecar_arrives_when_it_is_back(stage: Stage) -> None:
    """The call goes on, its records wait in the spool, and LiveKit's webhooks are lost."""
    row_count = begin(stage, STORY)
    stage.sidecar.kill()
    try:
        async with stage.call("outage") as caller:
            await STORY.play(caller)
    finally:
        await stage.sidecar.start()

    (call,) = await stage.sidecar.settled("outage", timeout_s=60)

    assert call.summary.state is CallState.SETTLED
    await assert_equals_the_bill(stage, row_count, call)

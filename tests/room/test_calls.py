"""How calls end in a real room, and what the ledger makes of it.

Every test holds the ledger against the providers' own bill.
"""

from __future__ import annotations

from examples.demo.bills import difference_percent, sum_up
from examples.demo.conversations import BOOKING, KILLED, TOO_DEAR, Conversation
from examples.demo.stage import Stage
from tests.room.marks import ROOM
from voicecost_catalog import open_price_book
from voicecost_ledger.calls import CallState, EndReason
from voicecost_ledger.money import parse_usd
from voicecost_ledger.records import Coverage, Outcome
from voicecost_ledger.stores import CallDetail

pytestmark = ROOM

STORY = KILLED  # a question, and an answer long enough to end the call in the middle of it


def begin(stage: Stage, *conversations: Conversation) -> int:
    """Prepare the providers for these calls; returns where their bill begins."""
    stage.providers.prepare(
        said=[line for conversation in conversations for line in conversation.said],
        replies=[reply for conversation in conversations for reply in conversation.replies],
    )
    return len(stage.providers.bill.rows)


async def assert_equals_the_bill(stage: Stage, row_count: int, *calls: CallDetail) -> None:
    """The ledger is within half a percent of what the providers bill, nothing unpriced."""
    billed = await stage.providers.billed_since(row_count)
    prices = open_price_book(host_aliases=stage.providers.host_aliases)
    bill = sum_up(billed, prices, calls[0].summary.opened_at_unix_ms)
    assert bill.unpriced_count == 0
    assert [call.summary.unpriced_leg_count for call in calls] == [0] * len(calls)
    total_nano_usd = sum(call.summary.total_nano_usd for call in calls)
    percent = difference_percent(total_nano_usd, bill.total_nano_usd)
    assert percent is not None
    assert abs(percent) <= 0.5


async def test_a_call_that_is_hung_up_settles_as_completed(stage: Stage) -> None:
    """The agent idles in the room for 20 s more; the ledger does not wait for it."""
    row_count = begin(stage, BOOKING)
    async with stage.call("hang-up") as caller:
        await BOOKING.play(caller)

    (call,) = await stage.sidecar.settled("hang-up", timeout_s=15)

    assert call.summary.reason is EndReason.COMPLETED
    assert call.summary.coverage is Coverage.COMPLETE
    assert Outcome.INTERRUPTED in {leg.outcome for leg in call.legs}
    assert call.summary.waste_nano_usd > 0
    await assert_equals_the_bill(stage, row_count, call)


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
    """Room names are reused; each life of the name with an agent job of its own is a call."""
    assert stage.livekit is not None
    row_count = begin(stage, STORY, STORY)
    for _ in range(2):
        async with stage.call("reused") as caller:
            await STORY.play(caller)
            await stage.livekit.delete_room("reused")

    calls = await stage.sidecar.settled("reused", count=2)

    assert len(calls) == 2
    assert [len(call.meters) for call in calls] == [1, 1]
    await assert_equals_the_bill(stage, row_count, *calls)


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
        assert await stage.livekit.room_sids("budget") == []

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

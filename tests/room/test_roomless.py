"""Where there is no livekit-server, the demo plays the same calls over a socket."""

from __future__ import annotations

from pathlib import Path

from examples.demo.conversations import KILLED, TOO_DEAR
from examples.demo.stage import Stage
from tests.room.bills import assert_equals_the_bill, begin
from voicecost_ledger.calls import EndReason


async def test_calls_without_a_room_end_and_are_billed_as_well(tmp_path: Path) -> None:
    """A used-up budget ends the first; the second one's agent is killed in mid-sentence."""
    async with Stage(tmp_path, None) as stage:
        row_count = begin(stage, TOO_DEAR)
        async with stage.call(
            "budget", budget_usd=TOO_DEAR.budget_usd, wrap_up_text=TOO_DEAR.wrap_up_text
        ) as caller:
            await TOO_DEAR.play(caller)
            await caller.disconnected(timeout_s=30)
        assert [line.text for line in caller.lines if line.by_agent][-1] == TOO_DEAR.wrap_up_text
        (first,) = await stage.sidecar.settled(None)
        assert first.summary.reason is EndReason.BUDGET
        await assert_equals_the_bill(stage, row_count, first)

        row_count = begin(stage, KILLED)
        async with stage.call("killed") as caller:
            await KILLED.play(caller)
            stage.kill_agent("killed")
            await caller.hears_end()
        _, second = await stage.sidecar.settled(None, count=2)
        assert second.summary.reason is EndReason.CRASHED
        await assert_equals_the_bill(stage, row_count, second)

"""How callers and workers leave in a real room; `tests/plugin/endings.py` names all endings."""

from __future__ import annotations

from examples.demo.conversations import BOOKING, KILLED
from examples.demo.stage import Stage
from tests.room.bills import assert_equals_the_bill, begin, requests
from tests.room.marks import ROOM
from voicecost_ledger.calls import EndReason
from voicecost_ledger.records import Coverage, Modality, Outcome

pytestmark = ROOM

STORY = KILLED  # a question, and an answer long enough to leave in the middle of it


async def test_a_caller_who_hangs_up_in_mid_speech(stage: Stage) -> None:
    """LiveKit closes the session: what the LLM had written and the voice was given is billed."""
    row_count = begin(stage, STORY)
    async with stage.call("hang-up") as caller:
        await STORY.play(caller)
        await caller.hang_up()

    (call,) = await stage.sidecar.settled("hang-up", timeout_s=15)

    assert call.summary.reason is EndReason.COMPLETED
    assert (call.summary.coverage, call.gaps) == (Coverage.COMPLETE, [])
    interrupted = {leg.modality for leg in call.legs if leg.outcome is Outcome.INTERRUPTED}
    assert Modality.TTS in interrupted
    await assert_equals_the_bill(stage, row_count, call)
    assert len(requests(call)) == len(stage.providers.bill.rows) - row_count


async def test_a_worker_that_is_told_to_go_ends_its_call_first(stage: Stage) -> None:
    """A rolling deployment in the middle of a call: it goes on to its end, and none is lost."""
    row_count = begin(stage, BOOKING)
    async with stage.call("drained") as caller:
        await caller.hears_start()
        old_worker = await stage.replace_worker()
        await caller.hears_end()
        await caller.speak(1.6)
        await caller.hears_start()
        await caller.hears_end()
        assert old_worker.alive
        await caller.hang_up()

    (call,) = await stage.sidecar.settled("drained", timeout_s=15)
    assert call.summary.reason is EndReason.COMPLETED
    assert (call.summary.coverage, call.gaps) == (Coverage.COMPLETE, [])
    assert {meter.state for meter in call.meters} == {"closed"}
    await assert_equals_the_bill(stage, row_count, call)
    assert len(requests(call)) == len(stage.providers.bill.rows) - row_count

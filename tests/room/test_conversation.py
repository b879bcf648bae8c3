"""One whole call: what was heard, what was billed, and what the ledger says of both."""

from __future__ import annotations

from examples.demo.conversations import BOOKING
from examples.demo.stage import Stage
from tests.room.bills import assert_equals_the_bill, begin
from tests.room.marks import ROOM
from voicecost_ledger.calls import EndReason
from voicecost_ledger.records import Coverage, Modality, Outcome

pytestmark = ROOM


async def test_a_conversation_costs_what_the_providers_bill(stage: Stage) -> None:
    """A tool call, an interruption in mid-sentence, an answer to it, and a hang-up.

    The agent idles in the room for 20 s more; the ledger does not wait for it.
    """
    row_count = begin(stage, BOOKING)
    costs_usd: list[str] = []
    async with stage.call("conversation") as caller:
        caller.on_cost = costs_usd.append
        await BOOKING.play(caller)

    assert [line.text for line in caller.lines if not line.by_agent] == BOOKING.said
    answers = [line.text for line in caller.lines if line.by_agent]
    table, menu, farewell = (reply.text for reply in BOOKING.replies)
    assert answers[1] == table
    # Only what was spoken until the interruption.
    assert menu.startswith(answers[2])
    assert len(answers[2]) < len(menu) / 2
    assert answers[3] == farewell
    # The room was told what it costs, and more as it went on.
    assert float(costs_usd[-1]) > float(costs_usd[0])

    (call,) = await stage.sidecar.settled("conversation", timeout_s=15)
    assert call.summary.reason is EndReason.COMPLETED
    assert call.summary.coverage is Coverage.COMPLETE
    assert call.gaps == []
    modalities = [leg.modality for leg in call.legs]
    assert modalities.count(Modality.STT) == 1
    assert modalities.count(Modality.LLM) == 4  # the tool call and its answer are two requests
    assert modalities.count(Modality.TTS) == 4
    interrupted = {leg.modality for leg in call.legs if leg.outcome is Outcome.INTERRUPTED}
    assert interrupted == {Modality.LLM, Modality.TTS}
    await assert_equals_the_bill(stage, row_count, call)

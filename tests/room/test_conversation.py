"""The stage itself: without it proven, no room test proves anything."""

from __future__ import annotations

from examples.demo.conversations import BOOKING
from examples.demo.stage import Stage
from tests.room.marks import ROOM

pytestmark = ROOM


async def test_caller_and_agent_hear_each_other(stage: Stage) -> None:
    """A tool call, an interruption in mid-sentence, an answer to it, and a hang-up."""
    stage.providers.prepare(said=BOOKING.said, replies=BOOKING.replies)
    row_count = len(stage.providers.bill.rows)

    async with stage.call("conversation") as caller:
        await BOOKING.play(caller)

    assert [line.text for line in caller.lines if not line.by_agent] == BOOKING.said
    answers = [line.text for line in caller.lines if line.by_agent]
    table, menu, farewell = (reply.text for reply in BOOKING.replies)
    assert answers[1] == table
    # Only what was spoken until the interruption.
    assert menu.startswith(answers[2])
    assert len(answers[2]) < len(menu) / 2
    assert answers[3] == farewell

    bill = await stage.providers.billed_since(row_count)
    services = [billed.attributes.modality.value for billed in bill]
    assert services.count("stt") == 1
    assert services.count("llm") == 4  # the tool call and its answer are two requests
    assert services.count("tts") == 4

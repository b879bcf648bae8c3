"""How callers and workers leave in a real room; `tests/plugin/endings.py` names all endings."""

from __future__ import annotations

import asyncio

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


async def test_a_silence_in_which_the_socket_and_the_connections_cost(stage: Stage) -> None:
    """After the greeting nobody says a word: what grows with time grows in the ledger at once."""
    row_count = begin(stage, STORY)
    async with stage.call("silence") as caller:
        await caller.hears_end()
        first = await connected_ms(stage, at_least={})
        later = await connected_ms(stage, at_least=first)
        assert set(later) == {Modality.STT, Modality.PARTICIPANT}
        await caller.hang_up()

    (call,) = await stage.sidecar.settled("silence", timeout_s=15)
    assert {leg.model for leg in call.legs if leg.modality is Modality.PARTICIPANT} == {
        "standard",
        "self-hosted-agent",
    }
    await assert_equals_the_bill(stage, row_count, call)


async def connected_ms(stage: Stage, *, at_least: dict[Modality, int]) -> dict[Modality, int]:
    """How long the open connections of the silent call have been open, by kind; once all of them
    have been so for longer than before."""
    async with asyncio.timeout(40):  # LiveKit's rooms are listed every ten seconds
        while True:
            found = dict[Modality, int]()
            for call in await stage.sidecar.calls_in("silence"):
                for leg in (await stage.sidecar.call(call.call_id)).legs:
                    if leg.outcome is None and leg.usage.get("connected_ms"):
                        ms = found.get(leg.modality, 0) + leg.usage["connected_ms"]
                        found[leg.modality] = ms
            if {Modality.STT, Modality.PARTICIPANT} <= found.keys() and all(
                found[modality] > ms for modality, ms in at_least.items()
            ):
                return found
            await asyncio.sleep(0.2)

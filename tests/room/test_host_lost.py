"""A host that vanishes with its spool, while the sidecar is away: LiveKit has the last word."""

from __future__ import annotations

import asyncio
import shutil

import pytest
from livekit import api

from examples.demo.conversations import KILLED
from examples.demo.stage import Stage
from tests.room.bills import begin
from tests.room.marks import ROOM
from voicecost_ledger.checkpoints import Checkpoint
from voicecost_ledger.records import Coverage, Modality, Outcome
from voicecost_ledger.sealing import ATTRIBUTE_PREFIX, CheckpointSeal

pytestmark = [*ROOM, pytest.mark.slow]  # the ledger waits 60 s for records that never come

STORY = KILLED


async def checkpoint_of(stage: Stage, room_name: str) -> Checkpoint | None:
    """What the agent has left with LiveKit so far."""
    livekit = stage.livekit
    assert livekit is not None
    seal = CheckpointSeal(livekit.api_key, livekit.api_secret)
    async with livekit.api() as client:
        request = api.ListParticipantsRequest(room=room_name)
        listed = await client.room.list_participants(request)
    for each in listed.participants:
        for name, sealed in each.attributes.items():
            if name.startswith(ATTRIBUTE_PREFIX):
                job_id = each.identity.removeprefix("agent-")
                return seal.open(sealed, room_name=room_name, job_id=job_id)
    return None


def characters_in(checkpoint: Checkpoint | None) -> int:
    totals = checkpoint.totals if checkpoint is not None else []
    speech = [each.usage for each in totals if each.attributes.modality is Modality.TTS]
    return sum(usage["characters"] for usage in speech)


async def test_a_lost_hosts_call_is_settled_from_its_checkpoint(stage: Stage) -> None:
    """No record of the call ever reached the ledger, and the disk that held them is gone."""
    row_count = begin(stage, STORY)
    stage.sidecar.kill()
    try:
        async with stage.call("host-lost") as caller:
            await STORY.play(caller)
            await caller.hears_end()
            billed = sum(
                row.units["characters"]
                for row in stage.providers.bill.rows[row_count:]
                if row.service == "tts"
            )
            checkpoint = None
            async with asyncio.timeout(30):
                while characters_in(checkpoint) < billed:
                    checkpoint = await checkpoint_of(stage, "host-lost")
                    await asyncio.sleep(0.2)
            stage.kill_agent("host-lost")
            shutil.rmtree(stage.sidecar.env["VOICECOST_SPOOL_DIR"])
    finally:
        await stage.sidecar.start()

    (call,) = await stage.sidecar.settled("host-lost", timeout_s=120)

    assert checkpoint is not None
    assert characters_in(checkpoint) == billed
    assert call.summary.coverage is Coverage.PARTIAL
    assert "host_lost" in {gap.reason for gap in call.gaps}
    assert {leg.outcome for leg in call.legs} == {Outcome.LOST}
    assert {(leg.modality, leg.model): leg.usage for leg in call.legs} == {
        (each.attributes.modality, each.attributes.model): each.usage for each in checkpoint.totals
    }
    assert call.summary.unpriced_leg_count == 0

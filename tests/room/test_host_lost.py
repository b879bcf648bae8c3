"""A host that vanishes with its spool, while the sidecar is away: LiveKit has the last word."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterable

import pytest
from livekit import api

from examples.demo.conversations import KILLED
from examples.demo.stage import Stage
from livekit.plugins.voicecost._checkpoint import INTERVAL_S, SEND_MAX_S
from tests.room.bills import begin, requests
from tests.room.marks import ROOM
from tests.simulators.bill import BillRow
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


def used(checkpoint: Checkpoint | None, modality: Modality, unit: str) -> int:
    totals = checkpoint.totals if checkpoint is not None else []
    return sum(each.usage[unit] for each in totals if each.attributes.modality is modality)


def billed(rows: Iterable[BillRow], modality: Modality, unit: str) -> int:
    return sum(row.units[unit] for row in rows if row.service == modality.value)


async def lost_in_mid_sentence(stage: Stage) -> Checkpoint:
    """Kill an agent while it speaks; returns what it had left with LiveKit by then."""
    async with stage.call("lost-speaking") as caller:
        await caller.hears_start()
        stage.sidecar.kill()
        await STORY.play(caller)
        stage.kill_agent("lost-speaking")
        killed_at_unix_ms = time.time_ns() // 1_000_000
        checkpoint = await checkpoint_of(stage, "lost-speaking")  # LiveKit has not noticed yet
    assert checkpoint is not None
    assert killed_at_unix_ms - checkpoint.at_unix_ms <= (INTERVAL_S + SEND_MAX_S) * 1000
    return checkpoint


async def lost_when_all_was_said(stage: Stage, row_count: int) -> Checkpoint:
    """Kill an agent when its checkpoint has all of the speech; returns that."""
    async with stage.call("lost-silent") as caller:
        await STORY.play(caller)
        await caller.hears_end()
        characters = billed(stage.providers.bill.rows[row_count:], Modality.TTS, "characters")
        checkpoint = None
        async with asyncio.timeout(30):
            while used(checkpoint, Modality.TTS, "characters") < characters:
                checkpoint = await checkpoint_of(stage, "lost-silent")
                await asyncio.sleep(0.2)
        stage.kill_agent("lost-silent")
    assert checkpoint is not None
    assert used(checkpoint, Modality.TTS, "characters") == characters
    return checkpoint


async def test_lost_hosts_are_settled_from_their_last_checkpoints(stage: Stage) -> None:
    """The disk with the records is gone, too. Of one the ledger has the beginning, in case that a
    sidecar was there for it, of the other nothing.
    """
    begins_at = begin(stage, STORY, STORY)
    try:
        left_speaking = await lost_in_mid_sentence(stage)
        silent_begins_at = len(stage.providers.bill.rows)
        left_silent = await lost_when_all_was_said(stage, silent_begins_at)
        shutil.rmtree(stage.sidecar.env["VOICECOST_SPOOL_DIR"])
    finally:
        await stage.sidecar.start()

    (speaking,) = await stage.sidecar.settled("lost-speaking", timeout_s=120)
    (silent,) = await stage.sidecar.settled("lost-silent", timeout_s=120)

    for call in (speaking, silent):
        assert call.summary.coverage is Coverage.PARTIAL
        assert "host_lost" in {gap.reason for gap in call.gaps}
        assert call.summary.unpriced_leg_count == 0
    assert {leg.outcome for leg in requests(silent)} == {Outcome.LOST}
    assert {(leg.modality, leg.model): leg.usage for leg in requests(silent)} == {
        (each.attributes.modality, each.attributes.model): each.usage for each in left_silent.totals
    }
    # All up to the checkpoint, once; what was used after it nobody knows any more.
    for modality, unit in ((Modality.TTS, "characters"), (Modality.STT, "audio_ms")):
        bill = billed(stage.providers.bill.rows[begins_at:silent_begins_at], modality, unit)
        ledger = sum(leg.usage[unit] for leg in speaking.legs if leg.modality is modality)
        assert 0 < used(left_speaking, modality, unit) <= ledger <= bill

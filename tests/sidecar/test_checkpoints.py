"""A host that vanished with its spool: what LiveKit still knows of the call's cost is in the books.

The webhooks are a real sequence of an agent that was killed; only the attribute is put in.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest

from tests.sidecar.running import NOVA, RunningSidecar, recorded, running_sidecar
from tests.sidecar.simulated_livekit import API_KEY, API_SECRET
from voicecost_ledger.checkpoints import Checkpoint, CheckpointTotal
from voicecost_ledger.records import Environment, MeterOpen
from voicecost_ledger.sealing import ATTRIBUTE_PREFIX, CheckpointSeal

KILLED = "agent_job_sigkill"


def killed(attributes: dict[str, str]) -> list[dict[str, Any]]:
    """The sequence, with these attributes on the agent when it has left."""
    events = recorded(KILLED)
    for event in events:
        participant = event.get("participant", {})
        if event["event"] == "participant_left" and participant.get("kind") == "AGENT":
            participant["attributes"] = participant.get("attributes", {}) | attributes
    return events


def place() -> tuple[str, str, str]:
    """Room name, room SID and job id of the sequence."""
    (left,) = [
        event
        for event in recorded(KILLED)
        if event["event"] == "participant_left" and event["participant"].get("kind") == "AGENT"
    ]
    room = left["room"]
    return room["name"], room["sid"], left["participant"]["identity"].removeprefix("agent-")


def sealed(seal: CheckpointSeal, *, meter_id: str = "MT_lost", audio_ms: int = 60_000) -> str:
    """A checkpoint of one minute of Deepgram's nova-3, $0.0048."""
    room_name, room_sid, job_id = place()
    now = time.time_ns() // 1_000_000
    opened = MeterOpen(
        meter_id, 1, now, project="shop", environment=Environment.JOB,
        livekit_url="ws://127.0.0.1:9", room_name=room_name, room_sid=room_sid, job_id=job_id,
    )  # fmt: skip
    usage = {"audio_ms": audio_ms, "connected_ms": audio_ms}
    checkpoint = Checkpoint(opened, 40, now, [CheckpointTotal(NOVA, usage)])
    return seal.seal(checkpoint, room_name=room_name, job_id=job_id)


OURS = CheckpointSeal(API_KEY, API_SECRET)


def deliver(sidecar: RunningSidecar, attributes: dict[str, str]) -> None:
    for event in killed(attributes):
        assert sidecar.webhook(event).status_code == 200


def counted(sidecar: RunningSidecar, what: str) -> float:
    text = sidecar.http.get("/v1/metrics").text
    (line,) = [
        each
        for each in text.splitlines()
        if each.startswith(f"voicecost_checkpoints_{what}_total ")
    ]
    return float(line.split()[1])


def test_the_cost_of_a_lost_host_is_in_the_ledger(tmp_path: Path) -> None:
    with running_sidecar(tmp_path) as sidecar:
        deliver(sidecar, {ATTRIBUTE_PREFIX + "a1b2c3d4": sealed(OURS)})

        (call,) = sidecar.get("/v1/calls")["calls"]
        assert (call["project"], call["room_name"]) == ("shop", KILLED)
        assert counted(sidecar, "opened") == 1


def test_a_checkpoint_delivered_twice_counts_once(tmp_path: Path) -> None:
    with running_sidecar(tmp_path) as sidecar:
        attributes = {ATTRIBUTE_PREFIX + "a1b2c3d4": sealed(OURS)}
        deliver(sidecar, attributes)
        once = sidecar.get("/v1/calls")
        deliver(sidecar, attributes)
        assert sidecar.get("/v1/calls") == once


def test_another_secrets_checkpoint_is_refused_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forged = sealed(CheckpointSeal(API_KEY, "not the secret"))
    with caplog.at_level(logging.WARNING), running_sidecar(tmp_path) as sidecar:
        deliver(sidecar, {ATTRIBUTE_PREFIX + "1": forged, ATTRIBUTE_PREFIX + "2": "rubbish"})
        assert counted(sidecar, "refused") == 2
        (call,) = sidecar.get("/v1/calls")["calls"]
    assert call["project"] != "shop"
    assert caplog.text.count("checkpoint was refused") == 1

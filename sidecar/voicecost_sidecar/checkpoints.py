"""Opens the checkpoints that agents leave with LiveKit, and hands them to the ledger (I4)."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec

from voicecost_ledger.events import CheckpointSeen
from voicecost_ledger.rooms import RoomParticipant
from voicecost_ledger.sealing import ATTRIBUTE_PREFIX, CheckpointSeal, SealError
from voicecost_sidecar.config import LiveKitConfig

logger = logging.getLogger(__name__)

METERS_MAX = 16
"""Checkpoints read of one agent: more sessions than any job has."""


class CheckpointCounts(msgspec.Struct):
    """What became of the checkpoints that were shown to us."""

    opened: int = 0
    refused: int = 0


def sealed_checkpoints(attributes: Mapping[str, str]) -> tuple[str, ...]:
    """The sealed checkpoints among a participant's attributes; all else stays unread."""
    sealed = [text for name, text in attributes.items() if name.startswith(ATTRIBUTE_PREFIX)]
    return tuple(sealed[:METERS_MAX])


class CheckpointReader:
    """Opens checkpoints of one LiveKit project.

    Args:
        livekit: Its key pair; agents seal with the same one.
    """

    def __init__(self, livekit: LiveKitConfig) -> None:
        self._seal = CheckpointSeal(livekit.api_key, livekit.api_secret)
        self.counts = CheckpointCounts()

    def read(self, room_name: str, participant: RoomParticipant | None) -> list[CheckpointSeen]:
        """The checkpoints of an agent in this room, one for each of its meters.

        One that does not open is counted, and said once: its records may still come.
        """
        if participant is None or participant.job_id is None:
            return []
        seen: list[CheckpointSeen] = []
        for sealed in participant.sealed_checkpoints:
            try:
                checkpoint = self._seal.open(sealed, room_name=room_name, job_id=participant.job_id)
            except SealError as error:
                self.counts.refused += 1
                if self.counts.refused == 1:
                    logger.warning(
                        "an agent's checkpoint was refused: %s. If its host is lost, so is what "
                        "it had not reported. Agents and sidecar need the same LiveKit API key.",
                        error,
                    )
                continue
            self.counts.opened += 1
            seen.append(CheckpointSeen(checkpoint=checkpoint))
        return seen

"""Leaves a meter's totals with LiveKit, for when its host vanishes with the spool (I4).

Sealed, in an attribute of the agent's own participant: LiveKit gives the last one back to the
sidecar in `participant_left`, also after SIGKILL. Only with a sidecar, in a room, and where the
process knows the LiveKit secret: nobody else could open it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
from livekit import rtc

from voicecost_ledger.checkpoints import Checkpoint, CheckpointTotal
from voicecost_ledger.records import MeterOpen

from . import _faults
from ._register import Kind

FIRST_S: Final = 1.0
INTERVAL_S: Final = 10.0
SEND_MAX_S: Final = 5.0


class Checkpoints:
    """Writes one meter's checkpoint: a second after it opened, then at most every ten, and at last.

    Everything here runs on the session's event loop but the sealing, which is handed to the
    uplink's thread: loading the cipher takes 30 ms, once.

    Args:
        kinds: What the meter's legs have used so far, by their attributes.
        opened: The meter's first record.
        last_seq: The number of the meter's last record.
        room: The room its job is connected to; None: not now.
        in_thread: Runs a function on the uplink's thread, soon.
    """

    def __init__(
        self,
        *,
        kinds: Callable[[], Iterable[Kind]],
        opened: MeterOpen,
        last_seq: Callable[[], int],
        room: Callable[[], rtc.Room | None],
        in_thread: Callable[[Callable[[], None]], None],
    ) -> None:
        self._kinds = kinds
        # What does not decide whose call it is only takes up room.
        self._opened = msgspec.structs.replace(opened, tags={}, versions={})
        self._last_seq = last_seq
        self._room = room
        self._in_thread = in_thread
        self._loop = asyncio.get_running_loop()
        self._written_seq = 0
        self._seal: Any = None  # a `CheckpointSeal`, made on the uplink's thread
        self._sending: asyncio.Task[bool] | None = None
        self._next: tuple[str, str] | None = None  # to be sent when that is done
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(FIRST_S, self._due)

    def close(self) -> None:
        """Write the last one now: LiveKit's room is left soon after the session has closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._write()

    def _due(self) -> None:
        delay_s = FIRST_S  # a job may take its time to connect
        with _faults.contained("checkpoint"):
            if self._room() is not None:
                delay_s = INTERVAL_S
        self._timer = self._loop.call_later(delay_s, self._due)
        self._write()

    def _write(self) -> None:
        with _faults.contained("checkpoint"):
            seq = self._last_seq()
            if seq == self._written_seq or self._room() is None:
                return
            self._written_seq = seq
            checkpoint = Checkpoint(
                self._opened, seq, time.time_ns() // 1_000_000, totals_of(self._kinds())
            )
            self._in_thread(lambda: self._seal_and_send(checkpoint))

    def _seal_and_send(self, checkpoint: Checkpoint) -> None:
        """On the uplink's thread."""
        with _faults.contained("checkpoint"):
            from voicecost_ledger.sealing import ATTRIBUTE_PREFIX, CheckpointSeal

            if self._seal is None:
                self._seal = CheckpointSeal(
                    os.environ["LIVEKIT_API_KEY"], os.environ["LIVEKIT_API_SECRET"]
                )
            sealed = self._seal.seal(
                checkpoint,
                room_name=self._opened.room_name or "",
                job_id=self._opened.job_id or "",
            )
            # A job's meters keep apart by the end of their ids, which are random.
            attribute = ATTRIBUTE_PREFIX + self._opened.meter_id[-8:]
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._send, attribute, sealed)

    def _send(self, attribute: str, sealed: str) -> None:
        with _faults.contained("checkpoint"):
            if self._sending is not None and not self._sending.done():
                self._next = (attribute, sealed)  # it may be the last one
                return
            room = self._room()
            if room is None:
                return
            self._sending = self._loop.create_task(
                _set_attribute(room.local_participant, attribute, sealed),
                name="voicecost_checkpoint",
            )
            self._sending.add_done_callback(self._sent)

    def _sent(self, sending: asyncio.Task[bool]) -> None:
        if sending.cancelled() or not sending.result():
            self._written_seq = 0  # again, also where nothing more is used meanwhile
        waiting, self._next = self._next, None
        if waiting is not None:
            self._send(*waiting)


def possible(opened: MeterOpen, *, sidecar: bool) -> bool:
    """Whether somebody could read a checkpoint of this meter, and we can seal one."""
    keys = os.environ.get("LIVEKIT_API_KEY") and os.environ.get("LIVEKIT_API_SECRET")
    return bool(sidecar and opened.room_name and opened.job_id and keys)


def totals_of(kinds: Iterable[Kind]) -> list[CheckpointTotal]:
    """One total for each kind of leg, the dearest first; what has no price comes before all."""
    dearest_first = sorted(
        kinds,
        key=lambda kind: (kind.unpriced_leg_count > 0, kind.amount_nano_usd),
        reverse=True,
    )
    return [CheckpointTotal(kind.attributes, kind.usage) for kind in dearest_first]


async def _set_attribute(participant: rtc.LocalParticipant, name: str, value: str) -> bool:
    """Whether LiveKit has it: a room may be going, a server may not answer."""
    with _faults.contained("checkpoint_send"):
        async with asyncio.timeout(SEND_MAX_S):
            await participant.set_attributes({name: value})
        return True
    return False

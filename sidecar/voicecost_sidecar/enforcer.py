"""Ends rooms that ran out of money, and makes sure that they are gone (I12).

Between the decision and DeleteRoom lies one ListRooms and nothing else: DeleteRoom works by name,
and the name may belong to another call by now (I9). Then the room is listed until it is gone.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import msgspec

from voicecost_ledger.events import EndRoom, RoomVerifiedGone
from voicecost_ledger.stores import StoreUnavailable
from voicecost_sidecar.hub import Hub
from voicecost_sidecar.livekit_rooms import LiveKitRooms, RoomServiceError
from voicecost_sidecar.poller import Poller

VERIFY_PAUSES_S: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)  # gone after 18 ms (median)
BACKOFF_FIRST_S: Final = 0.2
BACKOFF_MAX_S: Final = 10.0

logger = logging.getLogger(__name__)


class EnforcerCounts(msgspec.Struct):
    """What the enforcer did, for metrics."""

    ended: int = 0  # rooms deleted and verified gone
    stopped: int = 0  # the name belonged to another room by then: nothing was deleted
    failures: int = 0
    impossible: int = 0  # no LiveKit project is configured


class Enforcer:
    """Carries out `EndRoom`. One task per call; a repeated order joins the one under way.

    Args:
        rooms: The room service; None when no LiveKit project is configured.
        hub: Takes `RoomVerifiedGone`.
        poller: Is asked to look into a room that has a call's name but an unknown SID.
    """

    def __init__(self, rooms: LiveKitRooms | None, hub: Hub, poller: Poller | None) -> None:
        self._rooms = rooms
        self._hub = hub
        self._poller = poller
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}  # by call and room name
        self.counts = EnforcerCounts()

    def end_room(self, order: EndRoom) -> None:
        """Start to end a room. Returns at once; ticks repeat the order until it is carried out."""
        if self._rooms is None:
            self.counts.impossible += 1
            if self.counts.impossible == 1:
                logger.error(
                    "a call is over its budget, but no LiveKit project is configured to end it: "
                    "set `livekit` in voicecost.yaml"
                )
            return
        key = (order.call_id, order.room_name)
        if key in self._tasks:
            return
        task = asyncio.create_task(self._end(self._rooms, order), name=f"end {order.call_id}")
        self._tasks[key] = task
        task.add_done_callback(lambda _: self._tasks.pop(key, None))

    async def close(self) -> None:
        """Stop what is under way; the ledger orders it again at the next start."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _end(self, rooms: LiveKitRooms, order: EndRoom) -> None:
        delay_s = BACKOFF_FIRST_S
        while True:
            try:
                if await self._delete_and_verify(rooms, order):
                    # The name shows none of them any more, the earlier lives included.
                    for sid in order.room_sids:
                        await self._hub.submit(
                            RoomVerifiedGone(call_id=order.call_id, room_sid=sid)
                        )
                    self.counts.ended += 1
                return
            except (RoomServiceError, StoreUnavailable) as error:
                self.counts.failures += 1
                logger.warning(
                    "ending call %s failed (%s); trying again in %.1f s",
                    order.call_id,
                    getattr(error, "code", None) or getattr(error, "reason", ""),
                    delay_s,
                )
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, BACKOFF_MAX_S)

    async def _delete_and_verify(self, rooms: LiveKitRooms, order: EndRoom) -> bool:
        """True once no room of the order is listed; False when the name is somebody else's."""
        live = await rooms.list_rooms([order.room_name])
        if not live:
            return True
        sid = live[0].sid
        if sid not in order.room_sids:
            # Another call's room, or this call after a server restart: the listing that the
            # poller makes now decides which, and the ledger orders again what is to end.
            self.counts.stopped += 1
            if self._poller is not None:
                self._poller.poke(sid)
            return False
        await rooms.delete_room(order.room_name)
        for pause_s in VERIFY_PAUSES_S:
            live = await rooms.list_rooms([order.room_name])
            if sid not in {room.sid for room in live}:
                return True
            await asyncio.sleep(pause_s)
        raise RoomServiceError(
            "DeleteRoom", "still_listed", "the room is listed after its deletion"
        )

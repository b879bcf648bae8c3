"""Lists LiveKit's rooms, at start and for ever: no single webhook is ever needed (I9).

One ListRooms each ten seconds. ListParticipants only where the listing and what webhooks told
disagree: a room nobody announced, a head count that differs, a young room whose agent is unknown.
Agents are in no head count: a room that no webhook tells of is looked into once a minute.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

import msgspec

from voicecost_ledger.rooms import (
    ListedRoom,
    ParticipantKind,
    RoomEvent,
    RoomListing,
    RoomParticipant,
)
from voicecost_ledger.stores import StoreUnavailable
from voicecost_sidecar.checkpoints import CheckpointReader
from voicecost_sidecar.hub import Hub
from voicecost_sidecar.livekit_rooms import LiveKitRooms, LiveRoom, RoomServiceError

POLL_INTERVAL_S: Final = 10.0
BACKOFF_MAX_S: Final = 120.0
PARALLEL_LISTINGS: Final = 4  # ListParticipants in flight
AGENT_SEARCHES: Final = 6  # a room is searched for its agent during its first minute
LISTINGS_PER_LOOK: Final = 6  # of a room that no webhook tells of: once a minute

logger = logging.getLogger(__name__)


class PollerCounts(msgspec.Struct):
    """What the poller did, for metrics and health."""

    listings: int = 0
    participant_listings: int = 0
    failures: int = 0
    consecutive_failures: int = 0


class _Seen(msgspec.Struct):
    """What is known of a room without asking again."""

    people: set[str] = set()  # participant SIDs, agents left out
    has_agent: bool = False
    searches: int = 0
    told: bool = False  # whether webhooks of it arrive
    listings: int = 0  # since it was looked into


class Poller:
    """Submits a `RoomListing` of one LiveKit project again and again.

    Args:
        rooms: The room service.
        hub: Where listings go.
        livekit_project: The project's name in the ledger.
        checkpoints: Opens what agents have left in their attributes.
        interval_s: Between listings when all is well.
        clock_ms: Unix milliseconds.
    """

    def __init__(
        self,
        rooms: LiveKitRooms,
        hub: Hub,
        *,
        livekit_project: str,
        checkpoints: CheckpointReader,
        interval_s: float = POLL_INTERVAL_S,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._rooms = rooms
        self._hub = hub
        self._livekit_project = livekit_project
        self._checkpoints = checkpoints
        self._interval_s = interval_s
        self._clock_ms = clock_ms
        self._seen: dict[str, _Seen] = {}
        self._poked = asyncio.Event()
        self.counts = PollerCounts()

    def saw(self, event: RoomEvent) -> None:
        """A webhook was stored: what it told need not be asked."""
        if event.event == "room_finished":
            self._seen.pop(event.room_sid, None)
            return
        participant = event.participant
        if event.event == "room_started":
            self._seen.setdefault(event.room_sid, _Seen())
        seen = self._seen.get(event.room_sid)
        if seen is None:
            return
        seen.told = True
        if participant is None:
            return
        if event.event == "participant_joined":
            _note(seen, participant)
        elif event.event == "participant_left":
            seen.people.discard(participant.sid)

    def poke(self, room_sid: str) -> None:
        """Look into this room, and now: something about it is not understood."""
        self._seen.pop(room_sid, None)
        self._poked.set()

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            self._poked.clear()
            delay_s = self._interval_s
            try:
                await self.poll()
                self.counts.consecutive_failures = 0
            except (RoomServiceError, StoreUnavailable) as error:
                self.counts.failures += 1
                self.counts.consecutive_failures += 1
                delay_s = min(delay_s * 2**self.counts.consecutive_failures, BACKOFF_MAX_S)
                if self.counts.consecutive_failures == 1:
                    # The class and LiveKit's word only: its sentences may name a room.
                    reason = getattr(error, "code", None) or getattr(error, "reason", "")
                    logger.warning(
                        "listing LiveKit's rooms failed (%s %s); trying again with longer pauses",
                        type(error).__name__,
                        reason,
                    )
            try:
                async with asyncio.timeout(delay_s):
                    await self._poked.wait()
            except TimeoutError:
                pass

    async def poll(self) -> None:
        """List once and submit what was found.

        Raises:
            RoomServiceError: LiveKit refused, or did not answer.
            StoreUnavailable: The ledger could not commit the listing.
        """
        requested_at_unix_ms = self._clock_ms()
        live = await self._rooms.list_rooms()
        self.counts.listings += 1
        inside = asyncio.Semaphore(PARALLEL_LISTINGS)

        async def look(room: LiveRoom) -> ListedRoom:
            if not self._is_doubtful(room):
                return _listed(room)
            async with inside:
                return await self._look_into(room)

        listed = await asyncio.gather(*map(look, live))
        for room in listed:
            for participant in room.participants or ():
                for seen in self._checkpoints.read(room.name, participant):
                    await self._hub.submit(seen)
        await self._hub.submit(
            RoomListing(
                livekit_project=self._livekit_project,
                requested_at_unix_ms=requested_at_unix_ms,
                rooms=listed,
            )
        )
        there = {room.sid for room in live}
        self._seen = {sid: seen for sid, seen in self._seen.items() if sid in there}

    def _is_doubtful(self, room: LiveRoom) -> bool:
        seen = self._seen.get(room.sid)
        if seen is None or len(seen.people) != room.people_count:
            return True
        if not seen.has_agent and seen.searches < AGENT_SEARCHES:
            return True
        seen.listings += 1
        return not seen.told and seen.listings >= LISTINGS_PER_LOOK

    async def _look_into(self, room: LiveRoom) -> ListedRoom:
        self.counts.participant_listings += 1
        participants = await self._rooms.list_participants(room.name)
        # ListParticipants works by name: by now that may be another room's, and so the people.
        if room.sid not in {live.sid for live in await self._rooms.list_rooms([room.name])}:
            return _listed(room)
        before = self._seen.get(room.sid, _Seen())
        seen = self._seen[room.sid] = _Seen(searches=before.searches + 1, told=before.told)
        for participant in participants:
            _note(seen, participant)
        return _listed(room, participants)


def _listed(room: LiveRoom, participants: list[RoomParticipant] | None = None) -> ListedRoom:
    return ListedRoom(
        sid=room.sid,
        name=room.name,
        created_at_unix_ms=room.created_at_unix_ms,
        participants=participants,
    )


def _note(seen: _Seen, participant: RoomParticipant) -> None:
    if participant.kind is ParticipantKind.AGENT:
        seen.has_agent = True
    elif participant.kind is not ParticipantKind.EGRESS:
        seen.people.add(participant.sid)

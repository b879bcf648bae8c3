"""What goes into the authority's pure core and what comes out of it.

    event -> Books.receive(event, now) -> effects

Protocol messages and LiveKit's events are events as they are; the rest is defined here. Effects
are protocol messages for a connection, and `EndRoom` for the enforcer.
"""

from __future__ import annotations

import msgspec

from voicecost_ledger.checkpoints import Checkpoint
from voicecost_ledger.protocol import (
    Ack,
    Command,
    Grant,
    Hello,
    Records,
    Reject,
    Renew,
    Welcome,
    WrappedUp,
)
from voicecost_ledger.rooms import RoomEvent, RoomListing


class RoomVerifiedGone(msgspec.Struct, frozen=True, kw_only=True):
    """The enforcer deleted the room and a listing no longer shows it."""

    call_id: str
    room_sid: str


class CheckpointSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A meter's sealed checkpoint came back from LiveKit, and its seal was right."""

    checkpoint: Checkpoint


class Tick(msgspec.Struct, frozen=True, kw_only=True):
    """Time has passed: leases, grace periods, quarter hours, enforcement deadlines."""


class EndRoom(msgspec.Struct, frozen=True, kw_only=True):
    """Delete this room and verify that it is gone. Repeated by ticks until it is.

    DeleteRoom works by name: the enforcer reads the SID again first and stops when the name
    belongs to another SID by now (I9).
    """

    call_id: str
    livekit_project: str
    room_name: str
    room_sids: list[str]  # every SID known to belong to this call
    reason: str


Event = (
    Hello
    | Records
    | Renew
    | WrappedUp
    | RoomEvent
    | RoomListing
    | RoomVerifiedGone
    | CheckpointSeen
    | Tick
)
Reply = Welcome | Ack | Reject
"""For the connection the event came from."""
Effect = Reply | Grant | Command | EndRoom
"""Grant and Command go to whichever connection serves their meter."""

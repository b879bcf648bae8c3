"""What goes into the authority's pure core and what comes out of it.

    event -> Books.receive(event, now) -> effects
    order -> Books.order(order, now) -> answer

Protocol messages and LiveKit's events are events as they are; the rest is defined here. Effects
are protocol messages for a connection, and `EndRoom` for the enforcer. An order is an operator's,
and what it answers is for nobody else.
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


class Rerate(msgspec.Struct, frozen=True, kw_only=True):
    """Compare legs that started in a span with today's price book; `apply` posts the differences.

    A few legs at a time, so that agents need not wait: go on with `after` = `Rerated.next_after`.
    """

    from_unix_ms: int
    until_unix_ms: int
    provider: str | None = None  # as legs name it, in any case; None: all
    apply: bool = False
    by: str = ""
    reason: str = ""
    after: tuple[int, int] | None = None
    limit: int = 500


class RerateRow(msgspec.Struct, kw_only=True):
    """What a rerate finds of one model; the amounts are of the legs whose amount differs."""

    provider: str
    model: str
    modality: str
    leg_count: int = 0
    unpriced_leg_count: int = 0  # of these, those that had no price
    was_nano_usd: int = 0
    now_nano_usd: int = 0
    difference_nano_usd: int = 0
    kept_leg_count: int = 0  # today's book cannot price them: they keep the price they have
    still_unpriced_leg_count: int = 0


class Rerated(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a rerate; `next_after` None: it was the last."""

    rows: list[RerateRow]
    leg_count: int  # looked at
    next_after: tuple[int, int] | None


class Adjust(msgspec.Struct, frozen=True, kw_only=True):
    """Post a refund (below 0) or a charge to a call; the same id again does nothing.

    The amount is of what the call is billed. The cost moves by the same, but never below nothing.
    """

    adjustment_id: str
    call_id: str
    amount_nano_usd: int
    reason: str
    by: str


class Adjusted(msgspec.Struct, frozen=True, kw_only=True):
    """The adjustment is posted: what the call costs with it, and what it is billed."""

    call_id: str
    total_nano_usd: int
    billed_nano_usd: int
    repeated: bool  # it had been posted before


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """An order was not carried out, and why: `no_call`, `bad_adjustment`."""

    code: str
    message: str


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
Order = Rerate | Adjust
Answer = Rerated | Adjusted | Refused
Effect = Reply | Grant | Command | EndRoom
"""Grant and Command go to whichever connection serves their meter."""

"""What LiveKit says about rooms, in our words: one shape for webhooks and for listings."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class ParticipantKind(StrEnum):
    """LiveKit's participant kinds; STANDARD is proto3's zero value, so absent in its JSON."""

    STANDARD = "STANDARD"
    INGRESS = "INGRESS"
    EGRESS = "EGRESS"
    SIP = "SIP"
    AGENT = "AGENT"
    CONNECTOR = "CONNECTOR"
    BRIDGE = "BRIDGE"


class RoomParticipant(msgspec.Struct, frozen=True, kw_only=True):
    """A participant as a webhook or ListParticipants shows it. Keyed by `sid`, not identity."""

    sid: str
    identity: str
    kind: ParticipantKind = ParticipantKind.STANDARD
    joined_at_unix_ms: int | None = None
    disconnect_reason: str | None = None  # LiveKit's word, "CLIENT_INITIATED"; only on leaving
    job_id: str | None = None  # "AJ_..." of an agent, from its identity "agent-AJ_..."
    sealed_checkpoints: tuple[str, ...] = ()  # of its meters; opened at the edge, never stored


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """A participant's connection to a room of a call, as far as LiveKit told; who it is stays out.

    `left_told` False: that it is over was concluded, from a listing that no longer shows it or
    from the end of its room, some time after it left.
    """

    number: int  # of its leg: above `CONNECTION_NUMBER`, unique in the ledger
    livekit_project: str
    kind: ParticipantKind
    job_id: str | None
    joined_at_unix_ms: int
    heard_at_unix_ms: int | None  # when a listing last showed it; None: none has yet
    left_at_unix_ms: int | None
    left_told: bool


class RoomEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One verified webhook. `event_id` is LiveKit's, the same on each delivery."""

    event_id: str
    event: str  # "room_started", "participant_joined", "participant_left", "room_finished", ...
    livekit_project: str
    room_sid: str
    room_name: str
    created_at_unix_ms: int  # of the event; LiveKit gives whole seconds
    room_created_at_unix_ms: int | None = None
    participant: RoomParticipant | None = None

    def happened_at_unix_ms(self, now: int) -> int:
        """When it happened, by LiveKit's clock as far as that tells, however late it is heard."""
        if self.created_at_unix_ms <= 0:
            return now
        return min(max(now, self.created_at_unix_ms), self.created_at_unix_ms + 999)


class ListedRoom(msgspec.Struct, frozen=True, kw_only=True):
    """A live room. `participants` is None when only ListRooms was asked."""

    sid: str
    name: str
    created_at_unix_ms: int | None = None
    participants: list[RoomParticipant] | None = None


class RoomListing(msgspec.Struct, frozen=True, kw_only=True):
    """All live rooms of a LiveKit project at one moment: what is not in it is gone.

    `requested_at_unix_ms` is read before the request is sent: a call younger than it is not
    judged by this listing.
    """

    livekit_project: str
    requested_at_unix_ms: int
    rooms: list[ListedRoom]

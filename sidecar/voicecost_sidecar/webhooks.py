"""LiveKit's webhooks as room events. Verify a body (`auth`) before it comes here.

Only what the ledger needs is read: secrets (`room.turnPassword`), metadata and attributes, but for
sealed checkpoints, never leave the request. JSON is proto3's: int64 are strings, zero values are
absent.
"""

from __future__ import annotations

from typing import Final

import msgspec

from voicecost_ledger.rooms import ParticipantKind, RoomEvent, RoomParticipant
from voicecost_sidecar.checkpoints import sealed_checkpoints

AGENT_IDENTITY_PREFIX: Final = "agent-"


class WebhookError(ValueError):
    """A signed body that is no webhook."""


class _Room(msgspec.Struct, rename="camel"):
    sid: str = ""
    name: str = ""
    creation_time: int = 0
    creation_time_ms: int = 0


class _Participant(msgspec.Struct, rename="camel"):
    sid: str = ""
    identity: str = ""
    kind: str | int = ParticipantKind.STANDARD.value
    joined_at: int = 0
    joined_at_ms: int = 0
    disconnect_reason: str | int | None = None
    attributes: dict[str, str] = {}


class _Webhook(msgspec.Struct, rename="camel"):
    event: str
    id: str
    created_at: int = 0
    room: _Room | None = None
    participant: _Participant | None = None


# lax: proto3 writes int64 as strings
_decode = msgspec.json.Decoder(_Webhook, strict=False).decode


def parse_webhook(body: bytes, *, livekit_project: str) -> RoomEvent:
    """The event in a verified webhook body; one that belongs to no room has an empty room SID.

    Raises:
        WebhookError: The body is not a webhook's JSON.
    """
    try:
        webhook = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WebhookError(f"no LiveKit webhook: {error}") from None
    room = webhook.room or _Room()
    participant = None
    # Track events name a participant by sid and identity only: without its kind an agent would
    # pass for a caller.
    if webhook.participant is not None and webhook.event.startswith("participant_"):
        participant = _participant(webhook.participant)
    return RoomEvent(
        event_id=webhook.id,
        event=webhook.event,
        livekit_project=livekit_project,
        room_sid=room.sid,
        room_name=room.name,
        created_at_unix_ms=webhook.created_at * 1000,
        room_created_at_unix_ms=room.creation_time_ms or room.creation_time * 1000 or None,
        participant=participant,
    )


def _participant(seen: _Participant) -> RoomParticipant:
    kind = participant_kind(str(seen.kind))
    return RoomParticipant(
        sid=seen.sid,
        identity=seen.identity,
        kind=kind,
        joined_at_unix_ms=seen.joined_at_ms or seen.joined_at * 1000 or None,
        disconnect_reason=None if seen.disconnect_reason is None else str(seen.disconnect_reason),
        job_id=agent_job_id(kind, seen.identity),
        sealed_checkpoints=sealed_checkpoints(seen.attributes),
    )


def participant_kind(name: str) -> ParticipantKind:
    """LiveKit's name for a kind. An unknown one counts as a person: it keeps a call open."""
    try:
        return ParticipantKind(name)
    except ValueError:
        return ParticipantKind.STANDARD


def agent_job_id(kind: ParticipantKind, identity: str) -> str | None:
    """The job of an agent. Only LiveKit gives the kind; anybody can choose an identity."""
    if kind is not ParticipantKind.AGENT or not identity.startswith(AGENT_IDENTITY_PREFIX):
        return None
    return identity.removeprefix(AGENT_IDENTITY_PREFIX)

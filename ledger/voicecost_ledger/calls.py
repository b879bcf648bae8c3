"""A call's life: which rooms, jobs and meters are one call, when it ends, when it is settled (I9).

    open -> ended -> settled      (and back to open when the same call turns out to go on)

* A call ends when its last room is gone (webhook or listing); or when every meter has closed or
  been adopted and no STANDARD or SIP participant is connected; outside a room, when its meters
  have closed.
* It settles when every meter has closed or been adopted, at the latest `meter_grace_ms` after it
  ended.
* The same job is the same call: a server restart moves a live call to a new room SID. Where one of
  two rooms of a name has no job yet, they are one call if the earlier SID was never seen to
  close. A new SID with another job is another call and closes the first.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec

from voicecost_ledger.meters import Meter, MeterState
from voicecost_ledger.policy import Policy
from voicecost_ledger.records import Coverage, Environment, MeterOpen, OnBudget
from voicecost_ledger.rooms import (
    ListedRoom,
    ParticipantKind,
    RoomEvent,
    RoomListing,
    RoomParticipant,
)

if TYPE_CHECKING:
    from voicecost_ledger.stores import Session


class CallState(StrEnum):
    """Where a call is in its life."""

    OPEN = "open"
    ENDED = "ended"
    SETTLED = "settled"


class EndReason(StrEnum):
    """Why a call ended. UNKNOWN: neither a meter nor a webhook told."""

    COMPLETED = "completed"
    BUDGET = "budget"
    CRASHED = "crashed"
    UNKNOWN = "unknown"


class Ending(StrEnum):
    """How far the enforcement of a budget has come on a call."""

    NONE = "none"
    WRAPPING_UP = "wrapping_up"
    ENDING = "ending"  # the room is being deleted
    GONE = "gone"  # deleted, and verified by listing


class Call(msgspec.Struct, kw_only=True):
    """One call. Money of a call is the sum of its meters'."""

    call_id: str
    livekit_project: str | None
    project: str
    agent: str | None = None
    tenant: str | None = None
    tags: dict[str, str] = {}
    environment: Environment = Environment.JOB
    state: CallState = CallState.OPEN
    reason: EndReason | None = None
    opened_at_unix_ms: int
    ended_at_unix_ms: int | None = None
    settled_at_unix_ms: int | None = None
    amended: bool = False
    coverage: Coverage = Coverage.COMPLETE
    meter_count: int = 0
    limit_nano_usd: int | None = None
    warn_at_percent: int = 80
    on_budget: OnBudget = OnBudget.WRAP_UP
    ending: Ending = Ending.NONE
    ending_budget: str | None = None
    ending_deadline_unix_ms: int | None = None


class Room(msgspec.Struct, kw_only=True):
    """One life of a room name: a SID, and the call it belongs to."""

    sid: str
    name: str
    livekit_project: str
    call_id: str
    seen_at_unix_ms: int
    created_at_unix_ms: int | None = None  # by LiveKit's clock; None until LiveKit told
    heard: bool = False  # whether LiveKit told who is inside
    gone_at_unix_ms: int | None = None

    @property
    def began_at_unix_ms(self) -> int:
        """When this life of the name began, as well as it is known."""
        return self.created_at_unix_ms or self.seen_at_unix_ms


ROOM_METER_PREFIX: Final = "LK_"
"""Of the ledger's own meters: what LiveKit bills. No agent may speak for such an id."""
CONNECTION_MAX_MS: Final = 30 * 24 * 3_600_000
"""Nobody is believed to have been in a room for longer before the ledger first hears of him."""
CLOCKS_APART_MAX_MS: Final = 24 * 3_600_000
ROOM_LEAVES_LIST_MS: Final = 5_000
"""How long a room that is over may still be listed (LiveKit tells its end before it forgets it)."""
CALLER_KINDS = frozenset({ParticipantKind.STANDARD, ParticipantKind.SIP})


def call_id_from(identifier: str) -> str:
    """A call's id: the id it was first known by (room SID or meter), with our prefix."""
    return "CA_" + (identifier.partition("_")[2] or identifier)


def room_meter_id(call_id: str, number: int) -> str:
    """The id of a call's nth meter of the ledger's own."""
    suffix = call_id.partition("_")[2]
    return f"{ROOM_METER_PREFIX}{suffix}" + (f"_{number}" if number > 1 else "")


def open_call(
    tx: Session, identifier: str, now: int, *, livekit_project: str | None, project: str = "default"
) -> Call:
    """Begin a call, or find the one that already carries this id."""
    call = tx.call(call_id_from(identifier))
    if call is None:
        call = Call(
            call_id=call_id_from(identifier),
            livekit_project=livekit_project,
            project=project,
            opened_at_unix_ms=now,
        )
        tx.save_call(call)
    return call


def _see_room(
    tx: Session,
    sid: str,
    name: str,
    livekit_project: str,
    now: int,
    *,
    created_at_unix_ms: int | None = None,
) -> Room:
    """The room with this SID, assigned to a call when it is new."""
    room = tx.room(sid)
    if room is not None:
        if room.created_at_unix_ms is None and created_at_unix_ms is not None:
            room.created_at_unix_ms = created_at_unix_ms
            tx.save_room(room)
        return room
    began = created_at_unix_ms or now
    for earlier in tx.live_rooms_named(livekit_project, name):
        if earlier.began_at_unix_ms > began:
            continue  # a late word of a life that was over before this one began
        # Its end was never seen and this life has no job yet: for now, the same call going on.
        # A call that is being ended, or has ended, is never prolonged by a name alone.
        call = tx.call(earlier.call_id)
        if call is not None and call.state is CallState.OPEN and call.ending is Ending.NONE:
            break
    else:
        call = open_call(tx, sid, now, livekit_project=livekit_project)
    room = Room(
        sid=sid,
        name=name,
        livekit_project=livekit_project,
        call_id=call.call_id,
        seen_at_unix_ms=now,
        created_at_unix_ms=created_at_unix_ms,
    )
    tx.save_room(room)
    return room


def _reopen(tx: Session, call: Call) -> None:
    if call.state is CallState.OPEN:
        return
    if call.ending is Ending.GONE:
        call.ending = Ending.ENDING  # ended, and here again: it is ended again (I12)
    call.amended = call.amended or call.state is CallState.SETTLED
    call.state = CallState.OPEN
    call.reason = None
    call.ended_at_unix_ms = None
    call.settled_at_unix_ms = None
    tx.save_call(call)


def assign_job(tx: Session, room: Room, job_id: str, now: int) -> Room:
    """An agent job is in this room: decide whose call the room is, and move it there."""
    call = tx.call(room.call_id)
    assert call is not None
    theirs = next((m.call_id for m in tx.meters_of_job(job_id)), None)
    siblings = [other for other in tx.rooms_of(room.call_id) if other.sid != room.sid]
    if theirs is None:
        theirs = next((o.call_id for o in siblings if job_id in tx.jobs_in(o.sid)), None)
    if theirs is not None and theirs != room.call_id:
        # The job's call was thought over (or only its meter was known): this is it, going on.
        was = room.call_id
        room.call_id = theirs
        tx.save_room(room)
        if call.meter_count == 0 and not tx.rooms_of(was) and not tx.room_meters_of(was):
            tx.withdraw_call(was)
    elif (
        theirs is None
        and not tx.jobs_in(room.sid)
        and any(tx.jobs_in(other.sid) for other in siblings)
    ):
        # Another job in another life of the name: another call, and the first is over.
        call = open_call(tx, room.sid, now, livekit_project=room.livekit_project)
        room.call_id = call.call_id
        tx.save_room(room)
        for other in siblings:
            if other.began_at_unix_ms <= room.began_at_unix_ms:
                room_is_gone(tx, other, now)
    for other in tx.rooms_of(room.call_id):
        # A later life with this call's job: the earlier one is over, though nobody said so.
        if other.sid != room.sid and other.began_at_unix_ms <= room.began_at_unix_ms:
            room_is_gone(tx, other, now)
    call = tx.call(room.call_id)
    assert call is not None
    _reopen(tx, call)
    return room


def room_is_gone(tx: Session, room: Room, now: int) -> None:
    """Note that a life of a room is over, and everybody in it has left, though nobody said when."""
    if room.gone_at_unix_ms is None:
        room.gone_at_unix_ms = now
        tx.save_room(room)
        for participant in tx.connected_participants([room.sid]):
            tx.save_participant(participant, room_sid=room.sid, left_at_unix_ms=now, told=False)


def _heard(tx: Session, room: Room) -> None:
    if not room.heard:
        room.heard = True
        tx.save_room(room)


def _joined(tx: Session, room: Room, participant: RoomParticipant, now: int, *, told: bool) -> Room:
    if participant.job_id is not None:
        room = assign_job(tx, room, participant.job_id, now)
    participant = _believed(participant, now)
    tx.save_participant(participant, room_sid=room.sid, left_at_unix_ms=None, told=told)
    return room


def _believed(participant: RoomParticipant, now: int) -> RoomParticipant:
    """With a time of joining: LiveKit's, which counts with its other times, unless it is absurd."""
    joined = participant.joined_at_unix_ms
    if joined is not None and -CLOCKS_APART_MAX_MS <= now - joined <= CONNECTION_MAX_MS:
        return participant
    return msgspec.structs.replace(participant, joined_at_unix_ms=now)


def receive_room_event(tx: Session, event: RoomEvent, now: int) -> set[str]:
    """Apply one webhook; late and repeated ones change nothing. Returns the calls to look at."""
    if tx.seen_event(event.event_id, now) or not event.room_sid:
        return set()
    room = _see_room(
        tx,
        event.room_sid,
        event.room_name,
        event.livekit_project,
        now,
        created_at_unix_ms=event.room_created_at_unix_ms,
    )
    _heard(tx, room)
    before = room.call_id
    if event.event == "room_finished":
        room_is_gone(tx, room, now)
    elif event.participant is not None:
        if event.event == "participant_joined" and room.gone_at_unix_ms is None:
            room = _joined(tx, room, event.participant, now, told=True)
        elif event.event == "participant_left":
            who = _believed(event.participant, now)
            left_at_unix_ms = event.happened_at_unix_ms(now)
            tx.save_participant(who, room_sid=room.sid, left_at_unix_ms=left_at_unix_ms)
    return {before, room.call_id}


def receive_listing(tx: Session, listing: RoomListing, now: int) -> set[str]:
    """Repair what webhooks missed: rooms that are there, rooms and participants that are not."""
    touched: set[str] = set()
    for listed in listing.rooms:
        room = _see_room(
            tx,
            listed.sid,
            listed.name,
            listing.livekit_project,
            now,
            created_at_unix_ms=listed.created_at_unix_ms,
        )
        touched.add(room.call_id)
        gone = room.gone_at_unix_ms
        if gone is not None and gone + ROOM_LEAVES_LIST_MS < listing.requested_at_unix_ms:
            # We were told, or concluded, wrongly: it lives.
            room.gone_at_unix_ms = None
            tx.save_room(room)
            call = tx.call(room.call_id)
            if call is not None:
                _reopen(tx, call)
        if room.gone_at_unix_ms is None:
            if listed.participants is not None:
                _heard(tx, room)
                room = _repair_participants(tx, room, listed, listing.requested_at_unix_ms, now)
                touched.add(room.call_id)
            tx.hear_participants(room.sid, listing.requested_at_unix_ms)
    listed_sids = {listed.sid for listed in listing.rooms}
    for room in tx.live_rooms(listing.livekit_project):
        # Younger than the request: the listing may have been made before it was created.
        if room.sid not in listed_sids and room.seen_at_unix_ms < listing.requested_at_unix_ms:
            room_is_gone(tx, room, now)
            touched.add(room.call_id)
    return touched


def _repair_participants(
    tx: Session, room: Room, listed: ListedRoom, requested_at_unix_ms: int, now: int
) -> Room:
    present = listed.participants or []
    known = {p.sid: p for p in tx.connected_participants([room.sid])}
    for participant in present:
        # The listing may have been made before it left, as LiveKit has told since.
        if participant.sid not in known and not tx.has_left(participant.sid):
            room = _joined(tx, room, participant, now, told=False)
    present_sids = {participant.sid for participant in present}
    for participant in known.values():
        joined = participant.joined_at_unix_ms or 0
        if participant.sid not in present_sids and joined < requested_at_unix_ms:
            tx.save_participant(participant, room_sid=room.sid, left_at_unix_ms=now, told=False)
    return room


def call_for_meter(tx: Session, opened: MeterOpen, livekit_project: str | None, now: int) -> Call:
    """The call a new meter belongs to."""
    project = livekit_project or opened.livekit_url or ""
    call: Call | None = None
    if opened.room_sid:
        room = _see_room(tx, opened.room_sid, opened.room_name or "", project, now)
        if opened.job_id is not None:
            room = assign_job(tx, room, opened.job_id, now)
        call = tx.call(room.call_id)
    elif opened.job_id is not None:
        for other in tx.meters_of_job(opened.job_id):
            call = tx.call(other.call_id)
    if call is None:
        call = open_call(
            tx, opened.meter_id, now, livekit_project=project or None, project=opened.project
        )
    _reopen(tx, call)
    if call.meter_count == 0:
        call.project = opened.project
        call.agent = opened.agent
        call.tenant = opened.tenant
        call.tags = dict(opened.tags)
        call.environment = opened.environment
        call.on_budget = opened.on_budget
    limit = opened.budget_nano_usd
    if limit is not None and (call.limit_nano_usd is None or limit < call.limit_nano_usd):
        # Several meters, several limits: the strictest is the call's, with what it says of it.
        call.limit_nano_usd = limit
        call.on_budget = opened.on_budget
        call.warn_at_percent = opened.warn_at_percent
    call.meter_count += 1
    tx.save_call(call)
    return call


def is_over(tx: Session, call: Call, meters: list[Meter], now: int, policy: Policy) -> bool:
    """Whether nothing of the call goes on."""
    rooms = tx.rooms_of(call.call_id)
    live = [room for room in rooms if room.gone_at_unix_ms is None]
    if rooms and not live:
        return True
    if not meters:
        return not rooms  # thought a call of its own by the name of its room, which is another's
    if any(meter.state is MeterState.OPEN for meter in meters):
        return False
    heard = max(meter.last_heard_at_unix_ms for meter in meters)
    waiting = policy.livekit_project is not None and now - heard < policy.meter_grace_ms
    if waiting and not all(room.heard for room in live):
        return False  # LiveKit has not said yet who is inside: a caller may be
    people = tx.connected_participants([room.sid for room in live])
    return not any(participant.kind in CALLER_KINDS for participant in people)


def _reason(call: Call, meters: list[Meter], *, told: bool) -> EndReason:
    if call.ending in (Ending.ENDING, Ending.GONE):
        return EndReason.BUDGET
    if any(meter.state in (MeterState.ADOPTED, MeterState.LOST) for meter in meters):
        return EndReason.CRASHED
    return EndReason.COMPLETED if meters or told else EndReason.UNKNOWN


def conclude(tx: Session, call: Call, now: int, policy: Policy, *, told: bool = True) -> bool:
    """Move a call on in its life where the rules say so.

    `told` is False when only a listing that no longer shows the room speaks for its end.

    Returns:
        True when it is time to settle: every meter is done (the caller closes legs that grace ran
        out on first).
    """
    meters = tx.meters_of(call.call_id)
    if call.state is CallState.OPEN and is_over(tx, call, meters, now, policy):
        call.state = CallState.ENDED
        call.ended_at_unix_ms = now
        call.reason = _reason(call, meters, told=told)
        tx.save_call(call)
    if call.state is not CallState.ENDED:
        return False
    return all(meter.state is not MeterState.OPEN for meter in meters)


def settle_call(tx: Session, call: Call, now: int) -> None:
    """Close the books of a call: nothing more is expected of it."""
    call.state = CallState.SETTLED
    call.settled_at_unix_ms = now
    told = call.reason is not EndReason.UNKNOWN
    call.reason = _reason(call, tx.meters_of(call.call_id), told=told)
    tx.save_call(call)


def rooms_to_end(tx: Session, call: Call) -> list[Room]:
    """The live rooms that surely belong to a call: where jobs are known, those with a job of it.

    A later life of the name that has no job yet may turn out to be another call's.
    """
    live = [room for room in tx.rooms_of(call.call_id) if room.gone_at_unix_ms is None]
    with_job = [room for room in live if tx.jobs_in(room.sid)]
    return with_job or live

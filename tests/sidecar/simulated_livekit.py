"""LiveKit's room service as the sidecar sees it: Twirp over HTTP, real protobuf, real tokens.

For what the real server cannot be made to do: to refuse, to lag, to give a name to another room
between two requests. It holds rooms, counts requests and knows nothing of our code. The real
server is in `test_real_livekit.py` and `tests/room`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

import jwt
from aiohttp import web
from livekit import api
from livekit.protocol.models import ParticipantInfo

from voicecost_sidecar.config import LiveKitConfig

API_KEY = "APItest"
API_SECRET = "a secret of forty characters and no less"


class SimulatedLiveKit:
    """Rooms by name. Change them from the test; a request sees them as they are by then."""

    def __init__(self) -> None:
        self.url = ""
        self.rooms: dict[str, api.Room] = {}
        self.people: dict[str, list[ParticipantInfo]] = {}
        self.requests: Counter[str] = Counter()
        self.deleted_sids: list[str] = []
        self.refusals: list[tuple[str, int, str]] = []  # (method, HTTP status, code), used up
        self.rejoin_as: dict[str, str] = {}  # name -> SID of the room that comes after a deletion
        # name -> SID and people of the room that takes the name before the next ListParticipants
        self.taken_over: dict[str, tuple[str, list[ParticipantInfo]]] = {}
        self.outlives_deletions = 0  # so often a deletion is answered, but not yet carried out

    @property
    def config(self) -> LiveKitConfig:
        """How a sidecar reaches it."""
        return LiveKitConfig(url=self.url, api_key=API_KEY, api_secret=API_SECRET)

    def open_room(self, name: str, sid: str, *people: ParticipantInfo) -> None:
        headcount = sum(p.kind != ParticipantInfo.Kind.AGENT for p in people)
        self.rooms[name] = api.Room(sid=sid, name=name, num_participants=headcount)
        self.people[name] = list(people)

    def close_room(self, name: str) -> None:
        self.rooms.pop(name, None)
        self.people.pop(name, None)

    def _list_rooms(self, request: api.ListRoomsRequest) -> api.ListRoomsResponse:
        wanted = set(request.names)
        rooms = [r for r in self.rooms.values() if not wanted or r.name in wanted]
        return api.ListRoomsResponse(rooms=rooms)

    def _list_participants(
        self, request: api.ListParticipantsRequest
    ) -> api.ListParticipantsResponse:
        if request.room in self.taken_over:
            sid, people = self.taken_over.pop(request.room)
            self.open_room(request.room, sid, *people)
        return api.ListParticipantsResponse(participants=self.people.get(request.room, []))

    def _delete_room(self, request: api.DeleteRoomRequest) -> api.DeleteRoomResponse | None:
        room = self.rooms.get(request.room)
        if room is None:
            return None
        if self.outlives_deletions:
            self.outlives_deletions -= 1
            return api.DeleteRoomResponse()
        self.deleted_sids.append(room.sid)
        self.close_room(request.room)
        if request.room in self.rejoin_as:
            self.open_room(request.room, self.rejoin_as.pop(request.room))
        return api.DeleteRoomResponse()

    async def handle(self, request: web.Request) -> web.Response:
        method = request.match_info["method"]
        self.requests[method] += 1
        token = request.headers["Authorization"].removeprefix("Bearer ")
        jwt.decode(token, API_SECRET, algorithms=["HS256"], issuer=API_KEY)
        for refusal in self.refusals:
            if refusal[0] == method:
                self.refusals.remove(refusal)
                return web.json_response({"code": refusal[2], "msg": ""}, status=refusal[1])
        body = await request.read()
        match method:
            case "ListRooms":
                answer = self._list_rooms(api.ListRoomsRequest.FromString(body))
            case "ListParticipants":
                answer = self._list_participants(api.ListParticipantsRequest.FromString(body))
            case "DeleteRoom":
                answer = self._delete_room(api.DeleteRoomRequest.FromString(body))
            case _:
                raise AssertionError(f"nobody should call {method}")
        if answer is None:
            return web.json_response({"code": "not_found", "msg": "no such room"}, status=404)
        return web.Response(body=answer.SerializeToString(), content_type="application/protobuf")


def person(identity: str, sid: str, *, joined_at_ms: int = 1) -> ParticipantInfo:
    """A caller."""
    return ParticipantInfo(
        sid=sid,
        identity=identity,
        joined_at_ms=joined_at_ms,
        state=ParticipantInfo.State.ACTIVE,
    )


def agent(job_id: str, sid: str, *, joined_at_ms: int = 1) -> ParticipantInfo:
    """The participant of an agent's job."""
    info = person(f"agent-{job_id}", sid, joined_at_ms=joined_at_ms)
    info.kind = ParticipantInfo.Kind.AGENT
    return info


@contextmanager
def simulated_livekit() -> Generator[SimulatedLiveKit]:
    """Serve on loopback, in a thread with its own loop."""
    livekit = SimulatedLiveKit()
    started, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        application = web.Application()
        application.router.add_post("/twirp/livekit.RoomService/{method}", livekit.handle)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        livekit.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield livekit
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()

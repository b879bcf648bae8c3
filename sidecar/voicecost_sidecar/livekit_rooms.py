"""LiveKit's room service in our words: list, look inside, delete."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Final, Self

import aiohttp
import msgspec
from livekit import api
from livekit.api.room_service import RoomService
from livekit.protocol.models import ParticipantInfo

from voicecost_ledger.rooms import RoomParticipant
from voicecost_sidecar.checkpoints import sealed_checkpoints
from voicecost_sidecar.config import LiveKitConfig
from voicecost_sidecar.webhooks import agent_job_id, participant_kind

REQUEST_TIMEOUT_S: Final = 10.0


class RoomServiceError(Exception):
    """LiveKit's room service did not do what was asked.

    Attributes:
        code: LiveKit's word, `resource_exhausted`, `unauthenticated`; `unavailable` when nobody
            answered.
    """

    def __init__(self, method: str, code: str, message: str) -> None:
        self.code = code
        super().__init__(f"LiveKit {method} failed: {code} ({message})")


class LiveRoom(msgspec.Struct, frozen=True, kw_only=True):
    """A room of ListRooms.

    `people_count` is LiveKit's: agents and recorders are left out, and it may be seconds late.
    """

    sid: str
    name: str
    created_at_unix_ms: int | None
    people_count: int


class LiveKitRooms:
    """A client of one LiveKit project; use it as an async context manager."""

    def __init__(self, config: LiveKitConfig) -> None:
        self._config = config
        self._client: api.LiveKitAPI | None = None

    async def __aenter__(self) -> Self:
        self._client = api.LiveKitAPI(
            self._config.url,
            self._config.api_key,
            self._config.api_secret,
            timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def list_rooms(self, names: Sequence[str] = ()) -> list[LiveRoom]:
        """The live rooms, all of them or those with these names.

        Raises:
            RoomServiceError: LiveKit refused, or did not answer.
        """
        request = api.ListRoomsRequest(names=names)
        async with _translated("ListRooms"):
            response = await self._service.list_rooms(request)
        return [
            LiveRoom(
                sid=room.sid,
                name=room.name,
                created_at_unix_ms=room.creation_time_ms or room.creation_time * 1000 or None,
                people_count=room.num_participants,
            )
            for room in response.rooms
        ]

    async def list_participants(self, room_name: str) -> list[RoomParticipant]:
        """Who is connected to a room; nobody when there is no such room.

        Raises:
            RoomServiceError: LiveKit refused, or did not answer.
        """
        async with _translated("ListParticipants"):
            response = await self._service.list_participants(
                api.ListParticipantsRequest(room=room_name)
            )
        return [_participant(info) for info in response.participants if _is_connected(info)]

    async def delete_room(self, room_name: str) -> None:
        """Delete whatever room has this name by now; none is as good.

        Raises:
            RoomServiceError: LiveKit refused, or did not answer.
        """
        try:
            async with _translated("DeleteRoom"):
                await self._service.delete_room(api.DeleteRoomRequest(room=room_name))
        except RoomServiceError as error:
            if error.code != api.ServerErrorCode.NOT_FOUND:
                raise

    @property
    def _service(self) -> RoomService:
        if self._client is None:
            raise RuntimeError("LiveKitRooms is used outside its `async with`")
        return self._client.room


@asynccontextmanager
async def _translated(method: str) -> AsyncGenerator[None]:
    try:
        yield
    except api.ServerError as error:
        raise RoomServiceError(method, error.code, error.message) from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise RoomServiceError(method, "unavailable", type(error).__name__) from error


def _is_connected(info: ParticipantInfo) -> bool:
    return info.state != ParticipantInfo.State.DISCONNECTED


def _participant(info: ParticipantInfo) -> RoomParticipant:
    kind = participant_kind(ParticipantInfo.Kind.Name(info.kind))
    return RoomParticipant(
        sid=info.sid,
        identity=info.identity,
        kind=kind,
        joined_at_unix_ms=info.joined_at_ms or info.joined_at * 1000 or None,
        job_id=agent_job_id(kind, info.identity),
        sealed_checkpoints=sealed_checkpoints(info.attributes),
    )

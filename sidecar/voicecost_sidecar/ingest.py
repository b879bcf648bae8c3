"""Where agents report: the WebSocket `/v1/ingest`, and the same messages at `POST /v1/records`."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from functools import partial
from typing import Any, Final

import msgspec
from litestar import Request, Response, WebSocket, post, websocket
from litestar.exceptions import ClientException, WebSocketDisconnect

from voicecost_ledger.events import Reply
from voicecost_ledger.protocol import (
    Ack,
    ClientMessage,
    Command,
    Grant,
    Reject,
    ServerMessage,
    decode_client_message,
    encode_message,
)
from voicecost_ledger.stores import StoreUnavailable
from voicecost_sidecar.hub import Hub, meters_of
from voicecost_sidecar.parts import PartsDependency

MESSAGE_BYTES_MAX: Final = 1024 * 1024
IN_FLIGHT_BYTES_MAX: Final = 1024 * 1024  # of one socket; then its TCP window fills up
MESSAGE_OVERHEAD_BYTES: Final = 4096  # what even the smallest message costs on its way
UNSENT_MAX: Final = 4096  # a client that does not read is let go
MSGPACK: Final = "application/msgpack"
JSON: Final = "application/json"
RETRY_AFTER_S: Final = "2"

logger = logging.getLogger(__name__)

_decode_msgpack = msgspec.msgpack.Decoder(list[ClientMessage]).decode
_decode_json = msgspec.json.Decoder(list[ClientMessage]).decode
# msgspec lets the last two through as they are: text that is no UTF-8, and nesting without end.
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def _refusal(error: BaseException, message: ClientMessage) -> Reject:
    """What a submitter is told when nothing of its message was committed."""
    if isinstance(error, StoreUnavailable):
        text = f"not stored ({error.reason}): keep it and send it again"
    else:
        # A fault of ours. The class alone: an exception's text may hold what a caller said.
        logger.error("an ingest message failed: %s", type(error).__name__)
        text = "not stored, the sidecar has a fault: keep it and send it again"
    meter_ids = meters_of(message)
    return Reject(
        code="unavailable", message=text, meter_id=meter_ids[0] if len(meter_ids) == 1 else None
    )


class InFlight:
    """Bytes on their way into the ledger, bounded. For one that enters and any that leave.

    Args:
        bytes_max: How many; what is larger by itself goes alone.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._left = asyncio.Event()

    async def enter(self, size_bytes: int) -> None:
        """Wait until there is room, and take it."""
        while self._bytes and self._bytes + size_bytes > self._bytes_max:
            self._left.clear()
            await self._left.wait()
        self._bytes += size_bytes

    def leave(self, size_bytes: int) -> None:
        """Give room back."""
        self._bytes -= size_bytes
        self._left.set()


class SocketConnection:
    """What waits to be sent to one agent process. Belongs to the event loop."""

    def __init__(self) -> None:
        self._unsent: deque[ServerMessage] = deque()
        self._news = asyncio.Event()
        self.overflown = asyncio.Event()

    def send(self, message: Reply | Grant | Command) -> None:
        """Queue a message; acknowledgements in a row become one, they are cumulative."""
        unsent = self._unsent
        if isinstance(message, Ack) and unsent and isinstance(last := unsent[-1], Ack):
            unsent[-1] = Ack(
                committed=last.committed | message.committed,
                replicated=last.replicated | message.replicated,
            )
        elif len(unsent) >= UNSENT_MAX:
            self.overflown.set()
        else:
            unsent.append(message)
        self._news.set()

    async def next(self) -> ServerMessage:
        """The oldest message, as soon as there is one."""
        while not self._unsent:
            self._news.clear()
            await self._news.wait()
        return self._unsent.popleft()


@websocket("/v1/ingest", opt={"auth": "agent"})
async def ingest(socket: WebSocket[Any, Any, Any], parts: PartsDependency) -> None:
    """Serve one agent process until it goes; that closes none of its meters."""
    await socket.accept()
    hub = parts.hub
    connection = SocketConnection()
    hub.add(connection)
    ways_to_end: list[asyncio.Task[Any]] = [
        asyncio.create_task(_receive(socket, connection, hub)),
        asyncio.create_task(_send(socket, connection)),
        asyncio.create_task(connection.overflown.wait()),
    ]
    try:
        await asyncio.wait(ways_to_end, return_when=asyncio.FIRST_COMPLETED)
    finally:
        hub.drop(connection)
        for task in ways_to_end:
            task.cancel()
        await asyncio.gather(*ways_to_end, return_exceptions=True)
    if connection.overflown.is_set():
        await socket.close(code=1013, reason="messages are not read")


async def _receive(
    socket: WebSocket[Any, Any, Any], connection: SocketConnection, hub: Hub
) -> None:
    in_flight = InFlight(IN_FLIGHT_BYTES_MAX)

    def committed(
        message: ClientMessage, size_bytes: int, answer: asyncio.Future[list[Reply]]
    ) -> None:
        in_flight.leave(size_bytes)
        if answer.cancelled():
            return
        error = answer.exception()
        for reply in [_refusal(error, message)] if error else answer.result():
            connection.send(reply)

    while True:
        try:
            data = await socket.receive_bytes()
        except WebSocketDisconnect:
            return
        size_bytes = len(data) + MESSAGE_OVERHEAD_BYTES
        await in_flight.enter(size_bytes)
        try:
            message = decode_client_message(data)
        except UNREADABLE as error:
            in_flight.leave(size_bytes)
            connection.send(Reject(code="malformed", message=f"not understood: {error}"))
            continue
        answer = hub.submit(message, connection=connection)
        answer.add_done_callback(partial(committed, message, size_bytes))


async def _send(socket: WebSocket[Any, Any, Any], connection: SocketConnection) -> None:
    while True:
        await socket.send_bytes(encode_message(await connection.next()))


@post("/v1/records", opt={"auth": "agent"}, status_code=200)
async def post_records(request: Request[Any, Any, Any], parts: PartsDependency) -> Response[bytes]:
    """Take a list of client messages; answer with what a socket would have been sent.

    MessagePack or, with `Content-Type: application/json`, JSON, and the answer in kind. 503 means
    that not everything was stored: send all of it again, what was stored counts once.
    """
    as_json = request.content_type[0] == JSON
    try:
        messages = (_decode_json if as_json else _decode_msgpack)(await request.body())
    except UNREADABLE as error:
        raise ClientException(
            f"not understood: {error}; expected a list of client messages"
        ) from None
    mine = {meter_id for message in messages for meter_id in meters_of(message)}
    told: list[ServerMessage] = []

    def tell(message: Grant | Command) -> None:
        if message.meter_id in mine:
            told.append(message)

    answers = await asyncio.gather(
        *(parts.hub.submit(message, on_unserved=tell) for message in messages),
        return_exceptions=True,
    )
    stored = True
    for message, answer in zip(messages, answers, strict=True):
        if isinstance(answer, BaseException):
            stored = False
            told.append(_refusal(answer, message))
        else:
            told.extend(answer)
    return Response(
        content=msgspec.json.encode(told) if as_json else msgspec.msgpack.encode(told),
        status_code=200 if stored else 503,
        media_type=JSON if as_json else MSGPACK,
        headers={} if stored else {"Retry-After": RETRY_AFTER_S},
    )

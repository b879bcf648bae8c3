"""Connections of an attempt: opened, closed, what they receive, and wires that are not aiohttp's.

Time-billed providers bill from the handshake to the close, so both are seen here. Beside aiohttp
there are the `websockets` library, gRPC and OpenAI's transcriptions: they take long to load, so
each is observed once somebody has loaded it, at the start of the next attempt that may use it.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any, Final, cast

import aiohttp

from . import _faults
from ._wire import observer
from ._wire_audio import BytesLike


class ConnectionObserver:
    """An attempt that wants to see its connections. Only cancellation may come out of it."""

    def connection_opened(self, connection: object) -> None:
        """The handshake is done."""

    def connection_closed(self, connection: object) -> None:
        """It is being closed, or was found closed."""

    def text_received(self, connection: object, payload: str) -> None:
        """A text message arrived; the plugin reads it next."""

    def request_sending(self, connection: object, request: Any) -> None:
        """A gRPC message is about to be sent; raises CancelledError to keep it from that."""

    def requests_ended(self) -> None:
        """A gRPC call has sent all it had to send, and waits for the rest of the answer."""

    def transcription_received(self, transcription: Any) -> None:
        """An OpenAI-compatible transcription of a recording arrived."""


class _Late:
    """Libraries that are observed once they are loaded."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.observing = False
        self.undos: dict[str, Callable[[], None]] = {}


_late = _Late()


def observe_connections() -> Callable[[], None]:
    """Observe aiohttp's WebSockets now and other libraries when they are there; gives the undo."""
    undo_aiohttp = _observe_aiohttp()
    _late.observing = True

    def undo() -> None:
        undo_aiohttp()
        with _late.lock:
            _late.observing = False
            while _late.undos:
                _late.undos.popitem()[1]()

    return undo


def observe_loaded_libraries() -> None:
    """Observe what was loaded since; cheap where there is nothing to do."""
    if not _late.observing or len(_late.undos) == len(_LIBRARIES):
        return
    for name, observe in _LIBRARIES.items():
        if name in sys.modules and name not in _late.undos:
            with _late.lock:
                if _late.observing and name not in _late.undos:
                    try:
                        _late.undos[name] = observe(sys.modules[name])
                    except Exception as error:  # a version that is laid out in another way
                        _late.undos[name] = _nothing
                        _faults.count("observe_library", error)


def _nothing() -> None:
    """Undoes what could not be done."""


def _seen_by() -> ConnectionObserver | None:
    seen_by = observer()
    return seen_by if isinstance(seen_by, ConnectionObserver) else None


def _tell_opened(connection: object) -> None:
    seen_by = _seen_by()
    if seen_by is not None:
        with _faults.contained("wire_opened"):
            seen_by.connection_opened(connection)


def _tell_closed(connection: object) -> None:
    seen_by = _seen_by()
    if seen_by is not None:
        with _faults.contained("wire_closed"):
            seen_by.connection_closed(connection)


_CLOSED: Final = frozenset(
    {
        aiohttp.WSMsgType.CLOSE,
        aiohttp.WSMsgType.CLOSING,
        aiohttp.WSMsgType.CLOSED,
        aiohttp.WSMsgType.ERROR,
    }
)


def _observe_aiohttp() -> Callable[[], None]:
    client = aiohttp.ClientWebSocketResponse
    init, close, receive = client.__init__, client.close, client.receive

    @functools.wraps(init)
    def observed_init(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)  # made at the end of the handshake
        _tell_opened(self)

    @functools.wraps(close)
    async def observed_close(self: Any, *args: Any, **kwargs: Any) -> Any:
        _tell_closed(self)
        return await close(self, *args, **kwargs)

    @functools.wraps(receive)
    async def observed_receive(self: Any, *args: Any, **kwargs: Any) -> Any:
        message: Any = await receive(self, *args, **kwargs)
        if message.type in _CLOSED:
            _tell_closed(self)
        elif message.type is aiohttp.WSMsgType.TEXT:
            seen_by = _seen_by()
            if seen_by is not None:
                with _faults.contained("wire_received"):
                    seen_by.text_received(self, message.data)
        return message

    client.__init__ = observed_init
    client.close = observed_close
    client.receive = observed_receive

    def undo() -> None:
        client.__init__ = init
        client.close = close
        client.receive = receive

    return undo


def _observe_websockets(module: Any) -> Callable[[], None]:
    """The `websockets` library's client, which has no hook of its own for a sent message."""
    client: Any = module.ClientConnection
    names = ("handshake", "send", "close", "connection_lost")
    own: dict[str, Any] = {name: vars(client)[name] for name in names if name in vars(client)}
    handshake, send, close = client.handshake, client.send, client.close
    connection_lost = client.connection_lost

    @functools.wraps(handshake)
    async def observed_handshake(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = await handshake(self, *args, **kwargs)
        _tell_opened(self)
        return result

    @functools.wraps(send)
    async def observed_send(self: Any, message: Any, *args: Any, **kwargs: Any) -> Any:
        seen_by = observer()
        if seen_by is not None:
            with _faults.contained("wire_bytes"):
                if isinstance(message, str):
                    seen_by.text_sending(self, message)
                elif isinstance(message, (bytes, bytearray, memoryview)):
                    seen_by.bytes_sending(self, cast("BytesLike", message))
        return await send(self, message, *args, **kwargs)

    @functools.wraps(close)
    async def observed_close(self: Any, *args: Any, **kwargs: Any) -> Any:
        _tell_closed(self)
        return await close(self, *args, **kwargs)

    @functools.wraps(connection_lost)
    def observed_connection_lost(self: Any, *args: Any) -> None:
        _tell_closed(self)  # called in the context that made the connection
        connection_lost(self, *args)

    client.handshake, client.send, client.close = observed_handshake, observed_send, observed_close
    client.connection_lost = observed_connection_lost

    def undo() -> None:
        for name in names:
            if name in own:
                setattr(client, name, own[name])
            else:  # inherited
                delattr(client, name)

    return undo


class _ObservedRequests:
    """A gRPC call's requests, each shown to the observer when the call takes it to send it."""

    __slots__ = ("_observer", "_requests", "_taken")

    def __init__(self, requests: Any, seen_by: ConnectionObserver) -> None:
        self._requests = aiter(requests)
        self._observer = seen_by
        self._taken = 0

    def __aiter__(self) -> _ObservedRequests:
        return self

    async def __anext__(self) -> Any:
        if self._taken == 1:  # it asks for the second once it has written the first
            with _faults.contained("wire_opened"):
                self._observer.connection_opened(self)
        try:
            request = await anext(self._requests)
        except StopAsyncIteration:
            with _faults.contained("wire_request"):
                self._observer.requests_ended()
            raise
        self._taken += 1
        with _faults.contained("wire_request"):
            self._observer.request_sending(self, request)
        return request


def _observe_grpc(module: Any) -> Callable[[], None]:
    """Calls that stream both ways, as every gRPC recogniser's do."""
    callable_class: Any = module.StreamStreamMultiCallable
    call = callable_class.__call__

    @functools.wraps(call)
    def observed_call(self: Any, request_iterator: Any = None, *args: Any, **kwargs: Any) -> Any:
        seen_by = _seen_by()
        if seen_by is not None and hasattr(request_iterator, "__aiter__"):
            with _faults.contained("wire_call"):
                request_iterator = _ObservedRequests(request_iterator, seen_by)
        return call(self, request_iterator, *args, **kwargs)

    callable_class.__call__ = observed_call

    def undo() -> None:
        callable_class.__call__ = call

    return undo


def could_not_write(error: BaseException | None) -> bool:
    """Whether a gRPC call failed because its newest message could not be written any more.

    The provider had ended the call meanwhile; gRPC then keeps the provider's own reason to itself.
    """
    for _ in range(4):  # the plugin wraps Google's error, which wraps gRPC's
        if error is None:
            return False
        details = getattr(error, "details", None)
        if callable(details) and details() == "Internal error from Core":
            return True
        error = error.__cause__
    return False


def _observe_transcriptions(module: Any) -> Callable[[], None]:
    """OpenAI-compatible transcriptions of recordings, which report tokens."""
    transcriptions: Any = module.AsyncTranscriptions
    create = transcriptions.create

    @functools.wraps(create)
    async def observed_create(self: Any, *args: Any, **kwargs: Any) -> Any:
        transcription = await create(self, *args, **kwargs)
        seen_by = _seen_by()
        if seen_by is not None:
            with _faults.contained("wire_transcription"):
                seen_by.transcription_received(transcription)
        return transcription

    transcriptions.create = observed_create

    def undo() -> None:
        transcriptions.create = create

    return undo


TRANSCRIPTIONS: Final = "openai.resources.audio.transcriptions"

# By the module that holds the class: once it is loaded, the class is there.
_LIBRARIES: Final[dict[str, Callable[[Any], Callable[[], None]]]] = {
    "websockets.asyncio.client": _observe_websockets,
    "grpc.aio._channel": _observe_grpc,
    TRANSCRIPTIONS: _observe_transcriptions,
}

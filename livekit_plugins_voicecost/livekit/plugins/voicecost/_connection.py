"""How this process reaches its authority: one interface, here over a WebSocket to the sidecar."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit, urlunsplit

import msgspec

from voicecost_ledger.events import EndRoom
from voicecost_ledger.protocol import (
    ClientMessage,
    ServerMessage,
    decode_server_message,
    encode_message,
)

from . import _faults

if TYPE_CHECKING:
    from aiohttp import ClientWebSocketResponse

TOKEN_AUDIENCE: Final = "voicecost"
TOKEN_LIFE_S: Final = 300
CONNECT_TIMEOUT_S: Final = 10.0
SEND_TIMEOUT_S: Final = 20.0
HEARTBEAT_S: Final = 10.0  # a peer that vanished is noticed within twice this
MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024


class AuthorityUnreachableError(Exception):
    """No connection to the authority now; the text says why and never holds a secret."""


class Channel(Protocol):
    """One connection to the authority."""

    async def send(self, message: ClientMessage) -> None:
        """Hand over one message; raises when the connection is gone."""
        ...

    def messages(self) -> AsyncIterator[ServerMessage | EndRoom]:
        """What comes back, until the connection is gone. EndRoom only from an embedded ledger."""
        ...


class Authority(Protocol):
    """Where records go: the sidecar, or the ledger inside this process."""

    @property
    def place(self) -> str:
        """For a log line: where the ledger is."""
        ...

    def connect(self) -> AbstractAsyncContextManager[Channel]:
        """Open a connection; raises `AuthorityUnreachableError` when there is none to be had."""
        ...

    async def close(self) -> None:
        """The process ends."""
        ...


def ingest_url(url: str) -> str:
    """The WebSocket address of a sidecar's ingest.

    Args:
        url: The sidecar's address: http, https, ws or wss, with or without a path.

    Raises:
        ValueError: It would send usage in the clear beyond this machine, or is no address.
    """
    parts = urlsplit(url)
    schemes = {"http": "ws", "ws": "ws", "https": "wss", "wss": "wss"}
    scheme = schemes.get(parts.scheme)
    if scheme is None or not parts.hostname:
        raise ValueError(
            f"VOICECOST_URL={public_address(url)!r} is no sidecar's address: expected for example "
            '"https://costs.example.com" or "http://127.0.0.1:8787"'
        )
    if scheme == "ws" and not _is_loopback(parts.hostname):
        raise ValueError(
            f"VOICECOST_URL={public_address(url)!r} would send costs and a token unencrypted: use "
            "https:// (TLS in front of the sidecar); plain http:// is for this machine only"
        )
    return urlunsplit((scheme, parts.netloc, parts.path.rstrip("/") + "/v1/ingest", "", ""))


def public_address(url: str) -> str:
    """`url` as it may be logged: without user, password, path and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def authorization(process_id: str) -> dict[str, str]:
    """The header that proves who reports: `VOICECOST_TOKEN`, else a JWT of the LiveKit key.

    The JWT opens no room: it has neither a `video` nor a `sip` claim, its audience is ours, and
    it lives five minutes.
    """
    token = os.environ.get("VOICECOST_TOKEN")
    if not token:
        key, secret = os.environ.get("LIVEKIT_API_KEY"), os.environ.get("LIVEKIT_API_SECRET")
        if not key or not secret:
            return {}
        import jwt  # livekit-api brings it; only here, it costs 30 ms

        now_s = int(time.time())
        claims = {
            "iss": key,
            "sub": process_id,
            "aud": TOKEN_AUDIENCE,
            "iat": now_s,
            "exp": now_s + TOKEN_LIFE_S,
        }
        token = jwt.encode(claims, secret, algorithm="HS256")
    return {"Authorization": f"Bearer {token}"}


class SidecarAuthority:
    """A sidecar at `url`; see `ingest_url` for what is refused."""

    def __init__(self, url: str, process_id: str) -> None:
        """Check the address; nothing is opened yet."""
        self._url = ingest_url(url)
        self._process_id = process_id
        # A proxy is for the way out, not for this machine.
        self._use_proxy = not _is_loopback(urlsplit(url).hostname or "")

    @property
    def place(self) -> str:
        """The sidecar's address without path or credentials."""
        return public_address(self._url)

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[Channel, None]:
        """One WebSocket."""
        import aiohttp  # livekit-agents has imported it; this module must not

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout, trust_env=self._use_proxy) as session:
            try:
                socket = await asyncio.wait_for(
                    session.ws_connect(
                        self._url,
                        headers=authorization(self._process_id),
                        heartbeat=HEARTBEAT_S,
                        max_msg_size=MESSAGE_BYTES_MAX,
                    ),
                    CONNECT_TIMEOUT_S,
                )
            except aiohttp.WSServerHandshakeError as error:
                if error.status in (401, 403):
                    raise AuthorityUnreachableError(
                        f"it refused our credentials (HTTP {error.status}): set VOICECOST_TOKEN to "
                        "the sidecar's token, or give both the same LIVEKIT_API_KEY and _SECRET"
                    ) from None
                raise AuthorityUnreachableError(f"HTTP {error.status} at /v1/ingest") from None
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise AuthorityUnreachableError(type(error).__name__) from None
            async with socket:
                yield _SocketChannel(socket)

    async def close(self) -> None:
        """Nothing is kept between connections."""


class _SocketChannel:
    def __init__(self, socket: ClientWebSocketResponse[Any]) -> None:
        self._socket = socket

    async def send(self, message: ClientMessage) -> None:
        await asyncio.wait_for(self._socket.send_bytes(encode_message(message)), SEND_TIMEOUT_S)

    async def messages(self) -> AsyncIterator[ServerMessage | EndRoom]:
        async for frame in self._socket:
            if not isinstance(frame.data, bytes):
                continue
            try:
                message = decode_server_message(frame.data)
            except msgspec.DecodeError as error:
                # A newer sidecar says something new: what we understand goes on.
                with _faults.contained("server_message"):
                    raise error
                continue
            yield message

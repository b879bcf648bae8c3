"""What simulated streaming recognisers over a WebSocket have in common; each adds its messages.

A row of the bill is one connection: `audio_ms` of audio received, silence included, and
`connected_ms` beside the units, from the handshake to the session's end. Which of the two is
charged is the provider's rule: see the module of each.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from aiohttp import WSMsgType, web

from .bill import Bill, BillRow, Ending
from .hearing import Heard, Hearing
from .script import Fault, Faults
from .server import Simulator


@dataclass(slots=True, kw_only=True)
class ListenOptions:
    """What a client asked for when it connected."""

    model: str
    sample_rate: int
    language: str = "en"
    encoding: str = "pcm_s16le"
    channel_count: int = 1

    @property
    def bytes_per_sample(self) -> int:
        """Of one channel, as the encoding says."""
        return 1 if self.encoding.endswith(("mulaw", "alaw")) else 2


class Refused(Exception):
    """The handshake is answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Died(Exception):
    """A scripted fault broke the connection."""


class ListenSimulator(Simulator):
    """A provider that recognises speech over a WebSocket.

    Args:
        transcripts: What the caller's stretches of speech mean, in order, over all connections.
        bill: Where to keep the bill; its own by default.
        pause_ms: Shortest silence that ends a stretch of speech.
        speech_rms_min: Loudness of speech, root mean square of 16-bit samples.
    """

    provider: str
    path: str
    connection_class: type[ListenConnection]

    def __init__(
        self,
        *,
        transcripts: Iterable[str] = (),
        bill: Bill | None = None,
        pause_ms: int = 300,
        speech_rms_min: int = 300,
    ) -> None:
        super().__init__()
        self.bill = bill or Bill()
        self.transcripts = deque(transcripts)
        self.pause_ms = pause_ms
        self.speech_rms_min = speech_rms_min
        self.faults = Faults()

    def add_routes(self, app: web.Application) -> None:
        """Add the API's routes to `app`."""
        app.router.add_get(self.path, self.handle)

    def options(self, request: web.Request) -> ListenOptions:
        """What the handshake asks for.

        Raises:
            Refused: The provider does not take it.
        """
        raise NotImplementedError

    def refusal(self, status: int, message: str) -> web.Response:
        """An error as the provider writes it."""
        return web.json_response({"error": message}, status=status)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one connection."""
        try:
            options = self.options(request)
        except Refused as refused:
            return self.refusal(refused.status, refused.message)
        except (KeyError, ValueError) as error:
            return self.refusal(400, f"cannot read the query: {error!r}")
        fault = self.faults.take()
        row = self.bill.open(
            provider=self.provider,
            service="stt",
            model=options.model,
            request_id=str(uuid.uuid4()),
            units={"audio_ms": 0},
            attributes={"language": options.language, "channels": options.channel_count},
        )
        if fault is not None and fault.status is not None:
            self.bill.close(row, "refused")
            return self.refusal(fault.status, "The simulated provider was told to refuse this.")
        websocket = web.WebSocketResponse(max_msg_size=0)
        await websocket.prepare(request)
        opened_ns = time.monotonic_ns()
        connection = self.connection_class(self, request, websocket, options, row, fault)
        ended: Ending = "cancelled"
        try:
            ended = await connection.serve()
        except Died:
            ended = "died"
        finally:
            row.connected_ms = (time.monotonic_ns() - opened_ns) // 1_000_000
            self.bill.close(row, ended)
        return websocket


class ListenConnection:
    """One WebSocket: counts its audio, finds the speech in it, says what it means."""

    idle_ms_max: int | None = None
    """How long the provider waits for a message; None: as long as the client likes."""

    def __init__(
        self,
        simulator: ListenSimulator,
        request: web.Request,
        websocket: web.WebSocketResponse,
        options: ListenOptions,
        row: BillRow,
        fault: Fault | None,
    ) -> None:
        self.simulator = simulator
        self.request = request
        self.websocket = websocket
        self.options = options
        self.row = row
        self.fault = fault
        self._byte_count = 0
        self._hearing: Hearing | None = None

    # What a provider's connection says

    async def greet(self) -> None:
        """The connection is open."""

    async def tell(self, heard: Heard) -> None:
        """Something was heard."""
        raise NotImplementedError

    async def on_binary(self, data: bytes) -> Ending | None:
        """A binary message arrived; gives how the session ended, if it did."""
        await self.take_audio(data)
        return None

    async def on_text(self, data: str) -> Ending | None:
        """A text message arrived."""
        raise NotImplementedError

    async def on_idle(self) -> Ending:
        """Nothing came for `idle_ms_max`."""
        await self.websocket.close()
        return "timed_out"

    # The rest is the same for all

    async def serve(self) -> Ending:
        """Serve until either side leaves; tells how it ended."""
        await self.greet()
        while True:
            idle_s = None if self.idle_ms_max is None else self.idle_ms_max / 1000
            try:
                async with asyncio.timeout(idle_s):
                    message = await self.websocket.receive()
            except TimeoutError:
                return await self.on_idle()
            if message.type is WSMsgType.BINARY:
                ended = await self.on_binary(message.data)
            elif message.type is WSMsgType.TEXT:
                ended = await self.on_text(message.data)
            else:
                return "cancelled"
            if ended is not None:
                return ended

    async def take_audio(self, audio: bytes) -> None:
        """Bill more audio, and say what is heard in it."""
        options = self.options
        self._byte_count += len(audio)
        samples = self._byte_count // (options.bytes_per_sample * options.channel_count)
        self.row.units["audio_ms"] = samples * 1000 // options.sample_rate
        if self.fault is not None:
            if self.fault.silent:
                return
            if self.row.units["audio_ms"] >= (self.fault.dies_after or 0):
                assert self.request.transport is not None
                self.request.transport.abort()
                raise Died
        if options.bytes_per_sample != 2:
            return  # counted, but not understood
        if self._hearing is None:
            self._hearing = Hearing(
                self.simulator.transcripts,
                sample_rate=options.sample_rate,
                channel_count=options.channel_count,
                pause_ms=self.simulator.pause_ms,
                speech_rms_min=self.simulator.speech_rms_min,
            )
        for heard in self._hearing.hear(audio):
            await self.tell(heard)

    async def finish_speech(self) -> None:
        """The client says that nothing more comes, or that this turn is over."""
        heard = self._hearing.finish() if self._hearing is not None else None
        if heard is not None:
            await self.tell(heard)

    async def send(self, **body: Any) -> None:
        """Send one JSON message; a client that has gone is noticed by the next receive."""
        with contextlib.suppress(ConnectionError):
            await self.websocket.send_str(json.dumps(body))

"""Simulates OpenAI's Realtime API over WebSocket and keeps OpenAI's bill.

Wire: https://platform.openai.com/docs/api-reference/realtime-client-events and `-server-events`
(the general-availability names: `response.output_audio.delta`, `conversation.item.added`).

It hears no words: sound above a loudness is speech, each stretch of it "means" the next transcript
of the script. Replies are spoken by a hum, so many milliseconds a character.

Billing rules (https://developers.openai.com/api/docs/guides/realtime-costs)
- A response costs all input and output tokens of its `usage`; see `openai_realtime_conversation`.
- A cancelled response is billed what it had generated: its `response.done` reports the usage
  (https://platform.openai.com/docs/api-reference/realtime-server-events/response/done).
- A response whose connection is gone before `response.done`: undocumented. We assume the same,
  what was generated until then; `generated_ahead` holds what half a second more generates.
- A response that failed by itself is billed nothing. Connections and silence cost nothing.
- Input transcription is another model's and billed apart: a row of service `stt`, accepted when the
  audio was committed. Undocumented where the client leaves before it is done: billed in full.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence

from aiohttp import web

from .bill import Bill
from .openai_realtime_session import Session
from .script import Faults, Reply
from .server import Simulator


class OpenAIRealtimeSimulator(Simulator):
    """The Realtime API of OpenAI, and of hosts that speak its protocol.

    Args:
        replies: What to answer, first match wins; without one, a long answer.
        transcripts: What the stretches of speech mean, in order, over all connections.
        bill: Where to keep the bill; its own by default.
        first_token_delay_ms: From the request to the first token.
        token_delay_ms: From text token to text token; speech is generated with its words.
        character_ms: How long one character of a reply is spoken.
        transcription_delay_ms: How long a transcription takes.
        created_delay_ms: From `response.create` to `response.created`.
        done_delay_ms: From the end of a response to its `response.done`.

    Attributes:
        provider: Its name in the bill.
        faults: Of responses: `dies_after` output tokens the connection breaks, `silent` creates
            the response and generates nothing, `status` fails it.
        connection_faults: Of connections: `status` refuses one.
        asked: Set with the first `response.create`.
    """

    provider = "openai"

    def __init__(
        self,
        *,
        replies: Sequence[Reply] = (),
        transcripts: Iterable[str] = (),
        bill: Bill | None = None,
        first_token_delay_ms: int = 20,
        token_delay_ms: int = 4,
        character_ms: int = 60,
        transcription_delay_ms: int = 20,
        created_delay_ms: int = 0,
        done_delay_ms: int = 0,
        speech_rms_min: int = 300,
    ) -> None:
        super().__init__()
        self.replies = list(replies)
        self.transcripts = deque(transcripts)
        self.bill = bill or Bill()
        self.faults = Faults()
        self.connection_faults = Faults()
        self.first_token_delay_ms = first_token_delay_ms
        self.token_delay_ms = token_delay_ms
        self.character_ms = character_ms
        self.transcription_delay_ms = transcription_delay_ms
        self.created_delay_ms = created_delay_ms
        self.done_delay_ms = done_delay_ms
        self.speech_rms_min = speech_rms_min
        self.connections: list[Session] = []
        self.asked = asyncio.Event()

    @property
    def base_url(self) -> str:
        """For the plugin's `base_url`."""
        return f"{self.url}/v1"

    def add_routes(self, app: web.Application) -> None:
        """Add the API's route to `app`."""
        app.router.add_get("/v1/realtime", self._realtime)

    def drop_connections(self) -> None:
        """Break every open connection off, as a provider's crash does."""
        for connection in list(self.connections):
            connection.drop()

    async def _realtime(self, request: web.Request) -> web.StreamResponse:
        fault = self.connection_faults.take()
        if fault is not None:
            return web.json_response({"error": {"message": "told to"}}, status=fault.status or 500)
        websocket = web.WebSocketResponse(max_msg_size=0)
        await websocket.prepare(request)
        connection = Session(self, websocket, request)
        self.connections.append(connection)
        try:
            await connection.serve()
        finally:
            self.connections.remove(connection)
            connection.leave()
        return websocket

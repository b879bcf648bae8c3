"""Simulates Deepgram's turn-based recognition (Flux, `/v2/listen`); billed as `/v1/listen` is.

Wire: https://developers.deepgram.com/reference/speech-to-text/listen-flux (Connected, TurnInfo
with StartOfTurn, Update, EagerEndOfTurn, EndOfTurn, ConfigureSuccess; binary audio, Configure,
CloseStream).

Billing rule: the audio received, silence included, to the second without rounding to minutes
(https://deepgram.com/pricing): `audio_ms`.
"""

from __future__ import annotations

import json

from aiohttp import web

from .bill import Ending
from .hearing import Heard
from .listening import ListenConnection, ListenOptions, ListenSimulator, Refused


class _Connection(ListenConnection):
    """One connection."""

    _turn = 0
    _sequence = 0

    async def greet(self) -> None:
        """Tell the request's id."""
        await self.send(type="Connected", request_id=self.row.request_id, sequence_id=0)

    async def tell(self, heard: Heard) -> None:
        """A turn, as far as it is heard. One without words never was one."""
        match heard.kind:
            case "began":
                return
            case "partial":
                await self._turn_info("Update", heard)
            case "ended":
                if heard.words:
                    if self.request.query.get("eager_eot_threshold"):
                        await self._turn_info("EagerEndOfTurn", heard)
                    await self._turn_info("EndOfTurn", heard)
                    self._turn += 1
                    self._started = False

    _started = False

    async def _turn_info(self, event: str, heard: Heard) -> None:
        if not self._started:
            self._started = True
            await self._turn_info("StartOfTurn", heard)
        self._sequence += 1
        await self.send(
            type="TurnInfo",
            event=event,
            request_id=self.row.request_id,
            sequence_id=self._sequence,
            turn_index=self._turn,
            audio_window_start=heard.from_ms / 1000,
            audio_window_end=heard.until_ms / 1000,
            transcript=heard.text,
            words=[
                {"word": word, "confidence": 0.97, "start": from_ms / 1000, "end": until_ms / 1000}
                for word, from_ms, until_ms in heard.timed_words()
            ],
            end_of_turn_confidence=0.9 if event == "EndOfTurn" else 0.1,
        )

    async def on_text(self, data: str) -> Ending | None:
        """A control message."""
        match json.loads(data).get("type"):
            case "CloseStream":
                await self.finish_speech()
                await self.websocket.close()
                return "completed"
            case "Configure":
                await self.send(type="ConfigureSuccess", request_id=self.row.request_id)
            case _:
                pass
        return None


class DeepgramFluxSimulator(ListenSimulator):
    """Deepgram's `/v2/listen`."""

    provider = "deepgram"
    path = "/v2/listen"
    connection_class = _Connection

    @property
    def base_url(self) -> str:
        """For the STT's `base_url`."""
        return f"{self.url}/v2/listen"

    def options(self, request: web.Request) -> ListenOptions:
        """What the query asks for; a key is needed."""
        if request.headers.get("Authorization", "").partition(" ")[0].lower() not in (
            "token",
            "bearer",
        ):
            raise Refused(401, "Invalid credentials.")
        query = request.query
        return ListenOptions(
            model=query["model"],
            sample_rate=int(query["sample_rate"]),
            encoding=query.get("encoding", "linear16"),
        )

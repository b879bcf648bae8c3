"""What a call costs, told to its room: reliable data on topic `voicecost`, versioned JSON.

    {"version": 1, "meter_id": "...", "state": "open",
     "total": {"usd": "0.0123", "nano_usd": "12300000"},
     "by_modality": {"stt": {"usd": ..., "nano_usd": ...}, "llm": ..., "tts": ...},
     "unpriced_leg_count": 0,
     "budget_left": {"usd": ..., "nano_usd": ...} or null}

Amounts are strings: JavaScript numbers stop being exact at 2**53. `state` is `open`, `warned`,
`exhausted`, `wrapping_up`, `ending` or `closed`. A client accepts a message only from a
participant of kind AGENT: any participant can send on any topic.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final, Literal

from livekit import rtc

from voicecost_ledger.money import decimal_usd

from .log import logger

TOPIC: Final = "voicecost"
VERSION: Final = 1
INTERVAL_S: Final = 1.0

PublishTo = Literal["none", "all"] | Callable[[rtc.RemoteParticipant], bool]
"""Who is told: nobody, the whole room, or the participants for which the callable is true."""


class State(StrEnum):
    """How far a meter's money has got."""

    OPEN = "open"
    WARNED = "warned"
    EXHAUSTED = "exhausted"
    WRAPPING_UP = "wrapping_up"
    ENDING = "ending"
    CLOSED = "closed"


def cost_message(
    *,
    meter_id: str,
    state: State,
    total_nano_usd: int,
    by_modality: Mapping[str, int],
    unpriced_leg_count: int,
    budget_left_nano_usd: int | None,
) -> str:
    """One room message as JSON; see the module's docstring."""
    return json.dumps(
        {
            "version": VERSION,
            "meter_id": meter_id,
            "state": state.value,
            "total": _amount(total_nano_usd),
            "by_modality": {str(name): _amount(nano) for name, nano in by_modality.items()},
            "unpriced_leg_count": unpriced_leg_count,
            "budget_left": None if budget_left_nano_usd is None else _amount(budget_left_nano_usd),
        },
        separators=(",", ":"),
    )


def _amount(nano_usd: int) -> dict[str, str]:
    return {"usd": decimal_usd(nano_usd), "nano_usd": str(nano_usd)}


class RoomMessages:
    """Publishes a changing message into a room, at most once a second and only when it changed.

    Everything here runs on the session's event loop; nothing waits for the network.
    """

    def __init__(
        self,
        publish_to: PublishTo,
        *,
        room: Callable[[], rtc.Room | None],
        message: Callable[[], str],
    ) -> None:
        """Publish what `message()` returns into `room()`, both asked anew each time."""
        self._publish_to = publish_to
        self._room = room
        self._message = message
        self._last: str | None = None
        self._tried = False
        self._timer: asyncio.TimerHandle | None = None
        self._publishing: set[asyncio.Task[None]] = set()

    def changed(self) -> None:
        """Say that the message may be another one now: it goes out within a second."""
        if self._publish_to == "none" or self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        # The first of a burst goes at the end of this turn of the loop, then one a second.
        self._timer = loop.call_later(INTERVAL_S if self._tried else 0.0, self._due)

    def publish(self) -> asyncio.Future[None] | None:
        """Send the present message now; the future is done when it is on its way, or has failed.

        LiveKit's client takes the data over when the task first runs, so a room that is left
        afterwards still delivers it.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._publish_to == "none":
            return None
        self._tried = True
        message = self._message()
        room = self._room()
        if room is None or message == self._last:
            return None
        identities: list[str] = []
        if callable(self._publish_to):
            identities = [
                each.identity for each in room.remote_participants.values() if self._picks(each)
            ]
            if not identities:  # to LiveKit an empty list means everybody
                return None
        self._last = message
        task = asyncio.get_running_loop().create_task(
            _send(room.local_participant, message, identities), name="voicecost_room_message"
        )
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)
        return task

    def _due(self) -> None:
        self._timer = None
        self.publish()

    def _picks(self, participant: rtc.RemoteParticipant) -> bool:
        if not callable(self._publish_to):
            return True
        try:
            return bool(self._publish_to(participant))
        except Exception as error:  # the application's code, called from the call's loop
            logger.warning(
                "publish_to raised %s: the participant is not told", type(error).__name__
            )
            return False


async def _send(sender: rtc.LocalParticipant, message: str, identities: list[str]) -> None:
    arguments: dict[str, Any] = {"reliable": True, "topic": TOPIC}
    if identities:
        arguments["destination_identities"] = identities
    try:
        await sender.publish_data(message, **arguments)
    except Exception as error:  # a room that is going: the ledger has the amount all the same
        logger.debug("room message not published: %s", type(error).__name__)

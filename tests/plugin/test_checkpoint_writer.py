"""When a meter's checkpoint is left with LiveKit. What becomes of it: `tests/room`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from livekit.plugins.voicecost import _checkpoint
from livekit.plugins.voicecost._checkpoint import Checkpoints
from voicecost_ledger.records import MeterOpen
from voicecost_ledger.sealing import ATTRIBUTE_PREFIX, CheckpointSeal

KEY = ("APIkey", "secret-of-at-least-32-characters!")
OPENED = MeterOpen(
    meter_id="MT_0123456789", seq=1, at_unix_ms=0, room_name="support-17", job_id="AJ_x1"
)


class Room:
    """LiveKit's, as far as a participant's attributes go; answers when it is let."""

    def __init__(self) -> None:
        self.local_participant = SimpleNamespace(set_attributes=self.set_attributes)
        self.answering = asyncio.Event()
        self.answering.set()
        self.failing = 0
        self.received: asyncio.Queue[int] = asyncio.Queue()

    async def set_attributes(self, attributes: dict[str, str]) -> None:
        (sealed,) = attributes.values()
        assert next(iter(attributes)).startswith(ATTRIBUTE_PREFIX)
        opened = CheckpointSeal(*KEY).open(sealed, room_name="support-17", job_id="AJ_x1")
        self.received.put_nowait(opened.seq)
        if self.failing:
            self.failing -= 1
            raise ConnectionError
        await self.answering.wait()


class Writer:
    """A meter's checkpoints, and the room that it may be in."""

    def __init__(self) -> None:
        self.seq = 1
        self.room: Room | None = Room()
        self.looked = asyncio.Event()
        self.checkpoints = Checkpoints(
            kinds=list,
            opened=OPENED,
            last_seq=lambda: self.seq,
            room=self._look,
            in_thread=self._at_once,
        )

    def _look(self) -> Any:
        self.looked.set()
        return self.room

    @staticmethod
    def _at_once(action: Callable[[], None]) -> None:
        action()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVEKIT_API_KEY", KEY[0])
    monkeypatch.setenv("LIVEKIT_API_SECRET", KEY[1])
    monkeypatch.setattr(_checkpoint, "FIRST_S", 0.01)


async def test_the_last_checkpoint_is_sent_though_the_one_before_is_not_answered() -> None:
    """Nothing comes after the one at close, to say what it would have said."""
    writer = Writer()
    room = writer.room
    assert room is not None
    room.answering.clear()
    assert await room.received.get() == 1
    writer.seq = 9
    writer.checkpoints.close()
    room.answering.set()
    async with asyncio.timeout(5):
        assert await room.received.get() == 9


async def test_a_job_that_is_not_in_its_room_yet_is_looked_at_again_soon() -> None:
    """Not only when ten more seconds have passed: so much may be lost, and no more."""
    writer = Writer()
    room, writer.room = writer.room, None
    assert room is not None
    await writer.looked.wait()
    writer.room = room
    async with asyncio.timeout(5):
        assert await room.received.get() == 1
    writer.checkpoints.close()


async def test_one_that_did_not_arrive_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing more is used meanwhile: nobody speaks, and the host is lost."""
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "0")
    monkeypatch.setattr(_checkpoint, "INTERVAL_S", 0.01)
    writer = Writer()
    room = writer.room
    assert room is not None
    room.failing = 1
    async with asyncio.timeout(5):
        assert [await room.received.get(), await room.received.get()] == [1, 1]
    writer.checkpoints.close()

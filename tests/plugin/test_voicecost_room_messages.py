"""What the room is told, by a real livekit-server; and how often, in a second that jumps."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import AsyncIterator, Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from livekit import rtc
from livekit.agents.voice.room_io import RoomOptions

from livekit.plugins.voicecost import VoiceCost
from livekit.plugins.voicecost._room_messages import RoomMessages
from tests.plugin.voicecost_rooms import Visitor, agents_room, livekit_server, seen_in
from tests.plugin.voicecost_sessions import Host, Providers, providers, say_hello


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Providers]:
    async with providers(monkeypatch) as world:
        yield world


@pytest.mark.room
async def test_those_who_are_picked_hear_of_the_cost_to_the_last(
    world: Providers, tmp_path: Path
) -> None:
    operator, guest = Visitor("operator"), Visitor("guest")
    async with (
        livekit_server(tmp_path) as server,
        agents_room(server) as room,
        operator.in_room(server),
        guest.in_room(server),
    ):
        await asyncio.wait_for(seen_in(room, {"operator", "guest"}), 10)
        session = world.session()
        cost = VoiceCost(budget="1", publish_to=lambda person: person.identity == "operator")
        meter = cost.attach(session)
        quiet = RoomOptions(audio_input=False, audio_output=False, text_output=False)
        await session.start(Host(), room=room, room_options=quiet)
        await say_hello(session)
        await session.aclose()
        await asyncio.wait_for(operator.closed.wait(), 10)

    assert guest.messages == []
    assert operator.senders == {rtc.ParticipantKind.PARTICIPANT_KIND_AGENT}
    last = operator.messages[-1]
    total = meter.cost.total_nano_usd
    assert last["version"] == 1
    assert last["meter_id"] == meter.meter_id
    assert last["total"]["nano_usd"] == str(total)
    assert last["total"]["usd"].startswith("0.00")
    assert set(last["by_modality"]) == {"stt", "llm", "tts"}
    assert last["budget_left"]["nano_usd"] == str(1_000_000_000 - total)
    assert last["unpriced_leg_count"] == 0
    assert [message["state"] for message in operator.messages[:-1]] == ["open"] * (
        len(operator.messages) - 1
    )


class JumpingLoop(asyncio.SelectorEventLoop):
    """A loop on which time jumps to the next timer instead of passing."""

    def __init__(self) -> None:
        self.now = 1_000.0
        loop = self

        class Jumping(selectors.DefaultSelector):
            def select(self, timeout: float | None = None) -> Any:
                ready = super().select(0)
                if not ready and timeout:
                    loop.now += timeout
                return ready

        super().__init__(Jumping())

    def time(self) -> float:
        return self.now


def jump(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(main)


class Person:
    """A participant, as far as a message needs one."""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.sent: list[tuple[float, str, list[str]]] = []

    async def publish_data(
        self,
        payload: str,
        *,
        reliable: bool,
        topic: str,
        destination_identities: tuple[str, ...] | list[str] = (),
    ) -> None:
        assert (reliable, topic) == (True, "voicecost")
        now = asyncio.get_running_loop().time()
        self.sent.append((now, payload, list(destination_identities)))


class Lounge:
    """A room with some people in it."""

    def __init__(self, *names: str) -> None:
        self.local_participant = Person("agent")
        self.remote_participants = {name: Person(name) for name in names}


def test_a_burst_is_one_message_a_second_and_no_change_is_none() -> None:
    lounge: Any = Lounge("caller")
    total = 0

    async def burst() -> None:
        nonlocal total
        messages = RoomMessages("all", room=lambda: lounge, message=lambda: str(total))
        for _ in range(25):  # 2.5 s
            total += 1
            messages.changed()
            messages.changed()
            await asyncio.sleep(0.1)
        await asyncio.sleep(5)
        messages.changed()  # said, but it is not so
        await asyncio.sleep(5)

    jump(burst())
    sent = lounge.local_participant.sent
    assert [payload for _, payload, _ in sent][-1] == "25"
    assert len(sent) == 4
    times = [at for at, _, _ in sent]
    assert all(later - earlier >= 0.999 for earlier, later in pairwise(times))


@pytest.mark.parametrize(
    ("publish_to", "addressees"),
    [
        pytest.param("all", [[]], id="to LiveKit no address means everybody"),
        pytest.param("none", [], id="nobody"),
        pytest.param(lambda person: person.identity == "ann", [["ann"]], id="picked"),
        pytest.param(lambda person: False, [], id="nobody picked is not everybody"),
        pytest.param(lambda person: person.phone, [], id="a callable that fails picks nobody"),
    ],
)
def test_only_those_it_is_published_to_are_addressed(
    publish_to: Any, addressees: list[list[str]]
) -> None:
    lounge: Any = Lounge("ann", "bob")

    async def change() -> None:
        RoomMessages(publish_to, room=lambda: lounge, message=lambda: "1").changed()
        await asyncio.sleep(3)

    jump(change())
    assert [to for _, _, to in lounge.local_participant.sent] == addressees

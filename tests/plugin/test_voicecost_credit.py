"""Shortages of credit: a real session, and a sidecar that grants what each test makes it grant."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from livekit.plugins.voicecost import BudgetEvent, VoiceCost, _credit
from livekit.plugins.voicecost._room_messages import State
from tests.plugin.test_runtime import Sidecar
from tests.plugin.voicecost_sessions import Host, Providers, providers
from voicecost_ledger.budgets import CLOSING_RESERVE_NANO_USD
from voicecost_ledger.protocol import (
    Action,
    ClientMessage,
    Command,
    Grant,
    Records,
    Reject,
    Renew,
    ServerMessage,
)
from voicecost_ledger.records import LegStart, LegStop, MeterClose, Outcome

GOODBYE = "Goodbye."
SENTENCE = "It is a long way to the end of this rather long sentence about nothing at all. " * 2
SENTENCE_NANO_USD = len(SENTENCE) * 30_000
ENOUGH_NANO_USD = 1_000_000_000


class Lender(Sidecar):
    """Grants `grants[0]`, then the next at each renewal; a missing grant is no answer at all."""

    def __init__(self) -> None:
        super().__init__()
        self.grants: list[tuple[int, bool] | None] = []  # ceiling, and whether it is the last
        self.command: Action | None = None  # to a meter that has stopped
        self.down = False  # its store is
        self.renewals: list[Renew] = []

    def _answer(self, message: ClientMessage) -> list[ServerMessage]:
        if self.down and isinstance(message, Records | Renew):
            return [Reject("unavailable", "locked", message.meter_id)]
        if not isinstance(message, Renew):
            return super()._answer(message)
        self.renewals.append(message)
        answers: list[ServerMessage] = []
        granted = self.grants[min(len(self.renewals), len(self.grants)) - 1]
        if granted is not None:
            ceiling, final = granted
            answers.append(
                Grant(
                    meter_id=message.meter_id,
                    epoch=len(self.renewals),
                    renewal=message.renewal,
                    ceiling_nano_usd=ceiling,
                    soft_nano_usd=max(0, ceiling - CLOSING_RESERVE_NANO_USD) if final else ceiling,
                    unreported_max_nano_usd=ceiling,
                    lease_ms=30_000,
                    final=final,
                )
            )
        if message.exhausted and self.command is not None:
            answers.append(Command(message.meter_id, self.command, "project:shop", 1_000, 999))
        return answers

    @property
    def outcomes(self) -> list[Outcome]:
        (records,) = self.records.values()
        return [record.outcome for record in records if isinstance(record, LegStop)]


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Providers]:
    monkeypatch.setenv("VOICECOST_TOKEN", "token")
    async with providers(monkeypatch) as world:
        yield world


@pytest.fixture
def lender() -> Iterator[Lender]:
    lender = Lender()
    lender.start()
    yield lender
    lender.stop()


class Call:
    """A running session whose money comes from a `Lender`, with its first grant."""

    def __init__(self, world: Providers, lender: Lender) -> None:
        self.session = world.session()
        self.meter = VoiceCost(url=lender.url, wrap_up_text=GOODBYE).attach(self.session)
        self.events: list[BudgetEvent] = []
        self.meter.on("budget", self.events.append)
        self._lender = lender

    async def start(self) -> None:
        await self.session.start(Host())
        link = self.meter._link
        assert link is not None
        async with asyncio.timeout(10):
            while link.allowance.grant is None:  # noqa: ASYNC110  (nobody tells)
                await asyncio.sleep(0.001)

    async def close(self) -> None:
        """Close it, and wait until the lender has everything."""
        await self.session.aclose()
        await self.told()

    async def told(self) -> None:
        """Wait until the lender has the meter's last record."""
        await asyncio.to_thread(
            self._lender.wait_for,
            lambda: any(
                isinstance(r, MeterClose) for rs in self._lender.records.values() for r in rs
            ),
        )


async def test_a_shortage_that_a_renewal_ends_is_not_heard(
    world: Providers, lender: Lender
) -> None:
    """The sentence costs more than is granted so far, and the next grant is a message away."""
    lender.grants = [(SENTENCE_NANO_USD // 10, False), (ENOUGH_NANO_USD, False)]
    call = Call(world, lender)
    await call.start()
    await asyncio.wait_for(call.session.say(SENTENCE).wait_for_playout(), 20)
    await call.session.say(SENTENCE).wait_for_playout()
    assert call.meter._credit.state is State.OPEN
    await call.close()

    assert call.events == []
    assert lender.outcomes == [Outcome.SERVED, Outcome.SERVED]
    assert abs(world.deepgram.bill.total("characters") - 2 * len(SENTENCE)) <= 2
    assert not any(renewal.exhausted for renewal in lender.renewals)


async def test_what_was_not_granted_in_time_ends_the_call(
    world: Providers, lender: Lender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger answers everything else, so this is no outage; nothing is silent for ever."""
    monkeypatch.setattr(_credit, "DECISION_MAX_S", 0.2)
    lender.grants = [(SENTENCE_NANO_USD // 10, False), None]
    call = Call(world, lender)
    await call.start()
    await asyncio.wait_for(call.session.say(SENTENCE).wait_for_playout(), 20)
    await asyncio.wait_for(call.meter.wait_closed(), 20)
    await call.told()

    assert [(event.kind, event.budget) for event in call.events] == [("exhausted", "credit")]
    assert abs(world.deepgram.bill.rows[-1].units["characters"] - len(GOODBYE)) <= 1


@pytest.mark.parametrize("action", [Action.WRAP_UP, Action.END])
async def test_a_last_grant_that_does_not_cover_ends_the_call(
    action: Action, world: Providers, lender: Lender
) -> None:
    lender.grants = [(SENTENCE_NANO_USD // 10, False), (SENTENCE_NANO_USD // 10, True)]
    lender.command = action
    call = Call(world, lender)
    await call.start()
    call.session.say(SENTENCE)
    await asyncio.wait_for(call.meter.wait_closed(), 20)
    await call.told()

    assert [(event.kind, event.budget) for event in call.events] == [("exhausted", "project:shop")]
    assert lender.renewals[-1].exhausted
    said_goodbye = abs(world.deepgram.bill.rows[-1].units["characters"] - len(GOODBYE)) <= 1
    assert said_goodbye == (action is Action.WRAP_UP)


async def test_a_request_that_is_refused_can_be_seen(
    world: Providers, lender: Lender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is granted is used up for good: nothing is sent, and a leg says so."""
    monkeypatch.setattr(_credit, "DECISION_MAX_S", 60.0)
    lender.grants = [(0, True)]
    call = Call(world, lender)
    await call.start()
    await asyncio.wait_for(call.session.say(SENTENCE).wait_for_playout(), 20)
    await call.close()

    assert lender.outcomes == [Outcome.CUT]
    (records,) = lender.records.values()
    assert [r.usage["characters"] for r in records if isinstance(r, LegStart | LegStop)] == [0, 0]
    assert world.deepgram.bill.total("characters") == 0


async def test_a_ledger_that_cannot_write_ends_no_call(
    world: Providers, lender: Lender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Locked, or its disk full: an outage, even though its process answers every message."""
    monkeypatch.setattr(_credit, "DECISION_MAX_S", 0.2)
    lender.grants = [(SENTENCE_NANO_USD // 10, False)]
    call = Call(world, lender)
    await call.start()
    lender.down = True
    for _ in range(4):
        await asyncio.wait_for(call.session.say(SENTENCE).wait_for_playout(), 20)
    assert call.events == []
    assert call.meter._credit.state is State.OPEN
    lender.grants = [(ENOUGH_NANO_USD, False)]
    lender.down = False
    await call.close()

    assert lender.outcomes == [Outcome.SERVED] * 4

"""The end of the money, decided by the real embedded ledger, with real sessions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from livekit.plugins.voicecost import Budget, BudgetEvent, VoiceCost
from tests.plugin.voicecost_sessions import Host, Providers, ledger, providers, say_hello
from voicecost_ledger.records import Outcome

GOODBYE = "Thank you for calling, goodbye!"
SENTENCE = "It is a long way to the end of this rather long sentence about nothing at all. "


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Providers]:
    async with providers(monkeypatch) as world:
        yield world


async def test_a_warning_then_the_end_each_once(world: Providers) -> None:
    """With "notify" the application is told, and the call goes on."""
    session = world.session()
    events: list[BudgetEvent] = []
    budget = Budget("0.003", warn_at_percent=50)
    meter = VoiceCost(budget=budget, on_budget="notify").attach(session)
    meter.on("budget", events.append)

    await session.start(Host())
    for _ in range(3):
        await session.say(SENTENCE).wait_for_playout()
    await ledger()
    await session.aclose()

    assert [(event.kind, event.budget) for event in events] == [
        ("warn", "call"),
        ("exhausted", "call"),
    ]
    assert all(event.limit_nano_usd == 3_000_000 for event in events)
    assert meter.cost.total_nano_usd > 3_000_000
    (call,) = await ledger()
    assert {leg.outcome for leg in call.legs} == {Outcome.SERVED}


async def test_a_callback_that_fails_stops_nothing(world: Providers) -> None:
    session = world.session()
    heard: list[str] = []
    meter = VoiceCost(budget="0.001", on_budget="notify").attach(session)

    @meter.on("budget")
    def fails(event: BudgetEvent) -> None:
        raise LookupError("the application's own")

    @meter.on("budget")
    def hears(event: BudgetEvent) -> None:
        heard.append(event.kind)

    await session.start(Host())
    await session.say(SENTENCE).wait_for_playout()
    await session.aclose()
    assert heard[-1] == "exhausted"


async def test_the_agent_says_goodbye_and_the_session_ends(world: Providers) -> None:
    """The wrap-up is paid from the closing reserve, so the limit holds with it."""
    session = world.session()
    meter = VoiceCost(budget="0.01", wrap_up_text=GOODBYE).attach(session)
    await session.start(Host())
    await say_hello(session)
    speech = session.say(SENTENCE * 20)
    await asyncio.wait_for(meter.wait_closed(), 30)

    assert speech.done()
    spoken = [row.units["characters"] for row in world.deepgram.bill.rows]
    assert len(spoken) == 3
    assert abs(spoken[-1] - len(GOODBYE)) <= 1
    (call,) = await ledger()
    assert call.summary.total_nano_usd <= 10_000_000
    assert [step.step for step in call.audit if step.step != "warn"][:2] == ["wrap_up", "end"]
    assert call.legs[-1].outcome is Outcome.SERVED


async def test_the_end_comes_at_once_where_that_was_asked_for(world: Providers) -> None:
    session = world.session()
    meter = VoiceCost(budget="0.005", on_budget="end").attach(session)
    await session.start(Host())
    session.say(SENTENCE * 20)
    await asyncio.wait_for(meter.wait_closed(), 30)

    assert meter.cut
    (call,) = await ledger()
    cut, *later = call.legs
    assert cut.outcome in (Outcome.CUT, Outcome.INTERRUPTED)
    assert [leg.amount_nano_usd for leg in later if leg.amount_nano_usd] == []
    assert call.summary.total_nano_usd <= 5_000_000


async def test_a_budget_of_zero_runs_nothing_that_costs(world: Providers) -> None:
    session = world.session()
    meter = VoiceCost(budget=0).attach(session)
    await session.start(Host())
    session.say(SENTENCE)
    await asyncio.wait_for(meter.wait_closed(), 30)
    assert meter.cost.total_nano_usd == 0
    assert world.deepgram.bill.total("characters") == 0


async def test_a_call_whose_ledger_is_out_of_reach_ends_within_its_budget(
    world: Providers,
) -> None:
    """Nobody answers at that address: the meter knows its own budget and ends by itself."""
    session = world.session()
    events: list[BudgetEvent] = []
    cost = VoiceCost(budget="0.01", wrap_up_text=GOODBYE, url="http://127.0.0.1:9")
    meter = cost.attach(session)
    meter.on("budget", events.append)
    await session.start(Host())
    session.say(SENTENCE * 20)
    await asyncio.wait_for(meter.wait_closed(), 30)

    assert [(event.kind, event.budget) for event in events] == [("exhausted", "call")]
    assert meter.cost.total_nano_usd <= 10_000_000
    assert abs(world.deepgram.bill.rows[-1].units["characters"] - len(GOODBYE)) <= 1

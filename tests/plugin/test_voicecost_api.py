"""What an application writes: every wrong value is told what is wrong with it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from livekit.agents import AgentSession
from livekit.plugins import voicecost

from livekit.plugins.voicecost import Budget, BudgetEvent, Cost, VoiceCost
from tests.plugin.voicecost_sessions import forget_process


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        pytest.param(
            lambda: VoiceCost(budget=0.5), TypeError,  # type: ignore[arg-type]
            "budget=0.5 is a float: give US dollars as str, Decimal or int",
            id="a float budget, with the reason",
        ),
        pytest.param(lambda: VoiceCost(budget="-1"), ValueError, "budget='-1'", id="negative"),
        pytest.param(
            lambda: VoiceCost(budget="a dime"), ValueError, "not an amount", id="no amount"
        ),
        pytest.param(
            lambda: Budget(True), TypeError, "limit_usd=True is a bool", id="a bool budget"
        ),
        pytest.param(
            lambda: Budget("1", warn_at_percent=0), ValueError,
            "warn_at_percent=0 is out of range: expected 1 to 100", id="warn at nothing",
        ),
        pytest.param(
            lambda: Budget("1", warn_at_percent=0.8), TypeError,  # type: ignore[arg-type]
            "give a whole number of percent", id="a share instead of percent",
        ),
        pytest.param(
            lambda: VoiceCost(on_budget="explode"), ValueError,  # type: ignore[arg-type]
            'on_budget=\'explode\' is unknown: expected "notify", "wrap_up", "end"',
            id="on_budget",
        ),
        pytest.param(
            lambda: VoiceCost(publish_to="some"), ValueError,  # type: ignore[arg-type]
            'publish_to=\'some\' is unknown: expected "none", "all", or a callable',
            id="publish_to",
        ),
        pytest.param(
            lambda: VoiceCost(wrap_up_text=" "), ValueError, 'use on_budget="end"',
            id="an empty last sentence",
        ),
        pytest.param(
            lambda: VoiceCost(project=""), ValueError, "project='' is no name", id="project"
        ),
        pytest.param(
            lambda: VoiceCost(agent=7), TypeError,  # type: ignore[arg-type]
            "agent=7 is a int: expected a string", id="agent",
        ),
        pytest.param(
            lambda: VoiceCost(tags={"a": 1}), TypeError,  # type: ignore[dict-item]
            "tags['a']=1 is a int", id="a tag's value",
        ),
        pytest.param(
            lambda: VoiceCost(tags={str(n): "x" for n in range(17)}), ValueError,
            "tags has 17 entries: expected at most 16", id="too many tags",
        ),
        pytest.param(
            lambda: VoiceCost(url="localhost:8787"), ValueError,
            'no sidecar\'s address: expected for example "http://127.0.0.1:8787"', id="url",
        ),
        pytest.param(
            lambda: VoiceCost().attach("session"), TypeError,  # type: ignore[arg-type]
            "cannot attach to a str: expected a livekit.agents AgentSession", id="attach",
        ),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_what_is_expected(
    make: Callable[[], object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=re.escape(said)):
        make()


def test_a_secret_in_a_wrong_address_is_not_repeated() -> None:
    with pytest.raises(ValueError, match="no sidecar's address") as raised:
        VoiceCost(url="htp://user:hunter2@costs.example.com")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("name", ["VOICECOST_DISABLED", "VOICECOST_LOG_COSTS"])
def test_a_switch_that_is_neither_on_nor_off_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "maybe")
    with pytest.raises(ValueError, match=f"{name}='maybe' is neither on nor off"):
        VoiceCost()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "VOICECOST_URL",
            "costs.example.com",
            "VOICECOST_URL='costs.example.com' is no",
        ),
        ("VOICECOST_DATABASE_URL", "mysql://u:hunter2@db/x", "expected sqlite:///PATH"),
        ("VOICECOST_HOST_ALIASES", "localhost", "host alias 'localhost' = '' is not understood"),
    ],
)
def test_a_wrong_environment_is_said_before_any_call(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_process()
    monkeypatch.setenv(name, value)
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # a test run would not look at VOICECOST_URL
    with pytest.raises(ValueError, match=re.escape(said)) as raised:
        VoiceCost()
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("limit", ["0.25", Decimal("0.25")])
def test_a_budget_is_exact(limit: str | Decimal) -> None:
    assert Budget(limit).limit_nano_usd == 250_000_000
    assert Budget(limit) == Budget("0.250")
    assert repr(Budget(limit)) == 'Budget("0.25", warn_at_percent=80)'


def test_the_shop_window_is_sorted_and_complete() -> None:
    assert voicecost.__all__ == sorted(voicecost.__all__)
    assert all(hasattr(voicecost, name) for name in voicecost.__all__)


def test_a_cost_reads_well_and_shows_what_has_no_price() -> None:
    assert str(Cost(12_300_000, {"llm": 12_300_000}, 0)) == "$0.0123"
    assert str(Cost(12_300_000, {"llm": 12_300_000}, 2)) == "$0.0123 + 2 unpriced"


async def bare_session() -> AgentSession[None]:
    return AgentSession(vad=None, turn_handling={"turn_detection": "manual"})


async def test_a_callback_is_a_plain_function() -> None:
    meter = VoiceCost().attach(await bare_session())

    async def too_late(event: BudgetEvent) -> None:
        await asyncio.sleep(0)

    with pytest.raises(TypeError, match="start a task in it"):
        meter.on("budget", too_late)
    with pytest.raises(ValueError, match='the only event of a meter is "budget"'):
        meter.on("costs", print)  # type: ignore[call-overload]

    @meter.on("budget")
    def note(event: BudgetEvent) -> str:
        return event.kind

    assert note(BudgetEvent("warn", "call", 1, 1)) == "warn"


async def test_disabled_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOICECOST_DISABLED", "1")
    meter = VoiceCost(budget="1").attach(await bare_session())
    assert meter.cost == Cost(0, {"stt": 0, "llm": 0, "tts": 0}, 0)
    assert meter.meter_id is None


async def test_add_plugin_is_attach() -> None:
    session: Any = await bare_session()
    meter = session.add_plugin(VoiceCost())
    assert VoiceCost(project="other").attach(session) is meter

    with pytest.raises(TypeError, match="cannot add a str as a plugin"):
        session.add_plugin("voicecost")


async def test_a_plugin_api_of_livekits_own_is_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should LiveKit have `add_plugin` one day, its plugins still reach it."""
    from livekit.plugins.voicecost._add_plugin import install_add_plugin

    def livekits_own(self: object, plugin: object, *, priority: int = 0) -> tuple[object, int]:
        return plugin, priority

    monkeypatch.setattr(AgentSession, "add_plugin", livekits_own)
    install_add_plugin()
    install_add_plugin()  # importing twice wraps once
    session: Any = await bare_session()
    assert session.add_plugin("theirs", priority=7) == ("theirs", 7)
    assert session.add_plugin(VoiceCost()).cost.total_nano_usd == 0

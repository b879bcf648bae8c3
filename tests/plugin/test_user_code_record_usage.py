"""`meter.record_usage`: what only the application can see is a leg like any other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

import pytest
from livekit.agents import Agent, LanguageCode, ModelSettings, llm

from livekit.plugins.voicecost import VoiceCost, _faults
from tests.plugin.voicecost_sessions import Host, Providers, ledger, providers, say_hello
from voicecost_ledger.records import UNITS, Basis, Coverage, Modality, Outcome

TOLD: dict[str, Any] = {
    "provider": "openai",
    "model": "gpt-4o-mini",
    "modality": "llm",
    "usage": {"input_tokens": 1_000, "output_tokens": 100},
}


def told(**otherwise: Any) -> dict[str, Any]:
    return TOLD | otherwise


TOLD_NANO_USD = 1_000 * 150 + 100 * 600  # gpt-4o-mini: $0.15 and $0.60 a million


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Providers]:
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")
    async with providers(monkeypatch) as world:
        yield world


async def test_it_is_a_whole_leg_with_the_price_books_price(world: Providers) -> None:
    session = world.session()
    meter = VoiceCost(budget="1").attach(session)
    await session.start(Host())
    meter.record_usage(**TOLD)
    assert meter.cost.total_nano_usd == TOLD_NANO_USD
    await session.aclose()

    (call,) = await ledger()
    (leg,) = call.legs
    assert leg.usage == TOLD["usage"]
    assert (leg.basis, leg.outcome) == (Basis.REPORTED, Outcome.SERVED)
    assert (leg.provider, leg.model, leg.modality) == ("openai", "gpt-4o-mini", Modality.LLM)
    assert call.summary.total_nano_usd == TOLD_NANO_USD
    assert call.summary.coverage is Coverage.COMPLETE


class Unit(str):
    """Another kind of text."""

    __slots__ = ()


async def test_another_kind_of_text_is_taken_as_text(world: Providers) -> None:
    """LiveKit's own language codes are such: a record takes none, and the leg was lost."""
    session = world.session()
    meter = VoiceCost(agent=Unit("waiter"), tags={Unit("a"): Unit("b")}).attach(session)
    await session.start(Host())
    usage = {Unit("input_tokens"): 1_000, Unit("output_tokens"): 100}
    meter.record_usage(**told(usage=usage, language=LanguageCode("en"), speech_id=Unit("s")))
    await session.aclose()

    (call,) = await ledger()
    (leg,) = call.legs
    assert (leg.usage, leg.amount_nano_usd) == (TOLD["usage"], TOLD_NANO_USD)
    assert call.summary.coverage is Coverage.COMPLETE


async def test_what_has_no_price_is_shown_as_unpriced(world: Providers) -> None:
    session = world.session()
    meter = VoiceCost().attach(session)
    await session.start(Host())
    meter.record_usage(
        provider="acme", model="", modality="other", usage={"requests": 3}, outcome="failed"
    )
    meter.record_usage(**told(model="gpt-of-tomorrow"))
    assert (meter.cost.total_nano_usd, meter.cost.unpriced_leg_count) == (0, 2)
    await session.aclose()

    (call,) = await ledger()
    assert call.summary.unpriced_leg_count == 2
    assert sorted((leg.modality, leg.outcome) for leg in call.legs) == [
        (Modality.LLM, Outcome.SERVED),
        (Modality.OTHER, Outcome.FAILED),
    ]


async def test_a_dated_snapshot_has_its_models_price(world: Providers) -> None:
    session = world.session()
    meter = VoiceCost().attach(session)
    await session.start(Host())
    meter.record_usage(**told(model="gpt-4o-mini-2024-07-18"))
    assert meter.cost.total_nano_usd == TOLD_NANO_USD
    await session.aclose()


async def test_it_uses_up_the_budget_but_is_never_refused(world: Providers) -> None:
    session = world.session()
    meter = VoiceCost(budget="0.0001", on_budget="notify").attach(session)
    heard: list[str] = []
    meter.on("budget", lambda event: heard.append(event.kind))
    await session.start(Host())
    meter.record_usage(**TOLD)
    meter.record_usage(**TOLD)
    assert meter.cost.total_nano_usd == 2 * TOLD_NANO_USD
    while "exhausted" not in heard:  # noqa: ASYNC110  (callbacks come with the next turn of the loop)
        await asyncio.sleep(0)
    await session.aclose()


async def test_told_from_another_thread_it_is_booked_on_the_sessions_loop(
    world: Providers,
) -> None:
    session = world.session()
    meter = VoiceCost().attach(session)
    await session.start(Host())
    await asyncio.to_thread(lambda: meter.record_usage(**TOLD))
    await asyncio.sleep(0)
    assert meter.cost.total_nano_usd == TOLD_NANO_USD
    await session.aclose()


async def test_told_before_the_session_starts_it_opens_the_meter(world: Providers) -> None:
    session = world.session()
    meter = VoiceCost().attach(session)
    meter.record_usage(**TOLD)
    await session.start(Host())
    await session.aclose()
    (call,) = await ledger()
    assert call.summary.total_nano_usd == TOLD_NANO_USD


async def test_told_after_the_close_it_is_a_late_correction_of_the_same_call(
    world: Providers,
) -> None:
    session = world.session()
    meter = VoiceCost().attach(session)
    await session.start(Host())
    await say_hello(session)
    await session.aclose()
    assert meter.closed
    (before,) = await ledger()
    meter.record_usage(**TOLD)
    (after,) = await ledger()
    assert after.summary.total_nano_usd == before.summary.total_nano_usd + TOLD_NANO_USD


async def test_a_disabled_meter_only_checks(world: Providers) -> None:
    session = world.session()
    meter = VoiceCost(enabled=False).attach(session)
    meter.record_usage(**TOLD)
    with pytest.raises(ValueError, match="provider"):
        meter.record_usage(**told(provider=""))
    assert await ledger() == []


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        pytest.param({"provider": " "}, ValueError, "provider=' ' is empty", id="no provider"),
        pytest.param({"provider": None}, TypeError, "give text", id="provider is no text"),
        pytest.param({"model": 4}, TypeError, "model=4 is a int", id="model is no text"),
        pytest.param({"model": "m" * 5_000}, ValueError, "5000 characters", id="endless model"),
        pytest.param({"modality": "video"}, ValueError, "stt, llm, tts", id="modality"),
        pytest.param({"basis": "guessed"}, ValueError, "reported, observed", id="basis"),
        pytest.param({"outcome": "lost"}, ValueError, "served, interrupted", id="outcome"),
        pytest.param({"usage": {}}, ValueError, "usage is empty", id="nothing used"),
        pytest.param({"usage": None}, TypeError, "give a mapping", id="usage is no mapping"),
        pytest.param({"usage": {"tokens": 1}}, ValueError, ", ".join(sorted(UNITS)), id="unit"),
        pytest.param({"usage": {"requests": -1}}, ValueError, "requests=-1", id="negative"),
        pytest.param({"usage": {"requests": 1.0}}, TypeError, "is a float", id="float"),
        pytest.param({"usage": {"requests": True}}, TypeError, "is a bool", id="bool"),
        pytest.param({"usage": {"requests": 2**41}}, ValueError, "out of range", id="absurd"),
        pytest.param(
            {"usage": {"input_tokens": 5, "cached_input_tokens": 6}},
            ValueError,
            "cached_input_tokens=6 is more than input_tokens=5",
            id="part larger than its whole",
        ),
        pytest.param({"speech_id": 7}, TypeError, "speech_id=7", id="speech id"),
    ],
)
async def test_nonsense_is_refused_before_anything_is_booked(
    world: Providers, wrong: dict[str, Any], error: type[Exception], says: str
) -> None:
    meter = VoiceCost().attach(world.session())
    with pytest.raises(error, match=says):
        meter.record_usage(**told(**wrong))
    assert meter.meter_id is None


class OwnModel(Agent):
    """Answers by a service that no plugin knows, and tells what that cost."""

    def __init__(self, tell: Any = None) -> None:
        super().__init__(instructions="You are friendly.")
        self.tell = tell

    async def llm_node(
        self, chat_ctx: llm.ChatContext, tools: list[llm.Tool], model_settings: ModelSettings
    ) -> AsyncIterable[str]:
        yield "Hello, this is our own model."
        if self.tell is not None:
            self.tell()


async def test_an_llm_node_of_the_agents_own_is_a_gap(world: Providers) -> None:
    session = world.session()
    VoiceCost().attach(session)
    await session.start(OwnModel())
    await say_hello(session)
    await session.aclose()

    (call,) = await ledger()
    assert [(gap.reason, gap.modality) for gap in call.gaps] == [("turn_without_llm", "llm")]
    assert call.summary.coverage is Coverage.PARTIAL


async def test_an_llm_node_that_tells_what_it_used_is_none(world: Providers) -> None:
    session = world.session()
    meter = VoiceCost().attach(session)
    await session.start(OwnModel(lambda: meter.record_usage(**TOLD)))
    await say_hello(session)
    await session.aclose()

    (call,) = await ledger()
    assert call.gaps == []
    assert call.summary.coverage is Coverage.COMPLETE
    (told,) = [leg for leg in call.legs if leg.modality is Modality.LLM]
    assert told.speech_id is not None
    assert told.speech_id == next(leg.speech_id for leg in call.legs if leg.modality == "tts")


async def test_a_fault_of_ours_stays_ours(
    world: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VOICECOST_RAISE_FAULTS")
    session = world.session()
    meter = VoiceCost().attach(session)
    await session.start(Host())
    before = _faults.counts().get("record_usage", 0)

    def broken(*_: Any, **__: Any) -> Any:
        raise OSError

    monkeypatch.setattr(meter, "open_leg", broken)
    meter.record_usage(**TOLD)
    assert _faults.counts()["record_usage"] == before + 1
    await session.aclose()

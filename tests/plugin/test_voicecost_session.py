"""A meter and its session: from before `start()` to the last record, in the real ledger."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest
from livekit.agents import Agent, AgentSession, ModelSettings, llm
from livekit.plugins.openai import LLM

from livekit.plugins.voicecost import VoiceCost, _faults, _runtime, _unattributed
from livekit.plugins.voicecost._control import ControlTotals
from tests.plugin.voicecost_sessions import Host, Providers, ledger, providers, say_hello
from tests.simulators import Fault
from voicecost_ledger.records import (
    Basis,
    Coverage,
    Environment,
    LegAttributes,
    Modality,
    Outcome,
)

_TEARS_DOWN = pytest.mark.skipif(
    not hasattr(AgentSession, "_teardown_activity"),
    reason="LiveKit 1.5 has no such step that a test could break",
)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Providers]:
    async with providers(monkeypatch) as world:
        yield world


async def test_a_session_is_in_the_ledger_with_all_it_used(world: Providers) -> None:
    session = world.session()
    meter = VoiceCost(project="shop", tenant="acme", tags={"line": "1"}, budget="1").attach(session)
    await session.start(Host())
    await say_hello(session)
    await session.aclose()

    assert meter.closed
    (call,) = await ledger()
    assert call.summary.total_nano_usd == meter.cost.total_nano_usd > 0
    assert call.summary.nano_usd_by_modality["tts"] == meter.cost.by_modality["tts"]
    assert (call.summary.project, call.summary.tenant) == ("shop", "acme")
    assert call.summary.limit_nano_usd == 1_000_000_000
    assert call.summary.coverage is Coverage.COMPLETE
    assert call.summary.environment is Environment.TEST
    assert {leg.modality.value for leg in call.legs} == {"llm", "tts"}
    assert {leg.outcome for leg in call.legs} == {Outcome.SERVED}
    (view,) = call.meters
    assert (view.meter_id, view.state) == (meter.meter_id, "closed")
    assert set(view.versions) == {"livekit-agents", "voicecost"}


async def test_a_session_that_never_starts_leaves_nothing(world: Providers) -> None:
    session = world.session()
    meter = VoiceCost().attach(session)
    await session.aclose()
    assert meter.meter_id is None

    other = world.session()
    VoiceCost().attach(other)
    await other.start(Host())
    await other.aclose()
    assert len(await ledger()) == 1


async def test_attaching_twice_is_one_meter_and_one_voicecost_makes_several(
    world: Providers,
) -> None:
    cost = VoiceCost()
    first, second = world.session(), world.session()
    meters = [cost.attach(first), cost.attach(second)]
    assert cost.attach(first) is meters[0]
    for session in (first, second):
        await session.start(Host())
    await say_hello(second)
    for session in (first, second):
        await session.aclose()

    assert meters[0].cost.total_nano_usd == 0 < meters[1].cost.total_nano_usd
    assert {meter.meter_id for call in await ledger() for meter in call.meters} == {
        meter.meter_id for meter in meters
    }


async def test_what_ran_before_the_first_voicecost_is_a_gap(world: Providers) -> None:
    session = world.session()
    await session.start(Host())
    await say_hello(session)
    meter = VoiceCost().attach(session)
    await say_hello(session)
    await session.aclose()

    assert meter.coverage is Coverage.PARTIAL
    (call,) = await ledger()
    assert [gap.reason for gap in call.gaps] == ["attached_late"]
    assert call.summary.coverage is Coverage.PARTIAL
    assert sorted(leg.modality.value for leg in call.legs) == ["llm", "tts"]


async def test_what_ran_since_the_first_voicecost_is_adopted(world: Providers) -> None:
    cost = VoiceCost()
    session = world.session()
    await session.start(Host())
    await say_hello(session)
    meter = cost.attach(session)
    await session.aclose()

    (call,) = await ledger()
    assert call.gaps == []
    assert call.summary.coverage is Coverage.COMPLETE
    assert sorted(leg.modality.value for leg in call.legs) == ["llm", "tts"]
    assert call.summary.total_nano_usd == meter.cost.total_nano_usd > 0


class OwnModel(Agent):
    """Answers with a model that nobody but the application knows of."""

    def __init__(self) -> None:
        super().__init__(instructions="Be brief.")

    async def llm_node(
        self, chat_ctx: llm.ChatContext, tools: list[llm.Tool], model_settings: ModelSettings
    ) -> AsyncIterator[str]:
        yield "Good day to you."


class OwnVoice(Agent):
    """Speaks with a voice that nobody but the application knows of."""

    def __init__(self) -> None:
        super().__init__(instructions="Be brief.")

    async def tts_node(self, text: Any, model_settings: ModelSettings) -> AsyncIterator[Any]:
        from livekit import rtc

        async for _ in text:
            pass
        yield rtc.AudioFrame(bytes(2 * 2400), 24_000, 1, 2400)


@pytest.mark.parametrize(
    ("agent", "gap"),
    [
        pytest.param(OwnModel, ("turn_without_llm", "llm"), id="an answer without an LLM leg"),
        pytest.param(OwnVoice, ("audio_without_tts", "tts"), id="a voice without a TTS leg"),
    ],
)
async def test_what_no_leg_shows_is_a_gap(
    agent: type[OwnModel | OwnVoice], gap: tuple[str, str], world: Providers
) -> None:
    session = world.session()
    meter = VoiceCost().attach(session)
    await session.start(agent())
    await say_hello(session)
    await session.aclose()

    assert meter.coverage is Coverage.PARTIAL
    (call,) = await ledger()
    assert [(each.reason, each.modality) for each in call.gaps] == [gap]


async def test_a_sentence_that_is_only_said_is_no_gap(world: Providers) -> None:
    session = world.session()
    meter = VoiceCost().attach(session)
    await session.start(Host())
    await session.say("Good evening!").wait_for_playout()
    await session.aclose()
    assert meter.coverage is Coverage.COMPLETE


@_TEARS_DOWN
async def test_a_closing_that_fails_closes_the_meter_too(
    world: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = world.session()
    meter = VoiceCost().attach(session)
    await session.start(Host())
    await say_hello(session)

    async def broken(**_: object) -> None:
        raise RuntimeError("a plugin's teardown raised")

    monkeypatch.setattr(session, "_teardown_activity", broken)
    with pytest.raises(RuntimeError, match="teardown raised"):
        await session.aclose()

    assert meter.closed
    (call,) = await ledger()
    assert call.meters[0].state == "closed"


@_TEARS_DOWN
async def test_a_closing_that_is_cancelled_closes_the_meter_too(
    world: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = world.session()
    meter = VoiceCost().attach(session)
    await session.start(Host())

    async def hangs(**_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(session, "_teardown_activity", hangs)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(session.aclose(), 0.05)
    await asyncio.wait_for(meter.wait_closed(), 5)


async def test_a_closed_session_can_be_metered_again(world: Providers) -> None:
    cost = VoiceCost()
    session = world.session()
    meters = []
    for _ in range(2):
        meters.append(cost.attach(session))
        await session.start(Host())
        await session.aclose()
    assert len({meter.meter_id for meter in meters}) == 2


async def test_a_session_that_starts_again_while_a_request_of_it_still_runs_has_a_meter_of_its_own(
    world: Providers,
) -> None:
    """A tool's own question: its meter waited for the answer, and took the next run for its own."""
    before = _faults.counts()
    session = world.session()
    meter = VoiceCost().attach(session)
    await session.start(Host())
    await say_hello(session)
    world.openai.token_delay_ms = 20
    question = llm.ChatContext()
    question.add_message(role="user", content="Explain everything.")
    with meter.scope():
        answer = world.model("gpt-4o").chat(chat_ctx=question)
    await anext(answer)
    await session.aclose()
    await session.start(Host())
    await say_hello(session)
    await session.aclose()
    await answer.aclose()

    assert meter.closed
    first, second = await ledger()
    assert [(leg.modality.value, leg.model) for leg in first.legs] == [
        ("llm", "gpt-4o-mini"), ("tts", "aura-2-andromeda-en"), ("llm", "gpt-4o"),
    ]  # fmt: skip
    assert [(leg.modality.value, leg.model) for leg in second.legs] == [("llm", "gpt-4o-mini")]
    assert second.control
    assert not any(each.causes for each in second.control)
    assert _faults.counts() == before


async def test_an_agent_with_a_list_of_things_to_say_is_metered_as_completely(
    world: Providers,
) -> None:
    """All are asked for at once, before the first has had its turn."""
    session = world.session()
    meter = VoiceCost().attach(session)
    await session.start(Host())
    for speech in [session.generate_reply(user_input="hello") for _ in range(30)]:
        await speech
    await session.aclose()

    (call,) = await ledger()
    assert (call.gaps, meter.coverage) == ([], Coverage.COMPLETE)
    assert len(call.legs) == 60


async def test_the_log_says_where_and_how_much_but_nothing_of_the_call(
    world: Providers, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG, logger="livekit.plugins.voicecost")
    for log_costs in ("0", "1"):
        monkeypatch.setenv("VOICECOST_LOG_COSTS", log_costs)
        session = world.session()
        VoiceCost().attach(session)
        await session.start(Host())
        await say_hello(session)
        await session.aclose()

    lines = [record.getMessage() for record in caplog.records if "voicecost" in record.name]
    attached, ended, _, ended_with_costs = [line for line in lines if "coverage" in line]
    assert "ledger.db" in attached
    assert "livekit-agents" in attached
    assert "legs: stt 0, llm 1, tts 1; wasted: 0; unpriced: 0" in ended
    assert "$" not in ended
    assert "cost: $" in ended_with_costs
    assert "of it waste $0.0000" in ended_with_costs
    assert not [line for line in lines if "hello" in line.lower() or "help you" in line.lower()]


async def test_under_pytest_no_sidecar_is_told_unless_asked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="livekit.plugins.voicecost")
    monkeypatch.setenv("VOICECOST_URL", "http://user:secret@127.0.0.1:9/")

    def bare() -> AgentSession[None]:
        return AgentSession(vad=None, turn_handling={"turn_detection": "manual"})

    VoiceCost().attach(bare())
    VoiceCost(url="http://user:secret@127.0.0.1:9/").attach(bare())
    unasked, asked = [record.getMessage() for record in caplog.records]
    assert "127.0.0.1:9" not in unasked
    assert "127.0.0.1:9" in asked
    assert "secret" not in asked


async def test_a_request_that_outlives_the_session_is_still_counted(world: Providers) -> None:
    """A tool asked a model, and the caller hung up: the meter closes when the answer is there."""
    world.openai.first_token_delay_ms = 300
    session = world.session()
    meter = VoiceCost().attach(session)
    await session.start(Host())
    model: LLM = world.models[0]

    async def ask() -> None:
        question = llm.ChatContext()
        question.add_message(role="user", content="hello")
        async with model.chat(chat_ctx=question) as stream:
            async for _ in stream:
                pass

    asking = asyncio.create_task(ask())
    await world.asked()
    await session.aclose()
    assert not meter.closed
    await asking
    await asyncio.wait_for(meter.wait_closed(), 10)

    (call,) = await ledger()
    assert [leg.outcome for leg in call.legs] == [Outcome.SERVED]


async def test_a_request_that_never_ends_does_not_keep_the_meter_open(
    world: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("livekit.plugins.voicecost._metering.LEGS_STOP_MAX_S", 0.01)
    world.openai.faults.add(Fault(silent=True))
    session = world.session()
    meter = VoiceCost().attach(session)
    await session.start(Host())
    model: LLM = world.models[0]
    question = llm.ChatContext()
    question.add_message(role="user", content="hello")
    async with model.chat(chat_ctx=question):
        await world.asked()
        await session.aclose()
        await asyncio.wait_for(meter.wait_closed(), 10)

    (call,) = await ledger()
    assert [leg.outcome for leg in call.legs] == [Outcome.INTERRUPTED]


async def test_a_session_nobody_keeps_is_not_kept_by_its_meter(world: Providers) -> None:
    session = world.session()
    VoiceCost().attach(session)
    gone = weakref.ref(session)
    del session
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("started", [True, False])
async def test_a_session_that_we_fail_to_attach_to_goes_on_without_us(
    started: bool,
    world: Providers,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A job whose disk or installation is broken says its first word all the same."""
    monkeypatch.delenv("VOICECOST_RAISE_FAULTS")
    before = _faults.counts().get("attach", 0)
    cost = VoiceCost(budget="0.0001")

    def fails(*_: object, **__: object) -> None:
        raise OSError("/a/path/of/the/host")

    session = world.session()
    if started:
        await session.start(Host())
        monkeypatch.setattr(_runtime.Runtime, "open_meter", fails)
    else:
        monkeypatch.setattr(_unattributed, "attached", fails)
    meter = cost.attach(session)
    if not started:
        await session.start(Host())
    with meter.scope():
        await say_hello(session)
    await session.aclose()

    assert not meter.enabled
    assert meter.meter_id is None
    assert meter.cost.total_nano_usd == 0
    assert session.history.messages()[-1].text_content == "Hello! How can I help you?"
    assert _faults.counts()["attach"] == before + 1
    assert "/a/path" not in caplog.text


async def test_a_fault_of_ours_is_contained_and_counted(
    world: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something in the meter breaks in the middle of a turn: the caller hears the answer."""
    monkeypatch.delenv("VOICECOST_RAISE_FAULTS")
    before = _faults.counts().get("meter", 0)

    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    session = world.session()
    meter = VoiceCost().attach(session)
    await session.start(OwnModel())
    monkeypatch.setattr(meter, "gap", fails)
    await say_hello(session)
    await session.aclose()

    assert _faults.counts()["meter"] == before + 1
    assert session.history.messages()[-1].text_content == "Good day to you."
    assert meter.closed


async def test_an_answer_that_was_cut_off_is_better_known_by_a_report_that_comes_much_later(
    world: Providers,
) -> None:
    """Other requests came in between: only the sum of them is needed of most."""
    session = world.session()
    VoiceCost().attach(session)
    await session.start(Host())
    world.openai.token_delay_ms = 50
    question = "hello, " + "please explain everything there is to know about Paris. " * 20
    speech = session.generate_reply(user_input=question)
    await world.asked()
    await speech.interrupt()
    world.openai.token_delay_ms = 0
    for _ in range(12):
        await session.say("One moment.")
    gc.collect()
    await say_hello(session)
    await session.aclose()

    (call,) = await ledger()
    leg, _ = [leg for leg in call.legs if leg.modality is Modality.LLM]
    billed = world.openai.bill.rows[0].units["input_tokens"]
    assert leg.basis is Basis.ESTIMATED
    assert abs(leg.usage["input_tokens"] - billed) <= leg.margins["input_tokens"] < billed // 8


async def test_a_fault_in_the_control_total_costs_the_ledger_no_leg(
    world: Providers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It only compares: what it breaks on is metered, recorded and stopped all the same."""
    monkeypatch.delenv("VOICECOST_RAISE_FAULTS")

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError

    session = world.session()
    meter = VoiceCost().attach(session)
    await session.start(Host())
    monkeypatch.setattr(ControlTotals, "opened", fails)
    monkeypatch.setattr(ControlTotals, "overheard", fails)
    attributes = LegAttributes(Modality.LLM, "openai", "gpt-4o-mini")
    for _ in range(20):
        leg = meter.open_leg(attributes, {"input_tokens": 900})
        meter.overheard(attributes, {"input_tokens": 900})
        leg.stop(Outcome.SERVED, {"input_tokens": 1_000}, Basis.REPORTED)
    await session.aclose()
    (call,) = await ledger()
    assert [leg.usage["input_tokens"] for leg in call.legs] == [1_000] * 20
    assert {leg.outcome for leg in call.legs} == {Outcome.SERVED}
    assert call.summary.total_nano_usd == meter.cost.total_nano_usd > 0

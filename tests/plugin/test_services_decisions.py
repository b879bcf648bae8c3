"""Decisions through LiveKit's own `inference.DecisionModel`, against the gateway's bill."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from livekit.agents import APIConnectOptions, APIStatusError, APITimeoutError, inference, llm
from livekit.agents.llm import ChatContext, Choice, Probability, Score
from livekit.agents.llm.decisions import DecisionCapabilities, DecisionModel, DecisionResponse

from livekit.plugins.voicecost import _attribution, _estimates, _instrument
from tests.plugin.llm_providers import assert_within_margins
from tests.plugin.metered_session import RecordingMeter, SeenLeg, simulated_providers
from tests.simulators import Fault, Reply
from tests.simulators.inference_services import InferenceServicesSimulator
from voicecost_ledger.records import Basis, Modality, Outcome

QUESTIONS = {
    "handoff": Probability("The caller asks for a human being."),
    "topic": Choice("What is it about?", {"bill": "An invoice.", "other": "Anything else."}),
    "mood": Score("How content is the caller?", ["angry", "calm", "happy"]),
}
ONE_TRY = APIConnectOptions(max_retry=0, timeout=5)
TWO_TRIES = APIConnectOptions(max_retry=1, retry_interval=0, timeout=5)


@dataclass
class World:
    gateway: InferenceServicesSimulator
    model: inference.DecisionModel
    meter: RecordingMeter

    async def ask(self, conn_options: APIConnectOptions = ONE_TRY) -> DecisionResponse:
        with _attribution.scoped(self.meter):
            return await self.model.evaluate(
                input="user: My last bill is far too high, let me speak to somebody.",
                decisions=QUESTIONS,
                conn_options=conn_options,
            )

    @property
    def legs(self) -> list[SeenLeg]:
        return self.meter.of(Modality.DECISION)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")
    monkeypatch.setattr(_estimates, "_process", {})  # what other tests have taught it
    _instrument.instrument()
    try:
        async with InferenceServicesSimulator() as gateway, aiohttp.ClientSession() as http:
            model = inference.DecisionModel(
                base_url=gateway.url, api_key="key", api_secret="secret" * 6, http_session=http
            )
            yield World(gateway, model, RecordingMeter())
    finally:
        _instrument.uninstrument()


async def test_a_decision_is_a_leg_as_the_gateway_reports_it(world: World) -> None:
    response = await world.ask()
    assert set(response.results) == set(QUESTIONS)
    (row,), (leg,) = world.gateway.bill.rows, world.legs
    assert leg.usage == row.units
    assert (leg.basis, leg.outcome) == (Basis.REPORTED, Outcome.SERVED)
    assert (leg.attributes.provider, leg.attributes.model) == ("livekit", row.model)
    assert leg.attributes.host == world.gateway.url.removeprefix("http://")
    assert "_evaluate_impl" not in vars(world.model)


async def test_a_refused_attempt_costs_nothing_and_its_retry_is_a_leg_of_its_own(
    world: World,
) -> None:
    world.gateway.decision_faults.add(Fault(status=503))
    await world.ask(TWO_TRIES)
    failed, served = world.legs
    assert (failed.outcome, served.outcome) == (Outcome.FAILED, Outcome.SERVED)
    assert [leg.usage for leg in world.legs] == [row.units for row in world.gateway.bill.rows]
    assert failed.basis is Basis.OBSERVED


async def test_an_attempt_that_hangs_is_billed_its_input_by_an_estimate(world: World) -> None:
    await world.ask()
    world.gateway.decision_faults.add(Fault(silent=True))
    with pytest.raises(APITimeoutError):
        await world.ask(APIConnectOptions(max_retry=0, timeout=0.05))
    await world.gateway.bill.settled()
    _, hung = world.legs
    assert (hung.basis, hung.outcome) == (Basis.ESTIMATED, Outcome.FAILED)
    assert hung.usage == world.gateway.bill.rows[1].units  # the first one has calibrated it
    assert hung.margins["input_tokens"] == 0 < hung.margins["output_tokens"]


async def test_a_decision_that_nobody_waits_for_is_interrupted(world: World) -> None:
    world.gateway.decision_faults.add(Fault(silent=True))
    asking = asyncio.create_task(world.ask())
    await world.meter.until(lambda: world.legs)
    while not world.gateway.bill.rows:  # noqa: ASYNC110  (the simulator tells nobody)
        await asyncio.sleep(0.001)
    asking.cancel()
    await asyncio.wait([asking])
    await world.gateway.bill.settled()
    (leg,), (row,) = world.legs, world.gateway.bill.rows
    assert (leg.basis, leg.outcome) == (Basis.ESTIMATED, Outcome.INTERRUPTED)
    assert_within_margins(leg, row)


async def test_one_that_was_left_is_settled_by_the_report_on_the_next(world: World) -> None:
    """Nothing was known of the model when it was asked; its outcome is not changed by that."""
    world.gateway.decision_faults.add(Fault(silent=True))
    with pytest.raises(APITimeoutError):
        await world.ask(APIConnectOptions(max_retry=0, timeout=0.05))
    guessed = world.legs[0]
    assert guessed.margins["input_tokens"] == guessed.usage["input_tokens"]
    await world.ask()
    await world.gateway.bill.settled()
    left, _ = world.legs
    assert (left.basis, left.outcome) == (Basis.ESTIMATED, Outcome.FAILED)
    assert left.usage == world.gateway.bill.rows[0].units
    assert left.margins["input_tokens"] == 0 < left.margins["output_tokens"]


async def test_a_connection_that_breaks_before_the_answer_is_billed_its_input(
    world: World,
) -> None:
    await world.ask()
    world.gateway.decision_faults.add(Fault(dies_after=0))
    await world.ask(TWO_TRIES)
    await world.gateway.bill.settled()
    assert [leg.outcome for leg in world.legs] == [
        Outcome.SERVED,
        Outcome.FAILED,
        Outcome.SERVED,
    ]
    assert [leg.usage for leg in world.legs] == [row.units for row in world.gateway.bill.rows]


async def test_a_model_that_reports_nothing_is_counted_and_estimated(world: World) -> None:
    world.gateway.reports_tokens = False
    await world.ask()
    (leg,) = world.legs
    assert (leg.basis, leg.outcome) == (Basis.ESTIMATED, Outcome.SERVED)
    assert leg.usage["requests"] == 1
    assert_within_margins(leg, world.gateway.bill.rows[0])


@pytest.mark.parametrize("told", [(-5, 3), (90, -3), (0, 0)])
async def test_tokens_that_cannot_be_are_estimated(
    told: tuple[int, int], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide = inference.DecisionModel._evaluate_impl

    async def lying(*args: Any, **kwargs: Any) -> DecisionResponse:
        response = await decide(*args, **kwargs)
        tokens = {"input_tokens": told[0], "output_tokens": told[1]}
        return response.model_copy(update=tokens)

    monkeypatch.setattr(inference.DecisionModel, "_evaluate_impl", lying)
    await world.ask()
    (leg,) = world.legs
    assert leg.outcome is Outcome.SERVED
    assert_within_margins(leg, world.gateway.bill.rows[0])


async def test_the_model_that_served_is_kept(world: World) -> None:
    world.gateway.served_model = "typesafe/jev-2026-10"
    await world.ask()
    stop = world.meter.records[-1][1]
    assert stop["served_model"] == "typesafe/jev-2026-10"


async def test_a_budget_that_is_used_up_keeps_the_request_from_being_sent(world: World) -> None:
    world.meter.cut = True
    with pytest.raises(APIStatusError) as caught:
        await world.ask(TWO_TRIES)
    assert caught.value.status_code == 499
    assert world.gateway.bill.rows == []
    (leg,) = world.legs
    assert (leg.outcome, set(leg.usage.values())) == (Outcome.CUT, {0})


class ByLLM(DecisionModel):
    """A user's own: lets an LLM decide."""

    def __init__(self, model: llm.LLM[Any]) -> None:
        super().__init__(capabilities=DecisionCapabilities(decision_kinds=["probability"]))
        self._model = model

    async def _evaluate_impl(
        self, *, input: str, decisions: Any, conn_options: APIConnectOptions
    ) -> DecisionResponse:
        context = ChatContext.empty()
        context.add_message(role="user", content=f"{input} {list(decisions)}")
        async with self._model.chat(chat_ctx=context) as stream:
            async for _ in stream:
                pass
        return DecisionResponse(results={}, errors=dict.fromkeys(decisions, "unsure"))


async def test_a_model_that_asks_an_llm_is_billed_once_as_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")
    meter = RecordingMeter()
    async with simulated_providers(Reply(text="No.")) as providers:
        with _attribution.scoped(meter):
            await ByLLM(providers.llm()).evaluate(
                input="user: Hello", decisions={"done": Probability("The call is over.")}
            )
        assert [leg.usage["requests"] for leg in meter.of(Modality.DECISION)] == [0]
        assert meter.total(Modality.DECISION, "input_tokens") == 0
        assert meter.total(Modality.LLM, "input_tokens") == providers.bill.total("input_tokens")

"""What only one provider does: its cache, its searches, its tiers, its refusals, its fallback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from livekit.agents import APIConnectOptions, APIError, APITimeoutError, inference
from livekit.agents.llm import FallbackAdapter, ImageContent
from livekit.plugins.anthropic import LLM as AnthropicLLM
from livekit.plugins.openai import LLM as OpenAILLM

from livekit.plugins.voicecost import _attribution, _estimates, _instrument, _wire_clients
from tests.plugin.llm_providers import (
    BY_NAME,
    ONE_TRY,
    PROVIDERS,
    Provider,
    Served,
    asked,
    assert_exact,
    assert_within_margins,
    served,
)
from tests.plugin.metered_session import RecordingMeter
from tests.simulators import LONG_ANSWER, Fault, Reply
from voicecost_ledger.records import Basis, Modality, Outcome

pytestmark = pytest.mark.filterwarnings(
    # Google's client subclasses aiohttp's session, which aiohttp advises against.
    "ignore:Inheritance class AiohttpClientSession:DeprecationWarning"
)

RULES = " ".join(f"Rule {number}: {LONG_ANSWER}" for number in range(9))
"""Instructions that are worth caching: more than a thousand tokens."""


@pytest.fixture(autouse=True)
def faults_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")


@pytest.fixture(autouse=True)
def nothing_learned_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests taught the process of a model is not known here."""
    monkeypatch.setattr(_estimates, "_process", {})


@pytest.fixture
def meter() -> Iterator[RecordingMeter]:
    meter = RecordingMeter()
    with _attribution.scoped(meter):
        yield meter


async def _interrupt(service: Served, question: Any, *, after_chunks: int = 5) -> None:
    count = len(service.legs)
    async with service.ask(question):
        await service.meter.until(
            lambda: (
                len(service.legs) > count
                and service.legs[-1].usage["completion_chunks"] >= after_chunks
            )
        )
    await service.bill.settled()


async def test_anthropics_cache_is_written_once_and_read_after(meter: RecordingMeter) -> None:
    def make(simulator: Any) -> AnthropicLLM:
        return AnthropicLLM(
            model="claude-sonnet-4-6", base_url=simulator.base_url, api_key="x", caching="ephemeral"
        )

    caching = Provider("anthropic", BY_NAME["anthropic"].simulator_class, make)
    async with served(caching, meter, Reply(text="Hello.")) as service:
        for question in ("Hello there.", "Hello again."):
            await service.answer(asked(question, instructions=RULES))
        service.simulator.token_delay_ms = 3
        service.simulator.replies = []
        await _interrupt(service, asked("Please explain everything.", instructions=RULES))
        rows = service.bill.rows

    first, second, interrupted = service.legs
    assert first.usage["cache_write_tokens"] > 1024
    assert second.usage["cached_input_tokens"] == first.usage["cache_write_tokens"]
    assert_exact(first, rows[0])
    assert_exact(second, rows[1])
    # The prompt was told when the answer began: only what was said since is an estimate.
    for unit in ("input_tokens", "cached_input_tokens"):
        assert interrupted.usage[unit] == rows[2].units[unit]
    assert {unit for unit, margin in interrupted.margins.items() if margin} == {"output_tokens"}
    assert_within_margins(interrupted, rows[2])


async def test_anthropic_is_overloaded_in_mid_answer(meter: RecordingMeter) -> None:
    """It says so in the stream, with the status of a refusal: what it wrote is billed."""
    async with served(BY_NAME["anthropic"], meter) as service:
        service.simulator.says_why = True
        service.simulator.faults.add(Fault(dies_after=40))
        with pytest.raises(APIError):
            await service.answer("Please explain everything.")
        await service.bill.settled()
        (leg,), (row,) = service.legs, service.bill.rows

    assert (leg.outcome, row.ended) == (Outcome.FAILED, "died")
    assert leg.usage["input_tokens"] == row.units["input_tokens"]
    assert_within_margins(leg, row)


async def test_googles_interrupted_answer_is_as_told_with_its_last_chunk(
    meter: RecordingMeter,
) -> None:
    reply = Reply(text=LONG_ANSWER, thoughts=LONG_ANSWER[:150])
    async with served(BY_NAME["google"], meter, reply, token_delay_ms=40) as service:
        await _interrupt(service, "Please explain everything.")
        (leg,), (row,) = service.legs, service.bill.rows

    assert (leg.outcome, leg.basis) == (Outcome.INTERRUPTED, Basis.ESTIMATED)
    assert leg.usage["input_tokens"] == row.units["input_tokens"]
    assert leg.usage["reasoning_tokens"] == row.units["reasoning_tokens"]
    assert_within_margins(leg, row)


async def test_google_is_paid_for_what_it_will_not_say(meter: RecordingMeter) -> None:
    reply = Reply(text="Something that the filter stops.", refused=True)
    async with served(BY_NAME["google"], meter, reply) as service:
        with pytest.raises(APIError):
            await service.answer("Say something bad.")
        await service.bill.settled()
        (leg,), (row,) = service.legs, service.bill.rows

    assert leg.outcome is Outcome.FAILED
    assert_exact(leg, row)


@pytest.mark.parametrize(
    ("name", "searched", "requests"),
    [
        pytest.param("google", {"search_queries": ("a", "b")}, 1, id="Gemini 2.5 by the answer"),
        pytest.param("responses", {"search_count": 3}, 3, id="OpenAI by the call"),
        pytest.param("anthropic", {"search_count": 2}, 2, id="Anthropic by the search"),
    ],
)
async def test_searches_of_the_providers_own_are_counted(
    meter: RecordingMeter, name: str, searched: dict[str, Any], requests: int
) -> None:
    async with served(BY_NAME[name], meter, Reply(text="It is sunny.")) as service:
        for attribute, value in searched.items():
            setattr(service.simulator, attribute, value)
        leg = await service.answer("What is the weather in Paris?")
    assert leg.usage["requests"] == requests


@pytest.mark.parametrize("name", ["openai", "responses"])
async def test_openais_refusal_is_output_as_any_other(meter: RecordingMeter, name: str) -> None:
    reply = Reply(text=LONG_ANSWER, refused=True)
    async with served(BY_NAME[name], meter, reply, token_delay_ms=1) as service:
        leg = await service.answer("Say something bad.")
        assert_exact(leg, service.bill.rows[0])
    assert leg.usage["completion_characters"] == len(LONG_ANSWER)


async def test_openais_newer_models_bill_what_they_write_to_the_cache(
    meter: RecordingMeter,
) -> None:
    def make(simulator: Any) -> OpenAILLM:
        return OpenAILLM(model="gpt-5.6-luna", base_url=simulator.base_url, api_key="x")

    newer = Provider("openai", BY_NAME["openai"].simulator_class, make)
    async with served(newer, meter, Reply(text="Hello.")) as service:
        first = await service.answer(asked("Hello.", instructions=RULES))
        second = await service.answer(asked("Hello again.", instructions=RULES))
        rows = service.bill.rows

    assert first.usage["cache_write_tokens"] > 1024
    assert second.usage["cached_input_tokens"] > 1024
    assert_exact(first, rows[0])
    assert_exact(second, rows[1])


@pytest.mark.parametrize("how", ["at the end", "with every chunk"])
@pytest.mark.parametrize("thoughts", ["in the output", "in the total", "in nothing apart"])
async def test_every_hosts_way_to_count_comes_to_the_same(
    meter: RecordingMeter, how: str, thoughts: str
) -> None:
    """OpenAI's protocol leaves hosts room: xAI counts thoughts beside the completion's tokens."""
    reply = Reply(text=LONG_ANSWER, thoughts=LONG_ANSWER[:200])
    async with served(BY_NAME["groq"], meter, reply) as service:
        service.simulator.tells_usage = how
        service.simulator.counts_thoughts = thoughts
        leg = await service.answer("Please explain everything.")
        service.simulator.token_delay_ms = 2
        await _interrupt(service, "Please explain everything again.")
        whole, cut = service.bill.rows

    assert leg.basis is Basis.REPORTED
    for unit in ("input_tokens", "output_tokens"):
        assert leg.usage[unit] == whole.units[unit]
    interrupted = service.legs[-1]
    for unit in ("input_tokens", "output_tokens"):
        off = interrupted.usage[unit] - cut.units[unit]
        assert abs(off) <= interrupted.margins.get(unit, 0)


async def test_a_host_that_never_tells_is_estimated(meter: RecordingMeter) -> None:
    async with served(BY_NAME["ollama"], meter, Reply()) as service:
        service.simulator.tells_usage = "never"
        leg = await service.answer("Please explain everything.")
        (row,) = service.bill.rows

    assert leg.outcome is Outcome.SERVED
    assert_within_margins(leg, row)


@pytest.mark.parametrize("name", ["openai", "responses", "anthropic", "google"])
async def test_an_interruption_while_the_model_still_thinks(
    meter: RecordingMeter, name: str
) -> None:
    """Nothing was seen of it, and its thoughts so far are billed."""
    replies = [
        Reply(match=word, text="I see.", thoughts=LONG_ANSWER[:size])
        for word, size in (("one", 300), ("two", 340), ("three", 380), ("four", 700))
    ]
    async with served(BY_NAME[name], meter, *replies, token_delay_ms=40) as service:
        if name == "anthropic":
            service.simulator.shows_thoughts = "omitted"
        for word in ("one", "two", "three"):
            await service.answer(f"Think about number {word}.")
        rows = service.bill.rows
        async with service.ask("Think about number four."):
            await service.simulator.until(
                lambda: len(rows) == 4 and rows[-1].units["output_tokens"] >= 50
            )
        await service.bill.settled()
        leg, row = service.legs[-1], rows[-1]

    assert (leg.outcome, row.ended) == (Outcome.INTERRUPTED, "cancelled")
    assert leg.usage["completion_chunks"] == 0
    assert_within_margins(leg, row)


async def test_the_first_request_of_a_model_that_thinks_is_interrupted(
    meter: RecordingMeter,
) -> None:
    """Nobody knows how much it thinks: what it had the time for, give or take all of it."""

    def make(simulator: Any) -> OpenAILLM:
        return OpenAILLM(
            model="gpt-5", base_url=simulator.base_url, api_key="x", reasoning_effort="high"
        )

    thinks = Provider("openai", BY_NAME["openai"].simulator_class, make)
    reply = Reply(text="I see.", thoughts=LONG_ANSWER)
    async with served(thinks, meter, reply, token_delay_ms=12) as service:
        rows = service.bill.rows
        async with service.ask("Think about it."):
            await service.simulator.until(
                lambda: rows and rows[-1].units.get("reasoning_tokens", 0) >= 20
            )
        await service.bill.settled()
        (leg,), (row,) = service.legs, rows

    assert leg.usage["reasoning_tokens"] > 0
    assert_within_margins(leg, row)


async def test_a_host_that_is_asked_for_behind_the_gateway_has_its_own_price(
    meter: RecordingMeter,
) -> None:
    def make(simulator: Any) -> inference.LLM:
        return inference.LLM(
            "openai/gpt-5",
            provider="openai",
            base_url=simulator.base_url,
            api_key="key",
            api_secret="s" * 32,
        )

    routed = Provider("inference", BY_NAME["inference"].simulator_class, make)
    async with served(routed, meter, Reply(text="Hello.")) as service:
        leg = await service.answer("Hello.")
    assert (leg.attributes.model, leg.served_model) == ("openai/gpt-5", "openai/gpt-5@openai")


@pytest.mark.parametrize("said", ["google/gemini-2.5-flash", "gemini-2.5-flash"])
async def test_the_gateway_says_who_served(meter: RecordingMeter, said: str) -> None:
    async with served(BY_NAME["inference"], meter, Reply(text="Hello.")) as service:
        service.simulator.fallback_model = said
        leg = await service.answer("Hello.")
        (row,) = service.bill.rows

    assert leg.attributes.model == "openai/gpt-4o-mini"
    assert leg.served_model == "google/gemini-2.5-flash"
    assert_exact(leg, row)


@pytest.mark.parametrize("name", ["openai", "responses"])
@pytest.mark.parametrize(
    ("asked_for", "served_by", "told"),
    [("priority", "default", "default"), ("auto", "default", ""), ("flex", "flex", "")],
)
async def test_a_tier_that_was_not_asked_for_is_told(
    meter: RecordingMeter, name: str, asked_for: str, served_by: str, told: str
) -> None:
    """OpenAI serves what its priority tier has no room for as any other request."""
    async with served(BY_NAME[name], meter, Reply(text="Hello.")) as service:
        service.simulator.service_tier = served_by
        leg = await service.answer("Hello.", extra_kwargs={"service_tier": asked_for})

    assert (leg.attributes.service_tier, leg.served_tier) == (asked_for, told)


async def test_a_conversation_that_the_provider_keeps_is_billed_whole(
    meter: RecordingMeter,
) -> None:
    """The responses API is sent what is new and reads it all."""
    replies = (Reply(match="name", text="Pleased to meet you, Kim."), Reply())
    async with served(BY_NAME["responses"], meter, *replies, token_delay_ms=40) as service:
        context = asked("My name is Kim.", instructions=RULES[:1500])
        await service.answer(context)
        context.add_message(role="assistant", content="Pleased to meet you, Kim.")
        context.add_message(role="user", content="Please explain everything to me.")
        await _interrupt(service, context)
        leg, row = service.legs[-1], service.bill.rows[-1]

    assert row.units["input_tokens"] > 300
    assert_within_margins(leg, row)


async def test_an_interrupted_response_over_a_socket_is_billed_to_its_end(
    meter: RecordingMeter,
) -> None:
    """LiveKit's pool closes its socket with the next request: until then it is generated."""
    provider = BY_NAME["responses over a socket"]
    async with served(provider, meter, token_delay_ms=40) as service:
        await _interrupt(service, "Please explain everything.")
        (leg,), (row,) = service.legs, service.bill.rows
        await meter.until(lambda: leg.basis is Basis.REPORTED)

    assert (leg.outcome, row.ended) == (Outcome.INTERRUPTED, "completed")
    assert_exact(leg, row)


async def test_the_next_request_ends_an_interrupted_response_on_its_socket(
    meter: RecordingMeter,
) -> None:
    provider = BY_NAME["responses over a socket"]
    replies = (Reply(match="hello", text="Hello there."), Reply())
    async with served(provider, meter, *replies, token_delay_ms=40) as service:
        await service.answer("Hello, who is this?")
        async with service.ask("Please explain everything."):
            await meter.until(
                lambda: len(service.legs) == 2 and service.legs[1].usage["completion_chunks"] >= 5
            )
        await service.answer("Hello again.")
        _, interrupted, answered = service.legs
        _, cancelled, completed = service.bill.rows

    assert (interrupted.outcome, cancelled.ended) == (Outcome.INTERRUPTED, "cancelled")
    assert_within_margins(interrupted, cancelled)
    assert_exact(answered, completed)


async def test_pictures_are_input_of_their_own_kind(meter: RecordingMeter) -> None:
    picture = ImageContent(image="data:image/png;base64,iVBORw0KGgo=")
    async with served(BY_NAME["google"], meter, Reply(text="It is a cat.")) as service:
        context = asked("What is this?")
        context.add_message(role="user", content=["And that?", picture])
        leg = await service.answer(context)
        assert_exact(leg, service.bill.rows[0])
    assert leg.usage["input_image_tokens"] == 258


async def test_a_budget_hangs_up_on_a_response_over_a_socket(meter: RecordingMeter) -> None:
    provider = BY_NAME["responses over a socket"]
    async with served(provider, meter, token_delay_ms=3) as service:
        meter.limit_nano_usd = 40_000  # the prompt, and some of the answer
        async with service.ask("Please explain everything.") as stream:
            async for _ in stream:
                pass
        await service.bill.settled()
        (leg,), (row,) = service.legs, service.bill.rows

    assert (leg.outcome, row.ended) == (Outcome.CUT, "cancelled")
    assert 0 < leg.usage["output_tokens"] <= row.units["output_tokens"] + 4


@pytest.mark.parametrize("name", ["anthropic", "google"])
async def test_a_budget_ends_an_answer_of_which_the_provider_tells(
    meter: RecordingMeter, name: str
) -> None:
    async with served(BY_NAME[name], meter, token_delay_ms=3) as service:
        await service.answer(asked("Hello.", instructions=RULES))  # with it, all is known
        meter.limit_nano_usd = meter.total_nano_usd + 40_000
        async with service.ask("Please explain everything.") as stream:
            async for _ in stream:
                pass
        await service.bill.settled()
        leg, row = service.legs[-1], service.bill.rows[-1]

    assert (leg.outcome, row.ended) == (Outcome.CUT, "cancelled")
    assert row.units["output_tokens"] < 100


@pytest.mark.parametrize(
    "provider",
    [each for each in PROVIDERS if "socket" not in each.name],  # which waits for ever
    ids=str,
)
async def test_silence_until_the_timeout_is_billed_its_prompt(
    meter: RecordingMeter, provider: Provider
) -> None:
    """Accepted, then nothing: LiveKit reports only the retry."""
    soon = APIConnectOptions(max_retry=0, timeout=0.2)
    async with served(provider, meter, Reply(text="Here I am.")) as service:
        await service.answer("Hello.")
        service.simulator.faults.add(Fault(silent=True))
        with pytest.raises((APITimeoutError, APIError)):
            await service.answer("Are you there?", conn_options=soon)
        await service.bill.settled()
        leg, row = service.legs[-1], service.bill.rows[-1]

    assert (leg.outcome, row.ended) == (Outcome.FAILED, "cancelled")
    assert row.units["output_tokens"] == 0
    assert_within_margins(leg, row)


async def test_failover_from_one_provider_to_another_and_a_probe(meter: RecordingMeter) -> None:
    fails, serves = BY_NAME["anthropic"], BY_NAME["google"]
    async with (
        served(fails, meter, Reply(text="I am back.")) as one,
        served(serves, meter, Reply(text="I am here.")) as other,
    ):
        one.simulator.faults.add(Fault(status=529))
        adapter = FallbackAdapter([one.llm, other.llm], max_retry_per_llm=0)
        async with adapter.chat(chat_ctx=asked("Hello."), conn_options=ONE_TRY) as stream:
            async for _ in stream:
                pass
        legs = await meter.stopped(Modality.LLM, 3)
        await one.bill.settled()
        await other.bill.settled()
        await adapter.aclose()

    by_outcome = {leg.outcome: leg for leg in legs}
    assert set(by_outcome) == {Outcome.FAILED, Outcome.SERVED, Outcome.PROBE}
    assert by_outcome[Outcome.FAILED].basis is Basis.OBSERVED
    assert_exact(by_outcome[Outcome.SERVED], other.bill.rows[0])
    assert_exact(by_outcome[Outcome.PROBE], one.bill.rows[-1])


@pytest.mark.parametrize("provider", PROVIDERS, ids=str)
async def test_without_the_wire_what_livekit_shows_will_do(
    meter: RecordingMeter, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that nobody knows: what its plugin says of whole answers, estimates of others."""
    monkeypatch.setattr(_instrument._wire_openai, "observe_openai_clients", lambda: lambda: None)
    monkeypatch.setattr(_wire_clients, "observe_clients", lambda: lambda: None)
    monkeypatch.setattr(_instrument.LLMAttempt, "text_sending", lambda *_: None)
    replies = (Reply(match="hello", text="Hello there, this is your bank."), Reply())
    async with served(provider, meter, *replies, token_delay_ms=60) as service:
        whole = await service.answer("Hello, who is this?")
        await _interrupt(service, "Please explain everything to me.")
        rows = service.bill.rows
        interrupted = service.legs[-1]

    assert whole.basis is Basis.REPORTED
    assert whole.usage["input_tokens"] == rows[0].units["input_tokens"]
    # Anthropic's plugin adds the tokens that the first event told to those of the last.
    assert 0 <= whole.usage["output_tokens"] - rows[0].units["output_tokens"] <= 8
    assert interrupted.outcome is Outcome.INTERRUPTED
    if not service.uses_sockets:  # then it was generated to its end, unseen
        assert_within_margins(interrupted, rows[1])

"""One attempt of an LLM request, whoever serves it: our units are what the provider bills."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from livekit.agents import APIError, APIStatusError
from livekit.agents.llm import FunctionCall, FunctionCallOutput

from livekit.plugins.voicecost import _attribution, _estimates
from tests.plugin.livekit_versions import LIVEKIT_1_5
from tests.plugin.llm_providers import (
    ONE_MORE,
    PROVIDERS,
    Provider,
    Served,
    asked,
    assert_exact,
    assert_within_margins,
    served,
)
from tests.plugin.metered_session import RecordingMeter
from tests.simulators import LONG_ANSWER, Fault, Reply, ToolCall
from voicecost_ledger.records import Basis, Outcome

pytestmark = [
    pytest.mark.parametrize("provider", PROVIDERS, ids=str),
    # Google's client subclasses aiohttp's session, which aiohttp advises against.
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
]

PARIS = ToolCall(name="get_weather", arguments={"city": "Paris", "day": "tomorrow"})
BERLIN = ToolCall(name="get_weather", arguments={"city": "Berlin", "day": "the day after that"})


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


async def _leave(served: Served, question: str, *, after_chunks: int) -> None:
    """Ask, and leave when so many chunks of the answer are there."""
    count = len(served.legs)
    async with served.ask(question):
        if after_chunks:
            await served.meter.until(
                lambda: (
                    len(served.legs) > count
                    and served.legs[-1].usage["completion_chunks"] >= after_chunks
                )
            )
        else:
            await served.simulator.until(lambda: len(served.bill.rows) > count)
    await _hang_up(served)


async def _hang_up(served: Served) -> None:
    """Let the provider notice: LiveKit's pool keeps even an interrupted socket."""
    if served.uses_sockets:
        await served.llm.aclose()
    await served.bill.settled()


async def test_an_answer_that_nobody_interrupts(provider: Provider, meter: RecordingMeter) -> None:
    async with served(provider, meter, Reply(text="It is sunny in Paris today.")) as service:
        leg = await service.answer("What is the weather in Paris?")
        (row,) = service.bill.rows

    assert leg.outcome is Outcome.SERVED
    assert_exact(leg, row)
    assert leg.time_to_first_ms is not None
    assert leg.served_model == ""


async def test_tools_that_are_called_at_once_and_spoken_about(
    provider: Provider, meter: RecordingMeter
) -> None:
    calls = Reply(text="It will be sunny.", tool_call=PARIS, parallel=(BERLIN,))
    async with served(provider, meter, calls) as service:
        context = asked("How is the weather in Paris and in Berlin?")
        async with service.ask(context) as stream:
            response = await stream.collect()
        assert len(response.tool_calls) == 2
        for call in response.tool_calls:
            said = FunctionCall(call_id=call.call_id, name=call.name, arguments=call.arguments)
            context.insert(said)
        for call in response.tool_calls:
            result = FunctionCallOutput(
                call_id=call.call_id, name=call.name, output="sunny", is_error=False
            )
            context.insert(result)
        await service.answer(context)
        rows = service.bill.rows

    assert [leg.outcome for leg in service.legs] == [Outcome.SERVED, Outcome.SERVED]
    for leg, row in zip(service.legs, rows, strict=True):
        assert_exact(leg, row)


async def test_an_interruption_in_mid_answer(provider: Provider, meter: RecordingMeter) -> None:
    """LiveKit reports 0 tokens for it, or nothing."""
    replies = (Reply(match="hello", text="Hello there, this is your bank."), Reply())
    async with served(provider, meter, *replies, token_delay_ms=40) as service:
        await service.answer("Hello, who is this?")
        await _leave(service, "Please explain everything to me.", after_chunks=6)
        leg, row = service.legs[-1], service.bill.rows[-1]

    assert row.ended == "cancelled"
    assert leg.outcome is Outcome.INTERRUPTED
    assert 0 < row.units["output_tokens"] < 100
    assert_within_margins(leg, row)


async def test_an_interruption_before_the_first_token(
    provider: Provider, meter: RecordingMeter
) -> None:
    """The prompt is billed all the same."""
    async with served(provider, meter, first_token_delay_ms=50) as service:
        await service.answer("Hello, who is this?")
        service.simulator.first_token_delay_ms = 5_000
        await _leave(service, "Please explain everything to me.", after_chunks=0)
        leg, row = service.legs[-1], service.bill.rows[-1]

    assert (leg.outcome, row.ended) == (Outcome.INTERRUPTED, "cancelled")
    assert row.units["output_tokens"] == 0
    assert_within_margins(leg, row)
    assert leg.time_to_first_ms is None


async def test_arguments_of_a_tool_call_half_written(
    provider: Provider, meter: RecordingMeter
) -> None:
    if provider.name in ("google", "ollama"):
        pytest.skip("it sends a tool call whole")
    long = ToolCall(name="get_weather", arguments={"city": LONG_ANSWER[:300], "day": "today"})
    replies = (Reply(match="hello", text="Hi.", tool_call=PARIS), Reply(tool_call=long))
    async with served(provider, meter, *replies, token_delay_ms=3) as service:
        await service.answer("Hello, how is the weather in Paris?")
        async with service.ask("And in the town with the long name?"):
            rows = service.bill.rows
            await service.simulator.until(
                lambda: len(rows) > 1 and rows[-1].units["output_tokens"] >= 30
            )
        await _hang_up(service)
        leg, row = service.legs[-1], service.bill.rows[-1]

    assert (leg.outcome, row.ended) == (Outcome.INTERRUPTED, "cancelled")
    assert_within_margins(leg, row)


@pytest.mark.parametrize("status", [429, 500])
async def test_a_refusal_costs_nothing_and_its_retry_is_a_leg(
    provider: Provider, meter: RecordingMeter, status: int
) -> None:
    if LIVEKIT_1_5 and provider.name == "anthropic":
        pytest.skip("LiveKit 1.5 leaves it to Anthropic's client to try again")
    async with served(provider, meter, Reply(text="Here I am.")) as service:
        service.simulator.faults.add(Fault(status=status))
        if service.uses_sockets:  # the plugin takes a refusal for the last word
            with pytest.raises(APIStatusError):
                await service.answer("Are you there?")
            await service.answer("Are you there?")
        else:
            await service.answer("Are you there?", conn_options=ONE_MORE)
        refused, answered = service.legs
        _, row = service.bill.rows

    assert (refused.outcome, refused.basis) == (Outcome.FAILED, Basis.OBSERVED)
    assert not any(refused.usage[unit] for unit in ("input_tokens", "output_tokens"))
    assert_exact(answered, row)


async def test_a_stream_that_dies(provider: Provider, meter: RecordingMeter) -> None:
    replies = (Reply(match="hello", text="Hello there, this is your bank."), Reply())
    async with served(provider, meter, *replies) as service:
        await service.answer("Hello, who is this?")
        service.simulator.faults.add(Fault(dies_after=30))
        with pytest.raises(APIError):
            await service.answer("Please explain everything to me.")
        await service.bill.settled()
        (died,) = [leg for leg in service.legs if leg.outcome is Outcome.FAILED]
        row = service.bill.rows[-1]

    assert row.ended == "died"
    assert_within_margins(died, row)


async def test_thoughts_are_billed_and_part_of_the_output(
    provider: Provider, meter: RecordingMeter
) -> None:
    thinking = Reply(text="It is sunny.", thoughts=LONG_ANSWER[:200])
    async with served(provider, meter, thinking) as service:
        leg = await service.answer("What is the weather in Paris?")
        (row,) = service.bill.rows

    assert row.units["reasoning_tokens"] > 30
    assert_exact(leg, row)


async def test_thoughts_of_an_interrupted_answer_are_estimated_from_others(
    provider: Provider, meter: RecordingMeter
) -> None:
    replies = [
        Reply(match=word, text=LONG_ANSWER, thoughts=LONG_ANSWER[:size])
        for word, size in (("one", 150), ("two", 190), ("three", 230), ("four", 200))
    ]
    async with served(provider, meter, *replies) as service:
        for word in ("one", "two", "three"):
            await service.answer(f"Tell me about number {word}.")
        service.simulator.token_delay_ms = 2
        await _leave(service, "Tell me about number four.", after_chunks=4)
        leg, row = service.legs[-1], service.bill.rows[-1]

    assert leg.outcome is Outcome.INTERRUPTED
    assert row.units["reasoning_tokens"] > 30
    assert leg.usage["reasoning_tokens"] > 30
    assert_within_margins(leg, row)

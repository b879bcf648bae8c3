"""The simulated OpenAI, as the real, unmodified LiveKit plugin and OpenAI client see it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from livekit.agents import APIConnectionError, APIStatusError, APITimeoutError, function_tool
from livekit.agents.llm import (
    ChatContext,
    CompletionUsage,
    FunctionCall,
    FunctionCallOutput,
)
from livekit.agents.types import APIConnectOptions
from livekit.plugins.openai import LLM

from tests.simulators import LONG_ANSWER, Fault, OpenAISimulator, Reply, ToolCall

ONE_TRY = APIConnectOptions(max_retry=0, timeout=5)


@function_tool
async def get_weather(city: str) -> str:
    """Look up the weather of today.

    Args:
        city: Name of the city.
    """
    return f"sunny in {city}"


@pytest.fixture
async def openai() -> AsyncIterator[OpenAISimulator]:
    async with OpenAISimulator(
        replies=[
            Reply(
                match="weather",
                text="It is sunny in Paris.",
                tool_call=ToolCall(name="get_weather", arguments={"city": "Paris"}),
            ),
            Reply(match="hello", text="Hello! How can I help you?"),
        ],
        first_token_delay_ms=1,
        token_delay_ms=0,
    ) as simulator:
        yield simulator


@pytest.fixture
async def llm(openai: OpenAISimulator) -> AsyncIterator[LLM]:
    llm = LLM(model="gpt-4o-mini", base_url=openai.base_url, api_key="x")
    yield llm
    await llm.aclose()


def asked(question: str, *, instructions: str = "You are a friendly assistant.") -> ChatContext:
    context = ChatContext()
    context.add_message(role="system", content=instructions)
    context.add_message(role="user", content=question)
    return context


async def answer(llm: LLM, context: ChatContext) -> tuple[str, list[Any], CompletionUsage | None]:
    text, calls, usage = "", list[Any](), None
    async with llm.chat(chat_ctx=context, tools=[get_weather], conn_options=ONE_TRY) as stream:
        async for chunk in stream:
            if chunk.delta is not None:
                text += chunk.delta.content or ""
                calls += chunk.delta.tool_calls
            usage = chunk.usage or usage
    return text, calls, usage


async def test_the_bill_is_what_the_usage_chunk_says(openai: OpenAISimulator, llm: LLM) -> None:
    text, _, usage = await answer(llm, asked("Hello there"))

    assert text == "Hello! How can I help you?"
    (row,) = openai.bill.rows
    assert usage is not None
    assert (row.ended, row.model) == ("completed", "gpt-4o-mini")
    assert row.units == {
        "input_tokens": usage.prompt_tokens,
        "cached_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }
    assert row.generated_ahead == {}


async def test_a_tool_is_called_and_its_result_is_spoken_about(
    openai: OpenAISimulator, llm: LLM
) -> None:
    context = asked("What is the weather?")
    _, calls, usage = await answer(llm, context)
    assert [(call.name, call.arguments) for call in calls] == [("get_weather", '{"city": "Paris"}')]
    assert usage is not None
    assert usage.completion_tokens > 8

    context.insert(
        [
            FunctionCall(call_id=calls[0].call_id, name="get_weather", arguments="{}"),
            FunctionCallOutput(
                call_id=calls[0].call_id, name="get_weather", output="sunny", is_error=False
            ),
        ]
    )
    text, calls, _ = await answer(llm, context)
    assert (text, calls) == ("It is sunny in Paris.", [])


async def test_a_client_that_leaves_pays_the_prompt_and_what_it_received() -> None:
    """The second bill adds the half second in which a provider may go on generating."""
    async with OpenAISimulator(first_token_delay_ms=1, token_delay_ms=20) as openai:
        llm = LLM(model="gpt-4o-mini", base_url=openai.base_url, api_key="x")
        received = ""
        async with llm.chat(chat_ctx=asked("Tell me everything"), conn_options=ONE_TRY) as stream:
            async for chunk in stream:
                received += (chunk.delta.content or "") if chunk.delta else ""
                if len(received) > 40:
                    break
        await openai.bill.settled()
        await llm.aclose()

        (row,) = openai.bill.rows
    assert row.ended == "cancelled"
    assert row.units["input_tokens"] > 10
    assert LONG_ANSWER.startswith(received)
    # About four characters a token; what was in flight when the client left is billed as well.
    assert len(received) // 8 <= row.units["output_tokens"] <= len(received)
    assert row.generated_ahead["output_tokens"] >= 10
    ahead = row.units_with_generation_ahead()["output_tokens"] - row.units["output_tokens"]
    assert ahead == row.generated_ahead["output_tokens"]


async def test_a_request_accepted_in_silence_costs_its_prompt(
    openai: OpenAISimulator, llm: LLM
) -> None:
    openai.faults.add(Fault(silent=True))
    impatient = APIConnectOptions(max_retry=0, timeout=0.05)
    async with llm.chat(chat_ctx=asked("Hello"), conn_options=impatient) as stream:
        with pytest.raises(APITimeoutError):
            await anext(stream)
    await openai.bill.settled()
    (row,) = openai.bill.rows
    assert (row.ended, row.units["output_tokens"]) == ("cancelled", 0)
    assert row.units["input_tokens"] > 0


async def test_a_stream_that_dies_costs_what_was_generated(
    openai: OpenAISimulator, llm: LLM
) -> None:
    openai.faults.add(Fault(dies_after=12))
    with pytest.raises(APIConnectionError):
        await answer(llm, asked("Tell me everything"))
    (row,) = openai.bill.rows
    assert row.ended == "died"
    assert 12 <= row.units["output_tokens"] <= 15


@pytest.mark.parametrize("status", [429, 500])
async def test_a_refused_request_costs_nothing(
    openai: OpenAISimulator, llm: LLM, status: int
) -> None:
    openai.faults.add(Fault(status=status))
    with pytest.raises(APIStatusError) as caught:
        await answer(llm, asked("Hello"))
    assert caught.value.status_code == status
    (row,) = openai.bill.rows
    assert row.ended == "refused"
    assert not any(row.units.values())


async def test_a_long_prefix_seen_before_is_cached_in_steps_of_128(
    openai: OpenAISimulator, llm: LLM
) -> None:
    """Nothing below 1024 tokens, and only what is exactly the same from the start."""
    rules = " ".join(f"Rule {number}: always be polite to caller {number}." for number in range(90))
    usages = [
        (await answer(llm, asked(question, instructions=instructions)))[2]
        for question, instructions in [
            ("hello one", rules),
            ("hello two", rules),
            ("hello two", "Different from the first word on. " + rules),
            ("hello one", "short"),
            ("hello two", "short"),
        ]
    ]
    cached = [usage.prompt_cached_tokens for usage in usages if usage is not None]
    first = usages[0]
    assert first is not None
    assert cached == [0, first.prompt_tokens // 128 * 128, 0, 0, 0]
    assert openai.bill.total("cached_input_tokens") == sum(cached)


async def test_without_streaming_the_same_is_billed(openai: OpenAISimulator) -> None:
    request = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
    url = f"{openai.base_url}/chat/completions"
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer x"}) as http:
        async with http.post(url, json=request) as response:
            body = await response.json()
        async with http.post(url, json=request | {"max_completion_tokens": 3}) as response:
            cut = await response.json()
    assert body["choices"][0]["message"]["content"] == "Hello! How can I help you?"
    assert cut["choices"][0]["finish_reason"] == "length"
    assert [row.units["output_tokens"] for row in openai.bill.rows] == [
        body["usage"]["completion_tokens"],
        3,
    ]


async def test_prewarming_costs_nothing(openai: OpenAISimulator, llm: LLM) -> None:
    llm.prewarm()
    await answer(llm, asked("Hello"))
    assert len(openai.bill.rows) == 1

"""A language model class of the user's own, over a client library that we know."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from anthropic import AsyncAnthropic
from google.genai import Client
from google.genai.types import HttpOptions
from livekit.agents import APIConnectOptions
from livekit.agents.llm import LLM, ChatChunk, ChatContext, ChoiceDelta, LLMStream
from openai import AsyncOpenAI

from livekit.plugins.voicecost import _attribution, _instrument
from tests.plugin.llm_providers import assert_exact
from tests.plugin.metered_session import RecordingMeter, SeenLeg
from tests.simulators import OpenAISimulator, Reply
from tests.simulators.anthropic_messages import AnthropicSimulator
from tests.simulators.google_generate import GoogleSimulator
from voicecost_ledger.records import Basis, Modality, Outcome

ONE_TRY = APIConnectOptions(max_retry=0, timeout=5)


@pytest.fixture(autouse=True)
def faults_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")


@pytest.fixture
def meter() -> Iterator[RecordingMeter]:
    meter = RecordingMeter()
    with _attribution.scoped(meter):
        yield meter


@pytest.fixture
async def openai() -> AsyncIterator[OpenAISimulator]:
    _instrument.instrument()
    replies = [Reply(match="hello", text="Hello."), Reply(match="weather", text="It is sunny.")]
    try:
        async with OpenAISimulator(
            replies=replies, first_token_delay_ms=5, token_delay_ms=0
        ) as simulator:
            yield simulator
    finally:
        _instrument.uninstrument()


class Own(LLM[Any]):
    """Asks by itself, as `how` says, and tells LiveKit no usage."""

    def __init__(self, openai: OpenAISimulator, how: str) -> None:
        super().__init__()
        self.client = AsyncOpenAI(base_url=openai.base_url, api_key="x", max_retries=0)
        self.how = how

    def chat(self, *, chat_ctx: ChatContext, **options: Any) -> LLMStream:
        return OwnStream(self, chat_ctx=chat_ctx, tools=[], conn_options=ONE_TRY)


class OwnStream(LLMStream):
    async def _run(self) -> None:
        own = self._llm
        assert isinstance(own, Own)
        match own.how:
            case "whole":
                self._say(await self._ask(own, "hello"))
            case "in a row":
                await self._ask(own, "hello")
                self._say(await self._ask(own, "weather"))
            case "at once":
                for text in await asyncio.gather(
                    self._ask(own, "hello", stream=True), self._ask(own, "weather", stream=True)
                ):
                    self._say(text)
            case how:
                raise ValueError(how)

    async def _ask(self, own: Own, question: str, *, stream: bool = False) -> str:
        messages: Any = [{"role": "user", "content": question}]
        create: Any = own.client.chat.completions.create
        answer = await create(
            model="gpt-4o-mini", messages=messages, stream=stream, **_usage(stream)
        )
        if not stream:
            return answer.choices[0].message.content
        text = ""
        async for chunk in answer:
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
        return text

    def _say(self, text: str) -> None:
        delta = ChoiceDelta(role="assistant", content=text)
        self._event_ch.send_nowait(ChatChunk(id="own", delta=delta))


def _usage(stream: bool) -> dict[str, Any]:
    return {"stream_options": {"include_usage": True}} if stream else {}


@pytest.mark.parametrize(("how", "requests"), [("whole", 1), ("in a row", 2), ("at once", 2)])
async def test_whatever_one_run_asks_for_is_one_leg_of_all_of_it(
    openai: OpenAISimulator, meter: RecordingMeter, how: str, requests: int
) -> None:
    own = Own(openai, how)
    context = ChatContext.empty()
    context.add_message(role="user", content="Hello.")
    async with own.chat(chat_ctx=context) as stream:
        async for _ in stream:
            pass
    await openai.bill.settled()
    await own.client.close()

    (leg,) = meter.of(Modality.LLM)
    assert len(openai.bill.rows) == requests
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.REPORTED)
    for unit in ("input_tokens", "output_tokens"):
        assert leg.usage[unit] == openai.bill.total(unit)


class Other(LLM[Any]):
    """Asks another provider's client library by itself, and tells LiveKit no usage."""

    def __init__(self, ask: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self.ask = ask

    def chat(self, *, chat_ctx: ChatContext, **options: Any) -> LLMStream:
        return OtherStream(self, chat_ctx=chat_ctx, tools=[], conn_options=ONE_TRY)


class OtherStream(LLMStream):
    async def _run(self) -> None:
        other = self._llm
        assert isinstance(other, Other)
        await other.ask()


async def _metered(meter: RecordingMeter, ask: Callable[[], Awaitable[None]]) -> SeenLeg:
    context = ChatContext.empty()
    context.add_message(role="user", content="Hello.")
    async with Other(ask).chat(chat_ctx=context) as stream:
        async for _ in stream:
            pass
    (leg,) = await meter.stopped(Modality.LLM)
    return leg


@pytest.mark.parametrize("beta", [False, True], ids=["stable", "beta"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streaming"])
async def test_anthropics_client_however_it_is_asked(
    openai: OpenAISimulator, meter: RecordingMeter, beta: bool, stream: bool
) -> None:
    async with (
        AnthropicSimulator(first_token_delay_ms=5, token_delay_ms=0) as simulator,
        AsyncAnthropic(base_url=simulator.base_url, api_key="x", max_retries=0) as client,
    ):
        create: Any = client.beta.messages.create if beta else client.messages.create

        async def ask() -> None:
            messages: Any = [{"role": "user", "content": "Please explain everything."}]
            model = "claude-sonnet-4-6"
            answer = await create(model=model, max_tokens=500, messages=messages, stream=stream)
            if stream:
                async for _ in answer:
                    pass

        leg = await _metered(meter, ask)
        assert_exact(leg, simulator.bill.rows[0])


@pytest.mark.parametrize("beta", [False, True], ids=["stable", "beta"])
async def test_anthropics_helper_that_streams(
    openai: OpenAISimulator, meter: RecordingMeter, beta: bool
) -> None:
    async with (
        AnthropicSimulator(first_token_delay_ms=5, token_delay_ms=0) as simulator,
        AsyncAnthropic(base_url=simulator.base_url, api_key="x", max_retries=0) as client,
    ):
        messages: Any = client.beta.messages if beta else client.messages

        async def ask() -> None:
            question = [{"role": "user", "content": "Please explain everything."}]
            model = "claude-sonnet-4-6"
            async with messages.stream(model=model, max_tokens=500, messages=question) as stream:
                async for _ in stream:
                    pass

        leg = await _metered(meter, ask)
        assert_exact(leg, simulator.bill.rows[0])


@pytest.mark.parametrize("helper", ["parse", "stream"])
async def test_openais_helpers(openai: OpenAISimulator, meter: RecordingMeter, helper: str) -> None:
    async with AsyncOpenAI(base_url=openai.base_url, api_key="x", max_retries=0) as client:
        completions: Any = client.chat.completions
        asked: dict[str, Any] = {
            "model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]
        }  # fmt: skip

        async def ask() -> None:
            if helper == "parse":
                await completions.parse(**asked)
                return
            async with completions.stream(**asked, **_usage(True)) as stream:
                async for _ in stream:
                    pass

        leg = await _metered(meter, ask)
        await openai.bill.settled()
        assert_exact(leg, openai.bill.rows[0])


@pytest.mark.filterwarnings(
    # Google's client subclasses aiohttp's session, which aiohttp advises against.
    "ignore:Inheritance class AiohttpClientSession:DeprecationWarning"
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streaming"])
async def test_googles_client_however_it_is_asked(
    openai: OpenAISimulator, meter: RecordingMeter, stream: bool
) -> None:
    async with GoogleSimulator(first_token_delay_ms=5, token_delay_ms=0) as simulator:
        options = HttpOptions(base_url=simulator.base_url)
        async with Client(api_key="x", http_options=options).aio as client:
            models: Any = client.models

            async def ask() -> None:
                asked: dict[str, Any] = {"model": "gemini-2.5-flash", "contents": "Explain it."}
                if stream:
                    async for _ in await models.generate_content_stream(**asked):
                        pass
                else:
                    await models.generate_content(**asked)

            leg = await _metered(meter, ask)
        assert_exact(leg, simulator.bill.rows[0])


PROGRAM = """
import sys
from livekit.plugins.voicecost import _instrument, _wire_clients
_instrument.instrument()
heavy = [name for name in ("anthropic", "google.genai") if name in sys.modules]
assert not heavy, heavy

import anthropic
_wire_clients.observe_loaded()
anthropic.AsyncAnthropic(api_key="x").messages
from anthropic.resources.messages import AsyncMessages
observed = AsyncMessages.create

from google.genai.models import AsyncModels
before = AsyncModels._generate_content_stream
_wire_clients.observe_loaded()
assert AsyncModels._generate_content_stream.__wrapped__ is before
_instrument.uninstrument()
assert AsyncMessages.create is observed.__wrapped__
assert AsyncModels._generate_content_stream is before
"""


def test_no_library_is_loaded_that_the_program_has_not_loaded() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], check=True)

"""Language models of every provider whose plugin is exercised, each with its simulator and bill."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from google.genai.types import HttpOptions
from livekit.agents import APIConnectOptions, inference
from livekit.agents.llm import LLM, ChatContext, LLMStream, function_tool
from livekit.agents.utils import http_context
from livekit.plugins.anthropic import LLM as AnthropicLLM
from livekit.plugins.google import LLM as GoogleLLM
from livekit.plugins.groq import LLM as GroqLLM
from livekit.plugins.openai import LLM as OpenAILLM
from livekit.plugins.openai.responses import LLM as ResponsesLLM

from livekit.plugins.voicecost import _instrument
from tests.plugin.livekit_versions import LIVEKIT_1_5
from tests.plugin.metered_session import RecordingMeter, SeenLeg
from tests.simulators import Bill, Reply
from tests.simulators.anthropic_messages import AnthropicSimulator
from tests.simulators.bill import BillRow
from tests.simulators.generation import ModelSimulator
from tests.simulators.google_generate import GoogleSimulator
from tests.simulators.inference_llm import InferenceSimulator
from tests.simulators.openai_chat import OpenAISimulator
from tests.simulators.openai_responses import OpenAIResponsesSimulator
from voicecost_ledger.records import Basis, Modality

ONE_TRY = APIConnectOptions(max_retry=0, timeout=5)
ONE_MORE = APIConnectOptions(max_retry=1, retry_interval=0, timeout=5)


class GroqSimulator(OpenAISimulator):
    """Groq shows the thoughts of its reasoning models: https://console.groq.com/docs/reasoning."""

    provider = "groq"
    shows_thoughts = "reasoning"


class OllamaSimulator(OpenAISimulator):
    """Ollama sends tool calls whole, all in one chunk."""

    provider = "ollama"
    tool_calls_at_once = True


def _openai(simulator: Any) -> LLM[Any]:
    return OpenAILLM(model="gpt-4o-mini", base_url=simulator.base_url, api_key="x")


def _responses(simulator: Any) -> LLM[Any]:
    return ResponsesLLM(
        model="gpt-4.1", base_url=simulator.base_url, api_key="x", use_websocket=False
    )


def _responses_socket(simulator: Any) -> LLM[Any]:
    return ResponsesLLM(model="gpt-4.1", base_url=simulator.socket_url, api_key="x")


def _anthropic(simulator: Any) -> LLM[Any]:
    return AnthropicLLM(model="claude-sonnet-4-6", base_url=simulator.base_url, api_key="x")


def _google(simulator: Any) -> LLM[Any]:
    options = HttpOptions(base_url=simulator.base_url)
    return GoogleLLM(model="gemini-2.5-flash", api_key="x", http_options=options)


def _groq(simulator: Any) -> LLM[Any]:
    return GroqLLM(model="llama-3.3-70b-versatile", base_url=simulator.base_url, api_key="x")


def _ollama(simulator: Any) -> LLM[Any]:
    return OpenAILLM.with_ollama(model="llama3.1", base_url=simulator.base_url)


def _inference(simulator: Any) -> LLM[Any]:
    return inference.LLM(
        "openai/gpt-4o-mini", base_url=simulator.base_url, api_key="key", api_secret="s" * 32
    )


@dataclass(frozen=True)
class Provider:
    """A plugin and the simulator it talks to."""

    name: str
    simulator_class: type[ModelSimulator]
    make_llm: Callable[[Any], LLM[Any]]

    def __str__(self) -> str:
        return self.name


_ALL = (
    Provider("openai", OpenAISimulator, _openai),
    Provider("responses", OpenAIResponsesSimulator, _responses),
    Provider("responses over a socket", OpenAIResponsesSimulator, _responses_socket),
    Provider("anthropic", AnthropicSimulator, _anthropic),
    Provider("google", GoogleSimulator, _google),
    Provider("groq", GroqSimulator, _groq),
    Provider("ollama", OllamaSimulator, _ollama),
    Provider("inference", InferenceSimulator, _inference),
)
# LiveKit 1.5 does not name itself to its gateway, and cannot read OpenAI's errors over a socket.
_NOT_YET = {"inference", "responses over a socket"} if LIVEKIT_1_5 else set[str]()
PROVIDERS = tuple(each for each in _ALL if each.name not in _NOT_YET)
BY_NAME = {provider.name: provider for provider in PROVIDERS}


@dataclass
class Served:
    """A provider being served."""

    simulator: Any
    llm: LLM[Any]
    meter: RecordingMeter
    streams: list[LLMStream] = field(default_factory=list[LLMStream])

    @property
    def bill(self) -> Bill:
        return self.simulator.bill

    def ask(self, question: str | ChatContext, **options: Any) -> LLMStream:
        """A stream of the plugin's own, as a tool or a session asks for it."""
        options = {"conn_options": ONE_TRY, "tools": [get_weather]} | options
        context = asked(question) if isinstance(question, str) else question
        return self.llm.chat(chat_ctx=context, **options)

    async def answer(self, question: str | ChatContext, **options: Any) -> SeenLeg:
        """Ask, take the whole answer, and give the last leg of it."""
        count = len([leg for leg in self.legs if leg.outcome is not None])
        async with self.ask(question, **options) as stream:
            async for _ in stream:
                pass
        await self.bill.settled()
        return (await self.meter.stopped(Modality.LLM, count + 1))[-1]

    @property
    def uses_sockets(self) -> bool:
        """Whether requests go over a WebSocket that outlives them."""
        return getattr(self.llm, "_ws", None) is not None

    @property
    def legs(self) -> list[SeenLeg]:
        return self.meter.of(Modality.LLM)


@asynccontextmanager
async def served(
    provider: Provider, meter: RecordingMeter, *replies: Reply, **options: Any
) -> AsyncGenerator[Served]:
    """Serve a provider, with the instrumentation in place."""
    timing: dict[str, Any] = {"first_token_delay_ms": 10, "token_delay_ms": 0}
    _instrument.instrument()
    try:
        async with provider.simulator_class(replies=replies, **(timing | options)) as simulator:
            http_context._new_session_ctx()
            llm = provider.make_llm(simulator)
            try:
                yield Served(simulator, llm, meter)
            finally:
                await llm.aclose()
                client = getattr(llm, "_client", None)
                if isinstance(llm, AnthropicLLM) and client is not None:
                    await client.close()  # its plugin leaves it open
                await http_context._close_http_ctx()
    finally:
        _instrument.uninstrument()


@function_tool
async def get_weather(city: str, day: str = "today") -> str:
    """The weather forecast of a city.

    Args:
        city: Where, in English.
        day: Which day of the week, or today.
    """
    return f"It will be sunny in {city} on {day}."


def asked(question: str, *, instructions: str = "You are a friendly assistant.") -> ChatContext:
    """What a caller said to an agent."""
    context = ChatContext.empty()
    context.add_message(role="system", content=instructions)
    context.add_message(role="user", content=question)
    return context


def assert_exact(leg: SeenLeg, row: BillRow) -> None:
    """The leg is what the provider bills, to the unit."""
    assert leg.basis is Basis.REPORTED
    told = {unit: leg.usage.get(unit, 0) for unit in row.units}
    assert told == row.units


def assert_within_margins(leg: SeenLeg, row: BillRow) -> None:
    """The leg is an estimate, and the bill is where it says that it may be."""
    assert leg.basis is Basis.ESTIMATED
    for unit, billed in row.units.items():
        estimated, margin = leg.usage.get(unit, 0), leg.margins.get(unit, 0)
        assert abs(estimated - billed) <= margin, (unit, estimated, margin, billed)

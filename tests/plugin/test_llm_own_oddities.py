"""A language model class of the user's own that is not quite like LiveKit's plugins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from livekit.agents import APIConnectOptions
from livekit.agents.llm import (
    LLM,
    ChatChunk,
    ChatContext,
    ChoiceDelta,
    CompletionUsage,
    LLMStream,
)
from openai.types.chat import ChatCompletionChunk

from livekit.plugins.voicecost import _attribution, _instrument, _wire
from livekit.plugins.voicecost._wire_answers import ObservedEvents
from livekit.plugins.voicecost._wire_openai import read_chunk
from tests.plugin.metered_session import RecordingMeter
from voicecost_ledger.records import Basis, Modality, Outcome

TOKENS = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens")
ONE_TRY = APIConnectOptions(max_retry=0, timeout=5)


@pytest.fixture(autouse=True)
def faults_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")


@pytest.fixture
def meter() -> Iterator[RecordingMeter]:
    _instrument.instrument()
    meter = RecordingMeter()
    try:
        with _attribution.scoped(meter):
            yield meter
    finally:
        _instrument.uninstrument()


class Own(LLM[Any]):
    """Says what LiveKit wants to know, and names itself as it likes."""

    def __init__(self, model: Any, stream: type[LLMStream] | None = None) -> None:
        super().__init__()
        self._named = model
        self._stream: Any = stream or OwnStream
        self.with_options: dict[str, Any] = {}
        self.provided_by = "own"
        self.usage = CompletionUsage(prompt_tokens=10, completion_tokens=3, total_tokens=13)

    @property
    def model(self) -> str:
        return self._named

    @property
    def provider(self) -> str:
        return self.provided_by

    def chat(self, *, chat_ctx: ChatContext, **options: Any) -> LLMStream:
        stream = self._stream(self, chat_ctx=chat_ctx, tools=[], conn_options=ONE_TRY)
        for name, value in self.with_options.items():
            setattr(stream, name, value)
        return stream

    async def ask(self) -> None:
        context = ChatContext.empty()
        context.add_message(role="user", content="Hello.")
        async with self.chat(chat_ctx=context) as stream:
            async for _ in stream:
                pass


class OwnStream(LLMStream):
    async def _run(self) -> None:
        own = self._llm
        assert isinstance(own, Own)
        delta = ChoiceDelta(role="assistant", content="Hello there.")
        self._event_ch.send_nowait(ChatChunk(id="own", delta=delta))
        self._event_ch.send_nowait(ChatChunk(id="own", usage=own.usage))


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (None, {}),
        ("own", {"_extra_kwargs": None}),
        ("own", {"_extra_kwargs": {"previous_response_id": "resp_1"}}),
    ],
    ids=["no name", "no options", "an id of a response that only it knows"],
)
async def test_what_a_class_does_not_say_costs_no_leg(
    meter: RecordingMeter, model: Any, options: dict[str, Any]
) -> None:
    own = Own(model)
    own.with_options = options
    await own.ask()

    (leg,) = meter.of(Modality.LLM)
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.REPORTED)
    assert (leg.usage["input_tokens"], leg.usage["output_tokens"]) == (10, 3)


@pytest.mark.parametrize(
    ("provider", "read", "written"),
    [("AWS Bedrock", 0, 3317), ("AWS Bedrock", 3317, 0), ("own", 3317, 0)],
)
async def test_a_cache_that_is_only_in_the_total_is_input(
    meter: RecordingMeter, provider: str, read: int, written: int
) -> None:
    """Bedrock's plugin before livekit/agents#6663, with the figures that Bedrock gives."""
    own = Own("on bedrock")
    own.provided_by = provider
    own.usage = CompletionUsage(
        prompt_tokens=3, completion_tokens=377, total_tokens=3697, prompt_cached_tokens=read
    )
    await own.ask()

    (leg,) = meter.of(Modality.LLM)
    told = {unit: leg.usage.get(unit, 0) for unit in (*TOKENS, "cache_write_tokens")}
    assert told == {
        "input_tokens": 3320,
        "cached_input_tokens": read,
        "cache_write_tokens": written,
        "output_tokens": 377,
        "reasoning_tokens": 0,
    }


received: list[ChatCompletionChunk] = []
tidied: list[str] = []


class ReadingStream(LLMStream):
    """Reads a client whose whole answer has arrived, and tidies up however that ends."""

    async def _run(self) -> None:
        seen_by = _wire.observer()
        assert seen_by is not None
        answer = seen_by.answer_observed()
        assert answer is not None
        try:
            async for _ in ObservedEvents(_received(), read_chunk, answer):
                pass
        finally:
            await asyncio.sleep(0)
            tidied.append("tidied")


async def _received() -> AsyncIterator[ChatCompletionChunk]:
    for chunk in received:
        yield chunk


def _chunk(word: str, **fields: Any) -> ChatCompletionChunk:
    about = {"id": "1", "created": 1, "model": "own", "object": "chat.completion.chunk"}
    return ChatCompletionChunk.model_validate(
        about | {"choices": [{"index": 0, "delta": {"content": word}}]} | fields
    )


async def test_a_budget_does_not_keep_a_plugin_from_tidying_up(meter: RecordingMeter) -> None:
    tidied.clear()
    received[:] = [_chunk(word) for word in ("One ", "two ", "three ", "four ") * 20]
    meter.limit_nano_usd = 10_000
    await Own("cut short", ReadingStream).ask()

    assert tidied == ["tidied"]
    assert [leg.outcome for leg in meter.of(Modality.LLM)] == [Outcome.CUT]


async def test_who_served_stands_where_later_chunks_name_nobody(meter: RecordingMeter) -> None:
    """Azure's content filter adds chunks without a model when the answer is there."""
    served_by = {"model": "gpt-4o-2024-11-20", "service_tier": "priority"}
    received[:] = [_chunk("", model=""), _chunk("Hello.", **served_by), _chunk("", model="")]
    await Own("my-deployment", ReadingStream).ask()

    (leg,) = meter.of(Modality.LLM)
    assert (leg.served_model, leg.served_tier) == ("gpt-4o-2024-11-20", "priority")


class FillingStream(ReadingStream):
    """Says something by itself until its model answers."""

    async def _run(self) -> None:
        delta = ChoiceDelta(role="assistant", content="Let me think about that. ")
        self._event_ch.send_nowait(ChatChunk(id="own", delta=delta))
        await super()._run()


async def test_what_the_model_did_not_say_is_not_counted_as_said_by_it(
    meter: RecordingMeter,
) -> None:
    received[:] = [_chunk("Hello"), _chunk(" there.")]
    await Own("with a filler", FillingStream).ask()

    (leg,) = meter.of(Modality.LLM)
    assert leg.basis is Basis.ESTIMATED  # it told no usage
    assert leg.usage["completion_characters"] == len("Hello there.")
    assert leg.usage["completion_chunks"] == 2

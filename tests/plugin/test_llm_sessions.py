"""Real sessions on every provider's language model: what is billed, turn by turn."""

from __future__ import annotations

from typing import Any

import pytest
from livekit.agents import Agent

from livekit.plugins.voicecost import _estimates
from tests.plugin.llm_providers import (
    PROVIDERS,
    Provider,
    assert_exact,
    assert_within_margins,
    get_weather,
    served,
)
from tests.plugin.metered_session import RecordingMeter, metered_call, simulated_providers
from tests.simulators import Reply, ToolCall
from voicecost_ledger.records import Modality, Outcome

pytestmark = [
    pytest.mark.parametrize("provider", PROVIDERS, ids=str),
    # Google's client subclasses aiohttp's session, which aiohttp advises against.
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def faults_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")


@pytest.fixture(autouse=True)
def nothing_learned_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests taught the process of a model is not known here."""
    monkeypatch.setattr(_estimates, "_process", {})


async def test_a_call_with_a_tool_and_a_barge_in(provider: Provider) -> None:
    weather = ToolCall(name="get_weather", arguments={"city": "Paris", "day": "tomorrow"})
    replies = (
        Reply(match="weather", text="It will be sunny in Paris.", tool_call=weather),
        Reply(match="hello", text="Hello there."),
    )
    agent = Agent(instructions="You tell people about the weather.", tools=[get_weather])
    async with (
        simulated_providers() as voices,
        served(provider, RecordingMeter(), *replies, token_delay_ms=20) as service,
    ):
        llm: Any = service.llm
        async with metered_call(voices, agent=agent, llm=llm) as call:
            await call.session.generate_reply(user_input="Hello, who is this?")
            await call.session.generate_reply(user_input="How is the weather in Paris tomorrow?")
            speech = call.session.generate_reply(user_input="Please explain everything to me.")
            await call.meter.until(
                lambda: (
                    len(call.meter.of(Modality.LLM)) == 4
                    and call.meter.of(Modality.LLM)[-1].usage["completion_chunks"] >= 5
                )
            )
            speech.interrupt()
            await speech
            if service.uses_sockets:
                await llm.aclose()
            await service.bill.settled()
            await call.close()
        *answered, interrupted = call.meter.of(Modality.LLM)
        *rows, row = service.bill.rows

    assert [leg.outcome for leg in answered] == [Outcome.SERVED] * 3
    for leg, billed in zip(answered, rows, strict=True):
        assert_exact(leg, billed)
        assert leg.speech_id is not None
    assert (interrupted.outcome, row.ended) == (Outcome.INTERRUPTED, "cancelled")
    assert_within_margins(interrupted, row)
    assert call.meter.total(Modality.TTS, "characters") == call.billed("tts", "characters")

"""How near the estimate of a response is before its report is there, and when it never comes."""

from __future__ import annotations

import pytest

from livekit.plugins.voicecost._realtime_prompt import Prompt, Scale, Size
from tests.plugin.realtime_call import RealtimeCall, realtime_call, simulated_openai
from tests.plugin.test_realtime_openai import Forecaster
from tests.simulators import LONG_ANSWER, Reply, ToolCall
from voicecost_ledger.records import Basis, LegStart, LegStop, Modality


@pytest.fixture(autouse=True)
def faults_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")


SAID = ["Hello there, who is this?", "How is the weather?", "Explain it all!", "Hello again."]
REPLIES = [
    Reply(match="hello", text="Good morning, what can I do for you?"),
    Reply(
        match="weather",
        text="It will be sunny in Paris.",
        tool_call=ToolCall(name="get_weather", arguments={"city": "Paris", "day": "tomorrow"}),
    ),
    Reply(text=LONG_ANSWER),
]


async def _talk(call: RealtimeCall, words: int) -> None:
    """The caller says something, and talks over the long answer."""
    before = len(call.responses)
    call.caller.says(900 + 130 * words)
    await call.meter.until(lambda: len(call.responses) > before)
    if SAID[words].startswith("Explain"):
        await call.meter.until(lambda: call.responses[-1].usage["output_audio_tokens"] > 150)
        await call.session.interrupt()
    elif SAID[words].startswith("How"):  # the tool's result is answered too
        await call.meter.until(lambda: len(call.responses) > before + 1)
    await call.meter.until(lambda: call.responses[-1].outcome)


async def test_a_prompt_is_known_before_it_is_reported() -> None:
    async with simulated_openai(replies=REPLIES, transcripts=SAID) as openai:
        async with realtime_call(openai.model(), agent=Forecaster()) as call:
            for words in range(len(SAID)):
                await _talk(call, words)
            await call.close()
        rows = openai.rows()

    starts = [
        fields["usage"]
        for make, fields in call.meter.records
        if make is LegStart and fields["attributes"].modality is Modality.REALTIME
    ]
    assert len(starts) == len(rows) == 5
    assert abs(starts[0]["input_tokens"] - rows[0]["input_tokens"]) < rows[0]["input_tokens"] / 4
    for guess, row in zip(starts[1:], rows[1:], strict=True):
        assert abs(guess["input_tokens"] - row["input_tokens"]) <= 8
        assert abs(guess["input_audio_tokens"] - row["input_audio_tokens"]) <= 8
        assert abs(guess["cached_input_tokens"] - row["cached_input_tokens"]) <= 64


async def test_an_estimate_says_how_far_it_may_be_off() -> None:
    async with simulated_openai(replies=REPLIES, transcripts=SAID) as openai:
        async with realtime_call(openai.model()) as call:
            await _talk(call, 0)
            openai.simulator.done_delay_ms = 60_000
            await call.session.interrupt()
            call.session.generate_reply(user_input="Please explain everything to me.")
            await call.meter.until(lambda: len(call.responses) == 2)
            await call.meter.until(lambda: call.responses[1].usage["output_audio_tokens"] > 150)
            await call.close()
        _, row = openai.rows()

    leg = call.responses[1]
    assert leg.basis is Basis.ESTIMATED
    margins = next(
        fields["margins"]
        for make, fields in reversed(call.meter.records)
        if make is LegStop
        and fields["basis"] is Basis.ESTIMATED
        and "output_tokens" in fields["margins"]
        and fields["usage"] == leg.usage
    )
    for unit in ("input_tokens", "input_audio_tokens", "output_tokens", "output_audio_tokens"):
        assert abs(leg.usage[unit] - row[unit]) <= margins[unit]
    # Half a second more may have been generated, here at many times the speed of speech.
    assert margins["input_tokens"] < 20
    assert 0 < margins["output_tokens"] < 2 * row["output_tokens"]


def test_a_prompt_is_what_was_reported_and_what_came_since() -> None:
    prompt = Prompt()
    prompt.instruct("You are a helpful telephone agent.")
    prompt.put("user", Size(text=3, audio=20))
    read = prompt.snapshot()
    prompt.put("later", Size(text=3, audio=7))  # said while the answer was on its way
    prompt.reported(read, Size(text=40, audio=20), 0, Size(text=10, audio=50))
    assert prompt.snapshot() == Size(text=53, audio=77)
    assert prompt.estimate()["input_tokens"] == 130

    prompt.knew("answer", Size(text=10, audio=50))
    prompt.put("answer", Size(text=3, audio=15))  # cut short, and its transcript gone
    assert prompt.snapshot() == Size(text=46, audio=42)
    prompt.drop("user")
    assert prompt.snapshot() == Size(text=43, audio=22)
    prompt.instruct("")
    assert prompt.snapshot().text < 43
    prompt.restart()
    assert prompt.estimate()["input_tokens"] == 0


def test_what_a_model_counts_otherwise_is_learned_from_its_reports() -> None:
    scale = Scale()
    assert scale.apply(Size(text=100, audio=200)) == Size(text=100, audio=200)
    scale.learn(Size(text=50, audio=100), Size(text=60, audio=50))
    assert scale.apply(Size(text=100, audio=200)) == Size(text=120, audio=100)
    # A tenth or ten times as much is no other way to count the same.
    scale = Scale()
    scale.learn(Size(text=50), Size(text=5))
    assert scale.apply(Size(text=100)) == Size(text=100)

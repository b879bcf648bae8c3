"""What is believed of a provider's own count, and what is booked of one that cannot be true."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livekit.plugins.voicecost import _attribution
from livekit.plugins.voicecost._reports import believed
from tests.plugin.llm_providers import BY_NAME, served
from tests.plugin.metered_session import RecordingMeter, SeenLeg
from tests.plugin.realtime_call import observed, realtime_call, simulated_openai
from tests.plugin.test_realtime_google import simulated_google
from tests.plugin.test_realtime_user_code import OwnModel
from tests.simulators import Reply, google_live, openai_realtime_session, openai_responses
from voicecost_catalog import open_price_book
from voicecost_ledger.pricing import Price
from voicecost_ledger.quantities import contradictions
from voicecost_ledger.records import Basis, LegAttributes, Modality, Outcome

# Google's plugin itself, at every connection.
pytestmark = pytest.mark.filterwarnings("ignore:Setting `LiveConnectConfig:DeprecationWarning")


@pytest.fixture(autouse=True)
def faults_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")


@pytest.fixture(scope="module")
def realtime_price() -> Price:
    """One that knows every kind of token there is."""
    book = open_price_book()
    book.warm()
    leg = LegAttributes(Modality.REALTIME, "openai", "gpt-realtime")
    price = book.price_for(leg, time.time_ns() // 1_000_000)
    assert price is not None
    return price


_PARTS = (
    "cached_input_tokens",
    "input_audio_tokens",
    "cached_input_audio_tokens",
    "input_image_tokens",
    "cached_input_image_tokens",
    "output_audio_tokens",
)


@given(st.integers(1, 90), st.integers(0, 90), st.tuples(*[st.integers(0, 120)] * len(_PARTS)))
def test_what_is_believed_can_be_true_and_has_a_price(
    realtime_price: Price, input_tokens: int, output_tokens: int, parts: tuple[int, ...]
) -> None:
    report = dict(zip(_PARTS, parts, strict=True))
    report |= {"input_tokens": input_tokens, "output_tokens": output_tokens}
    units = believed(report)
    assert units is not None
    assert (units["input_tokens"], units["output_tokens"]) == (input_tokens, output_tokens)
    assert not contradictions(units)
    assert realtime_price.rate(units) is not None
    if not contradictions(report) and realtime_price.rate(report) is not None:
        assert units == report


@pytest.mark.parametrize(
    "report",
    [
        {"input_tokens": 100, "output_tokens": -50},
        {"input_tokens": -1, "output_tokens": 5},
        {"input_tokens": 100, "cached_input_tokens": -1},
        {"input_tokens": 2**40 + 1},
        {"input_tokens": 0, "output_tokens": 0},
        {},
    ],
)
def test_less_than_nothing_or_an_absurd_count_is_no_report(report: dict[str, int]) -> None:
    assert believed(report) is None


def test_sound_that_does_not_fit_in_what_was_not_cached_was_cached(realtime_price: Price) -> None:
    """Azure's first realtime API told how much was cached, and not of what."""
    report = {
        "input_tokens": 1_000,
        "cached_input_tokens": 832,
        "input_audio_tokens": 600,
        "cached_input_audio_tokens": 0,
        "output_tokens": 5,
    }
    assert realtime_price.rate(report) is None
    assert believed(report) == report | {"cached_input_audio_tokens": 600 - 168}


# ---- where they are read -----------------------------------------------------------------------


def lies(
    monkeypatch: pytest.MonkeyPatch, holder: Any, name: str, lie: Callable[[dict[str, Any]], None]
) -> None:
    """Let a simulator report otherwise than it bills."""
    truth = getattr(holder, name)

    def lying(*args: Any) -> dict[str, Any]:
        told: dict[str, Any] = truth(*args)
        lie(told)
        return told

    monkeypatch.setattr(holder, name, lying)


def stays_an_estimate(leg: SeenLeg, billed: dict[str, int]) -> None:
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.ESTIMATED)
    for unit in ("input_tokens", "output_tokens"):
        assert abs(leg.usage[unit] - billed[unit]) <= leg.margins[unit]


def _negative_output(usage: dict[str, Any]) -> None:
    usage["output_tokens"] = -50


def _negative_prompt(usage: dict[str, Any]) -> None:
    usage["input_tokens"] = -7


@pytest.mark.parametrize("lie", [_negative_output, _negative_prompt])
async def test_a_realtime_response_that_used_less_than_nothing_stays_an_estimate(
    lie: Callable[[dict[str, Any]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    lies(monkeypatch, openai_realtime_session._Response, "usage", lie)
    async with simulated_openai() as openai:
        async with realtime_call(openai.model()) as call:
            await call.session.generate_reply(user_input="Hello?")
            await call.close()
        (row,) = openai.rows()
    (leg,) = call.responses
    stays_an_estimate(leg, row)


async def test_a_realtime_response_cannot_have_cached_more_than_it_read(
    monkeypatch: pytest.MonkeyPatch, realtime_price: Price
) -> None:
    def lie(usage: dict[str, Any]) -> None:
        usage["input_token_details"]["cached_tokens"] = usage["input_tokens"] + 300

    lies(monkeypatch, openai_realtime_session._Response, "usage", lie)
    async with simulated_openai() as openai:
        async with realtime_call(openai.model()) as call:
            await call.session.generate_reply(user_input="Hello?")
            await call.close()
        (row,) = openai.rows()
    (leg,) = call.responses
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.REPORTED)
    for unit in ("input_tokens", "output_tokens", "output_audio_tokens"):
        assert leg.usage[unit] == row[unit]
    assert leg.usage["cached_input_tokens"] == row["input_tokens"]
    assert realtime_price.rate(leg.usage) is not None


async def test_a_turn_of_geminis_that_used_less_than_nothing_stays_an_estimate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lie(usage: dict[str, Any]) -> None:
        usage["responseTokenCount"] = -50

    lies(monkeypatch, google_live._Turn, "usage", lie)
    async with simulated_google(replies=[Reply(text="It is noon.")]) as google:
        async with realtime_call(google.model()) as call:
            await call.session.generate_reply(user_input="What time is it?")
            await call.close()
        (row,) = google.rows
    (leg,) = call.responses
    stays_an_estimate(leg, row)


@pytest.mark.parametrize("told", [(100, -50), (-100, 50)])
async def test_livekits_event_of_less_than_nothing_is_no_report(told: tuple[int, int]) -> None:
    model = OwnModel(says_what_it_used=False)
    async with observed(), realtime_call(model) as call:
        for reply, tokens in (("reply-1", told), ("reply-2", (120, 60))):
            await call.session.generate_reply()
            model.sessions[0].report(reply, *tokens)
        await call.close()
    unreported, reported = call.responses
    assert (unreported.basis, unreported.usage["output_tokens"]) == (Basis.ESTIMATED, 0)
    assert "input_tokens" in unreported.margins
    assert (reported.basis, reported.usage["input_tokens"]) == (Basis.REPORTED, 120)


@pytest.mark.parametrize("provider", ["openai", "responses", "groq"])
async def test_an_answer_cannot_have_cached_more_than_it_read(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chat(usage: dict[str, Any]) -> None:
        usage["prompt_tokens_details"]["cached_tokens"] = usage["prompt_tokens"] + 300

    def response(response: dict[str, Any]) -> None:
        usage = response["usage"]
        if usage:
            usage["input_tokens_details"]["cached_tokens"] = usage["input_tokens"] + 300
            usage["output_tokens_details"]["reasoning_tokens"] = usage["output_tokens"] + 300

    if provider == "responses":
        lies(monkeypatch, openai_responses._Events, "_response", response)
    else:
        lies(monkeypatch, BY_NAME[provider].simulator_class, "_usage", chat)
    meter = RecordingMeter()
    with _attribution.scoped(meter):
        async with served(BY_NAME[provider], meter, Reply(text="Hello.")) as service:
            leg = await service.answer("Hi!")
            (row,) = service.bill.rows
    assert leg.basis is Basis.REPORTED
    assert leg.usage["input_tokens"] == row.units["input_tokens"]
    assert leg.usage["cached_input_tokens"] == row.units["input_tokens"]
    assert leg.usage["output_tokens"] == row.units["output_tokens"]
    assert leg.usage.get("reasoning_tokens", 0) <= leg.usage["output_tokens"]

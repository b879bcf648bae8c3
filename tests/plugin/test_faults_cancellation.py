"""A task can be cancelled wherever it waits: each such place is tried, one after the other.

After each: every leg that was begun is closed, no fault of ours was counted, and whoever cancelled
sees the cancellation come out. What never reached the provider is a leg without cost.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from livekit import rtc
from livekit.agents import AgentSession, APIConnectOptions
from livekit.agents.llm import ChatContext, FallbackAdapter
from livekit.agents.tts import StreamAdapter

from livekit.plugins.voicecost import VoiceCost, _attribution, _faults
from livekit.plugins.voicecost._instrument_attempts import Attempt, observed
from livekit.plugins.voicecost._instrument_llm import LLMAttempt
from tests.plugin import voicecost_sessions
from tests.plugin.cancelling import CancelledAt
from tests.plugin.metered_session import Providers, RecordingMeter, simulated_providers
from tests.simulators import Bill, Reply
from voicecost_ledger.records import Modality, Outcome

ONE_TRY = APIConnectOptions(max_retry=0, timeout=5)
SUSPENSIONS_MAX = 300
TEXT = "I see you."


@pytest.fixture
async def providers() -> AsyncIterator[Providers]:
    reply = Reply(text=TEXT)
    async with simulated_providers(reply, first_token_delay_ms=1, token_delay_ms=1) as providers:
        providers.deepgram.speak.first_byte_delay_ms = 1
        yield providers


@pytest.fixture
def meter() -> Iterator[RecordingMeter]:
    meter = RecordingMeter()
    with _attribution.scoped(meter):
        yield meter


@pytest.fixture(autouse=True)
def no_faults() -> Iterator[None]:
    before = sum(_faults.counts().values())
    yield
    assert sum(_faults.counts().values()) == before


def question() -> ChatContext:
    context = ChatContext.empty()
    context.add_message(role="user", content="Do you see me?")
    return context


async def the_end_of(walk: CancelledAt) -> None:
    """The task is over: cancelled by us and by nobody else, or done before that."""
    assert walk.task is not None
    await asyncio.wait([walk.task])
    assert walk.task.cancelled() is walk.reached
    if not walk.reached:
        walk.task.result()


def same_requests(meter: RecordingMeter, modality: Modality, bill: Bill, unit: str) -> None:
    """As many legs that cost something as rows of the bill; all of them ended.

    One more where a client was cancelled with the last of its request handed to the network: the
    connection may be gone before the provider has read it.
    """
    legs = meter.of(modality)
    assert all(leg.stop_count > 0 for leg in legs)
    assert {leg.outcome for leg in legs} <= {Outcome.SERVED, Outcome.INTERRUPTED}
    ours = sorted(leg.usage[unit] for leg in legs if leg.usage[unit])
    theirs = sorted(row.units[unit] for row in bill.rows if row.units[unit])
    assert ours in (theirs, [theirs[0], *theirs])


async def test_an_llm_request(providers: Providers, meter: RecordingMeter) -> None:
    """From the connection that is not there yet to the last token."""
    n = 0
    for n in range(1, SUSPENSIONS_MAX):
        model = providers.llm()  # another client each time, so it has to connect
        with CancelledAt("LLMStream.__init__", n) as walk:
            stream = model.chat(chat_ctx=question(), conn_options=ONE_TRY)
            await the_end_of(walk)
        await stream.aclose()
        if not walk.reached:
            break
    assert 5 < n < SUSPENSIONS_MAX - 1
    await providers.bill.settled()
    same_requests(meter, Modality.LLM, providers.bill, "input_tokens")
    assert len(meter.of(Modality.LLM)) == n


async def test_an_llm_behind_a_fallback_adapter(
    providers: Providers, meter: RecordingMeter
) -> None:
    """The adapter's stream is cancelled: so is the one that it reads from."""
    n = 0
    for n in range(1, SUSPENSIONS_MAX):
        adapter = FallbackAdapter([providers.llm(), providers.llm(model="gpt-4o")])
        with CancelledAt("LLMStream.__init__", n) as walk:
            stream = adapter.chat(chat_ctx=question(), conn_options=ONE_TRY)
            await the_end_of(walk)
        await stream.aclose()
        await adapter.aclose()
        if not walk.reached:
            break
    assert 2 < n < SUSPENSIONS_MAX - 1
    await providers.bill.settled()
    same_requests(meter, Modality.LLM, providers.bill, "input_tokens")


async def test_a_tts_behind_a_stream_adapter(providers: Providers, meter: RecordingMeter) -> None:
    """The adapter cuts the text into sentences; each is a request that can be cancelled."""
    n = 0
    for n in range(1, SUSPENSIONS_MAX):
        adapter = StreamAdapter(tts=providers.tts())
        with CancelledAt("SynthesizeStream", n) as walk:
            stream = adapter.stream(conn_options=ONE_TRY)
            stream.push_text("I see you. You do not see me.")
            stream.end_input()
            await the_end_of(walk)
        await stream.aclose()
        await adapter.aclose()
        if not walk.reached:
            break
    assert 2 < n < SUSPENSIONS_MAX - 1
    await providers.bill.settled()
    same_requests(meter, Modality.TTS, providers.bill, "characters")


async def test_a_tts_request(providers: Providers, meter: RecordingMeter) -> None:
    voice = providers.tts()
    n = 0
    for n in range(1, SUSPENSIONS_MAX):
        with CancelledAt("SynthesizeStream", n) as walk:
            stream = voice.stream(conn_options=ONE_TRY)
            stream.push_text(TEXT)
            stream.end_input()
            await the_end_of(walk)
        await stream.aclose()
        if not walk.reached:
            break
    assert 2 < n < SUSPENSIONS_MAX - 1
    await providers.close_plugins()
    await providers.bill.settled()
    same_requests(meter, Modality.TTS, providers.bill, "characters")


async def test_a_tts_request_of_a_whole_text(providers: Providers, meter: RecordingMeter) -> None:
    voice = providers.tts()
    n = 0
    for n in range(1, SUSPENSIONS_MAX):
        with CancelledAt("ChunkedStream.__init__", n) as walk:
            stream = voice.synthesize(TEXT, conn_options=ONE_TRY)
            await the_end_of(walk)
        await stream.aclose()
        if not walk.reached:
            break
    assert 2 < n < SUSPENSIONS_MAX - 1
    await providers.bill.settled()
    same_requests(meter, Modality.TTS, providers.bill, "characters")


async def test_an_stt_connection(providers: Providers, meter: RecordingMeter) -> None:
    """It runs until it is closed: the last walk is that of the open connection."""
    ear = providers.stt()
    frame = rtc.AudioFrame(bytes(2 * 1_600), 16_000, 1, 1_600)
    n = 0
    for n in range(1, SUSPENSIONS_MAX):
        with CancelledAt("RecognizeStream._main_task", n) as walk:
            stream = ear.stream(conn_options=ONE_TRY)
            for _ in range(5):
                stream.push_frame(frame)
            assert walk.task is not None
            await asyncio.wait([walk.task], timeout=0.2)
        await stream.aclose()
        if not walk.reached:
            break
        await the_end_of(walk)
    assert 2 < n < SUSPENSIONS_MAX - 1
    await providers.bill.settled()
    same_requests(meter, Modality.STT, providers.bill, "audio_ms")


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[voicecost_sessions.Providers]:
    async with voicecost_sessions.providers(monkeypatch) as world:
        yield world


async def test_a_session_from_attach_to_close(world: voicecost_sessions.Providers) -> None:
    """`attach`, `start`, a turn and `aclose` in one task, cancelled anywhere; then it is closed."""
    cost = VoiceCost()

    async def one_life(session: AgentSession[None]) -> None:
        cost.attach(session)
        await session.start(voicecost_sessions.Host())
        await session.generate_reply(user_input="hello")
        await session.aclose()

    n = 0
    for n in range(1, SUSPENSIONS_MAX):
        session = world.session()
        with CancelledAt("one_life", n) as walk:
            task = asyncio.create_task(one_life(session))
            await asyncio.wait([task])
        assert task.cancelled() is walk.reached
        await session.aclose()
        meter = cost.attach(session)  # the one it has, or a new one if that is closed
        if meter.meter_id is not None:
            await meter.wait_closed()
        if not walk.reached:
            break
    assert 4 < n < SUSPENSIONS_MAX - 1
    calls = await voicecost_sessions.ledger()
    assert {meter.state for call in calls for meter in call.meters} == {"closed"}
    assert all(call.gaps == [] for call in calls)
    legs = [leg for call in calls for leg in call.legs]
    assert {leg.outcome for leg in legs} == {Outcome.SERVED, Outcome.INTERRUPTED}
    billed = sum(row.units["input_tokens"] for row in world.openai.bill.rows)
    assert sum(leg.usage.get("input_tokens", 0) for leg in legs) == billed


class _Stream:
    def __init__(self) -> None:
        self.ends: list[tuple[Outcome, type[BaseException]]] = []


class _Watched(Attempt):
    modality = Modality.LLM

    def finish(self, outcome: Outcome, error: BaseException | None) -> None:
        self.stream.ends.append((outcome, type(error)))


async def test_a_request_that_is_thrown_away_with_its_loop() -> None:
    """Its coroutine is closed in a context that is not the one it ran in."""
    stream = _Stream()

    async def run(_: _Stream) -> None:
        await asyncio.Event().wait()

    request: Any = observed(stream, _Watched, run)()
    contextvars.copy_context().run(request.send, None)
    request.close()
    assert stream.ends == [(Outcome.INTERRUPTED, GeneratorExit)]


async def test_a_leg_whose_end_we_fail_to_tell_is_closed_as_it_was_known(
    providers: Providers, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VOICECOST_RAISE_FAULTS")
    before = _faults.counts().get("finish_attempt", 0)

    def broken(*_: object) -> None:
        raise LookupError

    with monkeypatch.context() as patched:
        patched.setattr(LLMAttempt, "finish", broken)
        async with providers.llm().chat(chat_ctx=question()) as stream:
            said = "".join([chunk.delta.content or "" async for chunk in stream if chunk.delta])
    assert said == TEXT
    await providers.bill.settled()
    (leg,) = meter.of(Modality.LLM)
    assert leg.outcome is Outcome.SERVED
    assert leg.usage["input_tokens"] == providers.bill.total("input_tokens")
    assert _faults.counts()["finish_attempt"] == before + 1
    _faults._counts["finish_attempt"] -= 1  # it was meant

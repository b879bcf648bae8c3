"""What providers and plugins report may be zero, negative, doubled or late: none is believed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Iterator
from enum import StrEnum
from typing import Any

import pytest
from livekit import rtc
from livekit.agents import Agent, APIConnectOptions, APIStatusError, stt, tts
from livekit.agents.llm import LLM, ChatChunk, ChatContext, ChoiceDelta, CompletionUsage, LLMStream
from pydantic import ValidationError

from livekit.plugins.voicecost import _attribution, _instrument, _speech_tokens
from tests.plugin.metered_session import (
    Providers,
    RecordingMeter,
    metered_call,
    simulated_providers,
)
from tests.plugin.test_control_total import LLM as TALKS
from tests.plugin.test_control_total import STT as HEARS
from tests.plugin.test_control_total import Account, answered, heard
from tests.simulators import Reply, openai_chat
from voicecost_ledger.records import Basis, Modality, Outcome

ONE_TRY = APIConnectOptions(max_retry=0, timeout=5)


@pytest.fixture
def meter() -> Iterator[RecordingMeter]:
    meter = RecordingMeter()
    with _attribution.scoped(meter):
        yield meter


@pytest.fixture
async def providers() -> AsyncIterator[Providers]:
    async with simulated_providers(Reply(text="It is sunny in Paris today.")) as providers:
        yield providers


def question() -> ChatContext:
    context = ChatContext.empty()
    context.add_message(role="user", content="How is the weather?")
    return context


class ReportingLLM(LLM[Any]):
    """Somebody's own LLM: says a sentence of five tokens, and reports what it is told to."""

    def __init__(self, *reports: tuple[int, int], error: Exception | None = None) -> None:
        super().__init__()
        self.reports = reports
        self.error = error

    @property
    def model(self) -> str:
        return "homemade"

    @property
    def provider(self) -> str:
        return "us"

    def chat(self, *, chat_ctx: ChatContext, **_: Any) -> LLMStream:
        return ReportingStream(self, chat_ctx=chat_ctx, tools=[], conn_options=ONE_TRY)


class ReportingStream(LLMStream):
    async def _run(self) -> None:
        llm: Any = self._llm
        if llm.error is not None:
            raise llm.error
        for word in ("It ", "is ", "sunny ", "today."):
            self._event_ch.send_nowait(ChatChunk(id="1", delta=ChoiceDelta(content=word)))
        for input_tokens, output_tokens in llm.reports:
            usage = CompletionUsage(
                prompt_tokens=input_tokens,
                completion_tokens=output_tokens,
                total_tokens=input_tokens + output_tokens,
            )
            self._event_ch.send_nowait(ChatChunk(id="1", usage=usage))


class Models(StrEnum):
    """Names as enums, as several plugins have them."""

    HOMEMADE = "homemade-1"


class Name(str):
    """Another kind of text, as LiveKit's own for languages is."""

    __slots__ = ()


NAMES = [
    (Models.HOMEMADE, "homemade-1"), (Name("homemade-1"), "homemade-1"), (None, ""), ("", ""),
    (7, ""), (b"homemade-1", ""),
]  # fmt: skip


@pytest.mark.parametrize(("named", "model"), NAMES)
async def test_a_name_reaches_the_ledger_as_plain_text(
    named: Any, model: str, meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record takes no other, and a request must not be lost for its name."""
    for name in ("model", "provider", "label"):
        monkeypatch.setattr(ReportingLLM, name, property(lambda _: named))
    _instrument.instrument()
    try:
        with contextlib.suppress(ValidationError):  # LiveKit's own metrics may refuse it
            await ask(ReportingLLM((11, 5)))
    finally:
        _instrument.uninstrument()
    (leg,) = meter.of(Modality.LLM)
    assert leg.usage["output_tokens"] == 5
    for text in (leg.attributes.model, leg.attributes.provider, leg.attributes.label):
        assert (text, type(text)) == (model, str)


ONE_REPORT: list[Any] = [
    pytest.param([(11, 5)], Basis.REPORTED, 11, 5, id="true"),
    pytest.param([(0, 0)], Basis.ESTIMATED, None, None, id="zero"),
    pytest.param([(-11, -5)], Basis.ESTIMATED, None, None, id="negative"),
    pytest.param([(11, -5)], Basis.ESTIMATED, None, None, id="half negative"),
    pytest.param([(0, 5)], Basis.ESTIMATED, None, 5, id="no prompt"),
    pytest.param([(11, 0)], Basis.ESTIMATED, 11, None, id="no answer"),
]
SEVERAL_REPORTS: list[Any] = [
    pytest.param([(11, 5), (11, 5)], Basis.REPORTED, 11, 5, id="doubled"),
    pytest.param([(11, 3), (11, 5)], Basis.REPORTED, 11, 5, id="growing"),
    pytest.param([(11, 5), (0, 0)], Basis.REPORTED, 11, 5, id="taken back"),
]


async def ask(model: LLM[Any]) -> None:
    async with model.chat(chat_ctx=question()) as stream:
        async for _ in stream:
            pass


def is_believed(
    meter: RecordingMeter, basis: Basis, input_tokens: int | None, output_tokens: int | None
) -> None:
    """What is None here was not believed, and estimated as if nothing had been said of it."""
    (leg,) = meter.of(Modality.LLM)
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, basis)
    for unit, told in (("input_tokens", input_tokens), ("output_tokens", output_tokens)):
        if told is None:
            assert 3 <= leg.usage[unit] <= 20
        else:
            assert leg.usage[unit] == told


@pytest.mark.parametrize(
    ("reports", "basis", "input_tokens", "output_tokens"), ONE_REPORT + SEVERAL_REPORTS
)
async def test_somebodys_own_llm_is_believed_only_what_can_be(
    reports: list[tuple[int, int]],
    basis: Basis,
    input_tokens: int | None,
    output_tokens: int | None,
    meter: RecordingMeter,
) -> None:
    _instrument.instrument()
    try:
        await ask(ReportingLLM(*reports))
    finally:
        _instrument.uninstrument()
    is_believed(meter, basis, input_tokens, output_tokens)


@pytest.mark.parametrize(("reports", "basis", "input_tokens", "output_tokens"), ONE_REPORT)
async def test_a_host_is_believed_only_what_can_be(
    reports: list[tuple[int, int]],
    basis: Basis,
    input_tokens: int | None,
    output_tokens: int | None,
    meter: RecordingMeter,
    providers: Providers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that speaks OpenAI's protocol, and counts badly."""
    ((told_input, told_output),) = reports
    told = {"prompt_tokens": told_input, "completion_tokens": told_output}
    told["total_tokens"] = told_input + told_output
    monkeypatch.setattr(openai_chat, "_usage", lambda *_: told)
    await ask(providers.llm())
    is_believed(meter, basis, input_tokens, output_tokens)


class ReportingVoice(tts.TTS[Any]):
    """Somebody's own TTS, of a protocol nobody knows."""

    def __init__(self, error: Exception | None = None, tokens: Any = 0) -> None:
        super().__init__(
            capabilities=tts.TTSCapabilities(streaming=True), sample_rate=24_000, num_channels=1
        )
        self.error = error
        self.tokens = tokens

    def synthesize(self, text: str, *, conn_options: APIConnectOptions = ONE_TRY) -> Any:
        return ReportingSpeech(tts=self, input_text=text, conn_options=conn_options)

    def stream(self, *, conn_options: APIConnectOptions = ONE_TRY) -> tts.SynthesizeStream:
        raise NotImplementedError


class ReportingSpeech(tts.ChunkedStream):
    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        voice: Any = self._tts
        if voice.error is not None:
            raise voice.error
        output_emitter.initialize(
            request_id="1", sample_rate=24_000, num_channels=1, mime_type="audio/pcm"
        )
        output_emitter.push(bytes(4_800))
        if voice.tokens != 0:
            self._set_token_usage(input_tokens=voice.tokens, output_tokens=3)


# LiveKit's plugins put the close codes of their WebSockets into `status_code` too.
REFUSALS, CLOSE_CODES = (429, 500, 404), (1006, 1011, 1000, -1, 0, 200)
STATUS_CODES = [(code, True) for code in REFUSALS] + [(code, False) for code in CLOSE_CODES]


@pytest.mark.parametrize(("status_code", "refused"), STATUS_CODES)
async def test_only_an_http_error_is_a_refusal_of_a_question(
    status_code: int, refused: bool, meter: RecordingMeter
) -> None:
    error = APIStatusError("closed", status_code=status_code, retryable=False)
    _instrument.instrument()
    try:
        with pytest.raises(APIStatusError):
            await ask(ReportingLLM(error=error))
    finally:
        _instrument.uninstrument()
    (leg,) = meter.of(Modality.LLM)
    assert leg.outcome is Outcome.FAILED
    assert leg.basis is (Basis.OBSERVED if refused else Basis.ESTIMATED)
    assert (leg.usage["input_tokens"] > 3) is not refused


@pytest.mark.parametrize(("status_code", "refused"), STATUS_CODES)
async def test_only_an_http_error_is_a_refusal_of_audio(
    status_code: int, refused: bool, meter: RecordingMeter
) -> None:
    error = APIStatusError("closed", status_code=status_code, retryable=False)
    _instrument.instrument()
    try:
        async with ReportingEar([], error=error).stream() as stream:
            stream.push_frame(rtc.AudioFrame(bytes(32_000), 16_000, 1, 16_000))
            stream.end_input()
            with pytest.raises(APIStatusError):
                async for _ in stream:
                    pass
    finally:
        _instrument.uninstrument()
    (leg,) = meter.of(Modality.STT)
    assert leg.outcome is Outcome.FAILED
    assert leg.basis is (Basis.OBSERVED if refused else Basis.ESTIMATED)
    assert leg.usage["audio_ms"] == (0 if refused else 1_000)


@pytest.mark.parametrize(("status_code", "refused"), STATUS_CODES)
async def test_only_an_http_error_is_a_refusal_of_a_text(
    status_code: int, refused: bool, meter: RecordingMeter
) -> None:
    _instrument.instrument()
    try:
        error = APIStatusError("closed", status_code=status_code, retryable=False)
        stream = ReportingVoice(error).synthesize("Hello.")
        with pytest.raises(APIStatusError):
            async for _ in stream:
                pass
        await stream.aclose()
    finally:
        _instrument.uninstrument()
    (leg,) = meter.of(Modality.TTS)
    assert leg.outcome is Outcome.FAILED
    assert leg.usage["characters"] == (0 if refused else 6)
    assert leg.basis is (Basis.OBSERVED if refused else Basis.ESTIMATED)


class ReportingEar(stt.STT[Any]):
    """Somebody's own STT, of a protocol nobody knows."""

    def __init__(self, reports: list[stt.RecognitionUsage], error: Exception | None = None) -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=True, interim_results=False))
        self.reports = reports
        self.error = error

    async def _recognize_impl(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def stream(self, **_: Any) -> stt.RecognizeStream:
        return ReportingHearing(stt=self, conn_options=ONE_TRY)


class ReportingHearing(stt.RecognizeStream):
    async def _run(self) -> None:
        ear: Any = self._stt
        async for _ in self._input_ch:
            pass
        if ear.error is not None:
            raise ear.error
        for report in ear.reports:
            self._event_ch.send_nowait(
                stt.SpeechEvent(
                    type=stt.SpeechEventType.RECOGNITION_USAGE, recognition_usage=report
                )
            )


NO_NUMBERS = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize(
    "reported_s", [[], [0.0], [-3.0], [1.0, 1.0], [7_200.0], *([each] for each in NO_NUMBERS)],
    ids=["none", "zero", "negative", "doubled", "two hours", "nan", "inf", "-inf"],
)  # fmt: skip
async def test_audio_is_what_was_taken_whatever_is_reported(
    reported_s: list[float], meter: RecordingMeter
) -> None:
    _instrument.instrument()
    try:
        reports = [stt.RecognitionUsage(audio_duration=each) for each in reported_s]
        async with ReportingEar(reports).stream() as stream:
            stream.push_frame(rtc.AudioFrame(bytes(32_000), 16_000, 1, 16_000))
            stream.end_input()
            async for _ in stream:
                pass
    finally:
        _instrument.uninstrument()
    (leg,) = meter.of(Modality.STT)
    assert leg.usage["audio_ms"] == 1_000


@pytest.mark.parametrize("reported_s", [*NO_NUMBERS, 1e18])
async def test_a_duration_that_cannot_be_is_none_where_nothing_else_tells(
    reported_s: float, meter: RecordingMeter
) -> None:
    """The plugin's sound went another way. A billion years of it would end the call, unpaid."""
    _instrument.instrument()
    try:
        report = stt.RecognitionUsage(audio_duration=reported_s)
        async with ReportingEar([report]).stream() as stream:
            stream.end_input()
            async for _ in stream:
                pass
    finally:
        _instrument.uninstrument()
    (leg,) = meter.of(Modality.STT)
    assert leg.usage["audio_ms"] == 0


def test_a_duration_that_is_no_number_is_not_in_usage() -> None:
    """LiveKit adds it up, and has no number of that model for the rest of the call."""
    account = Account()
    account.leg(HEARS, Outcome.SERVED, audio_ms=9_000)
    account.leg(TALKS, Outcome.SERVED, input_tokens=900, output_tokens=40)
    account.livekit(heard(math.nan))
    account.livekit(heard(5))
    account.livekit(answered(900, 40))
    assert account.causes("audio_ms") == {"not_in_usage": 9_000}
    assert account.causes("input_tokens") == {}


NO_COUNTS: list[Any] = [
    pytest.param(12.0, 12, id="whole"),  # as LiveKit takes it
    pytest.param(12.5, 0, id="half"),
    pytest.param(math.nan, 0, id="nan"),
    pytest.param(math.inf, 0, id="inf"),
    pytest.param("12", 0, id="text"),
    pytest.param(None, 0, id="none"),
]


@pytest.mark.parametrize(("told", "tokens"), NO_COUNTS)
async def test_tokens_of_audio_that_are_no_whole_number_reach_no_record(
    told: Any, tokens: int, meter: RecordingMeter
) -> None:
    """The ledger takes whole numbers only, and would refuse all that is sent with such a one."""
    _instrument.instrument()
    report = stt.RecognitionUsage(audio_duration=1.0, input_tokens=told, output_tokens=3)
    try:
        stream = ReportingEar([report]).stream()
        stream.push_frame(rtc.AudioFrame(bytes(32_000), 16_000, 1, 16_000))
        stream.end_input()
        with contextlib.suppress(ValidationError):  # LiveKit's own metrics may refuse it
            async for _ in stream:
                pass
            await stream.aclose()
    finally:
        _instrument.uninstrument()
    (leg,) = meter.of(Modality.STT)
    assert leg.usage["audio_ms"] == 1_000
    assert leg.usage.get("input_tokens", 0) == tokens
    assert {type(quantity) for quantity in leg.usage.values()} == {int}


@pytest.mark.parametrize(("told", "tokens"), NO_COUNTS)
async def test_tokens_of_a_voice_that_are_no_whole_number_reach_no_record(
    told: Any, tokens: int, meter: RecordingMeter
) -> None:
    _speech_tokens.forget()  # a voice that has reported tokens is estimated in tokens
    _instrument.instrument()
    try:
        stream = ReportingVoice(tokens=told).synthesize("Hello.")
        with contextlib.suppress(ValidationError):  # LiveKit's own metrics may refuse it
            async for _ in stream:
                pass
            await stream.aclose()
    finally:
        _instrument.uninstrument()
    (leg,) = meter.of(Modality.TTS)
    assert leg.usage["characters"] == 6
    assert leg.usage.get("input_tokens", 0) == tokens
    assert {type(quantity) for quantity in leg.usage.values()} == {int}


async def test_a_report_that_comes_after_the_session_is_a_correction(
    providers: Providers,
) -> None:
    """The session is closed while a tool's request is answered: the report settles its leg."""
    providers.openai.first_token_delay_ms = 150
    async with metered_call(providers, agent=Agent(instructions="You talk.")) as call:
        stream = providers.llm().chat(chat_ctx=question())
        await call.meter.until(lambda: call.meter.of(Modality.LLM))
        await call.session.aclose()
        async for _ in stream:
            pass
        await stream.aclose()
    (leg,) = call.meter.of(Modality.LLM)
    (row,) = (row for row in providers.bill.rows if row.service == "llm")
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.REPORTED)
    assert leg.usage["output_tokens"] == row.units["output_tokens"]

"""Recognisers that nobody has read the wire of, and what their plugins say or do not say.

Seven of LiveKit's streaming plugins report no usage at all (baseten, gnani, gradium, nvidia, rtzr,
telnyx, google's GeminiSTT), others a part or too late: the audio that is taken is the measure.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import json
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import pytest
from livekit import rtc
from livekit.agents import APIConnectOptions, LanguageCode
from livekit.agents.stt import (
    STT,
    RecognitionUsage,
    RecognizeStream,
    SpeechData,
    SpeechEvent,
    SpeechEventType,
    STTCapabilities,
)
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, NOT_GIVEN, NotGivenOr
from livekit.agents.utils import AudioBuffer

from livekit.plugins.voicecost import _attribution, _faults, _instrument, _wire_audio
from tests.plugin.metered_session import RecordingMeter
from tests.plugin.stt_streams import legs_of, silence
from tests.simulators.deepgram_flux import DeepgramFluxSimulator
from voicecost_ledger.records import Basis, LegStop, Modality, Outcome

Report = Callable[[float], list[RecognitionUsage]]


class _PlainSTT(STT[Any]):
    """A recogniser that an application wrote itself."""

    def __init__(
        self, stream_class: type[_PlainStream], report: Report, sample_rate: int = 16_000
    ) -> None:
        super().__init__(capabilities=STTCapabilities(streaming=True, interim_results=False))
        self.stream_class = stream_class
        self.report = report
        self.sample_rate = sample_rate

    @property
    def model(self) -> str:
        return "plain-1"

    @property
    def provider(self) -> str:
        return "Plain"

    async def _recognize_impl(
        self,
        buffer: AudioBuffer,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions,
    ) -> SpeechEvent:
        raise NotImplementedError

    def stream(
        self,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
    ) -> RecognizeStream:
        return self.stream_class(stt=self, conn_options=conn_options, sample_rate=self.sample_rate)


class _PlainStream(RecognizeStream):
    """Takes frames, sends them nobody sees where, and reports as it was told."""

    _stt: _PlainSTT

    async def _run(self) -> None:
        taken_s = 0.0
        async for item in self._input_ch:
            if isinstance(item, rtc.AudioFrame):
                taken_s += item.duration
                await self.send(item)
        self._event_ch.send_nowait(
            SpeechEvent(
                type=SpeechEventType.FINAL_TRANSCRIPT,
                alternatives=[SpeechData(language=LanguageCode("en"), text="Hello.")],
            )
        )
        for usage in self._stt.report(taken_s):
            self._event_ch.send_nowait(
                SpeechEvent(type=SpeechEventType.RECOGNITION_USAGE, recognition_usage=usage)
            )

    async def send(self, frame: rtc.AudioFrame) -> None:
        """Where the audio goes."""


class _OwnSocketStream(_PlainStream):
    """Sends over a WebSocket, in chunks and a framing of its own."""

    url = ""

    async def _run(self) -> None:
        async with aiohttp.ClientSession() as http, http.ws_connect(self.url) as self._socket:
            await super()._run()

    async def send(self, frame: rtc.AudioFrame) -> None:
        await self._socket.send_str(json.dumps({"pcm": base64.b64encode(frame.data).decode()}))


class _OwnQueueStream(_PlainStream):
    """Has a queue of its own for the frames, so nobody sees what it takes."""

    def push_frame(self, frame: rtc.AudioFrame) -> None:
        self.pushed_s = getattr(self, "pushed_s", 0.0) + frame.duration

    async def _run(self) -> None:
        async for _ in self._input_ch:
            pass
        for usage in self._stt.report(self.pushed_s):
            self._event_ch.send_nowait(
                SpeechEvent(type=SpeechEventType.RECOGNITION_USAGE, recognition_usage=usage)
            )


@pytest.fixture
def meter() -> Iterator[RecordingMeter]:
    meter = RecordingMeter()
    _instrument.instrument()
    try:
        with _attribution.scoped(meter):
            yield meter
    finally:
        _instrument.uninstrument()


def _nothing(taken_s: float) -> list[RecognitionUsage]:
    return []


def _zero(taken_s: float) -> list[RecognitionUsage]:
    return [RecognitionUsage(audio_duration=0.0)]


def _once_at_the_end(taken_s: float) -> list[RecognitionUsage]:
    return [RecognitionUsage(audio_duration=taken_s)]


def _twice(taken_s: float) -> list[RecognitionUsage]:
    return [RecognitionUsage(audio_duration=taken_s)] * 2


def _negative(taken_s: float) -> list[RecognitionUsage]:
    return [RecognitionUsage(audio_duration=-taken_s, input_tokens=-5, output_tokens=-7)]


async def _spoken_into(stt: STT[Any], ms: int) -> None:
    async with stt.stream() as stream:
        for frame in silence(ms, sample_rate=48_000):
            stream.push_frame(frame)
        stream.end_input()
        async for _ in stream:
            pass


@pytest.mark.parametrize("report", [_nothing, _zero, _once_at_the_end, _twice, _negative])
async def test_audio_is_what_was_taken_whatever_the_plugin_reports(
    report: Report, meter: RecordingMeter
) -> None:
    await _spoken_into(_PlainSTT(_PlainStream, report), 3_210)
    (leg,) = legs_of(meter)
    assert (leg.outcome, leg.basis) == (Outcome.SERVED, Basis.ESTIMATED)
    # LiveKit's resampler keeps a little back at the end.
    assert abs(leg.usage["audio_ms"] - 3_210) <= 10
    assert set(leg.usage) == {"audio_ms", "connected_ms"}
    (stop,) = [fields for make, fields in meter.records if make is LegStop]
    assert stop["margins"] == {"audio_ms": 200}
    assert stop["time_to_first_ms"] is not None


def _tokens(*told: tuple[float, int, int]) -> Report:
    return lambda _: [RecognitionUsage(*each) for each in told]


async def test_tokens_are_added_up_as_livekit_does(meter: RecordingMeter) -> None:
    """Each report is of what came since the one before."""
    report = _tokens((1.0, 10, 2), (1.0, 10, 2), (1.0, 12, 3))
    await _spoken_into(_PlainSTT(_PlainStream, report, sample_rate=48_000), 3_000)
    (leg,) = legs_of(meter)
    assert (leg.usage["input_tokens"], leg.usage["output_tokens"]) == (32, 7)
    assert leg.margins == {"audio_ms": 200}


@pytest.mark.parametrize(
    "report",
    [
        _tokens((3.0, 30, 6), (3.0, 30, 6)),
        _tokens((1.0, 10, 2), (2.0, 20, 4), (3.0, 30, 6)),
        _tokens((1.0, 10, 2), (1.0, 10, 2), (1.0, 10, 2), (1.0, 10, 2)),
    ],
    ids=["twice", "totals", "one of them twice"],
)
async def test_tokens_of_more_audio_than_there_was_were_told_again(
    report: Report, meter: RecordingMeter
) -> None:
    await _spoken_into(_PlainSTT(_PlainStream, report, sample_rate=48_000), 3_000)
    (leg,) = legs_of(meter)
    told = {unit: leg.usage[unit] for unit in ("input_tokens", "output_tokens")}
    assert (told, leg.basis) == ({"input_tokens": 30, "output_tokens": 6}, Basis.ESTIMATED)
    assert leg.margins["input_tokens"] >= 10  # what was told beyond that, if it was true after all


async def test_without_resampling_it_is_exact(meter: RecordingMeter) -> None:
    await _spoken_into(_PlainSTT(_PlainStream, _nothing, sample_rate=48_000), 3_210)
    (leg,) = legs_of(meter)
    assert leg.usage["audio_ms"] == 3_210


async def test_a_socket_of_its_own_tells_how_long_it_was_open(meter: RecordingMeter) -> None:
    async with DeepgramFluxSimulator() as simulator:
        url = f"{simulator.base_url}?model=plain&sample_rate=48000&encoding=linear16"

        class Stream(_OwnSocketStream):
            async def _run(self) -> None:
                async with (
                    aiohttp.ClientSession(headers={"Authorization": "Token x"}) as http,
                    http.ws_connect(url) as self._socket,
                ):
                    await _PlainStream._run(self)

        await _spoken_into(_PlainSTT(Stream, _nothing, sample_rate=48_000), 500)
        await simulator.bill.settled()
    (leg,), (row,) = legs_of(meter), simulator.bill.rows
    assert (leg.usage["audio_ms"], leg.basis) == (500, Basis.ESTIMATED)
    assert row.connected_ms is not None
    assert abs(leg.usage["connected_ms"] - row.connected_ms) <= 150


async def test_a_socket_beside_the_one_that_audio_goes_over_is_no_leg(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Telemetry, a token service: opened first, told something, and never given audio."""
    protocols: dict[str, Any] = {__name__: _wire_audio.AudioProtocol(binary=len)}
    monkeypatch.setattr(_wire_audio, "_PROTOCOLS", protocols)
    async with DeepgramFluxSimulator() as simulator:
        url = f"{simulator.base_url}?model=plain&sample_rate=48000&encoding=linear16"

        class Stream(_PlainStream):
            async def _run(self) -> None:
                async with (
                    aiohttp.ClientSession(headers={"Authorization": "Token x"}) as http,
                    http.ws_connect(url) as beside,
                    http.ws_connect(url) as self._socket,
                ):
                    await beside.send_str('{"type": "Hello"}')
                    await _PlainStream._run(self)

            async def send(self, frame: rtc.AudioFrame) -> None:
                await self._socket.send_bytes(frame.data.tobytes())

        await _spoken_into(_PlainSTT(Stream, _nothing, sample_rate=48_000), 500)
        await simulator.bill.settled()
    (leg,) = legs_of(meter)
    assert (leg.usage["audio_ms"], leg.basis) == (500, Basis.OBSERVED)
    assert simulator.bill.total("audio_ms") == 500


async def test_where_frames_go_another_way_the_report_is_all_there_is(
    meter: RecordingMeter,
) -> None:
    await _spoken_into(_PlainSTT(_OwnQueueStream, _once_at_the_end), 1_500)
    (leg,) = legs_of(meter)
    assert (leg.usage["audio_ms"], leg.basis) == (1_500, Basis.REPORTED)


async def test_a_known_plugin_whose_wire_has_changed_is_metered_by_what_it_takes(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocols: dict[str, Any] = {__name__: _wire_audio.AudioProtocol(binary=len)}
    monkeypatch.setattr(_wire_audio, "_PROTOCOLS", protocols)
    await _spoken_into(_PlainSTT(_PlainStream, _nothing, sample_rate=48_000), 3_210)
    (leg,) = legs_of(meter)
    assert (leg.usage["audio_ms"], leg.basis) == (3_210, Basis.ESTIMATED)


class _Guarded(_PlainStream):
    """A guardrail around another recogniser: its requests are the other's."""

    inner: STT[Any]

    async def _run(self) -> None:
        async with self.inner.stream() as stream:
            async for item in self._input_ch:
                if isinstance(item, rtc.AudioFrame):
                    stream.push_frame(item)
            stream.end_input()
            async for event in stream:
                self._event_ch.send_nowait(event)


async def test_a_wrapper_around_another_recogniser_is_billed_once(meter: RecordingMeter) -> None:
    class Guarded(_Guarded):
        inner = _PlainSTT(_PlainStream, _nothing, sample_rate=48_000)

    await _spoken_into(_PlainSTT(Guarded, _nothing, sample_rate=48_000), 1_000)
    assert sum(leg.usage["audio_ms"] for leg in legs_of(meter)) == 1_000


_PCM = bytes(range(200)) * 3
_BASE64 = base64.b64encode(_PCM).decode()


@pytest.mark.parametrize(
    ("module", "message", "size"),
    [
        ("gladia.stt", {"type": "audio_chunk", "data": {"chunk": _BASE64}}, 600),
        ("gladia.stt", {"type": "stop_recording"}, 0),
        ("gradium.stt", {"type": "audio", "audio": _BASE64}, 600),
        ("gradium.stt", {"type": "setup", "model_name": "default"}, 0),
        ("inworld.stt", {"audioChunk": {"content": _BASE64}}, 600),
        ("inworld.stt", {"endTurn": {}}, 0),
        ("sarvam.stt", {"audio": {"data": _BASE64, "encoding": "audio/wav"}}, 600),
        ("sarvam.stt", {"type": "flush"}, 0),
        ("baseten.qwen3_stt", {"type": "input_audio_buffer.append", "audio": _BASE64}, 600),
        ("baseten.qwen3_stt", {"audio": 7}, 0),
    ],
)
def test_audio_in_text_messages_of_plugins_that_are_not_driven_here(
    module: str, message: dict[str, Any], size: int
) -> None:
    plugin = type("STT", (), {"__module__": f"livekit.plugins.{module}"})
    protocol = _wire_audio.audio_protocol(plugin())
    assert protocol is not None
    assert protocol.text is not None
    assert protocol.text(json.dumps(message)) == size


@pytest.mark.parametrize("padding", range(4))
def test_base64_is_measured_without_being_decoded(padding: int) -> None:
    pcm = bytes(1_000 + padding)
    plugin = type("STT", (), {"__module__": "livekit.agents.inference.stt"})
    protocol = _wire_audio.audio_protocol(plugin())
    assert protocol is not None
    assert protocol.text is not None
    message = {"type": "input_audio", "audio": base64.b64encode(pcm).decode()}
    assert protocol.text(json.dumps(message)) == len(pcm)


def test_a_wav_header_is_no_audio() -> None:
    plugin = type("STT", (), {"__module__": "livekit.plugins.telnyx.stt"})
    protocol = _wire_audio.audio_protocol(plugin())
    assert protocol is not None
    assert protocol.binary is not None
    assert [protocol.binary(part) for part in (b"RIFF" + bytes(40), _PCM)] == [0, 600]


@pytest.mark.parametrize(
    ("encoding", "size"),
    [("linear16", 2), ("pcm_s16le", 2), ("", 2), ("pcm_mulaw", 1), ("pcm_f32le", 4)],
)
def test_bytes_per_sample(encoding: str, size: int) -> None:
    assert _wire_audio.bytes_per_sample(encoding) == size


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stream_whose_loop_is_gone_is_settled_too(
    meter: RecordingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job's process that is torn down throws its coroutines away: that is no fault of ours."""
    monkeypatch.delenv("VOICECOST_RAISE_FAULTS", raising=False)
    before = _faults.counts()

    async def left_open() -> None:
        stream = _PlainSTT(_PlainStream, _nothing).stream()
        for frame in silence(5_000):
            stream.push_frame(frame)
        await meter.until(lambda: meter.total(Modality.STT, "audio_ms") >= 5_000)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(left_open())
    loop.close()
    gc.collect()
    (leg,) = legs_of(meter)
    assert _faults.counts() == before
    assert leg.outcome is not None
    assert leg.usage["audio_ms"] == 5_000

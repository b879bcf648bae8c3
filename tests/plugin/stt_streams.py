"""Real recognition plugins on simulated providers, and the sound they are given."""

from __future__ import annotations

import array
import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
import grpc
from google.auth.credentials import AnonymousCredentials
from google.cloud.speech_v1 import SpeechAsyncClient as SpeechAsyncClientV1
from google.cloud.speech_v1.services.speech.transports import (
    SpeechGrpcAsyncIOTransport as SpeechGrpcAsyncIOTransportV1,
)
from google.cloud.speech_v2 import SpeechAsyncClient
from google.cloud.speech_v2.services.speech.transports import SpeechGrpcAsyncIOTransport
from livekit import rtc
from livekit.agents import APIConnectOptions, inference
from livekit.agents.stt import STT, RecognizeStream, SpeechEvent, SpeechEventType
from livekit.plugins.assemblyai import STT as AssemblyAISTT
from livekit.plugins.cartesia import STT as CartesiaSTT
from livekit.plugins.deepgram import STT as DeepgramSTT
from livekit.plugins.deepgram import STTv2 as FluxSTT
from livekit.plugins.elevenlabs import STT as ElevenLabsSTT
from livekit.plugins.google import STT as GoogleSTT
from livekit.plugins.openai import STT as OpenAISTT
from livekit.plugins.speechmatics import STT as SpeechmaticsSTT
from livekit.plugins.speechmatics import TurnDetectionMode

from livekit.plugins.voicecost import _instrument
from tests.plugin.livekit_versions import LIVEKIT_1_5
from tests.plugin.metered_session import RecordingMeter, SeenLeg
from tests.simulators import BillRow
from tests.simulators.assemblyai import AssemblyAISimulator
from tests.simulators.cartesia_listen import CartesiaListenSimulator
from tests.simulators.deepgram import DeepgramSimulator
from tests.simulators.deepgram_flux import DeepgramFluxSimulator
from tests.simulators.elevenlabs_listen import ElevenLabsListenSimulator
from tests.simulators.google_speech import GoogleSpeechSimulator
from tests.simulators.inference_stt import InferenceSTTSimulator
from tests.simulators.openai_transcriptions import OpenAITranscriptionsSimulator
from tests.simulators.speechmatics_listen import SpeechmaticsSimulator
from voicecost_ledger.records import Basis, Modality

TRANSCRIPTS = ("Hello there, who is it?", "And how is the weather in Paris today?")
ALL_WORDS = len(" ".join(TRANSCRIPTS).split())
ONE_TRY = APIConnectOptions(max_retry=0, timeout=5)
THREE_TRIES = APIConnectOptions(max_retry=2, retry_interval=0, timeout=5)


@dataclass(frozen=True)
class Recogniser:
    """A provider's plugin, and its simulator."""

    name: str
    simulate: Callable[[], Any]
    plugin: Callable[[Any, aiohttp.ClientSession], STT[Any]]
    ends: bool = True
    """Whether the plugin's stream ends by itself, and soon, when its input does."""
    tokens: bool = False
    """Whether the provider reports tokens, and bills by them."""

    def __str__(self) -> str:
        return self.name


def _deepgram(simulator: DeepgramSimulator, http: aiohttp.ClientSession) -> STT[Any]:
    return DeepgramSTT(base_url=simulator.listen_url, api_key="x", http_session=http)


def _flux(simulator: DeepgramFluxSimulator, http: aiohttp.ClientSession) -> STT[Any]:
    return FluxSTT(base_url=simulator.base_url, api_key="x", http_session=http)


def _assemblyai(simulator: AssemblyAISimulator, http: aiohttp.ClientSession) -> STT[Any]:
    return AssemblyAISTT(base_url=simulator.base_url, api_key="x", http_session=http)


def _ink_2(simulator: CartesiaListenSimulator, http: aiohttp.ClientSession) -> STT[Any]:
    return CartesiaSTT(base_url=simulator.base_url, api_key="x", http_session=http)


def _ink_whisper(simulator: CartesiaListenSimulator, http: aiohttp.ClientSession) -> STT[Any]:
    return CartesiaSTT(
        model="ink-whisper",
        language="de",
        base_url=simulator.base_url,
        api_key="x",
        http_session=http,
    )


def _scribe(simulator: ElevenLabsListenSimulator, http: aiohttp.ClientSession) -> STT[Any]:
    model: dict[str, Any] = {"model_id" if LIVEKIT_1_5 else "model": "scribe_v2_realtime"}
    return ElevenLabsSTT(base_url=simulator.base_url, api_key="x", http_session=http, **model)


def _inference(simulator: InferenceSTTSimulator, http: aiohttp.ClientSession) -> STT[Any]:
    return inference.STT(
        model="deepgram/nova-3",
        language="en",
        base_url=simulator.base_url,
        api_key="x",
        api_secret="y" * 32,
        http_session=http,
    )


_NO_CREDENTIALS: dict[str, Any] = (
    {"credentials_info": {"project_id": "p"}}
    if LIVEKIT_1_5
    else {"credentials": AnonymousCredentials(), "project": "p"}
)


def _google(simulator: GoogleSpeechSimulator, http: aiohttp.ClientSession) -> STT[Any]:
    stt = GoogleSTT(model="chirp_2", **_NO_CREDENTIALS)

    async def connect(_: float) -> SpeechAsyncClient:
        channel = grpc.aio.insecure_channel(simulator.target)
        return SpeechAsyncClient(transport=SpeechGrpcAsyncIOTransport(channel=channel))

    stt._pool._connect_cb = connect  # the plugin has no option for another endpoint
    return stt


def _google_v1(simulator: GoogleSpeechSimulator, http: aiohttp.ClientSession) -> STT[Any]:
    stt = GoogleSTT(model="latest_long", **_NO_CREDENTIALS)

    async def connect(_: float) -> SpeechAsyncClientV1:
        channel = grpc.aio.insecure_channel(simulator.target)
        return SpeechAsyncClientV1(transport=SpeechGrpcAsyncIOTransportV1(channel=channel))

    stt._pool._connect_cb = connect
    return stt


def _speechmatics(simulator: SpeechmaticsSimulator, http: aiohttp.ClientSession) -> STT[Any]:
    return SpeechmaticsSTT(
        turn_detection_mode=TurnDetectionMode.VAD, base_url=simulator.base_url, api_key="x"
    )


def _openai(simulator: OpenAITranscriptionsSimulator, http: aiohttp.ClientSession) -> STT[Any]:
    stt = OpenAISTT(
        model="gpt-4o-transcribe", use_realtime=True, base_url=simulator.base_url, api_key="x"
    )
    stt._session = http
    return stt


def _with_words(simulate: Callable[..., Any]) -> Callable[[], Any]:
    return lambda: simulate(transcripts=TRANSCRIPTS)


_ALL = (
    Recogniser("deepgram", _with_words(DeepgramSimulator), _deepgram, ends=False),
    Recogniser("deepgram flux", _with_words(DeepgramFluxSimulator), _flux),
    Recogniser("assemblyai", _with_words(AssemblyAISimulator), _assemblyai),
    Recogniser("cartesia ink-2", _with_words(CartesiaListenSimulator), _ink_2),
    Recogniser(
        "cartesia ink-whisper",
        _with_words(CartesiaListenSimulator),
        _ink_whisper,
        ends=not LIVEKIT_1_5,
    ),
    Recogniser("elevenlabs", _with_words(ElevenLabsListenSimulator), _scribe, ends=False),
    Recogniser("livekit inference", _with_words(InferenceSTTSimulator), _inference, ends=False),
    Recogniser("speechmatics", _with_words(SpeechmaticsSimulator), _speechmatics, ends=False),
    Recogniser("google", _with_words(GoogleSpeechSimulator), _google),
    Recogniser("google v1", _with_words(GoogleSpeechSimulator), _google_v1),
    Recogniser(
        "openai", _with_words(OpenAITranscriptionsSimulator), _openai, ends=False, tokens=True
    ),
)

# LiveKit 1.5's plugins know no ink-2, speak to Speechmatics and OpenAI in other ways than these,
# and ask Google for the credentials of the machine.
_LATER = {"cartesia ink-2", "speechmatics", "openai", "google"}
_NOT_YET = _LATER if LIVEKIT_1_5 else set[str]()
RECOGNISERS = tuple(each for each in _ALL if each.name not in _NOT_YET)


def faults_of(simulator: Any) -> Any:
    """The faults to come of a simulator's recognition."""
    return simulator.listen.faults if isinstance(simulator, DeepgramSimulator) else simulator.faults


def sound(
    *, sample_rate: int = 48_000, seed: int = 1, sentences: int = 2
) -> Iterator[rtc.AudioFrame]:
    """Two sentences with pauses, about 3.3 s, in frames of irregular size; or only the first."""
    sizes = random.Random(seed)
    parts = ((False, 210), (True, 730), (False, 620), (True, 910), (False, 833))
    for loud, ms in parts[: 1 + 2 * sentences]:
        left = sample_rate * ms // 1000
        while left:
            samples = min(left, sizes.randint(sample_rate // 200, sample_rate // 40))
            left -= samples
            tone = [4000 if loud and n // 40 % 2 else 0 for n in range(samples)]
            yield rtc.AudioFrame(array.array("h", tone).tobytes(), sample_rate, 1, samples)


@asynccontextmanager
async def running(recogniser: Recogniser) -> AsyncGenerator[tuple[Any, Any]]:
    """The simulator and the plugin, observed."""
    _instrument.instrument()
    try:
        async with recogniser.simulate() as simulator, aiohttp.ClientSession() as http:
            stt = recogniser.plugin(simulator, http)
            yield simulator, stt
            await stt.aclose()
    finally:
        _instrument.uninstrument()


def silence(ms: int, *, sample_rate: int = 16_000) -> Iterator[rtc.AudioFrame]:
    """A line on which nobody speaks, in frames of 10 ms; nothing comes back from it."""
    samples = sample_rate // 100
    for _ in range(ms // 10):
        yield rtc.AudioFrame(bytes(2 * samples), sample_rate, 1, samples)


@asynccontextmanager
async def open_microphone(stream: RecognizeStream) -> AsyncGenerator[None]:
    """Push silence in frames of 10 ms, faster than it passes, as long as the context lasts."""

    async def feed() -> None:
        while True:
            for frame in silence(10):
                stream.push_frame(frame)
            await asyncio.sleep(0.001)

    task = asyncio.create_task(feed())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def push(stream: RecognizeStream, frames: Iterator[rtc.AudioFrame] | None = None) -> None:
    """Push all of the sound at once, as one turn: the plugin sends it as fast as it can."""
    for frame in frames or sound():
        stream.push_frame(frame)
    stream.flush()


async def said(stream: AsyncIterable[SpeechEvent], words: int = ALL_WORDS) -> str:
    """Read a stream until it has said so many words for good, or to its end."""
    heard: list[str] = []
    async with asyncio.timeout(10):
        async for event in stream:
            if event.type is SpeechEventType.FINAL_TRANSCRIPT:
                heard += event.alternatives[0].text.split()
                if len(heard) >= words:
                    break
    return " ".join(heard)


def legs_of(meter: RecordingMeter) -> list[SeenLeg]:
    """The recognition legs, in the order they were opened."""
    return meter.of(Modality.STT)


def heard_alike(leg: SeenLeg, row: BillRow) -> bool:
    """Whether both counted the same audio.

    To the millisecond, but for what gRPC had on its way when its call was cancelled: it throws
    that away, or not, and the leg says so. A busy machine has more of it than the leg's margin.
    """
    sent_ms, received_ms = leg.usage["audio_ms"], row.units["audio_ms"]
    if leg.basis is Basis.OBSERVED:
        assert sent_ms == received_ms
    else:
        assert leg.basis is Basis.ESTIMATED
        assert row.provider == "google"
        assert leg.margins["audio_ms"] > 0
        assert sent_ms - 1_000 <= received_ms <= sent_ms
    return True


def connected_alike(leg: SeenLeg, row: BillRow, *, within_ms: int = 400) -> bool:
    """Whether both clocks saw the connection open for as long.

    They stand a handshake apart, and what a busy machine puts between the two.
    """
    assert row.connected_ms is not None
    apart_ms = abs(leg.usage["connected_ms"] - row.connected_ms)
    assert apart_ms <= within_ms, f"{leg.usage['connected_ms']=}, {row.connected_ms=}"
    return True

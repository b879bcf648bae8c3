"""Models on the agent's own machine, asked in a call: counted, at a known price of zero."""

from __future__ import annotations

import asyncio
import importlib
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from livekit import rtc
from livekit.agents import APIConnectOptions, stt, tts
from livekit.agents.language import LanguageCode
from livekit.agents.llm import ChatContext
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS

from livekit.plugins.voicecost import _attribution, _instrument
from tests.plugin.endings import Caller
from tests.plugin.metered_session import RecordingMeter, SeenLeg, metered_call, simulated_providers
from tests.plugin.test_stt_recordings import EndpointingVAD
from tests.plugin.test_voicecost_jobs import job_context, shut_down
from tests.simulators import Reply
from voicecost_catalog import open_price_book
from voicecost_ledger.records import Basis, Modality, Outcome

BOOK = open_price_book()


def cost_nano_usd(leg: SeenLeg) -> int | None:
    price = BOOK.price_for(leg.attributes, 0)
    return None if price is None else price.rate(leg.usage)


# Speech, by plugins of the user's own around faster-whisper and the like


class FasterWhisper(stt.STT[Any]):
    """Recognizes whole recordings, as faster-whisper does, in a thread of the agent's process."""

    def __init__(self) -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=False, interim_results=False))
        self.heard_ms = 0

    @property
    def provider(self) -> str:
        return "local"

    @property
    def model(self) -> str:
        return "faster-whisper-small"

    async def _recognize_impl(
        self, buffer: Any, *, language: Any = None, conn_options: APIConnectOptions
    ) -> stt.SpeechEvent:
        frame = rtc.combine_audio_frames(buffer)
        self.heard_ms += await asyncio.to_thread(self._transcribe, frame)
        text = stt.SpeechData(language=LanguageCode("en"), text="Are you there?")
        return stt.SpeechEvent(type=stt.SpeechEventType.FINAL_TRANSCRIPT, alternatives=[text])

    def _transcribe(self, frame: rtc.AudioFrame) -> int:
        return frame.samples_per_channel * 1000 // frame.sample_rate


class Voice(tts.TTS[Any]):
    """Speaks whole texts, as Kokoro and Piper do, in a thread of the agent's process."""

    def __init__(self, model: str) -> None:
        super().__init__(
            capabilities=tts.TTSCapabilities(streaming=False), sample_rate=24_000, num_channels=1
        )
        self.name = model
        self.said: list[str] = []

    @property
    def provider(self) -> str:
        return "local"

    @property
    def model(self) -> str:
        return self.name

    def synthesize(
        self, text: str, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> tts.ChunkedStream:
        return _Speech(tts=self, input_text=text, conn_options=conn_options)


class _Speech(tts.ChunkedStream):
    _tts: Voice

    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        output_emitter.initialize(
            request_id="1", sample_rate=24_000, num_channels=1, mime_type="audio/pcm"
        )
        self._tts.said.append(self._input_text)
        output_emitter.push(await asyncio.to_thread(bytes, 2 * 24_000))
        output_emitter.flush()


@pytest.mark.parametrize("voice", ["kokoro-82m", "piper-amy", "a voice of mine"])
async def test_ears_and_a_voice_of_ones_own(voice: str) -> None:
    ears, mouth = FasterWhisper(), Voice(voice)
    adapter = stt.StreamAdapter(stt=ears, vad=EndpointingVAD(800))
    async with (
        simulated_providers(Reply(text="It is sunny. Take a hat.")) as providers,
        metered_call(
            providers, hears=Caller(), stt=adapter, tts=tts.StreamAdapter(tts=mouth)
        ) as call,
    ):
        (heard,) = await call.meter.stopped(Modality.STT)
        await call.session.generate_reply(user_input="How is the weather?")
        await call.close()
    assert heard.usage == {"audio_ms": ears.heard_ms}
    assert heard.attributes.model == "faster-whisper-small"
    said = call.meter.of(Modality.TTS)
    assert sum(leg.usage["characters"] for leg in said) == sum(map(len, mouth.said)) > 20
    assert {leg.attributes.model for leg in said} == {voice}
    for leg in (heard, *said):
        assert (leg.attributes.provider, leg.outcome) == ("local", Outcome.SERVED)
        assert leg.basis is Basis.OBSERVED
        assert cost_nano_usd(leg) == 0


# LiveKit's turn detectors that read, with the plugin's own classes


class Inference:
    """Stands for the worker's inference process, where the model would be."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.is_asked = asyncio.Event()
        self.answers = asyncio.Event()
        self.answers.set()

    async def do_inference(self, method: str, data: bytes) -> bytes:
        assert json.loads(data)["chat_ctx"]
        self.asked.append(method)
        self.is_asked.set()
        await self.answers.wait()
        if len(self.asked) == 2:
            raise RuntimeError("the process is gone")
        return json.dumps({"eou_probability": 0.9}).encode()


@pytest.fixture
def turn_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The plugin, with its file of languages and without its models, which it would download."""
    package = "livekit.plugins.turn_detector"
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # it is, by now
        plugin = SimpleNamespace(
            base=importlib.import_module(f"{package}.base"),
            english=importlib.import_module(f"{package}.english"),
            multilingual=importlib.import_module(f"{package}.multilingual"),
        )
    languages = tmp_path / "languages.json"
    languages.write_text(json.dumps({"en": {"threshold": 0.1}}))
    monkeypatch.setattr(plugin.base, "_download_from_hf_hub", lambda *_, **__: str(languages))
    return plugin


@pytest.mark.parametrize(
    ("module", "name"), [("english", "EnglishModel"), ("multilingual", "MultilingualModel")]
)
async def test_a_turn_detector_that_reads(module: str, name: str, turn_detector: Any) -> None:
    """Every end of a turn is a question to it; one that fails was one too."""
    context, inference = job_context(), Inference()
    context._inf_executor = inference
    caller = Caller()
    async with simulated_providers(Reply(text="I am here.")) as providers:
        model = getattr(getattr(turn_detector, module), name)()
        providers.deepgram.listen.transcripts.extend(["Hello?", "Are you there?"])
        async with metered_call(
            providers, hears=caller, turn_handling={"turn_detection": model}
        ) as call:
            for count in (1, 2):
                caller.says()
                await call.meter.stopped(Modality.TURN_DETECTION, count)
            await call.close()
    await shut_down(context)
    legs = call.meter.of(Modality.TURN_DETECTION)
    assert [leg.usage for leg in legs] == [{"requests": 1}] * len(inference.asked)
    assert [leg.outcome for leg in legs][:2] == [Outcome.SERVED, Outcome.FAILED]
    for leg in legs:
        assert (leg.attributes.provider, leg.attributes.model) == ("local", model.model)
        assert leg.basis is Basis.OBSERVED
        assert cost_nano_usd(leg) == 0


async def test_a_turn_detector_that_is_left_before_it_answers(turn_detector: Any) -> None:
    """The caller goes on speaking: LiveKit cancels the question, which was asked all the same."""
    context, inference = job_context(), Inference()
    context._inf_executor = inference
    inference.answers.clear()
    meter = RecordingMeter()
    _instrument.instrument()
    with _attribution.scoped(meter):
        question = ChatContext.empty()
        question.add_message(role="user", content="Hello?")
        model = turn_detector.english.EnglishModel()
        asking = asyncio.create_task(model.predict_end_of_turn(question))
        await inference.is_asked.wait()
        asking.cancel()
        await asyncio.wait([asking])
    _instrument.uninstrument()
    await shut_down(context)
    (leg,) = meter.of(Modality.TURN_DETECTION)
    assert (leg.usage, leg.outcome) == ({"requests": 1}, Outcome.INTERRUPTED)


async def test_a_turn_detector_that_cannot_say_its_name_is_asked_all_the_same(
    turn_detector: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nameless(self: Any) -> str:
        raise LookupError("no name")

    context, inference = job_context(), Inference()
    context._inf_executor = inference
    meter = RecordingMeter()
    model = turn_detector.english.EnglishModel()
    monkeypatch.setattr(type(model), "model", property(nameless))
    _instrument.instrument()
    with _attribution.scoped(meter):
        question = ChatContext.empty()
        question.add_message(role="user", content="Hello?")
        assert await model.predict_end_of_turn(question) > 0
    _instrument.uninstrument()
    await shut_down(context)
    (leg,) = meter.of(Modality.TURN_DETECTION)
    assert (leg.usage, leg.outcome, leg.attributes.model) == ({"requests": 1}, Outcome.SERVED, "")

"""Google's voices: the family of the voice is what is billed, and only the request names it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud.texttospeech_v1 import TextToSpeechAsyncClient
from google.cloud.texttospeech_v1.services.text_to_speech.transports import (
    TextToSpeechGrpcAsyncIOTransport,
)
from google.cloud.texttospeech_v1.types import cloud_tts
from livekit.agents import APIConnectOptions
from livekit.plugins.google import TTS

from livekit.plugins.voicecost import _attribution, _instrument
from tests.plugin.metered_session import RecordingMeter
from voicecost_catalog import open_price_book
from voicecost_ledger.records import LegAttributes, Modality, Outcome

NOW_UNIX_MS = 1_795_305_600_000  # 2026-11-22
ONE_TRY = APIConnectOptions(max_retry=0, timeout=5)
TEXT = "It is five degrees in Zürich today."
SILENCE = bytes(48_000)  # a second
BOOK = open_price_book()


@pytest.fixture
def meter() -> Iterator[RecordingMeter]:
    meter = RecordingMeter()
    _instrument.instrument()
    with _attribution.scoped(meter):
        yield meter
    _instrument.uninstrument()


@asynccontextmanager
async def google_speaks(**options: Any) -> AsyncGenerator[TTS]:
    """The real plugin on a server that says a second of silence, in one piece and as a stream."""

    async def synthesize(request: Any, context: Any) -> Any:
        return cloud_tts.SynthesizeSpeechResponse(audio_content=SILENCE)

    async def stream(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            if request.input.text:
                yield cloud_tts.StreamingSynthesizeResponse(audio_content=SILENCE)

    server = grpc.aio.server()
    methods = {
        "SynthesizeSpeech": grpc.unary_unary_rpc_method_handler(
            synthesize,
            request_deserializer=cloud_tts.SynthesizeSpeechRequest.deserialize,
            response_serializer=cloud_tts.SynthesizeSpeechResponse.serialize,
        ),
        "StreamingSynthesize": grpc.stream_stream_rpc_method_handler(
            stream,
            request_deserializer=cloud_tts.StreamingSynthesizeRequest.deserialize,
            response_serializer=cloud_tts.StreamingSynthesizeResponse.serialize,
        ),
    }
    service = "google.cloud.texttospeech.v1.TextToSpeech"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    tts = TTS(credentials=AnonymousCredentials(), **options)
    async with grpc.aio.insecure_channel(target) as channel:
        # The plugin has no option for another endpoint.
        tts._client = TextToSpeechAsyncClient(
            transport=TextToSpeechGrpcAsyncIOTransport(channel=channel)
        )
        yield tts
        await tts.aclose()
    await server.stop(None)


async def leg_of(tts: TTS, meter: RecordingMeter) -> LegAttributes:
    async with tts.synthesize(TEXT, conn_options=ONE_TRY) as stream:
        async for _ in stream:
            pass
    (leg,) = meter.of(Modality.TTS)
    assert leg.outcome is Outcome.SERVED
    assert leg.usage["characters"] == len(TEXT)
    return leg.attributes


# https://cloud.google.com/text-to-speech/pricing, 2026-08-21: dollars a million characters
@pytest.mark.parametrize(
    ("options", "voice", "model", "nano_usd"),
    [
        pytest.param(
            {"voice_name": "en-US-Chirp3-HD-Charon"}, "en-US-Chirp3-HD-Charon", "chirp3-hd", 30_000,
            id="Chirp 3 HD by its name alone",
        ),
        pytest.param(
            {"model_name": "chirp_3"}, "en-US-Chirp3-HD-Charon", "chirp3-hd", 30_000,
            id="Chirp 3 HD by its model alone",
        ),
        pytest.param(
            {"model_name": "chirp_3", "voice_name": "de-DE-Neural2-C"}, "de-DE-Neural2-C",
            "neural2/polyglot", 16_000, id="Neural2, whatever the plugin calls the model",
        ),
        pytest.param(
            {"model_name": "", "voice_name": "es-ES-Polyglot-1"}, "es-ES-Polyglot-1",
            "neural2/polyglot", 16_000, id="Polyglot",
        ),
        pytest.param(
            {"model_name": "", "voice_name": "en-GB-Wavenet-B"}, "en-GB-Wavenet-B", "wavenet",
            4_000, id="WaveNet",
        ),
        pytest.param(
            {"model_name": "", "voice_name": "fr-FR-Standard-A"}, "fr-FR-Standard-A", "standard",
            4_000, id="Standard",
        ),
        pytest.param(
            {"model_name": "", "voice_name": "en-US-Studio-O"}, "en-US-Studio-O", "studio",
            160_000, id="Studio",
        ),
        pytest.param(
            {"voice_cloning_key": "a secret"}, "cloned", None, None,
            id="a cloned voice costs something else, and its key is nobody's business",
        ),
        pytest.param(
            {"model_name": "chirp_3", "voice_name": "en-US-Journey-F"}, "en-US-Journey-F", None,
            None, id="a family nobody priced",
        ),
    ],
)  # fmt: skip
async def test_the_family_of_the_voice_has_the_price(
    options: dict[str, Any],
    voice: str,
    model: str | None,
    nano_usd: int | None,
    meter: RecordingMeter,
) -> None:
    async with google_speaks(**options) as tts:
        leg = await leg_of(tts, meter)
    assert leg.voice == voice
    price = BOOK.price_for(leg, NOW_UNIX_MS)
    assert (price and price.model) == model
    assert (price and price.rate({"characters": 1_000})) == (nano_usd and nano_usd * 1_000)


async def test_a_voice_of_gemini_is_billed_by_its_model(meter: RecordingMeter) -> None:
    async with google_speaks() as tts:
        leg = await leg_of(tts, meter)
    assert (leg.model, leg.voice) == ("gemini-2.5-flash-tts", "Charon")
    price = BOOK.price_for(leg, NOW_UNIX_MS)
    assert price is not None
    assert price.model == "gemini-2.5-flash-tts"


async def test_a_voice_that_is_chosen_later_is_the_one_of_the_next_stream(
    meter: RecordingMeter,
) -> None:
    async with google_speaks(voice_name="en-US-Chirp3-HD-Charon") as tts:
        tts.update_options(voice_name="en-US-Studio-O", language="en-US")
        async with tts.stream(conn_options=ONE_TRY) as stream:
            stream.push_text(TEXT)
            stream.end_input()
            async for _ in stream:
                pass
    (leg,) = meter.of(Modality.TTS)
    price = BOOK.price_for(leg.attributes, NOW_UNIX_MS)
    assert price is not None
    assert price.model == "studio"

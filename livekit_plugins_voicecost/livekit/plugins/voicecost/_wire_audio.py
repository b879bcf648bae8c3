"""Where the messages of an STT protocol carry billed audio, and what they report.

Sizes only: audio is counted in bytes and never kept, decoded or copied. A plugin that is not
listed is metered by the frames that it takes, which is right to within what it gathers before it
sends (50 to 160 ms), so its legs are estimates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

BytesLike = bytes | bytearray | memoryview
_Message = TypeVar("_Message")


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioProtocol:
    """How a plugin hands audio to its provider. Each function gives a number of bytes.

    Attributes:
        binary: Bytes of audio in a binary WebSocket message.
        text: Bytes of audio in a text message, after decoding of base64.
        request: Bytes of audio in a gRPC request.
        taken: Whether every frame is handed on as it is taken, to a library whose own wire is out
            of sight.
        sample_rate: The protocol's own; 0 where it is the stream's option.
        reports_tokens: Whether its messages report tokens, as OpenAI's do.
    """

    binary: Callable[[BytesLike], int] | None = None
    text: Callable[[str], int] | None = None
    request: Callable[[Any], int] | None = None
    taken: bool = False
    sample_rate: int = 0
    reports_tokens: bool = False


def audio_protocol(component: object) -> AudioProtocol | None:
    """The protocol of this STT or of the plugin's class that it is derived from, if known."""
    for each in type(component).__mro__:
        protocol = _PROTOCOLS.get(each.__module__)
        if protocol is not None:
            return protocol
    return None


def bytes_per_sample(encoding: str) -> int:
    """Bytes of one sample of one channel; raw audio of two bytes where nothing else is said."""
    name = encoding.lower()
    if name.endswith(("mulaw", "alaw", "ulaw")):
        return 1
    return 4 if name.endswith(("32", "32le", "32be")) else 2


def _size(payload: BytesLike) -> int:
    return payload.nbytes if isinstance(payload, memoryview) else len(payload)


def _size_without_wav_header(payload: BytesLike) -> int:
    return 0 if bytes(payload[:4]) == b"RIFF" else _size(payload)


def _decoded_size(base64: str) -> int:
    """How many bytes a base64 text stands for."""
    return len(base64) * 3 // 4 - (base64.endswith("=") + base64.endswith("=="))


class _AudioBase64(msgspec.Struct):
    audio_base_64: str = ""


class _Audio(msgspec.Struct):
    audio: str = ""


class _Chunk(msgspec.Struct):
    chunk: str = ""


class _DataChunk(msgspec.Struct):
    data: _Chunk | None = None


class _Content(msgspec.Struct):
    content: str = ""


class _AudioChunk(msgspec.Struct, rename="camel"):
    audio_chunk: _Content | None = None


class _Data(msgspec.Struct):
    data: str = ""


class _AudioData(msgspec.Struct):
    audio: _Data | None = None


def _json_size(
    message_type: type[_Message], base64_of: Callable[[_Message], str]
) -> Callable[[str], int]:
    decoder = msgspec.json.Decoder(message_type)

    def size(payload: str) -> int:
        try:
            return _decoded_size(base64_of(decoder.decode(payload)))
        except msgspec.MsgspecError:
            return 0  # a message of another shape: no audio

    return size


def _google_audio(request: Any) -> int:
    """Google Cloud Speech: `audio_content` in v1, `audio` in v2; the first request has none."""
    request_class: Any = type(request)  # pyright: ignore[reportUnknownVariableType] (of any)
    message: Any = request_class.pb(request) if hasattr(request_class, "pb") else request
    audio: bytes = getattr(message, "audio_content", None) or getattr(message, "audio", b"")
    return len(audio)


_BINARY: Final = AudioProtocol(binary=_size)
_JSON_AUDIO: Final = AudioProtocol(text=_json_size(_Audio, lambda message: message.audio))
_OPENAI_SAMPLE_RATE: Final = 24_000  # the only one that its realtime API takes

# By the module of the plugin's STT, as of livekit-agents 1.8.9.
_PROTOCOLS: Final[dict[str, AudioProtocol]] = {
    # https://developers.deepgram.com/reference/speech-to-text/listen-streaming
    "livekit.plugins.deepgram.stt": _BINARY,
    # https://developers.deepgram.com/reference/speech-to-text/listen-flux
    "livekit.plugins.deepgram.stt_v2": _BINARY,
    # https://www.assemblyai.com/docs/streaming/message-sequence
    "livekit.plugins.assemblyai.stt": _BINARY,
    # https://docs.cartesia.ai/api-reference/stt/turns/websocket
    "livekit.plugins.cartesia.stt": _BINARY,
    # https://elevenlabs.io/docs/api-reference/speech-to-text/v-1-speech-to-text-realtime
    "livekit.plugins.elevenlabs.stt": AudioProtocol(
        text=_json_size(_AudioBase64, lambda message: message.audio_base_64)
    ),
    "livekit.agents.inference.stt": _JSON_AUDIO,
    # https://platform.openai.com/docs/guides/realtime-transcription
    "livekit.plugins.openai.stt": AudioProtocol(
        text=_json_size(_Audio, lambda message: message.audio),
        sample_rate=_OPENAI_SAMPLE_RATE,
        reports_tokens=True,
    ),
    # https://cloud.google.com/speech-to-text/v2/docs/reference/rpc/google.cloud.speech.v2
    "livekit.plugins.google.stt": AudioProtocol(request=_google_audio),
    # https://docs.speechmatics.com/api-ref/realtime-transcription-websocket
    "livekit.plugins.speechmatics.stt": _BINARY,
    # Azure's library has a wire of its own; each frame is written to it as it is taken.
    "livekit.plugins.azure.stt": AudioProtocol(taken=True),
    # Read in the plugins' sources; not driven in our tests.
    "livekit.plugins.baseten.stt": _BINARY,
    "livekit.plugins.baseten.qwen3_stt": _JSON_AUDIO,
    "livekit.plugins.fireworksai.stt": _BINARY,
    "livekit.plugins.gladia.stt": AudioProtocol(
        text=_json_size(_DataChunk, lambda message: message.data.chunk if message.data else "")
    ),
    "livekit.plugins.gnani.stt": _BINARY,
    "livekit.plugins.gradium.stt": _JSON_AUDIO,
    "livekit.plugins.inworld.stt": AudioProtocol(
        text=_json_size(
            _AudioChunk,
            lambda message: message.audio_chunk.content if message.audio_chunk else "",
        )
    ),
    "livekit.plugins.rtzr.stt": _BINARY,
    "livekit.plugins.sarvam.stt": AudioProtocol(
        text=_json_size(_AudioData, lambda message: message.audio.data if message.audio else "")
    ),
    "livekit.plugins.smallestai.stt": _BINARY,
    "livekit.plugins.soniox.stt": _BINARY,
    "livekit.plugins.telnyx.stt": AudioProtocol(binary=_size_without_wav_header),
    "livekit.plugins.xai.stt": _BINARY,
}

"""Where the messages of a TTS protocol carry billed text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec


class TextProtocol(NamedTuple):
    """How a plugin's messages name what is spoken.

    Attributes:
        text_of: The billed text of one message; empty for those that carry none.
        is_shared: Whether streams share connections, each with a context id of its own, which is
            also what the plugin gives LiveKit as request or segment id.
    """

    text_of: Callable[[str], str]
    is_shared: bool = False


class _DeepgramMessage(msgspec.Struct):
    type: str = ""
    text: str = ""


class _CartesiaMessage(msgspec.Struct):
    transcript: str = ""


class _ElevenLabsInput(msgspec.Struct):
    text: str = ""


class _ElevenLabsMessage(msgspec.Struct):
    text: str = ""
    inputs: list[_ElevenLabsInput] = []


class _InferenceMessage(msgspec.Struct):
    type: str = ""
    transcript: str = ""


class _ResembleMessage(msgspec.Struct):
    data: str = ""


_deepgram_decoder = msgspec.json.Decoder(_DeepgramMessage)
_cartesia_decoder = msgspec.json.Decoder(_CartesiaMessage)
_elevenlabs_decoder = msgspec.json.Decoder(_ElevenLabsMessage)
_inference_decoder = msgspec.json.Decoder(_InferenceMessage)
_resemble_decoder = msgspec.json.Decoder(_ResembleMessage)


def deepgram_speak_text(payload: str) -> str:
    """The text of a Deepgram `Speak` message; empty for its other messages.

    https://developers.deepgram.com/reference/text-to-speech/speak-streaming
    """
    message = _deepgram_decoder.decode(payload)
    return message.text if message.type == "Speak" else ""


def cartesia_text(payload: str) -> str:
    """The transcript of a Cartesia generation request; `cancel` has none.

    https://docs.cartesia.ai/api-reference/tts/websocket
    """
    return _cartesia_decoder.decode(payload).transcript


def elevenlabs_text(payload: str) -> str:
    """The text of an ElevenLabs message, on either of its multi-context sockets.

    The text that opens a context "must be a blank space", and so are keep-alives: a single blank
    is the protocol's own and no text to speak. Whether it is billed is not documented.
    https://elevenlabs.io/docs/api-reference/text-to-speech/v-1-text-to-speech-voice-id-multi-stream-input
    """
    message = _elevenlabs_decoder.decode(payload)
    text = "".join(each.text for each in message.inputs) if message.inputs else message.text
    return "" if text == " " else text


def inference_text(payload: str) -> str:
    """The transcript of a LiveKit Inference `input_transcript` message.

    https://github.com/livekit/agents-js/blob/main/agents/src/inference/api_protos.ts
    """
    message = _inference_decoder.decode(payload)
    return message.transcript if message.type == "input_transcript" else ""


def resemble_text(payload: str) -> str:
    """The text of a Resemble request.

    https://docs.resemble.ai/voice-generation/text-to-speech/streaming-websocket
    """
    return _resemble_decoder.decode(payload).data


# By the module of the plugin's TTS. A plugin that is not listed is metered by what its tokenizer
# gives it to send, or by what it takes.
TEXT_PROTOCOLS: Final[dict[str, TextProtocol]] = {
    "livekit.plugins.deepgram.tts": TextProtocol(deepgram_speak_text),
    "livekit.plugins.deepgram.tts_v2": TextProtocol(deepgram_speak_text),
    "livekit.plugins.cartesia.tts": TextProtocol(cartesia_text),
    "livekit.plugins.elevenlabs.tts": TextProtocol(elevenlabs_text, is_shared=True),
    "livekit.agents.inference.tts": TextProtocol(inference_text),
    "livekit.plugins.resemble.tts": TextProtocol(resemble_text),
}

_FREE_OF_AZURE: Final = re.compile(r"</?(?:speak|voice)\b[^<>]*>")


def azure_text(body: str) -> str:
    """What Azure bills of an SSML document: all but its `speak` and `voice` tags.

    https://learn.microsoft.com/azure/ai-services/speech-service/text-to-speech#pricing-note
    """
    return _FREE_OF_AZURE.sub("", body)


# By the module of the plugin's TTS: what is billed of the body of an HTTP request, where that is
# not just the text that was asked for.
BODY_PROTOCOLS: Final[dict[str, Callable[[str], str]]] = {
    "livekit.plugins.azure.tts": azure_text,
}

BILLED_BY_AUDIO: Final = frozenset({"livekit.plugins.resemble.tts"})
"""Modules of plugins whose provider bills the sound it makes of a text, not the text."""


def known_by(component: Any, table: Any) -> Any:
    """What `table` says of a plugin's TTS, by its module or that of a class it derives from."""
    for each in type(component).__mro__:
        if each.__module__ in table:
            return table[each.__module__] if hasattr(table, "get") else True
    return None

"""Where the messages of a TTS protocol carry billed text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec


class _Speak(msgspec.Struct):
    type: str = ""
    text: str = ""


_speak_decoder = msgspec.json.Decoder(_Speak)


def deepgram_speak_text(payload: str) -> str:
    """The text of a Deepgram `Speak` message; empty for its other messages.

    https://developers.deepgram.com/reference/text-to-speech/speak-streaming
    """
    message = _speak_decoder.decode(payload)
    return message.text if message.type == "Speak" else ""


# By the module of the plugin's TTS. A plugin that is not listed is metered by what it takes.
TEXT_PROTOCOLS: Final[dict[str, Callable[[str], str]]] = {
    "livekit.plugins.deepgram.tts": deepgram_speak_text,
    "livekit.plugins.deepgram.tts_v2": deepgram_speak_text,
}

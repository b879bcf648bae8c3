"""What really goes over the wire, seen with the context of the attempt that sends it.

Two hooks: aiohttp's client WebSocket (text and audio as they are sent) and the stream of chunks
of an OpenAI-compatible client. Tasks made inside an attempt inherit its context, so whoever sends
or reads there belongs to it. `TEXT_PROTOCOLS` says where a plugin's messages carry billed text.

A connection that several streams share cannot be told apart by context: its protocol names a
context id in every message, and is matched by that.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any, Final, Protocol

import aiohttp
import msgspec
from openai import AsyncOpenAI

from . import _faults


class WireObserver(Protocol):
    """An attempt that wants to see what it sends. Only cancellation may come out of it."""

    def text_sending(self, connection: object, payload: str) -> None:
        """A text message is about to be sent; raises CancelledError to keep it from that."""
        ...

    def bytes_sending(self, connection: object, payload: bytes | bytearray | memoryview) -> None:
        """A binary message is about to be sent; raises CancelledError to keep it from that."""
        ...

    def answer_observed(self) -> None:
        """An OpenAI-compatible answer begins; its raw chunks follow one by one."""
        ...

    def chunk_received(self, chunk: Any) -> None:
        """A raw chunk of its answer arrived; raises CancelledError to end the stream."""
        ...


observer: ContextVar[WireObserver | None] = ContextVar("voicecost_attempt", default=None)


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
# By the module of the plugin's STT: binary messages are 16-bit linear PCM at the stream's rate.
PCM_PROTOCOLS: Final = frozenset(
    {"livekit.plugins.deepgram.stt", "livekit.plugins.deepgram.stt_v2"}
)


class TextUnits:
    """Counts text in every way a speech provider bills it."""

    __slots__ = ("_open_tag", "characters", "double_width", "markup", "utf8_bytes")

    def __init__(self) -> None:
        self.characters = 0
        self.utf8_bytes = 0
        self.double_width = 0
        self.markup = 0
        self._open_tag = ""  # a tag may be cut anywhere between two messages

    def add(self, text: str) -> None:
        """Count more text, exactly as it is sent."""
        size = len(text)
        self.characters += size
        if text.isascii():
            self.utf8_bytes += size
        else:
            self.utf8_bytes += len(text.encode("utf-8", "surrogatepass"))
            for character in text:
                if unicodedata.east_asian_width(character) in "WF":
                    self.double_width += 1
        if self._open_tag or "<" in text:
            self._add_markup(text)

    def _add_markup(self, text: str) -> None:
        text = self._open_tag + text
        self.markup += sum(len(tag) for tag in _TAG.findall(text))
        tail = _OPEN_TAG.search(text)
        # What is this long and still open is a "<" of the text itself, no tag.
        self._open_tag = tail.group() if tail and len(tail.group()) <= _TAG_CHARACTERS_MAX else ""

    def usage(self) -> dict[str, int]:
        """The units of a TTS leg that count text."""
        return {
            "characters": self.characters,
            "utf8_bytes": self.utf8_bytes,
            "double_width_characters": self.double_width,
            "markup_characters": self.markup,
        }


_COMPLETIONS: Final = "openai.resources.chat.completions.completions"
_TAG: Final = re.compile(r"</?[A-Za-z][^<>]*>")
_OPEN_TAG: Final = re.compile(r"<(?:/?[A-Za-z][^<>]*|/?)$")
_TAG_CHARACTERS_MAX: Final = 1000


class _ObservedChunks:
    """An OpenAI stream's iterator, each chunk shown to the observer before the plugin gets it."""

    __slots__ = ("_chunks", "_observer")

    def __init__(self, chunks: AsyncIterator[Any], observer: WireObserver) -> None:
        self._chunks = chunks
        self._observer = observer

    def __aiter__(self) -> _ObservedChunks:
        return self

    async def __anext__(self) -> Any:
        chunk = await self._chunks.__anext__()
        try:
            self._observer.chunk_received(chunk)
        except Exception as error:
            _faults.count("llm_chunk", error)
        return chunk


def observe_websockets() -> Callable[[], None]:
    """Show what aiohttp's WebSocket clients send to the attempt that sends it; returns the undo."""
    client = aiohttp.ClientWebSocketResponse
    send_str, send_bytes = client.send_str, client.send_bytes

    @functools.wraps(send_str)
    async def observed_send_str(self: Any, data: str, *args: Any, **kwargs: Any) -> None:
        seen_by = observer.get()
        if seen_by is not None:
            try:
                seen_by.text_sending(self, data)
            except Exception as error:
                _faults.count("wire_text", error)
        await send_str(self, data, *args, **kwargs)

    @functools.wraps(send_bytes)
    async def observed_send_bytes(self: Any, data: bytes, *args: Any, **kwargs: Any) -> None:
        seen_by = observer.get()
        if seen_by is not None:
            try:
                seen_by.bytes_sending(self, data)
            except Exception as error:
                _faults.count("wire_bytes", error)
        await send_bytes(self, data, *args, **kwargs)

    client.send_str = observed_send_str
    client.send_bytes = observed_send_bytes

    def undo() -> None:
        client.send_str = send_str
        client.send_bytes = send_bytes

    return undo


def observe_openai_clients() -> Callable[[], None]:
    """Show the raw chunks of OpenAI-compatible answers to their attempt; returns the undo.

    The client loads its chat API, which takes 30 ms, when a program first asks for it. So it is
    loaded for us no earlier, and observed before anything can be requested through it.
    """
    undos: list[Callable[[], None]] = []
    chat: functools.cached_property[Any] = AsyncOpenAI.__dict__["chat"]
    make_chat = chat.func

    def observe_once() -> None:
        if not undos:
            undos.append(_observe_completions())

    def observed_chat(client: AsyncOpenAI) -> Any:
        try:
            observe_once()
        except Exception as error:
            _faults.count("observe_openai_clients", error)
        return make_chat(client)

    def undo() -> None:
        chat.func = make_chat
        for each in undos:
            each()

    chat.func = observed_chat
    if _COMPLETIONS in sys.modules:  # some client may have its chat API already
        observe_once()
    return undo


def _observe_completions() -> Callable[[], None]:
    from openai.resources.chat.completions import AsyncCompletions

    create: Any = AsyncCompletions.create

    @functools.wraps(create)
    async def observed_create(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen_by = observer.get()
        if seen_by is None or not kwargs.get("stream"):
            return await create(self, *args, **kwargs)
        stream = await create(self, *args, **kwargs)
        try:
            # The client's own iterator: also what `async for` over the stream reads from.
            stream._iterator = _ObservedChunks(stream._iterator, seen_by)
            seen_by.answer_observed()
        except Exception as error:
            _faults.count("llm_stream", error)
        return stream

    AsyncCompletions.create = observed_create

    def undo() -> None:
        AsyncCompletions.create = create

    return undo

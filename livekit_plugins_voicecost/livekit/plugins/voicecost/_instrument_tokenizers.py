"""What TTS plugins take out of LiveKit's tokenizers: they send it next, whatever their protocol."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from . import _faults, _wire


class TokenObserver:
    """An attempt that wants to see what its plugin takes from a tokenizer."""

    def tokenizing(self) -> None:
        """The plugin asks a tokenizer for what to send next."""

    def token_taken(self, token: str) -> None:
        """The plugin takes this, to send it; raises CancelledError to keep it from that."""


def observe_tokenizers() -> Callable[[], None]:
    """Show what a plugin takes from LiveKit's tokenizers to its attempt; returns the undo."""
    from livekit.agents.tokenize import token_stream, tokenizer
    from livekit.agents.tts.stream_pacer import StreamPacerWrapper

    classes: tuple[Any, ...] = (
        tokenizer.SentenceStream,
        tokenizer.WordStream,
        token_stream.BufferedTokenStream,
    )
    undos = [_observe_tokens(each) for each in classes]
    pacer: Any = StreamPacerWrapper
    init = pacer.__init__

    @functools.wraps(init)
    def observed_init(self: Any, *args: Any, **kwargs: Any) -> None:
        # What it takes from the tokenizer inside it waits there; what is taken from it is sent.
        with _wire.observing(None):
            init(self, *args, **kwargs)

    pacer.__init__ = observed_init

    def undo() -> None:
        pacer.__init__ = init
        for each in undos:
            each()

    return undo


def _observe_tokens(stream_class: Any) -> Callable[[], None]:
    next_token = stream_class.__anext__

    @functools.wraps(next_token)
    async def observed_next(self: Any) -> Any:
        seen_by = _wire.observer()
        if not isinstance(seen_by, TokenObserver):
            return await next_token(self)
        try:
            seen_by.tokenizing()
        except Exception as error:
            _faults.count("tts_token", error)
        data = await next_token(self)
        try:
            seen_by.token_taken(data.token)
        except Exception as error:
            _faults.count("tts_token", error)
        return data

    stream_class.__anext__ = observed_next

    def undo() -> None:
        stream_class.__anext__ = next_token

    return undo

"""OpenAI-compatible answers, chunk by chunk as the client receives them."""

from __future__ import annotations

import functools
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from openai import AsyncOpenAI

from . import _faults
from ._wire import WireObserver, observer

_COMPLETIONS: Final = "openai.resources.chat.completions.completions"


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

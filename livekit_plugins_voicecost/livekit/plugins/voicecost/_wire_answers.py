"""Answers of language models as their client libraries receive them, before a plugin reads them.

A plugin hides much of what its provider says: how it counted, arguments that come in parts,
thoughts, refusals, who really served. So the client library's own stream is read along: each
`_wire_<client>` module knows one library's events and tells an `AnswerObserver` what they mean.
A library is touched only once the program itself has loaded it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol, cast

from . import _faults


class AnswerObserver(Protocol):
    """Whoever meters one answer. Only cancellation may come out of it, and only of `read`."""

    def prose(self, text: str) -> None:
        """More of what the model says, refusals included."""
        ...

    def call(self, name: str, arguments: str) -> None:
        """More of a tool call; one with a name begins another call."""
        ...

    def thought(self, text: str) -> None:
        """More of the model's thoughts, or of their summary, or that there are some (empty)."""
        ...

    def report(self, usage: dict[str, int], *, final: bool) -> None:
        """Units as the provider counts them, of all that came so far.

        `final`: nothing more will be generated, and this is what is billed.
        """
        ...

    def foretell(self, output_tokens: int) -> None:
        """So many tokens the beginning has: no promise, and no report."""
        ...

    def served_by(self, model: str, service_tier: str) -> None:
        """What the answer says of who serves it; empty where it says nothing."""
        ...

    def refuse(self) -> None:
        """The provider would not serve it after all, and charges nothing."""
        ...

    def read(self) -> None:
        """An event of the answer was told; raises CancelledError to end the stream."""
        ...


Reader = Callable[[Any, AnswerObserver], None]
"""Tells an observer what one event of a client library means."""


class ObservedEvents:
    """A client's stream of events, each shown to the observer before the plugin gets it."""

    __slots__ = ("_events", "_observer", "_reader")

    def __init__(
        self, events: AsyncIterator[Any], reader: Reader, observer: AnswerObserver
    ) -> None:
        self._events = events
        self._reader = reader
        self._observer = observer

    def __aiter__(self) -> ObservedEvents:
        return self

    async def __anext__(self) -> Any:
        event = await self._events.__anext__()
        try:
            show(event, self._reader, self._observer)
        except asyncio.CancelledError:
            await self._unwind()
            raise
        return event

    async def _unwind(self) -> None:
        """Let the client's own stream be cancelled where it waits, so that it hangs up.

        Google's is made of generators that keep each other alive: closing the outermost leaves the
        connection open, and the answer is generated and billed to its end.
        """
        task = asyncio.current_task()
        if task is None:
            return
        task.cancel()
        try:
            with contextlib.suppress(Exception):  # it comes to its end, in whichever way
                while True:  # what was received already comes first
                    event = await self._events.__anext__()
                    with contextlib.suppress(asyncio.CancelledError):
                        show(event, self._reader, self._observer)
            # It never waited: or the plugin's next await, its cleanup, would be cancelled instead.
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            pass
        finally:
            task.uncancel()

    def __getattr__(self, name: str) -> Any:  # `aclose` and what else the client's own offers
        return getattr(self._events, name)


def show(event: Any, reader: Reader, observer: AnswerObserver) -> None:
    """Show an event to the observer; raises CancelledError to end the stream."""
    try:
        reader(event, observer)
        observer.read()
    except Exception as error:
        _faults.count("llm_chunk", error)


Undo = Callable[[], None]


class LazyProperty:
    """Observes an API that a client makes when it is first asked for, and loads only then.

    Loading it takes 30 ms that a program which never asks for it need not spend. So it is loaded
    for us no earlier, and observed before anything can be requested through it.

    Args:
        client_class: The client.
        name: Its `cached_property`; older clients make it at once, and have loaded it then.
        module: The module that the API's class is loaded from.
        observe: Observes that class; returns the undo.
    """

    def __init__(
        self, client_class: type[Any], name: str, module: str, observe: Callable[[], Undo]
    ) -> None:
        self._observe = observe
        self._undo_observing: Undo | None = None
        self._lock = threading.Lock()
        self._property: Any = client_class.__dict__.get(name)
        if not hasattr(self._property, "func"):
            self._property = None
            self._observe_once()
            return
        self._make = make = self._property.func

        @functools.wraps(make)
        def observed(client: Any) -> Any:
            try:
                self._observe_once()
            except Exception as error:
                _faults.count("observe_llm_client", error)
            return make(client)

        self._property.func = observed
        if module in sys.modules:  # some client may have its API already
            self._observe_once()

    def _observe_once(self) -> None:
        with self._lock:  # jobs in threads: observed twice, all would count twice
            if self._undo_observing is None:
                self._undo_observing = self._observe()

    def undo(self) -> None:
        """Take it out again."""
        if self._property is not None:
            self._property.func = self._make
        if self._undo_observing is not None:
            self._undo_observing()


def replace_method(owner: type[Any], name: str, make: Callable[[Any], Any]) -> Undo:
    """Replace a method by what `make` makes of it; returns the undo."""
    original = getattr(owner, name)
    setattr(owner, name, functools.wraps(original)(make(original)))

    def undo() -> None:
        setattr(owner, name, original)

    return undo


def count(value: Any) -> int:
    """A quantity as providers send it: a number, or nothing."""
    return value if isinstance(value, int) and value > 0 else 0


def field(of: Any, name: str) -> Any:
    """A field of a client's object or of plain JSON; None where there is none."""
    if isinstance(of, dict):
        return cast("dict[str, Any]", of).get(name)
    return getattr(of, name, None)

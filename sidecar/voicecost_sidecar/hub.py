"""Between the bookkeeper's thread and the sockets: what was decided goes to whom it concerns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

from voicecost_ledger.events import Answer, Effect, EndRoom, Event, Order, Reply
from voicecost_ledger.protocol import (
    Ack,
    Command,
    Grant,
    Hello,
    Records,
    Renew,
    Welcome,
    WrappedUp,
)
from voicecost_ledger.stores import StoreUnavailable


class Bookkeeping(Protocol):
    """The part of `Bookkeeper` that the edges use."""

    def submit(self, event: Event) -> Future[list[Effect]]:
        """Apply an event; resolves once it is committed."""
        ...

    def order(self, order: Order) -> Future[Answer]:
        """Carry out an order; resolves once it is committed."""
        ...


class Connection(Protocol):
    """A socket that serves meters."""

    def send(self, message: Reply | Grant | Command) -> None:
        """Queue a message; never blocks, never raises."""
        ...


class Hub:
    """Submits events and routes their effects. Its methods belong to the event loop.

    Replies go back to who submitted, grants and commands to the socket that serves their meter,
    `EndRoom` to `end_room`. A grant or command for a meter without a socket is dropped: the meter
    says hello or asks for renewal as soon as it is back, and is told again.

    A socket serves a meter from the first message about it that the ledger accepts: whose words
    are refused takes nothing over.
    """

    def __init__(self, *, end_room: Callable[[EndRoom], None]) -> None:
        self._end_room = end_room
        self._connections: dict[str, Connection] = {}  # by meter
        self._meters: dict[Connection, set[str]] = {}  # of every socket that is there
        self._bookkeeper: Bookkeeping | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # Why the last commit failed ("full", "locked", ...); None when it did not.
        self.unavailable_reason: str | None = None

    def start(self, bookkeeper: Bookkeeping) -> None:
        """Route for this bookkeeper, on the running loop."""
        self._bookkeeper = bookkeeper
        self._loop = asyncio.get_running_loop()

    def add(self, connection: Connection) -> None:
        """A connection is there; `drop` it when it goes."""
        self._meters[connection] = set()

    def drop(self, connection: Connection) -> None:
        """The connection is gone; its meters are not."""
        for meter_id in self._meters.pop(connection, ()):
            if self._connections.get(meter_id) is connection:
                del self._connections[meter_id]

    @property
    def served_meter_count(self) -> int:
        """Meters with a socket."""
        return len(self._connections)

    def submit(
        self,
        event: Event,
        *,
        connection: Connection | None = None,
        on_unserved: Callable[[Grant | Command], None] | None = None,
    ) -> asyncio.Future[list[Reply]]:
        """Submit an event and route what comes of it.

        Args:
            event: What happened.
            connection: Where it came from, to serve its meters from now on if it is accepted.
            on_unserved: Takes the grants and commands for meters that no socket serves.

        Returns:
            The replies for the submitter, in order of submission and only after the commit.
            Raises what the bookkeeper raises (`StoreUnavailable`).
        """
        if self._bookkeeper is None or self._loop is None:
            raise RuntimeError("the hub is not started")
        loop = self._loop
        answer: asyncio.Future[list[Reply]] = loop.create_future()

        def deliver(done: Future[list[Effect]]) -> None:
            error = done.exception()
            self.unavailable_reason = error.reason if isinstance(error, StoreUnavailable) else None
            if error is not None:
                if not answer.done():
                    answer.set_exception(error)
                return
            effects = done.result()
            if connection in self._meters:  # else it went in the meantime
                for meter_id in _accepted(event, effects):
                    self._connections[meter_id] = connection
                    self._meters[connection].add(meter_id)
            replies = self._route(effects, on_unserved)
            if not answer.done():  # the submitter may be gone; what it sent is kept all the same
                answer.set_result(replies)

        self._bookkeeper.submit(event).add_done_callback(
            lambda done: loop.call_soon_threadsafe(deliver, done)
        )
        return answer

    async def order(self, order: Order) -> Answer:
        """Carry out what an operator orders; the answer comes after the commit.

        Raises:
            StoreUnavailable: Nothing of it happened.
        """
        if self._bookkeeper is None:
            raise RuntimeError("the hub is not started")
        return await asyncio.wrap_future(self._bookkeeper.order(order))

    def on_effects(self, effects: Sequence[Effect]) -> None:
        """Route what time alone brought about; called from the bookkeeper's thread."""
        if effects and self._loop is not None:
            self._loop.call_soon_threadsafe(self._route, effects, None)

    def _route(
        self, effects: Sequence[Effect], on_unserved: Callable[[Grant | Command], None] | None
    ) -> list[Reply]:
        replies: list[Reply] = []
        for effect in effects:
            if isinstance(effect, EndRoom):
                self._end_room(effect)
            elif isinstance(effect, (Grant, Command)):
                connection = self._connections.get(effect.meter_id)
                if connection is not None:
                    connection.send(effect)
                elif on_unserved is not None:
                    on_unserved(effect)
            else:
                replies.append(effect)
        return replies


def _accepted(event: Event, effects: Sequence[Effect]) -> set[str]:
    """The meters of a message that the ledger answered for."""
    answered: set[str] = set()
    for effect in effects:
        match effect:
            case Welcome():
                answered.update(effect.durable_seqs)
            case Ack():
                answered.update(effect.committed)
            case Grant():
                answered.add(effect.meter_id)
            case _:
                pass
    return answered.intersection(meters_of(event))


def meters_of(event: Event) -> list[str]:
    """The meters a message speaks of; none of an event that is no message."""
    match event:
        case Hello():
            return [held.meter_id for held in event.meters]
        case Records() | Renew() | WrappedUp():
            return [event.meter_id]
        case _:
            return []

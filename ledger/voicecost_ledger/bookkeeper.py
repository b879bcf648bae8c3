"""Drives `Books` over a `Store`: every event in a transaction, time as ticks.

    bookkeeper.receive(event) -> effects, after the commit that holds the event

on the caller's thread, for an agent without a sidecar, whose uplink has one; or, after `start`,

    bookkeeper.submit(event) -> future of the same

on a thread of its own, which commits in groups: the sidecar's way.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from voicecost_ledger.books import Books
from voicecost_ledger.events import Adjust, Answer, Effect, Event, Order, Rerate, Tick
from voicecost_ledger.policy import Policy
from voicecost_ledger.pricing import PriceBook
from voicecost_ledger.stores import Session, Store, StoreUnavailable

logger = logging.getLogger("voicecost.ledger")

# More would hold the interpreter too long beside an event loop (measured: loop lag p99 6 -> 2 ms).
GROUP_MAX: Final = 500


# Any: the effects of an event, the answer to an order.
_Item = tuple[Event | Order, Future[Any]]


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Bookkeeper:
    """The one writer over one store.

    Args:
        store: The ledger.
        prices: Where prices come from.
        policy: What the operator decided.
        clock_ms: Unix milliseconds.
        on_effects: Called from its thread with what ticks brought about (never empty).
    """

    def __init__(
        self,
        store: Store,
        prices: PriceBook,
        policy: Policy,
        *,
        clock_ms: Callable[[], int] = _wall_clock_ms,
        on_effects: Callable[[list[Effect]], None] | None = None,
    ) -> None:
        self._store = store
        self._books = Books(prices, policy)
        self.tick_s = policy.tick_ms / 1000
        self._clock_ms = clock_ms
        self._on_effects = on_effects
        self._inbox: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.fault_count = 0  # events that failed for a reason of ours, for metrics

    def start(self) -> None:
        """Start the thread; it ticks until `close`."""
        self._thread = threading.Thread(target=self._run, name="voicecost-ledger", daemon=True)
        self._thread.start()

    def receive(self, event: Event) -> list[Effect]:
        """Take an event here and now.

        Raises:
            StoreUnavailable: It could not be made durable: nothing of it happened.
            Exception: The event itself was at fault, and is refused.
        """
        try:
            with self._store.transaction() as tx:
                return self._books.receive(tx, event, self._clock_ms())
        except StoreUnavailable:
            raise
        except Exception as error:
            self._refused(event, error)
            raise

    def tick(self) -> list[Effect]:
        """Tell the books what time it is; a failure is counted, and the next tick tries again."""
        try:
            with self._store.transaction() as tx:
                return self._books.receive(tx, Tick(), self._clock_ms())
        except StoreUnavailable as error:
            self.fault_count += 1
            logger.warning("the ledger could not tick (%s); trying again", error.reason)
        except Exception:  # contained: a fault in a tick must not stop the books
            self.fault_count += 1
            logger.exception("a tick failed")
        return []

    def submit(self, event: Event) -> Future[list[Effect]]:
        """Hand in an event.

        Returns:
            A future of its effects; `StoreUnavailable` when it could not be made durable (then
            nothing of it happened), any other exception when the event itself was at fault.
        """
        return self._hand_in(event)

    def order(self, order: Order) -> Future[Answer]:
        """Hand in an operator's order; the future is as `submit`'s, of its answer."""
        return self._hand_in(order)

    def _hand_in(self, event: Event | Order) -> Future[Any]:
        future: Future[Any] = Future()
        if self._closed:
            future.set_exception(
                StoreUnavailable("the ledger is shutting down: try again", reason="other")
            )
        else:
            self._inbox.put((event, future))
        return future

    def close(self) -> None:
        """Work off what was handed in, then end the thread. The store stays open."""
        self._closed = True
        if self._thread is not None:
            self._inbox.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        due = time.monotonic() + self.tick_s
        while True:
            group: list[_Item] = []
            ended = False
            try:
                item = self._inbox.get(timeout=max(0.0, due - time.monotonic()))
                while True:
                    if item is None:
                        ended = True
                        break
                    group.append(item)
                    if len(group) >= GROUP_MAX:
                        break
                    item = self._inbox.get_nowait()
            except queue.Empty:
                pass
            if group:
                self._work(group)
            if ended:
                return
            if time.monotonic() >= due:
                due = time.monotonic() + self.tick_s
                effects = self.tick()
                if effects and self._on_effects is not None:
                    self._on_effects(effects)

    def _work(self, group: list[_Item]) -> None:
        """Commit a group; one event at fault must not cost the others their commit."""
        group = [item for item in group if item[1].set_running_or_notify_cancel()]
        try:
            with self._store.transaction() as tx:
                results = [self._receive(tx, event) for event, _ in group]
        except StoreUnavailable as error:
            for _, future in group:
                future.set_exception(error)
        except Exception as error:  # a fault of ours: find the one event it is about
            if len(group) == 1:
                self._refused(group[0][0], error)
                group[0][1].set_exception(error)
                return
            for item in group:
                self._work_one(item)
        else:
            for (_, future), effects in zip(group, results, strict=True):
                future.set_result(effects)

    def _work_one(self, item: _Item) -> None:
        event, future = item
        try:
            with self._store.transaction() as tx:
                effects = self._receive(tx, event)
        except StoreUnavailable as error:
            future.set_exception(error)
        except Exception as error:  # contained: the writer must outlive any one event
            self._refused(event, error)
            future.set_exception(error)
        else:
            future.set_result(effects)

    def _refused(self, event: Event | Order, error: Exception) -> None:
        self.fault_count += 1
        logger.error("an event of kind %s was refused", type(event).__name__, exc_info=error)

    def _receive(self, tx: Session, event: Event | Order) -> list[Effect] | Answer:
        if isinstance(event, (Rerate, Adjust)):
            return self._books.order(tx, event, self._clock_ms())
        return self._books.receive(tx, event, self._clock_ms())

"""Drives the protocol machine with real time and a real connection, on the uplink's thread."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any, Final

import msgspec

from voicecost_ledger.events import EndRoom
from voicecost_ledger.protocol import (
    Ack,
    Action,
    ClientMessage,
    Command,
    Grant,
    Records,
    Reject,
    Renew,
    ServerMessage,
    Welcome,
)
from voicecost_ledger.records import Record
from voicecost_ledger.spool import Spool
from voicecost_ledger.uplink import Uplink

from . import _faults
from ._adoption import Adoption
from ._connection import Authority, AuthorityUnreachableError, Channel
from ._link import MeterLink, steady_ms
from .log import logger

POLL_MS: Final = 25  # how often to look while there is news: writers then need not wake us
POLLS_BEFORE_SLEEP: Final = 40
SLEEP_MAX_S: Final = 60.0
RECONNECT_MIN_S: Final = 0.25
RECONNECT_MAX_S: Final = 20.0

InboxItem = Record | Callable[[int], list[ClientMessage]]


class Driver:
    """Between the agent's threads (through the inbox) and the authority.

    Args:
        uplink: The protocol machine; only this thread uses it.
        authority: Whom to talk to.
        spool: Where records are until they are acknowledged; None without a usable disk.
        label: Whose spools to adopt, see `Spool`.
        links: The process's open meters; entries are removed here when they are finished.
        inbox: Records in the order they were spooled, and things to do.
    """

    def __init__(
        self,
        uplink: Uplink,
        authority: Authority,
        spool: Spool | None,
        label: str,
        links: dict[str, MeterLink],
        inbox: deque[InboxItem],
    ) -> None:
        self._uplink = uplink
        self._authority = authority
        self._spool = spool
        self._links = links
        self._inbox = inbox
        self._adoption = None if spool is None else Adoption(spool.root, label, self._take_adopted)
        self._adoption_due = True
        self._waiters: list[tuple[Future[None], str | None]] = []
        self._outgoing: asyncio.Queue[ClientMessage] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._stopping = asyncio.Event()
        self._stop_asked = False
        self._outage_said = False
        self.asleep = False
        """A writer has to wake us; else we look within 25 ms anyway."""

    # -- from any thread --------------------------------------------------------------------------

    def wake(self) -> None:
        """There is something in the inbox."""
        self._call(self._news.set)

    def stop(self) -> None:
        """The process ends."""
        self._stop_asked = True
        self._call(self._stopping.set)

    def _call(self, function: Callable[[], object]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
                self._loop.call_soon_threadsafe(function)

    # -- to be handed in --------------------------------------------------------------------------

    def adopt(self, now_ms: int) -> list[ClientMessage]:
        """Look for free spools, now or as soon as there is somebody to send them to."""
        del now_ms
        self._adoption_due = True
        return []

    def wait(self, done: Future[None], meter_id: str | None, now_ms: int) -> list[ClientMessage]:
        """Resolve `done` when all of a meter is durable; None: everything of the process."""
        self._waiters.append((done, meter_id))
        return self._uplink.flush(now_ms)

    # -- the thread -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until `stop`."""
        self._loop = asyncio.get_running_loop()
        if self._stop_asked:  # before there was a loop to ask
            self._stopping.set()
        tasks = [
            asyncio.create_task(self._stopping.wait()),
            asyncio.create_task(self._stay_connected()),
            asyncio.create_task(self._pump()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            errors = await _cancel(tasks)
            if self._adoption is not None:
                self._adoption.release()
            await self._authority.close()
        if errors:
            raise errors[0]

    async def _pump(self) -> None:
        """Bring what was recorded to the uplink, and let time pass for it."""
        quiet_polls = 0
        while True:
            now_ms = steady_ms()
            quiet_polls = 0 if self._inbox else quiet_polls + 1
            with _faults.contained("uplink"):
                self._drain(now_ms)
                self._emit(self._uplink.tick(now_ms), now_ms)
                self._look_after()
            if self._spool is not None:
                with _faults.contained("spool"):
                    self._spool.keep(now_ms)
                if self._spool.unkept:
                    quiet_polls = 0
            timeout_s = POLL_MS / 1000
            if quiet_polls >= POLLS_BEFORE_SLEEP:
                self.asleep = True  # from here on writers wake us ...
                if self._inbox:  # ... and one that wrote just before is seen here
                    self.asleep = False
                    continue
                next_ms = self._uplink.next_tick_ms()
                if next_ms is None:
                    timeout_s = SLEEP_MAX_S
                else:
                    timeout_s = max(0.0, min(SLEEP_MAX_S, (next_ms - now_ms) / 1000))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), timeout_s)
            self._news.clear()
            self.asleep = False

    def _drain(self, now_ms: int) -> None:
        for link in list(self._links.values()):
            self._uplink.spent(link.meter_id, link.total_nano_usd)
        while self._inbox:
            item = self._inbox.popleft()
            if callable(item):
                self._emit(item(now_ms), now_ms)
            else:
                self._emit(self._uplink.recorded(item, now_ms), now_ms)

    def _emit(self, messages: list[ClientMessage], now_ms: int) -> None:
        if self._outgoing is None:
            return
        for message in messages:
            if isinstance(message, Renew) and (link := self._links.get(message.meter_id)):
                link.allowance.renewal_sent(message.renewal, now_ms)
            self._outgoing.put_nowait(message)

    async def _stay_connected(self) -> None:
        """Connect, and again for ever: no call ever waits for the authority."""
        failures = 0
        while True:
            reason = "it closed the connection"
            try:
                async with self._authority.connect() as channel:
                    try:
                        if error := await self._talk(channel):
                            reason = type(error).__name__
                    finally:
                        failures = 0 if self._uplink.welcomed else failures
                        reason = self._uplink.refusal or reason
                        self._lost()
            except AuthorityUnreachableError as error:
                reason = str(error)
            except Exception as error:
                if not threading.main_thread().is_alive():
                    return  # the interpreter ends, and takes what connecting needs with it
                _faults.count("connection", error)
            if not self._outage_said:
                self._outage_said = True
                logger.warning(
                    "voicecost: the ledger at %s cannot be reached (%s). Calls go on; what they "
                    "cost is kept in the spool and sent later.",
                    self._authority.place,
                    reason,
                )
            longest_s = min(RECONNECT_MAX_S, RECONNECT_MIN_S * 2 ** min(failures, 16))
            failures += 1
            # Jitter: not all agents at once, when a sidecar comes back.
            await asyncio.sleep(longest_s * random.uniform(0.5, 1.0))

    async def _talk(self, channel: Channel) -> BaseException | None:
        """One connection, until it ends; returns what ended it, if that was an error."""
        self._outgoing = asyncio.Queue()
        now_ms = steady_ms()
        self._emit(self._uplink.connected(now_ms), now_ms)
        tasks = [
            asyncio.create_task(self._send_all(channel, self._outgoing)),
            asyncio.create_task(self._receive_all(channel)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            errors = await _cancel(tasks)
        return errors[0] if errors else None

    async def _send_all(self, channel: Channel, outgoing: asyncio.Queue[ClientMessage]) -> None:
        while True:
            message = await outgoing.get()
            if isinstance(message, Records):
                # So that a wrong clock of ours can be told from a late record.
                sent_at_unix_ms = time.time_ns() // 1_000_000
                message = msgspec.structs.replace(message, sent_at_unix_ms=sent_at_unix_ms)
            await channel.send(message)

    async def _receive_all(self, channel: Channel) -> None:
        async for message in channel.messages():
            with _faults.contained("uplink"):
                if isinstance(message, EndRoom):
                    self._end_room(message)
                else:
                    self._received(message)
            if self._uplink.refusal is not None:
                return

    def _received(self, message: ServerMessage) -> None:
        now_ms = steady_ms()
        known = self._uplink.ledger_id, self._uplink.generation
        # Before anything is sent in answer: what is asked then has to be answered too.
        match message:
            case Welcome() | Ack() | Grant():
                self._reachable(True)
            case Reject(code="unavailable"):
                # It lives, but its store does not: to a call that is an outage like any other.
                self._reachable(False)
            case _:
                pass
        self._emit(self._uplink.receive(message, now_ms), now_ms)
        match message:
            case Welcome() if self._uplink.welcomed:
                restored = known != (self._uplink.ledger_id, self._uplink.generation)
                for link in list(self._links.values()):
                    if restored:
                        link.allowance.restored()
                if self._outage_said:
                    self._outage_said = False
                    logger.info("voicecost: the ledger is reached again")
                self._news.set()  # adoption may be due
            case Grant():
                if link := self._links.get(message.meter_id):
                    link.granted(message)
            case Command():
                if link := self._links.get(message.meter_id):
                    link.commanded(message)
            case _:
                pass
        self._acknowledged(self._uplink.take_acked())

    def _acknowledged(self, durable: dict[str, int]) -> None:
        if not durable:
            return
        if self._spool is not None:
            self._spool.acknowledged(durable)
        for meter_id, seq in durable.items():
            if link := self._links.get(meter_id):
                link.acked(seq)
                if link.finished:
                    self._links.pop(meter_id, None)
        if self._adoption is not None:
            self._adoption.acknowledged(durable)
        self._look_after()

    def _look_after(self) -> None:
        """What is to be done once things are durable, or there is somebody to talk to."""
        if self._adoption_due and self._adoption is not None and self._uplink.welcomed:
            # Only now: a spool that is held while nobody can be reached, nobody else can adopt.
            self._adoption_due = False
            self._adoption.look()
        everything = not self._inbox and self._uplink.settled
        if everything and not self._links and self._spool is not None:
            self._spool.retire()
        waiters, self._waiters = self._waiters, []
        for done, meter_id in waiters:
            if everything or (meter_id is not None and self._uplink.is_settled(meter_id)):
                with contextlib.suppress(InvalidStateError):  # it waits no longer
                    done.set_result(None)
            elif not done.done():
                self._waiters.append((done, meter_id))

    def _take_adopted(self, records: list[Record]) -> None:
        now_ms = steady_ms()
        for record in records:
            self._emit(self._uplink.recorded(record, now_ms, adopted=True), now_ms)

    def _end_room(self, effect: EndRoom) -> None:
        """An embedded ledger wants a room gone: our meters in it hang up, as on a command."""
        for link in list(self._links.values()):
            if link.room_name == effect.room_name:
                link.commanded(Command(link.meter_id, Action.END, effect.reason, 0, 0))

    def _lost(self) -> None:
        self._outgoing = None
        self._uplink.disconnected(steady_ms())
        self._reachable(False)

    def _reachable(self, answers: bool) -> None:
        for link in list(self._links.values()):
            link.allowance.reachable(answers)


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> list[BaseException]:
    """Cancel what still runs and wait for all; returns the errors other than cancellation."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    errors = [task.exception() for task in tasks if not task.cancelled()]
    return [error for error in errors if error is not None]

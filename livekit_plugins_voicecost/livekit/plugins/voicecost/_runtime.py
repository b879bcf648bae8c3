"""One per process and ledger: the spool, the uplink's thread, and a link for each meter.

    agent's loop ── MeterLink.write ──> spool (write(2)) ──> inbox ──> uplink's thread ──> ledger
                 <── MeterListener ───────────────────────── grants, commands, acknowledgements

Nothing starts at import. A forked child makes a runtime of its own and never touches its parent's.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Final

from voicecost_ledger.grants import FailureHandling
from voicecost_ledger.protocol import ClientMessage
from voicecost_ledger.records import Environment, MeterOpen, OnBudget, Record
from voicecost_ledger.spool import EMBEDDED, SIDECAR, Spool, SpoolUnusableError, default_root
from voicecost_ledger.uplink import Uplink

from . import _faults
from ._connection import Authority, SidecarAuthority
from ._driver import Driver, InboxItem
from ._link import MeterLink, MeterListener
from .log import logger

__all__ = ["MeterLink", "MeterListener", "Runtime", "ledger_place", "runtime"]

EXIT_MAX_S: Final = 2.0


class Runtime:
    """This process's metering into one ledger: made by `runtime()`. Thread-safe.

    Args:
        url: The sidecar's address; None keeps the ledger in this process.

    Raises:
        ValueError: The address (or, embedded, `VOICECOST_DATABASE_URL`) cannot be used.
    """

    def __init__(self, url: str | None) -> None:
        process_id = uuid.uuid4().hex
        self._label = EMBEDDED if url is None else SIDECAR
        self._authority = _authority(url, process_id)
        self.uplink = Uplink(process_id)
        """The protocol machine; belongs to the uplink's thread."""
        self._lock = threading.Lock()
        self._links: dict[str, MeterLink] = {}
        self._inbox: deque[InboxItem] = deque()
        self._spool: Spool | None = None
        self._driver: Driver | None = None
        self._thread: threading.Thread | None = None
        self._abandoned = False

    @property
    def place(self) -> str:
        """Where the ledger is, for a log line."""
        return self._authority.place

    def open_meter(  # noqa: D417 (the other arguments are MeterOpen's own)
        self,
        *,
        listener: MeterListener | None = None,
        failure_handling: FailureHandling = FailureHandling.CONTINUE,
        project: str = "default",
        agent: str | None = None,
        tenant: str | None = None,
        tags: dict[str, str] | None = None,
        environment: Environment = Environment.PROCESS,
        livekit_url: str | None = None,
        room_name: str | None = None,
        room_sid: str | None = None,
        job_id: str | None = None,
        budget_nano_usd: int | None = None,
        warn_at_percent: int = 80,
        on_budget: OnBudget = OnBudget.WRAP_UP,
        unattributed: bool = False,
        versions: dict[str, str] | None = None,
        hosted: bool = False,
    ) -> MeterLink:
        """Open a meter: its `MeterOpen` is in the spool when this returns, all else comes later.

        The first one starts the uplink's thread. The other arguments are `MeterOpen`'s.

        Args:
            listener: Told, on the uplink's thread, what the ledger says about this meter.
            failure_handling: What becomes of the call while no ledger can be reached.
        """
        self._prepare()
        link = MeterLink(
            self,
            listener,
            room_name=room_name,
            budget_nano_usd=None if on_budget is OnBudget.NOTIFY else budget_nano_usd,
            failure_handling=failure_handling,
        )
        self._links[link.meter_id] = link
        link.write(
            MeterOpen,
            project=project,
            agent=agent,
            tenant=tenant,
            tags=tags or {},
            environment=environment,
            livekit_url=livekit_url,
            room_name=room_name,
            room_sid=room_sid,
            job_id=job_id,
            budget_nano_usd=budget_nano_usd,
            warn_at_percent=warn_at_percent,
            on_budget=on_budget,
            unattributed=unattributed,
            versions=versions or {},
            hosted=hosted,
        )
        self._start()  # after the write: a starting thread wants the interpreter too
        link.flush()  # the first grant should be there before the greeting
        return link

    def adopt(self) -> None:
        """Look for spools of processes that died on this host; done by itself at the start."""
        if self._driver is not None:
            self.hand_in(self._driver.adopt)

    def flushed(self, timeout_s: float, meter_id: str | None = None) -> asyncio.Future[bool]:
        """Wait until all of a meter is durable, at most `timeout_s`; the rest stays in the spool.

        Args:
            timeout_s: How long.
            meter_id: Which meter; None waits for everything of the process, which in one with
                other live calls may never be.

        Returns:
            To be awaited on the running loop: whether all of it is.
        """
        return asyncio.ensure_future(self._flushed(timeout_s, meter_id))

    # -- for links, on any thread -----------------------------------------------------------------

    def record(self, record: Record) -> None:
        """Spool first (I4), then the uplink. The caller holds its meter's lock: order is kept."""
        if self._abandoned:
            return
        if self._spool is not None:
            try:
                self._spool.append(record)
            except Exception as error:
                _faults.count("spool", error)
        self._inbox.append(record)
        driver = self._driver
        if driver is not None and driver.asleep:
            driver.wake()

    def hand_in(self, action: Callable[[int], list[ClientMessage]]) -> None:
        """Run something on the uplink's thread, soon; it is given the time in ms."""
        if self._abandoned:
            return
        self._inbox.append(action)
        if self._driver is not None:
            self._driver.wake()

    # -- starting and ending ----------------------------------------------------------------------

    def _prepare(self) -> None:
        with self._lock:
            if self._driver is not None or self._abandoned:
                return
            self._spool = _open_spool(self._label)
            self._driver = Driver(
                self.uplink, self._authority, self._spool, self._label, self._links, self._inbox
            )

    def _start(self) -> None:
        with self._lock:
            if self._driver is None or self._thread is not None or self._abandoned:
                return
            self._thread = threading.Thread(
                target=self._main, args=(self._driver,), name="voicecost-uplink", daemon=True
            )
            self._thread.start()

    def _main(self, driver: Driver) -> None:
        # The starter is an agent's loop: give the interpreter back before working in it.
        time.sleep(0.001)
        # Not asyncio.run: at exit it starts a thread to end its executor, too late for that.
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(driver.run())
        except Exception as error:  # nobody is above: the call goes on, the spool keeps everything
            _faults.count("uplink", error)
        finally:
            loop.close()

    def close(self, timeout_s: float = EXIT_MAX_S) -> None:
        """The process ends: leave to an adopter what is not acknowledged. Twice is a no-op."""
        with self._lock:
            if self._abandoned:
                return
            self._abandoned = True
        if self._driver is not None and self._thread is not None:
            self._driver.stop()
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return  # stuck in a write; the spool's lock falls when the process ends
        if self._spool is not None:
            self._spool.close()

    def abandon(self) -> None:
        """In a forked child: the thread is not here, and the files are the parent's."""
        self._abandoned = True

    async def _flushed(self, timeout_s: float, meter_id: str | None) -> bool:
        driver = self._driver
        if driver is None or self._abandoned:
            return driver is None
        done: Future[None] = Future()
        self.hand_in(partial(driver.wait, done, meter_id))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(done), timeout_s)
            return True
        return False


def _authority(url: str | None, process_id: str) -> Authority:
    if url is not None:
        return SidecarAuthority(url, process_id)
    # Here, not at the top: SQLite and the books are only needed without a sidecar.
    from ._embedded import EmbeddedAuthority

    return EmbeddedAuthority()


def _open_spool(label: str) -> Spool | None:
    """The spool where it was asked for, else in the temporary directory, else none: said, once."""
    fallback = Path(tempfile.gettempdir()) / f"voicecost-spool-{os.getuid()}"
    for root in (default_root(), fallback):
        try:
            return Spool(root, label=label)
        except SpoolUnusableError as error:
            logger.warning("voicecost: %s", error)
    logger.error(
        "voicecost: no spool can be kept: what this process has not reported when it ends is lost"
    )
    return None


_runtimes: dict[str | None, Runtime] = {}
_runtimes_lock = threading.Lock()


def runtime(url: str | None = None) -> Runtime:
    """This process's runtime for a ledger; nothing is opened before its first meter.

    Args:
        url: The sidecar's address; None for the ledger in this process.

    Raises:
        ValueError: The address (or, embedded, `VOICECOST_DATABASE_URL`) cannot be used.
    """
    with _runtimes_lock:
        known = _runtimes.get(url)
        if known is None:
            known = _runtimes[url] = Runtime(url)
        return known


def ledger_place(url: str | None = None) -> str:
    """Where the ledger is, for a log line: the sidecar's public address, or a file."""
    return runtime(url).place


def _close_all() -> None:
    for each in list(_runtimes.values()):
        each.close()


def _forget_all() -> None:
    global _runtimes_lock
    for each in _runtimes.values():
        each.abandon()
    _runtimes.clear()
    _runtimes_lock = threading.Lock()  # a thread that is not here may have held it


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)

"""Where a meter runs: the LiveKit job around it, if any, and what happens when that job ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
from livekit.agents import JobContext, utils

from voicecost_ledger.records import Environment

from ._livekit import running_job

if TYPE_CHECKING:
    from livekit import rtc

METERS_CLOSE_MAX_S: Final = 4.0
"""How long a job that shuts down waits for its meters. LiveKit kills the process after 10 s by
default (`shutdown_process_timeout`); closing a session with open user speech takes 2 s."""
FLUSH_MAX_S: Final = 2.0
"""How long it then waits for the ledger's acknowledgement. The rest stays in the spool."""


class JobMeter(Protocol):
    """What a job needs of its meters."""

    @property
    def unattributed(self) -> bool:
        """Whether it is the job's own, which ends when the job does."""
        ...

    async def wait_closed(self) -> None:
        """Return when the meter is closed."""
        ...

    def close_when_quiet(self, reason: str) -> None:
        """Close the meter when none of its legs is open any more."""
        ...

    async def flushed(self, timeout_s: float) -> object:
        """Return when all of it is durable, at the latest after `timeout_s`."""
        ...

    def close(self, reason: str) -> None:
        """Close the meter now, if it is open."""
        ...


class Place(msgspec.Struct, frozen=True):
    """What is known of a meter's surroundings; the strings are None outside a LiveKit job."""

    environment: Environment
    job: JobContext | None = None
    agent: str | None = None
    livekit_url: str | None = None
    room_name: str | None = None
    room_sid: str | None = None
    job_id: str | None = None
    hosted: bool = False  # deployed to LiveKit Cloud, which bills such an agent's minutes apart


def under_pytest() -> bool:
    """Whether this very process is running a test.

    The variable alone is inherited by worker processes that a test starts, and those are as real
    as any; the module alone is imported by some libraries in production.
    """
    return "PYTEST_CURRENT_TEST" in os.environ and "pytest" in sys.modules


def here() -> Place:
    """The place of the running task: call it in a job's entrypoint or in a task made there."""
    job = running_job()
    if job is None:
        return Place(Environment.TEST if under_pytest() else Environment.PROCESS)
    agent = job.job.agent_name or None
    if job.is_fake_job():  # `console`, or a simulated job: no room that LiveKit knows of
        environment = Environment.TEST if under_pytest() else Environment.CONSOLE
        return Place(environment, job, agent)
    # Public nowhere; the worker exports the same address for `job.api`.
    url: str | None = getattr(getattr(job, "_info", None), "url", None)
    return Place(
        Environment.TEST if under_pytest() else Environment.JOB,
        job,
        agent,
        livekit_url=url or os.environ.get("LIVEKIT_URL") or None,
        room_name=job.job.room.name or None,
        room_sid=job.job.room.sid or None,
        job_id=job.job.id or None,
        hosted=utils.is_hosted(),
    )


def room_of(job: JobContext | None) -> rtc.Room | None:
    """The room a job is connected to, or None."""
    if job is None or job.is_fake_job() or not job.room.isconnected():
        return None
    return job.room


class _JobEnd:
    """What a job's end waits for: its meters, and that the ledger has them.

    Only the job refers to it, by its shutdown callback: both go together. The thread executor runs
    one job after another in a process that may live for weeks.
    """

    def __init__(self) -> None:
        self._meters: list[JobMeter] = []
        self._over = False

    def join(self, meter: JobMeter) -> None:
        if self._over:  # a shutdown callback that asks a model only now: its answer is the last
            meter.close_when_quiet("shutdown")
        else:
            self._meters.append(meter)

    async def settle_voicecost_meters(self) -> None:
        """Run by LiveKit beside the job's other shutdown callbacks, which may still ask a model."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closed_by_themselves(), METERS_CLOSE_MAX_S)
        self._over = True
        meters, self._meters = self._meters, []
        for each in meters:
            each.close("shutdown")
        await asyncio.gather(*(each.flushed(FLUSH_MAX_S) for each in meters))

    async def _closed_by_themselves(self) -> None:
        await asyncio.gather(*(m.wait_closed() for m in self._meters if not m.unattributed))
        self._over = True
        own = [each for each in self._meters if each.unattributed]
        for each in own:
            each.close_when_quiet("shutdown")
        await asyncio.gather(*(each.wait_closed() for each in own))


_ends: weakref.WeakKeyDictionary[JobContext, weakref.ref[_JobEnd]] = weakref.WeakKeyDictionary()
# The thread executor runs many jobs in one process, each with its own loop and thread.
_ends_lock = threading.Lock()


def join(job: JobContext, meter: JobMeter) -> None:
    """Let a job's end wait for this meter, and for the ledger to have it.

    LiveKit runs the shutdown callbacks after it has closed the job's first session and left the
    room, all of them at once; other sessions close in callbacks of their own, beside ours.
    """
    with _ends_lock:
        known = _ends.get(job)
        end = known() if known is not None else None
        if end is None:
            end = _JobEnd()
            _ends[job] = weakref.ref(end)
            job.add_shutdown_callback(end.settle_voicecost_meters)
    end.join(meter)

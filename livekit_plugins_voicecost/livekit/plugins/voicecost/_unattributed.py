"""A job's own meter: legs that belong to none of its sessions.

There are several sessions, or none any more: a summary of the call is asked for when it is over.
Shown, never silently booked to one of them. It opens with its first leg, has the settings of the
job's first `VoiceCost` but no budget of its own, and closes when the job ends; in a process without
jobs, with its last session, and what comes after that, when it is answered.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import msgspec

from ._livekit import running_job
from ._prices import prices
from ._settings import Settings
from .meter import Meter


class _Place(msgspec.Struct):
    """What is attached in one job, or in a process without jobs."""

    settings: Settings
    # A meter lives as long as its session, which may never start.
    meters: weakref.WeakSet[Meter] = msgspec.field(default_factory=weakref.WeakSet[Meter])
    # Its link to the ledger keeps it while it is open. It refers to its job, the place's key, which
    # must be able to go.
    own: weakref.ref[Meter] | None = None

    def running(self) -> bool:
        """Whether a session's meter is open."""
        return any(each.meter_id and not each.closed for each in self.meters)

    def open_own(self) -> Meter | None:
        """The own meter, unless it is closed or was never used."""
        own = self.own() if self.own is not None else None
        return None if own is None or own.closed else own


class _NoJob:
    """Stands for the job of a process that has none."""


_NO_JOB = _NoJob()
_places: weakref.WeakKeyDictionary[Any, _Place] = weakref.WeakKeyDictionary()
_lock = threading.Lock()  # the thread executor runs many jobs in one process


def attached(meter: Meter, settings: Settings) -> None:
    """A session's meter was attached in the running job."""
    key = _here()
    with _lock:
        place = _places.setdefault(key, _Place(settings))
        place.meters.add(meter)
    if key is _NO_JOB:
        meter.when_closed = _close_last


def unattributed_meter() -> Meter | None:
    """The running job's own meter, made when first asked for; None where nothing is attached."""
    key = _here()
    with _lock:
        place = _places.get(key)
        if place is None:
            return None
        own = place.open_own()
        if own is None:
            own = Meter(None, place.settings, prices())
            place.own = weakref.ref(own)
            if key is _NO_JOB and not place.running():
                own.close_when_quiet("sessions_closed")
        return own


def _close_last() -> None:
    """Outside of a job nobody else says when it is over."""
    with _lock:
        place = _places.get(_NO_JOB)
        own = None if place is None or place.running() else place.open_own()
    if own is not None:
        own.close("sessions_closed")


def _here() -> Any:
    return running_job() or _NO_JOB

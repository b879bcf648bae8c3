"""A job's own meter: legs of a job with several sessions that belong to none of them.

Shown, never silently booked to one of them. It opens with its first leg, has the settings of the
job's first `VoiceCost` but no budget of its own, and closes when the job ends; in a process without
jobs, with its last session.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import msgspec
from livekit.agents import get_job_context

from ._prices import prices
from ._settings import Settings
from .meter import Meter


class _Place(msgspec.Struct):
    """What is attached in one job, or in a process without jobs."""

    settings: Settings
    # A meter lives as long as its session, which may never start.
    meters: weakref.WeakSet[Meter] = msgspec.field(default_factory=weakref.WeakSet[Meter])
    own: Meter | None = None


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
    with _lock:
        place = _places.get(_here())
        if place is None:
            return None
        if place.own is None or place.own.closed:
            place.own = Meter(None, place.settings, prices())
        return place.own


def _close_last() -> None:
    """Outside of a job nobody else says when it is over."""
    with _lock:
        place = _places.get(_NO_JOB)
        running = place and any(each.meter_id and not each.closed for each in place.meters)
    if place is not None and place.own is not None and not running:
        place.own.close("sessions_closed")


def _here() -> Any:
    return get_job_context(required=False) or _NO_JOB

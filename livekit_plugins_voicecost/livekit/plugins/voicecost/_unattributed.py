"""A job's own meter: legs of a job with several sessions that belong to none of them.

Shown, never silently booked to one of them. It opens with its first leg, has the settings of the
job's first `VoiceCost` but no budget of its own, and closes after the job's sessions.
"""

from __future__ import annotations

import asyncio
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
    meters: list[Meter] = []
    own: Meter | None = None
    closing: asyncio.Task[None] | None = None


class _NoJob:
    """Stands for the job of a process that has none."""


_NO_JOB = _NoJob()
_places: weakref.WeakKeyDictionary[Any, _Place] = weakref.WeakKeyDictionary()
_lock = threading.Lock()  # the thread executor runs many jobs in one process


def attached(meter: Meter, settings: Settings) -> None:
    """A session's meter was attached in the running job."""
    with _lock:
        place = _places.setdefault(_here(), _Place(settings))
        place.meters = [each for each in place.meters if not each.closed]
        place.meters.append(meter)


def unattributed_meter() -> Meter | None:
    """The running job's own meter, made when first asked for; None where nothing is attached."""
    with _lock:
        place = _places.get(_here())
        if place is None:
            return None
        if place.own is None or place.own.closed:
            place.own = Meter(None, place.settings, prices())
            place.closing = asyncio.get_running_loop().create_task(
                _close_last(place.own, place), name="voicecost_unattributed"
            )
        return place.own


def _here() -> Any:
    return get_job_context(required=False) or _NO_JOB


async def _close_last(own: Meter, place: _Place) -> None:
    while running := [each for each in place.meters if each.meter_id and not each.closed]:
        await running[0].wait_closed()
    own.close("sessions_closed")

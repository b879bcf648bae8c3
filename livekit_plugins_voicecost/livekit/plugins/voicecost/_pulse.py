"""One timer per event loop for all that costs money while nothing happens.

An open socket is billed by its time, also when the microphone is muted and no message passes. So
somebody has to say from time to time that it is still open: once a second, for all of a loop's
open connections together, and nothing for those that were recorded meanwhile anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from typing import Final, Protocol
from weakref import WeakKeyDictionary, WeakSet

from . import _faults

PULSE_S: Final = 1.0
"""What a SIGKILL can cost of an idle connection's time."""


class Accruing(Protocol):
    """Something that costs money by the clock while it is open."""

    def pulse(self) -> None:
        """A second has passed: record the time so far, unless it was recorded anyway."""
        ...


class _Pulse:
    """The open connections of one event loop, and whether a timer is to look at them.

    Nothing here refers to the loop, nor holds what does: a loop that is closed with open
    connections, as a job in a thread may leave it, must not live as long as the process.
    """

    def __init__(self) -> None:
        self.members: WeakSet[Accruing] = WeakSet()
        self.is_timed = False

    def beat(self) -> None:
        self.is_timed = False
        for member in tuple(self.members):
            with _faults.contained("pulse"):
                member.pulse()
        self.schedule()

    def schedule(self) -> None:
        if self.members and not self.is_timed:
            self.is_timed = True
            # In no attempt's context: what a beat does belongs to each member itself.
            asyncio.get_running_loop().call_later(PULSE_S, self.beat, context=contextvars.Context())


_pulses: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pulse] = WeakKeyDictionary()


def watch(member: Accruing) -> None:
    """Call `member.pulse` about once a second from now on, in this loop, as long as it lives."""
    pulse = _pulses.setdefault(asyncio.get_running_loop(), _Pulse())
    pulse.members.add(member)
    pulse.schedule()


def unwatch(member: Accruing) -> None:
    """It is closed: no more calls."""
    with contextlib.suppress(RuntimeError):  # its loop is gone, and the timer with it
        pulse = _pulses.get(asyncio.get_running_loop())
        if pulse is not None:
            pulse.members.discard(member)  # without any, the next beat is the last

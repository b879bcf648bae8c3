"""Whose a leg is: found in the running context when a stream is made, resolved when it is written.

In this order (design: "Attribution"):

1. LiveKit's own activity variable, or ours, whichever was set last. Ours is set only while an
   AgentSession changes its activity or its STT: every STT stream is born in there, and there
   LiveKit's variable may still be that of another session, whose tool called `update_agent`.
2. An explicit `with meter.scope():`.
3. The job's only session.
4. The job itself, where it has several sessions or their meters are closed: its `unattributed`
   meter. There is one where anything was attached.

What is kept is the session, never its meter: the meter is looked up at every record until there
is one, so a session attached late adopts what was seen of it before.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, Final, Protocol

from . import _estimates, _faults
from ._livekit import running_job

if TYPE_CHECKING:
    from livekit.agents import AgentSession, JobContext

    from .legs import LegMeter

ATTACHED_LATE: Final = "attached_late"
"""Why what a session used before its meter is not all there."""
_WAITING_MAX: Final = 256
"""Finished legs kept per session without a meter; the oldest go first, and leave a gap."""


class Waiting(Protocol):
    """A finished leg that found no meter yet."""

    def adopted_by(self, meter: LegMeter) -> None:
        """Record everything of it with `meter`."""
        ...


class _Queue:
    """The latest finished legs of one session, or job, without a meter."""

    def __init__(self) -> None:
        self.legs: deque[Waiting] = deque(maxlen=_WAITING_MAX)
        self.has_dropped = False

    def append(self, leg: Waiting) -> None:
        self.has_dropped |= len(self.legs) == _WAITING_MAX
        self.legs.append(leg)


class _Registry:
    """Which meter serves which session, and what still waits for one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # the thread executor runs many jobs in one process
        # Weak on both sides: a meter refers to its job, and so to the session. It lives as long as
        # its session, whose events it follows.
        self.meters: weakref.WeakKeyDictionary[Any, weakref.ref[LegMeter]] = (
            weakref.WeakKeyDictionary()
        )
        self.ended: weakref.WeakSet[Any] = weakref.WeakSet()
        self.jobs: weakref.WeakKeyDictionary[Any, Callable[[], Any]] = weakref.WeakKeyDictionary()
        self.waiting: weakref.WeakKeyDictionary[Any, _Queue] = weakref.WeakKeyDictionary()
        self.waiting_outside = _Queue()
        self.unattributed: Callable[[], LegMeter | None] | None = None


_registry = _Registry()
_scope_meter: ContextVar[LegMeter | None] = ContextVar("voicecost_scope", default=None)
# The session that is being changed, and LiveKit's activity at that moment: as long as the
# activity is still the same one, ours was set last.
_changing: ContextVar[tuple[weakref.ref[Any], Any] | None] = ContextVar(
    "voicecost_changing_session", default=None
)
_activity_variable: ContextVar[Any] | None = None
_speech_variable: ContextVar[Any] | None = None


def find_livekit_names() -> list[str]:
    """Look up LiveKit's private context variables; returns which names this version lacks."""
    global _activity_variable, _speech_variable
    from livekit.agents.voice import agent_activity, speech_handle

    _activity_variable = getattr(agent_activity, "_AgentActivityContextVar", None)
    _speech_variable = getattr(agent_activity, "_SpeechHandleContextVar", None)
    needed: tuple[tuple[Any, str], ...] = (
        (agent_activity, "_AgentActivityContextVar"),
        (agent_activity, "_SpeechHandleContextVar"),
        (agent_activity.AgentActivity, "session"),
        (speech_handle.SpeechHandle, "scheduled"),
    )
    gone = [f"{each.__name__}.{name}" for each, name in needed if not hasattr(each, name)]
    if not hasattr(agent_activity.AgentActivity, "session"):
        _activity_variable = None  # then it says nothing about whose a stream is
    if not hasattr(speech_handle.SpeechHandle, "scheduled"):
        _speech_variable = None
    return gone


class Owner:
    """Whose a leg is. Holds the session weakly: a finished call keeps nothing alive.

    Args:
        session: The AgentSession, when one was found.
        scope: The meter of an explicit `meter.scope()`, when that decided.
        job: The LiveKit job around it, if any; decides when neither of the others is there.
    """

    __slots__ = ("_job", "_scope", "_session")

    def __init__(
        self,
        session: AgentSession[Any] | None = None,
        scope: LegMeter | None = None,
        job: JobContext | None = None,
    ) -> None:
        self._session = weakref.ref(session) if session is not None else None
        self._scope = scope
        self._job = weakref.ref(job) if job is not None else None

    @property
    def session(self) -> AgentSession[Any] | None:
        """Its session, where one was found and is still there."""
        return self._session() if self._session is not None else None

    def meter(self) -> LegMeter | None:
        """The meter for it now; None where no VoiceCost is attached (yet)."""
        if self._session is not None:
            session = self._session()
            meter = meter_of(session) if session is not None else None
            if meter is not None or session not in _registry.ended:
                return meter
        elif self._scope is not None:
            return self._scope
        else:
            meters = _meters_in(self._job() if self._job is not None else None)
            if len(meters) == 1:
                return meters[0]
        # Several sessions, or none any more: one that follows must not pay for what came before.
        return _registry.unattributed() if _registry.unattributed is not None else None

    def keep(self, leg: Waiting) -> None:
        """Keep a finished leg until a meter registers for its session or job."""
        key = self._session() if self._session is not None else None
        if key is None and self._job is not None:
            key = self._job()
        with _registry.lock:
            if key is None:
                if self._session is None:
                    _registry.waiting_outside.append(leg)
                return
            _registry.waiting.setdefault(key, _Queue()).append(leg)


def current_owner() -> Owner:
    """The owner of a stream made in the running context."""
    activity: Any = _activity_variable.get(None) if _activity_variable is not None else None
    changing = _changing.get()
    if changing is not None and changing[1] is activity:
        session = changing[0]()
        if session is not None:
            return Owner(session)
    if activity is not None:
        return Owner(activity.session)
    meter = _scope_meter.get()
    if meter is not None:
        return Owner(scope=meter)
    return Owner(job=running_job())


def current_meter() -> LegMeter | None:
    """The meter that a request made here would be booked to, or None."""
    return current_owner().meter()


def current_speech() -> Any:
    """LiveKit's SpeechHandle of the running context, or None."""
    return _speech_variable.get(None) if _speech_variable is not None else None


def meter_of(session: AgentSession[Any]) -> LegMeter | None:
    """The session's meter, or None when none is attached."""
    known = _registry.meters.get(session)
    return known() if known is not None else None


def register(session: AgentSession[Any], meter: LegMeter) -> None:
    """A meter serves this session from now on; it adopts the finished legs that wait for it."""
    job = running_job()
    with _registry.lock:
        _registry.meters[session] = weakref.ref(meter)
        _registry.ended.discard(session)
        _registry.jobs[session] = weakref.ref(job) if job is not None else _no_job
        queues = [_registry.waiting.pop(session, None)]
    if len(_meters_in(job)) == 1:  # the job's only session owns what was nobody's
        with _registry.lock:
            if job is not None:
                queues.append(_registry.waiting.pop(job, None))
            else:
                queues.append(_registry.waiting_outside)
                _registry.waiting_outside = _Queue()
    for queue in filter(None, queues):
        if queue.has_dropped:
            meter.gap(ATTACHED_LATE)
        for leg in queue.legs:
            with _faults.contained("adopt_leg"):
                leg.adopted_by(meter)


def unregister(session: AgentSession[Any]) -> None:
    """The session's meter is about to close: its estimates are settled.

    Requests made for the session from now on are its job's own.
    """
    with _registry.lock:
        meter = meter_of(session)
        _registry.meters.pop(session, None)
        _registry.jobs.pop(session, None)
        _registry.ended.add(session)
    if meter is not None:
        _estimates.settle(meter)


def set_unattributed(open_meter: Callable[[], LegMeter | None] | None) -> None:
    """Say where legs go that belong to a job and to none of its sessions with an open meter.

    Args:
        open_meter: Gives the running job's unattributed meter, opened on first use, or None where
            nothing was ever attached; asked at every record until it gives one. None: such legs
            are not recorded.
    """
    _registry.unattributed = open_meter


@contextmanager
def scoped(meter: LegMeter) -> Generator[None]:
    """Book requests made inside to `meter`, where no session is found. For `Meter.scope()`."""
    token = _scope_meter.set(meter)
    try:
        yield
    finally:
        _scope_meter.reset(token)


def enter_change(session: Any) -> Token[Any]:
    """The session is about to change its activity or STT: streams born now are its own."""
    activity = _activity_variable.get(None) if _activity_variable is not None else None
    try:
        return _changing.set((weakref.ref(session), activity))
    except TypeError as error:  # no session there
        _faults.count("session_change", error)
        return _changing.set(_changing.get())


@contextmanager
def changing(session: Any) -> Generator[None]:
    """What is requested inside, or by tasks and timers begun there, is the session's, if any."""
    token = enter_change(session) if session is not None else None
    try:
        yield
    finally:
        if token is not None:
            leave_change(token)


def leave_change(token: Token[Any]) -> None:
    """The change is over, or what could be born in it is."""
    _changing.reset(token)


def _no_job() -> None:
    return None


def _meters_in(job: JobContext | None) -> list[LegMeter]:
    with _registry.lock:
        found = [
            meter()
            for session, meter in _registry.meters.items()
            if _registry.jobs.get(session, _no_job)() is job
        ]
    return [meter for meter in found if meter is not None]

"""Avatars: a leg from `start` until nobody bills for it any more, counted by the clock.

Every avatar plugin derives from LiveKit's `AvatarSession`, asks its provider for a worker in
`start`, and lets it go in `aclose` (a job calls that at its shutdown). The worker is a participant
of the room, which it may also leave by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any, Final

from livekit import rtc
from livekit.agents import AgentSession

from voicecost_ledger.records import Basis, LegAttributes, Modality, Outcome

from . import _attribution, _faults
from ._attributes import host_of, name_of
from ._instrument_attempts import Tally, was_refused
from ._instrument_services import nothing_to_undo
from ._livekit import reports, require

_HOSTED: Final = "livekit.agents.inference.avatar"
TICK_S: Final = 1.0
"""How often the time so far is recorded: what a SIGKILL can cost."""


class _Avatar:
    """One started avatar, and the leg of its worker.

    The room's end and the session's are taken as the worker's, so that the meter need not wait for
    anything; an `aclose` that still has to end it at the provider corrects that.
    """

    def __init__(self, avatar: Any, session: Any, room: Any) -> None:
        self._avatar = avatar
        self._owner = _attribution.Owner(session)
        self._session = session
        self._room = room
        self._timer: asyncio.TimerHandle | None = None
        self._gone = False
        self._begin()

    # What happens

    def starting(self) -> None:
        """`start` was called: the provider may bill from now on."""
        session, room = self._session, self._room
        with contextlib.suppress(Exception):  # the plugin's: then it does not tell that it joined
            self._avatar.on("metrics_collected", self._on_metrics)
        session.on("close", self._on_over)
        room.on("participant_connected", self._on_participant_connected)
        room.on("participant_disconnected", self._on_participant_disconnected)
        # Not "disconnected": LiveKit leaves that out where the stream of events ends before it.
        room.on("connection_state_changed", self._on_connection_state)
        self._tick()

    def started(self) -> None:
        """`start` returned: the provider has a worker for us."""
        self._basis = Basis.OBSERVED
        self._tally.owe(self._usage(), self._basis)

    def failed(self, error: BaseException) -> None:
        """`start` failed: nobody bills, unless the provider did what it could not say."""
        self._unwatch()
        outcome = Outcome.FAILED
        if isinstance(error, asyncio.CancelledError):
            outcome = Outcome.INTERRUPTED
        if was_refused(error):
            self._tally.stop(outcome, {"connected_ms": 0}, Basis.OBSERVED)
        else:
            usage = self._tally.margins = self._usage()  # all of it, or nothing
            self._tally.stop(outcome, usage)

    def closed(self) -> None:
        """`aclose` is done: the provider has let the worker go."""
        self._unwatch()
        if not self._gone:
            self._stop()

    # How it is noticed

    def _on_over(self, *_: object) -> None:
        with _faults.contained("avatar"):
            self._stop()

    def _on_connection_state(self, state: object) -> None:
        if state == rtc.ConnectionState.CONN_DISCONNECTED:
            self._on_over()

    def _on_participant_connected(self, participant: Any) -> None:
        with _faults.contained("avatar"):
            if self._gone and self._is_worker(participant):
                self._begin()
                self.started()
                self._tick()

    def _on_participant_disconnected(self, participant: Any) -> None:
        with _faults.contained("avatar"):
            if self._is_worker(participant):
                self._stop()
                self._gone = True

    def _is_worker(self, participant: Any) -> bool:
        return participant.identity == name_of(self._avatar, "avatar_identity")

    def _on_metrics(self, metrics: Any) -> None:
        with _faults.contained("avatar"):
            if getattr(metrics, "avatar_joined_time", None) is not None:
                self._tally.first_answer()

    # The leg

    def _begin(self) -> None:
        self._gone = False
        self._basis = Basis.ESTIMATED  # until the provider has accepted it
        self._began_ns = time.monotonic_ns()
        self._tally = Tally(self._owner, _describe(self._avatar), None)
        self._tally.owe({"connected_ms": 0}, self._basis)

    def _usage(self) -> dict[str, int]:
        return {"connected_ms": (time.monotonic_ns() - self._began_ns) // 1_000_000}

    def _tick(self) -> None:
        with _faults.contained("avatar"):
            tally = self._tally
            if tally.outcome is None and (tally.leg is None or tally.leg.outcome is None):
                usage = tally.margins = self._usage()  # of an estimate, as long as it is one
                tally.owe(usage, self._basis)
                self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        tally = self._tally
        if tally.outcome is None:
            tally.stop(Outcome.SERVED, self._usage(), self._basis)
        else:  # it was only thought to be over
            tally.usage = self._usage()
            if tally.leg is not None:
                tally.leg.correct(tally.usage, self._basis)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with contextlib.suppress(Exception):
            self._avatar.off("metrics_collected", self._on_metrics)
        self._session.off("close", self._on_over)
        self._room.off("participant_connected", self._on_participant_connected)
        self._room.off("participant_disconnected", self._on_participant_disconnected)
        self._room.off("connection_state_changed", self._on_connection_state)


def _describe(avatar: Any) -> LegAttributes:
    # By its module: older versions have none of their own.
    hosted = any(each.__module__ == _HOSTED for each in type(avatar).__mro__)
    provider = name_of(avatar, "provider")
    model = name_of(avatar, "model") or name_of(avatar, "_model")
    return LegAttributes(
        modality=Modality.AVATAR,
        # The gateway bills for whichever provider it asks.
        provider="livekit" if hosted else provider,
        model=provider if hosted else model,
        label=f"{type(avatar).__module__}.{type(avatar).__name__}",
        host=host_of(avatar, avatar),
    )


def observe_avatars() -> Callable[[], None]:
    """Observe every avatar plugin, where LiveKit has a base class for them; returns the undo."""
    if not reports("AvatarMetrics"):  # older than a base class that tells who it is
        return nothing_to_undo
    from livekit.agents.voice.avatar import AvatarSession

    avatar_class: Any = AvatarSession
    require(avatar_class, has=("start", "aclose", "avatar_identity", "provider", "on", "off"))
    base_init = avatar_class.__init__

    @functools.wraps(base_init)
    def observed_init(self: Any, *args: Any, **kwargs: Any) -> None:
        base_init(self, *args, **kwargs)
        with _faults.contained("observe_avatar"):
            _observe_life(self)

    avatar_class.__init__ = observed_init

    def undo() -> None:
        avatar_class.__init__ = base_init

    return undo


def _observe_life(avatar: Any) -> None:
    """Shadow `start` and `aclose` on the instance: the plugin's own, with all they do."""
    start, aclose = avatar.start, avatar.aclose
    running: list[_Avatar] = []

    @functools.wraps(start)
    async def observed_start(*args: Any, **kwargs: Any) -> Any:
        mine: _Avatar | None = None
        with _faults.contained("avatar"):
            mine = _Avatar(avatar, *_session_and_room(*args, **kwargs))
            mine.starting()
        try:
            result = await start(*args, **kwargs)
        except BaseException as error:
            if mine is not None:
                with _faults.contained("avatar"):
                    mine.failed(error)
            raise
        if mine is not None:
            running.append(mine)
            with _faults.contained("avatar"):
                mine.started()
        return result

    @functools.wraps(aclose)
    async def observed_aclose(*args: Any, **kwargs: Any) -> Any:
        # Where it fails or is cancelled the provider may not have been told: the clock goes on.
        result = await aclose(*args, **kwargs)
        while running:
            with _faults.contained("avatar"):
                running.pop().closed()
        return result

    avatar.start, avatar.aclose = observed_start, observed_aclose


def _session_and_room(*args: Any, **kwargs: Any) -> tuple[Any, rtc.Room]:
    """What every plugin's `start` is given first, by whichever names."""
    given: list[Any] = [*args, *kwargs.values()]
    session_class: Any = AgentSession  # it is generic
    session = next(each for each in given if isinstance(each, session_class))
    return session, next(each for each in given if isinstance(each, rtc.Room))

"""The AgentSession that a meter follows: its events and its end, and LiveKit's names for them."""

from __future__ import annotations

import asyncio
import functools
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from livekit import rtc
    from livekit.agents import AgentSession

_ACLOSE: Final = "_aclose_impl"  # every way a session ends goes through it, failures included
_STARTED: Final = "_started"
_STARTED_AT: Final = "_started_at"  # LiveKit's wall clock, seconds
_LOOP: Final = "_loop"


class WatchedSession:
    """One AgentSession, or none for a job's own meter.

    Held weakly: the registry keeps meters, and a session that never starts must not stay for it.
    """

    def __init__(self, session: AgentSession[Any] | None) -> None:
        self._session = None if session is None else weakref.ref(session)
        self._callbacks: Mapping[str, Callable[[Any], None]] = {}

    @property
    def session(self) -> AgentSession[Any] | None:
        """The session itself, as long as it is there."""
        return None if self._session is None else self._session()

    @property
    def is_none(self) -> bool:
        """Whether there never was one."""
        return self._session is None

    def watch(
        self, callbacks: Mapping[str, Callable[[Any], None]], closing_ended: Callable[[], None]
    ) -> None:
        """Follow it from here on.

        Args:
            callbacks: By the name of the event that each is called with.
            closing_ended: Called when closing is over, also when it failed or was cancelled, so
                that no `close` was emitted.
        """
        session: Any = self.session  # LiveKit's `on` and `off` are typed in part only
        self._callbacks = callbacks
        for event, callback in callbacks.items():
            session.on(event, callback)
        original = getattr(session, _ACLOSE, None)
        if original is not None:

            @functools.wraps(original)
            async def aclose_impl(*args: Any, **kwargs: Any) -> Any:
                try:
                    return await original(*args, **kwargs)
                finally:
                    closing_ended()

            setattr(session, _ACLOSE, aclose_impl)

    def unwatch(self) -> None:
        """Leave it as it was."""
        session: Any = self.session
        if session is not None:
            for event, callback in self._callbacks.items():
                session.off(event, callback)
            session.__dict__.pop(_ACLOSE, None)

    @property
    def started(self) -> bool:
        """Whether it runs."""
        return bool(getattr(self.session, _STARTED, False))

    @property
    def started_at_unix_s(self) -> float | None:
        """When its run began, by LiveKit's clock."""
        return getattr(self.session, _STARTED_AT, None)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that it was made for."""
        return getattr(self.session, _LOOP, None)

    def running_loop(self) -> asyncio.AbstractEventLoop:
        """The loop that runs here; its own where it was attached before that."""
        try:
            return asyncio.get_running_loop()
        except RuntimeError:
            loop = self.loop
            if loop is None:
                raise
            return loop

    @property
    def room(self) -> rtc.Room | None:
        """The room it was started in, if it was, and is connected to."""
        session = self.session
        try:
            room = session.room_io.room if session is not None else None
        except RuntimeError:  # started without a room
            return None
        return room if room is not None and room.isconnected() else None

"""`VoiceCost`: what the application says about a call's cost, once, and attaches to its session."""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from livekit.agents import AgentSession

from . import _attribution, _faults, _unattributed
from ._instrument import instrument
from ._livekit import versions
from ._prices import prices
from ._runtime import ledger_place
from ._settings import (
    Budget,
    Settings,
    check_budget,
    check_name,
    check_on_budget,
    check_publish_to,
    check_tags,
    check_wrap_up_text,
    env_flag,
    ledger_url,
)
from .log import logger
from .meter import Meter

if TYPE_CHECKING:
    from ._room_messages import PublishTo

_NO_TAGS: Final[Mapping[str, str]] = {}


class VoiceCost:
    """Meters what a voice call costs, and ends it when its money is gone.

        session = AgentSession(stt=..., llm=..., tts=...)
        meter = VoiceCost(project="support", budget="0.50").attach(session)
        await session.start(agent=..., room=ctx.room)

    One `VoiceCost` may be attached to any number of sessions; each gets a meter of its own. It is
    configuration: the first one instruments LiveKit's base classes, nothing is opened or sent
    before a session runs.

    Args:
        project: The cost project that pays. `"default"` stands for `VOICECOST_PROJECT`, if set.
        budget: US dollars per call as `str`, `Decimal` or `int`, or a `Budget`. A float is
            refused: most cents have no exact float. None: no budget of its own.
        agent: The agent's name in reports; by default the job's agent name.
        tenant: The customer on whose behalf the call is made, if you bill several.
        tags: Up to 16 names and values for reports.
        on_budget: What happens when the call's budget is used up. `"notify"`: callbacks and room
            messages only; `"wrap_up"`: the agent says `wrap_up_text`, then the call is ended;
            `"end"`: the call is ended at once.
        wrap_up_text: The last sentence; by default a polite one in English.
        publish_to: Who in the room is told the cost: `"none"`, `"all"`, or a callable that takes
            a remote participant and says whether it is. (LiveKit shows an agent only those who
            have published something or set an attribute; `"all"` reaches everybody.)
        url: The sidecar's address; by default `VOICECOST_URL`. Without either, the ledger is kept
            by this process in a file, see `voicecost costs`.
        enabled: False makes `attach` do nothing; None means unless `VOICECOST_DISABLED` is set.

    Raises:
        TypeError: An argument is of a kind that cannot be meant, such as a float budget.
        ValueError: An argument or environment variable is out of range or unknown.
    """

    def __init__(
        self,
        *,
        project: str = "default",
        budget: Budget | str | Decimal | int | None = None,
        agent: str | None = None,
        tenant: str | None = None,
        tags: Mapping[str, str] = _NO_TAGS,
        on_budget: Literal["notify", "wrap_up", "end"] = "wrap_up",
        wrap_up_text: str | None = None,
        publish_to: PublishTo = "none",
        url: str | None = None,
        enabled: bool | None = None,
    ) -> None:
        if enabled is None:
            enabled = not env_flag("VOICECOST_DISABLED")
        if project == "default":
            project = os.environ.get("VOICECOST_PROJECT") or project
        self._settings = Settings(
            project=check_name(project, "project"),
            budget=check_budget(budget),
            agent=None if agent is None else check_name(agent, "agent"),
            tenant=None if tenant is None else check_name(tenant, "tenant"),
            tags=check_tags(tags),
            on_budget=check_on_budget(on_budget),
            wrap_up_text=check_wrap_up_text(wrap_up_text),
            publish_to=check_publish_to(publish_to),
            url=ledger_url(url),
            enabled=enabled,
            log_costs=env_flag("VOICECOST_LOG_COSTS"),
        )
        if enabled:
            # Not in `attach`: what the environment says wrongly is said before a call.
            self._ledger_place = ledger_place(self._settings.url)
            prices()
            instrument()
            _attribution.set_unattributed(_unattributed.unattributed_meter)

    def attach(self, session: AgentSession[Any]) -> Meter:
        """Meter a session, before or after its `start()`; the same session twice is a no-op.

        What a session used before it was attached is adopted as far as it was seen, that is since
        the process's first `VoiceCost()`; what ran before that makes the call `partial`. A session
        that never starts leaves nothing in the ledger. One that is started again after it was
        closed is metered again, on a new meter with the same settings and callbacks.

        Args:
            session: The session to meter. A closed one may be attached again before it is
                started again, to have that meter, or other settings.

        Returns:
            The session's meter: the one it has already, if it has one. A disabled one where we
            failed (a disk that cannot be written, say): that is logged, and the call goes on.

        Raises:
            TypeError: `session` is no AgentSession.
        """
        if not isinstance(session, AgentSession):
            raise TypeError(
                f"cannot attach to a {type(session).__name__}: expected a livekit.agents "
                "AgentSession"
            )
        if self._settings.enabled:
            try:
                return self._attach(session)
            except Exception as error:  # the job must not die of us before its first word
                _faults.count("attach", error)
        return Meter(session, self._settings, None)

    def _attach(self, session: AgentSession[Any]) -> Meter:
        known = _attribution.meter_of(session)
        if isinstance(known, Meter):
            if not known.over:
                return known
            known.close_at_once()
        meter = Meter(session, self._settings, prices())
        try:
            _unattributed.attached(meter, self._settings)
            meter.watch()
            self._follow_restarts(session, meter)
            logger.info(
                "voicecost: metering this session; ledger: %s; %s; coverage %s",
                self._ledger_place,
                ", ".join(f"{name} {version}" for name, version in versions().items()),
                meter.coverage.value,
            )
        except Exception:
            meter.give_up()
            raise
        return meter

    def _follow_restarts(self, session: Any, meter: Meter) -> None:
        """A closed session may be started again: that is metered as well, on a meter of its own."""
        start: Callable[..., Any] = cast("Any", type(session)).start
        ours = weakref.ref(session)

        @functools.wraps(start)
        async def started(*args: Any, **kwargs: Any) -> Any:
            nonlocal meter
            again: Any = ours()
            with _faults.contained("attach"):
                known = _attribution.meter_of(again)
                if isinstance(known, Meter):
                    meter = known  # attached by the application meanwhile
                if meter.over:
                    before, meter = meter, self._attach(again)
                    meter.take_callbacks_of(before)
            return await start(again, *args, **kwargs)

        if getattr(session.__dict__.get("start"), "__wrapped__", start) is start:
            session.start = started  # unless somebody else stands there

    def __repr__(self) -> str:
        settings = self._settings
        return f"VoiceCost(project={settings.project!r}, budget={settings.budget!r})"

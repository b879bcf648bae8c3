"""`session.add_plugin(VoiceCost(...))`, the second spelling of `VoiceCost(...).attach(session)`."""

from __future__ import annotations

import functools
from typing import Any, Final, Protocol

from livekit.agents import AgentSession

from .meter import Meter
from .voicecost import VoiceCost

_ADD_PLUGIN: Final = "add_plugin"
_OURS: Final = "__voicecost__"


class SupportsPlugins(Protocol):
    """An AgentSession as type checkers should see it for the second spelling.

    LiveKit's AgentSession has no `add_plugin` of its own, and a method that is set at run time is
    invisible to a checker: `cast(SupportsPlugins, session).add_plugin(VoiceCost(...))`.
    """

    def add_plugin(self, plugin: VoiceCost, /) -> Meter:
        """Attach `plugin` to this session."""
        ...


def install_add_plugin() -> None:
    """Give AgentSession the method `add_plugin`; twice is a no-op.

    Should LiveKit have one of its own by now, ours goes around it: a `VoiceCost` is attached,
    whatever else is passed on.
    """
    livekits = getattr(AgentSession, _ADD_PLUGIN, None)
    if getattr(livekits, _OURS, False):
        return

    def add_plugin(self: AgentSession[Any], plugin: object, *args: Any, **kwargs: Any) -> Any:
        """Attach a `VoiceCost` to this session; returns its meter."""
        if isinstance(plugin, VoiceCost):
            return plugin.attach(self)
        if livekits is not None:
            return livekits(self, plugin, *args, **kwargs)
        raise TypeError(
            f"cannot add a {type(plugin).__name__} as a plugin: expected a VoiceCost from "
            "livekit.plugins.voicecost"
        )

    if livekits is not None:
        functools.update_wrapper(add_plugin, livekits)
    setattr(add_plugin, _OURS, True)
    setattr(AgentSession, _ADD_PLUGIN, add_plugin)

"""The true cost of a voice call, while it runs.

    from livekit.plugins.voicecost import VoiceCost

    session = AgentSession(stt=..., llm=..., tts=...)
    meter = VoiceCost(project="support", budget="0.50").attach(session)
    await session.start(agent=..., room=ctx.room)

Every request to every provider is metered where it is made, interrupted and failed ones included,
kept in a ledger, and the call is ended politely when its budget is used up. `meter.cost` says what
has been charged so far.

Importing this registers the plugin with LiveKit and gives `AgentSession` the method `add_plugin`
(`session.add_plugin(VoiceCost(...))` is the same as `attach`). It starts nothing, opens nothing
and draws no ids: LiveKit imports plugins before it forks its job processes.
"""

from __future__ import annotations

import threading

from livekit.agents import Plugin

from voicecost_ledger._version import __version__

from ._add_plugin import SupportsPlugins, install_add_plugin
from ._charges import Cost
from ._credit import BudgetEvent
from ._settings import Budget
from .log import logger
from .meter import Meter
from .voicecost import VoiceCost

__all__ = [
    "Budget",
    "BudgetEvent",
    "Cost",
    "Meter",
    "SupportsPlugins",
    "VoiceCost",
    "__version__",
]


class VoiceCostPlugin(Plugin):
    """How LiveKit knows us. Its forkserver imports the package named here, see `_preload`."""

    def __init__(self) -> None:
        super().__init__(__name__, __version__, f"{__name__}._preload", logger)


install_add_plugin()
if threading.current_thread() is threading.main_thread():
    Plugin.register_plugin(VoiceCostPlugin())
else:
    # LiveKit refuses it there. Nothing is lost but the import in the forkserver.
    logger.debug("imported off the main thread: not registered as a LiveKit plugin")

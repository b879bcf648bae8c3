"""LiveKit's own callers of models, and of detectors: whose session they work for.

Most requests are made inside an agent's activity, which says whose they are. These are made in
tasks and timers of their own, or where the application happened to be, so their session is told
to what they start. Where a name is gone, the job's only session is still found.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any, Final

from . import _attribution

# Module of livekit.agents, class, and the methods from which its requests come.
_CALLERS: Final = (
    # Answering-machine detection, with an LLM and perhaps an STT of its own.
    ("voice.amd.detector", "AMD", ("_run",)),
    # Looks for names and terms in every few turns, with an LLM of its own.
    ("voice.keyterm_detection", "KeytermDetector", ("_on_conversation_item_added",)),
    # Detectors that are changed in mid-call; at its start they are born in a session's change.
    (
        "voice.audio_recognition",
        "AudioRecognition",
        ("_update_vad", "_update_turn_detector", "_update_interruption_detection"),
    ),
)


def observe_callers() -> Callable[[], None]:
    """Tell what they request whose it is; returns the undo."""
    undos: list[Callable[[], None]] = []
    for module_name, class_name, methods in _CALLERS:
        try:
            module = importlib.import_module(f"livekit.agents.{module_name}")
        except ImportError:
            continue
        caller = getattr(module, class_name, None)
        undos += [_tell_session(caller, each) for each in methods if hasattr(caller, each)]

    def undo() -> None:
        for each in undos:
            each()

    return undo


def _tell_session(caller: Any, method_name: str) -> Callable[[], None]:
    method = getattr(caller, method_name)

    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def observed_async(self: Any, *args: Any, **kwargs: Any) -> Any:
            with _attribution.changing(getattr(self, "_session", None)):
                return await method(self, *args, **kwargs)

        setattr(caller, method_name, observed_async)
    else:

        @functools.wraps(method)
        def observed(self: Any, *args: Any, **kwargs: Any) -> Any:
            with _attribution.changing(getattr(self, "_session", None)):
                return method(self, *args, **kwargs)

        setattr(caller, method_name, observed)

    def undo() -> None:
        setattr(caller, method_name, method)

    return undo

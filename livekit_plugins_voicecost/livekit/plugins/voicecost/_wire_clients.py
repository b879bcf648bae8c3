"""Which client libraries of language models are observed: those that the program has loaded.

OpenAI's is loaded by livekit-agents itself. The others are looked for when a request begins, for a
program may load its plugins at any time, and importing a library for its sake would cost a process
that never uses it a good part of a second.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Final

from . import _faults, _wire_anthropic, _wire_google
from ._wire_answers import Undo

_CLIENTS: Final[dict[str, Callable[[], Undo]]] = {
    "anthropic": _wire_anthropic.observe_anthropic_clients,
    "google.genai.models": _wire_google.observe_google_clients,
}

_lock = threading.Lock()
_waiting: dict[str, Callable[[], Undo]] = {}
_undos: list[Undo] = []


def observe_clients() -> Undo:
    """Observe the clients of loaded libraries, now and when a request begins; returns the undo."""
    with _lock:
        _waiting.update(_CLIENTS)
    observe_loaded()

    def undo() -> None:
        with _lock:
            _waiting.clear()
            while _undos:
                _undos.pop()()

    return undo


def observe_loaded() -> None:
    """Observe what was loaded since. One that is not laid out as known is left alone, once told.

    Its answers are then metered by what LiveKit shows of them.
    """
    if not _waiting:
        return
    for name in tuple(_waiting):
        # Whole: in another thread it may just be loading.
        module = sys.modules.get(name)
        if module is None or getattr(getattr(module, "__spec__", None), "_initializing", False):
            continue
        with _lock:
            observe = _waiting.pop(name, None)
            if observe is None:
                continue
            try:
                _undos.append(observe())
            except Exception as error:
                _faults.count("observe_llm_client", error)

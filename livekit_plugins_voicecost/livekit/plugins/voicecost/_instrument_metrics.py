"""The rest when LiveKit's private surface has moved: legs from its metric events alone.

They miss what LiveKit never reports (sockets that died, requests interrupted before they were
answered), which is why such calls are marked `metrics-only`. Each event is a leg that is over.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from livekit.agents.metrics import LLMMetrics, STTMetrics, TTSMetrics

from voicecost_ledger.records import Basis, Modality, Outcome

from . import _attribution, _faults
from ._attributes import describe
from ._instrument_attempts import Tally

_REMEMBERED: Final = 64
"""Events that may be emitted again: some plugins do so at once."""


def observe_events(component_class: type[Any]) -> Callable[[], None]:
    """Book the `metrics_collected` events of an `LLM`, `TTS` or `STT` class; returns the undo."""
    emit: Any = component_class.emit
    own = "emit" in component_class.__dict__
    booked: deque[Any] = deque(maxlen=_REMEMBERED)

    @functools.wraps(emit)
    def observed_emit(self: Any, event: str, *args: Any) -> None:
        try:
            # An adapter repeats the events of what it wraps under its own name.
            if event == "metrics_collected" and args and args[0].label == self.label:
                metrics = args[0]
                if metrics not in booked:  # by all fields, its time among them
                    booked.append(metrics)
                    _book(self, metrics)
        except Exception as error:
            _faults.count("metrics_event", error)
        emit(self, event, *args)

    component_class.emit = observed_emit

    def undo() -> None:
        if own:
            component_class.emit = emit
        else:
            del component_class.emit

    return undo


def _book(component: Any, metrics: Any) -> None:
    cancelled = bool(getattr(metrics, "cancelled", False))
    if isinstance(metrics, LLMMetrics):
        modality = Modality.LLM
        usage = {
            "input_tokens": metrics.prompt_tokens,
            "cached_input_tokens": metrics.prompt_cached_tokens,
            "output_tokens": metrics.completion_tokens,
        }
        more = {
            "cache_write_tokens": getattr(metrics, "cache_creation_tokens", 0),
            "reasoning_tokens": getattr(metrics, "reasoning_tokens", 0),
        }
    elif isinstance(metrics, TTSMetrics):
        modality = Modality.TTS
        usage = {
            "characters": metrics.characters_count,
            "audio_ms": round(metrics.audio_duration * 1000),
        }
        more = {"input_tokens": metrics.input_tokens, "output_tokens": metrics.output_tokens}
    elif isinstance(metrics, STTMetrics):
        modality = Modality.STT
        usage = {"audio_ms": round(metrics.audio_duration * 1000)}
        more = {
            "input_tokens": getattr(metrics, "input_tokens", 0),
            "output_tokens": getattr(metrics, "output_tokens", 0),
        }
    else:
        return
    usage |= {unit: quantity for unit, quantity in more.items() if quantity}
    believed = min(usage.values()) >= 0  # nobody has used less than nothing
    usage = {unit: max(0, quantity) for unit, quantity in usage.items()}
    if not any(usage.values()) and not (cancelled and modality is Modality.LLM):
        return
    attributes = describe(component, component, modality)
    tally = Tally(_attribution.current_owner(), attributes, _attribution.current_speech())
    # LiveKit reports an interrupted request as 0/0: it is shown, and was no 0.
    basis = Basis.REPORTED if believed and any(usage.values()) else Basis.ESTIMATED
    tally.stop(Outcome.INTERRUPTED if cancelled else Outcome.SERVED, usage, basis)

"""The rest when LiveKit's private surface has moved: legs from its metric events alone.

They miss what LiveKit never reports (interrupted requests, sockets that died), which is why such
calls are marked `metrics-only`. Each event is a leg that is over.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from livekit.agents.metrics import LLMMetrics, STTMetrics, TTSMetrics

from voicecost_ledger.records import Basis, Modality, Outcome

from . import _attribution, _faults
from ._instrument_attempts import Tally, describe


def observe_events(component_class: type[Any]) -> Callable[[], None]:
    """Book the `metrics_collected` events of an `LLM`, `TTS` or `STT` class; returns the undo."""
    emit: Any = component_class.emit
    own = "emit" in component_class.__dict__

    @functools.wraps(emit)
    def observed_emit(self: Any, event: str, *args: Any) -> None:
        # An adapter repeats the events of what it wraps under its own name.
        if event == "metrics_collected" and args and args[0].label == self.label:
            try:
                _book(self, args[0])
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
    if isinstance(metrics, LLMMetrics):
        modality = Modality.LLM
        usage = {
            "input_tokens": metrics.prompt_tokens,
            "cached_input_tokens": metrics.prompt_cached_tokens,
            "output_tokens": metrics.completion_tokens,
        }
    elif isinstance(metrics, TTSMetrics):
        modality = Modality.TTS
        usage = {
            "characters": metrics.characters_count,
            "audio_ms": round(metrics.audio_duration * 1000),
        }
        if metrics.input_tokens or metrics.output_tokens:
            usage |= {"input_tokens": metrics.input_tokens, "output_tokens": metrics.output_tokens}
    elif isinstance(metrics, STTMetrics):
        modality = Modality.STT
        usage = {"audio_ms": round(metrics.audio_duration * 1000)}
    else:
        return
    if not any(usage.values()):
        return
    attributes = describe(component, component, modality)
    tally = Tally(_attribution.current_owner(), attributes, _attribution.current_speech())
    tally.stop(
        Outcome.INTERRUPTED if getattr(metrics, "cancelled", False) else Outcome.SERVED,
        usage,
        Basis.REPORTED,
    )

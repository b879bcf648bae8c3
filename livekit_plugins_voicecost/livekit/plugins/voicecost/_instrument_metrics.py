"""The rest where LiveKit's private surface has moved: legs from its metric events alone.

They miss what LiveKit never reports (sockets that died, requests interrupted before they were
answered), which is why such calls are marked `metrics-only`. Each event is a leg that is over, but
those of many small parts are one that grows: a detector's questions, a connection's time.
"""

from __future__ import annotations

import functools
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Set
from enum import Enum
from types import SimpleNamespace
from typing import Any, Final

from livekit import rtc
from livekit.agents import llm

from voicecost_ledger.records import Basis, LegAttributes, Modality, Outcome

from . import _attribution, _faults
from ._attributes import describe
from ._instrument_attempts import Tally
from ._instrument_services import describe_vad
from ._realtime_events import LiveKitEvents
from ._realtime_session import NO_TOKENS, SessionLegs, settle
from ._reports import milliseconds

AVATAR_WITHOUT_LEG: Final = "avatar_without_leg"


class Service(Enum):
    """What can be told from metric events, if only that it was there; the value is for people."""

    LLM = "LLMs"
    TTS = "TTS"
    TTS_OF_TEXTS = "TTS of whole texts"
    STT = "STT"
    RECORDINGS = "STT of recordings"
    REALTIME = "realtime models"
    DECISIONS = "decision models"
    TURNS = "turn detectors"
    INTERRUPTIONS = "interruption detectors"
    VADS = "VADs"
    AVATARS = "avatars"


_SERVICES: Final = {
    "llm_metrics": Service.LLM,
    "decision_metrics": Service.DECISIONS,
    "eot_inference_metrics": Service.TURNS,
    "interruption_metrics": Service.INTERRUPTIONS,
    "vad_metrics": Service.VADS,
    "avatar_metrics": Service.AVATARS,
}
_REALTIME: Final = (llm.RealtimeSession, *filter(None, [getattr(llm, "DuplexSession", None)]))

_REMEMBERED: Final = 64
"""Events that may be emitted again: some plugins do so at once, adapters under their own name."""


def observe_events(services: Set[Service]) -> Callable[[], None]:
    """Book the `metrics_collected` events of these services; returns the undo.

    Every component of LiveKit's emits them by the same method, wherever its classes have gone.
    """
    emitter_class: Any = rtc.EventEmitter
    emit = emitter_class.emit
    booked: deque[Any] = deque(maxlen=_REMEMBERED)

    @functools.wraps(emit)
    def observed_emit(self: Any, event: Any, *args: Any) -> None:
        if event == "metrics_collected" and args:
            with _faults.contained("metrics_event"):
                metrics = args[0]
                if _service_of(self, metrics) in services and metrics not in booked:
                    booked.append(metrics)  # by all fields, its time among them
                    _book(self, metrics)
        emit(self, event, *args)

    emitter_class.emit = observed_emit

    def undo() -> None:
        emitter_class.emit = emit

    return undo


def _service_of(emitter: Any, metrics: Any) -> Service | None:
    """Which service an event tells of; None where it only repeats another's, or is of no kind."""
    if isinstance(emitter, _REALTIME):
        return Service.REALTIME
    label = getattr(emitter, "label", None)
    if label is not None and getattr(metrics, "label", label) != label:
        return None  # an adapter's, which repeats the events of what it wraps
    kind = getattr(metrics, "type", None)
    if kind == "tts_metrics":
        return Service.TTS if metrics.streamed else Service.TTS_OF_TEXTS
    if kind == "stt_metrics":
        return Service.STT if metrics.streamed else Service.RECORDINGS
    return _SERVICES.get(str(kind))


def _book(emitter: Any, metrics: Any) -> None:
    if isinstance(emitter, _REALTIME):
        _book_realtime(emitter, metrics)
        return
    match metrics.type:
        case "llm_metrics":
            _book_request(emitter, Modality.LLM, metrics, {
                "input_tokens": metrics.prompt_tokens,
                "cached_input_tokens": metrics.prompt_cached_tokens,
                "output_tokens": metrics.completion_tokens,
            }, {
                "cache_write_tokens": getattr(metrics, "cache_creation_tokens", 0),
                "reasoning_tokens": getattr(metrics, "reasoning_tokens", 0),
            })  # fmt: skip
        case "tts_metrics":
            _book_request(emitter, Modality.TTS, metrics, {
                "characters": metrics.characters_count,
                "audio_ms": milliseconds(metrics.audio_duration),
            }, {
                "input_tokens": metrics.input_tokens,
                "output_tokens": metrics.output_tokens,
            })  # fmt: skip
        case "stt_metrics":
            _book_request(emitter, Modality.STT, metrics, {
                "audio_ms": milliseconds(metrics.audio_duration),
            }, {
                "input_tokens": metrics.input_tokens,
                "output_tokens": metrics.output_tokens,
            })  # fmt: skip
        case "decision_metrics":
            _book_decision(emitter, metrics)
        case "eot_inference_metrics":
            attributes = describe(emitter, emitter, Modality.TURN_DETECTION)
            _grow(emitter, attributes, {"requests": metrics.num_requests})
        case "interruption_metrics":
            attributes = describe(emitter, emitter, Modality.INTERRUPTION_DETECTION)
            _grow(emitter, attributes, {"requests": metrics.num_requests})
        case "vad_metrics":
            if emitter.model == "silero":
                _grow(emitter, describe_vad(emitter), {"requests": metrics.inference_count})
        case _:
            _tell_of_avatar(metrics)


def _book_request(
    component: Any, modality: Modality, metrics: Any, usage: dict[str, int], more: dict[str, int]
) -> None:
    cancelled = bool(getattr(metrics, "cancelled", False))
    usage |= {unit: quantity for unit, quantity in more.items() if quantity}
    believed = min(usage.values()) >= 0  # nobody has used less than nothing
    usage = {unit: max(0, quantity) for unit, quantity in usage.items()}
    if not any(usage.values()) and not (cancelled and modality is Modality.LLM):
        return
    streaming = bool(getattr(metrics, "streamed", True))
    attributes = describe(component, component, modality, streaming=streaming)
    tally = Tally(_attribution.current_owner(), attributes, _attribution.current_speech())
    # LiveKit reports an interrupted request as 0/0: it is shown, and was no 0.
    basis = Basis.REPORTED if believed and any(usage.values()) else Basis.ESTIMATED
    tally.stop(Outcome.INTERRUPTED if cancelled else Outcome.SERVED, usage, basis)


def _book_decision(model: Any, metrics: Any) -> None:
    attributes = describe(model, model, Modality.DECISION, streaming=False)
    tally = Tally(_attribution.current_owner(), attributes, _attribution.current_speech())
    served_model = getattr(metrics.metadata, "model_name", None)
    if served_model and served_model != attributes.model:
        tally.served_by(served_model)
    usage = {"requests": 1}
    if metrics.input_tokens:  # some never say
        usage |= {
            "input_tokens": metrics.input_tokens,
            "output_tokens": metrics.output_tokens or 0,
        }
    tally.stop(Outcome.SERVED, usage, Basis.REPORTED)


_EVENTS: Final = "_voicecost_events"


def _book_realtime(session: Any, metrics: Any) -> None:
    """A response, an input transcription, or the time that a session was connected."""
    metadata = getattr(metrics, "metadata", None)
    model = SimpleNamespace(
        model=getattr(metadata, "model_name", None) or "",
        provider=getattr(metadata, "model_provider", None) or "",
        label=metrics.label,
    )
    legs = SessionLegs(session, model, duplex=False)
    connected_ms = milliseconds(getattr(metrics, "session_duration", 0.0) or 0.0)
    if connected_ms > 0:
        _grow(session, legs.attributes, {"connected_ms": connected_ms} | NO_TOKENS)
        return
    events: LiveKitEvents | None = session.__dict__.get(_EVENTS)
    if events is None:
        events = LiveKitEvents(legs)
        session.__dict__[_EVENTS] = events
    events.reported(metrics)


_growing: weakref.WeakKeyDictionary[Any, dict[LegAttributes, Tally]] = weakref.WeakKeyDictionary()


def _grow(component: Any, attributes: LegAttributes, more: Mapping[str, int]) -> None:
    """Book a part of what is one leg for a whole session; nobody tells when that is over."""
    if not any(more.values()):
        return
    owner = _attribution.current_owner()
    of_session = _growing.setdefault(component if owner.session is None else owner.session, {})
    tally = of_session.get(attributes)
    if tally is None:
        tally = of_session[attributes] = Tally(owner, attributes, None)
    usage = {unit: tally.usage.get(unit, 0) + quantity for unit, quantity in more.items()}
    settle(tally, Outcome.SERVED, usage, Basis.REPORTED)


def _tell_of_avatar(metrics: Any) -> None:
    """That it has joined is all that LiveKit says: no leg can be made of it."""
    if metrics.avatar_joined_time is not None:
        meter = _attribution.current_meter()
        if meter is not None:
            meter.gap(AVATAR_WITHOUT_LEG, Modality.AVATAR)

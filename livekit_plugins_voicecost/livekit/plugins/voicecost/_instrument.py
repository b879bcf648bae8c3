"""Puts the meter under every LiveKit provider plugin, once per process; and takes it out again.

Only LiveKit's base classes are touched, at the first `VoiceCost()`: `LLMStream`,
`SynthesizeStream`, `ChunkedStream`, `RecognizeStream` and `STT.recognize` (one leg per attempt);
`RealtimeSession` and `DuplexSession` (one leg per response or connection);
aiohttp's WebSocket client and the OpenAI client (what really is sent and received);
`AgentSession._update_activity`, `AudioRecognition._update_stt` (whose a stream is) and
`_try_recovery` (which attempts are probes).

They are private names, so they are looked for first. Where what a modality needs is gone, its
requests are metered by LiveKit's own metric events instead, and calls are marked `metrics-only`;
where what tells whose a request is or what went over the wire is gone, they are marked `partial`.
Either is said once.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import threading
import time
import types
from collections.abc import Callable, Iterable
from typing import Any, Final

import livekit.agents
from livekit.agents import llm, stt, tts

from voicecost_ledger.records import Coverage

from . import (
    _attribution,
    _instrument_avatar,
    _instrument_callers,
    _instrument_metrics,
    _instrument_services,
    _wire,
    _wire_clients,
    _wire_connections,
    _wire_http,
    _wire_openai,
)
from ._instrument_attempts import observe_runs, probing
from ._instrument_llm import LLMAttempt
from ._instrument_realtime import observe_realtime
from ._instrument_recordings import observe_recordings
from ._instrument_stt import RecognizeAttempt
from ._instrument_tokenizers import observe_tokenizers
from ._instrument_tts import ChunkedAttempt, SynthesizeAttempt
from .log import logger

_lock = threading.Lock()
_undos: list[Callable[[], None]] = []


class _State:
    """What the instrumentation found, and since when it is in place."""

    coverage = Coverage.COMPLETE
    since_unix_s: float | None = None
    by_events: Final[set[type[Any]]] = set()  # components that are booked by LiveKit's events


_state = _State()

# Streams that only call other streams, which are observed themselves.
_DELEGATING: Final = {
    "llm": ("llm.fallback_adapter.FallbackLLMStream",),
    "tts": (
        "tts.fallback_adapter.FallbackSynthesizeStream",
        "tts.fallback_adapter.FallbackChunkedStream",
        "tts.stream_adapter.StreamAdapterWrapper",
        "tts.tts._ChunkedStreamFromStream",
    ),
    "stt": (
        "stt.fallback_adapter.FallbackRecognizeStream",
        "stt.stream_adapter.StreamAdapterWrapper",
        "stt.multi_speaker_adapter.MultiSpeakerAdapterWrapper",
    ),
    "recordings": (
        "stt.fallback_adapter.FallbackAdapter",
        "stt.stream_adapter.StreamAdapter",
        "stt.multi_speaker_adapter.MultiSpeakerAdapter",
    ),
}
_PROBING: Final = (
    "llm.fallback_adapter.FallbackLLMStream",
    "tts.fallback_adapter.FallbackSynthesizeStream",
    "tts.fallback_adapter.FallbackChunkedStream",
    "stt.fallback_adapter.FallbackRecognizeStream",
    "stt.fallback_adapter.FallbackAdapter",
)


def instrument() -> None:
    """Observe every request that is made from now on. Calling it again changes nothing."""
    with _lock:
        if _undos:
            return
        streams_moved = _observe_streams(_undos)
        others_moved = _attribution.find_livekit_names() + _observe_the_rest(_undos)
        if streams_moved:
            _state.coverage = Coverage.METRICS_ONLY
        elif others_moved:
            _state.coverage = Coverage.PARTIAL
        _state.since_unix_s = time.time()
        if streams_moved or others_moved:
            logger.warning(
                "livekit-agents %s is not laid out as voicecost knows it (gone: %s): %s. "
                "Calls are marked coverage=%s; a newer voicecost may know this version.",
                livekit.agents.__version__,
                ", ".join(streams_moved + others_moved),
                "what cannot be observed is metered by LiveKit's metric events, which miss "
                "interrupted requests"
                if streams_moved
                else "requests may be booked to another session's meter or by estimates alone",
                _state.coverage.value,
            )


def uninstrument() -> None:
    """Take everything out again; streams that are running are still observed to their end."""
    with _lock:
        while _undos:
            _undos.pop()()
        _state.coverage = Coverage.COMPLETE
        _state.since_unix_s = None
        _state.by_events.clear()


def coverage() -> Coverage:
    """How much of a call can be seen in this process at best."""
    return _state.coverage


def saw_from(unix_s: float | None) -> bool:
    """Whether everything since `unix_s` (as of `time.time`) was observed; None: nobody knows."""
    since = _state.since_unix_s
    return since is not None and unix_s is not None and since <= unix_s


def _observe_streams(undos: list[Callable[[], None]]) -> list[str]:
    """Observe each kind of stream, or its component's events; returns the names that are gone.

    Where one kind of a component's streams has moved, all of them are booked by its events, which
    would count the others a second time.
    """
    tts_span, llm_span = "_tts_attempt_span_name", "_llm_attempt_span_name"
    kinds: tuple[tuple[type[Any], type[Any], type[Any], str, str, tuple[str, ...]], ...] = (
        (llm.LLMStream, LLMAttempt, llm.LLM, "llm", llm_span,
         ("_chat_ctx", "_tools", "_event_ch", "_llm")),
        (tts.SynthesizeStream, SynthesizeAttempt, tts.TTS, "tts", tts_span,
         ("_input_ch", "_tts")),
        (tts.ChunkedStream, ChunkedAttempt, tts.TTS, "tts", tts_span,
         ("_input_text", "_tts")),
        (stt.RecognizeStream, RecognizeAttempt, stt.STT, "stt", "",
         ("_input_ch", "_event_ch", "_stt")),
    )  # fmt: skip
    moved: list[str] = []
    for stream_class, _, component_class, _, _, needed in kinds:
        gone = missing_names(stream_class, needed)
        moved += [f"{stream_class.__name__}.{name}" for name in gone]
        if gone and component_class not in _state.by_events:
            _state.by_events.add(component_class)
            undos.append(_instrument_metrics.observe_events(component_class))
    for stream_class, attempt_class, component_class, kind, span_name, _ in kinds:
        if component_class in _state.by_events:
            continue
        delegating = _classes(_DELEGATING[kind])
        undos.append(
            observe_runs(stream_class, attempt_class, delegating=delegating, span_name=span_name)
        )
    return moved


def _observe_the_rest(undos: list[Callable[[], None]]) -> list[str]:
    """Observe the wire, the sessions and the probes; returns what of it is gone."""
    from livekit.agents.voice import agent_session, audio_recognition

    observers: list[tuple[str, Callable[[], Callable[[], None]]]] = [
        ("STT._recognize_impl", _observe_recordings),
        ("aiohttp.ClientWebSocketResponse", _wire.observe_websockets),
        ("aiohttp.ClientSession._request", _wire.observe_requests),
        ("livekit.agents.tokenize", observe_tokenizers),
        ("aiohttp.ClientWebSocketResponse", _wire_connections.observe_connections),
        ("openai.AsyncOpenAI.chat", _wire_openai.observe_openai_clients),
        ("llm.RealtimeSession", observe_realtime),
        ("the clients of other models", _wire_clients.observe_clients),
        ("aiohttp.ClientSession", _wire_http.observe_http),
        ("AMD", _instrument_callers.observe_callers),
        ("AvatarSession", _instrument_avatar.observe_avatars),
        ("DecisionModel._evaluate_impl", _instrument_services.observe_decisions),
        ("TurnDetector's streams", _instrument_services.observe_turn_detectors),
        ("VADStream._metrics_monitor_task", _instrument_services.observe_local_vads),
        (
            "AdaptiveInterruptionDetector's streams",
            _instrument_services.observe_interruption_detectors,
        ),
        (
            "AgentSession._update_activity",
            functools.partial(_observe_activity_changes, agent_session.AgentSession),
        ),
        (
            "AudioRecognition._update_stt",
            functools.partial(_observe_stt_changes, audio_recognition.AudioRecognition),
        ),
    ]
    for fallback_class in _classes(_PROBING):
        name = f"{fallback_class.__name__}._try_recovery"
        observers.append((name, functools.partial(_observe_recovery, fallback_class)))
    moved: list[str] = []
    for name, observe in observers:
        try:
            undos.append(observe())
        except Exception:  # whatever it is: this version is not the one that was instrumented
            moved.append(name)
    return moved


def _observe_recordings() -> Callable[[], None]:
    """Observe whole recordings, unless LiveKit's events count them; returns the undo."""
    if stt.STT in _state.by_events:
        return lambda: None
    if not hasattr(stt.STT, "_recognize_impl"):
        raise AttributeError("STT._recognize_impl")
    return observe_recordings(stt.STT, delegating=_classes(_DELEGATING["recordings"]))


def missing_names(stream_class: type[Any], needed: Iterable[str]) -> list[str]:
    """Which of the private names that an attempt reads this class no longer has.

    Instance attributes are looked for in the code of `__init__`, which sets them.
    """
    gone = [] if _runs(stream_class) else ["_run"]
    init: Any = stream_class.__init__
    code = getattr(getattr(init, "__wrapped__", init), "__code__", None)
    names = code.co_names if code is not None else ()
    return gone + [name for name in needed if name not in names]


def _runs(stream_class: type[Any]) -> bool:
    """Whether an attempt still is a call of `_run`, as far as the code of `_main_task` tells."""
    if not hasattr(stream_class, "_run"):
        return False
    main_task: Any = getattr(stream_class, "_main_task", None)
    if main_task is None:
        return True  # nobody can tell
    codes: list[types.CodeType] = [inspect.unwrap(main_task).__code__]
    while codes:
        code = codes.pop()
        if "_run" in code.co_names:
            return True
        codes += [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return False


def _observe_activity_changes(session_class: Any) -> Callable[[], None]:
    """Streams born while a session changes its activity are that session's."""
    update_activity = session_class._update_activity

    @functools.wraps(update_activity)
    async def observed_update_activity(self: Any, *args: Any, **kwargs: Any) -> Any:
        token = _attribution.enter_change(self)
        try:
            return await update_activity(self, *args, **kwargs)
        finally:
            _attribution.leave_change(token)

    session_class._update_activity = observed_update_activity

    def undo() -> None:
        session_class._update_activity = update_activity

    return undo


def _observe_stt_changes(recognition_class: Any) -> Callable[[], None]:
    """A stream born while a session changes its STT is that session's."""
    name = "update_stt" if hasattr(recognition_class, "update_stt") else "_update_stt"  # from 1.6
    update_stt = getattr(recognition_class, name)

    @functools.wraps(update_stt)
    def observed_update_stt(self: Any, *args: Any, **kwargs: Any) -> Any:
        token = _attribution.enter_change(getattr(self, "_session", None))
        try:
            return update_stt(self, *args, **kwargs)
        finally:
            _attribution.leave_change(token)

    setattr(recognition_class, name, observed_update_stt)

    def undo() -> None:
        setattr(recognition_class, name, update_stt)

    return undo


def _observe_recovery(fallback_class: Any) -> Callable[[], None]:
    """What a FallbackAdapter requests to see whether a provider is back is a probe."""
    try_recovery = fallback_class._try_recovery

    @functools.wraps(try_recovery)
    def observed_try_recovery(self: Any, *args: Any, **kwargs: Any) -> Any:
        token = probing.set(True)
        try:
            return try_recovery(self, *args, **kwargs)
        finally:
            probing.reset(token)

    fallback_class._try_recovery = observed_try_recovery

    def undo() -> None:
        fallback_class._try_recovery = try_recovery

    return undo


def _classes(names: Iterable[str]) -> tuple[type[Any], ...]:
    """The classes of livekit.agents by these names; one that is gone delegates nothing."""
    found: list[type[Any]] = []
    for name in names:
        module_name, _, class_name = name.rpartition(".")
        try:
            module = importlib.import_module(f"livekit.agents.{module_name}")
        except ImportError:
            continue
        found_class = getattr(module, class_name, None)
        if isinstance(found_class, type):
            found.append(found_class)
    return tuple(found)

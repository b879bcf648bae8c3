"""Puts the meter under every LiveKit provider plugin, once per process; and takes it out again.

Only LiveKit's base classes are touched, at the first `VoiceCost()`: `LLMStream`,
`SynthesizeStream`, `ChunkedStream`, `RecognizeStream` and `STT.recognize` (one leg per attempt);
aiohttp's WebSocket client and the OpenAI client (what really is sent and received);
`AgentSession._update_activity`, `AudioRecognition._update_stt` (whose a stream is) and
`_try_recovery` (which attempts are probes).

They are private names, so they are looked for first. Where what a modality needs is gone, its
requests are metered by LiveKit's own metric events instead: said once, and calls are marked
`metrics-only`.
"""

from __future__ import annotations

import functools
import importlib
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import livekit.agents
from livekit.agents import llm, stt, tts

from . import _attribution, _faults, _instrument_metrics, _wire
from ._instrument_attempts import observe_runs, probing
from ._instrument_llm import LLMAttempt
from ._instrument_stt import RecognizeAttempt, observe_recordings
from ._instrument_tts import ChunkedAttempt, SynthesizeAttempt
from .log import logger

_lock = threading.Lock()
_undos: list[Callable[[], None]] = []


class _State:
    """What the instrumentation found, and since when it is in place."""

    metrics_only = False
    since_unix_s: float | None = None


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
        livekit_variables = _attribution.find_livekit_variables()
        moved = _observe_streams(_undos)
        if not livekit_variables:
            moved.append("_AgentActivityContextVar")
        for observe in (
            _wire.observe_websockets,
            _wire.observe_openai_clients,
            _observe_session_changes,
            _observe_probes,
        ):
            try:
                _undos.append(observe())
            except Exception as error:
                _faults.count(observe.__name__.strip("_"), error)
        _state.metrics_only = bool(moved)
        _state.since_unix_s = time.time()
        if moved:
            logger.warning(
                "livekit-agents %s is not laid out as voicecost knows it (%s): what cannot be "
                "observed is metered by LiveKit's metric events, which miss interrupted requests. "
                "Calls are marked coverage=metrics-only; a newer voicecost may know this version.",
                livekit.agents.__version__,
                ", ".join(moved),
            )


def uninstrument() -> None:
    """Take everything out again; streams that are running are still observed to their end."""
    with _lock:
        while _undos:
            _undos.pop()()
        _state.metrics_only = False
        _state.since_unix_s = None


def metrics_only() -> bool:
    """Whether some requests of this process are seen only through LiveKit's metric events."""
    return _state.metrics_only


def saw_from(unix_s: float | None) -> bool:
    """Whether everything since `unix_s` (as of `time.time`) was observed; None: nobody knows."""
    since = _state.since_unix_s
    return since is not None and unix_s is not None and since <= unix_s


def _observe_streams(undos: list[Callable[[], None]]) -> list[str]:
    """Observe each kind of stream, or its component's events; returns the names that are gone."""
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
    by_events: set[type[Any]] = set()
    for stream_class, attempt_class, component_class, kind, span_name, needed in kinds:
        gone = missing_names(stream_class, needed)
        if gone:
            moved += [f"{stream_class.__name__}.{name}" for name in gone]
            if component_class not in by_events:
                by_events.add(component_class)
                undos.append(_instrument_metrics.observe_events(component_class))
            continue
        delegating = _classes(_DELEGATING[kind])
        undos.append(
            observe_runs(stream_class, attempt_class, delegating=delegating, span_name=span_name)
        )
    if hasattr(stt.STT, "_recognize_impl") and stt.STT not in by_events:
        recordings = _classes(_DELEGATING["recordings"])
        undos.append(observe_recordings(stt.STT, delegating=recordings))
    return moved


def missing_names(stream_class: type[Any], needed: Iterable[str]) -> list[str]:
    """Which of the private names that an attempt reads this class no longer has.

    Instance attributes are looked for in the code of `__init__`, which sets them.
    """
    gone = [] if hasattr(stream_class, "_run") else ["_run"]
    init: Any = stream_class.__init__
    code = getattr(getattr(init, "__wrapped__", init), "__code__", None)
    names = code.co_names if code is not None else ()
    return gone + [name for name in needed if name not in names]


def _observe_session_changes() -> Callable[[], None]:
    """Streams born while a session changes its activity or STT are that session's."""
    from livekit.agents.voice import agent_session, audio_recognition

    session_class: Any = agent_session.AgentSession
    recognition_class: Any = audio_recognition.AudioRecognition
    update_activity = session_class._update_activity
    update_stt = recognition_class._update_stt

    @functools.wraps(update_activity)
    async def observed_update_activity(self: Any, *args: Any, **kwargs: Any) -> Any:
        token = _attribution.enter_change(self)
        try:
            return await update_activity(self, *args, **kwargs)
        finally:
            _attribution.leave_change(token)

    @functools.wraps(update_stt)
    def observed_update_stt(self: Any, *args: Any, **kwargs: Any) -> Any:
        token = _attribution.enter_change(self._session)
        try:
            return update_stt(self, *args, **kwargs)
        finally:
            _attribution.leave_change(token)

    session_class._update_activity = observed_update_activity
    recognition_class._update_stt = observed_update_stt

    def undo() -> None:
        session_class._update_activity = update_activity
        recognition_class._update_stt = update_stt

    return undo


def _observe_probes() -> Callable[[], None]:
    """What a FallbackAdapter requests to see whether a provider is back is a probe."""
    undos: list[Callable[[], None]] = []
    for fallback_class in _classes(_PROBING):
        if hasattr(fallback_class, "_try_recovery"):
            undos.append(_observe_recovery(fallback_class))

    def undo() -> None:
        for each in undos:
            each()

    return undo


def _observe_recovery(fallback_class: Any) -> Callable[[], None]:
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

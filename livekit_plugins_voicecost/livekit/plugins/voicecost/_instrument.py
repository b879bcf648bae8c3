"""Puts the meter under every LiveKit provider plugin, once per process; and takes it out again.

Only LiveKit's base classes are touched, at the first `VoiceCost()`: `LLMStream`,
`SynthesizeStream`, `ChunkedStream`, `RecognizeStream` and `STT.recognize` (one leg per attempt);
`RealtimeSession` and `DuplexSession` (one leg per response or connection);
aiohttp's WebSocket client and the OpenAI client (what really is sent and received);
`AgentSession._update_activity`, `AudioRecognition._update_stt` (whose a stream is) and
`_try_recovery` (which attempts are probes).

They are private names, so they are looked for first. Where what a service needs is gone, its
requests are metered by LiveKit's own metric events instead, and calls are marked `metrics-only`;
where there are no such events, or what tells whose a request is or what went over the wire is
gone, they are marked `partial`. Either is said once.
"""

from __future__ import annotations

import functools
import importlib
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

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
from ._instrument_attempts import Attempt, observe_runs, probing
from ._instrument_llm import LLMAttempt
from ._instrument_metrics import Service
from ._instrument_realtime import observe_duplex_audio, observe_realtime
from ._instrument_recordings import observe_recordings
from ._instrument_stt import RecognizeAttempt
from ._instrument_tokenizers import observe_tokenizers
from ._instrument_tts import ChunkedAttempt, SynthesizeAttempt
from ._livekit import Moved, require
from .log import logger

_lock = threading.Lock()
_undos: list[Callable[[], None]] = []


class _State:
    """What the instrumentation found, and since when it is in place."""

    coverage = Coverage.COMPLETE
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
        moved = _Moved()
        moved.names += _attribution.find_livekit_names()
        moved.strays = bool(moved.names)
        for surface in _surfaces():
            try:
                _undos.append(surface.observe())
            except Exception as error:  # whatever it is: this version is not the one we know
                moved.add(surface, error)
        if moved.by_events:
            _undos.append(_instrument_metrics.observe_events(moved.by_events))
        _state.coverage = moved.coverage()
        _state.since_unix_s = time.time()
        if moved.names:
            logger.warning(
                "livekit-agents %s is not laid out as voicecost knows it (gone: %s): %s. "
                "Calls are marked coverage=%s; a newer voicecost may know this version.",
                livekit.agents.__version__,
                ", ".join(moved.names),
                "; ".join(moved.consequences()),
                _state.coverage.value,
            )


def uninstrument() -> None:
    """Take everything out again; streams that are running are still observed to their end."""
    with _lock:
        while _undos:
            _undos.pop()()
        _state.coverage = Coverage.COMPLETE
        _state.since_unix_s = None


def coverage() -> Coverage:
    """How much of a call can be seen in this process at best."""
    return _state.coverage


def saw_from(unix_s: float | None) -> bool:
    """Whether everything since `unix_s` (as of `time.time`) was observed; None: nobody knows."""
    since = _state.since_unix_s
    return since is not None and unix_s is not None and since <= unix_s


class _Surface(NamedTuple):
    """Something of LiveKit's that is observed, as long as it is where we know it."""

    name: str  # what is said to be gone where `observe` cannot tell
    observe: Callable[[], Callable[[], None]]  # gives the undo
    service: Service | None = None  # of which nothing else is seen, but its metric events


class _Moved:
    """What is not where we know it, and what that means."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.by_events: set[Service] = set()
        self.strays = False  # whether requests are seen, but not well

    def add(self, surface: _Surface, error: Exception) -> None:
        self.names += error.args if isinstance(error, Moved) else [surface.name]
        if surface.service is not None:
            self.by_events.add(surface.service)
        else:
            self.strays = True

    def coverage(self) -> Coverage:
        if self.by_events - {Service.AVATARS}:
            return Coverage.METRICS_ONLY
        return Coverage.PARTIAL if self.names else Coverage.COMPLETE

    def consequences(self) -> Iterable[str]:
        counted = [each.value for each in Service if each in self.by_events - {Service.AVATARS}]
        if counted:
            yield (
                f"{', '.join(counted)}: metered by LiveKit's metric events, which miss "
                "interrupted requests"
            )
        if Service.AVATARS in self.by_events:
            yield "avatars: not metered, a gap for each that joins"
        if self.strays:
            yield "requests may be booked to another session's meter or by estimates alone"


def _surfaces() -> list[_Surface]:
    """All that is observed: streams, requests that are no stream, the wire, sessions, probes."""
    from livekit.agents.voice import agent_session, audio_recognition

    observe = functools.partial
    tts_span, llm_span = "_tts_attempt_span_name", "_llm_attempt_span_name"
    return [
        _stream(llm.LLMStream, LLMAttempt, Service.LLM, "llm", llm_span,
                ("_chat_ctx", "_tools", "_event_ch", "_llm")),
        _stream(tts.SynthesizeStream, SynthesizeAttempt, Service.TTS, "tts", tts_span,
                ("_input_ch", "_tts")),
        _stream(tts.ChunkedStream, ChunkedAttempt, Service.TTS_OF_TEXTS, "tts", tts_span,
                ("_input_text", "_tts")),
        _stream(stt.RecognizeStream, RecognizeAttempt, Service.STT, "stt", "",
                ("_input_ch", "_event_ch", "_stt")),
        _Surface("STT.recognize", _observe_recordings, Service.RECORDINGS),
        _Surface("llm.RealtimeSession", observe_realtime, Service.REALTIME),
        _Surface(
            "DecisionModel.evaluate", _instrument_services.observe_decisions, Service.DECISIONS
        ),
        _Surface("AvatarSession", _instrument_avatar.observe_avatars, Service.AVATARS),
        _Surface(
            "TurnDetector's streams", _instrument_services.observe_turn_detectors, Service.TURNS
        ),
        _Surface(
            "AdaptiveInterruptionDetector's streams",
            _instrument_services.observe_interruption_detectors,
            Service.INTERRUPTIONS,
        ),
        _Surface("EOUModelBase", _instrument_services.observe_text_turn_detectors),
        _Surface("VADStream", _instrument_services.observe_local_vads, Service.VADS),
        _Surface("DuplexRealtimeAdapter's sessions", observe_duplex_audio),
        _Surface("aiohttp.ClientWebSocketResponse", _wire.observe_websockets),
        _Surface("aiohttp.ClientSession._request", _wire.observe_requests),
        _Surface("livekit.agents.tokenize", observe_tokenizers),
        _Surface("aiohttp.ClientWebSocketResponse", _wire_connections.observe_connections),
        _Surface("openai.AsyncOpenAI.chat", _wire_openai.observe_openai_clients),
        _Surface("the clients of other models", _wire_clients.observe_clients),
        _Surface("aiohttp.ClientSession", _wire_http.observe_http),
        _Surface("AMD", _instrument_callers.observe_callers),
        _Surface(
            "AgentSession._update_activity",
            observe(_observe_activity_changes, agent_session.AgentSession),
        ),
        _Surface(
            "AudioRecognition._update_stt",
            observe(_observe_stt_changes, audio_recognition.AudioRecognition),
        ),
        *(
            _Surface(f"{each.__name__}._try_recovery", observe(_observe_recovery, each))
            for each in _classes(_PROBING)
        ),
    ]  # fmt: skip


def _stream(
    stream_class: type[Any],
    attempt_class: type[Attempt],
    service: Service,
    kind: str,
    span_name: str,
    needed: tuple[str, ...],
) -> _Surface:
    def observe() -> Callable[[], None]:
        require(stream_class, sets=needed, calls={"_main_task": "_run"})
        delegating = _classes(_DELEGATING[kind])
        return observe_runs(stream_class, attempt_class, delegating=delegating, span_name=span_name)

    return _Surface(stream_class.__name__, observe, service)


def _observe_recordings() -> Callable[[], None]:
    return observe_recordings(stt.STT, delegating=_classes(_DELEGATING["recordings"]))


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

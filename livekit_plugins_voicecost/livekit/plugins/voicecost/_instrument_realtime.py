"""Puts the meter under LiveKit's realtime and duplex sessions.

`RealtimeSession` and `DuplexSession` are the base classes of every such plugin. A session is
watched from its `__init__`, where it is known whose it is, by shadows on the instance: of `emit`,
for the provider's raw events where the plugin passes them on, and LiveKit's own otherwise; of
`push_audio` and `generate_reply`, so that nothing is asked for when the money is gone; of `aclose`,
which ends the legs; and, where a plugin has them, of the methods that hold the connection.

Sessions that only pass on to another one (of `RealtimeModelFallbackAdapter`, and of
`DuplexRealtimeAdapter`) are left alone: the inner ones are observed.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
from collections.abc import Callable
from typing import Any, Final

from aiohttp import WSMsgType
from livekit.agents import llm

from voicecost_ledger.records import Outcome

from . import _attribution, _faults
from ._faults import contained
from ._livekit import require
from ._realtime_events import LiveKitEvents
from ._realtime_google import GoogleLive, observe_connection
from ._realtime_live import GPTLive
from ._realtime_openai import OpenAIRealtime
from ._realtime_session import SessionLegs

_WATCHED: Final = "_voicecost_watched"
_DELEGATING: Final = frozenset({"_FallbackRealtimeSession", "_DuplexRealtimeSession"})
_GOOGLE: Final = "livekit.plugins.google"
_RAW_SENT: Final = "openai_client_event_queued"
_RAW_RECEIVED: Final = "openai_server_event_received"


def observe_realtime() -> Callable[[], None]:
    """Observe every realtime and duplex session that is made from now on; returns the undo."""
    session_class: Any = llm.RealtimeSession
    duplex: Any = getattr(llm, "DuplexSession", None)  # not in older versions
    methods = ("emit", "push_audio", "aclose")
    require(session_class, has=(*methods, "generate_reply"), sets=("_realtime_model",))
    if duplex is not None:
        require(duplex, has=methods, sets=("_duplex_model",))
    undos = [_observe_sessions(session_class, duplex=False)]
    if duplex is not None:
        undos.append(_observe_sessions(duplex, duplex=True))

    def undo() -> None:
        for each in undos:
            each()

    return undo


def _observe_sessions(session_class: Any, *, duplex: bool) -> Callable[[], None]:
    init = session_class.__init__

    @functools.wraps(init)
    def observed_init(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if type(self).__name__ not in _DELEGATING:
            with contained("realtime_session"):
                model = self._duplex_model if duplex else self._realtime_model
                watched = _Watched(self, model, duplex=duplex)
                watched.shadow(self)
                self.__dict__[_WATCHED] = watched

    session_class.__init__ = observed_init

    def undo() -> None:
        session_class.__init__ = init

    return undo


def observe_duplex_audio() -> Callable[[], None]:
    """Count what duplex models say, where LiveKit takes it from them; returns the undo."""
    if not hasattr(llm, "DuplexSession"):
        return _nothing
    from livekit.agents.llm import duplex_adapter

    untyped: Any = duplex_adapter  # its name is private
    adapter_class = untyped._DuplexRealtimeSession
    require(adapter_class, has=("_on_audio_frame",))
    take = adapter_class._on_audio_frame

    @functools.wraps(take)
    def observed_take(self: Any, audio: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            watched: _Watched | None = self.duplex_session.__dict__.get(_WATCHED)
            if watched is not None and watched.raw is None:
                watched.legs.spoke(audio.frame)
                watched.alive()
        except Exception as error:
            _faults.count("realtime_audio", error)
        return take(self, audio, *args, **kwargs)

    adapter_class._on_audio_frame = observed_take

    def undo() -> None:
        adapter_class._on_audio_frame = take

    return undo


class _Watched:
    """One session, its legs, and who follows its events."""

    def __init__(self, session: Any, model: Any, *, duplex: bool) -> None:
        self.legs = SessionLegs(session, model, duplex=duplex)
        self.events = LiveKitEvents(self.legs)
        self.raw: OpenAIRealtime | GPTLive | None = None
        self.google: GoogleLive | None = None
        self.legs.protocol = self.events
        self._asked: Any = None  # the SpeechHandle for which a response was asked last

    # ---- what it emits ---------------------------------------------------------------------------

    def emitted(self, event: Any, args: tuple[Any, ...]) -> None:
        """Any event but `generation_created`, before others hear of it."""
        if event == _RAW_RECEIVED:
            self._protocol().received(args[0])
        elif event == _RAW_SENT:
            self._protocol().sent(args[0])
        elif event == "metrics_collected":
            if getattr(args[0], "acquire_time", 0.0) and not getattr(args[0], "total_tokens", 0):
                self.legs.connected()
            elif self.raw is None and self.google is None:
                self.events.reported(args[0])

    def _pass_on(self, emit: Callable[[], None], event: Any) -> None:
        """LiveKit passes a response on, and makes a speech of it or gives it to one."""
        speeches: list[Any] = []
        stop_listening = self._speeches_to(speeches)
        try:
            emit()
        finally:
            with contained("realtime_event"):
                stop_listening()
                asked = self._asked if event.user_initiated else None
                speech = speeches[0] if speeches else asked
                if self.legs.protocol is not None:
                    self.legs.protocol.response_created(event.response_id or "", speech)

    def _speeches_to(self, speeches: list[Any]) -> Callable[[], None]:
        """Collect the speeches that the session makes until the returned function is called."""
        session: Any = self.legs.owner.session
        if session is None:
            return _nothing

        def made(event: Any) -> None:
            speeches.append(event.speech_handle)

        with contained("realtime_event"):
            session.on("speech_created", made)
            return functools.partial(session.off, "speech_created", made)
        return _nothing

    def alive(self) -> None:
        """A duplex model without a known protocol is connected, or it would not be talked to."""
        if self.legs.duplex and self.raw is None and not self.legs.closing:
            self.legs.connection_leg()

    def _protocol(self) -> OpenAIRealtime | GPTLive:
        if self.raw is None:
            self.raw = GPTLive(self.legs) if self.legs.duplex else OpenAIRealtime(self.legs)
            self.legs.protocol = self.raw
        return self.raw

    # ---- what is asked of it ---------------------------------------------------------------------

    def shadow(self, session: Any) -> None:
        """Stand before the session's own methods."""
        emit, push_audio, aclose = session.emit, session.push_audio, session.aclose

        @functools.wraps(emit)
        def observed_emit(event: Any, *args: Any) -> None:
            if event == "generation_created":
                self._pass_on(functools.partial(emit, event, *args), args[0])
                return
            try:
                self.emitted(event, args)
            except Exception as error:
                _faults.count("realtime_event", error)
            emit(event, *args)

        @functools.wraps(push_audio)
        def observed_push_audio(frame: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                if self.legs.must_end():
                    return None  # what is not heard is neither transcribed nor answered
                self.legs.heard(frame)
                self.alive()
            except Exception as error:
                _faults.count("realtime_audio", error)
            return push_audio(frame, *args, **kwargs)

        @functools.wraps(aclose)
        async def observed_aclose(*args: Any, **kwargs: Any) -> Any:
            self.legs.closing = True
            try:
                return await aclose(*args, **kwargs)
            finally:
                with contained("realtime_close"):
                    self._closed()

        session.emit = observed_emit
        session.push_audio = observed_push_audio
        session.aclose = observed_aclose
        for name in ("generate_reply", "say"):
            if hasattr(session, name):
                setattr(session, name, self._asking(getattr(session, name)))
        for name, observe in (("_create_ws_conn", self._connecting), ("_run_ws", self._running)):
            if inspect.iscoroutinefunction(getattr(session, name, None)):
                setattr(session, name, observe(getattr(session, name)))
        tasks = {name: getattr(session, name, None) for name in ("_send_task", "_recv_task")}
        of_google = any(each.__module__.startswith(_GOOGLE) for each in type(session).__mro__)
        if of_google and all(map(inspect.iscoroutinefunction, tasks.values())):
            self.google = self.legs.protocol = GoogleLive(self.legs)
            for name, run in tasks.items():
                observed = self._on_google(run, self.google, receives=name == "_recv_task")
                setattr(session, name, observed)

    def _asking(self, ask: Callable[..., asyncio.Future[Any]]) -> Callable[..., Any]:
        @functools.wraps(ask)
        def observed_ask(*args: Any, **kwargs: Any) -> asyncio.Future[Any]:
            refusal = None
            with contained("realtime_reply"):
                refusal = self.legs.refusal()
                # Before it is asked: some sessions answer at once.
                self._asked = _attribution.current_speech()
            if refusal is not None:
                return refusal
            future = ask(*args, **kwargs)
            with contained("realtime_reply"):
                if self.legs.protocol is not None:
                    self.legs.protocol.reply_asked(future, self._asked)
            return future

        return observed_ask

    def _connecting(self, connect: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(connect)
        async def observed_connect(*args: Any, **kwargs: Any) -> Any:
            websocket = await connect(*args, **kwargs)
            with contained("realtime_connection"):
                websocket._reader = _Reader(websocket._reader, self._unheard)
            return websocket

        return observed_connect

    def _running(self, run: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(run)
        async def observed_run(*args: Any, **kwargs: Any) -> Any:
            outcome = Outcome.INTERRUPTED
            try:
                return await run(*args, **kwargs)
            except Exception:
                outcome = Outcome.INTERRUPTED if self.legs.closing else Outcome.FAILED
                raise
            finally:
                with contained("realtime_connection"):
                    if self.raw is not None:
                        self.raw.disconnected(outcome)
                    served = outcome is Outcome.INTERRUPTED  # the connection did what it was for
                    self.legs.disconnected(Outcome.SERVED if served else outcome)

        return observed_run

    def _on_google(self, run: Any, google: GoogleLive, *, receives: bool) -> Callable[..., Any]:
        """Both of the plugin's tasks are given the connection; whichever is first shows it."""

        @functools.wraps(run)
        async def observed_run(connection: Any, *args: Any, **kwargs: Any) -> Any:
            with contained("realtime_connection"):
                if "_receive" not in connection.__dict__:
                    observe_connection(self.legs.session, connection, google)
            try:
                return await run(connection, *args, **kwargs)
            finally:
                if receives:
                    with contained("realtime_connection"):
                        failed = getattr(self.legs.session, "_session_error", None) is not None
                        google.disconnected(Outcome.FAILED if failed else Outcome.INTERRUPTED)
                        self.legs.disconnected(Outcome.FAILED if failed else Outcome.SERVED)

        return observed_run

    def _unheard(self, text: str) -> None:
        """A message arrived while the session closes: the plugin drops it without a word."""
        if self.legs.closing and isinstance(self.raw, OpenAIRealtime):
            self.raw.received(json.loads(text))

    def _closed(self) -> None:
        if self.raw is not None:
            self.raw.closed()
        if self.google is not None:
            self.google.closed()
        self.events.closed()
        self.legs.disconnected(Outcome.SERVED)


class _Reader:
    """A WebSocket's queue of messages, each shown before it is taken, also by `close`."""

    def __init__(self, reader: Any, show: Callable[[str], None]) -> None:
        self._reader = reader
        self._show = show

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    async def read(self) -> Any:
        message = await self._reader.read()
        if message.type is WSMsgType.TEXT:
            try:
                self._show(message.data)
            except Exception as error:
                _faults.count("realtime_message", error)
        return message


def _nothing() -> None:
    pass

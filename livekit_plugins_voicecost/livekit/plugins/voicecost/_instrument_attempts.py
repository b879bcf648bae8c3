"""An attempt of a request, observed: what LLM, TTS and STT streams have in common.

A `Tally` is what one leg has used so far. It becomes a `Leg` with the first record for which its
owner has a meter, so what is seen before `attach` is adopted. An `Attempt` is one run of a
stream's `_run`: it fills tallies and knows how the run ended, and how to end it when the money is
gone. Nothing here lets an exception of ours out; cancellation passes through untouched.
"""

from __future__ import annotations

import asyncio
import functools
import weakref
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextvars import ContextVar
from typing import Any, Final, cast

from livekit.agents import AgentSession, APIError, APIStatusError, llm, stt, tts

from voicecost_ledger.records import LegAttributes, Modality, Outcome

from . import _attribution, _faults, _wire
from ._tally import Tally as Tally  # who observes imports it from here
from ._wire_answers import AnswerObserver
from ._wire_http import HttpObserver, observe_loaded

UNMETERED_REQUEST: Final = "unmetered_request"
CLIENT_CLOSED: Final = 499
"""LiveKit's own "client closed request": no retry, no failover, no probe follows it."""

probing: ContextVar[bool] = ContextVar("voicecost_probing", default=False)
"""Set while a FallbackAdapter starts a recovery probe, and so in everything the probe does."""


class Attempt(HttpObserver):
    """One run of a stream's `_run`. Subclasses say what it uses; see `observe_runs`.

    Args:
        stream: LiveKit's stream.
        owner: Whose it is, found when the stream was made.
        speech: The SpeechHandle of that moment.
        probe: Whether a FallbackAdapter only checks if the provider is back.
    """

    modality: Modality
    cancelled_outcome = Outcome.INTERRUPTED

    def __init__(self, stream: Any, *, owner: _attribution.Owner, speech: Any, probe: bool) -> None:
        self.stream = stream
        self.owner = owner
        self.speech = speech
        self.probe = probe
        self.cut = False
        self._tallies: list[Tally] = []
        self._delegates = False
        self._asked_another = False
        self._requests_itself = False
        self._http_requests = 0
        self._task = asyncio.current_task()
        self._task_cancelled = False
        observe_loaded()
        around = _wire.observer()
        if isinstance(around, Attempt) and around.wraps(self.modality):
            around.delegates()

    # What subclasses say

    def begin(self, *args: Any) -> None:
        """The run starts, with `_run`'s own arguments, by whichever names they were given.

        Ends the attempt with `end_for_budget`.
        """

    def finish(self, outcome: Outcome, error: BaseException | None) -> None:
        """The run is over."""
        raise NotImplementedError

    # What the wire shows; see `_wire.WireObserver`

    def text_sending(self, connection: object, payload: str) -> None:
        """Nothing by default."""

    def bytes_sending(self, connection: object, payload: bytes | bytearray | memoryview) -> None:
        """Nothing by default."""

    def answer_observed(self) -> AnswerObserver | None:
        """Nobody by default."""
        return None

    def wraps(self, modality: Modality) -> bool:
        """Whether a request of this kind inside the run is what the run itself stands for."""
        return modality is self.modality

    # The rest is the same for all

    def end_for_budget(self) -> None:
        """End the run: the money is gone.

        Raises:
            CancelledError: Always, so that what was about to be sent is not. The run's own task
                is cancelled too when this is a task that it started.
        """
        self.cut = True
        if self._task is not None and asyncio.current_task() is not self._task:
            self._task_cancelled = self._task.cancel() or self._task_cancelled
        raise asyncio.CancelledError("voicecost: the budget is used up")

    def ended_by_us(self) -> bool:
        """Whether a cancellation that arrived is our own, and only ours; takes it back if so."""
        if not self.cut or self._task is None:
            return False
        if self._task_cancelled:
            self._task_cancelled = False
            return self._task.uncancel() == 0
        return self._task.cancelling() == 0

    def tally(self, attributes: LegAttributes) -> Tally:
        """A new leg of this attempt."""
        tally = Tally(self.owner, attributes, self.speech)
        tally.heard_by_livekit = has_listeners(self.stream)
        if not self._delegates:
            self._tallies.append(tally)
            # As long as it does: a router's every request would be a leg that used nothing.
            self._delegates = not self._requests_itself and _holds_another(self.stream)
        if self._delegates:
            tally.withdraw()
        return tally

    def overheard(self, attributes: LegAttributes, counts: Mapping[str, int]) -> None:
        """Tell other sessions that use the same component: LiveKit counts this for them too."""
        own = self.owner.meter()
        for listener in _listeners(self.stream):  # mostly methods of the sessions' activities
            session: Any = getattr(getattr(listener, "__self__", None), "_session", None)
            meter = _attribution.meter_of(session) if isinstance(session, _SESSION) else None
            if meter is not None and meter is not own:
                meter.overheard(attributes, counts)

    def delegates(self) -> None:
        """This run makes a request of another stream, which is observed itself.

        So does a router or a guardrail around another plugin: what went through it is billed once.
        """
        self._asked_another = True
        if not self._requests_itself:
            self._delegates = True
            for tally in self._tallies:
                tally.withdraw()

    def was_presumed_to_delegate(self) -> bool:
        """Whether it holds another plugin, and has asked nobody in this run."""
        return self._delegates and not self._asked_another

    def requests_itself(self) -> None:
        """A request of its own was seen on the wire, whatever else it asks others for."""
        self._requests_itself = True
        if self._delegates:
            self._delegates = False
            for tally in self._tallies:
                tally.restore()

    def http_sending(self) -> None:
        """Count a request that it makes itself, in whichever protocol."""
        self._http_requests += 1

    def usage_told(self) -> None:
        """What it has requested so far is booked by `record_usage`."""
        self._http_requests = 0

    def tell_unmetered(self) -> None:
        """Show a request of its own that could not be read, beside those it left to others."""
        if self._delegates and self._http_requests:
            meter = self.owner.meter()
            if meter is not None:
                meter.gap(UNMETERED_REQUEST, self.modality)

    def stop_as_known(self, outcome: Outcome) -> None:
        """Close what a fault of ours has left open, with what was recorded last."""
        for tally in self._tallies:
            try:
                tally.stop(outcome)
            except Exception as fault:
                _faults.count("finish_attempt", fault)

    def must_end(self) -> bool:
        """Whether the money is gone for good, not only for this moment."""
        meter = self.owner.meter()
        return meter is not None and meter.cut

    def outcome_of(self, outcome: Outcome, tally: Tally) -> Outcome:
        """What became of a leg, given how its run ended; watches for what is discarded later."""
        if self.probe:
            return Outcome.PROBE
        if self.speech is None or self.speech.scheduled:
            return outcome
        # A preemptive generation: LiveKit never schedules the one that it throws away.
        if outcome is Outcome.SERVED:
            self.speech.add_done_callback(functools.partial(_discard_unless_scheduled, tally))
        elif outcome is Outcome.INTERRUPTED:
            return Outcome.DISCARDED
        return outcome


_SESSION: Final[Any] = AgentSession  # it is generic
_COMPONENTS: Final[dict[str, type[Any]]] = {"_llm": llm.LLM, "_tts": tts.TTS, "_stt": stt.STT}


def _holds_another(stream: Any) -> bool:
    """Whether the stream's component is one around another of its kind, or around several."""
    for name, kind in _COMPONENTS.items():
        component = getattr(stream, name, None)
        if component is not None:
            attributes = cast("dict[str, Any]", vars(component))
            return any(
                isinstance(part, kind) and part is not component
                for held in attributes.values()
                for part in _parts(held)
            )
    return False


def _parts(held: Any) -> Iterable[Any]:
    if isinstance(held, dict):
        return cast("dict[Any, Any]", held).values()
    return cast("list[Any]", held) if isinstance(held, list | tuple) else (held,)


def has_listeners(stream: Any) -> bool:
    """Whether anybody takes the metrics of the stream's component: for a control total only."""
    return bool(_listeners(stream))


def _listeners(stream: Any) -> Collection[Any]:
    for name in ("_llm", "_tts", "_stt"):
        component = getattr(stream, name, None)
        if component is not None:
            return getattr(component, "_events", {}).get("metrics_collected") or ()
    return getattr(stream, "_events", {}).get("metrics_collected") or ()


def _discard_unless_scheduled(tally: Tally, speech: Any) -> None:
    try:
        if not speech.scheduled:
            tally.discard()
    except Exception as error:
        _faults.count("discard", error)


def observe_runs(
    stream_class: type[Any],
    attempt_class: type[Attempt],
    *,
    delegating: tuple[type[Any], ...],
    span_name: str,
) -> Callable[[], None]:
    """Observe every attempt of every stream derived from `stream_class`; returns the undo.

    Args:
        stream_class: LiveKit's base class.
        attempt_class: What observes one run.
        delegating: Classes whose runs only call other streams, which are observed themselves.
        span_name: Class attribute that LiveKit sets to None in delegating classes.
    """
    base_init = stream_class.__init__

    @functools.wraps(base_init)
    def observed_init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            if (
                not isinstance(self, delegating)
                and getattr(self, span_name, "") is not None
                and "_run" not in self.__dict__
            ):
                # Before base_init: an eager task starts the first attempt in there.
                own_class: Any = self.__class__
                self._run = observed(self, attempt_class, own_class._run)
        except Exception as error:
            _faults.count("observe_stream", error)
        base_init(self, *args, **kwargs)

    stream_class.__init__ = observed_init

    def undo() -> None:
        stream_class.__init__ = base_init

    return undo


def observed(
    stream: Any, attempt_class: type[Attempt], run: Callable[..., Awaitable[None]]
) -> Callable[..., Awaitable[None]]:
    """`run`, a function of the stream, with an `attempt_class` around every call.

    Its owner is found here and now. The stream is not held: it holds what is returned, and would
    wait, with all its tasks, for the garbage collector.
    """
    known = weakref.ref(stream)
    owner = _attribution.current_owner()
    speech = _attribution.current_speech()
    probe = probing.get()

    @functools.wraps(run)
    async def observed_run(*args: Any, **kwargs: Any) -> None:
        stream = known()
        try:
            attempt = attempt_class(stream, owner=owner, speech=speech, probe=probe)
        except Exception as error:
            _faults.count("begin_attempt", error)
            await run(stream, *args, **kwargs)
            return
        with _wire.observing(attempt):
            try:
                try:
                    attempt.begin(*args, *kwargs.values())
                except Exception as error:
                    _faults.count("begin_attempt", error)
                await run(stream, *args, **kwargs)
            except BaseException as error:
                if not attempt.ended_by_us():
                    _finish(attempt, _outcome(attempt, error), error)
                    raise
                _finish(attempt, Outcome.CUT, error)
                _end_cut(attempt)
            else:
                _finish(attempt, Outcome.CUT if attempt.cut else Outcome.SERVED, None)
                if attempt.ended_by_us():  # and the plugin swallowed it
                    _end_cut(attempt)

    return observed_run


def _end_cut(attempt: Attempt) -> None:
    """Leave a run that was cut: a return, for STT, or LiveKit tries again as if it had failed."""
    if attempt.modality is not Modality.STT:
        raise APIStatusError(
            "voicecost ended this request: the budget is used up",
            status_code=CLIENT_CLOSED,
            retryable=False,
        ) from None


def _outcome(attempt: Attempt, error: BaseException) -> Outcome:
    if attempt.cut:
        return Outcome.CUT
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return attempt.cancelled_outcome
    if isinstance(error, APIStatusError) and error.status_code == CLIENT_CLOSED:
        return Outcome.INTERRUPTED  # the plugin's own "client closed request"
    return Outcome.FAILED


def _finish(attempt: Attempt, outcome: Outcome, error: BaseException | None) -> None:
    try:
        if attempt.was_presumed_to_delegate():
            attempt.requests_itself()
        attempt.finish(outcome, error)
        attempt.tell_unmetered()
    except Exception as fault:
        attempt.stop_as_known(outcome)
        _faults.count("finish_attempt", fault)


_NEVER_SENT: Final = frozenset(
    {
        "ClientConnectorError", "ClientConnectorDNSError", "ClientConnectorSSLError",
        "ClientConnectorCertificateError", "ConnectionTimeoutError",  # aiohttp
        "ConnectError", "ConnectTimeout", "PoolTimeout", "WriteTimeout",  # httpx
        "ConnectionRefusedError", "gaierror",
    }
)  # fmt: skip


# Functions of the HTTP clients that end before all of a request's body is handed to the network, by
# the first word of their module. What was cancelled in there was never sent.
_BEFORE_SENDING: Final = frozenset(
    {
        ("httpcore", "wait_for_connection"), ("httpcore", "_connect"),
        ("httpcore", "_send_request_headers"),
        ("httpcore2", "wait_for_connection"), ("httpcore2", "_connect"),
        ("httpcore2", "_send_request_headers"),
        ("aiohttp", "connect"),
        ("openai", "to_thread"),  # it looks what computer this is, before its first request
    }
)  # fmt: skip
# A body goes out in parts, a form with a recording in some sixteen: each of them in here.
_SENDING_PARTS: Final = frozenset({("httpcore", "_send_event"), ("httpcore2", "_send_event")})


def was_refused(error: BaseException | None) -> bool:
    """Whether a request cost nothing: refused with an HTTP error, or never sent.

    A status outside of 400 to 599 is a WebSocket's close code, not a refusal.
    """
    if isinstance(error, asyncio.CancelledError):
        return _cancelled_before_sending(error)
    if isinstance(error, APIStatusError) and 400 <= error.status_code <= 599:
        return True
    if not isinstance(error, APIError):
        return False
    cause: BaseException | None = error
    for _ in range(8):  # the plugins wrap the client's error, which wraps its transport's
        if cause is None:
            return False
        if type(cause).__name__ in _NEVER_SENT:
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _cancelled_before_sending(error: asyncio.CancelledError) -> bool:
    """Whether not all of the request was sent: where it waited is in the traceback."""
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        module: str = frame.f_globals.get("__name__", "")
        place = (module.partition(".")[0], frame.f_code.co_name)
        if place in _BEFORE_SENDING:
            return True
        if place in _SENDING_PARTS and _rest_of_body(frame.f_locals.get("self")) > 0:
            return True
        traceback = traceback.tb_next
    return False


def _rest_of_body(connection: Any) -> int:
    """How many bytes of its request's body an httpcore connection was still to be given."""
    writer = getattr(getattr(connection, "_h11_state", None), "_writer", None)
    return getattr(writer, "_length", 0)

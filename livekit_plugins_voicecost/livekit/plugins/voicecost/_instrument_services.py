"""Legs of LiveKit's smaller services: decisions, turn detection, interruption detection.

A decision is a leg per attempt. The two detectors ask many small questions over one connection:
they are a leg per stream, whose `requests` grow as they are sent. Silero and the local turn
detectors run on the agent's own machine: they are counted as of the provider `local`, which costs
nothing.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any, Final, cast

from voicecost_ledger.records import Basis, LegAttributes, Modality, Outcome

from . import _attribution, _faults
from ._attributes import describe, host_of, name_of
from ._counts import Counts, Item, Prompt, TextKey
from ._estimates import estimates_for
from ._instrument_attempts import Attempt, Tally, observe_runs, observed, was_refused
from ._livekit import reports, require
from ._reports import believed
from ._text_weight import weight as weight_of

_ANSWER_TOKENS_MAX: Final = 16
"""Of one question: a name, a level or a number."""


class DecisionAttempt(Attempt):
    """One attempt of a `DecisionModel`. Its "stream" is the model itself."""

    modality = Modality.DECISION
    cancelled_outcome = Outcome.FAILED  # by LiveKit's timeout, if `evaluate` itself goes on
    _tally: Tally | None = None
    _response: Any = None
    _refused_by_us = False

    def begin(self, *args: Any) -> None:
        """Open the leg before the request goes out. `args` are its text and its questions."""
        text, decisions = args[0], args[1]
        self._counts = _count_questions(text, decisions)
        attributes = describe(self.stream, self.stream, Modality.DECISION, streaming=False)
        self._answers_most = _ANSWER_TOKENS_MAX * len(decisions)
        self._tally = tally = self.tally(attributes)
        if not tally.spend(self._estimate(tally), Basis.ESTIMATED):
            self._refused_by_us = True
            self.end_for_budget()

    def wraps(self, modality: Modality) -> bool:
        """A model that lets an LLM plugin decide is billed as that."""
        return modality in (Modality.DECISION, Modality.LLM)

    def responded(self, response: Any) -> None:
        """Take LiveKit's DecisionResponse, with what the provider reports."""
        self._response = response
        if self._tally is not None:
            self._tally.first_answer()

    def interrupted(self) -> None:
        """It was no timeout: whoever asked has gone."""
        tally = self._tally
        if tally is not None and tally.outcome is Outcome.FAILED and tally.leg is not None:
            tally.leg.correct(outcome=Outcome.INTERRUPTED)

    def finish(self, outcome: Outcome, error: BaseException | None) -> None:
        """Settle the leg: as reported, as nothing when it was refused, else as estimated."""
        tally = self._tally
        if tally is None:
            return
        if not self._refused_by_us:
            outcome = self.outcome_of(outcome, tally)
        estimates = estimates_for(self.owner.meter(), tally.attributes)
        estimated = self._estimate(tally)
        if self._refused_by_us or was_refused(error):
            tally.stop(outcome, dict.fromkeys(estimated, 0), Basis.OBSERVED)
            return
        response = self._response
        served_model = getattr(response, "model", "")
        if served_model and served_model != tally.attributes.model:
            tally.served_by(served_model)
        reported = believed({
            "input_tokens": getattr(response, "input_tokens", None) or 0,
            "output_tokens": getattr(response, "output_tokens", None) or 0,
        })  # fmt: skip
        if reported is None or not reported["input_tokens"]:  # never said, or a zero that is none
            tally.stop(outcome, estimated, Basis.ESTIMATED)
            if tally.leg is not None:
                estimates.settle_later(tally.leg, self._counts, prompt_only=True)
            return
        tally.stop(outcome, {"requests": 1} | reported, Basis.REPORTED)
        estimates.learn(self._counts, reported | {"cached_input_tokens": 0, "output_tokens": 0})

    def _estimate(self, tally: Tally) -> dict[str, int]:
        """What it uses as long as nobody says so; the tally is told by how much that may be off."""
        estimates = estimates_for(self.owner.meter(), tally.attributes)
        input_tokens = estimates.usage(self._counts)["input_tokens"]
        margin = estimates.margins(self._counts)["input_tokens"]
        if not estimates.knows_prompts:  # how a host shows questions to its model nobody knows
            margin = input_tokens
        tally.margins = {
            "requests": 0,
            "input_tokens": margin,
            "output_tokens": self._answers_most,
        }
        return {"requests": 1, "input_tokens": input_tokens, "output_tokens": 0}


def _count_questions(text: str, decisions: Mapping[str, Any]) -> Counts:
    """The size of a batch: its text, and of each question what the model is shown."""
    texts = [text]
    for decision in decisions.values():
        shown: list[str] = [decision.prompt]
        options = getattr(decision, "options", None) or getattr(decision, "levels", None) or ()
        if isinstance(options, Mapping):
            named = cast("Mapping[str, str]", options)
            shown += [f"{name}: {meaning}" for name, meaning in named.items()]
        else:
            shown += options
        texts.append("\n".join(shown))
    items = tuple(Item(TextKey(each).value, weight_of(each)) for each in texts)
    weight = sum(item.weight for item in items)
    return Counts(Prompt(items, 0, sum(map(len, texts)), weight))


_attempts: ContextVar[list[DecisionAttempt]] = ContextVar("voicecost_decision_attempts")
"""Those of the `evaluate` that is running."""


def observe_decisions() -> Callable[[], None]:
    """Observe `DecisionModel.evaluate`, where LiveKit has one; returns the undo.

    Its attempts call `_evaluate_impl`, which every plugin overrides: it is shadowed on the
    instance, for the time of the call only.
    """
    if not reports("DecisionMetrics"):
        return nothing_to_undo
    from livekit.agents.llm.decisions import DecisionModel

    model_class: Any = DecisionModel
    require(model_class, calls={"evaluate": "_evaluate_impl"})
    evaluate = model_class.evaluate

    @functools.wraps(evaluate)
    async def observed_evaluate(self: Any, *args: Any, **kwargs: Any) -> Any:
        shadows = cast("dict[str, Any]", vars(self))
        own = shadows.setdefault("_evaluate_impl", _ObservedEvaluate(self, self._evaluate_impl))
        if not isinstance(own, _ObservedEvaluate):  # somebody else's shadow: leave it alone
            return await evaluate(self, *args, **kwargs)
        own.calls += 1
        attempts: list[DecisionAttempt] = []
        token = _attempts.set(attempts)
        try:
            return await evaluate(self, *args, **kwargs)
        except asyncio.CancelledError:
            for attempt in attempts[-1:]:
                with _faults.contained("decision"):
                    attempt.interrupted()
            raise
        finally:
            _attempts.reset(token)
            own.calls -= 1
            if own.calls == 0 and shadows.get("_evaluate_impl") is own:
                del shadows["_evaluate_impl"]

    model_class.evaluate = observed_evaluate

    def undo() -> None:
        model_class.evaluate = evaluate

    return undo


class _ObservedEvaluate:
    """Stands for a model's `_evaluate_impl` while something is being decided."""

    def __init__(self, model: Any, evaluate_impl: Callable[..., Any]) -> None:
        self.calls = 0
        self._model = model
        self._evaluate_impl = evaluate_impl

    async def __call__(self, **kwargs: Any) -> Any:
        responses: list[Any] = []
        attempts = _attempts.get()

        def attempt(*args: Any, **owner: Any) -> DecisionAttempt:
            attempts.append(DecisionAttempt(*args, **owner))
            return attempts[-1]

        async def run(*_: Any) -> None:
            responses.append(await self._evaluate_impl(**kwargs))
            if attempts:  # none where it could not be observed
                with _faults.contained("decision"):
                    attempts[-1].responded(responses[-1])

        await observed(self._model, cast("Any", attempt), run)(kwargs["input"], kwargs["decisions"])
        return responses[0]


class _DetectionAttempt(Attempt):
    """One run of a detector's stream: a leg from its first request on, with a growing count."""

    cancelled_outcome = Outcome.SERVED  # how every stream ends: it is closed

    def begin(self, *args: Any) -> None:
        """Nothing is asked for yet."""
        self._asked: dict[LegAttributes, Tally] = {}

    def asks(self, attributes: LegAttributes) -> None:
        """One more request is about to be sent. It is owed: no turn waits for a budget."""
        tally = self._asked.get(attributes)
        if tally is None:
            tally = self._asked[attributes] = self.tally(attributes)
        tally.owe({"requests": tally.usage.get("requests", 0) + 1}, Basis.OBSERVED)

    def finish(self, outcome: Outcome, error: BaseException | None) -> None:
        """Settle what was asked for; also a request that failed was one."""
        for tally in self._asked.values():
            tally.stop(self.outcome_of(outcome, tally))


LOCAL: Final = "local"
"""The provider of what runs in the agent's own process: nobody bills for it."""
_TEXT_TURN_DETECTORS: Final = "livekit.plugins.turn_detector.base"
_INFERENCE_START_BYTES_MAX: Final = 1024
"""What is larger is audio: it needs no parsing."""


class TurnDetectionAttempt(_DetectionAttempt):
    """A stream of LiveKit's turn detector: the hosted one, and the local one it falls back to."""

    modality = Modality.TURN_DETECTION

    def begin(self, *args: Any) -> None:
        """Watch what the local model is asked: that goes over no wire."""
        from livekit.agents.inference.eot.transports import (
            _LocalTransport,
        )
        from livekit.protocol.agent_pb.agent_inference import ClientMessage

        super().begin(*args)
        self._parse = ClientMessage.FromString
        stream = self.stream
        predict: Callable[[], Any] = stream.predict

        def ask_locally() -> None:
            if isinstance(stream._transport, _LocalTransport) and not stream._audio_ch.closed:
                self.asks(self._attributes(provider=LOCAL))

        def observed_predict() -> Any:
            with _faults.contained("turn_detection"):
                ask_locally()
            return predict()

        if stream._request_id is not None:  # it was asked before its task began to run
            ask_locally()
        stream.predict = observed_predict

    def bytes_sending(self, connection: object, payload: bytes | bytearray | memoryview) -> None:
        """Count what is asked; audio is not."""
        if len(payload) <= _INFERENCE_START_BYTES_MAX:
            message = self._parse(bytes(payload))
            if message.WhichOneof("message") == "inference_start":
                hosted = SimpleNamespace(_opts=self.stream._transport._cloud_opts)
                provider = self.stream.provider
                self.asks(self._attributes(provider=provider, host=host_of(hosted, None)))

    def finish(self, outcome: Outcome, error: BaseException | None) -> None:
        """Settle the leg of each model that was asked."""
        self.stream.__dict__.pop("predict", None)
        super().finish(outcome, error)

    def _attributes(self, *, provider: str, host: str = "") -> LegAttributes:
        detector = self.stream._detector
        return LegAttributes(
            modality=self.modality,
            provider=provider,
            model=self.stream.model,
            label=f"{type(detector).__module__}.{type(detector).__name__}",
            host=host,
        )


class InterruptionDetectionAttempt(_DetectionAttempt):
    """A stream of LiveKit's adaptive interruption detector."""

    modality = Modality.INTERRUPTION_DETECTION

    def bytes_sending(self, connection: object, payload: bytes | bytearray | memoryview) -> None:
        """Every binary message is a question; all else is text."""
        self.asks(describe(self.stream, self.stream._model, self.modality))


def observe_turn_detectors() -> Callable[[], None]:
    """Observe the streams of LiveKit's turn detector, where one hears; returns the undo."""
    if not reports("EOTInferenceMetrics"):
        return nothing_to_undo
    from livekit.agents.inference.eot import base
    from livekit.agents.inference.eot.transports import (
        _CloudTransport,
        _LocalTransport,
    )

    untyped: Any = base  # its name is private
    stream_class = untyped._BaseStreamingTurnDetectorStream
    require(
        stream_class,
        has=("predict",),
        sets=("_transport", "_audio_ch", "_request_id", "_detector"),
        calls={"_main_task": "_run"},
    )
    require(_CloudTransport, sets=("_cloud_opts",))
    require(_LocalTransport, has=("run_inference",))
    return observe_runs(stream_class, TurnDetectionAttempt, delegating=(), span_name="")


def observe_text_turn_detectors() -> Callable[[], None]:
    """Count what LiveKit's turn detectors that read are asked; returns the undo.

    They run in the worker's inference process, which LiveKit only starts for plugins that were
    loaded before its jobs: one that is not loaded by now is not used.
    """
    base = sys.modules.get(_TEXT_TURN_DETECTORS)
    if base is None:
        return nothing_to_undo
    model_class: Any = base.EOUModelBase
    require(model_class, has=("predict_end_of_turn", "model"))
    predict = model_class.predict_end_of_turn

    @functools.wraps(predict)
    async def observed_predict(self: Any, *args: Any, **kwargs: Any) -> float:
        tally = Tally(_attribution.current_owner(), _describe_text_turn_detector(self), None)
        with _faults.contained("turn_detection"):
            tally.owe({"requests": 1}, Basis.OBSERVED)
        outcome = Outcome.FAILED
        try:
            probability = await predict(self, *args, **kwargs)
            outcome = Outcome.SERVED
            return probability
        except asyncio.CancelledError:
            outcome = Outcome.INTERRUPTED  # the caller goes on speaking
            raise
        finally:
            with _faults.contained("turn_detection"):
                tally.stop(outcome)

    model_class.predict_end_of_turn = observed_predict

    def undo() -> None:
        model_class.predict_end_of_turn = predict

    return undo


def _describe_text_turn_detector(model: Any) -> LegAttributes:
    return LegAttributes(
        modality=Modality.TURN_DETECTION,
        provider=LOCAL,
        model=name_of(model, "model"),
        label=f"{type(model).__module__}.{type(model).__name__}",
    )


def observe_interruption_detectors() -> Callable[[], None]:
    """Observe the streams of LiveKit's adaptive interruption, where it has it; returns the undo."""
    if not reports("InterruptionMetrics"):
        return nothing_to_undo
    from livekit.agents.inference.interruption import InterruptionStreamBase

    stream_class: Any = InterruptionStreamBase
    require(stream_class, sets=("_model",), calls={"_main_task": "_run"})
    return observe_runs(stream_class, InterruptionDetectionAttempt, delegating=(), span_name="")


def observe_local_vads() -> Callable[[], None]:
    """Count what Silero is asked, in whichever plugin it comes; returns the undo.

    It runs in the agent's process and costs nothing. Any other VAD is nobody's bill that we know.
    """
    from livekit.agents import vad

    stream_class: Any = vad.VADStream
    require(stream_class, sets=("_vad",), calls={"__init__": "_metrics_monitor_task"})
    monitor: Callable[[Any, AsyncIterator[Any]], Awaitable[None]]
    monitor = stream_class._metrics_monitor_task

    @functools.wraps(monitor)
    async def observed_monitor(self: Any, events: AsyncIterator[Any]) -> None:
        if name_of(self._vad, "model") != "silero":
            await monitor(self, events)
            return
        counted = _Inferences(events, vad.VADEventType.INFERENCE_DONE)
        tally = Tally(_attribution.current_owner(), describe_vad(self._vad), None)
        try:
            await monitor(self, counted)
        finally:
            with _faults.contained("vad"):
                if counted.count:
                    tally.stop(Outcome.SERVED, {"requests": counted.count}, Basis.OBSERVED)

    stream_class._metrics_monitor_task = observed_monitor

    def undo() -> None:
        stream_class._metrics_monitor_task = monitor

    return undo


class _Inferences:
    """The events of a VAD stream as they are, and how many of them tell of an inference."""

    def __init__(self, events: AsyncIterator[Any], kind: Any) -> None:
        self.count = 0
        self._events = events
        self._kind = kind

    def __aiter__(self) -> _Inferences:
        return self

    async def __anext__(self) -> Any:
        event = await self._events.__anext__()
        if event.type == self._kind:
            self.count += 1
        return event


def describe_vad(model: Any) -> LegAttributes:
    """What a VAD is: it runs in the agent's own process."""
    return LegAttributes(
        modality=Modality.OTHER,
        provider=LOCAL,
        model=name_of(model, "model"),
        label=name_of(model, "_label"),
    )


def nothing_to_undo() -> None:
    """The undo where this LiveKit has nothing to observe."""

"""A meter: what one AgentSession costs, from its first request to its end."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeVar, overload

import msgspec

from voicecost_ledger.records import Coverage

from . import _attribution, _wire_http
from ._charges import Cost
from ._credit import BudgetCallback
from ._faults import contained
from ._metering import Metering
from ._usage import ToldBasis, ToldModality, ToldOutcome, told_usage

_CallbackT = TypeVar("_CallbackT", bound=BudgetCallback)


class Meter(Metering):
    """What `VoiceCost.attach(session)` makes. Use it from the session's event loop.

    It opens with the session's first request or its start, whichever is first, and closes with
    the session; a session that never starts leaves nothing in the ledger.
    """

    @property
    def enabled(self) -> bool:
        """Whether it meters at all: not where that is disabled, nor where attaching failed."""
        return self._prices is not None

    @property
    def meter_id(self) -> str | None:
        """The meter's id in the ledger; None until the session has started."""
        return None if self._link is None else self._link.meter_id

    @property
    def cost(self) -> Cost:
        """What has been charged so far."""
        return self._charges.cost

    @property
    def coverage(self) -> Coverage:
        """How much of the session this meter could see: `complete`, `partial`, `metrics-only`."""
        return self._audit.coverage

    @overload
    def on(self, event: Literal["budget"], callback: _CallbackT) -> _CallbackT: ...

    @overload
    def on(self, event: Literal["budget"]) -> Callable[[_CallbackT], _CallbackT]: ...

    def on(self, event: Literal["budget"], callback: BudgetCallback | None = None) -> Any:
        """Call `callback(event)` when a budget of this call is nearly or wholly used up.

        Args:
            event: `"budget"`, the only one there is.
            callback: A plain function that takes a `BudgetEvent`. Called on the session's event
                loop. Left out, `on` is a decorator.

        Raises:
            ValueError: There is no such event.
            TypeError: `callback` is a coroutine function, which nobody would await.
        """
        if event != "budget":
            raise ValueError(f'{event=} is unknown: the only event of a meter is "budget"')
        if callback is None:
            return functools.partial(self.on, event)
        if inspect.iscoroutinefunction(callback) or not callable(callback):
            raise TypeError(
                f"{callback!r} cannot be called back: give a plain function, and start a task "
                "in it with asyncio.create_task for what has to be awaited"
            )
        self._credit.callbacks.append(callback)
        return callback

    def scope(self) -> AbstractContextManager[None]:
        """Book what is requested inside the `with` to this meter.

        Only for requests that LiveKit makes for no session, such as a model called from a task of
        your own when several sessions share the job.
        """
        return _attribution.scoped(self) if self.enabled else nullcontext()

    def record_usage(
        self,
        *,
        provider: str,
        model: str,
        modality: ToldModality,
        usage: Mapping[str, int],
        outcome: ToldOutcome = "served",
        basis: ToldBasis = "reported",
        speech_id: str | None = None,
        language: str = "",
        streaming: bool = True,
        service_tier: str = "",
    ) -> None:
        """Book what only the application can see: a paid API in a tool, a raw SDK call.

        It becomes one whole leg, priced like any other (without a price it is shown as unpriced)
        and counted against the budget, which never refuses it: it is spent already. Told inside a
        turn, it belongs to that turn: an overridden `llm_node` that tells what it used leaves no
        gap. Told after the meter has closed, it is booked to the same call, as a late correction.

        May be called from any thread. Where the meter is disabled it only checks its arguments.

        Args:
            provider: Who bills, by the name the price book knows: `"openai"`, `"deepgram"`.
            model: The model as the provider calls it; `""` where there is none.
            modality: What kind of service; `"other"` for none of the named ones.
            usage: Unit to whole quantity, `{"input_tokens": 812, "output_tokens": 96}`. Input
                tokens include cached ones, output tokens the reasoning.
            outcome: What became of it. Everything but `"served"` is waste.
            basis: How it is known: `"reported"` by the provider, `"observed"`, or `"estimated"`.
            speech_id: The id of LiveKit's SpeechHandle it belongs to; the running one by default.
            language: BCP 47, where the price depends on it.
            streaming: False for one request with the whole recording or text, where that is
                priced apart.
            service_tier: The provider's word, where the price depends on it.

        Raises:
            TypeError: A name is no text, a quantity no whole number, `usage` no mapping.
            ValueError: The provider is empty, a unit or a word is unknown (the message lists the
                known ones), a quantity is negative or absurd, a part is larger than its whole, or
                nothing was used.
        """
        told = told_usage(
            provider=provider,
            model=model,
            modality=modality,
            usage=usage,
            outcome=outcome,
            basis=basis,
            speech_id=speech_id,
            language=language,
            streaming=streaming,
            service_tier=service_tier,
        )
        if not self.enabled:
            return
        with contained("record_usage"):
            if told.speech_id is None:
                told = msgspec.structs.replace(told, speech_id=self._current_speech_id())
            _wire_http.usage_told()
            self._on_own_loop(functools.partial(told.book, self))

    def _current_speech_id(self) -> str | None:
        speech = _attribution.current_speech()
        if speech is None or _attribution.current_meter() is not self:
            return None
        return getattr(speech, "id", None)

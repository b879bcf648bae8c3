"""The legs of a realtime session: one for each response, one for a connection billed by time.

How legs are cut:

- A *response* is a leg of modality `realtime` with the tokens of its own report. It is opened when
  the provider says that it exists, with an estimate of its prompt (the whole conversation, which is
  read again each time), and settled by the report, however late that is.
- A *connection* is a leg only where the provider bills the time it is open: always for a duplex
  model, otherwise where the model's price is one by time or the model reports its duration. It
  counts no tokens and says so (`input_tokens` 0), and responses count no time (`connected_ms` 0):
  so either is a known zero for a price by the other, and neither is shown as unpriced noise.
- Input *transcription* is another model's and a leg of modality `stt`, one for each item.

Which events a provider sends, the `Protocol` of a session knows; without one there are LiveKit's
own events.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from livekit.agents.llm.realtime import RealtimeError

from voicecost_ledger.records import Basis, LegAttributes, Modality, Outcome

from . import _attribution, _faults
from ._attributes import host_of, name_of, option_text
from ._faults import contained
from ._instrument_attempts import Tally
from .legs import affordable

NO_TOKENS: Final = {"input_tokens": 0, "output_tokens": 0}
NO_TIME: Final = {"connected_ms": 0}
_HOUR: Final = {
    "connected_ms": 3_600_000,
    "input_audio_ms": 3_600_000,
    "output_audio_ms": 3_600_000,
} | NO_TOKENS
_LOOK_AGAIN_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0)
"""When the price is asked for again: a price book may take a second or two to load."""
_TICK_S: Final = 1.0  # how often an open connection's time is charged
_REFUSED: Final = "voicecost did not ask for this response: the budget is used up"


class WireProtocol(Protocol):
    """What knows a provider's own events. Nothing that it raises leaves the session's legs."""

    def response_created(self, response_id: str, speech: Any) -> None:
        """LiveKit passes a response on to the session; `speech` is its SpeechHandle, if any."""
        ...

    def estimate(self) -> dict[str, int]:
        """The units of the prompt that a response would read now."""
        ...

    def reply_asked(self, future: asyncio.Future[Any], speech: Any) -> None:
        """LiveKit asked for a response on behalf of `speech`."""
        ...

    def closed(self) -> None:
        """The session is over: nothing will be reported any more."""
        ...


class Response:
    """One response of the model."""

    __slots__ = ("cut", "id", "tally")

    def __init__(self, response_id: str) -> None:
        self.id = response_id
        self.tally: Tally | None = None
        self.cut = False


class SessionLegs:
    """The legs of one LiveKit `RealtimeSession` or `DuplexSession`.

    Args:
        session: LiveKit's session; its model may be read, nothing of its own is set up yet.
        model: Its `RealtimeModel` or `DuplexModel`.
        duplex: Whether it listens and speaks at once, billed by the time that it is connected.
    """

    def __init__(self, session: Any, model: Any, *, duplex: bool) -> None:
        self.session = session
        self.model = model
        self.duplex = duplex
        self.owner = _attribution.current_owner()
        self.protocol: WireProtocol | None = None
        self.closing = False
        self._connection: Connection | None = None
        self._attributes: LegAttributes | None = None
        self._input_samples: dict[int, int] = {}  # by sample rate
        self._output_samples: dict[int, int] = {}
        self._since_ns = time.monotonic_ns()  # the open connection, or the session

    # ---- what it is ------------------------------------------------------------------------------

    @property
    def attributes(self) -> LegAttributes:
        """Of the legs of modality `realtime`."""
        if self._attributes is None:
            self._attributes = self.describe(Modality.REALTIME, name_of(self.model, "model"))
        return self._attributes

    def describe(self, modality: Modality, model: str) -> LegAttributes:
        """The attributes of a leg for `model`, served over this session's connection."""
        realtime = modality is Modality.REALTIME
        return LegAttributes(
            modality=modality,
            provider=name_of(self.model, "provider"),
            model=model,
            label=name_of(self.model, "label"),
            host=host_of(self.session, self.model) or _google_host(self.session),
            voice=option_text(self.session, self.model, "voice") if realtime else "",
            service_tier=option_text(self.session, self.model, "service_tier") if realtime else "",
        )

    def tally(self, attributes: LegAttributes, speech: Any = None) -> Tally:
        """A new leg over this session's connection."""
        tally = Tally(self.owner, attributes, speech)
        # While the session closes, LiveKit is still told of what it does not count any more.
        listeners = getattr(self.session, "_events", {}).get("metrics_collected")
        tally.heard_by_livekit = bool(listeners) and not self.closing
        return tally

    # ---- responses -------------------------------------------------------------------------------

    def begin(
        self,
        response: Response,
        speech: Any,
        usage: dict[str, int],
        margins: Mapping[str, int],
    ) -> None:
        """A response exists: the provider will bill its prompt, whatever becomes of it."""
        self._open_if_by_time()
        response.tally = tally = self.tally(self.attributes, speech)
        tally.margins = margins
        usage = usage | NO_TIME
        if not tally.spend(usage, Basis.ESTIMATED):
            tally.owe(usage, Basis.ESTIMATED)
            self.cut(response)

    def grow(self, response: Response, usage: dict[str, int], margins: Mapping[str, int]) -> None:
        """An open response has used that much by now, by our own estimate."""
        tally = response.tally
        if tally is None or tally.outcome is not None:
            return
        tally.margins = margins
        usage = usage | NO_TIME
        if not tally.spend(usage, Basis.ESTIMATED):
            tally.owe(usage, Basis.ESTIMATED)  # it has arrived; what is still to come is cut
            self.cut(response)

    def settle(
        self,
        response: Response,
        outcome: Outcome,
        usage: dict[str, int],
        basis: Basis,
        margins: Mapping[str, int] | None = None,
    ) -> None:
        """A response is over, or its report came after all: then it corrects what was said."""
        if response.tally is None:
            response.tally = self.tally(self.attributes)
        elif self.closing and response.tally.leg is not None:
            response.tally.leg.heard_by_livekit = False
        if response.cut and outcome is not Outcome.FAILED:
            outcome = Outcome.CUT
        settle(response.tally, outcome, usage | NO_TIME, basis, margins)

    def cut(self, response: Response) -> None:
        """End a response: the money is gone. What it said by now stays said."""
        if response.cut:
            return
        response.cut = True
        try:
            self.session.interrupt()
        except Exception as error:
            _faults.count("realtime_interrupt", error)

    def refusal(self) -> asyncio.Future[Any] | None:
        """The answer to a request for a response that the money does not reach for; else None."""
        meter = self.owner.meter()
        if meter is None:
            return None
        usage = self.protocol.estimate() if self.protocol is not None else dict(NO_TOKENS)
        if affordable(meter, self.attributes, usage | NO_TIME):
            return None
        tally = self.tally(self.attributes, _attribution.current_speech())
        tally.stop(Outcome.CUT, NO_TOKENS | NO_TIME, Basis.OBSERVED)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.set_exception(RealtimeError(_REFUSED))
        future.exception()  # seen: whoever asked may never look, and asyncio would say so
        return future

    def must_end(self) -> bool:
        """Whether the money is gone for good: then the model is told nothing more."""
        meter = self.owner.meter()
        return meter is not None and meter.cut

    # ---- sound -----------------------------------------------------------------------------------

    def heard(self, frame: Any) -> None:
        """A frame was given to the model."""
        _count(self._input_samples, frame)

    def spoke(self, frame: Any) -> None:
        """A frame came from the model."""
        _count(self._output_samples, frame)

    def spoke_ms(self, duration_ms: int) -> None:
        """The same where only its length is known."""
        self._output_samples[1000] = self._output_samples.get(1000, 0) + duration_ms

    # ---- connections -----------------------------------------------------------------------------

    def connected(self) -> None:
        """A connection was made."""
        if self._connection is not None and not self._connection.acquired:
            self._connection.started()  # it was talked to before it was there
            return
        self.disconnected(Outcome.SERVED)
        self._since_ns = time.monotonic_ns()
        if self.duplex:
            self.connection_leg().acquired = True
        else:
            self._open_if_by_time(iter(_LOOK_AGAIN_S))

    def connection_leg(self) -> Connection:
        """The leg of the open connection; opened where it is not yet."""
        if self._connection is None:
            self._connection = Connection(self, self._since_ns)
        return self._connection

    def disconnected(self, outcome: Outcome) -> None:
        """The connection is gone."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.stop(Outcome.CUT if self.must_end() else outcome)
        self._input_samples.clear()
        self._output_samples.clear()
        self._since_ns = time.monotonic_ns()

    def sound_usage(self) -> dict[str, int]:
        """Raw sound of the connection."""
        return {
            "input_audio_ms": _duration_ms(self._input_samples),
            "output_audio_ms": _duration_ms(self._output_samples),
        }

    def _open_if_by_time(self, delays_s: Iterator[float] | None = None) -> None:
        """Open the connection's leg where the model's price is one by time."""
        meter = self.owner.meter()
        if self._connection is not None or meter is None:
            return
        price = meter.prices.price_for(self.attributes, time.time_ns() // 1_000_000)
        if price is not None:
            if price.rate(_HOUR):
                self.connection_leg().acquired = True
        elif delays_s is not None:
            delay_s = next(delays_s, None)
            if delay_s is not None:
                asyncio.get_running_loop().call_later(delay_s, self._look_again, delays_s)

    def _look_again(self, delays_s: Iterator[float]) -> None:
        with contained("realtime_price"):
            if not self.closing:
                self._open_if_by_time(delays_s)


class Connection:
    """A connection that is billed by the time it is open."""

    def __init__(self, legs: SessionLegs, opened_ns: int) -> None:
        self._legs = legs
        self._tally = legs.tally(legs.attributes)
        self._opened_ns = opened_ns
        self._reported_ms = 0
        self._reported_ns: int | None = None
        self._final = False
        self.acquired = False  # whether the plugin said that it has been made
        self._timer: asyncio.TimerHandle | None = None
        if not self._tally.spend(self._usage(), Basis.OBSERVED):
            self._tally.owe(self._usage(), Basis.OBSERVED)
        self._tick_later()

    def started(self) -> None:
        """The provider's clock starts now."""
        self.acquired = True
        self._opened_ns = time.monotonic_ns()

    def report(self, *, total_ms: int | None = None, more_ms: int = 0, final: bool = False) -> None:
        """The provider's own count, of all of it or of what came since the last one."""
        self._reported_ms = self._reported_ms + more_ms if total_ms is None else total_ms
        self._reported_ns = time.monotonic_ns()
        self._final = final or self._legs.closing  # then it is the last word, or nearly
        self._tally.owe(self._usage(reported=True), Basis.REPORTED)

    def answered(self) -> None:
        """The model said something."""
        self._tally.first_answer()

    def stop(self, outcome: Outcome) -> None:
        """It is closed; the provider's count stands where it came with the closing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        basis = Basis.REPORTED if self._final else Basis.OBSERVED
        self._tally.stop(outcome, self._usage(reported=self._final), basis)

    def _usage(self, *, reported: bool = False) -> dict[str, int]:
        since_ns = self._opened_ns if self._reported_ns is None else self._reported_ns
        since_ms = 0 if reported else (time.monotonic_ns() - since_ns) // 1_000_000
        return {
            "connected_ms": self._reported_ms + since_ms,
            **self._legs.sound_usage(),
            **NO_TOKENS,
        }

    def _tick_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        try:
            # Nothing can be kept back of time: the call's ending closes the connection.
            tally = self._tally
            tally.owe(self._usage(), Basis.OBSERVED)
            # Not where the meter has closed: a session that nobody closes could never be freed.
            if tally.outcome is None and (tally.leg is None or tally.leg.outcome is None):
                self._tick_later()
        except Exception as error:
            _faults.count("realtime_tick", error)


def settle(
    tally: Tally,
    outcome: Outcome,
    usage: dict[str, int],
    basis: Basis,
    margins: Mapping[str, int] | None = None,
) -> None:
    """Stop a leg, or correct it where it has stopped already."""
    if margins is not None:
        tally.margins = margins
    if tally.outcome is None:
        tally.stop(outcome, usage, basis)
        return
    tally.usage, tally.basis, tally.outcome = usage, basis, outcome
    if tally.leg is not None:
        tally.leg.correct(usage, basis, outcome)


def _google_host(session: Any) -> str:
    """The host of a google-genai client, which keeps it to itself."""
    client = getattr(getattr(session, "_client", None), "_api_client", None)
    url = getattr(getattr(client, "_http_options", None), "base_url", None)
    return urlsplit(url).netloc if isinstance(url, str) else ""


def _count(samples: dict[int, int], frame: Any) -> None:
    rate = frame.sample_rate
    samples[rate] = samples.get(rate, 0) + frame.samples_per_channel


def _duration_ms(samples: Mapping[int, int]) -> int:
    return sum(count * 1000 // rate for rate, count in samples.items() if rate)

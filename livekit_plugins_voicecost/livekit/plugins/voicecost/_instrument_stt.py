"""STT legs: one per connection, by the audio that is sent and the time the connection is open.

Providers bill connections: minimum, rounding and concurrency apply to each. A plugin may connect
anew within one attempt (Deepgram's does when an option changes), so where the wire is seen, each
connection is a leg of its own. The options are read when it opens: they are what it was opened
with. What plugins report is not asked for audio: seven report none, others only when a turn ends.

LiveKit never opens an ended recognition stream again: a call that lost it is deaf. So a stream ends
only with its call; while there is a shortage that may pass, its audio is owed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, Final

from livekit import rtc
from livekit.agents import APIStatusError
from livekit.agents.stt import SpeechEvent, SpeechEventType

from voicecost_ledger.records import Basis, Modality, Outcome

from . import _faults, _pulse
from ._attributes import describe, option, plain
from ._instrument_attempts import Attempt, Tally, has_listeners, was_refused
from ._reports import believed, milliseconds
from ._transcript_tokens import TokenRates, TranscribedItems, is_billed_by_token, rates_of
from ._wire_audio import BytesLike, audio_protocol, bytes_per_sample
from ._wire_connections import ConnectionObserver, could_not_write, observe_loaded_libraries

_UNSEEN_MS_MAX: Final = 2_000
"""Audio that a plugin takes before we doubt that it sends it as we think."""

_IN_FLIGHT_MS_MAX: Final = 250
"""Audio on its way when a connection dies: a few frames, and what a socket still holds of them."""
_UNSENT_MS_MAX: Final = 200
"""Audio that a plugin gathers before it sends it: 50 to 160 ms in those we know."""

_REFUSALS: Final = frozenset({401, 403, 404, 429})
"""No credentials, no right, no such model, no quota: found before anything is recognised."""

_REFUSAL_MS_MAX: Final = 1_000
"""A call that gRPC will not say the end of was refused, unless it had lasted for longer."""

_TRANSCRIPTS: Final = frozenset(
    {
        SpeechEventType.INTERIM_TRANSCRIPT,
        SpeechEventType.PREFLIGHT_TRANSCRIPT,
        SpeechEventType.FINAL_TRANSCRIPT,
    }
)


class RecognizeAttempt(Attempt, ConnectionObserver):
    """One attempt of a recognition stream."""

    modality = Modality.STT
    cancelled_outcome = Outcome.SERVED  # how every STT stream of a session that closes ends

    _tally: Tally | None = None

    def begin(self, *args: Any) -> None:
        """Open the leg before the connection is made; watch what is taken and reported."""
        observe_loaded_libraries()
        stream = self.stream
        self._protocol = audio_protocol(stream._stt)
        self._tokens_on_wire = False
        self._open(connection=None)
        self._input: Any = stream._input_ch
        self._events: Any = stream._event_ch
        take: Callable[[], Any] = self._input.recv_nowait
        emit: Callable[[Any], None] = self._events.send_nowait

        def observed_take() -> Any:
            item = take()
            if isinstance(item, rtc.AudioFrame):
                try:
                    self._frame_taken(item)
                except Exception as error:
                    _faults.count("stt_audio", error)
            return item

        def observed_emit(event: Any) -> None:
            try:
                self._event_emitted(event)
            except Exception as error:
                _faults.count("stt_event", error)
            emit(event)

        self._input.recv_nowait = observed_take
        self._events.send_nowait = observed_emit
        _pulse.watch(self)

    def finish(self, outcome: Outcome, error: BaseException | None) -> None:
        """Settle the last connection's leg."""
        _pulse.unwatch(self)
        for channel, name in (("_input", "recv_nowait"), ("_events", "send_nowait")):
            getattr(getattr(self, channel, None), "__dict__", {}).pop(name, None)
        if self._tally is None:
            return
        if outcome is Outcome.FAILED and (
            (self._connection is None and was_refused(error))
            # Over gRPC a call is refused when it seems to be open already.
            or (isinstance(error, APIStatusError) and error.status_code in _REFUSALS)
        ):
            self._tally.stop(
                self.outcome_of(outcome, self._tally),
                {"audio_ms": 0, "connected_ms": 0},
                Basis.OBSERVED,
            )
            return
        if could_not_write(error):
            usage, _ = self._measure(self._tally)
            if usage["connected_ms"] < _REFUSAL_MS_MAX:
                self._tally.margins = usage
                self._tally.stop(
                    self.outcome_of(outcome, self._tally),
                    {"audio_ms": 0, "connected_ms": 0},
                    Basis.ESTIMATED,
                )
                return
        self._close(outcome)

    # What the wire shows

    def connection_opened(self, connection: object) -> None:
        """From here on its time is billed."""
        if self._connection is None or self._closed_ns is not None:
            self._on(connection)
            self._record()

    def connection_closed(self, connection: object) -> None:
        """Its time is up."""
        if connection is self._connection and self._closed_ns is None:
            self._closed_ns = time.monotonic_ns()
            self._record()

    def text_sending(self, connection: object, payload: str) -> None:
        """Count audio that a text message carries, before it is sent."""
        if connection is not self._connection:
            self._on(connection)
        size_of = self._protocol.text if self._protocol is not None else None
        self._audio_sending(size_of(payload) if size_of is not None else 0)

    def bytes_sending(self, connection: object, payload: BytesLike) -> None:
        """Count audio of a known protocol, before it is sent."""
        if connection is not self._connection:
            self._on(connection)
        size_of = self._protocol.binary if self._protocol is not None else None
        self._audio_sending(size_of(payload) if size_of is not None else 0)

    def request_sending(self, connection: object, request: Any) -> None:
        """The same over gRPC."""
        size_of = self._protocol.request if self._protocol is not None else None
        size = size_of(request) if size_of is not None else 0
        if size:
            if connection is not self._connection:
                self._on(connection)
            self._requested_ns = time.monotonic_ns()
            self._audio_sending(size)

    def requests_ended(self) -> None:
        """All of it arrives, whatever happens to the call from here on."""
        self._requested_ns = None

    def text_received(self, connection: object, payload: str) -> None:
        """Take tokens as the provider reports them; the plugin passes on only some of it."""
        if self._items is None or self._tally is None:
            return
        tokens = self._items.received(payload, self._rates(self._tally))
        if tokens is not None:
            if not self._tokens_on_wire:
                self._tokens_on_wire = True
                self._tokens.clear()
            self._add_tokens(tokens)

    def pulse(self) -> None:
        """The connection's time goes on while nothing is sent, and may be what it is billed by."""
        if self._recorded:
            self._recorded = False
        elif self._opened_ns is not None and self._closed_ns is None:
            if not self._sent_audio():
                # Nobody is sending who could be kept from it: the run's own task is cancelled.
                with contextlib.suppress(asyncio.CancelledError):
                    self.end_for_budget()
            self._recorded = False

    # One connection

    def _open(self, connection: object | None) -> None:
        stream, component = self.stream, self.stream._stt
        protocol = self._protocol
        channels = option(stream, component, "num_channels")
        self._channel_count = channels if isinstance(channels, int) and channels > 0 else 1
        self._encoding = _text(stream, component, "encoding", "_encoding", "_audio_encoding")
        rate = protocol.sample_rate if protocol is not None else 0
        rate = rate or option(stream, component, "sample_rate")
        self._sample_rate = rate if isinstance(rate, int) and rate > 0 else 0
        self._connection = connection
        # Where connections cannot be seen, the run's own time is the nearest to theirs.
        in_sight = connection is not None or (protocol is not None and not protocol.taken)
        self._opened_ns = None if connection is None and in_sight else time.monotonic_ns()
        self._closed_ns: int | None = None
        self._wire_bytes = 0
        self._requested_ns: int | None = None
        self._samples_taken: dict[int, int] = {}  # of one channel, by sample rate
        self._tokens: dict[str, int] = {}
        self._items = TranscribedItems() if protocol and protocol.reports_tokens else None
        self._reported_ms = self._heard_ms = 0
        self._recorded = True
        self._tally = None
        tally = self.tally(
            describe(
                stream,
                component,
                Modality.STT,
                language=_text(stream, component, "language", "_language"),
                channel_count=self._channel_count,
            )
        )
        if not self._spend(tally):
            tally.stop(Outcome.CUT, {"audio_ms": 0, "connected_ms": 0}, Basis.OBSERVED)
            self.end_for_budget()  # never connected
        self._tally = tally

    def _on(self, connection: object) -> None:
        beside = self._closed_ns is None and not self._wire_bytes  # no audio went over the other
        if self._connection is None or beside:
            self._connection = connection
            self._opened_ns = time.monotonic_ns()  # the leg was opened before it connected
        else:
            self._close(Outcome.SERVED)
            self._open(connection)

    def _close(self, outcome: Outcome) -> None:
        if self._tally is not None:
            usage, basis = self._measure(self._tally)
            if self._wire_bytes and (outcome is Outcome.FAILED or self._cancelled_while_sending()):
                # What was on its way when the connection died may never have arrived.
                self._tally.margins = {"audio_ms": min(_IN_FLIGHT_MS_MAX, usage["audio_ms"])}
                basis = Basis.ESTIMATED
            self._compare(self._tally, usage)
            awaited = self._awaited(self._tally)
            if awaited:
                self._tally.margins = {unit: count // 2 for unit, count in awaited.items()}
                basis = Basis.ESTIMATED
                for unit, count in awaited.items():
                    usage[unit] = usage.get(unit, 0) + count
            self._tally.stop(self.outcome_of(outcome, self._tally), usage, basis)

    def _compare(self, tally: Tally, usage: dict[str, int]) -> None:
        """Say what LiveKit counts of it: what the plugin has reported, however much was sent."""
        if abs(usage["audio_ms"] - self._taken_ms()) <= _UNSEEN_MS_MAX:  # all that it was given
            tokens = {} if self._tokens_on_wire else self._tokens
            tally.livekit_counts({"audio_ms": self._heard_ms, **tokens})

    def _cancelled_while_sending(self) -> bool:
        """Whether gRPC, which throws away what is on its way when a call is cancelled, has any."""
        if self._requested_ns is None:
            return False
        return time.monotonic_ns() - self._requested_ns < _IN_FLIGHT_MS_MAX * 1_000_000

    def _awaited(self, tally: Tally) -> dict[str, int]:
        """The tokens of what was said and not reported yet, of a model that is billed by them."""
        named = tally.attributes
        if self._items is None or not is_billed_by_token(named.provider, named.model):
            return {}
        return self._items.awaited(self._rates(tally))

    def _audio_sending(self, size: int) -> None:
        if not size:
            self._record()
            return
        if not self._sample_rate:
            self._sample_rate = getattr(self.stream, "_needed_sr", None) or 0
        if not self._wire_bytes:
            self.requests_itself()
        self._wire_bytes += size
        if not self._sent_audio():
            self._wire_bytes -= size  # kept back
            self.end_for_budget()

    def _frame_taken(self, frame: rtc.AudioFrame) -> None:
        taken, rate, samples = self._samples_taken, frame.sample_rate, frame.samples_per_channel
        taken[rate] = taken.get(rate, 0) + samples
        if self._protocol is not None and not self._protocol.taken and not self._unseen():
            return
        if not self._sent_audio():
            taken[rate] -= samples  # kept back
            self.end_for_budget()

    def _unseen(self) -> bool:
        """Whether audio is taken that a known protocol should have shown: it is another one."""
        return self._wire_bytes == 0 and self._taken_ms() > _UNSEEN_MS_MAX

    def _sent_audio(self) -> bool:
        """Record the audio so far; False when the call is being ended."""
        return self._tally is None or self._spend(self._tally)

    def _spend(self, tally: Tally) -> bool:
        self._recorded = True
        usage, basis = self._measure(tally)
        if not tally.spend(usage, basis):
            if self.must_end():
                return False
            tally.owe(usage, basis)
        return True

    def _record(self) -> None:
        if self._tally is not None:
            self._recorded = True
            self._tally.owe(*self._measure(self._tally))

    def _event_emitted(self, event: SpeechEvent) -> None:
        """Take tokens that the plugin reports. The audio's truth is what was sent."""
        if event.type in _TRANSCRIPTS and self._tally is not None:
            self._tally.first_answer()
        usage = event.recognition_usage
        if usage is None:
            return
        reported_ms = max(0, milliseconds(usage.audio_duration))
        self._reported_ms += reported_ms
        if has_listeners(self.stream):  # not where the session, or an agent of it, is closing
            self._heard_ms += reported_ms
        if self._tally is not None:
            self._compare(self._tally, self._tally.usage)
            self.overheard(self._tally.attributes, {"audio_ms": reported_ms})
        if not self._tokens_on_wire:
            told = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
            self._add_tokens(believed(told) or {})

    def _add_tokens(self, tokens: dict[str, int]) -> None:
        if tokens:
            for unit, count in tokens.items():
                self._tokens[unit] = self._tokens.get(unit, 0) + count
            self._record()

    def _told_tokens(self, audio_ms: int) -> tuple[dict[str, int], dict[str, int]]:
        """The tokens that were reported, and by how much they may be off.

        A report is of what came since the one before, LiveKit says. Where they are of more audio
        than there was, some were made twice, or are totals: they are of the audio that there was.
        """
        told = self._tokens
        if self._tokens_on_wire or self._reported_ms <= audio_ms + _UNSENT_MS_MAX:
            return told, {}
        tokens = {unit: count * audio_ms // self._reported_ms for unit, count in told.items()}
        return tokens, {unit: told[unit] - count for unit, count in tokens.items()}

    def _taken_ms(self) -> int:
        return sum(samples * 1000 // rate for rate, samples in self._samples_taken.items())

    def _measure(self, tally: Tally) -> tuple[dict[str, int], Basis]:
        """The usage so far and how it is known."""
        protocol = self._protocol
        basis = Basis.OBSERVED
        margins: dict[str, int] = {}
        if self._wire_bytes and self._sample_rate:
            frame_bytes = bytes_per_sample(self._encoding) * self._channel_count
            audio_ms = self._wire_bytes * 1000 // (frame_bytes * self._sample_rate)
        else:
            audio_ms = self._taken_ms()
            if protocol is None or not protocol.taken:
                if protocol is not None and audio_ms <= _UNSEEN_MS_MAX:
                    audio_ms = 0  # taken, not sent yet
                else:
                    basis = Basis.ESTIMATED
                    margins["audio_ms"] = _UNSENT_MS_MAX
            silent = protocol is not None and self._connection is not None  # seen, and no audio
            if not self._samples_taken and self._reported_ms and not silent:
                audio_ms, basis = self._reported_ms, Basis.REPORTED  # frames went another way
        connected_ms = 0
        if self._opened_ns is not None:
            until_ns = self._closed_ns or time.monotonic_ns()
            connected_ms = (until_ns - self._opened_ns) // 1_000_000
        tokens, token_margins = self._told_tokens(audio_ms)
        margins |= token_margins
        if token_margins:
            basis = Basis.ESTIMATED
        elif tokens and basis is not Basis.ESTIMATED:
            basis = Basis.REPORTED
        if margins:
            tally.margins = margins
        return {"audio_ms": audio_ms, "connected_ms": connected_ms, **tokens}, basis

    @staticmethod
    def _rates(tally: Tally) -> TokenRates:
        return rates_of(tally.attributes.provider, tally.attributes.model)


def _text(stream: Any, component: Any, name: str, *private_names: str) -> str:
    """An option of the plugin as text; some keep theirs in private attributes."""
    value = option(stream, component, name)
    for holder in (stream, component):
        for private_name in private_names:
            value = value or getattr(holder, private_name, None)
    return plain(getattr(value, "value", value))  # of an enum

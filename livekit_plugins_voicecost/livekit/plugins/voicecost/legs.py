"""A leg while it is open: one provider request or connection, metered, rated and recorded.

`Meter.open_leg` makes one; the instrumentation tells it the totals so far; it rates them with the
one price in force at its start, tells its meter when the amount moved, and writes the accounting
records: start at once, interims coalesced, one stop (another stop corrects the first).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol

import msgspec

from voicecost_ledger.pricing import Price, PriceBook
from voicecost_ledger.records import (
    Basis,
    LegAttributes,
    LegInterim,
    LegStart,
    LegStop,
    Modality,
    Outcome,
)

from . import _faults

_INTERIM_S: Final = dict.fromkeys(Modality, 0.25) | {Modality.LLM: 0.05}
"""How long totals may wait to be recorded: what a SIGKILL can cost. Text for a TTS never waits."""
_UNRECORDED: Final[Mapping[Modality, Mapping[str, int]]] = {
    Modality.LLM: {"output_tokens": 16},
    Modality.TTS: {"audio_ms": 2_500, "output_tokens": 50, "output_audio_tokens": 50},
    Modality.STT: {"audio_ms": 500, "connected_ms": 1_250},
    Modality.REALTIME: {
        "output_tokens": 50,
        "output_audio_tokens": 50,
        "connected_ms": 1_250,
        "input_audio_ms": 1_250,
        "output_audio_ms": 2_500,
    },
    Modality.AVATAR: {"connected_ms": 1_250},
    Modality.TURN_DETECTION: {"requests": 1},
    Modality.INTERRUPTION_DETECTION: {"requests": 2},
}
"""The same in quantities: what is used in that time, with the chunks that are estimated together,
sound that comes ten times as fast as it is spoken, and the second between two looks at an idle
connection. The ledger asks for it only where no other record comes."""


_LOOK_AGAIN_S: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""When a leg without a price asks for it again: a price book may take a second or two to load."""


_NOTHING: Final[Mapping[str, int]] = MappingProxyType({})


class LegMeter(Protocol):
    """What a leg, and the instrumentation around it, asks of a meter.

    Attributes:
        estimates: Kept for `_estimates`, by provider and model.
    """

    estimates: dict[tuple[str, str], Any]

    @property
    def prices(self) -> PriceBook:
        """The price book, compiled; asked once per leg."""
        ...

    @property
    def cut(self) -> bool:
        """Whether the meter has stopped spending for good."""
        ...

    def open_leg(
        self,
        attributes: LegAttributes,
        usage: dict[str, int],
        *,
        basis: Basis = Basis.ESTIMATED,
        speech_id: str | None = None,
        margins: Mapping[str, int] = _NOTHING,
    ) -> Leg:
        """Open a leg and record its start; the caller never changes `usage` afterwards."""
        ...

    def gap(self, reason: str, modality: Modality | None = None) -> None:
        """Something was used that no leg shows."""
        ...

    def charge_changed(self, leg: Leg, amount_nano_usd: int | None) -> None:
        """The leg's rated amount moved; None: it has no price."""
        ...

    def overheard(self, attributes: LegAttributes, counts: Mapping[str, int]) -> None:
        """LiveKit counts this of another meter's leg for this one's session too.

        Both use its component. Of a request it counts all that, or nothing.
        """
        ...

    def far_from_limits(self) -> bool:
        """Whether a cent more, or a few chunks, would change nothing."""
        ...

    def may_spend(self, next_nano_usd: int) -> bool:
        """Whether so much more, on top of what all legs have used, stays within the budget.

        Never, once the meter was cut. Negative where a better estimate is a lower one.
        """
        ...


class LegRecords(Protocol):
    """Where a leg's records go: the meter's link to the spool. Nothing here raises or awaits."""

    def next_leg(self) -> int:
        """The next leg's number within the meter."""
        ...

    def write(self, make: type[Any], **fields: Any) -> None:
        """Spool one record; `meter_id`, `seq` and `at_unix_ms` are filled in."""
        ...


class Leg:
    """One provider request or connection of a meter.

    Args:
        meter: Told of every change of the amount.
        records: Where its records go.
        attributes: What the leg is; its price is looked up by them, once.
        usage: Its totals at the start, by unit; belongs to the leg from now on.
        basis: How `usage` is known.
        speech_id: LiveKit's SpeechHandle it belongs to, if any.
        margins: By how much each unit of `usage` may be off, where that is estimated.

    Attributes:
        modality: `llm`, `stt`, `tts` ...: the word of the enum.
        number: 1, 2, 3 ... within the meter.
        usage: The totals so far, by unit. Never changed in place: observers hand over a new dict.
        amount_nano_usd: `usage` rated; None while there is no price for it.
        outcome: None while the leg is open.
        heard_by_livekit: Whether LiveKit listens to its component's metrics, and so counts it.
        livekit_counts: What LiveKit counts of it by unit, if it counts the leg at all, where that
            is not `usage` and its request shows why: without a blank that a plugin adds, without
            thoughts. For the control total.
        speech: LiveKit's SpeechHandle, weakly: it holds a whole turn. For the control total.
        margins: By how much each unit of an estimate may be off, 19 times of 20, and 0 where one
            is known; empty where nobody can say. Set by whoever estimates; recorded with the next
            record while the basis is `estimated`.
        summed: Its meter's: what it gave to the sums, once it is held there only.
    """

    __slots__ = (
        "__weakref__",
        "_duration_ms",
        "_interim_s",
        "_meter",
        "_price",
        "_records",
        "_served_model",
        "_served_tier",
        "_started_at_unix_ms",
        "_started_ns",
        "_time_to_first_ms",
        "_timer",
        "amount_nano_usd",
        "attributes",
        "basis",
        "heard_by_livekit",
        "livekit_counts",
        "margins",
        "modality",
        "number",
        "outcome",
        "speech",
        "speech_id",
        "summed",
        "usage",
    )

    def __init__(
        self,
        meter: LegMeter,
        records: LegRecords,
        attributes: LegAttributes,
        usage: dict[str, int],
        *,
        basis: Basis = Basis.ESTIMATED,
        speech_id: str | None = None,
        margins: Mapping[str, int] = _NOTHING,
    ) -> None:
        self._meter = meter
        self._records = records
        self._interim_s = _INTERIM_S[attributes.modality]
        self._started_at_unix_ms = _now_unix_ms()
        self._started_ns = time.monotonic_ns()
        self._time_to_first_ms: int | None = None
        self._duration_ms = 0
        self._served_model = ""
        self._served_tier = ""
        self._price: Price | None = meter.prices.price_for(attributes, self._started_at_unix_ms)
        self._timer: asyncio.TimerHandle | None = None
        self.attributes = attributes
        self.modality = attributes.modality.value  # an enum is slow to hash
        self.usage = usage
        self.basis = basis
        self.heard_by_livekit = False
        self.margins = margins
        self.livekit_counts: Mapping[str, int] = _NOTHING
        self.speech_id = speech_id
        self.speech: weakref.ref[Any] | None = None
        self.summed: Any = None
        self.outcome: Outcome | None = None
        self.number = records.next_leg()
        self.amount_nano_usd: int | None = None
        records.write(
            LegStart,
            leg=self.number,
            attributes=attributes,
            usage=usage,
            basis=basis,
            speech_id=speech_id,
            margins=self._margins_if_last(),
        )
        if self._price is not None:
            self.amount_nano_usd = self._price.rate(usage)
        meter.charge_changed(self, self.amount_nano_usd)
        if self._price is None:
            self._look_again_later(iter(_LOOK_AGAIN_S))

    def allow(self, next_usage: Mapping[str, int]) -> bool:
        """Whether the meter may spend what totals of `next_usage` would cost.

        Without a price there is nothing to weigh: then only a meter that was cut says no.
        """
        if self._meter.cut:
            return False
        if self._price is None:
            return True
        next_nano_usd = self._price.rate(next_usage)
        if next_nano_usd is None:
            return True
        return self._meter.may_spend(max(0, next_nano_usd - (self.amount_nano_usd or 0)))

    def may_lag(self) -> bool:
        """Whether totals that are a few chunks old will do: every limit is far away."""
        return self.outcome is None and self._meter.far_from_limits()

    def spend(self, usage: dict[str, int], basis: Basis, *, ahead: bool = False) -> bool:
        """Take the totals with what is about to be used, if the meter may spend that.

        This is the hot path: `allow` and `observe` in one, rated once.

        Args:
            usage: All units, cumulative; the caller never changes it afterwards.
            basis: How they are known.
            ahead: Record them now, before the provider is given what they count; otherwise they
                are recorded within the modality's interim time.

        Returns:
            False when it may not: then nothing has changed.
        """
        if self.outcome is not None:
            return True  # a stopped leg is corrected, not observed
        meter = self._meter
        before = self.amount_nano_usd
        amount = None if self._price is None else self._price.rate(usage)
        if amount is None:
            if meter.cut:
                return False
        elif not meter.may_spend(amount - before if before is not None else amount):
            return False
        self.usage = usage
        self.basis = basis
        if amount != before:
            self.amount_nano_usd = amount
            meter.charge_changed(self, amount)
        if ahead:
            self._write_interim()
        elif self._timer is None:
            self._write_soon()
        return True

    def first_answer(self) -> None:
        """The first token or byte of the answer has arrived. Only the first call counts."""
        if self._time_to_first_ms is None and self.outcome is None:
            self._time_to_first_ms = self._elapsed_ms()

    def served_by(self, model: str, service_tier: str = "") -> None:
        """The provider says that another model or service tier than was asked for serves this.

        It is charged as that one, where there is a price for it: a gateway's fallback, an alias, a
        tier that was full. Empty is what was asked for.
        """
        if model == self.attributes.model:
            model = ""
        if (model, service_tier) == (self._served_model, self._served_tier):
            return
        self._served_model, self._served_tier = model, service_tier
        price = self._price_as_served()
        if price is not None:
            self._price = price
            self._rate()

    def _price_as_served(self) -> Price | None:
        asked = self.attributes
        served = msgspec.structs.replace(
            asked,
            model=self._served_model or asked.model,
            service_tier=self._served_tier or asked.service_tier,
        )
        return self._meter.prices.price_as_served(asked, served, self._started_at_unix_ms)

    @property
    def speech_interrupted(self) -> bool:
        """Whether its speech was interrupted, though maybe after all of it was made.

        LiveKit may have left before it counted it.
        """
        speech = None if self.speech is None else self.speech()
        return speech is not None and bool(speech.interrupted)

    def observe(self, usage: dict[str, int], basis: Basis) -> None:
        """Take totals that are owed already, whatever the budget says; recorded soon."""
        if self.outcome is not None:
            return
        self.usage = usage
        self.basis = basis
        self._rate()
        if self._timer is None:
            self._write_soon()

    def stop(
        self, outcome: Outcome, usage: dict[str, int] | None = None, basis: Basis | None = None
    ) -> None:
        """Close the leg with its final totals; those so far where None is given. Once."""
        if self.outcome is None:
            self._stop(outcome, usage, basis)

    def correct(
        self,
        usage: dict[str, int] | None = None,
        basis: Basis | None = None,
        outcome: Outcome | None = None,
    ) -> None:
        """Settle a stopped leg again: a better estimate, a late report, what became of it."""
        if self.outcome is not None:
            self._stop(outcome or self.outcome, usage, basis)

    def _stop(self, outcome: Outcome, usage: dict[str, int] | None, basis: Basis | None) -> None:
        self._cancel_timer()
        if self.outcome is None:
            self._duration_ms = self._elapsed_ms()
        self.outcome = outcome
        if usage is not None:
            self.usage = usage
        if basis is not None:
            self.basis = basis
        if self._price is not None:
            self.amount_nano_usd = self._price.rate(self.usage)
        self._meter.charge_changed(self, self.amount_nano_usd)  # also where only the usage did
        self._records.write(
            LegStop,
            leg=self.number,
            usage=self.usage,
            basis=self.basis,
            outcome=outcome,
            margins=self._margins(),
            served_model=self._served_model,
            served_tier=self._served_tier,
            time_to_first_ms=self._time_to_first_ms,
            duration_ms=self._duration_ms,
        )

    def _rate(self) -> None:
        if self._price is None:
            return
        amount = self._price.rate(self.usage)
        if amount != self.amount_nano_usd:
            self.amount_nano_usd = amount
            self._meter.charge_changed(self, amount)

    def _look_again_later(self, delays_s: Iterator[float]) -> None:
        delay_s = next(delays_s, None)
        if delay_s is not None:
            # Outside of a loop legs are only adopted: they are over, and a loop is to come.
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().call_later(delay_s, self._look_again, delays_s)

    def _look_again(self, delays_s: Iterator[float]) -> None:
        """Ask for the price once more: a budget must not stay blind to what was used meanwhile."""
        try:
            prices, at_unix_ms = self._meter.prices, self._started_at_unix_ms
            self._price = self._price_as_served() or prices.price_for(self.attributes, at_unix_ms)
            if self._price is None:
                self._look_again_later(delays_s)
            else:
                self._rate()
        except Exception as error:
            _faults.count("leg_price", error)

    def _write_soon(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interim_s, self._write_interim)

    def _write_interim(self) -> None:
        if self._timer is not None:
            self._cancel_timer()
        try:
            self._records.write(
                LegInterim,
                leg=self.number,
                usage=self.usage,
                basis=self.basis,
                margins=self._margins_if_last(),
            )
        except Exception as error:
            _faults.count("leg_interim", error)

    def _elapsed_ms(self) -> int:
        return (time.monotonic_ns() - self._started_ns) // 1_000_000

    def _margins(self) -> dict[str, int]:
        return dict(self.margins) if self.basis is Basis.ESTIMATED else {}

    def _margins_if_last(self) -> dict[str, int]:
        """The same if its process can record nothing more of it."""
        margins = self._margins()
        if self.basis is Basis.ESTIMATED and not margins:
            return margins
        for unit, more in _UNRECORDED.get(self.attributes.modality, _NOTHING).items():
            if unit in self.usage:
                margins[unit] = margins.get(unit, 0) + more
        return margins or dict.fromkeys(self.usage, 0)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def affordable(meter: LegMeter, attributes: LegAttributes, usage: Mapping[str, int]) -> bool:
    """Whether a leg that would start with `usage` may be opened at all."""
    if meter.cut:
        return False
    price = meter.prices.price_for(attributes, _now_unix_ms())
    amount = price.rate(usage) if price is not None else None
    return amount is None or meter.may_spend(amount)


def _now_unix_ms() -> int:
    return time.time_ns() // 1_000_000

"""What one leg has used so far, whether or not there is a meter for it yet."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from voicecost_ledger.records import Basis, LegAttributes, Outcome

from . import _attribution
from .legs import Leg, LegMeter, affordable


class Tally:
    """What one leg has used so far.

    Args:
        owner: Whose it is.
        attributes: What it is.
        speech: LiveKit's SpeechHandle, if any.
    """

    __slots__ = (
        "_first_answer",
        "_livekit_counts",
        "_margins",
        "_served_model",
        "_served_tier",
        "attributes",
        "basis",
        "heard_by_livekit",
        "leg",
        "outcome",
        "owner",
        "speech",
        "usage",
    )

    def __init__(self, owner: _attribution.Owner, attributes: LegAttributes, speech: Any) -> None:
        self.owner = owner
        self.attributes = attributes
        self.speech = speech
        self.usage: dict[str, int] = {}
        self.basis = Basis.ESTIMATED
        self.outcome: Outcome | None = None
        self.leg: Leg | None = None
        self._margins: Mapping[str, int] | None = None
        self._livekit_counts: Mapping[str, int] | None = None
        self._served_model = ""
        self._served_tier = ""
        self._first_answer = False
        self.heard_by_livekit = False

    @property
    def margins(self) -> Mapping[str, int]:
        """By how much each unit may be off, 19 times of 20, as long as it is an estimate."""
        return self._margins or {}

    @margins.setter
    def margins(self, margins: Mapping[str, int]) -> None:
        self._margins = margins
        if self.leg is not None:
            self.leg.margins = margins

    def livekit_counts(self, counts: Mapping[str, int]) -> None:
        """Say what LiveKit counts of it, where it is known why we count otherwise; see `Leg`."""
        self._livekit_counts = counts
        if self.leg is not None:
            self.leg.livekit_counts = counts

    def first_answer(self) -> None:
        """The first token or byte of the answer has arrived. Only the first call counts."""
        if not self._first_answer:
            self._first_answer = True
            if self.leg is not None:
                self.leg.first_answer()

    def served_by(self, model: str, service_tier: str = "") -> None:
        """The provider says that another model or service tier serves this than was asked for."""
        self._served_model, self._served_tier = model, service_tier
        if self.leg is not None:
            self.leg.served_by(model, service_tier)

    def spend(self, usage: dict[str, int], basis: Basis, *, ahead: bool = False) -> bool:
        """Take totals with what is about to be used, unless the meter may not spend that.

        `usage` belongs to the tally from now on. See `Leg.spend`.
        """
        leg = self.leg
        if leg is not None:
            if not leg.spend(usage, basis, ahead=ahead):
                return False
            self.usage, self.basis = usage, basis
        elif self.outcome is None:
            meter = self.owner.meter()
            if meter is not None and not affordable(meter, self.attributes, usage):
                return False
            self.usage, self.basis = usage, basis
            if meter is not None:
                self._open_with(meter)
        return True

    def owe(self, usage: dict[str, int], basis: Basis) -> None:
        """Take totals that the provider will bill in any case."""
        if self.outcome is not None:
            return
        self.usage, self.basis = usage, basis
        if self.leg is not None:
            self.leg.observe(usage, basis)
        else:
            self._open()

    def stop(
        self, outcome: Outcome, usage: dict[str, int] | None = None, basis: Basis | None = None
    ) -> None:
        """Take the final totals; the leg waits for a meter where there is none yet."""
        if self.outcome is not None:
            return
        if usage is not None:
            self.usage = usage
        if basis is not None:
            self.basis = basis
        if self.leg is None:
            self._open()
        self.outcome = outcome
        if self.leg is None:
            self.owner.keep(self)
        elif self.leg.outcome is None:
            self.leg.stop(outcome, self.usage, self.basis)
        else:  # the meter closed first, with what it knew then
            self.leg.correct(self.usage, self.basis, outcome)

    def withdraw(self) -> None:
        """Other legs count what this would count twice: it has used nothing, and ends here."""
        if self.outcome is not None:
            return
        if self.leg is not None:
            self.leg.stop(Outcome.SERVED, dict.fromkeys(self.usage, 0), Basis.OBSERVED)
            self.leg = None  # nothing settles it again
        self.outcome = Outcome.SERVED

    def restore(self) -> None:
        """It was withdrawn too early: it goes on as a new leg."""
        self.outcome = None

    def discard(self) -> None:
        """Nobody ever heard it: a preemptive generation that was thrown away after it was done."""
        if self.outcome is Outcome.SERVED:
            self.outcome = Outcome.DISCARDED
            if self.leg is not None:
                self.leg.correct(outcome=Outcome.DISCARDED)

    def adopted_by(self, meter: LegMeter) -> None:
        """A meter was attached after this had finished."""
        assert self.outcome is not None, "only finished tallies wait for a meter"
        self._open_with(meter)
        if self.leg is not None:
            self.leg.stop(self.outcome, self.usage, self.basis)

    def _open(self) -> None:
        meter = self.owner.meter()
        if meter is not None:
            self._open_with(meter)

    def _open_with(self, meter: LegMeter) -> None:
        speech_id: str | None = getattr(self.speech, "id", None)
        self.leg = meter.open_leg(
            self.attributes,
            self.usage,
            basis=self.basis,
            speech_id=speech_id,
            margins=self.margins,
        )
        self.leg.heard_by_livekit = self.heard_by_livekit
        if self.speech is not None:
            self.leg.speech = weakref.ref(self.speech)
        if self._livekit_counts is not None:
            self.leg.livekit_counts = self._livekit_counts
        if self._served_model or self._served_tier:
            self.leg.served_by(self._served_model, self._served_tier)

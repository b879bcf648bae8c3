"""The control total: what we metered beside LiveKit's `session.usage`, each difference explained.

LiveKit adds the metrics of its components up, per model, without saying of which request they
are. `session_usage_updated` comes after each of them, so what was added is the difference to the
update before, and belongs to a leg of that model that used as much (`_matching`). What LiveKit does
not count though it counts the leg (a blank that ends a word on the wire, thoughts, silence) the leg
says itself, by evidence of its own: `Leg.livekit_counts`. What no event spoke for is explained by
how its leg ended.

An event without a leg would be a request that we missed, or metered wrongly: that, and a served
leg that LiveKit should have counted and did not, is `unexplained`, and a counted fault.

Nothing is ever booked from here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import msgspec

from voicecost_ledger.records import ControlCause, LegAttributes, Modality, Outcome

from . import _faults
from ._matching import (
    BY_OUTCOME,
    EVER,
    Addition,
    Matching,
    add_up,
    expected,
    may_be_left_out,
    shared_out,
)
from ._reports import milliseconds
from .legs import Leg

_BY_REQUEST: Final[dict[str, tuple[tuple[Modality, ...], dict[str, str]]]] = {
    # LiveKit's kind of usage: our modalities, and its field for each of our units
    "llm_usage": (
        (Modality.LLM, Modality.REALTIME),
        {
            "input_tokens": "input_tokens",
            "cached_input_tokens": "input_cached_tokens",
            "output_tokens": "output_tokens",
        },
    ),
    "tts_usage": (
        (Modality.TTS,),
        {
            "characters": "characters_count",
            "input_tokens": "input_tokens",
            "output_tokens": "output_tokens",
        },
    ),
}
_BY_TIME: Final[dict[str, tuple[tuple[Modality, ...], dict[str, str]]]] = {
    "stt_usage": (
        (Modality.STT,),
        {
            "audio_ms": "audio_duration",  # seconds
            "input_tokens": "input_tokens",
            "output_tokens": "output_tokens",
        },
    ),
    "interruption_usage": (
        (Modality.INTERRUPTION_DETECTION,),
        {"requests": "total_requests"},
    ),
    "eot_usage": ((Modality.TURN_DETECTION,), {"requests": "total_requests"}),
}
_KINDS: Final = _BY_REQUEST | _BY_TIME
_IN_FLIGHT_MS: Final = 1_000
"""Audio between our count and LiveKit's when it reports: frames on their way through a plugin."""
_AWAITED_MAX: Final = 16
"""Legs of a model, and additions, of which the other is still looked for. LiveKit counts a request
when it ends: of older ones nothing more is to come, and a plugin that counts otherwise than its
provider must not make all of a long call be compared with all of it."""


class _Model(NamedTuple):
    """What LiveKit adds up together."""

    kind: str
    provider: str
    model: str


class Difference(msgspec.Struct, frozen=True):
    """One `ControlTotal`, as its record's fields."""

    modality: Modality
    provider: str
    model: str
    unit: str
    metered: int
    livekit: int
    causes: dict[str, int]


class _Sum:
    """Legs of a model that are over: nothing more is expected of LiveKit on any of them."""

    def __init__(self, modality: Modality) -> None:
        self.modality = modality
        self.usage: dict[str, int] = {}
        self.expected: dict[str, int] = {}
        self.by_outcome: dict[tuple[Outcome | None, str], int] = {}
        self.causes: dict[tuple[ControlCause, str], int] = {}

    def add(self, other: _Sum, times: int) -> None:
        """Take the sum of another in, or out again with `times` -1."""
        pairs: list[tuple[dict[Any, int], dict[Any, int]]] = [
            (self.usage, other.usage),
            (self.expected, other.expected),
            (self.by_outcome, other.by_outcome),
            (self.causes, other.causes),
        ]
        for into, of in pairs:
            for key, count in of.items():
                into[key] = into.get(key, 0) + count * times


class ControlTotals:
    """Follows `session_usage_updated` of one run of a session, from its start to its close."""

    def __init__(self) -> None:
        self._last: dict[_Model, dict[str, int]] = {}
        self._by_model: dict[_Model, list[Leg]] = {}
        self._newest_leg = 0
        self._sums: dict[_Model, _Sum] = {}
        self._additions: dict[_Model, list[Addition]] = {}  # to the legs that are followed
        self._of_none: dict[_Model, dict[str, int]] = {}  # those that were given up
        self._ours_then: dict[_Model, dict[str, int]] = {}
        self._overheard: dict[_Model, list[Mapping[str, int]]] = {}
        self._elsewhere: dict[_Model, dict[str, int]] = {}
        self._is_attaching = False
        self._late = False
        self._before: dict[_Model, dict[str, int]] = {}
        self.heard = False
        """Whether LiveKit's account could be read at all."""

    def opened(self, leg: Leg) -> None:
        """Follow a leg of the meter's; in the order in which they are opened."""
        self._newest_leg = leg.number
        self._by_model.setdefault(_model_of(leg.attributes), []).append(leg)

    def sum_up(self, legs: Sequence[Leg]) -> list[Callable[[], None] | None]:
        """Follow legs that are over no longer on their own: a long call has thousands.

        Returns:
            For each what follows it again, before it is corrected; None where it is followed still,
            for what LiveKit counts of it is yet to show.
        """
        undos: dict[Leg, Callable[[], None] | None] = dict.fromkeys(legs)
        by_model: dict[_Model, list[Leg]] = {}
        for leg in () if self._is_attaching else legs:
            by_model.setdefault(_model_of(leg.attributes), []).append(leg)
        for model, over in by_model.items():
            matching = self._matching(model)
            awaited = self._awaited(model, matching)
            gone = {leg for leg in over if leg not in awaited}
            for leg in gone:
                undos[leg] = self._summed(model, leg, matching)
            self._by_model[model] = [leg for leg in self._legs_of(model) if leg not in gone]
            self._forget(model, [each for leg in gone for each in matching.of.get(leg, ())])
        return list(undos.values())

    def _summed(self, model: _Model, leg: Leg, matching: Matching) -> Callable[[], None]:
        one = _Sum(leg.attributes.modality)
        for unit in _KINDS[model.kind][1] if model.kind in _KINDS else ():
            one.usage[unit] = leg.usage.get(unit, 0)
            one.expected[unit] = expected(leg, unit)
            one.by_outcome[leg.outcome, unit] = leg.usage.get(unit, 0)
            if model.kind in _BY_REQUEST:
                causes: dict[ControlCause, int] = {}
                _explain(leg, unit, matching, causes)
                one.causes |= {(cause, unit): count for cause, count in causes.items()}
        total = self._sums.setdefault(model, _Sum(one.modality))
        total.add(one, 1)
        counted = matching.of.get(leg, [])

        def undo() -> None:
            total.add(one, -1)
            self._by_model[model].append(leg)
            if counted:
                self._additions[model][:0] = counted

        return undo

    def _awaited(self, model: _Model, matching: Matching) -> set[Leg]:
        """The legs that LiveKit is to count more of than it has, or less, as may still show."""
        if model.kind not in _BY_REQUEST:
            return set()
        units = _KINDS[model.kind][1]
        awaited: set[Leg] = set()
        for leg in self._legs_of(model)[-_AWAITED_MAX:]:
            if may_be_left_out(leg):
                awaits = matching.may_be_of_another(leg)
            else:
                counted = matching.counted(leg) or {}
                awaits = any(expected(leg, unit) > counted.get(unit, 0) for unit in units)
            if awaits:
                awaited.add(leg)
        return awaited

    @contextmanager
    def attaching(self) -> Generator[None]:
        """What a session used before it was attached comes inside, and what LiveKit has counted."""
        self._is_attaching = True
        try:
            yield
        finally:
            self._is_attaching = False

    def attached(self, usage: Any, *, saw_all: bool) -> None:
        """Take what LiveKit had counted when the session was attached, if after its start.

        Args:
            usage: LiveKit's `AgentSessionUsage` of then.
            saw_all: Whether all of it was observed, so that its legs are here by now, or will be.
        """
        self._late = not saw_all
        for model, added in self._added(usage):
            shares: list[Addition] = []
            if model.kind in _BY_REQUEST:
                shares, added = shared_out(self._legs_of(model), added)
                self._additions[model] = shares
            if self._late:
                self._before[model] = added
            elif model.kind in _BY_TIME:
                self._ours_then[model] = added
            elif added:
                shares.append(Addition(added, EVER))

    def overheard(self, attributes: LegAttributes, counts: Mapping[str, int]) -> None:
        """Take what LiveKit counts of another session's leg, through a component that both use."""
        model = _model_of(attributes)
        if model.kind in _BY_TIME:
            add_up(self._elsewhere.setdefault(model, {}), counts)
        elif any(counts.values()):
            self._overheard.setdefault(model, []).append(counts)
            self._give_up_old(model)

    def updated(self, usage: Any) -> None:
        """Take LiveKit's `AgentSessionUsage`, cumulative since the session's start."""
        for model, added in self._added(usage):
            if model.kind in _BY_TIME:
                self._ours_then[model] = self._ours(model)
            elif self._late and not self._legs_of(model) and model not in self._sums:
                add_up(self._before.setdefault(model, {}), added)  # asked for before we looked
            else:
                addition = Addition(added, self._newest_leg)
                self._additions.setdefault(model, []).append(addition)
                self._give_up_old(model)

    def differences(self) -> list[Difference]:
        """Every quantity of which either account has any, with the causes of the difference."""
        found: list[Difference] = []
        for model in dict.fromkeys([*self._last, *self._by_model]):
            if model.kind not in _KINDS:
                continue  # LiveKit has no account of such services
            matching = self._matching(model)
            self._leave_to_others(model, matching)
            ours, theirs = self._ours(model), self._last.get(model, {})
            for unit in _KINDS[model.kind][1]:
                metered, livekit = ours.get(unit, 0), theirs.get(unit, 0)
                if not metered and not livekit:
                    continue
                if model.kind in _BY_TIME:
                    causes = self._causes_by_time(model, unit, metered, livekit)
                else:
                    causes = self._causes_by_request(model, unit, matching)
                unaccounted = metered - livekit - sum(causes.values())
                if unaccounted:
                    _add(causes, ControlCause.UNEXPLAINED, unaccounted)
                found.append(
                    Difference(
                        self._modality(model), model.provider, model.model, unit,
                        metered, livekit, {str(cause): n for cause, n in causes.items() if n},
                    )
                )  # fmt: skip
        if any(ControlCause.UNEXPLAINED in each.causes for each in found):
            _faults.count("control_total")
        return found

    def _added(self, usage: Any) -> Iterator[tuple[_Model, dict[str, int]]]:
        """What LiveKit has added to its account since it was read last."""
        self.heard = True
        for each in usage.model_usage:
            model, quantities = _read(each)
            if model is None:
                continue
            before = self._last.get(model, {})
            added = {
                unit: count - before.get(unit, 0)
                for unit, count in quantities.items()
                if count != before.get(unit, 0)
            }
            if added:
                self._last[model] = quantities
                yield model, added

    def _matching(self, model: _Model) -> Matching:
        by_request = model.kind in _BY_REQUEST
        return Matching(self._legs_of(model) if by_request else (), self._additions.get(model, ()))

    def _leave_to_others(self, model: _Model, matching: Matching) -> None:
        """Find what is left of LiveKit's account among other sessions' requests."""
        requests = self._overheard.get(model, [])
        found: list[Addition] = []
        for addition in matching.left if requests else ():
            for counts in requests:
                if all(counts.get(unit) == count for unit, count in addition.counts.items()):
                    requests.remove(counts)
                    found.append(addition)
                    break
        for addition in found:
            matching.left.remove(addition)
            add_up(self._elsewhere.setdefault(model, {}), addition.counts)
        self._forget(model, found)

    def _give_up_old(self, model: _Model) -> None:
        additions, requests = self._additions.get(model, ()), self._overheard.get(model, [])
        extra = max(len(additions) - len(self._legs_of(model)), len(requests))
        if extra > 2 * _AWAITED_MAX:
            matching = self._matching(model)
            self._leave_to_others(model, matching)
            del requests[:-_AWAITED_MAX]
            given_up = matching.left[:-_AWAITED_MAX]
            for addition in given_up:
                add_up(self._of_none.setdefault(model, {}), addition.counts)
            self._forget(model, given_up)

    def _forget(self, model: _Model, additions: Collection[Addition]) -> None:
        if additions:
            gone = set(additions)
            self._additions[model] = [each for each in self._additions[model] if each not in gone]

    def _causes_by_request(
        self, model: _Model, unit: str, matching: Matching
    ) -> dict[ControlCause, int]:
        summed = self._sums.get(model)
        causes: dict[ControlCause, int] = {}
        for (cause, of_unit), count in summed.causes.items() if summed else ():
            if of_unit == unit:
                _add(causes, cause, count)
        for leg in self._legs_of(model):
            _explain(leg, unit, matching, causes)
        for missing in (*(each.counts for each in matching.left), self._of_none.get(model, {})):
            _add(causes, ControlCause.UNEXPLAINED, -missing.get(unit, 0))
        _add(causes, ControlCause.ATTACHED_LATE, -self._before.get(model, {}).get(unit, 0))
        _add(causes, ControlCause.OUTSIDE_SESSION, -self._elsewhere.get(model, {}).get(unit, 0))
        return causes

    def _causes_by_time(
        self, model: _Model, unit: str, metered: int, livekit: int
    ) -> dict[ControlCause, int]:
        causes: dict[ControlCause, int] = {}
        if not livekit:
            _add(causes, ControlCause.NOT_IN_USAGE, metered)
            return causes
        legs = self._legs_of(model)
        before = self._before.get(model, {}).get(unit, 0)
        _add(causes, ControlCause.ATTACHED_LATE, -before)
        elsewhere = self._elsewhere.get(model, {}).get(unit, 0)
        _add(causes, ControlCause.OUTSIDE_SESSION, -elsewhere)
        livekit -= before + elsewhere
        tail = metered - self._ours_then.get(model, {}).get(unit, 0)
        _add(causes, ControlCause.STT_TAIL, tail)
        rest = metered - livekit - tail

        summed = self._sums.get(model) or _Sum(self._modality(model))

        def of(*outcomes: Outcome) -> int:
            before = sum(summed.by_outcome.get((outcome, unit), 0) for outcome in outcomes)
            return before + sum(leg.usage.get(unit, 0) for leg in legs if leg.outcome in outcomes)

        known = summed.usage.get(unit, 0) - summed.expected.get(unit, 0)
        known += sum(leg.usage.get(unit, 0) - expected(leg, unit) for leg in legs)
        room = _IN_FLIGHT_MS if unit == "audio_ms" else 0
        if abs(rest) <= room:
            _add(causes, ControlCause.STT_TAIL, rest)
        elif 0 < rest <= of(Outcome.FAILED, Outcome.PROBE):
            _add(causes, ControlCause.FAILED_ATTEMPT, rest)
        elif 0 < rest <= of(Outcome.INTERRUPTED):  # a transcription that never came
            _add(causes, ControlCause.INTERRUPTED, rest)
        # What the plugins have reported by the end, or by when LiveKit stopped to listen.
        elif known - tail - room <= rest <= known + room:
            _add(causes, ControlCause.NOT_IN_USAGE, rest)
        elif rest < 0 and self._late:
            _add(causes, ControlCause.ATTACHED_LATE, rest)
        else:
            _add(causes, ControlCause.UNEXPLAINED, rest)
        return causes

    def _ours(self, model: _Model) -> dict[str, int]:
        summed = self._sums.get(model)
        total: dict[str, int] = dict(summed.usage) if summed else {}
        for leg in self._legs_of(model):
            for unit in _KINDS[model.kind][1]:
                total[unit] = total.get(unit, 0) + leg.usage.get(unit, 0)
        return total

    def _legs_of(self, model: _Model) -> list[Leg]:
        """Those that are followed on their own."""
        return self._by_model.get(model, [])

    def _modality(self, model: _Model) -> Modality:
        if model in self._sums:
            return self._sums[model].modality
        for leg in self._legs_of(model):
            return leg.attributes.modality
        return _KINDS[model.kind][0][0]


def _read(usage: Any) -> tuple[_Model | None, dict[str, int]]:
    """One model's usage in our units; None for a kind that we do not know."""
    kind = getattr(usage, "type", "")
    if kind not in _KINDS:
        return None, {}
    quantities: dict[str, int] = {}
    for unit, field in _KINDS[kind][1].items():
        value = getattr(usage, field, 0)
        quantities[unit] = milliseconds(value) if unit == "audio_ms" else int(value)
    return _Model(kind, usage.provider, usage.model), quantities


_KIND_OF: Final = {
    modality: kind for kind, (modalities, _) in _KINDS.items() for modality in modalities
}


def _model_of(attributes: LegAttributes) -> _Model:
    kind = _KIND_OF.get(attributes.modality, "")
    return _Model(kind, attributes.provider, attributes.model)


def _explain(leg: Leg, unit: str, matching: Matching, causes: dict[ControlCause, int]) -> None:
    """Why LiveKit has counted another quantity of a leg than we have."""
    counted = matching.counted(leg)
    rest = leg.usage.get(unit, 0) - (counted or {}).get(unit, 0)
    ended = BY_OUTCOME.get(leg.outcome or Outcome.INTERRUPTED)
    left = ended or (ControlCause.INTERRUPTED if leg.speech_interrupted else None)
    if counted is None and left is not None:
        _add(causes, left, rest)
        return
    if counted is None and not leg.heard_by_livekit:
        _add(causes, ControlCause.OUTSIDE_SESSION, rest)
        return
    known = leg.usage.get(unit, 0) - expected(leg, unit)
    _add(causes, ControlCause.NOT_IN_USAGE, known)
    rest -= known
    if rest > 0 and ended is not None:  # estimated, where LiveKit has no report to count
        _add(causes, ended, rest)
    elif rest < 0 and leg in matching.again:
        _add(causes, ControlCause.NOT_IN_USAGE, rest)
    else:
        _add(causes, ControlCause.UNEXPLAINED, rest)


def _add(causes: dict[ControlCause, int], cause: ControlCause, count: int) -> None:
    if count:
        causes[cause] = causes.get(cause, 0) + count

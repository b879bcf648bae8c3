"""The control total: what we metered beside LiveKit's `session.usage`, each difference explained.

LiveKit adds the metrics of its components up, per model, without saying of which request they
are. `session_usage_updated` comes after each of them, so what was added is the difference to the
update before, and belongs to the leg of that model that used as much. What no event spoke for is
explained by how its leg ended. An event without a leg would be a request that we missed: that, and
a served leg that LiveKit should have counted and did not, is `unexplained`, and a counted fault.

Nothing is ever booked from here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from voicecost_ledger.records import ControlCause, Modality, Outcome

from . import _faults
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
_BY_OUTCOME: Final = {
    Outcome.INTERRUPTED: ControlCause.INTERRUPTED,
    Outcome.CUT: ControlCause.INTERRUPTED,
    Outcome.LOST: ControlCause.INTERRUPTED,
    Outcome.FAILED: ControlCause.FAILED_ATTEMPT,
    Outcome.DISCARDED: ControlCause.DISCARDED,
    Outcome.PROBE: ControlCause.PROBE,
}


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


class ControlTotals:
    """Follows `session_usage_updated` of one run of a session, from its start to its close.

    Args:
        legs: The meter's legs so far, in the order in which they were opened.
    """

    def __init__(self, legs: Callable[[], Iterable[Leg]]) -> None:
        self._legs = legs
        self._last: dict[_Model, dict[str, int]] = {}
        self._by_model: dict[_Model, list[Leg]] = {}
        self._uncounted: dict[_Model, list[Leg]] = {}  # those that more may be claimed of
        self._leg_count = 0
        self._counted: dict[Leg, dict[str, int]] = {}
        self._unclaimed: list[tuple[_Model, dict[str, int]]] = []
        self._ours_then: dict[_Model, dict[str, int]] = {}
        self.heard = False

    def updated(self, usage: Any) -> None:
        """Take LiveKit's `AgentSessionUsage`, cumulative since the session's start."""
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
            if not added:
                continue
            self._last[model] = quantities
            if model.kind in _BY_TIME:
                self._ours_then[model] = self._ours(model)
            elif not self._claim(model, added):
                self._unclaimed.append((model, added))

    def differences(self) -> list[Difference]:
        """Every quantity of which either account has any, with the causes of the difference."""
        self._unclaimed = [each for each in self._unclaimed if not self._claim(*each)]
        found: list[Difference] = []
        self._sort_legs()
        for model in dict.fromkeys([*self._last, *self._by_model]):
            if model.kind not in _KINDS:
                continue  # LiveKit has no account of such services
            ours, theirs = self._ours(model), self._last.get(model, {})
            for unit in _KINDS[model.kind][1]:
                metered, livekit = ours.get(unit, 0), theirs.get(unit, 0)
                if not metered and not livekit:
                    continue
                if model.kind in _BY_TIME:
                    causes = self._causes_by_time(model, unit, metered, livekit)
                else:
                    missing = sum(
                        added.get(unit, 0) for of, added in self._unclaimed if of == model
                    )
                    causes = self._causes_by_request(model, unit, missing)
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

    def _claim(self, model: _Model, added: Mapping[str, int]) -> bool:
        """Find the leg that an addition is of."""
        best: tuple[int, Leg] | None = None
        # Of legs that used the same, the one that LiveKit should have counted.
        for leg in sorted(self._claimable(model), key=_is_uncounted):
            surplus = self._surplus(leg, model, added)
            if surplus is not None and (best is None or surplus < best[0]):
                best = (surplus, leg)
            if surplus == 0:
                break
        if best is None:
            best = self._said_again(model, added)
        if best is None:
            return False
        counted = self._counted.setdefault(best[1], {})
        for unit, count in added.items():
            counted[unit] = counted.get(unit, 0) + count
        return True

    def _surplus(self, leg: Leg, model: _Model, added: Mapping[str, int]) -> int | None:
        """How much more than an addition a leg has used; None where it cannot be of this leg."""
        # Speech is counted by segment, and without what a plugin adds on the wire; a realtime
        # response by the plugin's own reading of its report (Google's leaves out thoughts).
        partly = model.kind == "tts_usage" or leg.attributes.modality is Modality.REALTIME
        counted, surplus = self._counted.get(leg, {}), 0
        for unit, count in added.items():
            more = leg.usage.get(unit, 0) - counted.get(unit, 0) - count
            if more < 0 or (more and not partly):
                return None
            surplus += more
        return surplus

    def _claimable(self, model: _Model) -> list[Leg]:
        """The legs of a model that LiveKit has not counted whole yet."""
        self._sort_legs()
        units = _KINDS[model.kind][1]
        left = [
            leg
            for leg in self._uncounted.get(model, ())
            if leg.outcome is None
            or leg not in self._counted
            or any(leg.usage.get(unit, 0) > self._counted[leg].get(unit, 0) for unit in units)
        ]
        self._uncounted[model] = left
        return left

    def _said_again(self, model: _Model, added: Mapping[str, int]) -> tuple[int, Leg] | None:
        """A realtime response's running total, which LiveKit adds up as if each were the whole."""
        for leg in reversed(self._legs_of(model)):
            again = added.get("input_tokens") == leg.usage.get("input_tokens")
            if again and leg.attributes.modality is Modality.REALTIME and leg in self._counted:
                return 0, leg
        return None

    def _causes_by_request(self, model: _Model, unit: str, missing: int) -> dict[ControlCause, int]:
        causes: dict[ControlCause, int] = {}
        for leg in self._legs_of(model):
            counted = self._counted.get(leg)
            difference = leg.usage.get(unit, 0) - (counted or {}).get(unit, 0)
            _add(causes, _cause_of(leg, counted is not None), difference)
        _add(causes, ControlCause.UNEXPLAINED, -missing)
        return causes

    def _causes_by_time(
        self, model: _Model, unit: str, metered: int, livekit: int
    ) -> dict[ControlCause, int]:
        causes: dict[ControlCause, int] = {}
        if not livekit:
            _add(causes, ControlCause.NOT_IN_USAGE, metered)
            return causes
        then = self._ours_then.get(model, {}).get(unit, 0)
        _add(causes, ControlCause.STT_TAIL, metered - then)
        rest = then - livekit
        failed = sum(
            leg.usage.get(unit, 0)
            for leg in self._legs_of(model)
            if leg.outcome in (Outcome.FAILED, Outcome.PROBE)
        )
        interrupted = sum(
            leg.usage.get(unit, 0)
            for leg in self._legs_of(model)
            if leg.outcome is Outcome.INTERRUPTED
        )
        open_ms = sum(leg.usage.get("connected_ms", 0) for leg in self._legs_of(model))
        if 0 < rest <= failed:
            _add(causes, ControlCause.FAILED_ATTEMPT, rest)
        elif 0 < rest <= interrupted:  # a realtime model's transcription that never came
            _add(causes, ControlCause.INTERRUPTED, rest)
        elif unit == "audio_ms" and abs(rest) <= _IN_FLIGHT_MS:
            _add(causes, ControlCause.STT_TAIL, rest)
        elif unit == "audio_ms" and livekit <= open_ms + _IN_FLIGHT_MS:
            # Deepgram's plugin adds what the open socket was silent for.
            _add(causes, ControlCause.NOT_IN_USAGE, rest)
        else:
            _add(causes, ControlCause.UNEXPLAINED, rest)
        return causes

    def _ours(self, model: _Model) -> dict[str, int]:
        total: dict[str, int] = {}
        for leg in self._legs_of(model):
            for unit in _KINDS[model.kind][1]:
                total[unit] = total.get(unit, 0) + leg.usage.get(unit, 0)
        return total

    def _legs_of(self, model: _Model) -> list[Leg]:
        self._sort_legs()
        return self._by_model.get(model, [])

    def _sort_legs(self) -> None:
        """Note the model of those legs that are new: a long call has thousands."""
        for leg in itertools.islice(self._legs(), self._leg_count, None):
            self._leg_count += 1
            model = _model_of(leg)
            self._by_model.setdefault(model, []).append(leg)
            self._uncounted.setdefault(model, []).append(leg)

    def _modality(self, model: _Model) -> Modality:
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
        quantities[unit] = round(value * 1000) if unit == "audio_ms" else int(value)
    return _Model(kind, usage.provider, usage.model), quantities


_KIND_OF: Final = {
    modality: kind for kind, (modalities, _) in _KINDS.items() for modality in modalities
}


def _model_of(leg: Leg) -> _Model:
    attributes = leg.attributes
    kind = _KIND_OF.get(attributes.modality, "")
    return _Model(kind, attributes.provider, attributes.model)


def _is_uncounted(leg: Leg) -> bool:
    """Whether LiveKit would be expected to leave a leg out."""
    return not leg.heard_by_livekit or leg.outcome in _BY_OUTCOME


def _cause_of(leg: Leg, was_counted: bool) -> ControlCause:
    cause = _BY_OUTCOME.get(leg.outcome) if leg.outcome is not None else ControlCause.INTERRUPTED
    if cause is not None:
        return cause
    if was_counted:
        return ControlCause.NOT_IN_USAGE  # a part of it: the space that ends a word on the wire
    return ControlCause.UNEXPLAINED if leg.heard_by_livekit else ControlCause.OUTSIDE_SESSION


def _add(causes: dict[ControlCause, int], cause: ControlCause, count: int) -> None:
    if count:
        causes[cause] = causes.get(cause, 0) + count

"""What every store reckons from a call's legs when it is read: turns, latency, shares. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from voicecost_ledger.entries import FLAT_FEE_NUMBER
from voicecost_ledger.records import Modality, Outcome
from voicecost_ledger.stores import LatencyRow, LegView, TurnView


def nearest_rank(values: Sequence[int], percent: int) -> int | None:
    """The smallest value that at least `percent` of them do not exceed; None of none."""
    ranked = sorted(values)
    return ranked[-(-len(ranked) * percent // 100) - 1] if ranked else None


def turns_of(legs: Iterable[LegView]) -> list[TurnView]:
    """Legs by their speech, in the order the speeches began; those of none are one of the rows."""
    by_speech: dict[str | None, list[LegView]] = defaultdict(list)
    for leg in legs:
        by_speech[leg.speech_id].append(leg)
    turns: list[TurnView] = []
    for speech_id, members in by_speech.items():
        by_modality: dict[str, int] = defaultdict(int)
        waste = 0
        for leg in members:
            amount = leg.amount_nano_usd or 0
            by_modality[leg.modality.value] += amount
            if leg.outcome not in (None, Outcome.SERVED):
                waste += amount
        turns.append(
            TurnView(
                speech_id=speech_id,
                started_at_unix_ms=min(leg.started_at_unix_ms for leg in members),
                total_nano_usd=sum(by_modality.values()),
                waste_nano_usd=waste,
                nano_usd_by_modality=dict(by_modality),
                leg_count=len(members),
                unpriced_leg_count=sum(leg.amount_nano_usd is None for leg in members),
            )
        )
    return sorted(turns, key=lambda turn: turn.started_at_unix_ms)


def latency_of(legs: Iterable[LegView]) -> list[LatencyRow]:
    """How long a call's legs took, by modality, provider and model."""
    groups: dict[tuple[str, str, str], list[LegView]] = defaultdict(list)
    for leg in legs:
        if leg.modality is Modality.PARTICIPANT:
            continue  # how long somebody stayed is no latency
        if leg.outcome not in (None, Outcome.LOST) and leg.leg < FLAT_FEE_NUMBER:
            groups[leg.modality.value, leg.provider, leg.billed_model].append(leg)
    return [
        latency_row(
            dict(zip(("modality", "provider", "model"), group, strict=True)),
            len(members),
            [leg.time_to_first_ms for leg in members if leg.time_to_first_ms is not None],
            [leg.duration_ms for leg in members if leg.duration_ms is not None],
        )
        for group, members in sorted(groups.items())
    ]


def latency_row(
    group: dict[str, str], leg_count: int, first_ms: Sequence[int], duration_ms: Sequence[int]
) -> LatencyRow:
    """One group, its times ranked."""
    return LatencyRow(
        group=group,
        leg_count=leg_count,
        answered_leg_count=len(first_ms),
        time_to_first_p50_ms=nearest_rank(first_ms, 50),
        time_to_first_p95_ms=nearest_rank(first_ms, 95),
        duration_p50_ms=nearest_rank(duration_ms, 50),
        duration_p95_ms=nearest_rank(duration_ms, 95),
    )

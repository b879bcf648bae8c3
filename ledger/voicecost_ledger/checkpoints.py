"""Checkpoints: a meter's totals for when its host vanishes with the spool (I4).

A checkpoint rides, sealed, in an attribute of the agent's participant; LiveKit gives back the last
one in `participant_left`, also after SIGKILL. It says what the meter's records up to `seq` come to:
one total for each kind of leg, cumulative from the meter's first record. Where those records never
arrive, the difference to what did is settled from it; where they turn up after all, they are the
truth and it counts for nothing.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from voicecost_ledger.records import LegAttributes, MeterOpen, Usage

TOTALS_MAX: Final = 64


class CheckpointTotal(msgspec.Struct, frozen=True, array_like=True):
    """What all legs with the same attributes used together, open ones as far as they have come.

    `attributes` are those of their `LegStart`, unchanged: the price depends on them, and the
    ledger compares its own legs with the same attributes.
    """

    attributes: LegAttributes
    usage: Usage


class Checkpoint(msgspec.Struct, frozen=True, array_like=True):
    """A meter's totals over its records 1 to `seq`, none left out.

    `opened` is the meter's first record: a ledger that never heard of the meter opens it from
    this. What does not decide whose call it is (`versions`, `tags`) may be left out of it.
    A checkpoint with a lower `seq` than one known already says nothing new. The totals may be a
    little ahead of record `seq`: what is used is written down in steps.
    """

    opened: MeterOpen
    seq: int
    at_unix_ms: int
    totals: Annotated[list[CheckpointTotal], msgspec.Meta(max_length=TOTALS_MAX)] = []

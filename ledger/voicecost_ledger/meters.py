"""Meters as the authority has them: identity, watermark, and the credit they hold."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from voicecost_ledger.checkpoints import Checkpoint
from voicecost_ledger.records import Coverage, MeterOpen


class MeterState(StrEnum):
    """OPEN until its close is durable (CLOSED), its spool was adopted, or its grace is over."""

    OPEN = "open"
    CLOSED = "closed"
    ADOPTED = "adopted"
    LOST = "lost"


class Meter(msgspec.Struct, kw_only=True):
    """One meter.

    `charged_nano_usd` is the rated total of its legs; `posted_nano_usd` of it is in the books, and
    `adjusted_nano_usd` of that the meter itself knows nothing of.
    """

    meter_id: str
    call_id: str
    project: str
    opened: MeterOpen
    # Of what LiveKit itself bills: written by the ledger, no agent speaks for it, and it is never
    # open in the sense that anything were to be heard of it.
    of_rooms: bool = False
    state: MeterState = MeterState.OPEN
    durable_seq: int = 0
    records_lost: bool = False  # of those up to `durable_seq`, some never came and never will
    checkpoint: Checkpoint | None = None  # the latest that was seen, its time by our clock
    coverage: Coverage = Coverage.COMPLETE
    last_heard_at_unix_ms: int = 0
    charged_nano_usd: int = 0
    posted_nano_usd: int = 0
    adjusted_nano_usd: int = 0
    unpriced_leg_count: int = 0
    # credit (RFC 8506): held_nano_usd is reserved on every window of `held_windows`
    epoch: int = 0
    renewal: int = 0
    held_nano_usd: int = 0
    held_windows: list[tuple[str, int]] = []  # (scope, window start)
    unreported_max_nano_usd: int = 0
    lease_until_unix_ms: int | None = None
    final: bool = False
    exhausted: bool = False

    @property
    def ceiling_nano_usd(self) -> int:
        """What the meter's own total may reach on its present hold."""
        return self.posted_nano_usd - self.adjusted_nano_usd + self.held_nano_usd

    @property
    def own_total_nano_usd(self) -> int:
        """What its legs were charged, as the meter counts too: without adjustments."""
        return self.charged_nano_usd - self.adjusted_nano_usd

    @property
    def lacks_records(self) -> bool:
        """Whether the latest checkpoint counts what is in no record of the ledger.

        It may be a little ahead of its own `seq`, for what was used is written down in steps: of a
        meter that was given up right there, nothing else will ever tell.
        """
        seen = self.checkpoint
        if seen is None:
            return False
        last_step = self.state is MeterState.LOST and self.durable_seq == seen.seq
        return self.records_lost or self.durable_seq < seen.seq or last_step

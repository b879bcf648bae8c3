"""An agent's timestamps as the ledger's."""

from __future__ import annotations

from typing import Final

TOLERANCE_MS: Final = 2_000
OLDEST_RECORD_MS: Final = 30 * 24 * 3_600_000
OLDEST_UNTIMED_MS: Final = 3_600_000
"""How far a record's time is believed of a sender that does not say what its clock shows."""


class AgentClock:
    """An agent's timestamps as ours: by the difference of both clocks when it sent them.

    A clock that is a day off must not book to another day, nor to a budget of another day.
    """

    def __init__(self, now: int, sent_at_unix_ms: int) -> None:
        self._now = now
        offset = now - sent_at_unix_ms if sent_at_unix_ms > 0 else 0
        self._offset = offset if abs(offset) > TOLERANCE_MS else 0
        self._oldest = now - (OLDEST_RECORD_MS if sent_at_unix_ms > 0 else OLDEST_UNTIMED_MS)

    def ours(self, at_unix_ms: int) -> int:
        """An instant of the agent's clock by ours; now, where it cannot be true."""
        at = at_unix_ms + self._offset
        return at if self._oldest <= at <= self._now else self._now

"""What a meter may spend: its own budget, the authority's grant, and credit for an outage. Pure.

    total + next <= ceiling                    of the latest grant (by epoch)
    total + next - acknowledged <= unreported  so that a lost meter costs at most that much
    now < lease                                counted from when the renewal was *sent*

Outside of these the meter stops (I11), with one exception: while more may come, and with
`FailureHandling.CONTINUE`, a call goes on for up to `outage_credit_nano_usd` more than what is held
for it. More may come when the authority cannot be reached (an outage), and when it can but has not
answered yet ("not now": see `Answer.MEANWHILE`). None comes after a final grant, nor beyond the
call's own budget, which is known here and never exceeded on credit.
"""

from __future__ import annotations

import sys
from enum import Enum, StrEnum
from typing import Final

from voicecost_ledger.budgets import closing_reserve
from voicecost_ledger.protocol import Grant

OUTAGE_CREDIT_NANO_USD: Final = 500_000_000
"""$0.50: some minutes of a typical call, and what one call can overshoot in an outage."""
FIRST_LEASE_MS: Final = 30_000
"""How long a meter that chose `TERMINATE` waits for its very first grant."""
ANSWER_TIMEOUT_MS: Final = 2_000
"""An authority that owes an answer for so long counts as out of reach."""
_NEVER: Final = sys.maxsize


class Answer(Enum):
    """Whether a meter may spend.

    YES: it may. MEANWHILE: it may, on credit, because more may be granted any moment: ask for it
    now, and take it for a no when nothing comes. NO: it must not.
    """

    YES = "yes"
    MEANWHILE = "meanwhile"
    NO = "no"


class FailureHandling(StrEnum):
    """What a call does that can reach no authority (RFC 8506's Credit-Control-Failure-Handling).

    CONTINUE: it goes on, on a bounded credit. TERMINATE: an outage longer than the lease ends it.
    """

    CONTINUE = "continue"
    TERMINATE = "terminate"


class Allowance:
    """One meter's right to spend. Amounts are cumulative nano-USD, times ms on one steady clock.

    The clock must run through suspend (CLOCK_BOOTTIME), or a laptop that slept believes in a lease
    that others have been given meanwhile. Grants may be taken on another thread than the one that
    asks: each question reads a grant once.

    Args:
        opened_at_ms: When the meter opened; leases of unasked grants count from here.
        budget_nano_usd: The call's own budget, if it is to end the call; None: it has none.
        outage_credit_nano_usd: What it may spend beyond what is held for it, while the authority
            has not said no. Until the first grant nothing is held.
        failure_handling: Whether there is such credit at all.
    """

    def __init__(
        self,
        opened_at_ms: int,
        *,
        budget_nano_usd: int | None = None,
        outage_credit_nano_usd: int = OUTAGE_CREDIT_NANO_USD,
        failure_handling: FailureHandling = FailureHandling.CONTINUE,
    ) -> None:
        self._budget_nano_usd = budget_nano_usd
        self._outage_credit_nano_usd = outage_credit_nano_usd
        self._continue = failure_handling is FailureHandling.CONTINUE
        self._first_lease_until_ms = opened_at_ms + FIRST_LEASE_MS
        self._sent_at_ms: dict[int, int] = {0: opened_at_ms}
        self._grant: Grant | None = None
        self._lease_until_ms = opened_at_ms
        self._connected = False
        self._asked_at_ms: int | None = None  # the oldest renewal without any sign of life since
        self._credit_spent_nano_usd = 0  # in outages that are over
        self._credit_drawn_nano_usd = 0  # in the present one
        self._credit_total_nano_usd = 0  # the meter's total when that was drawn

    @property
    def grant(self) -> Grant | None:
        """The latest grant taken."""
        return self._grant

    @property
    def ceiling_nano_usd(self) -> int | None:
        """Where the meter is cut, credit aside; None: no budget applies that is known here."""
        granted = None if self._grant is None else self._grant.ceiling_nano_usd
        return _least(self._budget_nano_usd, granted)

    @property
    def soft_end_nano_usd(self) -> int | None:
        """Where the call begins to wrap up: the last ceiling less what the call's end will cost."""
        own = self._budget_nano_usd
        if own is not None:
            own -= closing_reserve(own)
        grant = self._grant
        return _least(own, grant.soft_nano_usd if grant is not None and grant.final else None)

    def ask(
        self, total_nano_usd: int, next_nano_usd: int, acked_nano_usd: int, now_ms: int
    ) -> Answer:
        """Whether the meter may go from its total to `total + next`. Cheap: ask before every push.

        Args:
            total_nano_usd: The meter's own rated total.
            next_nano_usd: What the next request, push or chunk adds.
            acked_nano_usd: Its total at the last record that is durable at the authority.
            now_ms: Now, on the clock of `opened_at_ms`.
        """
        after = total_nano_usd + next_nano_usd
        if self._budget_nano_usd is not None and after > self._budget_nano_usd:
            return Answer.NO
        grant = self._grant
        held = 0
        answer = Answer.YES
        if grant is not None:
            ceiling = grant.ceiling_nano_usd
            if ceiling is None:
                return Answer.YES
            if after > ceiling and grant.final:
                return Answer.NO  # neither late nor an outage: a budget that applies is used up
            held = min(ceiling, acked_nano_usd + grant.unreported_max_nano_usd)
            leased = now_ms < self._lease_until_ms
            if leased and after <= held:
                return Answer.YES
            if not self._continue:
                return Answer.NO
            if leased and self._answers(now_ms):
                answer = Answer.MEANWHILE
            # When a lease is over the authority keeps `held` for the meter, and no more.
        elif not self._continue and now_ms >= self._first_lease_until_ms:
            return Answer.NO
        drawn = after - held
        if drawn > self._outage_credit_nano_usd - self._credit_spent_nano_usd:
            return Answer.NO
        if drawn > self._credit_drawn_nano_usd:
            self._credit_drawn_nano_usd = drawn
            self._credit_total_nano_usd = after
        return answer

    def may_spend(
        self, total_nano_usd: int, next_nano_usd: int, acked_nano_usd: int, now_ms: int
    ) -> bool:
        """`ask` without the difference between yes and meanwhile."""
        answer = self.ask(total_nano_usd, next_nano_usd, acked_nano_usd, now_ms)
        return answer is not Answer.NO

    def _answers(self, now_ms: int) -> bool:
        asked_at_ms = self._asked_at_ms
        waits = asked_at_ms is not None and now_ms - asked_at_ms >= ANSWER_TIMEOUT_MS
        return self._connected and not waits

    def clear(self, acked_nano_usd: int) -> tuple[int, int]:
        """Up to which total, and until when, `may_spend` says yes and draws no credit for it.

        It holds until the next grant; an acknowledgement can only raise it. So that a meter far
        from all its limits need not ask.
        """
        grant = self._grant
        if grant is None:
            return -1, 0
        budget = _NEVER if self._budget_nano_usd is None else self._budget_nano_usd
        if grant.ceiling_nano_usd is None:
            return budget, _NEVER
        held = min(grant.ceiling_nano_usd, acked_nano_usd + grant.unreported_max_nano_usd)
        return min(held, budget), self._lease_until_ms

    def report_at_nano_usd(self, acked_nano_usd: int) -> int | None:
        """The total at which the uplink should report at once: half of the unreported window."""
        grant = self._grant
        if grant is None or grant.ceiling_nano_usd is None:
            return None
        return acked_nano_usd + grant.unreported_max_nano_usd // 2

    def renewal_sent(self, renewal: int, now_ms: int) -> None:
        """A Renew left: the lease of the grant that answers it runs from now."""
        self._sent_at_ms.setdefault(renewal, now_ms)
        if self._asked_at_ms is None:
            self._asked_at_ms = now_ms

    def granted(self, grant: Grant) -> bool:
        """Take a grant; False when it is stale. Resent and reordered grants change nothing."""
        known = self._grant
        if known is not None and grant.epoch < known.epoch:
            return False
        sent_at_ms = self._sent_at_ms.get(grant.renewal)
        if sent_at_ms is not None:
            self._lease_until_ms = max(self._lease_until_ms, sent_at_ms + grant.lease_ms)
            for renewal in [r for r in self._sent_at_ms if 0 < r < grant.renewal]:
                del self._sent_at_ms[renewal]
        if known is not None and grant.epoch == known.epoch:
            return True
        if self._credit_drawn_nano_usd:
            # What the new ceiling covers was no overshoot after all; the rest is spent for good.
            ceiling = grant.ceiling_nano_usd
            if ceiling is not None and self._credit_total_nano_usd > ceiling:
                self._credit_spent_nano_usd += self._credit_drawn_nano_usd
            self._credit_drawn_nano_usd = self._credit_total_nano_usd = 0
        self._grant = grant
        return True

    def reachable(self, connected: bool) -> None:
        """Whether the authority answers; while it does, the end of a grant is no outage.

        Say so at each of its answers: one that owes an answer for too long counts as gone.
        """
        self._connected = connected
        if connected:
            self._asked_at_ms = None

    def restored(self) -> None:
        """The authority is another one, or was restored: its epochs count anew."""
        if self._grant is not None:
            self._grant = _with_epoch(self._grant, -1)


def _least(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def _with_epoch(grant: Grant, epoch: int) -> Grant:
    return Grant(
        meter_id=grant.meter_id,
        epoch=epoch,
        renewal=grant.renewal,
        ceiling_nano_usd=grant.ceiling_nano_usd,
        soft_nano_usd=grant.soft_nano_usd,
        unreported_max_nano_usd=grant.unreported_max_nano_usd,
        lease_ms=grant.lease_ms,
        final=grant.final,
    )

"""Legs and the entries posted for them (I8).

What is posted for a leg is always the rate of its cumulative usage minus what was posted before,
as entry `(leg, part)`. Quarter hours, the stop, an estimate that became exact, a late record, a
rerate: all of them are this one operation, so minimum, round-up and rounding telescope and the
parts sum to the rate of the total.
"""

from __future__ import annotations

from typing import Final

import msgspec

from voicecost_ledger.billing import marked_up
from voicecost_ledger.records import Basis, LegAttributes, Outcome

QUARTER_HOUR_MS: Final = 15 * 60 * 1000
CONNECTION_NUMBER: Final = 1_000_000
"""Legs above this number, up to the flat fees', are connections to rooms: no other leg of a call
has the same one."""
FLAT_FEE_NUMBER: Final = 1_000_000_000
"""Legs from this number on are no requests: the call's flat fee, and above it its adjustments. No
meter makes so many, and none is believed that says so."""


class Leg(msgspec.Struct, kw_only=True):
    """A leg as the ledger has it: totals, rating, and how much of it is posted."""

    key: int = 0  # the store's own number; 0 until first saved
    meter_id: str
    # Below 0: no leg of the meter's, but what only its checkpoint tells of; from FLAT_FEE_NUMBER
    # on: an amount of the call's that is no request.
    number: int
    call_id: str
    attributes: LegAttributes  # as asked for
    served_model: str | None = None  # what the provider says served it, where it said another
    served_tier: str | None = None  # the service tier that did, where it was not asked for
    priced_as: str | None = None  # what served it, where that has a price of its own
    started_at_unix_ms: int
    speech_id: str | None = None
    usage: dict[str, int]
    recorded_basis: Basis  # how its meter knows the usage
    basis: Basis  # of its amount: estimated too where the price has to convert what was counted
    outcome: Outcome | None = None  # None while open
    stopped_at_unix_ms: int | None = None
    last_at_unix_ms: int  # of the last record applied
    time_to_first_ms: int | None = None  # to the first token or byte; None: none came
    duration_ms: int | None = None  # by the meter's steady clock; None: it did not say
    margins: dict[str, int] = {}  # by how much each unit may be off, by its last record
    price_id: str | None = None
    pricing_source: str | None = None
    rated_nano_usd: int | None = None  # of `usage`; None: no price known
    # By how much `rated_nano_usd` may be off; 0 where it is exact, None where nobody can say.
    uncertainty_nano_usd: int | None = None
    posted_nano_usd: int = 0
    markup_ppm: int = 0  # what held when it began
    billed_nano_usd: int | None = None  # `rated_nano_usd` with its markup
    posted_billed_nano_usd: int = 0
    posted_usage: dict[str, int] = {}
    posted_basis: Basis | None = None
    part_count: int = 0
    unpriced_posted: bool = False  # its last entry has a null amount

    @property
    def is_request(self) -> bool:
        """Whether it stands for what a provider was asked, and not for a fee or an adjustment."""
        return self.number < FLAT_FEE_NUMBER

    def set_rated(self, amount_nano_usd: int | None) -> None:
        """Its whole amount is this now, None: not known; what is billed follows."""
        self.rated_nano_usd = amount_nano_usd
        self.billed_nano_usd = marked_up(amount_nano_usd, self.markup_ppm)

    @property
    def accruing_nano_usd(self) -> int:
        """Rated but not yet posted."""
        return (self.rated_nano_usd or 0) - self.posted_nano_usd

    @property
    def billed_model(self) -> str:
        """The model whose price rates it; its costs are grouped under this one.

        A provider's dated name for what was asked for costs the same and changes nothing here.
        """
        return self.priced_as or self.attributes.model


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One posted part of a leg's charge. A correction is a new entry.

    `uncertainty_nano_usd` is of the leg's whole amount as it was known with this part, not of the
    part's own: it is not to be summed over the parts of a leg. 0 where the amount is exact
    (`reported`, `observed`), None where nobody can say: no price, or no margins, such as of what
    was lost with its host.
    """

    leg_key: int
    part: int  # 0, 1, 2 ...: the parts of a leg sum to the rate of its total
    amount_nano_usd: int | None  # None means "no price known"; 0 means "free"
    billed_nano_usd: int | None  # the same with markup: parts of a leg sum to the billed total
    price_id: str | None  # content hash of the price that gave the amount
    basis: Basis
    uncertainty_nano_usd: int | None
    usage: dict[str, int]  # of this part alone
    accrued_at_unix_ms: int  # when the money was spent; reports use this
    posted_at_unix_ms: int  # when we learned it

    def __post_init__(self) -> None:
        if (self.amount_nano_usd is None) != (self.price_id is None):
            raise ValueError(
                f"entry {self.leg_key}/{self.part}: {self.amount_nano_usd=} with {self.price_id=}; "
                "every amount leads to a price and no price gives no amount"
            )
        if (self.amount_nano_usd is None) != (self.billed_nano_usd is None):
            raise ValueError(
                f"entry {self.leg_key}/{self.part}: {self.amount_nano_usd=} with "
                f"{self.billed_nano_usd=}; what has a cost is billed, and nothing else"
            )


def quarter_hour(at_unix_ms: int) -> int:
    """The start of the quarter hour of UTC that holds an instant."""
    return at_unix_ms - at_unix_ms % QUARTER_HOUR_MS


def next_part(leg: Leg, *, posted_at_unix_ms: int) -> Entry | None:
    """The entry that brings a leg's posted amount up to its rated one; None when there is none.

    Changes the leg to match: post and save both in one transaction.
    """
    priced = leg.rated_nano_usd is not None
    amount = leg.rated_nano_usd - leg.posted_nano_usd if leg.rated_nano_usd is not None else None
    billed = None if amount is None else (leg.billed_nano_usd or 0) - leg.posted_billed_nano_usd
    part_usage = {
        unit: quantity - leg.posted_usage.get(unit, 0)
        for unit, quantity in leg.usage.items()
        if quantity != leg.posted_usage.get(unit, 0)
    }
    same_pricing = priced != leg.unpriced_posted and leg.basis == leg.posted_basis
    if leg.part_count and same_pricing and not part_usage and not (amount or billed):
        return None
    entry = Entry(
        leg_key=leg.key,
        part=leg.part_count,
        amount_nano_usd=amount,
        billed_nano_usd=billed,
        price_id=leg.price_id if priced else None,
        basis=leg.basis,
        uncertainty_nano_usd=leg.uncertainty_nano_usd,
        usage=part_usage,
        accrued_at_unix_ms=leg.last_at_unix_ms,
        posted_at_unix_ms=posted_at_unix_ms,
    )
    leg.part_count += 1
    leg.posted_nano_usd += amount or 0
    leg.posted_billed_nano_usd += billed or 0
    leg.posted_usage = dict(leg.usage)
    leg.posted_basis = leg.basis
    leg.unpriced_posted = not priced
    return entry

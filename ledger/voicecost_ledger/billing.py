"""What is billed on for a call: its cost plus a markup, and a flat fee.

Billed is a second amount beside the cost, fixed when an entry is posted: a leg keeps the markup
that held when it began, a call its fee. Budgets count cost, never what is billed.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

import msgspec

from voicecost_ledger.money import EXACT, round_half_even

PPM: Final = 1_000_000
MARKUP_MAX_PERCENT: Final = 10_000
_PPM_PER_PERCENT: Final = 10_000


class BillingTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What is added to the cost; None: the wider terms hold."""

    markup_ppm: int | None = None  # millionths of the cost: 125_000 is 12.5 percent
    flat_fee_nano_usd: int | None = None  # once for each call


class Billing(msgspec.Struct, frozen=True, kw_only=True):
    """The terms for everybody, and those of projects and tenants; a tenant's win."""

    everybody: BillingTerms = BillingTerms()
    projects: dict[str, BillingTerms] = {}
    tenants: dict[str, BillingTerms] = {}

    def markup_ppm(self, project: str, tenant: str | None) -> int:
        """The markup on a leg's cost, in millionths."""
        for terms in self._narrowest_first(project, tenant):
            if terms.markup_ppm is not None:
                return terms.markup_ppm
        return 0

    def flat_fee_nano_usd(self, project: str, tenant: str | None) -> int:
        """What a call is billed for at its end, whatever it cost."""
        for terms in self._narrowest_first(project, tenant):
            if terms.flat_fee_nano_usd is not None:
                return terms.flat_fee_nano_usd
        return 0

    def _narrowest_first(self, project: str, tenant: str | None) -> list[BillingTerms]:
        of_tenant = self.tenants.get(tenant) if tenant is not None else None
        found = (of_tenant, self.projects.get(project), self.everybody)
        return [terms for terms in found if terms is not None]


def marked_up(amount_nano_usd: int | None, markup_ppm: int) -> int | None:
    """Cost plus markup, rounded half-even once; None where the cost is not known."""
    if amount_nano_usd is None:
        return None
    return round_half_even(amount_nano_usd * (PPM + markup_ppm), per=PPM)


def parse_percent(text: str) -> int:
    """A percentage as millionths: `12.5` is 125,000.

    Raises:
        ValueError: It is no number, negative, above 10,000 or finer than a ten-thousandth.
    """
    try:
        ppm = EXACT.multiply(Decimal(text.strip()), _PPM_PER_PERCENT)
    except ArithmeticError:
        ppm = Decimal("NaN")
    if not ppm.is_finite() or not 0 <= ppm <= MARKUP_MAX_PERCENT * _PPM_PER_PERCENT or ppm % 1:
        raise ValueError(
            f"{text!r} is no markup: expected a percentage from 0 to {MARKUP_MAX_PERCENT} with at "
            "most 4 decimal places, for example 12.5"
        )
    return int(ppm)

"""A second currency to read totals in, at a rate that somebody stated. Nothing is kept in it."""

from __future__ import annotations

import re
from decimal import Context, Decimal, InvalidOperation
from typing import Final

import msgspec

_MAGNITUDE_MAX: Final = 12


class CurrencyTotals(msgspec.Struct, frozen=True, kw_only=True):
    """A total of dollars in the display currency: converted once, exactly; never to be summed."""

    code: str
    per_usd: str  # the rate, as it was stated
    total: str
    billed: str


class DisplayCurrency(msgspec.Struct, frozen=True, kw_only=True):
    """So much of a currency for a dollar: shown beside dollars, never stored, never summed."""

    code: str  # ISO 4217, "EUR"
    per_usd: str  # "0.92", as it was stated

    @classmethod
    def of(cls, code: str, per_usd: str) -> DisplayCurrency:
        """A checked one.

        Raises:
            ValueError: No such code can be, or the rate is no positive number.
        """
        if not re.fullmatch("[A-Z]{3}", code) or code == "USD":
            raise ValueError(f"code {code!r}: expected three capital letters such as EUR, not USD")
        try:
            rate = Decimal(per_usd)
        except InvalidOperation:
            rate = Decimal(0)
        # Far beyond any currency's: what is shown stays short.
        if not rate.is_finite() or not rate or rate < 0 or abs(rate.adjusted()) > _MAGNITUDE_MAX:
            raise ValueError(f"per_usd {per_usd!r}: expected a positive number such as 0.92")
        return cls(code=code, per_usd=per_usd)

    def totals(self, total_nano_usd: int, billed_nano_usd: int) -> CurrencyTotals:
        """What a call or a span costs, and what it is billed, in this currency."""
        return CurrencyTotals(
            code=self.code,
            per_usd=self.per_usd,
            total=self._exact(total_nano_usd),
            billed=self._exact(billed_nano_usd),
        )

    def _exact(self, nano_usd: int) -> str:
        # As many digits as a product of the two can have: nothing is rounded.
        exactly = Context(prec=len(str(nano_usd)) + len(self.per_usd))
        amount = exactly.multiply(Decimal(nano_usd).scaleb(-9), Decimal(self.per_usd))
        return format(amount.normalize(exactly), "f")

"""A second currency to read amounts in, at a rate that somebody stated. Nothing is kept in it."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

import msgspec


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
        if not rate.is_finite() or rate <= 0:
            raise ValueError(f"per_usd {per_usd!r}: expected a positive number such as 0.92")
        return cls(code=code, per_usd=per_usd)

    def text(self, nano_usd: int) -> str:
        """An amount for people, to the ten thousandth: `EUR 0.0355`."""
        amount = (Decimal(nano_usd) * Decimal(self.per_usd)).scaleb(-9)
        return f"{self.code} {amount:,.4f}"

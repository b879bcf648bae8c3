"""Exact money: whole nano-USD (one billionth of a dollar) as `int`, never a float.

Decimal appears only here and in the catalog, where a price or a limit is parsed or shown.
int64 nano-USD reaches $9.2 billion, far above any ledger's total.
"""

from __future__ import annotations

from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow
from typing import Final

NANO_USD_PER_USD: Final = 1_000_000_000
MAX_NANO_USD: Final = 2**63 - 1
EXACT: Final = Context(traps=[Inexact, InvalidOperation, Overflow])
"""Arithmetic on what somebody wrote: it raises `ArithmeticError` where it would round."""


def round_half_even(numerator: int, *, per: int) -> int:
    """Divide two integers and round to the nearest whole, ties to the even one.

    Args:
        numerator: Any integer.
        per: The positive divisor.

    Raises:
        ValueError: `per` is not positive.
    """
    if per <= 0:
        raise ValueError(f"cannot divide by {per=}: expected a positive integer")
    quotient, remainder = divmod(numerator, per)
    doubled = remainder * 2
    if doubled > per or (doubled == per and quotient % 2):
        quotient += 1
    return quotient


def per_mille(part_nano_usd: int, total_nano_usd: int) -> int:
    """A share of an amount in thousandths, rounded half-even; 0 where there is no amount."""
    return round_half_even(part_nano_usd * 1000, per=total_nano_usd) if total_nano_usd > 0 else 0


def parse_usd(amount: str | Decimal | int, *, name: str = "amount") -> int:
    """Read an amount of US dollars as whole nano-USD.

    Args:
        amount: Dollars as `str`, `Decimal` or `int`. A float is refused: 0.1 is not ten cents.
        name: What the amount is, for the error message.

    Returns:
        Nano-USD; exact, or an error.

    Raises:
        TypeError: `amount` is a float, a bool or no number at all.
        ValueError: It is negative, not finite, finer than a nano-USD or too large to store.
    """
    # bool is an int to Python, a typo to us; a float has already lost the exact amount.
    if isinstance(amount, (bool, float)) or not isinstance(amount, (str, Decimal, int)):
        raise TypeError(
            f"{name}={amount!r} is a {type(amount).__name__}: give US dollars as str, Decimal or "
            f'int, for example "0.25" (a float cannot hold most cents exactly)'
        )
    try:
        nano = Decimal(amount).scaleb(9, EXACT)
    except InvalidOperation:
        raise ValueError(
            f'{name}={amount!r} is not an amount of US dollars: expected for example "0.25"'
        ) from None
    except ArithmeticError:  # too large, or finer than can be told
        nano = Decimal(-1)
    if not nano.is_finite() or not 0 <= nano <= MAX_NANO_USD or nano % 1:
        raise ValueError(
            f"{name}={amount!r} cannot be stored: expected 0 to 9223372036 US dollars "
            "with at most 9 decimal places"
        )
    return int(nano)


def format_usd(amount_nano_usd: int | None, *, places: int = 4) -> str:
    """Show nano-USD as dollars, rounded half-even to `places`; None (no price known) as `?`."""
    if amount_nano_usd is None:
        return "?"
    sign = "-" if amount_nano_usd < 0 else ""
    scaled = round_half_even(abs(amount_nano_usd), per=10 ** (9 - places))
    whole, fraction = divmod(scaled, 10**places)
    return f"{sign}${whole:,}.{fraction:0{places}d}" if places else f"{sign}${whole:,}"


def decimal_usd(amount_nano_usd: int) -> str:
    """Nano-USD as an exact decimal string of dollars, for JSON: `1500000` gives `"0.0015"`."""
    text = format(Decimal(amount_nano_usd).scaleb(-9), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text

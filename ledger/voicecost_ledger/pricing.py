"""What the ledger asks of a price book. The catalog implements it; the ledger knows no prices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from voicecost_ledger.records import LegAttributes


class Price(Protocol):
    """One dated price of one model, with a sourced rate per unit. Immutable."""

    @property
    def price_id(self) -> str:
        """Content hash over all of its rates and rules."""
        ...

    @property
    def pricing_source(self) -> str:
        """`genai-prices@0.2.3`, `voicecost-catalog@2026-11-12` or `config@<hash>`."""
        ...

    def rate(self, usage: Mapping[str, int]) -> int | None:
        """Nano-USD for a leg's cumulative usage, rounded half-even once.

        Pure and exact. None when a unit that this kind of service bills by is not priced here:
        unknown, never zero.
        """
        ...

    def converts(self, usage: Mapping[str, int]) -> bool:
        """Whether the amount rests on a rule of thumb of the provider's.

        True where what is billed was not counted, but made of something else that was: characters
        of the seconds of speech, for example.
        """
        ...

    def document(self) -> bytes:
        """JSON from which `PriceBook.restore` makes an equal price; the ledger stores it."""
        ...


class PriceBook(Protocol):
    """The prices in force at an instant."""

    def price_for(self, leg: LegAttributes, at_unix_ms: int) -> Price | None:
        """The price in force for such a leg, or None when none is known."""
        ...

    def price_as_served(
        self, asked: LegAttributes, served: LegAttributes, at_unix_ms: int
    ) -> Price | None:
        """The price of a leg that something else served than was asked for; None: none is known.

        It is what served it that is billed, unless both are names of one model for which the
        operator's own price holds.
        """
        ...

    def restore(self, document: bytes) -> Price:
        """The price a ledger stored, so that a leg keeps its price across upgrades."""
        ...

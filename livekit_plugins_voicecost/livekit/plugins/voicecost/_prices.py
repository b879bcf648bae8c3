"""The process's price book: opened once, its large half loaded on a thread of its own."""

from __future__ import annotations

import os
import threading
import time

from voicecost_catalog import CatalogPriceBook, open_price_book, parse_host_aliases
from voicecost_catalog.genai import GENAI_MODALITIES
from voicecost_ledger.pricing import Price
from voicecost_ledger.records import LegAttributes

from . import _faults


class MeterPrices:
    """A price book that never holds up an event loop.

    Loading genai-prices takes a second. Until that is done what it prices has no price *here*: the
    meter's own total counts it as unpriced, the ledger rates it all the same.
    """

    def __init__(self, book: CatalogPriceBook) -> None:
        self._book = book
        threading.Thread(target=self._warm, name="voicecost_prices", daemon=True).start()

    @property
    def book(self) -> CatalogPriceBook:
        """The whole book, for threads that may wait."""
        return self._book

    def price_for(self, leg: LegAttributes, at_unix_ms: int) -> Price | None:
        """The price in force for such a leg, or None when none is known (yet)."""
        if leg.modality in GENAI_MODALITIES and not self._book.ready:
            return None
        return self._book.price_for(leg, at_unix_ms)

    def price_as_served(
        self, asked: LegAttributes, served: LegAttributes, at_unix_ms: int
    ) -> Price | None:
        """The price of a leg that something else served than was asked for; as above."""
        if served.modality in GENAI_MODALITIES and not self._book.ready:
            return None
        return self._book.price_as_served(asked, served, at_unix_ms)

    def restore(self, document: bytes) -> Price:
        """The price a ledger stored."""
        return self._book.restore(document)

    def _warm(self) -> None:
        # The starter is about to attach to a session: give the interpreter back before working.
        time.sleep(0.01)
        try:
            self._book.warm()
        except Exception as error:
            _faults.count("price_book", error)


_prices: tuple[int, MeterPrices] | None = None
_lock = threading.Lock()


def prices() -> MeterPrices:
    """This process's prices; a forked child opens its own, for the parent's thread is not in it.

    Raises:
        ValueError: `VOICECOST_HOST_ALIASES` is not understood.
    """
    global _prices
    with _lock:
        if _prices is None or _prices[0] != os.getpid():
            aliases = parse_host_aliases(os.environ.get("VOICECOST_HOST_ALIASES", ""))
            _prices = os.getpid(), MeterPrices(open_price_book(host_aliases=aliases))
        return _prices[1]

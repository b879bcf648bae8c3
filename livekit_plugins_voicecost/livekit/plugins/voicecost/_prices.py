"""The process's price book: opened once, whatever takes time on a thread of its own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from voicecost_catalog import CatalogPriceBook, open_price_book, parse_host_aliases
from voicecost_catalog.config_file import config_file
from voicecost_ledger.pricing import Price
from voicecost_ledger.records import LegAttributes

from . import _faults
from .log import logger


class MeterPrices:
    """A price book that never holds up an event loop.

    Loading genai-prices takes a second, reading a `voicecost.yaml` a tenth of one. Until that is
    done what it prices has no price *here*: the meter's own total counts it as unpriced and asks
    again, the ledger waits for it.

    Args:
        host_aliases: Who bills for requests to a host of one's own; they win over the file's.
        file: The `voicecost.yaml`, if there is one. Where it cannot be read that is told, once,
            and the price lists hold.
    """

    def __init__(self, host_aliases: Mapping[str, str], file: Path | None) -> None:
        self._host_aliases = host_aliases
        self._file = file
        self._loading = threading.Lock()
        self._book = open_price_book(host_aliases=host_aliases) if file is None else None
        self._warm = False
        threading.Thread(target=self._warm_soon, name="voicecost_prices", daemon=True).start()

    @property
    def book(self) -> CatalogPriceBook:
        """The whole book, for threads that may wait."""
        with self._loading:
            return self._opened()

    def warm(self) -> None:
        """Load all of it, once; for threads that may wait."""
        with self._loading:
            if not self._warm:
                try:
                    self._opened().warm()
                except ValueError as error:
                    logger.error("voicecost: %s; requests to that host are unpriced", error)
                self._warm = True

    def price_for(self, leg: LegAttributes, at_unix_ms: int) -> Price | None:
        """The price in force for such a leg, or None when none is known (yet)."""
        book = self._book
        return book and book.at_once.price_for(leg, at_unix_ms)

    def price_as_served(
        self, asked: LegAttributes, served: LegAttributes, at_unix_ms: int
    ) -> Price | None:
        """The price of a leg that something else served than was asked for; as above."""
        book = self._book
        return book and book.at_once.price_as_served(asked, served, at_unix_ms)

    def restore(self, document: bytes) -> Price:
        """The price a ledger stored."""
        return self.book.restore(document)

    def _opened(self) -> CatalogPriceBook:
        if self._book is None:
            assert self._file is not None, "without a file it is open"
            self._book = self._read(self._file) or open_price_book(host_aliases=self._host_aliases)
        return self._book

    def _read(self, file: Path) -> CatalogPriceBook | None:
        """The book by what the file says; None where it cannot be read, which is told."""
        try:
            # Here, not above: the YAML reader is no part of a base install.
            from voicecost_catalog.override_file import read_prices

            said = read_prices(file)
            return open_price_book(
                host_aliases={**said.host_aliases, **self._host_aliases}, overrides=said.overrides
            )
        except ModuleNotFoundError as error:
            why = f"{file} needs {error.name}: pip install 'livekit-plugins-voicecost[sidecar]'"
        except ValueError as error:
            why = str(error)
        except Exception as error:
            _faults.count("price_book", error)
            return None
        logger.error("voicecost: your own prices do not hold here, price lists do: %s", why)
        return None

    def _warm_soon(self) -> None:
        # The starter is about to attach to a session: give the interpreter back before working.
        time.sleep(0.01)
        try:
            self.warm()
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
            _prices = os.getpid(), MeterPrices(aliases, config_file())
        return _prices[1]

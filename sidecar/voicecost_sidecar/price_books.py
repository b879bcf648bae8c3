"""The price book that a configuration describes, for the sidecar and the commands alike."""

from __future__ import annotations

from voicecost_catalog import CatalogPriceBook, open_price_book
from voicecost_sidecar.config import Config


def price_book(config: Config) -> CatalogPriceBook:
    """Cheap; `warm` loads the LLM prices, off an event loop.

    Raises:
        ValueError: A host alias or a plan has no prices.
    """
    return open_price_book(host_aliases=config.host_aliases, overrides=config.overrides)

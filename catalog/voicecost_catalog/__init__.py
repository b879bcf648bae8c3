"""The price book: dated, sourced prices of voice services, and exact arithmetic over them.

    book = open_price_book()
    book.warm()  # off the event loop: loads genai-prices for the LLMs
    price = book.price_for(leg, at_unix_ms)
    amount_nano_usd = None if price is None else price.rate(usage)

None means "no price known", never zero; a price of zero is a known one.
"""

from __future__ import annotations

from voicecost_catalog.book import CatalogPriceBook, open_price_book
from voicecost_catalog.hosts import parse_host_aliases
from voicecost_catalog.rates import Confidence, Kind, ModelPrice, Rate, Rule, Tier

__all__ = [
    "CatalogPriceBook",
    "Confidence",
    "Kind",
    "ModelPrice",
    "Rate",
    "Rule",
    "Tier",
    "open_price_book",
    "parse_host_aliases",
]

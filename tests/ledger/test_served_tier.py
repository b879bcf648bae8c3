"""A leg is rated by the service tier that served it, not by the one that was asked for."""

from __future__ import annotations

import msgspec
import pytest

from tests.ledger.desk import LLM, Desk, SumBook, SumPrice
from voicecost_ledger.books import Books
from voicecost_ledger.pricing import Price
from voicecost_ledger.records import LegAttributes


class TierBook(SumBook):
    """The priority tier costs twice; nobody knows what a "rush" costs."""

    def price_for(self, leg: LegAttributes, at_unix_ms: int) -> Price | None:
        times = {"": 1, "default": 1, "priority": 2}.get(leg.service_tier)
        return None if times is None else SumPrice(times)


@pytest.mark.parametrize(
    ("asked", "served", "amount_nano_usd"),
    [
        pytest.param("priority", "default", 10_000, id="full, and served as any other"),
        pytest.param("priority", "", 20_000, id="served as asked"),
        pytest.param("", "priority", 20_000, id="the project's default"),
        pytest.param("", "rush", 10_000, id="unknown: at the price of what was asked"),
    ],
)
def test_the_tier_that_served_is_charged(asked: str, served: str, amount_nano_usd: int) -> None:
    desk = Desk()
    desk.books = Books(TierBook(), desk.policy)
    meter = desk.meter()
    leg = meter.start(msgspec.structs.replace(LLM, service_tier=asked))
    meter.stop(leg, told={"served_tier": served}, input_tokens=10)
    meter.send()
    (shown,) = desk.call().legs
    assert shown.amount_nano_usd == amount_nano_usd

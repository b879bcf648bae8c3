"""A leg is rated by the model and service tier that served it, not by what was asked for."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.ledger.desk import LLM, NOON, Desk, SumBook, SumPrice
from voicecost_catalog import open_price_book
from voicecost_catalog.override_file import parse_prices
from voicecost_ledger.books import Books
from voicecost_ledger.events import Rerate, Rerated
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


def test_a_snapshot_that_served_keeps_the_contract_of_its_model() -> None:
    """OpenAI serves gpt-4o as gpt-4o-2024-08-06, which is in no contract and in the price list."""
    desk = Desk()
    contract = """
prices:
  rows:
    - {provider: openai, model: gpt-4o-mini, modality: llm, rule: tokens, rates: {
        input_tokens: {usd: 0.1, per: million}, output_tokens: {usd: 0.1, per: million}}}
"""
    overrides = parse_prices(contract, Path("voicecost.yaml"), {}).overrides
    desk.books = Books(open_price_book(overrides=overrides), desk.policy)
    meter = desk.meter()
    for served in ("gpt-4o-mini-2024-07-18", "gpt-4o"):
        told = {"served_model": served}
        meter.stop(meter.start(LLM), told=told, input_tokens=1_000, output_tokens=0)
    meter.send()

    def amounts() -> list[tuple[int | None, str]]:
        return [(leg.amount_nano_usd, leg.billed_model) for leg in desk.call().legs]

    assert amounts() == [(100_000, "gpt-4o-mini"), (2_500_000, "gpt-4o")]
    order = Rerate(from_unix_ms=0, until_unix_ms=2 * NOON, by="op", reason="again", apply=True)
    assert desk.order(order) == Rerated(rows=[], leg_count=2, next_after=None)
    assert amounts() == [(100_000, "gpt-4o-mini"), (2_500_000, "gpt-4o")]

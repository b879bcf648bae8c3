"""A leg that opened while the price book was still loading gets its price when there is one."""

from __future__ import annotations

import asyncio

import pytest

from livekit.plugins.voicecost.legs import Leg
from tests.plugin.metered_session import NANO_USD, RecordingMeter, UnitPrices
from voicecost_ledger.pricing import Price
from voicecost_ledger.records import Basis, LegAttributes, Modality, Outcome

ATTRIBUTES = LegAttributes(modality=Modality.LLM, provider="api.openai.com", model="gpt-4o-mini")
USAGE = {"input_tokens": 100, "output_tokens": 0}


class LoadingPrices(UnitPrices):
    """A book that is not ready yet."""

    def __init__(self) -> None:
        self.ready = False
        self.asked_at_unix_ms: list[int] = []

    def price_for(self, leg: LegAttributes, at_unix_ms: int) -> Price | None:
        self.asked_at_unix_ms.append(at_unix_ms)
        return super().price_for(leg, at_unix_ms) if self.ready else None


def _leg(meter: RecordingMeter) -> Leg:
    return meter.open_leg(ATTRIBUTES, dict(USAGE))


async def test_an_open_leg_is_rated_and_refused_again_once_the_book_is_ready() -> None:
    prices = LoadingPrices()
    meter = RecordingMeter(limit_nano_usd=200 * NANO_USD["input_tokens"], prices=prices)
    leg = _leg(meter)
    assert leg.spend(USAGE | {"output_tokens": 10}, Basis.ESTIMATED)
    assert (leg.amount_nano_usd, meter.total_nano_usd) == (None, 0)
    prices.ready = True
    await meter.until(lambda: meter.total_nano_usd)
    assert meter.total_nano_usd == 100 * NANO_USD["input_tokens"] + 10 * NANO_USD["output_tokens"]
    assert not leg.spend(USAGE | {"output_tokens": 1000}, Basis.ESTIMATED)
    assert len(set(prices.asked_at_unix_ms)) == 1  # the price in force at its start


@pytest.mark.parametrize("stopped", [False, True], ids=["open", "stopped"])
async def test_a_leg_that_uses_nothing_more_is_rated_too(stopped: bool) -> None:
    prices = LoadingPrices()
    meter = RecordingMeter(prices=prices)
    leg = _leg(meter)
    if stopped:
        leg.stop(Outcome.INTERRUPTED)
    prices.ready = True
    await meter.until(lambda: meter.total_nano_usd)
    assert leg.amount_nano_usd == 100 * NANO_USD["input_tokens"]


async def test_a_model_without_a_price_is_not_asked_for_again_and_again() -> None:
    prices = LoadingPrices()
    meter = RecordingMeter(prices=prices)
    leg = _leg(meter)
    for count in range(1000):
        leg.spend(USAGE | {"output_tokens": count}, Basis.ESTIMATED)
    await asyncio.sleep(0)
    assert len(prices.asked_at_unix_ms) == 1
    leg.stop(Outcome.SERVED)
    assert leg.amount_nano_usd is None

"""What the operator's own contracts say: prices of their own, discounts, plans, credits.

`override_file.read_prices` reads them from the section `prices:` of `voicecost.yaml`; a price that
they made or changed says so by its `pricing_source`, `config@` and a hash of all of them.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping
from typing import Final

import msgspec

from voicecost_catalog.rates import ModelPrice, Rate
from voicecost_catalog.rows import ProviderRows

Ratio = tuple[int, int]
CONTRACT: Final = "contract"
"""The plan of a price that is not as listed."""


class Overrides(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Everything of `prices:` that can change an amount."""

    rows: tuple[ProviderRows, ...] = ()  # negotiated prices; they win over ours
    discounts: dict[str, Ratio] = {}  # provider to the share of its prices that is paid
    plans: dict[str, str] = {}  # provider to the plan that is paid for
    credit_usd: dict[str, Ratio] = {}  # provider to nano-USD for so many of its credits

    def __bool__(self) -> bool:
        """Whether anything is overridden."""
        return bool(self.rows or self.discounts or self.plans or self.credit_usd)

    @functools.cached_property
    def pricing_source(self) -> str:
        """`config@0f3a...`: the same words always, other ones never."""
        content = msgspec.json.encode(self, order="sorted")
        return f"config@{hashlib.sha256(content).hexdigest()[:12]}"

    def changed(self, price: ModelPrice, payer: str, credit_usd: Mapping[str, Ratio]) -> ModelPrice:
        """A listed price as it is by contract: other credits, then the discount.

        Args:
            price: As listed.
            payer: The provider whose bill it is on, perhaps not the maker of the model.
            credit_usd: What that provider lists a credit at, by plan; empty where the price is
                not in credits.
        """
        share, said, plan = (1, 1), list[str](), price.plan
        if payer in self.credit_usd and price.plan in credit_usd:
            nano_usd, of = self.credit_usd[payer]
            listed_nano_usd, listed_of = credit_usd[price.plan]
            share = nano_usd * listed_of, of * listed_nano_usd
            said.append("at a credit's price by contract")
            plan = CONTRACT
        if payer in self.discounts:
            paid, of = self.discounts[payer]
            share = share[0] * paid, share[1] * of
            said.append(f"{paid}/{of} of the list price")
        if not said:
            return price
        return msgspec.structs.replace(
            price,
            rates=_scaled(price.rates, share),
            addons=_scaled(price.addons, share),
            tiers=tuple(
                msgspec.structs.replace(tier, rates=_scaled(tier.rates, share))
                for tier in price.tiers
            ),
            plan=plan,
            pricing_source=self.pricing_source,
            note=f"{', '.join(said)} ({price.pricing_source}). {price.note}".strip(),
            price_id="",
        )


def _scaled(rates: Mapping[str, Rate], share: Ratio) -> dict[str, Rate]:
    """A share of each rate, for as many units as before where that is exact, or for more."""
    scaled: dict[str, Rate] = {}
    for unit, rate in rates.items():
        nano_usd, of = rate.nano_usd * share[0], share[1]
        common = math.gcd(nano_usd, of)
        scaled[unit] = msgspec.structs.replace(
            rate, nano_usd=nano_usd // common, per=rate.per * (of // common)
        )
    return scaled

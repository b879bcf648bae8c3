"""Amounts that are posted after the fact, or for the call as a whole (I7, I8, I10).

A *rerate* brings legs to what today's price book says of the day they began; an *adjustment* is a
refund or a credit that an operator gives; a *flat fee* is billed for each call. All of them are
entries like any other, through the same posting; the last two are on legs that are no requests,
numbered from `FLAT_FEE_NUMBER` on. Each is counted where it accrued and ends no live call, and
the audit says who did it and why.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from voicecost_ledger.billing import Billing
from voicecost_ledger.calls import Call, CallState
from voicecost_ledger.entries import FLAT_FEE_NUMBER, Leg
from voicecost_ledger.events import Adjust, Adjusted, Refused, Rerate, Rerated, RerateRow
from voicecost_ledger.meters import Meter
from voicecost_ledger.money import format_usd
from voicecost_ledger.postings import MAX_LEG_NANO_USD, Postings
from voicecost_ledger.pricing import Price, PriceBook
from voicecost_ledger.records import Basis, LegAttributes, Modality, Outcome
from voicecost_ledger.stores import Session

OWN_PROVIDER: Final = "voicecost"
"""Under which costs group what is no provider's."""
FLAT_FEE: Final = "flat fee"
ADJUSTMENT: Final = "adjustment"
REASON_MAX: Final = 500


class Corrections:
    """Posts what is not metered.

    Args:
        prices: Today's price book.
        postings: Rates and posts legs.
        billing: Whose calls bear a flat fee.
    """

    def __init__(self, prices: PriceBook, postings: Postings, billing: Billing) -> None:
        self._prices = prices
        self._postings = postings
        self._billing = billing

    # ---- rerating ------------------------------------------------------------------------------

    def rerate(self, tx: Session, order: Rerate, now: int) -> Rerated:
        """Compare some legs with today's prices and, where it is asked for, post the difference."""
        legs = tx.closed_legs(
            from_unix_ms=order.from_unix_ms,
            until_unix_ms=order.until_unix_ms,
            after=order.after,
            provider=order.provider,
            limit=order.limit,
        )
        tally = _Tally()
        moved: dict[str, list[int]] = {}
        for leg in legs:
            if not leg.usage and leg.number < 0:
                continue  # a checkpoint's leg of which nothing is left
            price, served_as, rated = self._today(tx, leg)
            was = leg.rated_nano_usd
            if price is None or rated is None:
                tally.left_alone(leg, no_price=was is not None)
            elif rated > MAX_LEG_NANO_USD:
                tally.left_alone(leg, no_price=True)
            elif rated != was:
                tally.moved(leg, was, rated)
                if order.apply:
                    self._reprice(tx, leg, price, served_as, rated, now)
                    moved.setdefault(leg.call_id, []).append(rated - (was or 0))
        for call_id, amounts in moved.items():
            self._amended(tx, call_id)
            count, total = len(amounts), format_usd(sum(amounts), places=9)
            detail = f"{count} legs, {total}, by {order.by}: {order.reason}"
            tx.audit(call_id, now, "rerate", detail)
        last = legs[-1] if len(legs) == order.limit else None
        return Rerated(
            rows=tally.rows(),
            leg_count=len(legs),
            next_after=None if last is None else (last.started_at_unix_ms, last.key),
        )

    def _today(self, tx: Session, leg: Leg) -> tuple[Price | None, str | None, int | None]:
        """Today's price of a leg, the model it is of where that is another, and the amount."""
        asked = leg.attributes
        if leg.served_model or leg.served_tier:
            as_served = msgspec.structs.replace(
                asked,
                model=leg.served_model or asked.model,
                service_tier=leg.served_tier or asked.service_tier,
            )
            price = self._prices.price_as_served(asked, as_served, leg.started_at_unix_ms)
            rated = None if price is None else price.rate(leg.usage)
            if rated is not None:
                return price, leg.served_model, rated
        price = self._prices.price_for(asked, leg.started_at_unix_ms)
        return price, None, None if price is None else price.rate(leg.usage)

    def _reprice(
        self, tx: Session, leg: Leg, price: Price, served_as: str | None, rated: int, now: int
    ) -> None:
        meter, call = _owners(tx, leg)
        was_model = leg.billed_model
        plain = self._prices.price_for(leg.attributes, leg.started_at_unix_ms)
        of_its_own = plain is None or plain.price_id != price.price_id
        leg.priced_as = served_as if of_its_own else None
        self._postings.give_price(tx, leg, price)
        self._postings.set_usage(meter, leg, leg.usage, price, rated)
        if leg.part_count and leg.billed_model != was_model:
            tx.regroup(leg, meter, outcome=leg.outcome, model=was_model)
        self._postings.post(tx, meter, call, leg, now, adjustment=True)
        tx.save_leg(leg)
        tx.save_meter(meter)

    # ---- amounts of the call as a whole --------------------------------------------------------

    def adjust(self, tx: Session, order: Adjust, now: int) -> Adjusted | Refused:
        """Post a refund or a charge to a call; the same order again changes nothing.

        Its amount is of what is billed, and all of that may be taken back. The cost moves by the
        same, as far as there is any: what a refund takes beyond it is of the markup and the fee.
        """
        call = tx.call(order.call_id)
        if call is None:
            return Refused(code="no_call", message=f"no call {order.call_id!r} in this ledger")
        problem = _not_adjustable(order)
        meters = [*tx.meters_of(call.call_id), *tx.room_meters_of(call.call_id)]
        if problem is None and not meters:
            problem = f"call {call.call_id} has no meter: nothing was charged for it"
        if problem is not None:
            return Refused(code="bad_adjustment", message=problem)
        legs = [leg for meter in meters for leg in tx.legs_of(meter.meter_id)]
        total = sum(leg.rated_nano_usd or 0 for leg in legs)
        billed = sum(leg.billed_nano_usd or 0 for leg in legs)
        amount = max(order.amount_nano_usd, -max(0, total))
        document = msgspec.json.encode(
            {
                "adjustment": {
                    "id": order.adjustment_id,
                    "call_id": call.call_id,
                    "amount_nano_usd": amount,
                    "billed_nano_usd": order.amount_nano_usd,
                    "reason": order.reason,
                    "by": order.by,
                }
            }
        )
        price_id = _price_id("adjustment", call.call_id, order.adjustment_id)
        known = next((leg for leg in legs if leg.price_id == price_id), None)
        if known is not None:
            if known.billed_nano_usd != order.amount_nano_usd:
                message = f"adjustment {order.adjustment_id!r} was made with another amount: give "
                return Refused(code="bad_adjustment", message=message + "it an id of its own")
            return Adjusted(
                call_id=call.call_id, total_nano_usd=total, billed_nano_usd=billed, repeated=True
            )
        if billed + order.amount_nano_usd < 0:
            return Refused(
                code="bad_adjustment",
                message=f"{format_usd(order.amount_nano_usd, places=9)} is more than the "
                f"{format_usd(billed, places=9)} that call {call.call_id} was billed: take back "
                "at most that",
            )
        meter = meters[0]
        taken = [leg.number for leg in legs if leg.meter_id == meter.meter_id]
        number = max([FLAT_FEE_NUMBER, *taken]) + 1
        # With the call's last cost: a refund belongs to the day that it is of.
        at = max((leg.last_at_unix_ms for leg in legs if leg.is_request), default=0)
        leg = self._own_leg(tx, meter, number, ADJUSTMENT, at or call.opened_at_unix_ms)
        leg.price_id, leg.pricing_source = price_id, ADJUSTMENT
        tx.save_price(price_id, ADJUSTMENT, document)
        self._post_own(tx, meter, call, leg, amount, order.amount_nano_usd, now)
        self._amended(tx, call.call_id)
        detail = f"{format_usd(order.amount_nano_usd, places=9)}, by {order.by}: {order.reason}"
        tx.audit(call.call_id, now, "adjust", detail)
        return Adjusted(
            call_id=call.call_id,
            total_nano_usd=total + amount,
            billed_nano_usd=billed + order.amount_nano_usd,
            repeated=False,
        )

    def charge_flat_fee(self, tx: Session, call: Call, now: int) -> None:
        """Bill a call that is over for what each call is billed; once."""
        fee = self._billing.flat_fee_nano_usd(call.project, call.tenant)
        meters = tx.meters_of(call.call_id)
        if not fee or not meters:
            return
        if any(tx.leg(meter.meter_id, FLAT_FEE_NUMBER) for meter in meters):
            return
        at = call.ended_at_unix_ms or now
        leg = self._own_leg(tx, meters[0], FLAT_FEE_NUMBER, FLAT_FEE, at)
        document = msgspec.json.encode({"flat_fee": {"billed_nano_usd": fee}})
        leg.price_id = _price_id("flat_fee", str(fee))
        leg.pricing_source = FLAT_FEE
        tx.save_price(leg.price_id, FLAT_FEE, document)
        self._post_own(tx, meters[0], call, leg, 0, fee, now)

    def _own_leg(self, tx: Session, meter: Meter, number: int, model: str, at: int) -> Leg:
        leg = Leg(
            meter_id=meter.meter_id,
            number=number,
            call_id=meter.call_id,
            attributes=LegAttributes(Modality.OTHER, OWN_PROVIDER, model),
            started_at_unix_ms=at,
            stopped_at_unix_ms=at,
            last_at_unix_ms=at,
            usage={},
            recorded_basis=Basis.REPORTED,
            basis=Basis.REPORTED,
            outcome=Outcome.SERVED,
            uncertainty_nano_usd=0,
        )
        tx.save_leg(leg)
        return leg

    def _post_own(
        self, tx: Session, meter: Meter, call: Call, leg: Leg, amount: int, billed: int, now: int
    ) -> None:
        leg.rated_nano_usd, leg.billed_nano_usd = amount, billed
        meter.charged_nano_usd += amount
        self._postings.post(tx, meter, call, leg, now, adjustment=True)
        tx.save_meter(meter)

    def _amended(self, tx: Session, call_id: str) -> None:
        call = tx.call(call_id)
        if call is not None and call.state is CallState.SETTLED and not call.amended:
            call.amended = True
            tx.save_call(call)


class _Tally:
    """What a rerate finds, by provider, billed model and modality."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, str], RerateRow] = {}

    def _row(self, leg: Leg) -> RerateRow:
        key = (leg.attributes.provider, leg.billed_model, leg.attributes.modality.value)
        return self._rows.setdefault(key, RerateRow(provider=key[0], model=key[1], modality=key[2]))

    def moved(self, leg: Leg, was: int | None, now: int) -> None:
        row = self._row(leg)
        row.leg_count += 1
        row.unpriced_leg_count += was is None
        row.was_nano_usd += was or 0
        row.now_nano_usd += now
        row.difference_nano_usd += now - (was or 0)

    def left_alone(self, leg: Leg, *, no_price: bool) -> None:
        row = self._row(leg)
        row.kept_leg_count += no_price
        row.still_unpriced_leg_count += not no_price

    def rows(self) -> list[RerateRow]:
        return list(self._rows.values())


def _owners(tx: Session, leg: Leg) -> tuple[Meter, Call]:
    meter, call = tx.meter(leg.meter_id), tx.call(leg.call_id)
    assert meter is not None
    assert call is not None
    return meter, call


def _not_adjustable(order: Adjust) -> str | None:
    amount = order.amount_nano_usd
    if amount == 0 or abs(amount) > MAX_LEG_NANO_USD:
        limit = format_usd(MAX_LEG_NANO_USD, places=0)
        return f"an adjustment of {format_usd(amount)} is none: expected at most {limit}, and not 0"
    if not order.reason.strip() or len(order.reason) > REASON_MAX:
        return f"an adjustment needs a reason of 1 to {REASON_MAX} characters"
    return None


def _price_id(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

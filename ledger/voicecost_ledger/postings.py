"""What a record does to its leg: checked, rated, posted, and settled when its meter is over.

`Books` decides when; here is what. A quantity that cannot be true is kept in quarantine, visibly,
and never rated; what else the record says is taken.
"""

from __future__ import annotations

from typing import Final

import msgspec

from voicecost_ledger import entries, quantities
from voicecost_ledger.billing import Billing
from voicecost_ledger.calls import Call
from voicecost_ledger.checkpoints import Checkpoint, CheckpointTotal
from voicecost_ledger.credit import CreditControl
from voicecost_ledger.entries import Leg
from voicecost_ledger.meters import Meter, MeterState
from voicecost_ledger.money import NANO_USD_PER_USD, format_usd
from voicecost_ledger.pricing import Price, PriceBook
from voicecost_ledger.records import (
    MAX_QUANTITY,
    UNITS,
    Basis,
    Coverage,
    LegAttributes,
    LegInterim,
    LegStart,
    LegStop,
    Outcome,
    Record,
)
from voicecost_ledger.stores import Session

MAX_LEG_NANO_USD: Final = 10_000 * NANO_USD_PER_USD
"""No request of today's providers costs $10,000: a count that says so is a fault or a fraud, and
sums of what is accepted stay far inside int64."""
NAME_MAX: Final = 256

_COVERAGE_ORDER = [Coverage.COMPLETE, Coverage.PARTIAL, Coverage.METRICS_ONLY]


def worse(one: Coverage, other: Coverage) -> Coverage:
    """The one that sees less."""
    return max(one, other, key=_COVERAGE_ORDER.index)


class Postings:
    """Rates legs and posts what they come to.

    Args:
        prices: Where a leg's price comes from when it starts.
        credit: Counts what is posted to its budgets.
        billing: What is added to the cost.
    """

    def __init__(self, prices: PriceBook, credit: CreditControl, billing: Billing) -> None:
        self._prices = prices
        self._credit = credit
        self._billing = billing
        self._restored: dict[str, Price] = {}

    def apply(
        self,
        tx: Session,
        meter: Meter,
        call: Call,
        record: LegStart | LegInterim | LegStop,
        at: int,
        now: int,
    ) -> None:
        """Apply a leg's record as of `at`; one that cannot be true is quarantined."""
        problem = self._apply(tx, meter, call, record, at, now)
        if problem is not None:
            self.quarantine(tx, meter, record, problem)

    def _apply(
        self,
        tx: Session,
        meter: Meter,
        call: Call,
        record: LegStart | LegInterim | LegStop,
        at: int,
        now: int,
    ) -> str | None:
        problem = quantities.out_of_range(record.usage)
        if problem is not None:
            return problem
        if not 1 <= record.leg < entries.FLAT_FEE_NUMBER:
            return f"{record.leg} is no leg: a meter numbers them from 1"
        usage = self._believed(tx, meter, record)
        leg = tx.leg(meter.meter_id, record.leg)
        if isinstance(record, LegStart):
            if leg is not None:
                return f"leg {record.leg} was started before"
            leg = self.new_leg(
                tx, meter, record.leg, record.attributes, at, speech_id=record.speech_id
            )
        elif leg is None:
            return f"leg {record.leg} was never started"
        elif leg.recorded_basis is not Basis.ESTIMATED and not (
            # A request is recorded before it goes out: one that was refused has used less.
            isinstance(record, LegStop) and leg.outcome is None
        ):
            for unit, quantity in leg.usage.items():
                if usage.get(unit, 0) < quantity:
                    return f"{unit} shrank from {quantity} to {usage.get(unit, 0)}"
        served_model = self._served(tx, meter, record, "served_model")
        served_tier = self._served(tx, meter, record, "served_tier")
        price = self.price_of(tx, leg)
        served = None
        if served_model or served_tier:
            served = self._price_as_served(leg, served_model, served_tier, usage)
        price = served or price
        rated = None if price is None else price.rate(usage)
        if rated is None and leg.rated_nano_usd is not None and leg.usage:
            return "what was priced before cannot be priced any more"
        if rated is not None and rated > MAX_LEG_NANO_USD:
            return f"it would cost {format_usd(rated, places=0)}, more than any one leg can"
        if isinstance(record, LegInterim) and leg.outcome is Outcome.LOST:
            # Given up too early: it goes on from here.
            leg.outcome = leg.stopped_at_unix_ms = None
            if leg.part_count:
                tx.regroup(leg, meter, outcome=Outcome.LOST, model=leg.billed_model)
        if leg.outcome is None and entries.quarter_hour(at) > entries.quarter_hour(
            leg.last_at_unix_ms
        ):
            self.post(tx, meter, call, leg, now)
        if isinstance(record, LegInterim) and leg.outcome is not None:
            return None  # overtaken by its stop
        if leg.outcome is None or leg.outcome is Outcome.LOST:
            # A correction of what is over accrued when it was spent, never on a later day.
            leg.last_at_unix_ms = max(at, leg.last_at_unix_ms)
        was_outcome, was_model = leg.outcome, leg.billed_model
        if isinstance(record, LegStop):
            self._stop(tx, meter, leg, record)
            leg.served_model = served_model or leg.served_model
            leg.served_tier = served_tier or leg.served_tier
            if served is not None:
                self.give_price(tx, leg, served)
                leg.priced_as = served_model or leg.priced_as
        leg.recorded_basis = record.basis
        leg.margins = self._margins(tx, meter, record)
        self.set_usage(meter, leg, usage, price, rated)
        if isinstance(record, LegStop):
            if leg.part_count and (was_outcome, was_model) != (leg.outcome, leg.billed_model):
                tx.regroup(leg, meter, outcome=was_outcome, model=was_model)
            self.post(tx, meter, call, leg, now)
        tx.save_leg(leg)
        return None

    def close_open_legs(self, tx: Session, meter: Meter, call: Call, now: int) -> None:
        """A meter is over: what it left open is lost, and stands at its last record.

        How far that may be behind the record itself tells, where all of its records came.
        """
        for leg in tx.open_legs_of(meter.meter_id):
            leg.outcome = Outcome.LOST
            leg.recorded_basis = leg.basis = Basis.ESTIMATED
            if meter.state is MeterState.LOST:
                leg.margins = {}  # who knows what was recorded after it
            leg.stopped_at_unix_ms = leg.last_at_unix_ms
            self._set_uncertainty(leg, self.price_of(tx, leg))
            if leg.part_count:
                tx.regroup(leg, meter, outcome=None, model=leg.billed_model)
            self.post(tx, meter, call, leg, now)
            tx.save_leg(leg)

    def settle_checkpoint(self, tx: Session, meter: Meter, call: Call, now: int) -> bool:
        """Bring what stands only in a meter's checkpoint to what the records do not tell (I4).

        For each kind of leg and each unit: what the checkpoint counts above the records, on a leg
        of its own with a number below 0, lost and estimated. With every record that comes late it
        is corrected, so that ledger and checkpoint never count twice: the total is the greater
        of both, and once all records that the checkpoint counts are there, theirs alone.

        Returns:
            Whether anything was posted.
        """
        seen, missing = meter.checkpoint, meter.lacks_records
        if seen is None:
            return False
        nothing_due = not missing or meter.state is MeterState.OPEN
        if nothing_due and tx.leg(meter.meter_id, -1) is None:
            return False
        legs = tx.legs_of(meter.meter_id)
        standing = {leg.attributes: leg for leg in legs if leg.number < 0}
        recorded: dict[LegAttributes, dict[str, int]] = {}
        for leg in legs:
            if leg.number > 0 and leg.is_request:
                known = recorded.setdefault(leg.attributes, {})
                for unit, quantity in leg.usage.items():
                    known[unit] = known.get(unit, 0) + quantity
        posted = False
        targets: dict[LegAttributes, dict[str, int]] = {}
        for total in seen.totals if missing else ():
            known = recorded.get(total.attributes, {})
            more = {unit: max(0, q - known.get(unit, 0)) for unit, q in total.usage.items()}
            more = quantities.clipped(more)
            # Zeros too: a price that weighs a part of the text must know that there is none.
            targets[total.attributes] = more if any(more.values()) else {}
        for attributes, usage in targets.items():
            if usage and attributes not in standing:
                number = min((leg.number for leg in standing.values()), default=0) - 1
                at = seen.at_unix_ms
                leg = self.new_leg(tx, meter, number, attributes, at, speech_id=None)
                leg.outcome, leg.stopped_at_unix_ms = Outcome.LOST, at
                tx.save_leg(leg)
                standing[attributes] = leg
        for attributes, leg in standing.items():
            usage = targets.get(attributes, {})
            if usage == leg.usage and leg.part_count:
                continue
            price = self.price_of(tx, leg)
            # Nothing of it is left: then it costs nothing, whatever the price asks at the least.
            rated = None if price is None else price.rate(usage) if usage else 0
            if rated is not None and rated > MAX_LEG_NANO_USD:
                amount = format_usd(rated, places=0)
                problem = f"it would cost {amount}, more than any one leg can"
                self._quarantine_total(tx, meter, seen, problem)
                continue
            self.set_usage(meter, leg, usage, price, rated)
            self.post(tx, meter, call, leg, now)
            tx.save_leg(leg)
            posted = True
        return posted

    def post(
        self,
        tx: Session,
        meter: Meter,
        call: Call,
        leg: Leg,
        now: int,
        *,
        adjustment: bool = False,
    ) -> None:
        """Post what a leg is rated above what is posted of it, if anything is.

        `adjustment`: it was spent before anybody knew, and no meter is to answer for it now.
        """
        entry = entries.next_part(leg, posted_at_unix_ms=now)
        if entry is None:
            return
        if entry.amount_nano_usd:
            # Before the entry: a window made now counts what was posted before it.
            at = entry.accrued_at_unix_ms
            count = self._credit.adjust if adjustment else self._credit.settle
            count(tx, call, meter, entry.amount_nano_usd, at)
        tx.post(entry, leg, meter)
        tx.save_leg(leg)

    def believed_checkpoint(self, tx: Session, meter: Meter, seen: Checkpoint) -> Checkpoint:
        """A checkpoint without the totals that cannot be true; those are quarantined."""
        totals: list[CheckpointTotal] = []
        for total in seen.totals:
            problem = quantities.out_of_range(total.usage)
            if unknown := total.usage.keys() - UNITS:
                problem = f"unknown unit {min(unknown)!r}: upgrade the sidecar"
            if problem is None:
                totals.append(total)
            else:
                self._quarantine_total(tx, meter, seen, problem)
        return msgspec.structs.replace(seen, totals=totals)

    def quarantine(self, tx: Session, meter: Meter, record: Record, problem: str) -> None:
        """Keep a record of which something was not believed."""
        tx.count("quarantined_records")
        tx.quarantine(meter.meter_id, record.seq, problem, msgspec.json.encode(record).decode())
        meter.coverage = worse(meter.coverage, Coverage.PARTIAL)

    # ---- what is believed ----------------------------------------------------------------------

    def _believed(
        self, tx: Session, meter: Meter, record: LegStart | LegInterim | LegStop
    ) -> dict[str, int]:
        """A record's usage without what cannot be true or is not known; that is said."""
        usage = dict(record.usage)
        for unit in record.usage:
            if unit not in UNITS:
                # A newer plugin's: what we know of the leg is counted, what we do not is said.
                del usage[unit]
                self.quarantine(tx, meter, record, f"unknown unit {unit!r}: upgrade the sidecar")
        for part, problem in quantities.contradictions(usage).items():
            del usage[part]
            self.quarantine(tx, meter, record, f"{problem}: the part is not believed")
        return usage

    def _margins(
        self, tx: Session, meter: Meter, record: LegStart | LegInterim | LegStop
    ) -> dict[str, int]:
        if not record.margins:
            return {}
        problem = quantities.out_of_range(record.margins)
        if record.basis is not Basis.ESTIMATED and isinstance(record, LegStop):
            problem = f"margins of what is {record.basis.value}, which is exact"
        elif unknown := record.margins.keys() - UNITS:
            problem = f"a margin of the unknown unit {min(unknown)!r}: upgrade the sidecar"
        if problem is not None:
            self.quarantine(tx, meter, record, f"{problem}: the margins are not believed")
            return {}
        return dict(record.margins)

    def _served(
        self, tx: Session, meter: Meter, record: LegStart | LegInterim | LegStop, field: str
    ) -> str | None:
        """A name that a stop gives of what served its leg; None where it gives none, or garbage."""
        name: str = getattr(record, field) if isinstance(record, LegStop) else ""
        if not name:
            return None
        if len(name) <= NAME_MAX and name.isprintable() and name == name.strip():
            return name
        self.quarantine(tx, meter, record, f"{field} is no such name: it is not believed")
        return None

    def _stop(self, tx: Session, meter: Meter, leg: Leg, record: LegStop) -> None:
        leg.outcome = record.outcome
        leg.stopped_at_unix_ms = leg.last_at_unix_ms
        for name in ("time_to_first_ms", "duration_ms"):
            value: int | None = getattr(record, name)
            if value is not None and not 0 <= value <= MAX_QUANTITY:
                self.quarantine(tx, meter, record, f"{name}={value} is outside 0 to 2**40")
            elif value is not None:
                setattr(leg, name, value)

    def _quarantine_total(self, tx: Session, meter: Meter, seen: Checkpoint, problem: str) -> None:
        tx.count("quarantined_records")
        text = msgspec.json.encode(seen).decode()
        tx.quarantine(meter.meter_id, seen.seq, f"checkpoint: {problem}", text)
        meter.coverage = worse(meter.coverage, Coverage.PARTIAL)

    # ---- prices --------------------------------------------------------------------------------

    def new_leg(
        self,
        tx: Session,
        meter: Meter,
        number: int,
        attributes: LegAttributes,
        at: int,
        *,
        speech_id: str | None,
    ) -> Leg:
        """Begin a leg as of `at`, with the price in force then."""
        leg = Leg(
            meter_id=meter.meter_id,
            number=number,
            call_id=meter.call_id,
            attributes=attributes,
            started_at_unix_ms=at,
            speech_id=speech_id,
            usage={},
            recorded_basis=Basis.ESTIMATED,
            basis=Basis.ESTIMATED,
            last_at_unix_ms=at,
            markup_ppm=self._billing.markup_ppm(meter.project, meter.opened.tenant),
        )
        price = self._prices.price_for(attributes, at)
        if price is not None:
            self.give_price(tx, leg, price)
        leg.set_rated(None if price is None else price.rate({}))
        meter.unpriced_leg_count += leg.rated_nano_usd is None
        meter.charged_nano_usd += leg.rated_nano_usd or 0
        tx.save_leg(leg)
        return leg

    def give_price(self, tx: Session, leg: Leg, price: Price) -> None:
        """Let a leg be rated by this price from now on, and keep the price."""
        leg.price_id, leg.pricing_source = price.price_id, price.pricing_source
        tx.save_price(price.price_id, price.pricing_source, price.document())
        self._restored[price.price_id] = price

    def take_for(self, tx: Session, meter: Meter, leg: Leg, attributes: LegAttributes) -> None:
        """Let a leg be of something else than was thought, at the price of that."""
        price = self._prices.price_for(attributes, leg.started_at_unix_ms)
        if price is None:
            return
        was = leg.billed_model
        leg.attributes = attributes
        self.give_price(tx, leg, price)
        self.set_usage(meter, leg, leg.usage, price, price.rate(leg.usage))
        if leg.part_count:
            tx.regroup(leg, meter, outcome=leg.outcome, model=was)
        tx.save_leg(leg)

    def price_of(self, tx: Session, leg: Leg) -> Price | None:
        """The price that a leg is rated by, as the ledger keeps it; None: none is known."""
        if leg.price_id is None:
            return None
        price = self._restored.get(leg.price_id)
        if price is None:
            document = tx.price_document(leg.price_id)
            assert document is not None  # saved in the transaction that started the leg
            price = self._restored[leg.price_id] = self._prices.restore(document)
        return price

    def _price_as_served(
        self, leg: Leg, model: str | None, tier: str | None, usage: dict[str, int]
    ) -> Price | None:
        """The price of what served a leg, where it has one of its own that knows these units."""
        as_served = msgspec.structs.replace(
            leg.attributes,
            model=model or leg.billed_model,
            service_tier=tier or leg.served_tier or leg.attributes.service_tier,
        )
        price = self._prices.price_as_served(leg.attributes, as_served, leg.started_at_unix_ms)
        if price is None or price.price_id == leg.price_id or price.rate(usage) is None:
            return None
        return price

    def set_usage(
        self, meter: Meter, leg: Leg, usage: dict[str, int], price: Price | None, rated: int | None
    ) -> None:
        """Note what a leg used and what that comes to, in its meter's totals too.

        A quantity that was counted may be none that the price is in: then the amount is estimated.
        """
        meter.charged_nano_usd += (rated or 0) - (leg.rated_nano_usd or 0)
        meter.unpriced_leg_count += (rated is None) - (leg.rated_nano_usd is None)
        leg.usage = usage
        leg.set_rated(rated)
        converted = price is not None and price.converts(usage)
        leg.basis = Basis.ESTIMATED if converted else leg.recorded_basis
        self._set_uncertainty(leg, price)

    def _set_uncertainty(self, leg: Leg, price: Price | None) -> None:
        if price is None or leg.rated_nano_usd is None:
            leg.uncertainty_nano_usd = None
        elif leg.basis is not Basis.ESTIMATED:
            leg.uncertainty_nano_usd = 0
        elif not leg.margins or price.converts(leg.usage):
            leg.uncertainty_nano_usd = None
        else:
            leg.uncertainty_nano_usd = quantities.uncertainty_nano_usd(
                price.rate, leg.usage, leg.margins
            )

"""Rerating, adjustments, markup and fees: entries after the fact that never touch a live call."""

from __future__ import annotations

import re
from typing import Any

import apsw
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ledger.desk import CENT, LLM, NOON, STT, TTS, UNKNOWN, Desk, EndRoom, of
from voicecost_ledger.billing import Billing, BillingTerms, marked_up, parse_percent
from voicecost_ledger.events import Adjust, Adjusted, Refused, Rerate, Rerated
from voicecost_ledger.policy import BudgetAction, Policy, ProjectPolicy
from voicecost_ledger.protocol import Command
from voicecost_ledger.records import Basis, Outcome
from voicecost_ledger.stores import CostQuery

DAY_MS = 86_400_000
FROM, UNTIL = NOON - DAY_MS, NOON + 3 * DAY_MS
COSTS = CostQuery(from_unix_ms=FROM, until_unix_ms=UNTIL)


def rerate(desk: Desk, **order: Any) -> Rerated:
    span: dict[str, Any] = {
        "from_unix_ms": FROM,
        "until_unix_ms": UNTIL,
        "by": "op",
        "reason": "new price",
    }
    done = desk.order(Rerate(**(span | order)))
    assert isinstance(done, Rerated)
    return done


def adjust(desk: Desk, call_id: str, amount: int, **order: Any) -> Adjusted | Refused:
    fields = {"adjustment_id": "A1", "reason": "goodwill", "by": "op"} | order
    done = desk.order(Adjust(call_id=call_id, amount_nano_usd=amount, **fields))
    assert isinstance(done, Adjusted | Refused)
    return done


def a_finished_call(desk: Desk) -> str:
    meter = desk.meter()
    meter.stop(meter.start(UNKNOWN), characters=60)
    meter.stop(meter.start(LLM), input_tokens=100, output_tokens=10)
    meter.close()
    meter.send()
    return desk.call().summary.call_id


# ---- rerating --------------------------------------------------------------------------------


def test_a_model_unknown_today_and_known_tomorrow_is_unpriced_then_rerated() -> None:
    desk = Desk()
    a_finished_call(desk)
    assert desk.call().summary.unpriced_leg_count == 1
    desk.prices.known["?"] = 2
    desk.now += DAY_MS
    dry = rerate(desk)
    (row,) = dry.rows
    assert (row.provider, row.model, row.modality) == ("New", "?", "tts")
    assert (row.leg_count, row.unpriced_leg_count, row.difference_nano_usd) == (1, 1, 120_000)
    assert desk.call().summary.unpriced_leg_count == 1  # a dry run changes nothing
    assert rerate(desk, apply=True) == dry
    call = desk.call()
    assert (call.summary.total_nano_usd, call.summary.unpriced_leg_count) == (230_000, 0)
    parts = [e for e in call.entries if e.leg == 1]
    assert [(e.part, e.amount_nano_usd, e.price_id) for e in parts] == [
        (0, None, None),
        (1, 120_000, "sum-2"),
    ]
    assert (parts[1].accrued_at_unix_ms, parts[1].posted_at_unix_ms) == (NOON, NOON + DAY_MS)
    assert call.summary.amended
    (step,) = call.audit
    assert step.step == "rerate"
    assert "by op: new price" in step.detail
    (costs,) = desk.store.costs(COSTS)
    assert (costs.amount_nano_usd, costs.unpriced_leg_count) == (230_000, 0)
    desk.check()
    assert rerate(desk, apply=True).rows == []  # again: nothing left to do
    assert len(desk.call().entries) == len(call.entries)


def test_a_price_that_changed_moves_what_was_charged_by_it_and_nothing_else() -> None:
    desk = Desk()
    a_finished_call(desk)
    desk.prices.known["gpt-4o-mini"] = 3
    assert [row.provider for row in rerate(desk, provider="NEW").rows] == ["New"]
    done = rerate(desk, provider="API.openai.com", apply=True)
    (row,) = done.rows
    assert (row.was_nano_usd, row.now_nano_usd) == (110_000, 330_000)
    desk.prices.known["gpt-4o-mini"] = 2
    rerate(desk, apply=True)
    amounts = [e.amount_nano_usd for e in desk.call().entries if e.leg == 2]
    assert amounts == [110_000, 220_000, -110_000]
    del desk.prices.known["gpt-4o-mini"]
    (kept,) = [row for row in rerate(desk, apply=True).rows if row.kept_leg_count]
    assert (kept.model, desk.call().summary.total_nano_usd) == ("gpt-4o-mini", 220_000)
    desk.check()


def test_only_legs_that_began_in_the_span_and_are_over_are_rerated_some_at_a_time() -> None:
    desk = Desk()
    meter = desk.meter()
    for _ in range(5):
        meter.stop(meter.start(UNKNOWN), characters=1)
        desk.now += 1_000
    meter.start(UNKNOWN, characters=1)  # open
    meter.send()
    desk.prices.known["?"] = 1
    assert rerate(desk, until_unix_ms=NOON + 2_000).leg_count == 2
    first = rerate(desk, apply=True, limit=3)
    assert (first.leg_count, first.rows[0].leg_count) == (3, 3)
    second = rerate(desk, apply=True, limit=3, after=first.next_after)
    assert (second.leg_count, second.next_after) == (2, None)
    assert desk.call().summary.unpriced_leg_count == 1
    desk.check()


def test_what_served_a_leg_is_rerated_as_that() -> None:
    desk = Desk()
    meter = desk.meter()
    served = {"served_model": "new-model"}
    meter.stop(meter.start(LLM), told=served, input_tokens=10)
    meter.close()
    meter.send()
    desk.prices.known["new-model"] = 7
    rerate(desk, apply=True)
    (leg,) = desk.call().legs
    assert (leg.amount_nano_usd, leg.billed_model) == (70_000, "new-model")
    (row,) = desk.store.costs(
        CostQuery(from_unix_ms=FROM, until_unix_ms=UNTIL, group_by=("model",))
    )
    assert (row.group, row.amount_nano_usd) == ({"model": "new-model"}, 70_000)
    desk.check()


def test_a_rerate_moves_the_day_it_accrued_in_and_ends_no_live_call() -> None:
    shop = ProjectPolicy(
        name="shop", daily_budget_nano_usd=50 * CENT, budget_action=BudgetAction.END
    )
    desk = Desk(Policy(livekit_project="LK", projects={"shop": shop}))
    done = desk.meter("MT_done", project="shop")
    done.stop(done.start(UNKNOWN), characters=100)
    done.close()
    done.send()
    live = desk.meter("MT_live", project="shop", room_sid="RM_1", room_name="r")
    live.send()
    before = live.renew()
    leg = live.start(TTS, characters=10)
    live.send()
    desk.prices.known["?"] = 100_000  # $10 for what was unpriced, of a budget of $0.50
    desk.effects.clear()
    rerate(desk, apply=True)
    live.interim(leg, characters=100)
    live.send()
    after = live.renew()
    desk.wait(5_000)
    assert of(EndRoom, desk.effects) == []
    assert [c for c in of(Command, desk.effects) if c.action != "warn"] == []
    assert (after.ceiling_nano_usd or 0) >= (before.ceiling_nano_usd or 0)
    assert not after.final
    desk.check()


def test_a_refund_frees_credit_and_a_later_charge_takes_none_from_a_live_call() -> None:
    desk = Desk()
    meter = desk.meter(budget_nano_usd=4 * CENT)
    meter.send()
    assert meter.renew().ceiling_nano_usd == 4 * CENT
    meter.stop(meter.start(LLM), input_tokens=10_000)
    meter.start(TTS, characters=10)
    meter.send()
    call_id = desk.call().summary.call_id
    assert isinstance(adjust(desk, call_id, -CENT), Adjusted)
    assert meter.renew().ceiling_nano_usd == 5 * CENT
    assert isinstance(adjust(desk, call_id, 10 * CENT, adjustment_id="A2"), Adjusted)
    assert meter.renew().ceiling_nano_usd == 5 * CENT
    desk.wait(3_000)
    assert of(EndRoom, desk.effects) == []
    desk.check()


# ---- adjustments -----------------------------------------------------------------------------


def test_a_refund_belongs_to_the_call_and_to_the_day_it_is_of() -> None:
    desk = Desk()
    call_id = a_finished_call(desk)
    desk.now += 2 * DAY_MS
    done = adjust(desk, call_id, -60_000)
    adjusted = Adjusted(
        call_id=call_id, total_nano_usd=50_000, billed_nano_usd=50_000, repeated=False
    )
    assert done == adjusted
    call = desk.call()
    assert (call.summary.total_nano_usd, call.summary.amended) == (50_000, True)
    leg, entry = call.legs[-1], call.entries[-1]
    assert (leg.provider, leg.model, leg.amount_nano_usd) == ("voicecost", "adjustment", -60_000)
    assert (entry.amount_nano_usd, entry.billed_nano_usd) == (-60_000, -60_000)
    assert (entry.accrued_at_unix_ms, entry.posted_at_unix_ms) == (NOON, desk.now)
    assert [(step.step, step.detail) for step in call.audit] == [
        ("adjust", "-$0.000060000, by op: goodwill")
    ]
    assert call.latency[-1].group["model"] != "adjustment"
    (costs,) = desk.store.costs(COSTS)
    assert costs.amount_nano_usd == 50_000
    again = adjust(desk, call_id, -60_000)
    assert again == msgspec.structs.replace(adjusted, repeated=True)
    assert isinstance(adjust(desk, call_id, -50_000), Refused)  # the same id, another amount
    desk.check()


@pytest.mark.parametrize(
    ("amount", "how", "says"),
    [
        pytest.param(-110_001, {}, "more than the", id="more than was billed"),
        pytest.param(0, {}, "not 0", id="nothing"),
        pytest.param(10**14, {}, r"at most \$10,000", id="absurd"),
        pytest.param(1, {"reason": " "}, "needs a reason", id="no reason"),
    ],
)
def test_an_adjustment_that_cannot_be_is_refused(
    amount: int, how: dict[str, Any], says: str
) -> None:
    desk = Desk()
    call_id = a_finished_call(desk)
    refused = adjust(desk, call_id, amount, **how)
    assert isinstance(refused, Refused)
    assert re.search(says, refused.message)
    assert len(desk.call().entries) == 2
    unknown = adjust(desk, "CA_none", 1)
    assert isinstance(unknown, Refused)
    assert unknown.code == "no_call"


def test_no_record_reaches_a_leg_that_is_no_request() -> None:
    desk = Desk()
    meter = desk.meter()
    meter.stop(meter.start(LLM), input_tokens=10)
    meter.send()
    adjust(desk, desk.call().summary.call_id, 5_000)
    meter.stop(1_000_000_001, input_tokens=99)
    meter.send()
    assert desk.call().summary.total_nano_usd == 15_000
    assert "is no leg" in desk.call().quarantined[0].reason
    desk.check()


# ---- billing ---------------------------------------------------------------------------------

TERMS = Billing(
    everybody=BillingTerms(markup_ppm=100_000, flat_fee_nano_usd=CENT),
    projects={"shop": BillingTerms(markup_ppm=333_333)},
    tenants={"acme": BillingTerms(flat_fee_nano_usd=2 * CENT)},
)


def test_the_narrowest_terms_hold_each_on_its_own() -> None:
    assert TERMS.markup_ppm("lab", None) == 100_000
    assert TERMS.markup_ppm("shop", "acme") == 333_333
    assert TERMS.flat_fee_nano_usd("shop", "acme") == 2 * CENT
    assert TERMS.flat_fee_nano_usd("shop", "other") == CENT


def test_what_is_billed_is_the_cost_with_its_markup_and_one_fee_for_each_call() -> None:
    desk = Desk(Policy(livekit_project="LK", billing=TERMS))
    meter = desk.meter(project="shop", tenant="acme")
    meter.stop(meter.start(LLM), input_tokens=100)
    meter.stop(meter.start(UNKNOWN), characters=1)
    meter.send()
    assert desk.call().summary.billed_nano_usd == 133_333
    meter.close()
    meter.send()
    call = desk.call()
    assert (call.summary.total_nano_usd, call.summary.billed_nano_usd) == (
        100_000,
        133_333 + 2 * CENT,
    )
    assert [(e.amount_nano_usd, e.billed_nano_usd) for e in call.entries] == [
        (100_000, 133_333),
        (None, None),
        (0, 2 * CENT),
    ]
    (costs,) = desk.store.costs(COSTS)
    assert costs.billed_nano_usd == call.summary.billed_nano_usd
    meter.stop(1, input_tokens=200)  # a late correction settles again, without a second fee
    meter.send()
    assert desk.call().summary.billed_nano_usd == 266_667 + 2 * CENT
    desk.check()


def test_all_that_was_billed_can_be_refunded_and_the_cost_goes_to_nothing_at_most() -> None:
    """A refund is of what the customer was billed; its last part is the markup and the fee."""
    desk = Desk(Policy(livekit_project="LK", billing=TERMS))
    meter = desk.meter(project="shop")
    meter.stop(meter.start(LLM), input_tokens=300)
    meter.close()
    meter.send()
    call_id, billed = desk.call().summary.call_id, 400_000 + CENT

    def amounts(number: int, amount: int) -> tuple[int, int]:
        done = adjust(desk, call_id, amount, adjustment_id=f"A{number}")
        assert isinstance(done, Adjusted)
        summary = desk.call().summary
        sums = summary.total_nano_usd, summary.billed_nano_usd
        assert (done.total_nano_usd, done.billed_nano_usd) == sums
        desk.check()
        return sums

    assert amounts(1, -200_000) == (100_000, billed - 200_000)
    assert amounts(2, 50_000) == (150_000, billed - 150_000)
    refused = adjust(desk, call_id, -billed + 149_999, adjustment_id="A3")
    assert isinstance(refused, Refused)
    assert "was billed" in refused.message
    assert amounts(3, -billed + 150_000) == (0, 0)
    again = adjust(desk, call_id, -billed + 150_000, adjustment_id="A3")
    assert isinstance(again, Adjusted)
    assert again.repeated
    (costs,) = desk.store.costs(COSTS)
    assert (costs.amount_nano_usd, costs.billed_nano_usd) == (0, 0)


def test_changed_terms_leave_what_began_under_the_old_ones() -> None:
    desk = Desk(Policy(livekit_project="LK", billing=TERMS))
    meter = desk.meter()
    meter.stop(meter.start(LLM), input_tokens=100)
    meter.send()
    other = Desk(Policy(livekit_project="LK"))
    desk.books = other.books
    meter.stop(1, input_tokens=200)
    meter.stop(meter.start(LLM), input_tokens=100)
    meter.send()
    assert [leg.billed_nano_usd for leg in desk.call().legs] == [220_000, 100_000]
    desk.check()


def test_budgets_count_cost_and_never_what_is_billed() -> None:
    dear = Billing(everybody=BillingTerms(markup_ppm=100_000_000))  # a hundredfold
    desk = Desk(Policy(livekit_project="LK", billing=dear))
    meter = desk.meter(budget_nano_usd=4 * CENT)
    meter.send()
    meter.renew()
    meter.stop(meter.start(LLM), input_tokens=1_000)
    meter.send()
    assert not desk.call().audit
    assert desk.call().summary.billed_nano_usd == 101_000_000
    desk.check()


@settings(max_examples=40)
@given(
    st.integers(0, 2_000_000),
    st.lists(st.integers(0, 5_000), min_size=1, max_size=6),
    st.sampled_from([0, 1, 3, 7]),
    st.lists(st.integers(-400_000, 400_000), max_size=3),
)
def test_parts_of_a_leg_sum_to_the_billed_of_its_total(
    markup_ppm: int, growth: list[int], later_price: int, adjustments: list[int]
) -> None:
    terms = Billing(everybody=BillingTerms(markup_ppm=markup_ppm, flat_fee_nano_usd=5))
    desk = Desk(Policy(livekit_project="LK", billing=terms))
    meter = desk.meter()
    leg = meter.start(STT)
    total = 0
    for more in growth:
        total += more
        meter.interim(leg, audio_ms=total)
        meter.send()
        desk.wait(16 * 60_000)
    meter.stop(leg, Outcome.SERVED, Basis.OBSERVED, audio_ms=total)
    meter.close()
    meter.send()
    if later_price:
        desk.prices.known["nova-3"] = later_price
        rerate(desk, apply=True)
    rated = -(-total // 1000) * 1_000_000 * (later_price or 1)
    posted, cost = 0, rated
    for number, amount in enumerate(adjustments):
        call_id = desk.call().summary.call_id
        done = adjust(desk, call_id, amount, adjustment_id=f"A{number}")
        if isinstance(done, Adjusted):
            posted += amount
            cost = max(0, cost + amount)
    call = desk.call()
    (view,) = [view for view in call.legs if view.leg == leg]
    assert view.amount_nano_usd == rated
    billed = marked_up(rated, markup_ppm)
    parts = [entry.billed_nano_usd or 0 for entry in call.entries if entry.leg == leg]
    assert sum(parts) == view.billed_nano_usd == billed
    assert call.summary.billed_nano_usd == (billed or 0) + 5 + posted
    assert call.summary.total_nano_usd == cost
    desk.check()


@pytest.mark.parametrize(
    ("text", "ppm"), [("0", 0), ("12.5", 125_000), ("0.0001", 1), ("10000", 100_000_000)]
)
def test_a_percentage_is_taken_exactly(text: str, ppm: int) -> None:
    assert parse_percent(text) == ppm


@pytest.mark.parametrize(
    "text",
    [
        *("", "-1", "ten", "NaN", "0.00001", "10001", "12.5%", "Infinity"),
        *("1e999999999", "1e-999999999", "12.50000000000000000000000000000000001"),
    ],
)
def test_what_is_no_percentage_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no markup: expected a percentage"):
        parse_percent(text)


# ---- verify ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        (
            "UPDATE legs SET billed_nano_usd = billed_nano_usd + 1 WHERE number = 2",
            "ppm and billed",
        ),
        ("UPDATE legs SET posted_billed_nano_usd = 1 WHERE number = 2", "posted_billed_nano_usd"),
        ("UPDATE rollups SET billed_nano_usd = 3 WHERE model = 'gpt-4o-mini'", "billed 3"),
        ("UPDATE legs SET rated_nano_usd = 4 WHERE model = 'adjustment'", "but its order says"),
        ("UPDATE legs SET billed_nano_usd = 4 WHERE model = 'flat fee'", "but its order says"),
    ],
)
def test_verify_finds_what_does_not_add_up(sql: str, says: str) -> None:
    desk = Desk(Policy(livekit_project="LK", billing=TERMS))
    call_id = a_finished_call(desk)
    adjust(desk, call_id, -1_000)
    desk.check()
    db: apsw.Connection = desk.store._db
    db.execute(sql)
    assert any(says in sentence for sentence in desk.store.verify())

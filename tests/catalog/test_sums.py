"""A million calls of a day each, at the dearest price of every kind, sum within int64."""

from __future__ import annotations

import pytest

from tests.catalog.example_prices import TheOnlyPrice, price, usage_of
from tests.ledger.desk import NOON, TTS, Desk
from voicecost_catalog import Kind, ModelPrice, Rate, Rule, open_price_book
from voicecost_ledger import postings
from voicecost_ledger.books import Books
from voicecost_ledger.money import MAX_NANO_USD
from voicecost_ledger.policy import Policy, ProjectPolicy
from voicecost_ledger.records import Basis, Modality, Outcome
from voicecost_ledger.stores import CostQuery

CALLS = 1_000_000
SECONDS = 24 * 3_600

# What a call can use in a day in which nobody is ever silent. A quick speaker says 25 characters a
# second, and the costliest providers count 32 tokens of sound and 10 of text for it. A turn every
# ten seconds reads 4,000 tokens and writes 200, none of them cached.
OPEN = {"audio_ms": 1_000 * SECONDS, "connected_ms": 1_000 * SECONDS}
SPEECH = OPEN | {"plain": 0, "wide": 25 * SECONDS, "markup": 0, "utf8_bytes": 3 * 25 * SECONDS}
TURNS = OPEN | {"text": 400 * SECONDS, "said": 20 * SECONDS, "requests": SECONDS // 10}
SOUND = {"heard": 32 * SECONDS, "spoken": 32 * SECONDS}
DAYS = {
    Modality.STT: OPEN | {"heard": 32 * SECONDS, "said": 10 * SECONDS},
    Modality.TTS: SPEECH | {"text": 10 * SECONDS, "spoken": 32 * SECONDS},
    Modality.REALTIME: TURNS | SOUND,
}
BOOK = [
    of
    for of in (*open_price_book().own_prices(), *open_price_book().every_price(NOON))
    if of.kind in (Kind.BASE, Kind.SUPERSEDED)
    and of.rule not in (Rule.RECURRING, Rule.TRAFFIC)  # no leg counts months, or bytes of a room
]
CHANNELS = 2


def day_nano_usd(of: ModelPrice) -> int:
    """What a day costs at a price, at the most, both channels billed apart."""
    days = [SPEECH, DAYS.get(of.modality, TURNS)]
    if "output_audio_tokens" in of.rates and of.modality is Modality.LLM:
        days.append(TURNS | SOUND)  # genai-prices' realtime models
    amounts = [amount for day in days if (amount := of.rate(usage_of(day))) is not None]
    return max(amounts) * (CHANNELS if of.rule is Rule.AUDIO else 1)


def dearest_call_nano_usd() -> int:
    """A leg of every modality all day long, each at the dearest price there is for it."""
    dearest: dict[Modality, int] = {}
    for of in BOOK:
        dearest[of.modality] = max(dearest.get(of.modality, 0), day_nano_usd(of))
    assert dearest.keys() >= {Modality.LLM, Modality.STT, Modality.TTS, Modality.REALTIME}
    return sum(dearest.values())


def test_a_million_calls_of_a_day_at_the_dearest_prices_fit_int64() -> None:
    """LLM, speech both ways, realtime, avatar, participant, recording and phone at once."""
    assert dearest_call_nano_usd() * CALLS <= MAX_NANO_USD


def test_their_sum_is_exact_in_every_total_of_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the books and a real store; each of ten calls stands for a hundred thousand."""
    monkeypatch.setattr(postings, "MAX_LEG_NANO_USD", MAX_NANO_USD)  # a leg is one of a call's
    each_nano_usd = dearest_call_nano_usd() * CALLS // 10
    shop = ProjectPolicy(name="Shop", daily_budget_nano_usd=1)
    desk = Desk(Policy(livekit_project="LK", projects={"shop": shop}))
    of = price(Rule.CHARACTERS, {"characters": Rate(nano_usd=each_nano_usd, per=2)})
    desk.books = Books(TheOnlyPrice(of), desk.policy)
    for number in range(10):
        meter = desk.meter(f"MT_{number}", project="shop")
        leg = meter.start(TTS)
        meter.interim(leg, characters=1)
        meter.send()
        desk.wait(1_000)
        meter.stop(leg, Outcome.SERVED, Basis.OBSERVED, characters=2)
        meter.close()
        meter.send()
    assert [call.total_nano_usd for call in desk.calls()] == [each_nano_usd] * 10
    for group_by in ((), ("project",), ("modality", "model")):
        asked = CostQuery(from_unix_ms=NOON, until_unix_ms=NOON + 3_600_000, group_by=group_by)
        (row,) = desk.store.costs(asked)
        assert row.amount_nano_usd == row.billed_nano_usd == 10 * each_nano_usd
    with desk.store.transaction() as tx:
        window = tx.window("project:shop", NOON - 12 * 3_600_000)
        assert window is not None
        assert window.spent_nano_usd == 10 * each_nano_usd
    desk.check()  # every sum again, in SQL, over the entries

"""Every entry of every leg is explained, whatever prices rate it and however it grew."""

from __future__ import annotations

import io
from typing import Any, Final

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from voicecost_catalog import CatalogPriceBook, open_price_book
from voicecost_ledger.billing import Billing, BillingTerms
from voicecost_ledger.books import Books
from voicecost_ledger.events import Adjust, Rerate
from voicecost_ledger.policy import Policy
from voicecost_ledger.protocol import Records
from voicecost_ledger.records import (
    Basis,
    LegAttributes,
    LegInterim,
    LegStart,
    LegStop,
    MeterOpen,
    Modality,
    Outcome,
    Record,
)
from voicecost_ledger.stores import CallQuery
from voicecost_ledger.stores.sqlite import SqliteStore
from voicecost_sidecar.explanations import EntryExplanation, explanation_table, read_explanation

NOON: Final = 1_795_348_800_000  # 2026-11-22T12:00:00Z
BOOK: Final = open_price_book()
POLICY: Final = Policy(billing=Billing(everybody=BillingTerms(markup_ppm=77_777)))


def leg(modality: Modality, provider: str, model: str) -> LegAttributes:
    return LegAttributes(modality=modality, provider=provider, model=model)


LEGS: Final = {
    # name: (attributes, what grows, by units that count from nothing)
    "audio": (leg(Modality.STT, "Deepgram", "nova-3"), ["audio_ms"], []),
    "minimum": (leg(Modality.STT, "groq", "whisper-large-v3"), ["audio_ms"], []),
    "wide": (
        leg(Modality.TTS, "Azure TTS", "tts:en-US-JennyNeural"),
        ["characters"],
        ["double_width_characters", "markup_characters"],
    ),
    "bytes": (leg(Modality.TTS, "FishAudio", "s1"), ["utf8_bytes"], ["characters"]),
    "tokens": (
        leg(Modality.LLM, "openai", "gpt-4o-mini"),
        ["input_tokens", "output_tokens"],
        ["cached_input_tokens"],
    ),
    "nobody": (leg(Modality.TTS, "Nobody", "sings"), ["characters"], []),
}


class Ledger:
    """One meter with one leg, over the real catalogue."""

    def __init__(self, attributes: LegAttributes, prices: CatalogPriceBook = BOOK) -> None:
        self.store = SqliteStore.open(":memory:")
        self.books = Books(prices, POLICY)
        self.seq = 0
        self.now = NOON
        self.tell(MeterOpen)
        self.tell(LegStart, leg=1, attributes=attributes, usage={})

    def tell(self, make: Any, **fields: Any) -> None:
        self.seq += 1
        record: Record = make("M_1", self.seq, self.now, **fields)
        with self.store.transaction() as tx:
            self.books.receive(tx, Records("M_1", self.seq - 1, self.seq, [record]), self.now)

    def order(self, order: Rerate | Adjust) -> None:
        with self.store.transaction() as tx:
            self.books.order(tx, order, self.now)

    def explanations(self) -> list[EntryExplanation]:
        (call,) = self.store.calls(CallQuery())
        detail = self.store.call(call.call_id)
        assert detail is not None
        return [read_explanation(self.store, entry.number) for entry in detail.entries]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(LEGS)),
    st.lists(st.integers(0, 50_000), min_size=1, max_size=5),
    st.booleans(),
    st.integers(-5, 5),
)
def test_every_entry_agrees_with_the_steps_that_lead_to_it(
    name: str, growth: list[int], corrected: bool, adjustment: int
) -> None:
    attributes, units, zeros = LEGS[name]
    ledger = Ledger(attributes)
    total = 0
    for more in growth:
        total += more
        usage = dict.fromkeys(units, total) | dict.fromkeys(zeros, 0)
        margins = {units[0]: 7}
        ledger.now += 15 * 60_000
        ledger.tell(LegInterim, leg=1, usage=usage, basis=Basis.ESTIMATED, margins=margins)
    stop: dict[str, Any] = {"leg": 1, "outcome": Outcome.SERVED, "basis": Basis.REPORTED}
    ledger.tell(LegStop, usage=dict.fromkeys(units, total) | dict.fromkeys(zeros, 0), **stop)
    if corrected:
        smaller = dict.fromkeys(units, total // 2) | dict.fromkeys(zeros, total // 3)
        ledger.tell(LegStop, usage=smaller, **stop)
    ledger.order(Rerate(from_unix_ms=NOON, until_unix_ms=NOON + 1, apply=True))
    (call,) = ledger.store.calls(CallQuery())
    ledger.order(
        Adjust(
            adjustment_id="A",
            call_id=call.call_id,
            amount_nano_usd=adjustment,
            reason="x",
            by="op",
        )
    )
    found = ledger.explanations()
    assert found
    assert all(explained.agrees for explained in found)
    for explained in found:
        if explained.price is not None:
            assert explained.steps[-1].quantity == str(explained.rated_nano_usd)
    of_leg = [explained for explained in found if explained.leg == 1]
    assert sum(e.amount_nano_usd or 0 for e in of_leg) == (of_leg[-1].rated_nano_usd or 0)
    assert ledger.store.verify() == []


def test_the_legs_of_this_test_are_priced_but_one() -> None:
    priced = {name for name, (of, *_) in LEGS.items() if BOOK.price_for(of, NOON) is not None}
    assert priced == LEGS.keys() - {"nobody"}


def test_an_entry_from_before_an_upgrade_is_explained_by_the_price_it_was_posted_with() -> None:
    attributes, *_ = LEGS["audio"]
    ledger = Ledger(attributes)
    stop: dict[str, Any] = {"leg": 1, "outcome": Outcome.SERVED, "basis": Basis.REPORTED}
    ledger.tell(LegStop, usage={"audio_ms": 60_000}, **stop)
    (before,) = ledger.explanations()
    # As if a later catalogue had no such model any more.
    ledger.books = Books(open_price_book(genai=False), POLICY)
    (after,) = ledger.explanations()
    assert after == before
    assert before.markup_percent == "7.7777"


def test_an_altered_price_is_not_explained_away() -> None:
    attributes, *_ = LEGS["audio"]
    ledger = Ledger(attributes)
    stop: dict[str, Any] = {"leg": 1, "outcome": Outcome.SERVED, "basis": Basis.REPORTED}
    ledger.tell(LegStop, usage={"audio_ms": 60_000}, **stop)
    db: Any = ledger.store._db
    db.execute("UPDATE legs SET usage = '{\"audio_ms\": 7}'")
    db.execute("DROP TRIGGER entries_are_never_changed")
    db.execute("UPDATE entries SET audio_ms = 7")
    (found,) = ledger.explanations()
    assert not found.agrees


def test_an_explanation_says_on_which_days_the_price_holds() -> None:
    stop: dict[str, Any] = {"leg": 1, "outcome": Outcome.SERVED, "basis": Basis.REPORTED}
    for model, valid in (
        ("deepseek/deepseek-v4-flash", "from 2026-09-10"),
        ("openai/gpt-4o-mini", "its source names no day"),
        ("google/gemini-3.8-flash-tts", "until 2027-01-01"),
    ):
        provider, _, name = model.partition("/")
        modality = Modality.TTS if name.endswith("tts") else Modality.LLM
        ledger = Ledger(leg(modality, provider, name))
        ledger.tell(LegStop, usage={"input_tokens": 5, "output_tokens": 5}, **stop)
        (found,) = ledger.explanations()
        console = Console(width=120, file=io.StringIO())
        with console.capture() as shown:
            console.print(explanation_table(found, "UTC"))
        assert f"{valid}\n" in "".join(f"{line.rstrip()}\n" for line in shown.get().splitlines())


def test_an_option_that_is_billed_on_top_is_named_in_the_table() -> None:
    on = ("keyterms", "redaction")
    ledger = Ledger(LegAttributes(Modality.STT, "Deepgram", "nova-3", addons=on))
    stop: dict[str, Any] = {"leg": 1, "outcome": Outcome.SERVED, "basis": Basis.REPORTED}
    ledger.tell(LegStop, usage={"audio_ms": 60_000}, **stop)
    (found,) = ledger.explanations()
    console = Console(width=200, file=io.StringIO())
    with console.capture() as shown:
        console.print(explanation_table(found, "UTC"))
    for option in on:
        assert f"60000 audio_ms (for {option})" in shown.get()


def test_a_quantity_that_nobody_counted_is_told_from_a_price_that_nobody_knows() -> None:
    ledger = Ledger(leg(Modality.TTS, "openai", "tts-1"))
    stop: dict[str, Any] = {"leg": 1, "outcome": Outcome.SERVED, "basis": Basis.REPORTED}
    ledger.tell(LegStop, usage={"audio_ms": 60_000}, **stop)
    ledger.tell(LegStop, usage={"audio_ms": 60_000, "characters": 1_000}, **stop)
    uncounted, counted = ledger.explanations()
    assert (uncounted.amount_nano_usd, uncounted.agrees) == (None, True)
    assert uncounted.price is not None
    assert uncounted.price == counted.price
    (step,) = uncounted.steps
    assert "not counted in what this price bills by" in step.detail
    assert counted.agrees


def test_what_had_no_price_yet_is_not_explained_by_a_later_one() -> None:
    attributes = leg(Modality.LLM, "openai", "gpt-4o-mini")
    ledger = Ledger(attributes, prices=open_price_book(genai=False))
    stop: dict[str, Any] = {"leg": 1, "outcome": Outcome.SERVED, "basis": Basis.REPORTED}
    ledger.tell(LegStop, usage={"input_tokens": 1_000, "output_tokens": 10}, **stop)
    ledger.books = Books(BOOK, POLICY)
    ledger.order(Rerate(from_unix_ms=NOON, until_unix_ms=NOON + 1, apply=True))
    before, after = ledger.explanations()
    assert (before.price, before.steps, before.agrees) == (None, [], True)
    assert after.price is not None
    assert after.agrees

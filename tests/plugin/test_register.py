"""A long call holds few legs on their own: the sums of the others lose nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livekit.plugins.voicecost import _matching, _register
from livekit.plugins.voicecost._register import Register
from livekit.plugins.voicecost.legs import Leg
from tests.plugin.metered_session import RecordingMeter
from tests.plugin.test_control_total import LLM, TTS, Account, answered, interrupted, spoke
from voicecost_ledger.records import Basis, LegAttributes, Modality, Outcome

KINDS = (LLM, TTS, LegAttributes(Modality.STT, "Deepgram", "nova-3"))
OUTCOMES = (Outcome.SERVED, Outcome.SERVED, Outcome.INTERRUPTED, Outcome.FAILED)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["open", "open", "spend", "stop", "stop", "correct", "price"]),
        st.integers(0, 10_000),
        st.sampled_from(KINDS),
        st.sampled_from(OUTCOMES),
        st.booleans(),
    ),
    max_size=150,
)


class Book:
    """A meter that keeps its legs in a register, and, beside it, what is true of each."""

    def __init__(self) -> None:
        self.summed: set[Leg] = set()
        self.kept: set[Leg] = set()
        self.register = Register(self._sum_up)
        self.meter = RecordingMeter()
        self.meter.charge_changed = self._changed  # pyright: ignore[reportAttributeAccessIssue]
        self.amounts: dict[Leg, int | None] = {}
        self.total = 0

    def _sum_up(self, legs: Sequence[Leg]) -> Iterator[Callable[[], None] | None]:
        for leg in legs:
            if leg in self.kept:
                yield None
            else:
                assert leg not in self.summed
                self.summed.add(leg)
                yield partial(self.summed.remove, leg)

    def _changed(self, leg: Leg, amount: int | None) -> None:
        self.total += (amount or 0) - (self.register.charge(leg, amount) or 0)
        self.amounts[leg] = amount


@settings(max_examples=60)
@given(STEPS)
def test_the_register_has_what_its_legs_have(
    steps: list[tuple[str, int, LegAttributes, Outcome, bool]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_register, "_HELD_MAX", 4)
        book = Book()
        legs: list[Leg] = []
        for step, number, attributes, outcome, flag in steps:
            if step == "open" or not legs:
                usage = {"characters": number % 90, "audio_ms": 0}
                legs.append(Leg(book.meter, book.meter, attributes, usage))
                if flag and number % 3 == 0:
                    book.kept.add(legs[-1])
                continue
            leg = legs[number % len(legs)]
            usage = {"characters": number, "audio_ms": number % 7}
            if step == "spend":
                leg.spend(usage, Basis.OBSERVED, ahead=True)
            elif step == "stop":
                leg.stop(outcome, usage, Basis.OBSERVED)
            elif step == "correct":
                leg.correct(usage if flag else None, Basis.REPORTED, outcome)
    held = list(book.register)
    assert not book.summed & set(held)
    assert {leg for leg in legs if leg.outcome is None} <= set(held)
    assert book.total == sum(amount or 0 for amount in book.amounts.values())
    used: dict[LegAttributes, Counter[str]] = {}
    for leg in legs:
        used.setdefault(leg.attributes, Counter()).update(leg.usage)
    found = {kind.attributes: kind for kind in book.register.kinds()}
    assert {each: +Counter(kind.usage) for each, kind in found.items()} == {
        each: +usage for each, usage in used.items()
    }
    for attributes, kind in found.items():
        amounts = [book.amounts[leg] for leg in legs if leg.attributes == attributes]
        assert kind.amount_nano_usd == sum(amount or 0 for amount in amounts)
        assert kind.unpriced_leg_count == amounts.count(None)
    assert book.register.counts() == Counter(leg.modality for leg in legs)
    lost = [book.amounts[leg] or 0 for leg in legs if leg.outcome is not Outcome.SERVED]
    assert book.register.waste() == (len(lost), sum(lost))


def test_a_long_call_holds_few_legs() -> None:
    book = Book()
    for number in range(1_000):
        leg = Leg(book.meter, book.meter, TTS, {"characters": number})
        leg.stop(Outcome.SERVED, {"characters": number}, Basis.OBSERVED)
    assert len(list(book.register)) <= _register._HELD_MAX
    (kind,) = book.register.kinds()
    assert kind.usage == {"characters": sum(range(1_000))}


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["heard", "interrupted", "missed", "outside", "again"]),
            st.integers(1, 900),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_livekits_account_is_explained_alike_by_sums(
    turns: list[tuple[str, int, bool]],
) -> None:
    """Whatever was summed up, and taken out again for a correction."""
    plain, summing = Account(), Account()
    undos: list[Callable[[], None]] = []
    for kind, count, sums in turns:
        for account in (plain, summing):
            served = kind in ("heard", "missed", "outside")
            outcome = Outcome.SERVED if served else Outcome.INTERRUPTED
            heard = kind != "outside"
            account.leg(LLM, outcome, heard=heard, input_tokens=count, output_tokens=count // 9)
            account.leg(
                TTS,
                outcome,
                heard=heard,
                livekit_counts={"characters": count},
                characters=count + 1,
            )
            if kind == "heard":
                account.livekit(answered(count, count // 9))
                account.livekit(spoke(count))
        if sums:
            followed = [leg for leg in summing.legs if leg.summed is None]
            for leg, each in zip(followed, summing.control.sum_up(followed), strict=True):
                leg.summed = each
                if each is not None:
                    undos.append(each)
        if kind == "again" and undos:
            leg = next(leg for leg in summing.legs if leg.summed is undos[0])
            undos.pop(0)()
            leg.summed = None
    told = [
        {(each.modality, each.unit): each for each in account.control.differences()}
        for account in (plain, summing)
    ]
    assert told[0] == told[1]


def looks(monkeypatch: pytest.MonkeyPatch) -> list[Leg]:
    """The legs that were asked what LiveKit should have counted of them, each as often."""
    looked_at: list[Leg] = []
    expected = _matching.expected

    def counted(leg: Leg, unit: str) -> int:
        looked_at.append(leg)
        return expected(leg, unit)

    monkeypatch.setattr(_matching, "expected", counted)
    return looked_at


@pytest.mark.parametrize("reports", ["nothing", "zero", "otherwise", "twice"])
def test_a_long_call_whose_plugin_counts_otherwise_is_not_compared_with_itself(
    reports: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 turns of it took a tenth of a second of the event loop each time, and kept every leg."""
    looked_at = looks(monkeypatch)
    account = Account(summing=True)
    most = 0
    for turn in range(400):
        looked_at.clear()
        none: dict[str, int] = {"input_tokens": 0, "cached_input_tokens": 0, "output_tokens": 0}
        account.leg(
            LLM,
            Outcome.SERVED,
            input_tokens=900 + turn,
            output_tokens=40,
            livekit_counts=none if reports == "nothing" else None,
        )
        if reports == "otherwise":
            account.livekit(answered(700 + turn, 41))
        else:
            for _ in range(2 * (reports == "twice")):
                account.livekit(answered(900 + turn, 40))
        most = max(most, len(looked_at))
    prompts = sum(900 + turn for turn in range(400))
    causes = {
        "nothing": {"not_in_usage": prompts},
        "zero": {"unexplained": prompts},
        "otherwise": {"unexplained": 400 * 200},
        "twice": {"unexplained": -prompts},
    }
    assert account.causes("input_tokens") == causes[reports]
    assert len(list(account.held)) <= 100
    assert most < 10_000


async def test_a_long_call_that_says_the_same_again_and_again_is_as_cheap_at_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A third of it interrupted when all was made, which LiveKit has counted or not."""
    looked_at = looks(monkeypatch)
    account = Account(summing=True)
    most = 0
    for turn in range(1_200):
        looked_at.clear()
        leg = account.open(TTS, characters=75)
        leg.livekit_counts = {"characters": 74}
        if turn % 6:
            account.livekit(spoke(74))  # before it is over
        leg.stop(Outcome.SERVED)
        if turn % 3 == 0:
            interrupted(leg)
        most = max(most, len(looked_at))
    assert account.causes("characters") == {"interrupted": 200 * 75, "not_in_usage": 1_000}
    assert len(list(account.held)) <= 16
    assert most < 500

"""Which quantities make sense together, and how far an estimate of them may be off."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicecost_ledger.quantities import (
    WHOLES,
    clipped,
    contradictions,
    moved,
    out_of_range,
    uncertainty_nano_usd,
)
from voicecost_ledger.records import UNITS


def llm(usage: Mapping[str, int]) -> int | None:
    """$10 a token of input, $1 of it cached, $100 a token of output: in nothing, for the head."""
    sent, cached = usage.get("input_tokens", 0), usage.get("cached_input_tokens", 0)
    if cached > sent:
        return None
    return (sent - cached) * 10 + cached + usage.get("output_tokens", 0) * 100


@pytest.mark.parametrize(
    ("usage", "margins", "expected"),
    [
        pytest.param({"output_tokens": 50}, {"output_tokens": 5}, 500, id="one unit, both ways"),
        pytest.param({"output_tokens": 3}, {"output_tokens": 5}, 500, id="never below zero"),
        pytest.param(
            {"input_tokens": 100, "cached_input_tokens": 80},
            {"cached_input_tokens": 40},
            360,
            id="a part cannot outgrow its whole, it can shrink",
        ),
        pytest.param(
            {"input_tokens": 100, "cached_input_tokens": 50},
            {"input_tokens": 10, "cached_input_tokens": 10},
            190,
            id="more of the whole and less of its cached part is the dearest",
        ),
        pytest.param({"output_tokens": 50}, {"output_tokens": 0}, 0, id="sure of itself"),
        pytest.param({"output_tokens": 50}, {"requests": 9}, 0, id="a unit nobody bills"),
        pytest.param({}, {"output_tokens": 7}, 700, id="nothing yet"),
    ],
)
def test_an_amount_is_as_uncertain_as_its_dearest_and_cheapest_reading(
    usage: dict[str, int], margins: dict[str, int], expected: int
) -> None:
    assert uncertainty_nano_usd(llm, usage, margins) == expected


def test_what_has_no_price_has_no_uncertainty_either() -> None:
    assert uncertainty_nano_usd(lambda _: None, {"requests": 1}, {"requests": 1}) is None


def test_a_part_above_its_whole_is_said_with_both_figures() -> None:
    found = contradictions(
        {"output_tokens": 9, "reasoning_tokens": 10, "cached_input_tokens": 3, "characters": 5}
    )
    assert found == {
        "reasoning_tokens": "reasoning_tokens=10 is more than output_tokens=9, of which it is a "
        "part"
    }


def test_a_quantity_below_zero_or_beyond_reason_is_out_of_range() -> None:
    assert out_of_range({"characters": -1}) == "characters=-1 is outside 0 to 2**40"
    assert out_of_range({"characters": 2**40 + 1}) is not None
    assert out_of_range({"characters": 2**40}) is None


usages = st.dictionaries(st.sampled_from(sorted(UNITS)), st.integers(0, 1000))


@given(usages, usages, st.sampled_from([1, -1]), st.sampled_from([1, -1]))
def test_moving_by_margins_never_makes_a_contradiction(
    usage: dict[str, int], margins: dict[str, int], wholes: int, parts: int
) -> None:
    found = moved(usage, margins, wholes=wholes, parts=parts)
    assert contradictions(found) == {}
    assert out_of_range(found) is None


@given(usages)
def test_what_makes_sense_is_not_clipped(usage: dict[str, int]) -> None:
    assert contradictions(clipped(usage)) == {}
    if not contradictions(usage):
        assert clipped(usage) == usage


def test_parts_of_parts_come_after_what_they_are_parts_of() -> None:
    seen: set[str] = set()
    for part, wholes in WHOLES.items():
        assert all(whole in seen for whole in wholes if whole in WHOLES)
        seen.add(part)
    assert WHOLES.keys() <= UNITS

"""Totals in another currency: beside the dollars, converted once, at the rate that was stated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sidecar.running import RunningSidecar, a_call, batch, running_sidecar
from tests.sidecar.test_cli import voicecost
from voicecost_catalog.currency import DisplayCurrency
from voicecost_ledger.billing import Billing, BillingTerms
from voicecost_ledger.protocol import Ack
from voicecost_ledger.records import Basis, LegAttributes, LegStart, LegStop, Modality, Outcome

EUROS = DisplayCurrency.of("EUR", "0.9201")
TERMS = Billing(everybody=BillingTerms(markup_ppm=1_000_000))
CONFIG = """
prices: {display_currency: {code: EUR, per_usd: 0.9201}}
billing: {markup_percent: 100}
"""
TWO_CALLS = {"code": "EUR", "per_usd": "0.9201", "total": "0.00883296", "billed": "0.01766592"}
ONE_CALL = TWO_CALLS | {"total": "0.00441648", "billed": "0.00883296"}
UNPRICED = LegAttributes(modality=Modality.TTS, provider="Nobody", model="sings")


@pytest.fixture
def told(tmp_path: Path) -> Iterator[RunningSidecar]:
    """Two calls of $0.0048 each; one has a leg that nobody knows the price of."""
    (tmp_path / "voicecost.yaml").write_text(CONFIG)
    with (
        running_sidecar(tmp_path, display_currency=EUROS, billing=TERMS) as sidecar,
        sidecar.agent() as agent,
    ):
        for meter_id in ("M_1", "M_2"):
            records = a_call(meter_id)
            if meter_id == "M_2":
                at = records[-1].at_unix_ms
                records[-1:] = [
                    LegStart("M_2", 4, at, 2, UNPRICED, {}),
                    LegStop("M_2", 5, at, 2, {"characters": 5}, Basis.OBSERVED, Outcome.SERVED),
                ]
            agent.send(batch(records))
            agent.hear_a(Ack)
        yield sidecar


def test_answers_have_the_converted_total_beside_the_dollars(told: RunningSidecar) -> None:
    listed = told.get("/v1/calls")
    assert listed["display_currency"] == TWO_CALLS
    assert told.get("/v1/costs")["display_currency"] == TWO_CALLS
    assert told.get("/v1/costs")["total_nano_usd"] == "9600000"
    call = told.get(f"/v1/calls/{listed['calls'][0]['call_id']}")
    assert call["display_currency"] == ONE_CALL
    assert call["summary"]["total_nano_usd"] == "4800000"


def test_the_command_line_says_the_same(told: RunningSidecar, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    call_id = told.get("/v1/calls")["calls"][0]["call_id"]
    at_the_rate = "at the stated rate of EUR 0.9201 a dollar"
    of_one = "EUR 0.0044 + 1 unpriced, billed EUR 0.0088"
    of_two = "EUR 0.0088 + 1 unpriced, billed EUR 0.0177"
    for command, path, dollars, line in (
        (("call", call_id), f"/v1/calls/{call_id}", "$0.0048", of_one),
        (("calls",), "/v1/calls", "$0.0048", f"these 2 calls: {of_two}"),
        (("costs",), "/v1/costs", "$0.0096", f"total: {of_two}"),
    ):
        shown = voicecost(tmp_path, *command, VOICECOST_DATABASE_URL=url)
        assert shown.returncode == 0, shown.stderr
        for words in (dollars, line, at_the_rate):
            assert words in shown.stdout
        as_json = voicecost(tmp_path, *command, "--json", VOICECOST_DATABASE_URL=url)
        assert json.loads(as_json.stdout) == told.get(path)


@pytest.mark.parametrize(
    ("per_usd", "nano_usd", "exact"),
    [
        pytest.param("0.92", 0, "0", id="nothing"),
        pytest.param("150", 1_500_000_000, "225", id="whole"),
        pytest.param("0.9201", -38_600_000, "-0.03551586", id="a refund"),
        pytest.param(
            "0.123456789012345678901",
            9_223_372_036_854_775_807,
            "1138687895.536349069998575123081565148107",
            id="more digits than a Decimal keeps by itself",
        ),
    ],
)
def test_a_conversion_is_exact(per_usd: str, nano_usd: int, exact: str) -> None:
    totals = DisplayCurrency.of("EUR", per_usd).totals(nano_usd, billed_nano_usd=nano_usd)
    assert (totals.total, totals.billed) == (exact, exact)


def test_without_a_currency_there_is_none(sidecar: RunningSidecar) -> None:
    assert sidecar.get("/v1/costs")["display_currency"] is None
    assert sidecar.get("/v1/calls")["display_currency"] is None

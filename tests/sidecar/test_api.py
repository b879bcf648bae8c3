"""Reading the ledger over HTTP: exact money, honest totals, a document that tells the truth."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from tests.sidecar.running import NOVA, RunningSidecar, a_call, batch, nothing_is_posted_for_a_while
from voicecost_ledger.protocol import Ack
from voicecost_ledger.records import (
    UNITS,
    Basis,
    ControlTotal,
    Coverage,
    LegAttributes,
    LegInterim,
    LegStart,
    LegStop,
    MeterClose,
    Modality,
    Outcome,
)

UNPRICED = LegAttributes(modality=Modality.TTS, provider="Nobody", model="sings")


@pytest.fixture
def told(sidecar: RunningSidecar) -> RunningSidecar:
    """Two calls of two projects; one has a leg that nobody knows the price of."""
    shop = a_call("M_1", project="shop", agent="greeter")
    lab = a_call("M_2", project="lab")
    at = lab.pop().at_unix_ms
    lab.append(LegStart("M_2", 4, at, 2, UNPRICED, {"characters": 5}))
    lab.append(LegStop("M_2", 5, at, 2, {"characters": 5}, Basis.OBSERVED, Outcome.INTERRUPTED))
    lab.append(MeterClose("M_2", 6, at, Coverage.COMPLETE))
    with sidecar.agent() as agent:
        for records in (shop, lab):
            agent.send(batch(records))
            agent.hear_a(Ack)
    return sidecar


def test_costs_by_project_name_what_they_do_not_hold(told: RunningSidecar) -> None:
    costs = told.get("/v1/costs", period="today")
    rows = {row["group"]["project"]: row for row in costs["rows"]}
    assert rows["shop"]["amount_nano_usd"] == rows["lab"]["amount_nano_usd"] == "4800000"
    assert (rows["shop"]["unpriced_leg_count"], rows["lab"]["unpriced_leg_count"]) == (0, 1)
    assert (costs["total_nano_usd"], costs["unpriced_leg_count"]) == ("9600000", 1)
    assert costs["time_zone"] == "UTC"


def test_costs_of_one_project_by_several_groups(told: RunningSidecar) -> None:
    costs = told.get("/v1/costs", project="shop", group_by="provider,model,outcome")
    (row,) = costs["rows"]
    assert row["group"] == {"provider": "Deepgram", "model": "nova-3", "outcome": "served"}


def test_what_open_legs_accrue_is_in_the_total_and_marked(told: RunningSidecar) -> None:
    nothing_is_posted_for_a_while()
    opened, started, stopped, _ = a_call("M_3", project="shop")
    at = stopped.at_unix_ms
    half = {"audio_ms": 30_000, "connected_ms": 30_000}
    with told.agent() as agent:
        agent.send(batch([opened, started, LegInterim("M_3", 3, at, 1, half, Basis.OBSERVED)]))
        agent.hear_a(Ack)
        costs = told.get("/v1/costs")
        assert sum(int(row["amount_nano_usd"]) for row in costs["rows"]) == 9_600_000
        assert costs["accruing_nano_usd"] == "2400000"
        assert costs["total_nano_usd"] == "12000000"
        assert told.get("/v1/costs", project="shop")["total_nano_usd"] == "7200000"
        assert told.get("/v1/costs", project="lab")["accruing_nano_usd"] == "0"
        assert told.get("/v1/costs", period="yesterday")["accruing_nano_usd"] == "0"
        agent.send(batch([msgspec.structs.replace(stopped, seq=4)]))
        agent.hear_a(Ack)
    costs = told.get("/v1/costs")
    assert (costs["accruing_nano_usd"], costs["total_nano_usd"]) == ("0", "14400000")


def test_waste_is_an_amount_and_a_share_of_call_and_project(told: RunningSidecar) -> None:
    _, started, stopped, _ = a_call("M_2")
    again = msgspec.structs.replace(started, seq=7, leg=3)
    cut = msgspec.structs.replace(stopped, seq=8, leg=3, outcome=Outcome.INTERRUPTED)
    with told.agent() as agent:
        agent.send(batch([again, cut]))
        agent.hear_a(Ack)
    costs = told.get("/v1/costs")
    rows = {row["group"]["project"]: row for row in costs["rows"]}
    assert (rows["shop"]["waste_nano_usd"], rows["shop"]["waste_per_mille"]) == ("0", 0)
    assert (rows["lab"]["waste_nano_usd"], rows["lab"]["waste_per_mille"]) == ("4800000", 500)
    assert (costs["waste_nano_usd"], costs["waste_per_mille"]) == ("4800000", 333)
    (call,) = told.get("/v1/calls", project="lab")["calls"]
    assert (call["waste_nano_usd"], call["waste_per_mille"]) == ("4800000", 500)
    assert call["nano_usd_by_outcome"] == {"served": "4800000", "interrupted": "4800000"}


def test_a_call_has_its_turns_its_latency_and_livekits_account(sidecar: RunningSidecar) -> None:
    opened, started, stopped, closed = a_call("M_1")
    at = opened.at_unix_ms
    said = [
        opened,
        msgspec.structs.replace(started, speech_id="SP_1"),
        msgspec.structs.replace(
            stopped,
            basis=Basis.ESTIMATED,
            margins={"audio_ms": 600},
            served_model="nova-3-2025",
            time_to_first_ms=180,
            duration_ms=900,
        ),
        ControlTotal(
            "M_1",
            4,
            at,
            Modality.STT,
            "Deepgram",
            "nova-3",
            "audio_ms",
            60_000,
            55_000,
            {"stt_tail": 4_000},
        ),
        msgspec.structs.replace(closed, seq=5),
    ]
    with sidecar.agent() as agent:
        agent.send(batch(said))
        agent.hear_a(Ack)
    detail = sidecar.get("/v1/calls/CA_1")
    (turn,), (leg,), (control,) = detail["turns"], detail["legs"], detail["control"]
    assert (turn["speech_id"], turn["nano_usd_by_modality"]) == ("SP_1", {"stt": "4800000"})
    assert (leg["served_model"], leg["billed_model"]) == ("nova-3-2025", "nova-3")
    assert (leg["uncertainty_nano_usd"], leg["margins"]) == ("48000", {"audio_ms": 600})
    assert detail["summary"]["uncertainty_nano_usd"] == "48000"
    assert detail["entries"][0]["uncertainty_nano_usd"] == "48000"
    assert control["causes"] == {"stt_tail": 4_000, "unexplained": 1_000}
    (of_call,), (of_shop,) = detail["latency"], sidecar.get("/v1/latency")["rows"]
    assert of_shop["group"] == {"project": "shop", **of_call["group"]}
    for row in (of_call, of_shop):
        assert (row["time_to_first_p95_ms"], row["duration_p50_ms"]) == (180, 900)
    assert sidecar.get("/v1/latency", project="lab")["rows"] == []
    metrics = sidecar.http.get("/v1/metrics").text
    assert "voicecost_ledger_unexplained_control_totals_total 1.0" in metrics


def test_every_kind_of_service_and_every_unit_is_taken_and_shown(sidecar: RunningSidecar) -> None:
    opened, _, _, closed = a_call("M_1")
    at, legs = opened.at_unix_ms, list[Any]()
    for number, modality in enumerate(Modality, start=1):
        attributes = LegAttributes(modality=modality, provider="Nobody", model="?")
        usage = dict.fromkeys(sorted(UNITS), number)
        legs.append(LegStart("M_1", 2 * number, at, number, attributes, {}))
        legs.append(
            LegStop("M_1", 2 * number + 1, at, number, usage, Basis.REPORTED, Outcome.SERVED)
        )
    last = msgspec.structs.replace(closed, seq=2 * len(Modality) + 2)
    with sidecar.agent() as agent:
        agent.send(batch([opened, *legs, last]))
        agent.hear_a(Ack)
    detail = sidecar.get("/v1/calls/CA_1")
    assert [leg["modality"] for leg in detail["legs"]] == [kind.value for kind in Modality]
    assert all(set(leg["usage"]) == UNITS for leg in detail["legs"])
    assert all(set(entry["usage"]) == UNITS for entry in detail["entries"])
    assert detail["quarantined"] == []
    rows = sidecar.get("/v1/costs", group_by="modality")["rows"]
    assert {row["group"]["modality"] for row in rows} == {kind.value for kind in Modality}


def test_costs_of_yesterday_are_none(told: RunningSidecar) -> None:
    assert told.get("/v1/costs", period="yesterday")["rows"] == []


def test_calls_are_listed_newest_first_and_in_pieces(told: RunningSidecar) -> None:
    everything = told.get("/v1/calls")
    first = told.get("/v1/calls", limit="1")
    assert [call["project"] for call in everything["calls"]] == ["lab", "shop"]
    assert (everything["has_more"], first["has_more"]) == (False, True)
    assert first["calls"] == everything["calls"][:1]
    assert [c["project"] for c in told.get("/v1/calls", project="shop")["calls"]] == ["shop"]
    assert told.get("/v1/calls", period="yesterday")["calls"] == []
    assert told.get("/v1/calls", state="open")["calls"] == []


def test_pages_hold_every_call_once_even_of_one_moment(
    sidecar: RunningSidecar, tmp_path: Path
) -> None:
    with sidecar.agent() as agent:
        for number in range(7):
            agent.send(batch(a_call(f"M_{number}")))
            agent.hear_a(Ack)
    ledger = apsw.Connection(str(tmp_path / "ledger.db"))
    ledger.execute(
        "UPDATE calls SET opened_at_unix_ms = (SELECT min(opened_at_unix_ms) FROM calls)"
    )
    ledger.close()
    everything = sidecar.get("/v1/calls")
    assert (len(everything["calls"]), everything["next_before"]) == (7, None)
    pages = [sidecar.get("/v1/calls", limit="3", period="today")]
    while pages[-1]["has_more"]:
        # A call that opens meanwhile is on a page that was read already.
        with sidecar.agent() as agent:
            agent.send(batch(a_call(f"M_later_{len(pages)}")))
            agent.hear_a(Ack)
        cursor = pages[-1]["next_before"]
        pages.append(sidecar.get("/v1/calls", limit="3", period="today", before=cursor))
    assert [len(page["calls"]) for page in pages] == [3, 3, 1]
    assert [call for page in pages for call in page["calls"]] == everything["calls"]
    assert pages[-1]["next_before"] is None


@pytest.mark.parametrize(
    ("path", "params", "says"),
    [
        ("/v1/costs", {"period": "someday"}, "today, yesterday, week, month"),
        ("/v1/costs", {"period": "today", "from": "2026-11-22"}, "not both"),
        ("/v1/costs", {"from": "22.11.2026"}, "ISO 8601"),
        ("/v1/costs", {"from": "2026-11-22", "to": "2026-11-21"}, "empty"),
        ("/v1/costs", {"group_by": "phone"}, "project, agent"),
        ("/v1/latency", {"group_by": "phone"}, "project, agent"),
        ("/v1/latency", {"period": "someday"}, "today, yesterday"),
        ("/v1/calls", {"limit": "0"}, "limit"),
        ("/v1/calls", {"before": "CA_1"}, "next_before"),
        ("/v1/calls", {"before": "1795334400000-"}, "next_before"),
        ("/v1/calls", {"before": "9" * 30 + "-CA_1"}, "next_before"),
        ("/v1/calls", {"period": "someday"}, "today, yesterday"),
        ("/v1/calls", {"state": "lost"}, "state"),
    ],
)
def test_a_question_that_is_not_understood(
    sidecar: RunningSidecar, path: str, params: dict[str, str], says: str
) -> None:
    answer = sidecar.http.get(path, params=params)
    assert answer.status_code == 400
    assert says in answer.text


def test_an_unknown_call_is_not_found(sidecar: RunningSidecar) -> None:
    answer = sidecar.http.get("/v1/calls/CA_none")
    assert answer.status_code == 404
    assert "CA_none" in answer.json()["detail"]


def test_metrics_are_counters_and_gauges_without_names_of_people(told: RunningSidecar) -> None:
    text = told.http.get("/v1/metrics").text
    assert re.search(r"^voicecost_ledger_entries_total 3\.0$", text, re.MULTILINE)
    assert re.search(r"^voicecost_ledger_calls_settled 2\.0$", text, re.MULTILINE)
    assert re.search(r"^voicecost_ledger_unpriced_legs 1\.0$", text, re.MULTILINE)
    assert "voicecost_bookkeeper_faults_total 0.0" in text
    assert NOVA.model not in text


@pytest.fixture
def document(sidecar: RunningSidecar) -> dict[str, Any]:
    return sidecar.get("/openapi.json")


def test_the_document_names_every_route_and_no_other(document: dict[str, Any]) -> None:
    assert set(document["paths"]) == {
        "/health",
        "/livekit/webhook",
        "/v1/calls",
        "/v1/calls/{call_id}",
        "/v1/calls/{call_id}/adjustments",
        "/v1/costs",
        "/v1/entries/{number}/explanation",
        "/v1/latency",
        "/v1/metrics",
        "/v1/records",
        "/v1/rerate",
        "/v1/what-if",
    }


def test_the_documents_schemas_are_msgspecs_with_money_as_text(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    call = schemas["CallSummary"]
    assert call["description"].startswith("One call in a list.")
    assert call["properties"]["total_nano_usd"]["type"] == "string"
    assert call["properties"]["nano_usd_by_modality"]["additionalProperties"]["type"] == "string"
    kinds = {option["type"] for option in call["properties"]["limit_nano_usd"]["anyOf"]}
    assert kinds == {"string", "null"}


def test_every_reference_in_the_document_leads_somewhere(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    references = set(re.findall(r"#/components/schemas/([^'\"]+)", str(document)))
    assert references
    assert references <= set(schemas)


def test_what_is_answered_has_exactly_the_documents_fields(told: RunningSidecar) -> None:
    schemas = told.get("/openapi.json")["components"]["schemas"]
    (call, _) = told.get("/v1/calls")["calls"]
    detail = told.get(f"/v1/calls/{call['call_id']}")
    for name, answered in (
        ("CallSummary", call),
        ("CallAnswer", detail),
        ("LegView", detail["legs"][0]),
        ("EntryView", detail["entries"][0]),
        ("TurnView", detail["turns"][0]),
        ("LatencyRow", detail["latency"][0]),
        ("Costs", told.get("/v1/costs")),
        ("CostRow", told.get("/v1/costs")["rows"][0]),
        ("Latency", told.get("/v1/latency")),
        ("EntryExplanation", told.get("/v1/entries/1/explanation")),
        ("Step", told.get("/v1/entries/1/explanation")["steps"][0]),
        ("WhatIf", told.get("/v1/what-if", models="stt=deepgram/nova-3")),
    ):
        assert set(answered) == set(schemas[name]["properties"])

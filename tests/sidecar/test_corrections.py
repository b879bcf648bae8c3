"""Explaining, rerating, comparing and adjusting, over HTTP and at the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.sidecar.running import NOVA, RunningSidecar, a_call, batch
from tests.sidecar.test_cli import voicecost
from voicecost_ledger.protocol import Ack
from voicecost_ledger.records import (
    Basis,
    Coverage,
    LegAttributes,
    LegStart,
    LegStop,
    MeterClose,
    Modality,
    Outcome,
    Record,
)

AURA = LegAttributes(modality=Modality.TTS, provider="Deepgram", model="aura-2-andromeda-en")
MINI = LegAttributes(modality=Modality.LLM, provider="openai", model="gpt-4o-mini")
UNPRICED = LegAttributes(modality=Modality.TTS, provider="Nobody", model="sings")


def three_legs() -> list[Record]:
    """A minute of nova-3, an answer of gpt-4o-mini, and speech of somebody without a price."""
    *records, closed = a_call()
    at = closed.at_unix_ms
    tokens = {"input_tokens": 1_000, "cached_input_tokens": 200, "output_tokens": 100}
    speech = {"characters": 500}
    served = (Basis.REPORTED, Outcome.SERVED)
    return [
        *records,
        LegStart("M_1", 4, at, 2, MINI, {}),
        LegStop("M_1", 5, at, 2, tokens, *served),
        LegStart("M_1", 6, at, 3, UNPRICED, {}),
        LegStop("M_1", 7, at, 3, speech, *served),
        LegStart("M_1", 8, at, 4, AURA, {}),
        LegStop("M_1", 9, at, 4, speech, *served),
        MeterClose("M_1", 10, at, Coverage.COMPLETE),
    ]


@pytest.fixture
def told(sidecar: RunningSidecar) -> RunningSidecar:
    with sidecar.agent() as agent:
        agent.send(batch(three_legs()))
        agent.hear_a(Ack)
    return sidecar


def the_call(sidecar: RunningSidecar) -> dict[str, Any]:
    (call,) = sidecar.get("/v1/calls")["calls"]
    return sidecar.get(f"/v1/calls/{call['call_id']}")


# ---- explain ---------------------------------------------------------------------------------


def test_every_entry_is_explained_from_the_ledgers_own_price(told: RunningSidecar) -> None:
    entries = the_call(told)["entries"]
    assert len(entries) == 4
    for entry in entries:
        found = told.get(f"/v1/entries/{entry['number']}/explanation")
        assert found["amount_nano_usd"] == entry["amount_nano_usd"]
        assert found["agrees"]
        if entry["amount_nano_usd"] is not None:
            assert found["steps"][-1]["quantity"] == found["rated_nano_usd"]
            assert found["price"]["price_id"] == entry["price_id"]
    audio = told.get("/v1/entries/1/explanation")
    (rate,) = [step["rate"] for step in audio["steps"] if step["rule"] == "rate"]
    assert rate["source_url"].startswith("https://deepgram.com/")
    assert (rate["nano_usd"], audio["usage"]["audio_ms"]) == ("4800000", 60_000)
    unpriced = told.get("/v1/entries/3/explanation")
    assert (unpriced["price"], unpriced["steps"], unpriced["amount_nano_usd"]) == (None, [], None)


def test_an_entry_that_is_not_there_is_said(told: RunningSidecar) -> None:
    for number in (99, 10**20):
        answer = told.http.get(f"/v1/entries/{number}/explanation")
        assert answer.status_code == 404
        assert f"no entry {number}" in answer.json()["detail"]


def test_an_explanation_is_read_at_the_command_line_by_entry_and_by_leg(
    told: RunningSidecar, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    shown = voicecost(tmp_path, "explain", "1", VOICECOST_DATABASE_URL=url, COLUMNS="300")
    assert shown.returncode == 0, shown.stderr
    for word in ("deepgram/nova-3", "60,000 audio_ms", "https://deepgram.com/", "$0.004800000"):
        assert word in shown.stdout
    call_id = the_call(told)["summary"]["call_id"]
    by_leg = voicecost(tmp_path, "explain", call_id, "2", "--json", VOICECOST_DATABASE_URL=url)
    assert json.loads(by_leg.stdout) == told.get("/v1/entries/2/explanation")
    for arguments, says in (
        (("99",), "no entry 99"),
        ((str(10**20),), f"no entry {10**20}"),
        ((call_id, str(10**20)), f"nothing is posted of leg {10**20}"),
        ((call_id, "7"), "nothing is posted of leg 7"),
        ((call_id,), "is no entry's number"),
    ):
        wrong = voicecost(tmp_path, "explain", *arguments, VOICECOST_DATABASE_URL=url)
        assert wrong.returncode == 2
        assert says in wrong.stderr


# ---- rerate ----------------------------------------------------------------------------------

PRICED_NOW = """\
prices:
  rows:
    - {provider: nobody, model: sings, modality: tts, rule: characters,
       rates: {characters: {usd: 0.01, per: thousand}}}
"""


def test_a_rerate_over_http_shows_first_and_posts_when_told(told: RunningSidecar) -> None:
    def post(**body: Any) -> dict[str, Any]:
        answer = told.http.post("/v1/rerate", json={"period": "today"} | body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    # The sidecar's own book: what it posted an hour ago is what it would post now.
    assert [row for row in post()["rows"] if row["leg_count"]] == []
    (unknown,) = post()["rows"]
    assert (unknown["provider"], unknown["still_unpriced_leg_count"]) == ("Nobody", 1)
    assert post(apply=True)["changed_leg_count"] == 0
    assert len(the_call(told)["entries"]) == 4
    wrong = told.http.post("/v1/rerate", json={"period": "someday"})
    assert wrong.status_code == 400
    assert "today, yesterday" in wrong.text


def test_a_model_without_a_price_is_rerated_at_the_command_line_while_the_sidecar_runs(
    told: RunningSidecar, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    (tmp_path / "voicecost.yaml").write_text(PRICED_NOW)

    def rerate(*arguments: str) -> dict[str, Any]:
        done = voicecost(
            tmp_path,
            "rerate",
            "--period",
            "today",
            "--json",
            *arguments,
            VOICECOST_DATABASE_URL=url,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    dry = rerate()
    (row,) = [row for row in dry["rows"] if row["leg_count"]]
    assert (row["model"], row["unpriced_leg_count"], row["difference_nano_usd"]) == (
        "sings",
        1,
        "5000000",
    )
    assert the_call(told)["summary"]["unpriced_leg_count"] == 1
    assert rerate("--apply", "--reason", "contract of June") == dry | {"applied": True}
    call = the_call(told)
    assert (call["summary"]["unpriced_leg_count"], call["summary"]["amended"]) == (0, True)
    assert call["audit"][-1]["step"] == "rerate"
    assert "contract of June" in call["audit"][-1]["detail"]
    assert told.store.verify() == []
    assert rerate("--apply")["changed_leg_count"] == 0
    found = told.get("/v1/entries/5/explanation")
    assert (found["part"], found["amount_nano_usd"], found["agrees"]) == (1, "5000000", True)


def test_the_span_of_a_rerate_is_told_as_it_was_taken(told: RunningSidecar, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    asked = ("--from", "2026-11-01T10:07", "--to", "2026-11-01T10:08")
    for command in (("rerate",), ("what-if", "--models", "stt=deepgram/nova-3")):
        done = voicecost(tmp_path, *command, *asked, VOICECOST_DATABASE_URL=url)
        assert done.stdout.startswith("2026-11-01 10:00 to 2026-11-01 10:15 (UTC)")


# ---- what if ---------------------------------------------------------------------------------


def test_what_calls_would_have_cost_with_other_models(told: RunningSidecar, tmp_path: Path) -> None:
    models = "llm=openai/gpt-4o,tts=deepgram/aura-2"
    found = told.get("/v1/what-if", period="today", models=models)
    rows = {row["key"]: row for row in found["modalities"]}
    # 800 x 0.15 + 200 x 0.075 + 100 x 0.6 against 800 x 2.5 + 200 x 1.25 + 100 x 10, a million
    assert (rows["llm"]["was_nano_usd"], rows["llm"]["would_be_nano_usd"]) == ("195000", "3250000")
    assert rows["tts"]["difference_nano_usd"] == "0"
    assert rows["stt"]["was_nano_usd"] == rows["stt"]["would_be_nano_usd"] == "4800000"
    assert found["total"]["leg_count"] == 3
    (left_out,) = found["not_compared"]
    assert (left_out["model"], left_out["reason"]) == ("Nobody/sings", "had no price")
    assert found["call_count"] == 1
    assert "carried over" in found["note"]
    shown = voicecost(
        tmp_path,
        "what-if",
        "--period",
        "today",
        "--models",
        models,
        VOICECOST_DATABASE_URL=f"sqlite:///{tmp_path / 'ledger.db'}",
    )
    assert shown.returncode == 0, shown.stderr
    for word in ("openai/gpt-4o", "$0.003250", "(as it was)", "Nobody/sings", "carried over"):
        assert word in shown.stdout


@pytest.mark.parametrize(
    ("models", "says"),
    [
        ("", "no models given"),
        ("ears=deepgram/nova-3", "kinds are stt"),
        ("stt=nova-3", "is not understood"),
        ("stt=deepgram/nova-3,stt=deepgram/nova-2", "each once"),
        ("stt=deepgram/nova-99", "no price for 'deepgram/nova-99'"),
        ("tts=deepgram/nova-3", "priced as stt, not as tts"),
    ],
)
def test_models_that_are_not_understood(sidecar: RunningSidecar, models: str, says: str) -> None:
    answer = sidecar.http.get("/v1/what-if", params={"models": models})
    assert answer.status_code == 400
    assert says in answer.json()["detail"]


def test_a_leg_that_was_not_counted_as_the_other_model_bills_is_listed(
    told: RunningSidecar,
) -> None:
    found = told.get("/v1/what-if", models="tts=resemble/chatterbox")
    reasons = {row["reason"] for row in found["not_compared"] if row["model"].startswith("Deep")}
    assert reasons <= {"was not counted in what it bills by"}


def test_an_option_that_is_on_stays_on_with_another_model(sidecar: RunningSidecar) -> None:
    with_terms = msgspec.structs.replace(NOVA, addons=("keyterms",))
    records = [
        msgspec.structs.replace(record, attributes=with_terms)
        if isinstance(record, LegStart)
        else record
        for record in a_call()
    ]
    with sidecar.agent() as agent:
        agent.send(batch(records))
        agent.hear_a(Ack)
    found = sidecar.get("/v1/what-if", models="stt=deepgram/nova-3")
    assert (found["total"]["was_nano_usd"], found["total"]["difference_nano_usd"]) == (
        "6100000",
        "0",
    )


def test_a_model_that_costs_by_its_voice_is_not_compared(told: RunningSidecar) -> None:
    found = told.get("/v1/what-if", models="tts=google/unknown")
    reasons = {row["model"]: row["reason"] for row in found["not_compared"]}
    assert reasons["Deepgram/aura-2-andromeda-en"] == "no price then"


@pytest.mark.parametrize(
    "models", ["llm=xai/grok-4.3", "tts=Deepgram/aura-2:andromeda", "tts=deepgram/aura-2"]
)
def test_another_model_is_found_by_any_of_its_names(told: RunningSidecar, models: str) -> None:
    found = told.get("/v1/what-if", models=models)
    kind = models.partition("=")[0]
    (compared,) = [row for row in found["modalities"] if row["key"] == kind]
    assert (compared["leg_count"], compared["would_be_nano_usd"] != "0") == (1, True)


# ---- adjust ----------------------------------------------------------------------------------


def test_a_refund_over_http_is_posted_once(told: RunningSidecar) -> None:
    before = the_call(told)["summary"]
    path = f"/v1/calls/{before['call_id']}/adjustments"
    refund = {"amount_nano_usd": "-1000000", "reason": "bad line", "id": "R1"}
    for repeated in (False, True):
        answer = told.http.post(path, json=refund)
        assert answer.status_code == 201, answer.text
        assert answer.json()["repeated"] is repeated
    call = the_call(told)
    total = int(before["total_nano_usd"]) - 1_000_000
    assert call["summary"]["total_nano_usd"] == str(total)
    assert call["audit"][-1]["detail"] == "-$0.001000000, by the API: bad line"
    assert told.get("/v1/costs")["total_nano_usd"] == str(total)
    found = told.get(f"/v1/entries/{call['entries'][-1]['number']}/explanation")
    assert found["order"] == {"kind": "adjustment", "reason": "bad line", "by": "the API"}
    assert told.store.verify() == []


@pytest.mark.parametrize(
    ("call_id", "body", "status", "says"),
    [
        ("CA_none", {"amount_nano_usd": "1", "reason": "x"}, 404, "no call 'CA_none'"),
        (None, {"amount_nano_usd": "-99999999", "reason": "x"}, 400, "was billed"),
        (None, {"amount_nano_usd": "0.5", "reason": "x"}, 400, "whole number"),
        (None, {"amount_nano_usd": "1", "reason": " "}, 400, "needs a reason"),
        (None, {"amount_nano_usd": 1, "reason": "x"}, 400, "amount_nano_usd"),
        (None, {"amount_nano_usd": "1", "why": "x"}, 400, "why"),
    ],
)
def test_an_adjustment_that_cannot_be_is_refused(
    told: RunningSidecar, call_id: str | None, body: dict[str, Any], status: int, says: str
) -> None:
    call_id = call_id or the_call(told)["summary"]["call_id"]
    answer = told.http.post(f"/v1/calls/{call_id}/adjustments", json=body)
    assert answer.status_code == status
    assert says in answer.text


def test_only_the_operator_may_adjust_and_rerate(told: RunningSidecar) -> None:
    for path in ("/v1/calls/CA_1/adjustments", "/v1/rerate"):
        answer = told.http.post(path, json={}, headers={"Authorization": "Bearer other"})
        assert answer.status_code == 401


def test_a_refund_at_the_command_line(told: RunningSidecar, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    call_id = the_call(told)["summary"]["call_id"]
    arguments = ("adjust", call_id, "-0.001", "--reason", "bad line", "--id", "R1")
    done = voicecost(tmp_path, *arguments, VOICECOST_DATABASE_URL=url)
    assert done.returncode == 0, done.stderr
    assert f"{call_id} is adjusted: it costs $" in done.stdout
    (leg,) = [leg for leg in the_call(told)["legs"] if leg["model"] == "adjustment"]
    assert leg["amount_nano_usd"] == "-1000000"
    too_much = voicecost(
        tmp_path, "adjust", call_id, "-99", "--reason", "x", VOICECOST_DATABASE_URL=url
    )
    assert too_much.returncode == 2
    assert "take back at most that" in too_much.stderr

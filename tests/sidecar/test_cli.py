"""The command `voicecost`, run as people run it."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from msgspec.structs import replace

from tests.sidecar.running import (
    TOKEN,
    RunningSidecar,
    a_call,
    batch,
    nothing_is_posted_for_a_while,
)
from voicecost_ledger.protocol import Ack
from voicecost_ledger.records import (
    Basis,
    ControlTotal,
    Coverage,
    Gap,
    LegAttributes,
    LegInterim,
    LegStart,
    LegStop,
    MeterClose,
    Modality,
    Outcome,
    Record,
)
from voicecost_ledger.stores import LegView
from voicecost_sidecar.call_tables import units_text

VOICECOST = Path(sys.executable).with_name("voicecost")


def voicecost(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [VOICECOST, *arguments],
        cwd=folder,
        env=os.environ | {"COLUMNS": "200"} | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@contextmanager
def serving(
    folder: Path, **environ: str
) -> Generator[tuple[dict[str, Any], subprocess.Popen[str]]]:
    """`voicecost serve --json` until the block ends; gives what it says at its start."""
    process = subprocess.Popen(
        [VOICECOST, "serve", "--port", "0", "--json"],
        cwd=folder,
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise AssertionError(process.communicate(timeout=30)[1])
        yield json.loads(line), process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def test_a_call_is_read_from_the_ledger_directly(sidecar: RunningSidecar, tmp_path: Path) -> None:
    with sidecar.agent() as agent:
        agent.send(batch(a_call(agent="greeter")))
        agent.hear_a(Ack)
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    listed = voicecost(tmp_path, "calls", VOICECOST_DATABASE_URL=url)
    as_json = voicecost(tmp_path, "calls", "--json", VOICECOST_DATABASE_URL=url)
    assert listed.returncode == as_json.returncode == 0
    for word in ("shop", "greeter", "completed", "$0.0048"):
        assert word in listed.stdout
    found = json.loads(as_json.stdout)
    assert found == sidecar.get("/v1/calls")
    call_id = found["calls"][0]["call_id"]
    shown = voicecost(tmp_path, "call", call_id, VOICECOST_DATABASE_URL=url)
    for word in (
        call_id,
        "STT",
        "nova-3",
        "60.00 s audio",
        "observed",
        "served",
        "voicecost-catalog",
    ):
        assert word in shown.stdout
    detail = voicecost(tmp_path, "call", call_id, "--json", VOICECOST_DATABASE_URL=url)
    assert json.loads(detail.stdout) == sidecar.get(f"/v1/calls/{call_id}")
    spent = voicecost(tmp_path, "costs", "--group-by", "project,model", VOICECOST_DATABASE_URL=url)
    for word in ("shop", "nova-3", "total", "$0.0048"):
        assert word in spent.stdout
    spent_json = voicecost(tmp_path, "costs", "--json", VOICECOST_DATABASE_URL=url)
    assert json.loads(spent_json.stdout) == sidecar.get("/v1/costs")


def two_turns() -> list[Record]:
    """A meter with a served leg, an interrupted estimate and LiveKit's account of both."""
    opened, started, stopped, closed = a_call()
    at = opened.at_unix_ms
    llm = LegAttributes(modality=Modality.LLM, provider="api.openai.com", model="gpt-4o-mini")
    sent = {"input_tokens": 100_000, "cached_input_tokens": 40_000}
    half = sent | {"output_tokens": 1_000}
    margins = {"output_tokens": 500}
    return [
        opened,
        started,
        replace(stopped, time_to_first_ms=180, duration_ms=2_345),
        LegStart("M_1", 4, at, 2, llm, sent, speech_id="SP_1"),
        LegStop("M_1", 5, at, 2, half, Basis.ESTIMATED, Outcome.INTERRUPTED, margins, "gpt-4.1"),
        ControlTotal(
            "M_1", 6, at, Modality.LLM, "api.openai.com", "gpt-4o-mini", "output_tokens", 1_000, 0,
            {"interrupted": 900, "probe": 0},
        ),
        replace(closed, seq=7),
    ]  # fmt: skip


@pytest.mark.parametrize("columns", ["250", "80"])
def test_a_call_is_shown_from_every_side(
    sidecar: RunningSidecar, tmp_path: Path, columns: str
) -> None:
    with sidecar.agent() as agent:
        agent.send(batch(two_turns()))
        agent.hear_a(Ack)
        agent.send(batch(a_call("M_" + 32 * "f", project="shop")))
        agent.hear_a(Ack)
    where = {"VOICECOST_DATABASE_URL": f"sqlite:///{tmp_path / 'ledger.db'}", "COLUMNS": columns}

    def shown(*arguments: str) -> str:
        answer = voicecost(tmp_path, *arguments, **where)
        assert answer.returncode == 0, answer.stderr
        return " ".join(answer.stdout.split())

    legs = shown("call", "CA_1")
    for words in (
        "of it estimated $0.1",
        "off by at most $0.004000",  # 500 tokens of what served it, at $8 a million
        "waste $0.1",
        "by outcome interrupted $0.1",
        "unexplained 1 of LiveKit's 1 totals",
        "100,000 in (40,000 cached), 1,000 out",
        "± $0.004000",
    ):
        assert words in legs, legs
    if columns == "250":
        assert "gpt-4o-mini (served by gpt-4.1)" in legs
        assert "0.18 s 2.35 s" in legs or "0.18 s 2.34 s" in legs
    turns = shown("call", "CA_1", "--show", "turns")
    assert "(no turn) 1 $0.004800 $0.004800" in turns
    assert "SP_1 1 $0." in turns
    latency = shown("call", "CA_1", "--show", "latency")
    if columns == "250":
        assert "stt Deepgram nova-3 1 0.18 s 0.18 s 2.34 s 2.34 s" in latency
    else:
        assert "stt Deepgram nova-3 1 0.18 s 2.34 s 0.18 s 2.34 s" in latency
    control = shown("call", "CA_1", "--show", "control")
    assert "output_tokens 1,000 0 +1,000" in control
    for cause in ("interrupted +900", "unexplained +100"):
        assert all(word in control for word in cause.split())
    assert "probe" not in control
    of_project = shown("latency", "--project", "shop")
    assert (of_project.count("0.18 s"), of_project.count("2.34 s")) == (2, 1)
    assert "waste" in shown("calls")
    # Nothing is cut off on a narrow terminal, a long id neither.
    for command in (["calls"], ["latency"], ["costs"], ["call", "CA_1"]):
        told = voicecost(tmp_path, *command, **where).stdout
        assert max(map(len, told.splitlines())) <= int(columns)
    assert shown("latency", "--period", "yesterday").startswith("No leg has ended")
    spent = shown("costs")
    assert "waste" in spent
    assert " %)" in spent


def test_latency_is_the_apis_in_json_too(sidecar: RunningSidecar, tmp_path: Path) -> None:
    with sidecar.agent() as agent:
        agent.send(batch(two_turns()))
        agent.hear_a(Ack)
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    told = voicecost(tmp_path, "latency", "--json", VOICECOST_DATABASE_URL=url)
    assert json.loads(told.stdout) == sidecar.get("/v1/latency")
    detail = voicecost(tmp_path, "call", "CA_1", "--json", VOICECOST_DATABASE_URL=url)
    assert json.loads(detail.stdout) == sidecar.get("/v1/calls/CA_1")


@pytest.mark.parametrize(
    ("modality", "usage", "text"),
    [
        ("llm", {}, "0 in, 0 out"),
        (
            "llm",
            {"input_tokens": 9, "cache_write_tokens": 8, "output_tokens": 7, "reasoning_tokens": 5},
            "9 in (8 into cache), 7 out (5 reasoning)",
        ),
        ("stt", {"audio_ms": 61_230, "connected_ms": 70_000}, "61.23 s audio"),
        ("stt", {"input_tokens": 40, "input_audio_tokens": 38}, "40 in (38 audio), 0 out"),
        ("tts", {"characters": 1_234, "utf8_bytes": 1_300}, "1,234 characters"),
        (
            "realtime",
            {"input_tokens": 9, "input_image_tokens": 4, "input_audio_ms": 2_000},
            "9 in (4 image), 0 out, 2.00 s heard",
        ),
        ("avatar", {"connected_ms": 65_000}, "65.00 s connected"),
        ("turn_detection", {"requests": 12}, "12 requests"),
        ("interruption_detection", {}, "0 requests"),
        ("decision", {"input_tokens": 3}, "3 in, 0 out"),
        ("other", {"requests": 1, "characters": 5}, "1 request, 5 characters"),
    ],
)  # fmt: skip
def test_what_a_leg_used_is_said_in_the_units_people_think_in(
    modality: str, usage: dict[str, int], text: str
) -> None:
    leg = msgspec.convert(
        {field.encode_name: None for field in msgspec.structs.fields(LegView)}
        | {
            "meter_id": "", "leg": 1, "provider": "", "model": "", "billed_model": "", "host": "",
            "language": "", "service_tier": "", "margins": {}, "basis": "reported",
            "posted_nano_usd": 0, "started_at_unix_ms": 0, "modality": modality, "usage": usage,
        },
        LegView,
    )  # fmt: skip
    assert units_text(leg) == text


def test_a_list_that_goes_on_says_how_to_see_the_rest(
    sidecar: RunningSidecar, tmp_path: Path
) -> None:
    with sidecar.agent() as agent:
        for meter_id in ("M_1", "M_2", "M_3"):
            agent.send(batch(a_call(meter_id)))
            agent.hear_a(Ack)
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    listed = voicecost(tmp_path, "calls", "--limit", "2", VOICECOST_DATABASE_URL=url).stdout
    *_, option, cursor = listed.split()
    assert (option, "CA_1" in listed) == ("--before", False)
    rest = voicecost(tmp_path, "calls", "--before", cursor, VOICECOST_DATABASE_URL=url).stdout
    assert ("CA_1" in rest, "CA_2" in rest, "--before" in rest) == (True, False, False)
    wrong = voicecost(tmp_path, "calls", "--before", "CA_1", VOICECOST_DATABASE_URL=url)
    assert (wrong.returncode, "--before" in wrong.stderr) == (2, True)


HOSTILE = "[/red]boo \x1b[2J\x07\u202e\x9b:smile: [link=http://evil]x"
SHOWN = "[/red]boo [2J:smile: [link=http://evil]x"


@pytest.mark.parametrize("columns", ["200", "80"])
def test_what_agents_say_is_shown_as_it_is_and_never_done(
    sidecar: RunningSidecar, tmp_path: Path, columns: str
) -> None:
    said = a_call(project=HOSTILE, agent=HOSTILE, room_name=HOSTILE)
    attributes = LegAttributes(modality=Modality.TTS, provider=HOSTILE, model=HOSTILE)
    at = said[0].at_unix_ms
    said[3:] = [
        LegStart("M_1", 4, at, 2, attributes, {"characters": 1}),
        Gap("M_1", 5, at, HOSTILE),
        MeterClose("M_1", 6, at, Coverage.COMPLETE),
    ]
    with sidecar.agent() as agent:
        agent.send(batch(said))
        agent.hear_a(Ack)
    where = {"VOICECOST_DATABASE_URL": f"sqlite:///{tmp_path / 'ledger.db'}", "COLUMNS": columns}
    for command in (
        ["calls"],
        ["call", "CA_1"],
        ["costs", "--group-by", "project,agent"],
        ["prices", "--missing"],
    ):
        answer = voicecost(tmp_path, *command, **where)
        assert answer.returncode == 0, answer.stderr
        assert not set(answer.stdout) & set("\x1b\x07\u202e\x9b")
        if columns == "200":
            assert SHOWN in answer.stdout


def test_costs_show_what_is_accruing_and_need_no_group(
    sidecar: RunningSidecar, tmp_path: Path
) -> None:
    nothing_is_posted_for_a_while()
    opened, started, *_ = a_call()
    usage = {"audio_ms": 30_000}
    said = [opened, started, LegInterim("M_1", 3, opened.at_unix_ms, 1, usage, Basis.OBSERVED)]
    with sidecar.agent() as agent:
        agent.send(batch(said))
        agent.hear_a(Ack)
        url = f"sqlite:///{tmp_path / 'ledger.db'}"
        for group_by in ("project,model", "project", ""):
            arguments = ("costs", "--group-by", group_by)
            spent = voicecost(tmp_path, *arguments, VOICECOST_DATABASE_URL=url)
            assert spent.returncode == 0, spent.stderr
            assert "accruing" in spent.stdout
            assert spent.stdout.count("$0.0024") == 2  # accruing, and in the total


def test_a_group_without_cost_and_legs_is_not_shown(
    sidecar: RunningSidecar, tmp_path: Path
) -> None:
    """A lost leg whose stop comes late after all moves from one outcome to another."""
    usage = {"audio_ms": 60_000}
    opened, started, *_ = a_call("M_1")
    at = opened.at_unix_ms
    lost: list[Record] = [
        opened,
        started,
        LegInterim("M_1", 3, at, 1, usage, Basis.OBSERVED),
        MeterClose("M_1", 4, at, Coverage.COMPLETE),
    ]
    late: list[Record] = [LegStop("M_1", 5, at, 1, usage, Basis.OBSERVED, Outcome.SERVED)]
    with sidecar.agent() as agent:
        for records in (lost, late):
            agent.send(batch(records))
            agent.hear_a(Ack)
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    spent = voicecost(tmp_path, "costs", "--group-by", "outcome", VOICECOST_DATABASE_URL=url)
    assert "served" in spent.stdout
    assert "lost" not in spent.stdout
    assert [r["group"] for r in sidecar.get("/v1/costs", group_by="outcome")["rows"]] == [
        {"outcome": "served"}
    ]


def test_no_ledger_yet_is_said(tmp_path: Path) -> None:
    answer = voicecost(tmp_path, "costs")
    assert answer.returncode == 2
    assert "there is no ledger at" in answer.stderr


def test_a_wrong_question_is_said(sidecar: RunningSidecar, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    for arguments, says in (
        (["costs", "--period", "someday"], "today, yesterday"),
        (["costs", "--group-by", "phone"], "project, agent"),
        (["call", "CA_none"], "voicecost calls"),
    ):
        answer = voicecost(tmp_path, *arguments, VOICECOST_DATABASE_URL=url)
        assert answer.returncode == 2
        assert says in answer.stderr


def test_a_wrong_config_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "voicecost.yaml").write_text("projects:\n  shop:\n    daily_bugdet: 5.00\n")
    answer = voicecost(tmp_path, "serve", "--port", "0")
    assert answer.returncode == 2
    assert "voicecost.yaml:3: projects.shop.daily_bugdet: unknown key" in answer.stderr
    assert "name, daily_budget, budget_action" in answer.stderr


def test_an_alias_for_a_provider_without_prices_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "voicecost.yaml").write_text("host_aliases: {llm.internal: opnai}\n")
    answer = voicecost(tmp_path, "serve", "--port", "0")
    assert answer.returncode == 2
    assert "host_aliases" in answer.stderr
    assert "opnai" in answer.stderr


def test_init_writes_a_file_that_serve_takes_and_never_overwrites(tmp_path: Path) -> None:
    assert voicecost(tmp_path, "init").returncode == 0
    text = (tmp_path / "voicecost.yaml").read_text()
    assert "daily_budget: 5.00" in text
    (tmp_path / "voicecost.yaml").write_text("time_zone: UTC\n")
    again = voicecost(tmp_path, "init")
    assert again.returncode == 2
    assert "is there already" in again.stderr
    assert (tmp_path / "voicecost.yaml").read_text() == "time_zone: UTC\n"
    with serving(tmp_path) as (started, _):
        assert httpx.get(f"{started['url']}/health").json()["status"] == "ok"


def test_the_first_start_makes_a_token_and_says_it_once(tmp_path: Path) -> None:
    with serving(tmp_path) as (started, process):
        token_file = Path(started["database"]).with_suffix(".token")
        token = token_file.read_text().strip()
        assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
        bearer = {"Authorization": f"Bearer {token}"}
        assert httpx.get(f"{started['url']}/v1/calls", headers=bearer).status_code == 200
        assert httpx.get(f"{started['url']}/v1/calls").status_code == 401
    assert process.returncode in (0, -signal.SIGTERM)
    with serving(tmp_path) as (started, second):
        assert httpx.get(f"{started['url']}/v1/calls", headers=bearer).status_code == 200
        second.send_signal(signal.SIGTERM)
        assert token not in second.communicate(timeout=30)[1]


def test_a_token_file_that_others_may_read_stops_the_start(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    (tmp_path / "ledger.token").write_text("secret\n")
    (tmp_path / "ledger.token").chmod(0o644)
    answer = voicecost(tmp_path, "serve", "--port", "0", VOICECOST_DATABASE_URL=url)
    assert answer.returncode == 2
    assert "chmod 600" in answer.stderr


def test_the_environments_token_is_the_token(tmp_path: Path) -> None:
    with serving(tmp_path, VOICECOST_TOKEN=TOKEN) as (started, _):
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert httpx.get(f"{started['url']}/v1/calls", headers=bearer).status_code == 200
        assert not Path(started["database"]).with_suffix(".token").exists()


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with serving(tmp_path, VOICECOST_TOKEN=TOKEN) as (started, _):
        port = started["url"].rpartition(":")[2]
        answer = voicecost(tmp_path, "serve", "--port", port, VOICECOST_TOKEN=TOKEN)
    assert answer.returncode == 2
    assert f"127.0.0.1:{port}" in answer.stderr


@pytest.mark.parametrize("command", ["calls", "costs", "call"])
def test_reading_imports_no_web_stack(tmp_path: Path, command: str) -> None:
    program = (
        "import sys; from voicecost_sidecar import cli; "
        "heavy = {'litestar', 'uvicorn', 'aiohttp', 'jwt', 'ruamel', 'livekit', 'genai_prices'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    imported = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert imported.stdout.strip() == "[]"
    assert voicecost(tmp_path, command, "--help").returncode == 0


def test_serve_without_the_extra_says_what_to_install(tmp_path: Path) -> None:
    """A base install has no Litestar."""
    program = (
        "import sys; sys.modules['litestar'] = None; sys.argv = ['voicecost', 'serve'];"
        "from voicecost_sidecar import cli; cli.main()"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2
    assert "livekit-plugins-voicecost[sidecar]" in answer.stderr


def test_missing_prices_need_a_ledger_and_nothing_else(tmp_path: Path) -> None:
    done = voicecost(tmp_path, "prices", "--missing", "--stale")
    assert done.returncode == 2
    assert "--missing asks the ledger" in done.stderr


def test_without_a_ledger_the_models_of_livekit_without_a_price_are_listed(tmp_path: Path) -> None:
    done = voicecost(tmp_path, "prices", "--missing", "--json")
    assert done.returncode == 0, done.stderr
    missing = json.loads(done.stdout)
    assert missing["models"] is None
    assert "cambai.TTS" in {one["plugin"] for one in missing["plugins"]}
    table = voicecost(tmp_path, "prices", "--missing").stdout
    assert table.startswith("There is no ledger yet")
    assert (
        "listed in rupees: https://docs.sarvam.ai/api/getting-started/pricing\n  sarvam." in table
    )


def test_models_without_a_price_are_listed_from_the_ledger(
    sidecar: RunningSidecar, tmp_path: Path
) -> None:
    said = a_call()
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    with sidecar.agent() as agent:
        agent.send(batch(said))
        agent.hear_a(Ack)
        asked = voicecost(tmp_path, "prices", "--missing", VOICECOST_DATABASE_URL=url)
        assert asked.stdout.startswith("Every leg in the ledger has a price.")
        unknown = LegAttributes(modality=Modality.TTS, provider="Camb.ai", model="mars-flash")
        at = said[0].at_unix_ms
        other = a_call("M_2")
        other[3:] = [
            LegStart("M_2", 4, at, 2, unknown, {"characters": 40}),
            MeterClose("M_2", 5, at, Coverage.COMPLETE),
        ]
        agent.send(batch(other))
        agent.hear_a(Ack)
    asked = voicecost(tmp_path, "prices", "--missing", "--json", VOICECOST_DATABASE_URL=url)
    missing = json.loads(asked.stdout)
    assert missing["models"] == [
        {"provider": "Camb.ai", "model": "mars-flash", "modality": "tts", "leg_count": 1}
    ]
    assert "cambai.TTS" in {one["plugin"] for one in missing["plugins"]}
    assert "deepgram.STT" not in {one["plugin"] for one in missing["plugins"]}

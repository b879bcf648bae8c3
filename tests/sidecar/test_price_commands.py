"""`voicecost prices`: what is charged, what changed, and whether a price file is right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.sidecar.test_cli import voicecost
from voicecost_sidecar.cli import app


@pytest.mark.parametrize(
    ("model", "unit", "usd", "per"),
    [
        ("deepgram/nova-3", "audio_ms", "0.0048", "minute"),
        ("assemblyai/universal-2", "audio_ms", "0.15", "hour"),
        ("groq/llama-3.3-70b", "output_tokens", "0.79", "million"),
        ("ollama/qwen2.5:7b", "input_tokens", "0", "million"),
    ],
)
def test_prices_of_a_model_say_what_since_when_and_from_where(
    tmp_path: Path, model: str, unit: str, usd: str, per: str
) -> None:
    done = voicecost(tmp_path, "prices", model, "--json")
    assert done.returncode == 0, done.stderr
    lines = json.loads(done.stdout)["prices"]
    assert (usd, per) in [(line["usd"], line["per"]) for line in lines if line["unit"] == unit]
    assert all(isinstance(line["nano_usd"], str) for line in lines)
    assert all(line["source_url"].startswith("https://") for line in lines)
    table = voicecost(tmp_path, "prices", model)
    assert f"${usd} a {per}" in table.stdout


def test_a_model_without_a_price_is_no_empty_list(tmp_path: Path) -> None:
    done = voicecost(tmp_path, "prices", "deepgram/nova-9")
    assert done.returncode == 2
    assert "no price for 'deepgram/nova-9'" in done.stderr


def test_stale_prices_fail_where_that_is_asked_for(tmp_path: Path) -> None:
    """Murf's page has no date: nobody can have checked it lately."""
    assert voicecost(tmp_path, "prices", "murf/falcon", "--stale").returncode == 0
    strict = voicecost(tmp_path, "prices", "murf/falcon", "--stale", "--strict", "--json")
    assert strict.returncode == 1
    assert json.loads(strict.stdout)["stale_count"] == 1
    assert voicecost(tmp_path, "prices", "local/kokoro", "--strict").returncode == 0


def test_what_changed_between_two_days_is_told(tmp_path: Path) -> None:
    days = ("2026-08-01", "2026-11-22")
    done = voicecost(tmp_path, "prices", "diff", *days, "--provider", "elevenlabs", "--json")
    changes = {line["model"]: line for line in json.loads(done.stdout)["changes"]}
    turbo = changes["eleven_turbo_v2_5"]
    assert (turbo["before"], turbo["after"]) == ("$0.05 a thousand", "$0.04 a thousand")
    assert turbo["source_url"] == "https://elevenlabs.io/pricing/api"
    assert (
        "$0.05 a thousand, then $0.04"
        in voicecost(tmp_path, "prices", "diff", *days, "--provider", "elevenlabs").stdout
    )
    same = voicecost(tmp_path, "prices", "diff", *days, "--provider", "Deepgram")
    assert same.stdout.startswith("No price known here changed")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("2026-11-22", "2026-08-01"), "2026-08-01 is not after 2026-11-22"),
        (("yesterday", "2026-08-01"), "'yesterday' is no day"),
        (("2026-08-01", "9999-12-31"), "'9999-12-31' is no day of a calendar"),
        (("0001-01-01", "2026-08-01"), "'0001-01-01' is no day of a calendar"),
        (("2026-08-01", "2026-11-22", "--provider", "deepgrm"), "no price of 'deepgrm'"),
    ],
)
def test_a_difference_of_no_days_is_refused(
    tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    done = voicecost(tmp_path, "prices", "diff", *arguments)
    assert done.returncode == 2
    assert says in done.stderr


PRICE_FILE = """\
provider: example
plugin_names: [Example]
hosts: [api.example.com]
plan: pay as you go

prices:
  - model: talk
    modality: tts
    match: [talk]
    rule: characters
    rates:
      characters:
        usd: "0.03"
        per: thousand
        source_url: https://example.com/pricing
        source_date: 2026-05-27
        checked_on: 2026-05-28
"""


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("per: thousand", "per: minute", ":14: prices[0].rates.characters.per: 'minute'"),
        ('"0.03"', '"-0.03"', ":13: prices[0].rates.characters.usd: '-0.03' is no price"),
        ("        source_url: https://example.com/pricing\n", "",
         ":13: prices[0].rates.characters.source_url: "),
        (PRICE_FILE[PRICE_FILE.index("  - model"):],
         PRICE_FILE[PRICE_FILE.index("  - model"):] * 2, "already prices talk on these days"),
    ],
    ids=["a wrong unit", "a negative price", "a missing source", "overlapping days"],
)  # fmt: skip
def test_a_price_file_is_checked(tmp_path: Path, old: str, new: str, says: str) -> None:
    file = tmp_path / "example.yaml"
    file.write_text(PRICE_FILE)
    right = voicecost(tmp_path, "prices", "check", str(file), "--json")
    assert json.loads(right.stdout) == {
        "file": str(file), "rows": 1, "rates": 1, "plans": 0, "discounts": 0, "credits": 0,
    }  # fmt: skip
    file.write_text(PRICE_FILE.replace(old, new))
    wrong = voicecost(tmp_path, "prices", "check", str(file))
    assert wrong.returncode == 2
    assert f"{file}:" in wrong.stderr
    assert says in wrong.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ":0: prices: no price in it"),
        ("[]", ":0: prices: no price in it"),
        ("prices: {}\n", ":0: prices: no price in it"),
        ("time_zone: UTC\n", ":0: prices: no price in it"),
        ("time_zone: UTC\nfoo: bar\n", ":2: foo: unknown key: allowed here are livekit, projects,"),
        ("prises:\n  plans: {livekit: scale}\n", ":1: prises: unknown key: allowed here are"),
        (PRICE_FILE.replace("prices:", "prises:"), ":6: prises: unknown field: allowed here are"),
        (PRICE_FILE[: PRICE_FILE.index("  - model")].replace("prices:", "prices: []"),
         ":0: prices: no price in it"),
    ],
)  # fmt: skip
def test_a_file_without_a_price_is_not_right(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "voicecost.yaml"
    file.write_text(text)
    wrong = voicecost(tmp_path, "prices", "check", str(file))
    assert wrong.returncode == 2
    assert f"{file}{says}" in wrong.stderr


def test_a_file_that_is_right_says_what_it_holds(tmp_path: Path) -> None:
    file = tmp_path / "contract.yaml"
    file.write_text("prices:\n  plans: {livekit: scale}\n  discounts: {deepgram: 5, openai: 5}\n")
    right = voicecost(tmp_path, "prices", "check", str(file))
    assert right.stdout.endswith(" is right: 1 plan, 2 discounts.\n")


def test_a_price_by_tiers_shows_the_higher_ones(tmp_path: Path) -> None:
    done = voicecost(tmp_path, "prices", "google/gemini-2.5-pro", "--json")
    lines = json.loads(done.stdout)["prices"]
    rates = {(line["unit"], line["above_input_tokens"]): line["usd"] for line in lines}
    assert (rates["input_tokens", None], rates["input_tokens", 200_000]) == ("1.25", "2.5")
    assert (rates["output_tokens", None], rates["output_tokens", 200_000]) == ("10", "15")
    table = voicecost(tmp_path, "prices", "google/gemini-2.5-pro").stdout
    assert "  output_tokens above 200000 of input: $15 a million\n" in table


def test_how_a_price_bills_is_shown_beside_its_rates(tmp_path: Path) -> None:
    whisper = json.loads(voicecost(tmp_path, "prices", "groq/whisper-large-v3", "--json").stdout)
    assert whisper["prices"][0]["minimum_ms"] == 10_000
    (chatterbox,) = json.loads(
        voicecost(tmp_path, "prices", "resemble/chatterbox", "--json").stdout
    )["prices"]
    assert chatterbox["derived"]["of"] == "characters"
    assert (chatterbox["derived"]["count"], chatterbox["derived"]["per"]) == (80, 1)
    for model, words in (
        ("groq/whisper-large-v3", "at least 10000 ms a request"),
        ("resemble/chatterbox", "80 for each of characters where nobody counted it"),
        ("livekit/deepgram/nova-3", "at least 1000 ms a request, in begun steps of 1000 ms"),
        ("anthropic/claude-sonnet-4-6", "since 2026-03-13"),
        ("elevenlabs/eleven_v3", "since 2026-09-29 (assumed)"),
    ):
        assert words in voicecost(tmp_path, "prices", model).stdout, model


def test_a_source_is_whole_however_narrow_the_terminal(tmp_path: Path) -> None:
    for columns in ("40", "80", "200"):
        table = voicecost(tmp_path, "prices", "openai/gpt-realtime-translate", COLUMNS=columns)
        url = "https://developers.openai.com/api/docs/models/gpt-realtime-translate"
        assert f"  {url}\n" in table.stdout


def test_every_price_includes_those_by_contract(tmp_path: Path) -> None:
    """The operator's own word is no page that somebody has to look at again."""
    (tmp_path / "voicecost.yaml").write_text(
        """
prices:
  discounts: {murf: 50, openai: 10}
  rows:
    - {provider: acme, model: sing, modality: tts, rule: characters,
       rates: {characters: {usd: 2, per: million}}}
"""
    )
    done = voicecost(tmp_path, "prices", "--json")
    lines = {(line["provider"], line["model"]): line for line in json.loads(done.stdout)["prices"]}
    assert lines["acme", "sing"]["pricing_source"].startswith("config@")
    assert lines["murf", "API (FALCON/GEN2)"]["usd"] == "0.015"
    assert lines["deepgram", "nova-2"]["pricing_source"].startswith("voicecost-catalog@")
    assert voicecost(tmp_path, "prices", "acme/sing", "--strict").returncode == 0
    assert "  your contract  config@" in voicecost(tmp_path, "prices", "acme/sing").stdout
    # A discount makes a list price neither fresh nor stale.
    assert voicecost(tmp_path, "prices", "openai/gpt-4o", "--strict").returncode == 0
    assert voicecost(tmp_path, "prices", "murf/falcon", "--strict").returncode == 1


def test_prices_by_contract_are_shown_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "contract.yaml"
    file.write_text("prices:\n  discounts: {deepgram: 50}\n")
    environ = {"VOICECOST_CONFIG": str(file)}
    done = voicecost(tmp_path, "prices", "deepgram/nova-3", "--json", **environ)
    first = json.loads(done.stdout)["prices"][0]
    assert (first["usd"], first["per"]) == ("0.0024", "minute")
    assert first["pricing_source"].startswith("config@")
    assert voicecost(tmp_path, "prices", "check", str(file)).returncode == 0
    file.write_text("prices:\n  discounts: {deepgram: 500}\n")
    for command in (["check", str(file)], ["deepgram/nova-3", "--config", str(file)]):
        wrong = voicecost(tmp_path, "prices", *command)
        assert wrong.returncode == 2
        assert f"{file}:2: prices.discounts.deepgram: '500' is no discount" in wrong.stderr


SEED_MODELS = """
deepgram/nova-3 deepgram/nova-2-conversationalai deepgram/aura-2 assemblyai/universal-2
openai/whisper-1 openai/gpt-4.1 openai/gpt-4o openai/gpt-4o-mini openai/tts-1-hd
groq/whisper-large-v3 groq/llama-3.3-70b-versatile groq/llama-3.1-8b-instant
anthropic/claude-opus-4-7 anthropic/claude-sonnet-4-6 anthropic/claude-haiku-4-5 cartesia/sonic-3
elevenlabs/eleven_turbo_v2_5 elevenlabs/eleven_flash_v2_5 elevenlabs/scribe_v2_realtime
google/gemini-2.5-flash resemble/chatterbox ollama/qwen2.5:7b ollama/qwen2.5:3b
ollama/llama3.2:3b local/whisper-large-v3 local/whisper-turbo local/kokoro local/piper
"""


def test_every_model_that_people_came_with_is_priced(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In this process: twenty-eight interpreters would take half a minute."""
    monkeypatch.chdir(tmp_path)
    for model in SEED_MODELS.split():
        with pytest.raises(SystemExit) as left:
            app(["prices", model, "--json"])
        assert left.value.code == 0, model
        assert json.loads(capsys.readouterr().out)["prices"], model

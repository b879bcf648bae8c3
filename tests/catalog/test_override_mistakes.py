"""What is wrong in `voicecost.yaml`, told with file, line and field."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from voicecost_catalog.override_file import parse_prices, read_prices
from voicecost_catalog.row_reader import CatalogError

FILE = Path("voicecost.yaml")

GOOD_ROW = """\
  rows:
    - provider: deepgram
      model: nova-3
      modality: stt
      rule: audio
      rates: {audio_ms: {usd: 0.004, per: minute}}
"""


@pytest.mark.parametrize(
    ("text", "line", "field", "says"),
    [
        (GOOD_ROW.replace("0.004", "-0.004"), 7, "prices.rows[0].rates.audio_ms.usd",
         "'-0.004' is no price"),
        (GOOD_ROW.replace("minute", "mood"), 7, "prices.rows[0].rates.audio_ms.per",
         "expected second, minute, hour"),
        (GOOD_ROW.replace("audio_ms", "characters"), 7, "prices.rows[0].rates.characters.per",
         "expected character, thousand, million"),
        (GOOD_ROW.replace("rule: audio", "rule: mood"), 6, "prices.rows[0].rule",
         "'mood': expected one of audio, session,"),
        (GOOD_ROW.replace("stt", "ttts"), 5, "prices.rows[0].modality", "'ttts': expected one of"),
        (GOOD_ROW.replace("rule: audio", "rule: audio\n      speed: 2"), 7, "prices.rows[0].speed",
         "unknown field: allowed here are provider, plugin_names, hosts, model, modality, match,"),
        (GOOD_ROW.replace("rule: audio", "rule: audio\n      plan: pay as you go"), 7,
         "prices.rows[0].plan", "a price by contract holds on whatever plan"),
        (GOOD_ROW.replace("rule: audio", "rule: audio\n      valid_from: soon"), 7,
         "prices.rows[0].valid_from", "'soon' is no day"),
        (GOOD_ROW.replace("rule: audio", "rule: audio\n      valid_from: 2026-13-01"), 7,
         "yaml", "'2026-13-01' is no day"),
        (GOOD_ROW.replace("0.004", "1e40"), 7, "prices.rows[0].rates.audio_ms.usd",
         "'1e40' is no price: expected 0 to 1000000"),
        (GOOD_ROW.replace("per: minute", "per: minute, source_url: see my notes"), 7,
         "prices.rows[0].rates.audio_ms.source_url", "'see my notes': expected the page itself"),
        (GOOD_ROW.replace("per: minute", "per: minute, source_url: ''"), 7,
         "prices.rows[0].rates.audio_ms.source_url", "'': expected the page itself"),
        (GOOD_ROW.replace("per: minute", "per: minute, checked_on: 2099-01-01"), 7,
         "prices.rows[0].rates.audio_ms.checked_on", "is in the future"),
        (GOOD_ROW.replace("usd: 0.004", "credits: 4"), 7, "prices.rows[0].rates",
         "credits need credit_usd"),
        (GOOD_ROW.replace("nova-3", "nova-*") + GOOD_ROW.replace("  rows:\n", ""), 8,
         "prices.rows[1].match", "a row above already prices nova-3 on these days"),
        (GOOD_ROW.replace("      model: nova-3\n", ""), 3, "prices.rows[0].model", "missing"),
        (GOOD_ROW.replace("provider: deepgram", "vendor: deepgram"), 3, "prices.rows[0].provider",
         "missing required field `provider`"),
        (GOOD_ROW + GOOD_ROW.replace("  rows:\n", ""), 8, "prices.rows[1].match",
         "a row above already prices nova-3 on these days"),
        (GOOD_ROW + "      service_tier: default\n", 8, "prices.rows[0].service_tier",
         "expected one such as priority"),
        (GOOD_ROW + "      service_tier: Priority\n", 8, "prices.rows[0].service_tier",
         "in lower case"),
        (GOOD_ROW.replace("{usd: 0.004, per: minute}", "0.004"), 7,
         "prices.rows[0].rates.audio_ms", "expected fields with values, got str"),
        (GOOD_ROW + "      derived: {audio_ms: 80}\n", 8, "prices.rows[0].derived.audio_ms",
         "expected fields with values, got str"),
        (GOOD_ROW + "      derived: {audio_ms: {of: letters, count: 8, per: character}}\n", 8,
         "prices.rows[0].derived.audio_ms.of", "'letters': expected a unit that legs count"),
        (GOOD_ROW + "      languages: [EN]\n", 8, "prices.rows[0].languages",
         "'EN' can never match"),
        (GOOD_ROW + "      match: nova-3\n", 8, "prices.rows[0].match",
         "'nova-3': expected a list"),
        (GOOD_ROW + "      match: []\n", 8, "prices.rows[0].match", "rates legs: name its models"),
        (GOOD_ROW + "      step_ms: 1.5\n", 8, "prices.rows[0].step_ms",
         "1.5: expected a whole number"),
        (GOOD_ROW + "      step_ms: 0\n", 8, "prices.rows[0].step_ms", "0: expected 1 to 86400000"),
        (GOOD_ROW + "      minimum_ms: -1\n", 8, "prices.rows[0].minimum_ms",
         "-1: expected 0 to 86400000"),
        (GOOD_ROW + "      per_channel: maybe\n", 8, "prices.rows[0].per_channel",
         "'maybe': expected true or false"),
        (GOOD_ROW + "      hosts: ['https://stt.internal/']\n", 8, "prices.rows[0].hosts",
         "'https://stt.internal/' is no host"),
        (GOOD_ROW.replace("provider: deepgram", "provider: ''"), 3, "prices.rows[0].provider",
         "is empty"),
        (GOOD_ROW + "prices:\n" + GOOD_ROW, 8, "prices", "given twice: keep one"),
        ("  rows: &rows [*rows]", 0, "yaml", "refers to itself"),
        ("  rows: 5", 2, "prices.rows", "expected a list"),
        ("  rows: [5]", 2, "prices.rows[0]", "expected fields with values"),
        ("  discounts: {deepgram: 120}", 2, "prices.discounts.deepgram", "0 to 100 percent"),
        ("  discounts: {deepgram: cheap}", 2, "prices.discounts.deepgram", "0 to 100 percent"),
        ("  discounts: {deepgrm: 12}", 2, "prices.discounts.deepgrm", "no prices of that provider"),
        ("  discounts: {deepgram: [1]}", 2, "prices.discounts.deepgram", "expected one value"),
        ("  discounts:\n    deepgram: 10\n    Deepgram: 20", 4, "prices.discounts.Deepgram",
         "given twice: keep one"),
        ("  plans: {livekit: scale, LiveKit: ship}", 2, "prices.plans.LiveKit", "given twice"),
        ("  discounts: 12", 2, "prices.discounts", "expected fields"),
        ("  plans: {livekit: gold}", 2, "prices.plans.livekit", "expected build_ship, scale"),
        ("  plans: {livekti: scale}", 2, "prices.plans.livekti",
         "no such provider: expected one of"),
        ("  credit_usd: {deepgram: 1}", 2, "prices.credit_usd.deepgram",
         "no provider prices in credits but cartesia, elevenlabs"),
        ("  credit_usd: {elevenlabs: 1}\n  plans: {elevenlabs: api}", 3, "prices.plans.elevenlabs",
         "'api' is not paid in credits, and credit_usd says what one costs: expected one of"),
        ("  credit_usd: {cartesia: 0}", 2, "prices.credit_usd.cartesia", "more than nothing"),
        ("  display_currency: {code: eur, per_usd: 1}", 2, "prices.display_currency.code",
         "three capital letters"),
        ("  display_currency: {code: EUR, per_usd: 0}", 2, "prices.display_currency.per_usd",
         "a positive number"),
        ("  display_currency: {code: EUR, per_usd: 1e999999999}", 2,
         "prices.display_currency.per_usd", "'1e999999999': expected a positive number"),
        ("  display_currency: {code: EUR, per_usd: 1e-999999}", 2,
         "prices.display_currency.per_usd", "'1e-999999': expected a positive number"),
        ("  display_currency: {code: EUR}", 2, "prices.display_currency.per_usd", "missing"),
        ("  display_currency: {code: EUR, rate: 2}", 2, "prices.display_currency.rate",
         "unknown key: allowed here are code, per_usd"),
        ("  markup: 5", 2, "prices.markup",
         "unknown key: allowed here are plans, discounts, credit_usd, rows, display_currency"),
        ('  plans: {livekit: "${PLAN}"}', 2, "prices.plans.livekit", "PLAN is not set"),
        ("  plans: {livekit: scale, livekit: scale}", 2, "yaml", "duplicate key"),
        ("  plans: {livekit: ", 2, "yaml", ""),
        ('  plans: {livekit: "\x07"}', 2, "yaml", "'\\x07' is no character of a text"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_file_line_and_field(
    text: str, line: int, field: str, says: str
) -> None:
    with pytest.raises(CatalogError) as raised:
        parse_prices(f"prices:\n{text}", FILE, {})
    assert says in str(raised.value)
    assert (raised.value.line, raised.value.field) == (line, field)
    assert str(raised.value).startswith(f"{FILE}:{raised.value.line}: {field}: ")


@pytest.mark.parametrize(
    ("text", "line", "field", "says"),
    [
        ("host_aliases: [a]", 1, "host_aliases", "expected keys and their values"),
        ("host_aliases: {a: }", 1, "host_aliases.a", "expected one value"),
        ("host_aliases:\n  A: openai\n  a: groq", 3, "host_aliases.a", "given twice: keep one"),
        ("\nhost_aliases: {a/v1: openai}", 2, "host_aliases.a/v1", "no scheme, no path"),
        ('host_aliases: {a: "${WHO}"}', 1, "host_aliases.a", "WHO is not set"),
    ],
)
def test_a_mistake_in_the_aliases_is_named_too(text: str, line: int, field: str, says: str) -> None:
    with pytest.raises(CatalogError, match=re.escape(says)) as raised:
        parse_prices(text, FILE, {})
    assert (raised.value.line, raised.value.field) == (line, field)


@pytest.mark.parametrize("text", ["", "time_zone: UTC\n", "[]", "prices: {}\n"])
def test_a_file_without_prices_overrides_nothing(text: str) -> None:
    assert not parse_prices(text, FILE, {}).overrides


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="cannot be read: No such file"):
        read_prices(tmp_path / "no.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff")
    with pytest.raises(CatalogError, match="is not UTF-8"):
        read_prices(tmp_path / "bytes.yaml")

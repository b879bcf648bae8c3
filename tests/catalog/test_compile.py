"""A data file that is wrong says where, and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from voicecost_catalog.compile import CatalogError, compile_rows, read_provider

GOOD = """\
provider: example
plugin_names: [Example]
hosts: [api.example.com]
plan: pay as you go

prices:
  - model: talk
    modality: tts
    match: [talk, talk-*]
    rule: characters
    valid_from: 2026-05-27
    valid_until: 2026-07-01
    rates:
      characters:
        usd: "0.000033333333333"
        per: thousand
        source_url: https://example.com/pricing
        source_date: 2026-05-27
        checked_on: 2026-05-28
        confidence: high
"""
SECOND = GOOD[GOOD.index("  - model") :].replace("valid_until: 2026-07-01", "note: dearer")


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "example.yaml"
    path.write_text(text)
    return path


def test_a_price_finer_than_a_nano_dollar_stays_exact(tmp_path: Path) -> None:
    provider = read_provider(written(tmp_path, GOOD))
    rate = provider.prices[0].rates["characters"]
    assert rate.nano_usd * 10**6 * 1_000 == 33_333_333_333 * rate.per


def test_a_new_price_is_a_new_row_below_the_old_one(tmp_path: Path) -> None:
    text = GOOD + SECOND.replace("valid_from: 2026-05-27", "valid_from: 2026-07-01")
    rows = compile_rows(written(tmp_path, text).parent)
    assert len(rows.providers[0].prices) == 2
    assert rows.pricing_source == "voicecost-catalog@2026-05-28"


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "says"),
    [
        ('usd: "0.000033333333333"', "usd: 0.03", 15, "prices[0].rates.characters.usd",
         "0.03 is not text: put it in quotes"),
        ('usd: "0.000033333333333"', 'usd: "free"', 15, "prices[0].rates.characters.usd",
         "'free' is no price"),
        ('usd: "0.000033333333333"', 'usd: "-1"', 15, "prices[0].rates.characters.usd",
         "'-1' is no price"),
        ('usd: "0.000033333333333"', 'usd: "NaN"', 15, "prices[0].rates.characters.usd",
         "'NaN' is no price"),
        ("per: thousand", "per: minute", 16, "prices[0].rates.characters.per",
         "expected character, thousand, million"),
        ("confidence: high", "confidence: certain", 20, "prices[0].rates.characters.confidence",
         "Invalid enum value 'certain'"),
        ("        source_url: https://example.com/pricing\n", "", 15,
         "prices[0].rates.characters.source_url", "missing required field `source_url`"),
        ("source_date: 2026-05-27", "source_date: in May", 18,
         "prices[0].rates.characters.source_date", "Invalid"),
        ("rule: characters", "rule: characters\n    direction: in", 11, "prices[0].direction",
         "'in': expected inbound or outbound"),
        ("rule: characters", 'rule: characters\n    prefixes: ["0049"]', 11, "prices[0].prefixes",
         "'0049' begins no number"),
        ("rule: characters", "rule: per_mood", 10, "prices[0].rule", "Invalid enum value"),
        ("rule: characters", "rule: audio", 13, "prices[0].rates",
         "rule 'audio' bills 'audio_ms', which has no rate"),
        ("      characters:\n", "      charakters:\n", 16, "prices[0].rates.charakters.per",
         "no unit of that name"),
        ("match: [talk, talk-*]", "match: [Talk]", 9, "prices[0].match", "write it in lower case"),
        ("match: [talk, talk-*]", "matches: [talk]", 9, "prices[0].matches", "unknown field"),
        ("valid_until: 2026-07-01", "valid_until: 2026-05-27", 12, "prices[0].valid_until",
         "is not after valid_from"),
        ("plan: pay as you go", "plan: 7", 4, "plan", "7 is not text: put it in quotes"),
        ("plan: pay as you go", "plan: [", 7, "yaml", "expected"),
        ("plan: pay as you go", "plan: a\nplan: b", 5, "yaml", "duplicate key"),
        ("    rates:\n", "    rates: 5\n    note:\n", 13, "prices[0].rates", "got int"),
        ("        source_url: https://example.com/pricing\n", "        source: blog\n", 17,
         "prices[0].rates.characters.source", "'blog' is no source of this file: none"),
        ('usd: "0.000033333333333"', 'credits: "1"', 13, "prices[0].rates",
         "credits need credit_usd of the file"),
        ('usd: "0.000033333333333"', "kind: base", 15, "prices[0].rates.characters.usd",
         "expected either usd or credits"),
        ("rule: characters", "rule: characters\n    kind: addon", 9, "prices[0].match",
         "kind 'addon' rates no leg"),
        ("rule: characters", "rule: characters\n    kind: self_hosted", 14, "prices[0].rates",
         "what nobody bills for costs 0"),
        ("rule: characters", "rule: characters\n    minimum_ms: 5", 14, "prices[0].rates",
         "for audio and session only"),
        ("rule: characters",
         'rule: characters\n    derived:\n      characters: {of: audio_ms, count: "x", per: hour}',
         12, "prices[0].derived.characters.count", "'x' is no count"),
        ("rule: characters",
         'rule: characters\n    derived:\n      characters: {of: audio_ms, count: "1", per: day}',
         12, "prices[0].derived.characters.per", "expected second, minute, hour"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)  # fmt: skip
def test_a_mistake_is_named_with_file_line_and_field(
    tmp_path: Path, old: str, new: str, line: int, field: str, says: str
) -> None:
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(CatalogError) as raised:
        read_provider(path)
    assert (raised.value.path, raised.value.field) == (path, field)
    assert says in str(raised.value)
    assert raised.value.line == line
    assert str(raised.value).startswith(f"{path}:{line}: {field}: ")


def test_a_price_in_credits_is_one_price_for_each_plan(tmp_path: Path) -> None:
    text = GOOD.replace(
        "prices:",
        """credit_usd:
  pro: {usd: "0.00005", source: page}
  scale: {usd: "0.0000374", source: page}
sources:
  page: {source_url: "https://example.com/credits", source_date: 2026-08-21, checked_on: null}
prices:""",
    ).replace('usd: "0.000033333333333"', 'credits: "1.5"')
    pro, scale = read_provider(written(tmp_path, text)).prices
    assert (pro.plan, scale.plan) == ("pro", "scale")
    assert pro.rates["characters"].nano_usd == 75_000
    assert scale.rates["characters"].nano_usd == 56_100


def test_a_source_is_stated_once_and_each_rate_may_differ(tmp_path: Path) -> None:
    inline = GOOD[GOOD.index("        source_url") :]
    text = GOOD.replace(inline, "        source: page\n        confidence: low\n")
    text += """
sources:
  page:
    source_url: https://example.com/pricing
    source_date: 2026-05-27
    checked_on: null
    confidence: high
"""
    (tmp_path / "checked.yaml").write_text(
        GOOD.replace("example", "other").replace("Example", "Other")
    )
    rows = compile_rows(written(tmp_path, text).parent)
    rate = rows.providers[1].prices[0].rates["characters"]
    assert (rate.source_url, rate.source_date) == ("https://example.com/pricing", "2026-05-27")
    assert (rate.checked_on, rate.confidence) == ("", "low")


def test_a_price_without_a_first_day_meets_every_earlier_one(tmp_path: Path) -> None:
    text = GOOD + SECOND.replace("    valid_from: 2026-05-27\n", "")
    with pytest.raises(CatalogError, match="already prices talk"):
        read_provider(written(tmp_path, text))
    same_end = GOOD.replace("    valid_from: 2026-05-27\n", "")
    text = same_end + SECOND.replace("valid_from: 2026-05-27", "valid_from: 2026-07-01")
    assert len(read_provider(written(tmp_path, text)).prices) == 2


def test_two_rows_never_price_the_same_day(tmp_path: Path) -> None:
    text = GOOD + SECOND.replace("valid_from: 2026-05-27", "valid_from: 2026-06-30")
    with pytest.raises(CatalogError, match=r"already prices talk, talk-\* on these days") as raised:
        read_provider(written(tmp_path, text))
    assert raised.value.field == "prices[1].valid_from"
    assert raised.value.line == 25


def test_two_providers_never_claim_the_same_host(tmp_path: Path) -> None:
    written(tmp_path, GOOD)
    (tmp_path / "other.yaml").write_text(GOOD.replace("provider: example", "provider: other"))
    with pytest.raises(CatalogError, match=r"'api\.example\.com' already belongs to 'example'"):
        compile_rows(tmp_path)


def test_a_folder_without_prices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no price in any of them"):
        compile_rows(tmp_path)

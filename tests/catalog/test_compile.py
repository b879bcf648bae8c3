"""A data file that is wrong says where, and what would be right."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from voicecost_catalog import compile as catalog_compile
from voicecost_catalog.compile import compile_rows, read_provider
from voicecost_catalog.row_reader import CatalogError

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
         "'certain': expected one of high, medium, low"),
        ("        source_url: https://example.com/pricing\n", "", 15,
         "prices[0].rates.characters.source_url", "missing required field `source_url`"),
        ("source_date: 2026-05-27", "source_date: in May", 18,
         "prices[0].rates.characters.source_date", "'in May' is no day: expected as in 2026-05-27"),
        ("valid_from: 2026-05-27", "valid_from: 2026-02-30", 11, "yaml", "'2026-02-30' is no day"),
        ("valid_from: 2026-05-27", 'valid_from: "2026-02-30"', 11, "prices[0].valid_from",
         "'2026-02-30' is no day: expected as in 2026-05-27"),
        ("source_date: 2026-05-27", "source_date: 2026-05-29", 19,
         "prices[0].rates.characters.checked_on", "2026-05-28 is before the page's own day"),
        ("checked_on: 2026-05-28", "checked_on: 2026-12-02", 19,
         "prices[0].rates.characters.checked_on", "2026-12-02 is in the future: it is 2026-11-30"),
        ("https://example.com/pricing", '""', 17, "prices[0].rates.characters.source_url",
         "'': expected the page itself, https://..."),
        ("https://example.com/pricing", "see my notes", 17,
         "prices[0].rates.characters.source_url", "'see my notes': expected the page itself"),
        ("https://example.com/pricing", "http://example.com/pricing", 17,
         "prices[0].rates.characters.source_url", "'http://example.com/pricing': expected"),
        ('usd: "0.000033333333333"', 'usd: "1e40"', 15, "prices[0].rates.characters.usd",
         "'1e40' is no price: expected 0 to 1000000, at most 30 digits"),
        ('usd: "0.000033333333333"', 'usd: "1e999999999"', 15, "prices[0].rates.characters.usd",
         "'1e999999999' is no price"),
        ('usd: "0.000033333333333"', 'usd: "1e-999999999"', 15, "prices[0].rates.characters.usd",
         "'1e-999999999' is no price"),
        ("rule: characters", "rule: characters\n    direction: in", 11, "prices[0].direction",
         "'in': expected inbound or outbound"),
        ("rule: characters", 'rule: characters\n    prefixes: ["0049"]', 11, "prices[0].prefixes",
         "'0049' begins no number"),
        ("rule: characters", "rule: per_mood", 10, "prices[0].rule",
         "'per_mood': expected one of audio, session, characters, bytes, tokens, traffic"),
        ("modality: tts", "modality: ttts", 8, "prices[0].modality",
         "'ttts': expected one of stt, llm, tts, realtime,"),
        ("rule: characters", "rule: audio", 13, "prices[0].rates",
         "rule 'audio' bills 'audio_ms', which has no rate"),
        ("      characters:\n", "      charakters:\n", 16, "prices[0].rates.charakters.per",
         "no unit of that name"),
        ("match: [talk, talk-*]", "match: [Talk]", 9, "prices[0].match", "write it in lower case"),
        ("match: [talk, talk-*]", "matches: [talk]", 9, "prices[0].matches",
         "unknown field: allowed here are model, modality, match, rule, rates, kind, plan,"),
        ("confidence: high", "sure: yes", 20, "prices[0].rates.characters.sure",
         "unknown field: allowed here are per, usd, credits, kind, source, source_url,"),
        ("valid_until: 2026-07-01", "valid_until: 2026-05-27", 12, "prices[0].valid_until",
         "is not after valid_from"),
        ("plan: pay as you go", "plan: 7", 4, "plan", "7 is not text: put it in quotes"),
        ("plan: pay as you go", "plan: [", 7, "yaml", "expected"),
        ("plan: pay as you go", 'plan: "\x07"', 4, "yaml", "'\\x07' is no character of a text"),
        ("plan: pay as you go", "plan: a\nplan: b", 5, "yaml", "duplicate key"),
        ("    rates:\n", "    rates: 5\n    note:\n", 13, "prices[0].rates", "got int"),
        ("        source_url: https://example.com/pricing\n", "        source: blog\n", 17,
         "prices[0].rates.characters.source", "'blog' is no source of this file: none"),
        ("        source_url: https://example.com/pricing\n", "        source: [blog]\n", 17,
         "prices[0].rates.characters.source", "['blog'] is no source of this file: none"),
        ('usd: "0.000033333333333"', 'credits: "1"', 13, "prices[0].rates",
         "credits need credit_usd, which says what one costs"),
        ('usd: "0.000033333333333"', "kind: base", 15, "prices[0].rates.characters.usd",
         "expected either usd or credits"),
        ("rule: characters", "rule: characters\n    kind: addon", 9, "prices[0].match",
         "kind 'addon' rates no leg"),
        ("rule: characters", "rule: characters\n    kind: self_hosted", 14, "prices[0].rates",
         "what nobody bills for costs 0"),
        ("rule: characters", "rule: characters\n    minimum_ms: 5", 14, "prices[0].rates",
         "for audio and session only"),
        ("rule: characters", "rule: characters\n    step_ms: 86400001", 11, "prices[0].step_ms",
         "86400001: expected 1 to 86400000"),
        ("      characters:\n", "      utf8_bytes: free\n      characters:\n", 14,
         "prices[0].rates.utf8_bytes", "expected fields with values, got str"),
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
        read_provider(path, today=date(2026, 11, 30))
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
    assert raised.value.field == "prices[1].match"
    assert raised.value.line == 23


SOURCES = """
sources:
  page: {source_url: "https://example.com", source_date: 2026-05-27, checked_on: 2026-05-27}
"""


def two_rows(*fields: str) -> str:
    rows = [
        f"  - {{model: row, rule: characters, {its}, "
        'rates: {characters: {usd: "1", per: million, source: page}}}\n'
        for its in fields
    ]
    return GOOD[: GOOD.index("  - model")] + "".join(rows) + SOURCES


T = "modality: tts, match: [talk]"


@pytest.mark.parametrize(
    ("first", "second", "hidden"),
    [
        (T, T, "talk"),
        ("modality: tts, match: ['talk*']", "modality: tts, match: [talk-2]", "talk-2"),
        ("modality: tts, match: ['*']", "modality: tts, match: ['talk-*', x]", "talk-*, x"),
        (T, "modality: tts, match: ['talk*']", None),  # what is special goes first
        ("modality: tts, match: ['t*k']", "modality: tts, match: ['t*']", None),
        ("modality: tts, match: ['t*'], except_models: [talk]", T, None),
        ("modality: tts, match: ['t*'], except_models: [tell]", T, "talk"),
        (f"{T}, plan: pay as you go", T, "talk"),
        (f"{T}, plan: scale", T, None),
        (T, f"{T}, streaming: true", "talk"),
        (f"{T}, streaming: true", T, None),
        (T, f"{T}, languages: [de]", "talk"),
        (f"{T}, languages: [de, fr]", f"{T}, languages: [de]", "talk"),
        (f"{T}, languages: [de]", T, None),
        (f"{T}, except_languages: [de]", T, None),
        (f"{T}, except_languages: [de]", f"{T}, languages: [fr]", "talk"),
        (f"{T}, except_languages: [de]", f"{T}, languages: [de]", None),
        (T, f"{T}, voices: ['*-hd']", "talk"),
        (f"{T}, voices: ['*-hd']", f"{T}, voices: ['en-*-hd']", "talk"),
        (f"{T}, voices: ['*-hd']", T, None),
        ("modality: other, match: [talk]", T, None),
        (f"{T}, valid_until: 2026-06-01", f"{T}, valid_from: 2026-05-01", "talk"),
        (f"{T}, valid_until: 2026-06-01", f"{T}, valid_from: 2026-06-01", None),
    ],
)
def test_a_row_that_one_above_hides_is_refused(
    tmp_path: Path, first: str, second: str, hidden: str | None
) -> None:
    path = written(tmp_path, two_rows(first, second))
    if hidden is None:
        assert len(read_provider(path).prices) == 2
        return
    with pytest.raises(CatalogError) as raised:
        read_provider(path)
    assert f"a row above already prices {hidden} on these days" in str(raised.value)
    assert raised.value.field == "prices[1].match"


def test_a_price_of_a_credit_is_what_a_plan_costs_for_its_credits(tmp_path: Path) -> None:
    text = GOOD.replace(
        "prices:",
        """credit_usd:
  scale: {usd: "299", credits: "1800000", source: page}
sources:
  page: {source_url: "https://example.com/plans", source_date: 2026-08-21, checked_on: null}
prices:""",
    ).replace('usd: "0.000033333333333"', 'credits: "0.5"')
    (scale,) = read_provider(written(tmp_path, text)).prices
    rate = scale.rates["characters"]
    assert rate.nano_usd * 1_800_000 * 2 * 1_000 == 299 * 10**9 * rate.per


def test_two_providers_never_claim_the_same_host(tmp_path: Path) -> None:
    written(tmp_path, GOOD)
    (tmp_path / "other.yaml").write_text(GOOD.replace("provider: example", "provider: other"))
    with pytest.raises(CatalogError, match=r"'api\.example\.com' already belongs to 'example'"):
        compile_rows(tmp_path)


def test_a_folder_without_prices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no price in any of them"):
        compile_rows(tmp_path)


def test_a_mistake_is_told_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, GOOD.replace("tts", "ttts"))
    monkeypatch.setattr(catalog_compile, "DATA_DIRECTORY", tmp_path)
    assert catalog_compile.main(["--check"]) == 1
    assert capsys.readouterr().err.startswith(f"{path}:8: prices[0].modality: 'ttts'")

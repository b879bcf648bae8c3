"""Reads price rows as people write them, of a data file or of `voicecost.yaml`, and checks them.

Every refusal names file, line and field, and says what is allowed.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar, cast
from urllib.parse import urlsplit

import msgspec

from voicecost_catalog.phones import DIRECTIONS
from voicecost_catalog.rates import Confidence, Derived, Kind, Rate, Rule
from voicecost_catalog.rows import ProviderRows, Row, row_price, tier_name
from voicecost_ledger.records import UNITS, Modality

# How a price list words its units.
_PER: Final[dict[str, dict[str, int]]] = {
    "ms": {"second": 1_000, "minute": 60_000, "hour": 3_600_000},
    "characters": {"character": 1, "thousand": 1_000, "million": 1_000_000},
    "bytes": {"byte": 1, "thousand": 1_000, "million": 1_000_000, "gigabyte": 1_000_000_000},
    "months": {"month": 1},
    "tokens": {"thousand": 1_000, "million": 1_000_000},
    "requests": {"request": 1, "thousand": 1_000, "million": 1_000_000},
}
_RATED: Final = (Kind.BASE, Kind.SUPERSEDED, Kind.SELF_HOSTED)
_WORDS: Final = {"modality": Modality, "rule": Rule, "kind": Kind, "confidence": Confidence}
_DAYS: Final = ("valid_from", "valid_until", "source_date", "checked_on")
_EXPECTED: Final = {"array": "a list", "int": "a whole number", "bool": "true or false"}
_MATCHED: Final = ("match", "except_models", "languages", "except_languages", "voices")
_USD_MAX: Final = 1_000_000  # for one unit as it is written
_COUNT_MAX: Final = 1_000_000_000
_DIGITS_MAX: Final = 30  # behind the point
_MS_MAX: Final = 86_400_000  # a day
_WHOLE: Final = {"minimum_ms": (0, _MS_MAX), "step_ms": (1, _MS_MAX), "double_width_weight": (1, 9)}
_StructT = TypeVar("_StructT", bound=msgspec.Struct)
Ratio = tuple[int, int]
"""Nano-USD for so many."""


class CatalogError(ValueError):
    """A data file is wrong. The facts in the message are also fields.

    Attributes:
        path: The file.
        line: The line of the value, from 1; 0 when the file as a whole is meant.
        field: The field, for example `prices[2].rates.audio_ms.usd`.
        problem: What is wrong with it.
    """

    def __init__(self, path: Path, line: int, field: str, problem: str) -> None:
        super().__init__(f"{path}:{line}: {field}: {problem}")
        self.path = path
        self.line = line
        self.field = field
        self.problem = problem


class _RateEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rate as it stands in a file, together with the `source` it names."""

    per: str = ""  # not for credits
    usd: str | None = None
    credits: str | None = None  # instead of `usd`: so many of the file's `credit_usd`
    kind: Kind = Kind.BASE
    source: str = ""
    source_url: str
    source_date: date | None  # null: the page has no date
    checked_on: date | None  # null: nobody has; stale at once
    confidence: Confidence | None = None
    via: str = ""


class _DerivedEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a unit that nobody counted is derived, as it stands in a file."""

    of: str
    count: str
    per: str
    source_url: str = ""
    via: str = ""


class RowReader:
    """Reads rows of one file and says where in it something is wrong.

    Args:
        path: Of the file, for messages.
        sources: What rates may name as their `source`.
        section: The field that the rows stand in.
        unsourced: What a rate says of itself that names no source; by default it must.
        around: Fields beside a row's own that belong to whoever asks.
        today: No page was read later; by default what the clock says.
    """

    def __init__(
        self,
        path: Path,
        *,
        sources: Mapping[str, Any] | None = None,
        section: str = "prices",
        unsourced: Mapping[str, Any] | None = None,
        around: Sequence[str] = (),
        today: date | None = None,
    ) -> None:
        self._path = path
        self._sources = sources or {}
        self._section = section
        self._unsourced = unsourced or {}
        self._around = around
        self._today = today or datetime.now(UTC).date()

    def credit_prices(self, credit_usd: Mapping[str, Any]) -> dict[str, Ratio]:
        """What a credit costs on each plan: so many `usd`, for so many `credits` where it says."""
        prices: dict[str, Ratio] = {}
        for plan, node in credit_usd.items():
            where = f"credit_usd.{plan}"
            entry = self._sourced(node, where)
            nano_usd, per = self.nano_usd(node, entry.usd, where)
            if entry.credits is not None:
                credits, parts = self._amount(node, entry.credits, where, "credits", "number")
                nano_usd, per = nano_usd * parts, per * credits
            if not nano_usd or not per:
                self.fail(node, "usd", where, "a credit costs more than nothing")
            prices[plan] = _lowest(nano_usd, per)
        return prices

    def rows(self, node: Any, index: int, credit_usd: Mapping[str, Ratio]) -> list[Row]:
        """The row, or where it is priced in credits, one for each plan that says what they cost."""
        where = f"{self._section}[{index}]"
        entry = self.mapping(node, where)
        rates = self.mapping(entry.get("rates"), f"{where}.rates", parent=node, key="rates")
        derived: Mapping[Any, Any] = {}
        if "derived" in entry:
            key = f"{where}.derived"
            derived = self.mapping(entry.get("derived"), key, parent=node, key="derived")
        for name, tree in (("rates", rates), ("derived", derived)):
            for unit, stated in tree.items():
                self.mapping(stated, f"{where}.{name}.{unit}", parent=tree, key=unit)
        in_credits = any("credits" in rate for rate in rates.values())
        if in_credits and ("plan" in entry or not credit_usd):
            problem = (
                "credits need credit_usd, which says what one costs on which plan, and no plan"
            )
            self.fail(node, "rates", where, problem)
        rows: list[Row] = []
        for plan, credit in credit_usd.items() if in_credits else [("", None)]:
            replace: dict[str, Any] = {
                "rates": {
                    str(unit): msgspec.to_builtins(
                        self._rate(rate, str(unit), f"{where}.rates.{unit}", credit)
                    )
                    for unit, rate in rates.items()
                },
                "derived": {
                    str(unit): msgspec.to_builtins(self._derived(of, f"{where}.derived.{unit}"))
                    for unit, of in derived.items()
                },
            }
            if plan:
                replace["plan"] = plan
            rows.append(self.convert(node, Row, where, replace=replace))
        return rows

    def check(
        self, row: Row, of: ProviderRows, index: int, node: Any, *, earlier: Sequence[Row]
    ) -> None:
        """What only the whole row, or the rows before it, can tell."""
        where = f"{self._section}[{index}]"
        if row.valid_until and row.valid_from and row.valid_until <= row.valid_from:
            self.fail(node, "valid_until", where, f"{row.valid_until} is not after valid_from")
        if row.match and not row.addon and row.kind not in _RATED:
            self.fail(node, "match", where, f"kind {row.kind.value!r} rates no leg: leave it []")
        if row.addon and row.kind is not Kind.ADDON:
            self.fail(node, "addon", where, f"kind {row.kind.value!r} is no add-on: kind addon is")
        if row.kind is Kind.SELF_HOSTED and any(rate.nano_usd for rate in row.rates.values()):
            self.fail(node, "rates", where, "what nobody bills for costs 0")
        if row.direction not in ("", *DIRECTIONS):
            self.fail(
                node, "direction", where, f"{row.direction!r}: expected {' or '.join(DIRECTIONS)}"
            )
        for prefix in row.prefixes:
            if not re.fullmatch(r"\+[0-9]{1,15}", prefix):
                self.fail(node, "prefixes", where, f'{prefix!r} begins no number: expected "+1800"')
        for key in _MATCHED:
            for text in getattr(row, key):
                if text != text.lower():
                    problem = f"{text!r} can never match: write it in lower case"
                    self.fail(node, key, where, problem)
        if row.service_tier and row.service_tier != tier_name(row.service_tier):
            problem = (
                f"{row.service_tier!r} names no tier of its own: expected one such as priority, in "
                "lower case; without it the standard tiers are meant"
            )
            self.fail(node, "service_tier", where, problem)
        for key, (least, most) in _WHOLE.items():
            if not least <= getattr(row, key) <= most:
                self.fail(node, key, where, f"{getattr(row, key)}: expected {least} to {most}")
        try:
            row_price(row, of, channel_count=1, pricing_source="")
        except ValueError as error:
            self.fail(node, "rates", where, str(error))
        for other in earlier:
            hidden = _hidden(row, other, of)
            if hidden:
                problem = (
                    f"a row above already prices {', '.join(hidden)} on these days, so this one "
                    "never does: what is special goes first, and dates do not overlap"
                )
                self.fail(node, "match", where, problem)

    def convert(
        self, node: Any, to: type[_StructT], where: str, *, replace: Mapping[str, Any] | None = None
    ) -> _StructT:
        """The fields of a node as a struct, some of them replaced.

        Raises:
            CatalogError: They are not what it holds.
        """
        plain = {**self.mapping(node, where), **(replace or {})}
        if to is Row:
            plain = {key: it for key, it in plain.items() if key not in self._around}
        # Folded and quoted text comes as a kind of str that knows how it was written.
        plain = {key: str(it) if isinstance(it, str) else it for key, it in plain.items()}
        try:
            return msgspec.convert(plain, to)
        except msgspec.ValidationError as error:
            message = str(error)
            found = re.search(r"at `\$\.(\w+)|field `(\w+)`", message)
            key = (found.group(1) or found.group(2)) if found else ""
            problem = message.split(" - at `")[0]
            if "unknown field" in problem:
                allowed = (*(self._around if to is Row else ()), *to.__struct_fields__)
                problem = f"unknown field: allowed here are {', '.join(allowed)}"
            elif key in plain and key in _WORDS:
                allowed = ", ".join(_WORDS[key])
                problem = f"{plain[key]!r}: expected one of {allowed}"
            elif key in plain and key in _DAYS:
                problem = f"{str(plain[key])!r} is no day: expected as in 2026-05-27"
            elif key in plain and problem.startswith(("Expected `str`", "Expected `str |")):
                problem = f"{plain[key]} is not text: put it in quotes (a number would lose digits)"
            elif key in plain and (word := re.match(r"Expected `(\w+)`", problem)):
                problem = f"{plain[key]!r}: expected {_EXPECTED.get(word[1], word[1])}"
            raise self._error(node, key, where, problem) from error

    def _rate(self, node: Any, unit: str, where: str, credit: Ratio | None) -> Rate:
        entry = self._sourced(node, where)
        if (entry.usd is None) == (entry.credits is None):
            self.fail(node, "usd", where, "expected either usd or credits")
        per = self._per(node, entry.per, unit, where)
        if entry.credits is None or credit is None:
            numerator, denominator = self.nano_usd(node, entry.usd, where)
        else:
            credits, parts = self._amount(node, entry.credits, where, "credits", "number")
            numerator, denominator = _lowest(credits * credit[0], parts * credit[1])
        return Rate(
            nano_usd=numerator,
            per=per * denominator,
            source_url=entry.source_url,
            source_date=entry.source_date.isoformat() if entry.source_date else "",
            checked_on=entry.checked_on.isoformat() if entry.checked_on else "",
            confidence=entry.confidence,
            via=entry.via,
            kind=entry.kind,
        )

    def nano_usd(self, node: Any, usd: str | None, where: str, *, key: str = "usd") -> Ratio:
        """The exact number of nano-USD, as numerator and denominator."""
        dollars, parts = self._amount(node, usd, where, key, "price", most=_USD_MAX)
        return _lowest(dollars * 1_000_000_000, parts)

    def _amount(
        self,
        node: Any,
        text: str | None,
        where: str,
        key: str,
        what: str,
        *,
        most: int = _COUNT_MAX,
    ) -> Ratio:
        """A number as it is written, exact."""
        try:
            amount = Decimal(text or "")
            digits = -int(amount.as_tuple().exponent)  # a ValueError where it is no number
            if 0 <= amount <= most and digits <= _DIGITS_MAX:
                return amount.as_integer_ratio()
        except (InvalidOperation, ValueError):
            pass
        expected = f"expected 0 to {most}, at most {_DIGITS_MAX} digits behind the point"
        self.fail(node, key, where, f'{text!r} is no {what}: {expected}, as in "0.0048"')

    def _sourced(self, node: Any, where: str) -> _RateEntry:
        """A rate with what the `source` it names says of itself; its own words win."""
        stated = self.mapping(node, where)
        name = stated.get("source")
        source: Any = {}
        if name is not None:
            if not isinstance(name, str) or name not in self._sources:
                known = ", ".join(self._sources) or "none"
                self.fail(node, "source", where, f"{name!r} is no source of this file: {known}")
            source = self.mapping(self._sources[name], f"sources.{name}")
        replace = {**(self._unsourced if name is None else source), **stated}
        entry = self.convert(node, _RateEntry, where, replace=replace)

        def fail(key: str, problem: str) -> NoReturn:
            at_source = key in source and key not in stated
            at, place = (source, f"sources.{name}") if at_source else (node, where)
            self.fail(at, key, place, problem)

        if ("source_url" in stated or entry.source_url) and not _is_page(entry.source_url):
            fail("source_url", f"{entry.source_url!r}: expected the page itself, https://...")
        for key in ("source_date", "checked_on"):
            day: date | None = getattr(entry, key)
            if day and day > self._today + timedelta(days=1):  # somewhere it is tomorrow
                fail(key, f"{day} is in the future: it is {self._today}")
        if entry.source_date and entry.checked_on and entry.checked_on < entry.source_date:
            problem = f"{entry.checked_on} is before the page's own day, {entry.source_date}"
            fail("checked_on", problem)
        return entry

    def _derived(self, node: Any, where: str) -> Derived:
        entry = self.convert(node, _DerivedEntry, where)
        if entry.source_url and not _is_page(entry.source_url):
            problem = f"{entry.source_url!r}: expected the page itself, https://..."
            self.fail(node, "source_url", where, problem)
        if entry.of not in UNITS:
            allowed = ", ".join(sorted(UNITS))
            self.fail(
                node, "of", where, f"{entry.of!r}: expected a unit that legs count: {allowed}"
            )
        per = self._per(node, entry.per, entry.of, where)
        count, parts = self._amount(node, entry.count, where, "count", "count")
        try:
            return Derived(
                of=entry.of,
                count=count,
                per=per * parts,
                source_url=entry.source_url,
                via=entry.via,
            )
        except ValueError:
            self.fail(node, "count", where, f'{entry.count!r} is no count: expected as in "25"')

    def _per(self, node: Any, word: str, unit: str, where: str) -> int:
        words = _PER.get(unit.rpartition("_")[2], {})
        if word not in words:
            allowed = ", ".join(words) or "no unit of that name"
            self.fail(node, "per", where, f"{word!r} of {unit!r}: expected {allowed}")
        return words[word]

    def mapping(
        self, node: Any, where: str, *, parent: Any = None, key: str = ""
    ) -> Mapping[Any, Any]:
        """The node, if it has fields; `parent` and `key` say where it should.

        Raises:
            CatalogError: It has none.
        """
        if isinstance(node, Mapping):
            return cast("Mapping[Any, Any]", node)
        kind = "nothing" if node is None else type(node).__name__
        raise self._error(parent, key, where, f"expected fields with values, got {kind}", full=True)

    def fail(self, node: Any, key: str, where: str, problem: str) -> NoReturn:
        """Refuse a field.

        Raises:
            CatalogError: Always.
        """
        raise self._error(node, key, where, problem)

    def _error(
        self, node: Any, key: str, where: str, problem: str, *, full: bool = False
    ) -> CatalogError:
        field = where if full or not key else f"{where}.{key}" if where else key
        return CatalogError(self._path, _line(node, key), field or "file", problem)


def no_yaml(error: Any, text: str, path: Path) -> CatalogError:
    """What is no YAML in a text, and where; `error` is the parser's, which is half typed."""
    position = getattr(error, "position", None)
    if position is not None:
        problem = f"{chr(error.character)!r} is no character of a text"
        return CatalogError(path, text.count("\n", 0, position) + 1, "yaml", problem)
    mark = error.problem_mark or error.context_mark
    return CatalogError(
        path, mark.line + 1 if mark else 0, "yaml", str(error.problem).split("\n")[0]
    )


def no_day_in(text: str, path: Path) -> CatalogError:
    """Where a text has a day that no calendar has: the YAML parser does not say."""
    for number, line in enumerate(text.splitlines(), start=1):
        for found in re.findall(r"(?<![\w-])[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?![\w-])", line):
            try:
                date(*map(int, found.split("-")))
            except ValueError:
                return CatalogError(path, number, "yaml", f"{found!r} is no day")
    return CatalogError(path, 0, "yaml", "a value is none that YAML allows")


def _line(node: Any, key: str) -> int:
    position = getattr(node, "lc", None)
    if position is None:
        return 0
    try:
        return int(position.key(key)[0]) + 1
    except (KeyError, TypeError):  # a field that is missing: where its mapping begins
        return int(position.line) + 1


def _is_page(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" and "." in parts.netloc and not re.search(r"\s", url)


def _lowest(numerator: int, denominator: int) -> Ratio:
    common = math.gcd(numerator, denominator) or 1
    return numerator // common, denominator // common


def _hidden(row: Row, above: Row, of: ProviderRows) -> list[str]:
    """Which of a row's model names never reach it, for a row above has all of their legs."""
    if (
        (above.modality, above.addon, above.service_tier, of.plan_of(above))
        != (row.modality, row.addon, row.service_tier, of.plan_of(row))
        or not _dates_overlap(above, row)
        or above.streaming not in (None, row.streaming)
        or not _has_all(above.voices, row.voices)
        or not _has_all(above.languages, row.languages)
        or any(
            language in row.languages or not row.languages
            for language in set(above.except_languages) - set(row.except_languages)
        )
    ):
        return []
    spared = set(above.except_models) - set(row.except_models)
    return [
        name
        for name in row.match
        if any(_matches(name, pattern) for pattern in above.match)
        and not any(_matches(name, one) or _matches(one, name) for one in spared)
    ]


def _has_all(wide: Sequence[str], narrow: Sequence[str]) -> bool:
    """Whether every text of the narrow patterns is one of the wide ones; none stand for any."""
    if not wide or not narrow:
        return not wide
    return all(any(_matches(text, pattern) for pattern in wide) for text in narrow)


def _matches(text: str, pattern: str) -> bool:
    # A pattern is matched as text: what stands where it has `*` is matched by another `*` only.
    return fnmatch.fnmatchcase(text, pattern)


def _dates_overlap(one: Row, other: Row) -> bool:
    def ends_first(row: Row, then: Row) -> bool:
        return bool(row.valid_until and then.valid_from and row.valid_until <= then.valid_from)

    return not ends_first(one, other) and not ends_first(other, one)

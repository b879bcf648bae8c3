"""Turn `data/*.yaml`, which people write and check, into `prices.json`, which programs read.

    python -m voicecost_catalog.compile            write prices.json
    python -m voicecost_catalog.compile --check    fail where it is out of date

Prices are parsed here once, exactly, so that a process that only rates needs no YAML parser (it
would cost more time than the whole catalog). Needs ruamel.yaml, which nothing else here does.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar, cast

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from voicecost_catalog import rows as catalog_rows
from voicecost_catalog.phones import DIRECTIONS
from voicecost_catalog.rates import Confidence, Derived, Kind, Rate
from voicecost_catalog.rows import ProviderRows, Row, Rows, row_price, tier_name

COMPILED_PATH: Final = Path(catalog_rows.COMPILED_PATH)
DATA_DIRECTORY: Final = Path(__file__).parent / "data"

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
_T = TypeVar("_T")


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


class _FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The top of a file."""

    provider: str
    plugin_names: tuple[str, ...]
    hosts: tuple[str, ...]
    plan: str
    prices: list[Any]
    labels: tuple[str, ...] = ()
    sources: dict[str, Any] = {}
    credit_usd: dict[str, Any] = {}
    plan_names: dict[str, str] = {}


def compile_rows(directory: Path = DATA_DIRECTORY) -> Rows:
    """Read every `*.yaml` of a directory, in order of their names.

    Raises:
        CatalogError: A file is not understood; says which one, where, and what is allowed.
    """
    paths = sorted(directory.glob("*.yaml"))
    providers = tuple(read_provider(path) for path in paths)
    if not any(provider.prices for provider in providers):
        raise CatalogError(directory, 0, "*.yaml", "no price in any of them")
    claimed: dict[str, str] = {}
    for path, provider in zip(paths, providers, strict=True):
        for name in (provider.provider, *provider.hosts, *provider.plugin_names):
            other = claimed.setdefault(name.lower(), provider.provider)
            if other != provider.provider:
                raise CatalogError(path, 0, "file", f"{name!r} already belongs to {other!r}")
    newest = max(
        rate.checked_on
        for provider in providers
        for row in provider.prices
        for rate in row.rates.values()
    )
    if not newest:
        raise CatalogError(directory, 0, "*.yaml", "no price was ever checked: give checked_on")
    return Rows(newest=date.fromisoformat(newest), providers=providers)


def is_provider_file(path: Path) -> bool:
    """Whether the file is one of a provider's prices, rather than a configuration."""
    try:
        return bool(re.search(r"^provider\s*:", path.read_text(encoding="utf-8"), re.MULTILINE))
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogError(path, 0, "file", f"cannot be read: {error}") from None


def read_provider(path: Path) -> ProviderRows:
    """One provider's file.

    Raises:
        CatalogError: See `compile_rows`.
    """
    try:
        tree: object = YAML().load(path.read_text(encoding="utf-8"))  # pyright: ignore[reportUnknownMemberType]  # ruamel.yaml is not fully typed
    except MarkedYAMLError as error:
        mark: Any = getattr(error, "problem_mark", None)
        problem = str(getattr(error, "problem", None) or error)
        raise CatalogError(path, mark.line + 1 if mark else 0, "yaml", problem) from error
    head = RowReader(path).convert(tree, _FileEntry, "")
    file = RowReader(path, sources=head.sources, credit_usd=head.credit_usd)
    rows = [
        (index, node, row)
        for index, node in enumerate(head.prices)
        for row in file.rows(node, index)
    ]
    provider = ProviderRows(
        provider=head.provider,
        plugin_names=head.plugin_names,
        hosts=head.hosts,
        plan=head.plan,
        prices=tuple(row for _, _, row in rows),
        labels=head.labels,
        plan_names=head.plan_names,
        credit_usd=file.credit_usd,
    )
    for position, (index, node, row) in enumerate(rows):
        file.check(row, provider, index, node, earlier=provider.prices[:position])
    return provider


class RowReader:
    """Reads rows of one file and says where in it something is wrong.

    Args:
        path: Of the file, for messages.
        sources: What rates may name as their `source`.
        credit_usd: Plan to what one credit costs on it, as it stands in the file.
        section: The field that the rows stand in.
        unsourced: What a rate says of itself that names no source; by default it must.
        around: Fields beside a row's own that belong to whoever asks.
    """

    def __init__(
        self,
        path: Path,
        *,
        sources: Mapping[str, Any] | None = None,
        credit_usd: Mapping[str, Any] | None = None,
        section: str = "prices",
        unsourced: Mapping[str, Any] | None = None,
        around: Sequence[str] = (),
    ) -> None:
        self._path = path
        self._sources = sources or {}
        self._section = section
        self._unsourced = unsourced or {}
        self._around = around
        self.credit_usd: dict[str, tuple[int, int]] = {}
        """What a credit costs on each plan: nano-USD for so many."""
        for plan, node in (credit_usd or {}).items():
            where = f"credit_usd.{plan}"
            self.credit_usd[plan] = self.nano_usd(node, self._sourced(node, where).usd, where)

    def rows(self, node: Any, index: int) -> list[Row]:
        """The row, or where it is priced in credits, one for each plan that says what they cost."""
        where = f"{self._section}[{index}]"
        entry = self.mapping(node, where)
        rates = self.mapping(entry.get("rates"), f"{where}.rates", parent=node, key="rates")
        derived: Mapping[Any, Any] = {}
        if "derived" in entry:
            key = f"{where}.derived"
            derived = self.mapping(entry.get("derived"), key, parent=node, key="derived")
        in_credits = any("credits" in self.mapping(rate, where) for rate in rates.values())
        if in_credits and ("plan" in entry or not self.credit_usd):
            self.fail(node, "rates", where, "credits need credit_usd of the file, and no plan")
        rows: list[Row] = []
        for plan in self.credit_usd if in_credits else [None]:
            replace: dict[str, Any] = {
                "rates": {
                    str(unit): msgspec.to_builtins(
                        self._rate(rate, str(unit), f"{where}.rates.{unit}", plan)
                    )
                    for unit, rate in rates.items()
                },
                "derived": {
                    str(unit): msgspec.to_builtins(self._derived(of, f"{where}.derived.{unit}"))
                    for unit, of in derived.items()
                },
            }
            if plan is not None:
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
        texts = (*row.match, *row.except_models, *row.languages, *row.except_languages, *row.voices)
        for text in texts:
            if text != text.lower():
                self.fail(node, "match", where, f"{text!r} can never match: write it in lower case")
        if row.service_tier and row.service_tier != tier_name(row.service_tier):
            problem = (
                f"{row.service_tier!r} names no tier of its own: expected one such as priority, in "
                "lower case; without it the standard tiers are meant"
            )
            self.fail(node, "service_tier", where, problem)
        try:
            row_price(row, of, channel_count=1, pricing_source="")
        except ValueError as error:
            self.fail(node, "rates", where, str(error))
        for other in earlier:
            if _same_legs(other, row) and _dates_overlap(other, row):
                names = ", ".join(sorted(set(other.match) & set(row.match)))
                self.fail(
                    node, "valid_from", where, f"a row above already prices {names} on these days"
                )

    def convert(
        self, node: Any, to: type[_T], where: str, *, replace: Mapping[str, Any] | None = None
    ) -> _T:
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
            if key in plain and problem.startswith(("Expected `str`", "Expected `str |")):
                problem = f"{plain[key]} is not text: put it in quotes (a number would lose digits)"
            raise self._error(node, key, where, problem) from error

    def _rate(self, node: Any, unit: str, where: str, plan: str | None) -> Rate:
        entry = self._sourced(node, where)
        if (entry.usd is None) == (entry.credits is None):
            self.fail(node, "usd", where, "expected either usd or credits")
        per = self._per(node, entry.per, unit, where)
        if entry.credits is None:
            numerator, denominator = self.nano_usd(node, entry.usd, where)
        else:
            numerator, denominator = self.nano_usd(node, entry.credits, where, key="credits")
            nano_usd, of = self.credit_usd[plan or ""]
            numerator, denominator = numerator * nano_usd, denominator * of * 1_000_000_000
            common = math.gcd(numerator, denominator)
            numerator, denominator = numerator // common, denominator // common
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

    def nano_usd(
        self, node: Any, usd: str | None, where: str, *, key: str = "usd"
    ) -> tuple[int, int]:
        """The exact number of nano-USD, as numerator and denominator."""
        try:
            numerator, denominator = (Decimal(usd or "") * 1_000_000_000).as_integer_ratio()
        except (InvalidOperation, ValueError, OverflowError):
            numerator, denominator = -1, 1
        if numerator < 0:
            self.fail(node, key, where, f'{usd!r} is no price: expected as in "0.0048"')
        return numerator, denominator

    def _sourced(self, node: Any, where: str) -> _RateEntry:
        """A rate with what the `source` it names says of itself; its own words win."""
        entry = self.mapping(node, where)
        name = entry.get("source")
        if name is None:
            replace = {**self._unsourced, **entry}
            return self.convert(node, _RateEntry, where, replace=replace)
        if name not in self._sources:
            known = ", ".join(self._sources) or "none"
            self.fail(node, "source", where, f"{name!r} is no source of this file: {known}")
        source = self.mapping(self._sources[name], f"sources.{name}")
        return self.convert(node, _RateEntry, where, replace={**source, **entry})

    def _derived(self, node: Any, where: str) -> Derived:
        entry = self.convert(node, _DerivedEntry, where)
        per = self._per(node, entry.per, entry.of, where)
        try:
            count, parts = Decimal(entry.count).as_integer_ratio()
            return Derived(
                of=entry.of,
                count=count,
                per=per * parts,
                source_url=entry.source_url,
                via=entry.via,
            )
        except (InvalidOperation, ValueError, OverflowError):
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


def _line(node: Any, key: str) -> int:
    position = getattr(node, "lc", None)
    if position is None:
        return 0
    try:
        return int(position.key(key)[0]) + 1
    except (KeyError, TypeError):  # a field that is missing: where its mapping begins
        return int(position.line) + 1


def _same_legs(one: Row, other: Row) -> bool:
    def key(row: Row) -> tuple[object, ...]:
        return (
            row.modality,
            row.languages,
            row.except_languages,
            row.streaming,
            row.service_tier,
            row.voices,
            row.plan,
            row.addon,
        )

    return key(one) == key(other) and not set(one.match).isdisjoint(other.match)


def _dates_overlap(one: Row, other: Row) -> bool:
    def ends_first(row: Row, then: Row) -> bool:
        return bool(row.valid_until and then.valid_from and row.valid_until <= then.valid_from)

    return not ends_first(one, other) and not ends_first(other, one)


def encode_rows(rows: Rows) -> bytes:
    """The text of `prices.json`, indented so that a change can be reviewed."""
    return msgspec.json.format(msgspec.json.encode(rows), indent=1) + b"\n"


def main(arguments: Sequence[str]) -> int:
    """Write `prices.json`, or with `--check` say whether it is what the data files give."""
    compiled = encode_rows(compile_rows())
    if "--check" not in arguments:
        COMPILED_PATH.write_bytes(compiled)
        return 0
    if COMPILED_PATH.exists() and COMPILED_PATH.read_bytes() == compiled:
        return 0
    sys.stderr.write(f"{COMPILED_PATH} is out of date: run python -m voicecost_catalog.compile\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

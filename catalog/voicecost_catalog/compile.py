"""Turn `data/*.yaml`, which people write and check, into `prices.json`, which programs read.

    python -m voicecost_catalog.compile            write prices.json
    python -m voicecost_catalog.compile --check    fail where it is out of date

Prices are parsed here once, exactly, so that a process that only rates needs no YAML parser (it
would cost more time than the whole catalog). Needs ruamel.yaml, which nothing else here does.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from voicecost_catalog.rates import Confidence, Rate
from voicecost_catalog.rows import COMPILED_PATH, ProviderRows, Row, Rows, row_price

DATA_DIRECTORY: Final = Path(__file__).parent / "data"

# How a price list words its units.
_PER: Final[dict[str, dict[str, int]]] = {
    "ms": {"second": 1_000, "minute": 60_000, "hour": 3_600_000},
    "characters": {"character": 1, "thousand": 1_000, "million": 1_000_000},
    "tokens": {"thousand": 1_000, "million": 1_000_000},
}
_T = TypeVar("_T")


class CatalogError(ValueError):
    """A data file is wrong. The facts in the message are also fields.

    Attributes:
        path: The file.
        line: The line of the value, from 1; 0 when the file as a whole is meant.
        field: The field, for example `prices[2].rates.audio_ms.usd`.
    """

    def __init__(self, path: Path, line: int, field: str, problem: str) -> None:
        super().__init__(f"{path}:{line}: {field}: {problem}")
        self.path = path
        self.line = line
        self.field = field


class _RateEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rate as it stands in a file."""

    usd: str
    per: str
    source_url: str
    source_date: date
    checked_on: date
    confidence: Confidence
    via: str = ""


class _FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The top of a file."""

    provider: str
    plugin_names: tuple[str, ...]
    hosts: tuple[str, ...]
    plan: str
    prices: list[Any]


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
        date.fromisoformat(rate.checked_on)
        for provider in providers
        for row in provider.prices
        for rate in row.rates.values()
    )
    return Rows(newest=newest, providers=providers)


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
    file = _File(path)
    head = file.convert(tree, _FileEntry, "")
    rows = tuple(file.row(node, index) for index, node in enumerate(head.prices))
    provider = ProviderRows(
        provider=head.provider,
        plugin_names=head.plugin_names,
        hosts=head.hosts,
        plan=head.plan,
        prices=rows,
    )
    for index, (row, node) in enumerate(zip(rows, head.prices, strict=True)):
        file.check(row, provider, index, node)
    return provider


class _File:
    """Reads parts of one file and says where in it something is wrong."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def row(self, node: Any, index: int) -> Row:
        where = f"prices[{index}]"
        entry = self._mapping(node, where)
        rates = self._mapping(entry.get("rates"), f"{where}.rates", parent=node, key="rates")
        read = {
            str(unit): msgspec.to_builtins(self._rate(rate, str(unit), f"{where}.rates.{unit}"))
            for unit, rate in rates.items()
        }
        return self.convert(node, Row, where, replace={"rates": read})

    def check(self, row: Row, of: ProviderRows, index: int, node: Any) -> None:
        """What only the whole row, or the rows before it, can tell."""
        where = f"prices[{index}]"
        if row.valid_until is not None and row.valid_until <= row.valid_from:
            self._fail(node, "valid_until", where, f"{row.valid_until} is not after valid_from")
        for text in (*row.match, *row.languages, *row.except_languages):
            if text != text.lower():
                self._fail(
                    node, "match", where, f"{text!r} can never match: write it in lower case"
                )
        try:
            row_price(row, of, channel_count=1, pricing_source="")
        except ValueError as error:
            self._fail(node, "rates", where, str(error))
        for earlier in of.prices[:index]:
            if _same_legs(earlier, row) and _dates_overlap(earlier, row):
                names = ", ".join(sorted(set(earlier.match) & set(row.match)))
                self._fail(
                    node, "valid_from", where, f"a row above already prices {names} on these days"
                )

    def convert(
        self, node: Any, to: type[_T], where: str, *, replace: Mapping[str, Any] | None = None
    ) -> _T:
        plain = dict(self._mapping(node, where))
        plain.update(replace or {})
        try:
            return msgspec.convert(plain, to)
        except msgspec.ValidationError as error:
            message = str(error)
            found = re.search(r"at `\$\.(\w+)|field `(\w+)`", message)
            key = (found.group(1) or found.group(2)) if found else ""
            problem = message.split(" - at `")[0]
            if key in plain and problem.startswith("Expected `str`"):
                problem = f"{plain[key]} is not text: put it in quotes (a number would lose digits)"
            raise self._error(node, key, where, problem) from error

    def _rate(self, node: Any, unit: str, where: str) -> Rate:
        entry = self.convert(node, _RateEntry, where)
        words = _PER.get(unit.rpartition("_")[2], {})
        if entry.per not in words:
            allowed = ", ".join(words) or "no unit of that name"
            self._fail(node, "per", where, f"{entry.per!r} of {unit!r}: expected {allowed}")
        try:
            usd = Decimal(entry.usd)
            numerator, denominator = (usd * 1_000_000_000).as_integer_ratio()
        except (InvalidOperation, ValueError, OverflowError):
            numerator, denominator = -1, 1
        if numerator < 0:
            self._fail(node, "usd", where, f'{entry.usd!r} is no price: expected as in "0.0048"')
        return Rate(
            nano_usd=numerator,
            per=words[entry.per] * denominator,
            source_url=entry.source_url,
            source_date=entry.source_date.isoformat(),
            checked_on=entry.checked_on.isoformat(),
            confidence=entry.confidence,
            via=entry.via,
        )

    def _mapping(
        self, node: Any, where: str, *, parent: Any = None, key: str = ""
    ) -> Mapping[Any, Any]:
        if isinstance(node, Mapping):
            return cast("Mapping[Any, Any]", node)
        kind = "nothing" if node is None else type(node).__name__
        raise self._error(parent, key, where, f"expected fields with values, got {kind}", full=True)

    def _fail(self, node: Any, key: str, where: str, problem: str) -> None:
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
        return (row.modality, row.languages, row.except_languages, row.streaming)

    return key(one) == key(other) and not set(one.match).isdisjoint(other.match)


def _dates_overlap(one: Row, other: Row) -> bool:
    return (one.valid_until is None or other.valid_from < one.valid_until) and (
        other.valid_until is None or one.valid_from < other.valid_until
    )


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

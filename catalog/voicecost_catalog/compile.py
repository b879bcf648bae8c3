"""Turn `data/*.yaml`, which people write and check, into `prices.json`, which programs read.

    python -m voicecost_catalog.compile            write prices.json
    python -m voicecost_catalog.compile --check    fail where it is out of date

Prices are parsed here once, exactly, so that a process that only rates needs no YAML parser (it
would cost more time than the whole catalog). Needs ruamel.yaml, which nothing else here does.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from voicecost_catalog import rows as catalog_rows
from voicecost_catalog.row_reader import CatalogError, RowReader, no_day_in, no_yaml
from voicecost_catalog.rows import ProviderRows, Rows

COMPILED_PATH: Final = Path(catalog_rows.COMPILED_PATH)
DATA_DIRECTORY: Final = Path(__file__).parent / "data"


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


def compile_rows(directory: Path | None = None) -> Rows:
    """Read every `*.yaml` of a directory, by default our own, in order of their names.

    Raises:
        CatalogError: A file is not understood; says which one, where, and what is allowed.
    """
    directory = directory or DATA_DIRECTORY
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


def read_provider(path: Path, *, today: date | None = None) -> ProviderRows:
    """One provider's file, no page of which was read after `today`, by default the clock's.

    Raises:
        CatalogError: See `compile_rows`.
    """
    text = path.read_text(encoding="utf-8")
    try:
        tree: object = YAML().load(text)  # pyright: ignore[reportUnknownMemberType]  # ruamel.yaml is not fully typed
    except ValueError:
        raise no_day_in(text, path) from None
    except YAMLError as error:
        raise no_yaml(error, text, path) from None
    head = RowReader(path).convert(tree, _FileEntry, "")
    file = RowReader(path, sources=head.sources, today=today)
    credit_usd = file.credit_prices(head.credit_usd)
    rows = [
        (index, node, row)
        for index, node in enumerate(head.prices)
        for row in file.rows(node, index, credit_usd)
    ]
    provider = ProviderRows(
        provider=head.provider,
        plugin_names=head.plugin_names,
        hosts=head.hosts,
        plan=head.plan,
        prices=tuple(row for _, _, row in rows),
        labels=head.labels,
        plan_names=head.plan_names,
        credit_usd=credit_usd,
    )
    for position, (index, node, row) in enumerate(rows):
        file.check(row, provider, index, node, earlier=provider.prices[:position])
    return provider


def encode_rows(rows: Rows) -> bytes:
    """The text of `prices.json`, indented so that a change can be reviewed."""
    return msgspec.json.format(msgspec.json.encode(rows), indent=1) + b"\n"


def main(arguments: Sequence[str]) -> int:
    """Write `prices.json`, or with `--check` say whether it is what the data files give."""
    try:
        compiled = encode_rows(compile_rows())
    except CatalogError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if "--check" not in arguments:
        COMPILED_PATH.write_bytes(compiled)
        return 0
    if COMPILED_PATH.exists() and COMPILED_PATH.read_bytes() == compiled:
        return 0
    sys.stderr.write(f"{COMPILED_PATH} is out of date: run python -m voicecost_catalog.compile\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

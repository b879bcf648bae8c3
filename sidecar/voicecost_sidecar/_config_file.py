"""Reads `voicecost.yaml` so that every refusal can name its line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from voicecost_catalog.override_file import PriceSettings, parse_prices
from voicecost_catalog.row_reader import CatalogError, no_yaml
from voicecost_ledger.billing import Billing, BillingTerms, parse_percent
from voicecost_ledger.database_url import DatabaseUrlError, sqlite_path
from voicecost_ledger.money import parse_usd
from voicecost_ledger.policy import BudgetAction, ProjectPolicy
from voicecost_sidecar.config import ConfigError, FileValues, livekit_value

SECTIONS: Final = (
    "livekit",
    "projects",
    "database",
    "time_zone",
    "billing",
    "host_aliases",
    "prices",
)
_TERMS: Final = ("markup_percent", "flat_fee")
_NULL_TAG: Final = "tag:yaml.org,2002:null"


def read_config_file(file: Path, environ: Mapping[str, str]) -> FileValues:
    """What `file` says.

    Raises:
        ConfigError: It cannot be read, is not YAML, or holds a wrong key or value.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot be read ({error.strerror}): `voicecost init` writes one", file=str(file)
        ) from None
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8 text", file=str(file)) from None
    try:
        # Composed, not constructed: nodes keep line numbers and a number's own text, so 5.00
        # never passes through a float. pure: the C parser gives no such nodes.
        yaml: Any = YAML(typ="rt", pure=True)  # Any: ruamel.yaml is half typed
        composed = yaml.compose(text)
    except YAMLError as error:
        told = no_yaml(error, text, file)
        problem = f"is not YAML: {told.problem}"
        raise ConfigError(problem, file=str(file), line=told.line or None) from None
    try:
        root = None if composed is None else _node(composed)
    except RecursionError:
        raise ConfigError("a value refers to itself", file=str(file)) from None
    values = _File(file, environ).values(root)
    prices = _prices(text, file, environ)
    values.host_aliases = prices.host_aliases
    values.overrides, values.display_currency = prices.overrides, prices.display_currency
    return values


def _prices(text: str, file: Path, environ: Mapping[str, str]) -> PriceSettings:
    """The catalog reads its own sections: it knows what a price is, and who bills."""
    try:
        return parse_prices(text, file, environ)
    except CatalogError as error:
        line = error.line or None
        raise ConfigError(error.problem, file=str(file), line=line, key=error.field) from None


class _Node(msgspec.Struct, frozen=True, kw_only=True):
    """A value in the file: a text, keys with values, or neither (nothing, or a list)."""

    line: int
    text: str | None = None
    items: list[tuple[_Node, _Node]] | None = None


def _node(composed: Any) -> _Node:
    line: int = composed.start_mark.line + 1
    if composed.id == "mapping":
        return _Node(line=line, items=[_pair(key, value) for key, value in composed.value])
    if composed.id == "scalar" and composed.tag != _NULL_TAG:
        return _Node(line=line, text=str(composed.value))
    return _Node(line=line)


def _pair(composed_key: Any, composed_value: Any) -> tuple[_Node, _Node]:
    key, value = _node(composed_key), _node(composed_value)
    if value.text is None and value.items is None and composed_value.id == "scalar":
        value = _Node(line=key.line)  # what is not there has the line of what follows
    return key, value


class _File:
    """Reads the nodes of one file."""

    def __init__(self, file: Path, environ: Mapping[str, str]) -> None:
        self._file = file
        self._environ = environ

    def values(self, root: _Node | None) -> FileValues:
        values = FileValues()
        if root is None:
            return values
        for key, path, node in self._items("", root, allowed=SECTIONS):
            match key:
                case "livekit":
                    values.livekit = self._livekit(path, node)
                case "projects":
                    values.projects = dict(self._projects(path, node))
                case "database":
                    values.database_path = self._database(path, node)
                case "time_zone":
                    values.time_zone = self._zone(path, node)
                case "billing":
                    values.billing = self._billing(path, node)
                case _:
                    pass  # host_aliases, prices: see read_config_file
        return values

    def _livekit(self, path: str, node: _Node) -> dict[str, str]:
        found: dict[str, str] = {}
        for key, at, value in self._items(path, node, allowed=("url", "api_key", "api_secret")):

            def refuse(problem: str, value: _Node = value, at: str = at) -> NoReturn:
                self._refuse(value, at, problem)

            found[key] = livekit_value(key, self._text(at, value), refuse)
        return found

    def _projects(self, path: str, node: _Node) -> Iterator[tuple[str, ProjectPolicy]]:
        for project_id, at, value in self._items(path, node):
            name, budget, action = project_id, None, BudgetAction.WARN
            allowed = ("name", "daily_budget", "budget_action")
            for key, at_key, field in self._items(at, value, allowed=allowed):
                match key:
                    case "daily_budget":
                        budget = self._usd(at_key, field)
                    case "budget_action":
                        action = self._action(at_key, field)
                    case _:
                        name = self._text(at_key, field)
            yield (
                project_id,
                ProjectPolicy(name=name, daily_budget_nano_usd=budget, budget_action=action),
            )

    def _usd(self, path: str, node: _Node) -> int:
        try:
            return parse_usd(self._text(path, node), name=path.rpartition(".")[2])
        except ValueError as error:
            self._refuse(node, path, str(error))

    def _billing(self, path: str, node: _Node) -> Billing:
        terms: dict[str, int] = {}
        narrower: dict[str, dict[str, BillingTerms]] = {"projects": {}, "tenants": {}}
        for key, at, value in self._items(path, node, allowed=(*_TERMS, *narrower)):
            if key in narrower:
                for name, at_name, inner in self._items(at, value):
                    found: dict[str, int] = {}
                    for word, at_word, said in self._items(at_name, inner, allowed=_TERMS):
                        self._term(found, word, at_word, said)
                    narrower[key][name] = BillingTerms(**found)
            else:
                self._term(terms, key, at, value)
        return Billing(everybody=BillingTerms(**terms), **narrower)

    def _term(self, terms: dict[str, int], key: str, path: str, node: _Node) -> None:
        if key == "flat_fee":
            terms["flat_fee_nano_usd"] = self._usd(path, node)
            return
        try:
            terms["markup_ppm"] = parse_percent(self._text(path, node))
        except ValueError as error:
            self._refuse(node, path, str(error))

    def _action(self, path: str, node: _Node) -> BudgetAction:
        text = self._text(path, node)
        try:
            return BudgetAction(text)
        except ValueError:
            words = " or ".join(action.value for action in BudgetAction)
            self._refuse(node, path, f"{text!r} is no action: expected {words}")

    def _database(self, path: str, node: _Node) -> Path:
        try:
            # Relative to the file, not to wherever the command was started.
            return sqlite_path(self._text(path, node), base=self._file.absolute().parent)
        except DatabaseUrlError as error:
            self._refuse(node, path, str(error))

    def _zone(self, path: str, node: _Node) -> str:
        name = self._text(path, node)
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            self._refuse(
                node, path, f"{name!r} is no time zone: expected an IANA name such as Europe/Berlin"
            )
        return name

    def _items(
        self, path: str, node: _Node, *, allowed: tuple[str, ...] | None = None
    ) -> Iterator[tuple[str, str, _Node]]:
        if node.items is None:
            expected = f"keys ({', '.join(allowed)})" if allowed else "keys and their values"
            self._refuse(node, path, f"expected {expected}")
        seen: set[str] = set()
        for key_node, value in node.items:
            key = self._text(path, key_node)
            at = f"{path}.{key}" if path else key
            if allowed is not None and key not in allowed:
                self._refuse(key_node, at, f"unknown key: allowed here are {', '.join(allowed)}")
            if key in seen:
                self._refuse(key_node, at, "given twice: keep one")
            seen.add(key)
            yield key, at, value

    def _text(self, path: str, node: _Node) -> str:
        if node.text is None:
            self._refuse(node, path, "expected one value; leave the key out to say nothing")

        def expand(match: re.Match[str]) -> str:
            value = self._environ.get(match[1])
            if value is None:
                self._refuse(node, path, f"the environment variable {match[1]} is not set")
            return value

        text = re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", expand, node.text)
        if not text.strip():
            self._refuse(node, path, "is empty: leave the key out to say nothing")
        return text

    def _refuse(self, node: _Node, path: str, problem: str) -> NoReturn:
        raise ConfigError(problem, file=str(self._file), line=node.line, key=path)

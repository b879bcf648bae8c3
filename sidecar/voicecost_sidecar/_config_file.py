"""Reads `voicecost.yaml` so that every refusal can name its line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from voicecost_catalog.hosts import check_host_aliases
from voicecost_ledger.money import parse_usd
from voicecost_ledger.policy import BudgetAction, ProjectPolicy
from voicecost_sidecar.config import ConfigError, FileValues, livekit_value
from voicecost_sidecar.databases import DatabaseUrlError, sqlite_path

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
        root: Node | None = YAML(typ="rt", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else mark.line + 1
        raise ConfigError(f"is not YAML: {error.problem}", file=str(file), line=line) from None
    return _File(file, environ).values(root)


class _File:
    """Reads the nodes of one file; every refusal names its line."""

    def __init__(self, file: Path, environ: Mapping[str, str]) -> None:
        self._file = file
        self._environ = environ

    def values(self, root: Node | None) -> FileValues:
        values = FileValues()
        if root is None or _is_null(root):
            return values
        readers: dict[str, Callable[[str, Node], None]] = {
            "livekit": lambda key, node: setattr(values, "livekit", self._livekit(key, node)),
            "projects": lambda key, node: setattr(values, "projects", self._projects(key, node)),
            "database": lambda key, node: setattr(
                values, "database_path", self._database(key, node)
            ),
            "time_zone": lambda key, node: setattr(values, "time_zone", self._zone(key, node)),
            "host_aliases": lambda key, node: setattr(values, "host_aliases", self._hosts(key, node)),
        }
        for key, path, node in self._items("", root, allowed=tuple(readers)):
            readers[key](path, node)
        return values

    def _livekit(self, path: str, node: Node) -> dict[str, str]:
        found: dict[str, str] = {}
        for key, at, value in self._items(path, node, allowed=("url", "api_key", "api_secret")):
            found[key] = livekit_value(
                key, self._text(at, value), lambda problem, v=value, p=at: self._refuse(v, p, problem)
            )
        return found

    def _projects(self, path: str, node: Node) -> dict[str, ProjectPolicy]:
        projects: dict[str, ProjectPolicy] = {}
        for project_id, at, value in self._items(path, node):
            fields: dict[str, Any] = {"name": project_id}
            allowed = ("name", "daily_budget", "budget_action")
            for key, at_key, field in self._items(at, value, allowed=allowed):
                text = self._text(at_key, field)
                if key == "daily_budget":
                    try:
                        fields["daily_budget_nano_usd"] = parse_usd(text, name=key)
                    except ValueError as error:
                        self._refuse(field, at_key, str(error))
                elif key == "budget_action":
                    if text not in {action.value for action in BudgetAction}:
                        words = " or ".join(action.value for action in BudgetAction)
                        self._refuse(field, at_key, f"{text!r} is no action: expected {words}")
                    fields["budget_action"] = BudgetAction(text)
                else:
                    fields[key] = text
            projects[project_id] = ProjectPolicy(**fields)
        return projects

    def _database(self, path: str, node: Node) -> Path:
        try:
            # Relative to the file, not to wherever the command was started.
            return sqlite_path(self._text(path, node), base=self._file.absolute().parent)
        except DatabaseUrlError as error:
            self._refuse(node, path, str(error))

    def _zone(self, path: str, node: Node) -> str:
        name = self._text(path, node)
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            self._refuse(
                node, path, f"{name!r} is no time zone: expected an IANA name such as Europe/Berlin"
            )
        return name

    def _hosts(self, path: str, node: Node) -> dict[str, str]:
        aliases: dict[str, str] = {}
        for host, at, value in self._items(path, node):
            try:
                aliases |= check_host_aliases({host: self._text(at, value)})
            except ValueError as error:
                self._refuse(value, at, str(error))
        return aliases

    def _items(
        self, path: str, node: Node, *, allowed: tuple[str, ...] | None = None
    ) -> Iterator[tuple[str, str, Node]]:
        if not isinstance(node, MappingNode):
            expected = f"keys ({', '.join(allowed)})" if allowed else "keys and their values"
            self._refuse(node, path, f"expected {expected}")
        seen: set[str] = set()
        for key_node, value in node.value:
            key = self._text(path, key_node)
            at = f"{path}.{key}" if path else key
            if allowed is not None and key not in allowed:
                self._refuse(key_node, at, f"unknown key: allowed here are {', '.join(allowed)}")
            if key in seen:
                self._refuse(key_node, at, "given twice: keep one")
            seen.add(key)
            yield key, at, value

    def _text(self, path: str, node: Node) -> str:
        if not isinstance(node, ScalarNode) or _is_null(node):
            self._refuse(node, path, "expected one value; leave the key out to say nothing")
        text: str = node.value

        def expand(match: re.Match[str]) -> str:
            value = self._environ.get(match[1])
            if value is None:
                self._refuse(node, path, f"the environment variable {match[1]} is not set")
            return value

        text = re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", expand, text)
        if not text.strip():
            self._refuse(node, path, "is empty: leave the key out to say nothing")
        return text

    def _refuse(self, node: Node, path: str, problem: str) -> NoReturn:
        raise ConfigError(
            problem, file=str(self._file), line=node.start_mark.line + 1, key=path
        )


def _is_null(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.tag == _NULL_TAG

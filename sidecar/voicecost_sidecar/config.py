"""What the operator decided: `voicecost.yaml`, completed and overridden by the environment.

    livekit:      {url, api_key, api_secret}              LIVEKIT_URL, _API_KEY, _API_SECRET
    projects:     {ID: {name, daily_budget, budget_action: warn | end}}
    database:     sqlite:///PATH                          VOICECOST_DATABASE_URL
    time_zone:    where a project's day begins, an IANA name
    billing:      {markup_percent, flat_fee, projects: {ID: {...}}, tenants: {ID: {...}}}
    host_aliases: {HOST: PROVIDER}: who bills for requests    VOICECOST_HOST_ALIASES
                  to a host of your own
    prices:       what your contracts say

The last two are agents' too: `voicecost_catalog.override_file` reads them.

`${NAME}` in a value is replaced from the environment. A wrong key or value is refused with its
file, line, key and what is allowed: a budget with a typing error must not read as no budget.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NoReturn
from urllib.parse import urlsplit

import msgspec

from voicecost_catalog.config_file import config_file
from voicecost_catalog.currency import DisplayCurrency
from voicecost_catalog.hosts import parse_host_aliases
from voicecost_catalog.overrides import Overrides
from voicecost_ledger.billing import Billing
from voicecost_ledger.database_url import DatabaseUrlError, sqlite_path
from voicecost_ledger.policy import Policy, ProjectPolicy

_LIVEKIT_SCHEMES: Final = ("ws", "wss", "http", "https")


class ConfigError(Exception):
    """The configuration cannot be used.

    Attributes:
        file: The file, or "environment".
        line: Its line, counted from 1; None where it is not one line's fault.
        key: Dotted path of the key, `projects.shop.daily_budget`; "" for the whole file.
    """

    def __init__(self, problem: str, *, file: str, line: int | None = None, key: str = "") -> None:
        self.file = file
        self.line = line
        self.key = key
        where = f"{file}:{line}" if line is not None else file
        super().__init__(": ".join(part for part in (where, key, problem) if part))


class LiveKitConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One LiveKit project: where its server is, and the key pair that signs for it."""

    url: str
    api_key: str
    api_secret: str

    @property
    def project(self) -> str:
        """The LiveKit project's name in the ledger: its server, `my-app.livekit.cloud`."""
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        return f"{host}:{parts.port}" if parts.port else host

    def __repr__(self) -> str:
        """Without the secret: a repr ends up in logs."""
        return f"LiveKitConfig(url={self.url!r}, api_key={self.api_key!r}, api_secret=...)"


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything `voicecost serve` and the reading commands are told."""

    database_path: Path
    livekit: LiveKitConfig | None = None
    projects: dict[str, ProjectPolicy] = {}
    time_zone: str = "UTC"
    billing: Billing = Billing()
    host_aliases: dict[str, str] = {}
    overrides: Overrides = Overrides()
    display_currency: DisplayCurrency | None = None  # shown beside dollars
    # The file is the one that agents of this host without a sidecar write to.
    keeps_embedded_ledger: bool = False

    @property
    def livekit_project(self) -> str | None:
        """The LiveKit project's name in the ledger; None without LiveKit."""
        return self.livekit.project if self.livekit else None

    def policy(self) -> Policy:
        """The part the ledger's rules need."""
        return Policy(
            projects=self.projects,
            livekit_project=self.livekit_project,
            time_zone=self.time_zone,
            billing=self.billing,
        )


class FileValues(msgspec.Struct, kw_only=True):
    """What a file says, before the environment has its word."""

    livekit: dict[str, str] = {}
    projects: dict[str, ProjectPolicy] = {}
    database_path: Path | None = None
    time_zone: str = "UTC"
    billing: Billing = Billing()
    host_aliases: dict[str, str] = {}
    overrides: Overrides = Overrides()
    display_currency: DisplayCurrency | None = None


def load_config(file: Path | None = None, *, environ: Mapping[str, str] | None = None) -> Config:
    """Read the configuration.

    Args:
        file: The YAML file. None reads the one that `VOICECOST_CONFIG` names, else `voicecost.yaml`
            in the working directory if it is there, and else the environment alone.
        environ: Instead of the process's environment.

    Raises:
        ConfigError: A key or value is wrong, or `file` cannot be read.
    """
    environ = os.environ if environ is None else environ
    file = file or config_file(environ)
    values = FileValues()
    if file is not None:
        # Here, not above: reading the ledger with the defaults needs no YAML reader installed.
        from voicecost_sidecar._config_file import read_config_file

        values = read_config_file(file, environ)
    embedded_path = _environment_database(environ)
    configured_path = values.database_path
    if environ.get("VOICECOST_DATABASE_URL") or configured_path is None:
        configured_path = embedded_path
    return Config(
        database_path=configured_path,
        livekit=_livekit(values, environ, file),
        projects=values.projects,
        time_zone=values.time_zone,
        billing=values.billing,
        host_aliases=_host_aliases(values, environ),
        overrides=values.overrides,
        display_currency=values.display_currency,
        keeps_embedded_ledger=configured_path == embedded_path,
    )


def _environment_database(environ: Mapping[str, str]) -> Path:
    try:
        return sqlite_path(environ.get("VOICECOST_DATABASE_URL") or None)
    except DatabaseUrlError as error:
        raise ConfigError(str(error), file="environment", key="VOICECOST_DATABASE_URL") from None


def _host_aliases(values: FileValues, environ: Mapping[str, str]) -> dict[str, str]:
    try:
        return values.host_aliases | parse_host_aliases(environ.get("VOICECOST_HOST_ALIASES", ""))
    except ValueError as error:
        raise ConfigError(str(error), file="environment", key="VOICECOST_HOST_ALIASES") from None


def _livekit(
    values: FileValues, environ: Mapping[str, str], file: Path | None
) -> LiveKitConfig | None:
    given = dict(values.livekit)
    for key in ("url", "api_key", "api_secret"):
        name = f"LIVEKIT_{key.upper()}"
        if environ.get(name):
            given[key] = livekit_value(key, environ[name], _refuse_environment(name))
    if not given:
        return None
    missing = [key for key in ("url", "api_key", "api_secret") if key not in given]
    if missing:
        names = ", ".join(f"LIVEKIT_{key.upper()}" for key in missing)
        raise ConfigError(
            f"{', '.join(missing)} missing: a LiveKit project needs url, api_key and api_secret. "
            f"Add them under `livekit`, or set {names}; without any of them the sidecar runs "
            "without LiveKit",
            file=str(file) if file else "environment",
            key="livekit",
        )
    return LiveKitConfig(**given)


def _refuse_environment(name: str) -> Callable[[str], NoReturn]:
    def refuse(problem: str) -> NoReturn:
        raise ConfigError(problem, file="environment", key=name)

    return refuse


def livekit_value(key: str, value: str, refuse: Callable[[str], NoReturn]) -> str:
    """A checked value of the `livekit` section; `refuse` raises with the place it came from."""
    if key == "url":
        parts = urlsplit(value)
        if parts.scheme not in _LIVEKIT_SCHEMES or not parts.hostname:
            refuse(
                f"{value!r} is no LiveKit server: expected for example wss://my-app.livekit.cloud "
                "or ws://127.0.0.1:7880"
            )
    return value

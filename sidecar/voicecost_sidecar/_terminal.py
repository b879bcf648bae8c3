"""What every command of `voicecost` shares: its options, the ledger it opens, how it answers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from rich.console import Console, RenderableType

from voicecost_ledger.stores import StoreRefused, StoreUnavailable
from voicecost_ledger.stores.sqlite import SqliteStore
from voicecost_sidecar.config import Config, ConfigError, load_config
from voicecost_sidecar.money_json import encode_json
from voicecost_sidecar.periods import PERIODS, PeriodError
from voicecost_sidecar.queries import GROUPS

USAGE_ERROR: Final = 2

out = Console(markup=False, emoji=False)
err = Console(stderr=True, markup=False, emoji=False)

AsJson = Annotated[bool, typer.Option("--json", help="JSON; money as strings of nano-USD.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="Instead of voicecost.yaml here.", show_default=False),
]
PeriodName = Annotated[
    str | None, typer.Option("--period", help=f"One of {', '.join(PERIODS)}.", show_default=False)
]
From = Annotated[
    str | None, typer.Option("--from", help="ISO 8601 date or time.", show_default=False)
]
To = Annotated[
    str | None,
    typer.Option("--to", help="The same, exclusive; a date means its end.", show_default=False),
]
GroupBy = Annotated[str, typer.Option(help=f"Some of {', '.join(GROUPS)}, separated by commas.")]
Project = Annotated[str | None, typer.Option(help="Only this project.", show_default=False)]


def read_settings(config: Path | None) -> Config:
    """The configuration, or what is wrong with it in words."""
    try:
        return load_config(config)
    except ConfigError as error:
        fail(str(error))
    except ModuleNotFoundError as error:
        fail(
            f"reading a configuration file needs {error.name}: "
            "pip install 'livekit-plugins-voicecost[sidecar]'"
        )


@contextmanager
def open_ledger(config: Path | None) -> Generator[tuple[SqliteStore, Config]]:
    """The ledger for reading, and what goes wrong with it in words."""
    settings = read_settings(config)
    if not settings.database_path.exists():
        fail(
            f"there is no ledger at {settings.database_path} yet: run a call with VoiceCost, or "
            "set VOICECOST_DATABASE_URL"
        )
    with opened_store(settings.database_path) as store:
        try:
            yield store, settings
        except PeriodError as error:
            fail(str(error))
        except StoreUnavailable as error:
            fail(str(error))
        except ValueError as error:
            fail(str(error))


@contextmanager
def opened_store(path: Path) -> Generator[SqliteStore]:
    """A ledger's file, closed at the end."""
    try:
        store = SqliteStore.open(path)
    except (StoreRefused, StoreUnavailable) as error:
        fail(str(error))
    try:
        yield store
    finally:
        store.close()


def show_answer(
    value: Any, as_json: bool, table: Callable[[], RenderableType], *, lines: bool = False
) -> None:
    """The answer on standard output, as JSON or as a table; `lines` are left to the terminal."""
    if as_json:
        sys.stdout.write(encode_json(value).decode() + "\n")
    else:
        out.print(table(), highlight=False, soft_wrap=lines)


def fail(problem: str) -> NoReturn:
    """Say what is wrong, and what to do, on standard error; exit with 2."""
    err.print(f"voicecost: {problem}", style="red", highlight=False, soft_wrap=True)
    raise typer.Exit(USAGE_ERROR)

"""`voicecost prices`: what is charged, what changed, what is missing, and is a file right."""

from __future__ import annotations

from datetime import MAXYEAR, MINYEAR, date
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from voicecost_sidecar._terminal import (
    AsJson,
    ConfigFile,
    fail,
    open_ledger,
    read_settings,
    show_answer,
)
from voicecost_sidecar.periods import OUTSIDE_CALENDAR
from voicecost_sidecar.price_books import price_book
from voicecost_sidecar.prices import (
    changes_table,
    check_prices,
    checked_text,
    missing_table,
    prices_table,
    read_changes,
    read_missing,
    read_prices,
)
from voicecost_sidecar.queries import now_unix_ms


class _ShowUnlessTold(typer.core.TyperGroup):
    """`voicecost prices MODEL` is `voicecost prices show MODEL`."""

    # Any: typer brings its own click or takes the one that is installed, by its version.
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put in the command that is meant."""
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = ["show", *args]
        return super().parse_args(ctx, args)


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    group = typer.Typer(
        cls=_ShowUnlessTold,
        help="Show prices, unless told otherwise: `voicecost prices deepgram/nova-3`.",
    )
    group.command()(show)
    group.command()(diff)
    group.command()(check)
    app.add_typer(group, name="prices")


def show(
    model: Annotated[
        str | None,
        typer.Argument(
            help="For example deepgram/nova-3; every row of yours and ours without.",
            show_default=False,
        ),
    ] = None,
    stale: Annotated[
        bool, typer.Option("--stale", help="Only what nobody checked for more than 60 days.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 where something is stale.")
    ] = False,
    missing: Annotated[
        bool,
        typer.Option("--missing", help="What the ledger, or LiveKit, names and no price is of."),
    ] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what is charged, since when, and where that is from."""
    if missing:
        if model is not None or stale or strict:
            fail("--missing asks the ledger: give it without a model, --stale or --strict")
        _show_missing(config, as_json)
        return
    try:
        book = price_book(read_settings(config))
        found = read_prices(book, model, stale=stale, at_unix_ms=now_unix_ms())
    except (LookupError, ValueError) as error:
        fail(str(error))
    show_answer(found, as_json, lambda: prices_table(found), lines=True)
    if strict and found.stale_count:
        raise typer.Exit(1)


def _show_missing(config: Path | None, as_json: bool) -> None:
    settings = read_settings(config)
    try:
        book = price_book(settings)
    except ValueError as error:
        fail(str(error))
    if settings.database_path.exists():
        with open_ledger(config) as (store, _):
            unpriced = read_missing(store, book, until_unix_ms=now_unix_ms())
    else:
        unpriced = read_missing(None, book, until_unix_ms=now_unix_ms())
    show_answer(unpriced, as_json, lambda: missing_table(unpriced))


def diff(
    before: Annotated[str, typer.Argument(help="A day, 2026-08-01.", show_default=False)],
    after: Annotated[str, typer.Argument(help="A later one.", show_default=False)],
    provider: Annotated[str | None, typer.Option(help="Only of this one.", show_default=False)] = (
        None
    ),
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show which prices came, went or changed from one day (UTC) to another."""
    days: list[date] = []
    for text in (before, after):
        try:
            day = date.fromisoformat(text)
        except ValueError:
            fail(f"{text!r} is no day: expected for example 2026-11-01")
        if day.year in (MINYEAR, MAXYEAR):  # prices ask for the days around it
            fail(f"{text!r} {OUTSIDE_CALENDAR}")
        days.append(day)
    try:
        found = read_changes(price_book(read_settings(config)), *days, provider=provider)
    except ValueError as error:
        fail(str(error))
    show_answer(found, as_json, lambda: changes_table(found), lines=True)


def check(
    file: Annotated[Path, typer.Argument(help="A provider's price file, or a voicecost.yaml.")],
    as_json: AsJson = False,
) -> None:
    """Check a price file: what is wrong is named with file, line and field."""
    try:
        found = check_prices(file)
    except ValueError as error:
        fail(str(error))
    except ModuleNotFoundError as error:
        fail(
            f"reading a price file needs {error.name}: "
            "pip install 'livekit-plugins-voicecost[sidecar]'"
        )
    show_answer(found, as_json, lambda: checked_text(found))

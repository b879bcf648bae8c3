"""The `voicecost` command. Reading needs the base install; `serve` needs the extra `sidecar`."""

from __future__ import annotations

import importlib.resources
import importlib.util
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from voicecost_catalog.config_file import DEFAULT_CONFIG_FILE
from voicecost_ledger._version import __version__
from voicecost_ledger.calls import CallState
from voicecost_sidecar import correction_commands, price_commands
from voicecost_sidecar._terminal import (
    AsJson,
    ConfigFile,
    From,
    GroupBy,
    PeriodName,
    Project,
    To,
    err,
    fail,
    open_ledger,
    opened_store,
    out,
    read_settings,
    show_answer,
)
from voicecost_sidecar.call_tables import Part, call_table
from voicecost_sidecar.queries import (
    LATENCY_GROUPS,
    read_call,
    read_calls,
    read_costs,
    read_latency,
)
from voicecost_sidecar.tables import calls_table, costs_table, latency_table

_SERVING: Final = ("litestar", "uvicorn", "websockets", "aiohttp", "jwt", "ruamel.yaml")

app = typer.Typer(
    help="What your voice calls cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
correction_commands.add_to(app)
price_commands.add_to(app)


@app.callback(invoke_without_command=True)
def voicecost(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """What your voice calls cost."""
    if version:
        out.print(__version__)
        raise typer.Exit


@app.command()
def calls(
    period: PeriodName = None,
    from_: From = None,
    to: To = None,
    project: Project = None,
    state: Annotated[CallState | None, typer.Option(show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, max=500)] = 50,
    before: Annotated[
        str | None,
        typer.Option(help="Go on where a list ended; it says with what.", show_default=False),
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """List calls, newest first."""
    with open_ledger(config) as (store, settings):
        found = read_calls(
            store,
            time_zone=settings.time_zone,
            name=period,
            from_=from_,
            to=to,
            project=project,
            state=state,
            before=before,
            limit=limit,
            currency=settings.display_currency,
        )
        show_answer(found, as_json, lambda: calls_table(found, settings.time_zone))


@app.command()
def call(
    call_id: str,
    show: Annotated[
        Part, typer.Option(help="Its legs, turns, latency, or LiveKit's account beside ours.")
    ] = Part.LEGS,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show one call: its legs, what each cost and where the price is from."""
    with open_ledger(config) as (store, settings):
        found = read_call(store, call_id, currency=settings.display_currency)
        if found is None:
            fail(f"no call {call_id!r} in {settings.database_path}: `voicecost calls` lists them")
        show_answer(found, as_json, lambda: call_table(found, settings.time_zone, show))


@app.command()
def costs(
    period: PeriodName = None,
    from_: From = None,
    to: To = None,
    project: Project = None,
    group_by: GroupBy = "project",
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what was spent; today, unless a period is given."""
    with open_ledger(config) as (store, settings):
        found = read_costs(
            store,
            time_zone=settings.time_zone,
            name=period,
            from_=from_,
            to=to,
            project=project,
            group_by=group_by,
            currency=settings.display_currency,
        )
        show_answer(found, as_json, lambda: costs_table(found))


@app.command()
def latency(
    period: PeriodName = None,
    from_: From = None,
    to: To = None,
    project: Project = None,
    group_by: GroupBy = LATENCY_GROUPS,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show how soon answers began and how long they took; today, unless a period is given."""
    with open_ledger(config) as (store, settings):
        found = read_latency(
            store,
            time_zone=settings.time_zone,
            name=period,
            from_=from_,
            to=to,
            project=project,
            group_by=group_by,
        )
        show_answer(found, as_json, lambda: latency_table(found))


@app.command()
def init(
    file: Annotated[Path, typer.Argument()] = DEFAULT_CONFIG_FILE, as_json: AsJson = False
) -> None:
    """Write a commented voicecost.yaml."""
    example = importlib.resources.files("voicecost_sidecar").joinpath("voicecost.example.yaml")
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(example.read_text(encoding="utf-8"))
    except FileExistsError:
        fail(f"{file} is there already and stays as it is: name another file")
    except OSError as error:
        fail(f"{file} cannot be written: {error.strerror}")
    show_answer({"file": str(file)}, as_json, lambda: f"Wrote {file}.")


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Loopback, unless TLS is in front.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8787,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Run the sidecar: take in records and webhooks, keep the ledger, enforce budgets."""
    missing = [name for name in _SERVING if not _is_installed(name)]
    if missing:
        fail(
            f"serving needs packages that are not installed ({', '.join(missing)}): "
            "pip install 'livekit-plugins-voicecost[sidecar]'"
        )
    # The web stack: a second, and not there in a base install.
    from voicecost_ledger.spool import default_root
    from voicecost_sidecar import server
    from voicecost_sidecar.auth import TokenFileError, read_or_make_token, token_file

    settings = read_settings(config)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    made_in: Path | None = None
    token = os.environ.get("VOICECOST_TOKEN", "").strip()
    try:
        settings.database_path.parent.mkdir(parents=True, exist_ok=True)
        if not token:
            file = token_file(settings.database_path)
            token, made = read_or_make_token(file)
            made_in = file if made else None
        listening = server.listening_socket(host, port)
    except TokenFileError as error:
        fail(str(error))
    except OSError as error:
        fail(f"cannot serve on {host}:{port} over {settings.database_path}: {error}")
    with listening, opened_store(settings.database_path) as store:
        sidecar = server.Sidecar(
            settings,
            store,
            token=token,
            spool_root=default_root(),
            adopt_embedded=settings.keeps_embedded_ledger,
        )
        try:
            sidecar.warm()
        except ValueError as error:
            fail(f"{config or DEFAULT_CONFIG_FILE}: host_aliases: {error}")
        bound_port = listening.getsockname()[1]
        url = f"http://{f'[{host}]' if ':' in host else host}:{bound_port}"

        def say() -> None:
            if made_in is not None:
                err.print(
                    f"A token was made and is kept in {made_in}. Agents, and you, need it:\n"
                    f"  export VOICECOST_URL={url} VOICECOST_TOKEN={token}",
                    soft_wrap=True,
                    highlight=False,
                )
            started = {
                "url": url,
                "database": str(settings.database_path),
                "livekit_project": settings.livekit_project,
                "webhook_url": f"{url}/livekit/webhook",
                "spools": str(default_root()),
            }
            show_answer(started, as_json, lambda: _started_text(started))
            sys.stdout.flush()

        server.SidecarServer(sidecar.app, on_started=say).run(sockets=[listening])


def _started_text(started: dict[str, str | None]) -> str:
    livekit = started["livekit_project"]
    webhook = (
        f"{livekit}, webhook to {started['webhook_url']}"
        if livekit
        else ("none configured: no room is seen or ended (set LIVEKIT_URL, _API_KEY, _API_SECRET)")
    )
    return (
        f"voicecost {__version__} listens on {started['url']}\n"
        f"  ledger   {started['database']}\n"
        f"  LiveKit  {webhook}\n"
        f"  spools   {started['spools']}"
    )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent package
        return False


def main() -> None:
    """Entry point of the console script."""
    app()

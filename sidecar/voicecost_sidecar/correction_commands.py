"""Commands about what is posted already: why it is so much, and what else it should be."""

from __future__ import annotations

import getpass
import secrets
from collections.abc import Callable
from typing import Annotated

import typer

from voicecost_ledger.books import Books
from voicecost_ledger.events import Adjust, Adjusted, Answer, Order, Refused, Rerated
from voicecost_ledger.money import format_usd, parse_usd
from voicecost_ledger.stores.sqlite import SqliteStore
from voicecost_sidecar._terminal import (
    AsJson,
    ConfigFile,
    From,
    PeriodName,
    To,
    fail,
    open_ledger,
    show_answer,
)
from voicecost_sidecar.config import Config
from voicecost_sidecar.explanations import entry_of_leg, explanation_table, read_explanation
from voicecost_sidecar.periods import Period
from voicecost_sidecar.periods import period as span_of
from voicecost_sidecar.price_books import price_book
from voicecost_sidecar.queries import now_unix_ms
from voicecost_sidecar.rerating import first_order, next_order, report, rerate_table
from voicecost_sidecar.what_if import parse_models, what_if, what_if_table

Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the audit log.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(explain)
    app.command()(rerate)
    app.command("what-if")(what_if_command)
    # So that -0.25 is an amount and no option.
    app.command(context_settings={"ignore_unknown_options": True})(adjust)


def explain(
    entry: Annotated[str, typer.Argument(help="An entry's number, or a call's id with LEG.")],
    leg: Annotated[
        int | None, typer.Argument(help="A leg of the call: its last entry.", show_default=False)
    ] = None,
    meter: Annotated[
        str | None,
        typer.Option(help="Of a call with several meters, whose leg.", show_default=False),
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show how an amount came about, rule by rule, with the source of each rate."""
    with open_ledger(config) as (store, settings):
        try:
            if leg is not None:
                number = entry_of_leg(store, entry, leg, meter)
            elif entry.isascii() and entry.isdigit():
                number = int(entry)
            else:
                fail(f"{entry!r} is no entry's number: give one, or a call's id and a leg")
            found = read_explanation(store, number)
        except LookupError as error:
            fail(str(error))
        show_answer(found, as_json, lambda: explanation_table(found, settings.time_zone))


def rerate(
    period: PeriodName = None,
    from_: From = None,
    to: To = None,
    provider: Annotated[
        str | None, typer.Option(help="Only legs of this provider.", show_default=False)
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply/--dry-run", help="Post the differences, or only show them.")
    ] = False,
    reason: Reason = "",
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Compare what is posted with today's prices; post the differences with --apply."""
    with open_ledger(config) as (store, settings):
        span = _span(settings, period, from_, to)
        order = first_order(
            from_unix_ms=span.from_unix_ms,
            until_unix_ms=span.until_unix_ms,
            provider=provider,
            apply=apply,
            by=_who(),
            reason=reason,
        )
        answers: list[Rerated] = []
        carry_out = _books(store, settings)
        following = order
        while following is not None:
            answer = carry_out(following)
            assert isinstance(answer, Rerated)
            answers.append(answer)
            following = next_order(following, answer)
        found = report(order, answers)
        show_answer(found, as_json, lambda: rerate_table(found, settings.time_zone))


def what_if_command(
    models: Annotated[
        str, typer.Option(help="For example stt=deepgram/nova-3,llm=openai/gpt-4o-mini.")
    ],
    period: PeriodName = None,
    from_: From = None,
    to: To = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what calls would have cost with other models."""
    with open_ledger(config) as (store, settings):
        wanted = parse_models(models)
        span = _span(settings, period, from_, to)
        found = what_if(store, price_book(settings), span, wanted)
        show_answer(found, as_json, lambda: what_if_table(found, settings.time_zone))


def adjust(
    call_id: str,
    amount: Annotated[
        str,
        typer.Argument(help="US dollars of what is billed, below 0 for a refund: -0.25."),
    ],
    reason: Reason,
    adjustment_id: Annotated[
        str | None,
        typer.Option("--id", help="The same id again does nothing.", show_default=False),
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Post a refund or a charge to a call."""
    with open_ledger(config) as (store, settings):
        order = Adjust(
            adjustment_id=adjustment_id or secrets.token_hex(8),
            call_id=call_id,
            amount_nano_usd=signed_usd(amount),
            reason=reason,
            by=_who(),
        )
        answer = _books(store, settings)(order)
        if isinstance(answer, Refused):
            fail(answer.message)
        assert isinstance(answer, Adjusted)
        show_answer(answer, as_json, lambda: _adjusted_text(answer))


def _adjusted_text(done: Adjusted) -> str:
    known = "had been adjusted before" if done.repeated else "is adjusted"
    cost = f"it costs {format_usd(done.total_nano_usd, places=9)}"
    if done.billed_nano_usd != done.total_nano_usd:
        cost += f" and is billed {format_usd(done.billed_nano_usd, places=9)}"
    return f"{done.call_id} {known}: {cost}."


def signed_usd(text: str) -> int:
    """US dollars as nano-USD, below 0 for a refund.

    Raises:
        ValueError: It is no such amount.
    """
    sign = -1 if text.strip().startswith("-") else 1
    return sign * parse_usd(text.strip().removeprefix("-"))


def _span(settings: Config, name: str | None, from_: str | None, to: str | None) -> Period:
    return span_of(
        now_unix_ms=now_unix_ms(), time_zone=settings.time_zone, name=name, from_=from_, to=to
    )


def _books(store: SqliteStore, settings: Config) -> Callable[[Order], Answer]:
    """Orders carried out on the ledger's file; a sidecar may be writing it at the same time."""
    books = Books(price_book(settings), settings.policy())

    def carry_out(order: Order) -> Answer:
        with store.transaction() as tx:
            return books.order(tx, order, now_unix_ms())

    return carry_out


def _who() -> str:
    try:
        return f"{getpass.getuser()} at the command line"
    except (OSError, KeyError):  # a user id without a name, as in many containers
        return "the command line"

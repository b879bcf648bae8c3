"""Three calls on this machine, and what they cost: no account, no key, nothing sent anywhere.

    make demo                      # the same as: .venv/bin/python -m examples.demo
    make demo ARGS=--keep          # leave the sidecar up afterwards, until Ctrl-C

Each promise is printed as kept or not; the exit code says whether all were.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape

from examples.demo.bills import Sum, difference_percent, livekit_bill, sum_up
from examples.demo.caller import Caller, Line, NotHeardError
from examples.demo.conversations import BOOKING, KILLED, TOO_DEAR, Conversation
from examples.demo.processes import NotReadyError
from examples.demo.promises import Promises
from examples.demo.report import comparison_table, ledger_sum, ledger_table
from examples.demo.stage import Stage
from scripts.tools import ROOT, ToolMissingError, livekit_server
from voicecost_catalog import open_price_book
from voicecost_ledger.money import parse_usd
from voicecost_ledger.pricing import PriceBook
from voicecost_ledger.records import Coverage, Outcome
from voicecost_ledger.stores import CallDetail

FOLDER: Final = ROOT / ".demo"
DIFFERENCE_PERCENT_MAX: Final = 0.5
# LiveKit notices a dead agent after 20 s or more: settled earlier, the sidecar did not wait for it.
CRASH_SETTLED_S_MAX: Final = 15.0
_BILL: Final = "the providers' bill"


class Demo:
    """Plays the calls one after another, compares the bills and checks the promises."""

    def __init__(
        self, stage: Stage, prices: PriceBook, console: Console, *, no_room: str = ""
    ) -> None:
        self.promises = Promises(console)
        self._no_room = no_room  # why the calls are played without a room, and what to do about it
        self._stage = stage
        self._prices = prices
        self._console = console
        self._began_at_unix_ms = 0
        self._cost_message_count = 0

    async def booking(self) -> None:
        """A tool call, an interruption, a hang-up."""
        row_count = self._begin(BOOKING)
        async with self._call(BOOKING) as caller:
            await BOOKING.play(caller)
        table, menu, _ = (reply.text for reply in BOOKING.replies)
        answers = [line.text for line in caller.lines if line.by_agent]
        self.promises.check(
            "the caller heard the agent", caller.heard_ms > 5_000, f"{caller.heard_ms / 1000} s"
        )
        self.promises.check("the agent answered by its tool's result", table in answers)
        self.promises.check(
            "the caller interrupted it in mid-sentence",
            any(menu.startswith(answer) and answer != menu for answer in answers),
        )
        told = "the room was told what the call costs while it lasted"
        if self._stage.livekit is None:
            self.promises.skip(told, self._no_room)
        else:
            count = self._cost_message_count
            self.promises.check(told, count > 0, f"{count} messages on topic voicecost")
        call = await self._settled(BOOKING, row_count)
        self._check_reason(call, "completed")
        outcomes = [leg.outcome for leg in call.legs]
        self.promises.check(
            "the ledger knows what was interrupted", Outcome.INTERRUPTED in outcomes
        )
        self.promises.check(
            "the meter saw all of the call",
            call.summary.coverage is Coverage.COMPLETE,
            call.summary.coverage,
        )

    async def too_dear(self) -> None:
        """A budget that runs out in the middle of an answer."""
        row_count = self._begin(TOO_DEAR)
        livekit = self._stage.livekit
        async with self._call(TOO_DEAR) as caller:
            await TOO_DEAR.play(caller)
            reason = await caller.disconnected(timeout_s=30)
            is_gone = livekit is not None and await livekit.is_gone(TOO_DEAR.name)
        said = [line.text for line in caller.lines if line.by_agent]
        self.promises.check(
            "the caller heard the wrap-up sentence", said[-1:] == [TOO_DEAR.wrap_up_text]
        )
        disconnected = "the sidecar disconnected the caller"
        gone = "the room is gone: LiveKit lists it no more"
        if livekit is None:
            self.promises.skip(disconnected, self._no_room)
            self.promises.skip(gone, self._no_room)
        else:
            self.promises.check(disconnected, reason == "ROOM_DELETED", reason)
            self.promises.check(gone, is_gone)
        call = await self._settled(TOO_DEAR, row_count)
        self._check_reason(call, "budget")
        limit_nano_usd = parse_usd(TOO_DEAR.budget_usd or "0")
        self.promises.check(
            f"it cost no more than its budget of ${TOO_DEAR.budget_usd}",
            call.summary.total_nano_usd <= limit_nano_usd,
        )

    async def killed(self) -> None:
        """SIGKILL of the agent's process while it speaks."""
        row_count = self._begin(KILLED)
        async with self._call(KILLED) as caller:
            await KILLED.play(caller)
            self._stage.kill_agent(KILLED.name)
            self._console.print("  [dim]the agent's process was killed with SIGKILL[/]")
            await caller.hears_end()
            await caller.hang_up()
            hung_up_at = time.monotonic()
        call = await self._settled(KILLED, row_count)
        settled_s = time.monotonic() - hung_up_at
        self._check_reason(call, "crashed")
        unnoticed = "it settled without waiting for LiveKit to notice (20 s and more)"
        if self._stage.livekit is None:
            self.promises.skip(unnoticed, self._no_room)
        else:
            in_time = settled_s < CRASH_SETTLED_S_MAX
            detail = f"{settled_s:.1f} s after the caller hung up"
            self.promises.check(unnoticed, in_time, detail)
        states = {meter.state for meter in call.meters if not meter.unattributed}
        self.promises.check(
            "the dead process's records were adopted", states == {"adopted"}, ", ".join(states)
        )

    def _begin(self, conversation: Conversation) -> int:
        """Tell the providers what comes; returns how many requests they have billed before."""
        self._console.rule(f"[bold]{conversation.title}[/]", align="left")
        self._began_at_unix_ms = time.time_ns() // 1_000_000
        self._cost_message_count = 0
        providers = self._stage.providers
        providers.prepare(said=conversation.said, replies=conversation.replies)
        return len(providers.bill.rows)

    @contextlib.asynccontextmanager
    async def _call(self, conversation: Conversation) -> AsyncGenerator[Caller]:
        """A call that is shown while it lasts: what is said, and what it costs so far."""
        dialled = self._stage.call(
            conversation.name,
            budget_usd=conversation.budget_usd,
            wrap_up_text=conversation.wrap_up_text,
        )
        with self._console.status("dialling") as status:

            def show(line: Line) -> None:
                who = "[cyan]agent [/]" if line.by_agent else "[magenta]caller[/]"
                self._console.print(f"  {who} {escape(line.text)}")

            def show_cost(usd: str) -> None:
                self._cost_message_count += 1
                status.update(f"in the call: the room hears that it costs ${usd} so far")

            async with dialled as caller:
                caller.on_line = show
                caller.on_cost = show_cost
                yield caller

    async def _settled(self, conversation: Conversation, row_count: int) -> CallDetail:
        """Wait until the ledger has settled the call; show it beside the other bills."""
        (call,) = await self._stage.sidecar.settled(
            conversation.name if self._stage.livekit else None,
            since_unix_ms=self._began_at_unix_ms,
            timeout_s=40,
        )
        billed = await self._stage.providers.billed_since(row_count)
        at_unix_ms = call.summary.opened_at_unix_ms
        bill = sum_up(billed, self._prices, at_unix_ms)
        livekit = await self._livekit_sum(conversation, at_unix_ms)
        ledger = ledger_sum(call)
        self._console.print(ledger_table(call))
        self._console.print(
            comparison_table(
                {
                    "the providers' bill": bill,
                    "voicecost": ledger,
                    "LiveKit's session.usage": livekit,
                },
                reference="the providers' bill",
            )
        )
        percent = difference_percent(ledger.total_nano_usd, bill.total_nano_usd)
        self.promises.check(
            f"the ledger is within {DIFFERENCE_PERCENT_MAX} % of the providers' bill",
            percent is not None
            and abs(percent) <= DIFFERENCE_PERCENT_MAX
            and bill.unpriced_count == ledger.unpriced_count == 0,
            "no bill" if percent is None else f"{percent:+.2f} %",
        )
        return call

    async def _livekit_sum(self, conversation: Conversation, at_unix_ms: int) -> Sum | None:
        try:
            usage = await self._stage.usage(
                conversation.name, timeout_s=0 if conversation is KILLED else 10
            )
        except FileNotFoundError:  # the process died before it could tell
            return None
        return sum_up(livekit_bill(usage), self._prices, at_unix_ms)

    def _check_reason(self, call: CallDetail, reason: str) -> None:
        self.promises.check(
            f"the call settled as {reason}", call.summary.reason == reason, str(call.summary.reason)
        )


async def run(console: Console, binary: Path | None, *, no_room: str, keep: bool) -> int:
    """Set the stage, play the calls; returns the exit code."""
    logging.basicConfig(filename=FOLDER / "demo.log", level=logging.INFO)
    async with contextlib.AsyncExitStack() as rest:
        server = "livekit-server, " if binary else ""
        console.print(f"starting {server}the sidecar, the providers' simulators and the agent")
        with console.status("starting"):
            stage = await rest.enter_async_context(Stage(FOLDER, binary))
            prices = open_price_book(host_aliases=stage.providers.host_aliases)
            await asyncio.to_thread(prices.warm)
        demo = Demo(stage, prices, console, no_room=no_room)
        for play in (demo.booking, demo.too_dear, demo.killed):
            try:
                await play()
            except (NotHeardError, TimeoutError, NotReadyError) as error:
                demo.promises.check(
                    f"the call is played to its end: {play.__name__}", False, str(error)
                )
        _tell_where_next(console, stage, keep=keep)
        _sum_up(console, demo.promises)
        if keep:
            await asyncio.Event().wait()
    return demo.promises.exit_code


def _tell_where_next(console: Console, stage: Stage, *, keep: bool) -> None:
    console.rule("[bold]where to look next[/]", align="left")
    folder = FOLDER.relative_to(ROOT)
    voicecost = Path(sys.executable).with_name("voicecost")
    with contextlib.suppress(ValueError):
        voicecost = voicecost.relative_to(Path.cwd())
    console.print(f"  export VOICECOST_DATABASE_URL=sqlite:///{folder}/ledger.db")
    console.print(f"  {voicecost} calls          all three calls")
    console.print(f"  {voicecost} costs          what they cost, by project")
    console.print(f"  {folder}/logs              what every process said")
    if keep:
        sidecar = stage.sidecar
        console.print(f"  curl -H 'Authorization: Bearer {sidecar.token}' {sidecar.url}/v1/calls")
        console.print("  [dim]the sidecar stays up until Ctrl-C[/]")
    else:
        console.print("  make demo ARGS=--keep           leaves the sidecar up, with its API")


def _sum_up(console: Console, promises: Promises) -> None:
    console.rule(align="left")
    skipped = f", {len(promises.skipped)} skipped" if promises.skipped else ""
    if promises.broken:
        console.print(f"[bold red]{len(promises.broken)} promises not kept[/]{skipped}:")
        for broken in promises.broken:
            console.print(f"  {broken}", markup=False)
    else:
        console.print(f"[bold green]all {promises.kept_count} promises kept[/]{skipped}")


def main() -> int:
    """Run the demo; the exit code is for `make`."""
    parser = argparse.ArgumentParser(description="Three calls, and what they cost.")
    parser.add_argument("--keep", action="store_true", help="leave the sidecar up until Ctrl-C")
    arguments = parser.parse_args()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    # Everything that was started is ended on the way out: after Ctrl-C, also where a shell that
    # started us in the background had it ignored, and after SIGTERM.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(os.getpid(), signal.SIGINT))
    os.chdir(ROOT)
    try:
        binary, no_room = _find_livekit_server(console)
        with _own_folder():
            return asyncio.run(run(console, binary, no_room=no_room, keep=arguments.keep))
    except KeyboardInterrupt:
        console.print("[yellow]stopped; every process it started has ended[/]")
        return 130
    except (NotReadyError, BlockingIOError) as error:
        console.print(str(error), style="bold red", markup=False)
        return 1


@contextlib.contextmanager
def _own_folder() -> Generator[None]:
    """An empty `.demo` for this run alone: yesterday's ledger would only confuse.

    Raises:
        BlockingIOError: Another demo is running in it.
    """
    FOLDER.mkdir(exist_ok=True)
    folder = os.open(FOLDER, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for path in FOLDER.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield
    except BlockingIOError as error:
        raise BlockingIOError(f"another demo is using {FOLDER}: end it first") from error
    finally:
        os.close(folder)


def _find_livekit_server(console: Console) -> tuple[Path | None, str]:
    """The program; or None and why, once the reason and the remedy are printed."""
    try:
        return livekit_server(console.print), ""
    except ToolMissingError as error:
        console.print(f"[yellow]SKIPPED[/] everything with a room: {error.reason}")
        console.print(f"  to see it all, {error.remedy}")
        return None, "no livekit-server: see above"

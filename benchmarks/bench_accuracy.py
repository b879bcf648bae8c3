"""How far the ledger is from the providers' bill, and how far LiveKit's `session.usage` is.

    python -m benchmarks.bench_accuracy [--calls N] [--seed N] [--only TEXT] [--blind]

Seeded calls of 20 to 30 s and one call for each way to end, all at the speed of speech and side
by side: real sessions, real plugins, the real embedded ledger, on simulators that keep the
providers' bill. Then a second time the calls alone with nothing seen on the wire, as with plugins
that nobody has looked into. A missed bar makes the exit code 1.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from benchmarks import _report
from benchmarks.accuracy.bills import BILLED_UNITS, MODALITIES, Miss, Result
from benchmarks.accuracy.play import CASES
from scripts.tools import ROOT

OVERALL_MAX, MODALITY_MAX, ENDING_MAX, AHEAD_MAX, BLIND_MAX = 0.1, 0.3, 1.0, 1.0, 1.0
PLUGINS: Final = ("openai", "anthropic", "deepgram", "cartesia", "elevenlabs")
COVERED_MIN: Final = 90.0
WORKERS: Final = min(4, os.cpu_count() or 1)
Percent = float | None


async def play(names: Sequence[str], *, at_once: int, options: Sequence[str] = ()) -> list[Result]:
    """Play the cases in a few processes; each keeps a ledger of its own."""
    shares = [share for worker in range(WORKERS) if (share := list(names[worker::WORKERS]))]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(len(shares)):
            (Path(folder) / str(number)).mkdir()
        options = ["--at-once", str(at_once), *options]
        jobs = [
            _worker([*options, *share], Path(folder) / str(number))
            for number, share in enumerate(shares)
        ]
        played = [result for results in await asyncio.gather(*jobs) for result in results]
    order = {name: index for index, name in enumerate(names)}
    return sorted(played, key=lambda result: order[result.name])


async def _worker(arguments: list[str], folder: Path) -> list[Result]:
    env = os.environ | {
        "VOICECOST_DATABASE_URL": f"sqlite:///{folder / 'ledger.db'}",
        "VOICECOST_SPOOL_DIR": str(folder / "spool"),
    }
    for name in ("VOICECOST_URL", "VOICECOST_DISABLED", "VOICECOST_PROJECT"):
        env.pop(name, None)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.accuracy.play", *arguments,
        stdout=asyncio.subprocess.PIPE, env=env, cwd=ROOT,
    )  # fmt: skip
    output, _ = await child.communicate()
    if child.returncode:
        raise SystemExit(f"bench_accuracy: a worker failed with exit code {child.returncode}")
    return msgspec.json.decode(output, type=list[Result])


def total(amounts: dict[str, int]) -> int:
    """Of all modalities."""
    return sum(amounts.values())


def percent(amount: int, reference: int) -> Percent:
    """How far off; None where there is nothing to be off from."""
    if reference == 0:
        return 0.0 if amount == 0 else None
    return (amount - reference) * 100 / reference


def merged(results: Iterable[Result], field: str) -> dict[str, int]:
    """The sum of one of the results' bills."""
    amounts: dict[str, int] = dict.fromkeys(MODALITIES, 0)
    for result in results:
        for modality, amount in getattr(result, field).items():
            amounts[modality] = amounts.get(modality, 0) + amount
    return amounts


def _usd(nano_usd: int) -> str:
    return f"{nano_usd / 1e9:.6f}"


def _signed(value: Percent) -> str:
    return "      -" if value is None else f"{value:+7.2f}"


def print_cases(results: Sequence[Result], *, details: bool) -> None:
    """A row for each case, and what is wrong with it; with `details` its estimated legs too."""
    heading = "billed $    ours $     usage $   ours %  usage %  estimated %"
    print(f"{'':<52}{heading}")
    for result in results:
        print(_row(_title(result), [result]))
        for what in ("wrong", "missing", "invented"):
            for line in getattr(result, what):
                print(f"    {what}: {line}")
        for miss in result.estimates if details else ():
            units = [
                f"{unit} {miss.ours[unit]} ± {miss.margins.get(unit, 0)}, billed {billed}"
                for unit, billed in miss.billed.items()
                if billed or miss.ours[unit]
            ]
            print(f"    estimated, {miss.outcome}: {'; '.join(units)}")
        if result.unpriced:
            print(f"    {result.unpriced} legs have no price")
        if result.error:
            print(f"    not played: {result.error}")


def _title(result: Result) -> str:
    return f"call {result.name}" if result.kind == "call" else result.name


def _row(title: str, results: Sequence[Result]) -> str:
    billed, ours, usage = (total(merged(results, field)) for field in ("billed", "ours", "usage"))
    share = percent(sum(result.estimated for result in results) + ours, ours) or 0.0
    return (
        f"{title:<50}{_usd(billed):>11}{_usd(ours):>11}{_usd(usage):>11}"
        f"{_signed(percent(ours, billed)):>9}{_signed(percent(usage, billed)):>9}{share:>10.1f}"
    )


def print_sums(title: str, results: Sequence[Result]) -> None:
    """The sums by modality, and overall."""
    print(f"\n{title}, {len(results)} calls")
    for modality in MODALITIES:
        one = [
            msgspec.structs.replace(
                result,
                estimated=0,
                **{
                    field: {modality: getattr(result, field).get(modality, 0)}
                    for field in ("billed", "ours", "usage")
                },
            )
            for result in results
        ]
        print(_row(f"  {modality}", one).rstrip()[:-4])
    print(_row("  overall", results))
    ahead = total(merged(results, "billed_ahead"))
    ours = total(merged(results, "ours"))
    print(f"  had the providers generated half a second more: {_signed(percent(ours, ahead))} %")


def print_estimates(results: Sequence[Result]) -> float:
    """How good the estimates and their margins are; returns the percentage within."""
    print("\nestimated legs            count    error mean  |error| median  margin median  within")
    within = every = 0
    misses = [miss for result in results for miss in result.estimates]
    for unit in dict.fromkeys(unit for units in BILLED_UNITS.values() for unit in units):
        of_unit = [miss for miss in misses if miss.billed.get(unit) or miss.ours.get(unit)]
        if not of_unit:
            continue
        held = [miss for miss in of_unit if _error(miss, unit) <= miss.margins.get(unit, 0)]
        within += len(held)
        every += len(of_unit)
        billed = sum(miss.billed[unit] for miss in of_unit) or 1
        mean = sum(miss.ours[unit] - miss.billed[unit] for miss in of_unit) * 100 / billed
        sizes = [_error(miss, unit) * 100 / max(1, miss.billed[unit]) for miss in of_unit]
        margins = [miss.margins.get(unit, 0) * 100 / max(1, miss.billed[unit]) for miss in of_unit]
        print(
            f"  {unit:<22}{len(of_unit):>7}{mean:>+12.2f} %{statistics.median(sizes):>13.2f} %"
            f"{statistics.median(margins):>13.2f} %{len(held) * 100 / len(of_unit):>7.0f} %"
        )
    return within * 100 / every if every else 100.0


def _error(miss: Miss, unit: str) -> int:
    return abs(miss.ours[unit] - miss.billed[unit])


def bars_of(results: Sequence[Result], within: float) -> list[_report.Bar]:
    """What is promised of the calls and the endings together."""
    billed, ours = merged(results, "billed"), merged(results, "ours")
    bars = [_bar("overall", percent(total(ours), total(billed)), OVERALL_MAX)]
    for modality in MODALITIES:
        bars.append(_bar(modality, percent(ours[modality], billed[modality]), MODALITY_MAX))
    worst = max(
        (result for result in results if result.kind == "ending"),
        key=lambda result: _size(percent(total(result.ours), total(result.billed))),
        default=None,
    )
    if worst is not None:
        off = percent(total(worst.ours), total(worst.billed))
        bars.append(_bar(f"worst ending: {worst.name}"[:50], off, ENDING_MAX))
    ahead = percent(total(ours), total(merged(results, "billed_ahead")))
    bars.append(_bar("overall, half a second generated ahead", ahead, AHEAD_MAX))
    for what, field in (
        ("legs known to the unit that are wrong", "wrong"),
        ("legs missing", "missing"),
        ("legs invented", "invented"),
    ):
        count = sum(len(getattr(result, field)) for result in results)
        bars.append(_report.Bar(what, count, 0, ""))
    bars.append(_report.Bar("legs unpriced", sum(each.unpriced for each in results), 0, ""))
    bars.append(_report.Bar("cases not played", sum(bool(each.error) for each in results), 0, ""))
    bars.append(_report.Bar("truth outside of its margin", 100 - within, 100 - COVERED_MIN, "%"))
    return bars


def _bar(what: str, off: Percent, limit: float) -> _report.Bar:
    return _report.Bar(what, _size(off), limit, "%")


def _size(off: Percent) -> float:
    return float("inf") if off is None else abs(off)


async def main() -> int:
    command = _report.parser(__doc__)  # `--strict` changes nothing here: accuracy is the promise
    command.add_argument("--calls", type=int, default=40, help="seeded calls")
    command.add_argument("--seed", type=int, default=1, help="of the first call")
    command.add_argument("--only", default="", help="only endings with this in their title")
    command.add_argument("--no-endings", action="store_true", help="leave the endings out")
    command.add_argument("--no-blind", action="store_true", help="leave the second part out")
    command.add_argument("--at-once", type=int, default=8, help="calls side by side in a process")
    command.add_argument("--details", action="store_true", help="show each estimated leg")
    command.add_argument("--verbose", action="store_true", help="show the agents' logs")
    arguments = command.parse_args()
    began_at = time.monotonic()
    endings = [name for name in CASES if arguments.only.lower() in name.lower()]
    if arguments.no_endings:
        endings = []
    calls = [str(arguments.seed + number) for number in range(arguments.calls)]

    options = ["--verbose"] * arguments.verbose

    async def run(names: list[str], *more: str) -> list[Result]:
        return await play(names, at_once=arguments.at_once, options=[*options, *more])

    results = await run([*endings, *calls])
    print_cases(results, details=arguments.details)
    if calls:
        print_sums("seeded calls", [result for result in results if result.kind == "call"])
    if endings:
        print_sums("one call for each ending", [each for each in results if each.kind == "ending"])
    print_sums("all", results)
    bars = bars_of(results, print_estimates(results))
    if calls and not arguments.no_blind:
        blind = await run(calls, "--blind")
        print_sums("the seeded calls, nothing seen on the wire", blind)
        print_estimates(blind)
        for result in blind:
            for line in [*result.missing, *result.invented]:
                print(f"  {_title(result)}: {line}")
        off = percent(total(merged(blind, "ours")), total(merged(blind, "billed")))
        bars.append(_bar("overall, nothing seen on the wire", off, BLIND_MAX))
    print(f"\n{len(results)} calls in {time.monotonic() - began_at:.0f} s")
    return _report.conclude(
        bars,
        distributions=("livekit-agents", *(f"livekit-plugins-{name}" for name in PLUGINS)),
        strict=True,
    )


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))

"""What rating costs: a lookup, an amount and an import, beside genai-prices doing the same.

    python -m benchmarks.bench_catalog

Every figure stands beside its reference from the same run, because machines differ.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median, quantiles

import genai_prices

from voicecost_catalog import ModelPrice, open_price_book
from voicecost_ledger.records import LegAttributes, Modality

ROUNDS = 2_000
CALLS_PER_ROUND = 20

_IMPORT_COST = """
import os, time
def resident():  # not ru_maxrss: Linux hands the parent's peak on to the child
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
{before}
held = resident() if os.path.exists("/proc/self/statm") else None
start = time.perf_counter()
{statement}
print(time.perf_counter() - start, 0 if held is None else resident() - held)
"""


def microseconds(call: Callable[[], object]) -> tuple[float, float]:
    """p50 and p99 of one call, each sample the mean of a few."""
    samples: list[float] = []
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        for _ in range(CALLS_PER_ROUND):
            call()
        samples.append((time.perf_counter_ns() - start) / CALLS_PER_ROUND / 1_000)
    return median(samples), quantiles(samples, n=100)[98]


def import_cost(statement: str, *, before: str = "") -> tuple[float, float]:
    """Milliseconds and MB that a statement takes in a fresh process; the best of five."""
    program = _IMPORT_COST.format(statement=statement, before=before)
    runs: list[tuple[float, float]] = []
    for _ in range(5):
        command = [sys.executable, "-c", program]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        runs.append((float(out[0]) * 1_000, float(out[1]) / 1_000_000))
    return min(run[0] for run in runs), min(run[1] for run in runs)


def main() -> None:
    book = open_price_book()
    book.warm()
    now_unix_ms = time.time_ns() // 1_000_000
    llm = LegAttributes(
        modality=Modality.LLM,
        provider="api.openai.com",
        model="gpt-4o-mini",
        host="api.openai.com",
    )
    stt = LegAttributes(
        modality=Modality.STT, provider="Deepgram", model="nova-3", language="en-US"
    )

    def found(leg: LegAttributes) -> ModelPrice:
        price = book.price_for(leg, now_unix_ms)
        assert price is not None
        return price

    llm_price, stt_price = found(llm), found(stt)
    tokens = {"input_tokens": 1_200, "cached_input_tokens": 1_024, "output_tokens": 80}
    audio = {"audio_ms": 61_370, "connected_ms": 62_000}
    theirs = genai_prices.Usage(input_tokens=1_200, cache_read_tokens=1_024, output_tokens=80)

    rows = [
        ("genai-prices: calc_price, warm", lambda: genai_prices.calc_price(
            theirs, "gpt-4o-mini", provider_id="openai")),
        ("price_for: a leg seen before", lambda: book.price_for(llm, now_unix_ms)),
        ("rate: tokens of an LLM request", lambda: llm_price.rate(tokens)),
        ("rate: audio of an STT connection", lambda: stt_price.rate(audio)),
        ("price_for and rate together", lambda: found(llm).rate(tokens)),
    ]  # fmt: skip
    reference_us = 0.0
    print(f"{'rating':<36}{'p50 µs':>10}{'p99 µs':>10}{'of reference':>14}")
    for name, call in rows:
        p50, p99 = microseconds(call)
        reference_us = reference_us or p50
        print(f"{name:<36}{p50:>10.2f}{p99:>10.2f}{p50 / reference_us:>13.1%}")

    # The ledger's records are in every process of ours: the catalog is what comes on top.
    ours = "import voicecost_catalog; voicecost_catalog.open_price_book()"
    print(f"\n{'import and open, fresh process':<36}{'ms':>10}{'MB':>10}{'of reference':>14}")
    reference_ms = 0.0
    for name, statement, before in (
        ("genai-prices, first calculation", "import genai_prices; genai_prices.calc_price("
         "genai_prices.Usage(input_tokens=1), 'gpt-4o-mini', provider_id='openai')", ""),
        ("the catalog, after the ledger", ours, "import voicecost_ledger.records"),
        ("the catalog, from nothing", ours, ""),
        ("the catalog, warm", f"{ours}.warm()", "import voicecost_ledger.records"),
    ):  # fmt: skip
        ms, mb = import_cost(statement, before=before)
        reference_ms = reference_ms or ms
        print(f"{name:<36}{ms:>10.1f}{mb:>10.1f}{ms / reference_ms:>13.1%}")


if __name__ == "__main__":
    main()

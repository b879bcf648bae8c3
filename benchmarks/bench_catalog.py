"""What rating costs: an amount, a lookup and an import, beside genai-prices doing the same.

    python -m benchmarks.bench_catalog

Rating is measured for each way of billing, in time of the processor: an agent does it on its event
loop for every chunk and frame. Rounds of all alternate, so that other load hits them alike.

The import is measured in fresh processes, with byte code compiled as pip leaves it, after
`voicecost_ledger.records`, which every process of ours has (and which has brought msgspec): what
counts is importing `voicecost_catalog` and opening the price book. genai-prices comes later, with
`warm()`, off the event loop.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

import genai_prices

from benchmarks._report import Bar, conclude, parser
from voicecost_catalog import ModelPrice, open_price_book
from voicecost_ledger.records import LegAttributes, Modality

BAR_RATING_US, BAR_IMPORT_MS, BAR_IMPORT_MB = 2, 20, 10
CALLS_PER_SAMPLE = 100  # as an agent does chunk after chunk; one call is too short to time

LLM, STT, TTS, REALTIME = Modality.LLM, Modality.STT, Modality.TTS, Modality.REALTIME
SPOKEN = {"characters": 900, "utf8_bytes": 920, "audio_ms": 60_000}
RATINGS: tuple[tuple[str, Modality, str, str, dict[str, int]], ...] = (
    ("LLM: tokens, some cached", LLM, "api.openai.com", "gpt-4o-mini",
     {"input_tokens": 1_200, "cached_input_tokens": 1_024, "output_tokens": 80}),
    ("LLM: above a tier", LLM, "Gemini", "gemini-2.5-pro",
     {"input_tokens": 250_000, "cached_input_tokens": 1_024, "output_tokens": 80}),
    ("LLM: cache read and written", LLM, "Anthropic", "claude-sonnet-4-5",
     {"input_tokens": 1_200, "cached_input_tokens": 800, "cache_write_tokens": 300,
      "output_tokens": 80}),
    ("LLM: tokens and a fee", LLM, "api.perplexity.ai", "sonar-pro",
     {"input_tokens": 1_200, "output_tokens": 80}),
    ("realtime: text and sound, cached", REALTIME, "api.openai.com", "gpt-realtime",
     {"input_tokens": 1_200, "cached_input_tokens": 800, "input_audio_tokens": 700,
      "cached_input_audio_tokens": 500, "output_tokens": 300, "output_audio_tokens": 240,
      "connected_ms": 0}),
    ("realtime: tokens and connected time", REALTIME, "elevenlabs", "eleven_realtime_v1_max",
     {"connected_ms": 61_000, "input_tokens": 0, "output_tokens": 0}),
    ("audio sent", STT, "Deepgram", "nova-3", {"audio_ms": 61_370, "connected_ms": 62_000}),
    ("audio sent, a minimum a request", STT, "api.groq.com", "whisper-large-v3",
     {"audio_ms": 2_000}),
    ("audio sent, begun seconds", STT, "Google Cloud Platform", "chirp_3", {"audio_ms": 59_001}),
    ("connected time, a minimum and steps", STT, "livekit", "deepgram/nova-3",
     {"audio_ms": 61_370, "connected_ms": 62_010}),
    ("characters", TTS, "Deepgram", "aura-2-thalia-en", SPOKEN),
    ("characters, Chinese ones twice", TTS, "Azure TTS", "eastus:zh-CN-XiaoxiaoNeural",
     SPOKEN | {"double_width_characters": 800}),
    ("characters, tags free", TTS, "Amazon Polly", "generative",
     SPOKEN | {"markup_characters": 15}),
    ("bytes of text", TTS, "FishAudio", "s1", SPOKEN),
    ("audio generated, derived of text", TTS, "Resemble", "chatterbox", {"characters": 900}),
    ("a voice's tokens, derived", TTS, "Gemini", "gemini-2.5-flash-tts", SPOKEN),
    ("a voice's tokens, counted", TTS, "api.openai.com", "gpt-4o-mini-tts",
     SPOKEN | {"input_tokens": 200, "output_tokens": 1_100}),
    ("a voice's tokens, estimated by time", TTS, "api.openai.com", "gpt-4o-mini-tts", SPOKEN),
    ("a recognizer's tokens, derived", STT, "Soniox", "stt-rt-v5", {"audio_ms": 61_370}),
    ("a recognizer's tokens, counted", STT, "api.openai.com", "gpt-4o-transcribe",
     {"audio_ms": 61_370, "input_tokens": 700, "output_tokens": 100}),
)  # fmt: skip

# Its own program: whatever this file imports would be there before the measurement.
_FRESH = """
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
_RECORDS = "import voicecost_ledger.records"
_OPEN = "import voicecost_catalog; book = voicecost_catalog.open_price_book()"
_GENAI = (
    "import genai_prices; genai_prices.calc_price("
    "genai_prices.Usage(input_tokens=1), 'gpt-4o-mini', provider_id='openai')"
)
IMPORTS = (
    ("import asyncio: reference", _RECORDS, "import asyncio"),
    ("the catalog and its price book", _RECORDS, _OPEN),
    ("the same, from nothing", "", _OPEN),
    ("genai-prices and its first price", _RECORDS, _GENAI),
    ("the catalog, warm", _RECORDS, f"{_OPEN}; book.warm()"),
)


def microseconds(
    calls: dict[str, Callable[[], object]], rounds: int
) -> dict[str, tuple[float, float]]:
    """p50 and p99 of each, of the processor's time; a sample is the mean of its calls."""
    samples: dict[str, list[float]] = {what: [] for what in calls}
    for _ in range(rounds):
        for what, call in calls.items():
            start = time.thread_time_ns()
            for _ in range(CALLS_PER_SAMPLE):
                call()
            samples[what].append((time.thread_time_ns() - start) / CALLS_PER_SAMPLE / 1_000)
    return {what: (median(taken), quantiles(taken, n=100)[98]) for what, taken in samples.items()}


def import_costs(runs: int) -> dict[str, tuple[float, float]]:
    """Milliseconds and MB of each of `IMPORTS` in fresh processes, the median of `runs`."""
    taken: dict[str, list[tuple[float, float]]] = {what: [] for what, _, _ in IMPORTS}
    with tempfile.TemporaryDirectory(prefix="voicecost-bench-") as folder:
        env = os.environ | {"PYTHONPYCACHEPREFIX": folder}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        for _ in range(runs + 1):
            for what, before, statement in IMPORTS:
                program = _FRESH.format(before=before, statement=statement)
                command = [sys.executable, "-c", program]
                done = subprocess.run(
                    command, check=True, stdout=subprocess.PIPE, text=True, env=env
                )
                seconds, size = done.stdout.split()
                taken[what].append((float(seconds) * 1_000, float(size) / 1_000_000))
    # The first of each compiled the byte code.
    return {
        what: (median(ms for ms, _ in each[1:]), median(mb for _, mb in each[1:]))
        for what, each in taken.items()
    }


def main() -> int:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--rounds", type=int, default=300, help="samples of each")
    arguments_parser.add_argument("--runs", type=int, default=15, help="processes of each import")
    arguments = arguments_parser.parse_args()
    book = open_price_book()
    book.warm()
    now_unix_ms = time.time_ns() // 1_000_000

    def found(leg: LegAttributes) -> ModelPrice:
        price = book.price_for(leg, now_unix_ms)
        assert price is not None, leg
        return price

    def rating(leg: LegAttributes, usage: dict[str, int]) -> Callable[[], object]:
        price = found(leg)
        assert price.rate(usage), leg
        return lambda: price.rate(usage)

    theirs = genai_prices.Usage(input_tokens=1_200, cache_read_tokens=1_024, output_tokens=80)
    reference = "genai-prices' own call, warm: reference"
    calls: dict[str, Callable[[], Any]] = {
        reference: lambda: genai_prices.calc_price(theirs, "gpt-4o-mini", provider_id="openai")
    }
    for what, modality, provider, model, usage in RATINGS:
        calls[what] = rating(LegAttributes(modality, provider, model), usage)
    first = LegAttributes(*RATINGS[0][1:4])
    usage = RATINGS[0][-1]
    calls["price_for: a leg seen before"] = lambda: book.price_for(first, now_unix_ms)
    calls["price_for and rate, of an LLM request"] = lambda: found(first).rate(usage)
    rated = microseconds(calls, arguments.rounds)
    print(f"{'rating, µs of the processor':<52}{'p50':>9}{'p99':>9}{'of ref.':>9}")
    for what, (p50, p99) in rated.items():
        print(f"{what:<52}{p50:>9.2f}{p99:>9.2f}{p50 / rated[reference][0]:>8.1%}")

    imported = import_costs(arguments.runs)
    title = f"import, median of {arguments.runs} fresh processes"
    print(f"\n{title:<52}{'ms':>9}{'MB':>9}{'of ref.':>9}")
    for what, (ms, mb) in imported.items():
        print(f"{what:<52}{ms:>9.1f}{mb:>9.1f}{ms / imported[IMPORTS[0][0]][0]:>8.2f}×")

    ms, mb = imported["the catalog and its price book"]
    bars = [Bar(f"{what}, p50", rated[what][0], BAR_RATING_US, "µs") for what, *_ in RATINGS]
    bars += [
        Bar("import after the ledger's records, median", ms, BAR_IMPORT_MS, "ms"),
        Bar("the same, resident memory", mb, BAR_IMPORT_MB, "MB"),
    ]
    return conclude(bars, distributions=("genai-prices", "msgspec"), strict=arguments.strict)


if __name__ == "__main__":
    sys.exit(main())

"""What an append to the spool costs, beside a bare write(2) of the same bytes, in the same run.

    python benchmarks/bench_spool.py [--count N] [--directory DIR]

Rounds of each alternate, so that other load hits both alike; the ratio is the figure to trust.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from voicecost_ledger.records import Basis, LegInterim, encode_record
from voicecost_ledger.spool import Spool, encode_frame

ROUNDS = 15
USAGE = {"characters": 1_234, "utf8_bytes": 1_300, "double_width_characters": 0}
METER = "0123456789abcdef0123456789abcdef"


def interim(seq: int) -> LegInterim:
    return LegInterim(METER, seq, 1_795_000_000_000, 7, USAGE, Basis.OBSERVED)


def timed(step: Callable[[int], object], first: int, count: int) -> list[int]:
    """Nanoseconds of each of `count` steps."""
    clock = time.perf_counter_ns
    times = [0] * count
    for index in range(count):
        before = clock()
        step(first + index)
        times[index] = clock() - before
    return times


def writes_inside(spool: Spool, first: int, count: int) -> list[int]:
    """Nanoseconds of the write(2) itself, as it is called from inside `append`."""
    times: list[int] = []
    clock, bare = time.perf_counter_ns, os.write

    def write(fd: int, data: bytes) -> int:
        before = clock()
        written = bare(fd, data)
        times.append(clock() - before)
        return written

    os.write = write
    try:
        for seq in range(first, first + count):
            spool.append(interim(seq))
    finally:
        os.write = bare
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=20_000, help="appends per round")
    parser.add_argument("--directory", type=Path, help="where to write; default: a temporary one")
    arguments = parser.parse_args()
    count: int = arguments.count
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        frame = encode_frame(encode_record(interim(1)))
        spool = Spool(Path(directory) / "spool")
        # The same flags as the spool's own files.
        fd = os.open(Path(directory) / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        payload = encode_record(interim(1))
        steps: dict[str, Callable[[int], object]] = {
            "bare write(2)": lambda _: os.write(fd, frame),
            "record + encode + crc32": lambda seq: zlib.crc32(encode_record(interim(seq))),
            "append, record and encoding included": lambda seq: spool.append(interim(seq)),
        }
        inside: list[int] = []
        times: dict[str, list[int]] = {name: [] for name in steps}
        for round_number in range(ROUNDS):
            for name, step in steps.items():
                times[name] += timed(step, 1 + round_number * count, count)
            inside += writes_inside(spool, 1 + round_number * count, count)
        os.close(fd)
        spool.close()
    print(f"{ROUNDS} rounds of {count:,}, frames of {len(frame)} bytes ({len(payload)} payload)")
    print(f"{'µs':38} {'p50':>8} {'p99':>8} {'p99.9':>8}")
    p50: dict[str, float] = {}
    for name, taken in {**times, "of it the write(2)": inside}.items():
        cuts = statistics.quantiles(taken, n=1000)
        p50[name] = cuts[499]
        print(f"{name:38} {cuts[499] / 1e3:8.2f} {cuts[989] / 1e3:8.2f} {cuts[998] / 1e3:8.2f}")
    bare, _, append, write = p50.values()
    print(f"the write inside append / bare write(2): {write / bare:.2f} (goal: 1.3)")
    print(f"append without the write: {(append - write) / 1e3:.2f} µs (goal: 5)")
    print(f"all of append / bare write(2): {append / bare:.2f}")


if __name__ == "__main__":
    main()

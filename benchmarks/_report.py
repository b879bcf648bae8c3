"""What every benchmark says at its end: on which machine, and which bars are met."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True)
class Bar:
    """A promise about a figure: it is met when `measured` is at most `limit`, both in `unit`."""

    what: str
    measured: float
    limit: float
    unit: str

    @property
    def met(self) -> bool:
        """Whether the promise is kept."""
        return self.measured <= self.limit


def parser(description: str | None) -> argparse.ArgumentParser:
    """A command line with `--strict`; a benchmark adds what else it takes."""
    made = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    made.add_argument("--strict", action="store_true", help="exit with 1 when a bar is missed")
    return made


def conclude(
    bars: Sequence[Bar], *, distributions: Sequence[str] = ("livekit-agents",), strict: bool
) -> int:
    """Print each bar and whether it is met, then the machine; returns the exit code."""
    print()
    for bar in bars:
        met = "met" if bar.met else "NOT MET"
        print(f"{bar.what:<52}{bar.measured:>9.2f} ≤ {bar.limit:g} {bar.unit:<6}{met:>9}")
    versions = ", ".join(f"{name} {version(name)}" for name in distributions)
    print(
        f"\n{platform.system()} {platform.machine()}, {os.cpu_count()} × {_cpu_model()}, load "
        f"{os.getloadavg()[0]:.1f}; Python {platform.python_version()}, {versions}"
    )
    return int(strict and not all(bar.met for bar in bars))


def _cpu_model() -> str:
    # `platform.processor()` is empty or "x86_64" on most Linux systems.
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or sys.platform

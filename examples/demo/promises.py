"""What the demo promises, and whether it was kept: printed one by one, summed up as exit code."""

from __future__ import annotations

import os

from rich.console import Console
from rich.markup import escape


class Promises:
    """Collects what was kept, broken and skipped; each is printed as it becomes known."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.kept_count = 0
        self.broken: list[str] = []
        self.skipped: list[str] = []

    def check(self, promise: str, kept: bool, detail: str = "") -> None:
        """Note a promise as kept or broken; `detail` is the measured value."""
        if kept:
            self.kept_count += 1
        else:
            self.broken.append(promise)
        mark = "[green]kept    [/]" if kept else "[bold red]NOT KEPT[/]"
        self._say(mark, promise, detail)

    def skip(self, promise: str, reason: str) -> None:
        """Note a promise that could not be tried."""
        self.skipped.append(promise)
        self._say("[yellow]SKIPPED [/]", promise, reason)

    @property
    def exit_code(self) -> int:
        """0 when all was kept; what was skipped counts as broken where `CI=true`."""
        in_ci = os.environ.get("CI", "").lower() in ("1", "true")
        return 1 if self.broken or (self.skipped and in_ci) else 0

    def _say(self, mark: str, promise: str, detail: str) -> None:
        text = f"  {mark} {escape(promise)}"
        self._console.print(f"{text} [dim]({escape(detail)})[/]" if detail else text)

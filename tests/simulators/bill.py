"""The provider's own bill: one row per request, kept by the simulator that served it.

A row is opened when the provider accepts a request and its units grow while it is served, so the
bill is right at any moment, also for a client that was killed. Nothing here knows of voicecost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Service = Literal[
    "llm",
    "stt",
    "tts",
    "realtime",
    "decision",
    "avatar",
    "turn_detection",
    "interruption_detection",
]
Ending = Literal["completed", "cancelled", "cleared", "timed_out", "died", "refused"]


def now_unix_ms() -> int:
    """Wall clock in milliseconds since 1970, as a provider's usage export would stamp it."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True, kw_only=True)
class BillRow:
    """What one request costs at the provider.

    `ended` is None while the request is open, then one of: `completed` (served to its end),
    `cancelled` (the client left first), `cleared` (the client told a TTS to forget the rest),
    `timed_out` (the provider closed an idle connection), `died` (a scripted fault of the
    provider), `refused` (an error status; never billed).
    """

    provider: str
    service: Service
    model: str
    request_id: str
    started_at_unix_ms: int
    units: dict[str, int]
    generated_ahead: dict[str, int] = field(default_factory=dict[str, int])
    """Second bill: what a provider that notices a disconnect half a second late adds to `units`."""
    connected_ms: int | None = None
    """STT: wall clock the connection was open; None while it is, and for other services."""
    attributes: dict[str, str | int] = field(default_factory=dict[str, str | int])
    ended: Ending | None = None
    ended_at_unix_ms: int | None = None

    def units_with_generation_ahead(self) -> dict[str, int]:
        """The second bill's units."""
        ahead = self.generated_ahead
        return {unit: count + ahead.get(unit, 0) for unit, count in self.units.items()}


class Bill:
    """Every request of one or more providers, in the order they were accepted."""

    def __init__(self) -> None:
        self.rows: list[BillRow] = []
        self._wake = asyncio.Event()

    def open(
        self,
        *,
        provider: str,
        service: Service,
        model: str,
        request_id: str,
        units: dict[str, int],
        attributes: dict[str, str | int] | None = None,
    ) -> BillRow:
        """Add a row for a request that was accepted; its `units` may grow until `close`."""
        row = BillRow(
            provider=provider,
            service=service,
            model=model,
            request_id=request_id,
            started_at_unix_ms=now_unix_ms(),
            units=units,
            attributes=attributes or {},
        )
        self.rows.append(row)
        self._wake.set()
        return row

    def close(self, row: BillRow, ended: Ending) -> None:
        """Say how the request ended; its units stand from now on. A second call is ignored."""
        if row.ended is None:
            row.ended = ended
            row.ended_at_unix_ms = now_unix_ms()
            self._wake.set()

    async def accepted(self, count: int = 1) -> None:
        """Wait until so many requests were accepted."""
        while len(self.rows) < count:
            self._wake.clear()
            await self._wake.wait()

    async def settled(self) -> None:
        """Wait until no request is open: a disconnect is noticed a moment after it happened."""
        while any(row.ended is None for row in self.rows):
            self._wake.clear()
            await self._wake.wait()

    def total(self, unit: str, *, service: Service | None = None, model: str | None = None) -> int:
        """Sum of one unit over all rows, or those of one service or model."""
        return sum(
            row.units.get(unit, 0)
            for row in self.rows
            if service in (None, row.service) and model in (None, row.model)
        )

    def as_json(self, *, since_unix_ms: int = 0) -> dict[str, Any]:
        """The bill as JSON: provider, then model, then `totals` and `requests`.

        Args:
            since_unix_ms: Leave out requests accepted before.

        Returns:
            `{"open_request_count": 0, "providers": {"openai": {"gpt-4o-mini": {"service": "llm",
            "totals": {unit: count}, "totals_with_generation_ahead": {...}, "requests": [row]}}}}`
        """
        rows = [row for row in self.rows if row.started_at_unix_ms >= since_unix_ms]
        providers: dict[str, dict[str, Any]] = {}
        for row in rows:
            of_model = providers.setdefault(row.provider, {}).setdefault(
                row.model,
                {
                    "service": row.service,
                    "totals": {},
                    "totals_with_generation_ahead": {},
                    "requests": [],
                },
            )
            _add(of_model["totals"], row.units.items())
            _add(
                of_model["totals_with_generation_ahead"], row.units_with_generation_ahead().items()
            )
            of_model["requests"].append(asdict(row))
        return {
            "open_request_count": sum(row.ended is None for row in rows),
            "providers": providers,
        }


def _add(totals: dict[str, int], units: Iterable[tuple[str, int]]) -> None:
    for unit, count in units:
        totals[unit] = totals.get(unit, 0) + count

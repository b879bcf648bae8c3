"""Our own price rows, as compiled from `data/*.yaml`, and which of them a leg falls under."""

from __future__ import annotations

import functools
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec

from voicecost_catalog.hosts import hostname, request_host
from voicecost_catalog.rates import ModelPrice, Rate, Rule
from voicecost_ledger.records import LegAttributes, Modality

COMPILED_PATH: Final = Path(__file__).with_name("prices.json")
UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Row(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """One dated price of one model on one plan. A new price is a new row; the old one stays."""

    model: str  # what people call it
    modality: Modality
    match: tuple[str, ...]  # model names as the plugin reports them; a final `*` matches the rest
    rule: Rule
    rates: dict[str, Rate]
    valid_from: date  # the first UTC day on which the price is known to hold
    valid_until: date | None = None  # the first UTC day on which it no longer does
    languages: tuple[str, ...] = ()  # only these; empty means any
    except_languages: tuple[str, ...] = ()
    streaming: bool | None = None  # None: streamed or not costs the same
    note: str = ""

    def covers(self, leg: LegAttributes) -> bool:
        """Whether the leg is of this row's service, whatever the date."""
        language = leg.language.lower()
        return (
            leg.modality == self.modality
            and (self.streaming is None or self.streaming == leg.streaming)
            and (not self.languages or language in self.languages)
            and language not in self.except_languages
            and any(_matches(name, leg.model.lower()) for name in self.match)
        )


class ProviderRows(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The rows of one provider, and how to know it."""

    provider: str
    plugin_names: tuple[str, ...]  # what LiveKit's plugins report as `provider`
    hosts: tuple[str, ...]  # whose bill this is; any other host needs an alias
    plan: str
    prices: tuple[Row, ...]

    def serves(self, leg: LegAttributes) -> bool:
        """Whether this provider bills for the leg, going by its host, or its name without one."""
        host = request_host(leg)
        if host:
            return hostname(host) in self.hosts
        return leg.provider.lower() in {name.lower() for name in self.plugin_names}


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """All of our rows."""

    newest: date  # when the newest rate was last compared with its source
    providers: tuple[ProviderRows, ...]

    @property
    def pricing_source(self) -> str:
        """`voicecost-catalog@2026-11-04`."""
        return f"voicecost-catalog@{self.newest.isoformat()}"


@functools.cache
def load_rows() -> Rows:
    """The rows this package was built with (`python -m voicecost_catalog.compile` makes them).

    Read once per process: LiveKit's forkserver does it for all its jobs.
    """
    return msgspec.json.decode(COMPILED_PATH.read_bytes(), type=Rows)


def row_price(row: Row, of: ProviderRows, *, channel_count: int, pricing_source: str) -> ModelPrice:
    """The row as a price for legs with so many channels billed apart."""
    return ModelPrice(
        provider=of.provider,
        model=row.model,
        modality=row.modality,
        rule=row.rule,
        pricing_source=pricing_source,
        rates=row.rates,
        channel_count=channel_count if row.rule is Rule.AUDIO else 1,
        plan=of.plan,
        valid_from=row.valid_from.isoformat(),
        valid_until=row.valid_until.isoformat() if row.valid_until else "",
        note=row.note,
    )


def midnight_unix_ms(day: date) -> int:
    """When that day begins in UTC."""
    return unix_ms(datetime(day.year, day.month, day.day, tzinfo=UTC))


def unix_ms(at: datetime) -> int:
    """An instant as whole milliseconds; `datetime.timestamp()` would go through a float."""
    return (at - UNIX_EPOCH) // timedelta(milliseconds=1)


def _matches(name: str, model: str) -> bool:
    return model.startswith(name[:-1]) if name.endswith("*") else model == name

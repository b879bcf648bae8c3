"""Our own price rows, as compiled from `data/*.yaml`, and which of them a leg falls under."""

from __future__ import annotations

import fnmatch
import functools
import os.path
import re
from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple

import msgspec

from voicecost_catalog.hosts import hostname, request_host
from voicecost_catalog.rates import Derived, Kind, ModelPrice, Rate, Rule
from voicecost_ledger.records import LegAttributes, Modality

# No pathlib here: every job imports this, and it would be a fifth of the time.
COMPILED_PATH: Final = os.path.join(os.path.dirname(__file__), "prices.json")
_NO_PROVIDER: Final = ("", "unknown")  # what a LiveKit plugin says that does not say
UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
ALWAYS: Final = (-(2**63), 2**63)
STANDARD_TIERS: Final = frozenset({"", "default", "standard", "auto", "on_demand"})
"""What providers call the service tier that a price without one is of."""
# A model as it was on a day: 2025-12-15 or 20251215, or 1106 without the year.
_SNAPSHOT: Final = re.compile(
    r"(.+)-(?:20[0-9]{2}(-?)(?:0[1-9]|1[0-2])\2|(?:0[1-9]|1[0-2]))(?:0[1-9]|[12][0-9]|3[01])"
)


class Dated(NamedTuple):
    """A price (None: not known) and the time for which that holds, the end not included."""

    price: ModelPrice | None
    from_unix_ms: int
    until_unix_ms: int


class Row(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """One dated price of one model on one plan. A new price is a new row; the old one stays."""

    model: str  # what people call it
    modality: Modality
    match: tuple[str, ...]  # model names as the plugin reports them; `*` stands for any text
    rule: Rule
    rates: dict[str, Rate]
    kind: Kind = Kind.BASE
    plan: str = ""  # "": the plan of the file
    valid_from: date | None = None  # first UTC day; None: the source names none, open to the past
    valid_until: date | None = None  # the first UTC day on which it no longer holds
    assumed: bool = False  # a date of validity is our reading, not the source's word
    derived: dict[str, Derived] = {}
    minimum_ms: int = 0
    step_ms: int = 1
    double_width_weight: int = 1
    free_markup: bool = False
    per_channel: bool = True  # False: two channels cost what one does
    except_models: tuple[str, ...] = ()  # of those that match, not these
    voices: tuple[str, ...] = ()  # only these, as in `match`; empty means any
    languages: tuple[str, ...] = ()  # only these; empty means any
    except_languages: tuple[str, ...] = ()
    direction: str = ""  # of a call: inbound or outbound
    prefixes: tuple[str, ...] = ()  # of the number that is called, as in +1800; the longest wins
    streaming: bool | None = None  # None: streamed or not costs the same
    addon: str = ""  # the option that costs this on top, where it is on
    service_tier: str = ""  # only this one, such as priority; "": the standard tiers alone
    note: str = ""

    @property
    def span_unix_ms(self) -> tuple[int, int]:
        """From when to when it holds, the end not included."""
        return (
            midnight_unix_ms(self.valid_from) if self.valid_from else ALWAYS[0],
            midnight_unix_ms(self.valid_until) if self.valid_until else ALWAYS[1],
        )

    def holds(self, at_unix_ms: int) -> bool:
        """Whether it is in force then."""
        begins, ends = self.span_unix_ms
        return begins <= at_unix_ms < ends

    def covers(self, leg: LegAttributes, *, addon: str = "") -> bool:
        """Whether the leg, or an option of it, is of this row's service, whatever the date."""
        language = leg.language.lower()
        return (
            leg.modality == self.modality
            and self.addon == addon
            and (self.streaming is None or self.streaming == leg.streaming)
            and self.service_tier == tier_name(leg.service_tier)
            and (not self.languages or language in self.languages)
            and language not in self.except_languages
            and (not self.voices or _any_matches(self.voices, leg.voice))
            and _any_matches(self.match, leg.model)
            and not _any_matches(self.except_models, leg.model)
        )


def tier_name(service_tier: str) -> str:
    """A service tier in lower case; "" for the standard one, whatever it is called."""
    name = service_tier.lower()
    return "" if name in STANDARD_TIERS else name


class ProviderRows(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The rows of one provider, and how to know it."""

    provider: str
    plugin_names: tuple[str, ...]  # what LiveKit's plugins report as `provider`
    hosts: tuple[str, ...]  # whose bill this is, perhaps at one port; others need an alias
    plan: str  # the one in force unless another is chosen
    prices: tuple[Row, ...]
    labels: tuple[str, ...] = ()  # classes of plugins that report no provider
    plan_names: dict[str, str] = {}  # plans that cost what another one does
    credit_usd: dict[str, tuple[int, int]] = {}  # plan to nano-USD for so many credits

    def serves(self, leg: LegAttributes) -> bool:
        """Whether this provider bills for the leg, going by its host, or its name without one."""
        host = request_host(leg)
        if host:
            return self._has_host(host) or self._has_host(hostname(host))
        name = leg.provider.strip().lower()
        if name in _NO_PROVIDER:
            return leg.label in self.labels
        return name == self.provider or name in {known.lower() for known in self.plugin_names}

    def _has_host(self, host: str) -> bool:
        """Whether the host is one of ours; `*.` stands for any name below it."""
        return host in self.hosts or any(
            known.startswith("*.") and host.endswith(known[1:]) for known in self.hosts
        )

    def plan_of(self, row: Row) -> str:
        """The plan whose price the row is."""
        return row.plan or self.plan

    @property
    def plans(self) -> tuple[str, ...]:
        """Every plan there are prices of, in order of the file."""
        return tuple(dict.fromkeys((self.plan, *(self.plan_of(row) for row in self.prices))))


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
    with open(COMPILED_PATH, "rb") as compiled:
        return msgspec.json.decode(compiled.read(), type=Rows)


def row_price(row: Row, of: ProviderRows, *, channel_count: int, pricing_source: str) -> ModelPrice:
    """The row as a price for legs with so many channels billed apart."""
    return ModelPrice(
        provider=of.provider,
        model=tier_model(row.model, row.service_tier),
        modality=row.modality,
        rule=row.rule,
        pricing_source=pricing_source,
        rates=row.rates,
        derived=row.derived,
        minimum_ms=row.minimum_ms,
        step_ms=row.step_ms,
        double_width_weight=row.double_width_weight,
        free_markup=row.free_markup,
        channel_count=channel_count if row.rule is Rule.AUDIO and row.per_channel else 1,
        plan=of.plan_of(row),
        valid_from=row.valid_from.isoformat() if row.valid_from else "",
        valid_until=row.valid_until.isoformat() if row.valid_until else "",
        kind=row.kind,
        assumed=row.assumed,
        note=row.note,
    )


def tier_model(model: str, tier: str) -> str:
    """What people call a model's price on a service tier, `gpt-5 (priority)`."""
    return f"{model} ({tier})" if tier else model


def dated_price(
    of: ProviderRows,
    leg: LegAttributes,
    at_unix_ms: int,
    *,
    plan: str,
    pricing_source: str,
    addon: str = "",
) -> Dated:
    """The first row of the plan that the leg, or an option of it, falls under at an instant.

    What a plan has no row of costs what it does on the plan of the file. A name with a date behind
    it is a snapshot of a model and costs what that does, unless a row names the snapshot itself.
    Snapshots of a language model may differ in price: genai-prices knows them.
    """
    snapshot = _SNAPSHOT.fullmatch(leg.model) if leg.modality is not Modality.LLM else None
    if snapshot and not any(row.covers(leg, addon=addon) for row in of.prices):
        leg = msgspec.structs.replace(leg, model=snapshot[1])
    start, until = ALWAYS
    for wanted in dict.fromkeys((plan, of.plan)):
        for row in of.prices:
            if of.plan_of(row) != wanted or not row.covers(leg, addon=addon):
                continue
            begins, ends = row.span_unix_ms
            if begins <= at_unix_ms < ends:
                price = row_price(
                    row, of, channel_count=leg.channel_count, pricing_source=pricing_source
                )
                return Dated(price, max(start, begins), min(until, ends))
            # Between dated rows nothing is known: remember that no longer than it is true.
            if ends <= at_unix_ms:
                start = max(start, ends)
            else:
                until = min(until, begins)
    return Dated(None, start, until)


def midnight_unix_ms(day: date) -> int:
    """When that day begins in UTC."""
    return unix_ms(datetime(day.year, day.month, day.day, tzinfo=UTC))


def unix_ms(at: datetime) -> int:
    """An instant as whole milliseconds; `datetime.timestamp()` would go through a float."""
    return (at - UNIX_EPOCH) // timedelta(milliseconds=1)


def _any_matches(patterns: tuple[str, ...], name: str) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in patterns)

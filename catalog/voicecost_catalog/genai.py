"""Prices from genai-prices as installed, one model at a time as exact integer rates.

What genai-prices says is taken as it stands in the package: its network updater is never started,
and a snapshot another library set is not used. Priced are models that bill by input and output
tokens, with what comes on top by request or by time of connection, and speech by the hour of audio
or the character alone; where it is silent or bills by something that legs do not count (audio sent
to a language model by the hour, messages, reasoning or citation tokens apart, no price at all), so
are we: its own arithmetic would give zero there.

Importing genai-prices takes a second and 30 MB: `GenaiPrices.load` belongs off the event loop.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from voicecost_catalog.hosts import hostname
from voicecost_catalog.rates import ModelPrice, Rate, Rule, Tier
from voicecost_catalog.rows import ALWAYS, UNIX_EPOCH, Dated, tier_model, tier_name, unix_ms
from voicecost_ledger.records import LegAttributes, Modality

if TYPE_CHECKING:
    from genai_prices.types import (
        ModelInfo,
        Provider,
        StartDateConstraint,
        TieredPrices,
        TimeOfDateConstraint,
    )
    from genai_prices.types import ModelPrice as GenaiModelPrice

# So many of a unit have its price. An hour of audio that is neither input nor output is one of
# an open connection: so bill the voice models that are listed with it.
_PER_PRICE: Final = {"mtok": 1_000_000, "kcount": 1_000, "hours": 3_600_000}
_UNITS: Final = {
    "input_mtok": "input_tokens",
    "cache_read_mtok": "cached_input_tokens",
    "cache_write_mtok": "cache_write_tokens",
    "output_mtok": "output_tokens",
    "input_audio_mtok": "input_audio_tokens",
    "cache_audio_read_mtok": "cached_input_audio_tokens",
    "output_audio_mtok": "output_audio_tokens",
    "input_image_mtok": "input_image_tokens",
    "cache_image_read_mtok": "cached_input_image_tokens",
    "requests_kcount": "requests",
    "audio_hours": "connected_ms",
}
# Prices that a conversation does not meet: pictures and films that are made, documents, tools run
# by the provider, a cache kept for an hour (plugins ask for the short one).
_NOT_MET: Final = re.compile(
    r"output_image|video|document|searches|cache_write_1h|cache_(audio|image|video)_write"
)
GENAI_MODALITIES: Final = (Modality.LLM, Modality.REALTIME, Modality.STT, Modality.TTS)
"""What genai-prices is asked for, where our own rows have no price."""
# What speech is billed by, the first key. A conversation is told by the messages it may be sent.
_SPEECH: Final[dict[Modality, tuple[tuple[str, ...], Rule, str, int]]] = {
    Modality.STT: (("input_audio_hours", "audio_hours"), Rule.AUDIO, "audio_ms", 3_600_000),
    Modality.TTS: (("input_mchars",), Rule.CHARACTERS, "characters", 1_000_000),
    Modality.REALTIME: (
        ("audio_hours", "input_text_messages_kcount"),
        Rule.SESSION,
        "connected_ms",
        3_600_000,
    ),
}


class GenaiPrices:
    """The prices of the installed genai-prices. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._providers: list[Provider] | None = None
        self._source = ""

    @property
    def loaded(self) -> bool:
        """Whether `load` has been done, so that a lookup is quick."""
        return self._providers is not None

    def load(self) -> list[Provider]:
        """Import genai-prices, once. Slow the first time; any thread may do it."""
        providers = self._providers
        if providers is not None:
            return providers
        with self._lock:
            if self._providers is None:
                from genai_prices import __version__
                from genai_prices.data import providers as bundled

                self._source = f"genai-prices@{__version__}"
                self._providers = bundled
            return self._providers

    def knows(self, provider: str) -> bool:
        """Whether there is a provider with exactly that id."""
        return any(known.id == provider for known in self.load())

    def provider_of(self, host: str) -> str:
        """The id of the provider whose API is at that host; "" where there is none."""
        found = self._provider(None, host)
        return found.id if found else ""

    def every_price(self, at_unix_ms: int) -> Iterator[ModelPrice]:
        """The standard prices of every model that has some at an instant."""
        for provider in self.load():
            for model in provider.models:
                for modality in GENAI_MODALITIES:
                    price = self._price_of(provider, model, modality, "", at_unix_ms).price
                    if price is not None and price.modality is modality:
                        yield price

    def price_for(
        self, leg: LegAttributes, *, provider: str | None, host: str, at_unix_ms: int
    ) -> Dated:
        """The price of a leg at an instant.

        Args:
            leg: Its model and service tier are looked up.
            provider: Exact id, when the operator or the record named one.
            host: Else the host that served the leg.
            at_unix_ms: When it started.
        """
        found = self._provider(provider, host) if leg.modality in GENAI_MODALITIES else None
        model = found.find_model(leg.model, all_providers=self.load()) if found else None
        if found is None or model is None:
            return Dated(None, *ALWAYS)
        return self._price_of(found, model, leg.modality, leg.service_tier, at_unix_ms)

    def _provider(self, provider_id: str | None, host: str) -> Provider | None:
        for provider in self.load():
            if provider_id is None:
                if host and _serves(provider.api_pattern, hostname(host)):
                    return provider
            elif provider.id == provider_id:
                return provider
        return None

    def _price_of(
        self,
        provider: Provider,
        model: ModelInfo,
        modality: Modality,
        service_tier: str,
        at_unix_ms: int,
    ) -> Dated:
        at = UNIX_EPOCH + timedelta(milliseconds=at_unix_ms)
        start_unix_ms, until_unix_ms = _unchanged_around(model, at)
        tier = tier_name(service_tier)
        price = None
        if not tier or _has_tier(model, tier, at):
            prices = model.get_prices(at, {"service_tier": tier} if tier else None)
            said = {
                "provider": provider.id,
                "model": tier_model(model.id, tier),
                "source_url": (provider.pricing_urls or [""])[0],
                "pricing_source": self._source,
                **_validity(model, tier, at),
            }
            if modality in (Modality.LLM, Modality.REALTIME):
                price = compile_price(prices, **said)
            if price is None and modality is not Modality.LLM:
                price = compile_speech(prices, modality, **said)
        return Dated(price, start_unix_ms, until_unix_ms)


def compile_price(
    prices: GenaiModelPrice,
    *,
    provider: str,
    model: str,
    source_url: str,
    pricing_source: str,
    valid_from: str = "",
    valid_until: str = "",
    note: str = "",
) -> ModelPrice | None:
    """The same prices as integers; None when they do not cover what an LLM leg counts."""
    listed: dict[str, Decimal | TieredPrices] = {
        key: price
        for key, price in vars(prices).items()
        if price is not None and not _NOT_MET.search(key)
    }
    if not {"input_mtok", "output_mtok"} <= listed.keys() <= _UNITS.keys():
        return None
    if prices.input_video_mtok not in (None, listed.get("input_image_mtok")):
        return None  # legs count the pictures of a video among the pictures

    def rates_above(input_tokens: int) -> dict[str, Rate]:
        rates: dict[str, Rate] = {}
        for key, price in listed.items():
            usd = price if isinstance(price, Decimal) else price.base
            for tier in () if isinstance(price, Decimal) else price.tiers:
                if input_tokens >= tier.start:
                    usd = tier.price
            nano_usd, per = (usd * 1_000_000_000).as_integer_ratio()
            of = _PER_PRICE[key.rpartition("_")[2]]
            rates[_UNITS[key]] = Rate(nano_usd=nano_usd, per=of * per, source_url=source_url)
        return rates

    starts = {
        tier.start
        for price in listed.values()
        if not isinstance(price, Decimal)
        for tier in price.tiers
    }
    return ModelPrice(
        provider=provider,
        model=model,
        modality=Modality.LLM,
        rule=Rule.TOKENS,
        pricing_source=pricing_source,
        rates=rates_above(-1),
        tiers=tuple(
            Tier(above_input_tokens=start, rates=rates_above(start)) for start in sorted(starts)
        ),
        valid_from=valid_from,
        valid_until=valid_until,
        note=note,
    )


def compile_speech(
    prices: GenaiModelPrice,
    modality: Modality,
    *,
    provider: str,
    model: str,
    source_url: str,
    pricing_source: str,
    valid_from: str,
    valid_until: str,
    note: str,
) -> ModelPrice | None:
    """The price of a model that bills by the hour or the character and nothing else, or None.

    Hours of what a recognizer hears are hours of audio; hours of a model that listens and speaks
    are those of its session, as every provider of one has it that our rows know.
    """
    listed = {key: price for key, price in vars(prices).items() if price is not None}
    keys, rule, unit, per = _SPEECH[modality]
    usd = listed.get(keys[0])
    if listed.keys() != set(keys) or not isinstance(usd, Decimal):
        return None
    if modality is Modality.REALTIME:
        note = f"each text message costs more, and is not counted. {note}".strip()
    nano_usd, parts = (usd * 1_000_000_000).as_integer_ratio()
    return ModelPrice(
        provider=provider,
        model=model,
        modality=modality,
        rule=rule,
        pricing_source=pricing_source,
        rates={unit: Rate(nano_usd=nano_usd, per=per * parts, source_url=source_url)},
        valid_from=valid_from,
        valid_until=valid_until,
        note=note,
    )


def _serves(api_pattern: str, host: str) -> bool:
    """Whether the pattern matches the whole host: `api.openai.com.evil.example` is not OpenAI."""
    url = f"https://{host}"
    matched = re.match(api_pattern, f"{url}/")
    if matched is None:
        return False
    rest = url[matched.end() :]
    # A few patterns end in a dot and leave the top-level domain open (`api\.moonshot\.`).
    return not rest or (
        matched.group().endswith(".") and re.fullmatch("[a-z]{2,}", rest) is not None
    )


def _has_tier(model: ModelInfo, service_tier: str, at: datetime) -> bool:
    return any(
        variant.when == {"service_tier": service_tier}
        and (variant.constraint is None or variant.constraint.active(at))
        for variant in model.price_variants or ()
    )


def _validity(model: ModelInfo, service_tier: str, at: datetime) -> dict[str, str]:
    """The days for which the price in force at `at` is listed, and a note of its hours.

    The last price whose day has come or whose hours these are is in force, else the first.
    """
    listed = model.prices if isinstance(model.prices, list) else []
    active = [
        position
        for position, one in enumerate(listed)
        if one.constraint is None or one.constraint.active(at)
    ]
    position = active[-1] if active else 0
    chosen, later = listed[position : position + 1], listed[position + 1 :]
    starts = [_start_day(one.constraint) for one in chosen]
    ends = [_start_day(one.constraint) for one in later]
    for variant in model.price_variants or ():
        if service_tier and variant.when == {"service_tier": service_tier}:
            begun = variant.constraint is None or variant.constraint.active(at)
            (starts if begun else ends).append(_start_day(variant.constraint))
    hours = "".join(f"{span} UTC every day" for one in chosen if (span := _hours(one.constraint)))
    others = " and ".join(span for one in later if (span := _hours(one.constraint)))
    return {
        "valid_from": max(starts, default=""),
        "valid_until": min(filter(None, ends), default=""),
        "note": hours or (f"not {others} UTC, when another price holds" if others else ""),
    }


def _start_day(constraint: StartDateConstraint | TimeOfDateConstraint | None) -> str:
    day = getattr(constraint, "start_date", None)
    return day.isoformat() if day is not None else ""


def _hours(constraint: StartDateConstraint | TimeOfDateConstraint | None) -> str:
    """`01:00 to 04:00`, in UTC."""
    edges = [getattr(constraint, f"{edge}_time", None) for edge in ("start", "end")]
    spans = [
        f"{datetime.combine(UNIX_EPOCH, edge, edge.tzinfo or UTC).astimezone(UTC):%H:%M}"
        for edge in edges
        if isinstance(edge, time)
    ]
    return " to ".join(spans)


def _unchanged_around(model: ModelInfo, at: datetime) -> tuple[int, int]:
    """The longest time around `at` in which no dated or daily price of the model begins or ends."""
    constraints = [variant.constraint for variant in model.price_variants or ()]
    if isinstance(model.prices, list):
        constraints += [conditional.constraint for conditional in model.prices]
    at_unix_ms = unix_ms(at)
    start, until = ALWAYS
    for change_unix_ms in _changes(constraints, at):
        if change_unix_ms <= at_unix_ms:
            start = max(start, change_unix_ms)
        else:
            until = min(until, change_unix_ms)
    return start, until


def _changes(
    constraints: Iterable[StartDateConstraint | TimeOfDateConstraint | None], at: datetime
) -> Iterable[int]:
    for constraint in constraints:
        if constraint is None:
            continue
        day = getattr(constraint, "start_date", None)
        if day is not None:
            yield unix_ms(datetime.combine(day, time(), tzinfo=UTC))
            continue
        for edge in (
            getattr(constraint, "start_time", None),
            getattr(constraint, "end_time", None),
        ):
            if not isinstance(edge, time):
                continue
            of_day = edge if edge.tzinfo else edge.replace(tzinfo=UTC)
            for days in (-1, 0, 1):
                yield unix_ms(datetime.combine((at + timedelta(days=days)).date(), of_day))

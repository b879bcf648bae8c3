"""The price book: which price a leg has, by what served it and when it started."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Final

import msgspec

from voicecost_catalog.genai import GENAI_MODALITIES, GenaiPrices
from voicecost_catalog.hosts import aliased_provider, check_host_aliases, request_host
from voicecost_catalog.names import full_name, same_model, vendor_and_models, vendor_id
from voicecost_catalog.overrides import CONTRACT, Overrides
from voicecost_catalog.rates import BILLED_UNITS, Kind, ModelPrice, Rate, Rule, restore_price
from voicecost_catalog.rows import (
    ALWAYS,
    Dated,
    ProviderRows,
    Row,
    Rows,
    dated_price,
    load_rows,
    row_price,
)
from voicecost_ledger.records import LegAttributes, Modality

# What a leg says of itself comes from outside: a bound keeps made-up models from filling memory.
_REMEMBERED_MAX: Final = 4096
_CHANNELS_MAX: Final = 64
_AT_UNIX_MS_MAX: Final = 250_000_000_000_000  # the year 9892, where Python's calendar nearly ends
_INFERENCE: Final = "livekit"  # its cloud; the models of LiveKit Inference are vendor/model
_OWN_SERVER: Final = "livekit-server"  # whatever is not in LiveKit's cloud
_OF_A_ROOM: Final = (Modality.PARTICIPANT, Modality.EGRESS)


class CatalogPriceBook:
    """Our dated rows, then genai-prices. Implements `voicecost_ledger.pricing.PriceBook`.

    Made by `open_price_book`. Safe to use from several threads.
    """

    def __init__(
        self,
        *,
        genai: bool,
        host_aliases: Mapping[str, str],
        plans: Mapping[str, str],
        overrides: Overrides,
    ) -> None:
        self._aliases = check_host_aliases(host_aliases)
        self._rows = load_rows()
        self._overrides = overrides
        self._plans = check_plans({**overrides.plans, **plans}, self._rows)
        for of in self._rows.providers:
            # Whoever says what a credit costs pays in credits.
            if of.provider in overrides.credit_usd and of.plan not in of.credit_usd:
                self._plans.setdefault(of.provider, next(iter(of.credit_usd), of.plan))
        self._genai = GenaiPrices() if genai else None
        self._remembered: dict[LegAttributes, Dated] = {}

    @property
    def ready(self) -> bool:
        """Whether any lookup is quick; False until `warm` is done."""
        return self._genai is None or self._genai.loaded

    def warm(self) -> None:
        """Load genai-prices (a second, 30 MB). Call it off the event loop, at start.

        Raises:
            ValueError: A host alias names a provider that has no prices.
        """
        if self._genai is not None:
            self._genai.load()
        ours = {rows.provider for rows in (*self._rows.providers, *self._overrides.rows)}
        for host, provider in self._aliases.items():
            if provider not in ours and not (self._genai and self._genai.knows(provider)):
                known = sorted(
                    ours.union(p.id for p in self._genai.load()) if self._genai else ours
                )
                raise ValueError(
                    f"host alias {host!r} names the provider {provider!r}, which has no prices: "
                    f"expected one of {', '.join(known)}"
                )

    def price_for(self, leg: LegAttributes, at_unix_ms: int) -> ModelPrice | None:
        """The price in force for such a leg at an instant, or None when none is known.

        Microseconds for a leg like one seen before. The first of its kind takes up to some
        milliseconds, and the first that our own rows do not price loads genai-prices unless `warm`
        has: on an event loop, ask `at_once`.
        """
        dated = self._remembered.get(leg)
        if dated is None or not dated.from_unix_ms <= at_unix_ms < dated.until_unix_ms:
            price, start, until = self._look_up(leg, at_unix_ms)
            dated = Dated(price, max(start, 0), min(until, _AT_UNIX_MS_MAX))
            if len(self._remembered) >= _REMEMBERED_MAX:
                self._remembered.clear()
            self._remembered[leg] = dated
        return dated.price

    def price_as_served(
        self, asked: LegAttributes, served: LegAttributes, at_unix_ms: int
    ) -> ModelPrice | None:
        """The price of a leg that something else served than was asked for; None: none is known.

        What served it is billed: a gateway's fallback, a service tier that was not full. But a
        contract's price for the name that was asked for is not lost to another name of the same
        model, such as its dated snapshot.
        """
        price = self.price_for(served, at_unix_ms)
        if not self._overrides.rows or _by_contract(price):
            return price
        by_asked_name = msgspec.structs.replace(served, model=asked.model)
        kept = self.price_for(by_asked_name, at_unix_ms)
        if _by_contract(kept) and self._is_one_model(by_asked_name, served, at_unix_ms):
            return kept
        return price

    @property
    def at_once(self) -> CatalogPriceBook:
        """The same book without ever loading anything: until `warm` is done, our own rows alone."""
        return self if self.ready else self._without_genai

    @functools.cached_property
    def _without_genai(self) -> CatalogPriceBook:
        return CatalogPriceBook(
            genai=False, host_aliases=self._aliases, plans=self._plans, overrides=self._overrides
        )

    def prices_of(self, name: str, at_unix_ms: int) -> list[ModelPrice]:
        """Every price in force of a model as people name it, for example `deepgram/nova-3`.

        One model may have several: by language, voice or service tier, streamed or not; what
        options cost on top comes last. Loads genai-prices.

        Args:
            name: Provider and model; what follows a colon may be a voice. LiveKit Inference's
                models are `livekit/vendor/model`.
            at_unix_ms: When.

        Returns:
            The prices, ours first; empty when none is known.
        """
        vendor, models = vendor_and_models(name)
        found: dict[str, ModelPrice] = {}
        addons: dict[str, ModelPrice] = {}
        for model in models:
            for leg in self._legs_of(vendor, model):
                price = self._look_up(leg, at_unix_ms).price
                if price is None:
                    continue
                found.setdefault(price.price_id, price)
                payer = self._payer(leg) or price.provider
                for addon in self._addons_of(payer):
                    on_top = self._addon_price(leg, addon, payer, at_unix_ms).price
                    if on_top is not None:
                        addons.setdefault(on_top.price_id, on_top)
            if found:
                break
        return [*found.values(), *addons.values()]

    def _legs_of(self, vendor: str, model: str) -> Iterator[LegAttributes]:
        """Legs of a model: of every kind, and as the rows of its provider tell them apart."""
        plain = LegAttributes(modality=Modality.OTHER, provider=vendor, model=model)
        for modality, streaming, language in product(Modality, (True, False), ("", "multi")):
            yield msgspec.structs.replace(
                plain, modality=modality, streaming=streaming, language=language
            )
        for of in (*self._overrides.rows, *self._rows.providers):
            for row in of.prices if of.serves(plain) else ():
                for language, voice in product(row.languages or ("",), row.voices or ("",)):
                    leg = msgspec.structs.replace(
                        plain,
                        modality=row.modality,
                        streaming=row.streaming is not False,
                        language=language,
                        voice=voice.replace("*", ""),
                        service_tier=row.service_tier,
                    )
                    if row.covers(leg):
                        yield leg

    def phone_leg(
        self,
        carrier: str,
        *,
        direction: str,
        number: str = "",
        number_type: str = "",
        country: str = "us",
    ) -> LegAttributes:
        """The attributes of a phone leg, ready for `price_for`: see `phones.phone_leg`.

        Args:
            carrier: Provider id, `twilio`; `livekit` for LiveKit's own numbers.
            direction: `inbound` or `outbound`.
            number: That is called, E.164.
            number_type: Instead: `local`, `tollfree`, `sip-interface` or `client`.
            country: Of `number_type`, two letters.
        """
        from voicecost_catalog import phones  # the sidecar alone needs it

        carrier = carrier.strip().lower()
        rows = [
            row
            for of in (*self._overrides.rows, *self._rows.providers)
            if of.provider == carrier
            for row in of.prices
        ]
        return phones.phone_leg(
            carrier,
            rows,
            direction=direction,
            number=number,
            number_type=number_type,
            country=country,
        )

    def every_price(self, at_unix_ms: int) -> Iterator[ModelPrice]:
        """Every price in force at an instant, on every plan, as listed or by contract.

        Loads genai-prices. What rates no leg (add-ons, fees) is left out.
        """
        for row, price in self._row_prices():
            if row.match and row.holds(at_unix_ms):
                yield price
        for price in self._genai.every_price(at_unix_ms) if self._genai else ():
            if price.modality is Modality.LLM or not self._is_ours(price, at_unix_ms):
                yield self._overrides.changed(price, price.provider, {})

    def own_prices(self) -> list[ModelPrice]:
        """Every row of whatever day, by contract first; what rates no leg is included."""
        return [price for _, price in self._row_prices()]

    def _row_prices(self) -> Iterator[tuple[Row, ModelPrice]]:
        for of in self._overrides.rows:
            for row in of.prices:
                pricing_source = self._overrides.pricing_source
                yield row, row_price(row, of, channel_count=1, pricing_source=pricing_source)
        for of in self._rows.providers:
            for row in of.prices:
                pricing_source = self._rows.pricing_source
                price = row_price(row, of, channel_count=1, pricing_source=pricing_source)
                yield row, self._overrides.changed(price, of.provider, of.credit_usd)

    def restore(self, document: bytes) -> ModelPrice:
        """The price a ledger stored, equal to the one it was taken from.

        Raises:
            ValueError: The document is no price, was altered, or is of a newer version.
        """
        return restore_price(document)

    def _is_ours(self, price: ModelPrice, at_unix_ms: int) -> bool:
        """Whether a row of our own comes before what genai-prices says of that speech."""
        leg = LegAttributes(modality=price.modality, provider=price.provider, model=price.model)
        found = self._listed(leg, price.provider, at_unix_ms).price
        return found is None or found.pricing_source != price.pricing_source

    def _look_up(self, leg: LegAttributes, at_unix_ms: int) -> Dated:
        if not 1 <= leg.channel_count <= _CHANNELS_MAX or not 0 <= at_unix_ms < _AT_UNIX_MS_MAX:
            return Dated(None, at_unix_ms, at_unix_ms)  # a record out of its mind: never remembered
        payer = self._payer(leg)
        start, until = ALWAYS
        for named in dict.fromkeys((leg, _by_full_name(leg, payer))):
            for given in self._overrides.rows:
                if given.provider == payer or (payer is None and given.serves(leg)):
                    dated = dated_price(
                        given,
                        named,
                        at_unix_ms,
                        plan=given.plan,
                        pricing_source=self._overrides.pricing_source,
                    )
                    if dated.price is not None:
                        return self._with_addons(dated, leg, given.provider, at_unix_ms)
                    start, until = max(start, dated.from_unix_ms), min(until, dated.until_unix_ms)
        price, listed_from, listed_until = self._listed(leg, payer, at_unix_ms)
        if price is not None and self._overrides:
            payer = payer or price.provider
            rows = self._provider_rows(payer)
            price = self._overrides.changed(price, payer, rows.credit_usd if rows else {})
        dated = Dated(price, max(start, listed_from), min(until, listed_until))
        return self._with_addons(dated, leg, payer, at_unix_ms)

    def _with_addons(
        self, dated: Dated, leg: LegAttributes, payer: str | None, at_unix_ms: int
    ) -> Dated:
        """The price with what options of the leg cost on top, where they are billed apart."""
        price, start, until = dated
        if price is None or not leg.addons:
            return dated
        unit = "" if price.rule is Rule.TOKENS else BILLED_UNITS[price.rule][0][0]
        addons: dict[str, Rate] = {}
        pricing_source = price.pricing_source
        for name in leg.addons:
            found, begins, ends = self._addon_price(leg, name, payer, at_unix_ms)
            start, until = max(start, begins), min(until, ends)
            if found is None:
                continue
            if unit not in found.rates:  # not free, and no one unit has both
                return Dated(None, start, until)
            addons[name] = msgspec.structs.replace(found.rates[unit], kind=Kind.ADDON)
            if found.pricing_source.startswith("config@"):
                pricing_source = found.pricing_source
        if addons:
            price = msgspec.structs.replace(
                price, addons=addons, pricing_source=pricing_source, price_id=""
            )
        return Dated(price, start, until)

    def _addon_price(
        self, leg: LegAttributes, addon: str, payer: str | None, at_unix_ms: int
    ) -> Dated:
        """What one option of such a leg costs, by contract or as listed."""
        start, until = ALWAYS
        listed = self._provider_rows(payer)
        given = [of for of in self._overrides.rows if of.provider == payer]
        for of in (*given, *([listed] if listed else [])):
            dated = dated_price(
                of,
                leg,
                at_unix_ms,
                plan=self._plans.get(of.provider, of.plan) if of is listed else of.plan,
                pricing_source=(self._rows if of is listed else self._overrides).pricing_source,
                addon=addon,
            )
            start, until = max(start, dated.from_unix_ms), min(until, dated.until_unix_ms)
            if dated.price is not None:
                price = dated.price
                if of is listed:
                    price = self._overrides.changed(price, of.provider, of.credit_usd)
                return Dated(price, start, until)
        return Dated(None, start, until)

    def _is_one_model(self, one: LegAttributes, other: LegAttributes, at_unix_ms: int) -> bool:
        """Whether two legs that differ in the model's name are of the same model."""
        if same_model(one.model, other.model):
            return True
        listed, other_listed = (
            self._listed(leg, self._payer(leg), at_unix_ms).price for leg in (one, other)
        )
        # A name that no list has is the operator's own, for whatever it stands for: a deployment.
        return listed is None or (other_listed is not None and listed.model == other_listed.model)

    def _payer(self, leg: LegAttributes) -> str | None:
        """Who bills for the leg; None where only genai-prices may know it."""
        alias = aliased_provider(self._aliases, leg)
        if alias:
            return alias
        host = request_host(leg)
        if host and leg.modality in _OF_A_ROOM:
            cloud = self._provider_rows(_INFERENCE)
            return _INFERENCE if cloud and cloud.serves(leg) else _OWN_SERVER
        serving = [
            rows for rows in (*self._rows.providers, *self._overrides.rows) if rows.serves(leg)
        ]
        for rows in serving:
            if host in rows.hosts:  # named with its port: before whoever has the whole host
                return rows.provider
        if serving:
            return serving[0].provider
        if host and self._genai and leg.modality in GENAI_MODALITIES:
            return self._genai.provider_of(host) or None
        return None

    def _addons_of(self, provider: str) -> list[str]:
        """Which options that provider bills apart."""
        rows = (*self._overrides.rows, *self._rows.providers)
        names = [row.addon for of in rows if of.provider == provider for row in of.prices]
        return [name for name in dict.fromkeys(names) if name]

    def _provider_rows(self, provider: str | None) -> ProviderRows | None:
        return next((rows for rows in self._rows.providers if rows.provider == provider), None)

    def _listed(self, leg: LegAttributes, payer: str | None, at_unix_ms: int) -> Dated:
        """What the price lists say, ours first."""
        leg = _by_full_name(leg, payer)
        rows = self._provider_rows(payer)
        dated = Dated(None, *ALWAYS)
        if rows is not None:
            dated = dated_price(
                rows,
                leg,
                at_unix_ms,
                plan=self._plans.get(rows.provider, rows.plan),
                pricing_source=self._rows.pricing_source,
            )
            if dated.price is not None:
                return dated
            if rows.provider == _INFERENCE:
                return _within(dated, self._vendor_price(leg, at_unix_ms))
        if self._genai is None or leg.modality not in GENAI_MODALITIES:
            return dated
        host = request_host(leg)
        named = payer or ("" if host else leg.provider.strip().lower())
        if host and not aliased_provider(self._aliases, leg) and not self._genai.knows(named):
            named = ""
        found = self._genai.price_for(leg, provider=named or None, host=host, at_unix_ms=at_unix_ms)
        return _within(dated, found)

    def _vendor_price(self, leg: LegAttributes, at_unix_ms: int) -> Dated:
        """What the vendor itself asks, where LiveKit Inference's own rate is not known."""
        vendor, slash, model = leg.model.partition("/")
        vendor = vendor_id(vendor)
        if not slash or vendor == _INFERENCE:
            return Dated(None, *ALWAYS)
        of_vendor = msgspec.structs.replace(leg, provider=vendor, model=model, host="")
        dated = self._listed(of_vendor, self._payer(of_vendor), at_unix_ms)
        if dated.price is None:
            return dated
        price = msgspec.structs.replace(
            dated.price,
            note=f"{vendor}'s own price: LiveKit Inference's is not known. {dated.price.note}",
            price_id="",
        )
        return dated._replace(price=price)


def _by_contract(price: ModelPrice | None) -> bool:
    return price is not None and price.plan == CONTRACT


def _by_full_name(leg: LegAttributes, payer: str | None) -> LegAttributes:
    """The leg with its provider's own name of the model, where it gives a shorter one."""
    model = full_name(payer or leg.provider.strip().lower(), leg.model)
    return leg if model == leg.model else msgspec.structs.replace(leg, model=model)


def _within(before: Dated, found: Dated) -> Dated:
    """What was found, for no longer than what comes before it says nothing."""
    return Dated(
        found.price,
        max(before.from_unix_ms, found.from_unix_ms),
        min(before.until_unix_ms, found.until_unix_ms),
    )


def open_price_book(
    *,
    genai: bool = True,
    host_aliases: Mapping[str, str] | None = None,
    plans: Mapping[str, str] | None = None,
    overrides: Overrides | None = None,
) -> CatalogPriceBook:
    """The prices this installation knows: our dated rows, then genai-prices.

    Cheap: genai-prices is loaded by `warm`, or by the first leg that no row prices.

    Args:
        genai: False leaves what no row prices, nearly all LLMs, unpriced and never loads
            genai-prices.
        host_aliases: Who bills for requests to a host that is no provider's own (a gateway, a
            proxy, a simulator): host, with or without port, to provider id, for example
            `{"127.0.0.1:4010": "openai"}`. Without one such requests stay unpriced.
        plans: Provider id to the plan that is paid for, `{"livekit": "scale"}`; the plan that the
            provider's file names otherwise. They win over those of `overrides`.
        overrides: What the operator's contracts say, `override_file.read_prices(...)`.

    Raises:
        ValueError: An alias is not of that form, or there are no prices of a plan.
    """
    return CatalogPriceBook(
        genai=genai,
        host_aliases=host_aliases or {},
        plans=plans or {},
        overrides=overrides or Overrides(),
    )


def check_plans(plans: Mapping[str, str], rows: Rows) -> dict[str, str]:
    """The same plans by the names that rows have for them.

    Raises:
        ValueError: There are no prices of a plan; says which there are.
    """
    known = {of.provider: of for of in rows.providers}
    checked: dict[str, str] = {}
    for provider, plan in plans.items():
        of = known.get(provider)
        if of is None:
            expected = ", ".join(known)
            raise ValueError(
                f"plan {plan!r} of {provider!r}: no such provider: expected one of {expected}"
            )
        names = (*of.plans, *of.plan_names)
        if plan not in names:
            expected = ", ".join(names)
            raise ValueError(f"plan {plan!r} of {provider!r} has no prices: expected {expected}")
        checked[provider] = of.plan_names.get(plan, plan)
    return checked

"""Reads of `voicecost.yaml` what decides prices: the operator's contracts, and who bills.

    host_aliases: {llm.internal: openai}  # who bills for requests to a host of one's own
    prices:
      plans: {livekit: scale}
      discounts: {deepgram: 12.5}      # percent off the list price
      credit_usd: {elevenlabs: 0.00015}  # what a credit costs by contract
      rows:                            # prices of one's own, as in the catalog's files
        - {provider: assemblyai, model: universal-streaming, modality: stt, rule: session,
           rates: {connected_ms: {usd: 0.0020, per: minute}}}
      display_currency: {code: EUR, per_usd: 0.92}

Numbers keep the digits they are written with, `${NAME}` is replaced from the environment, and
every refusal names file, line and field. Needs ruamel.yaml, as `compile` does.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final, cast

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from voicecost_catalog.book import check_plans
from voicecost_catalog.currency import DisplayCurrency
from voicecost_catalog.genai import GenaiPrices
from voicecost_catalog.hosts import check_host_aliases
from voicecost_catalog.overrides import CONTRACT, Overrides, Ratio
from voicecost_catalog.rates import Kind
from voicecost_catalog.row_reader import CatalogError, RowReader, no_day_in, no_yaml
from voicecost_catalog.rows import ProviderRows, load_rows

SECTION: Final = "prices"
ALIASES: Final = "host_aliases"
_KEYS: Final = ("plans", "discounts", "credit_usd", "rows", "display_currency")
_CURRENCY_KEYS: Final = ("code", "per_usd")
_OF_THE_PROVIDER: Final = ("provider", "plugin_names", "hosts")
_OWN_SOURCE: Final[dict[str, Any]] = {"source_url": "", "source_date": None, "checked_on": None}
_WHOLE_NUMBERS: Final = ("minimum_ms", "step_ms", "double_width_weight")
_NUMBER_TAGS: Final = ("tag:yaml.org,2002:float", "tag:yaml.org,2002:int")
_TEXT_TAG: Final = "tag:yaml.org,2002:str"
_NULL_TAG: Final = "tag:yaml.org,2002:null"
_PERCENT_DIGITS_MAX: Final = 6
_HOST: Final = re.compile(r"[^\s/]+")
_Place = tuple[Any, str, str]  # the node that a key stands in, the key, and the field of the node


class PriceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What `host_aliases:` and `prices:` say."""

    host_aliases: dict[str, str] = {}
    overrides: Overrides = Overrides()
    display_currency: DisplayCurrency | None = None


class _ProviderEntry(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a row that are its provider's."""

    provider: str
    plugin_names: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()


def read_prices(file: Path, environ: Mapping[str, str] | None = None) -> PriceSettings:
    """What a file says of prices; nothing where it says none.

    Raises:
        CatalogError: The file cannot be read, or what it says is wrong.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise CatalogError(file, 0, "file", f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CatalogError(file, 0, "file", "is not UTF-8 text") from None
    return parse_prices(text, file, environ)


def read_sections(file: Path) -> dict[str, int]:
    """The keys at the top of a file, each with its line."""
    yaml: Any = YAML(typ="rt", pure=True)
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"))
    except YAMLError:
        return {}  # whoever reads the section says what is wrong
    return {
        str(key.value): key.start_mark.line + 1
        for key, _ in (root.value if root is not None and root.id == "mapping" else ())
    }


def parse_prices(text: str, file: Path, environ: Mapping[str, str] | None = None) -> PriceSettings:
    """The same of a text that was read from `file`."""
    environ = os.environ if environ is None else environ
    try:
        sections = _sections(text, file, environ)
    except CatalogError:
        raise
    except ValueError:
        raise no_day_in(text, file) from None
    except RecursionError:
        raise CatalogError(file, 0, "yaml", "a value refers to itself") from None
    except YAMLError as error:
        raise no_yaml(error, text, file) from None
    return _Reader(file).read(sections)


def _sections(text: str, file: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    yaml: Any = YAML(typ="rt", pure=True)  # Any: ruamel.yaml is half typed
    root = yaml.compose(text)
    found: dict[str, Any] = {}
    for key, value in root.value if root is not None and root.id == "mapping" else ():
        if key.value in (SECTION, ALIASES):
            if value.id != "mapping":
                allowed = f" ({', '.join(_KEYS)})" if key.value == SECTION else " and their values"
                line = key.start_mark.line + 1
                raise CatalogError(file, line, key.value, f"expected keys{allowed}")
            if key.value in found:
                line = key.start_mark.line + 1
                raise CatalogError(file, line, key.value, "given twice: keep one")
            _keep_digits(value, key.value, file, environ)
            found[key.value] = yaml.constructor.construct_document(value)
    return found


def _keep_digits(node: Any, field: str, file: Path, environ: Mapping[str, str]) -> None:
    """Numbers become the text they are written as, and `${NAME}` what the environment says."""
    if node.id == "mapping":
        for key, value in node.value:
            if str(key.value) not in _WHOLE_NUMBERS:
                _keep_digits(value, f"{field}.{key.value}", file, environ)
    elif node.id == "sequence":
        for index, value in enumerate(node.value):
            _keep_digits(value, f"{field}[{index}]", file, environ)
    else:

        def expand(match: re.Match[str]) -> str:
            value = environ.get(match[1])
            if value is None:
                problem = f"the environment variable {match[1]} is not set"
                raise CatalogError(file, node.start_mark.line + 1, field, problem)
            return value

        node.value = re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", expand, node.value)
        if str(node.tag) in _NUMBER_TAGS:
            node.tag = _TEXT_TAG


class _Reader:
    def __init__(self, file: Path) -> None:
        self._reader = RowReader(
            file,
            section=f"{SECTION}.rows",
            unsourced={**_OWN_SOURCE, "via": file.name},
            around=_OF_THE_PROVIDER,
        )
        self._in_credits: set[str] = set()  # providers with rows that are

    def read(self, sections: Mapping[str, Any]) -> PriceSettings:
        host_aliases: dict[str, str] = {}
        for host, provider, at in self._entries(sections, ALIASES, ALIASES):
            try:
                host_aliases |= check_host_aliases({host: provider})
            except ValueError as error:
                self._reader.fail(*at, str(error))
        tree = sections.get(SECTION, {})
        self._known(tree, SECTION, _KEYS)
        return PriceSettings(
            host_aliases=host_aliases,
            overrides=self._overrides(tree),
            display_currency=self._currency(tree),
        )

    def _overrides(self, tree: Any) -> Overrides:
        credit_usd: dict[str, Ratio] = {}
        for provider, usd, at in self._entries(tree, "credit_usd", f"{SECTION}.credit_usd"):
            node, key, where = at
            credit_usd[provider] = self._reader.nano_usd(node, usd, where, key=key)
            if not credit_usd[provider][0]:
                self._reader.fail(*at, "a credit costs more than nothing")
        rows = self._rows(tree, credit_usd)
        own = load_rows()
        known = {of.provider for of in own.providers} | {of.provider for of in rows}
        in_credits = {of.provider: of for of in own.providers if of.credit_usd}
        for provider, _, at in self._entries(tree, "credit_usd", f"{SECTION}.credit_usd"):
            if provider not in in_credits and provider not in self._in_credits:
                names = ", ".join(sorted({*in_credits, *self._in_credits}))
                self._reader.fail(*at, f"no provider prices in credits but {names}")
        discounts: dict[str, Ratio] = {}
        for provider, percent, at in self._entries(tree, "discounts", f"{SECTION}.discounts"):
            # Only a name that is not ours is worth the second that genai-prices takes to load.
            if provider not in known and not GenaiPrices().knows(provider):
                names = ", ".join(sorted(known))
                problem = f"no prices of that provider: expected one of genai-prices' or {names}"
                self._reader.fail(*at, problem)
            discounts[provider] = self._share(percent, at)
        plans: dict[str, str] = {}
        for provider, plan, at in self._entries(tree, "plans", f"{SECTION}.plans"):
            try:
                plans |= check_plans({provider: plan}, own)
            except ValueError as error:
                self._reader.fail(*at, str(error))
            of = in_credits.get(provider)
            if of and provider in credit_usd and plans[provider] not in of.credit_usd:
                problem = f"{plan!r} is not paid in credits, and credit_usd says what one costs"
                expected = f"expected one of {', '.join(of.credit_usd)}, or neither"
                self._reader.fail(*at, f"{problem}: {expected}")
        return Overrides(rows=rows, discounts=discounts, plans=plans, credit_usd=credit_usd)

    def _rows(self, tree: Any, credit_usd: Mapping[str, Ratio]) -> tuple[ProviderRows, ...]:
        nodes: Any = tree.get("rows", [])
        if not isinstance(nodes, list):
            self._reader.fail(tree, "rows", SECTION, "expected a list of prices")
        found: dict[str, ProviderRows] = {}
        own = {of.provider: of for of in load_rows().providers}
        for index, node in enumerate(cast("list[Any]", nodes)):
            where = f"{SECTION}.rows[{index}]"
            fields = dict(self._reader.mapping(node, where, parent=tree, key="rows"))
            entry = self._reader.convert(node, _ProviderEntry, where)
            if "match" not in fields and isinstance(fields.get("model"), str):
                node["match"] = [fields["model"].lower()]
            name = entry.provider.strip().lower()
            if not name:
                self._reader.fail(node, "provider", where, "is empty: expected a provider's name")
            for host in entry.hosts:
                if not _HOST.fullmatch(host):
                    problem = (
                        f"{host!r} is no host: expected as in stt.internal:8080, no scheme or path"
                    )
                    self._reader.fail(node, "hosts", where, problem)
            listed = own.get(name)
            held = found.get(name) or ProviderRows(
                provider=name,
                plugin_names=listed.plugin_names if listed else (),
                hosts=listed.hosts if listed else (),
                plan=CONTRACT,
                prices=(),
                labels=listed.labels if listed else (),
            )
            if "plan" in fields:
                problem = "a price by contract holds on whatever plan: leave it"
                self._reader.fail(node, "plan", where, problem)
            credit = {CONTRACT: credit_usd[name]} if name in credit_usd else {}
            read = self._reader.rows(node, index, credit)
            if any("credits" in rate for rate in fields["rates"].values()):
                self._in_credits.add(name)
            for row in read:
                row = msgspec.structs.replace(row, plan="")
                kinds = (Kind.BASE, Kind.SUPERSEDED, Kind.SELF_HOSTED)
                if row.kind not in kinds and not row.addon:
                    self._reader.fail(
                        node, "kind", where, "a price by contract rates legs: leave it"
                    )
                if not row.match:
                    problem = "a price by contract rates legs: name its models, `*` for any"
                    self._reader.fail(node, "match", where, problem)
                self._reader.check(row, held, index, node, earlier=held.prices)
                held = msgspec.structs.replace(
                    held,
                    plugin_names=(*held.plugin_names, *entry.plugin_names),
                    hosts=(*held.hosts, *(host.lower() for host in entry.hosts)),
                    prices=(*held.prices, row),
                )
            found[name] = held
        return tuple(found.values())

    def _share(self, percent: str, at: _Place) -> Ratio:
        """What is paid of a price, as a fraction, with so many percent off."""
        try:
            off = Decimal(percent.removesuffix("%").strip())
            digits = -int(off.as_tuple().exponent)
        except (InvalidOperation, ValueError):
            off, digits = Decimal(-1), 0
        if not 0 <= off <= 100 or digits > _PERCENT_DIGITS_MAX:
            problem = f"{percent!r} is no discount: expected 0 to 100 percent, such as 12.5"
            self._reader.fail(*at, problem)
        paid, of = (100 - off).as_integer_ratio()
        common = math.gcd(paid, of * 100)
        return paid // common, of * 100 // common

    def _entries(self, tree: Any, key: str, where: str) -> Iterator[tuple[str, str, _Place]]:
        """Name in lower case, text and place of each line below a key."""
        if key not in tree:
            return
        node = self._reader.mapping(tree[key], where, parent=tree, key=key)
        seen: set[str] = set()
        for name, value in node.items():
            at = node, str(name), where
            if not isinstance(value, str):
                self._reader.fail(*at, "expected one value")
            if str(name).lower() in seen:
                self._reader.fail(*at, "given twice: keep one")
            seen.add(str(name).lower())
            yield str(name).lower(), str(value), at

    def _currency(self, tree: Any) -> DisplayCurrency | None:
        if "display_currency" not in tree:
            return None
        where = f"{SECTION}.display_currency"
        node = self._reader.mapping(
            tree["display_currency"], where, parent=tree, key="display_currency"
        )
        self._known(node, where, _CURRENCY_KEYS)
        given = {key: str(node.get(key) or "") for key in _CURRENCY_KEYS}
        for key in _CURRENCY_KEYS:
            if not given[key]:
                self._reader.fail(
                    node, key, where, f"missing: expected {', '.join(_CURRENCY_KEYS)}"
                )
        try:
            return DisplayCurrency.of(given["code"], given["per_usd"])
        except ValueError as error:
            key = "code" if "code" in str(error).split(":")[0] else "per_usd"
            self._reader.fail(node, key, where, str(error))

    def _known(self, node: Any, where: str, allowed: Sequence[str]) -> None:
        for key in node:
            if key not in allowed:
                problem = f"unknown key: allowed here are {', '.join(allowed)}"
                self._reader.fail(node, str(key), where, problem)

"""What the application decided: checked here, once, so that nothing below has to ask again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, cast
from urllib.parse import urlsplit

import msgspec

from voicecost_ledger.money import parse_usd
from voicecost_ledger.records import OnBudget

from ._attributes import plain
from ._ending import WRAP_UP_TEXT
from ._job import under_pytest
from ._room_messages import PublishTo

MAX_NAME_LENGTH: Final = 128
MAX_TAG_COUNT: Final = 16
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"", "0", "false", "no", "off"})


class Budget:
    """What one call may cost.

    Args:
        limit_usd: US dollars as `str`, `Decimal` or `int`; a float is refused, because most cents
            have no exact float. 0 is a limit too: only what is known to be free runs.
        warn_at_percent: The share of the limit, 1 to 100, at which `meter.on("budget", ...)` hears
            a warning.

    Raises:
        TypeError: `limit_usd` is a float or no number, or `warn_at_percent` no whole number.
        ValueError: One of them is out of its range.
    """

    __slots__ = ("_limit_nano_usd", "_warn_at_percent")

    def __init__(self, limit_usd: str | Decimal | int, *, warn_at_percent: int = 80) -> None:
        self._limit_nano_usd = parse_usd(limit_usd, name="limit_usd")
        if isinstance(warn_at_percent, bool) or not isinstance(warn_at_percent, int):
            raise TypeError(
                f"warn_at_percent={warn_at_percent!r} is a {type(warn_at_percent).__name__}: "
                "give a whole number of percent, for example 80"
            )
        if not 1 <= warn_at_percent <= 100:
            raise ValueError(f"{warn_at_percent=} is out of range: expected 1 to 100")
        self._warn_at_percent = warn_at_percent

    @property
    def limit_nano_usd(self) -> int:
        """The limit in nano-USD."""
        return self._limit_nano_usd

    @property
    def warn_at_percent(self) -> int:
        """The share of the limit at which to warn."""
        return self._warn_at_percent

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Budget) and (
            (self._limit_nano_usd, self._warn_at_percent)
            == (other._limit_nano_usd, other._warn_at_percent)
        )

    def __hash__(self) -> int:
        return hash((self._limit_nano_usd, self._warn_at_percent))

    def __repr__(self) -> str:
        usd = Decimal(self._limit_nano_usd).scaleb(-9).normalize()
        return f'Budget("{usd:f}", warn_at_percent={self._warn_at_percent})'


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A `VoiceCost`'s arguments and environment, checked. `url` None: the embedded ledger."""

    project: str = "default"
    budget: Budget | None = None
    agent: str | None = None
    tenant: str | None = None
    tags: dict[str, str] = {}
    on_budget: OnBudget = OnBudget.WRAP_UP
    wrap_up_text: str = WRAP_UP_TEXT
    publish_to: PublishTo = "none"
    url: str | None = None
    enabled: bool = True
    log_costs: bool = False


def check_budget(budget: Any) -> Budget | None:
    """A budget as `VoiceCost` takes it: None, a `Budget`, or US dollars per call."""
    if budget is None or isinstance(budget, Budget):
        return budget
    parse_usd(budget, name="budget")  # first, so that an error names what the caller wrote
    return Budget(budget)


def check_name(value: object, name: str) -> str:
    """A name that goes into the ledger: 1 to 128 printable characters."""
    if not isinstance(value, str):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: expected a string")
    if not value or len(value) > MAX_NAME_LENGTH or not value.isprintable():
        raise ValueError(
            f"{name}={value!r} is no name: expected 1 to {MAX_NAME_LENGTH} printable characters"
        )
    return plain(value)


def check_tags(tags: Any) -> dict[str, str]:
    """At most 16 tags, names and values as in `check_name`."""
    if not isinstance(tags, Mapping):
        raise TypeError(
            f"tags={tags!r} is a {type(tags).__name__}: expected a mapping of strings to strings"
        )
    entries = cast("Mapping[object, object]", tags)
    if len(entries) > MAX_TAG_COUNT:
        raise ValueError(f"tags has {len(entries)} entries: expected at most {MAX_TAG_COUNT}")
    return {
        check_name(name, "a name in tags"): check_name(value, f"tags[{name!r}]")
        for name, value in entries.items()
    }


def check_on_budget(value: object) -> OnBudget:
    """One of the three things that can happen at the end of a budget."""
    try:
        return OnBudget(value)
    except ValueError:
        raise ValueError(
            f"on_budget={value!r} is unknown: expected "
            + ", ".join(f'"{each.value}"' for each in OnBudget)
        ) from None


def check_wrap_up_text(value: object) -> str:
    """The last sentence; ours when None."""
    if value is None:
        return WRAP_UP_TEXT
    if not isinstance(value, str):
        raise TypeError(f"wrap_up_text={value!r} is a {type(value).__name__}: expected a string")
    if not value.strip():
        raise ValueError(
            'wrap_up_text is empty: to hang up without a sentence, use on_budget="end"'
        )
    return value


def check_publish_to(value: Any) -> PublishTo:
    """Who is told: nobody, everybody, or whom a callable picks."""
    if callable(value) or value in ("none", "all"):
        return cast("PublishTo", value)
    raise ValueError(
        f'publish_to={value!r} is unknown: expected "none", "all", or a callable that takes a '
        "participant and says whether it is told"
    )


def ledger_url(url: object) -> str | None:
    """The sidecar's address: the argument, else `VOICECOST_URL`; None for the embedded ledger.

    Under pytest the variable does not count: a test run is nobody's call, unless `url=` asks.
    """
    if url is None:
        url, name = os.environ.get("VOICECOST_URL") or None, "VOICECOST_URL"
        if url is None or under_pytest():
            return None
    else:
        name = "url"
    if not isinstance(url, str):
        raise TypeError(f"{name}={url!r} is a {type(url).__name__}: expected a string")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https", "ws", "wss") or not parts.hostname:
        raise ValueError(
            f"{name}={_without_secrets(url)!r} is no sidecar's address: expected for example "
            '"http://127.0.0.1:8787"'
        )
    return url


def _without_secrets(url: str) -> str:
    """`url` as it may be shown: without user and password, and without its query."""
    scheme, slashes, rest = url.partition("?")[0].rpartition("//")
    return f"{scheme}{slashes}{rest.rpartition('@')[2]}"


def env_flag(name: str) -> bool:
    """An environment variable that is on or off; anything else is an error, not a guess."""
    value = os.environ.get(name, "").strip().lower()
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise ValueError(f"{name}={value!r} is neither on nor off: expected 1 or 0")

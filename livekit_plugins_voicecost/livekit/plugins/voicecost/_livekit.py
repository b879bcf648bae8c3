"""How LiveKit is laid out: what differs in the versions we know, and what one we do not know lacks.

The metering stands on private names. Whoever observes something says first which ones it needs, so
that a version in which one has moved is never half observed.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable, Mapping
from typing import Any, Final

import livekit.agents
from livekit.agents import JobContext, get_job_context
from livekit.agents.metrics import base as metrics
from livekit.agents.voice import SpeechHandle

from voicecost_ledger._version import __version__

_MAY_BE_ASKED_ANYWHERE: Final = "required" in inspect.signature(get_job_context).parameters


def versions() -> dict[str, str]:
    """The versions that a meter's first record names."""
    return {"livekit-agents": livekit.agents.__version__, "voicecost": __version__}


class Moved(Exception):
    """This LiveKit is not laid out as we know it; the arguments are the names that are gone."""


def require(
    holder: type[Any],
    *,
    has: Iterable[str] = (),
    sets: Iterable[str] = (),
    calls: Mapping[str, str] | None = None,
) -> None:
    """Look for private names of a class of LiveKit's.

    Args:
        holder: The class.
        has: Methods and properties.
        sets: Attributes of its instances: they are looked for in the code of `__init__`.
        calls: Methods that are called, by the method whose code calls them.

    Raises:
        Moved: Some are gone.
    """
    gone = [name for name in has if not hasattr(holder, name)]
    gone += [name for name in sets if name not in _named_in(holder, "__init__")]
    for caller, called in (calls or {}).items():
        # A caller that is gone tells nothing.
        if not hasattr(holder, called) or (
            hasattr(holder, caller) and called not in _named_in(holder, caller)
        ):
            gone.append(called)
    if gone:
        raise Moved(*(f"{holder.__name__}.{name}" for name in gone))


def _named_in(holder: type[Any], method: str) -> set[str]:
    """The names that a method's code uses, in the functions inside it as well."""
    code = getattr(inspect.unwrap(getattr(holder, method)), "__code__", None)
    codes: list[types.CodeType] = [] if code is None else [code]
    names: set[str] = set()
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return names


def reports(metrics_name: str) -> bool:
    """Whether this LiveKit has such metrics, and so what they tell of: older ones have neither."""
    return hasattr(metrics, metrics_name)


def running_job() -> JobContext | None:
    """The job around the running code, or None outside of one."""
    if _MAY_BE_ASKED_ANYWHERE:
        return get_job_context(required=False)
    try:
        return get_job_context()  # 1.5 knows no other way
    except RuntimeError:
        return None


def failed(speech: SpeechHandle) -> bool:
    """Whether a speech that is over failed. LiveKit 1.5 does not tell: then it did not."""
    error = getattr(speech, "exception", None)
    return error is not None and error() is not None

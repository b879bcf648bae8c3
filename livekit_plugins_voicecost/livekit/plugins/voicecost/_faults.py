"""Our own faults, contained: the call goes on, the fault is counted, and said once per kind.

The message names the kind and the exception's type, never its text: texts quote what was being
processed, and agent logs are uploaded with recordings. The count is also the Prometheus metric
`voicecost_meter_faults_total`, which LiveKit's worker serves with its own. In our own tests, with
`VOICECOST_RAISE_FAULTS=1`, a fault raises instead.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from .log import logger

if TYPE_CHECKING:
    from prometheus_client import Counter as PrometheusCounter

_counts: Counter[str] = Counter()
# Faults after which every request is still metered.
_NOT_OF_METERING: Final = frozenset(
    {
        "adoption", "checkpoint", "checkpoint_send", "connection", "control_total", "ending",
        "listener", "room_message", "server_message",
    }
)  # fmt: skip
_lock = threading.Lock()
_metric: PrometheusCounter | None = None


def count(kind: str, error: BaseException | None = None) -> None:
    """Count a fault of ours that was contained; call it inside `except Exception`.

    Args:
        kind: One of a few fixed words: where it happened, e.g. `llm_chunk`.
        error: What was caught, for the type in the log message.

    Raises:
        BaseException: `error` itself, only under pytest with `VOICECOST_RAISE_FAULTS=1`.
    """
    with _lock:
        _counts[kind] += 1
        first = _counts[kind] == 1
        with suppress(Exception):  # a disk that is full, a registry that has one of that name
            _expose(kind)
    if first:
        logger.error(
            "a fault in voicecost's metering was contained; the call goes on, but its cost may be "
            "understated. Please report it.",
            extra={"fault": kind, "error_type": type(error).__name__ if error else None},
        )
    raising = os.environ.get("VOICECOST_RAISE_FAULTS") == "1"
    if error is not None and raising and "PYTEST_CURRENT_TEST" in os.environ:
        raise error


def _expose(kind: str) -> None:
    """Count it for Prometheus too; made with the first fault, for in a job it opens a file."""
    global _metric
    if _metric is None:
        from prometheus_client import Counter as PrometheusCounter  # LiveKit's worker has it loaded

        _metric = PrometheusCounter(
            "voicecost_meter_faults", "Faults in voicecost's metering, all contained.", ["kind"]
        )
    _metric.labels(kind=kind).inc()


@contextmanager
def contained(kind: str) -> Generator[None]:
    """Contain and count a fault of the code inside; cancellation passes through."""
    try:
        yield
    except Exception as error:
        count(kind, error)


def metering_count() -> int:
    """How many faults were contained so far that may have cost a call some of its usage."""
    with _lock:
        return sum(n for kind, n in _counts.items() if kind not in _NOT_OF_METERING)


def counts() -> dict[str, int]:
    """How often each kind of fault was contained in this process."""
    with _lock:
        return dict(_counts)

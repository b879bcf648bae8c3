"""Counters for Prometheus: the ledger's own, and what this process did. No label names a person."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

METRICS_CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

Numbers = Callable[[], Mapping[str, int]]


class Metrics:
    """Renders whatever its sources count at the moment they are asked.

    Args:
        counters: Sources of numbers that only grow, by prefix of their names.
        gauges: Sources of numbers that come and go, likewise.
    """

    def __init__(self, *, counters: Mapping[str, Numbers], gauges: Mapping[str, Numbers]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Sources(counters, gauges))

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self._registry)


class _Sources(Collector):
    def __init__(self, counters: Mapping[str, Numbers], gauges: Mapping[str, Numbers]) -> None:
        self._counters = counters
        self._gauges = gauges

    def describe(self) -> Iterator[Metric]:
        """Nothing: the registry would read the ledger at registration to learn the names."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """One family per number."""
        for prefix, numbers in self._counters.items():
            for name, value in numbers().items():
                yield CounterMetricFamily(
                    f"voicecost_{prefix}_{name}", _help(prefix, name), value=value
                )
        for prefix, numbers in self._gauges.items():
            for name, value in numbers().items():
                yield GaugeMetricFamily(
                    f"voicecost_{prefix}_{name}", _help(prefix, name), value=value
                )


def _help(prefix: str, name: str) -> str:
    return f"voicecost {prefix}: {name.replace('_', ' ')}"

"""Counters and histograms of a program that counts in one thread, for prometheus_client to show.

The library's own take a lock for every step and look at every bucket for every value: a tenth of
the leader's time, for some thirty of them in each transaction. These are a number in a dict, and a
search in a sorted list. What is shown is the same.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector, CollectorRegistry

Labels = tuple[str, ...]
"""The values of a family's labels, in their order; `()` where it has none."""


class Counts(Collector):
    """Counters of one name, one for each of `series`, which are shown from the beginning."""

    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        meaning: str,
        labels: Sequence[str] = (),
        series: Sequence[Labels] = ((),),
    ) -> None:
        self._name, self._meaning, self._labels = name, meaning, tuple(labels)
        self._counts = dict.fromkeys(series, 0)
        registry.register(self)

    def add(self, series: Labels = (), count: int = 1) -> None:
        self._counts[series] += count

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._meaning, labels=self._labels)
        for series, count in self._counts.items():
            family.add_metric(series, count)
        yield family


class Durations(Collector):
    """Histograms of one name, one for each of `series`; `bounds` are in seconds, ascending."""

    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        meaning: str,
        bounds: Sequence[float],
        labels: Sequence[str] = (),
        series: Sequence[Labels] = ((),),
    ) -> None:
        self._name, self._meaning, self._labels = name, meaning, tuple(labels)
        self._bounds = tuple(bounds)
        self._shown_bounds = [*(str(bound) for bound in bounds), "+Inf"]
        self._rows = {one: [*(0 for _ in self._shown_bounds), 0.0] for one in series}
        """The counts, and behind them the sum."""
        registry.register(self)

    def observe(self, seconds: float, series: Labels = (), count: int = 1) -> None:
        """It took so long, `count` times."""
        row = self._rows[series]
        row[bisect_left(self._bounds, seconds)] += count
        row[-1] += seconds * count

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._meaning, labels=self._labels)
        for series, (*counts, total) in self._rows.items():
            below, buckets = 0.0, []
            for bound, count in zip(self._shown_bounds, counts, strict=True):
                below += count
                buckets.append((bound, below))
            family.add_metric(series, buckets, total)
        yield family

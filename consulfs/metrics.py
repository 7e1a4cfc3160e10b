"""What a mount has done, counted. What is counted elsewhere is asked for when somebody wants to know.

Owner of everything here: prometheus_client, whose metrics have a lock each.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from typing import Any, Callable, Optional
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest

disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotation. Else each series is there twice

_ONE_WORD = ("config", "discovery-chain", "kv", "query", "snapshot", "txn")
"""Endpoints whose second word is what is asked for."""

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The counters of one mount."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._seconds = Histogram(
            "consulfs_request_seconds",
            "Time that requests to Consul took, but for those that wait for a change.",
            ["kind"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._errors = Counter(
            "consulfs_request_errors",
            "Requests that Consul answered with an error status, or not at all (none).",
            ["kind", "status"],
            registry=self.registry,
        )
        self._waits = Gauge("consulfs_watches", "Requests under way that wait for a change.", registry=self.registry)
        self._failures = Counter(
            "consulfs_operation_errors",
            "Operations of programs that were answered with an error.",
            ["operation", "errno"],
            registry=self.registry,
        )

    def asked(self, method: str, uri: str) -> Callable[[Optional[int]], None]:
        """A request begins; what this gives is called with its status (None: no answer) when it ends."""
        kind, waits = kind_of(method, uri)
        start = time.monotonic()
        if waits:
            self._waits.inc()

        def ended(status: Optional[int]) -> None:
            if waits:
                self._waits.dec()
            else:
                self._seconds.labels(kind).observe(time.monotonic() - start)
            if status is None or (status >= 400 and status != 404):
                self._errors.labels(kind, str(status or "none")).inc()

        return ended

    def failed(self, operation: str, code: int) -> None:
        """An operation was answered with an errno."""
        self._failures.labels(operation, errno.errorcode.get(code, str(code))).inc()

    def gauge(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        """Show a number that is kept elsewhere, and may go down."""
        Gauge(name, meaning, registry=self.registry).set_function(read)

    def counter(self, name: str, meaning: str, read: Callable[[], dict[str, float]]) -> None:
        """Show numbers by cache that are kept elsewhere, and only grow."""
        self.registry.register(_Kept(name, meaning, read))

    def text(self) -> str:
        """All of it, as OpenMetrics has it."""
        text: bytes = generate_latest(self.registry)  # type: ignore[no-untyped-call]  # it has no annotation
        return text.decode()

    def summary(self) -> dict[str, Any]:
        """All of it but the histograms' buckets, by name and label."""
        summary: dict[str, Any] = {}
        for family in self.registry.collect():
            for sample in family.samples:
                if sample.name.endswith("_bucket"):
                    continue
                number = float(sample.value)  # a collector may give an int, which has no is_integer before Python 3.12
                value = int(number) if number.is_integer() else number
                if sample.labels:
                    summary.setdefault(sample.name, {})[" ".join(sample.labels.values())] = value
                else:
                    summary[sample.name] = value
        return summary


class _Kept:
    """A collector of numbers that are kept elsewhere."""

    def __init__(self, name: str, meaning: str, read: Callable[[], dict[str, float]]) -> None:
        self._name, self._meaning, self._read = name, meaning, read

    def describe(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self._name, self._meaning, labels=["cache"])

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._meaning, labels=["cache"])
        for cache, value in self._read().items():
            family.add_metric([cache], value)
        yield family


def kind_of(method: str, uri: str) -> tuple[str, bool]:
    """The method and the endpoint of a request, without what is named there; and whether it waits for a change."""
    parts = urlsplit(uri)
    words = parts.path.split("/v1/", 1)[-1].split("/")
    endpoint = words[0] if words[0] in _ONE_WORD else "/".join(words[:2])
    waits = any(pair.startswith(("index=", "hash=")) for pair in parts.query.split("&"))
    return f"{method} {endpoint}", waits

"""Prometheus: what engines do, beside Dask's own metrics at ``/metrics``.

Only where ``prometheus_client`` is installed, as for Dask's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

__all__ = ["Measured", "add", "remove"]


class Measured(NamedTuple):
    """The numbers of one engine."""

    engine: str
    worker: str
    #: calls by status, and ``seconds``
    totals: dict[str, Any]
    waiting: int
    names: int
    nbytes: int


Source = Callable[[], Iterable[Measured]]

_sources: list[Source] = []


class _Collector:
    """Asks every source of this process when Prometheus asks."""

    def describe(self) -> list[Any]:
        return []  # else it would be asked for its metrics at once

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        # a scheduler and its workers may share a process: each engine is told of once
        rows = {(row.worker, row.engine): row for source in list(_sources) for row in source()}
        labels = ["engine", "worker"]
        calls = CounterMetricFamily(
            "pxcompat_calls", "Requests that an engine has ended", labels=[*labels, "status"]
        )
        seconds = CounterMetricFamily(
            "pxcompat_call_seconds", "Time that an engine's requests took", labels=labels
        )
        gauges = {
            "waiting": GaugeMetricFamily(
                "pxcompat_waiting_calls", "Requests that wait on an engine", labels=labels
            ),
            "names": GaugeMetricFamily("pxcompat_names", "Names on an engine", labels=labels),
            "nbytes": GaugeMetricFamily(
                "pxcompat_names_bytes", "Bytes of the names on an engine", labels=labels
            ),
        }
        for row in rows.values():
            where = [row.engine, row.worker]
            for status in ("ok", "error", "aborted"):
                calls.add_metric([*where, status], row.totals[status])
            seconds.add_metric(where, row.totals["seconds"])
            for name, gauge in gauges.items():
                gauge.add_metric(where, getattr(row, name))
        return iter([calls, seconds, *gauges.values()])


_collector = _Collector()


def add(source: Source) -> None:
    """Have a source asked; nothing without ``prometheus_client``."""
    try:
        from prometheus_client import REGISTRY
    except ImportError:
        return
    if not _sources:
        REGISTRY.register(_collector)
    _sources.append(source)


def remove(source: Source) -> None:
    """Ask a source no more."""
    if source in _sources:
        from prometheus_client import REGISTRY

        _sources.remove(source)
        if not _sources:
            REGISTRY.unregister(_collector)

"""ipyparallel, and pxcompat by the same calls."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..functions import nothing, wait


class Views:
    def __init__(self, package: str, **options: Any) -> None:
        self._ipp: Any = importlib.import_module(package)
        self._options = options
        self.rc: Any = None
        self._cluster: Any = None

    def start(self, n: int) -> None:
        self._cluster = self._ipp.Cluster(n=n, log_level=40, **self._options)
        self.rc = self._cluster.start_and_connect_sync(activate=False)
        self._everywhere = self.rc[:]
        self._first = self.rc[0]
        self._anywhere = self.rc.load_balanced_view()
        self.all()

    def stop(self) -> None:
        rc, cluster, self.rc, self._cluster = self.rc, self._cluster, None, None
        if rc is not None:
            rc.close()
        if cluster is not None:
            cluster.stop_cluster_sync()

    def one(self) -> None:
        self._first.apply_sync(nothing)

    def all(self) -> None:
        self._everywhere.apply_sync(nothing)

    def execute_all(self) -> None:
        self._everywhere.execute("x = 1", block=True).get()

    def burst(self, count: int) -> None:
        for result in [self._first.apply_async(nothing, n) for n in range(count)]:
            result.get()

    def balanced(self) -> None:
        self._anywhere.apply_sync(nothing)

    def map(self, function: Callable[..., Any], items: Sequence[Any]) -> None:
        self._anywhere.map_sync(function, items)

    def waits(self, count: int, seconds: float) -> None:
        self.map(wait, [seconds] * count)

    def as_they_come(self, function: Callable[..., Any], items: Sequence[Any]) -> Iterator[Any]:
        return iter(self._anywhere.map_async(function, items, ordered=False))

    def push(self, array: Any, engines: int) -> None:
        self.rc[:engines].push({"array": array}, block=True)

    def pull(self, array: Any) -> None:
        assert len(self._first.pull("array", block=True)) == len(array)

    def scatter(self, array: Any) -> None:
        # not with block=True: ipyparallel then waits for nothing
        self._everywhere.scatter("part", array, block=False).get()

    def gather(self, array: Any) -> None:
        assert len(self._everywhere.gather("part", block=True)) == len(array)


class Pxcompat(Views):
    def crowd(self, n: int) -> tuple[Any, Any]:
        """A client of so many simulated engines, and what ends it and them."""
        from ..crowd import Crowd

        crowd = Crowd(n)
        try:
            client = self._ipp.Client(crowd.info, timeout=60)
        except BaseException:
            crowd.close()
            raise

        def close() -> None:
            client.close()
            crowd.close()

        return client, close


def make(name: str) -> Views:
    if name == "ipyparallel":
        return Views("ipyparallel")
    return Pxcompat("pxcompat", backend=name.partition("-")[2])

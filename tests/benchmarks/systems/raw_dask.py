"""Dask's own calls: actors, or tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from distributed import Client, LocalCluster, as_completed

from ..functions import nothing, wait


class Actor:
    array: Any

    def call(self, x: Any = None) -> Any:
        return x

    def bind(self, array: Any) -> None:
        self.array = array

    def fetch(self) -> Any:
        return self.array


class Base:
    _client: Any = None
    _cluster: Any = None

    def start(self, n: int) -> None:
        self._cluster = LocalCluster(n_workers=n, threads_per_worker=1, dashboard_address=None)
        self._client = Client(self._cluster, set_as_default=True)
        self._client.wait_for_workers(n)
        self._workers = list(self._client.scheduler_info(n_workers=-1)["workers"])
        self.all()

    def stop(self) -> None:
        client, cluster, self._client, self._cluster = self._client, self._cluster, None, None
        if client is not None:
            client.close()
        if cluster is not None:
            cluster.close()

    def all(self) -> None:
        raise NotImplementedError


class Actors(Base):
    """``Client.submit(cls, actor=True)`` and calls of its methods."""

    def start(self, n: int) -> None:
        self._actors: list[Any] = []
        super().start(n)

    def all(self) -> None:
        if not self._actors:
            make = [
                self._client.submit(Actor, actor=True, workers=[worker], pure=False)
                for worker in self._workers
            ]
            self._actors = [future.result() for future in make]
        for call in [actor.call() for actor in self._actors]:
            call.result()

    def one(self) -> None:
        self._actors[0].call().result()

    def burst(self, count: int) -> None:
        for call in [self._actors[0].call(n) for n in range(count)]:
            call.result()

    def push(self, array: Any, engines: int) -> None:
        for call in [actor.bind(array) for actor in self._actors[:engines]]:
            call.result()

    def pull(self, array: Any) -> None:
        assert len(self._actors[0].fetch().result()) == len(array)


class Tasks(Base):
    """``Client.submit`` and ``Client.map``."""

    def all(self) -> None:
        self._client.gather(
            [self._client.submit(nothing, workers=[w], pure=False) for w in self._workers]
        )

    def one(self) -> None:
        self._client.submit(nothing, workers=self._workers[:1], pure=False).result()

    def burst(self, count: int) -> None:
        submit = self._client.submit
        where = self._workers[:1]
        self._client.gather([submit(nothing, n, workers=where, pure=False) for n in range(count)])

    def balanced(self) -> None:
        self._client.submit(nothing, pure=False).result()

    def map(self, function: Callable[..., Any], items: Sequence[Any]) -> None:
        self._client.gather(self._client.map(function, items, pure=False))

    def waits(self, count: int, seconds: float) -> None:
        self.map(wait, [seconds] * count)

    def as_they_come(self, function: Callable[..., Any], items: Sequence[Any]) -> Iterator[Any]:
        futures = self._client.map(function, items, pure=False)
        return (result for _, result in as_completed(futures, with_results=True))


def make(name: str) -> Base:
    return Actors() if name == "dask-actor" else Tasks()

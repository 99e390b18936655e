"""Ray's own calls: actors, each taking the calls of a map in turn, and its object store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from ..functions import nothing, wait


class Engine:
    array: Any

    def nothing(self) -> None:
        """The least that a call of an actor can be."""

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)

    def bind(self, array: Any) -> None:
        self.array = array

    def fetch(self) -> Any:
        return self.array


class Actors:
    def start(self, n: int) -> None:
        # not a cluster that somebody else started on this machine
        ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        cls: Any = ray.remote(num_cpus=0)(Engine)
        self._actors = [cls.remote() for _ in range(n)]
        self._function = ray.put(nothing)
        self.all()

    def stop(self) -> None:
        ray.shutdown()

    def one(self) -> None:
        ray.get(self._actors[0].nothing.remote())

    def all(self) -> None:
        ray.get([actor.nothing.remote() for actor in self._actors])

    def burst(self, count: int) -> None:
        ray.get([self._actors[0].call.remote(self._function, n) for n in range(count)])

    def balanced(self) -> None:
        self.one()

    def _map(self, function: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        # in turn: Ray has no scheduler for the calls of actors
        sent = ray.put(function)
        actors = self._actors
        return [actors[i % len(actors)].call.remote(sent, item) for i, item in enumerate(items)]

    def map(self, function: Callable[..., Any], items: Sequence[Any]) -> None:
        ray.get(self._map(function, items))

    def waits(self, count: int, seconds: float) -> None:
        self.map(wait, [seconds] * count)

    def as_they_come(self, function: Callable[..., Any], items: Sequence[Any]) -> Iterator[Any]:
        waiting = self._map(function, items)
        while waiting:
            done, waiting = ray.wait(waiting)
            yield from ray.get(done)

    def push(self, array: Any, engines: int) -> None:
        reference = ray.put(array)
        ray.get([actor.bind.remote(reference) for actor in self._actors[:engines]])

    def pull(self, array: Any) -> None:
        assert len(ray.get(self._actors[0].fetch.remote())) == len(array)


def make(name: str) -> Actors:
    return Actors()

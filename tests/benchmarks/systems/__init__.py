"""The systems that are measured, one process each; imported in that process alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

__all__ = ["NAMES", "System", "load"]

#: name to module; each has a function ``make``
NAMES = {
    "ipyparallel": "views",
    "pxcompat-dask": "views",
    "pxcompat-ray": "views",
    "dask-actor": "raw_dask",
    "dask-submit": "raw_dask",
    "ray-actor": "raw_ray",
    "processes": "processes",
}


class System(Protocol):
    """A cluster of ``n`` engines and a client of it.

    A system lacks a method where it has nothing of that kind; then the series is left out for it.
    """

    def start(self, n: int) -> None:
        """Start a cluster and return when every engine has answered once."""

    def stop(self) -> None:
        """End what runs of it, if anything does."""

    def one(self) -> None:
        """A trivial call on one engine."""

    def all(self) -> None:
        """A trivial call on every engine."""

    def execute_all(self) -> None:
        """A line of code on every engine."""

    def burst(self, count: int) -> None:
        """``count`` calls to one engine, all sent before the first is waited for."""

    def balanced(self) -> None:
        """A trivial call on any engine."""

    def map(self, function: Callable[..., Any], items: Sequence[Any]) -> None:
        """A call for each item on any engine; all results are there at the end."""

    def waits(self, count: int, seconds: float) -> None:
        """So many calls on any engine, each asleep for so long."""

    def as_they_come(self, function: Callable[..., Any], items: Sequence[Any]) -> Any:
        """An iterator over the results of such a map, in the order in which they come."""

    def push(self, array: Any, engines: int) -> None:
        """Bind an array on so many engines."""

    def pull(self, array: Any) -> None:
        """Fetch what :meth:`push` has bound from one engine."""

    def scatter(self, array: Any) -> None: ...

    def gather(self, array: Any) -> None: ...


def load(name: str) -> System:
    """The system of that name."""
    module = importlib.import_module(f"{__name__}.{NAMES[name]}")
    system: System = module.make(name)
    return system

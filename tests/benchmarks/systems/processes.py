"""Processes that were told beforehand what to do: what a machine allows at most."""

from __future__ import annotations

from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from ..functions import wait


def serve(orders: Connection) -> None:
    """Sleep as often and as long as each order says, and say so, until there are no more."""
    while (order := orders.recv()) is not None:
        count, seconds = order
        for _ in range(count):
            wait(seconds)
        orders.send(count)


class Processes:
    """No scheduler and no calls: each process has its share of the work before it begins."""

    def __init__(self) -> None:
        self._started: list[tuple[Any, Connection]] = []

    def start(self, n: int) -> None:
        context = get_context("spawn")
        for _ in range(n):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there,), daemon=True)
            process.start()
            there.close()
            self._started.append((process, here))
        self.waits(n, 0)

    def stop(self) -> None:
        for process, orders in self._started:
            orders.send(None)
            process.join()
        self._started.clear()

    def waits(self, count: int, seconds: float) -> None:
        n = len(self._started)
        for index, (_, orders) in enumerate(self._started):
            orders.send((len(range(index, count, n)), seconds))
        for _, orders in self._started:
            orders.recv()


def make(name: str) -> Processes:
    return Processes()

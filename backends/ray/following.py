"""Engines on every node of a Ray that somebody else runs, as its nodes come and go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

import ray

__all__ = ["Follower", "share", "wants"]

log = logging.getLogger("pxcompat.ray")

#: seconds between two looks at the cluster
PERIOD = 1
#: seconds between two wishes for more room, at most, where no node has come for them
LONGEST = 60


def wants(actor: Mapping[str, Any]) -> dict[str, float]:
    """What an engine of these options takes of a node: a CPU at least, or a machine would have
    any number of them."""
    cpus, gpus = actor.get("num_cpus") or 1, actor.get("num_gpus") or 0
    return {"CPU": cpus, "GPU": gpus, **(actor.get("resources") or {})}


def share(node: Mapping[str, Any], actor: Mapping[str, Any]) -> int:
    """How many engines fit on a node, if nobody else were there.

    Parameters
    ----------
    node
        As ``ray.nodes()`` has it.
    actor
        Ray's options of an engine.
    """
    has = node["Resources"]
    return min(int(has.get(name, 0) // amount) for name, amount in wants(actor).items() if amount)


class Follower:
    """Starts engines on nodes that come, and asks for more nodes while balanced calls wait.

    Parameters
    ----------
    actor : dict
        Ray's options of an engine.
    start : callable
        Starts engines on the node of an id: ``start(count, node)``.
    waiting : callable
        How many balanced calls no engine has room for.
    """

    def __init__(
        self,
        actor: Mapping[str, Any],
        start: Callable[[int, str], list[str]],
        waiting: Callable[[], int],
    ) -> None:
        self._actor = actor
        self._start = start
        self._waiting = waiting
        self._known: set[str] = set()
        #: tasks that want what an engine wants, for an autoscaler to see
        self._wishes: list[Any] = []
        self._pause = PERIOD
        self._wait = 0

    async def look(self) -> list[str]:
        """Start engines on nodes that have come; the engines' keys."""
        nodes = await asyncio.to_thread(ray.nodes)
        alive = {node["NodeID"]: node for node in nodes if node["Alive"]}
        new = alive.keys() - self._known
        self._known = set(alive)
        if new:
            self._pause = PERIOD
        keys = []
        for node in new:
            if count := share(alive[node], self._actor):
                keys += self._start(count, node)
        return keys

    async def follow(self) -> None:
        """Go on looking."""
        while True:
            await asyncio.sleep(PERIOD)
            try:
                await self.look()
                self._wish()
            except Exception:
                log.exception("the nodes of the cluster could not be looked at; trying again")

    def _wish(self) -> None:
        """Have tasks wait for room as long as calls wait: what Ray's autoscaler goes by."""
        wanted = min(self._waiting(), max(1, len(self._known)))
        _, self._wishes = (
            ray.wait(self._wishes, num_returns=len(self._wishes), timeout=0)
            if self._wishes
            else ([], [])
        )
        if not wanted:
            for wish in self._wishes:
                ray.cancel(wish)
            self._wishes, self._pause, self._wait = [], PERIOD, 0
            return
        self._wait -= PERIOD
        if self._wait > 0:
            return
        self._wait = self._pause
        self._pause = min(2 * self._pause, LONGEST)

        def room() -> None:
            """Needs nothing but its place."""

        options = {"num_cpus": 1, **self._actor, "name": "px:more-room", "max_retries": 0}
        for _ in range(wanted - len(self._wishes)):
            self._wishes.append(ray.remote(room).options(**options).remote())

    def stop(self) -> None:
        """Want nothing more."""
        for wish in self._wishes:
            ray.cancel(wish)
        self._wishes = []

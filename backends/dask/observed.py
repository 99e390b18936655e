"""An engine as others look at it: answers for the monitor, and metrics of its worker."""

from __future__ import annotations

import asyncio
from typing import Any

from distributed import Worker

from pxcompat.engine import names
from pxcompat.engine.runtime import Engine

from . import metrics
from .wire import encodable

__all__ = ["Observed"]

#: names that are told, the largest; how many there are is told besides
NAMES = 200
#: waiting calls that are told by name
WAITING = 20
#: seconds to look at an engine's names, some of which may take their time to say how large they are
PATIENCE = 2


class Observed:
    """Tells of an engine to whoever asks; nothing is sent unasked but eight numbers a heartbeat.

    Parameters
    ----------
    worker : distributed.Worker
    engine : Engine
    """

    def __init__(self, worker: Worker, engine: Engine) -> None:
        self._worker = worker
        self._engine = engine
        self._sized_at = -1
        self._size = (0, 0)
        self._sizing: asyncio.Future[tuple[int, int]] | None = None
        tasks = engine.tasks
        self._metrics = {
            # as columns of the Workers page, and in the scheduler's /metrics
            "px engine": lambda worker: -1 if engine.id is None else engine.id,
            "px ok": lambda worker: tasks.journal.totals()["ok"],
            "px failed": lambda worker: tasks.journal.totals()["error"],
            "px aborted": lambda worker: tasks.journal.totals()["aborted"],
            "px seconds": lambda worker: tasks.journal.totals()["seconds"],
            "px waiting": lambda worker: len(tasks.activity(tasks.journal.index)["queue"]),
            "px names": self._count,
            "px names bytes": self._bytes,
        }

    def install(self) -> None:
        self._worker.handlers["pxcompat_observe"] = self.observe
        # another dict: a heartbeat may be halfway through this one
        self._worker.metrics = {**self._worker.metrics, **self._metrics}
        metrics.add(self._measured)

    def remove(self) -> None:
        self._worker.handlers.pop("pxcompat_observe", None)
        others = self._worker.metrics.items()
        self._worker.metrics = {name: m for name, m in others if name not in self._metrics}
        metrics.remove(self._measured)

    def _measured(self) -> list[metrics.Measured]:
        engine, tasks = self._engine, self._engine.tasks
        totals = tasks.journal.totals()
        waiting = len(tasks.activity(tasks.journal.index)["queue"])
        return [
            metrics.Measured(str(engine.id), self._worker.address, totals, waiting, *self._size)
        ]

    async def _sizes(self) -> tuple[int, int]:
        """Number and bytes of the engine's names; looked at again when calls have ended since."""
        index = self._engine.tasks.journal.index
        if index != self._sized_at:
            if self._sizing is None or self._sizing.done():
                shell = self._engine.shell
                self._sizing = asyncio.ensure_future(asyncio.to_thread(names.total, shell))
            done, _ = await asyncio.wait([self._sizing], timeout=PATIENCE)
            if done:
                self._size = self._sizing.result()
                self._sized_at = index
        return self._size

    async def _count(self, worker: Worker) -> int:
        return (await self._sizes())[0]

    async def _bytes(self, worker: Worker) -> int:
        return (await self._sizes())[1]

    async def observe(self, since: int, with_names: bool = False) -> dict[str, Any]:
        """What the engine does, the calls since the last look and, if wanted, its names."""
        activity = self._engine.tasks.activity(since)
        answer = {
            **activity,
            "calls": [tuple(call) for call in activity["calls"]],
            "queue": activity["queue"][:WAITING],
            "waiting": len(activity["queue"]),
            "thread": self._engine.thread_id,
        }
        if with_names:
            looking = asyncio.to_thread(names.largest, self._engine.shell, NAMES)
            answer["names"] = encodable(await asyncio.wait_for(looking, PATIENCE))
            answer["size"] = await self._sizes()
        return answer

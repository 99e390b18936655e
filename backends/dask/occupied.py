"""Has an adaptive Dask keep the workers whose engines have calls.

Dask knows of its own tasks.  Other calls come straight from their clients: their worker is idle
to the scheduler, and among the first that it closes.
"""

from __future__ import annotations

import asyncio
import logging

from distributed import Worker

from pxcompat.engine.runtime import Engine

__all__ = ["Occupied"]

log = logging.getLogger("pxcompat.dask")

#: seconds without a call until the worker may go: who calls one by one is not done in between
CALM = 1.0


class Occupied:
    """Tells the registry when the engine gets calls, and when it has had none for a moment.

    Used on the worker's event loop.
    """

    def __init__(self, worker: Worker, engine: Engine) -> None:
        self._worker = worker
        self._engine = engine
        self._came = False
        self._watching: asyncio.Task[None] | None = None

    def came(self) -> None:
        """A call has come."""
        self._came = True
        if self._watching is None or self._watching.done():
            self._watching = asyncio.ensure_future(self._watch())

    def close(self) -> None:
        """Say nothing any more."""
        if self._watching is not None:
            self._watching.cancel()

    async def _watch(self) -> None:
        try:
            while self._came:
                await self._tell(True)
                while self._came or not self._engine.idle:
                    self._came = False
                    await asyncio.sleep(CALM)
                await self._tell(False)
        except OSError as error:  # without a scheduler there is nobody to close it
            log.debug("the scheduler cannot be told of the engine's calls: %s", error)

    async def _tell(self, occupied: bool) -> None:
        address = self._worker.address
        await self._worker.scheduler.pxcompat_occupied(address=address, occupied=occupied)

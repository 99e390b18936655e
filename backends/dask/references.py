"""Names of engines in Dask's graphs."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from distributed import Client, Future, get_worker
from distributed.worker_state_machine import SecedeEvent

from pxcompat import serialize
from pxcompat.error import EngineError
from pxcompat.objects import RemoteReference

from .objects import NEWS, Kept, known

__all__ = ["DaskReference"]

#: what Dask takes for a task's key in a graph, at any depth: TaskRef, WrappedKey of old
_KeyInGraph: Any = Future.__mro__[1]


class DaskReference(RemoteReference, _KeyInGraph):  # type: ignore[misc]
    """A reference that Dask takes for one of its futures.

    What it is the future of, the engine puts aside when Dask asks for the key, for the first
    time.
    """

    def __init__(
        self, name: str, uuid: str, engine: int, keep: Callable[[Any], Any], client: Client
    ) -> None:
        super().__init__(name, uuid, engine, keep)
        self._dask = client
        self._lock = threading.Lock()
        self._future: Future[Any] | None = None

    # each is a future of its own, of what the name stood for when Dask asked
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def future(self) -> Future[Any]:
        """Of the value that the engine puts aside."""
        with self._lock:
            if self._future is None:
                kept = self.keep()
                # Dask names it when the engine dies with it
                key = f"px-ref-{self.name}-of-engine-{self.engine}-{uuid.uuid4().hex}"
                self._future = self._dask.submit(
                    _value,
                    key,
                    kept.id,
                    kept.address,
                    kept.engine,
                    key=key,
                    # by another worker when that one is gone, which then says so
                    workers=[kept.address],
                    allow_other_workers=True,
                    pure=False,
                )
                self._future.add_done_callback(functools.partial(self._hold, kept))
                # Before a graph that has it, which may come by another client.  This one keeps
                # the order itself, and cannot wait on its loop, or where it pickles a graph: under
                # its lock, which the loop may want.
                dask: Any = self._dask
                if not (dask.asynchronous or dask._refcount_lock._is_owned()):
                    dask.sync(known, dask.scheduler, key)
            return self._future

    def _hold(self, kept: Kept, future: Future[Any]) -> None:
        """Keep both, whoever lets go of this, until graphs that have it are with the scheduler."""
        loop: Any = self._dask.loop
        loop.add_callback(loop.call_later, NEWS, lambda: (kept, future))

    @property
    def key(self) -> Any:
        return self.future.key

    @property
    def client(self) -> Client:
        return self._dask

    @property
    def status(self) -> Any:
        return self.future.status

    @property
    def _state(self) -> Any:  # ``Client.gather`` has errors from there
        return self.future._state

    def __dask_tokenize__(self) -> Any:
        return self.future.__dask_tokenize__()

    def __reduce__(self) -> Any:
        return self.future.__reduce__()


serialize.register_native(DaskReference)


async def _value(key: str, id: str, address: str, engine: int) -> Any:
    """The Dask task: what an engine has put aside, in the engine's process."""
    worker: Any = get_worker()
    # requests that come before it may wait for Dask's tasks, which must not wait for this one
    worker.handle_stimulus(
        SecedeEvent(key=key, compute_duration=0, stimulus_id=f"px-ref-{time.time()}")
    )
    frames, why = await Kept(id, address, engine).fetch(worker)
    if why:
        raise EngineError(f"engine {engine} could not give its value: {why}")
    service = worker.extensions.get("pxcompat")
    scope = service.engine.shell.user_ns if service is not None else None
    return await asyncio.to_thread(serialize.loads, frames, scope)

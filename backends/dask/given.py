"""Balanced calls on the engine that they were given to, from their arrival to their end.

They come together, as a Dask task or as an offer, and wait in the engine's queue for its
thread.  Output and replies go to their client as they come.  The client is told what
happens to those that take long: which of them runs, and which will not run here after all.
These it has placed again.

To the scheduler the task ends a few milliseconds before its last call, where the calls have
shown that they are short: the engine has its next batch before it is done with this one.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from typing import TYPE_CHECKING

from pxcompat.engine.nested import Errand
from pxcompat.protocol import Request

from .wire import Blob

if TYPE_CHECKING:
    from .service import Service

__all__ = ["Given"]

#: seconds after which a client is told which call of a batch runs
MOMENT = 0.01
#: seconds that one of them may take before what has not begun is given back
PATIENCE = 0.05
#: seconds from which on a batch has more work in it than it was meant to have
MUCH = 0.15
#: seconds of work that are left of a batch when the engine wants the next
AHEAD = 0.01


class Given:
    """Calls that were given to an engine together; made and used on the worker's event loop.

    Parameters
    ----------
    service
        The engine's.
    key : str
        The batch's name.
    requests : list of Request
        One client's.
    """

    def __init__(self, service: Service, key: str, requests: list[Request]) -> None:
        self._service = service
        self._engine = service.engine
        self._key = key
        self._requests = requests
        self._peer = service.peer(requests[0].header["client"])
        self._numbers = {request.msg_id: n for n, request in enumerate(requests, 1)}
        self._admitted = self._engine.admit(requests, self._peer)
        #: the context of the Dask task, if it is one
        self._task: contextvars.Context | None = None
        self._released: asyncio.Future[None] = service.loop.create_future()
        #: whether the engine has been said to have room for more
        self._asked = False
        self._told: str | None = None
        self._began = 0.0
        #: no call is left that could begin or be running
        self._done = False
        service.given.add(self)
        service.loop.call_later(MOMENT, self._look, False)

    def queue(self) -> None:
        """Have the engine's thread run them in their turn."""
        blobs = [r for r in self._requests if Blob in (type(r.function), type(r.arguments))]
        if blobs:
            self._service.background(self._fetch_then_queue(blobs))
        else:
            self._call()

    def _call(self) -> None:
        # a request may wait for a Dask task that comes after this one
        self._engine.call(self._run if self._task is None else Errand(self._run))

    async def as_task(self) -> None:
        """Queue them, for the Dask task that this is called in."""
        self._task = contextvars.copy_context()
        self.queue()
        try:
            await self._released
        except asyncio.CancelledError:
            # The worker closes, and Dask would have another one run all of it, again.
            back = self._engine.tasks.give_back(list(self._numbers))
            if back and self._peer.places:
                self._peer.tell(("returned", back))
            elif len(back) == len(self._numbers):
                raise

    async def _fetch_then_queue(self, requests: list[Request]) -> None:
        for request in requests:
            try:
                await self._service.resolve(request)
            except Exception as error:
                if self._engine.tasks.give_back([request.msg_id]):  # it was not cancelled meanwhile
                    self._peer.reply(self._service.unresolved(request, error))
        self._call()

    # -- on the engine's thread --------------------------------------------------------

    def _run(self) -> None:
        if self._task is None:
            self._run_all()
            return
        worker, thread = self._service.worker, threading.get_ident()
        with worker.active_threads_lock:  # for the profiler
            worker.active_threads[thread] = self._key
        try:
            self._task.run(self._run_all)
        finally:
            with worker.active_threads_lock:
                worker.active_threads.pop(thread, None)
            self._service.loop.call_soon_threadsafe(self._release)

    def _run_all(self) -> None:
        ledger = self._service.ledger
        try:
            if ledger is not None:
                ledger.open(self._key)
            self._began = time.monotonic()
            self._engine.run_batch(self._admitted, self._before)
        finally:
            self._done = True

    def _before(self, msg_id: str) -> None:
        number, ledger = self._numbers[msg_id], self._service.ledger
        if ledger is not None:
            ledger.begin(number)
        else:
            self._peer.started(msg_id)
        if self._task is not None and not self._asked and number > 1:
            each = (time.monotonic() - self._began) / (number - 1)
            left = len(self._numbers) - number + 1
            # without a ledger nobody knew, were this process to end, what had not begun of a
            # task that has ended
            if each * left <= AHEAD and (ledger is not None or left == 1):
                self._asked = True
                self._service.loop.call_soon_threadsafe(self._release)

    # -- on the loop -------------------------------------------------------------------

    def _release(self) -> None:
        """The engine has room for more."""
        if not self._released.done():
            self._released.set_result(None)

    def say(self) -> None:
        """Tell the client what runs, if it does not know yet."""
        running = self._engine.tasks.running_id
        if running in self._numbers and running != self._told and not self._done:
            self._told = running
            if self._peer.connected:
                self._peer.tell(("started", running))

    def give_back(self) -> None:
        """Tell the client what has not begun, and will not, for others to do."""
        if self._peer.places and (back := self._engine.tasks.give_back(list(self._numbers))):
            self._peer.tell(("returned", back))

    def _due(self) -> bool:
        """Whether what has not begun had better be done elsewhere."""
        if self._engine.tasks.running_for > PATIENCE:
            return True
        if self._began:
            return time.monotonic() - self._began > MUCH
        running = self._engine.tasks.running_id
        # other batches come to their end
        return running is not None and not any(
            running in given._numbers for given in self._service.given
        )

    def _look(self, patient: bool) -> None:
        if self._done:
            self._service.given.discard(self)
            return
        self.say()
        if patient and self._due():
            self.give_back()
        self._service.loop.call_later(PATIENCE / 2, self._look, True)

"""Calls that Dask's scheduler places: batches of them are Dask tasks.

A task carries calls to whichever engine the scheduler chooses.  Output and reply of each go
straight from there to the client, over the engine's channel, as soon as the call is done; the
task's own result is None, and nobody holds on to it: the calls run also when their client has
gone.

How many calls a batch has follows from how long they took lately: some milliseconds of work.
An engine that needs longer gives back those that it has not begun, also when it cannot begin
because of something that the scheduler does not know of (see :mod:`.given`).  Calls made while
an engine is known to be idle are no task, as far as they are the work of one batch: they are
*offered* to that engine, which refuses them if it is not idle after all.

When an engine dies, its :class:`~.ledger.Ledger` says which calls had begun.  These have
failed; the others are placed again.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from distributed import fire_and_forget, get_worker

from pxcompat.engine.interrupts import OwnFuture
from pxcompat.engine.nested import NESTED
from pxcompat.protocol import Reply, Request

from .batch import Batch, key_of, pack
from .wire import Blob

if TYPE_CHECKING:
    from .backend import DaskBackend

__all__ = ["Submitter", "run"]

log = logging.getLogger("pxcompat.dask")

#: requests with more bytes than this leave their arguments with an engine, not the scheduler
LARGE = 1 << 20
#: seconds of work that a batch should be, and what a call costs beside its own work
WORK = 0.05
OVERHEAD = 0.0001
#: calls in a batch at most
MOST = 128
#: seconds to wait for the first of calls that nobody has measured yet
UNKNOWN = 0.1
#: calls that nobody has measured yet in an offer: short ones keep the engine busy until the
#: scheduler has placed others, and of long ones it gives back all but the one that it is at
FIRST = 8
#: calls that are measured before all that wait are made batches of
SAMPLES = 10
#: functions whose durations are remembered
FUNCTIONS = 1024

#: the highest priority of a batch, for Dask; others have less, as their calls are younger
FIRST_OF_ALL = 1 << 62

BARE = "the worker has no engine of pxcompat's"
GONE = "every engine that it was for is gone"


async def run(key: str, data: bytes) -> None:
    """The Dask task: have this worker's engine run calls.

    On the worker's event loop, as coroutines are: what waits for the engine's thread is here, and
    can be given back.
    """
    await get_worker().extensions["pxcompat"].run_batch(key, data)


def _run_by_value() -> Callable[[str, bytes], Awaitable[None]]:
    """:func:`run` for workers that may lack the package: what names that they cannot unpickle,
    which Dask takes for the end of the connection."""

    bare = BARE

    async def run(key: str, data: bytes) -> None:
        from distributed import get_worker

        worker = get_worker()
        if "pxcompat" not in worker.extensions:
            raise RuntimeError(f"{bare}: {worker.address}")
        await worker.extensions["pxcompat"].run_batch(key, data)

    return run


class _Group:
    """Calls of one kind that wait to be made batches of."""

    def __init__(self) -> None:
        self.requests: deque[Request] = deque()
        #: on the loop's clock: until when nobody waits for a measurement any longer
        self.deadline: float | None = None

    def wait_again(self, requests: list[Request]) -> None:
        """Put calls where they were among those that wait."""
        first: list[Request] = []
        for request in sorted(requests, key=_number):
            while self.requests and _number(self.requests[0]) < _number(request):
                first.append(self.requests.popleft())
            first.append(request)
        self.requests.extendleft(reversed(first))


class Submitter:
    """The client's side of balanced calls."""

    def __init__(self, backend: DaskBackend) -> None:
        self._backend = backend
        self._lock = threading.RLock()
        #: waiting to be sent: by function and candidates
        self._groups: OrderedDict[Any, _Group] = OrderedDict()
        self._flushing = False
        #: sent: batches by key, and the batch of each call
        self._batches: dict[str, Batch] = {}
        self._batch_of: dict[str, Batch] = {}
        #: how many of the batches the scheduler has
        self._scheduled = 0
        #: addresses of engines that are gone, and of which nobody knows what they had begun
        self._silent: deque[str] = deque(maxlen=64)
        #: calls that are known to have begun
        self._begun: set[str] = set()
        #: by kind of call: seconds that one takes, and how many were measured
        self._durations: OrderedDict[Any, tuple[float, int]] = OrderedDict()
        self._numbers = itertools.count()
        #: the last call that was sent, by its number
        self._latest = -1
        self._run = _run_by_value() if backend.adopted else run
        #: addresses of workers without an engine
        self._bare: set[str] = set()
        self._closed = False

    # -- sending -----------------------------------------------------------------------

    def submit(self, requests: Sequence[Request], candidates: Sequence[str] | None) -> None:
        """Take calls on.  Thread-safe."""
        backend = self._backend
        wanted = None if candidates is None else tuple(candidates)
        for request in requests:
            request.header["balanced"] = True
            if _nbytes(request) > LARGE and not isinstance(request.arguments, Blob):
                where = candidates or [info.key for info in backend.engines()]
                request.arguments = backend.put_blob(request.arguments, where)  # type: ignore[arg-type]
        with self._lock:
            for request in requests:
                self._leave(request.msg_id)  # a try whose engine died
            waiting = deque(requests)
            while waiting and self._offer(waiting, wanted):
                pass
            for request in waiting:
                self._group(request, wanted).requests.append(request)
            self._flush_soon()

    def _group(self, request: Request, wanted: tuple[str, ...] | None) -> _Group:
        kind = (_kind(request), wanted)
        group = self._groups.get(kind)
        if group is None:
            group = self._groups[kind] = _Group()
        return group

    def _offer(self, waiting: deque[Request], wanted: tuple[str, ...] | None) -> bool:
        """Send the first calls to an engine that has nothing to do, if there is one."""
        if self._groups or self._scheduled:
            return False  # others were there before, and the engines are for them
        engine = self._backend.idle_engine(wanted)
        if engine is None:
            return False
        kind = _kind(waiting[0])
        # as many as keep it busy until the scheduler has placed the others
        requests = _take(waiting, self._share(len(waiting), self._size(kind), wanted), kind)
        for request in requests:
            request.header["offered"] = True
        batch = Batch(requests[0].msg_id, kind, requests, wanted, engine.info.key)
        self._note(batch)
        msg_ids = [request.msg_id for request in requests]
        if engine.offer(msg_ids, pack(requests)):
            for msg_id in msg_ids:
                self._backend.sink.sent(msg_id)
            return True
        for request in requests:
            self._leave(request.msg_id)
            del request.header["offered"]
        waiting.extendleft(reversed(requests))
        return False

    def _size(self, kind: Any) -> int:
        """Calls of a kind that make an offer; few while little is known of them."""
        duration, count = self._durations.get(kind, (0.0, 0))
        most = MOST if count >= SAMPLES else FIRST
        return max(1, min(most, int(WORK / (duration + OVERHEAD))))

    def _share(self, waiting: int, size: int, candidates: tuple[str, ...] | None) -> int:
        """How many of those that wait make the next batch."""
        engines = len(candidates or self._backend._engines) or 1
        # the last ones smaller, so that the engines end together
        return min(size, -(-waiting // (2 * engines)))

    def _note(self, batch: Batch) -> None:
        self._batches[batch.key] = batch
        self._scheduled += batch.engine is None
        self._latest = max(self._latest, _number(batch.requests[-1]))
        for request in batch.requests:
            batch.left.add(request.msg_id)
            self._batch_of[request.msg_id] = batch

    def _leave(self, msg_id: str) -> Batch | None:
        """Take a call out of its batch; the batch goes with its last one."""
        batch = self._batch_of.pop(msg_id, None)
        if batch is not None:
            self._begun.discard(msg_id)
            batch.left.discard(msg_id)
            if not batch.left:
                del self._batches[batch.key]
                self._scheduled -= batch.engine is None
                self._flush_soon()
        return batch

    def _flush_soon(self) -> None:
        if self._groups and not self._flushing and not self._closed:
            self._flushing = True
            self._backend.io_loop.add_callback(self._flush)

    def _flush(self, everything: bool = False) -> None:
        """Make batches of what waits, and give them to the scheduler; on the loop."""
        now = asyncio.get_running_loop().time()
        together: dict[tuple[Any, int], list[Batch]] = {}
        with self._lock:
            self._flushing = False
            for kind, group in list(self._groups.items()):
                oldest = _number(group.requests[0])
                # who reads results in their order waits for those that were given back: they come
                # before all that was sent after them
                priority = FIRST_OF_ALL - oldest if oldest < self._latest else 0
                if batches := self._cut(kind, group, now, everything):
                    together.setdefault((kind[1], priority), []).extend(batches)
                if not group.requests:
                    del self._groups[kind]
            for batches in together.values():
                for batch in batches:
                    self._note(batch)
        for (candidates, priority), some in together.items():
            try:
                self._send(some, candidates, priority)
            except Exception as error:  # a client that was closed meanwhile: versions differ
                for batch in some:
                    self._fail(batch.left, f"{type(error).__name__}: {error}")

    def _cut(self, kind: Any, group: _Group, now: float, everything: bool) -> list[Batch]:
        """Batches of what waits, of a size that follows from how long such calls took."""
        function, candidates = kind
        waiting = group.requests
        engines = len(candidates or self._backend._engines) or 1
        measured = self._durations.get(function)
        room = len(waiting)
        if measured is None:
            size = 1
            if everything or (group.deadline is not None and now >= group.deadline):
                pass  # they take long: one each
            elif group.deadline is None:
                # the first few are to show how long they take; some engines were offered theirs
                offered = {b.engine for b in self._batches.values() if b.kind == function}
                room = 2 * max(0, engines - len(offered - {None}))
                group.deadline = now + UNKNOWN
                if len(waiting) > room:
                    asyncio.get_running_loop().call_later(UNKNOWN, self._flush)
            else:
                room = 0
        else:
            duration, count = measured
            size = max(1, min(MOST, int(WORK / (duration + OVERHEAD))))
            if count < SAMPLES and duration < 4 * WORK and not everything:
                # the first may have taken longer than others will
                room = max(SAMPLES, 2 * engines)
        batches = []
        while waiting and room > 0:
            # none so small that the engine is done before the scheduler has sent the next
            most = max(self._share(len(waiting), size, candidates), -(-size // 5))
            requests = _take(waiting, most, function)
            room -= len(requests)
            key = key_of(requests, next(self._numbers))
            batches.append(Batch(key, function, requests, candidates))
        return batches

    def _send(
        self, batches: Sequence[Batch], candidates: tuple[str, ...] | None, priority: int
    ) -> None:
        backend = self._backend
        addresses = None
        if candidates is not None:
            wanted = set(candidates)
            addresses = [info.address for info in backend.engines() if info.key in wanted]
        elif self._bare:
            addresses = [info.address for info in backend.engines()]
        keys = [batch.key for batch in batches]
        futures = backend.native.map(
            self._run,
            keys,
            [pack(batch.requests) for batch in batches],
            key=keys,
            pure=False,
            workers=addresses,
            # those that come later may be engines
            allow_other_workers=candidates is None and bool(addresses),
            priority=priority,
        )
        fire_and_forget(futures)
        for batch in batches:
            for request in batch.requests:
                backend.sink.sent(request.msg_id)

    # -- what comes back ---------------------------------------------------------------

    def finished(self, msg_id: str, reply: Reply | None = None) -> None:
        """Forget a call that has its reply."""
        with self._lock:
            batch = self._leave(msg_id)
            if batch is None or reply is None:
                return
            if reply.started is not None and reply.completed is not None:
                self._measure(batch.kind, max(0.0, reply.completed - reply.started))

    def _measure(self, kind: Any, took: float) -> None:
        if kind not in self._durations:
            self._durations[kind] = took, 1
            while len(self._durations) > FUNCTIONS:
                self._durations.popitem(last=False)
            self._flush_soon()
            return
        before, count = self._durations[kind]
        # one that takes very long says little of the others
        now = 0.8 * before + 0.2 * min(took, 4 * before + WORK / 10)
        self._durations[kind] = now, count + 1
        if count + 1 == SAMPLES:
            self._flush_soon()

    def began(self, msg_id: str) -> bool:
        """An engine says that a call has begun; whether it is one of ours."""
        with self._lock:
            if msg_id not in self._batch_of:
                return False
            self._begun.add(msg_id)
            return True

    def returned(self, msg_ids: Sequence[str]) -> None:
        """An engine gives calls back that it has not begun, or an offer that it declines."""
        again: dict[_Group, list[Request]] = {}
        with self._lock:
            for msg_id in msg_ids:
                batch = self._leave(msg_id)
                if batch is None:
                    continue  # it was cancelled
                if batch.kind not in self._durations and not self._begun.isdisjoint(batch.left):
                    self._measure(batch.kind, WORK)  # another of them takes long
                request = next(r for r in batch.requests if r.msg_id == msg_id)
                request.header.pop("offered", None)
                again.setdefault(self._group(request, batch.candidates), []).append(request)
            for group, requests in again.items():
                group.wait_again(requests)
            self._flush_soon()

    # -- engines that end ----------------------------------------------------------------

    def engine_down(self, key: str, address: str, begun: Mapping[str, int] | None) -> None:
        """An engine is gone; on the loop, before the facade is told.

        Parameters
        ----------
        begun
            By batch, how many of its calls had begun; None: nobody knows.
        """
        with self._lock:
            if begun is None:
                self._silent.append(address)
            for name, count in (begun or {}).items():
                batch = self._batches.get(name)
                if batch is not None:
                    for request in batch.requests[:count]:
                        if request.msg_id in batch.left:
                            self._began_on(request.msg_id, key)
                    # its task may have ended: the scheduler would not say that it is lost
                    self.returned([m for m in batch.left if m not in self._begun])
            for batch in [b for b in self._batches.values() if b.engine == key]:
                if begun is None:
                    for msg_id in batch.left:
                        self._began_on(msg_id, key)
                else:
                    self.returned([m for m in batch.left if m not in self._begun])

    def _began_on(self, msg_id: str, key: str) -> None:
        self._begun.add(msg_id)
        self._backend.sink.started(msg_id, key)

    async def lost(self, name: str, address: str, reason: str) -> None:
        """Dask gave a batch up; on the loop."""
        backend = self._backend
        if BARE in reason and backend.engines():
            self.avoid(address)
            with self._lock:
                if (batch := self._batches.get(name)) is not None:
                    self.returned(list(batch.left))
            return
        # what its worker still said comes first, and what its ledger says
        for engine in list(backend._engines.values()):
            if engine.info.address == address and engine.task is not None:
                await asyncio.wait([engine.task], timeout=10)
        with self._lock:
            batch = self._batches.get(name)
            left = [] if batch is None else [m for m in batch.left if m not in self._begun]
        if batch is None or not left:
            return  # answered, or its engine's end says it all
        if "KilledWorker" not in reason:
            self._fail(left, reason)
            return
        if address in self._silent:
            self._fail(left, "its engine is gone, and may have begun it")
            return
        alive = {info.key for info in backend.engines()}
        candidates = batch.candidates
        if candidates is not None:
            candidates = tuple(key for key in candidates if key in alive)
        if not (candidates or (candidates is None and (alive or backend.adopted))):
            self._fail(left, GONE)
            return
        batch.candidates = candidates
        self.returned(left)

    def avoid(self, address: str) -> None:
        """This worker is no engine."""
        self._bare.add(address)

    def abandon(self) -> None:
        """Every engine is gone: fail what none of them had begun."""
        with self._lock:
            batches = list(self._batches.values())
            left = [m for b in batches for m in b.left if m not in self._begun]
            for group in self._groups.values():
                left += [request.msg_id for request in group.requests]
            self._groups.clear()
        for batch in batches:
            if batch.engine is None:
                self._cancel_task(batch.key)
        self._fail(left, GONE)

    def _fail(self, msg_ids: Sequence[str] | set[str], reason: str) -> None:
        for msg_id in list(msg_ids):
            self.finished(msg_id)
            content = {
                "ename": "EngineError",
                "evalue": f"Dask could not run this call: {reason}",
                "traceback": [],
                "engine_info": {},
            }
            self._backend.sink.reply(Reply(msg_id, "error", None, content=content))

    # -- questions -----------------------------------------------------------------------

    @property
    def unfinished(self) -> bool:
        """Whether there are calls without a reply."""
        return bool(self._groups or self._batches)

    def waiting(self) -> list[str]:
        """Ids of calls that neither the scheduler nor an engine has yet."""
        with self._lock:
            return [r.msg_id for group in self._groups.values() for r in group.requests]

    def cancel(self, msg_ids: Sequence[str]) -> Future[list[str]]:
        """Keep balanced requests from running: every engine is told to refuse them."""
        backend = self._backend
        cancelled: Future[list[str]] = OwnFuture()
        wanted = set(msg_ids)
        here: list[str] = []
        with self._lock:
            for kind, group in list(self._groups.items()):
                found = [r.msg_id for r in group.requests if r.msg_id in wanted]
                if found:
                    here += found
                    kept = (r for r in group.requests if r.msg_id not in wanted)
                    group.requests = deque(kept)
                    if not group.requests:
                        del self._groups[kind]
        for msg_id in here:
            backend.sink.reply(Reply(msg_id, "aborted"))
        rest = [m for m in msg_ids if m not in set(here)]
        keys = [info.key for info in backend.engines()] if rest else []
        answers = [backend.control(key, "cancel", {"msg_ids": rest}) for key in keys]
        waiting = len(answers)
        lock = threading.Lock()

        def collect(_: Future[Any]) -> None:
            nonlocal waiting
            with lock:
                waiting -= 1
                if waiting:
                    return
            late: set[str] = set()
            by_engines: set[str] = set()
            for answer in answers:
                if answer.exception() is None:  # an engine that is gone runs nothing
                    result = answer.result()
                    late.update(result["running"], result["done"])
                    by_engines.update(result["cancelled"])
            prevented = [m for m in rest if m not in late]
            for msg_id in prevented:
                with self._lock:
                    batch = self._batch_of.get(msg_id)
                    last = batch is not None and batch.left == {msg_id}
                self.finished(msg_id)
                if batch is not None and last and batch.engine is None:
                    self._cancel_task(batch.key)
                if msg_id not in by_engines:
                    backend.sink.reply(Reply(msg_id, "aborted"))
            cancelled.set_result([*here, *prevented])

        if not answers:
            waiting = 1
            collect(cancelled)
        for answer in answers:
            answer.add_done_callback(collect)
        return cancelled

    def _cancel_task(self, key: str) -> None:
        """Have the scheduler drop a task; no engine would run its calls any more."""
        client = self._backend.native
        message = {"op": "cancel-keys", "keys": [key], "force": True, "reason": None, "msg": None}

        def send() -> None:
            if client.status == "running":  # else there is no scheduler that could run it
                client._send_to_scheduler(message)

        self._backend.io_loop.add_callback(send)

    def close(self) -> None:
        """The client goes: give the scheduler what waits, and let go of it; on the loop."""
        if self._groups:
            self._flush(everything=True)
        with self._lock:
            self._closed = True
            self._groups.clear()
            self._batches.clear()
            self._batch_of.clear()
            self._begun.clear()


def _number(request: Request) -> int:
    """Calls that were made before have less."""
    return int(request.msg_id.rpartition("_")[2])


def _kind(request: Request) -> Any:
    """What is the same for calls that take about the same time, and may be one batch."""
    function = request.function
    code = function[0] if isinstance(function, list) and function else None
    if isinstance(code, (bytearray, memoryview)):
        code = bytes(code)
    return request.label, code, bool(request.header.get(NESTED))


def _take(waiting: deque[Request], most: int, kind: Any) -> list[Request]:
    """The first of those that wait, as far as they are of one kind and not large."""
    requests = [waiting.popleft()]
    nbytes = _nbytes(requests[0])
    while waiting and len(requests) < most and nbytes <= LARGE and _kind(waiting[0]) == kind:
        requests.append(waiting.popleft())
        nbytes += _nbytes(requests[-1])
    return requests


def _nbytes(request: Request) -> int:
    frames = request.arguments
    return sum(memoryview(f).nbytes for f in frames) if isinstance(frames, list) else 0

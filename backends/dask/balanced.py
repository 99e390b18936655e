"""Calls that Dask's scheduler places: each is a Dask task that its engine answers itself.

The task carries the request to whichever engine the scheduler chooses.  Output and reply
go straight from there to the client, over the engine's channel; the task's own result is
None, and nobody holds on to it: the call runs also when its client has gone.  A task that
Dask gives up, because its worker died, is lost when the call had started, and is placed
again when it had not.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

from dask.base import annotate
from distributed import fire_and_forget, get_worker
from distributed.protocol.serialize import Serialized

from pxcompat.protocol import Reply, Request

from .wire import Blob, Message, pack_request, unpack_request

if TYPE_CHECKING:
    from .backend import DaskBackend

__all__ = ["Submitter", "run"]

#: requests with more bytes than this leave their arguments with an engine, not the scheduler
LARGE = 1 << 20

GONE = "every engine that it was for is gone"


def run(message: Message) -> None:
    """The Dask task: run a request on this worker's engine."""
    worker = get_worker()
    service = worker.extensions["pxcompat"]
    request = unpack_request(_revive(message))
    if isinstance(request.arguments, Blob):
        loop = service.loop
        asyncio.run_coroutine_threadsafe(service.resolve(request), loop).result()
    service.engine.run_now(request, service.peer(request.header["client"]))


def _plain(message: Message) -> Message:
    """The message with its frames as bytes, for Dask to pickle."""
    return tuple(
        ("frames", [bytes(frame) for frame in item.frames])
        if isinstance(item, Serialized)
        else item
        for item in message
    )


def _revive(message: Message) -> Message:
    return tuple(
        Serialized({}, [bytearray(frame) for frame in item[1]])
        if isinstance(item, tuple) and len(item) == 2 and item[0] == "frames"
        else item
        for item in message
    )


class _Placed(NamedTuple):
    """A request that the scheduler has, and the key of its task."""

    request: Request
    candidates: Sequence[str] | None
    key: str


class Submitter:
    """The client's side of balanced calls."""

    def __init__(self, backend: DaskBackend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._placed: dict[str, _Placed] = {}
        self._started: dict[str, str] = {}
        self._tries = itertools.count()

    def submit(self, requests: Sequence[Request], candidates: Sequence[str] | None) -> None:
        """Give requests to Dask's scheduler."""
        backend = self._backend
        client = backend.native
        messages, keys = [], []
        for request in requests:
            request.header["balanced"] = True
            if _size(request) > LARGE and not isinstance(request.arguments, Blob):
                where = candidates or [info.key for info in backend.engines()]
                request.arguments = backend.put(request.arguments, where)  # type: ignore[arg-type]
            messages.append(_plain(pack_request(request)))
            # a key of its own for every try: Dask must not take two for one
            name = request.name.replace("-", "_")
            keys.append(f"{name}-{next(self._tries)}-{request.msg_id}")
        addresses = None
        if candidates is not None or backend.adopted:
            wanted = None if candidates is None else set(candidates)
            addresses = [
                info.address for info in backend.engines() if wanted is None or info.key in wanted
            ]
        with self._lock:
            for request, key in zip(requests, keys, strict=True):
                self._started.pop(request.msg_id, None)  # of a try whose engine died
                self._placed[request.msg_id] = _Placed(request, candidates, key)
        # where the worker's own threads are not the engine's
        annotations = {"executor": "pxcompat"} if backend.adopted else {}
        with annotate(**annotations):
            futures = client.map(
                run, messages, key=keys, pure=False, workers=addresses, allow_other_workers=False
            )
        fire_and_forget(futures)
        for request in requests:
            backend.sink.sent(request.msg_id)

    def started(self, msg_id: str, address: str) -> None:
        with self._lock:
            if msg_id in self._placed:
                self._started[msg_id] = address

    def finished(self, msg_id: str) -> None:
        """Forget a request that has its reply."""
        with self._lock:
            self._placed.pop(msg_id, None)
            self._started.pop(msg_id, None)

    async def lost(self, msg_id: str, address: str, reason: str) -> None:
        """Dask gave a task up; on the loop."""
        backend = self._backend
        # what its worker still said comes first
        for engine in list(backend._engines.values()):
            if engine.info.address == address and engine.task is not None:
                await asyncio.wait([engine.task], timeout=2)
        with self._lock:
            placed = self._placed.get(msg_id)
            started = msg_id in self._started
        if placed is None or started:
            return  # answered, or its engine's end says it all
        candidates = placed.candidates
        if "KilledWorker" in reason:
            self.finished(msg_id)
            alive = [info.key for info in backend.engines()]
            if candidates is not None:
                candidates = alive = [key for key in candidates if key in alive]
            if alive or (backend.adopted and candidates is None):
                try:
                    await asyncio.get_running_loop().run_in_executor(
                        None, self.submit, [placed.request], candidates
                    )
                    return
                except Exception as error:  # a client that was closed meanwhile: versions differ
                    reason = f"{type(error).__name__}: {error}"
            else:
                reason = GONE
        self._fail(msg_id, reason)

    def abandon(self) -> None:
        """Every engine is gone: fail what none of them had begun."""
        with self._lock:
            waiting = [p for m, p in self._placed.items() if m not in self._started]
        for placed in waiting:
            self._cancel_task(placed.key)
            self._fail(placed.request.msg_id, GONE)

    def _fail(self, msg_id: str, reason: str) -> None:
        self.finished(msg_id)
        content = {
            "ename": "EngineError",
            "evalue": f"Dask could not run this call: {reason}",
            "traceback": [],
            "engine_info": {},
        }
        self._backend.sink.reply(Reply(msg_id, "error", None, content=content))

    def cancel(self, msg_ids: Sequence[str]) -> Future[list[str]]:
        """Keep balanced requests from running: every engine is told to refuse them."""
        backend = self._backend
        cancelled: Future[list[str]] = Future()
        keys = [info.key for info in backend.engines()]
        answers = [backend.control(key, "cancel", {"msg_ids": list(msg_ids)}) for key in keys]
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
            prevented = [m for m in msg_ids if m not in late]
            for msg_id in prevented:
                with self._lock:
                    placed = self._placed.get(msg_id)
                if placed is not None:
                    self._cancel_task(placed.key)
                self.finished(msg_id)
                if msg_id not in by_engines:
                    backend.sink.reply(Reply(msg_id, "aborted"))
            cancelled.set_result(prevented)

        if not answers:
            waiting = 1
            collect(cancelled)
        for answer in answers:
            answer.add_done_callback(collect)
        return cancelled

    def _cancel_task(self, key: str) -> None:
        """Have the scheduler drop a task; no engine would run its call any more."""
        client = self._backend.native
        message = {"op": "cancel-keys", "keys": [key], "force": True, "reason": None, "msg": None}

        def send() -> None:
            if client.status == "running":  # else there is no scheduler that could run it
                client._send_to_scheduler(message)

        self._backend.io_loop.add_callback(send)

    def close(self) -> None:
        """Let go of every task."""
        with self._lock:
            self._placed.clear()
            self._started.clear()


def _size(request: Request) -> int:
    frames = request.arguments
    return sum(memoryview(f).nbytes for f in frames) if isinstance(frames, list) else 0

"""What requests refer to and engines resolve among themselves: Dask's futures, and values that
one engine puts aside for others.

On the wire each is a plain tuple, its kind first (``natives`` of a request's message).
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Coroutine, Mapping
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

from distributed import Future, Worker
from distributed.comm.core import Comm, connect
from distributed.comm.inproc import InProc
from distributed.protocol.serialize import Serialized

from pxcompat import serialize
from pxcompat.engine import current
from pxcompat.engine.nested import help_until
from pxcompat.engine.records import copied
from pxcompat.error import EngineError
from pxcompat.protocol import Frames, OutputEvent, Reply
from pxcompat.serialize.memory import owned

if TYPE_CHECKING:
    from distributed import Client

    from .service import Service

__all__ = ["Kept", "RemoteFuture", "Shelf", "accept", "pack_natives", "unpack_natives"]

serialize.register_native(Future)

#: ids of values that were dropped, so that who comes late is told
REMEMBERED = 10_000
#: seconds for the scheduler to hear of a future from the client that made it
NEWS = 5
LOST = "whoever held it let it go, or the workers that had it died"
#: seconds to find out that nobody is at an engine's address any more
REACH = 5


class RemoteFuture:
    """A Dask future: its key, and the scheduler that knows it.

    Attributes
    ----------
    future
        The future itself where this was made, so that Dask keeps what it stands for.
    """

    __slots__ = ("future", "key", "scheduler")

    def __init__(self, key: Any, scheduler: str, future: Any = None) -> None:
        self.key = key
        self.scheduler = scheduler
        self.future = future

    def pack(self) -> tuple[Any, ...]:
        return ("future", self.key, self.scheduler)

    def resolve(self, copy: bool = True) -> Any:
        """Its result, on an engine's thread, which does the cluster's tasks meanwhile."""
        worker = _worker()
        client = worker.extensions["pxcompat"].client()
        if _identity(client) != self.scheduler:
            raise EngineError(
                f"the Dask future {self.key!r} is not of the cluster that this engine belongs to"
            )
        here = self.key in worker.data
        value = _wait(_gather(client, self.key, worker))
        if copy and here:
            # Dask's own, which others may read: what the engine does to it must not show there
            value = serialize.loads(_own(copied(serialize.dumps(value, name="a Dask result"))))
        return value


async def known(scheduler: Any, key: Any) -> None:
    """Wait until the scheduler knows a future, whose client may have told it by another way, which
    takes longer than ours.

    Raises
    ------
    EngineError
        When it does not.
    """
    deadline = time.monotonic() + NEWS
    while not await scheduler.pxcompat_knows(key=key):
        if time.monotonic() > deadline:
            raise EngineError(f"the Dask future {key!r} is lost: {LOST}")
        await asyncio.sleep(0.01)


async def _gather(client: Client, key: Any, worker: Worker) -> Any:
    await known(worker.scheduler, key)
    future: Any = Future(key, client)
    # what a future that came with a task's graph needs not say: we want it, and how is it?
    desire = {"op": "client-desires-keys", "keys": [key], "client": client.id}
    client._send_to_scheduler(desire)
    client._send_to_scheduler({"op": "report-key", "key": key})
    try:
        return await client._gather(future, direct=True, local_worker=worker)
    except (asyncio.CancelledError, CancelledError):
        if future.status in ("cancelled", "lost"):
            raise EngineError(f"the Dask future {key!r} is {future.status}: {LOST}") from None
        raise
    finally:
        future.release()


def _own(frames: Frames) -> Frames:
    """Frames with writable buffers."""
    return [frames[0], *(owned(frame) for frame in frames[1:])]


def _worker() -> Any:
    return current().native


def _identity(client: Any) -> str:
    return str(client._scheduler_identity.get("id", client.scheduler.address))


def accept(obj: Any, client: Any, address: str) -> RemoteFuture:
    """A Dask future of ours for a request.

    Raises
    ------
    EngineError
        When it is of another cluster, or there is nothing behind it.
    """
    if not isinstance(obj, Future):
        raise EngineError(f"{obj!r} is not of the Dask cluster at {address}")
    owner: Any = obj.client
    if owner is None or owner.status != "running" or _identity(owner) != _identity(client):
        raise EngineError(
            f"the Dask future {obj.key!r} is not of the cluster at {address}, whose engines are "
            "to resolve it: make it with rc.dask_client, or a client of the same scheduler"
        )
    if obj.status in ("cancelled", "lost"):
        raise EngineError(f"the Dask future {obj.key!r} is {obj.status}: make it again")
    return RemoteFuture(obj.key, _identity(client), obj)


class Kept:
    """A value that an engine puts aside, or is about to.

    Attributes
    ----------
    id
        Its name there.
    address
        Of the engine's worker.
    engine
        The engine's id.
    """

    __slots__ = ("__weakref__", "address", "engine", "id")

    def __init__(self, id: str, address: str, engine: int) -> None:
        self.id = id
        self.address = address
        self.engine = engine

    def pack(self) -> tuple[Any, ...]:
        return ("kept", self.id, self.address, self.engine)

    def resolve(self, copy: bool = True) -> Any:
        """The value, on an engine's thread."""
        frames, why = _wait(self.fetch(_worker()))
        if why:
            raise EngineError(f"engine {self.engine} could not give its value: {why}")
        return serialize.loads(frames, current().shell.user_ns)

    async def fetch(self, worker: Worker) -> tuple[Frames, str]:
        """The value, pickled, and why there is none; on a worker's loop."""
        if self.address == worker.address:
            frames, why = await worker.extensions["pxcompat"].shelf.take(self.id)
            return _own(frames), why
        message = {"op": "pxcompat_take", "id": self.id, "close": True}
        who = f"engine {self.engine}"
        answer = await ask(worker, self.address, message, who)
        return list(answer[0].frames), answer[1]


async def ask(worker: Worker, address: str, message: dict[str, Any], who: str) -> Any:
    """What the worker at an address answers, which may take as long as it is busy.

    Raises
    ------
    EngineError
        When it is gone.
    """
    args = worker.security.get_connection_args("worker")
    try:
        comm = await connect(address, timeout=REACH, deserialize=False, **args)
        try:
            comm.allow_offload = False
            await comm.write(message)
            return await comm.read()
        finally:
            comm.abort()
    except OSError as error:
        raise EngineError(
            f"{who} at {address} is out of reach, so it has died or its network is down: {error}"
        ) from error


def _service() -> Service:
    service: Service = _worker().extensions["pxcompat"]
    return service


def _wait(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine on the worker's loop gives; the engine's thread helps meanwhile."""
    future = asyncio.run_coroutine_threadsafe(coroutine, _service().loop)
    try:
        help_until(future, errands=True)
        return future.result()
    except BaseException:
        future.cancel()
        raise


class _Keeper:
    """The Origin of a request whose result stays here."""

    def __init__(self, shelf: Shelf, id: str, uses: int | None) -> None:
        self._shelf = shelf
        self._id = id
        self._uses = uses

    def started(self, msg_id: str) -> None:
        """Nobody is told."""

    def output(self, msg_id: str, event: OutputEvent) -> None:
        """Nobody is told."""

    def reply(self, reply: Reply) -> None:
        content, frames = reply.content, reply.result
        why = ""
        if reply.status != "ok":
            why = f"{content['ename']}: {content['evalue']}" if content else "it was aborted"
        reply.result = None  # the engine's record has no use for it
        self._shelf.put(self._id, frames or [b""], why, self._uses)  # type: ignore[arg-type]


class _Thing:
    """A value put aside: awaited, there, or dropped."""

    __slots__ = ("answer", "uses")

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[Frames, str]] = asyncio.get_running_loop().create_future()
        self.uses: int | None = None


class Shelf:
    """The values that an engine has put aside for others; on the worker's loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._things: OrderedDict[str, _Thing] = OrderedDict()
        self._dropped: deque[str] = deque(maxlen=REMEMBERED)

    def origin(self, id: str, uses: int | None) -> _Keeper:
        """The Origin of the request whose result is to be put aside as ``id``."""
        return _Keeper(self, id, uses)

    def _thing(self, id: str) -> _Thing:
        thing = self._things.get(id)
        if thing is None:
            thing = self._things[id] = _Thing()
            if id in self._dropped:
                thing.answer.set_result(([b""], "it was dropped before it was used"))
                del self._things[id]
        return thing

    def put(self, id: str, frames: Frames, why: str, uses: int | None) -> None:
        """Put something aside, or why there is nothing.  Thread-safe."""

        def put() -> None:
            thing = self._thing(id)
            thing.uses = uses
            if not thing.answer.done():
                thing.answer.set_result((frames, why))

        self._loop.call_soon_threadsafe(put)

    async def take(self, id: str) -> tuple[Frames, str]:
        """What was put aside, once it is there; and why it is not."""
        thing = self._thing(id)
        answer = await asyncio.shield(thing.answer)
        if thing.uses is not None:
            thing.uses -= 1
            if not thing.uses:
                self.drop(id)
        return answer

    def drop(self, id: str) -> None:
        """Let go of what was put aside."""
        thing = self._things.pop(id, None)
        if id not in self._dropped:
            self._dropped.append(id)
        if thing is not None and not thing.answer.done():
            thing.answer.set_result(([b""], "it was dropped before it was used"))

    async def serve(self, comm: Comm, id: str) -> Any:
        """What was put aside, for another engine."""
        frames, why = await self.take(id)
        shared = isinstance(comm, InProc)
        return Serialized({}, [bytearray(f) for f in frames] if shared else list(frames)), why


def pack_natives(natives: Mapping[str, Any]) -> tuple[Any, ...]:
    """A request's natives as a field of its message."""
    return tuple((token, *native.pack()) for token, native in natives.items())


_KINDS = {"future": RemoteFuture, "kept": Kept}


def unpack_natives(field: Any) -> dict[str, Any]:
    """The inverse of :func:`pack_natives`."""
    return {token: _KINDS[kind](*rest) for token, kind, *rest in field}

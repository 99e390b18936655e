"""An engine inside a Dask worker: its channels to clients, and its blobs for other engines."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import signal
import threading
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from distributed import Client, Worker, WorkerPlugin
from distributed.comm.core import Comm, connect
from distributed.comm.inproc import InProc
from distributed.core import Status
from distributed.protocol.serialize import Serialized

from pxcompat.engine.interrupts import on_main_thread
from pxcompat.engine.nested import Errand
from pxcompat.engine.runtime import Engine
from pxcompat.protocol import Frames, OutputEvent, Reply, Request

from ..shared import kept
from .batch import unpack
from .channel import Channel, ChannelClosed
from .collections import serve_aside
from .given import Given
from .ledger import Ledger
from .objects import Shelf
from .observed import Observed
from .occupied import Occupied
from .wire import (
    Blob,
    Message,
    encodable,
    pack_output,
    pack_reply,
    pack_request,
    unpack_request,
)

__all__ = ["EnginePlugin", "EngineThreadPoolExecutor", "Service"]

#: messages kept for a client whose balanced call is here before its channel is
BACKLOG = 10_000
#: seconds for an engine to fetch a blob from another
FETCH_TIMEOUT = 60
#: seconds that an adopted worker's engine has to end when it is told to
LEAVING = 2


class EngineThreadPoolExecutor(concurrent.futures.Executor):
    """Runs a Dask worker's tasks on the engine's thread.

    Dask gives its context (``get_worker()``) only to executors with "ThreadPoolExecutor" in
    the name of their type.
    """

    _max_workers = 1

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def submit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    result = self._engine.interruptibly(partial(fn, *args, **kwargs))
                except Exception as error:
                    future.set_exception(error)
                except BaseException as error:
                    # an interrupt, or an exit: as it is, it would end the worker's event loop
                    future.set_exception(RuntimeError(f"the task was ended by {error!r}"))
                else:
                    future.set_result(result)

        # a request may wait for this very task: for a future among its arguments
        self._engine.call(Errand(run))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Nothing to shut down: the engine outlives the executor."""


class _Peer:
    """A client as the engine sees it: the Origin of its requests."""

    def __init__(self, engine: Engine, loop_thread: int) -> None:
        self._lock = threading.Lock()
        self._engine = engine
        self._loop_thread = loop_thread
        self._channel: Channel | None = None
        self._backlog: deque[Message] = deque(maxlen=BACKLOG)
        #: whether it has said that it is about to go
        self.leaving = False
        #: ids of what it put here for several engines, and has not dropped
        self.blobs: set[str] = set()

    def connect(self, channel: Channel) -> None:
        with self._lock:
            self._channel = channel
            while self._backlog:
                channel.send(self._backlog.popleft())

    def tell(
        self,
        message: Message,
        on_sent: Callable[[], None] | None = None,
        *,
        here: bool = False,
    ) -> bool:
        with self._lock:
            if self._channel is None:
                self._backlog.append(message)
                return False
            try:
                self._channel.send(message, on_sent, here=here)
            except ChannelClosed:
                return False  # nobody waits any more; the record stays for who asks
            return True

    @property
    def connected(self) -> bool:
        """Whether the client is there."""
        channel = self._channel
        return channel is not None and not channel.closed.is_set()

    @property
    def places(self) -> bool:
        """Whether the client is there to place again what is given back."""
        return self.connected and not self.leaving

    def started(self, msg_id: str) -> None:
        """Have the client know that a call starts, before it does."""
        written = threading.Event()
        if self.tell(("started", msg_id), written.set):
            written.wait(1)

    def output(self, msg_id: str, event: OutputEvent) -> None:
        if self.tell(pack_output(msg_id, event)):
            channel = self._channel
            if channel is not None and threading.get_ident() != self._loop_thread:
                channel.wait_for_room()  # who prints faster than the network has to wait

    def reply(self, reply: Reply) -> None:
        # the engine's main thread writes it, where it has nothing else to do; there is nothing to
        # interrupt any more
        self.tell(pack_reply(reply), here=on_main_thread() and self._engine.idle)


class Service:
    """The engine of a worker, offered to clients.

    Parameters
    ----------
    worker : distributed.Worker
        Running on the current event loop.
    engine : Engine
        Running on a thread of its own, or on the main thread.
    ledger : Ledger, optional
        Where to note which balanced calls have begun; without it clients are told of each
        before it begins.
    """

    def __init__(self, worker: Worker, engine: Engine, ledger: Ledger | None = None) -> None:
        self.worker = worker
        self.engine = engine
        self.ledger = ledger
        engine.native = worker
        engine.keep = kept
        self.loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        #: balanced calls that are here
        self.given: set[Given] = set()
        self._peers: OrderedDict[str, _Peer] = OrderedDict()
        self._channels: set[Channel] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._blobs: dict[str, Frames] = {}
        self._arrivals: dict[str, asyncio.Event] = {}
        self._dropped: deque[str] = deque(maxlen=1024)
        self._observed = Observed(worker, engine)
        #: for a cluster of somebody else's, which may adapt
        self._occupied = None if engine.own_process else Occupied(worker, engine)
        self._client: Client | None = None
        self.shelf = Shelf(self.loop)

    async def start(self) -> None:
        """Offer the engine, and register it with the scheduler."""
        self.worker.extensions["pxcompat"] = self
        self.worker.batched_stream.interval = 0  # see Registry.add_worker
        self.worker.handlers["pxcompat_engine"] = self.serve
        self.worker.handlers["pxcompat_blob"] = self.get_blob
        self.worker.handlers["pxcompat_take"] = self.shelf.serve
        self.worker.handlers["pxcompat_aside"] = partial(serve_aside, self.engine.aside)
        self.worker.handlers["pxcompat_signal"] = self.signal
        self.worker.handlers["pxcompat_stop"] = self.stop
        self._observed.install()
        self.engine.id = await self.worker.scheduler.pxcompat_register(
            address=self.worker.address, **self.engine.describe()
        )

    async def close(self) -> None:
        """Say what is left to say and withdraw the offer; Dask calls this, as of every
        extension, when the worker closes."""
        for name in ("engine", "blob", "take", "aside", "signal", "stop"):
            self.worker.handlers.pop(f"pxcompat_{name}", None)
        self._observed.remove()
        if self._occupied is not None:
            self._occupied.close()
        for given in self.given:
            given.give_back()
        await asyncio.gather(*(channel.finish(1) for channel in list(self._channels)))
        self._blobs.clear()
        if self._client is not None:
            await self._client._close(fast=True)
            # the loop is shared: with a cluster in this process, whose thread ends with the last
            self._client._loop_runner.stop()

    def client(self) -> Client:
        """A client by which the engine has what Dask's futures stand for; on the engine's thread.

        Not the worker's own: Dask makes that the process's default, so that whatever user code
        computed with Dask from then on would wait for this very engine.
        """
        if self._client is None:
            self._client = Client(
                self.worker.scheduler.address,
                loop=self.worker.loop,
                security=self.worker.security,
                set_as_default=False,
                direct_to_workers=True,
                name="pxcompat-engine",
            )
        return self._client

    def peer(self, client: str) -> _Peer:
        """The Origin of a client's requests, connected or not yet."""
        peer = self._peers.get(client)
        if peer is None:
            peer = self._peers[client] = _Peer(self.engine, self._loop_thread)
            if len(self._peers) > 1024:
                self._peers.popitem(last=False)
        return peer

    # -- handlers: what clients and the scheduler ask --------------------------

    async def serve(self, comm: Comm, client: str) -> None:
        """A client's channel, for as long as it lasts."""
        peer = self.peer(client)
        channel = Channel(comm, lambda message: self._receive(message, peer, channel))
        self._channels.add(channel)
        channel.send(("hello", self.engine.key))
        peer.connect(channel)
        try:
            await channel.run()
        finally:
            self._channels.discard(channel)
            if self._peers.get(client) is peer:
                del self._peers[client]
            self.engine.forget_client(client)
            # other engines may still be about to fetch some
            self.loop.call_later(FETCH_TIMEOUT, self._drop_all, list(peer.blobs))

    def _receive(self, message: Message, peer: _Peer, channel: Channel) -> Any:
        kind = message[0]
        if self._occupied is not None and kind in ("request", "offer"):
            self._occupied.came()
        if kind == "request":
            request = unpack_request(message)
            if "keep" in request.header:
                origin = self.shelf.origin(request.msg_id, request.header["keep"])
                self.engine.submit(request, origin)
                return None
            if request.kind == "apply" and None in (request.function, request.arguments):
                gone = LookupError("the memory that it was in is gone, or finds no room here")
                peer.reply(self.unresolved(request, gone))
                return None
            if isinstance(request.function, Blob) or isinstance(request.arguments, Blob):
                return self._submit_with_blobs(request, peer)
            self.engine.submit(request, peer)
        elif kind == "offer":
            _, msg_ids, packed = message
            # a worker that closes has been given up by the scheduler
            if self.engine.idle and self.worker.status is Status.running:
                Given(self, msg_ids[0], unpack(packed)).queue()
            else:
                channel.send(("returned", msg_ids))
        elif kind == "ask":
            _, call_id, question, args = message
            channel.send(self._answer(call_id, question, args, peer))
        elif kind == "put":
            _, blob_id, frames = message
            peer.blobs.add(blob_id)
            if frames is None:
                self._drop(blob_id)  # whoever asks for it is told
                return None
            self._blobs[blob_id] = list(frames.frames)
            self._arrival(blob_id).set()
        elif kind == "drop":
            peer.blobs.discard(message[1])
            self._drop(message[1])
        elif kind == "unkeep":
            self.shelf.drop(message[1])
        return None

    def _answer(self, call_id: int, question: str, args: dict[str, Any], peer: _Peer) -> Message:
        tasks = self.engine.tasks
        for given in self.given:
            given.say()  # before the answer, which may say that it runs
        try:
            if question == "cancel":
                value: Any = tasks.cancel(args["msg_ids"])
            elif question == "status":
                value = tasks.status()
            elif question == "query":
                value = tasks.query(args["query"], args["keys"])
            elif question == "purge":
                value = tasks.purge(args["msg_ids"])
            elif question == "attach":
                value = tasks.attach(args["msg_id"], peer)
            elif question == "recall":
                request = tasks.recall(args["msg_id"])
                value = pack_request(request) if request else None
            elif question == "resubmitted":
                tasks.resubmitted(args["msg_id"], args["again"])
                value = None
            elif question == "leaving":
                # what was given back before is on its way to it; the rest runs here
                peer.leaving, value = True, None
            else:
                raise ValueError(f"an engine does not know the question {question!r}")
        except Exception as error:
            return ("answer", call_id, False, encodable(f"{type(error).__name__}: {error}"))
        return ("answer", call_id, True, encodable(value))

    async def signal(self, signum: int) -> str:
        """Send a signal to the engine's process; "" or why not."""
        if self.engine.own_process:
            os.kill(os.getpid(), signum)
        elif signum == signal.SIGINT:
            self.engine.interrupt()
        elif signum:
            return (
                "this engine runs in a process that was not started for it; only SIGINT can "
                "be delivered there"
            )
        return ""

    async def stop(self) -> None:
        """End the engine after what is queued."""
        self.engine.stop()

    # -- balanced calls ------------------------------------------------------------

    async def run_batch(self, key: str, data: bytes) -> None:
        """Run calls that were given to this engine together; returns when it wants more."""
        await Given(self, key, unpack(data)).as_task()

    def background(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run something beside all else, on the loop."""
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- blobs -------------------------------------------------------------------

    async def _submit_with_blobs(self, request: Request, peer: _Peer) -> None:
        try:
            await self.resolve(request)
        except Exception as error:
            peer.reply(self.unresolved(request, error))
        else:
            self.engine.submit(request, peer)

    def unresolved(self, request: Request, error: Exception) -> Reply:
        """The reply to a request whose arguments cannot be had."""
        content = {
            "ename": "EngineError",
            "evalue": f"could not fetch the arguments: {error}",
            "traceback": [],
            "engine_info": {
                "engine_uuid": self.engine.key,
                "engine_id": self.engine.id,
                "method": request.kind,
            },
        }
        return Reply(request.msg_id, "error", self.engine.key, content=content)

    async def resolve(self, request: Request) -> None:
        """Put a request's blobs in place, fetched from the engines that hold them."""
        if isinstance(request.function, Blob):
            request.function = await self._fetch(request.function)
        if isinstance(request.arguments, Blob):
            request.arguments = await self._fetch(request.arguments)

    async def _fetch(self, blob: Blob) -> Frames:
        if blob.address == self.worker.address:
            frames = await self._own_blob(blob.id)
            if frames is None:
                raise LookupError("it was dropped before it was used")
            # other engines, and later requests, must not see what this one does to it
            return [bytearray(frame) for frame in frames]
        args = self.worker.security.get_connection_args("worker")
        comm = await connect(blob.address, deserialize=False, **args)
        try:
            comm.allow_offload = False
            await comm.write({"op": "pxcompat_blob", "blob_id": blob.id, "close": True})
            answer = await asyncio.wait_for(comm.read(), FETCH_TIMEOUT)
        finally:
            comm.abort()
        if not isinstance(answer, Serialized):
            raise LookupError(f"{blob.address} no longer has it")
        return list(answer.frames)

    def _arrival(self, blob_id: str) -> asyncio.Event:
        return self._arrivals.setdefault(blob_id, asyncio.Event())

    def _drop(self, blob_id: str) -> None:
        self._blobs.pop(blob_id, None)
        self._dropped.append(blob_id)
        arrival = self._arrivals.pop(blob_id, None)
        if arrival is not None:
            arrival.set()

    def _drop_all(self, blob_ids: list[str]) -> None:
        """Let go of what a client put here that has not said so, and is gone."""
        for blob_id in blob_ids:
            if blob_id in self._blobs:
                self._drop(blob_id)

    async def _own_blob(self, blob_id: str) -> Frames | None:
        """A blob that was put here, or is about to be; None when it was dropped."""
        if blob_id not in self._dropped and blob_id not in self._blobs:
            await asyncio.wait_for(self._arrival(blob_id).wait(), FETCH_TIMEOUT)
        return self._blobs.get(blob_id)

    async def get_blob(self, comm: Comm, blob_id: str) -> Any:
        """A blob's frames, for another engine."""
        frames = await self._own_blob(blob_id)
        if frames is None:
            return None
        shared = isinstance(comm, InProc)
        return Serialized({}, [bytearray(f) for f in frames] if shared else list(frames))


class EnginePlugin(WorkerPlugin):
    """Makes an engine of a worker that somebody else started.

    The engine runs on a thread of its own, which is as near to a main thread as a
    worker's process has to offer.

    Parameters
    ----------
    options : dict
        Of :class:`pxcompat.engine.runtime.Engine`.
    """

    name = "pxcompat"
    idempotent = True

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options

    async def setup(self, worker: Worker) -> None:
        if "pxcompat" in worker.extensions:
            return
        ready: concurrent.futures.Future[Engine] = concurrent.futures.Future()

        def main() -> None:
            try:
                engine = Engine(uuid.uuid4().hex, own_process=False, **self._options)
            except BaseException as error:
                ready.set_exception(error)
                raise
            ready.set_result(engine)
            engine.run()

        self._thread = threading.Thread(target=main, name="pxcompat-engine", daemon=True)
        self._thread.start()
        engine = await asyncio.wrap_future(ready)
        engine.folder = worker.local_directory
        engine.home = {
            "backend": "dask",
            "address": worker.scheduler.address,
            "adopt": True,
            "security_object": worker.security,
        }
        self._interval = worker.batched_stream.interval
        worker.executors["pxcompat"] = EngineThreadPoolExecutor(engine)
        self._service = worker.extensions["pxcompat"] = Service(worker, engine)
        # the scheduler answers the registration only after it has the worker
        self._registering = asyncio.create_task(self._service.start())

    async def teardown(self, worker: Worker) -> None:
        """Leave the worker as it was, once what is queued on its engine has run."""
        service = getattr(self, "_service", None)
        if service is None:
            return
        await service.close()
        worker.extensions.pop("pxcompat", None)
        worker.executors.pop("pxcompat", None)
        worker.batched_stream.interval = self._interval
        service.engine.stop()
        self._registering.cancel()
        # not for ever: a request that runs on is not interrupted, and ends its engine when it ends
        deadline = asyncio.get_running_loop().time() + LEAVING
        while self._thread.is_alive() and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)

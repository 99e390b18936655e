"""A client's connection to a Dask cluster of engines."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import functools
import itertools
import logging
import signal as signals
import uuid
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any

from distributed import Client
from distributed.comm.core import connect
from distributed.core import Status
from distributed.protocol.serialize import Serialized

from pxcompat.engine.interrupts import OwnFuture, on_main_thread, uninterrupted
from pxcompat.error import BackendError, ConnectError, EngineError
from pxcompat.protocol import (
    Capabilities,
    EngineInfo,
    EventSink,
    Frames,
    Handle,
    Part,
    Request,
)

from ..answers import accepted, cancelled, converted
from ..shared import SharedFrames
from . import adoption, balanced
from .channel import Channel, ChannelClosed
from .collections import put_together, take_apart
from .connecting import connect_client, reasons
from .lines import EngineLine, Line
from .objects import Kept, RemoteFuture, accept
from .references import DaskReference
from .wire import Blob, Message, pack_request, unpack_output, unpack_reply, unpack_request

__all__ = ["DaskBackend"]

log = logging.getLogger("pxcompat.dask")

#: seconds for the last client's leaving
LEAVING = 15
#: seconds that a lost engine's last words may take to arrive
LAST_WORDS = 5


class DaskBackend:
    """:class:`pxcompat.protocol.Backend` on Dask.

    Parameters
    ----------
    info : dict
        ``address`` and ``security`` of a scheduler, as a connection file has them;
        ``adopt``: whether its workers may have to be made engines first, and ``upload``: whether
        to send them the package where they lack it.
    """

    name = "dask"

    def __init__(self, info: Mapping[str, Any], client: Client | None = None) -> None:
        self._info = info
        self._client: Any = client  # a Client, once there is one
        self._owns_client = client is None
        self._engines: dict[str, EngineLine] = {}
        self.adopted = bool(info.get("adopt"))
        self._balanced = balanced.Submitter(self)
        self._turns = itertools.count(1)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        #: whether it has been said that a worker is no engine
        self._warned = False
        self._workers: set[str] = set()
        self._interval: Any = None
        self.capabilities = Capabilities(
            collections="dask",
            restart_engines=not self.adopted,
            dask_workers=True,
            signals=not self.adopted,
            credentials=bool(info.get("security")),
            grows=self.adopted,
            mpi=not self.adopted,
        )
        self.sink: EventSink

    @classmethod
    def around(cls, target: Any, **options: Any) -> DaskBackend:
        """For a cluster given as ``distributed.Client`` or ``distributed.deploy.Cluster``."""
        given: Any = target
        cluster = given.cluster if isinstance(target, Client) else given
        if cluster is not None and cluster.asynchronous:
            raise ConnectError(
                f"{cluster!r} runs on this thread's event loop, which would stand still while "
                "Client() waits for it: use asyncio.to_thread(Client, cluster), and await results"
            )
        if isinstance(target, Client):
            if given.scheduler is None:
                raise ConnectError(
                    f"the Dask client {target!r} is {given.status}: make another one"
                )
            info = {"address": given.scheduler.address, "adopt": True, **options}
            if not given._asynchronous:
                return cls(info, client=target)
            # its loop is the user's, and stands still while a call blocks
            return cls({"security_object": given.security, **info})
        if given.status in (Status.closing, Status.closed, Status.failed):
            state = given.status.name
            raise ConnectError(f"the Dask cluster {given!r} is {state}: make another one")
        info = {
            "address": given.scheduler_address,
            "adopt": True,
            "security_object": given.security,
            **options,
        }
        return cls(info)

    # -- connecting ------------------------------------------------------------------

    def open(self, sink: EventSink, *, timeout: float = 5) -> None:
        self.sink = sink
        self._timeout = timeout
        if self._owns_client:
            self._client = connect_client(self._info, timeout)
        try:
            if self.adopted:
                self._stage("looking at its workers", self._prepare(), timeout + 30)
            self._stage("opening the registry's channel", self._open(), timeout)
            if self.adopted:
                self._stage("making engines of its workers", self._adopt(), timeout + 30)
        except BaseException:
            self.close()
            raise

    def _stage(self, stage: str, coroutine: Coroutine[Any, Any, Any], timeout: float) -> Any:
        try:
            return self._run(asyncio.wait_for(coroutine, timeout), timeout + 5)
        except (OSError, TimeoutError, asyncio.TimeoutError, concurrent.futures.TimeoutError) as e:
            raise ConnectError(
                f"the Dask scheduler at {self._info['address']} does not answer "
                f"(stage: {stage}; waited {timeout:g} s): {reasons(e)}"
            ) from e

    def _run(self, coroutine: Coroutine[Any, Any, Any], timeout: float | None = None) -> Any:
        """Run a coroutine on the client's loop and wait for it."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()  # whoever was interrupted does not want what it would still open
            raise

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        loop: asyncio.AbstractEventLoop = self._client.loop.asyncio_loop
        return loop

    @property
    def io_loop(self) -> Any:
        """The loop of the thread that talks to the cluster; has ``add_callback``."""
        return self._client.loop

    def _background(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _dial(self, address: str, op: str, role: str = "client") -> Any:
        args = self._client.security.get_connection_args(role)
        comm = await connect(address, deserialize=False, **args)
        try:
            await comm.write({"op": op, "client": self.sink.session, "reply": False})
        except BaseException:
            comm.abort()
            raise
        return comm

    async def _prepare(self) -> None:
        info, session = self._info, self.sink.session
        self._workers = await adoption.prepare(
            self._client,
            session,
            info["address"],
            upload=bool(info.get("upload")),
            timeout=self._timeout,
        )

    async def _adopt(self) -> None:
        """Make engines of the workers, and wait for those of the workers that answer."""
        options, upload = self._info.get("engine") or {}, bool(self._info.get("upload"))
        installing = self._background(adoption.install(self._client, options, upload=upload))
        there = self._background(self._engines_there())
        both = [installing, there]
        try:
            await asyncio.wait(both, timeout=self._timeout, return_when=asyncio.FIRST_EXCEPTION)
            if not there.done():
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if installing.done():
                installing.result()
            else:  # Dask waits for those that hang, too
                installing.add_done_callback(_installed)
            if not there.done():
                # one that is busy with something else, or left; it is there when it comes
                log.warning("not every worker has its engine after %g s", self._timeout)
        finally:
            there.cancel()

    async def _engines_there(self) -> None:
        """Wait for the engines of the workers that answer."""

        def ready() -> bool:
            return self._workers <= {e.info.address for e in self._engines.values() if e.channel}

        async with self._news:
            await self._news.wait_for(ready)

    async def _open(self) -> None:
        stream = self._client.scheduler_comm
        if self._interval is None:
            self._interval = stream.interval
        stream.interval = 0  # see Registry.add_worker
        if self._owns_client:
            # its last messages, kept for debugging: with the arguments of thousands of calls
            stream.recent_message_log = collections.deque(maxlen=0)
        self._registry = Line("the cluster's registry")
        self._known: asyncio.Event = asyncio.Event()
        self._news: asyncio.Condition = asyncio.Condition()
        comm = await self._dial(self._client.scheduler.address, "pxcompat_registry")
        self._registry.channel = Channel(comm, self._hear_registry)
        self._registry.task = self._background(self._listen_registry())
        await self._known.wait()

    async def _listen_registry(self) -> None:
        channel = self._registry.channel
        assert channel is not None
        await channel.run()
        self._registry.fail("its connection was lost")
        if not self._closed:
            # the engines' own last words come first; there is nobody to say why they ended
            for engine in self._engines.values():
                if not engine.reason.done():
                    engine.reason.set_result(("its cluster's scheduler is gone", None))
            tasks = [e.task for e in self._engines.values() if e.task is not None]
            if tasks:
                await asyncio.wait(tasks, timeout=LAST_WORDS)
            self.sink.disconnected(
                f"the connection to the Dask scheduler at {self._info['address']} was lost"
            )

    def _hear_registry(self, message: Message) -> Any:
        kind = message[0]
        if kind == "answer":
            self._registry.answer(message)
        elif kind == "engines":
            return self._meet_all([EngineInfo(**info) for info in message[1]])
        elif kind == "up":
            self._background(self._meet(EngineInfo(**message[1])))
        elif kind == "down":
            engine = self._engines.get(message[1])
            if engine is None:
                self.sink.engine_down(message[1], message[2])  # it never was up
            elif not engine.reason.done():
                engine.reason.set_result((message[2], message[3]))
                if engine.channel is not None:
                    self._background(self._bury(engine))
        elif kind == "starting":
            self.sink.engines_starting()
        elif kind == "lost":
            self._background(self._balanced.lost(*message[1:]))
        elif kind == "lacks":
            self._balanced.avoid(message[1])
            if not self._warned:
                self._warned = True
                why = "%s is a worker without an engine: it cannot import %s. Install it there%s"
                how = "" if self._info.get("upload") else ", or connect with upload=True"
                log.warning(why, *message[1:], how)
        elif kind == "fates?":
            _, number, msg_ids = message
            assert self._registry.channel is not None
            self._registry.channel.send(("fates", number, self.sink.fates(msg_ids)))
        return None

    async def _meet_all(self, infos: Sequence[EngineInfo]) -> None:
        tasks = [self._background(self._meet(info)) for info in infos]
        if tasks:
            # one that hangs does not keep us from the others; it is there when it answers
            _, hanging = await asyncio.wait(tasks, timeout=self._timeout / 2)
            if hanging:
                silent = [i.id for i, task in zip(infos, tasks, strict=True) if task in hanging]
                log.warning("engines %s do not answer; they are added when they do", silent)
        self._known.set()

    async def _meet(self, info: EngineInfo) -> None:
        """Open the channel to an engine, and report it when it is open."""
        before = [e.task for e in self._engines.values() if e.info.id == info.id and e.task]
        engine = self._engines[info.key] = EngineLine(info)
        if before:
            await asyncio.wait(before)  # the engine in whose place this one is
        try:
            comm = await self._dial(info.address, "pxcompat_engine")
        except OSError as error:
            # it may have died meanwhile; then the registry says so
            log.debug("no channel to %s: %s", engine.name, error)
            del self._engines[info.key]
            return
        if self._closed:
            comm.abort()  # what hangs up does not know of it
            return
        engine.channel = Channel(comm, lambda message: self._hear_engine(engine, message))
        engine.task = self._background(self._listen(engine))
        self.sink.engine_up(info)
        async with self._news:
            self._news.notify_all()

    async def _listen(self, engine: EngineLine) -> None:
        assert engine.channel is not None
        await engine.channel.run()
        engine.fail("its connection was lost")
        if self._closed:
            return
        # why, the registry knows
        done, _ = await asyncio.wait([engine.reason], timeout=LAST_WORDS)
        lost: tuple[str, dict[str, int] | None] = ("the connection to it was lost", None)
        reason, begun = engine.reason.result() if done else lost
        self._engines.pop(engine.info.key, None)
        self._balanced.engine_down(engine.info.key, engine.info.address, begun)
        self.sink.engine_down(engine.info.key, reason)
        if not self._engines and not self.adopted:
            # a cluster of somebody else's may scale up for what waits; ours does not by itself
            self._balanced.abandon()

    async def _bury(self, engine: EngineLine) -> None:
        """Close the channel to an engine that is gone, after its last words."""
        assert engine.task is not None and engine.channel is not None
        await asyncio.wait([engine.task], timeout=LAST_WORDS)
        engine.channel.close()

    def _hear_engine(self, engine: EngineLine, message: Message) -> None:
        kind = message[0]
        if kind == "reply":
            reply = unpack_reply(message)
            engine.waiting.discard(reply.msg_id)
            self._balanced.finished(reply.msg_id, reply)
            self.sink.reply(reply)
        elif kind == "output":
            self.sink.output(*unpack_output(message))
        elif kind == "started":
            if self._balanced.began(message[1]):
                self.sink.started(message[1], engine.info.key)
        elif kind == "returned":
            engine.waiting.difference_update(message[1])
            self._balanced.returned(message[1])
        elif kind == "answer":
            engine.answer(message)

    # -- requests -----------------------------------------------------------------------

    def send(self, key: str, requests: Sequence[Request]) -> None:
        engine = self._engines.get(key)
        try:
            if engine is None or engine.channel is None:
                raise ChannelClosed("no such engine")
            here = on_main_thread()
            for request in requests:
                msg_id = request.msg_id
                sent = functools.partial(self.sink.sent, msg_id)
                engine.waiting.add(msg_id)
                # when the buffers of what is tracked have left is the loop's to say
                tracked = bool(request.header.get("track"))
                engine.channel.send(pack_request(request), sent, here=here and not tracked)
        except ChannelClosed as error:
            self.sink.engine_down(key, str(error))

    def send_balanced(self, requests: Sequence[Request], candidates: Sequence[str] | None) -> None:
        self._balanced.submit(requests, candidates)

    def awaited(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def cancel(self, key: str | None, msg_ids: Sequence[str]) -> Future[list[str]]:
        if key is None:
            return self._balanced.cancel(msg_ids)
        return cancelled(self.control(key, "cancel", {"msg_ids": list(msg_ids)}))

    def signal(self, key: str, signum: int) -> Future[None]:
        signum = int(signals.Signals(signum)) if signum else 0
        return accepted(self.control(None, "signal", {"key": key, "signum": signum}))

    def control(self, key: str | None, op: str, args: Mapping[str, Any]) -> Future[Any]:
        line: Line | None = self._registry if key is None else self._engines.get(key)
        if line is None:
            refused: Future[Any] = OwnFuture()
            refused.set_exception(EngineError(f"there is no engine {key}"))
            return refused
        answer = line.ask(op, args)
        if op == "unassigned":
            return converted(answer, lambda ids: [*ids, *self._balanced.waiting()])
        if op != "recall":
            return answer
        return converted(answer, lambda message: unpack_request(message) if message else None)

    def put(self, frames: Frames, keys: Sequence[str]) -> Handle:
        engines = [self._engines.get(key) for key in keys]
        if all(
            e is not None and e.channel is not None and e.channel.sharing.ready for e in engines
        ):
            try:
                return SharedFrames(frames)
            except OSError as error:
                log.debug("no memory to share: %s", error)
        return self.put_blob(frames, keys)

    def put_blob(self, frames: Frames, keys: Sequence[str]) -> Handle:
        """Have one engine hold frames, for others to fetch; also what comes through a task."""
        holder = next((self._engines[key] for key in keys if key in self._engines), None)
        if holder is None or holder.channel is None:
            raise EngineError("none of the engines that a value was for is there any more")
        nbytes = sum(memoryview(frame).nbytes for frame in frames)
        blob = Blob(uuid.uuid4().hex, holder.info.address, nbytes)
        channel = holder.channel
        channel.send(("put", blob.id, Serialized({}, list(frames))))
        weakref.finalize(blob, _drop, channel, blob.id).atexit = False
        return blob

    def accept(self, obj: Any) -> RemoteFuture:
        return accept(obj, self._client, self._info["address"])

    def take_apart(self, obj: Any, keys: Sequence[str], *, copy: bool) -> Sequence[Any] | None:
        engines = [self._engines[key].info for key in keys if key in self._engines]
        if len(engines) < len(keys):
            raise EngineError("an engine that was to have a part of it is gone")
        return take_apart(obj, engines, self._client, self._info["address"], copy=copy)

    def put_together(self, name: str, parts: Sequence[Part]) -> Any:
        gone = [part.engine for part in parts if part.key not in self._engines]
        if gone:
            raise EngineError(f"engines {gone} are gone, with their parts of {name!r}")
        addresses = {part.key: self._engines[part.key].info.address for part in parts}
        return put_together(name, parts, addresses, self._client)

    def reference(
        self, name: str, key: str, engine: int, keep: Callable[[Any], Any]
    ) -> DaskReference:
        return DaskReference(name, key, engine, keep, self._client)

    def keep(self, key: str, request: Request, *, uses: int | None) -> Kept:
        engine = self._engines.get(key)
        if engine is None or engine.channel is None:
            raise EngineError("the engine whose value is wanted is gone")
        kept = Kept(request.msg_id, engine.info.address, engine.info.id)
        request.header["keep"] = uses
        try:
            with uninterrupted():
                engine.channel.send(pack_request(request))
        except ChannelClosed as error:
            raise EngineError(f"the engine whose value is wanted is gone: {error}") from error
        weakref.finalize(kept, _drop, engine.channel, kept.id, "unkeep").atexit = False
        return kept

    # -- the cluster --------------------------------------------------------------------

    def start_engines(
        self, n: int, *, mpi: Sequence[str] | None = None, env: Mapping[str, str] | None = None
    ) -> Future[list[str]]:
        order = {"n": n, "mpi": mpi and list(mpi), "env": dict(env or {})}
        return self.control(None, "start_engines", order)

    def stop_engines(self, keys: Sequence[str], *, force: bool = False) -> Future[None]:
        return self.control(None, "stop_engines", {"keys": list(keys), "force": force})

    def restart_engines(self, keys: Sequence[str]) -> Future[list[str]]:
        return self.control(None, "restart_engines", {"keys": list(keys)})

    def stop_cluster(self) -> Future[None]:
        return self.control(None, "stop", {})

    @property
    def dashboard_link(self) -> str:
        link = self._info.get("dashboard")
        return str(link if link is not None else self._client.dashboard_link or "")

    @property
    def native(self) -> Any:
        return self._client

    def native_client(self) -> Client:
        # the default, as any Client that a user makes: progress(), get_task_stream() look for it
        return Client(self._client.scheduler.address, security=self._client.security)

    def idle_engine(self, candidates: Sequence[str] | None) -> EngineLine | None:
        """An engine that has nothing to do, as far as this client knows; each in its turn."""
        engines = self._engines
        keys = engines if candidates is None else candidates
        idle = [
            engine
            for key in list(keys)
            if (engine := engines.get(key)) is not None
            and engine.channel is not None
            and not engine.waiting
        ]
        if not idle:
            return None
        chosen = min(idle, key=lambda engine: engine.turn)
        chosen.turn = next(self._turns)
        return chosen

    def engines(self) -> list[EngineInfo]:
        """The engines with an open channel."""
        return [e.info for e in list(self._engines.values()) if e.channel is not None]

    def close(self, *, timeout: float = 5) -> None:
        if self._closed:
            return
        self._closed = True
        if self._client is None:
            return
        if self._client.loop is not None and not self._loop.is_closed():
            try:
                self._run(self._hang_up(), timeout + (LEAVING if self.adopted else 0))
            except (concurrent.futures.TimeoutError, RuntimeError) as error:
                log.debug("closing without goodbye: %r", error)
        if self._owns_client:
            self._client.close(timeout=timeout)

    async def _hang_up(self) -> None:
        if self._balanced.unfinished:
            # what engines have given back is placed before we go; then they keep the rest
            keys = [info.key for info in self.engines()]
            told = [asyncio.wrap_future(self.control(key, "leaving", {})) for key in keys]
            if told:
                await asyncio.wait(told, timeout=1)
        self._balanced.close()
        registry: Any = getattr(self, "_registry", None)
        reached = registry is not None and registry.channel is not None
        if self.adopted and reached and not registry.channel.closed.is_set():
            # the last to leave takes everything along
            leaving = registry.ask("leave", {"client": self.sink.session})
            try:
                await asyncio.wait_for(asyncio.wrap_future(leaving), LEAVING)
            except (asyncio.TimeoutError, EngineError, BackendError) as error:
                log.warning("a Dask cluster may not be as it was before: %s", reasons(error))
            if self._client.scheduler_comm is not None and not self._owns_client:
                self._client.scheduler_comm.interval = self._interval
        channels = [e.channel for e in self._engines.values() if e.channel]
        if reached:
            channels.append(registry.channel)
        await asyncio.gather(*(channel.finish(1) for channel in channels))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)


def _installed(installing: asyncio.Task[Any]) -> None:
    if not installing.cancelled() and (failure := installing.exception()) is not None:
        log.debug("not every worker is an engine: %s", failure)


def _drop(channel: Channel, blob_id: str, message: str = "drop") -> None:
    try:
        channel.send((message, blob_id))
    except (ChannelClosed, RuntimeError):
        log.debug("the holder of a blob is gone, and the blob with it")

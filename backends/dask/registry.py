"""The scheduler's part: which engines there are, under which ids, and what became of them."""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import dask
from distributed import Scheduler, SchedulerPlugin
from distributed.comm.core import Comm
from distributed.scheduler import WorkerState

from pxcompat.protocol import EngineInfo

from ..fates import Fates
from ..mpi import Worlds
from .batch import ids_of_key
from .channel import Channel, ChannelClosed
from .monitor import Monitor
from .wire import Message

__all__ = ["Registry", "Supervisor", "enlist"]

log = logging.getLogger("pxcompat.dask")

#: seconds to wait for the supervisor to say how an engine's process ended
REASON_TIMEOUT = 3
#: seconds between a client's announcement and its coming
COMING = 60
#: seconds for the workers of an adopted cluster to take their engines down
UNHOOKING = 10


#: adopted clusters that are being left
_leaving: WeakKeyDictionary[Scheduler, asyncio.Task[None]] = WeakKeyDictionary()


class Supervisor(Protocol):
    """What started the engines of this host, and can end them."""

    async def start_engines(
        self, names: dict[str, str], ranks: dict[str, str], env: dict[str, str] | None = None
    ) -> None:
        """Start an engine for each key, called by the name that goes with it, and for those
        with a rank of an MPI world where they get it."""

    def owns(self, pid: int) -> bool: ...

    def pid(self, key: str) -> int | None: ...

    def kill(self, pid: int, signum: int) -> asyncio.Future[None]:
        """Send a signal; done when it has been sent."""

    async def reason(self, key: str, timeout: float) -> tuple[str, dict[str, int]] | None: ...

    def stop(self) -> None: ...


class Registry(SchedulerPlugin):
    """Knows every engine, gives it its id, and tells every client.

    Ids rise and are never given twice.
    """

    name = "pxcompat"
    idempotent = True

    def __init__(self, *, adopted: bool = False) -> None:
        self.supervisor: Supervisor | None = None
        #: whether the cluster is somebody else's, and is to be left as it was
        self.adopted = adopted

    async def start(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.engines: dict[str, EngineInfo] = {}
        self._ids = itertools.count()
        self._channels: dict[Channel, str] = {}
        self._registered: set[str] = set()
        #: engines that start in the place of others: their ids and names
        self._successors: dict[str, tuple[int, str]] = {}
        #: engines that we end for a reason that their processes' ends do not tell
        self._reasons: dict[str, str] = {}
        #: clients that are about to come, and until when they are waited for
        self._expected: dict[str, float] = {}
        self._unhooking: asyncio.Task[None] | None = None
        self._stillborn: deque[tuple[str, str]] = deque(maxlen=64)
        self._leaving: set[asyncio.Task[None]] = set()
        #: by address of an engine that is gone: what finds out why
        self._ending: dict[str, asyncio.Task[None]] = {}
        folder = dask.config.get("temporary-directory", None) or tempfile.gettempdir()
        self._worlds = Worlds(self._end_rank, folder)
        self._fates = Fates(self._ask)
        self.changed = asyncio.Condition()
        self._intervals: dict[str, Any] = {}
        #: addresses of workers whose engines have calls that are no tasks of Dask's
        self._occupied: set[str] = set()
        for worker in scheduler.stream_comms:
            self.add_worker(scheduler, worker)
        scheduler.handlers["pxcompat_registry"] = self.serve
        scheduler.handlers["pxcompat_register"] = self.register
        self.monitor = Monitor(scheduler, lambda: list(self.engines.values()))
        self.monitor.start()
        scheduler.handlers["pxcompat_knows"] = self.knows
        scheduler.handlers["pxcompat_occupied"] = self.occupy
        scheduler.handlers["pxcompat_lacks"] = self.do_without

    # -- engines -----------------------------------------------------------------

    def process_ended(self, key: str, reason: str, error: str) -> None:
        """The supervisor saw an engine's process end; tells of those that never came up, also
        what they failed with."""
        if key not in self._registered and error:
            reason = f"{reason}: {error}"
        self._worlds.lost(key, self._reasons.get(key, reason))
        if key not in self._registered:
            reason = self._reasons.pop(key, reason)
            self._stillborn.append((key, reason))
            self._successors.pop(key, None)
            self._tell_all(("down", key, reason, {}))

    async def register(self, key: str, pid: int, host: str, own_process: bool, address: str) -> int:
        """An engine introduces itself; the answer is its id."""
        successor = self._successors.pop(key, None)
        id, name = successor if successor is not None else (next(self._ids), key)
        info = EngineInfo(key, id, pid, host, address, own_process, name)
        self.engines[key] = info
        self._registered.add(key)
        self._tell_all(("up", asdict(info)))
        async with self.changed:
            self.changed.notify_all()
        return info.id

    def knows(self, key: Any) -> bool:
        """Whether the scheduler has heard of a task."""
        return key in self.scheduler.tasks

    def do_without(self, address: str, module: str) -> None:
        """A worker has come that cannot be an engine."""
        self._tell_all(("lacks", address, module))

    def occupy(self, address: str, occupied: bool) -> None:
        """A worker's engine has calls, or has had none for a moment."""
        (self._occupied.add if occupied else self._occupied.discard)(address)

    def valid_workers_downscaling(
        self, scheduler: Scheduler, workers: list[WorkerState]
    ) -> list[WorkerState]:
        # Dask keeps workers with long tasks, for these would have to start again; a call would fail
        return [worker for worker in workers if worker.address not in self._occupied]

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        # Dask waits some milliseconds for more to send; balanced calls wait for it
        stream = scheduler.stream_comms[worker]
        self._intervals[worker] = stream.interval
        stream.interval = 0

    async def before_close(self) -> None:
        await self._worlds.close()
        await self.monitor.stop()

    def remove_worker(
        self, scheduler: Scheduler, worker: str, *, stimulus_id: str = "", **kwargs: Any
    ) -> None:
        self._intervals.pop(worker, None)
        self._occupied.discard(worker)
        for info in list(self.engines.values()):
            if info.address == worker:
                del self.engines[info.key]
                task = asyncio.ensure_future(self._say_why(info))
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)
                self._ending[worker] = task

    async def _say_why(self, info: EngineInfo) -> None:
        why: tuple[str, dict[str, int] | None] | None = None
        if self.supervisor is not None and self.supervisor.owns(info.pid):
            why = await self.supervisor.reason(info.key, REASON_TIMEOUT)
        # an engine in somebody else's worker has told its clients of each call that it began
        begun: dict[str, int] | None = None if info.own_process else {}
        reason, begun = why or ("its connection to the scheduler was lost", begun)
        reason = self._reasons.pop(info.key, reason)
        self._ending.pop(info.address, None)
        self._tell_all(("down", info.key, reason, begun))
        async with self.changed:
            self.changed.notify_all()

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if not isinstance(key, str) or not key.startswith("px:"):
            return
        if finish == "memory":
            asyncio.get_running_loop().call_soon(self._let_go, key)
        # Calls never fail as Dask tasks; when one does, it is the machinery that failed.
        if finish != "erred":
            return
        ts = self.scheduler.tasks[key]
        worker = kwargs.get("worker") or (ts.erred_on and next(iter(ts.erred_on))) or ""
        # without a text it is the scheduler's own verdict: the call's worker died
        reason = str(ts.exception_text or "KilledWorker")
        task = asyncio.ensure_future(self._say_lost(key, worker, reason))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _let_go(self, key: str) -> None:
        """Forget a batch that was run: until its client's word that it wants it no more is here,
        Dask would run it again, were its worker to die."""
        ts = self.scheduler.tasks.get(key)
        for client in list(ts.who_wants or ()) if ts is not None else ():
            self.scheduler.client_releases_keys([key], client.client_key)

    async def _say_lost(self, key: str, worker: str, reason: str) -> None:
        """Tell a client of a batch that was given up, after what there is to say of its engine."""
        await asyncio.sleep(0)  # `remove_worker` comes after the transitions that it causes
        ending = self._ending.get(worker)
        if ending is not None:
            await asyncio.wait([ending])
        client = next(ids_of_key(key)).rpartition("_")[0]
        self._tell(client, ("lost", key, worker, reason))

    # -- clients -----------------------------------------------------------------

    async def serve(self, comm: Comm, client: str) -> None:
        """A client's channel, for as long as it lasts."""
        channel = Channel(comm, lambda message: self._receive(message, channel))
        self._channels[channel] = client
        self._expected.pop(client, None)
        channel.send(("engines", [asdict(info) for info in self.engines.values()]))
        for key, reason in self._stillborn:
            channel.send(("down", key, reason, {}))
        try:
            await channel.run()
        finally:
            del self._channels[channel]
            if self.adopted and not self._channels:
                await self.leave()  # nothing to do, unless the client died

    def expect(self, client: str) -> None:
        """A client is about to come: what it will use must stay."""
        self._expected[client] = time.monotonic() + COMING
        loop = asyncio.get_running_loop()
        # it may never come, and may have been all there was
        loop.call_later(COMING + 1, lambda: asyncio.ensure_future(self._miss(client)))

    async def _miss(self, client: str) -> None:
        if self._expected.pop(client, None) is not None and not self._channels:
            await self.leave()

    async def leave(self, client: str = "") -> None:
        """A client leaves; after the last one an adopted cluster is as it was before."""
        now = time.monotonic()
        others = {name for name in self._channels.values() if name != client}
        others |= {name for name, until in self._expected.items() if until > now}
        if not self.adopted or others:
            return
        if self._unhooking is None:
            self._unhooking = _leaving[self.scheduler] = asyncio.ensure_future(self._unhook())
        await self._unhooking

    async def _unhook(self) -> None:
        scheduler = self.scheduler
        # from here on, who comes has to wait until this is over, and adopts anew; see enlist
        scheduler.plugins.pop(self.name, None)
        calls = [k for k in scheduler.tasks if isinstance(k, str) and k.startswith("px:")]
        if calls and "fire-and-forget" in scheduler.clients:
            scheduler.client_releases_keys(calls, "fire-and-forget")
        if self.name in scheduler.worker_plugins:
            leaving = scheduler.unregister_worker_plugin(None, self.name)
            try:
                await asyncio.wait_for(leaving, UNHOOKING)
            except (asyncio.TimeoutError, OSError) as error:
                # a worker that hangs, or goes just now; the others have been told
                log.warning("not every worker says that its engine is down: %r", error)
        await self.monitor.stop()
        for name in [name for name in scheduler.handlers if name.startswith("pxcompat_")]:
            del scheduler.handlers[name]
        for worker, interval in self._intervals.items():
            if worker in scheduler.stream_comms:
                scheduler.stream_comms[worker].interval = interval
        for name, prefix in list(scheduler.task_prefixes.items()):
            if name.startswith("px:") and not prefix.groups:
                del scheduler.task_prefixes[name]

    def _tell_all(self, message: Message) -> None:
        for channel in list(self._channels):
            self._send(channel, message)

    def _tell(self, client: str, message: Message) -> None:
        for channel, name in list(self._channels.items()):
            if name == client:
                self._send(channel, message)

    async def _ask(self, client: str, message: Message) -> bool:
        self._tell(client, message)
        return client in self._channels.values()

    @staticmethod
    def _send(channel: Channel, message: Message) -> None:
        try:
            channel.send(message)
        except ChannelClosed:
            log.debug("a client left before it was told %s", message[0])

    def _receive(self, message: Message, channel: Channel) -> Any:
        if message[0] == "ask":
            # not awaited by the channel: the next question may be what ends this one
            task = asyncio.ensure_future(self._answer(channel, *message[1:]))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
        elif message[0] == "fates":
            self._fates.say(*message[1:])
        return None

    async def _answer(
        self, channel: Channel, call_id: int, question: str, args: dict[str, Any]
    ) -> None:
        answers: dict[str, Callable[..., Awaitable[Any]]] = {
            "unassigned": self.unassigned,
            "fates": self._fates.of,
            "signal": self.signal,
            "start_engines": self.start_engines,
            "stop_engines": self.stop_engines,
            "restart_engines": self.restart_engines,
            "stop": self.stop,
            "leave": self.leave,
        }
        try:
            value = await answers[question](**args)
        except Exception as error:
            log.exception("a client's question %r failed", question)
            self._send(channel, ("answer", call_id, False, f"{type(error).__name__}: {error}"))
        else:
            self._send(channel, ("answer", call_id, True, value))

    # -- answers -------------------------------------------------------------------

    async def unassigned(self) -> list[str]:
        """Ids of balanced requests that have not ended, as far as the scheduler knows.

        Whether one has reached its engine, that engine knows.
        """
        waiting = ("queued", "no-worker", "waiting", "processing")
        return [
            msg_id
            for key, ts in self.scheduler.tasks.items()
            if isinstance(key, str) and key.startswith("px:") and ts.state in waiting
            for msg_id in ids_of_key(key)
        ]

    def _engine(self, key: str) -> EngineInfo:
        try:
            return self.engines[key]
        except KeyError:
            raise LookupError(f"there is no engine {key}") from None

    async def signal(self, key: str, signum: int) -> str:
        """Send a signal to an engine; "" or why it cannot be done."""
        if key not in self.engines:
            return f"there is no engine {key} any more"
        info = self.engines[key]
        if self.supervisor is not None and self.supervisor.owns(info.pid):
            # by its parent: that works even when the engine holds its interpreter lock
            await self.supervisor.kill(info.pid, signum)
            return ""
        return str(await self.scheduler.rpc(info.address).pxcompat_signal(signum=signum))

    def _own_supervisor(self) -> Supervisor:
        if self.supervisor is None:
            raise RuntimeError(
                "this Dask cluster was not started by pxcompat; scale it with the tool that "
                "started it"
            )
        return self.supervisor

    async def start_engines(self, n: int, mpi: list[str] | None, env: dict[str, str]) -> list[str]:
        """Start engines beside those that are there; their keys."""
        supervisor = self._own_supervisor()
        self._begin()
        keys = [uuid.uuid4().hex for _ in range(n)]
        if mpi is not None:
            ranks = self._worlds.start(mpi, keys)
            # not as they come: in the order of their ranks
            self._successors.update((key, (next(self._ids), key)) for key in keys)
        else:
            ranks = {}
        await supervisor.start_engines({key: key for key in keys}, ranks, env)
        return keys

    def _begin(self) -> None:
        """Engines are about to start: what became of others says nothing of these."""
        self._stillborn.clear()
        self._tell_all(("starting",))

    async def restart_engines(self, keys: list[str]) -> list[str]:
        """Kill engines and start others under their ids; the keys of those."""
        supervisor = self._own_supervisor()
        for key in keys:
            self._engine(key)  # before anything is ended
        wanted, worlds = self._worlds.dissolve(keys)
        infos = [self._engine(key) for key in wanted]
        started = {uuid.uuid4().hex: info for info in infos}
        for info in infos:
            # said before anything can see it go
            self._reasons[info.key] = "it was restarted"
            supervisor.kill(info.pid, signal.SIGKILL)
        async with self.changed:
            await self.changed.wait_for(lambda: not any(key in self._reasons for key in wanted))
        self._begin()
        for key, info in started.items():
            self._successors[key] = info.id, info.name
        new = dict(zip(wanted, started, strict=True))
        ranks: dict[str, str] = {}
        for world in worlds:
            ranks |= self._worlds.start(world.command, [new[key] for key in world.keys])
        await supervisor.start_engines({key: info.name for key, info in started.items()}, ranks)
        return list(started)

    def _end_rank(self, key: str, reason: str) -> None:
        """End an engine whose MPI world has ended."""
        supervisor = self._own_supervisor()
        pid = supervisor.pid(key)
        if pid is not None:
            self._reasons.setdefault(key, reason)
            supervisor.kill(pid, signal.SIGKILL)

    async def stop_engines(self, keys: list[str], force: bool) -> None:
        """Stop engines, after what they have queued or at once; return when they are gone."""
        keys, _ = self._worlds.dissolve(keys)
        for key in keys:
            if (info := self.engines.get(key)) is None:
                continue  # it has ended meanwhile
            owned = self.supervisor is not None and self.supervisor.owns(info.pid)
            if force and owned:
                self.supervisor.kill(info.pid, 9)  # type: ignore[union-attr]
            elif info.own_process:
                await self.scheduler.rpc(info.address).pxcompat_stop()
            else:
                await self.scheduler.retire_workers(workers=[info.address])

    async def stop(self) -> None:
        """Stop the whole cluster."""
        self._own_supervisor().stop()


async def enlist(client: str, dask_scheduler: Scheduler) -> None:
    """Announce a client to the registry of an adopted cluster; there is one from then on.

    Runs in the scheduler.  One that is just being taken down is waited for.
    """
    while (registry := dask_scheduler.plugins.get(Registry.name)) is None:
        leaving = _leaving.get(dask_scheduler)
        if leaving is not None and not leaving.done():
            await asyncio.wait([leaving])
            continue
        registry = Registry(adopted=True)
        await registry.start(dask_scheduler)  # at once: nobody else comes in between
        dask_scheduler.add_plugin(registry, name=Registry.name)
    registry.expect(client)  # type: ignore[attr-defined]

"""The actor that knows the engines: who is there, what became of them, and what they say."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
import signal
import tempfile
import threading
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import asdict
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import pxcompat
from pxcompat.error import BackendError
from pxcompat.protocol import EngineInfo, Fate

from ..fates import Fates
from ..mpi import Worlds
from .engine import EngineActor
from .following import Follower
from .mail import Mail, Sign
from .post import Letter
from .signalling import Signallers, send_signal

__all__ = ["NAME", "Registry", "create"]

log = logging.getLogger("pxcompat.ray")

#: the actor's name in its cluster's namespace
NAME = "registry"
#: calls that may wait in it: two for each client, one for each engine, and their questions
CALLS = 100_000
#: seconds without a cluster's controller asking whether it has ended, after which it is taken for
#: dead; and for the first client to come, where the registry goes with the last one
SILENCE = 30
#: what Ray adds to every message of its kind
BOILERPLATE = (
    " Some common causes include",
    "\nThe actor never ran",
    "\nPlease check",
    " To see information about where this ObjectRef",
)
#: seconds in which who starts a cluster asks for its engines, if there are to be any
SOON = 5
#: seconds for engines to end when the last client leaves
LEAVING = 5
#: seconds for engines to end in good order when their cluster does
FAREWELL = 2
#: engines remembered that ended before they were there
STILLBORN = 64


class _Entry:
    """One engine."""

    def __init__(self, key: str, id: int, name: str, order: dict[str, Any]) -> None:
        self.key = key
        self.id = id
        #: its key, or that of the first engine that had its id
        self.name = name
        #: the cluster's, with what was asked for this one
        self.order = order
        self.handle: Any = None
        self.info: EngineInfo | None = None
        self.node = ""
        self.born = 0.0
        self.registered = asyncio.Event()
        self.gone = asyncio.Event()
        #: why it ends, where we know better than Ray
        self.reason: str | None = None
        self.questions: deque[tuple[Any, ...]] = deque()
        self.asked = asyncio.Condition()
        #: (session, call_id) of questions that it has not answered
        self.unanswered: set[tuple[str, int]] = set()


class Registry:
    """Knows every engine, gives it its id, and passes on what clients and engines say.

    Ids rise and are never given twice.  An asynchronous actor: nothing here blocks.

    Parameters
    ----------
    order : dict
        ``setup``: how engines are set up (see :class:`EngineActor`);
        ``actor``: Ray's options of their actors (``num_cpus``, ``resources`` ...);
        ``namespace``: the cluster's; ``patience``: seconds for an engine to come up;
        ``silence``: seconds, see SILENCE; ``adopted``: whether it is on a Ray that somebody else
        runs and goes with its last client.
    """

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._me = ray.get_runtime_context().current_actor
        self._node = ray.get_runtime_context().get_node_id()
        self._never: Any = None
        self._actor: Any = ray.remote(EngineActor)
        self._ids = itertools.count()
        self._engines: dict[str, _Entry] = {}
        self._stillborn: deque[tuple[str, str]] = deque(maxlen=STILLBORN)
        #: those after which others were started, of which they say nothing
        self._past: set[str] = set()
        self._mail = Mail()
        self._fates = Fates(self._ask)
        self._signallers = Signallers()
        self._silence = order.get("silence", SILENCE)
        #: whether anybody came who goes some time
        self._claimed = False
        #: what the controller has said of the dashboard
        self._dashboard: tuple[str, ...] = ()
        #: of the controller, once it has called
        self._holder: Sign | None = None
        self._adopted = order.get("adopted", False)
        self._leaving = False
        self._follower: Follower | None = None
        if self._adopted:
            # a client that died before it came
            timer = threading.Timer(self._silence, self._claim)
            timer.daemon = True
            timer.start()
        self._asked = asyncio.Event()
        self._ended = asyncio.Event()
        self._worlds = Worlds(self._end_rank, order["setup"]["folder"] or tempfile.gettempdir())
        self._tasks: set[asyncio.Task[Any]] = set()

    def _background(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _claim(self) -> None:
        if not self._claimed:
            ray.kill(self._me)

    # -- what clients call ---------------------------------------------------------

    async def version(self) -> str:
        """Of the package here: a client's is to be the same."""
        return pxcompat.__version__

    async def stay(self, session: str) -> None:
        """A client is there; returns when it has left.  First of all that it calls."""
        if self._leaving:
            await self.forever()  # until this has ended, and the client makes another one
        self._claimed = True
        await self._mail.keep(session)

    async def hello(self, session: str, stays: Sequence[Any]) -> list[tuple[Any, ...]]:
        """A client introduces itself; what there is to know, as the first messages of its mail.

        Parameters
        ----------
        stays : [ObjectRef]
            What its call of :meth:`stay` returns.  The client owns that, and Ray says when the
            owner is gone.
        """
        if self._leaving:
            await self.forever()
        self._background(self._miss(session, stays[0]))
        self._mail.clear(session)  # what came since it stays is known, too
        known: list[tuple[Any, ...]] = [
            ("up", asdict(e.info), e.handle) for e in self._engines.values() if e.info is not None
        ]
        recent = [entry for entry in self._stillborn if entry[0] not in self._past]
        known += [("down", key, reason) for key, reason in recent]
        return [*known, self._dashboard] if self._dashboard else known

    async def listen(self, session: str) -> list[tuple[Any, ...]] | None:
        """A client's mail, once there is some; None when we do not know the client (any more)."""
        return await self._mail.take(session)

    async def goodbye(self, session: str) -> None:
        """A client leaves.  On a Ray that somebody else runs, the last one takes all along."""
        await self._forget(session)

    async def ask(self, session: str, call_id: int, key: str, op: str, args: Any) -> None:
        """Ask an engine; the answer comes by mail."""
        entry = self._engines.get(key)
        if entry is None:
            await self._mail.put(session, ("answer", call_id, None, f"there is no engine {key}"))
            return
        entry.unanswered.add((session, call_id))
        await self._question(entry, (session, call_id, op, args))

    async def command(self, session: str, call_id: int, op: str, args: dict[str, Any]) -> None:
        """Ask the registry itself; the answer comes by mail."""
        commands: dict[str, Callable[..., Awaitable[Any]]] = {
            "unassigned": self.unassigned,
            "fates": self._fates.of,
            "signal": self.signal,
            "start_engines": self.start_engines,
            "stop_engines": self.stop_engines,
            "restart_engines": self.restart_engines,
            "stop": self.stop,
        }
        try:
            answer = ("answer", call_id, True, await commands[op](**args))
        except Exception as error:
            log.exception("a client's question %r failed", op)
            answer = ("answer", call_id, False, f"{type(error).__name__}: {error}")
        await self._mail.put(session, answer)

    async def _ask(self, session: str, message: tuple[Any, ...]) -> bool:
        await self._mail.put(session, message)
        return session in self._mail

    async def say_fates(self, number: int, fates: dict[str, Fate]) -> None:
        """A client says what has become of requests of its."""
        self._fates.say(number, fates)

    async def note(self, session: str, unassigned: list[str]) -> None:
        """A client says which of its requests no engine has yet."""
        self._mail.note(session, unassigned)

    # -- what engines call -----------------------------------------------------------

    async def register(self, key: str, pid: int, host: str, own_process: bool, node: str) -> None:
        """An engine is ready."""
        entry = self._engines.get(key)
        if entry is None:
            raise LookupError(f"the engine {key} was given up before it was ready")
        address = f"{host}:{pid}"
        entry.info = EngineInfo(key, entry.id, pid, host, address, own_process, entry.name)
        entry.node = node
        if node == self._node:
            entry.born = psutil.Process(pid).create_time()
        entry.registered.set()
        await self._mail.put_to_all(("up", asdict(entry.info), entry.handle))

    async def questions(self, key: str) -> list[tuple[Any, ...]]:
        """The questions to an engine, once there are some."""
        entry = self._engines[key]
        async with entry.asked:
            await entry.asked.wait_for(lambda: entry.questions)
            asked = list(entry.questions)
            entry.questions.clear()
        return asked

    async def tell(self, letters: Sequence[Letter]) -> None:
        """Letters for clients; returns when there is room for more."""
        for session, message, nbytes in letters:
            if message[0] == "answer":
                for entry in self._engines.values():
                    entry.unanswered.discard((session, message[1]))
            await self._mail.put(session, message, nbytes)
        for session in {letter[0] for letter in letters}:
            await self._mail.room(session)

    # -- clients that are gone ---------------------------------------------------------

    async def _miss(self, session: str, stays: Any) -> None:
        """Forget a client that dies without a word."""
        with contextlib.suppress(ray.exceptions.RayError):
            await stays
        await self._forget(session)

    async def _forget(self, session: str) -> None:
        if not await self._mail.close(session):
            return
        if self._adopted and not self._mail:
            await self._leave()
            return
        for entry in list(self._engines.values()):
            await self._question(entry, (session, -1, "forget", {"client": session}))

    async def _leave(self) -> None:
        """End, and leave a Ray that somebody else runs as it was."""
        self._leaving = True
        entries = list(self._engines.values())
        await self.stop()
        gone = [asyncio.ensure_future(entry.gone.wait()) for entry in entries]
        if gone:  # and with them their names, which the next client's are to have
            await asyncio.wait(gone, timeout=LEAVING)
        ray.kill(self._me)

    async def _question(self, entry: _Entry, question: tuple[Any, ...]) -> None:
        async with entry.asked:
            entry.questions.append(question)
            entry.asked.notify_all()

    # -- the life of engines ------------------------------------------------------------

    async def forever(self) -> None:
        """Never returns: what it would return is what :meth:`EngineActor.bye` waits for."""
        await asyncio.Event().wait()

    async def start_engines(
        self, n: int, mpi: list[str] | None = None, asked: dict[str, Any] | None = None
    ) -> list[str]:
        """Start engines; their keys.  They register when they are ready.

        ``asked`` is in place of what the cluster's order says: of ``actor`` some options, and
        ``patience`` and ``engine``; ``env`` is added to the environment that it says.
        """
        if self._never is None:
            self._never = self._me.forever.remote()
        if n:
            self._asked.set()
        await self._begin()
        keys = [uuid.uuid4().hex for _ in range(n)]
        ranks = self._start_world(mpi, keys) if mpi is not None else {}
        order = self._order_with(asked or {})
        for key in keys:
            self._start_engine(key, next(self._ids), order, rank=ranks.get(key))
        return keys

    async def _begin(self) -> None:
        """Engines are about to start: what became of others says nothing of these."""
        self._past = {key for key, _ in self._stillborn}
        await self._mail.put_to_all(("starting",))

    def _order_with(self, asked: dict[str, Any]) -> dict[str, Any]:
        order, setup = self._order, self._order["setup"]
        actor = {**order["actor"], **asked.get("actor", {})}
        if env := asked.get("env"):
            runtime = actor.get("runtime_env") or {}
            actor["runtime_env"] = {**runtime, "env_vars": {**runtime.get("env_vars", {}), **env}}
        return {
            **order,
            "actor": actor,
            "patience": asked.get("patience", order["patience"]),
            "setup": {**setup, "engine": {**setup["engine"], **asked.get("engine", {})}},
        }

    def _start_world(self, command: Sequence[str], keys: Sequence[str]) -> dict[str, str]:
        strategy = self._order["actor"].get("scheduling_strategy")
        if strategy is not None:
            raise BackendError(
                f"scheduling_strategy={strategy!r} cannot be had with an MPI world: its engines "
                "are on one node, where the cluster's controller is"
            )
        return self._worlds.start(command, keys)

    def _end_rank(self, key: str, reason: str) -> None:
        """End an engine whose MPI world has ended."""
        entry = self._engines.get(key)
        if entry is not None:
            entry.reason = entry.reason or reason
            ray.kill(entry.handle)

    async def follows(self) -> bool:
        """Whether engines come with nodes."""
        return self._follower is not None

    async def follow(self) -> list[str]:
        """Have engines on every node, also on those to come; the keys of the first."""
        if self._follower is not None:
            return []
        if self._never is None:
            self._never = self._me.forever.remote()

        def start(count: int, node: str) -> list[str]:
            keys = [uuid.uuid4().hex for _ in range(count)]
            for key in keys:
                self._start_engine(key, next(self._ids), self._order, node=node)
            return keys

        def waiting() -> int:
            return len(self._mail.unassigned())

        self._follower = Follower(self._order["actor"], start, waiting)
        keys = await self._follower.look()
        self._following = self._background(self._follower.follow())
        return keys

    async def restart_engines(self, keys: list[str]) -> list[str]:
        """Kill engines and start others under their ids; the keys of those."""
        for key in keys:
            self._entry(key)  # before anything is ended
        wanted, worlds = self._worlds.dissolve(keys)
        entries = [self._entry(key) for key in wanted]
        if self._never is None:
            self._never = self._me.forever.remote()
        for entry in entries:
            entry.reason = "it was restarted"
            ray.kill(entry.handle)
        for entry in entries:
            await entry.gone.wait()
        await self._begin()
        new = {entry.key: uuid.uuid4().hex for entry in entries}
        ranks: dict[str, str] = {}
        for world in worlds:
            ranks |= self._start_world(world.command, [new[key] for key in world.keys])
        for entry in entries:
            key = new[entry.key]
            node = entry.node if self._follower is not None else ""
            self._start_engine(
                key, entry.id, entry.order, entry.name, rank=ranks.get(key), node=node
            )
        return list(new.values())

    async def await_engines(self, keys: Sequence[str]) -> list[str]:
        """Wait until engines are up or given up; why those that are not."""
        waiting = [entry for key in keys if (entry := self._engines.get(key)) is not None]
        for entry in waiting:
            up = asyncio.ensure_future(entry.registered.wait())
            gone = asyncio.ensure_future(entry.gone.wait())
            await asyncio.wait([up, gone], return_when=asyncio.FIRST_COMPLETED)
            up.cancel()
            gone.cancel()
        ended = dict(self._stillborn)
        return [ended[key] for key in keys if key in ended]

    async def settled(self) -> None:
        """Return when the first engines are there, or when nobody asks for any."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._asked.wait(), SOON)
        await self.await_engines(list(self._engines))

    def _start_engine(
        self,
        key: str,
        id: int,
        order: dict[str, Any],
        name: str = "",
        *,
        rank: str | None = None,
        node: str = "",
    ) -> None:
        entry = _Entry(key, id, name or key, order)
        options = dict(order["actor"])
        if node:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
        if rank is not None:  # a socket of this node's
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(self._node, soft=False)
        actor = self._actor.options(
            name=f"engine-{id}",
            namespace=self._order["namespace"],
            max_restarts=0,  # a restarted engine without its names would lie
            max_task_retries=0,
            **options,
        )
        setup = {**order["setup"], "log": entry.name[:8], "rank": rank}
        entry.handle = actor.remote(self._me, key, id, setup)
        self._engines[key] = entry
        self._background(self._watch(entry))
        self._background(self._expect(entry))

    async def _watch(self, entry: _Entry) -> None:
        """Wait for the end of an engine, and say so."""
        reason = "it ended"
        try:
            await entry.handle.bye.options(name=f"px:watch:{entry.id}").remote(self._never)
        except ray.exceptions.RayError as error:
            reason = why(error)
        await self._lost(entry, entry.reason or reason)

    async def _lost(self, entry: _Entry, reason: str) -> None:
        """An engine is gone, or given up; say so, once."""
        if self._engines.pop(entry.key, None) is None:
            return
        self._worlds.lost(entry.key, reason)
        if entry.info is None:
            self._stillborn.append((entry.key, reason))
        for session, call_id in entry.unanswered:
            await self._mail.put(session, ("answer", call_id, None, f"engine {entry.id}: {reason}"))
        await self._mail.put_to_all(("down", entry.key, reason))
        entry.gone.set()

    async def _expect(self, entry: _Entry) -> None:
        """Give an engine up that Ray finds no place for."""
        try:
            await asyncio.wait_for(entry.registered.wait(), entry.order["patience"])
        except asyncio.TimeoutError:
            if entry.gone.is_set():
                return
            reason = await asyncio.to_thread(_no_place, entry.order)
            ray.kill(entry.handle)
            await self._lost(entry, reason)  # Ray takes its time to say so of what never ran

    def _entry(self, key: str) -> _Entry:
        try:
            return self._engines[key]
        except KeyError:
            raise LookupError(f"there is no engine {key}") from None

    async def stop_engines(self, keys: list[str], force: bool) -> None:
        """Stop engines, after what they have queued or at once; return when they are gone."""
        keys, _ = self._worlds.dissolve(keys)
        entries = [self._engines[key] for key in keys if key in self._engines]
        for entry in entries:
            entry.reason = "it was shut down"
            if force:
                ray.kill(entry.handle)
            else:
                # by way of its own thread: our calls wait for the one to `bye`
                await self._question(entry, ("", -1, "stop", {}))
        for entry in entries:
            await entry.gone.wait()

    async def bury(self, key: str) -> None:
        """An engine has ended in good order."""
        ray.kill(self._entry(key).handle)

    async def signal(self, key: str, signum: int) -> str:
        """Send a signal to an engine's process; "" or why it cannot be done."""
        if key not in self._engines:
            return f"there is no engine {key} any more"
        entry = self._engines[key]
        if entry.info is None:
            return "it is still starting"
        if signum == signal.SIGKILL:
            entry.reason = f"its process was killed by signal {int(signum)} (SIGKILL)"
        if entry.node == self._node:
            return send_signal(entry.info.pid, entry.born, signum)
        return await self._signallers.send(entry.node, entry.info.pid, signum)

    async def unassigned(self) -> list[str]:
        """Ids of balanced requests that no engine has yet, as far as clients have said."""
        return self._mail.unassigned()

    async def serve(self, url: str, why: str) -> None:
        """The controller says where the cluster's dashboard is, or why there is none."""
        self._dashboard = ("dashboard", url, why)
        await self._mail.put_to_all(self._dashboard)

    async def ended(self) -> bool:
        """Whether somebody asked for the cluster's end; asked again and again by its controller,
        without which a cluster on somebody else's Ray would have nobody to end it."""
        if self._holder is None:
            self._holder = Sign()
            self._claimed = True
            self._background(self._end_with(self._holder))
        with self._holder, contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._ended.wait(), self._silence / 3)
        return self._ended.is_set()

    async def _end_with(self, controller: Sign) -> None:
        """End the cluster when its controller did."""
        while not controller.silent(self._silence):
            await asyncio.sleep(self._silence / 3)
        await self.stop()
        ray.kill(self._me)

    async def stop(self) -> None:
        """End the cluster: the engines, and what holds it when that hears of it."""
        if self._follower is not None:
            self._following.cancel()
            self._follower.stop()
            self._follower = None
        self._signallers.close()
        self._worlds.dissolve(list(self._engines))
        ending = []
        for entry in list(self._engines.values()):
            entry.reason = "its cluster was stopped"
            if entry.info is not None:
                await self._question(entry, ("", -1, "stop", {}))
                ending.append(asyncio.ensure_future(entry.gone.wait()))
        if ending:  # as Python programs end: libraries have things to put away
            await asyncio.wait(ending, timeout=FAREWELL)
        for entry in self._engines.values():
            ray.kill(entry.handle)
        await self._worlds.close()
        self._ended.set()


def _no_place(order: dict[str, Any]) -> str:
    """Why Ray has found no place for an engine: which resources it lacks."""
    actor = order["actor"]
    wanted = {"CPU": actor.get("num_cpus"), "GPU": actor.get("num_gpus")}
    wanted |= actor.get("resources") or {}
    has, free = ray.cluster_resources(), ray.available_resources()
    asked = ", ".join(f"{amount:g} {name}" for name, amount in wanted.items() if amount)
    missing = [
        f"{name} ({free.get(name, 0):g} free of {has.get(name, 0):g} in the cluster)"
        for name, amount in wanted.items()
        if amount and free.get(name, 0) < amount
    ]
    lacks = f"what is missing: {', '.join(missing)}" if missing else "its process did not start"
    return (
        f"Ray did not start it within {order['patience']:g} s. It asks for "
        f"{asked or 'no resources'}; {lacks}. Start fewer engines, free or add resources, or have "
        "engines ask for less (num_cpus, num_gpus, resources of c.RayBackend)"
    )


def why(error: BaseException) -> str:
    """What Ray says of an actor's end, without what it says every time."""
    text = str(error)
    found = re.search(r"The actor (?:is dead|died) because (.*)", text, re.DOTALL)
    cause = found[1] if found else text
    for boilerplate in BOILERPLATE:
        cause = cause.partition(boilerplate)[0]
    if "INTENDED_USER_EXIT" in cause or "exit_actor" in cause:
        return "it was shut down"
    return " ".join(cause.split()).rstrip(".")


def create(order: dict[str, Any], *, detached: bool) -> Any:
    """Start the registry of a cluster; its handle.

    Parameters
    ----------
    detached
        Whether it, and with it the engines, outlives this process.
    """
    return (
        ray.remote(Registry)
        .options(
            name=NAME,
            namespace=order["namespace"],
            num_cpus=0,
            # where it brings the package along
            runtime_env=order["actor"].get("runtime_env") if order["adopted"] else None,
            max_concurrency=CALLS,
            max_restarts=0,
            lifetime="detached" if detached else None,
            # Here, and not on a node that may go while we stay.  Soft, as a node that is new may
            # not be known everywhere; and with a resource, if as good as none, since an actor
            # that asks for something is placed by its owner's node, which knows itself, and
            # one that asks for nothing by any.
            memory=1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=True
            ),
        )
        .remote(order)
    )

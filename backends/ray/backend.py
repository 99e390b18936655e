"""A client's connection to a Ray cluster of engines."""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import signal as signals
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError

from pxcompat.engine import engine_of_process
from pxcompat.engine.interrupts import Condition, OwnFuture, uninterrupted
from pxcompat.error import EngineError
from pxcompat.objects import RemoteReference
from pxcompat.protocol import (
    Capabilities,
    EngineInfo,
    EventSink,
    Frames,
    Handle,
    OutputEvent,
    Part,
    Reply,
    Request,
)

from ..answers import accepted, cancelled
from ..shared import SharedFrames, can_share
from . import registry, session
from .announcing import Announcer
from .awaiting import MOMENT, Awaiting
from .balanced import Placer
from .collections import put_together, take_apart
from .connecting import greet, populate
from .later import heard
from .lending import hand_over
from .objects import Kept, StoredObject, accept
from .ordering import Outputs
from .outbox import Pace
from .peer import Peer, UnderWay
from .questions import Questions
from .wire import (
    LARGE,
    StoredFrames,
    pack_frames,
    size,
    unpack_frames,
    unpack_output,
    unpack_reply,
)

__all__ = ["RayBackend"]

log = logging.getLogger("pxcompat.ray")

UNDEALT = "an event of the cluster could not be dealt with"

#: seconds for the last client on somebody else's Ray to take all along
LEAVING = 8


class _Loop:
    """What ipyparallel's tests, and few others, do with a client's ``_io_loop``."""

    def __init__(self, events: queue.SimpleQueue[Callable[[], None] | None]) -> None:
        self._events = events

    def add_callback(self, callback: Callable[[], None]) -> None:
        """Call something on the thread."""
        self._events.put(callback)


class RayBackend:
    """:class:`pxcompat.protocol.Backend` on Ray.

    Parameters
    ----------
    info : dict
        ``address``, ``namespace`` and ``token`` of a cluster, as a connection file has them;
        ``adopt``: how to start engines where none are (``n``, ``options``, ``setup``).
    """

    name = "ray"

    def __init__(self, info: Mapping[str, Any]) -> None:
        self._info = info
        self._session: session.Session | None = None
        self._dashboard = str(info.get("dashboard") or "")
        #: told what became of the dashboard
        self.on_dashboard: Callable[[str, str], None] = self._hear_dashboard
        #: whether results are to come as bytes: Ray Client knows no buffers
        self.in_band = False
        self.registry: Any = None
        self._lock = threading.RLock()
        self._peers: dict[str, Peer] = {}
        self._met = Condition()
        self._outputs = Outputs()
        self._questions = Questions()
        self.pace = Pace()
        self._placer = Placer(self)
        #: whatever arrives, for the one thread that tells the sink
        self._events: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="pxcompat-ray", daemon=True)
        #: held by who deals with one of them, which may be another thread: see ``awaiting``
        self._turn = threading.RLock()
        self.awaiting = Awaiting(self.connected, self._fetched, self._follow)
        self._announcer = Announcer(self)
        self._closed = False
        #: set when nothing more is to come
        self._ended = threading.Event()
        self.adopted = "adopt" in info
        # where we started none, nobody knows whether the nodes have what MPI needs
        self.capabilities = Capabilities(
            put_threshold=LARGE, collections="ray", mpi=not self.adopted
        )
        self.sink: EventSink

    # -- connecting ------------------------------------------------------------------

    def open(self, sink: EventSink, *, timeout: float = 5) -> None:
        self.sink = sink
        self._session = session.join(self._info, timeout)
        self._dashboard = self._dashboard or self._session.dashboard
        self.in_band = self._session.remote
        try:
            with self._session:
                self.registry, known = greet(
                    self._info, self._session, sink.session, time.monotonic() + timeout
                )
                expected = sum(message[0] == "up" for message in known)
                if self.adopted:
                    expected = populate(self._info, self.registry, expected)
                    # engines come with nodes, unless somebody said how many there are to be
                    grows = ray.get(self.registry.follows.remote(), timeout=timeout)
                    self.capabilities = replace(self.capabilities, grows=grows)
        except BaseException:
            self.close()
            raise
        with uninterrupted():  # close() counts on both threads, or on neither
            self._announcer.start()
            self._thread.start()
        self._events.put(lambda: self._hear(known))
        self._listen()
        with self._met:
            self._met.wait_for(lambda: len(self._peers) >= expected, timeout)

    # -- what arrives ------------------------------------------------------------------

    def _run(self) -> None:
        """Tell the sink what arrives, one thing after the other."""
        while True:
            peers = list(self._peers.values())
            waiting = [p.deadline for p in peers if p.deadline is not None]
            waiting += [due for p in peers if (due := p.outbox.due) is not None]
            try:
                timeout = max(0.0, min(waiting) - time.monotonic()) if waiting else None
                event = self._events.get(timeout=timeout)
            except queue.Empty:
                self._bury(time.monotonic())
                for peer in peers:
                    if (due := peer.outbox.due) is not None and due <= time.monotonic():
                        peer.leave()
                continue
            if event is None:
                return
            with self._turn:
                self._deal_with(event)
            del event  # with the large result that it may have: the next may not come for long

    def _deal_with(self, event: Callable[[], None]) -> None:
        try:
            event()
        except Exception:
            log.exception(UNDEALT)

    def _listen(self) -> None:
        """Ask for our mail; asked again when it comes."""
        with self.connected():
            mail = self.registry.listen.remote(self.sink.session).future()
        mail.add_done_callback(lambda mail: self._events.put(lambda: self._receive(mail)))

    def _receive(self, mail: Future[Any]) -> None:
        if self._ended.is_set():
            return
        failure = mail.exception()
        if failure is None and mail.result() is not None:
            try:
                self._listen()
            except EngineError as error:  # somebody called ray.shutdown()
                self._hear(mail.result())
                self._lost(str(error))
            else:
                self._hear(mail.result())
            return
        reason = registry.why(failure) if failure is not None else "it does not know us any more"
        self._lost(f"the Ray cluster at {self._info['address']} is out of reach: {reason}")

    def _hear(self, messages: Sequence[tuple[Any, ...]]) -> None:
        for message in messages:
            kind, *fields = message
            if kind == "up":
                self._meet(*fields)
            elif kind == "down":
                self._down(*fields)
            elif kind == "starting":
                self.sink.engines_starting()
            elif kind == "output":
                msg_id, *event = fields
                self._outputs.take(self.sink, msg_id, unpack_output(*event))
            elif kind == "reply":
                self._mailed_reply(unpack_reply(*fields))
            elif kind == "answer":
                self._questions.answer(*fields)
            elif kind == "fates?":
                self._say_fates(*fields)
            elif kind == "dashboard":
                self.on_dashboard(*fields)

    def _say_fates(self, number: int, msg_ids: Sequence[str]) -> None:
        """Say what has become of requests of ours; to what was sent before this was closed engines
        come in their time."""
        fates = self.sink.fates(msg_ids)
        for peer in list(self._peers.values()):
            fates |= {msg_id: ("held", None) for msg_id in msg_ids if msg_id in peer.sent}
        with contextlib.suppress(EngineError), self.connected():
            self.registry.say_fates.remote(number, fates)

    def _hear_dashboard(self, url: str, why: str) -> None:
        self._dashboard = heard(url, why)

    def _meet(self, info: Mapping[str, Any], handle: Any) -> None:
        peer = Peer(EngineInfo(**info), handle, self)
        for predecessor in list(self._peers.values()):
            if predecessor.info.id == peer.info.id:
                # its last words had as long as it takes to start a process
                predecessor.deadline = 0
                self._bury(0)
        with self._lock:
            self._peers[peer.info.key] = peer
        self.sink.engine_up(peer.info)
        if peer.info.host == socket.gethostname() and can_share() and not self.in_band:
            peer.find_out()
        with self._met:
            self._met.notify_all()
        self._placer.place()

    def _down(self, key: str, reason: str) -> None:
        peer = self._peers.get(key)
        if peer is None:
            self.sink.engine_down(key, reason)  # it never was up
            return
        peer.end(reason)
        self._bury(0)

    def _bury(self, now: float) -> None:
        """Report engines that are gone, once all they said is here."""
        for key, peer in list(self._peers.items()):
            why = peer.ended(now)
            if why is not None:
                with self._lock:
                    del self._peers[key]
                self.sink.engine_down(key, why)
                self._placer.engine_gone(key)

    def _lost(self, reason: str) -> None:
        """The cluster is gone."""
        if self._session is not None:
            self._session.lost()
        for key in list(self._peers):
            self._peers.pop(key)
            self.sink.engine_down(key, reason)
        self._questions.lost(reason)
        self._placer.close()
        self.sink.disconnected(reason)
        self._end_if_idle()

    def _mailed_reply(self, reply: Reply) -> None:
        """A reply that did not wait for its call to end, or of what was announced, nested, or
        another client's."""
        self.replied(self._peers.get(reply.engine or ""), [reply])
        self._end_if_idle()

    def replied(self, peer: Peer | None, replies: Sequence[Reply]) -> None:
        """Requests of ours, or of others, have their replies; on the thread."""
        if peer is not None:
            replies = peer.settle(replies)
            self._placer.finished(replies)
        for reply in replies:
            self._outputs.complete(reply)
            self.sink.reply(reply)

    def output(self, msg_id: str, event: OutputEvent) -> None:
        """A request of ours has output; on the thread."""
        self._outputs.take(self.sink, msg_id, event)

    def returned(self, peer: Peer) -> None:
        """A call of an engine's actor ended, and was dealt with; on the thread."""
        if peer.deadline is not None:
            self._bury(0)
        if self._closed:
            self._end_if_idle()

    def later(self, event: Callable[[], None]) -> None:
        """Have the thread call something, after what it has to do already.  Thread-safe."""
        self._events.put(event)

    # -- requests ----------------------------------------------------------------------

    def send(self, key: str, requests: Sequence[Request]) -> None:
        peer = self._peers.get(key)
        try:
            if peer is None:
                raise EngineError("no such engine")
            peer.give(requests)
        except EngineError as error:
            self.sink.engine_down(key, str(error))
        self._announcer.wake()

    def send_balanced(self, requests: Sequence[Request], candidates: Sequence[str] | None) -> None:
        self._placer.submit(requests, candidates)
        self._announcer.wake()  # the registry is told of what waits, also where no engine is

    def awaited(self) -> AbstractContextManager[None]:
        return self.awaiting.block()

    def _fetched(self, replies: Iterable[tuple[UnderWay, Any]]) -> None:
        """Replies are here that their thread has fetched itself."""
        for call, value in replies:
            if not self._turn.acquire(timeout=MOMENT):
                # a user's callback that takes long is no reason to keep interrupts off
                self.later(functools.partial(call.peer.returned, call, value))
                continue
            try:
                call.peer.returned(call, value)
            except Exception:
                log.exception(UNDEALT)
            finally:
                self._turn.release()

    def _follow(self, call: UnderWay) -> None:
        """A reply has not come at once."""
        try:
            with self.connected():
                call.follow()
        except EngineError as error:  # somebody called ray.shutdown()
            self.sink.engine_down(call.peer.info.key, str(error))

    def fetch(self, stored: StoredFrames, *, copy: bool = True) -> Frames:
        """Bring frames from the object store, into memory of this process or as they are there."""
        try:
            with self.connected():
                frames = unpack_frames(ray.get(stored.ref), copy=copy)
        except RayError as error:
            raise EngineError(
                f"a result of {stored.nbytes} bytes is lost: it was not fetched before the node "
                f"that held it went ({registry.why(error)})"
            ) from error
        return frames or []

    def put(self, frames: Frames, keys: Sequence[str]) -> Handle:
        peers = [self._peers.get(key) for key in keys]
        near = all(peer is not None and peer.near for peer in peers)
        if isinstance(handed := hand_over(frames, near), SharedFrames):
            return handed
        with self.connected():
            return StoredFrames(ray.put(pack_frames(frames)), size(frames))

    def accept(self, obj: Any) -> StoredObject:
        return accept(obj, self._info["address"])

    def take_apart(self, obj: Any, keys: Sequence[str], *, copy: bool) -> Sequence[Any] | None:
        with self.connected():
            return take_apart(obj, len(keys), self._info["address"], copy=copy)

    def put_together(self, name: str, parts: Sequence[Part]) -> Any:
        gone = [part.engine for part in parts if part.key not in self._peers]
        if gone:
            raise EngineError(f"engines {gone} are gone, with their parts of {name!r}")
        with self.connected():
            given = {part.key: self._peers[part.key].give_aside(name, part.token) for part in parts}
            return put_together(name, parts, given)

    def reference(
        self, name: str, key: str, engine: int, keep: Callable[[Any], Any]
    ) -> RemoteReference:
        return RemoteReference(name, key, engine, keep)  # Ray's serialization knows it: .objects

    def keep(self, key: str, request: Request, *, uses: int | None) -> Kept:
        peer = self._peers.get(key)
        if peer is None:
            raise EngineError("the engine whose value is wanted is gone")
        own = engine_of_process()
        if request.header.get("nested") and own is not None and own.key == key:
            raise EngineError(
                "code on an engine cannot refer to a name of its own engine, which is busy with "
                "that code: send the value"
            )
        with uninterrupted(), self.connected():
            return peer.keep(request)

    # -- questions -----------------------------------------------------------------------

    def control(self, key: str | None, op: str, args: Mapping[str, Any]) -> Future[Any]:
        peer = None if key is None else self._peers.get(key)
        if key is not None and peer is None:
            answer: Future[Any] = OwnFuture()
            answer.set_exception(EngineError(f"there is no engine {key}"))
            return answer
        name = "the cluster's registry" if peer is None else f"engine {peer.info.id}"
        call_id, answer = self._questions.new(name)
        try:
            with uninterrupted(), self.connected():
                self._ask(call_id, peer, op, dict(args))
        except EngineError as error:
            self._questions.answer(call_id, None, str(error))
        return answer

    def _ask(self, call_id: int, peer: Peer | None, op: str, args: dict[str, Any]) -> None:
        me = self.sink.session
        for waiting in list(self._peers.values()):
            waiting.outbox.flush()  # what was sent before comes before
        if peer is not None:
            # what waits in Ray's queue counts, too
            args["announced"] = peer.unannounced(0)
            self.registry.ask.remote(me, call_id, peer.info.key, op, args)
            return
        if op == "unassigned":
            self.registry.note.remote(me, self._placer.unassigned())
        self.registry.command.remote(me, call_id, op, args)

    def unassigned(self) -> list[str]:
        """Ids of balanced requests that no engine has."""
        return self._placer.unassigned()

    def announce(self, unassigned: list[str] | None, age: float) -> None:
        """Tell the registry what waits here, unless None, and engines what has had no reply for
        so many seconds.

        Raises
        ------
        EngineError
            When the process is not connected any more.
        """
        with self.connected():
            if unassigned is not None:
                self.registry.note.remote(self.sink.session, unassigned)
            for peer in list(self._peers.values()):
                peer.announce(age)

    def settled(self) -> bool:
        """Whether all that was sent has been announced, and no balanced call is with an engine;
        those behind one that takes long are taken back."""
        told = all(peer.told for peer in list(self._peers.values()))
        return not self._placer.take_back() and told

    def cancel(self, key: str | None, msg_ids: Sequence[str]) -> Future[list[str]]:
        if key is None:
            return self._placer.cancel(msg_ids)
        return self.cancel_on(key, msg_ids)

    def cancel_on(self, key: str, msg_ids: Sequence[str]) -> Future[list[str]]:
        """Cancel requests on one engine."""
        return cancelled(self.control(key, "cancel", {"msg_ids": list(msg_ids)}))

    def signal(self, key: str, signum: int) -> Future[None]:
        signum = int(signals.Signals(signum)) if signum else 0
        return accepted(self.control(None, "signal", {"key": key, "signum": signum}))

    # -- the cluster ----------------------------------------------------------------------

    def start_engines(
        self, n: int, *, mpi: Sequence[str] | None = None, env: Mapping[str, str] | None = None
    ) -> Future[list[str]]:
        order = {"n": n, "mpi": mpi and list(mpi), "asked": {"env": dict(env or {})}}
        return self.control(None, "start_engines", order)

    def stop_engines(self, keys: Sequence[str], *, force: bool = False) -> Future[None]:
        return self.control(None, "stop_engines", {"keys": list(keys), "force": force})

    def restart_engines(self, keys: Sequence[str]) -> Future[list[str]]:
        return self.control(None, "restart_engines", {"keys": list(keys)})

    def stop_cluster(self) -> Future[None]:
        stopped = self.control(None, "stop", {})
        if self.adopted:
            # the registry goes, too; nobody holds this cluster who would see to it
            stopped.add_done_callback(lambda _: self._kill_registry())
        return stopped

    def _kill_registry(self) -> None:
        with contextlib.suppress(EngineError), self.connected():
            ray.kill(self.registry)

    @property
    def dashboard_link(self) -> str:
        return self._dashboard

    @property
    def native(self) -> Any:
        return ray

    def native_client(self) -> Any:
        return ray

    @property
    def io_loop(self) -> _Loop:
        """The thread that tells the client what arrives; has ``add_callback``."""
        return _Loop(self._events)

    def engines(self) -> list[Peer]:
        """The engines that are there."""
        with self._lock:
            return [peer for peer in self._peers.values() if peer.deadline is None]

    def _alive(self) -> bool:
        return self._session is not None and self._session.alive

    def connected(self) -> AbstractContextManager[None]:
        """For every use of Ray (see :meth:`session.Session`)."""
        if self._session is None:
            raise EngineError("this client is not connected")
        return self._session

    def close(self, *, timeout: float = 5) -> None:
        if self._closed:
            return
        self._closed = True
        if self._session is None:
            return
        if not self._thread.is_alive():
            self._leave()
            return
        self._placer.close()
        for peer in self.engines():
            peer.leave()
        # a request goes on without its client, but not without the connection it was sent by:
        # Ray drops what a process that disconnects has waiting
        self._events.put(self._end_if_idle)
        if threading.current_thread() is not self._thread and not self.busy:
            self._thread.join(timeout)

    def wait_until_ended(self) -> None:
        """Once closed, wait for the replies to what was outstanding."""
        self._thread.join()

    @property
    def busy(self) -> bool:
        """Whether requests are outstanding."""
        with self._lock:
            return self._alive() and any(peer.load for peer in self._peers.values())

    def _end_if_idle(self) -> None:
        """Once closed, end when the last request has its reply."""
        if not self._closed or self._ended.is_set() or self.busy:
            return
        self._ended.set()
        self._announcer.stop()
        self._questions.lost("this client has been closed")
        self._leave()
        self._events.put(None)
        self._peers.clear()

    def _leave(self) -> None:
        """Say goodbye, if we have come so far, and let go of the connection."""
        if self.registry is not None:
            with contextlib.suppress(EngineError), self.connected():
                goodbye = self.registry.goodbye.remote(self.sink.session)
                if self.adopted:  # if we were the last, all that is ours goes before we do
                    ray.wait([goodbye], timeout=LEAVING)
        assert self._session is not None
        self._session.leave()

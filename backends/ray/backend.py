"""A client's connection to a Ray cluster of engines."""

from __future__ import annotations

import contextlib
import functools
import logging
import pickle
import queue
import signal as signals
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

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
    Part,
    Reply,
    Request,
)

from ..answers import accepted, cancelled
from ..shared import SharedFrames, can_share
from . import registry, session
from .announcing import ANNOUNCE, Announcer
from .balanced import Placer
from .collections import put_together, take_apart
from .connecting import greet, populate
from .later import heard
from .lending import Borrowed, Proof, hand_over
from .objects import Kept, StoredObject, accept, pack_natives
from .ordering import Outputs
from .outbox import Call, Outbox, Pace
from .questions import Questions
from .wire import (
    LARGE,
    StoredFrames,
    pack_frames,
    pack_request,
    size,
    unpack_frames,
    unpack_output,
    unpack_reply,
)

__all__ = ["RayBackend"]

log = logging.getLogger("pxcompat.ray")

#: seconds for the registry to say why an engine's calls fail
LAST_WORDS = 3
#: seconds for Ray to find out whether an engine's node is gone
OUTAGE = 30
#: seconds for the last client on somebody else's Ray to take all along
LEAVING = 8
#: handles kept of an engine's calls, by their names
NAMES = 256


class _Result(StoredFrames):
    """A result in the object store, on the node where it was made, until it is asked for."""

    __slots__ = ("_backend",)

    def __init__(self, ref: Any, nbytes: int, backend: RayBackend) -> None:
        super().__init__(ref, nbytes)
        self._backend = backend

    def fetch(self, *, copy: bool = True) -> Frames:
        """The frames, brought here."""
        return self._backend.fetch(self, copy=copy)


class _Engine:
    def __init__(self, info: EngineInfo, handle: Any, backend: RayBackend) -> None:
        self.info = info
        self.handle = handle
        #: whether it and this process can map each other's memory
        self.near = False
        self.outbox = Outbox(backend.pace, lambda call: backend.call(self, call))
        #: its actor's `run`, by the name that a dashboard is to show
        self.runs: dict[str, Any] = {}
        #: what was sent and has no reply, oldest first: msg_id to (request, when)
        self.sent: OrderedDict[str, tuple[Request, float]] = OrderedDict()
        self.announced: set[str] = set()
        #: when it last had a reply, or had something to do again
        self.moved = 0.0
        #: what it has given back, and will refuse when it comes
        self.released: set[str] = set()
        #: why it is gone, and until when its last words are waited for
        self.reason: str | None = None
        self.symptom = ""
        self.deadline: float | None = None


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
        self._in_band = False
        self._registry: Any = None
        self._lock = threading.Lock()
        self._engines: dict[str, _Engine] = {}
        self._met = Condition()
        self._outputs = Outputs()
        self._questions = Questions()
        self.pace = Pace()
        self._placer = Placer(self)
        #: whatever arrives, for the one thread that tells the sink
        self._events: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="pxcompat-ray", daemon=True)
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
        self._in_band = self._session.remote
        try:
            with self._session.use():
                self._registry, known = greet(
                    self._info, self._session, sink.session, time.monotonic() + timeout
                )
                expected = sum(message[0] == "up" for message in known)
                if self.adopted:
                    expected = populate(self._info, self._registry, expected)
                    # engines come with nodes, unless somebody said how many there are to be
                    grows = ray.get(self._registry.follows.remote(), timeout=timeout)
                    self.capabilities = replace(self.capabilities, grows=grows)
        except BaseException:
            self.close()
            raise
        self._thread.start()
        self._announcer.start()
        self._events.put(lambda: self._hear(known))
        self._listen()
        with self._met:
            self._met.wait_for(lambda: len(self._engines) >= expected, timeout)

    # -- what arrives ------------------------------------------------------------------

    def _run(self) -> None:
        """Tell the sink what arrives, one thing after the other."""
        while True:
            engines = list(self._engines.values())
            waiting = [e.deadline for e in engines if e.deadline is not None]
            waiting += [due for e in engines if (due := e.outbox.due) is not None]
            try:
                timeout = max(0.0, min(waiting) - time.monotonic()) if waiting else None
                event = self._events.get(timeout=timeout)
            except queue.Empty:
                self._bury(time.monotonic())
                for engine in engines:
                    if (due := engine.outbox.due) is not None and due <= time.monotonic():
                        self._leave(engine)
                continue
            if event is None:
                return
            try:
                event()
            except Exception:
                log.exception("an event of the cluster could not be dealt with")

    def _listen(self) -> None:
        """Ask for our mail; asked again when it comes."""
        with self._connected():
            mail = self._registry.listen.remote(self.sink.session).future()
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
            elif kind == "output":
                msg_id, *event = fields
                self._outputs.take(self.sink, msg_id, unpack_output(*event))
            elif kind == "reply":
                self._mailed_reply(unpack_reply(*fields))
            elif kind == "answer":
                self._questions.answer(*fields)
            elif kind == "dashboard":
                self.on_dashboard(*fields)

    def _hear_dashboard(self, url: str, why: str) -> None:
        self._dashboard = heard(url, why)

    def _meet(self, info: Mapping[str, Any], handle: Any) -> None:
        engine = _Engine(EngineInfo(**info), handle, self)
        for predecessor in list(self._engines.values()):
            if predecessor.info.id == engine.info.id:
                # its last words had as long as it takes to start a process
                predecessor.deadline = 0
                self._bury(0)
        with self._lock:
            self._engines[engine.info.key] = engine
        self.sink.engine_up(engine.info)
        if engine.info.host == socket.gethostname() and can_share() and not self._in_band:
            self._find_out(engine)
        with self._met:
            self._met.notify_all()
        self._placer.place()

    def _find_out(self, engine: _Engine) -> None:
        """Whether large buffers need not go through the store."""
        proof = Proof()

        def near(answer: Future[Any]) -> None:
            engine.near = answer.exception() is None and proof.given(answer.result())
            self._tell(engine, "met", {"near": engine.near})

        self.control(engine.info.key, "near", {"field": proof.field}).add_done_callback(near)

    def _down(self, key: str, reason: str) -> None:
        engine = self._engines.get(key)
        if engine is None:
            self.sink.engine_down(key, reason)  # it never was up
            return
        engine.reason = reason
        engine.deadline = time.monotonic() + LAST_WORDS
        self._leave(engine)  # what has not left fails as what has
        self._bury(0)

    def _bury(self, now: float) -> None:
        """Report engines that are gone, once all they said is here."""
        for key, engine in list(self._engines.items()):
            if engine.deadline is None:
                continue
            overdue = now >= engine.deadline
            if overdue or (engine.reason is not None and not engine.sent):
                with self._lock:
                    del self._engines[key]
                self.sink.engine_down(key, engine.reason or engine.symptom)
                self._placer.engine_gone(key)

    def _lost(self, reason: str) -> None:
        """The cluster is gone."""
        if self._session is not None:
            self._session.lost()
        for key in list(self._engines):
            self._engines.pop(key)
            self.sink.engine_down(key, reason)
        self._questions.lost(reason)
        self._placer.close()
        self.sink.disconnected(reason)
        self._end_if_idle()

    def _mailed_reply(self, reply: Reply) -> None:
        """A reply that did not wait for its call to end, or of what was announced, nested, or
        another client's."""
        engine = self._engines.get(reply.engine or "")
        self._replied(engine, [reply])
        self._end_if_idle()

    def _replied(self, engine: _Engine | None, replies: Sequence[Reply]) -> None:
        """Requests of ours, or of others, have their replies."""
        if engine is not None:
            replies = [reply for reply in replies if not self._given_back(engine, reply)]
            with self._lock:
                engine.moved = time.monotonic()
                for reply in replies:
                    engine.sent.pop(reply.msg_id, None)
                    engine.announced.discard(reply.msg_id)
            self._placer.finished([reply.msg_id for reply in replies])
        for reply in replies:
            self._outputs.complete(reply)
            self.sink.reply(reply)

    def _given_back(self, engine: _Engine, reply: Reply) -> bool:
        """Whether an engine refuses what it gave back before."""
        with self._lock:
            if reply.status != "aborted" or reply.msg_id not in engine.released:
                return False
            engine.released.discard(reply.msg_id)
            return True

    # -- requests ----------------------------------------------------------------------

    def send(self, key: str, requests: Sequence[Request]) -> None:
        engine = self._engines.get(key)
        try:
            if engine is None:
                raise EngineError("no such engine")
            self._give(engine, requests)
        except EngineError as error:
            self.sink.engine_down(key, str(error))

    def _give(self, engine: _Engine, requests: Sequence[Request]) -> None:
        """Have requests leave for an engine.

        Raises
        ------
        EngineError
            When the process is not connected any more.
        """
        for request in requests:
            request.function = hand_over(request.function, engine.near)
            request.arguments = hand_over(request.arguments, engine.near)
        now = time.monotonic()
        with self._connected():
            with self._lock:
                if not engine.sent:
                    engine.moved = now
                for request in requests:
                    if self._in_band:
                        request.header["in_band"] = True
                    engine.sent[request.msg_id] = (request, now)
            direct = [r for r in requests if not r.header.get("nested")]
            for request in requests:
                if request.header.get("nested"):
                    self._ask_to_run(engine, request)
            if direct and engine.outbox.add(direct):
                self._events.put(lambda: None)  # for the thread to see when it has to leave
        self._announcer.wake()
        for request in direct:
            if request.header.get("track"):
                self._events.put(functools.partial(self.sink.sent, request.msg_id))
            else:
                self.sink.sent(request.msg_id)

    def _ask_to_run(self, engine: _Engine, request: Request) -> None:
        """Send a request to an engine that may be waiting: its actor takes no call meanwhile."""
        packed = {"request": pack_request(request), "natives": pack_natives(request.natives)}
        with self._lock:
            engine.announced.add(request.msg_id)
        self._registry.ask.remote(self.sink.session, -1, engine.info.key, "nested", packed)

    def call(self, engine: _Engine, call: Call) -> None:
        """Call an engine's actor; for its outbox."""
        name = call.name
        with self._connected():
            apart = None
            if call.shared:
                reply = engine.handle.run_all.options(name=name).remote(*call.arguments)
            else:
                run = engine.runs.get(name)
                if run is None:
                    if len(engine.runs) >= NAMES:
                        engine.runs.clear()
                    run = engine.handle.run.options(name=name, num_returns=2)
                    engine.runs[name] = run
                reply, apart = run.remote(*call.arguments)
            replied = reply.future()
        replied.add_done_callback(
            lambda future: self._events.put(lambda: self._returned(engine, call, future, apart))
        )

    def _leave(self, engine: _Engine) -> None:
        """Let what waits for an engine leave."""
        try:
            engine.outbox.flush()
        except EngineError as error:  # somebody called ray.shutdown()
            self.sink.engine_down(engine.info.key, str(error))

    def _returned(self, engine: _Engine, call: Call, done: Future[Any], apart: Any) -> None:
        """A call of an engine's actor ended."""
        failure = done.exception()
        if failure is None:
            if call.shared:
                said = pickle.loads(done.result())
            else:
                head, late = pickle.loads(done.result())
                said = [("output", head[0], *event) for event in late]
                if isinstance(head[5], int):
                    apart = _Result(apart, head[5], self)
                elif isinstance(head[5], dict):
                    done_with = functools.partial(self._tell, engine, "done", {"name": head[0]})
                    apart = Borrowed(head[5], functools.partial(self._events.put, done_with))
                said.append(("reply", head, apart))
            for kind, *fields in said:
                if kind == "output":
                    msg_id, *event = fields
                    self._outputs.take(self.sink, msg_id, unpack_output(*event))
            replies = [unpack_reply(*fields) for kind, *fields in said if kind == "reply"]
            with self._lock:
                for reply in replies:
                    if reply.msg_id in engine.sent:
                        self.pace.note(engine.sent[reply.msg_id][0].name, reply)
            # the engine has more to do before its client has what it did
            engine.outbox.returned()
            self._leave(engine)
            self._replied(engine, replies)
        else:
            self._failed(engine, call, failure)
            engine.outbox.returned()
            self._leave(engine)
        if engine.deadline is not None:
            self._bury(0)
        self._end_if_idle()

    def _failed(self, engine: _Engine, call: Call, failure: BaseException) -> None:
        """A call of an engine's actor did not end as calls do."""
        with self._lock:
            ids = [r.msg_id for r in call.requests if r.msg_id not in engine.released]
            left = [msg_id for msg_id in ids if engine.sent.pop(msg_id, None) is not None]
            engine.announced.difference_update(ids)
            engine.released.difference_update(r.msg_id for r in call.requests)
        if isinstance(failure, RayTaskError):
            for msg_id in left:
                self._fail(engine, msg_id, f"its engine could not run it: {failure}")
        elif engine.deadline is None:
            # what became of it, the registry will know
            patience = LAST_WORDS if isinstance(failure, ActorDiedError) else OUTAGE
            engine.deadline = time.monotonic() + patience
            engine.symptom = registry.why(failure)

    def _fail(self, engine: _Engine, msg_id: str, why: str) -> None:
        content = {
            "ename": "EngineError",
            "evalue": why,
            "traceback": [],
            "engine_info": {
                "engine_uuid": engine.info.key,
                "engine_id": engine.info.id,
                "method": "apply",
            },
        }
        self._replied(engine, [Reply(msg_id, "error", engine.info.key, content=content)])

    def send_balanced(self, requests: Sequence[Request], candidates: Sequence[str] | None) -> None:
        self._placer.submit(requests, candidates)
        self._announcer.wake()  # the registry is told of what waits, also where no engine is

    def fetch(self, stored: StoredFrames, *, copy: bool = True) -> Frames:
        """Bring frames from the object store, into memory of this process or as they are there."""
        try:
            with self._connected():
                frames = unpack_frames(ray.get(stored.ref), copy=copy)
        except RayError as error:
            raise EngineError(
                f"a result of {stored.nbytes} bytes is lost: it was not fetched before the node "
                f"that held it went ({registry.why(error)})"
            ) from error
        return frames or []

    def _tell(self, engine: _Engine, what: str, args: dict[str, Any]) -> None:
        """Tell an engine something about what it lends us, if we are connected."""
        with contextlib.suppress(EngineError), self._connected():
            self._registry.ask.remote(self.sink.session, -1, engine.info.key, what, args)

    def put(self, frames: Frames, keys: Sequence[str]) -> Handle:
        engines = [self._engines.get(key) for key in keys]
        near = all(engine is not None and engine.near for engine in engines)
        if isinstance(handed := hand_over(frames, near), SharedFrames):
            return handed
        with self._connected():
            return StoredFrames(ray.put(pack_frames(frames)), size(frames))

    def accept(self, obj: Any) -> StoredObject:
        return accept(obj, self._info["address"])

    def take_apart(self, obj: Any, keys: Sequence[str], *, copy: bool) -> Sequence[Any] | None:
        with self._connected():
            return take_apart(obj, len(keys), self._info["address"], copy=copy)

    def put_together(self, name: str, parts: Sequence[Part]) -> Any:
        gone = [part.engine for part in parts if part.key not in self._engines]
        if gone:
            raise EngineError(f"engines {gone} are gone, with their parts of {name!r}")
        with self._connected():
            given = {}
            for part in parts:
                give = self._engines[part.key].handle.give_aside
                give = give.options(name=f"px:gather:{name}", num_returns=2)
                given[part.key] = give.remote(part.token)
            return put_together(name, parts, given)

    def reference(
        self, name: str, key: str, engine: int, keep: Callable[[Any], Any]
    ) -> RemoteReference:
        return RemoteReference(name, key, engine, keep)  # Ray's serialization knows it: .objects

    def keep(self, key: str, request: Request, *, uses: int | None) -> Kept:
        engine = self._engines.get(key)
        if engine is None:
            raise EngineError("the engine whose value is wanted is gone")
        own = engine_of_process()
        if request.header.get("nested") and own is not None and own.key == key:
            raise EngineError(
                "code on an engine cannot refer to a name of its own engine, which is busy with "
                "that code: send the value"
            )
        if self._in_band:
            request.header["in_band"] = True
        request.header["keep"] = True
        with uninterrupted(), self._connected():
            engine.outbox.flush()  # what was sent before comes before
            run = engine.handle.run.options(name=request.name, num_returns=2)
            reply, apart = run.remote(*pack_request(request))
        return Kept(reply, apart, engine.info.id)

    # -- questions -----------------------------------------------------------------------

    def control(self, key: str | None, op: str, args: Mapping[str, Any]) -> Future[Any]:
        engine = None if key is None else self._engines.get(key)
        if key is not None and engine is None:
            answer: Future[Any] = OwnFuture()
            answer.set_exception(EngineError(f"there is no engine {key}"))
            return answer
        name = "the cluster's registry" if engine is None else f"engine {engine.info.id}"
        call_id, answer = self._questions.new(name)
        try:
            with uninterrupted(), self._connected():
                self._ask(call_id, engine, op, dict(args))
        except EngineError as error:
            self._questions.answer(call_id, None, str(error))
        return answer

    def _ask(self, call_id: int, engine: _Engine | None, op: str, args: dict[str, Any]) -> None:
        me = self.sink.session
        for waiting in list(self._engines.values()):
            waiting.outbox.flush()  # what was sent before comes before
        if engine is not None:
            # what waits in Ray's queue counts, too
            args["announced"] = self._unannounced(engine, 0)
            self._registry.ask.remote(me, call_id, engine.info.key, op, args)
            return
        if op == "unassigned":
            self._registry.note.remote(me, self._placer.unassigned())
        self._registry.command.remote(me, call_id, op, args)

    def _unannounced(self, engine: _Engine, age: float) -> list[tuple[Any, ...]]:
        """Heads of requests sent to an engine, without reply for so many seconds, of which
        it has not been told but by the calls themselves."""
        before = time.monotonic() - age
        heads = []
        with self._lock:
            for msg_id, (request, when) in engine.sent.items():
                if when > before:
                    break
                if msg_id not in engine.announced:
                    engine.announced.add(msg_id)
                    heads.append(pack_request(request)[0])
        return heads

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
        me = self.sink.session
        with self._connected():
            if unassigned is not None:
                self._registry.note.remote(me, unassigned)
            for engine in list(self._engines.values()):
                if heads := self._unannounced(engine, age):
                    args = {"announced": heads}
                    self._registry.ask.remote(me, -1, engine.info.key, "announce", args)

    def settled(self) -> bool:
        """Whether all that was sent has been announced, and no balanced call is with an engine;
        those behind one that takes long are taken back."""
        with self._lock:
            told = all(len(e.announced) == len(e.sent) for e in self._engines.values())
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

    def start_engines(self, n: int, *, mpi: Sequence[str] | None = None) -> Future[list[str]]:
        return self.control(None, "start_engines", {"n": n, "mpi": mpi and list(mpi)})

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
        with contextlib.suppress(EngineError), self._connected():
            ray.kill(self._registry)

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

    def engines(self) -> list[_Engine]:
        """The engines that are there."""
        with self._lock:
            return [engine for engine in self._engines.values() if engine.deadline is None]

    def load(self, engine: _Engine) -> int:
        """How many requests of ours an engine has."""
        return len(engine.sent)

    def unanswered(self, engine: _Engine) -> list[str]:
        """Ids of the requests of ours that an engine has, oldest first."""
        with self._lock:
            return list(engine.sent)

    def stuck(self, engine: _Engine) -> bool:
        """Whether an engine has been at one request for long."""
        return bool(engine.sent) and time.monotonic() - engine.moved > ANNOUNCE

    def take_back(self, engine: _Engine, msg_ids: Sequence[str]) -> Future[list[str]]:
        """Have an engine give back requests that it has not begun; which it does."""
        released: Future[list[str]] = OwnFuture()
        with self._lock:
            engine.released.update(msg_ids)

        def take(answer: Future[Any]) -> None:
            back = [] if answer.exception() else list(answer.result())
            with self._lock:
                engine.released.difference_update(set(msg_ids).difference(back))
                for msg_id in back:
                    engine.sent.pop(msg_id, None)
                    engine.announced.discard(msg_id)
            released.set_result(back)

        asked = self.control(engine.info.key, "give_back", {"msg_ids": list(msg_ids)})
        asked.add_done_callback(take)
        return released

    def _alive(self) -> bool:
        return self._session is not None and self._session.alive

    def _connected(self) -> AbstractContextManager[None]:
        """For every use of Ray (see :meth:`session.Session.use`)."""
        if self._session is None:
            raise EngineError("this client is not connected")
        return self._session.use()

    def close(self, *, timeout: float = 5) -> None:
        if self._closed:
            return
        self._closed = True
        if self._session is None:
            return
        if not self._thread.is_alive():
            self._session.leave()
            return
        self._placer.close()
        for engine in self.engines():
            self._leave(engine)
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
            return self._alive() and any(engine.sent for engine in self._engines.values())

    def _end_if_idle(self) -> None:
        """Once closed, end when the last request has its reply."""
        if not self._closed or self._ended.is_set() or self.busy:
            return
        self._ended.set()
        self._announcer.stop()
        with contextlib.suppress(EngineError), self._connected():
            goodbye = self._registry.goodbye.remote(self.sink.session)
            if self.adopted:  # if we were the last, all that is ours goes before we do
                ray.wait([goodbye], timeout=LEAVING)
        self._events.put(None)
        self._engines.clear()
        assert self._session is not None
        self._session.leave()

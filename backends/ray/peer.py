"""One engine, as a client has it: what was sent to it, and what comes back."""

from __future__ import annotations

import contextlib
import functools
import pickle
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

from ray.exceptions import ActorDiedError, RayTaskError

from pxcompat.engine.interrupts import OwnFuture
from pxcompat.error import EngineError
from pxcompat.protocol import EngineInfo, Frames, Reply, Request

from . import registry
from .announcing import ANNOUNCE
from .lending import Borrowed, Proof, hand_over
from .objects import Kept, pack_natives
from .outbox import Call, Outbox
from .wire import StoredFrames, pack_request, unpack_output, unpack_reply

if TYPE_CHECKING:
    from .backend import RayBackend

__all__ = ["Peer"]

#: seconds for the registry to say why an engine's calls fail
LAST_WORDS = 3
#: seconds for Ray to find out whether an engine's node is gone
OUTAGE = 30
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


class UnderWay(NamedTuple):
    """A call of an engine's actor that has left, and will return.

    Attributes
    ----------
    requests
        Those it runs.  Its arguments are Ray's now, and not kept twice.
    reply
        Reference to what it returns.
    apart
        Reference to what it may return besides: a large result.
    """

    peer: Peer
    requests: list[Request]
    reply: Any
    apart: Any

    def follow(self) -> None:
        """Have the client's thread deal with what it returns."""
        later = self.peer._backend.later
        self.reply.future().add_done_callback(lambda done: later(lambda: self._ended(done)))

    def _ended(self, done: Future[Any]) -> None:
        failure = done.exception()
        if failure is None:
            self.peer.returned(self, done.result())
        else:
            self.peer.failed(self, failure)


class Peer:
    """An engine that a client knows.  Thread-safe.

    Parameters
    ----------
    info : EngineInfo
        The engine.
    handle : ActorHandle
        Its actor.
    backend : RayBackend
        The client's; what comes back is dealt with on its thread.

    Attributes
    ----------
    near : bool
        Whether it and this process can map each other's memory.
    outbox : Outbox
        What has not left for it.
    sent : OrderedDict
        What was given to it and has no reply, oldest first: msg_id to (request, when).
    released : set of str
        What it has given back, and will refuse when it comes.
    deadline : float or None
        Once it is gone, until when its last words are waited for, by ``time.monotonic``.
    """

    def __init__(self, info: EngineInfo, handle: Any, backend: RayBackend) -> None:
        self.info = info
        self.near = False
        self.outbox = Outbox(backend.pace, self._call)
        self.sent: OrderedDict[str, tuple[Request, float]] = OrderedDict()
        self.released: set[str] = set()
        self.deadline: float | None = None
        self._handle = handle
        self._backend = backend
        #: a signal handler may come by while it is held, and send
        self._lock = threading.RLock()
        #: its actor's methods, by what they are called and what a dashboard is to show
        self._methods: dict[tuple[str, str], Any] = {}
        #: what of that which was sent it knows of before it comes
        self._announced: set[str] = set()
        #: when it last had a reply, or had something to do again
        self._moved = 0.0
        #: why it is gone, by the registry, and by what became of its calls
        self._reason: str | None = None
        self._symptom = ""

    # -- there -------------------------------------------------------------------------

    def give(self, requests: Sequence[Request]) -> None:
        """Have requests leave for the engine.

        Raises
        ------
        EngineError
            When the process is not connected any more.
        """
        backend = self._backend
        for request in requests:
            request.function = hand_over(request.function, self.near)
            request.arguments = hand_over(request.arguments, self.near)
        now = time.monotonic()
        with backend.connected():
            with self._lock:
                if not self.sent:
                    self._moved = now
                for request in requests:
                    if backend.in_band:
                        request.header["in_band"] = True
                    self.sent[request.msg_id] = (request, now)
            direct = []
            for request in requests:
                if request.header.get("nested"):
                    self._ask_to_run(request)
                else:
                    direct.append(request)
            if direct and self.outbox.add(direct):
                backend.later(lambda: None)  # for the thread to see when it has to leave
        for request in direct:
            if request.header.get("track"):
                backend.later(functools.partial(backend.sink.sent, request.msg_id))
            else:
                backend.sink.sent(request.msg_id)

    def _ask_to_run(self, request: Request) -> None:
        """Send a request to an engine that may be waiting: its actor takes no call meanwhile."""
        with self._lock:
            self._announced.add(request.msg_id)
        packed = {"request": pack_request(request), "natives": pack_natives(request.natives)}
        self._tell("nested", packed)

    def _call(self, call: Call) -> None:
        """Call its actor; for its outbox, which is flushed while we are connected."""
        method = self._methods.get((call.method, call.name))
        if method is None:
            method = self._method(call.method, call.name)
        returned = method.remote(*call.arguments)
        reply, apart = (returned, None) if call.method == "run_all" else returned
        under_way = UnderWay(self, call.requests, reply, apart)
        # where it is the only one, nothing else is to come from the engine before it
        if len(self.sent) > 1 or not self._backend.awaiting.take(under_way):
            under_way.follow()

    def _method(self, method: str, name: str) -> Any:
        """A method of its actor's, with a name for dashboards."""
        known = self._methods.get((method, name))
        if known is None:
            if len(self._methods) >= NAMES:
                self._methods.clear()
            # all but run_all return a large result apart
            options = {"name": name, "num_returns": 1 if method == "run_all" else 2}
            known = getattr(self._handle, method).options(**options)
            self._methods[method, name] = known
        return known

    def keep(self, request: Request) -> Kept:
        """Call its actor for what stays in Ray's store."""
        request.header["keep"] = True
        if self._backend.in_band:
            request.header["in_band"] = True
        self.outbox.flush()  # what was sent before comes before
        run = self._method("run_large", request.name)
        reply, apart = run.remote(*pack_request(request), None)
        return Kept(reply, apart, self.info.id)

    def give_aside(self, name: str, token: str) -> Any:
        """Call its actor for what it has set aside, of which this is the name."""
        return self._method("give_aside", f"px:gather:{name}").remote(token)

    def leave(self) -> None:
        """Let what waits leave."""
        try:
            with self._backend.connected():
                self.outbox.flush()
        except EngineError as error:  # somebody called ray.shutdown()
            self._backend.sink.engine_down(self.info.key, str(error))

    def find_out(self) -> None:
        """Whether large buffers need not go through the store."""
        proof = Proof()

        def near(answer: Future[Any]) -> None:
            self.near = answer.exception() is None and proof.given(answer.result())
            self._tell_if_connected("met", {"near": self.near})

        asked = self._backend.control(self.info.key, "near", {"field": proof.field})
        asked.add_done_callback(near)

    def unannounced(self, age: float) -> list[tuple[Any, ...]]:
        """Heads of requests sent to it, without reply for so many seconds, of which it has not
        been told but by the calls themselves.  They count as announced."""
        before = time.monotonic() - age
        heads = []
        with self._lock:
            for msg_id, (request, when) in self.sent.items():
                if when > before:
                    break
                if msg_id not in self._announced:
                    self._announced.add(msg_id)
                    heads.append(pack_request(request)[0])
        return heads

    def announce(self, age: float) -> None:
        """Tell it what it has not been told of."""
        if heads := self.unannounced(age):
            self._tell("announce", {"announced": heads})

    def _tell(self, what: str, args: dict[str, Any]) -> None:
        backend = self._backend
        backend.registry.ask.remote(backend.sink.session, -1, self.info.key, what, args)

    def _tell_if_connected(self, what: str, args: dict[str, Any]) -> None:
        with contextlib.suppress(EngineError), self._backend.connected():
            self._tell(what, args)

    # -- and back ----------------------------------------------------------------------

    def returned(self, under_way: UnderWay, value: Any) -> None:
        """A call of its actor has returned this."""
        backend = self._backend
        if len(under_way.requests) > 1:
            replies = []
            for kind, *fields in pickle.loads(value):
                if kind == "output":
                    backend.output(fields[0], unpack_output(*fields[1:]))
                else:
                    replies.append(unpack_reply(*fields))
        else:
            head, late = pickle.loads(value)
            for event in late:
                backend.output(head[0], unpack_output(*event))
            inside = head[5] is None or isinstance(head[5], list)
            large = None if inside else self._large(head, under_way.apart)
            replies = [unpack_reply(head, large)]
        with self._lock:
            for reply in replies:
                if reply.msg_id in self.sent:
                    backend.pace.note(self.sent[reply.msg_id][0].label, reply)
        if self.outbox.returned():
            self.leave()  # the engine has more to do before its client has what it did
        backend.replied(self, replies)
        backend.returned(self)

    def _large(self, head: tuple[Any, ...], apart: Any) -> Any:
        """The result of a reply that is too large to have come with it."""
        if isinstance(head[5], int):
            return _Result(apart, head[5], self._backend)
        done_with = functools.partial(self._tell_if_connected, "done", {"name": head[0]})
        return Borrowed(head[5], functools.partial(self._backend.later, done_with))

    def failed(self, under_way: UnderWay, failure: BaseException) -> None:
        """A call of its actor has failed."""
        self._failed(under_way.requests, failure)
        if self.outbox.returned():
            self.leave()
        self._backend.returned(self)

    def _failed(self, requests: Sequence[Request], failure: BaseException) -> None:
        """A call of its actor did not end as calls do."""
        with self._lock:
            ids = [r.msg_id for r in requests if r.msg_id not in self.released]
            left = [msg_id for msg_id in ids if self.sent.pop(msg_id, None) is not None]
            self._announced.difference_update(ids)
            self.released.difference_update(r.msg_id for r in requests)
        if isinstance(failure, RayTaskError):
            why = f"its engine could not run it: {failure}"
            self._backend.replied(self, [self._failure(msg_id, why) for msg_id in left])
        elif self.deadline is None:
            # what became of it, the registry will know
            patience = LAST_WORDS if isinstance(failure, ActorDiedError) else OUTAGE
            self.deadline = time.monotonic() + patience
            self._symptom = registry.why(failure)

    def _failure(self, msg_id: str, why: str) -> Reply:
        info = self.info
        about = {"engine_uuid": info.key, "engine_id": info.id, "method": "apply"}
        content = {"ename": "EngineError", "evalue": why, "traceback": [], "engine_info": about}
        return Reply(msg_id, "error", info.key, content=content)

    def settle(self, replies: Sequence[Reply]) -> Sequence[Reply]:
        """Note replies of the engine's; those that are not refusals of what it gave back."""
        with self._lock:
            if self.released:
                replies = [reply for reply in replies if not self._given_back(reply)]
            self._moved = time.monotonic()
            for reply in replies:
                self.sent.pop(reply.msg_id, None)
                self._announced.discard(reply.msg_id)
        return replies

    def _given_back(self, reply: Reply) -> bool:
        if reply.status != "aborted" or reply.msg_id not in self.released:
            return False
        self.released.discard(reply.msg_id)
        return True

    def end(self, reason: str) -> None:
        """The registry says that it is gone."""
        self._reason = reason
        self.deadline = time.monotonic() + LAST_WORDS
        self.leave()  # what has not left fails as what has

    def ended(self, now: float) -> str | None:
        """Why it is gone, once all that it said is here, or the time for that is up."""
        if self.deadline is None:
            return None
        if now >= self.deadline or (self._reason is not None and not self.sent):
            return self._reason or self._symptom
        return None

    # -- what it has to do -----------------------------------------------------------------

    @property
    def load(self) -> int:
        """How many requests of ours it has."""
        return len(self.sent)

    def left(self, seconds: float | None) -> float:
        """About how many of them it has not done, of which each takes so long: it tells of those
        that share a call when the last is done."""
        load = len(self.sent)
        if not (seconds and load):
            return load
        return max(1.0, load - (time.monotonic() - self._moved) / seconds)

    @property
    def told(self) -> bool:
        """Whether it has been told of all that was sent to it."""
        with self._lock:
            return len(self._announced) == len(self.sent)

    @property
    def stuck(self) -> bool:
        """Whether it has been at one request for long."""
        return bool(self.sent) and time.monotonic() - self._moved > ANNOUNCE

    def unanswered(self) -> list[str]:
        """Ids of the requests of ours that it has, oldest first."""
        with self._lock:
            return list(self.sent)

    def take_back(self, msg_ids: Sequence[str]) -> Future[list[str]]:
        """Have it give back requests that it has not begun; which it does."""
        released: Future[list[str]] = OwnFuture()
        with self._lock:
            self.released.update(msg_ids)

        def take(answer: Future[Any]) -> None:
            back = [] if answer.exception() else list(answer.result())
            with self._lock:
                self.released.difference_update(set(msg_ids).difference(back))
                for msg_id in back:
                    self.sent.pop(msg_id, None)
                    self._announced.discard(msg_id)
            released.set_result(back)

        asked = self._backend.control(self.info.key, "give_back", {"msg_ids": list(msg_ids)})
        asked.add_done_callback(take)
        return released

"""The one writer of futures: what was sent, what is outstanding, and what became of it.

::

    view ── submit() ──> Dispatcher ── Backend.send() ──> engine
    AsyncResult <── MessageFuture <── Dispatcher <── EventSink ── backend's thread
"""

from __future__ import annotations

import contextvars
import functools
import itertools
import logging
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from datetime import datetime, timezone
from typing import Any
from weakref import ref

from . import serialize
from .bounded import BoundedDict, BoundedList
from .comms import relay
from .display import ExecuteReply
from .engine import calls, current_or_none
from .engine.comms import hear
from .engine.interrupts import Condition, uninterrupted
from .engine.nested import NESTED, telling
from .error import EngineDied, EngineError, TaskAborted, unwrap_exception
from .futures import SENT, Latch, MessageFuture, Metadata
from .objects import Accepted, RemoteReference
from .protocol import (
    Backend,
    EngineInfo,
    Fate,
    Frames,
    Handle,
    LargeResult,
    OutputEvent,
    Reply,
    Request,
)

__all__ = ["Dispatcher", "Results"]

log = logging.getLogger("pxcompat")

EngineCallback = Callable[[dict[str, Any]], None]

#: finished requests that a client remembers without anybody holding their AsyncResult
MAX_RESULTS = 1024
MAX_RESULT_BYTES = 1 << 30
#: outcomes (ok or not, and where) remembered for dependencies, and ids in ``history``
MAX_OUTCOMES = 65_536


class Results(MutableMapping[str, Any]):
    """``client.results``: finished requests' results, or exceptions, by msg_id.

    Unpickled when they are looked at.  Bounded: the oldest are forgotten.
    """

    def __init__(self) -> None:
        #: the bounds are settings of the client
        self.futures: BoundedDict[MessageFuture] = BoundedDict(MAX_RESULTS, MAX_RESULT_BYTES)

    def __getitem__(self, msg_id: str) -> Any:
        return self.futures[msg_id].value()

    def __setitem__(self, msg_id: str, value: Any) -> None:
        future = MessageFuture(msg_id)
        future.finish_value(value)
        self.futures[msg_id] = future

    def __delitem__(self, msg_id: str) -> None:
        del self.futures[msg_id]

    def pop(self, msg_id: str, default: Any = None) -> Any:
        """Forget a result without unpickling it; ``default`` always comes back."""
        self.futures.pop(msg_id, None)
        return default

    def __iter__(self) -> Iterator[str]:
        return iter(self.futures)

    def __len__(self) -> int:
        return len(self.futures)

    def __contains__(self, msg_id: object) -> bool:
        return msg_id in self.futures


class MetadataByID(BoundedDict[Metadata]):
    """``client.metadata``; an unknown id gets a new Metadata, as in ipyparallel."""

    def __getitem__(self, msg_id: str) -> Metadata:
        if msg_id not in self:
            self[msg_id] = Metadata(msg_id=msg_id)
        return super().__getitem__(msg_id)


class Dispatcher:
    """One client's requests (the :class:`~pxcompat.protocol.EventSink` of its backend).

    Attributes
    ----------
    session : str
        The client's id; its msg_ids begin with it.
    engines : dict
        Key to :class:`EngineInfo` of the engines that are there.
    outstanding : dict
        msg_id to the request's future, until it has its reply.
    by_engine : dict
        Key of an engine to the ids of the requests that are outstanding there.
    """

    def __init__(self) -> None:
        self.session = uuid.uuid4().hex
        self.backend: Backend
        self.lock = threading.RLock()
        self.engines_changed = Condition(self.lock)
        self.engines: dict[str, EngineInfo] = {}
        self.ids: dict[str, int] = {}
        #: of those that are there, by their ids
        self.keys: dict[int, str] = {}
        self.outstanding: dict[str, MessageFuture] = {}
        self.by_engine: defaultdict[str, set[str]] = defaultdict(set)
        self.history: BoundedList[str] = BoundedList(MAX_OUTCOMES)
        self.results = Results()
        self.metadata: BoundedDict[Metadata] = MetadataByID(MAX_OUTCOMES)
        self.outcomes: BoundedDict[Fate] = BoundedDict(MAX_OUTCOMES)
        #: balanced requests that were aborted, perhaps before any engine had them
        self.unsent: BoundedDict[Request] = BoundedDict(MAX_RESULTS, MAX_RESULT_BYTES)
        self.engine_callbacks: list[EngineCallback] = []
        #: asked before a reply is final: True when it has been taken care of (a retry)
        self.intercept: Callable[[Reply], bool] = lambda reply: False
        #: told of another client's reply that may not be the last word
        self.may_move: Callable[[Reply], None] = lambda reply: None
        #: told of every final outcome, by msg_id, and (None) of engines that come or go
        self.on_change: Callable[[str | None], None] = lambda ended: None
        #: by engine: failures of executes that we know of; it aborts what was sent before
        self.heard: dict[str, int] = {}
        self.lost: str | None = None
        #: by its key: why an engine ended that never was there
        self.stillborn: dict[str, str] = {}
        self._awaited: dict[str, tuple[MessageFuture, int]] = {}
        #: those that somebody still has; a WeakValueDictionary takes four steps more for each
        self._ended: dict[str, Callable[[], MessageFuture | None]] = {}
        self._gone = self._ended.pop
        self._count = itertools.count()

    # -- sending -------------------------------------------------------------------

    def new_id(self) -> str:
        """A new msg_id."""
        return f"{self.session}_{next(self._count)}"

    def register(
        self,
        kind: str,
        label: str,
        key: str | None,
        header: dict[str, Any] | None = None,
        sent: Latch | None = None,
    ) -> MessageFuture:
        """The future of a request that is about to be sent (to the engine ``key``); ``sent`` where
        it is known when its buffers have left."""
        now = time.time()
        msg_id = self.new_id()
        info = self.engines.get(key) if key else None
        header = header or {}
        metadata = Metadata(
            msg_id=msg_id,
            submitted=_datetime(now),
            engine_uuid=key,
            engine_id=info.id if info else None,
            after=header.get("after"),
            follow=header.get("follow"),
            label=header.get("label"),
        )
        future = MessageFuture(msg_id, method=kind, metadata=metadata, sent=sent)
        with self.lock:
            self.history.append(msg_id)
            self.track(future, key)
        return future

    def track(self, future: MessageFuture, key: str | None) -> None:
        """Take a future as outstanding (on the engine ``key``)."""
        with self.lock:
            self.outstanding[future.msg_id] = future
            self.metadata.put(future.msg_id, future.metadata, 0)
            if key is not None:
                self.by_engine[key].add(future.msg_id)

    def found(self, msg_id: str, key: str) -> None:
        """What another client sent was found on the engine ``key``, and ends with it at the
        latest."""
        self.started(msg_id, key)
        with self.lock:
            gone = key not in self.engines
        if gone:  # since it was found
            self._strand(key, [msg_id], "it is gone")

    def forget(self, msg_id: str) -> None:
        """Take back :meth:`track`."""
        with self.lock:
            self.outstanding.pop(msg_id, None)
            self.metadata.pop(msg_id, None)
            for there in self.by_engine.values():
                there.discard(msg_id)

    def header(self, future: MessageFuture, header: dict[str, Any] | None) -> dict[str, Any]:
        """The header of a request."""
        submitted = dict.__getitem__(future.metadata, "submitted").timestamp()
        own = {"client": self.session, "submitted": submitted}
        if current_or_none() is not None:
            own[NESTED] = True
        return {**own, **(header or {})}

    def apply(
        self,
        keys: Sequence[str],
        function: Frames,
        arguments: Frames,
        *,
        label: str,
        map: bool = False,
        header: dict[str, Any] | None = None,
    ) -> list[MessageFuture]:
        """Have engines call a function; one request an engine."""
        natives = self.natives(function, arguments, uses=len(keys))
        payload: Frames | Handle = arguments
        threshold = self.backend.capabilities.put_threshold
        several = len(keys) > 1 or bool((header or {}).get("shared"))
        if several and sum(memoryview(f).nbytes for f in arguments) >= threshold:
            payload = self.backend.put(arguments, keys)
        copied = len(arguments) == 1 and not (header or {}).get("track")
        sent = SENT if copied else None
        futures = []
        with uninterrupted():
            for key in keys:
                future = self.register("apply", label, key, header, sent)
                content = {"map": True} if map else {}
                request = Request(
                    future.msg_id,
                    "apply",
                    label,
                    content,
                    function,
                    payload,
                    self.header(future, header),
                    natives,
                )
                if natives or payload is not arguments:
                    future.held = payload, natives
                self.send(key, request)
                futures.append(future)
        return futures

    def natives(self, *pickles: Frames, uses: int | None) -> dict[str, Any]:
        """What pickles leave to the engine to resolve, as the backend carries it.

        ``uses`` is how many requests will resolve it, if that is known.
        """
        natives: dict[str, Any] = {}
        for pickled in pickles:
            if isinstance(pickled, serialize.Pickled):
                for token, obj in pickled.natives.items():
                    if isinstance(obj, RemoteReference):
                        natives[token] = self.keep(obj, uses)
                    elif isinstance(obj, Accepted):
                        natives[token] = obj.native
                    else:
                        natives[token] = self.backend.accept(obj)
        return natives

    def keep(self, reference: RemoteReference, uses: int | None = None) -> Any:
        """Have an engine put aside what a name is bound to."""
        with self.lock:
            if reference.uuid not in self.engines:
                raise EngineError(
                    f"{reference!r} cannot be read: engine {reference.engine} is gone, or is not "
                    "one of this client's cluster"
                )
        header = {"client": self.session, "submitted": time.time()}
        if current_or_none() is not None:
            header[NESTED] = True
        request = Request(
            self.new_id(),
            "apply",
            f"ref:{reference.name}",
            function=serialize.dumps(calls.pull),
            arguments=serialize.dumps(((reference.name,), {})),
            header=header,
        )
        return self.backend.keep(reference.uuid, request, uses=uses)

    def execute(
        self,
        key: str,
        code: str,
        *,
        silent: bool,
        store_history: bool,
        label: str,
        header: dict[str, Any] | None = None,
    ) -> MessageFuture:
        """Have an engine run code in its shell."""
        with uninterrupted():
            future = self.register("execute", label, key, header, SENT)
            if not silent:
                future.metadata["execute_input"] = code
                future.context = contextvars.copy_context()
            content = {"code": code, "silent": silent, "store_history": store_history}
            request = Request(
                future.msg_id, "execute", label, content, header=self.header(future, header)
            )
            self.send(key, request)
        return future

    def send(self, key: str, request: Request) -> None:
        """Send a registered request, unless its engine is known to be gone."""
        with self.lock:
            gone = self.lost or (None if key in self.engines else "it is gone")
            if request.kind == "execute":
                request.header["heard"] = self.heard.get(key, 0)
        if gone:
            self._strand(key, [request.msg_id], gone)
        else:
            self.backend.send(key, [request])

    @property
    def hopeless(self) -> str | None:
        """Why there is nothing to wait for: the cluster is gone, or an engine did not start."""
        return self.lost or next(iter(self.stillborn.values()), None)

    # -- EventSink -------------------------------------------------------------------

    def engine_up(self, info: EngineInfo) -> None:
        with self.lock:
            self.engines[info.key] = info
            self.ids[info.key] = info.id
            self.keys[info.id] = info.key
            callbacks = list(self.engine_callbacks)
            self.engines_changed.notify_all()
        self._call_back(callbacks, {"event": "register", "id": info.id, "uuid": info.key})
        self.on_change(None)

    def engine_down(self, key: str, reason: str) -> None:
        with self.lock:
            info = self.engines.pop(key, None)
            if info is not None and self.keys.get(info.id) == key:
                del self.keys[info.id]
            if key not in self.ids:
                self.stillborn[key] = f"an engine ended while it started: {reason}"
            stranded = list(self.by_engine.pop(key, ()))
            self.heard.pop(key, None)
            callbacks = list(self.engine_callbacks)
            self.engines_changed.notify_all()
        self._strand(key, stranded, reason)
        if info is not None:
            self._call_back(callbacks, {"event": "unregister", "id": info.id, "uuid": key})
        self.on_change(None)

    def engines_starting(self) -> None:
        with self.lock:  # what became of earlier ones says nothing of them
            self.stillborn.clear()

    def fates(self, msg_ids: Sequence[str]) -> dict[str, Fate]:
        held: Fate = ("held", None)
        with self.lock:
            return {
                m: held if m in self.outstanding else self.outcomes[m]
                for m in msg_ids
                if m in self.outstanding or m in self.outcomes
            }

    def disconnected(self, reason: str) -> None:
        with self.lock:
            self.lost = reason
            keys = list(self.engines)
            # also where the engines went first: who waits for others waits in vain
            self.engines_changed.notify_all()
        for key in keys:
            self.engine_down(key, reason)
        with self.lock:
            rest = list(self.outstanding)
        self._strand(None, rest, reason)

    @staticmethod
    def _call_back(
        callbacks: list[Callable[[dict[str, Any]], None]], event: dict[str, Any]
    ) -> None:
        for callback in callbacks:
            try:
                callback(event)
            except Exception:
                log.exception("a registration callback failed")

    def _strand(self, key: str | None, msg_ids: Sequence[str], reason: str) -> None:
        """Fail requests that will get no reply."""
        engine_id = self.ids.get(key) if key else None
        for msg_id in msg_ids:
            with self.lock:
                future = self.outstanding.get(msg_id)
            if future is None:
                continue
            where = f"Engine {engine_id}" if engine_id is not None else "The cluster"
            what = f"died before task {msg_id!r} was done: {reason}"
            info = {"engine_id": engine_id, "engine_uuid": key, "method": future.method}
            failure = EngineDied(f"{where} {what}", info if key else None)
            content = {"ename": "EngineError", "evalue": failure.evalue, "engine_info": info}
            if key and self.intercept(Reply(msg_id, "error", key, content=content)):
                continue
            future.metadata["status"] = "error"
            self._end(future, key, "error", functools.partial(future.fail, failure))
            future.output_latch.set()

    def sent(self, msg_id: str) -> None:
        with self.lock:
            future = self.outstanding.get(msg_id)
        if future is not None and future.sent_latch is not SENT:
            future.sent_latch.set()

    def started(self, msg_id: str, key: str) -> None:
        with self.lock:
            future = self.outstanding.get(msg_id)
            if future is None:
                return
            before = future.metadata["engine_uuid"]
            if before != key and before in self.by_engine:
                self.by_engine[before].discard(msg_id)  # where it had been sent, but did not run
            self.by_engine[key].add(msg_id)
            future.metadata["engine_uuid"] = key
            future.metadata["engine_id"] = self.ids.get(key)

    def output(self, msg_id: str, event: OutputEvent) -> None:
        with self.lock:
            future = self.outstanding.get(msg_id)
            awaited = None
            if future is None and msg_id in self._awaited:
                future, awaited = self._awaited[msg_id]
        if event.type == "comm":
            context = None if future is None else future.context
            relay(event.content, self._tell_widget, context)
        if future is None:
            # of a thread that outlived its request: for whoever still looks at it
            ended = self._ended.get(msg_id, _none)()
            if ended is not None:
                ended.write_output(event, lambda metadata: _record(metadata, event))
            return
        if event.type == "error":
            event.content = self._with_id(event.content, future.metadata["engine_uuid"])
        future.write_output(event, lambda metadata: _record(metadata, event))
        if awaited is not None and event.seq + 1 >= awaited:
            with self.lock:
                self._awaited.pop(msg_id, None)
            future.output_latch.set()
        elif event.seq >= 0:
            future.outputs = event.seq + 1

    def _tell_widget(self, key: str, *message: Any) -> None:
        """Have an engine hear, in its turn, what a browser says to a widget of it."""
        if self.lost is None and key in self.engines:
            function, arguments = serialize.dumps(hear), serialize.dumps((message, {}))
            header = {"client": self.session, "submitted": time.time()}
            request = Request(
                self.new_id(), "apply", "widget", {}, function, arguments, header=header
            )
            with uninterrupted():
                self.backend.send(key, [request])

    def reply(self, reply: Reply) -> None:
        with self.lock:
            future = self.outstanding.get(reply.msg_id)
        if future is None:
            return
        if self.intercept(reply):
            return
        if reply.engine is not None and "failures" in reply.content:
            # before the future is done: what is sent then is not to be aborted
            self.heard[reply.engine] = reply.content["failures"]
        md = future.metadata
        # what another client received, we fetch: it was complete when its engine was done
        fetched = not reply.msg_id.startswith(self.session)
        if fetched and reply.content.get("moves"):
            with self.lock:  # it does not end with that engine
                self.by_engine.get(reply.engine or "", set()).discard(reply.msg_id)
            self.may_move(reply)
            return
        known: dict[str, Any] = {
            "status": reply.status,
            "received": _datetime(reply.completed if fetched and reply.completed else time.time()),
        }
        # one string for all that an engine has done: much of that is remembered
        key = sys.intern(reply.engine) if reply.engine is not None else None
        if key is not None:
            known["engine_uuid"] = key
            known["engine_id"] = self.ids.get(key)
        if reply.started is not None:
            known["started"] = _datetime(reply.started)
        if reply.completed is not None:
            known["completed"] = _datetime(reply.completed)
        md.update(known)
        if future.outputs >= reply.outputs:
            future.output_latch.set()
        else:
            with self.lock:
                self._awaited[reply.msg_id] = (future, reply.outputs)
        if reply.status == "aborted":
            self._end(future, key, "aborted", lambda: future.fail(TaskAborted(reply.msg_id)))
        elif reply.status == "error":
            failure = unwrap_exception(self._with_id(reply.content, reply.engine))
            md["error"] = failure
            self._end(future, key, "error", lambda: future.fail(failure))
        elif "execution_count" in reply.content:
            result = ExecuteReply(reply.msg_id, reply.content, md)
            self._end(future, key, "ok", lambda: future.finish_value(result))
        else:
            pickled = reply.result or []
            if isinstance(pickled, list):
                nbytes = 0
                for frame in pickled:
                    nbytes += memoryview(frame).nbytes
            else:
                nbytes = pickled.nbytes
            self._end(future, key, "ok", lambda: future.finish(pickled, _load, nbytes), nbytes)

    def _with_id(self, content: dict[str, Any], key: str | None) -> dict[str, Any]:
        info = dict(content.get("engine_info") or {})
        if info and info.get("engine_id") is None and key is not None:
            info["engine_id"] = self.ids.get(key)
        return {**content, "engine_info": info}

    def _end(
        self,
        future: MessageFuture,
        key: str | None,
        status: str,
        finish: Callable[[], None],
        nbytes: int = 0,
    ) -> None:
        msg_id = future.msg_id
        with self.lock:
            if self.outstanding.pop(msg_id, None) is None:
                return  # somebody was faster
            # not as others look at them, who want its text put together
            where = dict.__getitem__(future.metadata, "engine_uuid")
            if dict.__getitem__(future.metadata, "after") is None:
                # as ipyparallel has them of what has ended
                future.metadata.update(after=[], follow=[])
            for engine in {key, where}:
                if engine in self.by_engine:
                    self.by_engine[engine].discard(msg_id)
            self.outcomes.put(msg_id, (status, key or where), 0)
            # before the future is done: its AsyncResult may forget it again at once
            self.results.futures.put(msg_id, future, nbytes)
            self._ended[msg_id] = ref(future, functools.partial(self._gone, msg_id))
        future.held = None
        if future.sent_latch is not SENT:
            future.sent_latch.set()
        before, telling.now = telling.now, True
        try:
            finish()
        finally:
            telling.now = before
        self.on_change(msg_id)

    def fail(self, msg_id: str, error: BaseException) -> None:
        """End a request that was never sent."""
        with self.lock:
            future = self.outstanding.get(msg_id)
        if future is None:
            return
        future.metadata["status"] = "error"
        self._end(future, None, "error", lambda: future.fail(error))
        future.output_latch.set()


def _load(result: Frames | LargeResult, *, copy: bool = True) -> Any:
    """The value of a result, brought here if it is elsewhere; see :meth:`LargeResult.fetch`."""
    return serialize.loads(result if isinstance(result, list) else result.fetch(copy=copy))


def _none() -> None:
    """A reference to nothing."""


#: a time of Metadata, from POSIX seconds
_datetime = functools.partial(datetime.fromtimestamp, tz=timezone.utc)


def _record(metadata: Metadata, event: OutputEvent) -> None:
    """Note an output event in a request's metadata."""
    content = event.content
    if event.type == "stream":
        metadata.add_text(content["name"], content["text"])
    elif event.type == "display_data":
        metadata["outputs"].append({"output_type": "display_data", **content})
    elif event.type == "update_display_data":
        _update(metadata["outputs"], content)
    elif event.type == "clear_output":
        metadata["stdout"] = metadata["stderr"] = ""
        metadata["outputs"].clear()
    elif event.type == "execute_result":
        metadata["execute_result"] = content
    elif event.type == "error":
        metadata["error"] = unwrap_exception(content)
    elif event.type == "data":
        metadata["data"] = {**metadata["data"], **serialize.loads(content["frames"])}


def _update(outputs: list[dict[str, Any]], content: dict[str, Any]) -> None:
    """Replace the displays that have the same display_id."""
    wanted = (content.get("transient") or {}).get("display_id")
    for output in outputs:
        if (output.get("transient") or {}).get("display_id") == wanted:
            output["data"], output["metadata"] = content["data"], content["metadata"]

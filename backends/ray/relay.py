"""A second Ray cluster for one process: through a process of its own.

Ray connects a process to one cluster at a time.  Clients of further clusters have their
:class:`~.backend.RayBackend` in a child process, and talk to it over a pipe::

    RelayBackend ── (call_id, method, args) ──> child: RayBackend
                 <─ ("sink", method, args), ("answer", call_id, ok, value) ──

What is slower there is one more copy of what is sent and received, and there are no objects
of Ray's own in this process.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from pxcompat.engine.interrupts import OwnFuture
from pxcompat.error import BackendError, ConnectError, EngineError
from pxcompat.objects import RemoteReference
from pxcompat.protocol import (
    Capabilities,
    EventSink,
    Fate,
    Frames,
    Handle,
    LargeResult,
    OutputEvent,
    Part,
    Reply,
    Request,
)

from .later import heard
from .wire import LARGE, StoredFrames, pack_frames, size, unpack_frames

__all__ = ["RelayBackend"]

log = logging.getLogger("pxcompat.ray")

#: seconds beyond the backend's own timeouts, for the child to start
MARGIN = 20


class _Pipe:
    """Pickled messages, their buffers uncopied; thread-safe to send."""

    def __init__(self, sock: socket.socket) -> None:
        self._connection = Connection(sock.detach())
        self._lock = threading.Lock()

    def send(self, message: Any) -> None:
        buffers: list[pickle.PickleBuffer] = []
        head = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
        with self._lock:
            self._connection.send_bytes(len(buffers).to_bytes(4, "big") + head)
            for buffer in buffers:
                self._connection.send_bytes(buffer.raw())

    def receive(self) -> Any:
        head = memoryview(self._connection.recv_bytes())
        count = int.from_bytes(head[:4], "big")
        buffers = [bytearray(self._connection.recv_bytes()) for _ in range(count)]
        return pickle.loads(head[4:], buffers=buffers)

    def close(self) -> None:
        self._connection.close()


class _Held(StoredFrames):
    """Frames that the child holds: ``ref`` is their number there."""

    __slots__ = ("_backend",)

    def __init__(self, number: int, nbytes: int, backend: RelayBackend) -> None:
        super().__init__(number, nbytes)
        self._backend = backend

    def fetch(self, *, copy: bool = True) -> Frames:
        """The frames, brought here; they are this process's anyway."""
        return unpack_frames(self._backend.ask("fetch", self.ref).result()) or []


def _pack(request: Request) -> tuple[Any, ...]:
    head = (request.msg_id, request.kind, request.label, request.content, request.header)
    natives = {token: kept.number for token, kept in request.natives.items()}
    return (head, _pack_field(request.function), _pack_field(request.arguments), natives)


def _pack_field(frames: Frames | Handle | None) -> Any:
    return ("held", frames.ref) if isinstance(frames, StoredFrames) else pack_frames(frames)  # type: ignore[arg-type]


class _Kept:
    """A value that an engine puts aside (:class:`.objects.Kept`): its number in the child."""

    __slots__ = ("__weakref__", "number")

    def __init__(self, number: int) -> None:
        self.number = number


class RelayBackend:
    """:class:`pxcompat.protocol.Backend` in front of a RayBackend in another process."""

    name = "ray"

    def __init__(self, info: Mapping[str, Any]) -> None:
        self._info = info
        self._dashboard = str(info.get("dashboard") or "")
        self._pipe: _Pipe | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._answers: dict[int, Future[Any]] = {}
        self._call_ids = itertools.count()
        self._numbers = itertools.count()
        self._closed = False
        self._thread = threading.Thread(target=self._listen, name="pxcompat-relay", daemon=True)
        self.adopted = "adopt" in info
        self.capabilities = Capabilities(put_threshold=LARGE, mpi=not self.adopted)
        self.sink: EventSink

    # -- life --------------------------------------------------------------------------

    def open(self, sink: EventSink, *, timeout: float = 5) -> None:
        self.sink = sink
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # a Ctrl-C in this terminal is for us
                start_new_session=True,
            )
        self._pipe = _Pipe(ours)
        self._thread.start()
        try:
            opened = self.ask("open", dict(self._info), sink.session, timeout)
            if not wait([opened], timeout + MARGIN).done:
                raise ConnectError(
                    f"cannot connect to the Ray cluster at {self._info.get('address')} (stage: "
                    f"starting a process for the connection; waited {timeout + MARGIN:g} s)"
                )
            self.capabilities = replace(self.capabilities, grows=opened.result())
        except BaseException:
            self.close()
            raise

    def close(self, *, timeout: float = 5) -> None:
        if self._closed:
            return
        self._closed = True
        if self._pipe is None or self._process is None:
            return
        # it goes on until the requests outstanding have their replies; nobody waits for that
        busy = self.ask("close")
        wait([busy], timeout)
        if busy.done() and busy.exception() is None and busy.result():
            threading.Thread(target=self._process.wait, daemon=True).start()
            return
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _listen(self) -> None:
        assert self._pipe is not None
        try:
            while True:
                kind, *fields = self._pipe.receive()
                if kind == "answer":
                    self._answer(*fields)
                elif kind == "dashboard":
                    self._dashboard = heard(*fields)
                else:
                    self._tell(*fields)
        except (EOFError, OSError):
            self._end("the process of its connection ended")
        finally:
            self._pipe.close()

    def _end(self, reason: str) -> None:
        with self._lock:
            answers, self._answers = list(self._answers.values()), {}
        for answer in answers:
            answer.set_exception(EngineError(f"the cluster is out of reach: {reason}"))
        if not self._closed:
            self.sink.disconnected(reason)

    def _answer(self, call_id: int, ok: bool, value: Any) -> None:
        with self._lock:
            answer = self._answers.pop(call_id, None)
        if answer is not None:
            answer.set_result(value) if ok else answer.set_exception(value)

    def _tell(self, method: str, args: tuple[Any, ...]) -> None:
        if method == "reply":
            args = (self._unpack_reply(*args),)
        elif method == "output":
            event = args[1]
            if "frames" in event.content:
                event.content["frames"] = unpack_frames(event.content["frames"])
        getattr(self.sink, method)(*args)

    def _unpack_reply(self, reply: Reply, held: tuple[int, int] | None) -> Reply:
        if held is not None:
            number, nbytes = held
            result = _Held(number, nbytes, self)
            weakref.finalize(result, self._drop, number).atexit = False
            reply.result = result
        else:
            reply.result = unpack_frames(reply.result)  # type: ignore[arg-type]
        return reply

    # -- calls -------------------------------------------------------------------------

    def ask(self, method: str, *args: Any) -> Future[Any]:
        """Call a method over there."""
        answer: Future[Any] = OwnFuture()
        with self._lock:
            call_id = next(self._call_ids)
            self._answers[call_id] = answer
        try:
            self._send(call_id, method, args)
        except OSError as error:
            with self._lock:
                self._answers.pop(call_id, None)
            answer.set_exception(EngineError(f"the cluster is out of reach: {error}"))
        return answer

    def _send(self, call_id: int | None, method: str, args: tuple[Any, ...]) -> None:
        if self._pipe is None:
            raise OSError("not connected")
        self._pipe.send((call_id, method, args))

    def send(self, key: str, requests: Sequence[Request]) -> None:
        self._send_requests("send", requests, key)

    def send_balanced(self, requests: Sequence[Request], candidates: Sequence[str] | None) -> None:
        self._send_requests(
            "send_balanced", requests, None if candidates is None else [*candidates]
        )

    def _send_requests(self, method: str, requests: Sequence[Request], where: Any) -> None:
        try:
            self._send(None, method, (where, [_pack(request) for request in requests]))
        except OSError as error:
            self._end(str(error))
            return
        for request in requests:
            self.sink.sent(request.msg_id)

    def awaited(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def cancel(self, key: str | None, msg_ids: Sequence[str]) -> Future[list[str]]:
        return self.ask("cancel", key, list(msg_ids))

    def signal(self, key: str, signum: int) -> Future[None]:
        return self.ask("signal", key, signum)

    def control(self, key: str | None, op: str, args: Mapping[str, Any]) -> Future[Any]:
        return self.ask("control", key, op, dict(args))

    def start_engines(
        self, n: int, *, mpi: Sequence[str] | None = None, env: Mapping[str, str] | None = None
    ) -> Future[list[str]]:
        return self.ask("start_engines", n, mpi and list(mpi), dict(env or {}))

    def stop_engines(self, keys: Sequence[str], *, force: bool = False) -> Future[None]:
        return self.ask("stop_engines", list(keys), force)

    def restart_engines(self, keys: Sequence[str]) -> Future[list[str]]:
        return self.ask("restart_engines", list(keys))

    def stop_cluster(self) -> Future[None]:
        return self.ask("stop_cluster")

    def put(self, frames: Frames, keys: Sequence[str]) -> Handle:
        number = next(self._numbers)
        held = _Held(number, size(frames), self)
        self._send(None, "put", (number, pack_frames(frames), list(keys)))
        weakref.finalize(held, self._drop, number).atexit = False
        return held

    def accept(self, obj: Any) -> Any:
        raise self._not_ours(repr(obj))

    def _not_ours(self, what: str) -> EngineError:
        return EngineError(
            f"{what} is not of the Ray cluster at {self._info.get('address')}, but of the one "
            "that this process is connected to; objects of the former are there in a process "
            "that connects to it first"
        )

    def take_apart(self, obj: Any, keys: Sequence[str], *, copy: bool) -> Sequence[Any] | None:
        from .collections import is_collection

        if is_collection(obj):
            raise self._not_ours("the dataset" if hasattr(obj, "schema") else "the list")
        return None

    def put_together(self, name: str, parts: Sequence[Part]) -> Any:
        raise ValueError("a process has datasets of one Ray cluster, which is another")

    def reference(
        self, name: str, key: str, engine: int, keep: Callable[[Any], Any]
    ) -> RemoteReference:
        return RemoteReference(name, key, engine)  # of no use to the Ray that is connected here

    def keep(self, key: str, request: Request, *, uses: int | None) -> _Kept:
        kept = _Kept(next(self._numbers))
        self._send(None, "keep", (kept.number, key, _pack(request)))
        weakref.finalize(kept, self._drop, kept.number).atexit = False
        return kept

    def _drop(self, number: int) -> None:
        with contextlib.suppress(OSError):  # the child is gone, and what it held with it
            self._send(None, "drop", (number,))

    @property
    def dashboard_link(self) -> str:
        return self._dashboard

    @property
    def native(self) -> Any:
        raise BackendError(
            f"this process is connected to another Ray cluster; for Ray's own objects of the one "
            f"at {self._info.get('address')} connect to it from a process of its own"
        )

    def native_client(self) -> Any:
        return self.native


# -- the child ------------------------------------------------------------------------


class _Sink:
    """Passes on what the backend reports (:class:`pxcompat.protocol.EventSink`)."""

    def __init__(self, child: _Child, session: str) -> None:
        self._child = child
        self.session = session

    def __getattr__(self, method: str) -> Any:
        return lambda *args: self._child.say(("sink", method, args))

    def sent(self, msg_id: str) -> None:
        """Said already, when it went into the pipe."""

    def fates(self, msg_ids: Sequence[str]) -> dict[str, Fate]:
        """Who knows is in the other process, and is not waited for: those of a client that is
        there are taken to be waited for."""
        return dict.fromkeys(msg_ids, ("held", None))

    def output(self, msg_id: str, event: OutputEvent) -> None:
        if "frames" in event.content:
            event.content["frames"] = pack_frames(event.content["frames"])
        self._child.say(("sink", "output", (msg_id, event)))

    def reply(self, reply: Reply) -> None:
        held = None
        result: Any = reply.result
        if result is None or isinstance(result, list):
            reply.result = pack_frames(result)
        else:
            held = (self._child.hold(result), result.nbytes)
            reply.result = None
        self._child.say(("sink", "reply", (reply, held)))


class _Child:
    """The process between a client and its cluster."""

    def __init__(self, pipe: _Pipe) -> None:
        self._pipe = pipe
        self._backend: Any = None
        #: what is held for the other side: its own by its numbers, results by negative ones
        self._held: dict[int, Any] = {}
        self._numbers = itertools.count(1)

    def say(self, message: Any) -> None:
        try:
            self._pipe.send(message)
        except OSError:
            log.debug("the client is gone")

    def hold(self, stored: LargeResult) -> int:
        number = -next(self._numbers)
        self._held[number] = stored
        return number

    def run(self) -> None:
        try:
            while True:
                call_id, method, args = self._pipe.receive()
                try:
                    value = getattr(self, f"on_{method}", None)
                    done = value(*args) if value else getattr(self._backend, method)(*args)
                except Exception as error:
                    self._answer(call_id, False, error)
                    continue
                if isinstance(done, Future):
                    done.add_done_callback(functools.partial(self._answer_later, call_id))
                else:
                    self._answer(call_id, True, done)
                if method == "close":
                    break
        except (EOFError, OSError):
            log.debug("the client is gone")
        if self._backend is not None:
            self._backend.close()
            self._backend.wait_until_ended()

    def _answer(self, call_id: int | None, ok: bool, value: Any) -> None:
        if call_id is not None:
            self.say(("answer", call_id, ok, value))

    def _answer_later(self, call_id: int, future: Future[Any]) -> None:
        error = future.exception()
        if error is None:
            self._answer(call_id, True, future.result())
        else:
            self._answer(call_id, False, error)

    def on_start_engines(
        self, n: int, mpi: list[str] | None, env: dict[str, str]
    ) -> Future[list[str]]:
        started: Future[list[str]] = self._backend.start_engines(n, mpi=mpi, env=env)
        return started

    def on_open(self, info: dict[str, Any], session: str, timeout: float) -> bool:
        from .backend import RayBackend

        backend = RayBackend(info)
        backend.on_dashboard = lambda *said: self.say(("dashboard", *said))
        backend.open(_Sink(self, session), timeout=timeout)
        self._backend = backend
        return bool(backend.capabilities.grows)

    def on_close(self) -> bool:
        return bool(self._backend is not None and self._backend.busy)

    def on_send(self, key: str, packed: list[Any]) -> None:
        self._backend.send(key, [self._request(*fields) for fields in packed])

    def on_send_balanced(self, candidates: list[str] | None, packed: list[Any]) -> None:
        self._backend.send_balanced([self._request(*fields) for fields in packed], candidates)

    def _request(
        self, head: tuple[Any, ...], function: Any, arguments: Any, numbers: dict[str, int]
    ) -> Request:
        msg_id, kind, label, content, header = head
        frames = self._field(function), self._field(arguments)
        natives = {token: self._held[number] for token, number in numbers.items()}
        return Request(msg_id, kind, label, content, frames[0], frames[1], header, natives)

    def on_keep(self, number: int, key: str, packed: tuple[Any, ...]) -> None:
        from .objects import Lost

        try:
            self._held[number] = self._backend.keep(key, self._request(*packed), uses=None)
        except EngineError as error:
            self._held[number] = Lost(str(error))  # said by whoever needs it

    def _field(self, field: Any) -> Any:
        if isinstance(field, tuple):
            return self._held[field[1]]
        return unpack_frames(field)

    def on_stop_engines(self, keys: list[str], force: bool) -> Any:
        return self._backend.stop_engines(keys, force=force)

    def on_put(self, number: int, frames: Any, keys: list[str]) -> None:
        self._held[number] = self._backend.put(unpack_frames(frames), keys)

    def on_drop(self, number: int) -> None:
        self._held.pop(number, None)

    def on_fetch(self, number: int) -> Any:
        return pack_frames(self._held[number].fetch())


def main() -> None:
    """Relay for whoever holds the other end of the given file descriptor."""
    _Child(_Pipe(socket.socket(fileno=int(sys.argv[1])))).run()
    # daemonic threads of Ray may be in the middle of something
    os._exit(0)


if __name__ == "__main__":
    main()

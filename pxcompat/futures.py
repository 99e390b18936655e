"""A request's future and its metadata: what ``dispatch`` writes and an AsyncResult reads."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
from collections.abc import Callable, Collection
from concurrent.futures import (
    CancelledError,
    Future,
    InvalidStateError,
    TimeoutError as FutureTimeoutError,
)
from typing import Any, Protocol, TypeVar

from .engine.interrupts import OnDemand, OwnFuture, RLock, uninterrupted
from .protocol import Frames, LargeResult, OutputEvent

__all__ = [
    "SENT",
    "Latch",
    "MessageFuture",
    "Metadata",
    "future_add_done_callback",
    "future_set_exc_info",
    "future_set_result_unless_cancelled",
    "multi_future",
    "overwritten",
]

Listener = Callable[[OutputEvent], None]


class Decode(Protocol):
    """Unpickles a result; without ``copy`` the value may share memory, and be read-only."""

    def __call__(self, result: Frames | LargeResult, /, *, copy: bool = True) -> Any: ...


AnyFuture = TypeVar("AnyFuture", bound=Future[Any])

log = logging.getLogger("pxcompat")


#: the keys of Metadata, and what they are before anything is known
_UNKNOWN: dict[str, Any] = {
    "msg_id": None,
    "submitted": None,
    "started": None,
    "completed": None,
    "received": None,
    "engine_uuid": None,
    "engine_id": None,
    "follow": None,
    "after": None,
    "status": None,
    "execute_input": None,
    "execute_result": None,
    "error": None,
    "stdout": "",
    "stderr": "",
    "outputs": None,
    "data": None,
    "label": None,
}


class Metadata(dict[str, Any]):
    """What is known of a request (ipyparallel.client.client.Metadata).

    A dict with a fixed set of keys, also readable and writable as attributes.  Times are
    timezone-aware datetimes (UTC) or None.

    Raises
    ------
    KeyError, AttributeError
        On setting a key that is not one of them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(_UNKNOWN, outputs=[], data={})
        given = dict(*args, **kwargs)
        if not given.keys() <= _UNKNOWN.keys():
            raise KeyError(*(given.keys() - _UNKNOWN.keys()))
        super().update(given)

    #: printed text that has not been looked at yet, by the name of its stream, if there is any
    _parts: dict[str, list[str]] | None = None
    #: held by who adds text and who puts it together; of all of them, for it is not held for long
    _lock = threading.RLock()

    def add_text(self, stream: str, text: str) -> None:
        """Add printed text; it is put together when somebody looks."""
        with self._lock:
            parts = self._parts
            if parts is None:
                parts = {}
                object.__setattr__(self, "_parts", parts)
            parts.setdefault(stream, []).append(text)

    def _put_together(self) -> None:
        if not self._parts:
            return
        with uninterrupted(), self._lock:
            # gone from there when they are here: so whoever finds none there finds all here
            for stream, parts in list(self._parts.items()):
                before, newline, line = dict.__getitem__(self, stream).rpartition("\n")
                super().__setitem__(stream, before + newline + overwritten(line + "".join(parts)))
                del self._parts[stream]

    def __getitem__(self, key: str) -> Any:
        if self._parts:
            self._put_together()
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._put_together()
        return super().get(key, default)

    def items(self) -> Any:
        self._put_together()
        return super().items()

    def values(self) -> Any:
        self._put_together()
        return super().values()

    def copy(self) -> dict[str, Any]:
        self._put_together()
        return super().copy()

    def __reduce__(self) -> tuple[Any, ...]:
        # as a dict is, it would be filled by assignments to keys that are not there yet
        return type(self), (self.copy(),)

    def __eq__(self, other: object) -> bool:
        self._put_together()
        return super().__eq__(other)

    def __repr__(self) -> str:
        self._put_together()
        return super().__repr__()

    def _repr_pretty_(self, p: Any, cycle: bool) -> None:
        # a line a key, as IPython shows a dict: for a class with a __repr__ it calls that
        p.text("{...}") if cycle else p.pretty(self.copy())

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(key) from None

    def __setattr__(self, key: str, value: Any) -> None:
        try:
            self[key] = value
        except KeyError:
            raise AttributeError(key) from None

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self:
            raise KeyError(key)
        with self._lock:
            if self._parts:
                self._parts.pop(key, None)
            super().__setitem__(key, value)


def overwritten(text: str) -> str:
    """The text with what a carriage return overwrites taken out, as a terminal shows it."""
    if "\r" not in text:
        return text
    lines = text.replace("\r\n", "\n").split("\n")
    last = len(lines) - 1
    shown = []
    for number, line in enumerate(lines):
        trailing = "\r" if number == last and line.endswith("\r") else ""
        shown.append(line.rstrip("\r").rpartition("\r")[2] + trailing)
    return "\n".join(shown)


class Latch:
    """Something that happens once; unlike a Future it costs little while nobody waits for it."""

    __slots__ = ("_callbacks", "_future", "_set")

    #: of all of them, since it is never held for long; taken again by what the garbage collector
    #: may call meanwhile
    _lock = threading.RLock()

    def __init__(self) -> None:
        self._set = False
        self._callbacks: tuple[Callable[[Any], object], ...] = ()
        self._future: Future[None] | None = None

    def is_set(self) -> bool:
        """Whether it has happened."""
        return self._set

    def set(self) -> None:
        """It happens; not for the second time."""
        with self._lock:
            if self._set:
                return
            self._set = True
            callbacks, self._callbacks = self._callbacks, ()
        for callback in callbacks:
            callback(self)

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        """Call ``callback(...)`` when it happens; at once when it has."""
        with self._lock:
            if not self._set:
                self._callbacks = (*self._callbacks, callback)
                return
        callback(self)

    @property
    def future(self) -> Future[None]:
        """The same as a Future, done (None) when it has happened, and the other way round."""
        with self._lock:
            future = self._future
            if future is None:
                future = self._future = OwnFuture()
                made = True
            else:
                made = False
        if made:
            future.add_done_callback(lambda _: self.set())
            self.add_done_callback(lambda _: _complete(future))
        return future

    def wait(self, timeout: float | None = None) -> bool:
        """Wait, for ``timeout`` seconds at most; whether it has happened."""
        if not self._set:
            with contextlib.suppress(FutureTimeoutError, CancelledError):
                self.future.exception(timeout)
        return self._set or self.future.done()


#: of requests that are sent as a copy: nobody has to wait until they have left
SENT = Latch()
SENT.set()


def _complete(future: Future[None]) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_result(None)


class MessageFuture(OwnFuture[Any]):
    """The future of one request (ipyparallel.client.futures.MessageFuture).

    Only ``dispatch`` completes it.  The result stays pickled until somebody asks, and is
    unpickled once, in the thread that asks: the thread that receives replies never runs
    a user's unpickling code.

    Attributes
    ----------
    msg_id : str
    header : dict
        ``msg_type``: what kind of request it is, as ipyparallel's messages name it.
    method : str
        ``"apply"`` or ``"execute"``.
    track : bool
        Kept for compatibility: ``tracker`` is always true to the fact.
    metadata : Metadata
        Written as output arrives, complete when ``output`` is done.
    output_latch, sent_latch : Latch
        Set when all of the request's output has arrived; when its buffers have left
        and may be changed.
    output, sent : Future
        The same as Futures, done (None).
    tracker : Future
        ``sent``, as ipyparallel calls it.
    reply_error : BaseException or None
        What went wrong, as the reply has it.
    """

    _lock = OnDemand(RLock)

    def __init__(
        self,
        msg_id: str,
        header: dict[str, Any] | None = None,
        *,
        track: bool = False,
        method: str = "apply",
        metadata: Metadata | None = None,
        sent: Latch | None = None,
    ) -> None:
        super().__init__()
        self.msg_id = msg_id
        self.header = header or {"msg_type": f"{method}_request"}
        self.track = track
        self.method = method
        self.metadata = metadata if metadata is not None else Metadata(msg_id=msg_id)
        self.output_latch = Latch()
        self.sent_latch = sent if sent is not None else Latch()
        #: what must be kept until the reply: values held for the request by the backend
        self.held: Any = None
        #: of a cell: where its widgets speak in, so that a kernel knows whose they are
        self.context: contextvars.Context | None = None
        #: how many output events have arrived
        self.outputs = 0
        #: how many items of a map that runs are done, as far as the engine has said
        self.items_done = 0
        self._listeners: tuple[Listener, ...] = ()
        #: of the result, pickled
        self.nbytes = 0
        self._pickled: Frames | LargeResult | None = None
        self._decode: Decode | None = None
        self._value: Any = None
        self.reply_error: BaseException | None = None
        self._failure: BaseException | None = None

    # -- reading ---------------------------------------------------------------

    @property
    def output(self) -> Future[None]:
        """Done (None) when all of the request's output has arrived."""
        return self.output_latch.future

    @property
    def sent(self) -> Future[None]:
        """Done (None) when the request's buffers have left and may be changed."""
        return self.sent_latch.future

    @property
    def tracker(self) -> Future[None]:
        """Done (None) when the request's buffers have left and may be changed."""
        return self.sent

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the reply, for ``timeout`` seconds at most; whether it is there."""
        # not by concurrent.futures.wait, which an interrupt may leave with our lock taken
        with contextlib.suppress(FutureTimeoutError, CancelledError):
            super().exception(timeout)
        return self.done()

    def value(self) -> Any:
        """The result, or the exception (not raised).  Only when done.

        An AsyncResult tells the two apart with ``exception()``.
        """
        failure = self._failure if self._decode is None else self.unpickle()
        return self._value if failure is None else failure

    def result(self, timeout: float | None = None) -> Any:
        """The unpickled result; raises the request's exception."""
        super().result(timeout)
        failure = self.unpickle()
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # else the traceback, which holds this frame, makes a cycle
        return self._value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The request's exception, or None."""
        return super().exception(timeout) or self.unpickle()

    def unpickle(self) -> BaseException | None:
        """Unpickle the result, unless it has been; what went wrong.  Only when done."""
        if self._decode is None:
            return self._failure
        with self._lock:
            if self._decode is not None:
                try:
                    self._value = self._decode(self._pickled or [])
                except Exception as error:
                    self._failure = error
                # an interrupt gets past this, and the result can be asked for again
                self._decode = self._pickled = None
            return self._failure

    def lend(self) -> Any:
        """The result, for one who copies from it and is then done with it.  Only when done.

        It is not kept, and may be read-only, unless somebody has asked for it before.
        """
        with self._lock:
            if self._decode is None:
                return self._value
            return self._decode(self._pickled or [], copy=False)

    def settle(self, value: Any) -> None:
        """Have a value that is equal to the result in its place."""
        with self._lock:
            self._value, self._decode, self._pickled = value, None, None

    def listen(self, listener: Listener, replay: Callable[[Metadata], None]) -> Callable[[], None]:
        """Hear every output event from now on, after ``replay(metadata)`` of the past.

        Nothing arrives between the two, so nothing is lost or heard twice.  Returns a
        function that ends the listening.
        """
        with self._lock:
            replay(self.metadata)
            self._listeners = (*self._listeners, listener)

        def stop() -> None:
            with self._lock:
                self._listeners = tuple(other for other in self._listeners if other != listener)

        return stop

    # -- writing: for dispatch alone -------------------------------------------

    def write_output(self, event: OutputEvent, record: Callable[[Metadata], None]) -> None:
        """Record an event in the metadata and tell the listeners, atomically."""
        with self._lock:
            if event.type == "progress":
                self.items_done = event.content["done"]
            record(self.metadata)
            for listener in self._listeners:
                listener(event)

    def finish(self, pickled: Frames | LargeResult, decode: Decode, nbytes: int = 0) -> None:
        """End well, with a result that ``decode`` unpickles when it is asked for."""
        with self._lock:
            self._pickled, self._decode, self.nbytes = pickled, decode, nbytes
        super().set_result(None)

    def finish_value(self, value: Any) -> None:
        """End well, with a result that needs no unpickling."""
        self._value = value
        super().set_result(None)

    def fail(self, error: BaseException) -> None:
        """End with an exception."""
        self.reply_error = self._failure = error
        super().set_exception(error)


# -- futures of any kind: concurrent.futures', asyncio's ---------------------------


def future_set_result_unless_cancelled(future: Future[Any], value: Any) -> None:
    """Set the result of a future, unless it has been cancelled."""
    if not future.cancelled():
        future.set_result(value)


def future_set_exc_info(future: Future[Any], exc_info: tuple[Any, ...]) -> None:
    """Set a future's exception from what ``sys.exc_info()`` gives."""
    future.set_exception(exc_info[1])


def future_add_done_callback(future: AnyFuture, callback: Callable[[AnyFuture], object]) -> None:
    """Call ``callback(future)`` when the future is done; at once when it is."""
    if future.done():
        callback(future)
    else:
        future.add_done_callback(callback)  # type: ignore[arg-type]


def multi_future(children: Collection[Future[Any]]) -> Future[list[Any]]:
    """A future of the results of all of ``children``, in their order.

    When several fail it has the exception of the first, and the others are logged.
    """
    together: Future[list[Any]] = OwnFuture()
    lock = threading.Lock()
    unfinished = set(children)

    def one(child: Future[Any]) -> None:
        with lock:
            unfinished.discard(child)
            if unfinished or together.done():
                return
            failures = [e for e in map(_failure_of, children) if e is not None]
            for failure in failures[1:]:
                log.error("another of several futures failed", exc_info=failure)
            if failures:
                together.set_exception(failures[0])
            else:
                together.set_result([f.result() for f in children])

    if not unfinished:
        together.set_result([])
    for child in set(children):
        future_add_done_callback(child, one)
    return together


def _failure_of(future: Future[Any]) -> BaseException | None:
    return CancelledError() if future.cancelled() else future.exception()

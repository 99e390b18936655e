"""Waiting on several futures: no polling, no thread, and nothing lost to Ctrl-C."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    Future,
    InvalidStateError,
    TimeoutError as FutureTimeoutError,
)
from concurrent.futures._base import DoneAndNotDoneFutures
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from .engine import engine_of_thread
from .engine.interrupts import PULSE, OwnFuture, uninterrupted
from .engine.nested import help_until
from .futures import Latch, MessageFuture

__all__ = ["Countdown", "Items", "SendTracker", "seconds", "wait_for"]


T = TypeVar("T")


def seconds(timeout: float | None) -> float | None:
    """A timeout as the standard library takes it: ipyparallel's -1 is None, for ever."""
    return None if timeout is None or timeout < 0 else timeout


def wait_for(
    futures: Collection[Future[Any]], timeout: float | None, return_when: str = ALL_COMPLETED
) -> Any:
    """:func:`concurrent.futures.wait`; an engine's thread does what it can for it meanwhile.

    An interrupt in the midst of the standard library's own would leave locks of the futures taken,
    and the thread that receives replies would wait for them for ever.
    """
    found = _found(futures)
    if _enough(found, return_when):
        return found
    left = set(futures)
    enough: Future[None] = OwnFuture()

    def look(future: Future[Any]) -> None:
        left.discard(future)
        if (
            not left
            or return_when == FIRST_COMPLETED
            or (return_when == FIRST_EXCEPTION and _failed(future))
        ):
            with suppress(InvalidStateError):
                enough.set_result(None)

    try:
        for future in futures:
            future.add_done_callback(look)
        with suppress(FutureTimeoutError):
            enough.exception(help_until(enough, timeout))
    finally:
        with uninterrupted():  # who waits again and again leaves nothing there
            for future in left.copy():
                with future._condition, suppress(ValueError):
                    future._done_callbacks.remove(look)  # type: ignore[attr-defined]
    return _found(futures)


def _found(futures: Collection[Future[Any]]) -> Any:
    """What :func:`concurrent.futures.wait` gives, as things are."""
    done = {future for future in futures if future.done()}
    return DoneAndNotDoneFutures(done, set(futures) - done)


def _enough(found: Any, return_when: str) -> bool:
    """Whether what :func:`concurrent.futures.wait` gives is what was waited for."""
    return not found.not_done or any(
        return_when == FIRST_COMPLETED or (return_when == FIRST_EXCEPTION and _failed(future))
        for future in found.done
    )


def _failed(future: Future[Any]) -> bool:
    # not by its own exception(), which unpickles
    return future.cancelled() or Future.exception(future) is not None


class Countdown(Latch):
    """A latch that is set when the last of some futures is done, in the thread that ends it, after
    ``then(about)`` has been called there.

    What it calls is let go afterwards, so that a finished future, which keeps its
    callbacks, does not keep alive whoever waited for it.
    """

    __slots__ = ("_about", "_left", "_then")

    def __init__(
        self,
        futures: Sequence[Future[Any] | Latch],
        then: Callable[[Any], object] | None = None,
        about: object = None,
    ) -> None:
        super().__init__()
        # not too early: the last one is told of this when all others have been
        self._left = len(futures) or 1
        # apart, as a bound method would be one object more for each request
        self._then, self._about = then, about
        for future in futures:
            future.add_done_callback(self)
        if not futures:
            self()

    def __call__(self, _: object = None) -> None:
        """One of them is done."""
        with self._lock:
            self._left -= 1
            if self._left:
                return
            then, about = self._then, self._about
            self._then = self._about = None
        if then is not None:
            then(about)
        self.set()


class SendTracker:
    """Whether a request's buffers may be changed again (``zmq.MessageTracker``'s part)."""

    def __init__(self, children: Sequence[MessageFuture]) -> None:
        self.event = Countdown([child.sent_latch for child in children])

    @property
    def done(self) -> bool:
        """Whether everything has left."""
        return self.event.is_set()

    def wait(self, timeout: float | None = -1) -> None:
        """Wait until everything has left, or raise TimeoutError after ``timeout`` seconds."""
        if not self.event.wait(seconds(timeout)):
            raise TimeoutError("Still waiting to be sent")


class Items(Iterator[Any]):
    """The items of several requests, as the requests finish.

    Unlike a generator it goes on after an exception, be it a request's or Ctrl-C.

    Parameters
    ----------
    children
        The requests.
    opened
        Gives a finished request's items, or raises its error.
    ordered
        Whether requests come in the order given, or as they finish.
    """

    def __init__(
        self,
        children: Iterable[MessageFuture],
        opened: Callable[[MessageFuture], Iterable[Any]],
        *,
        ordered: bool = True,
    ) -> None:
        self._children = tuple(children)
        self._pending = deque(self._children)
        self._opened = opened
        self._items: Iterator[Any] = iter(())
        self._finished: list[MessageFuture] | None = None
        if not ordered:
            self._finished = []
            #: how many of them have been taken
            self._taken = 0
            self._woken: SimpleQueue[None] = SimpleQueue()
            for child in self._pending:
                child.add_done_callback(self._note)  # type: ignore[arg-type]

    def _note(self, child: MessageFuture) -> None:
        self._finished.append(child)  # type: ignore[union-attr]
        self._woken.put(None)

    def __next__(self) -> Any:
        while True:
            for item in self._items:
                return item
            self._items = iter(self._opened(self._next_child()))

    def _next_child(self) -> MessageFuture:
        if self._finished is not None:
            if self._taken == len(self._children):
                raise StopIteration
            while len(self._finished) == self._taken:
                if engine_of_thread() is not None:
                    wait_for([c for c in self._children if not c.done()], None, FIRST_COMPLETED)
                with suppress(Empty):  # an interrupt may lose what is there, hence no children are
                    self._woken.get(timeout=PULSE)
            self._taken += 1
            return self._finished[self._taken - 1]
        if not self._pending:
            raise StopIteration
        wait_for([self._pending[0]], None)
        return self._pending.popleft()

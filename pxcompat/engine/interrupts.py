"""Keeps interrupts out of what must be done whole, and from getting lost."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import concurrent.futures
import os
import signal
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cached_property
from operator import attrgetter
from typing import Any, TypeVar

__all__ = [
    "PULSE",
    "Condition",
    "Event",
    "OnDemand",
    "OwnFuture",
    "RLock",
    "held_from_the_first_on",
    "on_main_thread",
    "repeated",
    "set_handler",
    "uninterrupted",
]

#: ``signal.signal`` and ``getsignal`` without the enums that these make of arguments and results,
#: an exception at a time: each request has them called several times, here and on its engine
set_handler, _handler_of = _signal.signal, _signal.getsignal


_main_thread = threading.main_thread().ident


def _forked() -> None:
    """Whichever thread forks is its child's main one."""
    global _main_thread
    _main_thread = threading.get_ident()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def on_main_thread() -> bool:
    """Whether this is the thread that signals interrupt, and that nothing else does."""
    return threading.get_ident() == _main_thread


#: whether the main thread is in an :func:`uninterrupted` block already
_held = False
#: the block of :func:`held_from_the_first_on` with which they end, if there is one.  It counts for
#: as long as it is there: an interrupt just when nothing has been sent may keep it from its exit
_outer: weakref.ref[held_from_the_first_on] | None = None


#: seconds after which the main thread looks up from a wait.  A signal that comes between Python's
#: last look for signals and the system's wait ends no wait, nor does one that the system gives to
#: another thread: the interrupt would come with the reply
PULSE = 1.0

T = TypeVar("T")

#: what ``threading.RLock()``, a function, makes
RLock = type(threading.RLock())


class Condition(threading.Condition):
    """One that ``with`` takes and leaves in one step, and a lock alone until it is waited at.

    The standard library's own ``__enter__`` is Python code: an interrupt between its taking the
    lock and its return leaves the lock taken, and whoever wants it next waits for ever.

    What it makes for those who wait, seven objects, would be most of what a request outstanding
    costs, in memory and in the garbage collector's time; nobody waits at most of them.
    """

    __enter__ = property(attrgetter("_lock.__enter__"))
    __exit__ = property(attrgetter("_lock.__exit__"))
    acquire = cached_property(attrgetter("_lock.acquire"))
    release = cached_property(attrgetter("_lock.release"))

    _waiters: Collection[Any] = ()
    #: how often somebody who waited was
    _notified = 0

    def __init__(self, lock: Any = None) -> None:
        self._lock = RLock() if lock is None else lock

    def wait(self, timeout: float | None = None) -> bool:
        if "_waiters" not in vars(self):  # whoever waits has the lock
            super().__init__(self._lock)
        try:
            if not on_main_thread():
                return super().wait(timeout)
            deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
            left = PULSE if timeout is None else timeout
            notified = self._notified
            while not super().wait(min(left, PULSE)):
                if self._notified != notified:  # as it looked up
                    break
                if (left := deadline - time.monotonic()) <= 0:
                    return False
            return True
        except BaseException:
            # one that comes just when the lock has been let go of is ahead of what takes it again
            if not self._is_owned():  # type: ignore[attr-defined]
                self.acquire()
            raise

    def notify(self, n: int = 1) -> None:
        if self._waiters:
            self._notified += 1
            super().notify(n)

    def notify_all(self) -> None:
        if self._waiters:
            super().notify_all()


class OnDemand:
    """An attribute that is made when somebody looks; one for all who look at the same time."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, owner: Any, cls: type | None = None) -> Any:
        if owner is None:
            return self
        return vars(owner).setdefault(self._name, self._make())


class OwnFuture(concurrent.futures.Future[T]):
    """A future of ours, at which whoever looks at it may be interrupted: see :class:`Condition`."""

    _waiters = OnDemand(list)

    def __init__(self) -> None:
        # as the standard library has it, which would make a Condition of its own for nothing;
        # and as Condition() has it, without a step to there
        self._condition = condition = Condition.__new__(Condition)
        condition._lock = RLock()
        self._state = "PENDING"
        self._result = self._exception = None
        self._done_callbacks: list[Any] = []


class Event(threading.Event):
    """One that whoever waits for it may be interrupted at: see :class:`Condition`."""

    def __init__(self) -> None:
        super().__init__()
        self._cond = Condition(threading.Lock())


class uninterrupted:
    """Put a SIGINT that comes meanwhile off until the end of the block, or until the block calls
    what this gives it.

    An interrupt in the midst of sending would leave locks, counts and queues half changed.  A block
    does nothing within another, nor in threads that get no signals, engines on other people's
    workers among them.
    """

    # a class, as each request comes by here a few times: a generator takes five steps to enter

    __slots__ = ("_came", "_handler")

    def __enter__(self) -> Callable[[], None]:
        global _held
        handler = _handler_of(signal.SIGINT)
        if _held or not on_main_thread() or not callable(handler):
            self._handler: Callable[..., Any] | None = None
            return _nothing
        self._handler = handler
        self._came = False
        set_handler(signal.SIGINT, self._later)  # from here on nothing is raised
        _held = True
        return self._let_through

    def __exit__(self, *_: object) -> None:
        if self._handler is None:
            return
        outer = None if _outer is None else _outer()
        if outer is None:
            self._end()
        else:
            outer.hold(self._end)

    def _later(self, signum: int, frame: types.FrameType | None) -> None:
        self._came = True

    def _let_through(self) -> None:
        if self._came and self._handler is not None:
            self._came = False
            self._handler(signal.SIGINT, sys._getframe())

    def _end(self) -> None:
        global _held
        _held = False
        set_handler(signal.SIGINT, self._handler)
        self._let_through()


class held_from_the_first_on:
    """Have the first :func:`uninterrupted` block within this one last until the end of this one.

    So a call that sends, and then waits, is not interrupted between: when it has sent something,
    it comes to the waiting.  What it does before, such as pickling, is interrupted as usual.

    For a ``with`` of its own: an interrupt that kept it from its exit would leave all others held
    for as long as a traceback has it, and the steps of an ``ExitStack`` let one in.
    """

    __slots__ = ("__weakref__", "_ends")

    def __enter__(self) -> held_from_the_first_on:
        global _outer
        self._ends: list[Callable[[], None]] = []
        if not _held and (_outer is None or _outer() is None) and on_main_thread():
            _outer = weakref.ref(self)
        return self

    def __exit__(self, *_: object) -> None:
        global _outer
        if _outer is not None and _outer() is self:
            _outer = None
        while self._ends:
            self._ends.pop()()

    def close(self) -> None:
        """End it here, ahead of the end of the block."""
        self.__exit__()

    def hold(self, end: Callable[[], None]) -> None:
        """Have a block end with this one."""
        self._ends.append(end)


def _nothing() -> None:
    """What a block is given that holds nothing off."""


@contextmanager
def repeated(running: Callable[[], object]) -> Iterator[None]:
    """Send an interrupt again that Python has dropped.

    It drops those that are raised in a finalizer or a callback of the garbage collector, such as
    Dask's, which a loop that prints comes to thousands of times a second.

    Parameters
    ----------
    running : callable
        Returns what runs now.  An interrupt is for that, and is not sent again for something else.
    """
    before = sys.unraisablehook

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            before(dropped)
        elif (interrupted := running()) is not None:
            # not from here, where it would be dropped again
            timer = threading.Timer(0.01, send, [interrupted])
            timer.daemon = True
            timer.start()

    def send(interrupted: object) -> None:
        if running() is interrupted:
            os.kill(os.getpid(), signal.SIGINT)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        if sys.unraisablehook is hook:
            sys.unraisablehook = before

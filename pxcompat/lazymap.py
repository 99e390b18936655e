"""A map that reads its input as it goes: ``LoadBalancedView.imap``."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from .asyncresult import AsyncResult
from .engine import engine_of_thread
from .engine.interrupts import Condition, OwnFuture
from .engine.nested import help_until

__all__ = ["LazyMap", "LazyMapIterator"]


class LazyMap:
    """Feeds calls to engines, from a thread of its own, as earlier ones finish.

    The thread is there because reading the input may block.  It ends with the input, with an
    error (which the reader gets), or with :meth:`cancel`.

    Parameters
    ----------
    submit : callable
        Called with one item's arguments; returns an AsyncResult.
    arguments : iterator of tuple
    ordered : bool
        Whether results are read in the order of the input, or as they come.
    max_running : int
        How many calls may be running or queued; 0: no limit.
    max_unread : int
        How many results may wait for the reader before feeding pauses; 0: no limit.
    at_end : callable
        Called with the LazyMap when it will read no more input.
    """

    def __init__(
        self,
        submit: Callable[..., AsyncResult],
        arguments: Iterator[tuple[Any, ...]],
        *,
        ordered: bool,
        max_running: int,
        max_unread: int,
        at_end: Callable[[LazyMap], None],
    ) -> None:
        self._submit = submit
        self._arguments = arguments
        self._ordered = ordered
        self._max_running = max_running
        self._max_unread = max_unread
        self._at_end = at_end
        self._changed = Condition()
        self._running = 0
        #: ordered: all that was submitted; else: what has finished
        self._unread: deque[AsyncResult] = deque()
        self._failure: Exception | None = None
        self._ended = False
        self._news: Future[None] | None = None

    def start(self) -> None:
        """Begin to feed."""
        threading.Thread(target=self._feed, name="pxcompat-imap", daemon=True).start()

    def cancel(self) -> None:
        """Read no more input.  What was submitted goes on."""
        with self._changed:
            self._ended = True
            self._notify()
        self._at_end(self)

    def finish(self) -> None:
        """Wait until the whole input has been submitted, however little has been read."""
        with self._changed:
            self._max_unread = 0
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._ended)

    def next(self) -> AsyncResult:
        """The next result, finished.

        Raises
        ------
        StopIteration
            When there will be no more.
        """
        while (news := self._awaited_on_an_engine()) is not None:
            help_until(news)
        with self._changed:
            self._changed.wait_for(lambda: self._unread or self._is_drained())
            if not self._unread:
                failure, self._failure = self._failure, None
                raise failure or StopIteration
            result = self._unread.popleft()
            self._changed.notify_all()
        try:
            result.wait()
        except BaseException:
            # interrupted: it is still the next one
            self._unread.appendleft(result)
            raise
        return result

    def _awaited_on_an_engine(self) -> Future[None] | None:
        """On an engine's thread: a future of anything to read; None where there is."""
        if engine_of_thread() is None:
            return None
        with self._changed:
            if self._unread or self._is_drained():
                return None
            self._news = OwnFuture()
            return self._news

    def _notify(self) -> None:
        self._changed.notify_all()
        if self._news is not None:
            self._news.set_result(None)
            self._news = None

    def _is_drained(self) -> bool:
        return self._ended and (self._ordered or not self._running)

    def _has_room(self) -> bool:
        return not (
            (self._max_running and self._running >= self._max_running)
            or (self._max_unread and len(self._unread) >= self._max_unread)
        )

    def _feed(self) -> None:
        try:
            while self._feed_one():
                continue
        except Exception as error:
            # of the user's iterator, of pickling its items, or because the client closed
            self._failure = error
        finally:
            self.cancel()

    def _feed_one(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._has_room())
        try:
            arguments = next(self._arguments)
        except StopIteration:
            return False
        if self._ended:  # cancelled while the input made us wait
            return False
        result = self._submit(*arguments)
        with self._changed:
            self._running += 1
            if self._ordered:
                self._unread.append(result)
                self._notify()
        result.add_done_callback(self._finished)
        return True

    def _finished(self, result: Future[Any]) -> None:
        with self._changed:
            self._running -= 1
            if not self._ordered:
                assert isinstance(result, AsyncResult)
                self._unread.append(result)
            self._notify()


class LazyMapIterator(Iterator[Any]):
    """The results of ``imap``, as they come (ipyparallel.client.view.LazyMapIterator).

    Iteration may go on after an exception.  Dropping an iterator that was read from stops
    the map, as :meth:`cancel` does.
    """

    def __init__(self, lazy_map: LazyMap, return_exceptions: bool = False) -> None:
        self._map = lazy_map
        self._return_exceptions = return_exceptions
        self._was_read = False

    def __iter__(self) -> LazyMapIterator:
        return self

    def __next__(self) -> Any:
        self._was_read = True
        return self._map.next().get(return_exceptions=self._return_exceptions)

    def cancel(self) -> None:
        """Read no more input, as when an endless one has given what was looked for.

        Results of what was submitted can still be read.
        """
        self._map.cancel()

    def __del__(self) -> None:
        if self._was_read:
            self._map.cancel()

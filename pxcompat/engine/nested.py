"""Requests that come from engines: clients that user code opens on an engine.

Such a client may address its own engine, which is busy running that very code, and engines may
wait for one another in a ring.  So a client's requests are marked *nested* where it lives on
an engine, and while an engine's thread waits for results (:func:`help_until`), it runs the
nested requests that arrive for it, in order.  All others wait, as ever, until what runs
has ended.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from . import current_or_none, engine_of_thread
from .interrupts import PULSE

if TYPE_CHECKING:
    from .runtime import Engine

__all__ = ["NESTED", "Errand", "check_may_wait", "help_until", "home", "on_an_engine", "telling"]

#: the mark in a request's header
NESTED = "nested"


#: what is in no queue
_NEVER = object()


class Errand:
    """Something of the backend's own for the engine's thread, which may also run within a
    request that waits for it."""

    __slots__ = ("_run",)

    def __init__(self, run: Callable[[], None]) -> None:
        self._run = run

    def __call__(self) -> None:
        self._run()


def on_an_engine() -> bool:
    """Whether this thread, or this process, is an engine's."""
    return current_or_none() is not None


def home() -> dict[str, Any] | None:
    """The connection of the cluster that this thread's or process's engine belongs to."""
    engine = current_or_none()
    return None if engine is None else engine.home


class _Telling(threading.local):
    """Whether this thread tells of a reply, and runs what others want to have called then."""

    now = False


telling = _Telling()


def check_may_wait(timeout: float | None) -> None:
    """Refuse to wait for what cannot come: what receives replies is what would wait.

    Raises
    ------
    RuntimeError
        Within a callback of a result.
    """
    if telling.now and (timeout is None or timeout > 0):
        raise RuntimeError(
            "this would wait for ever: it is called by a callback of a result, on the thread that"
            " receives replies. Send with block=False there, and add a callback to what that gives;"
            " or wait on a thread of your own."
        )


def help_until(
    done: Future[Any], timeout: float | None = None, *, errands: bool = False
) -> float | None:
    """Run nested requests on this thread, an engine's, until the future is done; and, where
    that may depend on them, errands.

    Returns how much of ``timeout`` (seconds, or None for no limit) is left: all of it, at once,
    on any other thread, whose caller has to wait as usual, if it may.
    """
    if done.done():
        return timeout
    check_may_wait(timeout)
    engine = engine_of_thread()
    if engine is None:
        return timeout
    done.add_done_callback(lambda _: engine.call(_awake))
    deadline = None if timeout is None else time.monotonic() + timeout
    left = timeout
    while not done.done():
        if deadline is not None:
            left = max(0.0, deadline - time.monotonic())
        # From the one queue to the other without a bytecode in between, where an interrupt
        # could come and what was taken be lost.
        get = partial(engine._queue.get, True, PULSE if left is None else min(left, PULSE))
        try:
            engine._deferred.extend(islice(iter(get, _NEVER), 1))
        except queue.Empty:
            if left is not None and left <= PULSE:
                return 0.0
            continue
        item = engine._deferred[-1]
        request = getattr(item, "request", None)
        if item is _awake:
            engine._deferred.pop()
        elif request is not None and request.header.get(NESTED):
            _run_within(engine, partial(engine._run, item))  # type: ignore[arg-type]
        elif errands and isinstance(item, Errand):
            _run_within(engine, item)
    return left


def _awake() -> None:
    """What is queued to wake a thread that waits."""


def _run_within(engine: Engine, run: Callable[[], None]) -> None:
    """Run what was taken last while a request is running, which has everything back afterwards."""
    engine.let_in(interrupts=False)  # it says itself when; what is not run yet would be lost
    engine._deferred.pop()
    running, output = engine.tasks.running, engine.shell.output
    for drain in engine._drain:
        drain()  # what was printed until now is the other one's
    engine.shell.output = None
    due = engine._due  # an interrupt until now is for what was running
    try:
        run()
    finally:
        engine._due = engine._due or due
        engine.tasks.running, engine.shell.output = running, output
        engine.let_in(interrupts=True)

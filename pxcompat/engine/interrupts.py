"""Keeps interrupts out of what must be done whole, and from getting lost."""

from __future__ import annotations

import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["on_main_thread", "repeated", "uninterrupted"]


def on_main_thread() -> bool:
    """Whether this is the thread that signals interrupt, and that nothing else does."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put a SIGINT that comes meanwhile off until the end of the block.

    An interrupt in the midst of sending would leave locks, counts and queues half changed.  In
    threads that get no signals, engines on other people's workers among them, this does nothing.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not on_main_thread() or not callable(handler):
        yield
        return
    came: list[int] = []

    def later(signum: int, frame: types.FrameType | None) -> None:
        came.append(signum)

    signal.signal(signal.SIGINT, later)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(signal.SIGINT, sys._getframe())


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

"""Replies that are fetched by the thread that waits for them, when they come at once.

Otherwise a reply goes from Ray's thread, which must not be held up, to ours, and that wakes whoever
waits: two changes of threads, for which a small call takes a fifth longer.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from pxcompat.error import EngineError

if TYPE_CHECKING:
    from .peer import UnderWay

__all__ = ["MOMENT", "Awaiting"]

#: seconds for which a thread waits itself: no signal interrupts it meanwhile
MOMENT = 0.02


class _Block:
    """The replies to what is called within it are fetched at its end; those that take longer, or
    fail, come as usual."""

    __slots__ = ("__weakref__", "_awaiting", "_before", "calls")

    def __init__(self, awaiting: Awaiting) -> None:
        self._awaiting = awaiting
        self.calls: list[UnderWay] = []

    def __enter__(self) -> None:
        self._before, self._awaiting._block = self._awaiting._block, weakref.ref(self)

    def __exit__(self, *_: object) -> None:
        self._awaiting._block = self._before
        if self.calls:
            self._awaiting._fetch(self.calls)


class Awaiting(threading.local):
    """What this thread has called and is about to wait for; of one client.

    Parameters
    ----------
    connected
        For every use of Ray (see :meth:`session.Session`).
    returned
        ``returned(pairs)`` is called with the calls whose replies are here, and those.
    follow
        ``follow(call)`` is called for each that is not.
    """

    def __init__(
        self,
        connected: Callable[[], AbstractContextManager[None]],
        returned: Callable[[Iterable[tuple[UnderWay, Any]]], None],
        follow: Callable[[UnderWay], None],
    ) -> None:
        self._connected, self._returned, self._follow = connected, returned, follow
        #: it counts for as long as it is there: an interrupt may keep it from its exit, just when
        #: nothing has been called
        self._block: weakref.ref[_Block] | None = None

    def take(self, call: UnderWay) -> bool:
        """Whether this thread sees to a call's reply."""
        block = None if self._block is None else self._block()
        if block is None:
            return False
        block.calls.append(call)
        return True

    def block(self) -> AbstractContextManager[None]:
        """A block at whose end the thread waits for the replies to what is called within it."""
        return _Block(self)

    def _fetch(self, calls: list[UnderWay]) -> None:
        values: list[Any] = []
        try:
            with self._connected():
                values = ray.get([call.reply for call in calls], timeout=MOMENT)
        except (RayError, EngineError):
            values = []
        finally:  # whatever else is raised, somebody has to see to them
            if not values:
                for call in calls:
                    self._follow(call)
        if values:
            self._returned(zip(calls, values, strict=True))

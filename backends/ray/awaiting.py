"""Replies that are fetched by the thread that waits for them, when they come at once.

Otherwise a reply goes from Ray's thread, which must not be held up, to ours, and that wakes whoever
waits: two changes of threads, for which a small call takes a fifth longer.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
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


class Awaiting(threading.local):
    """What this thread has called and is about to wait for; of one client.

    Parameters
    ----------
    connected
        For every use of Ray (see :meth:`session.Session`).
    returned
        ``returned(call, value)`` is called for each reply that is here.
    follow
        ``follow(call)`` is called for each that is not.
    """

    def __init__(
        self,
        connected: Callable[[], AbstractContextManager[None]],
        returned: Callable[[UnderWay, Any], None],
        follow: Callable[[UnderWay], None],
    ) -> None:
        self._connected, self._returned, self._follow = connected, returned, follow
        self._calls: list[UnderWay] | None = None

    def take(self, call: UnderWay) -> bool:
        """Whether this thread sees to a call's reply."""
        if self._calls is None:
            return False
        self._calls.append(call)
        return True

    @contextlib.contextmanager
    def block(self) -> Iterator[None]:
        """Fetch the replies to what is called within the block at its end; those that take longer,
        or fail, come as usual."""
        calls: list[UnderWay] = []
        before, self._calls = self._calls, calls
        try:
            yield
        finally:
            self._calls = before
            if calls:
                self._fetch(calls)

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
        for call, value in zip(calls, values, strict=False):
            self._returned(call, value)

"""What an engine has done lately: for dashboards and metrics, which look when they like."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Any, NamedTuple

from ..protocol import Reply, Request

__all__ = ["Call", "Journal"]

#: calls that are kept for somebody to look at; the oldest go first
LENGTH = 10_000


class Call(NamedTuple):
    """A request that ran."""

    msg_id: str
    name: str
    status: str
    #: POSIX seconds on the engine's clock
    started: float
    completed: float
    #: bytes of the result
    nbytes: int
    #: whether a scheduler placed it
    balanced: bool


class Journal:
    """The latest calls of an engine, and how many there were.

    Costs a request one entry in a bounded queue.  Not thread-safe: the engine's lock is held
    by whoever calls.
    """

    def __init__(self, length: int = LENGTH) -> None:
        self._calls: deque[Call] = deque(maxlen=length)
        #: calls noted so far
        self.index = 0
        self._totals = {"ok": 0, "error": 0, "aborted": 0}
        self._seconds = 0.0

    def note(self, request: Request, reply: Reply) -> None:
        """Note the end of a request."""
        self._totals[reply.status] += 1
        started, completed = reply.started, reply.completed
        if started is None or completed is None:
            return  # it never ran
        self._seconds += completed - started
        result = reply.result
        nbytes = sum(map(len, result)) if isinstance(result, list) else 0
        self._calls.append(
            Call(
                request.msg_id,
                request.name,
                reply.status,
                started,
                completed,
                nbytes,
                # one that was offered to this engine passed the scheduler by
                bool(request.header.get("balanced")) and not request.header.get("offered"),
            )
        )
        self.index += 1

    def since(self, index: int) -> list[Call]:
        """The calls after the first ``index`` ones, as far as they are kept."""
        kept = len(self._calls)
        new = min(max(self.index - index, 0), kept)
        return list(islice(self._calls, kept - new, None))

    def totals(self) -> dict[str, Any]:
        """Calls by status, and the seconds that they took."""
        return {**self._totals, "seconds": self._seconds}

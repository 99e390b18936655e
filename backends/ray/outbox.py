"""A client's requests on their way to one engine: which go alone, and which share a call.

A call of an actor costs Ray a fixed while, however little it asks for.  So requests that are
known to be short share one, where several wait; everything else goes by itself.  Nothing waits
longer than :data:`HOLD`, and nothing at all where the engine has little to do.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

from pxcompat.protocol import Reply, Request

from ..shared import SharedFrames
from .objects import pack_natives
from .wire import StoredFrames, pack_request, size

__all__ = ["AHEAD", "Call", "Outbox", "Pace"]

#: seconds of work that share a call at most
AHEAD = 0.04
#: seconds that a request takes at least, with all that is done for it
LEAST = 1e-4
#: requests that share a call at most, and bytes of their arguments
MOST = 100
MOST_BYTES = 64 * 1024
#: calls of an engine under way from which on what is sent to it may wait for more
BUSY = 2
#: seconds that it waits at most
HOLD = 0.005
#: kinds of requests remembered
KINDS = 1000


class Pace:
    """How long requests take, lately, by what they are called.  Thread-safe."""

    def __init__(self) -> None:
        self._seconds: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.RLock()

    def note(self, label: str, reply: Reply) -> None:
        """A request of this label has its reply."""
        if reply.started is None or reply.completed is None:
            return
        took = max(LEAST, reply.completed - reply.started)
        if reply.result is not None and not isinstance(reply.result, list):
            took = AHEAD  # it stays elsewhere: too large to share what its call returns
        with self._lock:
            before = self._seconds.pop(label, took)
            # quick to believe in long ones, slow to believe in short ones
            self._seconds[label] = max(took, 0.8 * before + 0.2 * took)
            if len(self._seconds) > KINDS:
                self._seconds.popitem(last=False)

    def expected(self, label: str) -> float | None:
        """Seconds that one of this label will take; None when none has been seen."""
        return self._seconds.get(label)


class Call(NamedTuple):
    """One call of an engine's actor: a request alone, or several packed into one argument.

    Attributes
    ----------
    method
        Of the actor: ``run``, ``run_large`` for what Ray is to see, ``run_all`` for several.
    name
        What a dashboard shows.
    """

    requests: list[Request]
    arguments: tuple[Any, ...]
    method: str
    name: str


def _shared(requests: list[Request]) -> str:
    """What a dashboard shows of requests that share a call: each name, and how often."""
    counts = Counter(request.name for request in requests)
    return ", ".join(f"{name} x{n}" if n > 1 else name for name, n in counts.items())


class _Packed(NamedTuple):
    request: Request
    arguments: tuple[Any, ...]
    nbytes: int  # -1: goes alone


class Outbox:
    """Requests that were given for one engine and have not left.

    Parameters
    ----------
    pace
        What is known of requests' durations.
    leave
        Sends a call; may not raise but EngineError.

    Attributes
    ----------
    due
        When what waits has to leave, by ``time.monotonic``; None when nothing waits.
    """

    def __init__(self, pace: Pace, leave: Callable[[Call], None]) -> None:
        self._pace = pace
        self._leave = leave
        self._waiting: deque[_Packed] = deque()
        #: held while requests leave, so that they do in order
        self._lock = threading.RLock()
        self._under_way = 0
        self._leaving = False
        self.due: float | None = None

    def add(self, requests: list[Request]) -> bool:
        """Take requests; whether some have to wait, where none did before."""
        packed = [*map(_pack, requests)]
        with self._lock:
            waited = self.due is not None
            self._waiting.extend(packed)
            # large ones are not copied but by Ray, and their owner may be about to change them
            if (
                self._under_way < BUSY
                or len(self._waiting) >= MOST
                or any(item.nbytes < 0 for item in packed)
            ):
                self._flush()
            elif not waited:
                self.due = time.monotonic() + HOLD
                return True
        return False

    def returned(self) -> bool:
        """A call of the engine's actor has ended; whether something waits, which may leave now."""
        with self._lock:
            self._under_way -= 1
            return bool(self._waiting)

    def flush(self) -> None:
        """Let everything leave."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        self.due = None
        if self._leaving:  # a signal handler came by: its requests leave after those before them
            return
        self._leaving = True
        try:
            while self._waiting:
                call = self._next()
                self._under_way += 1
                self._leave(call)
        finally:
            self._leaving = False

    def _next(self) -> Call:
        first = self._waiting.popleft()
        together, name = [first], first.request.name
        seconds = self._pace.expected(first.request.label)
        if seconds is not None and first.nbytes >= 0:
            nbytes = first.nbytes
            while self._waiting and len(together) < MOST:
                next = self._waiting[0]
                more = self._pace.expected(next.request.label)
                if more is None or next.nbytes < 0:
                    break
                seconds, nbytes = seconds + more, nbytes + next.nbytes
                if seconds > AHEAD or nbytes > MOST_BYTES:
                    break
                together.append(self._waiting.popleft())
        if len(together) == 1:
            if first.nbytes < 0:
                return Call([first.request], first.arguments, "run_large", name)
            # bytes are to Ray what they are; anything else goes through cloudpickle
            packed = pickle.dumps(first.arguments, protocol=5)
            return Call([first.request], (packed,), "run", name)
        # one pickle, in which what they have in common, as a map's function, is there once
        packed = pickle.dumps([item.arguments for item in together], protocol=5)
        requests = [item.request for item in together]
        return Call(requests, (packed,), "run_all", _shared(requests))


def _pack(request: Request) -> _Packed:
    """Pack a request; its buffers are its owner's again, but for those of large ones."""
    nbytes = 0
    for frames in (request.function, request.arguments):
        if isinstance(frames, (StoredFrames, SharedFrames)):
            nbytes = -1
            break
        if frames is not None:
            # for the most part a pickle alone
            nbytes += len(frames[0]) if len(frames) == 1 else size(frames)  # type: ignore
    if request.natives:  # Ray is to see them
        return _Packed(request, (*pack_request(request), pack_natives(request.natives)), -1)
    if nbytes > MOST_BYTES:
        nbytes = -1
    packed = pack_request(request)
    return _Packed(request, packed if nbytes >= 0 else (*packed, None), nbytes)

"""Calls that may run on any engine: kept here until one is free.

Ray places tasks on workers, but calls of actors only where they are told.  So each client
gives its calls to the engine that has least to do for it, a few ahead when they are short,
and one at a time when they are not: what an engine has not begun when it dies would be lost.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

from pxcompat.protocol import Reply, Request

if TYPE_CHECKING:
    from .backend import RayBackend

__all__ = ["Placer"]

#: seconds of work that an engine is given ahead, so that it need not wait for us
AHEAD = 0.01
#: calls that an engine is given at most
MOST = 8

GONE = "every engine that it was for is gone"


class _Waiting(NamedTuple):
    request: Request
    candidates: frozenset[str] | None


class Placer:
    """The client's side of balanced calls."""

    def __init__(self, backend: RayBackend) -> None:
        self._backend = backend
        self._lock = threading.RLock()
        self._waiting: deque[_Waiting] = deque()
        #: msg_id to the key of the engine that has it
        self._placed: dict[str, str] = {}
        #: seconds that a call takes, lately
        self._duration: float | None = None
        self._turn = itertools.count()

    def submit(self, requests: Sequence[Request], candidates: Sequence[str] | None) -> None:
        """Take requests on."""
        wanted = None if candidates is None else frozenset(candidates)
        with self._lock:
            for request in requests:
                request.header["balanced"] = True
                self._waiting.append(_Waiting(request, wanted))
        self.place()
        if not self._backend.engines() and not self._backend.adopted:
            self._abandon()

    def place(self) -> None:
        """Give engines what they have room for."""
        while (chosen := self._choose()) is not None:
            engine, request = chosen
            self._backend.sink.started(request.msg_id, engine.info.key)
            self._backend.send(engine.info.key, [request])

    def _choose(self) -> tuple[Any, Request] | None:
        """The next request that an engine has room for, and the engine."""
        backend = self._backend
        with self._lock:
            if not self._waiting:
                return None
            room = self._room()
            count = next(self._turn)
            engines = backend.engines()
            # those with least to do first; among equals each has its turn
            turn = {e.info.key: (i - count) % len(engines) for i, e in enumerate(engines)}
            free = sorted(
                (e for e in engines if backend.load(e) < room),
                key=lambda e: (backend.load(e), turn[e.info.key]),
            )
            if not free:
                return None
            for index, (request, candidates) in enumerate(self._waiting):
                for engine in free:
                    if candidates is None or engine.info.key in candidates:
                        del self._waiting[index]
                        self._placed[request.msg_id] = engine.info.key
                        return engine, request
            return None

    def _room(self) -> int:
        if self._duration is None:
            return 1
        return max(1, min(MOST, int(AHEAD / max(self._duration, 1e-4))))

    def finished(self, msg_id: str, reply: Reply) -> None:
        """A request, whether balanced or not, has its reply."""
        with self._lock:
            ours = self._placed.pop(msg_id, None) is not None
            if ours and reply.started is not None and reply.completed is not None:
                took = max(0.0, reply.completed - reply.started)
                # quick to believe in long ones, slow to believe in short ones
                mean = took if self._duration is None else 0.8 * self._duration + 0.2 * took
                self._duration = max(mean, took)
        if self._waiting:
            self.place()

    def engine_gone(self, key: str) -> None:
        """An engine is gone, with what it had."""
        with self._lock:
            for msg_id in [m for m, k in self._placed.items() if k == key]:
                del self._placed[msg_id]
        self._abandon()
        self.place()

    def _abandon(self) -> None:
        """Fail what no engine is left for."""
        backend = self._backend
        there = {engine.info.key for engine in backend.engines()}
        with self._lock:
            hopeless = [
                waiting
                for waiting in self._waiting
                if not (
                    there & waiting.candidates
                    if waiting.candidates is not None
                    else there or backend.adopted
                )
            ]
            if hopeless:
                self._waiting = deque(w for w in self._waiting if w not in hopeless)
        for request, _ in hopeless:
            content = {"ename": "EngineError", "evalue": f"this call could not run: {GONE}"}
            content |= {"traceback": [], "engine_info": {}}  # type: ignore[dict-item]
            backend.sink.reply(Reply(request.msg_id, "error", None, content=content))

    def unassigned(self) -> list[str]:
        """Ids of requests that no engine has."""
        with self._lock:
            return [waiting.request.msg_id for waiting in self._waiting]

    def cancel(self, msg_ids: Sequence[str]) -> Future[list[str]]:
        """Keep requests from running."""
        wanted = set(msg_ids)
        with self._lock:
            here = [w.request.msg_id for w in self._waiting if w.request.msg_id in wanted]
            if here:
                self._waiting = deque(w for w in self._waiting if w.request.msg_id not in wanted)
            there: dict[str, list[str]] = {}
            for msg_id in wanted:
                if msg_id in self._placed:
                    there.setdefault(self._placed[msg_id], []).append(msg_id)
        for msg_id in here:
            self._backend.sink.reply(Reply(msg_id, "aborted"))
        cancelled: Future[list[str]] = Future()
        answers = [self._backend.cancel_on(key, ids) for key, ids in there.items()]
        left = len(answers)
        lock = threading.Lock()

        def collect(_: Any) -> None:
            nonlocal left
            with lock:
                left -= 1
                if left > 0:
                    return
            done = [a.result() for a in answers if a.exception() is None]
            cancelled.set_result([*here, *(msg_id for ids in done for msg_id in ids)])

        for answer in answers:
            answer.add_done_callback(collect)
        if not answers:
            cancelled.set_result(here)
        return cancelled

    def close(self) -> None:
        """The client goes: give what waits to the engines, as it is."""
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
            self._placed.clear()
        engines = self._backend.engines()
        turn = itertools.count()
        for request, candidates in waiting:
            fitting = [e for e in engines if candidates is None or e.info.key in candidates]
            if fitting:
                self._backend.send(fitting[next(turn) % len(fitting)].info.key, [request])

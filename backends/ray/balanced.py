"""Calls that may run on any engine: kept here until one is free.

Ray places tasks on workers, but calls of actors only where they are told.  So each client
gives its calls to the engine that has least to do for it: a few milliseconds of work ahead when
they are short, and one at a time when they are not, for what an engine has not begun when it
dies is lost.  What waits behind a call that takes unexpectedly long is taken back.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

from pxcompat.engine.interrupts import OwnFuture
from pxcompat.protocol import Reply, Request

from .outbox import AHEAD, MOST

if TYPE_CHECKING:
    from .backend import RayBackend

__all__ = ["Placer"]

#: seconds that a call takes from which on an engine is given one at a time
LONG = 0.05

GONE = "every engine that it was for is gone"


class _Waiting(NamedTuple):
    request: Request
    candidates: frozenset[str] | None
    #: those with less were made before
    number: int


class Placer:
    """The client's side of balanced calls."""

    def __init__(self, backend: RayBackend) -> None:
        self._backend = backend
        self._lock = threading.RLock()
        self._waiting: deque[_Waiting] = deque()
        self._numbers = itertools.count()
        #: msg_id to the key of the engine that has it, and the request
        self._placed: dict[str, tuple[str, _Waiting]] = {}
        self._turn = itertools.count()

    def submit(self, requests: Sequence[Request], candidates: Sequence[str] | None) -> None:
        """Take requests on."""
        wanted = None if candidates is None else frozenset(candidates)
        with self._lock:
            for request in requests:
                request.header["balanced"] = True
                self._waiting.append(_Waiting(request, wanted, next(self._numbers)))
        self.place()
        if not self._backend.engines() and not self._backend.capabilities.grows:
            self._abandon()

    def place(self) -> None:
        """Give engines what they have room for."""
        while (chosen := self._choose()) is not None:
            engine, requests = chosen
            for request in requests:
                self._backend.sink.started(request.msg_id, engine.info.key)
            self._backend.send(engine.info.key, requests)

    def _choose(self) -> tuple[Any, list[Request]] | None:
        """The engine with least to do, and the next requests that it has room for."""
        backend = self._backend
        with self._lock:
            if not self._waiting:
                return None
            seconds = backend.pace.expected(self._waiting[0].request.label)
            most, fill = self._room(seconds)
            count = next(self._turn)
            engines = backend.engines()
            # those with least to do first; among equals each has its turn
            free = sorted(
                (load, (index - count) % len(engines), index)
                for index, engine in enumerate(engines)
                if (load := engine.load) <= most and not engine.stuck
            )
            if not free:
                return None
            left = [engine.left(seconds) for engine in engines]
            fair = (len(self._waiting) + sum(left)) / len(engines)
            for _, _, index in free:
                engine = engines[index]
                # the last ones get few, so that all end together
                share = max(1, math.ceil(fair - left[index]))
                if taken := self._take(engine, min(fill, share)):
                    return engine, taken
            return None

    def _take(self, engine: Any, most: int) -> list[Request]:
        """The first that may run on an engine, no longer waiting."""
        key = engine.info.key
        taken: list[Request] = []
        passed: list[_Waiting] = []
        while self._waiting and len(taken) < most:
            waiting = self._waiting.popleft()
            # what it gave back comes there no second time before it has refused the first
            refuses = waiting.request.msg_id in engine.released
            if not refuses and (waiting.candidates is None or key in waiting.candidates):
                taken.append(waiting.request)
                self._placed[waiting.request.msg_id] = (key, waiting)
            else:
                passed.append(waiting)
        self._waiting.extendleft(reversed(passed))
        return taken

    @staticmethod
    def _room(seconds: float | None) -> tuple[int, int]:
        """With how many calls at most an engine gets more that take so long, and how many: what
        fills a call of its actor, of which it has two for the most part."""
        if seconds is None or seconds > LONG:
            return 0, 1
        fill = max(1, min(MOST, int(AHEAD / seconds)))
        # no less than a call, lest what is over has one for itself; a little early, lest it idles
        return fill + fill // 2, fill

    def finished(self, replies: Sequence[Reply]) -> None:
        """Requests, whether balanced or not, have their replies."""
        with self._lock:
            for reply in replies:
                self._placed.pop(reply.msg_id, None)
        if self._waiting:
            self.place()

    def take_back(self) -> bool:
        """Take back what waits behind calls that take long; whether engines have any calls."""
        engines = self._backend.engines()
        stuck = [engine for engine in engines if engine.stuck]
        if len(stuck) == len(engines):
            stuck = []  # nobody else could run it now
        for engine in stuck:
            key = engine.info.key
            behind = engine.unanswered()[1:]  # the first of all is what it is at
            with self._lock:
                behind = [m for m in behind if m in self._placed and self._placed[m][0] == key]
            # not those that it was asked for before: an answer that it has one no more would take
            # back that it refuses it
            behind = [m for m in behind if m not in engine.released]
            if behind:
                released = engine.take_back(behind)
                released.add_done_callback(functools.partial(self._taken_back, key))
        return bool(self._placed)

    def _taken_back(self, key: str, released: Future[list[str]]) -> None:
        with self._lock:
            back = [m for m in released.result() if m in self._placed and self._placed[m][0] == key]
            self._wait_again([self._placed.pop(msg_id)[1] for msg_id in back])
        self.place()

    def _wait_again(self, back: list[_Waiting]) -> None:
        """Put calls where they were among those that wait: whoever reads results in their order
        would else wait for the first of them till the last ones have run."""
        first: list[_Waiting] = []
        for waiting in sorted(back, key=lambda waiting: waiting.number):
            while self._waiting and self._waiting[0].number < waiting.number:
                first.append(self._waiting.popleft())
            first.append(waiting)
        self._waiting.extendleft(reversed(first))

    def engine_gone(self, key: str) -> None:
        """An engine is gone, with what it had."""
        with self._lock:
            for msg_id in [m for m, (k, _) in self._placed.items() if k == key]:
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
                    else there or backend.capabilities.grows
                )
            ]
            if hopeless:
                self._waiting = deque(w for w in self._waiting if w not in hopeless)
        for request, _, _ in hopeless:
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
                    there.setdefault(self._placed[msg_id][0], []).append(msg_id)
        for msg_id in here:
            self._backend.sink.reply(Reply(msg_id, "aborted"))
        cancelled: Future[list[str]] = OwnFuture()
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
        for request, candidates, _ in waiting:
            fitting = [e for e in engines if candidates is None or e.info.key in candidates]
            if fitting:
                self._backend.send(fitting[next(turn) % len(fitting)].info.key, [request])

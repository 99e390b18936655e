"""Load-balanced requests that want more than a place: dependencies, retries, timeouts.

The backend's scheduler places requests.  What is here decides *when* one may be placed,
*where* it must not be, and whether it is placed again.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .dependency import Dependency
from .dispatch import Dispatcher
from .engine.interrupts import uninterrupted
from .engine.nested import on_an_engine
from .error import (
    ImpossibleDependency,
    InvalidDependency,
    KernelError,
    NoEnginesRegistered,
    RemoteError,
    TaskTimeout,
    UnknownRequest,
)
from .futures import MessageFuture
from .hub import Hub
from .protocol import Frames, Reply, Request

__all__ = ["Balancer"]

#: calls of a map that are placed before the others are got ready; then twice as many, and so on
FIRST = 64


@dataclass
class _Job:
    """A balanced request until it is done."""

    request: Request
    targets: list[str] | None
    retries: int
    after: Dependency
    follow: Dependency
    timer: threading.Timer | None = None
    #: whether its time to wait was up while it ran
    late: bool = False
    avoid: set[str] = field(default_factory=set)
    last: Reply | None = None
    #: the engine it was sent to, not by the backend's scheduler but from an engine
    sent_to: str | None = None
    #: what it depends on: where that ended which succeeded, and which failed
    ok: dict[str, str | None] = field(default_factory=dict)
    failed: dict[str, str | None] = field(default_factory=dict)

    @property
    def simple(self) -> bool:
        return not (self.after or self.follow or self.timer)

    def note(self, msg_id: str, outcome: tuple[str, str | None]) -> None:
        """What it depends on ended so."""
        status, engine = outcome
        (self.ok if status == "ok" else self.failed)[msg_id] = engine


class Balancer:
    """One client's balanced requests."""

    def __init__(self, dispatcher: Dispatcher, hub: Hub) -> None:
        self._dispatcher = dispatcher
        self._hub = hub
        self._lock = threading.RLock()
        self._jobs: dict[str, _Job] = {}
        self._waiting: dict[str, _Job] = {}
        #: msg_id of what has not ended to those that wait for it
        self._dependents: defaultdict[str, set[str]] = defaultdict(set)
        #: jobs to look at; one thread at a time does, and none within itself, however
        #: long a chain of requests fails with its first
        self._changed: deque[str] = deque()
        self._looking = threading.Lock()
        dispatcher.intercept = self._intercept
        dispatcher.on_change = self._on_change

    def submit(
        self,
        calls: Sequence[tuple[Frames, Frames]],
        *,
        label: str,
        map: bool,
        targets: list[str] | None,
        retries: int,
        after: Dependency | None,
        follow: Dependency | None,
        timeout: float | None,
        header: dict[str, Any] | None,
    ) -> list[MessageFuture]:
        """Send calls where the backend's scheduler thinks best.

        Parameters
        ----------
        targets : list of str, optional
            Keys of the engines that may be chosen.
        retries : int
            How often a call that fails is tried on another engine.
        after, follow : Dependency, optional
            Requests to wait for, and to share an engine with.
        timeout : float, optional
            Seconds within which the dependencies must be met and an engine found.
        """
        if not self._dispatcher.engines and not self._grows():
            raise NoEnginesRegistered("no engine is there to run this; start engines first")
        after, follow = after or Dependency(), follow or Dependency()
        kept = {"after": sorted(after), "follow": sorted(follow), "retries": retries}
        header = {**kept, **(header or {})}
        unknown = self._get_to_know(after | follow)
        with uninterrupted() as let_through:
            futures, ready, waiting = [], [], []
            # of many, the first run while the others are got ready
            share = FIRST
            for function, arguments in calls:
                # a call may be tried more than once, so nobody knows how often they are used
                natives = self._dispatcher.natives(function, arguments, uses=None)
                future = self._dispatcher.register("apply", label, None, header)
                futures.append(future)
                request = Request(
                    future.msg_id,
                    "apply",
                    label,
                    {"map": True} if map else {},
                    function,
                    arguments,
                    self._dispatcher.header(future, header),
                    natives,
                )
                future.held = natives
                job = _Job(request, targets, retries, after, follow)
                if unknown:
                    why = InvalidDependency(
                        f"task {future.msg_id} depends on {unknown}, which neither this client"
                        " nor any engine knows"
                    )
                    self._dispatcher.fail(future.msg_id, self._remote(why))
                    continue
                with self._lock:
                    self._jobs[future.msg_id] = job
                    if timeout:
                        job.timer = threading.Timer(timeout, self._time_out, [future.msg_id])
                        job.timer.daemon = True
                        job.timer.start()
                    if job.simple:
                        ready.append(request)
                    else:
                        self._await(job)
                        waiting.append(future.msg_id)
                if len(ready) == share:
                    self._place(ready, targets)
                    ready, share = [], 2 * share
                    let_through()
            if ready:
                self._place(ready, targets)
            self._look_at(waiting)
        return futures

    # -- dependencies --------------------------------------------------------------

    def _get_to_know(self, msg_ids: Iterable[str]) -> list[str]:
        """Have other clients' requests reported here, too; those that nobody knows."""
        dispatcher = self._dispatcher
        with dispatcher.lock:
            foreign = [
                m
                for m in msg_ids
                if m not in dispatcher.outstanding and m not in dispatcher.outcomes
            ]
        unknown = []
        for msg_id in foreign:
            try:
                self._hub.fetch([msg_id])
            except UnknownRequest:
                unknown.append(msg_id)
        return unknown

    def _await(self, job: _Job) -> None:
        """Have a job wait for what it depends on, or for an engine."""
        self._waiting[job.request.msg_id] = job
        for msg_id in job.after | job.follow:
            outcome = self._dispatcher.outcomes.get(msg_id)
            if outcome is None:
                self._dependents[msg_id].add(job.request.msg_id)
            else:
                job.note(msg_id, outcome)

    def _on_change(self, ended: str | None) -> None:
        """A request ended, or (None) an engine came or went."""
        if not self._waiting:
            return
        with self._lock:
            if ended is None:
                affected = list(self._waiting)
            else:
                affected = list(self._dependents.pop(ended, ()))
                outcome = self._dispatcher.outcomes.get(ended, ("error", None))
                for msg_id in affected:
                    if msg_id in self._waiting:
                        self._waiting[msg_id].note(ended, outcome)
        self._look_at(affected)

    def _look_at(self, msg_ids: Iterable[str]) -> None:
        """Place those that can be placed now, and give up those that never can."""
        self._changed.extend(msg_ids)
        # who adds while another thread looks finds it looking, or done and the lock free
        while self._changed and self._looking.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._looking.release()

    def _look(self) -> None:
        place: defaultdict[tuple[str, ...] | None, list[Request]] = defaultdict(list)
        fail: list[tuple[str, KernelError | Reply]] = []
        with self._lock:
            engines = list(self._dispatcher.engines)
            while self._changed:
                msg_id = self._changed.popleft()
                job = self._waiting.get(msg_id)
                verdict = None if job is None else self._judge(job, engines)
                if job is None or verdict is None:
                    continue
                self._leave(job)
                if isinstance(verdict, list):
                    everywhere = len(verdict) == len(engines) and job.targets is None
                    place[None if everywhere else tuple(verdict)].append(job.request)
                else:
                    fail.append((msg_id, verdict))
        for candidates, requests in place.items():
            self._place(requests, None if candidates is None else list(candidates))
        for msg_id, why in fail:
            self._give_up(msg_id, why)

    def _place(self, requests: Sequence[Request], candidates: list[str] | None) -> None:
        """Send requests to whichever engine the backend's scheduler chooses.

        From an engine they are sent straight to the engines, which run them also while they
        wait for others of their kind; behind the backend's scheduler they could wait for ever.
        """
        dispatcher = self._dispatcher
        if not on_an_engine():
            dispatcher.backend.send_balanced(requests, candidates)
            return
        for request in requests:
            with dispatcher.lock:
                keys = [k for k in candidates or dispatcher.engines if k in dispatcher.engines]
                chosen = min(keys, key=lambda k: len(dispatcher.by_engine.get(k, ())), default="")
                dispatcher.started(request.msg_id, chosen)
            with self._lock:
                self._jobs[request.msg_id].sent_to = chosen
            request.header["balanced"] = True
            dispatcher.send(chosen, request)

    def _grows(self) -> bool:
        return self._dispatcher.backend.capabilities.grows

    def _leave(self, job: _Job) -> None:
        """Have a job wait no longer."""
        msg_id = job.request.msg_id
        if self._waiting.pop(msg_id, None) is None:
            return
        for other in job.after | job.follow:
            if other in self._dependents:
                self._dependents[other].discard(msg_id)
                if not self._dependents[other]:
                    del self._dependents[other]

    def _judge(self, job: _Job, engines: list[str]) -> list[str] | KernelError | Reply | None:
        """Where a job may go now; why it never will; or None: not yet."""
        ok, failed = job.ok.keys(), job.failed.keys()
        for dependency in (job.after, job.follow):
            if dependency.unreachable(ok, failed):
                return ImpossibleDependency(
                    f"task {job.request.msg_id} depends on {_lost(dependency, job)}"
                )
        if not (job.after.check(ok, failed) and job.follow.check(ok, failed)):
            return None
        allowed = [e for e in engines if job.targets is None or e in job.targets]
        candidates = []
        for engine in allowed:
            here_ok = {m for m, where in job.ok.items() if where == engine}
            here_failed = {m for m, where in job.failed.items() if where == engine}
            if engine not in job.avoid and job.follow.check(here_ok, here_failed):
                candidates.append(engine)
        if candidates:
            return candidates
        if job.timer is not None:
            return None  # an engine may yet come, until the time is up
        if job.late:
            return TaskTimeout(f"task {job.request.msg_id} found no other engine in time")
        if job.last is not None:
            return job.last
        if job.follow:
            ids = self._dispatcher.ids
            ran = {m: ids.get(e or "") for m, e in {**job.ok, **job.failed}.items()}
            where = ", ".join(f"{m} on {ran[m]}" for m in sorted(job.follow) if m in ran)
            among = "" if job.targets is None else f" among {[ids[e] for e in allowed]}"
            return ImpossibleDependency(
                f"no engine{among} ran all that task {job.request.msg_id} is to follow: {where}"
            )
        if not engines and job.targets is None and self._grows():
            return []  # the cluster does not know that it is to grow before it has the task
        if not allowed:
            return None  # no engine at all: wait for one, as for any balanced task
        return ImpossibleDependency(f"no engine is left for task {job.request.msg_id}")

    def _give_up(self, msg_id: str, why: KernelError | Reply) -> None:
        with self._lock:
            job = self._jobs.get(msg_id)
        if isinstance(why, Reply):
            if job is not None:
                job.retries = 0
                job.avoid.clear()
                job.last = None
            if why.content.get("ename") == "UnmetDependency":
                why.content = {**why.content, "ename": "ImpossibleDependency"}
            self._finish(msg_id)
            self._dispatcher.reply(why)
        else:
            self._finish(msg_id)
            self._dispatcher.fail(msg_id, self._remote(why))

    @staticmethod
    def _remote(error: KernelError) -> RemoteError:
        """Scheduling errors reach the user as ipyparallel's do: as RemoteErrors."""
        return RemoteError(type(error).__name__, str(error), str(error))

    def _time_out(self, msg_id: str) -> None:
        with self._lock:
            job = self._waiting.get(msg_id)
            if job is None:
                current = self._jobs.get(msg_id)
                if current is not None:
                    # placed in time; from here on it just runs, or is tried where it can be
                    current.timer, current.late = None, True
                return
            self._leave(job)
        what = f"task {msg_id} found no engine in time"
        missing = sorted((job.after | job.follow) - job.ok.keys() - job.failed.keys())
        if missing and job.last is None:
            self._give_up(msg_id, TaskTimeout(f"{what}: {missing} had not ended"))
        else:
            self._give_up(msg_id, TaskTimeout(what))

    # -- replies ---------------------------------------------------------------------

    def _intercept(self, reply: Reply) -> bool:
        """Whether a failed call is tried again, and so its reply is not the last word."""
        with self._lock:
            job = self._jobs.get(reply.msg_id)
            if job is None:
                return False
            unmet = reply.content.get("ename") == "UnmetDependency"
            again = reply.status == "error" and reply.engine and (unmet or job.retries > 0)
            if again:
                job.avoid.add(str(reply.engine))
                job.last = reply
                job.sent_to = None
                if not unmet:
                    job.retries -= 1
                    job.request.header["tries"] = job.retries
                self._await(job)
        if not again:
            if reply.status == "aborted":  # an engine may not have had more than its name
                frames = job.request.arguments
                large = sum(memoryview(f).nbytes for f in frames) if isinstance(frames, list) else 0
                self._dispatcher.unsent.put(reply.msg_id, job.request, large)
            self._finish(reply.msg_id)
            return False
        self._look_at([reply.msg_id])
        return True

    def _finish(self, msg_id: str) -> None:
        with self._lock:
            job = self._jobs.pop(msg_id, None)
            if job is not None:
                self._leave(job)
                if job.timer is not None:
                    job.timer.cancel()

    def cancel_waiting(self, msg_ids: Sequence[str]) -> list[str]:
        """Abort jobs that are not placed yet; the ids of those."""
        with self._lock:
            waiting = [m for m in msg_ids if m in self._waiting]
        for msg_id in waiting:
            self._dispatcher.reply(Reply(msg_id, "aborted"))
        return waiting

    def knows(self, msg_id: str) -> bool:
        """Whether a request is a balanced one that is not done, and the backend's to find."""
        job = self._jobs.get(msg_id)
        return job is not None and job.sent_to is None

    def close(self) -> None:
        """Stop waiting for anything."""
        self._hub.close()
        with self._lock:
            jobs = list(self._jobs.values())
            self._jobs.clear()
            self._waiting.clear()
            self._dependents.clear()
        for job in jobs:
            if job.timer is not None:
                job.timer.cancel()


def _lost(dependency: Dependency, job: _Job) -> str:
    """Why a dependency can no longer be met."""
    lost = [] if dependency.failure else [(job.failed, "failed")]
    if not dependency.success:
        lost.append((job.ok, "succeeded, and only a failure would do"))
    return "; ".join(
        f"{sorted(ids)}, which {how}" for ended, how in lost if (ids := dependency & ended.keys())
    )

"""Load-balanced requests that want more than a place: dependencies, retries, timeouts.

The backend's scheduler places requests.  What is here decides *when* one may be placed,
*where* it must not be, and whether it is placed again.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .dependency import Dependency
from .dispatch import Dispatcher
from .error import (
    ImpossibleDependency,
    InvalidDependency,
    KernelError,
    NoEnginesRegistered,
    RemoteError,
    TaskTimeout,
)
from .futures import MessageFuture
from .protocol import Frames, Reply, Request

__all__ = ["Balancer"]


@dataclass
class _Job:
    """A balanced request until it is done."""

    request: Request
    targets: list[str] | None
    retries: int
    after: Dependency
    follow: Dependency
    timer: threading.Timer | None = None
    avoid: set[str] = field(default_factory=set)
    placed: bool = False
    last: Reply | None = None

    @property
    def simple(self) -> bool:
        return not (self.after or self.follow or self.retries or self.timer)


class Balancer:
    """One client's balanced requests."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._lock = threading.RLock()
        self._jobs: dict[str, _Job] = {}
        self._waiting: dict[str, _Job] = {}
        self._foreign: dict[str, tuple[str, str | None]] = {}
        dispatcher.intercept = self._intercept
        dispatcher.on_change = self._look_again

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
        if not self._dispatcher.engines:
            raise NoEnginesRegistered("no engine is there to run this; start engines first")
        after, follow = after or Dependency(), follow or Dependency()
        kept = {"after": sorted(after), "follow": sorted(follow), "retries": retries}
        header = {**kept, **(header or {})}
        known = self._check_known(after | follow)
        futures, ready = [], []
        for function, arguments in calls:
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
            )
            job = _Job(request, targets, retries, after, follow)
            if known:
                self._dispatcher.fail(
                    future.msg_id, self._remote(InvalidDependency(f"nobody knows of {known}"))
                )
                continue
            with self._lock:
                self._jobs[future.msg_id] = job
                if timeout:
                    job.timer = threading.Timer(timeout, self._time_out, [future.msg_id])
                    job.timer.daemon = True
                    job.timer.start()
                if job.simple:
                    job.placed = True
                    ready.append(request)
                else:
                    self._waiting[future.msg_id] = job
        if ready:
            self._dispatcher.backend.send_balanced(ready, targets)
        if len(ready) < len(futures):
            self._look_again()
        return futures

    # -- dependencies --------------------------------------------------------------

    def _check_known(self, msg_ids: Sequence[str] | set[str]) -> list[str]:
        """Those that neither this client nor any engine knows."""
        dispatcher = self._dispatcher
        with dispatcher.lock:
            unknown = [
                m
                for m in msg_ids
                if m not in dispatcher.outstanding and m not in dispatcher.outcomes
            ]
        missing = []
        for msg_id in unknown:
            found = self._ask(msg_id)
            if found is None:
                missing.append(msg_id)
            else:
                self._foreign[msg_id] = found
        return missing

    def _ask(self, msg_id: str) -> tuple[str, str | None] | None:
        """What the engines know of another client's request."""
        backend = self._dispatcher.backend
        answers = [
            backend.control(key, "query", {"query": {"msg_id": msg_id}})
            for key in list(self._dispatcher.engines)
        ]
        for answer in answers:
            for row in answer.result(10):
                return row["status"], row["engine_uuid"]
        return None

    def _done(self) -> tuple[dict[str, str | None], dict[str, str | None]]:
        """Where the requests ended that succeeded, and that failed."""
        ok: dict[str, str | None] = {}
        failed: dict[str, str | None] = {}
        dispatcher = self._dispatcher
        wanted: set[str] = set()
        for job in self._waiting.values():
            wanted |= job.after | job.follow
        for msg_id in wanted:
            outcome = dispatcher.outcomes.get(msg_id)
            if outcome is None and msg_id in self._foreign:
                outcome = self._foreign[msg_id] = self._ask(msg_id) or self._foreign[msg_id]
            if outcome is None or outcome[0] in ("queued", "running"):
                continue
            (ok if outcome[0] == "ok" else failed)[msg_id] = outcome[1]
        return ok, failed

    def _look_again(self) -> None:
        """Place what can be placed now, and give up what never can."""
        if not self._waiting:
            return
        place: list[tuple[Request, list[str] | None]] = []
        fail: list[tuple[str, KernelError | Reply]] = []
        with self._lock:
            ok, failed = self._done()
            engines = list(self._dispatcher.engines)
            for msg_id, job in list(self._waiting.items()):
                verdict = self._judge(job, ok, failed, engines)
                if verdict is None:
                    continue
                del self._waiting[msg_id]
                if isinstance(verdict, list):
                    job.placed = True
                    everywhere = set(verdict) == set(engines) and job.targets is None
                    place.append((job.request, None if everywhere else verdict))
                else:
                    fail.append((msg_id, verdict))
        for request, candidates in place:
            self._dispatcher.backend.send_balanced([request], candidates)
        for msg_id, why in fail:
            self._give_up(msg_id, why)

    def _judge(
        self,
        job: _Job,
        ok: dict[str, str | None],
        failed: dict[str, str | None],
        engines: list[str],
    ) -> list[str] | KernelError | Reply | None:
        """Where a job may go now; why it never will; or None: not yet."""
        for dependency in (job.after, job.follow):
            if dependency.unreachable(set(ok), set(failed)):
                lost = sorted(dependency & (set(ok) | set(failed)))
                return ImpossibleDependency(
                    f"task {job.request.msg_id} depends on {lost}, which ended otherwise"
                )
        if not job.after.check(set(ok), set(failed)):
            return None
        if not job.follow.check(set(ok), set(failed)):
            return None
        allowed = [e for e in engines if job.targets is None or e in job.targets]
        candidates = []
        for engine in allowed:
            here_ok = {m for m, where in ok.items() if where == engine}
            here_failed = {m for m, where in failed.items() if where == engine}
            if engine not in job.avoid and job.follow.check(here_ok, here_failed):
                candidates.append(engine)
        if candidates:
            return candidates
        if job.timer is not None:
            return None  # an engine may yet come, until the time is up
        if job.last is not None:
            return job.last
        if job.follow:
            return ImpossibleDependency(
                f"no engine ran all that task {job.request.msg_id} is to follow"
            )
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
            job = self._waiting.pop(msg_id, None)
            if job is None:
                current = self._jobs.get(msg_id)
                if current is not None:
                    current.timer = None  # placed in time; from here on it just runs
                return
        what = f"task {msg_id} found no engine in time"
        if (job.after or job.follow) and job.last is None:
            self._give_up(msg_id, TaskTimeout(f"{what}: its dependencies were not met"))
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
                job.placed = False
                if not unmet:
                    job.retries -= 1
                self._waiting[reply.msg_id] = job
        if not again:
            if reply.status == "aborted" and reply.engine is None:
                self._dispatcher.unsent[reply.msg_id] = job.request
            self._finish(reply.msg_id)
            return False
        self._look_again()
        return True

    def _finish(self, msg_id: str) -> None:
        with self._lock:
            job = self._jobs.pop(msg_id, None)
            self._waiting.pop(msg_id, None)
            if job is not None and job.timer is not None:
                job.timer.cancel()

    def cancel_waiting(self, msg_ids: Sequence[str]) -> list[str]:
        """Abort jobs that are not placed yet; the ids of those."""
        with self._lock:
            waiting = [m for m in msg_ids if m in self._waiting]
        for msg_id in waiting:
            self._dispatcher.reply(Reply(msg_id, "aborted"))
        return waiting

    def knows(self, msg_id: str) -> bool:
        """Whether a request is a balanced one that is not done."""
        return msg_id in self._jobs

    def close(self) -> None:
        """Stop waiting for anything."""
        with self._lock:
            jobs = list(self._jobs.values())
            self._jobs.clear()
            self._waiting.clear()
        for job in jobs:
            if job.timer is not None:
                job.timer.cancel()

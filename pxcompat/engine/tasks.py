"""The requests of an engine: those that wait, the one that runs, and what is remembered of others.

Which of them runs when is :class:`pxcompat.engine.runtime.Engine`'s to say; here is what becomes
of them meanwhile, and who is told.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from ..protocol import OutputEvent, Reply, Request
from .journal import Journal
from .records import Record, Records, moves

__all__ = ["Origin", "Task", "Tasks"]

#: ids of requests to refuse when they arrive, because they were cancelled before
REFUSED_LIMIT = 100_000
#: ids of the latest requests that came: what a client says of those on their way may be seconds
#: old when it is read, by when thousands have been done, and their records forgotten
ARRIVED_LIMIT = 10_000
#: ids of requests that clients wait for and that are not here
EXPECTED_LIMIT = 10_000
#: clients whose failures are counted
CLIENTS_LIMIT = 10_000


class Origin(Protocol):
    """Where a request came from and its output and reply go.  Thread-safe, never blocks."""

    def started(self, msg_id: str) -> None: ...

    def output(self, msg_id: str, event: OutputEvent) -> None: ...

    def reply(self, reply: Reply) -> None: ...


class Task:
    """A request between its arrival and its reply."""

    __slots__ = ("announced", "origins", "record", "request", "state")

    def __init__(self, request: Request, origin: Origin, record: Record) -> None:
        self.request = request
        #: whether it is known of, but still on its way
        self.announced = False
        self.origins = [origin]
        self.record = record
        self.state = "queued"  # then "running"; or "done" at once, when cancelled


class Tasks:
    """What one engine was asked to do.  Thread-safe.

    Parameters
    ----------
    key : str
        The engine's uuid.
    max_records, max_bytes : int
        Bounds of what is remembered of finished requests.

    Attributes
    ----------
    running : Task or None
        The one that runs.
    journal : Journal
        What was done lately, for whoever looks.
    """

    def __init__(self, key: str, max_records: int, max_bytes: int | None) -> None:
        self.running: Task | None = None
        self.journal = Journal()
        self._key = key
        self._lock = threading.Lock()
        self._tasks: dict[str, Task] = {}
        self._records = Records(max_records, max_bytes)
        #: what is not to run when it comes, and whether it will not run anywhere
        self._refused: OrderedDict[str, bool] = OrderedDict()
        #: what has come, and whether it was not given back since
        self._arrived: OrderedDict[str, bool] = OrderedDict()
        self._expected: OrderedDict[str, list[Origin]] = OrderedDict()
        #: by client: how many of its executes failed that abort what is queued behind them
        self._failures: OrderedDict[Any, int] = OrderedDict()
        self._completed = 0

    def __bool__(self) -> bool:
        return bool(self._tasks)

    @property
    def running_id(self) -> str | None:
        """The msg_id of the one that runs."""
        task = self.running
        return None if task is None else task.request.msg_id

    @property
    def running_for(self) -> float:
        """Seconds since the one that runs began; 0 when none does."""
        task = self.running
        return 0.0 if task is None else time.time() - (task.record.started or time.time())

    # -- from arrival to reply ---------------------------------------------------

    def admit(self, request: Request, origin: Origin) -> Task | None:
        """Take a request on, or answer one that was cancelled before it came."""
        msg_id = request.msg_id
        waiting = [origin]
        with self._lock:
            task = self._tasks.get(msg_id)
            if msg_id in self._refused:
                if self._refused.pop(msg_id):
                    # as if it had been cancelled here: it has a history, and may be run again,
                    # which what was announced of it may not
                    self._records.forget(msg_id)
                    record = Record(request)
                    record.reply = Reply(msg_id, "aborted", self._key)
                    record.forget_large_arguments()
                    self._records.add(record)
                    self._records.finish(record)
                    waiting += self._expected.pop(msg_id, ())
                task = None
            else:
                if task is not None:  # announced before
                    task.announced = False
                    task.request = task.record.request = request
                    task.origins[0] = origin
                else:
                    task = self._enlist(request, origin)
                self._arrived[msg_id] = True
                if len(self._arrived) > ARRIVED_LIMIT:
                    self._arrived.popitem(last=False)
        if task is None:
            for who in waiting:
                who.reply(Reply(msg_id, "aborted", self._key))
        return task

    def _enlist(self, request: Request, origin: Origin) -> Task:
        record = Record(request)
        task = self._tasks[request.msg_id] = Task(request, origin, record)
        task.origins += self._expected.pop(request.msg_id, ())
        self._records.add(record)
        return task

    def begin(self, task: Task) -> bool:
        """Have a task be the one that runs, if it is still to run.

        It is not where it was cancelled, and where its client had not heard yet that an execute
        before it failed: then it is aborted.
        """
        with self._lock:
            if task.state != "queued":
                return False
            request = task.request
            failures = self._failures.get(request.header.get("client"), 0)
            late = request.kind == "execute" and request.header.get("heard", 0) < failures
            if not late:
                task.state = "running"
                task.record.started = time.time()
                self.running = task
        if late:  # sent in the belief that what came before it would do well
            self.finish(task, Reply(request.msg_id, "aborted", self._key))
        return not late

    def say(self, task: Task, event: OutputEvent) -> None:
        """A task has output."""
        with self._lock:
            task.record.add(event)
            origins = list(task.origins)
        for origin in origins:
            origin.output(task.request.msg_id, event)

    def finish(self, task: Task, reply: Reply) -> None:
        """A task has its reply."""
        with self._lock:
            task.state = "done"
            task.record.reply = reply
            # before the reply: who has it may look at once for the call that it was
            self.journal.note(task.request, reply)
            origins = list(task.origins)
            self._tasks.pop(task.request.msg_id, None)
            self.running = None
        origins[0].reply(reply)
        if origins[1:]:
            reply = _for_others(task.request, reply)
            for origin in origins[1:]:
                origin.reply(reply)
        with self._lock:  # after the reply: nobody waits for this
            self._completed += 1
            task.record.forget_large_arguments()
            self._records.finish(task.record)

    def count_failure(self, client: Any) -> int:
        """Count a failure that aborts the client's executes until it has heard of it."""
        with self._lock:
            count = self._failures[client] = self._failures.pop(client, 0) + 1
            while len(self._failures) > CLIENTS_LIMIT:
                self._failures.popitem(last=False)
        return count

    # -- those that are on their way, or not to run --------------------------------

    def announce(self, requests: Sequence[Request], origin: Origin) -> None:
        """Take note of requests that wait for this engine where the backend keeps them.

        They count as queued, and can be cancelled.  What has been here already is not
        noted again.
        """
        with self._lock:
            for request in requests:
                if not (self._known(request.msg_id) or request.msg_id in self._refused):
                    self._enlist(request, origin).announced = True

    def forget_announced(self, client: str) -> None:
        """Take back what :meth:`announce` noted of a client that is gone."""
        lost = []
        with self._lock:
            for msg_id, task in list(self._tasks.items()):
                if task.announced and task.request.header.get("client") == client:
                    del self._tasks[msg_id]
                    self._records.drop(msg_id)
                    lost.append(task)
        for task in lost:
            for origin in task.origins[1:]:
                origin.reply(Reply(task.request.msg_id, "aborted", self._key))

    def give_back(self, msg_ids: Sequence[str], *, coming: bool = False) -> list[str]:
        """Let go of requests that have not begun, for others to run.

        Parameters
        ----------
        coming : bool
            Also those that are not here yet: they are refused, once, when they come.

        Returns
        -------
        list of str
            Those that will not run here.
        """
        given = []
        with self._lock:
            for msg_id in msg_ids:
                task = self._tasks.get(msg_id)
                if task is None:
                    if not coming or self._known(msg_id):
                        continue
                    self._refuse(msg_id, cancelled=False)
                elif task.state != "queued" or (coming and not task.announced):
                    continue  # the next to begin, where the backend keeps those that wait
                else:
                    if task.announced:
                        self._refuse(msg_id, cancelled=False)
                    task.state = "done"
                    del self._tasks[msg_id]
                    self._records.drop(msg_id)
                    if msg_id in self._arrived:
                        self._arrived[msg_id] = False
                    if task.origins[1:]:  # other clients, who wait for it wherever it goes
                        self._expected[msg_id] = task.origins[1:]
                given.append(msg_id)
        return given

    def cancel(self, msg_ids: Sequence[str]) -> dict[str, list[str]]:
        """Keep requests from running; those that are not here yet, too.

        Returns
        -------
        dict
            ``cancelled``: were queued here and have their reply; ``refused``: are not here
            and would be refused; ``running`` and ``done``: it is too late for them.
        """
        answer: dict[str, list[str]] = {"cancelled": [], "refused": [], "running": [], "done": []}
        cancelled = []
        with self._lock:
            for msg_id in msg_ids:
                task = self._tasks.get(msg_id)
                if task is not None and task.state == "queued":
                    task.state = "done"
                    cancelled.append(task)
                    if task.announced:
                        self._refuse(msg_id, cancelled=True)
                    answer["cancelled"].append(msg_id)
                elif task is not None:
                    answer["running"].append(msg_id)
                elif msg_id in self._records or self._arrived.get(msg_id):
                    answer["done"].append(msg_id)
                else:
                    self._refuse(msg_id, cancelled=True)
                    answer["refused"].append(msg_id)
        for task in cancelled:
            self.finish(task, Reply(task.request.msg_id, "aborted", self._key))
        return answer

    def _known(self, msg_id: str) -> bool:
        """Whether a request is, or was, here."""
        return msg_id in self._records or msg_id in self._arrived

    def _refuse(self, msg_id: str, *, cancelled: bool) -> None:
        """Have a request answered with "aborted" when it comes; it may be sent again unless it was
        cancelled."""
        self._refused[msg_id] = cancelled
        while len(self._refused) > REFUSED_LIMIT:
            self._refused.popitem(last=False)

    # -- questions, answered while one runs ------------------------------------------

    def status(self) -> dict[str, Any]:
        """How busy the engine is: ids of queued requests and of the running one, and the
        number of completed ones."""
        with self._lock:
            tasks = list(self._tasks.values())
            return {
                "completed": self._completed,
                "queue": [t.request.msg_id for t in tasks if not t.request.header.get("balanced")],
                "tasks": [t.request.msg_id for t in tasks if t.request.header.get("balanced")],
                "running": self.running_id,
            }

    def activity(self, since: int = 0) -> dict[str, Any]:
        """What a person who looks wants to know: what runs, what waits, what was done.

        Parameters
        ----------
        since : int
            The calls that the journal counted until then are known.

        Returns
        -------
        dict
            ``running``: name and start of what runs, or None; ``queue``: names of what waits;
            ``direct``: of what waits and runs, what no scheduler placed; ``index``, ``calls`` and
            ``totals``: the journal's.
        """
        with self._lock:
            running = self.running
            waiting = [t.request for t in self._tasks.values() if t.state == "queued"]
            return {
                "running": None
                if running is None
                else (running.request.name, running.record.started),
                "queue": [request.name for request in waiting],
                "direct": (
                    [r.name for r in waiting if not r.header.get("balanced")],
                    []
                    if running is None or running.request.header.get("balanced")
                    else [running.request.name],
                ),
                "index": self.journal.index,
                "calls": self.journal.since(since),
                "totals": self.journal.totals(),
            }

    def query(
        self, query: Mapping[str, Any], keys: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """Records that match a query in ``db_query``'s style, or those of their ``keys``."""
        with self._lock:
            return self._records.query(query, self._key, keys)

    def purge(self, msg_ids: Sequence[str] | None) -> int:
        """Forget finished requests, all when None; how many."""
        with self._lock:
            return self._records.purge(msg_ids)

    def attach(self, msg_id: str, origin: Origin) -> dict[str, Any] | None:
        """Send a request's output until now, and its reply or what is still to come, to
        another client.

        Returns
        -------
        dict or None
            Its record; None when the request is not here (yet: the client will be told if it
            comes).
        """
        with self._lock:
            record = self._records.get(msg_id)
            if record is None:
                waiting = self._expected.setdefault(msg_id, [])
                if origin not in waiting:
                    waiting.append(origin)
                if len(self._expected) > EXPECTED_LIMIT:
                    self._expected.popitem(last=False)
                return None
            events, reply = list(record.events), record.reply
            description = record.describe(self._key)
            if reply is None:
                origins = self._tasks[msg_id].origins
                if origin in origins:
                    return description
                origins.append(origin)
            # under the lock, so that what comes next comes after
            for number, event in enumerate(events):
                if reply is not None:  # not all was remembered, or counted
                    event = OutputEvent(number, event.type, event.content)
                origin.output(msg_id, event)
        if reply is not None:
            if reply.outputs != len(events):
                reply = Reply(**{n: getattr(reply, n) for n in reply.__dataclass_fields__})
                reply.outputs = len(events)
            origin.reply(_for_others(record.request, reply))
        return description

    def recall(self, msg_id: str) -> Request | None:
        """A remembered request, to run it again."""
        with self._lock:
            record = self._records.get(msg_id)
            return record.request if record else None

    def resubmitted(self, msg_id: str, again: str) -> None:
        """Note under which msg_id a request was run again."""
        with self._lock:
            record = self._records.get(msg_id)
            if record is not None:
                record.resubmitted = again


def _for_others(request: Request, reply: Reply) -> Reply:
    """A reply as clients have it that did not send the request, and cannot know whether it is the
    last word: with ``moves`` among its content where it may be none."""
    unmet = reply.content.get("ename") == "UnmetDependency"
    if reply.status != "error" or not (unmet or moves(request.header)):
        return reply
    return replace(reply, content={**reply.content, "moves": True})

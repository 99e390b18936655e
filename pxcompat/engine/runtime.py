"""The engine: runs requests one at a time, in order, and says what comes of them."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import contextlib
import inspect
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from .. import serialize
from ..protocol import Frames, OutputEvent, Reply, Request
from ..serialize.pickling import loads_function
from . import comms, output_of_thread, set_current
from .counting import counted
from .failure import describe_failure
from .interrupts import repeated
from .journal import Journal
from .output import Flusher, RequestOutput, Stream, routed
from .records import Record, Records, copied
from .shell import EngineShell, make_shell, run_startup_files

if TYPE_CHECKING:
    from .console import Console

__all__ = ["Admitted", "Engine", "Origin"]

log = logging.getLogger("pxcompat.engine")

#: ids of requests to refuse when they arrive, because they were cancelled before
REFUSED_LIMIT = 100_000
#: ids of requests that clients wait for and that are not here
EXPECTED_LIMIT = 10_000
#: clients whose failures are counted
CLIENTS_LIMIT = 10_000


class Origin(Protocol):
    """Where a request came from and its output and reply go.  Thread-safe, never blocks."""

    def started(self, msg_id: str) -> None: ...

    def output(self, msg_id: str, event: OutputEvent) -> None: ...

    def reply(self, reply: Reply) -> None: ...


#: ``signal.signal`` without the enums that it makes of its arguments and result: each request
#: has it called twice
_set_handler = _signal.signal


def _nothing_to_interrupt(signum: int, frame: types.FrameType | None) -> None:
    """The handler of SIGINT between requests: an interrupt is for user code."""


class _Task:
    """A request between its arrival and its reply."""

    __slots__ = ("announced", "origins", "record", "request", "state")

    def __init__(self, request: Request, origin: Origin, record: Record) -> None:
        self.request = request
        #: whether it is known of, but still on its way
        self.announced = False
        self.origins = [origin]
        self.record = record
        self.state = "queued"  # then "running"; or "done" at once, when cancelled


#: the msg_id of a request that was taken on, and its task unless it was refused
Admitted = tuple[str, "_Task | None"]


class Engine:
    """One engine.

    Parameters
    ----------
    key : str
        Its uuid.
    own_process : bool
        Whether this process exists for the engine: it then runs on the main thread,
        its namespace is ``__main__``, output is captured down to the file descriptors,
        and SIGINT interrupts.
    max_records, max_bytes : int
        Bounds of what is remembered of finished requests.
    """

    def __init__(
        self,
        key: str,
        *,
        own_process: bool,
        max_records: int = 1024,
        max_bytes: int = 1 << 30,
    ) -> None:
        self.key = key
        self.id: int | None = None
        self.own_process = own_process
        self.shell: EngineShell = make_shell(is_main=own_process)
        if own_process:
            comms.install(self)
        self._queue: queue.SimpleQueue[_Task | Callable[[], None] | None] = queue.SimpleQueue()
        #: what came while nested requests alone could run (see ``nested``), first in turn now
        self._deferred: deque[_Task | Callable[[], None] | None] = deque()
        self._lock = threading.Lock()
        self._tasks: dict[str, _Task] = {}
        self._records = Records(max_records, max_bytes)
        self._refused: OrderedDict[str, None] = OrderedDict()
        self._expected: OrderedDict[str, list[Origin]] = OrderedDict()
        #: by client: how many of its executes failed that abort what is queued behind them
        self._failures: OrderedDict[Any, int] = OrderedDict()
        #: what was done lately, for whoever looks
        self.journal = Journal()
        self._completed = 0
        self._running: _Task | None = None
        #: whether something runs that is no request
        self._calling = False
        self._interruptible = False
        self._thread_id: int | None = None
        self._flusher = Flusher()
        self._drain: list[Callable[[], None]] = []
        #: copies what a request returned, to where the backend wants it
        self.keep: Callable[[Frames], Frames] = copied
        #: the backend's own object for this engine, for users who ask for it
        self.native: Any = None
        #: by token: (client, (name, value, what it had before)) of what may have to be undone
        self.unsettled: dict[str, tuple[Any, tuple[str, Any, Any]]] = {}
        #: by token: (client, value) of what the backend is about to take
        self.aside: dict[str, tuple[Any, Any]] = {}
        #: the latest clients that left
        self._gone: deque[str] = deque(maxlen=CLIENTS_LIMIT)
        #: how a client on this engine connects to the engine's own cluster
        self.home: dict[str, Any] | None = None
        #: code to run in the namespace before the user's start-up files
        self.prelude = ""
        #: folder on this host that goes with the cluster, if there is one
        self.folder: str | None = None
        #: this engine as a Jupyter kernel, once it is one
        self.console: Console | None = None
        #: has a backend with a loop of its own run what was queued by ``submit`` and ``call``
        self.nudge: Callable[[], None] = lambda: None

    # -- requests --------------------------------------------------------------

    def submit(self, request: Request, origin: Origin) -> None:
        """Queue a request.  Thread-safe."""
        task = self._admit(request, origin)
        if task is not None:
            self._queue.put(task)

    def run_now(self, request: Request, origin: Origin) -> None:
        """Run a request whose turn the backend has decided; on the engine's thread."""
        task = self._admit(request, origin)
        if task is not None:
            origin.started(request.msg_id)
            self._run(task)

    def admit(self, requests: Sequence[Request], origin: Origin) -> list[Admitted]:
        """Take on requests, as queued, that :meth:`run_batch` is to run.  Thread-safe."""
        return [(request.msg_id, self._admit(request, origin)) for request in requests]

    def run_batch(self, admitted: Sequence[Admitted], before: Callable[[str], None]) -> None:
        """Run what was admitted, one after the other; on the engine's thread.

        ``before(msg_id)`` is called for each that begins, when it cannot be given back any more.
        """
        self._calling = False  # requests count for themselves: with its last reply it is idle
        for _, task in admitted:
            if task is not None:
                self._run(task, before)

    def give_back(self, msg_ids: Sequence[str], *, coming: bool = False) -> list[str]:
        """Let go of requests that have not begun, for others to run.  Thread-safe.

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
                    if not coming or msg_id in self._records:
                        continue
                    self._refuse(msg_id)
                elif task.state != "queued" or (coming and not task.announced):
                    continue  # the next to begin, where the backend keeps those that wait
                else:
                    if task.announced:
                        self._refuse(msg_id)
                    task.state = "done"
                    del self._tasks[msg_id]
                    self._records.drop(msg_id)
                    if task.origins[1:]:  # other clients, who wait for it wherever it goes
                        self._expected[msg_id] = task.origins[1:]
                given.append(msg_id)
        return given

    def _refuse(self, msg_id: str) -> None:
        """Have a request answered with "aborted" when it comes."""
        self._refused[msg_id] = None
        while len(self._refused) > REFUSED_LIMIT:
            self._refused.popitem(last=False)

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not (self._tasks or self._calling or self._deferred) and self._queue.empty()

    @property
    def running(self) -> str | None:
        """The msg_id of what runs."""
        task = self._running
        return None if task is None else task.request.msg_id

    @property
    def running_for(self) -> float:
        """Seconds since what runs began; 0 when nothing does."""
        task = self._running
        return 0.0 if task is None else time.time() - (task.record.started or time.time())

    def _admit(self, request: Request, origin: Origin) -> _Task | None:
        """Take a request on, or answer one that was cancelled before it came."""
        msg_id = request.msg_id
        with self._lock:
            task = self._tasks.get(msg_id)
            if msg_id in self._refused:
                del self._refused[msg_id]  # it may be sent again
                task = None
            elif task is not None:  # announced before
                task.announced = False
                task.request = task.record.request = request
                task.origins[0] = origin
            else:
                task = self._enlist(request, origin)
        if task is None:
            origin.reply(Reply(msg_id, "aborted", self.key))
        return task

    def _enlist(self, request: Request, origin: Origin) -> _Task:
        record = Record(request)
        task = self._tasks[request.msg_id] = _Task(request, origin, record)
        task.origins += self._expected.pop(request.msg_id, ())
        self._records.add(record)
        return task

    def announce(self, requests: Sequence[Request], origin: Origin) -> None:
        """Take note of requests that wait for this engine where the backend keeps them.

        They count as queued, and can be cancelled.  What has been here already is not
        noted again.  Thread-safe.
        """
        with self._lock:
            for request in requests:
                if request.msg_id not in self._records and request.msg_id not in self._refused:
                    self._enlist(request, origin).announced = True

    def forget_announced(self, client: str) -> None:
        """Take back what :meth:`announce` noted of a client that is gone."""
        with self._lock:
            for msg_id, task in list(self._tasks.items()):
                if task.announced and task.request.header.get("client") == client:
                    del self._tasks[msg_id]
                    self._records.drop(msg_id)

    def hold(self, things: dict[str, tuple[Any, Any]], token: str, thing: Any) -> None:
        """Keep something that the client whose request runs is to see to, unless it has left."""
        running = self._running
        client = None if running is None else running.request.header.get("client")
        if client not in self._gone:
            things[token] = (client, thing)

    def forget_client(self, client: str) -> None:
        """Let go of what a client that is gone was to see to.  Thread-safe."""
        self._gone.append(client)
        self.forget_announced(client)
        for things in (self.unsettled, self.aside):
            for token, (holder, _) in list(things.items()):
                if holder == client:
                    things.pop(token, None)

    def call(self, function: Callable[[], None]) -> None:
        """Queue anything else that is to run on the engine's thread.  Thread-safe."""
        self._queue.put(function)

    def stop(self) -> None:
        """End :meth:`run` after what is queued now.  Thread-safe."""
        self._queue.put(None)

    # -- the loop --------------------------------------------------------------

    def run(self) -> None:
        """Run what is queued until :meth:`stop`; on the main thread if ``own_process``."""
        with self.active():
            while (item := self._next()) is not None:
                self._take(item)

    def run_queued(self) -> None:
        """Run what is queued and return; for backends that have a loop of their own."""
        with contextlib.suppress(queue.Empty):
            while (item := self._next(block=False)) is not None:
                self._take(item)

    def _next(self, block: bool = True) -> _Task | Callable[[], None] | None:
        return self._deferred.popleft() if self._deferred else self._queue.get(block)

    def _take(self, item: _Task | Callable[[], None]) -> None:
        if isinstance(item, _Task):
            self._run(item)
        else:
            self._call(item)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make this thread the engine's: what runs here is captured and can be interrupted.

        For backends that call :meth:`run_now` instead of :meth:`run`.
        """
        self._thread_id = threading.get_ident()
        set_current(self, process=self.own_process)
        # IPython's builtins, such as ``display``: where nobody else is, once for all requests
        builtins = self.shell.builtin_trap if self.own_process else contextlib.nullcontext()
        try:
            with self._captured(), builtins:
                if self.prelude:
                    exec(compile(self.prelude, "<prelude>", "exec"), self.shell.user_ns)
                if self.own_process:
                    run_startup_files(self.shell, os.environ.get("PXCOMPAT_PROFILE_DIR"))
                yield
        finally:
            if self.console is not None:
                self.console.close()
            set_current(None, process=self.own_process)
            self._flusher.stop()

    @contextmanager
    def _captured(self) -> Iterator[None]:
        """Take over stdout, stderr and SIGINT for as long as the loop runs."""
        if not self.own_process:
            from .shared import sharing

            with routed(output_of_thread), sharing():
                yield
            return
        before = sys.stdout, sys.stderr, signal.getsignal(signal.SIGINT)
        logs = {"stdout": sys.stdout, "stderr": sys.stderr}
        if os.name == "posix":
            logs = self._capture_descriptors()
        sys.stdout = Stream("stdout", self._output, logs["stdout"])
        sys.stderr = Stream("stderr", self._output, logs["stderr"])
        signal.signal(signal.SIGINT, _nothing_to_interrupt)
        try:
            with repeated(lambda: self._running):
                yield
        finally:
            sys.stdout, sys.stderr, handler = before
            signal.signal(signal.SIGINT, handler)

    def _capture_descriptors(self) -> dict[str, Any]:
        from .descriptors import Descriptor

        logs = {}
        for fd, name in ((1, "stdout"), (2, "stderr")):

            def write(text: str, name: str = name) -> bool:
                output = self._output()
                if output is not None:
                    output.write(name, text)
                return output is not None

            descriptor = Descriptor(fd, write)
            self._drain.append(descriptor.drain)
            logs[name] = open(descriptor.before, "w", buffering=1, closefd=False)  # noqa: SIM115
        return logs

    def _output(self) -> RequestOutput | None:
        return self.shell.output

    def _call(self, function: Callable[[], None]) -> None:
        self._calling = True
        try:
            with self._interrupts():
                function()
        except BaseException:
            # the functions report their own failures; this is an interrupt that came late
            log.exception("an interrupt or error outside of any request")
        finally:
            self._calling = False

    def _run(self, task: _Task, before: Callable[[str], None] | None = None) -> None:
        with self._lock:
            if task.state != "queued":
                return
            request = task.request
            failures = self._failures.get(request.header.get("client"), 0)
            late = request.kind == "execute" and request.header.get("heard", 0) < failures
            if not late:
                task.state = "running"
                task.record.started = time.time()
                self._running = task
        if late:  # sent in the belief that what came before it would do well
            self._finish(task, Reply(request.msg_id, "aborted", self.key))
            return
        if before is not None:
            before(request.msg_id)
        output = RequestOutput(lambda event: self._tell_output(task, event), self._flusher)
        self.shell.output = output
        reply = Reply(request.msg_id, "ok", self.key)
        try:
            try:
                with self._interrupts():
                    if request.kind == "apply":
                        self._apply(request, reply)
                    else:
                        self._execute(request, reply)
            finally:
                # an interrupt may come as late as here, in place of the result
                self._interruptible = False
        except BaseException as error:
            reply.status = "error"
            reply.result = None
            reply.content = describe_failure(error, self._engine_info(request), self.shell)
        if reply.status == "error" and request.kind == "execute":
            output.emit("error", reply.content)
        self.shell.print_traceback()
        for drain in self._drain:
            drain()
        reply.outputs = output.end()
        self.shell.output = None
        reply.started = task.record.started
        reply.completed = time.time()
        if reply.status == "error" and request.kind == "execute" and not request.content["silent"]:
            reply.content["failures"] = self._count_failure(request.header.get("client"))
        self._finish(task, reply)

    def _count_failure(self, client: Any) -> int:
        """Count a failure that aborts the client's executes until it has heard of it."""
        with self._lock:
            count = self._failures[client] = self._failures.pop(client, 0) + 1
            while len(self._failures) > CLIENTS_LIMIT:
                self._failures.popitem(last=False)
        return count

    def _finish(self, task: _Task, reply: Reply) -> None:
        with self._lock:
            task.state = "done"
            task.record.reply = reply
            # before the reply: who has it may look at once for the call that it was
            self.journal.note(task.request, reply)
            origins = list(task.origins)
            self._tasks.pop(task.request.msg_id, None)
            self._running = None
        for origin in origins:
            origin.reply(reply)
        with self._lock:  # after the reply: nobody waits for this
            self._completed += 1
            task.record.forget_large_arguments()
            self._records.finish(task.record)

    def _tell_output(self, task: _Task, event: OutputEvent) -> None:
        with self._lock:
            task.record.add(event)
            origins = list(task.origins)
        for origin in origins:
            origin.output(task.request.msg_id, event)

    # -- running one -----------------------------------------------------------

    def _apply(self, request: Request, reply: Reply) -> None:
        shell = self.shell
        scope = shell.user_ns
        # the frames of a handle were filled in by the backend before it submitted
        copy = request.header.get("copy", True)
        natives = {token: partial(n.resolve, copy) for token, n in request.natives.items()}
        if natives:
            function = serialize.loads(request.function, scope, natives)  # type: ignore[arg-type]
        else:
            function = loads_function(request.function, scope)  # type: ignore[arg-type]
        arguments: Any = request.arguments
        if not copy:
            # the same on every backend: not written to, whether it is shared there or not
            arguments = [memoryview(frame).toreadonly() for frame in arguments]
        args, kwargs = serialize.loads(arguments, scope, natives)
        with shell.builtin_trap:
            if request.content.get("map"):
                values = counted(map(function, *args, **kwargs), shell.emit)
                result = [self._awaited(value) for value in values]
            else:
                result = self._awaited(function(*args, **kwargs))
            if shell.events.callbacks["post_execute"]:
                shell.events.trigger("post_execute")  # inline plots are shown by it
        reply.result = self.keep(serialize.dumps(result, name="the result"))

    @staticmethod
    def _awaited(result: Any) -> Any:
        if not inspect.isawaitable(result):
            return result
        from IPython.core.async_helpers import get_asyncio_loop

        async def wait() -> Any:
            return await result

        return get_asyncio_loop().run_until_complete(wait())

    def _execute(self, request: Request, reply: Reply) -> None:
        content = request.content
        shell = self.shell
        count = shell.execution_count
        result: Any = shell.run_cell(
            content["code"],
            store_history=content.get("store_history", not content["silent"]),
            silent=content["silent"],
        )
        error = result.error_before_exec or result.error_in_exec
        if error is None:
            reply.content = {"execution_count": count, "silent": content["silent"]}
        else:
            reply.status = "error"
            info = self._engine_info(request)
            reply.content = describe_failure(error, info, shell, list(shell.last_traceback))
            shell.last_traceback = ()

    def _engine_info(self, request: Request) -> dict[str, Any]:
        return {"engine_uuid": self.key, "engine_id": self.id, "method": request.kind}

    def publish_data(self, data: dict[str, Any]) -> None:
        """Send a dict as output of the running request."""
        if self.shell.output is not None:
            frames = copied(serialize.dumps(data, name="the published data"))
            self.shell.output.emit("data", {"frames": frames})

    # -- interrupts ------------------------------------------------------------

    @contextmanager
    def _interrupts(self) -> Iterator[None]:
        self._interruptible = True
        if self.own_process:
            # Python's own handler, which leaves no frame in the user's traceback
            _set_handler(signal.SIGINT, signal.default_int_handler)
        try:
            yield
        finally:
            if self.own_process:
                _set_handler(signal.SIGINT, _nothing_to_interrupt)
            self._interruptible = False

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Within what was queued with :meth:`call`: interrupts are for the requests it runs."""
        if self.own_process:
            _set_handler(signal.SIGINT, _nothing_to_interrupt)
        self._interruptible = False
        yield

    def interrupt(self) -> None:
        """Interrupt what runs, from another thread, where there is no signal to do it."""
        import ctypes

        if self._interruptible and self._thread_id is not None:
            thread = ctypes.c_ulong(self._thread_id)
            error = ctypes.py_object(KeyboardInterrupt)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, error)

    # -- questions, answered while a request runs --------------------------------

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
                        self._refuse(msg_id)
                    answer["cancelled"].append(msg_id)
                elif task is not None:
                    answer["running"].append(msg_id)
                elif msg_id in self._records:
                    answer["done"].append(msg_id)
                else:
                    self._refuse(msg_id)
                    answer["refused"].append(msg_id)
        for task in cancelled:
            self._finish(task, Reply(task.request.msg_id, "aborted", self.key))
        return answer

    def status(self) -> dict[str, Any]:
        """How busy the engine is: ids of queued requests and of the running one, and the
        number of completed ones."""
        with self._lock:
            tasks = list(self._tasks.values())
            return {
                "completed": self._completed,
                "queue": [t.request.msg_id for t in tasks if not t.request.header.get("balanced")],
                "tasks": [t.request.msg_id for t in tasks if t.request.header.get("balanced")],
                "running": self._running.request.msg_id if self._running else None,
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
            ``totals``: the journal's; ``thread``: where calls run.
        """
        with self._lock:
            running = self._running
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
                "thread": self._thread_id,
            }

    def query(
        self, query: Mapping[str, Any], keys: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """Records that match a query in ``db_query``'s style, or those of their ``keys``."""
        with self._lock:
            return self._records.query(query, self.key, keys)

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
            if reply is None:
                self._tasks[msg_id].origins.append(origin)
            description = record.describe(self.key)
            # under the lock, so that what comes next comes after
            for number, event in enumerate(events):
                if reply is not None:  # not all was remembered, or counted
                    event = OutputEvent(number, event.type, event.content)
                origin.output(msg_id, event)
        if reply is not None:
            if reply.outputs != len(events):
                reply = Reply(**{n: getattr(reply, n) for n in reply.__dataclass_fields__})
                reply.outputs = len(events)
            origin.reply(reply)
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

    def describe(self) -> dict[str, Any]:
        """What a registry wants to know: ``key``, ``pid``, ``host``, ``own_process``."""
        return {
            "key": self.key,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "own_process": self.own_process,
        }

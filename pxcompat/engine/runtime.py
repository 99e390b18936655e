"""The engine: runs requests one at a time, in order, and says what comes of them."""

from __future__ import annotations

import contextlib
import gc
import inspect
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from .. import serialize
from ..protocol import Frames, Reply, Request
from ..serialize.functions import SCALARS
from ..serialize.pickling import loads_function
from . import comms, current_or_none, output_of_thread, set_current
from .counting import counted
from .failure import describe_failure
from .interrupts import repeated, set_handler
from .output import Flusher, RequestOutput, Stream, asking, followed, routed
from .records import copied
from .shell import EngineShell, make_shell, run_startup_files
from .tasks import Origin, Task, Tasks

if TYPE_CHECKING:
    from .console import Console

__all__ = ["Admitted", "Engine"]

log = logging.getLogger("pxcompat.engine")

T = TypeVar("T")

#: the latest clients that left, of which an engine knows that they did
CLIENTS_LIMIT = 10_000


#: the msg_id of a request that was taken on, and its task unless it was refused
Admitted = tuple[str, "Task | None"]


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
        Bounds of what is remembered of finished requests (see :class:`.records.Records`).
    """

    def __init__(
        self,
        key: str,
        *,
        own_process: bool,
        max_records: int = 1024,
        max_bytes: int | None = None,
    ) -> None:
        self.key = key
        self.id: int | None = None
        self.own_process = own_process
        self.shell: EngineShell = make_shell(is_main=own_process)
        if own_process:
            comms.install(self)
        #: what it was asked to do
        self.tasks = Tasks(key, max_records, max_bytes)
        self._queue: queue.SimpleQueue[Task | Callable[[], None] | None] = queue.SimpleQueue()
        #: what came while nested requests alone could run (see ``nested``), first in turn now
        self._deferred: deque[Task | Callable[[], None] | None] = deque()
        #: whether something runs that is no request
        self._calling = False
        self._interruptible = False
        #: whether an interrupt came before that, which is for the request that was begun by then
        self._due = False
        #: where requests run
        self.thread_id: int | None = None
        self._flusher = Flusher()
        self._drain: list[Callable[[], None]] = []
        #: stdout and stderr, where their descriptors are captured
        self._streams: list[Stream] = []
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
        task = self.tasks.admit(request, origin)
        if task is not None:
            self._queue.put(task)

    def run_now(self, request: Request, origin: Origin) -> None:
        """Run a request whose turn the backend has decided; on the engine's thread."""
        task = self.tasks.admit(request, origin)
        if task is not None:
            origin.started(request.msg_id)
            self._run(task)

    def admit(self, requests: Sequence[Request], origin: Origin) -> list[Admitted]:
        """Take on requests, as queued, that :meth:`run_batch` is to run.  Thread-safe."""
        return [(request.msg_id, self.tasks.admit(request, origin)) for request in requests]

    def run_batch(self, admitted: Sequence[Admitted], before: Callable[[str], None]) -> None:
        """Run what was admitted, one after the other; on the engine's thread.

        ``before(msg_id)`` is called for each that begins, when it cannot be given back any more.
        """
        self._calling = False  # requests count for themselves: with its last reply it is idle
        for _, task in admitted:
            if task is not None:
                self._run(task, before)

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not (self.tasks or self._calling or self._deferred) and self._queue.empty()

    def hold(self, things: dict[str, tuple[Any, Any]], token: str, thing: Any) -> None:
        """Keep something that the client whose request runs is to see to, unless it has left."""
        running = self.tasks.running
        client = None if running is None else running.request.header.get("client")
        if client not in self._gone:
            things[token] = (client, thing)

    def forget_client(self, client: str) -> None:
        """Let go of what a client that is gone was to see to.  Thread-safe."""
        self._gone.append(client)
        self.tasks.forget_announced(client)
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

    def _next(self, block: bool = True) -> Task | Callable[[], None] | None:
        return self._deferred.popleft() if self._deferred else self._queue.get(block)

    def _take(self, item: Task | Callable[[], None]) -> None:
        if isinstance(item, Task):
            self._run(item)
        else:
            self._call(item)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make this thread the engine's: what runs here is captured and can be interrupted.

        For backends that call :meth:`run_now` instead of :meth:`run`.
        """
        self.thread_id = threading.get_ident()
        set_current(self, process=self.own_process)
        # IPython's builtins, such as ``display``: where nobody else is, once for all requests
        builtins = self.shell.builtin_trap if self.own_process else contextlib.nullcontext()
        try:
            with self._captured(), builtins:
                if self.own_process:
                    # what is here by now stays: nothing for the garbage collector to look through
                    # every few thousand requests, for a tenth of a second
                    gc.freeze()
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
            if not self.own_process:
                self.shell.close()
                self.tasks.purge(None)

    @contextmanager
    def _captured(self) -> Iterator[None]:
        """Take over stdout, stderr and SIGINT for as long as the loop runs."""
        if not self.own_process:
            from .shared import sharing

            with routed(output_of_thread), sharing():
                yield
            return
        before = sys.stdout, sys.stderr, signal.getsignal(signal.SIGINT)
        if os.name == "posix":
            sys.stdout, sys.stderr = self._capture_descriptors()
        else:
            sys.stdout = Stream("stdout", self._output, sys.stdout)
            sys.stderr = Stream("stderr", self._output, sys.stderr)
        signal.signal(signal.SIGINT, self._not_yet)
        try:
            with followed(before[1], sys.stderr), repeated(lambda: self.tasks.running):
                yield
        finally:
            sys.stdout, sys.stderr, handler = before
            signal.signal(signal.SIGINT, handler)

    def _capture_descriptors(self) -> list[Stream]:
        from .descriptors import Descriptor

        for fd, name in ((1, "stdout"), (2, "stderr")):

            def write(text: str, name: str = name) -> bool:
                output = self._output()
                if output is not None:
                    output.write(name, text)
                return output is not None

            descriptor = Descriptor(fd, write)
            self._drain.append(descriptor.drain)
            before = open(descriptor.before, "w", buffering=1, closefd=False)  # noqa: SIM115
            self._streams.append(Stream(name, self._output, before, fd))
        return self._streams

    def _output(self) -> RequestOutput | None:
        return self.shell.output

    def forked(self) -> None:
        """In a process that forked off: its output is read by the engine, as any child's.

        The request's own is the engine's, and nobody here would take it further.
        """
        self.shell.output = None
        asking.set(None)
        for stream in self._streams:
            stream.forked()

    def _call(self, function: Callable[[], None]) -> None:
        self._calling = True
        self._due = False
        try:
            function()
        except BaseException:
            # the functions report their own failures; this is an interrupt that came late
            log.exception("an interrupt or error outside of any request")
        finally:
            self._calling = False

    def interruptibly(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that is no request and that an interrupt may end all the same; on the
        engine's thread."""
        try:
            self.let_in(interrupts=True)
            return function(*args)
        finally:
            self.let_in(interrupts=False)

    def _run(self, task: Task, before: Callable[[str], None] | None = None) -> None:
        self._due = False
        if not self.tasks.begin(task):
            return
        request = task.request
        if before is not None:
            before(request.msg_id)
        output = RequestOutput(partial(self.tasks.say, task), self._flusher)
        self.shell.output = output
        before_it = asking.set(weakref.ref(output))
        reply = Reply(request.msg_id, "ok", self.key)
        failure: BaseException | None = None
        process = os.getpid()
        try:
            self.let_in(interrupts=True)
            if request.kind == "apply":
                self._apply(request, reply)
            else:
                failure = self._execute(request, reply)
            self.let_in(interrupts=False)
        except BaseException as error:
            # again: an interrupt may come as late as above, in place of the result
            self.let_in(interrupts=False)
            failure = error
        if os.getpid() != process:
            _end_of_fork(failure)
        if failure is not None:
            reply.status = "error"
            reply.result = None
            rendered = self.shell.take_traceback(failure)
            info = self._engine_info(request)
            reply.content = describe_failure(failure, info, self.shell, rendered)
            failure = None  # whose traceback has this frame, and so all that the request made
        if reply.status == "error" and request.kind == "execute":
            output.emit("error", reply.content)
        self.shell.print_traceback()
        for drain in self._drain:
            drain()
        reply.outputs = output.end()
        self.shell.output = None
        asking.reset(before_it)
        reply.started = task.record.started
        reply.completed = time.time()
        if reply.status == "error" and request.kind == "execute" and not request.content["silent"]:
            reply.content["failures"] = self.tasks.count_failure(request.header.get("client"))
        self.tasks.finish(task, reply)

    # -- running one -----------------------------------------------------------

    def _apply(self, request: Request, reply: Reply) -> None:
        shell = self.shell
        scope = shell.user_ns
        # the frames of a handle were filled in by the backend before it submitted
        copy = request.header.get("copy", True)
        natives = {}
        if request.natives:
            natives = {token: partial(n.resolve, copy) for token, n in request.natives.items()}
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
        if type(result) in SCALARS or not inspect.isawaitable(result):
            return result
        from IPython.core.async_helpers import get_asyncio_loop

        async def wait() -> Any:
            return await result

        return get_asyncio_loop().run_until_complete(wait())

    def _execute(self, request: Request, reply: Reply) -> BaseException | None:
        content = request.content
        shell = self.shell
        result: Any = shell.run_cell(
            content["code"],
            store_history=content.get("store_history", not content["silent"]),
            silent=content["silent"],
        )
        # of the last cell that was counted, as ipykernel's: a silent one has no count
        count = shell.execution_count - 1
        reply.content = {"execution_count": count, "silent": content["silent"]}
        failure: BaseException | None = result.error_before_exec or result.error_in_exec
        return failure

    def _engine_info(self, request: Request) -> dict[str, Any]:
        return {"engine_uuid": self.key, "engine_id": self.id, "method": request.kind}

    def publish_data(self, data: dict[str, Any]) -> None:
        """Send a dict as output of the running request."""
        if self.shell.output is not None:
            frames = copied(serialize.dumps(data, name="the published data"))
            self.shell.output.emit("data", {"frames": frames})

    # -- interrupts ------------------------------------------------------------

    def let_in(self, *, interrupts: bool) -> None:
        """Whether interrupts are for what runs now, on the engine's thread.

        Raises
        ------
        KeyboardInterrupt
            When they are, and one has come since the request was begun: from then on it cannot be
            taken back, and whoever was told so interrupts it.
        """
        if self.own_process:
            # Python's own handler leaves no frame in the user's traceback
            handler = signal.default_int_handler if interrupts else self._not_yet
            set_handler(signal.SIGINT, handler)
        self._interruptible = interrupts
        if interrupts and self._due:
            self._due = False
            raise KeyboardInterrupt

    def _not_yet(self, signum: int, frame: types.FrameType | None) -> None:
        """The handler of SIGINT while there is no user code to interrupt."""
        self._due = True

    def interrupt(self) -> None:
        """Interrupt what runs, from another thread, where there is no signal to do it."""
        import ctypes

        if not self._interruptible:
            self._due = True
        elif self.thread_id is not None:
            thread = ctypes.c_ulong(self.thread_id)
            error = ctypes.py_object(KeyboardInterrupt)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, error)

    def describe(self) -> dict[str, Any]:
        """What a registry wants to know: ``key``, ``pid``, ``host``, ``own_process``."""
        return {
            "key": self.key,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "own_process": self.own_process,
        }


def _forked() -> None:
    engine = current_or_none()
    if engine is not None:
        engine.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _end_of_fork(failure: BaseException | None) -> NoReturn:
    """End a process that a request forked off, and that has come to the request's end.

    Else it went on as the engine, by the connections that it shares with the engine itself.
    """
    code: Any = 0
    if isinstance(failure, SystemExit):
        code = failure.code or 0
    elif failure is not None:
        code = 1
        with contextlib.suppress(Exception), open(2, "w", closefd=False) as stderr:
            traceback.print_exception(failure, file=stderr)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os._exit(code & 0xFF if isinstance(code, int) else 1)

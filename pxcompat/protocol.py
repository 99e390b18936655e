"""The seam: what the facade and a backend say to each other.

The facade (``client``, ``view``, ``dispatch``) makes futures and sends
:class:`Request` objects to a :class:`Backend`.  The backend reports what happens to an
:class:`EventSink`, which ``dispatch`` implements.  Nothing of Dask or Ray crosses this
border, and this module imports no sibling, so that it can be read on its own.

What every backend promises; each clause is a test in ``tests/conformance``:

1. Requests of one client to one engine run in the order sent, one at a time.
2. A request gets exactly one reply, or its engine's ``engine_down`` comes first.
3. A request runs at most once.
4. A queued request can be cancelled and then never runs; a running one can be
   interrupted by a signal, on the engine's main thread where the backend started the
   engine (see :class:`Capabilities`), and what is queued behind it survives.
5. Output is captured per request, numbered from 0, delivered while the request runs, and
   ``Reply.outputs`` says how many events there were, so that nobody waits for more.
6. A large value for N engines leaves the client once (:meth:`Backend.put`).
7. Two clients coexist in one process; a second client sees the same engines and ids.
8. A closed client leaves no thread, process, socket or temporary file behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

__all__ = [
    "Backend",
    "Capabilities",
    "EngineInfo",
    "EventSink",
    "Fate",
    "Frames",
    "Handle",
    "LargeResult",
    "LaunchSpec",
    "Launched",
    "OutputEvent",
    "Part",
    "Provider",
    "Reply",
    "Request",
]

#: A pickled object: the pickle itself first, then its out-of-band buffers, uncopied.
Frames = list[bytes | bytearray | memoryview]

#: What became of a request, and the key of its engine; see :meth:`EventSink.fates`.
Fate = tuple[str, str | None]


@runtime_checkable
class Handle(Protocol):
    """Frames that a backend holds inside the cluster, made by :meth:`Backend.put`.

    The value is dropped when the last reference to the handle goes.
    """

    nbytes: int


class LargeResult(Protocol):
    """A result that stays in the cluster until it is asked for, or nobody refers to it."""

    nbytes: int

    def fetch(self, *, copy: bool = True) -> Frames:
        """The frames, brought to this process.

        With ``copy`` they are this process's alone, and writable; without, they may be memory
        that it shares, for one who is soon done with them.

        Raises
        ------
        pxcompat.error.EngineError
            When what held them is gone.
        """


@dataclass(slots=True)
class Request:
    """One thing for one engine to do.

    Attributes
    ----------
    msg_id
        Unique in the cluster; ipyparallel's ``msg_id``.
    kind
        ``"apply"``: call ``function`` with ``arguments``;
        ``"execute"``: run ``content["code"]`` in the engine's IPython shell.
    label
        What a person should read in a dashboard: the function's name, ``push:a,b``, or
        the first line of the code.
    content
        ``execute`` only: ``code`` (str), ``silent`` (bool), ``store_history`` (bool).
        ``apply`` only: ``map`` (bool), True when ``function`` is to be mapped over
        the sequences in ``arguments`` and the list of results returned.
    function, arguments
        ``apply`` only: the pickled callable, and the pickled ``(args, kwargs)``.
        Pickled apart, so that one function serves a whole map or fan-out.
    header
        Small and plain (msgpack-able), kept in the engine's record of the request:
        ``client`` (session id), ``submitted`` (POSIX seconds), and whatever
        the facade wants back from the record (``after``, ``follow``, ``retries`` ...).
        ``copy`` False: buffers in ``arguments`` may be read-only, and shared.
        ``shared`` True, with that: they are put, also for one engine, and take memory once
        where the backend has memory that engines share.
    natives
        ``apply`` only: what ``function`` and ``arguments`` refer to by token and is resolved on
        the engine.  Of the client's side, what :meth:`Backend.accept` and :meth:`Backend.keep`
        gave; on the engine objects with ``resolve(copy)``, called on the engine's thread,
        whose value may be shared and read-only where ``copy`` is False.
    """

    msg_id: str
    kind: Literal["apply", "execute"]
    label: str
    content: dict[str, Any] = field(default_factory=dict)
    function: Frames | Handle | None = None
    arguments: Frames | Handle | None = None
    header: dict[str, Any] = field(default_factory=dict)
    natives: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The request's name in a dashboard, as ``px:apply:get_norms``."""
        return f"px:{self.kind}:{self.label}"


@dataclass(slots=True)
class OutputEvent:
    """One piece of a request's output.

    Attributes
    ----------
    seq
        Number of the event within its request, from 0; -1 when that had ended already.
    type
        ``"stream"`` (content ``name``, ``text``), ``"display_data"``,
        ``"update_display_data"`` and ``"execute_result"`` (Jupyter's message contents:
        ``data``, ``metadata``, ``transient``, ``execution_count``), ``"clear_output"``
        (``wait``), ``"progress"`` (``done``: items of a map so far), ``"error"``
        (``ename``, ``evalue``, ``traceback``, ``engine_info``),
        ``"data"`` (``frames``: a pickled dict published with ``datapub``) and
        ``"comm"`` (a widget's message: ``msg_type``, ``comm_id``, ``data``, ``metadata``,
        ``buffers``; it may come when the request has ended).
    """

    seq: int
    type: str
    content: dict[str, Any]


@dataclass(slots=True)
class Reply:
    """The end of a request.

    Attributes
    ----------
    status
        ``"ok"``, ``"error"`` or ``"aborted"`` (cancelled before it started).
    engine
        Key of the engine that ran it; None when none did.
    started, completed
        POSIX seconds on the engine's clock; None when it did not run.
    result
        ``apply``, ok: the pickled return value, or what fetches it.
    content
        ``execute``, ok: ``execution_count`` and ``execute_result`` (or None).
        ``error``: ``ename``, ``evalue``, ``traceback`` (list of str), ``engine_info``.
    outputs
        How many output events the request had.
    """

    msg_id: str
    status: Literal["ok", "error", "aborted"]
    engine: str | None = None
    started: float | None = None
    completed: float | None = None
    result: Frames | LargeResult | None = None
    content: dict[str, Any] = field(default_factory=dict)
    outputs: int = 0


@dataclass(slots=True)
class EngineInfo:
    """An engine, as every client of its cluster sees it.

    Attributes
    ----------
    key
        The engine's uuid; ipyparallel's ``engine_uuid``.
    id
        The integer that ``rc[id]`` takes; rises, never given to another engine of its
        cluster, but to the successors of a restarted one.
    own_process
        Whether the engine has a process, and so a main thread and signals, to itself.
    name
        What :meth:`Backend.start_engines` called it: its key, or, after restarts, the key
        of the first engine that had its id.
    """

    key: str
    id: int
    pid: int
    host: str
    address: str = ""
    own_process: bool = True
    name: str = ""

    def __post_init__(self) -> None:
        self.name = self.name or self.key


@dataclass(frozen=True, slots=True)
class Part:
    """A value that an engine has set aside, to be part of a collection.

    Attributes
    ----------
    key, engine
        The engine's uuid and id.
    token
        What it is called in :attr:`pxcompat.engine.runtime.Engine.aside`.
    description
        See :func:`pxcompat.engine.parts.set_aside`.
    """

    key: str
    engine: int
    token: str
    description: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Where backends differ, declared; never asked by the name of a backend.

    Attributes
    ----------
    start_engines
        Whether :meth:`Backend.start_engines` can add engines to this cluster.
    restart_engines
        Whether :meth:`Backend.restart_engines` can put new engines in the place of old ones.
    dask_workers
        Whether engines are Dask workers, and :attr:`Backend.native` a ``distributed.Client``.
    signals
        Whether any signal can be sent to an engine's process.  Otherwise an interrupt
        (SIGINT) is delivered between two bytecodes, best effort, and others are refused.
    credentials
        Whether clients prove themselves with credentials of the cluster's own, which its
        connection file holds.  Otherwise with the user's, or not at all.
    grows
        Whether the cluster may grow because balanced calls wait, so that they may be sent
        while it has no engine.
    mpi
        Whether :meth:`Backend.start_engines` can make engines the ranks of an MPI world.
    put_threshold
        Values of at least so many bytes are worth :meth:`Backend.put` when they
        go to more than one engine.
    collections
        What a view's ``gather(to=...)`` calls the backend's own collections; empty where it
        has none.
    """

    start_engines: bool = True
    restart_engines: bool = True
    dask_workers: bool = False
    signals: bool = True
    credentials: bool = False
    grows: bool = False
    mpi: bool = False
    put_threshold: int = 1 << 20
    collections: str = ""


class EventSink(Protocol):
    """What a backend reports to.  Thread-safe; implemented by ``dispatch``.

    Attributes
    ----------
    session
        The client's id: ``header["client"]`` of its requests, and what their msg_ids begin
        with, up to the last ``_``.
    """

    session: str

    def engine_up(self, info: EngineInfo) -> None:
        """An engine is ready for requests.  Also said of every engine found at ``open``.

        Of a restarted engine, ``engine_down`` of its predecessor comes first."""

    def engine_down(self, key: str, reason: str) -> None:
        """An engine is gone, with everything in it; nothing more will come from it."""

    def engines_starting(self) -> None:
        """Somebody starts engines.  Those of them that end before they are ready are said to be
        gone after this."""

    def sent(self, msg_id: str) -> None:
        """The request's buffers have left and may be reused by their owner."""

    def started(self, msg_id: str, key: str) -> None:
        """A balanced request began to run on this engine."""

    def output(self, msg_id: str, event: OutputEvent) -> None:
        """A piece of output."""

    def reply(self, reply: Reply) -> None:
        """A request ended."""

    def fates(self, msg_ids: Sequence[str]) -> dict[str, Fate]:
        """What has become of this client's requests, for others who wait for them: ``held`` while
        it has no final reply, then ``ok``, ``error`` or ``aborted``; and the key of the engine
        where it ended, if it got to one."""

    def disconnected(self, reason: str) -> None:
        """The whole cluster is out of reach; no request outstanding will be answered."""


class Backend(Protocol):
    """One client's connection to one cluster of engines.

    Every method is thread-safe.  None but ``open`` and ``close`` blocks for longer than
    it takes to hand work to the backend's own thread; what takes time returns a
    :class:`concurrent.futures.Future`.
    """

    name: str
    capabilities: Capabilities

    def open(self, sink: EventSink, *, timeout: float) -> None:
        """Connect and report the engines that exist.

        Raises
        ------
        TimeoutError
            When the cluster does not answer, naming the stage that failed.
        """

    def close(self, *, timeout: float = 5) -> None:
        """Disconnect and leave nothing behind.  Idempotent."""

    def start_engines(
        self, n: int, *, mpi: Sequence[str] | None = None, env: Mapping[str, str] | None = None
    ) -> Future[list[str]]:
        """Start ``n`` more engines; resolves to their names once they were launched.

        With ``mpi`` they are the ranks of an MPI world of their own, in the order of their ids.
        It is the command that starts the ranks, without the program that each of them is:
        ``["mpiexec", "-n", "4"]``.  A world ends whole: with its first rank that ends.
        ``env`` is added to their environment, and to that of those that are started in their
        places.
        """

    def stop_engines(self, keys: Sequence[str], *, force: bool = False) -> Future[None]:
        """Shut engines down after what is queued now; at once when ``force``.

        With a rank of an MPI world the others are shut down, too."""

    def restart_engines(self, keys: Sequence[str]) -> Future[list[str]]:
        """End engines at once, whatever they run or have queued, and start others with the
        same ids; resolves to the keys of those, in order, once they were launched.

        With a rank of an MPI world all are restarted, in a new world; theirs come last."""

    def stop_cluster(self) -> Future[None]:
        """Shut the whole cluster down."""

    def send(self, key: str, requests: Sequence[Request]) -> None:
        """Queue requests on one engine.  Never blocks on their execution.

        This and :meth:`send_balanced` are not interrupted by signals: see
        ``pxcompat.engine.interrupts``.
        """

    def send_balanced(self, requests: Sequence[Request], candidates: Sequence[str] | None) -> None:
        """Let the backend's own scheduler place each request on one of ``candidates``
        (None: any engine, present or future)."""

    def awaited(self) -> AbstractContextManager[object]:
        """A block in which this thread sends what it is about to wait for.

        A backend for which it is quicker may deal with replies that come at once on this thread, as
        the block ends.  It takes some milliseconds longer for that at most.
        """

    def cancel(self, key: str | None, msg_ids: Sequence[str]) -> Future[list[str]]:
        """Keep requests that have not started from ever running.

        ``key`` is None for balanced requests.  Each request prevented is answered with an
        ``aborted`` reply; the future resolves to their ids.
        """

    def signal(self, key: str, signum: int) -> Future[None]:
        """Send a signal to an engine's process."""

    def control(self, key: str | None, op: str, args: Mapping[str, Any]) -> Future[Any]:
        """Ask an engine (or, with None, the cluster's controller) something that does not
        wait for the engine's running request.  Of an engine: ``status``, ``query``, ``purge``,
        ``attach``, ``recall``, ``resubmitted`` and ``cancel``, answered by
        :class:`pxcompat.engine.runtime.Engine`; of the controller: ``unassigned``, and
        ``fates``: what clients that are there say of requests of theirs (see
        :meth:`EventSink.fates`)."""

    def put(self, frames: Frames, keys: Sequence[str]) -> Handle:
        """Upload once what several engines will read."""

    def accept(self, obj: Any) -> Any:
        """What stands in :attr:`Request.natives` for an object of a type that was registered
        with :func:`pxcompat.serialize.register_native`: a future of the backend's own.

        Keeps the object alive for as long as it exists itself.

        Raises
        ------
        pxcompat.error.EngineError
            When the object is of another cluster, or lost.
        """

    def take_apart(self, obj: Any, keys: Sequence[str], *, copy: bool) -> Sequence[Any] | None:
        """A collection of the backend's own as one native for each engine: its contiguous part,
        computed there.  None when the object is none.

        Without ``copy`` a part may be shared with whoever else has the collection's blocks.

        Raises
        ------
        pxcompat.error.EngineError
            When it is of another cluster.
        ValueError
            When it cannot be had in so many parts.
        """

    def put_together(self, name: str, parts: Sequence[Part]) -> Any:
        """A collection of the backend's own over what engines have set aside; lazy, and of a
        known size.  Copies nothing.

        Raises
        ------
        ValueError
            When the parts do not fit together.
        """

    def reference(self, name: str, key: str, engine: int, keep: Callable[[Any], Any]) -> Any:
        """A name of an engine, a :class:`pxcompat.objects.RemoteReference`, which may stand in
        the backend's own graphs and tasks, too.

        ``keep(reference)`` has the engine put the value aside, as :meth:`keep` does.
        """

    def keep(self, key: str, request: Request, *, uses: int | None) -> Any:
        """Send a request whose result stays in the cluster, for :attr:`Request.natives` of
        others.

        It is queued as any other; nothing is reported of it.  Those that resolve it wait for
        it, and have its error.  The result is dropped after so many ``uses``, at the latest
        when what is returned here is no longer referred to.

        Raises
        ------
        pxcompat.error.EngineError
            When the engine is gone.
        """

    @property
    def dashboard_link(self) -> str:
        """URL of the cluster's dashboard, or ``""``."""

    @property
    def native(self) -> Any:
        """The engine's own client object (``distributed.Client`` ...)."""

    def native_client(self) -> Any:
        """Another such object for the same cluster, the caller's to close."""


@dataclass(slots=True)
class LaunchSpec:
    """How a cluster is to be started.

    Attributes
    ----------
    n
        Engines to start.
    host
        Interface to listen on; loopback unless the user said otherwise.
    cwd, path, env
        Working directory, ``sys.path`` additions and environment changes of the engines.
    log_dir
        Folder for one log file a process; None: a temporary one that goes with the cluster.
    lasting
        Whether the cluster is meant to outlive whoever asked for it, as `pxcluster`'s is.
    options
        The backend's own settings, as its config class defines them.
    first
        Engines that will be asked for as soon as the cluster is there.  A backend may start them at
        once; their keys are in ``info["first"]`` then.
    """

    n: int
    host: str = "127.0.0.1"
    cwd: str | None = None
    path: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    log_dir: str | None = None
    lasting: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    first: int = 0


class Launched(Protocol):
    """A cluster that this process started, and that ends with this process."""

    #: what :meth:`Provider.connect` needs, JSON-able: at least ``backend`` and ``address``
    info: dict[str, Any]

    def poll(self) -> str | None:
        """None while the cluster runs; else why it ended."""

    def wait(self, timeout: float | None = None) -> str | None:
        """Wait for the cluster's end; what :meth:`poll` would say then."""

    def stop(self, *, timeout: float = 10) -> None:
        """End every process of the cluster.  Idempotent."""


class Provider(Protocol):
    """What a backend package offers: the module-level ``provider`` of
    ``pxcompat.backends.<name>``, imported when it is chosen."""

    name: str
    #: names of its own settings: what ``c.<Name>Backend`` may set, and further keywords of a Client
    options: Sequence[str]
    #: those of them that say nothing where somebody else runs the cluster
    starting: Sequence[str]

    def launch(self, spec: LaunchSpec, *, timeout: float) -> Launched:
        """Start a controller and ``spec.n`` engines as children of this process.

        Returns once the controller answers; engines register as they come.  Raises
        :class:`pxcompat.error.BackendError` naming the stage and the log's last lines.
        """

    def connect(self, info: Mapping[str, Any]) -> Backend:
        """A backend, not yet open, for the cluster that ``info`` describes."""

    def adopt(self, target: Any, *, n: int | None = None, **options: Any) -> Backend | None:
        """A backend for a cluster that somebody else runs: an address or the engine's own
        client or cluster object; with None whatever this process is connected to already.

        ``n`` engines are started there (None: one for each CPU) by a backend that does not find
        them.  None when ``target`` is none of this backend's."""

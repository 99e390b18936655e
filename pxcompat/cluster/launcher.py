"""What ``Cluster.controller`` and ``Cluster.engines`` hold: handles of running things.

They stand where ipyparallel has its launchers, and offer what code reads from those: a
``state``, ``running``, ``n``, ``get_output()``.  How processes are started is the backend's
business, so there is one class of each, and :func:`find_launcher_class` knows only these.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import psutil
from traitlets.config import Config

from .. import backends
from ..error import BackendError
from ..protocol import Backend, Launched, LaunchSpec
from .connection import Connection, StaleConnectionFile, read, remove, update, write
from .mpi import MPIEngineSetLauncher, world_command
from .watch import EngineWatch

__all__ = [
    "Controller",
    "EngineSet",
    "LocalControllerLauncher",
    "LocalEngineSetLauncher",
    "LocalProcessLauncher",
    "MPIEngineSetLauncher",
    "Plan",
    "find_launcher_class",
    "launch",
]

State = Literal["running", "after"]
T = TypeVar("T")

#: Bytes of a log file's end that are shown.
LOG_LIMIT = 1 << 18
#: Seconds for an engine or a cluster to end when it was told to.
STOP_TIMEOUT = 20


@dataclass
class Plan:
    """A cluster to be started, JSON-able so that a daemon can be told.

    ``path`` is the connection file to write, or "" for none; ``timeout`` is in seconds.
    """

    backend: str
    spec: LaunchSpec
    cluster_id: str
    profile: str
    profile_dir: str
    path: str
    timeout: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Plan:
        return cls(**{**content, "spec": LaunchSpec(**content["spec"])})


class Controller:
    """A running cluster, seen from a process that does not own it.

    Attributes
    ----------
    connection : Connection
        How it is reached.
    path : Path or None
        Its connection file.
    config : Config
        The configuration of the Cluster it belongs to.
    """

    def __init__(self, connection: Connection, path: Path | None, log: Any) -> None:
        self.connection = connection
        self.path = path
        self.log = log
        self.config = Config()
        self.watch = EngineWatch()
        #: keys of engines that were started with the cluster, until they are asked for
        self.first: list[str] = []
        self._backend: Backend | None = None
        #: log files as they were read last, by name: they go when the cluster stops
        self._read: dict[str, str] = {}
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}({self.connection.backend}, {self.state})>"

    def take_first(self) -> list[str]:
        """Keys of the engines that were started with the cluster; they are asked for once."""
        first, self.first = self.first, []
        return first

    @property
    def state(self) -> State:
        """``"running"``, or ``"after"`` when it ended."""
        if self.path is None:
            return "running" if not self.watch.lost else "after"
        try:
            same = read(self.path).is_same(self.connection)
        except (FileNotFoundError, StaleConnectionFile):
            return "after"
        return "running" if same else "after"

    @property
    def running(self) -> bool:
        return self.state == "running"

    @property
    def pid(self) -> int:
        """The controller's process."""
        return int(self.connection.info.get("pid", self.connection.pid))

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.pid)

    def get_connection_info(self) -> dict[str, Any]:
        """What a client needs to connect, credentials included."""
        return {"client": self.connection.to_dict()}

    def get_output(self, remove: bool = False) -> str:
        """The log files of the controller's processes."""
        return self.output(lambda name: not name.startswith("engine"), remove)

    def output(self, wanted: Callable[[str], bool], remove: bool = False) -> str:
        """The ends of the log files whose names are wanted, of a stopped cluster too."""
        folder = Path(self.connection.info.get("logs") or os.devnull)
        for path in folder.glob("*.log"):
            if wanted(path.name):
                self._read[path.name] = _end_of(path)
                if remove:
                    path.unlink(missing_ok=True)
        return "\n".join(
            f"{name}:\n{text}" for name, text in sorted(self._read.items()) if wanted(name)
        )

    def backend(self, timeout: float) -> Backend:
        """The control connection, opened on first use."""
        with self._lock:
            if self._backend is None:
                backend = backends.get(self.connection.backend).connect(self.connection.info)
                try:
                    backend.open(self.watch, timeout=timeout)
                except BaseException:
                    backend.close()
                    raise
                self._backend = backend
            return self._backend

    def change_file(self, change: Callable[[Connection], object]) -> None:
        """Change the connection and its file."""
        change(self.connection)
        if self.path is not None:
            update(self.path, self.connection, change)

    def disconnect(self) -> None:
        """Close the control connection; the cluster goes on."""
        with self._lock:
            if self._backend is not None:
                self._backend.close()
                self._backend = None

    def stop(self, *, timeout: float = STOP_TIMEOUT) -> None:
        """End the cluster.  Idempotent."""
        if not self.running:
            self.disconnect()
            return
        if self.connection.dedicated and self.connection.owner() is not None:
            self.disconnect()
            self._terminate_owner(timeout)
        else:
            # Its owner has other things to do than to hold the cluster: it must live.
            self._ask_to_stop(timeout)
        if self.path is not None:
            remove(self.path, self.connection)

    def _terminate_owner(self, timeout: float) -> None:
        """End the owner; if need be by force, as its cluster notices that however it comes."""
        for end in (psutil.Process.terminate, psutil.Process.kill):
            if (owner := self.connection.owner()) is None:
                return
            with contextlib.suppress(psutil.NoSuchProcess):
                end(owner)
            deadline = time.monotonic() + timeout
            # not psutil's wait(), for which one that its parent does not reap never ends
            while self.connection.owner() is not None and time.monotonic() < deadline:
                time.sleep(0.02)
            if self.connection.owner() is None:
                return
            self.log.warning("Process %s does not end within %g s", owner.pid, timeout)
        raise BackendError(f"process {self.connection.pid}, which holds the cluster, does not end")

    def _ask_to_stop(self, timeout: float) -> None:
        # where the controller is no process of its own, nothing is to end but what it answers for
        pid = self.connection.info.get("pid") if self.connection.local else None
        pids = [pid] if pid is not None and psutil.pid_exists(pid) else []
        controllers = [psutil.Process(pid) for pid in pids]
        try:
            result(self.backend(timeout).stop_cluster(), "stop", timeout)
        finally:
            self.disconnect()
        deadline = time.monotonic() + timeout
        # psutil's wait() would wait for its parent to reap it, too
        while any(map(_is_alive, controllers)) and time.monotonic() < deadline:
            time.sleep(0.02)


class OwnController(Controller):
    """A cluster that this process started, and that ends with it."""

    def __init__(
        self, connection: Connection, path: Path | None, log: Any, launched: Launched
    ) -> None:
        super().__init__(connection, path, log)
        self._launched = launched
        self._stopping = False
        #: set when the cluster has ended
        self.ended = threading.Event()
        self._watcher = threading.Thread(
            target=self._watch_end, name="pxcompat-cluster", daemon=True
        )

    @property
    def state(self) -> State:
        return "running" if self._launched.poll() is None else "after"

    def start_watching(self) -> None:
        _owned.add(self)
        self._watcher.start()

    def stop(self, *, timeout: float = STOP_TIMEOUT) -> None:
        if self.connection.pid != os.getpid():
            return  # a fork of the owner
        with self._lock:
            died = self._launched.poll() is not None and not self._stopping
            self._stopping = True
            self.disconnect()
            self._launched.stop(timeout=timeout)
            self._forget()
            # the logs of a cluster that died are left for whoever asks why
            self.output(lambda name: True, remove=not died)
            with contextlib.suppress(OSError):  # there is something in it, or no such folder
                os.rmdir(self.connection.info.get("logs") or "")
        if threading.current_thread() is not self._watcher:
            self._watcher.join(timeout)

    def stop_in_background(self) -> None:
        """Stop, called where nothing may block: by the garbage collector."""
        if self._launched.poll() is None:
            threading.Thread(target=self.stop, name="pxcompat-cluster-end", daemon=True).start()

    def _watch_end(self) -> None:
        reason = self._launched.wait() or "it ended"
        if not self._stopping:
            self.log.warning("The cluster ended by itself: %s", reason)
            self._forget()  # first, so that nobody is sent there any more
            self.watch.disconnected(reason)
            self.disconnect()
        self.ended.set()

    def _forget(self) -> None:
        _owned.discard(self)
        if self.path is not None:
            remove(self.path, self.connection)


class EngineSet:
    """Engines that were started together.

    Attributes
    ----------
    engine_set_id : str
        Its key in ``Cluster.engines``.
    names : list of str
        The engines' names: their uuids, or, of restarted ones, those of the first in their
        places.
    mpi : list of list of str or None
        Where they are an MPI world: the command that starts its ranks, before and after their
        number.
    """

    def __init__(
        self,
        controller: Controller,
        engine_set_id: str,
        names: list[str],
        mpi: list[list[str]] | None = None,
    ) -> None:
        self.controller = controller
        self.engine_set_id = engine_set_id
        self.names = names
        self.mpi = mpi

    def __repr__(self) -> str:
        return f"<EngineSet({self.engine_set_id!r}, n={self.n}, {self.state})>"

    @property
    def n(self) -> int:
        """How many engines were started."""
        return len(self.names)

    @property
    def state(self) -> State:
        return self.controller.state

    @property
    def running(self) -> bool:
        return self.controller.running

    def record(self) -> None:
        """Write the set into the connection file, for whoever looks from outside."""

        def change(file: Connection) -> None:
            file.engines[self.engine_set_id] = self.names
            if self.mpi is not None:
                file.mpi[self.engine_set_id] = self.mpi

        self.controller.change_file(change)

    def forget(self) -> None:
        """Take the set out of the connection file."""

        def change(file: Connection) -> None:
            file.engines.pop(self.engine_set_id, None)
            file.mpi.pop(self.engine_set_id, None)

        self.controller.change_file(change)

    def start(
        self, backend: Backend, n: int, timeout: float, env: Mapping[str, str] | None = None
    ) -> list[str]:
        """Have the backend start ``n`` engines of this kind; their names.

        ``env`` is added to their environment.

        Raises
        ------
        BackendError
            When it cannot.
        """
        if self.mpi is not None and not backend.capabilities.mpi:
            raise BackendError(
                f"engines of this {backend.name} cluster cannot be an MPI world, as pxcompat did"
                " not start it: start one with Cluster(engines='mpi') or `pxcluster start"
                " --engines=mpi`"
            )
        command = None if self.mpi is None else world_command(self.mpi, n)
        env = {name: str(value) for name, value in (env or {}).items()}
        starting = backend.start_engines(n, mpi=command, env=env)
        names = result(starting, "start engines", timeout)
        return list(names)  # Dask's messages have tuples

    def get_output(self, remove: bool = False) -> str:
        """The log files of these engines."""
        return self.controller.output(self._is_mine, remove)

    def _is_mine(self, file: str) -> bool:
        return any(file.startswith(f"engine-{name[:8]}") for name in self.names)


#: ipyparallel's names of the launchers that start processes on this machine
LocalControllerLauncher = LocalProcessLauncher = Controller
LocalEngineSetLauncher = EngineSet


def find_launcher_class(
    name: str, kind: str = "engine"
) -> type[Controller] | type[EngineSet] | type[MPIEngineSetLauncher]:
    """The class that stands for ipyparallel's launcher of that name.

    Parameters
    ----------
    name : str
        ``"local"``; processes are started by the backend.  Of engines also ``"mpi"``.
    kind : str
        ``"controller"`` or ``"engine"``.
    """
    if name.lower() == "mpi" and kind == "engine":
        return MPIEngineSetLauncher
    if name.lower() != "local":
        raise ValueError(
            f"pxcompat has no launcher {name!r}: its backend starts the engines."
            " Choose where with backend=..., or connect to a cluster that runs there already."
        )
    return Controller if kind == "controller" else EngineSet


def launch(plan: Plan, log: Any, *, dedicated: bool = False) -> OwnController:
    """Start a controller in this process, and say so in its connection file.

    Raises
    ------
    AlreadyRunning
        When another process of the same profile and cluster_id was quicker.
    BackendError
        When it does not start.
    """
    launched = backends.get(plan.backend).launch(plan.spec, timeout=plan.timeout)
    first = launched.info.pop("first", [])
    try:
        connection = Connection(
            backend=plan.backend,
            info=launched.info,
            cluster_id=plan.cluster_id,
            profile=plan.profile,
            profile_dir=plan.profile_dir,
            dedicated=dedicated,
        )
        path = Path(plan.path) if plan.path else None
        if path is not None:
            write(path, connection, new=True)
    except BaseException:
        launched.stop()
        raise
    controller = OwnController(connection, path, log, launched)
    controller.first = first
    controller.start_watching()
    return controller


def result(future: Future[T], what: str, timeout: float) -> T:
    """What a backend's future gives, or which of our requests was not answered."""
    try:
        return future.result(timeout)
    except (TimeoutError, futures.TimeoutError):  # one and the same from Python 3.11 on
        raise BackendError(f"the cluster did not {what} within {timeout:g} s") from None


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _end_of(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_LIMIT))
        return file.read().decode(errors="replace")


#: clusters of this process; their connection files must not outlive it
_owned: set[OwnController] = set()


def _stop_owned() -> None:
    for controller in list(_owned):
        if controller.connection.pid == os.getpid():
            sys.stderr.write(f"Stopping cluster {controller.connection.cluster_id!r}\n")
            controller.stop()


atexit.register(_stop_owned)

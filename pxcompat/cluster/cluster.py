"""ipyparallel's Cluster: one controller and sets of engines, started and stopped from Python."""

from __future__ import annotations

import asyncio
import difflib
import logging
import os
import random
import string
import sys
import threading
import time
import weakref
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traitlets import (
    Any as AnyTrait,
    Bool,
    Dict,
    Float,
    Integer,
    List,
    Unicode,
    default,
    observe,
    validate,
)
from traitlets.config import Application, Config, LoggingConfigurable

from .. import backends
from ..cards import cluster_card
from ..error import BackendError, InvalidEngineId, no_restart
from ..protocol import Backend, LaunchSpec
from . import connection as connections, profiles, saved
from .connection import AlreadyRunning, Connection
from .daemon import spawn
from .files import ClusterFile
from .launcher import (
    STOP_TIMEOUT,
    Controller,
    EngineSet,
    OwnController,
    Plan,
    find_launcher_class,
    launch,
    result,
)
from .mpi import MPIEngineSetLauncher
from .settings import PxCompat, backend_options, load_config
from .twins import twin

if TYPE_CHECKING:
    from ..client import Client

__all__ = ["Cluster"]

#: seconds for the news of an engine's end to come
HEARING = 2


class Cluster(ClusterFile, LoggingConfigurable):
    """A cluster of engines (ipyparallel.Cluster).

    What starts or stops something exists twice: as a coroutine, and with ``_sync`` appended
    as a method that blocks.  As a context manager a cluster starts, gives a connected
    :class:`~pxcompat.Client` once all engines are up, and stops at the end::

        with ipp.Cluster(n=4) as rc:
            rc[:].apply_sync(os.getpid)

    Parameters
    ----------
    n : int
        Engines to start; default is ``PXCOMPAT_N``, the profile's configuration, or one for
        each CPU.
    backend : str
        What the cluster runs on; default is ``PXCOMPAT_BACKEND``, the profile's
        configuration, or ``"dask"``.
    profile, profile_dir : str
        The IPython profile whose configuration is used and which the cluster is found by.
    cluster_id : str
        Tells clusters of one profile apart; default is a random string.  ``""`` is what
        ``Client()`` looks for when it is not told otherwise.
    shutdown_atexit : bool
        False leaves the cluster running, held by a process of its own, when this process
        ends.
    engines, controller : str
        ipyparallel's launchers.  ``engines="mpi"`` makes the engines the ranks of one MPI world,
        in the order of their ids.  Others are accepted; the backend starts the processes.
    """

    shutdown_atexit = Bool(
        True, help="Stop the cluster when this process ends. To be set before it starts."
    )
    cluster_id = Unicode(help="The id of the cluster.").tag(to_dict=True)
    profile = Unicode(help="The profile's name.")
    profile_dir = Unicode(help="The profile's directory.").tag(to_dict=True)
    cluster_file = Unicode(help="The connection file; '' to write none.")
    backend = Unicode(help="What the cluster runs on.", config=True).tag(to_dict=True)
    n = Integer(None, allow_none=True, min=0, config=True, help="How many engines to start.").tag(
        to_dict=True
    )
    engine_timeout = Integer(60, config=True, help="Seconds to wait for engines to register.")
    controller_ip = Unicode(
        config=True,
        help="The interface to listen on; loopback unless set, '*' for all.",
    ).tag(to_dict=True)
    dedicated = Bool(
        False,
        help="Whether this process exists only to hold the cluster: to stop it is to stop both.",
    )
    load_profile = Bool(True, config=True, help="Use the configuration of the profile.")
    log_level = Integer(logging.INFO)

    engine_launcher_class = AnyTrait(
        EngineSet,
        config=True,
        help="'mpi': the engines are the ranks of one MPI world, which c.MPILauncher starts.",
    )

    # ipyparallel's, without a meaning here
    controller_location = Unicode(config=True, help="Accepted, not used.").tag(to_dict=True)
    controller_args = List(Unicode(), config=True, help="Accepted, not used.").tag(to_dict=True)
    controller_launcher_class = AnyTrait(Controller, config=True, help="Accepted, not used.")
    delay = Float(0, config=True, help="Accepted, not used.").tag(to_dict=True)
    send_engines_connection_env = Bool(True, config=True, help="Accepted, not used.")

    #: the running controller, or None
    controller = AnyTrait()
    #: engine set id -> :class:`EngineSet`
    engines = Dict()

    def __init__(self, *, engines: Any = None, controller: Any = None, **kwargs: Any) -> None:
        for name, value in (("engine", engines), ("controller", controller)):
            if value is not None and kwargs.setdefault(f"{name}_launcher_class", value) != value:
                raise TypeError(f"give {name}_launcher_class or its shorter name, not both")
        if "parent" not in kwargs and "config" not in kwargs:
            kwargs["parent"] = _ipython()
        parent = kwargs.get("parent")
        direct = kwargs.pop("config", None) or getattr(parent, "config", None) or Config()
        own = direct.get("Cluster", {})

        self._place = profiles.find(
            kwargs.get("profile"), profile_dir=kwargs.get("profile_dir"), must_exist=False
        )
        kwargs["profile_dir"] = str(self._place.path)
        given_config = kwargs.pop("profile_config", None)
        from_profile = Config(given_config or {})
        if given_config is None and kwargs.get("load_profile", own.get("load_profile", True)):
            from_profile = load_config(self._place, "ipcluster_config", "pxcompat_config")
        given = {name: kwargs.get(name, own.get(name)) for name in ("n", "backend")}
        # n=0 is a controller alone, which only a Cluster can start
        said = {name: value for name, value in given.items() if value not in (None, 0)}
        self._settings = PxCompat.resolve(
            self._place,
            config=from_profile,
            sections=("Cluster", "PxCompat"),
            **{**direct.get("PxCompat", {}), **said},  # as a command line has it
        )
        kwargs["backend"] = self._settings.backend
        kwargs["n"] = self._settings.n if given["n"] is None else given["n"]

        #: what the profile's configuration files say
        self.profile_config = from_profile
        self._check_arguments(kwargs)
        config = Config()
        config.merge(from_profile)
        config.merge(direct)
        self._lock = threading.RLock()
        self._context_client: Client | None = None
        #: those that this object has made
        self._clients: weakref.WeakSet[Client] = weakref.WeakSet()
        self._finalizer: weakref.finalize[..., Any] | None = None
        super().__init__(**kwargs, config=config)

    def _check_arguments(self, given: Mapping[str, Any]) -> None:
        """Refuse what is no argument, of which traitlets warns where nobody sees it."""
        traits = self.class_trait_names()
        for name in given:
            if name in traits:
                continue
            backend = self._settings.backend
            close = difflib.get_close_matches(name, traits, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            if name in backends.get(backend).options:
                section = f"{backend.capitalize()}Backend"
                hint = (
                    f" It is an option of the {backend} backend: c.{section}.{name} in the"
                    f" profile's configuration, or config=Config({section}={{{name!r}: ...}})."
                )
            raise TypeError(f"Cluster() got an unexpected keyword argument {name!r}.{hint}")

    # -- traits -----------------------------------------------------------------------

    @default("cluster_id")
    def _default_cluster_id(self) -> str:
        suffix = "".join(random.choices(string.ascii_lowercase + string.digits, k=4))
        return f"{int(time.time())}-{suffix}"

    @default("cluster_file")
    def _default_cluster_file(self) -> str:
        return str(self._place.connection_file(self.cluster_id))

    @default("log")
    def _default_log(self) -> Any:
        if self.parent is not None and self.parent is not _ipython():
            return self.parent.log
        if self.parent is None and Application.initialized():
            return Application.instance().log
        log = logging.getLogger(f"{__name__}.{self.cluster_id}")
        log.setLevel(self.log_level)
        if self.parent is not None:
            # in a notebook what a cluster does belongs under the cell
            log.handlers = [logging.StreamHandler(sys.stdout)]
            log.propagate = False
        return log

    @validate("controller_launcher_class", "engine_launcher_class")
    def _launcher_class(self, proposal: Any) -> Any:
        kind = proposal.trait.name.partition("_")[0]
        ours = find_launcher_class("local", kind)
        named = proposal.value
        if kind == "engine" and (named is MPIEngineSetLauncher or _names_mpi(named)):
            return MPIEngineSetLauncher
        if isinstance(named, str) and not named.rpartition(".")[2].lower().startswith("local"):
            self.log.warning(
                "%s=%r is not used: the %s backend starts the processes, on this machine."
                " Engines elsewhere: Client(cluster), with a SLURMCluster or the like of"
                " dask-jobqueue's, or an SSHCluster of Dask's.",
                proposal.trait.name,
                named,
                self.backend,
            )
        return named if isinstance(named, type) and issubclass(named, ours) else ours

    @observe("shutdown_atexit")
    def _too_late(self, change: Any) -> None:
        if not change.new and isinstance(self.controller, OwnController):
            self.log.warning(
                "The cluster will end with this process: shutdown_atexit=False has to be set"
                " before the cluster is started."
            )

    def __repr__(self) -> str:
        fields = {"cluster_id": repr(self.cluster_id)}
        if self._place.name == str(self._place.path):
            home = str(Path.home()) + "/"
            shown = self.profile_dir
            if shown.startswith(home):
                shown = "~/" + shown.removeprefix(home)
            fields["profile_dir"] = repr(shown)
        else:
            fields["profile"] = repr(self._place.name)
        if self.controller is not None:
            fields["controller"] = f"<{self.controller.state}>"
        if self.engines:
            fields["engine_sets"] = repr(list(self.engines))
        return f"<{type(self).__name__}({', '.join(f'{k}={v}' for k, v in fields.items())})>"

    def _repr_html_(self) -> str:
        return cluster_card(self)

    # -- saving -----------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able description; :meth:`from_dict` finds the cluster again by it.

        Holds no credentials: those stay in the connection file, which it names.
        """
        return saved.describe(self)

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], **kwargs: Any) -> Cluster:
        """The cluster that :meth:`to_dict` described, as it is now."""
        return saved.from_description(cls, d, kwargs)

    @classmethod
    def from_file(
        cls,
        cluster_file: str | os.PathLike[str] | None = None,
        *,
        profile: str | None = None,
        profile_dir: str | None = None,
        cluster_id: str = "",
        **kwargs: Any,
    ) -> Cluster:
        """The running cluster that a connection file, or a profile and id, stand for.

        With no arguments: the one that ``pxcluster start`` started.

        Raises
        ------
        ConnectionFileError
            Also a FileNotFoundError when there is no such file.
        """
        place = profiles.find(profile, profile_dir=profile_dir, must_exist=False)
        path = Path(cluster_file) if cluster_file else place.connection_file(cluster_id)
        return saved.from_connection_file(cls, path, place, kwargs)

    def _attach(self, connection: Connection) -> None:
        self.controller = Controller(connection, Path(self.cluster_file), self.log)
        self.engines = {
            engine_set_id: EngineSet(
                self.controller, engine_set_id, names, connection.mpi.get(engine_set_id)
            )
            for engine_set_id, names in connection.engines.items()
        }

    # -- what it is -------------------------------------------------------------------

    @property
    def connection(self) -> Connection:
        """How the running cluster is reached."""
        connection: Connection = self._running.connection
        return connection

    @property
    def engine_set(self) -> EngineSet | None:
        """The first engine set; most clusters have no other."""
        return next(iter(self.engines.values()), None)

    def _is_running(self) -> bool:
        return self.controller is not None and self.controller.running

    @property
    def _running(self) -> Controller:
        if self.controller is None:
            raise RuntimeError(f"{self!r} is not running: call start_controller() first")
        controller: Controller = self.controller
        return controller

    def _backend(self) -> Backend:
        return self._running.backend(self._settings.timeout)

    def _key_of(self, engine_id: int) -> str:
        self._backend()
        engines = self._running.watch.engines
        for key, info in engines.items():
            if info.id == engine_id:
                return key
        there = ", ".join(str(info.id) for info in engines.values()) or "none"
        raise InvalidEngineId(f"{self!r} has no engine {engine_id}; there are: {there}")

    # -- starting ---------------------------------------------------------------------

    def start_controller_sync(self, /, **kwargs: Any) -> None:
        """Start the cluster, without engines.

        Raises
        ------
        RuntimeError
            When it is running.
        BackendError
            When it does not start.
        """
        self._start_controller(unused=kwargs)

    def _start_controller(self, first: int = 0, unused: Collection[str] = ()) -> None:
        """Start the cluster, for which ``first`` engines will be asked next."""
        with self._lock:
            if self.controller is not None:
                raise RuntimeError(f"{self!r} has a controller: call stop_controller() first")
            self._refuse_second()
            self._warn_of_unused(unused)
            if self.controller_args:
                self.log.warning(
                    "Not used, as they are for ipyparallel's ZeroMQ controller: %s",
                    " ".join(self.controller_args),
                )
            plan = self._plan(first)
            self.log.debug("Starting a %s cluster", self.backend)
            if self.shutdown_atexit:
                own = launch(plan, self.log, dedicated=self.dedicated)
                self.controller = own
                # a cluster that nobody can reach any more need not run
                self._finalizer = weakref.finalize(self, own.stop_in_background)
                self._finalizer.atexit = False
                own.config = self.config
            else:
                if not plan.path:
                    raise ValueError("a cluster that is left running needs its cluster_file")
                self._attach(spawn(plan, self._place.daemon_log(self.cluster_id)))

    def _warn_of_unused(self, arguments: Collection[str]) -> None:
        if arguments:
            self.log.warning(
                "Not used, as they are for ipyparallel's launchers: %s", ", ".join(arguments)
            )

    def _refuse_second(self) -> None:
        if self.cluster_file and (other := connections.running(self.cluster_file)):
            raise AlreadyRunning(
                f"A cluster is running already, held by process {other.pid} on {other.host}:"
                f" {self.cluster_file}. `pxcluster stop` stops it; another --cluster-id lets"
                " both run."
            )

    def _plan(self, first: int) -> Plan:
        if self.cluster_file or not self.shutdown_atexit:
            profiles.create(self._place)
        logs = self._place.engine_logs(self.cluster_id)
        for old in logs.glob("*.log"):
            old.unlink(missing_ok=True)
        return Plan(
            backend=self.backend,
            spec=LaunchSpec(
                n=0,
                # a daemon is told which engines there are to be when it runs
                first=first if self.shutdown_atexit else 0,
                host={"": "127.0.0.1", "*": "0.0.0.0"}.get(self.controller_ip, self.controller_ip),
                cwd=str(Path.cwd()),
                path=[entry for entry in sys.path if entry],
                env={"PXCOMPAT_PROFILE_DIR": self.profile_dir},
                log_dir=str(logs) if self.cluster_file else None,
                lasting=self.dedicated or not self.shutdown_atexit,
                options=backend_options(self.config, self.backend),
            ),
            cluster_id=self.cluster_id,
            profile=self._place.name,
            profile_dir=self.profile_dir,
            path=self.cluster_file,
            timeout=self._settings.start_timeout,
        )

    def start_engines_sync(
        self,
        /,
        n: int | None = None,
        engine_set_id: str | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> str:
        """Start a set of engines; its id in :attr:`engines`.

        Returns when they were started; they register as they come.  ``environment`` is added
        to that of their processes, as ipyparallel's launchers do.

        Raises
        ------
        BackendError
            When the backend cannot, or may not.
        ValueError
            When there is a set of that id.
        """
        with self._lock:
            backend = self._backend()
            if not backend.capabilities.start_engines:
                raise BackendError(
                    f"engines cannot be added to this {self.backend} cluster from here: start"
                    " them where the cluster was started"
                )
            n = self._count(n)
            if engine_set_id is None:
                engine_set_id = self._new_engine_set_id()
            elif engine_set_id in self.engines:
                raise ValueError(
                    f"there is a set of engines {engine_set_id!r}: choose another id, or stop it"
                )
            self._warn_of_unused(kwargs)
            self.log.info("Starting %s engines on %s", n, self.backend)
            mpi = None
            if self.engine_launcher_class is MPIEngineSetLauncher:
                mpi = MPIEngineSetLauncher(config=self.config).parts()
            started = EngineSet(self._running, engine_set_id, [], mpi)
            for client in list(self._clients):  # which the cluster tells, but perhaps later
                client._dispatcher.engines_starting()
            if n:  # none to start is said to no backend
                started.names = self._running.take_first()
                if not started.names:
                    patience = self._settings.start_timeout
                    started.names = started.start(backend, n, patience, environment)
                self._running.watch.expect(started.names)
            started.record()
            self.engines = {**self.engines, engine_set_id: started}
            return engine_set_id

    def _new_engine_set_id(self) -> str:
        base = str(int(time.time()))
        others = (base if i == 0 else f"{base}-{i}" for i in range(len(self.engines) + 1))
        return next(name for name in others if name not in self.engines)

    def start_cluster_sync(self, n: int | None = None) -> Cluster:
        """Start the controller and ``n`` engines; the cluster itself."""
        with self._lock:
            if self.controller is None:
                in_world = self.engine_launcher_class is MPIEngineSetLauncher
                self._start_controller(0 if in_world else self._count(n))
            self.start_engines_sync(n)
            return self

    def _count(self, n: int | None) -> int:
        """How many engines to start where ``n`` are asked for."""
        if n is not None:
            return n
        return self._settings.engines if self.n is None else self.n

    def wait_for_engines_sync(
        self,
        /,
        engine_set_id: str | None = None,
        timeout: float | None = None,
        progress: bool | None = None,
    ) -> None:
        """Wait until the engines of a set, or of every set, are up.

        Parameters
        ----------
        engine_set_id : str
            Default is every set.
        timeout : float
            Seconds; default is ``engine_timeout``.
        progress : bool
            Whether to draw a progress bar; default is unless PXCOMPAT_NONINTERACTIVE.

        Raises
        ------
        EngineError
            When one ends while it starts.
        TimeoutError
            When they are not up in time.
        """
        self._backend()
        sets = list(self.engines) if engine_set_id is None else [engine_set_id]
        self._running.watch.wait_for(
            [name for set_id in sets for name in self.engines[set_id].names],
            timeout=self.engine_timeout if timeout is None else timeout,
            progress=self._settings.progress if progress is None else progress,
        )

    def connect_client_sync(self, /, **client_kwargs: Any) -> Client:
        """A new client of this cluster."""
        from ..client import Client

        client = Client(
            self.connection.to_dict(),
            cluster=self,
            profile_dir=self.profile_dir if self._place.path.is_dir() else None,
            cluster_id=self.cluster_id,
            **client_kwargs,
        )
        self._clients.add(client)
        return client

    def start_and_connect_sync(self, n: int | None = None, activate: bool = False) -> Client:
        """Start the cluster, and give a client when all its engines are up.

        Parameters
        ----------
        activate : bool
            Also register ``%px`` and its family for a blocking view of all engines.
        """
        started = self.controller is None
        try:
            self.start_cluster_sync(n)
            client = self.connect_client_sync()
            try:
                expected = sum(engine_set.n for engine_set in self.engines.values())
                if expected:
                    client.wait_for_engines(expected, timeout=self.engine_timeout)
                if activate:
                    client.activate()
            except BaseException:
                client.close()
                raise
        except BaseException:
            if started:
                self.stop_cluster_sync()
            raise
        return client

    # -- stopping ---------------------------------------------------------------------

    def stop_engines_sync(self, engine_set_id: str | None = None) -> None:
        """Stop a set of engines, or all of them.

        Raises
        ------
        KeyError
            When there is no such set.
        """
        with self._lock:
            for set_id in list(self.engines) if engine_set_id is None else [engine_set_id]:
                engine_set = self.engines[set_id]
                self.log.info("Stopping engine(s): %s", set_id)
                if engine_set.running:
                    # else those that are still starting would come after that
                    self._running.watch.settle(engine_set.names, timeout=self.engine_timeout)
                    self._stop_keys(self._up(engine_set.names))
                    engine_set.forget()
                self.engines = {k: v for k, v in self.engines.items() if k != set_id}

    def _up(self, names: list[str]) -> list[str]:
        """Keys of those of the engines that are up."""
        self._backend()
        return self._running.watch.named(names)

    def engine_ids(self, engine_set_id: str) -> list[int]:
        """Ids of a set's engines that are up."""
        keys = self._up(self.engines[engine_set_id].names)
        engines = self._running.watch.engines
        return sorted(engines[key].id for key in keys if key in engines)

    def _stop_keys(self, up: list[str]) -> None:
        backend = self._backend()
        if up:
            result(backend.stop_engines(up, force=True), "stop its engines", STOP_TIMEOUT)
            self._running.watch.wait_gone(up, timeout=STOP_TIMEOUT)

    def stop_engine_sync(self, engine_id: int) -> None:
        """Stop one engine."""
        with self._lock:
            self._stop_keys([self._key_of(engine_id)])

    def stop_controller_sync(self) -> None:
        """Stop the controller, and with it the engines.  Idempotent."""
        with self._lock:
            if self.controller is None:
                return
            if self.controller.running:
                self.log.info("Stopping controller")
            self.controller.stop()
            if self._finalizer is not None:
                self._finalizer.detach()
                self._finalizer = None
            self.controller = None
            self.engines = {}

    def stop_cluster_sync(self) -> None:
        """Stop everything.  Idempotent."""
        self.stop_controller_sync()

    def restart_engines_sync(self, engine_set_id: str | None = None) -> None:
        """Restart a set of engines, or every set: new processes under the same ids.

        What they run or have queued fails with EngineError.  Engines of a set that have died
        before are replaced by others, under ids of their own.  Returns when they are up.

        Raises
        ------
        BackendError
            When this cluster's engines cannot be restarted from here.
        EngineError
            When one ends while it starts.
        """
        with self._lock:
            for set_id in list(self.engines) if engine_set_id is None else [engine_set_id]:
                engine_set = self.engines[set_id]
                self.log.info("Restarting engine(s): %s", set_id)
                self._running.watch.settle(engine_set.names, timeout=self.engine_timeout)
                while True:
                    keys = self._up(engine_set.names)
                    try:
                        self._restart(keys)
                        break
                    except BackendError:
                        # one may have ended of which we have not heard yet
                        if not self._running.watch.has_ended(keys, timeout=HEARING):
                            raise
                up = {self._running.watch.engines[key].name for key in self._up(engine_set.names)}
                dead = [name for name in engine_set.names if name not in up]
                if dead:
                    started = engine_set.start(
                        self._backend(), len(dead), self._settings.start_timeout
                    )
                    engine_set.names = [name for name in engine_set.names if name in up]
                    engine_set.names += started
                    engine_set.record()
                    self._await_restarted(started)

    def restart_engine_sync(self, engine_id: int) -> None:
        """Restart one engine: a new process under the same id.  Returns when it is up."""
        with self._lock:
            self._restart([self._key_of(engine_id)])

    def _restart(self, keys: list[str]) -> None:
        backend = self._backend()
        if not backend.capabilities.restart_engines:
            raise no_restart(self.backend)
        if not keys:
            return
        patience = STOP_TIMEOUT + self._settings.start_timeout
        started = result(backend.restart_engines(keys), "restart its engines", patience)
        self._await_restarted(started)

    def _await_restarted(self, names: list[str]) -> None:
        self._running.watch.wait_for(names, timeout=self.engine_timeout)
        keys = self._up(names)
        for client in list(self._clients):  # whoever goes on with one finds all of them
            if not client._closed:
                client._hear_of(keys, STOP_TIMEOUT)

    def signal_engines_sync(self, signum: int, engine_set_id: str | None = None) -> None:
        """Send a signal to the engines of a set, or to all of them."""
        with self._lock:
            backend = self._backend()
            for set_id in list(self.engines) if engine_set_id is None else [engine_set_id]:
                self.log.info("Sending signal %s to engine(s) %s", int(signum), set_id)
                for key in self._up(self.engines[set_id].names):
                    what = f"signal engine {key}"
                    result(backend.signal(key, int(signum)), what, STOP_TIMEOUT)

    def signal_engine_sync(self, signum: int, engine_id: int) -> None:
        """Send a signal to one engine."""
        with self._lock:
            key = self._key_of(engine_id)
            what = f"signal engine {engine_id}"
            result(self._backend().signal(key, int(signum)), what, STOP_TIMEOUT)

    # -- the same as coroutines -------------------------------------------------------

    start_controller = twin(start_controller_sync)
    start_engines = twin(start_engines_sync)
    start_cluster = twin(start_cluster_sync)
    wait_for_engines = twin(wait_for_engines_sync)
    connect_client = twin(connect_client_sync)
    start_and_connect = twin(start_and_connect_sync)
    stop_engines = twin(stop_engines_sync)
    stop_engine = twin(stop_engine_sync)
    stop_controller = twin(stop_controller_sync)
    stop_cluster = twin(stop_cluster_sync)
    restart_engines = twin(restart_engines_sync)
    restart_engine = twin(restart_engine_sync)
    signal_engines = twin(signal_engines_sync)
    signal_engine = twin(signal_engine_sync)

    # -- context managers -------------------------------------------------------------

    def __enter__(self) -> Client:
        self._context_client = self.start_and_connect_sync()
        return self._context_client

    def __exit__(self, *exc_info: object) -> None:
        client, self._context_client = self._context_client, None
        try:
            if client is not None:
                client.close()
        finally:
            self.stop_cluster_sync()

    async def __aenter__(self) -> Client:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.to_thread(self.__exit__, *exc_info)


def _names_mpi(launcher: Any) -> bool:
    """Whether that is one of ipyparallel's names of the launcher of MPI worlds."""
    names = ("mpi", "mpiexec", "mpienginesetlauncher", "mpiexecenginesetlauncher")
    return isinstance(launcher, str) and launcher.rpartition(".")[2].lower() in names


def _ipython() -> Any:
    """The IPython session we are in, or None."""
    from IPython.core.getipython import get_ipython

    return get_ipython()

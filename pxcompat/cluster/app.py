"""The command ``pxcluster``, which also answers to ``ipcluster``."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from traitlets import Bool, CaselessStrEnum, Dict, Integer, List, Unicode
from traitlets.config import Application
from traitlets.config.application import catch_config_error

from .. import __version__, backends
from ..engine.interrupts import repeated
from ..error import ConnectionFileError, IPythonError
from . import profiles
from .cluster import Cluster
from .connection import AlreadyRunning, Connection, MissingConnectionFile, StaleConnectionFile, read
from .launcher import Controller, OwnController
from .manager import ClusterManager, clean_cluster_files
from .mpi import MPIEngineSetLauncher, MPILauncher
from .profiles import Profile
from .settings import PxCompat, backend_section, load_file, write_config

__all__ = ["PxCluster", "main"]

#: Exit codes, ipcluster's: a second start; a stop without a cluster; engines without one.
ALREADY_STARTED = 10
ALREADY_STOPPED = 11
NO_CLUSTER = 12

#: the parts of the configuration that hold a backend's options
BACKENDS = [backend_section(name) for name in backends.names()]

ALIASES = {
    "profile": "PxClusterApp.profile",
    "profile-dir": "PxClusterApp.profile_dir",
    "ipython-dir": "PxClusterApp.ipython_dir",
    "cluster-id": "PxClusterApp.cluster_id",
    "config": "PxClusterApp.extra_config_file",
    "log-level": "Application.log_level",
    "work-dir": "PxClusterApp.work_dir",
    "log-to-file": "PxClusterApp.log_to_file",
    "log-url": "PxClusterApp.log_url",
    "clean-logs": "PxClusterApp.clean_logs",
}
FLAGS = {
    **Application.flags,
    "debug": ({"Application": {"log_level": logging.DEBUG}}, "Say everything."),
    "quiet": ({"Application": {"log_level": logging.CRITICAL}}, "Say only what is fatal."),
    "init": (
        {"PxClusterApp": {"init": True}},
        "Make the profile and its pxcompat_config.py first, where there are none.",
    ),
    "log-to-file": (
        {"PxClusterApp": {"log_to_file": True}},
        "Log to a file in the profile's log directory.",
    ),
}
START_ALIASES = {
    **ALIASES,
    "n": "Cluster.n",
    "backend": "Cluster.backend",
    "ip": "Cluster.controller_ip",
    "location": "Cluster.controller_location",
    "delay": "Cluster.delay",
    "engines": "Cluster.engine_launcher_class",
    "controller": "Cluster.controller_launcher_class",
    "daemonize": "PxClusterEngines.daemonize",
    "c": "PxClusterEngines.startup_command",
    "s": "PxClusterEngines.startup_script",
    "scheme": "PxClusterEngines.scheme",
}
START_FLAGS = {
    **FLAGS,
    "daemonize": (
        {"PxClusterEngines": {"daemonize": True}},
        "Leave the cluster running in the background.",
    ),
    "mpi": (
        {"Cluster": {"engine_launcher_class": "mpi"}},
        "Make the engines the ranks of an MPI world; short for --engines=mpi.",
    ),
}


class PxClusterApp(Application):
    """What the subcommands have in common."""

    name = "pxcluster"
    version = __version__
    classes = List([PxCompat, Cluster, MPIEngineSetLauncher])  # type: ignore[assignment]
    aliases = Dict(ALIASES)
    flags = Dict(FLAGS)

    profile = Unicode(help="The IPython profile. Variable: PXCOMPAT_PROFILE.", config=True)
    profile_dir = Unicode(help="The directory of the profile, instead of its name.", config=True)
    ipython_dir = Unicode(help="The IPython directory. Variable: IPYTHONDIR.", config=True)
    cluster_id = Unicode(
        help="Tells clusters of one profile apart. Variable: PXCOMPAT_CLUSTER_ID.", config=True
    )
    extra_config_file = Unicode(help="A configuration file beside the profile's.", config=True)
    work_dir = Unicode(help="The directory to run in.", config=True)
    init = Bool(False, help="Make the profile and its configuration first.", config=True)
    log_to_file = Bool(False, help="Log to a file in the profile's log directory.", config=True)
    log_url = Unicode(help="Accepted, not used: ipyparallel's log collector.", config=True)
    clean_logs = Bool(True, help="Accepted: the logs of earlier runs always go.", config=True)

    #: whether the command makes a profile that does not exist
    auto_create = False

    def _log_level_default(self) -> int:
        return logging.INFO

    def _log_format_default(self) -> str:
        return "%(asctime)s.%(msecs).03d [%(name)s]%(highlevel)s %(message)s"

    @catch_config_error
    def initialize(self, argv: list[str] | None = None) -> None:
        super().initialize(argv)
        if self.subapp is not None:
            return
        if self.extra_config_file:
            path = Path(self.extra_config_file).expanduser().absolute()
            # not traitlets' own loading, which passes over what it cannot read
            self.update_config(load_file(path if path.suffix else path.with_suffix(".py")))
            self.update_config(self.cli_config)
        self._warn_of_foreign_options()
        if self.ipython_dir:
            os.environ["IPYTHONDIR"] = str(Path(self.ipython_dir).expanduser().absolute())
        if self.work_dir:
            try:
                os.chdir(Path(self.work_dir).expanduser())
            except OSError as exc:
                self.fail(exc)
        self.cluster_id = self.cluster_id or os.environ.get("PXCOMPAT_CLUSTER_ID", "")
        if self.log_to_file:
            self._log_to_file()

    def _warn_of_foreign_options(self) -> None:
        known = {cls.__name__ for cls in self._classes_inc_parents()} | {"Application"}
        for name in self.cli_config:
            if name not in known and name not in BACKENDS:
                self.log.warning("Options of %s are not used: pxcompat has no such part.", name)

    def warn_of_backends(self, why: str, but: str = "") -> None:
        """Say of options of backends, but one, that they are not used."""
        for name in self.cli_config:
            if name in BACKENDS and name != but:
                self.log.warning("Options of %s are not used: %s", name, why)

    def _log_to_file(self) -> None:
        place = self.place()
        place.log_dir.mkdir(parents=True, exist_ok=True)
        called = Path(sys.argv[0]).name
        name = called if called == "ipcluster" else self.name
        path = place.log_dir / f"{name}-{self.cluster_id}-{os.getpid()}.log"
        sys.stderr.write(f"Sending logs to {path}\n")
        handler = logging.FileHandler(path)
        handler.setFormatter(self.log.handlers[0].formatter)
        self.log.handlers = [handler]

    def take_no_arguments(self) -> None:
        """Refuse what is no flag: it may be meant for a profile, and is not taken for one."""
        if self.extra_args:
            named = ", ".join(map(repr, self.extra_args))
            self.fail(f"There is nothing to say but flags, as --profile=NAME; not {named}", 2)

    def place(self) -> Profile:
        """The profile that the command is about."""
        place = profiles.find(
            self.profile,
            profile_dir=self.profile_dir,
            must_exist=not (self.auto_create or self.init),
        )
        if self.init and not place.config_file.exists():
            profiles.create(place)
            write_profile_config(place.config_file)
        return place

    def start(self) -> None:
        """Run the command; what goes wrong in a known way is said without a traceback."""
        try:
            self.run()
        except (IPythonError, TimeoutError, ValueError, OSError) as exc:
            self.fail(exc)

    def run(self) -> None:
        raise NotImplementedError

    def fail(self, why: object, code: int = 1) -> NoReturn:
        self.log.critical("%s", why)
        self.exit(code)
        raise AssertionError("unreachable")


class PxClusterEngines(PxClusterApp):
    """Start engines for the running cluster of a profile, and stop them with Ctrl-C."""

    description = __doc__
    examples = "pxcluster engines --profile=mycluster -n 4  # four more engines"
    aliases = Dict(START_ALIASES)
    flags = Dict(START_FLAGS)

    daemonize = Bool(False, help="Return when the engines are up, and leave them.", config=True)
    startup_command = Unicode(help="Code for the engines to run when they start.", config=True)
    startup_script = Unicode(help="A file of such code, read here, run before it.", config=True)
    scheme = Unicode(help="Accepted, not used: the backend's scheduler has its own.", config=True)

    def startup_code(self) -> str:
        """What the engines are to run when they start."""
        script = Path(self.startup_script).expanduser().read_text() if self.startup_script else ""
        return "\n".join(part for part in (script, self.startup_command) if part)

    def run(self) -> None:
        code = self.startup_code()  # before anything is started for it
        place = self.place()
        try:
            cluster = Cluster.from_file(
                profile_dir=str(place.path), cluster_id=self.cluster_id, parent=self
            )
        except (MissingConnectionFile, StaleConnectionFile) as exc:
            self.fail(exc, NO_CLUSTER)
        wanted = self.cli_config.Cluster.get("backend", cluster.backend)
        if wanted != cluster.backend:
            self.fail(f"The cluster runs on {cluster.backend!r}, not on {wanted!r}")
        self.warn_of_backends("the cluster runs already, as it was started.")
        if self.extra_args:
            self.log.warning("Not used, as they are no flags: %s", " ".join(self.extra_args))
        engine_set_id = None
        try:
            with _stop_signals():
                engine_set_id = cluster.start_engines_sync()
                self.wait_until_up(cluster, engine_set_id, code)
                if self.daemonize:
                    engine_set_id = None
                else:
                    self.log.error("The cluster ended: %s", cluster.controller.watch.wait_lost())
        except KeyboardInterrupt:
            self.log.info("Stopping the engines")
        finally:
            if engine_set_id is not None and cluster.controller.running:
                cluster.stop_engines_sync(engine_set_id)
            cluster.controller.disconnect()

    def wait_until_up(self, cluster: Cluster, engine_set_id: str, code: str) -> None:
        """Wait for the engines, have them run the start-up code, and say so in ipcluster's words,
        which scripts wait for."""
        try:
            cluster.wait_for_engines_sync(
                engine_set_id, progress=None if sys.stderr.isatty() else False
            )
        except (IPythonError, TimeoutError):
            if output := cluster.engines[engine_set_id].get_output():
                self.log.error("Output of the engines:\n%s", "\n".join(output.splitlines()[-40:]))
            raise
        if code:
            with cluster.connect_client_sync() as client:
                client[cluster.engine_ids(engine_set_id)].execute(code, silent=False, block=True)
        self.log.info("Engines appear to have started successfully")


class PxClusterStart(PxClusterEngines):
    """Start a cluster for a profile.

    It runs until Ctrl-C or `pxcluster stop`; with --daemonize the command returns when the
    engines are up, and leaves the cluster running.
    """

    description = __doc__
    examples = """
pxcluster start -n 4                      # four engines on this machine
pxcluster start --profile=mycluster -n 4  # ... that Client(profile="mycluster") finds
pxcluster start -n 4 --daemonize          # ... in the background
"""
    auto_create = True

    def run(self) -> None:
        code = self.startup_code()
        place = self.place()
        if not place.path.is_dir():
            profiles.create(place)
            self.log.info("Created profile dir: %s", place.path)
        cluster = Cluster(
            parent=self,
            profile_dir=str(place.path),
            cluster_id=self.cluster_id,
            controller_args=self.extra_args,
            shutdown_atexit=not self.daemonize,
            dedicated=True,
        )
        why = f"the cluster is to be on {cluster.backend}."
        self.warn_of_backends(why, but=backend_section(cluster.backend))
        leave = False
        try:
            with _stop_signals():
                self.log.info(
                    "Starting a %s cluster [daemonize=%s]", cluster.backend, self.daemonize
                )
                cluster.start_controller_sync()
                _relay_signals(cluster)
                self.wait_until_up(cluster, cluster.start_engines_sync(), code)
                leave = self.daemonize
                if not leave:
                    cluster.controller.ended.wait()
        except AlreadyRunning as exc:
            self.fail(exc, ALREADY_STARTED)
        except KeyboardInterrupt:
            self.log.info("Stopping the cluster")
            if self.daemonize:
                self.exit(1)
        else:
            if leave:
                cluster.controller.disconnect()
                sys.stderr.write(f"Leaving cluster running: {cluster.cluster_file}\n")
            else:
                self.exit(1)  # it ended by itself; its controller said why
        finally:
            if not leave:
                cluster.stop_cluster_sync()


class PxClusterStop(PxClusterApp):
    """Stop the cluster of a profile."""

    description = __doc__
    examples = "pxcluster stop --profile=mycluster"
    aliases = Dict({**ALIASES, "signal": "PxClusterStop.signal"})
    flags = Dict(
        {
            **FLAGS,
            "all": (
                {"PxClusterStop": {"all_cluster_ids": True}},
                "Stop every cluster of the profile.",
            ),
        }
    )

    signal = Integer(signal.SIGINT, help="Accepted, not used.", config=True)
    all_cluster_ids = Bool(False, help="Stop every cluster of the profile.", config=True)

    def run(self) -> None:
        place = self.place()
        if self.all_cluster_ids:
            paths = place.connection_files()
            if not paths:
                self.log.info("No clusters to stop")
        else:
            paths = [place.connection_file(i) for i in self.extra_args or [self.cluster_id]]
        code = 0
        for path in paths:
            try:
                self.stop(path)
            except MissingConnectionFile as exc:
                self.log.critical("%s", exc)
                code = ALREADY_STOPPED
            except StaleConnectionFile:
                path.unlink(missing_ok=True)
                self.log.critical("The cluster was gone already; its file is removed: %s", path)
                # with --all that is as good as stopped
                code = code if self.all_cluster_ids else ALREADY_STOPPED
        if code:
            self.exit(code)

    def stop(self, path: Path) -> None:
        connection = read(path)
        self.log.info(
            "Stopping cluster %r of profile %r", connection.cluster_id, connection.profile
        )
        Controller(connection, path, self.log).stop()


class PxClusterList(PxClusterApp):
    """List the running clusters."""

    description = __doc__
    aliases = Dict({**ALIASES, "o": "PxClusterList.output_format"})

    output_format = CaselessStrEnum(["text", "json"], "text", help="Output format.", config=True)

    #: seconds for a cluster to say how many engines it has
    patience = 5.0

    def run(self) -> None:
        self.take_no_arguments()
        chosen = self.profile or self.profile_dir or os.environ.get("PXCOMPAT_PROFILE")
        places = [self.place()] if chosen else profiles.all_profiles()
        for place in places:
            self.forget_stale(place)
        manager = ClusterManager(parent=self)
        clusters = manager.load_clusters(profile_dirs=[str(place.path) for place in places])
        found = sorted(clusters.values(), key=lambda c: (c.profile_dir, c.cluster_id))
        if self.output_format == "json":
            described = [{**c.to_dict(), "engines_up": self.count(c)} for c in found]
            sys.stdout.write(json.dumps(described) + "\n")
            return
        row = "{:16} {:32} {:8} {:>7} {:>7} {}"
        lines = [row.format("PROFILE", "CLUSTER ID", "BACKEND", "ENGINES", "PID", "ADDRESS")]
        for cluster in found:
            connection: Connection = cluster.connection
            count = self.count(cluster)
            lines.append(
                row.format(
                    connection.profile,
                    connection.cluster_id or "''",
                    connection.backend,
                    "?" if count is None else count,
                    connection.pid,
                    connection.address,
                )
            )
        sys.stdout.write("\n".join(lines) + "\n")

    def forget_stale(self, place: Profile) -> None:
        for path in place.connection_files():
            try:
                read(path)
            except StaleConnectionFile:
                self.log.warning("Removed the file of a cluster that is gone: %s", path)
                path.unlink(missing_ok=True)
            except ConnectionFileError:
                continue  # said when the file is loaded

    def count(self, cluster: Cluster) -> int | None:
        """How many engines are up; None when the cluster does not say."""
        controller: Controller = cluster.controller
        try:
            controller.backend(self.patience)
            return len(controller.watch.engines)
        except (IPythonError, TimeoutError, OSError) as exc:
            self.log.warning("Cluster %r does not answer: %s", cluster.cluster_id, exc)
            return None
        finally:
            controller.disconnect()


class PxClusterClean(PxClusterApp):
    """Remove what clusters that are gone left in a profile: connection files and logs."""

    description = __doc__
    flags = Dict(
        {
            **FLAGS,
            "force": ({"PxClusterClean": {"force": True}}, "Even when a cluster is running."),
            "all": ({"PxClusterClean": {"all_profiles": True}}, "In every profile."),
        }
    )

    force = Bool(False, help="Remove the files of running clusters too.", config=True)
    all_profiles = Bool(False, help="Clean every profile.", config=True)

    def run(self) -> None:
        self.take_no_arguments()
        place = self.place()
        places = profiles.all_profiles() if self.all_profiles else [place]
        clean_cluster_files(
            [str(place.path) for place in places if place.path.is_dir()],
            log=self.log,
            force=self.force,
        )


def write_profile_config(path: Path) -> None:
    """Write a profile's ``pxcompat_config.py``."""
    write_config(path, [PxCompat, Cluster, MPILauncher])


class PxClusterCreate(PxClusterApp):
    """Make a profile and, in it, a pxcompat_config.py in which everything is explained."""

    description = __doc__
    examples = "pxcluster create mycluster"
    flags = Dict(
        {**FLAGS, "force": ({"PxClusterCreate": {"force": True}}, "Replace what is there.")}
    )
    auto_create = True

    force = Bool(False, help="Replace the pxcompat_config.py that is there.", config=True)

    def run(self) -> None:
        if len(self.extra_args) > 1:
            self.fail(f"One profile at a time, not {len(self.extra_args)}: {self.extra_args}", 2)
        if self.extra_args:
            self.profile = self.extra_args[0]
        place = self.place()
        if place.config_file.exists() and not self.force:
            self.fail(f"{place.config_file} exists; --force replaces it")
        profiles.create(place)
        write_profile_config(place.config_file)
        sys.stdout.write(f"{place.config_file}\n")


_COMMANDS: Iterable[tuple[str, type[PxClusterApp]]] = (
    ("start", PxClusterStart),
    ("stop", PxClusterStop),
    ("engines", PxClusterEngines),
    ("list", PxClusterList),
    ("clean", PxClusterClean),
    ("create", PxClusterCreate),
)


class PxCluster(PxClusterApp):
    """Start, stop and list clusters of engines."""

    description = __doc__
    examples = """
pxcluster start -n 4 --daemonize  # a cluster that Client() finds
pxcluster list
pxcluster stop
"""
    aliases = Dict({})
    flags = Dict(Application.flags)
    subcommands = Dict(
        {name: (command, (command.__doc__ or "").partition("\n")[0]) for name, command in _COMMANDS}
    )

    def start(self) -> None:
        if self.subapp is not None:
            self.subapp.start()
            return
        names = ", ".join(name for name, _ in _COMMANDS)
        given = self.extra_args[:1]
        what = f"No subcommand is named {given[0]!r}" if given else "No subcommand specified"
        sys.stdout.write(f"{what}. There are: {names}\n\n")
        self.print_description()
        self.print_subcommands()
        self.exit(1)


@contextmanager
def _stop_signals() -> Iterator[None]:
    """Have SIGTERM, like SIGINT, raise KeyboardInterrupt; after it, have both ignored.

    What follows is the clean-up, which a second Ctrl-C must not break off.
    """

    def interrupt(signum: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, interrupt)
    try:
        with repeated(lambda: True):  # imports, of which there are many, are where Python drops it
            yield
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)
        # Python ends a process by SIGINT, whatever its exit code, when one has come to a string
        # that it executed (as modules that define named tuples have it do) and to none since
        exec("")


def _relay_signals(cluster: Cluster) -> None:
    """Pass SIGUSR1 and SIGUSR2 on to the engines, as ipcluster does."""
    if not isinstance(cluster.controller, OwnController):
        return

    def relay(signum: int, frame: FrameType | None) -> None:
        # not here: the main thread may be inside what this needs
        threading.Thread(target=cluster.signal_engines_sync, args=(signum,)).start()

    for signum in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, relay)


main = PxCluster.launch_instance

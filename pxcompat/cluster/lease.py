"""Which cluster a Client gets: :func:`acquire`."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import backends
from ..engine.nested import home
from ..error import BackendError, ConnectionFileError, KernelError
from ..protocol import Backend, EventSink, LaunchSpec
from . import connection as connections, embedded, profiles
from .connection import Connection
from .settings import PxCompat, backend_options, load_config

if TYPE_CHECKING:
    from .cluster import Cluster

__all__ = ["Lease", "acquire"]

#: not traitlets' own, whose warnings a script does not show
log = logging.getLogger("pxcompat")


@dataclass(eq=False)
class Lease:
    """A client's hold on a cluster.

    Attributes
    ----------
    backend : Backend
        Not yet open.
    profile, cluster_id : str
        The names the cluster goes by.
    share : Share or None
        The client's part in an embedded cluster, whose engines it counts, starts and waits for.
    timeout : float
        Seconds that ``backend.open`` may take.
    start_timeout : float
        Seconds that engines may take that are on their way.
    progress : bool
        Whether progress bars are wanted.
    copy : bool
        Whether arrays that are pushed are copied where nothing is said.
    max_results, max_result_bytes : int
        How much of finished requests the client remembers.
    said_by : str
        What said where the cluster is, if not the caller.
    """

    backend: Backend
    profile: str
    cluster_id: str
    share: embedded.Share | None = None
    timeout: float = 5
    start_timeout: float = 60
    progress: bool = True
    copy: bool = True
    max_results: int = 1024
    max_result_bytes: int = 1 << 30
    said_by: str = ""

    def open(self, sink: EventSink) -> None:
        """Connect the backend, or leave it closed."""
        try:
            with _said_by(self.said_by):
                self.backend.open(sink, timeout=self.timeout)
        except BaseException:
            self.backend.close()
            raise


@contextlib.contextmanager
def _said_by(origin: str) -> Iterator[None]:
    """Have errors name what said where the cluster is, which the caller may not know of."""
    try:
        yield
    except KernelError as error:
        if origin:
            error.args = (f"{origin}: {error}",)
        raise


def acquire(
    connection_info: Any = None,
    *,
    profile: str | None = None,
    profile_dir: str | os.PathLike[str] | None = None,
    ipython_dir: str | os.PathLike[str] | None = None,
    cluster_id: str | None = None,
    cluster: Cluster | None = None,
    backend: str | None = None,
    n: int | None = None,
    timeout: float | None = None,
    **options: Any,
) -> Lease:
    """Find or start the cluster that a client is to use.

    The first that applies: what ``connection_info`` or ``cluster`` says; the address that is
    set (``PXCOMPAT_ADDRESS``), unless a ``cluster_id`` is given; where nothing is said and this
    is an engine, the engine's own cluster; the running cluster of the profile; an embedded
    cluster, shared by the clients of this process.

    Parameters
    ----------
    connection_info : str, path, dict or object
        An address (``"tcp://..."``), the path or the content of a connection file, or a
        backend's own client or cluster object.
    profile, profile_dir, ipython_dir
        Where to look for a running cluster and for settings.
    cluster_id
        A cluster of that name must be running.
    cluster
        A Cluster, running.
    backend, n, timeout
        As the settings of :class:`~pxcompat.cluster.settings.PxCompat`.
    **options
        For the backend, as it defines them.

    Raises
    ------
    ConnectionFileError
        When a profile or connection file is missing or of no use.
    BackendError
        When no backend takes the address or object, or the cluster does not start.
    SettingError
        On a bad setting.
    TypeError
        For an option that no backend has, and a ``cluster`` that is of another kind.
    """
    found = profiles.find(profile, profile_dir=profile_dir, ipython_dir=ipython_dir)
    config = load_config(found)
    settings = PxCompat.resolve(
        found, config=config, backend=backend, n=n, timeout=timeout, cluster_id=cluster_id or None
    )
    # only a backend that somebody chose rules others out
    chosen = backend or os.environ.get("PXCOMPAT_BACKEND") or None
    _check_options(options, [chosen] if chosen else backends.names())

    def lease(backend: Backend, connection: Connection | None = None, **more: Any) -> Lease:
        return Lease(
            backend,
            profile=connection.profile if connection else found.name,
            cluster_id=connection.cluster_id if connection else settings.cluster_id,
            timeout=settings.timeout,
            start_timeout=settings.start_timeout,
            progress=settings.progress,
            copy=settings.copy,
            max_results=settings.max_results,
            max_result_bytes=settings.max_result_bytes,
            **more,
        )

    if connection_info is None and cluster is not None:
        if not hasattr(cluster, "connection"):
            raise TypeError(
                f"cluster= is for a Cluster of this package, not for a {type(cluster).__name__}: "
                "a cluster of a backend's own is Client's first argument"
            )
        connection_info = cluster.connection.to_dict()
    said_by = ""
    if connection_info is None and settings.address and not cluster_id:
        connection_info = settings.address
        said_by = f"{settings.origins['address']} = {settings.address!r}"
    anything = profile or profile_dir or ipython_dir or cluster_id or chosen or n
    if connection_info is None and not anything and (own_cluster := home()):
        # code on an engine means the engine's own cluster
        return lease(backends.get(own_cluster["backend"]).connect(own_cluster))
    if connection_info is not None:
        with _said_by(said_by):
            connection = _described(connection_info)
            if connection is None:
                names = [chosen] if chosen else backends.names()
                given = {name: {**backend_options(config, name), **options} for name in names}
                adopted = _adopt(connection_info, settings.n, given)
                _warn_of_starting(options, adopted)
                return lease(adopted, said_by=said_by)
            if backend not in (None, connection.backend):
                raise BackendError(
                    f"The cluster at {connection.address} runs on {connection.backend!r}, not on"
                    f" {backend!r}."
                )
            _warn_of_unused(options)
            return lease(_connect(connection), connection, said_by=said_by)

    running = connections.running(found.connection_file(settings.cluster_id))
    if running is not None and chosen in (None, running.backend):
        _warn_of_unused(options)
        return lease(_connect(running), running)

    own = embedded.find(str(found.path), settings.cluster_id, chosen)
    if own is None and settings.cluster_id:
        # a name was given to a cluster that is meant to be there
        if running is not None:
            raise ConnectionFileError(
                f"The cluster {settings.cluster_id!r} of profile {found.name!r} runs on"
                f" {running.backend!r}, not on {chosen!r}."
            )
        raise connections.MissingConnectionFile(
            f"No cluster {settings.cluster_id!r} of profile {found.name!r} is running. `pxcluster"
            f" start --profile={found.name} --cluster-id={settings.cluster_id}` starts one."
        )
    if own is None:
        # one that this process is connected to already, by the backend's own means
        ambient = backends.get(settings.backend).adopt(
            None, n=settings.n, **{**settings.options, **options}
        )
        if ambient is not None:
            _warn_of_starting(options, ambient)
            return lease(ambient)
    if running is not None:
        log.warning(
            "Starting an embedded %s cluster: the cluster that runs for profile %r is on %s.",
            chosen,
            found.name,
            running.backend,
        )

    def spec() -> LaunchSpec:
        return LaunchSpec(
            n=settings.engines,
            cwd=os.getcwd(),
            path=[entry for entry in sys.path if entry],
            env={"PXCOMPAT_PROFILE_DIR": str(found.path)},
            options={**settings.options, **options},
        )

    own = own or embedded.key(str(found.path), settings.cluster_id, settings.backend)
    share = embedded.take(
        own,
        backends.get(own.backend),
        spec,
        at_least=0 if n is None else settings.engines,  # as it is understood
        timeout=settings.start_timeout,
    )
    _warn_of_unused([name for name, value in options.items() if share.options.get(name) != value])
    return lease(share.backend, share=share)


def _warn_of_unused(options: Iterable[str]) -> None:
    """Say of options that they come too late: the cluster was started with others."""
    if options := list(options):
        log.warning(
            "Not used, as they are for a cluster that is started, and this one runs already: %s."
            " Client.shutdown(hub=True) ends it.",
            ", ".join(options),
        )


def _warn_of_starting(options: Iterable[str], adopted: Backend) -> None:
    """Say of options that they are about starting a cluster, which somebody else has done."""
    starting = backends.get(adopted.name).starting
    if unused := [option for option in options if option in starting]:
        log.warning(
            "Not used, as they are for a cluster that is started, and this one is somebody else's,"
            " who started it: %s.",
            ", ".join(unused),
        )


def _check_options(options: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse what is no option of any of these backends, as a call refuses what is no argument."""
    if not options:
        return
    known: dict[str, Sequence[str]] = {}
    for name in names:
        with contextlib.suppress(BackendError):  # not installed
            known[name] = backends.get(name).options
    every = {option for options in known.values() for option in options}
    for option in options:
        if option in every:
            continue
        arguments = inspect.signature(acquire).parameters
        close = difflib.get_close_matches(option, [*every, *arguments], n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        there = "; ".join(f"{name}: {', '.join(known[name])}" for name in known)
        raise TypeError(
            f"Client() got an unexpected keyword argument {option!r}.{hint} Options of backends"
            f" are, for {there}."
        )


def _described(target: Any) -> Connection | None:
    """The connection that a dict or a file describes; None for anything else."""
    if isinstance(target, dict):  # and no other mapping, which Ray's context is
        return Connection.from_dict(target)
    if isinstance(target, os.PathLike):
        return connections.read(target)
    if isinstance(target, str) and not _is_address(target):
        return connections.read(Path(target).expanduser())
    return None


def _is_address(text: str) -> bool:
    return "://" in text or text == "auto" or re.fullmatch(r"[\w.\-]+:\d+", text) is not None


def _connect(connection: Connection) -> Backend:
    return backends.get(connection.backend).connect(connection.info)


def _adopt(target: Any, n: int | None, given: Mapping[str, dict[str, Any]]) -> Backend:
    """Ask the backends in turn, each with its options, whose address or object this is."""
    refusals = []
    for name, options in given.items():
        try:
            backend = backends.get(name).adopt(target, n=n, **options)
        except BackendError as exc:
            if len(given) == 1:
                raise
            refusals.append(str(exc))
        else:
            if backend is not None:
                return backend
            refusals.append(f"{name} does not know it")
    shown = repr(target) if isinstance(target, str) else f"a {type(target).__qualname__} object"
    raise BackendError(
        f"No backend can connect to {shown}: {'; '.join(refusals)}. Give an address as"
        " 'tcp://host:port' (Dask) or 'ray://host:port' (Ray), the path of a connection file, or"
        " a Dask or Ray client or cluster."
    )

"""The Client: its connection, its views, and what views send.

What it knows of engines is in ``engines``, of requests in ``work``.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from .balance import Balancer
from .cards import client_card
from .dependency import Dependency
from .dispatch import Dispatcher
from .display import ExecuteReply
from .engine import calls
from .engine.interrupts import uninterrupted
from .error import (
    EngineError,
)
from .futures import MessageFuture, Metadata
from .hub import Hub
from .lbview import LoadBalancedView
from .progress import aside
from .protocol import Frames
from .util import become_dask_worker, stop_distributed_worker
from .view import BroadcastView, DirectView
from .work import FuturesByID, Work

if TYPE_CHECKING:
    from .cluster import Cluster

__all__ = ["Client", "ExecuteReply", "Metadata"]

log = logging.getLogger("pxcompat")

#: arguments of ipyparallel's Client that are about ZeroMQ or ssh tunnels
_IGNORED = frozenset(
    [
        *("context", "sshserver", "sshkey", "password", "paramiko", "ssh_kwargs"),
        *("packer", "unpacker", "key", "signature_scheme", "config"),
        *("username", "session", "location"),
    ]
)

#: what ipyparallel calls an engine's Dask worker, in the engine's namespace
DASK_WORKER = ("dask_worker", "distributed_worker")


class Client(Work):
    """A client of a cluster of engines (ipyparallel.Client).

    Without arguments it connects to the running cluster of the default profile, and where
    there is none, it starts engines on this machine, as many as it has CPUs, that last
    as long as this process.

    Parameters
    ----------
    connection_info : str, path, dict or object, optional
        Path (or content) of a connection file; an address (``"tls://host:port"``); or an
        engine's own object (``distributed.Client``, a Dask cluster ...).
    profile, profile_dir, ipython_dir : str, optional
        The IPython profile whose running cluster to use.
    cluster_id : str, optional
        Which of the profile's clusters.
    cluster : Cluster, optional
        A cluster that was started already.
    timeout : float, optional
        Seconds that each stage of connecting may take (default 10, as in ipyparallel).
    debug : bool
        Log at debug level.
    backend : str, optional
        ``"dask"`` ...: what engines to start (``PXCOMPAT_BACKEND``).
    n : int, optional
        How many engines to start (``PXCOMPAT_N``).
    **options
        Settings for the backend.  Arguments of ipyparallel's Client about ZeroMQ
        or ssh tunnels are accepted and ignored, with a warning.

    Attributes
    ----------
    ids : list of int
        The engines that are there now.
    block : bool
        Default of views made from now on.
    history : list of str
        msg_ids of what this client sent; the latest 65,536.
    outstanding : set of str
        msg_ids of what has no reply yet.
    results, metadata : dict
        Results and metadata, by msg_id, of requests whose AsyncResult is gone or does
        not own them.  Bounded: 1,024 results, 1 GB (``PXCOMPAT_MAX_RESULTS``,
        ``PXCOMPAT_MAX_RESULT_BYTES``).
    profile, cluster_id : str
        The names of the cluster.
    cluster : Cluster or None

    Raises
    ------
    pxcompat.error.ConnectionFileError
        When a profile or connection file is missing, stale, or not ours.
    pxcompat.error.ConnectError
        When the cluster does not answer; names the stage.
    pxcompat.error.BackendError
        When engines cannot be started.
    TypeError
        For an option that no backend has.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Client:
        # spelt out, as ipyparallel's has one, which is patched and restored by code that
        # counts clients; restoring one that is inherited breaks the class
        return super().__new__(cls)

    def __init__(
        self,
        connection_info: Any = None,
        *,
        profile: str | None = None,
        profile_dir: Any = None,
        ipython_dir: Any = None,
        cluster_id: str | None = None,
        cluster: Cluster | None = None,
        timeout: float | None = None,
        debug: bool = False,
        backend: str | None = None,
        n: int | None = None,
        **options: Any,
    ) -> None:
        from .cluster import acquire

        self._closed = True  # until there is something to close
        self.block = False
        self.debug = debug
        self.cluster = cluster
        if debug:
            log.setLevel(logging.DEBUG)
        connection_info = _legacy_arguments(connection_info, options)
        self._dispatcher = Dispatcher()
        self._questions = Hub(self._dispatcher)
        self._balancer = Balancer(self._dispatcher, self._questions)
        self._futures = FuturesByID(self._dispatcher)
        lease = acquire(
            connection_info,
            profile=profile,
            profile_dir=profile_dir,
            ipython_dir=ipython_dir,
            cluster_id=cluster_id,
            cluster=cluster,
            backend=backend,
            n=n,
            timeout=timeout,
            **options,
        )
        self._lease = lease
        remembered = self._dispatcher.results.futures
        remembered.max_count, remembered.max_bytes = lease.max_results, lease.max_result_bytes
        #: whether arrays that are pushed are copied, where nothing is said
        self._copy = lease.copy
        self.profile = lease.profile
        self.cluster_id = lease.cluster_id
        self._backend = self._dispatcher.backend = lease.backend
        lease.open(self._dispatcher)
        self._closed = False
        # neither the thread that receives replies nor the exit of the process may need
        # the client itself to be alive
        self._finalizer = weakref.finalize(self, _collected, self._backend, self._balancer)
        self._finalizer.atexit = False
        #: the scheduler of engines that are Dask workers by `become_dask` alone
        self._dask: Any = None
        with _open_lock:
            _open_clients.add(self)
        if lease.share is not None:
            lease.share.complete(self, lease.start_timeout, progress=lease.progress)
        elif n is not None and len(self) < int(n):
            log.warning(
                "%s engines were asked for, and the cluster that runs has %d; clients do not add"
                " any: whoever started it does (`pxcluster engines`, Cluster.start_engines())",
                n,
                len(self),
            )
        if lease.share and lease.share.fresh and lease.progress and self.dashboard_link:
            count = len(self.ids)
            engines = "1 engine" if count == 1 else f"{count} engines"
            _tell(f"{engines} on {self._backend.name}; dashboard: {self.dashboard_link}")
        self._activate_in_ipython()

    def _activate_in_ipython(self) -> None:
        """Provide ``%px`` for this client's engines, unless an open client does."""
        if "IPython" not in sys.modules:
            return  # then nobody types magics
        from IPython import get_ipython

        shell = get_ipython()
        if shell is None or getattr(shell, "magics_manager", None) is None:
            return
        from .magics import active_view

        if active_view(shell) is None:
            self.activate()

    # -- life ------------------------------------------------------------------

    def close(self, linger: Any = None) -> None:
        """Disconnect.  Engines go on; requests outstanding are not waited for.

        Their results fail here, and can be fetched by another client, by their msg_ids.
        Idempotent.  ``linger`` is accepted and ignored.
        """
        if self._closed:
            return
        with uninterrupted():  # a client that is half closed would never be closed
            self._closed = True
            self._finalizer.detach()
            with self._dispatcher.engines_changed:  # who waits for engines waits in vain
                self._dispatcher.engines_changed.notify_all()
            self._close_dask()
            _hang_up(self._backend, self._balancer)
            for msg_id in self.outstanding:
                why = f"the client was closed before task {msg_id!r} was done; get_result() of"
                error = EngineError(f"{why} another client can fetch it")
                self._dispatcher.fail(msg_id, error)
            with _open_lock:
                _open_clients.discard(self)
                others = list(_open_clients)
        if len(others) == 1:  # %px may have been this client's
            others[0]._activate_in_ipython()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, exc_type: Any = None, exc_value: Any = None, traceback: Any = None) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"{len(self.ids)} engines"
        if self._closed or self._dispatcher.lost:
            state = "closed" if self._closed else "connection lost"
        return f"<Client: {self._backend.name}, profile {self.profile!r}, {state}>"

    def _repr_html_(self) -> str:
        return client_card(self)

    def shutdown(
        self,
        targets: Any = "all",
        restart: bool = False,
        hub: bool = False,
        block: bool | None = None,
    ) -> Any:
        """Shut engines down, or with ``hub`` the whole cluster.

        Parameters
        ----------
        targets : int, list of int, slice or "all"
        restart : bool
            Start a new engine in the place of each, with the same id and an empty namespace.
            What the old ones run or have queued fails with EngineError at once.  ipyparallel
            has the parameter, and raises NotImplementedError.
        hub : bool
            Shut down the controller and every engine.
        block : bool, optional
            Wait until they are gone; with ``restart``, until the new ones are there.

        Raises
        ------
        ClientClosed
            When this client is closed.
        BackendError
            With ``restart``, when engines of this cluster cannot be restarted from here
            (``Capabilities.restart_engines``).
        TimeoutError
            When they are not gone in 30 s, or not back in 60 s.
        """
        if not hub or self._dispatcher.lost is None:  # else it has ended, as is wanted
            self._check_open()
        block = self.block if block is None else block
        if restart:
            if hub:
                raise ValueError("hub=True ends the cluster: there is nothing to restart then")
            return self._restart(self._build_targets(targets)[0], block)
        if hub:
            done = self._backend.stop_cluster()
            keys = list(self._dispatcher.engines)
        else:
            keys = self._build_targets(targets)[0]
            done = self._backend.stop_engines(keys)
        if block or hub:
            self._await_gone(done, keys)
        if hub:
            self._dispatcher.disconnected("it was shut down by this client")
            self.close()
            if self._lease.share is not None:
                self._lease.share.ended()
        return None

    def _await_gone(self, done: Future[None], keys: Sequence[str]) -> None:
        try:
            done.result(30)
        except EngineError:
            log.debug("the cluster was gone before it said so")
        deadline = time.monotonic() + 30
        dispatcher = self._dispatcher
        with dispatcher.engines_changed:
            while any(key in dispatcher.engines for key in keys):
                if not dispatcher.engines_changed.wait(deadline - time.monotonic()):
                    left = [dispatcher.ids[k] for k in keys if k in dispatcher.engines]
                    raise TimeoutError(f"engines {left} are still running; interrupt or kill them")

    # -- the backend's own -----------------------------------------------------------

    @property
    def dashboard_link(self) -> str:
        """URL of the cluster's dashboard."""
        return self._backend.dashboard_link

    @property
    def dask_client(self) -> Any:
        """The ``distributed.Client`` behind this client.

        Raises
        ------
        AttributeError
            On another backend.
        """
        if not self._backend.capabilities.dask_workers:
            raise AttributeError(f"a client on {self._backend.name} has no dask_client")
        return self._backend.native

    def become_dask(
        self,
        targets: Any = "all",
        port: int = 0,
        nanny: bool = False,
        scheduler_args: Any = None,
        **worker_args: Any,
    ) -> Any:
        """A ``distributed.Client`` whose workers are the engines that are targeted.

        Where the backend's engines are Dask workers, and all are meant, nothing is started.
        Otherwise a scheduler is started in this process, with TLS, and a worker in each engine's
        process; they last until :meth:`stop_dask`, or as long as this client.  Each engine finds
        its worker under the names ``dask_worker`` and ``distributed_worker``.

        Parameters
        ----------
        targets : int, list of int, slice or "all"
            The engines that are to be workers.
        port : int
            The scheduler's; 0 for any that is free.
        nanny : bool
            Whether workers are processes of their own, beside the engines.
        scheduler_args : dict, optional
            Passed to ``distributed.Scheduler``.
        **worker_args
            Passed to ``distributed.Worker``; ``nthreads`` is 1 unless given, also by its old
            name ``ncores``.
            All but ``targets`` is ignored where nothing is started.

        Returns
        -------
        distributed.Client
            Dask's default client from now on; the caller's to close, unless :meth:`stop_dask`
            ends its scheduler.

        """
        view = self.direct_view(targets)
        _, ids = self._build_targets(targets)
        if self._backend.capabilities.dask_workers and set(ids) == set(self.ids):
            view.apply_sync(calls.bind_native, *DASK_WORKER)
            return self._backend.native_client()
        if self._dask is None:
            from .backends.dask.host import Host

            local = set(self._engines_by_host()) == {socket.gethostname()}
            self._dask = Host(local=local, options={"port": port, **(scheduler_args or {})})
            # on a thread: the garbage collector may come by on any, this scheduler's among them
            self._end_dask = weakref.finalize(self, _in_background, self._dask.close)
            self._end_dask.atexit = False
        if "ncores" in worker_args:  # as Dask and ipyparallel's example called it
            worker_args.setdefault("nthreads", worker_args.pop("ncores"))
        view.apply_sync(become_dask_worker, nanny=nanny, **{**self._dask.worker, **worker_args})
        return self._dask.client()

    def stop_dask(self, targets: Any = "all") -> None:
        """Take back what :meth:`become_dask` did; engines that are Dask workers stay so."""
        view = self.direct_view(targets)
        if self._dask is not None or not self._backend.capabilities.dask_workers:
            view.apply_sync(stop_distributed_worker)
        view.apply_sync(calls.unbind, *DASK_WORKER)
        if targets is None or targets == "all":
            self._close_dask()

    def _close_dask(self) -> None:
        if self._dask is not None:
            self._end_dask.detach()
            self._dask.close()
            self._dask = None

    become_distributed = become_dask
    stop_distributed = stop_dask

    # -- views -------------------------------------------------------------------

    def __iter__(self) -> Iterator[DirectView]:
        for engine_id in self.ids:
            yield self.direct_view(engine_id)

    def __getitem__(self, key: Any) -> DirectView:
        """A DirectView of an index, a slice or a list of indices of ``ids``.

        Raises
        ------
        InvalidEngineId
            (an IndexError) When there is no such engine.
        TypeError
            For anything but ints, slices, tuples, lists and ranges.
        """
        if not isinstance(key, (int, slice, tuple, list, range)):
            raise TypeError(
                f"key by int/slice/iterable of ints only, not {type(key).__name__}: {key!r}"
            )
        return self.direct_view(key)

    def direct_view(self, targets: Any = "all", **kwargs: Any) -> DirectView:
        """A view of engines to address each by itself.

        Parameters
        ----------
        targets : int, list of int, slice or "all"
            ``"all"``: those that are there at each call.
        **kwargs
            Flags of the view.
        """
        if targets != "all":
            single = isinstance(targets, int)
            targets = self._build_targets(targets)[1]
            if single:
                targets = targets[0]
        return DirectView(client=self, targets=targets, **kwargs)

    def load_balanced_view(self, targets: Any = None, **kwargs: Any) -> LoadBalancedView:
        """A view whose calls the backend's scheduler places.

        Parameters
        ----------
        targets : int, list of int, slice, optional
            The engines among which to choose; default all, present and future.
        **kwargs
            Flags of the view.
        """
        if targets == "all":
            targets = None
        if targets is not None:
            targets = self._build_targets(targets)[1]
        return LoadBalancedView(client=self, targets=targets, **kwargs)

    def broadcast_view(
        self, targets: Any = "all", is_coalescing: bool = False, **kwargs: Any
    ) -> BroadcastView:
        """A view that sends each value once, however many engines get it.

        Parameters
        ----------
        is_coalescing : bool
            Accepted for compatibility; replies always come straight from the engines.
        """
        targets = self._build_targets(targets)[1]
        view = BroadcastView(client=self, targets=targets, **kwargs)
        view.is_coalescing = is_coalescing
        return view

    def executor(self, targets: Any = None) -> Any:
        """A :class:`concurrent.futures.Executor` on a load-balanced view."""
        return self.load_balanced_view(targets).executor

    def activate(self, targets: Any = "all", suffix: str = "") -> DirectView:
        """A blocking view of ``targets`` that ``%px`` (``%px<suffix>``) works on."""
        view = self.direct_view(targets)
        view.block = True
        view.activate(suffix)
        return view

    # -- sending: for views ------------------------------------------------------

    def _submit_apply(
        self,
        key: str,
        f: Frames,
        args: Frames,
        *,
        label: str,
        map: bool = False,
        header: dict[str, Any] | None = None,
    ) -> MessageFuture:
        """One call on one engine."""
        self._check_open()
        return self._dispatcher.apply([key], f, args, label=label, map=map, header=header)[0]

    def _submit_apply_many(
        self,
        keys: Sequence[str],
        f: Frames,
        args: Frames,
        *,
        label: str,
        map: bool = False,
        header: dict[str, Any] | None = None,
    ) -> list[MessageFuture]:
        """The same call on several engines."""
        self._check_open()
        return self._dispatcher.apply(keys, f, args, label=label, map=map, header=header)

    def _awaited(self) -> AbstractContextManager[object]:
        """Around sending what this thread is about to wait for."""
        return self._backend.awaited()

    def _reference(self, name: str, key: str, engine: int) -> Any:
        """A name of an engine, as an argument for others and for the backend's own tasks."""
        return self._backend.reference(name, key, engine, self._dispatcher.keep)

    def _take_apart(self, obj: Any, keys: Sequence[str], *, copy: bool) -> Sequence[Any] | None:
        """A collection of the backend's own in parts; None for anything else."""
        self._check_open()
        return self._backend.take_apart(obj, keys, copy=copy)

    def _submit_execute(
        self,
        key: str,
        code: str,
        *,
        silent: bool,
        store_history: bool,
        label: str,
        header: dict[str, Any] | None = None,
    ) -> MessageFuture:
        """Code for one engine's shell."""
        self._check_open()
        return self._dispatcher.execute(
            key, code, silent=silent, store_history=store_history, label=label, header=header
        )

    def _submit_balanced(
        self,
        calls: Sequence[tuple[Frames, Frames]],
        *,
        label: str,
        map: bool = False,
        targets: list[str] | None = None,
        retries: int = 0,
        after: Dependency | None = None,
        follow: Dependency | None = None,
        timeout: float | None = None,
        header: dict[str, Any] | None = None,
    ) -> list[MessageFuture]:
        """Calls wherever the backend's scheduler puts them."""
        self._check_open()
        return self._balancer.submit(
            calls,
            label=label,
            map=map,
            targets=targets,
            retries=retries,
            after=after,
            follow=follow,
            timeout=timeout,
            header=header,
        )


#: to be closed when the process exits
_open_clients: weakref.WeakSet[Client] = weakref.WeakSet()
#: other threads may make or close clients
_open_lock = threading.Lock()


@atexit.register
def _close_all() -> None:
    with _open_lock:
        clients = list(_open_clients)
        _open_clients.clear()
    for client in clients:
        client.close()


def _forked() -> None:
    """In a process that forked off: clients, and their connections, are its parent's."""
    global _open_lock
    _open_lock = threading.Lock()
    for client in list(_open_clients):
        client._closed = True
        client._finalizer.detach()
    _open_clients.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _collected(backend: Any, balancer: Balancer) -> None:
    """Close a client that was dropped, on a thread of its own: the garbage collector may
    have come by on any thread, the backend's own among them."""
    _in_background(_hang_up, backend, balancer)


def _in_background(function: Callable[..., object], *args: Any) -> None:
    threading.Thread(target=function, args=args, daemon=True).start()


def _hang_up(backend: Any, balancer: Balancer) -> None:
    balancer.close()
    backend.close()


def _legacy_arguments(connection_info: Any, options: dict[str, Any]) -> Any:
    """Take ipyparallel's arguments about ZeroMQ out of the options."""
    for name in ("url_or_file", "url_file"):
        given = options.pop(name, None)
        if given is not None:
            warnings.warn(
                f"{name} arg no longer supported, use positional connection_info argument",
                DeprecationWarning,
                stacklevel=3,
            )
            connection_info = connection_info or given
    tunnelled = [name for name in ("sshserver", "sshkey", "password") if options.get(name)]
    if tunnelled:
        warnings.warn(
            f"{', '.join(tunnelled)}: pxcompat makes no ssh tunnels; forward the port yourself "
            "(ssh -L) and connect to it, or use a cluster that listens on the network",
            UserWarning,
            stacklevel=3,
        )
    for name in [name for name in options if name in _IGNORED]:
        del options[name]
    return connection_info


def _tell(text: str) -> None:
    """Say something to the person at the terminal or notebook, where bars are shown too."""
    stream = aside()
    stream.write(text + "\n")
    stream.flush()

"""The Client: a cluster's engines, views of them, and the record of what was asked of them."""

from __future__ import annotations

import logging
import signal as signals
import sys
import threading
import time
import types
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import Future, wait as wait_for_all
from typing import TYPE_CHECKING, Any

from . import serialize
from .asyncresult import AsyncHubResult, AsyncResult
from .balance import Balancer
from .dependency import Dependency
from .dispatch import Dispatcher
from .display import ExecuteReply
from .engine import calls
from .error import (
    EngineError,
    InvalidEngineId,
    NoEnginesRegistered,
    collect_exceptions,
)
from .futures import MessageFuture, Metadata
from .hub import Hub
from .lbview import LoadBalancedView
from .protocol import Frames, Request
from .util import ReverseDict, progress
from .view import BroadcastView, DirectView

if TYPE_CHECKING:
    from .cluster import Cluster

__all__ = ["Client", "ExecuteReply", "Metadata"]

log = logging.getLogger("pxcompat")

Jobs = Any  # int, str, AsyncResult, or an iterable of them

#: arguments of ipyparallel's Client that are about ZeroMQ or ssh tunnels
_IGNORED = frozenset(
    [
        *("context", "sshserver", "sshkey", "password", "paramiko", "ssh_kwargs"),
        *("packer", "unpacker", "key", "signature_scheme", "config"),
        *("username", "session", "location"),
    ]
)


class Client:
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
        Seconds that each stage of connecting may take (default 5).
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
        not own them.  Bounded: 1,024 results, 1 GB.
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
        self._hub = Hub(self._dispatcher)
        self._balancer = Balancer(self._dispatcher)
        self._futures = _Futures(self._dispatcher)
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
        self.profile = lease.profile
        self.cluster_id = lease.cluster_id
        self._backend = self._dispatcher.backend = lease.backend
        try:
            self._backend.open(self._dispatcher, timeout=lease.timeout)
        except BaseException:
            self._backend.close()
            raise
        self._closed = False
        # neither the thread that receives replies nor the exit of the process may need
        # the client itself to be alive
        self._finalizer = weakref.finalize(self, _hang_up, self._backend, self._balancer)
        if lease.missing:
            self._backend.start_engines(lease.missing)
        if lease.expected and len(self.ids) < lease.expected:
            self._wait_for_start(lease)
        if lease.fresh and lease.progress and self.dashboard_link:
            _tell(
                f"{len(self.ids)} engines on {self._backend.name}; dashboard: {self.dashboard_link}"
            )
        self._activate_in_ipython()

    def _wait_for_start(self, lease: Any) -> None:
        try:
            self.wait_for_engines(lease.expected, timeout=60, interactive=lease.progress)
        except BaseException:
            self.close()
            raise

    def _activate_in_ipython(self) -> None:
        """Provide ``%px`` for this client's engines, as soon as it exists."""
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

        Idempotent.  ``linger`` is accepted and ignored.
        """
        if self._closed:
            return
        self._closed = True
        self._finalizer()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self.ids)} engines"
        return f"<Client: {self._backend.name}, profile {self.profile!r}, {state}>"

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
            Not supported, as ipyparallel does not either.
        hub : bool
            Shut down the controller and every engine.
        block : bool, optional
            Wait until they are gone.
        """
        if restart:
            raise ValueError("Engine restart is not supported: start new engines instead")
        block = self.block if block is None else block
        if hub:
            done = self._backend.stop_cluster()
            keys = list(self._dispatcher.engines)
        else:
            keys = self._build_targets(targets)[0]
            done = self._backend.stop_engines(keys)
        if block or hub:
            self._await_gone(done, keys)
        if hub:
            self.close()
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

    # -- engines -----------------------------------------------------------------

    @property
    def ids(self) -> list[int]:
        """Ids of the engines that are there, rising; a new list each time."""
        with self._dispatcher.lock:
            return sorted(info.id for info in self._dispatcher.engines.values())

    @property
    def _ids(self) -> list[int]:
        return self.ids

    @property
    def _engines(self) -> ReverseDict:
        engines = ReverseDict()
        with self._dispatcher.lock:
            for key, info in self._dispatcher.engines.items():
                engines[info.id] = key
        return engines

    @property
    def _outstanding_dict(self) -> Mapping[str, set[str]]:
        return self._dispatcher.by_engine

    @property
    def _registration_callbacks(self) -> list[Any]:
        return self._dispatcher.engine_callbacks

    @property
    def _io_loop(self) -> Any:
        return self._backend.io_loop  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self._dispatcher.engines)

    def __bool__(self) -> bool:
        return True

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

    def _build_targets(self, targets: Any) -> tuple[list[str], list[int]]:
        """Engines as keys and as ids.

        Raises
        ------
        NoEnginesRegistered
            When there is none at all.
        InvalidEngineId
            (an IndexError) When one does not exist.
        TypeError
            When ``targets`` is nothing that names engines.
        """
        with self._dispatcher.lock:
            keys = {info.id: key for key, info in self._dispatcher.engines.items()}
        ids = sorted(keys)
        if not ids:
            raise NoEnginesRegistered(
                self._dispatcher.lost or "Can't build targets without any engines"
            )
        if targets is None or targets == "all":
            wanted: Sequence[int] = ids
        elif isinstance(targets, str):
            raise TypeError(f"{targets!r} not valid str target, must be 'all'")
        elif isinstance(targets, slice):
            wanted = ids[targets]
        elif isinstance(targets, int):
            wanted = [self._engine_id(targets, ids)]
        elif isinstance(targets, (tuple, list, range)):
            wanted = list(targets)
        else:
            raise TypeError(f"targets by int/slice/collection of ints only, not {type(targets)}")
        missing = [t for t in wanted if t not in keys]
        if missing:
            raise InvalidEngineId(f"No such engine: {missing[0]!r}; there are {ids}")
        return [keys[t] for t in wanted], list(wanted)

    @staticmethod
    def _engine_id(target: int, ids: list[int]) -> int:
        if target >= 0:
            return target
        try:
            return ids[target]
        except IndexError:
            raise InvalidEngineId(f"No such engine: {target}; there are {len(ids)}") from None

    def wait_for_engines(
        self,
        n: int | None = None,
        *,
        timeout: float = -1,
        block: bool = True,
        interactive: bool | None = None,
        widget: bool | None = None,
    ) -> Future[None] | None:
        """Wait until there are ``n`` engines.

        Parameters
        ----------
        n : int, optional
            Default: as many as the client's cluster was started with.
        timeout : float
            Seconds; negative: forever.
        block : bool
            When False, return a future.
        interactive : bool, optional
            Whether to show a progress bar; by default in IPython.
        widget : bool, optional
            Whether the bar is a notebook widget; by default in a notebook.

        Raises
        ------
        TimeoutError
            When there are fewer after ``timeout`` seconds.
        EngineError
            When the cluster ended.
        """
        if n is None:
            if self.cluster is None or not self.cluster.n:
                raise TypeError("n engines to wait for must be specified")
            n = self.cluster.n
        if not block:
            future: Future[None] = Future()
            thread = threading.Thread(
                target=self._resolve_engines, args=(future, n, timeout), daemon=True
            )
            thread.start()
            return future
        self._wait_engines(n, timeout, _wants_bar(interactive), widget)
        return None

    def _resolve_engines(self, future: Future[None], n: int, timeout: float) -> None:
        try:
            self._wait_engines(n, timeout, False, None)
        except Exception as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    def _wait_engines(self, n: int, timeout: float, bar: bool, widget: bool | None) -> None:
        dispatcher = self._dispatcher
        deadline = None if timeout is None or timeout < 0 else time.monotonic() + timeout
        if len(self) >= n:
            return
        shown = (
            progress(
                widget=widget,
                initial=len(self),
                total=n,
                desc="engines",
                unit="engine",
                file=sys.stderr,
            )
            if bar
            else None
        )
        try:
            while True:
                with dispatcher.engines_changed:
                    have = len(dispatcher.engines)
                    if have < n and not (dispatcher.lost or dispatcher.stillborn):
                        left = None if deadline is None else deadline - time.monotonic()
                        if left is None or left > 0:
                            dispatcher.engines_changed.wait(left)
                        have = len(dispatcher.engines)
                if shown is not None:
                    shown.update(have - shown.n)
                if have >= n:
                    return
                gone = dispatcher.lost or dispatcher.stillborn
                if gone:
                    raise EngineError(f"{n} engines will not come, there are {have}: {gone}")
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError(
                        f"{n} engines not ready in {timeout} seconds. Currently ready: {have}"
                    )
        finally:
            if shown is not None:
                shown.close()

    def send_signal(
        self, sig: int | str, targets: Any = None, block: bool | None = None
    ) -> Future[None] | None:
        """Send a signal to engines' processes.

        Parameters
        ----------
        sig : int or str
            ``signal.SIGINT``, ``2`` or ``"SIGINT"``.
        """
        number = signals.Signals[sig].value if isinstance(sig, str) else int(sig)
        block = self.block if block is None else block
        sent = [self._backend.signal(key, number) for key in self._build_targets(targets)[0]]
        return self._all(sent, block)

    @staticmethod
    def _all(
        futures: Sequence[Future[Any]], block: bool, timeout: float = 30
    ) -> Future[None] | None:
        """Wait for all, or a future that does."""
        if block:
            for future in futures:
                future.result(timeout)
            return None
        together: Future[None] = Future()
        left = len(futures)
        lock = threading.Lock()

        def one(future: Future[Any]) -> None:
            nonlocal left
            with lock:
                left -= 1
                last = left == 0
            failure = future.exception()
            if failure is not None and not together.done():
                together.set_exception(failure)
            elif last and not together.done():
                together.set_result(None)

        for future in futures:
            future.add_done_callback(one)
        if not futures:
            together.set_result(None)
        return together

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
        if self._backend.name != "dask":
            raise AttributeError(f"a client on {self._backend.name} has no dask_client")
        return self._backend.native

    def become_dask(self, targets: Any = "all", **options: Any) -> Any:
        """A ``distributed.Client`` whose workers are the engines.

        The engines are Dask workers already: nothing is started.  Each finds its worker
        under the name ``distributed_worker``.  ``options``, about starting workers, are
        accepted and ignored.

        Returns
        -------
        distributed.Client
            The caller's to close.

        Raises
        ------
        AttributeError
            On another backend.
        """
        self.dask_client  # noqa: B018  raises where there is none
        self.direct_view(targets).apply_sync(calls.bind_native, "distributed_worker")
        return self._backend.native_client()

    def stop_dask(self, targets: Any = "all") -> None:
        """Take back what :meth:`become_dask` bound; the engines stay workers."""
        self.direct_view(targets).apply_sync(calls.unbind, "distributed_worker")

    become_distributed = become_dask
    stop_distributed = stop_dask

    # -- views -------------------------------------------------------------------

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

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("this client is closed; make a new Client()")
        if self._dispatcher.lost is not None:
            raise EngineError(f"{self._dispatcher.lost}; make a new Client()")

    # -- requests under way --------------------------------------------------------

    @property
    def outstanding(self) -> set[str]:
        """msg_ids of what has no reply yet; a new set each time."""
        with self._dispatcher.lock:
            return set(self._dispatcher.outstanding)

    @property
    def history(self) -> list[str]:
        """msg_ids of what this client sent, oldest first."""
        return self._dispatcher.history

    @property
    def results(self) -> MutableMapping[str, Any]:
        """Results by msg_id."""
        return self._dispatcher.results

    @property
    def metadata(self) -> MutableMapping[str, Metadata]:
        """Metadata by msg_id."""
        return self._dispatcher.metadata

    def spin(self) -> None:
        """Nothing to do: replies are received by a thread (ipyparallel.Client.spin)."""

    def spin_thread(self, interval: float = 1) -> None:
        """Nothing to do: replies are received by a thread."""

    def stop_spin_thread(self) -> None:
        """Nothing to do: replies are received by a thread."""

    def wait(self, jobs: Jobs = None, timeout: float = -1) -> bool:
        """Wait for requests to have their replies.

        Parameters
        ----------
        jobs : int, str, AsyncResult, Future or an iterable of them, optional
            Indices of ``history``, msg_ids, results or other futures; default everything
            outstanding.
        timeout : float
            Seconds; negative: forever.

        Returns
        -------
        bool
            Whether all have their replies.
        """
        futures: set[Future[Any]] = set()
        for job in _listed(self.outstanding if jobs is None else jobs):
            if isinstance(job, Future):
                futures.add(job)
                continue
            for msg_id in self._msg_ids_from_jobs(job):
                with self._dispatcher.lock:
                    future = self._dispatcher.outstanding.get(msg_id)
                if future is not None:
                    futures.add(future)
        left = None if timeout is None or timeout < 0 else timeout
        return not wait_for_all(futures, left).not_done

    def wait_interactive(
        self, jobs: Jobs = None, interval: float = 1.0, timeout: float = -1.0
    ) -> None:
        """Wait for requests, showing how many are done."""
        jobs = self.outstanding if jobs is None else jobs
        if jobs == set():
            return
        ar = self._asyncresult_from_jobs(list(jobs) if isinstance(jobs, set) else jobs)
        ar.wait_interactive(interval=interval, timeout=timeout)

    def abort(self, jobs: Jobs = None, targets: Any = None, block: bool | None = None) -> Any:
        """Keep requests that have not started from running.

        They end with :class:`~pxcompat.error.TaskAborted`.  What runs goes on; see
        :meth:`send_signal`.

        Parameters
        ----------
        jobs : int, str, AsyncResult or an iterable of them, optional
            Default: everything outstanding (on ``targets``).
        targets : optional
            Engines whose requests to abort, without ``jobs``.
        block : bool, optional
            Wait until the engines have confirmed.
        """
        block = self.block if block is None else block
        if jobs is None:
            if targets is None:
                msg_ids: Iterable[str] = self.outstanding
            else:
                keys = self._build_targets(targets)[0]
                with self._dispatcher.lock:
                    msg_ids = [m for key in keys for m in self._dispatcher.by_engine.get(key, ())]
        else:
            msg_ids = self._msg_ids_from_jobs(jobs)
        return self._all(self._abort(list(msg_ids)), block)

    def _abort(self, msg_ids: Sequence[str]) -> list[Future[list[str]]]:
        """Have requests cancelled; futures of those that were."""
        by_engine: dict[str | None, list[str]] = {}
        with self._dispatcher.lock:
            for msg_id in msg_ids:
                future = self._dispatcher.outstanding.get(msg_id)
                if future is not None:
                    balanced = self._balancer.knows(msg_id)
                    key = None if balanced else future.metadata["engine_uuid"]
                    by_engine.setdefault(key, []).append(msg_id)
        waiting = set(self._balancer.cancel_waiting(by_engine.get(None, [])))
        answers = []
        for key, ids in by_engine.items():
            ids = [m for m in ids if m not in waiting]
            if ids:
                answers.append(self._backend.cancel(key, ids))
        return answers

    def clear(self, targets: Any = None, block: bool | None = None) -> Any:
        """Empty engines' namespaces."""
        block = self.block if block is None else block
        keys, ids = self._build_targets(targets)
        futures = self._submit_apply_many(
            keys, serialize.dumps(calls.clear), serialize.dumps(((), {})), label="clear"
        )
        result = AsyncResult(self, futures, fname="clear", targets=ids, owner=True)
        if block:
            result.get()
            return None
        return result

    # -- the record ------------------------------------------------------------------

    def _msg_ids_from_jobs(self, jobs: Jobs = None) -> list[str]:
        """msg_ids of whatever names requests."""
        msg_ids: list[str] = []
        for job in _listed(jobs):
            if isinstance(job, int):
                msg_ids.append(self.history[job])
            elif isinstance(job, str):
                msg_ids.append(job)
            elif isinstance(job, AsyncResult):
                msg_ids.extend(job.msg_ids)
            else:
                raise TypeError(f"Expected msg_id, int, or AsyncResult, got {job!r}")
        return msg_ids

    def _asyncresult_from_jobs(self, jobs: Jobs = None, owner: bool = False) -> AsyncResult:
        single = not isinstance(jobs, (list, tuple, set, types.GeneratorType))
        futures: list[MessageFuture] = []
        unknown: list[str] = []
        for job in _listed(jobs):
            if isinstance(job, AsyncResult):
                futures.extend(job._children)
                single = single and job._single_result
                continue
            for msg_id in self._msg_ids_from_jobs(job):
                known = self._futures.get(msg_id)
                if known is not None:
                    futures.append(known)
                else:
                    unknown.append(msg_id)
        kind: type[AsyncResult] = AsyncResult
        if unknown:
            if not owner:
                kind = AsyncHubResult
            futures.extend(self._hub.fetch(unknown))
        children: Any = futures[0] if single and len(futures) == 1 else futures
        targets = [f.metadata["engine_id"] for f in futures]
        return kind(self, children, targets=targets, owner=owner)

    def get_result(
        self, indices_or_msg_ids: Jobs = None, block: bool | None = None, owner: bool = True
    ) -> AsyncResult:
        """The result of a request, of this client or of another.

        Parameters
        ----------
        indices_or_msg_ids : int, str, AsyncResult or an iterable of them
            Indices of ``history``, msg_ids, or results; default the latest.
        block : bool, optional
            Wait for it.
        owner : bool
            Whether the client may forget it when it has been read.

        Raises
        ------
        KeyError
            When neither this client nor any engine knows the request.
        """
        block = self.block if block is None else block
        jobs = -1 if indices_or_msg_ids is None else indices_or_msg_ids
        result = self._asyncresult_from_jobs(jobs, owner=owner)
        if block:
            result.wait()
        return result

    def resubmit(
        self, indices_or_msg_ids: Jobs = None, metadata: Any = None, block: bool | None = None
    ) -> AsyncResult:
        """Run requests again, wherever the scheduler puts them.

        Raises
        ------
        KeyError
            When no engine remembers a request.
        ValueError
            When one has not ended, or its arguments were too large to be remembered.
        """
        self._check_open()
        block = self.block if block is None else block
        jobs = -1 if indices_or_msg_ids is None else indices_or_msg_ids
        msg_ids = self._msg_ids_from_jobs(jobs)
        result = AsyncHubResult(self, self._hub.resubmit(msg_ids, self._send_again))
        if block:
            result.wait()
        return result

    def _send_again(self, request: Request) -> MessageFuture:
        header = {k: v for k, v in request.header.items() if k not in ("client", "submitted")}
        future = self._dispatcher.register(request.kind, request.label, None, header)
        header["resubmitted"] = request.msg_id
        request.msg_id = future.msg_id
        request.header = self._dispatcher.header(future, header)
        self._backend.send_balanced([request], None)
        return future

    def result_status(self, msg_ids: Jobs, status_only: bool = True) -> dict[str, Any]:
        """Which requests are done.

        Parameters
        ----------
        msg_ids : int, str, AsyncResult or an iterable of them
        status_only : bool
            When False, the results are there too, by msg_id.

        Returns
        -------
        dict
            ``completed`` and ``pending``: lists of msg_ids.

        Raises
        ------
        RemoteError, CompositeError
            With ``status_only=False``, when a request failed.
        KeyError
            When nobody knows a request.
        """
        ids = self._msg_ids_from_jobs(msg_ids)
        status: dict[str, Any] = {"completed": [], "pending": []}
        elsewhere = []
        for msg_id in ids:
            if msg_id in self.results:
                status["completed"].append(msg_id)
            elif msg_id in self._dispatcher.outstanding:
                status["pending"].append(msg_id)
            else:
                elsewhere.append(msg_id)
        if elsewhere:
            for msg_id, state in self._hub.status(elsewhere).items():
                done = state not in ("queued", "running")
                status["completed" if done else "pending"].append(msg_id)
        if status_only:
            return status
        failures: list[Exception] = []
        for msg_id in status["completed"]:
            future = self._futures.get(msg_id) or self._hub.fetch([msg_id])[0]
            failure = future.exception(self._hub_timeout)
            if isinstance(failure, Exception):
                failures.append(failure)
            status[msg_id] = future.value()
        if len(ids) == 1 and failures:
            raise failures[0]
        collect_exceptions(failures, "result_status")
        return status

    _hub_timeout = 30.0

    def queue_status(self, targets: Any = "all", verbose: bool = False) -> Any:
        """How busy engines are.

        Parameters
        ----------
        verbose : bool
            Lists of msg_ids in place of numbers.

        Returns
        -------
        dict
            By engine id: ``queue`` and ``tasks`` (requests to the engine, and balanced ones,
            that have not ended) and ``completed`` (a number); and ``unassigned``, balanced
            requests on no engine yet.  For a single target, that engine's part alone.
        """
        keys, ids = self._build_targets(targets) if self.ids or targets != "all" else ([], [])
        status = self._hub.queue_status(keys, verbose)
        return status[ids[0]] if isinstance(targets, int) else status

    def hub_history(self) -> list[str]:
        """msg_ids of all requests that engines remember, of all clients, oldest first."""
        return self._hub.history()

    def db_query(
        self, query: Mapping[str, Any], keys: str | Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """Records of requests, of all clients, oldest first.

        Parameters
        ----------
        query : dict
            Key to value, or to operators: ``{"submitted": {"$lt": datetime}}``; see
            :func:`pxcompat.engine.records.matches`.
        keys : str or list of str, optional
            Which keys of the records to give; ``msg_id`` always is.
        """
        keys = [keys] if isinstance(keys, str) else keys
        return self._hub.query(query, keys)

    def purge_local_results(self, jobs: Jobs = (), targets: Any = ()) -> None:
        """Forget results that this client keeps.

        Parameters
        ----------
        jobs : "all", or whatever names requests
        targets : int or list of int
            Engines whose results to forget.

        Raises
        ------
        RuntimeError
            When a request has not ended.
        ValueError
            When neither is given.
        """
        if jobs == "all":
            if self.outstanding:
                raise RuntimeError(f"Can't purge outstanding tasks: {self.outstanding}")
            msg_ids = {*self.results, *self.metadata}
        else:
            msg_ids = self._to_purge(jobs, targets)
            waiting = self.outstanding & msg_ids
            if waiting:
                raise RuntimeError(f"Can't purge outstanding tasks: {waiting}")
        for msg_id in msg_ids:
            self.results.pop(msg_id, None)
            self.metadata.pop(msg_id, None)

    def _to_purge(self, jobs: Jobs, targets: Any) -> set[str]:
        no_targets = not targets and targets != 0
        if no_targets and not jobs and jobs != 0:
            raise ValueError("Must specify at least one of `targets` and `jobs`")
        msg_ids = set(self._msg_ids_from_jobs(jobs)) if jobs or jobs == 0 else set()
        if not no_targets:
            keys = set(self._build_targets(targets)[0])
            msg_ids.update(m for m, md in list(self.metadata.items()) if md["engine_uuid"] in keys)
        return msg_ids

    def purge_hub_results(self, jobs: Jobs = (), targets: Any = ()) -> None:
        """Have engines forget requests; arguments as :meth:`purge_local_results`."""
        everybody = list(self._dispatcher.engines)
        if jobs == "all":
            self._hub.purge(None, everybody)
            return
        self._to_purge(jobs, targets)
        if targets or targets == 0:
            self._hub.purge(None, self._build_targets(targets)[0])
        if jobs or jobs == 0:
            self._hub.purge(self._msg_ids_from_jobs(jobs), everybody)

    def purge_results(self, jobs: Jobs = (), targets: Any = ()) -> None:
        """Forget requests here and on the engines."""
        self.purge_local_results(jobs=jobs, targets=targets)
        self.purge_hub_results(jobs=jobs, targets=targets)

    def purge_everything(self) -> None:
        """Forget every request, here and on the engines, and the history."""
        self.purge_results("all")
        self.history.clear()


class _Futures(Mapping[str, MessageFuture]):
    """Futures of requests that are outstanding, or finished and kept, by msg_id."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def __getitem__(self, msg_id: str) -> MessageFuture:
        with self._dispatcher.lock:
            future = self._dispatcher.outstanding.get(msg_id)
            return future if future is not None else self._dispatcher.results.futures[msg_id]

    def __iter__(self) -> Iterator[str]:
        with self._dispatcher.lock:
            return iter([*self._dispatcher.outstanding, *self._dispatcher.results])

    def __len__(self) -> int:
        with self._dispatcher.lock:
            return len(self._dispatcher.outstanding) + len(self._dispatcher.results)


def _hang_up(backend: Any, balancer: Balancer) -> None:
    balancer.close()
    backend.close()


def _listed(jobs: Jobs) -> Iterable[Any]:
    return jobs if isinstance(jobs, (list, tuple, set, types.GeneratorType)) else [jobs]


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


def _wants_bar(interactive: bool | None) -> bool:
    from .progress import noninteractive

    if interactive is not None:
        return interactive
    if noninteractive():
        return False
    from IPython import get_ipython

    return get_ipython() is not None


def _tell(text: str) -> None:
    """Say something to the person at the terminal or notebook, where bars are shown too."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()

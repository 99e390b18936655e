"""A client's engines: which there are, naming them, waiting for them, signalling them."""

from __future__ import annotations

import logging
import signal as signals
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from .dispatch import Dispatcher
from .engine.interrupts import OwnFuture
from .error import ClientClosed, EngineError, InvalidEngineId, NoEnginesRegistered, no_restart
from .progress import aside, noninteractive
from .protocol import Backend
from .util import ReverseDict, progress

if TYPE_CHECKING:
    from .cluster import Cluster
    from .cluster.lease import Lease

__all__ = ["Engines"]

log = logging.getLogger("pxcompat")

#: seconds for engines that are restarted to end, and for their successors to come
RESTART_TIMEOUT = 60


class Engines:
    """The part of a Client that is about its engines."""

    block: bool
    _closed: bool
    cluster: Cluster | None
    _lease: Lease
    _dispatcher: Dispatcher
    _backend: Backend

    def _check_open(self) -> None:
        if self._closed:
            raise ClientClosed("this client is closed; make a new Client()")
        if self._dispatcher.lost is not None:
            raise EngineError(f"{self._dispatcher.lost}; make a new Client()")

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

    def _engines_by_host(self) -> Counter[str]:
        """How many engines each machine has."""
        with self._dispatcher.lock:
            return Counter(info.host for info in self._dispatcher.engines.values())

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
            keys = self._dispatcher.keys.copy()
        if isinstance(targets, int) and targets in keys:
            return [keys[targets]], [targets]
        ids = sorted(keys)
        if not ids:
            # where the process owns the cluster, nobody else could start them
            how = ": a new Client(n=2) starts some" if self._lease.share is not None else ""
            raise NoEnginesRegistered(
                self._dispatcher.lost or "Can't build targets without any engines" + how
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
            When the cluster ended, or the client is closed.
        """
        if n is None:
            if self.cluster is None or not self.cluster.n:
                raise TypeError("n engines to wait for must be specified")
            n = self.cluster.n
        if not block:
            future: Future[None] = OwnFuture()
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

    @property
    def _hopeless(self) -> str | None:
        """Why no engine that is waited for will come."""
        return "this client is closed" if self._closed else self._dispatcher.hopeless

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
                file=aside(),
            )
            if bar
            else None
        )
        try:
            while True:
                with dispatcher.engines_changed:
                    have = len(dispatcher.engines)
                    if have < n and not self._hopeless:
                        left = None if deadline is None else deadline - time.monotonic()
                        if left is None or left > 0:
                            dispatcher.engines_changed.wait(left)
                        have = len(dispatcher.engines)
                if shown is not None:
                    shown.update(have - shown.n)
                if have >= n:
                    return
                if gone := self._hopeless:
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
        self._check_open()
        sent = [self._backend.signal(key, number) for key in self._build_targets(targets)[0]]
        return self._all(sent, block)

    def _restart(self, keys: Sequence[str], block: bool) -> None:
        """Have engines end, and others start under their ids."""
        dispatcher, backend = self._dispatcher, self._backend
        if not backend.capabilities.restart_engines:
            raise no_restart(backend.name)
        done = backend.restart_engines(keys)
        if not block:
            done.add_done_callback(_log_failure)
            return
        started = done.result(RESTART_TIMEOUT)
        deadline = time.monotonic() + RESTART_TIMEOUT
        with dispatcher.engines_changed:
            while not all(key in dispatcher.ids for key in started):
                if gone := self._hopeless:
                    raise EngineError(f"not all of {len(started)} engines are back: {gone}")
                if not dispatcher.engines_changed.wait(deadline - time.monotonic()):
                    raise TimeoutError(
                        f"not all of {len(started)} engines are back within "
                        f"{RESTART_TIMEOUT} s; their logs may say why"
                    )

    def _hear_of(self, keys: Sequence[str], timeout: float) -> None:
        """Wait until engines that are up are known here, too."""
        dispatcher = self._dispatcher
        with dispatcher.engines_changed:
            dispatcher.engines_changed.wait_for(
                lambda: dispatcher.lost or all(key in dispatcher.ids for key in keys), timeout
            )

    @staticmethod
    def _all(
        futures: Sequence[Future[Any]], block: bool, timeout: float = 30
    ) -> Future[None] | None:
        """Wait for all, or a future that does."""
        if block:
            for future in futures:
                future.result(timeout)
            return None
        together: Future[None] = OwnFuture()
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


def _log_failure(done: Future[Any]) -> None:
    if (failure := done.exception()) is not None:
        log.error("engines were not restarted: %s", failure)


def _wants_bar(interactive: bool | None) -> bool:
    if interactive is not None:
        return interactive
    if noninteractive():
        return False
    from IPython import get_ipython

    return get_ipython() is not None

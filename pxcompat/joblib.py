"""joblib on a load-balanced view (``ipyparallel.joblib``).

Imported when asked for, since joblib is optional::

    rc.load_balanced_view().register_joblib_backend()
    with joblib.parallel_backend("ipyparallel"):
        joblib.Parallel()(joblib.delayed(f)(i) for i in range(10))
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from joblib import cpu_count
from joblib.parallel import AutoBatchingMixin, ParallelBackendBase, register_parallel_backend

from .engine.nested import on_an_engine

if TYPE_CHECKING:
    from .lbview import LoadBalancedView

__all__ = ["IPythonParallelBackend", "register"]


class IPythonParallelBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Runs joblib's batches as tasks of a view.

    While an engine runs a batch, what has threads of its own there (BLAS, OpenMP, numba, a
    nested ``Parallel``) is held to the engine's share of its machine's cores: to
    ``inner_max_num_threads`` where that is given, and to what a variable such as
    ``OMP_NUM_THREADS`` of the engine's own says.  Libraries that are loaded already
    can only be told where threadpoolctl is installed.

    Parameters
    ----------
    view : LoadBalancedView, optional
        Default: a view of a ``Client()`` of its own, with ``use_cloudpickle``, closed when joblib
        is done; another one when it goes on, with the next ``Parallel`` of a ``parallel_config``.
    inner_max_num_threads : int, optional
        Threads for a batch.
    """

    supports_inner_max_num_threads = True
    supports_timeout = True
    # on an engine joblib must wait for results itself, which then may be the engine's own
    # to compute; elsewhere it wants to be told of them
    supports_retrieve_callback = True

    def __init__(self, view: LoadBalancedView | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._owns_client = view is None
        self._view = self._own_view() if view is None else view
        self._ended = False
        self.supports_retrieve_callback = not on_an_engine()

    @staticmethod
    def _own_view() -> LoadBalancedView:
        from . import Client

        client = Client()
        # what joblib is given comes with names of its own, as with its other backends
        client[:].use_cloudpickle()
        return client.load_balanced_view()

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """As many jobs at a time as the view has engines."""
        if self._ended:  # joblib asks whenever it begins
            self._view, self._ended = self._own_view(), False
        return len(self._view)

    def submit(
        self, func: Callable[[], Any], callback: Callable[[Future[Any]], Any] | None = None
    ) -> Future[Any]:
        """Run one batch."""
        engines = self._view.client._engines_by_host()
        future: Future[Any] = self._view.apply_async(
            _run_batch, func, self.inner_max_num_threads, engines
        )
        if callback:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """The results of a batch that has ended."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel batches that have not started, after one has failed."""
        self._view.abort(block=True)

    def terminate(self) -> None:
        """Close the client, if it is ours."""
        if self._owns_client:
            self._view.client.close()
            self._ended = True


def _run_batch(func: Callable[[], Any], most: int | None, engines: Counter[str]) -> Any:
    """Run a batch, on an engine that shares its machine's cores with others."""
    with _threads(most or max(1, cpu_count() // (engines[socket.gethostname()] or 1)), bool(most)):
        return func()


@contextmanager
def _threads(n: int, insist: bool) -> Iterator[None]:
    """Hold whatever has threads of its own to ``n`` of them.

    A library that is loaded meanwhile reads variables, and keeps to them.
    """
    variables = dict.fromkeys(ParallelBackendBase.MAX_NUM_THREADS_VARS, str(n))
    # how many cores joblib itself, nested, takes there to be
    variables["LOKY_MAX_CPU_COUNT"] = str(n)
    # once loaded, numba takes a change of its variable for a mistake
    variables.pop("NUMBA_NUM_THREADS", None)
    before = {name: os.environ.get(name) for name in variables}
    chosen = any(before.values()) and not insist  # by whoever runs this machine
    os.environ.update({k: v for k, v in variables.items() if insist or before[k] is None})
    try:
        with ExitStack() as stack:
            if not chosen and importlib.util.find_spec("threadpoolctl") is not None:
                threadpoolctl = importlib.import_module("threadpoolctl")
                stack.enter_context(threadpoolctl.threadpool_limits(n))
            numba = sys.modules.get("numba")
            if not chosen and numba is not None:
                stack.callback(numba.set_num_threads, numba.get_num_threads())
                numba.set_num_threads(min(n, numba.config.NUMBA_NUM_THREADS))
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def register(
    name: str = "ipyparallel",
    make_default: bool = False,
    view: LoadBalancedView | None = None,
) -> None:
    """Make joblib know the backend (``ipyparallel.joblib.register``).

    Parameters
    ----------
    name : str
        What joblib is to call it.
    make_default : bool
        Whether joblib uses it without being told to.
    view : LoadBalancedView, optional
        Where to run; default a client's own.
    """
    # a view without engines is falsy, and still the one to use
    factory = IPythonParallelBackend if view is None else partial(IPythonParallelBackend, view=view)
    register_parallel_backend(name, factory, make_default=make_default)

"""joblib on a load-balanced view (``ipyparallel.joblib``).

Imported when asked for, since joblib is optional::

    rc.load_balanced_view().register_joblib_backend()
    with joblib.parallel_backend("ipyparallel"):
        joblib.Parallel()(joblib.delayed(f)(i) for i in range(10))
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from joblib.parallel import AutoBatchingMixin, ParallelBackendBase, register_parallel_backend

if TYPE_CHECKING:
    from .lbview import LoadBalancedView

__all__ = ["IPythonParallelBackend", "register"]


class IPythonParallelBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Runs joblib's batches as tasks of a view.

    Parameters
    ----------
    view : LoadBalancedView, optional
        Default: a view of a ``Client()`` of its own, closed when joblib is done.
    """

    supports_retrieve_callback = True

    def __init__(self, view: LoadBalancedView | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._owns_client = view is None
        if view is None:
            from . import Client

            view = Client().load_balanced_view()
        self._view = view

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """As many jobs at a time as the view has engines."""
        return len(self._view)

    def submit(
        self, func: Callable[[], Any], callback: Callable[[Future[Any]], Any] | None = None
    ) -> Future[Any]:
        """Run one batch."""
        future: Future[Any] = self._view.apply_async(func)
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

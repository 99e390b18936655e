"""A view as a ``concurrent.futures.Executor``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .asyncresult import AsyncResult
    from .baseview import View

__all__ = ["ViewExecutor"]


class ViewExecutor(Executor):
    """A view as a PEP 3148 executor: ``view.executor``, ``rc.executor()``
    (ipyparallel.client.view.ViewExecutor).

    Attributes
    ----------
    view : View
        The view that does the work.
    """

    def __init__(self, view: View) -> None:
        self.view = view

    @property
    def _max_workers(self) -> int:
        # what libraries read to learn how much runs at a time
        return len(self.view)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> AsyncResult:
        """``view.apply_async(fn, *args, **kwargs)``: its AsyncResult is a Future."""
        return self.view.apply_async(fn, *args, **kwargs)

    def map(  # type: ignore[override]
        self,
        func: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        **kwargs: Any,
    ) -> Iterator[Any]:
        """``view.imap(func, *iterables, **kwargs)``.

        Parameters
        ----------
        timeout : float, optional
            Not supported; warns.
        chunksize : int
            No effect, as in a ThreadPoolExecutor; use ``view.map_async(chunksize=...)``.
        """
        if timeout is not None:
            warnings.warn(
                "ViewExecutor.map has no timeout: pass one to view.map_async(...).get(timeout)",
                stacklevel=2,
            )
        return self.view.imap(func, *iterables, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for the view's results.  The engines go on living.

        Parameters
        ----------
        wait : bool
            Whether to wait, also for maps that still read their input.
        cancel_futures : bool
            Whether to abort what has not started.
        """
        if cancel_futures:
            self.view._cancel_maps()
            self.view.abort(block=wait)
        if wait:
            self.view._finish_maps()
            self.view.wait()

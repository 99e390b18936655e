"""What every view has: flags, a record of its requests, the client's methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from operator import methodcaller
from typing import TYPE_CHECKING, Any, ClassVar

from traitlets import Any as AnyTrait, Bool, HasTraits

from .asyncresult import AsyncResult, several
from .bounded import BoundedList
from .cards import view_card
from .engine.interrupts import held_from_the_first_on
from .executor import ViewExecutor
from .futures import MessageFuture
from .protocol import Frames
from .remotefunction import ParallelFunction, RemoteFunction, parallel, remote

if TYPE_CHECKING:
    from .client import Client

__all__ = ["View"]


class View(HasTraits):
    """What every view of a client's engines can do (ipyparallel.client.view.View).

    Not to be used itself.

    Parameters
    ----------
    client : Client
    socket
        Ignored: where ipyparallel takes a ZeroMQ socket.
    **flags
        See :meth:`set_flags`.

    Attributes
    ----------
    block : bool
        Whether calls wait and return results; ``client.block`` at first.
    track : bool
        Kept for compatibility: ``AsyncResult.sent`` is always true to the fact.
    targets : int, list of int, ``"all"`` or None
        The engines.
    label : str or None
        What to call requests in their metadata and in dashboards.
    history : list of str
        msg_ids of the view's requests, the latest 65,536 of them at least.
    results : dict
        The client's results by msg_id.
    executor : ViewExecutor
        This view as a :class:`concurrent.futures.Executor`.
    """

    block = Bool(False)
    track = Bool(False)
    targets: Any = AnyTrait()
    label: Any = AnyTrait()

    _flag_names: ClassVar[Sequence[str]] = ("targets", "block", "track", "label")

    def __init__(self, client: Client, socket: Any = None, **flags: Any) -> None:
        if type(self) is View:
            raise TypeError("View is only a base: use DirectView or LoadBalancedView")
        super().__init__()
        self.client = client
        self.results = client.results
        self.history: list[str] = BoundedList()
        self._outstanding: set[str] = set()
        self._sync_at = 1024
        self.executor = ViewExecutor(self)
        self.block = client.block
        self.set_flags(**flags)

    def __repr__(self) -> str:
        targets = str(self.targets)
        if len(targets) > 16:
            targets = targets[:12] + "...]"
        return f"<{type(self).__name__} {targets}>"

    def _repr_html_(self) -> str:
        return view_card(self)

    def __len__(self) -> int:
        if isinstance(self.targets, list):
            return len(self.targets)
        return 1 if isinstance(self.targets, int) else len(self.client.ids)

    # -- flags -----------------------------------------------------------------

    def set_flags(self, **kwargs: Any) -> View:
        """Set flags of the view (``block``, ``track``, ``targets``, ``label``).

        Returns
        -------
        View
            This view.

        Raises
        ------
        KeyError
            When there is no such flag.
        """
        for name in kwargs:
            if name not in self._flag_names:
                raise KeyError(f"Invalid name: {name!r} (flags: {', '.join(self._flag_names)})")
        for name, value in kwargs.items():
            setattr(self, name, value)
        return self

    @contextmanager
    def temp_flags(self, **kwargs: Any) -> Iterator[None]:
        """Set flags for the time of a ``with`` block.

        Examples
        --------
        >>> with view.temp_flags(block=False):      # doctest: +SKIP
        ...     ar = view.apply(f)
        """
        saved = {name: getattr(self, name) for name in self._flag_names}
        try:
            self.set_flags(**kwargs)
            yield
        finally:
            for name, value in saved.items():
                setattr(self, name, value)

    def _request_info(self, name: str, label: Any, copy: bool | None = True) -> dict[str, Any]:
        """What to call a request in a dashboard, the user's own label for its metadata, and
        whether arrays are to be copied (None: as configured)."""
        label = self.label if label is None else label
        header: dict[str, Any] = {}
        if label is not None:
            header["label"] = label
        if self.track:
            header["track"] = True
        if not (self.client._copy if copy is None else copy):
            header["copy"] = False
        return {"label": _short(name if label is None else str(label)), "header": header}

    # -- what is outstanding -----------------------------------------------------

    @property
    def outstanding(self) -> set[str]:
        """msg_ids of this view's requests that have not ended."""
        self._sync_results()
        return self._outstanding

    def _sync_results(self) -> None:
        self._outstanding &= self.client.outstanding

    def _sent(self, futures: Iterable[MessageFuture]) -> None:
        """Remember requests of this view."""
        for future in futures:
            self.history.append(future.msg_id)
            self._outstanding.add(future.msg_id)
        # what has ended is dropped now and then, not at each request: that would be quadratic
        if len(self._outstanding) > self._sync_at:
            self._sync_results()
            self._sync_at = max(1024, 2 * len(self._outstanding))

    def _outcome(
        self,
        send: Callable[[], AsyncResult],
        block: bool | None,
        wait: Callable[[Any], Any] = methodcaller("get"),
        *,
        many: bool = False,
    ) -> Any:
        """Send requests and, when blocking, wait for their result; the AsyncResult itself when the
        user interrupts that, be it in the midst of sending.

        ``many`` are sent while the first are running, whose replies are wanted meanwhile.
        """
        if not (self.block if block is None else block):
            return send()
        result = None
        try:
            with held_from_the_first_on(), nullcontext() if many else self.client._awaited():
                result = send()
            return wait(result)
        except KeyboardInterrupt:
            if result is None:
                raise
            return result

    # -- apply -------------------------------------------------------------------

    def _really_apply(
        self,
        f: Callable[..., Any],
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        block: bool | None = None,
    ) -> Any:
        """:meth:`apply`; subclasses take flags for one call too."""
        raise NotImplementedError

    def apply(self, f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call ``f(*args, **kwargs)`` on the engines.

        Returns
        -------
        AsyncResult
            Unless the view is blocking: then the result, or the list of results when the
            view is of a list of engines.

        Raises
        ------
        SerializationError
            When something cannot be pickled.
        NoEnginesRegistered, InvalidEngineId
            When an engine is not there.
        RemoteError, CompositeError
            When blocking, and the function raised.
        """
        return self._really_apply(f, args, kwargs)

    def apply_async(self, f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> AsyncResult:
        """:meth:`apply`, not blocking: returns an AsyncResult."""
        result: AsyncResult = self._really_apply(f, args, kwargs, block=False)
        return result

    def apply_sync(self, f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """:meth:`apply`, blocking: returns the result.

        Interrupted by Ctrl-C, it returns the AsyncResult.
        """
        return self._really_apply(f, args, kwargs, block=True)

    # -- the client's methods, for this view's engines ---------------------------

    def spin(self) -> None:
        """Do nothing: results arrive by themselves.  Kept for compatibility."""
        self.client.spin()

    def wait(self, jobs: Any = None, timeout: float = -1) -> bool:
        """Wait for requests.

        Parameters
        ----------
        jobs : msg_id, int, AsyncResult or a list of these, optional
            Ints index :attr:`history`.  Default: all of this view's.
        timeout : float
            Seconds; negative: for ever.

        Returns
        -------
        bool
            Whether all are done.
        """
        jobs = list(self.outstanding) if jobs is None else self._named(jobs)
        return self.client.wait(jobs, timeout)

    def _named(self, jobs: Any) -> Any:
        """Jobs with indices of the history replaced by msg_ids."""
        if isinstance(jobs, int):
            return self.history[jobs]
        if several(jobs):
            return [self.history[job] if isinstance(job, int) else job for job in jobs]
        return jobs

    def abort(self, jobs: Any = None, targets: Any = None, block: bool | None = None) -> Any:
        """Cancel requests that have not started.  To stop one that runs, signal its engine.

        Parameters
        ----------
        jobs : msg_id, AsyncResult or a list of these, optional
            Default: all of this view's that are outstanding.
        targets : optional
            Of these, only what was sent to these engines; default: of jobs that are named, what
            was sent to this view's.
        """
        if targets is None and jobs is not None:
            targets = self.targets
        return self.client.abort(
            jobs=list(self.outstanding) if jobs is None else self._named(jobs),
            targets=targets,
            block=self.block if block is None else block,
        )

    def queue_status(self, targets: Any = None, verbose: bool = False) -> Any:
        """What is queued on the engines; see ``Client.queue_status``."""
        targets = self.targets if targets is None else targets
        return self.client.queue_status(targets=targets, verbose=verbose)

    def purge_results(self, jobs: Any = (), targets: Any = ()) -> Any:
        """Have results forgotten; see ``Client.purge_results``."""
        if targets is None or targets == "all":
            targets = self.targets
        return self.client.purge_results(
            jobs=list(jobs) if isinstance(jobs, tuple) else jobs,
            targets=list(targets) if isinstance(targets, tuple) else targets,
        )

    def shutdown(
        self,
        targets: Any = None,
        restart: bool = False,
        hub: bool = False,
        block: bool | None = None,
    ) -> Any:
        """End the engines, and with ``hub`` the cluster; see ``Client.shutdown``."""
        if targets is None or targets == "all":
            targets = self.targets
        block = self.block if block is None else block
        return self.client.shutdown(targets=targets, restart=restart, hub=hub, block=block)

    def get_result(
        self, indices_or_msg_ids: Any = None, block: bool | None = None, owner: bool = False
    ) -> Any:
        """The AsyncResult of earlier requests.

        Parameters
        ----------
        indices_or_msg_ids : int, msg_id, AsyncResult or a list of these
            Ints index :attr:`history`; default the latest.
        block : bool, optional
            Whether to wait and return the result itself.
        """
        jobs = self._named(-1 if indices_or_msg_ids is None else indices_or_msg_ids)
        return self.client.get_result(jobs, block=block, owner=owner)

    # -- map ---------------------------------------------------------------------

    def map(self, f: Callable[..., Any], *sequences: Iterable[Any], **kwargs: Any) -> Any:
        """Call a function on each item of sequences; see the subclasses."""
        raise NotImplementedError

    def map_async(self, f: Callable[..., Any], *sequences: Iterable[Any], **kwargs: Any) -> Any:
        """:meth:`map`, not blocking: returns an AsyncMapResult."""
        if "block" in kwargs:
            raise TypeError("map_async doesn't take a `block` keyword argument.")
        return self.map(f, *sequences, block=False, **kwargs)

    def map_sync(self, f: Callable[..., Any], *sequences: Iterable[Any], **kwargs: Any) -> Any:
        """:meth:`map`, blocking: returns the list of results."""
        if "block" in kwargs:
            raise TypeError("map_sync doesn't take a `block` keyword argument.")
        return self.map(f, *sequences, block=True, **kwargs)

    def imap(
        self, f: Callable[..., Any], *sequences: Iterable[Any], **kwargs: Any
    ) -> Iterator[Any]:
        """:meth:`map`, as an iterator over results as they come."""
        return iter(self.map_async(f, *sequences, **kwargs))

    def _destinations(self, length: int, chunksize: int | None) -> Sequence[Any]:
        """Where the parts of a sequence so long are to go, one destination a part."""
        raise NotImplementedError

    def _send_parts(
        self,
        destinations: Sequence[Any],
        function: Frames,
        parts: Sequence[tuple[Any, ...]],
        name: str,
        each: bool,
    ) -> tuple[list[MessageFuture], list[int] | None]:
        """Call a pickled function with each part, or on ``each`` item of it.

        Returns the futures, and the ids of the engines where they are known.
        """
        raise NotImplementedError

    def _finish_maps(self) -> None:
        """Wait until maps that read their input as they go have read all of it."""

    def _cancel_maps(self) -> None:
        """Let maps that read their input as they go read no more."""

    # -- decorators --------------------------------------------------------------

    def remote(
        self, block: bool | None = None, **flags: Any
    ) -> Callable[[Callable[..., Any]], RemoteFunction]:
        """Decorate a function to run on the engines; see :func:`pxcompat.remote`."""
        return remote(self, block=self.block if block is None else block, **flags)

    def parallel(
        self, dist: str = "b", block: bool | None = None, **flags: Any
    ) -> Callable[[Callable[..., Any]], ParallelFunction]:
        """Decorate a function to run on parts of sequences; see :func:`pxcompat.parallel`."""
        return parallel(self, dist=dist, block=self.block if block is None else block, **flags)


def _short(text: str, length: int = 40) -> str:
    """The first line, shortened, for a dashboard."""
    # schedulers send it, and have no bytes for lone surrogates
    return text.partition("\n")[0][:length].encode(errors="backslashreplace").decode()

"""The view that lets a scheduler choose engines (``ipyparallel.LoadBalancedView``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from traitlets import Any as AnyTrait, CFloat, Integer

from . import serialize
from .asyncresult import AsyncResult
from .baseview import View
from .dependency import Dependency
from .engine.interrupts import uninterrupted
from .futures import MessageFuture
from .lazymap import LazyMap, LazyMapIterator
from .protocol import Frames
from .remotefunction import ParallelFunction, getname

if TYPE_CHECKING:
    from .client import Client

__all__ = ["LazyMapIterator", "LoadBalancedView"]

#: results of an ``imap`` over an input of unknown length that may wait for its reader
MAX_UNREAD = 4096


class LoadBalancedView(View):
    """Engines among which the cluster's scheduler chooses, one a task
    (ipyparallel.LoadBalancedView).

    Parameters
    ----------
    client : Client
    socket
        Ignored: where ipyparallel takes a ZeroMQ socket.
    **flags
        See :meth:`set_flags`.

    Attributes
    ----------
    targets : list of int or None
        The engines to choose from; None: any, also of those to come.
    after, follow : msg_ids, AsyncResults, Dependency or None
        Run a task only after these have ended; only on an engine where these ran.
    timeout : float
        Seconds in which those dependencies must be met; 0: no limit.
    retries : int
        How often a task that failed is tried on another engine.
    """

    follow: Any = AnyTrait()
    after: Any = AnyTrait()
    timeout = CFloat(0.0, allow_none=True)
    retries = Integer(0)

    _flag_names: ClassVar[Sequence[str]] = (
        *View._flag_names,
        "follow",
        "after",
        "timeout",
        "retries",
    )

    def __init__(self, client: Client, socket: Any = None, **flags: Any) -> None:
        super().__init__(client, socket, **flags)
        self._outstanding_maps: set[LazyMap] = set()

    def set_flags(self, **kwargs: Any) -> View:
        """Set flags of the view: see the class, and :meth:`View.set_flags`.

        Raises
        ------
        KeyError
            When there is no such flag.
        ValueError
            When ``after`` or ``follow`` is no dependency, or ``timeout`` negative.
        """
        for name in ("follow", "after"):
            try:
                _dependency(kwargs.get(name))
            except TypeError as error:
                raise ValueError(f"Invalid dependency: {kwargs[name]!r}") from error
        timeout = kwargs.get("timeout")
        if isinstance(timeout, (int, float)) and timeout < 0:
            raise ValueError(f"Invalid timeout: {timeout}")
        return super().set_flags(**kwargs)

    def _task_options(
        self,
        name: str,
        *,
        targets: Any = None,
        after: Any = None,
        follow: Any = None,
        timeout: float | None = None,
        retries: int | None = None,
        label: Any = None,
    ) -> dict[str, Any]:
        """The keywords of ``_submit_balanced``, by the flags of this moment."""
        targets = self.targets if targets is None else targets
        retries = self.retries if retries is None else retries
        if not isinstance(retries, int):
            raise TypeError(f"retries must be int, not {type(retries)!r}")
        return {
            "targets": None if targets is None else self.client._build_targets(targets)[0],
            "after": _dependency(self.after if after is None else after),
            "follow": _dependency(self.follow if follow is None else follow),
            "timeout": (self.timeout if timeout is None else timeout) or None,
            "retries": retries,
            **self._request_info(name, label),
        }

    def _submit(
        self, name: str, function: Frames, options: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> AsyncResult:
        """Send one call of a pickled function."""
        arguments = serialize.dumps((args, kwargs), name=f"the arguments of {name}", natives=True)
        futures = self.client._submit_balanced([(function, arguments)], **options)
        self._sent(futures)
        return AsyncResult(self.client, futures[0], fname=name, targets=None, owner=True)

    def _really_apply(
        self,
        f: Callable[..., Any],
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        block: bool | None = None,
        *,
        track: bool | None = None,
        after: Any = None,
        follow: Any = None,
        timeout: float | None = None,
        targets: Any = None,
        retries: int | None = None,
        label: Any = None,
    ) -> Any:
        """:meth:`apply` with flags for this call alone."""
        name = getname(f)
        options = self._task_options(
            name,
            targets=targets,
            after=after,
            follow=follow,
            timeout=timeout,
            retries=retries,
            label=label,
        )
        function = serialize.dumps(f, name=name, natives=True)
        send = partial(self._submit, name, function, options, *(args or ()), **(kwargs or {}))
        return self._outcome(send, block)

    # -- map ---------------------------------------------------------------------

    def map(  # type: ignore[override]
        self,
        f: Callable[..., Any],
        *sequences: Iterable[Any],
        block: bool | None = None,
        chunksize: int | None = 1,
        ordered: bool = True,
        return_exceptions: bool = False,
        label: Any = None,
    ) -> Any:
        """Call a function on each item of sequences, ``chunksize`` items a task.

        Parameters
        ----------
        f : callable
        *sequences : iterables
            As for the builtin ``map``; iterators are read first.
        block : bool, optional
            Whether to wait; default ``self.block``.
        chunksize : int
            How many items one task has.  More make fewer tasks: worth it when an item
            takes less than some milliseconds.
        ordered : bool
            Whether iterating over the result follows the input, or what comes first.
        return_exceptions : bool
            Whether exceptions are returned among the results, not raised.
        label : str, optional
            Default ``self.label``.

        Returns
        -------
        AsyncMapResult
            Or the list of results when blocking; ``[]`` for empty input.
        """
        if not sequences:
            raise AssertionError("must have some sequences to map onto!")
        function = ParallelFunction(
            self,
            f,
            block=self.block if block is None else block,
            chunksize=chunksize,
            ordered=ordered,
            return_exceptions=return_exceptions,
            label=self.label if label is None else label,
        )
        return function.map(*sequences)

    def _destinations(self, length: int, chunksize: int | None) -> Sequence[Any]:
        if chunksize is not None and chunksize < 0:
            raise ValueError(f"chunksize must be an int from 1, not {chunksize!r}")
        return [None] * -(-length // (chunksize or 1))

    def _send_parts(
        self,
        destinations: Sequence[Any],
        function: Frames,
        parts: Sequence[tuple[Any, ...]],
        name: str,
        each: bool,
    ) -> tuple[list[MessageFuture], list[int] | None]:
        what = f"the arguments of {name}"
        requests = [
            (function, serialize.dumps((part, {}), name=what, natives=True)) for part in parts
        ]
        futures = self.client._submit_balanced(requests, map=each, **self._task_options(name))
        self._sent(futures)
        return futures, None

    def imap(  # type: ignore[override]
        self,
        f: Callable[..., Any],
        *sequences: Iterable[Any],
        ordered: bool = True,
        max_outstanding: int | str = "auto",
        return_exceptions: bool = False,
    ) -> LazyMapIterator:
        """Call a function on each item of iterables, which are read as engines come free.

        They may be endless: break off with ``.cancel()`` of what is returned.

        Parameters
        ----------
        f : callable
        *sequences : iterables
        ordered : bool
            Whether results follow the input, or what comes first.
        max_outstanding : int or "auto"
            How many tasks may be running or queued: by default as many as there are
            engines; 0 reads the whole input at once.
        return_exceptions : bool
            Whether exceptions are returned among the results, not raised.

        Returns
        -------
        LazyMapIterator

        Notes
        -----
        Tasks are sent whether or not results are read.  Only over iterators, which may be
        endless, does the map pause at 4096 unread results.  The view's flags are
        those at the time of this call.
        """
        if not sequences:
            raise AssertionError("must have some sequences to map onto!")
        limit = max(1, len(self)) if max_outstanding == "auto" else max_outstanding
        if not isinstance(limit, int) or limit < 0:
            raise ValueError(f"max_outstanding must be 'auto' or an int from 0, not {limit!r}")
        is_bounded = limit == 0 or any(isinstance(sequence, Sized) for sequence in sequences)
        name = getname(f)
        lazy_map = LazyMap(
            # pickled once for all items
            partial(
                self._submit,
                name,
                serialize.dumps(f, name=name, natives=True),
                self._task_options(name),
            ),
            zip(*sequences, strict=False),
            ordered=ordered,
            max_running=limit,
            max_unread=0 if is_bounded else max(MAX_UNREAD, limit),
            at_end=self._outstanding_maps.discard,
        )
        with uninterrupted():  # one that never starts never ends, which the executor waits for
            self._outstanding_maps.add(lazy_map)
            lazy_map.start()
        return LazyMapIterator(lazy_map, return_exceptions)

    def _finish_maps(self) -> None:
        for lazy_map in list(self._outstanding_maps):
            lazy_map.finish()

    def _cancel_maps(self) -> None:
        for lazy_map in list(self._outstanding_maps):
            lazy_map.cancel()

    def register_joblib_backend(
        self, name: str = "ipyparallel", make_default: bool = False
    ) -> None:
        """Let joblib run on this view (``joblib.parallel_backend(name)``).

        Parameters
        ----------
        name : str
            What joblib is to call it.
        make_default : bool
            Whether joblib uses it without being told to.
        """
        from .joblib import register

        register(name, make_default=make_default, view=self)


def _dependency(value: Any) -> Dependency | None:
    """What a user gave as ``after`` or ``follow``; None when it asks for nothing."""
    if value is None:
        return None
    return (value if isinstance(value, Dependency) else Dependency(value)) or None

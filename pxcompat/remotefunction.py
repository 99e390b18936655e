"""Functions that run on engines when they are called (``ipyparallel.client.remotefunction``)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence, Sized
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from . import serialize
from .asyncresult import AsyncMapResult
from .mapping import Map, as_sequence, dists

if TYPE_CHECKING:
    from .baseview import View

__all__ = ["ParallelFunction", "RemoteFunction", "getname", "parallel", "remote"]

F = TypeVar("F", bound=Callable[..., Any])


def remote(
    view: View, block: bool | None = None, **flags: Any
) -> Callable[[Callable[..., Any]], RemoteFunction]:
    """Decorate a function to run on a view's engines (ipyparallel.remote).

    Parameters
    ----------
    view : View
    block : bool, optional
        Whether a call waits for the result; default ``view.block`` at the time of the call.
    **flags
        Flags of the view for the time of the call.
    """

    def remote_function(f: Callable[..., Any]) -> RemoteFunction:
        return RemoteFunction(view, f, block=block, **flags)

    return remote_function


def parallel(
    view: View, dist: str = "b", block: bool | None = None, ordered: bool = True, **flags: Any
) -> Callable[[Callable[..., Any]], ParallelFunction]:
    """Decorate a function to run on parts of sequences (ipyparallel.parallel).

    Parameters are those of :class:`ParallelFunction`.
    """

    def parallel_function(f: Callable[..., Any]) -> ParallelFunction:
        return ParallelFunction(view, f, dist=dist, block=block, ordered=ordered, **flags)

    return parallel_function


def getname(f: Any) -> str:
    """What to call a callable: its ``__name__``, else its ``name``, else ``str`` of it."""
    for attribute in ("__name__", "name"):
        try:
            return str(getattr(f, attribute))
        except Exception:  # whatever a user's object raises, another name will do
            continue
    return str(f)


def sync_view_results(f: F) -> F:
    """Decorate a method to leave ``self.view.outstanding`` up to date."""

    @functools.wraps(f)
    def synced(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return f(self, *args, **kwargs)
        finally:
            self.view._sync_results()

    return synced  # type: ignore[return-value]


class RemoteFunction:
    """A function that runs on a view's engines (ipyparallel.RemoteFunction).

    Parameters
    ----------
    view : View
    f : callable
    block : bool, optional
        Whether a call waits for the result; default ``view.block`` at the time of the call.
    **flags
        Flags of the view for the time of the call (see :meth:`View.temp_flags`).
    """

    def __init__(
        self, view: View, f: Callable[..., Any], block: bool | None = None, **flags: Any
    ) -> None:
        self.view = view
        self.func = f
        self.block = block
        self.flags = flags
        self.__name__ = getname(f)
        if getattr(f, "__doc__", None):
            self.__doc__ = f"{type(self).__name__} wrapping:\n{f.__doc__}"
        # some builtins, and References, have none to show
        with suppress(TypeError, ValueError):
            self.__signature__ = inspect.signature(f)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """``view.apply(f, *args, **kwargs)``."""
        block = self.view.block if self.block is None else self.block
        with self.view.temp_flags(block=block, **self.flags):
            return self.view.apply(self.func, *args, **kwargs)


class ParallelFunction(RemoteFunction):
    """A function called on parts of sequences, one part an engine
    (ipyparallel.ParallelFunction).

    Calling it calls the function once a part; :meth:`map` calls it once an item.

    Parameters
    ----------
    view : View
    f : callable
    dist : {"b", "r"}
        How sequences are split: contiguous parts, or round robin.
    block : bool, optional
        Whether a call waits for the result.
    chunksize : int, optional
        Items in a part; for load-balanced views only.
    ordered : bool
        Whether iterating over the result follows the input, or what comes first.
    return_exceptions : bool
        Whether exceptions are returned among the results, not raised.
    **flags
        Flags of the view for the time of the call (see :meth:`View.temp_flags`).

    Raises
    ------
    KeyError
        When there is no such ``dist``.
    """

    def __init__(
        self,
        view: View,
        f: Callable[..., Any],
        dist: str = "b",
        block: bool | None = None,
        chunksize: int | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
        **flags: Any,
    ) -> None:
        super().__init__(view, f, block=block, **flags)
        self.chunksize = chunksize
        self.ordered = ordered
        self.return_exceptions = return_exceptions
        self.mapObject: Map = dists[dist]()

    def __call__(self, *sequences: Iterable[Any], **kwargs: Any) -> Any:
        """Call the function with parts of the sequences, which must be of one length.

        Returns
        -------
        AsyncMapResult, or the joined results when blocking; ``[]`` for empty sequences.

        Raises
        ------
        ValueError
            When the lengths differ.
        """
        if kwargs:
            raise TypeError(f"Unexpected keyword arguments: {kwargs}")
        columns = [as_sequence(sequence) for sequence in sequences]
        lengths = [len(column) for column in columns]
        if len(set(lengths)) > 1:
            raise ValueError(f"all sequences must have equal length, but have {lengths}")
        return self._run(columns, each=False)

    def map(self, *sequences: Iterable[Any]) -> Any:
        """Call the function on each item, as the builtin ``map`` does.

        Iterators are read here; what is longer than the shortest sequence is left out.

        Returns
        -------
        AsyncMapResult, or the list of results when blocking; ``[]`` for empty sequences.
        """
        return self._run(_columns(sequences), each=True)

    @sync_view_results
    def _run(self, columns: Sequence[Any], *, each: bool) -> Any:
        """Send the function with parts of the columns, to be called on parts or on ``each``."""
        length = min((len(column) for column in columns), default=0)
        if not length:
            return []
        send = functools.partial(self._send, columns, length, each)
        return self.view._outcome(send, bool(self.block), many=True)

    def _send(self, columns: Sequence[Any], length: int, each: bool) -> AsyncMapResult:
        """Send the function with parts of columns that are so long."""
        view = self.view
        name = getname(self.func)
        # once for all parts
        function = serialize.dumps(self.func, name=name, natives=True)
        with view.temp_flags(**self.flags):
            destinations = view._destinations(length, self.chunksize)
            n_parts = min(length, len(destinations))
            parts = [
                tuple(
                    self.mapObject.getPartition(column, p, len(destinations), length)
                    for column in columns
                )
                for p in range(n_parts)
            ]
            children, targets = view._send_parts(
                destinations[:n_parts], function, parts, name, each
            )
        sizes = {
            child.msg_id: len(part[0]) if each else 1
            for child, part in zip(children, parts, strict=True)
        }
        return AsyncMapResult(
            view.client,
            children,
            self.mapObject,
            fname=name,
            ordered=self.ordered,
            return_exceptions=self.return_exceptions,
            chunk_sizes=sizes,
            targets=targets,
            owner=True,
        )


def _columns(sequences: Sequence[Iterable[Any]]) -> list[Any]:
    """The sequences, each with a length and slices, and none longer than the shortest."""
    lengths = [len(sequence) for sequence in sequences if isinstance(sequence, Sized)]
    if not lengths:
        # iterators, all of them: read them together, so that one may be endless
        return [list(column) for column in zip(*zip(*sequences, strict=False), strict=True)]
    shortest = min(lengths)
    read = [
        as_sequence(sequence if isinstance(sequence, Sized) else list(islice(sequence, shortest)))
        for sequence in sequences
    ]
    shortest = min(len(column) for column in read)
    return [column if len(column) == shortest else column[:shortest] for column in read]

"""Results of requests that may still be running: what every non-blocking call returns."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    InvalidStateError,
    TimeoutError as FutureTimeoutError,
)
from contextlib import suppress
from functools import cached_property
from itertools import chain
from typing import Any, Protocol, SupportsIndex

from .cards import result_card
from .children import ResultClient, error_of, known, merged, reply_error_of, value_of
from .display import ExecuteReply
from .engine.interrupts import OnDemand, RLock
from .engine.nested import help_until
from .futures import Latch, MessageFuture
from .joining import LARGE, join_arrays
from .mapping import Map, RoundRobinMap
from .progress import wait_with_bar
from .requestinfo import RequestInfo
from .waiting import Countdown, Items, SendTracker, seconds, wait_for

__all__ = ["AsyncHubResult", "AsyncMapResult", "AsyncResult", "ExecuteReply"]

Child = MessageFuture | str

#: how often, while it waits for a result of many parts, a thread looks at those that are there
LOOKS = 32

#: whose ``joinPartitions`` is known; a subclass may have another
_JOINED = (Map, RoundRobinMap)


class JoinsPartitions(Protocol):
    """A rule of ``mapping`` that puts the parts of a map together again."""

    def joinPartitions(self, parts: list[Any], /) -> Any: ...


class AsyncResult(RequestInfo):
    """The result of a call on one or more engines, perhaps not there yet.

    Stands for ``ipyparallel.AsyncResult``; also a :class:`concurrent.futures.Future` that can be
    awaited.  Keys of the metadata are attributes and items: ``ar.stdout``, ``ar["started"]``.

    Results are unpickled when they are first asked for, in the thread that asks.

    Parameters
    ----------
    client : Client
    children : MessageFuture or str, or a list of them
        The requests, or the msg_ids of requests that ``client`` knows.  A single one, not in
        a list, makes results and metadata single too.
    fname : str
        What was called, for people.
    targets : list of int, optional
        Ids of the engines the requests were sent to.
    owner : bool
        Whether ``client`` may forget the requests' results and metadata when they are complete.
    return_exceptions : bool
        Whether :meth:`get` returns exceptions among the results instead of raising.
    chunk_sizes : dict, optional
        How many items each msg_id stands for; 1 where not said.

    Raises
    ------
    KeyError
        When ``client`` does not know a msg_id.
    """

    owner: bool
    _lock = OnDemand(RLock)

    def __init__(
        self,
        client: ResultClient,
        children: Child | Sequence[Child],
        fname: str = "unknown",
        targets: Sequence[int] | None = None,
        owner: bool = False,
        return_exceptions: bool = False,
        chunk_sizes: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self._single_result = isinstance(children, (str, MessageFuture))
        if isinstance(children, (str, MessageFuture)):
            children = [children]
        self._client = client
        self._children = [known(client, c) if isinstance(c, str) else c for c in children]
        self._fname = fname
        self._targets = targets
        self.owner = owner
        self._return_exceptions = return_exceptions
        self._chunk_sizes = dict(chunk_sizes or {})
        self._loaded: tuple[Any, BaseException | None] | None = None
        self._cancelling = False
        Countdown(self._children, AsyncResult._complete, self)
        latches: list[AsyncResult | Latch] = [self, *[c.output_latch for c in self._children]]
        self._output_event = Countdown(latches, AsyncResult._forget_metadata, self)

    def _complete(self) -> None:
        """All children are done.  Runs in the thread that receives replies: unpickles nothing."""
        if self.owner:
            results = self._client.results
            for child in self._children:
                results.pop(child.msg_id, None)
        failure = self._error_in(self._children, reply_error_of)
        try:
            if failure is None:
                self.set_result(None)
            else:
                self.set_exception(failure)
        except InvalidStateError:
            return  # it has been cancelled in the meantime

    def _forget_metadata(self) -> None:
        """All output is there, and the result."""
        if self.owner:
            metadata = self._client.metadata
            for child in self._children:
                metadata.pop(child.msg_id, None)

    # -- from replies to a result ------------------------------------------------

    def _error_in(
        self,
        children: Sequence[MessageFuture],
        ask: Callable[[MessageFuture], BaseException | None],
    ) -> BaseException | None:
        """What asking for the result of ``children`` raises."""
        if self._return_exceptions and not self._single_result:
            return None
        failed = [(child, e) for child in children if (e := ask(child)) is not None]
        if not failed:
            return None
        return failed[0][1] if self._single_result else merged(failed, self._fname)

    @property
    def _raw_results(self) -> list[Any]:
        """Each child's result, or exception, unpickled."""
        return [value_of(child) for child in self._children]

    def _reconstruct_result(self, values: list[Any]) -> Any:
        """The result as a whole, from the children's."""
        return values[0] if self._single_result else values

    def _load(self) -> tuple[Any, BaseException | None]:
        """The result and the error of a finished AsyncResult, one of them None."""
        with self._lock:
            if self._loaded is None:
                value = None
                failure = super().exception(0)
                if failure is None:
                    failure = self._error_in(self._children, error_of)
                if failure is None:
                    try:
                        value = self._reconstruct_result(self._raw_results)
                    except Exception as error:
                        failure = error
                self._loaded = value, failure
            return self._loaded

    def result(self, timeout: float | None = None) -> Any:
        """The result; as :meth:`concurrent.futures.Future.result`."""
        super().exception(help_until(self, timeout))
        return self._when_done()

    def _when_done(self) -> Any:
        """:meth:`result` of what is done."""
        value, failure = self._load()
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # else the traceback, which holds this frame, makes a cycle
        return value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The error, or None; as :meth:`concurrent.futures.Future.exception`."""
        super().exception(help_until(self, timeout))
        return self._load()[1]

    def __await__(self) -> Generator[Any, None, Any]:
        # on an engine the event loop stands still for it, and what it waits for goes on
        help_until(self)
        return asyncio.wrap_future(self).__await__()

    # -- waiting -----------------------------------------------------------------

    @property
    def _ready(self) -> bool:
        return self.done()

    @property
    def _success(self) -> bool | None:
        """None while pending."""
        if not self.done():
            return None
        return not self.cancelled() and self.exception() is None

    def ready(self) -> bool:
        """Whether the call has completed, well or not."""
        return self.done()

    def successful(self) -> bool:
        """Whether the call completed without an error.

        Raises
        ------
        RuntimeError
            When it has not completed.
        """
        success = self._success
        if success is None:
            raise RuntimeError("Cannot check successful() if not done.")
        return success

    def wait(self, timeout: float | None = -1, return_when: str | None = None) -> Any:
        """Wait for the result, for at most ``timeout`` seconds; None or negative: for ever.

        Parameters
        ----------
        return_when : {None, "ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"}
            As for :func:`concurrent.futures.wait`.

        Returns
        -------
        bool
            Whether the result is there, when ``return_when`` is None.
        (done, pending) : two sets of AsyncResult
            One AsyncResult a request (see :meth:`split`), otherwise.
        """
        if return_when is not None:
            return wait_for(self.split(), seconds(timeout), return_when)
        # not self.exception(), which unpickles
        left = help_until(self, seconds(timeout))
        with suppress(FutureTimeoutError, CancelledError):
            super().exception(left)
        return self.done()

    def get(
        self,
        timeout: float | None = None,
        return_exceptions: bool | None = None,
        return_when: str | None = None,
    ) -> Any:
        """Wait for the result and return it.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait; None or negative: for ever.
        return_exceptions : bool, optional
            Return exceptions in the place of results, instead of raising.  Default: as the
            AsyncResult was made.
        return_when : {None, "ALL_COMPLETED", "FIRST_EXCEPTION"}
            With ``"FIRST_EXCEPTION"``, raise as soon as one request fails.

        Raises
        ------
        TimeoutError
            When the result has not come in time.
        RemoteError
            When the call raised on its engine.
        CompositeError
            When it raised on any of several engines.
        TaskAborted
            When it was aborted and nothing else went wrong.
        """
        if return_when == FIRST_COMPLETED:
            warnings.warn(
                "Ignoring unsupported AsyncResult.get(return_when=FIRST_COMPLETED)",
                UserWarning,
                stacklevel=2,
            )
        if return_exceptions is None:
            return_exceptions = self._return_exceptions
        if return_when == FIRST_EXCEPTION:
            done, _ = self.wait(timeout, return_when=return_when)
            if not self.done():
                for part in done:
                    if not part._success:
                        return part.get(return_exceptions=return_exceptions)
                raise TimeoutError("Result not ready.")
        elif not self.done():
            self._wait_unpickling(timeout)
            if not self.done():
                raise TimeoutError("Result not ready.")
        if return_exceptions and not self.cancelled() and self.exception() is not None:
            return self._reconstruct_result(self._raw_results)
        return self._when_done()

    def _wait_unpickling(self, timeout: float | None) -> None:
        """Wait for the result; of many children those that are done are unpickled meanwhile."""
        left = seconds(timeout)
        deadline = float("inf") if left is None else time.monotonic() + left
        # seldom, for each look takes time from the thread that receives replies
        step = len(self._children) // LOOKS
        looks = range(step, len(self._children) - step + 1, step) if step else ()
        for end in looks:
            last = self._children[end - 1]
            if not last.wait(help_until(last, left)):
                return
            for child in self._children[end - step : end]:
                # large ones may be put together without ever being there by themselves
                if child.done() and child.nbytes < LARGE:
                    child.unpickle()
            left = None if left is None else max(0.0, deadline - time.monotonic())
        self.wait(left)

    @property
    def r(self) -> Any:
        """The result, waited for: ``get()``."""
        return self.get()

    def get_dict(self, timeout: float | None = -1) -> dict[int, Any]:
        """The results by engine id.

        Raises
        ------
        ValueError
            When an engine ran more than one of the requests.
        TimeoutError, RemoteError
            As :meth:`get`.
        """
        results = self.get(timeout)
        engine_ids = [metadata["engine_id"] for metadata in self._metadata]
        if self._single_result:
            results = [results]
        elif len(results) != len(engine_ids):
            results = self._raw_results  # a map in chunks
        by_engine = dict(zip(engine_ids, results, strict=False))
        if len(by_engine) < len(engine_ids):
            repeated = next(e for e in engine_ids if engine_ids.count(e) > 1)
            n_jobs = engine_ids.count(repeated)
            raise ValueError(f"Cannot build dict, {n_jobs} jobs ran on engine #{repeated}")
        return by_engine

    @property
    def result_dict(self) -> dict[int, Any]:
        """The results by engine id, waited for: ``get_dict()``."""
        return self.get_dict()

    def wait_interactive(
        self,
        interval: float = 0.1,
        timeout: float | None = -1,
        widget: bool | None = None,
        return_when: str | None = ALL_COMPLETED,
    ) -> None:
        """Wait with a progress bar.

        Parameters
        ----------
        interval : float
            Seconds between redraws of the bar.
        timeout : float
            Seconds after which to give up, without an error; None or negative: never.
        widget : bool, optional
            Whether to draw the notebook form.  Default: in notebooks with ipywidgets.
        return_when : {"ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"}
            As for :meth:`wait`.
        """
        wait_with_bar(
            self, interval=interval, timeout=timeout, widget=widget, return_when=return_when
        )

    # -- stopping ----------------------------------------------------------------

    def abort(self) -> Any:
        """Keep what has not started from ever running; waits for the engines' answer.

        Raises
        ------
        RuntimeError
            When the result is there already.
        """
        if self.done():
            raise RuntimeError("Can't abort, I am already done!")
        return self._client.abort(self.msg_ids, block=True)

    def cancel(self) -> bool:
        """Give the result up, and ask that what has not started never runs.

        What is running goes on.  As :meth:`concurrent.futures.Future.cancel`, does not wait and
        returns False when the result is there already.
        """
        with self._lock:
            again, self._cancelling = self._cancelling, True
        if again or not super().cancel():
            return self.cancelled()
        # wakes concurrent.futures.wait and as_completed, which cancel() alone does not
        self.set_running_or_notify_cancel()
        self._client._abort(self.msg_ids)
        return True

    # -- sending -----------------------------------------------------------------

    @cached_property
    def _tracker(self) -> SendTracker:
        return SendTracker(self._children)

    @property
    def _sent_event(self) -> Latch:
        return self._tracker.event

    @property
    def sent(self) -> bool:
        """Whether arrays that were sent may be changed in place again."""
        return self._tracker.done

    def wait_for_send(self, timeout: float | None = -1) -> None:
        """Wait until arrays that were sent may be changed in place again.

        Raises
        ------
        TimeoutError
            After ``timeout`` seconds; None or negative: never.
        """
        self._tracker.wait(timeout)

    # -- parts -------------------------------------------------------------------

    def split(self) -> tuple[AsyncResult, ...]:
        """One AsyncResult a request, to wait for separately; ``(self,)`` when there is one."""
        return (self,) if len(self._children) == 1 else self._parts

    @cached_property
    def _parts(self) -> tuple[AsyncResult, ...]:
        return tuple(
            AsyncResult(
                self._client,
                self._part(child),
                fname=self._fname,
                targets=None if target is None else [target],
                return_exceptions=self._return_exceptions,
            )
            for child, target in self._targeted()
        )

    def _part(self, child: MessageFuture) -> Child | list[Child]:
        return child

    @classmethod
    def join(cls, *async_results: AsyncResult) -> AsyncResult:
        """The inverse of :meth:`split`: one AsyncResult of several."""
        if not async_results:
            raise ValueError("Must specify at least one AsyncResult to join")
        first = async_results[0]
        return first if len(async_results) == 1 else first._join(async_results)

    def _join(self, parts: Sequence[AsyncResult]) -> AsyncResult:
        targets = [target for part in parts for _, target in part._targeted()]
        return type(self)(
            self._client,
            list(chain.from_iterable(part._children for part in parts)),
            fname=self._fname,
            targets=None if None in targets else targets,  # type: ignore[arg-type]
            return_exceptions=self._return_exceptions,
            chunk_sizes={k: n for part in parts for k, n in part._chunk_sizes.items()},
        )

    def __iter__(self) -> Iterator[Any]:
        """Results in the order of the requests, each waited for."""
        if self._single_result:
            raise TypeError("AsyncResults with a single result are not iterable.")
        return Items(self._children, self._items)

    def _items(self, child: MessageFuture) -> Iterable[Any]:
        """The items of the result that a finished child contributes."""
        failure = self._error_in([child], error_of)
        if failure is not None:
            raise failure
        return [value_of(child)]

    def __getitem__(self, key: Any) -> Any:
        """Part of the result, for an int or slice; else a value of the metadata, result or not.

        Raises
        ------
        TimeoutError
            For an int or slice, when the result is not there.
        KeyError
            When the metadata has no such key.
        """
        if isinstance(key, str):
            return self._lookup(key)
        if isinstance(key, (SupportsIndex, slice)):
            self._check_ready()
            return self.result()[key]
        raise TypeError(f"Invalid key type {type(key)!r}, must be 'int', 'slice', or 'str'")

    def __repr__(self) -> str:
        if not self.done():
            state = "pending"
        elif self.cancelled():
            state = "cancelled"
        else:
            # without unpickling anything for it
            failure = super().exception(0) if self._loaded is None else self._loaded[1]
            state = "finished" if failure is None else "failed"
        return f"<{type(self).__name__}({self._fname}): {state}>"

    def _repr_html_(self) -> str:
        return result_card(self)


class AsyncMapResult(AsyncResult):
    """The result of a map: the items of all chunks, put together (``ipyparallel.AsyncMapResult``).

    Iterable at any time; items come when their chunk is done.

    Parameters
    ----------
    mapObject
        Puts the parts together, with ``joinPartitions(parts)``.
    ordered : bool
        Whether iteration gives items in the order of the input, or as they come.
    client, children, fname, return_exceptions, chunk_sizes, targets, owner
        As for :class:`AsyncResult`.
    """

    def __init__(
        self,
        client: ResultClient,
        children: Child | Sequence[Child],
        mapObject: JoinsPartitions,
        fname: str = "",
        ordered: bool = True,
        return_exceptions: bool = False,
        chunk_sizes: Mapping[str, int] | None = None,
        *,
        targets: Sequence[int] | None = None,
        owner: bool = False,
    ) -> None:
        self._mapObject = mapObject
        self.ordered = ordered
        super().__init__(
            client,
            [children] if isinstance(children, (str, MessageFuture)) else children,
            fname=fname,
            targets=targets,
            owner=owner,
            return_exceptions=return_exceptions,
            chunk_sizes=chunk_sizes,
        )

    def _load(self) -> tuple[Any, BaseException | None]:
        with self._lock:
            mapping = self._mapObject
            if self._loaded is None and isinstance(mapping, Map) and type(mapping) in _JOINED:
                whole = join_arrays(self._children, mapping)
                if whole is not None:
                    self._loaded = whole, None
            return super()._load()

    def _reconstruct_result(self, values: list[Any]) -> Any:
        if not values:
            return []
        if all(error_of(child) is None for child in self._children):
            return self._mapObject.joinPartitions(values)
        # an exception stands for all the items of its chunk
        return list(chain.from_iterable(self._joined(child) for child in self._children))

    def _joined(self, child: MessageFuture) -> Iterable[Any]:
        value = value_of(child)
        if error_of(child) is not None:
            return [value]
        items: Iterable[Any] = self._mapObject.joinPartitions([value])
        return items

    def _items(self, child: MessageFuture) -> Iterable[Any]:
        super()._items(child)
        return self._joined(child)

    def __iter__(self) -> Iterator[Any]:
        """Items as they come, in the order of the input when ``ordered``."""
        if self.ordered and isinstance(self._mapObject, RoundRobinMap):
            # every part has items from all over the input: the whole it is
            return iter(self.get())
        return Items(self._children, self._items, ordered=self.ordered)

    def _part(self, child: MessageFuture) -> Child | list[Child]:
        return [child]

    def _join(self, parts: Sequence[AsyncResult]) -> AsyncResult:
        return AsyncMapResult(
            self._client,
            list(chain.from_iterable(part._children for part in parts)),
            self._mapObject,
            fname=self._fname,
            ordered=self.ordered,
            return_exceptions=self._return_exceptions,
            chunk_sizes={k: n for part in parts for k, n in part._chunk_sizes.items()},
        )


class AsyncHubResult(AsyncResult):
    """The result of a request that another client made (``ipyparallel.AsyncHubResult``).

    ``client.get_result`` returns it.  Its children are ordinary MessageFutures, which the client
    completes when the cluster's record of the request answers; so, unlike ipyparallel's, it
    polls nothing and behaves as any other AsyncResult.
    """

    def _error_in(
        self,
        children: Sequence[MessageFuture],
        ask: Callable[[MessageFuture], BaseException | None],
    ) -> BaseException | None:
        # of one request in a list, too, the error is its own, as ipyparallel's
        if len(self._children) == 1 and not self._return_exceptions:
            return ask(self._children[0])
        return super()._error_in(children, ask)


def several(jobs: Any) -> bool:
    """Whether jobs are an iterable of them, such as the values of a dict, and not one."""
    return isinstance(jobs, Iterable) and not isinstance(jobs, (str, bytes, AsyncResult))

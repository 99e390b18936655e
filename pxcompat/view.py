"""Views of named engines (``ipyparallel.client.view``)."""

from __future__ import annotations

import tokenize
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from traitlets import Bool

from . import serialize
from .asyncresult import AsyncMapResult, AsyncResult
from .baseview import View
from .engine import calls
from .error import InvalidEngineId
from .futures import MessageFuture
from .mapping import as_sequence, dists
from .parts import Scattering, gather
from .protocol import Frames
from .remotefunction import ParallelFunction, getname
from .syncimports import forward_imports

if TYPE_CHECKING:
    from .client import Client

__all__ = ["BroadcastView", "DirectView", "View"]


class DirectView(View):
    """Engines named by their ids (ipyparallel.DirectView): ``rc[0]``, ``rc[:]``, ``rc[::2]``.

    Also a dict of the engines' namespaces: ``view["a"] = 5``, ``view["a"]``.

    Parameters
    ----------
    client : Client
    socket
        Ignored: where ipyparallel takes a ZeroMQ socket.
    targets : int, list of int or ``"all"``
        ``"all"`` means those that exist at the time of a call.  With an int results are
        single, with a list they are lists.
    **flags
        See :meth:`View.set_flags`.
    """

    def __init__(
        self, client: Client, socket: Any = None, targets: Any = None, **flags: Any
    ) -> None:
        super().__init__(client, socket, targets=targets, **flags)

    def _engines(self, targets: Any = None) -> tuple[list[str], list[int]]:
        """Keys and ids of the engines to address."""
        targets = self.targets if targets is None else targets
        keys, ids = self.client._build_targets(targets)
        if not keys:
            raise InvalidEngineId("no engines are targeted: the view's targets are empty")
        return keys, ids

    def _is_single(self, targets: Any = None) -> bool:
        """Whether results are to be single values."""
        return isinstance(self.targets if targets is None else targets, int)

    def _result(
        self, futures: list[MessageFuture], name: str, ids: list[int], targets: Any = None
    ) -> AsyncResult:
        self._sent(futures)
        children = futures[0] if self._is_single(targets) else futures
        return AsyncResult(self.client, children, fname=name, targets=ids, owner=True)

    def _call(
        self,
        f: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        name: str,
        title: str,
        targets: Any = None,
        label: Any = None,
        copy: bool | None = True,
        shared: bool = False,
    ) -> AsyncResult:
        """Call a function on each engine.  ``name`` is the result's, ``title`` the dashboard's."""
        keys, ids = self._engines(targets)
        info = self._request_info(title, label, copy)
        if shared:
            info["header"]["shared"] = True
        futures = self.client._submit_apply_many(
            keys,
            serialize.dumps(f, name=name, natives=True),
            serialize.dumps(
                (tuple(args), dict(kwargs)), name=f"the arguments of {name}", natives=True
            ),
            **info,
        )
        return self._result(futures, name, ids, targets)

    def _really_apply(
        self,
        f: Callable[..., Any],
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        block: bool | None = None,
        *,
        targets: Any = None,
        track: bool | None = None,
        label: Any = None,
    ) -> Any:
        """:meth:`apply` with flags for this call alone."""
        name = getname(f)
        send = partial(
            self._call,
            f,
            args or (),
            kwargs or {},
            name=name,
            title=name,
            targets=targets,
            label=label,
        )
        return self._outcome(send, block)

    # -- pickling ----------------------------------------------------------------

    def use_dill(self) -> Any:
        """Pickle with dill, here and on the engines."""
        serialize.use_dill()
        return self.apply(serialize.use_dill)

    def use_cloudpickle(self) -> Any:
        """Let functions carry this session's globals, here and on the engines."""
        serialize.use_cloudpickle()
        return self.apply(serialize.use_cloudpickle)

    def use_pickle(self) -> Any:
        """Undo :meth:`use_dill` and :meth:`use_cloudpickle`."""
        serialize.use_pickle()
        return self.apply(serialize.use_pickle)

    # -- imports -----------------------------------------------------------------

    @property
    def importer(self) -> AbstractContextManager[None]:
        """:meth:`sync_imports`, to be used as ``with view.importer:``."""
        return self.sync_imports()

    def sync_imports(self, local: bool = True, quiet: bool = False) -> AbstractContextManager[None]:
        """Import modules here and on the engines.

        ``import numpy as np`` imports ``numpy``: the engines do not learn the other name.

        Parameters
        ----------
        local : bool
            Must be True.
        quiet : bool
            Whether not to print what is imported.

        Examples
        --------
        >>> with view.sync_imports():               # doctest: +SKIP
        ...     import numpy
        importing numpy on engine(s)

        Raises
        ------
        ImportError, RemoteError
            When a module cannot be imported here, or on an engine.
        """
        if not local:
            raise NotImplementedError(
                "imports on the engines alone: use view.execute('import ...') or %px"
            )
        return forward_imports(self, quiet=quiet)

    # -- map ---------------------------------------------------------------------

    def map(  # type: ignore[override]
        self,
        f: Callable[..., Any],
        *sequences: Iterable[Any],
        block: bool | None = None,
        track: bool = False,
        return_exceptions: bool = False,
        label: Any = None,
    ) -> Any:
        """Call a function on each item of sequences, a contiguous part an engine.

        Parameters
        ----------
        f : callable
        *sequences : iterables
            As for the builtin ``map``; iterators are read first.
        block : bool, optional
            Whether to wait; default ``self.block``.
        track : bool
            No effect; see :attr:`track`.
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
            return_exceptions=return_exceptions,
            label=self.label if label is None else label,
        )
        return function.map(*sequences)

    def _destinations(self, length: int, chunksize: int | None) -> Sequence[Any]:
        if chunksize:
            warnings.warn("`chunksize` is ignored unless load balancing", stacklevel=5)
        return list(zip(*self._engines(), strict=True))

    def _send_parts(
        self,
        destinations: Sequence[Any],
        function: Frames,
        parts: Sequence[tuple[Any, ...]],
        name: str,
        each: bool,
    ) -> tuple[list[MessageFuture], list[int] | None]:
        info = self._request_info(name, None)
        what = f"the arguments of {name}"
        arguments = [serialize.dumps((p, {}), name=what, natives=True) for p in parts]
        futures = [
            self.client._submit_apply(key, function, frames, map=each, **info)
            for (key, _), frames in zip(destinations, arguments, strict=True)
        ]
        self._sent(futures)
        return futures, [engine_id for _, engine_id in destinations]

    # -- execute -----------------------------------------------------------------

    def execute(
        self,
        code: str,
        silent: bool = True,
        targets: Any = None,
        block: bool | None = None,
        label: Any = None,
    ) -> AsyncResult:
        """Run code in the engines' IPython shells.

        Parameters
        ----------
        code : str
            As typed in a cell: magics and ``await`` work.
        silent : bool
            Whether to leave the last expression's value and the history alone.  When not,
            a failure aborts the code queued behind it, as in a notebook.
        targets : optional
            Default ``self.targets``.
        block : bool, optional
            Whether to wait, for its output too; default ``self.block``.
        label : str, optional
            Default ``self.label``.

        Returns
        -------
        AsyncResult
            Also when blocking.
        """
        keys, ids = self._engines(targets)
        info = self._request_info(code.strip(), label)

        def send() -> AsyncResult:
            futures = [
                self.client._submit_execute(
                    key, code, silent=silent, store_history=not silent, **info
                )
                for key in keys
            ]
            return self._result(futures, "execute", ids, targets)

        def wait(result: AsyncResult) -> AsyncResult:
            result.get()
            result.wait_for_output()
            return result

        executed: AsyncResult = self._outcome(send, block, wait)
        return executed

    def run(
        self, filename: str, targets: Any = None, block: bool | None = None, label: Any = None
    ) -> AsyncResult:
        """:meth:`execute` the contents of a file, which is read here."""
        with tokenize.open(filename) as file:
            # an indented last line is only complete with a newline after it
            code = file.read() + "\n"
        return self.execute(code, block=block, targets=targets, label=label)

    # -- namespaces --------------------------------------------------------------

    def push(
        self,
        ns: dict[str, Any],
        targets: Any = None,
        block: bool | None = None,
        track: bool | None = None,
        copy: bool | None = None,
        shared: bool = False,
    ) -> Any:
        """Bind values in the engines' namespaces.

        Parameters
        ----------
        ns : dict
            Keys are names, or whatever can be assigned to: ``{"a.b": 1, "d['k']": 2}``.
        targets, block : optional
            Default ``self.targets``, ``self.block``.
        track : bool, optional
            No effect; see :attr:`track`.
        copy : bool, optional
            Whether large arrays are the engine's own, and writable.  False: they are
            read-only, and take no memory a second time where the backend has a store that
            processes share (Ray).  Default: the setting ``c.PxCompat.copy``, which is True.
        shared : bool
            Whether large arrays are to be one read-only copy for the engines of a host: on Ray;
            on Dask for those of the client's host.  Not in ipyparallel.

        Raises
        ------
        TypeError
            When ``ns`` is no dict, or a key no string.
        ValueError
            When both ``copy`` and ``shared`` are True.
        """
        if shared and copy:
            raise ValueError("what is shared is not copied: leave out copy=True, or shared=True")
        if not isinstance(ns, dict):
            raise TypeError(f"Must be a dict, not {type(ns)}")
        _check_names(ns)
        title = f"push:{','.join(ns)}"
        send = partial(
            self._call,
            calls.push,
            (),
            ns,
            name="_push",
            title=title,
            targets=targets,
            copy=False if shared else copy,
            shared=shared,
        )
        return self._outcome(send, block)

    def update(self, ns: dict[str, Any]) -> Any:
        """:meth:`push` by the view's flags."""
        return self.push(ns)

    def pull(
        self, names: str | Collection[str], targets: Any = None, block: bool | None = None
    ) -> Any:
        """Values from the engines' namespaces.

        Parameters
        ----------
        names : str or collection of str
            A name or expression: ``"a"``, ``"a.b"``, ``"a + b"``.  Of several, a list of
            values is returned by each engine.
        targets, block : optional
            Default ``self.targets``, ``self.block``.

        Raises
        ------
        TypeError
            When a name is no string.
        """
        if not isinstance(names, str):
            if not isinstance(names, (list, tuple, set)):
                raise TypeError(f"names must be strs, not {names!r}")
            _check_names(names)
            names = list(names)
        title = f"pull:{names if isinstance(names, str) else ','.join(names)}"
        send = partial(
            self._call, calls.pull, (names,), {}, name="_pull", title=title, targets=targets
        )
        return self._outcome(send, block)

    def ref(self, name: str) -> Any:
        """A name of these engines, as an argument for others: the value goes straight from
        engine to engine.  Also in Dask's graphs, or for Ray's tasks.  Not in ipyparallel.

        Parameters
        ----------
        name : str
            A name or expression, as for :meth:`pull`.

        Returns
        -------
        RemoteReference
            A list of them, one an engine, unless the view is of a single engine.

        Raises
        ------
        TypeError
            When ``name`` is no string.

        Examples
        --------
        >>> rc[2].push({"a": rc[0].ref("a")})                  # doctest: +SKIP
        >>> rc[1].apply_sync(sum, rc[:].ref("len(part)"))      # doctest: +SKIP
        """
        keys, ids = self._engines()
        references = [
            self.client._reference(name, key, engine) for key, engine in zip(keys, ids, strict=True)
        ]
        return references[0] if self._is_single() else references

    def get(self, key_s: str | Collection[str]) -> Any:
        """:meth:`pull`, blocking."""
        return self.pull(key_s, block=True)

    def __getitem__(self, key: str | Collection[str]) -> Any:
        return self.get(key)

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def scatter(
        self,
        key: str,
        seq: Iterable[Any],
        dist: str = "b",
        flatten: bool = False,
        targets: Any = None,
        block: bool | None = None,
        track: bool | None = None,
        copy: bool | None = None,
    ) -> AsyncResult | None:
        """Bind a part of a sequence on each engine.

        Parameters
        ----------
        key : str
            The name to bind.
        seq : iterable
            Lists, arrays and whatever has slices; others are read into a list.  Not in
            ipyparallel: a collection of the cluster's own (a dask array, dataframe, bag or list
            of ``Delayed``, whose blocks are computed on the engines that bind them; a
            ``ray.data.Dataset`` or list of ``ObjectRef``), which does not pass through here; on
            all engines or, when one fails, on none.
        dist : {"b", "r"}
            Contiguous parts, or round robin.  Collections: contiguous alone, in whole blocks.
        flatten : bool
            Whether a part of length 1 is bound as its item.
        targets, block : optional
            Default ``self.targets``, ``self.block``.
        track : bool, optional
            No effect; see :attr:`track`.
        copy : bool, optional
            As for :meth:`push`.

        Returns
        -------
        AsyncResult
            None when blocking.

        Raises
        ------
        ValueError
            When a collection has fewer blocks than there are engines, or ``key`` is more than a
            name for one.
        EngineError
            When a collection is of another cluster.
        """
        keys, ids = self._engines(targets)
        own = self.client._copy if copy is None else copy
        natives = self.client._take_apart(seq, keys, copy=own)
        if natives is not None:
            return self._scatter_natives(key, natives, dist, flatten, keys, ids, block)
        partition = dists[dist]().getPartition
        whole = as_sequence(seq)
        function = serialize.dumps(calls.push)
        info = self._request_info(f"scatter:{key}", None, copy)

        def send() -> AsyncResult:
            futures = []
            for index, engine in enumerate(keys):
                part = partition(whole, index, len(keys))
                if flatten and len(part) == 1:
                    part = part[0]
                frames = serialize.dumps(((), {key: part}), name=key, natives=True)
                futures.append(self.client._submit_apply(engine, function, frames, **info))
            self._sent(futures)
            return AsyncResult(self.client, futures, fname="scatter", targets=ids, owner=True)

        def wait(result: AsyncResult) -> None:
            result.get()

        result: AsyncResult | None = self._outcome(send, block, wait)
        return result

    def _scatter_natives(
        self,
        key: str,
        natives: Sequence[Any],
        dist: str,
        flatten: bool,
        keys: Sequence[str],
        ids: list[int],
        block: bool | None,
    ) -> AsyncResult | None:
        """Bind parts that the cluster has, or is to compute."""
        if dist != "b" or not key.isidentifier():
            raise ValueError(
                "a collection of the cluster's own is bound to a plain name, in contiguous parts: "
                f'not to {key!r} with dist={dist!r}, but to a name with dist="b"'
            )
        info = self._request_info(f"scatter:{key}", None, copy=False)  # copied there, if at all
        scattering = Scattering(self.client, key, keys, natives, info, flatten=flatten)

        def send() -> AsyncResult:
            futures = scattering.send()
            self._sent(futures)
            return AsyncResult(self.client, futures, fname="scatter", targets=ids, owner=True)

        result: AsyncResult | None = self._outcome(send, block, scattering.wait)
        return result

    def gather(
        self,
        key: str,
        dist: str = "b",
        targets: Any = None,
        block: bool | None = None,
        to: str | None = None,
    ) -> Any:
        """Put together what :meth:`scatter` split.

        Parameters
        ----------
        key : str
            A name or expression.
        dist : {"b", "r"}
            As it was scattered.
        targets, block : optional
            Default ``self.targets``, ``self.block``.
        to : str, optional
            Not in ipyparallel.  ``"dask"``: nothing is brought here; the result is a
            ``dask.array``, a ``dask.dataframe`` or, of anything else, a list of ``Delayed``, over
            what the engines have, where they have it.  It is lazy, but for its shape, type and
            divisions, which are asked of the engines, in their turn.  ``"ray"``: a
            ``ray.data.Dataset`` of arrays or tables, or a list of ``ObjectRef``.

        Returns
        -------
        AsyncMapResult
            Or, when blocking: a list of lists' items, an array of arrays', a list otherwise.
            With ``to``, whether blocking or not, the collection.

        Raises
        ------
        ValueError
            When these engines have no such collections, or the parts do not fit together.
        """
        keys, ids = self._engines(targets)
        if to is not None:
            known = self.client._backend.capabilities.collections
            if to != known or dist != "b":
                have = f"to={known!r} with dist='b'" if known else "without `to`"
                raise ValueError(f"these engines gather {have}, not to={to!r} with dist={dist!r}")
            return gather(self.client, key, keys, ids, self._request_info(f"gather:{key}", None))
        mapping = dists[dist]()

        def send() -> AsyncMapResult:
            futures = self.client._submit_apply_many(
                keys,
                serialize.dumps(calls.pull),
                serialize.dumps(((key,), {})),
                **self._request_info(f"gather:{key}", None),
            )
            self._sent(futures)
            return AsyncMapResult(
                self.client, futures, mapping, fname="gather", targets=ids, owner=True
            )

        return self._outcome(send, block)

    def clear(self, targets: Any = None, block: bool | None = None) -> Any:
        """Empty the engines' namespaces."""
        return self.client.clear(
            targets=self.targets if targets is None else targets,
            block=self.block if block is None else block,
        )

    # -- magics ------------------------------------------------------------------

    def activate(self, suffix: str = "") -> None:
        """Define the magics ``%px``, ``%%px``, ``%autopx``, ``%pxresult`` and ``%pxconfig``.

        Parameters
        ----------
        suffix : str
            Appended to the magics' names, so that several views can have theirs:
            ``rc[::2].activate("_even")`` defines ``%px_even``.
        """
        from IPython import get_ipython

        shell = get_ipython()
        if shell is None:
            warnings.warn(
                "The IPython parallel magics (%px, etc.) only work within IPython.", stacklevel=2
            )
            return
        from .magics import ParallelMagics

        shell.magics_manager.register(ParallelMagics(shell, self, suffix))


class BroadcastView(DirectView):
    """A DirectView whose results are always lists (ipyparallel.BroadcastView).

    Every view uploads what several engines receive only once, which is what a broadcast
    is for.

    Attributes
    ----------
    is_coalescing : bool
        Kept for compatibility: each engine answers by itself, in the order of the targets.
    """

    is_coalescing = Bool(False)

    def _is_single(self, targets: Any = None) -> bool:
        return False


def _check_names(names: Iterable[Any]) -> None:
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"keys must be str, not type {type(name)!r}")

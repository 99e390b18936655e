"""Dask's collections, taken apart over engines and put together from what engines have."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from dask.base import is_dask_collection
from dask.delayed import Delayed, delayed
from distributed import Client, futures_of, get_worker
from distributed.comm.core import Comm
from distributed.protocol.serialize import Serialized

from pxcompat import serialize
from pxcompat.engine.nested import help_until
from pxcompat.error import EngineError
from pxcompat.mapping import Map
from pxcompat.protocol import EngineInfo, Part
from pxcompat.serialize.memory import owned

from ..alike import check_alike
from .objects import RemoteFuture, accept, ask

__all__ = ["put_together", "serve_aside", "take_apart"]


# -- apart ----------------------------------------------------------------------------


def take_apart(
    obj: Any, engines: Sequence[EngineInfo], client: Client, address: str, *, copy: bool
) -> list[RemoteFuture] | None:
    """One future for each engine of its blocks of a collection, computed there; None when the
    object is no collection.

    Raises
    ------
    EngineError
        When it is of another cluster.
    ValueError
        When there are fewer blocks than engines.
    """
    found = _blocks(obj)
    if found is None:
        return None
    blocks, join, hint = found
    for future in futures_of(obj):
        accept(future, client, address)
    if len(blocks) < len(engines):
        raise ValueError(
            f"there are {len(blocks)} blocks for {len(engines)} engines, and each is to have at "
            f"least one: {hint}, or scatter to fewer engines"
        )
    name = f"px-scatter-{uuid.uuid4().hex}"
    split = Map()
    futures = []
    for index, engine in enumerate(engines):
        own = split.getPartition(blocks, index, len(engines))
        part = delayed(join, pure=False)(own, copy, dask_key_name=f"{name}-{index}")
        computed: Any = client.compute(part, workers=[engine.address], allow_other_workers=False)
        futures.append(accept(computed, client, address))
    return futures


def _blocks(obj: Any) -> tuple[list[Any], Callable[..., Any], str] | None:
    """The blocks of a collection along its first axis, how an engine joins its own, and how to
    have more of them."""
    if isinstance(obj, (list, tuple)):
        if not (obj and isinstance(obj[0], Delayed)):
            return None
        if not all(isinstance(item, Delayed) for item in obj):
            raise ValueError("only some of the list are Delayed objects: make the others so, too")
        return list(obj), _join_values, "make more of them"
    if isinstance(obj, Delayed):
        raise ValueError("one Delayed object has no parts: scatter a list of them, or push it")
    if not is_dask_collection(obj) or not hasattr(obj, "to_delayed"):
        return None
    if hasattr(obj, "chunks"):
        if not obj.ndim:
            raise ValueError("an array without axes has no parts to scatter; push it")
        return obj.to_delayed().tolist(), partial(_join_blocks, obj.ndim), "rechunk() it"
    more = "repartition() it"
    return list(obj.to_delayed()), _join_frames if hasattr(obj, "divisions") else _join_bags, more


def _join_values(values: list[Any], copy: bool) -> list[Any]:
    return [_own(value) for value in values] if copy else values


def _join_blocks(ndim: int, blocks: list[Any], copy: bool) -> Any:
    from dask.array.core import concatenate3

    first = blocks
    for _ in range(ndim):
        if len(first) > 1:
            return concatenate3(blocks)
        first = first[0]
    return _own(first) if copy else first  # a single block, which may be somebody else's, too


def _join_frames(frames: list[Any], copy: bool) -> Any:
    if len(frames) == 1:
        return frames[0].copy() if copy else frames[0]
    import pandas as pd

    return pd.concat(frames)


def _join_bags(partitions: list[Any], copy: bool) -> list[Any]:
    items = [item for partition in partitions for item in partition]
    return [_own(item) for item in items] if copy else items


def _own(value: Any) -> Any:
    """The value, or where it could be changed in place, a copy."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return value
    frames = serialize.dumps(value, name="a block")
    return serialize.loads([frames[0], *(owned(frame) for frame in frames[1:])])


# -- together -------------------------------------------------------------------------


def put_together(
    name: str, parts: Sequence[Part], addresses: dict[str, str], client: Client
) -> Any:
    """A collection over values that engines have set aside: an array, a dataframe or series, or
    a list of Delayed where they are anything else.

    Raises
    ------
    ValueError
        When the parts do not fit together.
    ImportError
        When dask has no dataframes here.
    """
    check_alike(name, parts)
    futures: list[Any] = [
        client.submit(
            _take_aside,
            addresses[part.key],
            part.engine,
            part.token,
            name,
            # Dask names it when the engine dies with it
            key=f"px-gather-{name}-of-engine-{part.engine}-{part.token}",
            # by another worker when that one is gone, which then says so
            workers=[addresses[part.key]],
            allow_other_workers=True,
            pure=False,
        )
        for part in parts
    ]
    kind = parts[0].description["kind"]
    if kind == "array":
        import dask.array as da

        arrays = [
            da.from_delayed(future, part.description["shape"], meta=part.description["meta"])
            for future, part in zip(futures, parts, strict=True)
        ]
        return da.concatenate(arrays, axis=0)
    if kind == "frame":
        try:
            import dask.dataframe as dd
        except ImportError as error:
            raise ImportError(
                f"{name!r} is in parts of {parts[0].description['type']}, and dask has no "
                "dataframes here: pip install 'dask[dataframe]'"
            ) from error
        return dd.from_delayed(
            futures,
            meta=parts[0].description["meta"],
            divisions=_divisions(parts),
            verify_meta=False,
        )
    return [delayed(future) for future in futures]


def _divisions(parts: Sequence[Part]) -> tuple[Any, ...] | None:
    """The index' values at which partitions begin, and the last; None where it is not sorted."""
    bounds = [part.description["bounds"] for part in parts]
    if any(bound is None for bound in bounds):
        return None
    for (_, last), (first, _) in itertools.pairwise(bounds):
        if not last < first:
            return None
    return (*(first for first, _ in bounds), bounds[-1][1])


def _take_aside(address: str, engine: int, token: str, name: str) -> Any:
    """The Dask task: what an engine has set aside, taken where it is."""
    worker: Any = get_worker()
    if worker.address == address:
        try:
            return worker.extensions["pxcompat"].engine.aside.pop(token)[1]
        except KeyError:
            raise EngineError(f"the part of {name!r} on engine {engine} was given up") from None
    message = {"op": "pxcompat_aside", "token": token, "close": True}
    asked = ask(worker, address, message, f"engine {engine}, which had a part of {name!r},")
    future = asyncio.run_coroutine_threadsafe(asked, worker.loop.asyncio_loop)
    help_until(future, errands=True)
    answer = future.result()
    if answer is None:
        raise EngineError(f"the part of {name!r} on engine {engine} was given up")
    return serialize.loads(list(answer.frames))


async def serve_aside(aside: dict[str, tuple[Any, Any]], comm: Comm, token: str) -> Any:
    """What was set aside, for a worker that takes it instead of ours."""
    if token not in aside:
        return None
    _, value = aside.pop(token)
    frames = await asyncio.to_thread(serialize.dumps, value)
    return Serialized({}, [owned(frame) for frame in frames])

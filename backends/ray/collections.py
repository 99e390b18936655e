"""Ray's datasets and lists of object references, taken apart over engines and put together from
what engines have."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.client.common import ClientObjectRef

from pxcompat.error import EngineError
from pxcompat.mapping import Map
from pxcompat.protocol import Part

from ..alike import check_alike
from .objects import Blocks, accept
from .registry import why
from .tables import is_one_array

__all__ = ["is_collection", "put_together", "take_apart"]

#: seconds for Ray to have a CPU free for its own tasks
CPU_PATIENCE = 30


def is_collection(obj: Any) -> bool:
    """Whether an object is a dataset, or a list of object references alone."""
    if isinstance(obj, (list, tuple)):
        return bool(obj) and all(isinstance(o, (ray.ObjectRef, ClientObjectRef)) for o in obj)
    data = sys.modules.get("ray.data")  # whoever has a dataset has imported it
    return data is not None and isinstance(obj, data.Dataset)


# -- apart ----------------------------------------------------------------------------


def take_apart(obj: Any, count: int, address: str, *, copy: bool) -> list[Blocks] | None:
    """The blocks of a dataset, or references of a list, for so many engines; None when the
    object is neither.

    A dataset that is lazy is executed first, by Ray's tasks.

    Raises
    ------
    EngineError
        When it is of another cluster.
    ValueError
        When there are fewer blocks than engines.
    """
    if not is_collection(obj):
        return None
    if isinstance(obj, (list, tuple)):
        refs, kind, empty = [accept(ref, address).ref for ref in obj], "values", None
        hint = "make more of them"
    else:
        refs, kind, empty = _blocks(obj, address)
        hint = "repartition() it"
    if len(refs) < count:
        what = "objects" if kind == "values" else "blocks"
        raise ValueError(
            f"there are {len(refs)} {what} for {count} engines, and each is to have at least one: "
            f"{hint}, or scatter to fewer engines"
        )
    split = Map()
    return [Blocks(split.getPartition(refs, i, count), kind, copy, empty) for i in range(count)]


def _blocks(dataset: Any, address: str) -> tuple[list[Any], str, Any]:
    """References to a dataset's blocks, in order, what they are, and one without rows."""
    from ray.data.dataset import MaterializedDataset

    if not isinstance(dataset, MaterializedDataset):
        _await_cpu("execute the dataset")
    with _in_order(dataset.context.execution_options):
        there = dataset.materialize()
    refs = [ref for bundle in there.iter_internal_ref_bundles() for ref in bundle.block_refs]
    schema = there.schema()
    kind = "array" if is_one_array(schema) else "table"
    # pyarrow's, or of blocks that are pandas', Ray's own
    make = getattr(getattr(schema, "base_schema", None), "empty_table", None)
    return [accept(ref, address).ref for ref in refs], kind, make() if make is not None else None


@contextlib.contextmanager
def _in_order(options: Any) -> Iterator[None]:
    """Have blocks come in the dataset's order, not as they are done."""
    before = options.preserve_order
    options.preserve_order = True
    try:
        yield
    finally:
        options.preserve_order = before


# -- together -------------------------------------------------------------------------


def put_together(name: str, parts: Sequence[Part], given: Mapping[str, tuple[Any, Any]]) -> Any:
    """A dataset over values that engines have set aside, where they are arrays or tables; else
    the references themselves.

    Parameters
    ----------
    given
        By an engine's key: what its call of :meth:`.engine.EngineActor.give_aside` returns.

    Raises
    ------
    ValueError
        When the parts do not fit together.
    EngineError
        When an engine that had one is gone, or Ray has no CPU to look at them.
    """
    check_alike(name, parts)
    for part in parts:
        try:
            ray.get(given[part.key][0])  # that it is in the store, and not the value
        except RayTaskError as error:
            with contextlib.suppress(RayError):  # has its error, too, which somebody is to see
                ray.get(given[part.key][1])
            raise EngineError(
                f"engine {part.engine} could not put its part of {name!r} into Ray's store: "
                f"{error.cause}"
            ) from error
        except RayError as error:
            raise EngineError(
                f"engine {part.engine}, which had a part of {name!r}, is gone: {why(error)}"
            ) from error
    refs = [given[part.key][1] for part in parts]
    if parts[0].description["kind"] == "object":
        return refs
    from ray import data

    _await_cpu(f"put {name!r} together")
    return data.from_arrow_refs(refs)


def _await_cpu(purpose: str) -> None:
    """Wait until Ray has a CPU for its tasks, which engines may have taken, all of them.

    Raises
    ------
    EngineError
        When it has none for long.
    """
    deadline = time.monotonic() + CPU_PATIENCE
    while ray.available_resources().get("CPU", 0) < 1:
        if time.monotonic() > deadline:
            raise EngineError(
                f"Ray cannot {purpose}: it has had no CPU for a task of its own for "
                f"{CPU_PATIENCE} s; it has {ray.cluster_resources().get('CPU', 0):g} in all, and "
                "each engine on a Ray that somebody else runs takes one: start fewer engines (n), "
                "or with num_cpus=0"
            )
        time.sleep(0.2)  # what is free is told by nodes, and not at once

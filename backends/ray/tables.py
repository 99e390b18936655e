"""Blocks of Ray's datasets as what engines bind, and the other way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray import cloudpickle

from pxcompat.mapping import is_array

__all__ = ["ARRAY", "as_block", "is_one_array", "join"]

#: the one column of a dataset that is an array (``ray.data.from_numpy``)
ARRAY = "data"


def is_one_array(schema: Any) -> bool:
    """Whether a dataset with this schema is an array, as numpy knows them."""
    if schema is None or list(schema.names) != [ARRAY]:
        return False
    import pyarrow as pa

    (kind,) = schema.types
    if not isinstance(kind, pa.DataType):
        return False
    plain = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    # Ray's own types of tensors, and Arrow's
    return plain or "tensor" in type(kind).__name__.lower()


def join(blocks: Sequence[Any], kind: str, copy: bool, empty: Any) -> Any:
    """One array or dataframe of blocks; with ``copy`` it is nobody else's.  ``empty`` stands for
    blocks without rows, if there is none with any."""
    from ray.data.block import BlockAccessor

    every = [BlockAccessor.for_block(block) for block in blocks]
    accessors = [accessor for accessor in every if accessor.num_rows()]
    if not accessors:
        accessors = [accessor for accessor in every if accessor.column_names()][:1]
    if not accessors:
        accessors = every[:1] if empty is None else [BlockAccessor.for_block(empty)]
    if kind == "array":
        import numpy as np

        arrays = [accessor.to_numpy(ARRAY) for accessor in accessors]
        # one may lie in the store
        return np.concatenate(arrays) if copy or len(arrays) > 1 else arrays[0]
    import pandas as pd

    frames = [accessor.to_pandas() for accessor in accessors]
    if len(frames) > 1:
        return pd.concat(frames, ignore_index=True)
    return frames[0].copy() if copy else frames[0]


def as_block(value: Any) -> Any:
    """A value of an engine as datasets have it: arrays and tables as one of Arrow's, anything
    else as it is."""
    if is_array(value) and value.ndim:
        from ray.data.block import BlockAccessor

        return BlockAccessor.batch_to_arrow_block({ARRAY: value})
    if hasattr(value, "iloc") and hasattr(value, "index"):
        from ray.data.block import BlockAccessor

        frame = value if hasattr(value, "columns") else value.to_frame()
        return BlockAccessor.for_block(frame).to_arrow()
    # what Ray cannot pickle it notices when it is too late to say so
    cloudpickle.dumps(value, protocol=5, buffer_callback=lambda buffer: None)
    return value

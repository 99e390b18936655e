"""Whether values that engines have set aside can be parts of one collection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pxcompat.protocol import Part

__all__ = ["check_alike"]


def check_alike(name: str, parts: Sequence[Part]) -> None:
    """Raise ValueError when parts do not fit together."""
    first = parts[0]
    for part in parts[1:]:
        if _likeness(part) != _likeness(first):
            raise ValueError(
                f"the parts of {name!r} do not fit together: engine {first.engine} has "
                f"{_told(first)}, engine {part.engine} has {_told(part)}"
            )


def _likeness(part: Part) -> Any:
    """What parts must have in common."""
    description = part.description
    if description["kind"] == "array":
        return "array", description["shape"][1:]
    if description["kind"] == "frame":
        meta = description["meta"]
        columns = list(meta.columns) if hasattr(meta, "columns") else [meta.name]
        dtypes = [str(d) for d in meta.dtypes] if hasattr(meta, "columns") else [str(meta.dtype)]
        return "frame", description["type"], columns, dtypes
    return "object"


def _told(part: Part) -> str:
    description = part.description
    if description["kind"] == "array":
        return f"an array of shape {description['shape']}"
    if description["kind"] == "frame":
        return f"a {description['type']} with {_likeness(part)[2:]}"
    return f"a {description['type']}"

"""What the engine's namespace holds: for ``%pxwho`` and for dashboards."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from numbers import Number
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import current

if TYPE_CHECKING:
    from .shell import EngineShell

__all__ = ["Described", "describe", "largest", "total"]

#: characters of a value that are told, and of a name in a dashboard
VALUE_LIMIT = 40
NAME_LIMIT = 100
#: bytes that are told at most: what heartbeats, which a worker cannot do without, can carry
MOST = (1 << 63) - 1

#: type, shape or length, bytes, and of a small plain value the value
Described = tuple[str, str, int, str]


def describe(patterns: Sequence[str]) -> dict[str, Described]:
    """The names of the engine's namespace that match any pattern.

    Without patterns, those that ``%who`` would list.
    """
    shell = current().shell
    return {
        name: (_type(value), _shape(value), _bytes(value), _text(value))
        for name, value in _chosen(shell, patterns)
    }


def total(shell: EngineShell) -> tuple[int, int]:
    """How many names :func:`describe` would list without patterns, and their bytes."""
    sizes = [_bytes(value) for _, value in _chosen(shell, ())]
    return len(sizes), min(sum(sizes), MOST)


def largest(shell: EngineShell, count: int) -> dict[str, tuple[str, str, int]]:
    """Type, shape and bytes of the largest of these names, from any thread."""
    sizes = {name: (_bytes(value), value) for name, value in _chosen(shell, ())}
    order = sorted(sizes, key=lambda name: -sizes[name][0])[:count]
    return {
        _cut(name, NAME_LIMIT): (_type(sizes[name][1]), _shape(sizes[name][1]), sizes[name][0])
        for name in order
    }


def _chosen(shell: EngineShell, patterns: Sequence[str]) -> Iterator[tuple[str, Any]]:
    hidden = shell.user_ns_hidden
    for name, value in list(shell.user_ns.items()):
        if patterns:
            wanted = any(fnmatchcase(name, pattern) for pattern in patterns)
        else:
            own = name not in hidden or hidden[name] is not value
            wanted = own and not name.startswith("_")
        if wanted:
            yield name, value


def _of_class(value: Any, name: str) -> Any:
    """An attribute that the value's class knows of: others may be made up on the spot."""
    if isinstance(value, type) or not hasattr(type(value), name):
        return None
    with suppress(Exception):  # a user's property may raise anything
        return getattr(value, name)
    return None


def _type(value: Any) -> str:
    name = type(value).__name__
    dtype = _of_class(value, "dtype")
    return name if dtype is None or isinstance(value, Number) else f"{name} of {dtype}"


def _shape(value: Any) -> str:
    shape = _of_class(value, "shape")
    if isinstance(shape, tuple):
        return "x".join(str(n) for n in shape) if not isinstance(value, Number) else ""
    builtin = (str, bytes, bytearray, list, tuple, dict, set, frozenset, range)
    return f"len {len(value)}" if isinstance(value, builtin) else ""


def _bytes(value: Any) -> int:
    if hasattr(type(value), "__dask_graph__"):
        return sys.getsizeof(value)  # lazy: what it says is what it would come to
    return max(0, min(_said(value), MOST))


def _said(value: Any) -> int:
    nbytes = _of_class(value, "nbytes")
    if isinstance(nbytes, int):
        return nbytes
    usage = _of_class(value, "memory_usage")
    with suppress(Exception):  # of what only looks like pandas
        total = usage() if usage is not None else None
        if total is not None:
            return int(total.sum() if hasattr(total, "sum") else total)
    try:
        return sys.getsizeof(value)
    except Exception:  # a user's __sizeof__ may raise anything
        return 0


def _text(value: Any) -> str:
    if isinstance(value, ModuleType):
        return value.__name__
    if not (value is None or isinstance(value, (str, bytes, Number))):
        return ""
    with suppress(Exception):  # a user's number
        return _cut(repr(value), VALUE_LIMIT)
    return ""


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."

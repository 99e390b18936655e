"""What of an object cannot be pickled, said so that its sender finds it."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..error import SerializationError
from .functions import cell_content

__all__ = ["explain"]


def explain(
    obj: Any, name: str, error: Exception, pickle: Callable[[Any], object]
) -> SerializationError:
    """The error that names the innermost part which ``pickle`` cannot do, and the path to it."""
    path, culprit = _find_culprit(obj, name, pickle, depth=0)
    return SerializationError(
        f"cannot pickle {path}, of type {_type_name(culprit)}: {str(error).rstrip('.')}. "
        "Send what it is made from and build it on the engine, or define it there with %px."
    )


def _type_name(obj: Any) -> str:
    cls = type(obj)
    prefix = "" if cls.__module__ == "builtins" else f"{cls.__module__}."
    return prefix + cls.__qualname__


def _find_culprit(
    obj: Any, path: str, pickle: Callable[[Any], object], depth: int
) -> tuple[str, Any]:
    """The innermost part of an object that cannot be pickled by itself."""
    if depth < 12:
        for part, where in _parts(obj, path):
            try:
                pickle(part)
            except Exception:
                return _find_culprit(part, where, pickle, depth + 1)
    return path, obj


def _parts(obj: Any, path: str) -> Iterator[tuple[Any, str]]:
    if isinstance(obj, Mapping):
        for key, value in obj.items():
            yield value, f"{path}[{key!r}]"
    elif isinstance(obj, (list, tuple, set, frozenset)):
        for index, value in enumerate(obj):
            yield value, f"{path}[{index}]"
    elif isinstance(obj, types.FunctionType):
        for variable, cell in zip(obj.__code__.co_freevars, obj.__closure__ or (), strict=True):
            yield cell_content(cell), f"{path}: closure variable {variable!r}"
        for index, value in enumerate(obj.__defaults__ or ()):
            yield value, f"{path}: default argument {index}"
    elif isinstance(obj, types.MethodType):
        yield obj.__self__, f"{path}.__self__"
    elif isinstance(getattr(obj, "__dict__", None), dict) and not isinstance(obj, type):
        for attribute, value in vars(obj).items():
            yield value, f"{path}.{attribute}"

"""Where a pickle arrives: its interactive namespace, and what was left out of it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ..error import SerializationError

__all__ = [
    "context",
    "current_namespace",
    "evaluate",
    "is_native",
    "namespace_of",
    "register_native",
    "resolve",
]


class _Context(threading.local):
    namespace: dict[str, Any] | None = None
    #: by token: what gives the value of an object that was left out of the pickle
    natives: Mapping[str, Callable[[], Any]] | None = None
    #: whether a Reference was evaluated; see loads_function
    evaluated = False


context = _Context()


class namespace_of:
    """Unpickle within this namespace: functions of ``__main__`` get it as globals."""

    __slots__ = ("_before", "_namespace")

    def __init__(self, namespace: dict[str, Any] | None) -> None:
        self._namespace = namespace

    def __enter__(self) -> None:
        self._before, context.namespace = context.namespace, self._namespace

    def __exit__(self, *_: object) -> None:
        context.namespace = self._before


def current_namespace() -> dict[str, Any]:
    """The interactive namespace that is being unpickled into; ``__main__``'s by default."""
    if context.namespace is not None:
        return context.namespace
    return sys.modules["__main__"].__dict__


#: types whose instances stay out of a request's pickle; see :func:`register_native`
_natives: set[type] = set()


def register_native(kind: type) -> None:
    """Have instances of a type travel as references that the engine resolves: futures of a
    backend's own, say.  Subclasses are not meant."""
    _natives.add(kind)


def is_native(obj: Any) -> bool:
    """Whether an object stays out of a request's pickle."""
    return type(obj) in _natives


def resolve(token: str) -> Any:
    """The value of an object that was left out of the pickle being unpickled."""
    native = (context.natives or {}).get(token)
    if native is None:
        raise SerializationError(
            "a future or reference of the cluster's cannot be resolved here: it travels as an "
            "argument of a request, not inside of something that was pickled before"
        )
    return native()


def evaluate(expression: str) -> Any:
    """What a Reference stands for; only while unpickling for an engine's namespace."""
    if context.namespace is None:
        from .reference import Reference

        return Reference(expression)
    context.evaluated = True
    return eval(expression, context.namespace)

"""Parts of collections on an engine: bound so that it can be undone, set aside, described.

Functions that the client has engines call, as those of :mod:`.calls`.
"""

from __future__ import annotations

from typing import Any

from ..mapping import is_array
from . import current, namespace

__all__ = ["bind", "give_up", "set_aside", "settle"]

_NOTHING = object()


def bind(name: str, value: Any, token: str, flatten: bool = False) -> None:
    """Bind a name, until :func:`settle` says whether it stays so."""
    scope = namespace()
    if flatten and isinstance(value, list) and len(value) == 1:
        value = value[0]
    engine = current()
    engine.hold(engine.unsettled, token, (name, value, scope.get(name, _NOTHING)))
    scope[name] = value


def settle(token: str, good: bool) -> None:
    """Keep what was bound, or give the name back what it had, unless it has something newer."""
    _, (name, value, before) = current().unsettled.pop(token, (None, ("", None, _NOTHING)))
    scope = namespace()
    if good or not name or scope.get(name, _NOTHING) is not value:
        return
    if before is _NOTHING:
        del scope[name]
    else:
        scope[name] = before


def set_aside(expression: str, token: str) -> dict[str, Any]:
    """Have a value at hand for the backend, who takes it by the token; a description of it.

    Returns
    -------
    dict
        ``kind``: ``"array"`` (with ``shape``, ``meta``), ``"frame"`` (with ``length``, ``meta``
        and ``bounds``, the index' first and last value where it is sorted) or ``"object"``;
        ``type``: the name of its type.
    """
    value = eval(expression, namespace())
    cls = type(value)
    description: dict[str, Any] = {
        "kind": "object",
        "type": cls.__qualname__
        if cls.__module__ == "builtins"
        else f"{cls.__module__}.{cls.__qualname__}",
    }
    if is_array(value) and value.ndim:
        meta = value[(slice(0, 0),) * value.ndim]
        description.update(kind="array", shape=value.shape, meta=meta)
    elif hasattr(value, "iloc") and hasattr(value, "index"):
        bounds = None
        if len(value) and value.index.is_monotonic_increasing:
            bounds = (value.index[0], value.index[-1])
        description.update(kind="frame", length=len(value), meta=value.iloc[:0], bounds=bounds)
    engine = current()
    engine.hold(engine.aside, token, value)
    return description


def give_up(token: str) -> None:
    """Let go of what was set aside, if the backend has not taken it."""
    current().aside.pop(token, None)

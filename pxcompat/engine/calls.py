"""Functions that views have engines call; sent by name, since engines have them too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import current, namespace

__all__ = ["bind_native", "clear", "publish_data", "pull", "push", "unbind"]

_VALUE = "_px_value"


def push(**values: Any) -> None:
    """Bind values in the engine's namespace.

    Keys may be anything that can be assigned to: ``a``, ``a.b``, ``d['k']``.
    """
    scope = namespace()
    for target, value in values.items():
        if target.isidentifier():
            scope[target] = value
            continue
        scope[_VALUE] = value
        try:
            exec(f"{target} = {_VALUE}", scope)
        finally:
            del scope[_VALUE]


def pull(names: str | Sequence[str]) -> Any:
    """The value of an expression in the engine's namespace, or a list of several."""
    scope = namespace()
    if isinstance(names, str):
        return eval(names, scope)
    return [eval(name, scope) for name in names]


def clear() -> None:
    """Empty the engine's namespace."""
    current().shell.reset(new_session=False)


def bind_native(*names: str) -> None:
    """Bind the backend's own object for this engine (a Dask Worker ...)."""
    namespace().update(dict.fromkeys(names, current().native))


def unbind(*names: str) -> None:
    """Remove names from the engine's namespace, those that are there."""
    for name in names:
        namespace().pop(name, None)


def publish_data(data: Any) -> None:
    """Send a dict to whoever waits for the running request (ipyparallel.datapub).

    It arrives in ``AsyncResult.data`` while the request runs; later dicts update it.

    Parameters
    ----------
    data : dict

    Raises
    ------
    TypeError
        When ``data`` is no dict.
    """
    if not isinstance(data, dict):
        raise TypeError(f"publish_data() takes a dict, not {type(data).__name__}")
    current().publish_data(data)

"""The engine's side: a namespace, an IPython shell, and one request after another.

The same code on every backend, in a process of its own or on a thread of somebody
else's.  A backend gives an :class:`~pxcompat.engine.runtime.Engine` its requests and
carries away what it says.  Nothing here knows what carries it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .output import RequestOutput
    from .runtime import Engine

__all__ = ["current", "namespace"]


class _Current(threading.local):
    engine: Engine | None = None


_current = _Current()
_of_process: Engine | None = None


def set_current(engine: Engine | None, *, process: bool) -> None:
    """Make an engine the one of this thread, and with ``process`` of this process."""
    global _of_process
    _current.engine = engine
    if process:
        _of_process = engine


def engine_of_thread() -> Engine | None:
    """The engine whose requests run on this thread."""
    return _current.engine


def engine_of_process() -> Engine | None:
    """The engine that this process exists for."""
    return _of_process


def current_or_none() -> Engine | None:
    """The engine of this thread, or that which this process exists for."""
    return _current.engine or _of_process


def current() -> Engine:
    """The engine that runs this code.

    Raises
    ------
    RuntimeError
        When this is no engine's code.
    """
    engine = current_or_none()
    if engine is None:
        raise RuntimeError("this only works in code that runs on an engine")
    return engine


def output_of_thread() -> RequestOutput | None:
    """The output of the request that this very thread runs, if it is an engine's."""
    engine = _current.engine
    return engine.shell.output if engine is not None else None


def namespace() -> dict[str, Any]:
    """The interactive namespace of the engine that runs this code."""
    scope: dict[str, Any] = current().shell.user_ns
    return scope

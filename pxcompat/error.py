"""Every error a user of pxcompat can meet, under ipyparallel's names.

::

    Exception
     └ IPythonError
        └ KernelError
           ├ EngineError             the engine died, or the cluster is out of reach
           │  └ ClientClosed         ... for this client, which was closed (a RuntimeError too)
           ├ NoEnginesRegistered     the operation needs engines and there are none
           ├ InvalidEngineId         no engine has that id (an IndexError too)
           ├ TaskAborted             cancelled before it ran
           ├ TaskTimeout             its dependencies or engines did not come in time
           ├ TaskRejectError         raised by a task to be run elsewhere
           ├ UnmetDependency
           │  └ ImpossibleDependency
           │     ├ DependencyTimeout
           │     └ InvalidDependency
           ├ SerializationError      an object cannot be sent, and where in it (a TypeError too)
           ├ ConnectionFileError     missing, stale, unreadable or foreign connection file
           ├ ConnectError            a cluster does not answer, and when (a TimeoutError too)
           ├ BackendError            a backend is missing or failed to start
           └ RemoteError             user code raised on an engine
              ├ UnknownRequest       no engine remembers it (a KeyError too)
              ├ EngineDied           ... or its engine died (an EngineError too)
              ├ CompositeError       ... on several
              └ AlreadyDisplayedError  ... and its traceback was streamed already

Names up to ``RemoteError`` that ipyparallel has are ipyparallel's, with its attributes and
renderings; the others are additions, each also derived from the builtin that code
written for ipyparallel may catch.
"""

from __future__ import annotations

import builtins
import sys
import traceback
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

EngineInfoDict = Mapping[str, Any]
T = TypeVar("T")


class IPythonError(Exception):
    """Base of every error here (ipyparallel.error.IPythonError)."""


class KernelError(IPythonError):
    """Base of the errors of the parallel machinery."""


class EngineError(KernelError):
    """An engine died, or cannot be reached."""


class ClientClosed(EngineError, RuntimeError):
    """The client is closed."""


class NoEnginesRegistered(KernelError):
    """The operation needs engines, and none is registered."""

    def __str__(self) -> str:
        return super().__str__() or (
            "This operation requires engines, and none is registered."
            " Try client.wait_for_engines(n) to wait for engines to register."
        )


class InvalidEngineId(KernelError, IndexError):
    """No engine of this cluster has the id asked for."""


class TaskAborted(KernelError):
    """The request was cancelled before it ran."""


class TaskTimeout(KernelError):
    """The request could not be placed within its ``timeout``."""


#: The builtin, kept importable from here as ipyparallel does.
TimeoutError = builtins.TimeoutError


class UnmetDependency(KernelError):
    """A dependency is not met on this engine; another may be tried."""


class ImpossibleDependency(UnmetDependency):
    """A dependency can never be met."""


class DependencyTimeout(ImpossibleDependency):
    """A dependency was not met in time."""


class InvalidDependency(ImpossibleDependency):
    """A dependency names a request that nobody knows."""


class TaskRejectError(KernelError):
    """Raised by a task that should be tried on another engine (with ``retries``)."""


class SerializationError(KernelError, TypeError):
    """An object cannot be pickled or unpickled; the message names it and its path."""


class ConnectionFileError(KernelError, OSError):
    """A connection file is missing, stale, unreadable or of another version."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ConnectError(KernelError, builtins.TimeoutError):
    """A cluster did not answer; the message names the stage."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class BackendError(KernelError):
    """A backend is unknown, not installed, or failed to start."""


def no_restart(backend: str) -> BackendError:
    """What is said where a backend's capabilities exclude restarts."""
    return BackendError(
        f"engines of this {backend} cluster cannot be restarted from here, as pxcompat did not "
        "start them: restart them with the tool that did"
    )


class RemoteError(KernelError):
    """User code raised an exception on an engine.

    Parameters
    ----------
    ename, evalue : str
        Name and message of the remote exception.
    traceback : str
        The remote traceback, as text.
    engine_info : dict
        ``engine_id`` (int), ``engine_uuid`` (str), ``method`` (``apply`` or ``execute``).
    """

    ename: str
    evalue: str
    traceback: str | None
    engine_info: dict[str, Any]

    def __init__(
        self,
        ename: str,
        evalue: str,
        traceback: str | None,
        engine_info: EngineInfoDict | None = None,
    ) -> None:
        super().__init__(ename, evalue)
        self.ename = ename
        self.evalue = evalue
        self.traceback = traceback
        self.engine_info = dict(engine_info or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return (RemoteError, (self.ename, self.evalue, self.traceback, self.engine_info))

    @staticmethod
    def _get_engine_str(engine_info: EngineInfoDict | None) -> str:
        if not engine_info:
            return "[Engine Exception]"
        return f"[{engine_info['engine_id']}:{engine_info['method']}]"

    def __repr__(self) -> str:
        where = self.engine_info.get("engine_id", " ")
        return f"<{type(self).__name__}[{where}]:{self.ename}({self.evalue})>"

    def __str__(self) -> str:
        return f"{self._get_engine_str(self.engine_info)} {self.ename}: {self.evalue}"

    def render_traceback(self) -> list[str]:
        """The remote traceback, a list of lines headed by the engine's ``[id:method]``."""
        text = self.traceback or "No traceback available"
        return [self._get_engine_str(self.engine_info), *text.splitlines()]

    def _render_traceback_(self) -> list[str]:
        # IPython shows this instead of the local traceback
        return self.render_traceback()

    def print_traceback(self, excid: int | None = None) -> None:
        """Print the remote traceback to stdout."""
        sys.stdout.write("\n".join(self.render_traceback()) + "\n")


class UnknownRequest(RemoteError, KeyError):
    """No engine knows the request (a KeyError, as ipyparallel's Hub has it)."""

    def __init__(self, evalue: str) -> None:
        super().__init__("KeyError", evalue, None)

    def __reduce__(self) -> tuple[Any, ...]:
        return (UnknownRequest, (self.evalue,))

    def __str__(self) -> str:
        return self.evalue

    def render_traceback(self) -> list[str]:
        """Just what is missing."""
        return [f"KeyError: {self.evalue}"]


class EngineDied(RemoteError, EngineError):
    """The engine died while it had the request.

    ipyparallel raises a RemoteError named ``EngineError`` here; this is one, and an
    :class:`EngineError` too.
    """

    def __init__(self, evalue: str, engine_info: EngineInfoDict | None = None) -> None:
        super().__init__("EngineError", evalue, None, engine_info)

    def __reduce__(self) -> tuple[Any, ...]:
        return (EngineDied, (self.evalue, self.engine_info))

    def render_traceback(self) -> list[str]:
        """The reason: there is no traceback of a process that is gone."""
        return [str(self)]


#: (ename, evalue, traceback, engine_info) of one exception in a CompositeError
ErrorItem = tuple[str, str, "str | None", dict[str, Any]]


class CompositeError(RemoteError):
    """User code raised on several engines.

    Parameters
    ----------
    message : str
        What was being done.
    elist : list of (ename, evalue, traceback, engine_info)
        One item an exception.
    """

    #: how many tracebacks are drawn before "N more exceptions"
    tb_limit = 4

    def __init__(self, message: str, elist: list[ErrorItem]) -> None:
        Exception.__init__(self, message, elist)
        self.msg = message
        self.elist = elist
        self.ename = "CompositeError"
        self.evalue = message
        self.traceback = None
        self.engine_info = {}
        self.args = tuple(e[0] for e in elist)

    def __reduce__(self) -> tuple[Any, ...]:
        return (CompositeError, (self.msg, self.elist))

    def __repr__(self) -> str:
        return f"CompositeError({len(self.elist)})"

    def __str__(self) -> str:
        lines = [self.msg]
        for ename, evalue, _, info in self.elist[: self.tb_limit]:
            lines.append(f"{self._get_engine_str(info)}{ename}: {evalue}")
        hidden = len(self.elist) - self.tb_limit
        if hidden > 0:
            lines.append(f".... {hidden} more exceptions ...")
        return "\n".join(lines)

    def _item(self, excid: int) -> ErrorItem:
        try:
            return self.elist[excid]
        except (IndexError, TypeError):
            raise IndexError(f"an exception with index {excid} does not exist") from None

    def render_traceback(self, excid: int | None = None) -> list[str]:
        """One traceback, or the first ``tb_limit`` of them, as a list of lines."""
        shown = self.elist[: self.tb_limit] if excid is None else [self._item(excid)]
        lines: list[str] = []
        for _, _, text, info in shown:
            lines.append(self._get_engine_str(info) + ":")
            lines.extend((text or "No traceback available").splitlines())
            if excid is None:
                lines.append("")
        hidden = len(self.elist) - self.tb_limit
        if excid is None and hidden > 0:
            lines.append(f"... {hidden} more exceptions ...")
        return lines

    def print_traceback(self, excid: int | None = None) -> None:
        """Print one traceback, or the first few, to stdout."""
        sys.stdout.write("\n".join(self.render_traceback(excid)) + "\n")

    def raise_exception(self, excid: int = 0) -> None:
        """Raise one of the exceptions as a :class:`RemoteError`."""
        raise RemoteError(*self._item(excid))


class AlreadyDisplayedError(RemoteError):
    """Stands for a CompositeError whose tracebacks were streamed already."""

    def __init__(self, original_error: CompositeError) -> None:
        Exception.__init__(self, original_error)
        self.original_error = original_error
        self.n = len(original_error.elist)
        self.ename = "AlreadyDisplayedError"
        self.evalue = str(self)
        self.traceback = None
        self.engine_info = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return (AlreadyDisplayedError, (self.original_error,))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}({self.n} errors)>"

    def __str__(self) -> str:
        return f"{self.n} errors"

    def render_traceback(self) -> list[str]:
        """Just the count: the tracebacks are on the screen."""
        return [str(self)]


def collect_exceptions(rdict_or_list: T, method: str = "unspecified") -> T:
    """Raise a :class:`CompositeError` when any result is a RemoteError; else return them.

    Parameters
    ----------
    rdict_or_list : list or dict
        Results, RemoteErrors among them.  CompositeErrors are flattened.
    method : str
        What was being done, for the message.
    """
    values: Iterable[Any] = (
        rdict_or_list.values() if isinstance(rdict_or_list, dict) else rdict_or_list  # type: ignore[assignment]
    )
    elist: list[ErrorItem] = []
    for value in values:
        if isinstance(value, CompositeError):
            elist.extend(value.elist)
        elif isinstance(value, RemoteError):
            elist.append((value.ename, value.evalue, value.traceback, value.engine_info))
    if elist:
        raise CompositeError(f"one or more exceptions raised in: {method}", elist)
    return rdict_or_list


def wrap_exception(engine_info: EngineInfoDict | None = None) -> dict[str, Any]:
    """The exception being handled, as the content of an error reply."""
    etype, evalue, tb = sys.exc_info()
    if etype is None:
        raise RuntimeError("wrap_exception() is for use while an exception is handled")
    return {
        "status": "error",
        "traceback": traceback.format_exception(etype, evalue, tb),
        "ename": etype.__name__,
        "evalue": str(evalue),
        "engine_info": dict(engine_info or {}),
    }


def unwrap_exception(content: Mapping[str, Any]) -> RemoteError:
    """The inverse of :func:`wrap_exception`."""
    if content["ename"] == "EngineError" and not content.get("traceback"):
        # not user code's, which has a traceback: the engine could not do its part
        return EngineDied(content["evalue"], content.get("engine_info"))
    return RemoteError(
        content["ename"],
        content["evalue"],
        "\n".join(content.get("traceback") or ()),
        content.get("engine_info"),
    )

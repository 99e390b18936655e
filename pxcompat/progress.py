"""Progress bars, and waiting with one."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TextIO

from .display import in_kernel
from .engine.interrupts import uninterrupted
from .waiting import seconds

if TYPE_CHECKING:
    from .asyncresult import AsyncResult

__all__ = ["aside", "noninteractive", "progress", "wait_with_bar"]


def noninteractive() -> bool:
    """Whether the user asked for no bars: ``PXCOMPAT_NONINTERACTIVE`` or ``IPP_NONINTERACTIVE``."""
    names = ("PXCOMPAT_NONINTERACTIVE", "IPP_NONINTERACTIVE")
    return any(os.environ.get(name, "") not in {"", "0"} for name in names)


def aside() -> TextIO:
    """Where to tell a person how things are going: stderr, which a script's output is not;
    beneath a notebook's cell stdout, as stderr looks like an error there."""
    return sys.stdout if in_kernel() else sys.stderr


def _seen(file: Any) -> bool:
    """Whether somebody looks on: a bar in a log is of no use."""
    return in_kernel() or bool(getattr(file, "isatty", bool)())


def progress(*args: Any, widget: bool | None = None, **kwargs: Any) -> Any:
    """A tqdm progress bar (``ipyparallel.util.progress``).

    Parameters
    ----------
    widget : bool, optional
        Whether to use the notebook form.  Default: in a kernel that has ipywidgets.
    *args, **kwargs
        As for :class:`tqdm.tqdm`.  ``file`` defaults to stdout, ``disable`` to whether the
        user asked for no bars or ``file`` is neither a terminal nor a notebook.
    """
    kwargs.setdefault("file", sys.stdout)
    if kwargs.get("disable") is None:
        kwargs["disable"] = noninteractive() or not _seen(kwargs["file"])
    if widget is None:
        widget = in_kernel() and find_spec("ipywidgets") is not None
    tqdm = import_module("tqdm.notebook" if widget else "tqdm").tqdm
    with uninterrupted():  # a bar that is half made complains when it is thrown away
        return tqdm(*args, **kwargs)


def wait_with_bar(
    result: AsyncResult,
    *,
    interval: float,
    timeout: float | None,
    widget: bool | None,
    return_when: str | None,
) -> None:
    """What ``result.wait_interactive`` does."""
    if return_when not in {None, ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION}:
        raise ValueError(f"Unrecognized return_when={return_when!r}")
    limit = seconds(timeout)
    deadline = float("inf") if limit is None else time.monotonic() + limit
    shown = 0
    bar = progress(widget=widget, total=len(result), unit="tasks", desc=result._fname)
    try:
        while True:
            # woken by the end; the interval is for the bar alone
            pause = max(0, min(interval, deadline - time.monotonic()))
            finished = _wait_until(result, return_when, pause)
            count = result.progress
            bar.update(count - shown)
            shown = count
            if finished or time.monotonic() >= deadline:
                return
    finally:
        # in one step for those who show output above it
        with bar.get_lock():
            bar.close()


def _wait_until(result: AsyncResult, return_when: str | None, timeout: float) -> bool:
    """Wait, and say whether what was waited for has happened."""
    if return_when is None or return_when == ALL_COMPLETED:
        return bool(result.wait(timeout))
    done, pending = result.wait(timeout, return_when)
    if return_when == FIRST_COMPLETED:
        return bool(done)
    return not pending or any(not part._success for part in done)

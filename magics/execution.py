"""Waiting for a ``%px``: its output, its errors, and Ctrl-C."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import error

if TYPE_CHECKING:
    from ..asyncresult import AsyncResult
    from ..client import Client

__all__ = ["Presentation", "collect"]

#: seconds to wait for the output of finished requests; it is on its way already
OUTPUT_TIMEOUT = 10


@dataclass(frozen=True)
class Presentation:
    """How a blocking ``%px`` waits and shows what happens; see ``%pxconfig?``."""

    stream: bool
    groupby: str
    progress_after: float
    signal_on_interrupt: int | str | None


def collect(
    client: Client, result: AsyncResult, how: Presentation, *, interrupted: bool = False
) -> None:
    """Wait for a result, show its output and raise its error.

    A KeyboardInterrupt is passed on to the engines still at work, whose answers are then
    awaited and shown, but not raised; a second one ends the waiting.

    Parameters
    ----------
    interrupted : bool
        Whether the user has pressed Ctrl-C already.
    """
    with result.stream_output() if how.stream else nullcontext():
        try:
            if interrupted:
                raise KeyboardInterrupt
            _wait(result, how.progress_after)
        except KeyboardInterrupt:
            if how.signal_on_interrupt is None:
                raise
            interrupted = True
            _interrupt(client, result, how.signal_on_interrupt)
    if not result.ready():
        return  # interrupted with signal 0, which leaves the engines alone
    if not how.stream:
        result.display_outputs(how.groupby)
    try:
        result.get()
    except Exception as failure:
        shown = how.stream and _streamed(result, failure)
        if not interrupted:
            if shown and isinstance(failure, error.CompositeError):
                raise error.AlreadyDisplayedError(failure) from None
            raise
        if not shown:
            print(failure, file=sys.stderr)


def _wait(result: AsyncResult, progress_after: float) -> None:
    if progress_after < 0:
        result.wait()
    elif progress_after == 0 or not result.wait(progress_after):
        result.wait_interactive()
    result.wait_for_output(OUTPUT_TIMEOUT)


def _interrupt(client: Client, result: AsyncResult, signal: int | str) -> None:
    print(
        f"Received Keyboard Interrupt. Sending signal {signal} to engines...",
        file=sys.stderr,
        flush=True,
    )
    if signal == 0:
        return
    # an engine that has finished may be at work for somebody else by now
    working = [
        target
        for target, request in zip(result._targets or (), result._children, strict=True)
        if not request.done()
    ]
    if working:
        client.send_signal(signal, targets=working, block=True)
    _wait(result, progress_after=-1)


def _streamed(result: AsyncResult, failure: Exception) -> bool:
    """Whether every error in ``failure`` was on the screen while the request ran.

    A request that was aborted or lost its engine fails without having said so.
    """
    failures = len(failure.elist) if isinstance(failure, error.CompositeError) else 1
    records = result.metadata if isinstance(result.metadata, list) else [result.metadata]
    return sum(record["error"] is not None for record in records) >= failures

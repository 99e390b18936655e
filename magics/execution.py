"""Waiting for a ``%px``: its output, its errors, and Ctrl-C."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import error
from ..display import show_folded_errors, show_outputs
from ..engine.interrupts import held_from_the_first_on, uninterrupted
from ..waiting import wait_for

if TYPE_CHECKING:
    from ..asyncresult import AsyncResult
    from ..client import Client
    from .watch import Watch

__all__ = ["Presentation", "collect", "raise_error", "wait"]

#: seconds to wait for the output of finished requests; it is on its way already
OUTPUT_TIMEOUT = 10
#: seconds for engines to say that they have not begun what is interrupted
ABORT_TIMEOUT = 1
#: seconds that an engine has for ending what was interrupted because its time was up
GRACE = 5.0


@dataclass(frozen=True)
class Presentation:
    """How a blocking ``%px`` waits and shows what happens; see ``%pxconfig?``."""

    stream: bool
    groupby: str
    progress_after: float
    signal_on_interrupt: int | str | None
    #: seconds; 0: any number
    timeout: float = 0


def collect(
    client: Client,
    result: AsyncResult,
    how: Presentation,
    holding: held_from_the_first_on,
    *,
    watch: Watch | None = None,
    interrupted: bool = False,
) -> bool:
    """Wait for a result, show its output and raise its error.

    A KeyboardInterrupt is passed on to the engines still at work, whose answers are then
    awaited and shown, but not raised; a second one ends the waiting.

    Parameters
    ----------
    holding : held_from_the_first_on
        What holds a KeyboardInterrupt off; closed when one is expected here.
    watch : Watch, optional
        What interrupts the engines when their time is up.
    interrupted : bool
        Whether the user has pressed Ctrl-C already.

    Returns
    -------
    bool
        Whether the engines have done all of it.

    Raises
    ------
    TimeoutError
        When the engines have not finished in time.
    """
    # a single engine's error is raised as it is
    errors = len(result._children) > 1
    with ExitStack() as shown_until_then:
        try:
            if how.stream:
                with uninterrupted():  # or what engines say to an interrupt would not be shown
                    shown_until_then.enter_context(result.stream_output(errors=errors))
            holding.close()
            if interrupted:
                raise KeyboardInterrupt
            _wait(result, how.progress_after, how.timeout + GRACE if how.timeout else -1)
        except KeyboardInterrupt:
            if how.signal_on_interrupt is None:
                raise
            interrupted = True
            _interrupt(client, result, how.signal_on_interrupt)
    late = watch.late() if watch is not None else None
    if not result.ready():
        if late is None:
            return False  # interrupted with signal 0, which leaves the engines alone
        if not how.stream:
            show_outputs(result._metadata, groupby=how.groupby)
        raise late
    if not how.stream:
        result.display_outputs(how.groupby)
    try:
        raise_error(result, folded=how.groupby == "folded" and not how.stream)
    except Exception as failure:
        shown = isinstance(failure, error.AlreadyDisplayedError) or (
            how.stream and errors and _streamed(result, failure)
        )
        if late is not None:
            raise late from (None if shown else failure)
        if not interrupted:
            if shown and isinstance(failure, error.CompositeError):
                raise error.AlreadyDisplayedError(failure) from None
            raise
        if not shown:
            aborted = isinstance(failure, error.TaskAborted)  # which says no more than its msg_id
            print(f"TaskAborted: {failure}" if aborted else failure, file=sys.stderr)
    return not interrupted


def raise_error(result: AsyncResult, *, folded: bool) -> None:
    """Raise what went wrong with a finished result, if anything did.

    Parameters
    ----------
    folded : bool
        Whether to show what went wrong on several engines first, the same errors once.
    """
    try:
        result.get()
    except error.CompositeError as failure:
        if not folded:
            raise
        show_folded_errors(failure)
        raise error.AlreadyDisplayedError(failure) from None


def wait(result: AsyncResult, progress_after: float, limit: float = -1) -> None:
    """Wait for a result, after some seconds with a progress bar; at most ``limit`` seconds."""
    end = time.monotonic() + limit
    if progress_after < 0 or 0 <= limit <= progress_after:
        result.wait(limit)
    elif progress_after == 0 or not result.wait(progress_after):
        result.wait_interactive(timeout=limit if limit < 0 else max(0, end - time.monotonic()))


def _wait(result: AsyncResult, progress_after: float, limit: float = -1) -> None:
    wait(result, progress_after, limit)
    if result.ready():
        result.wait_for_output(OUTPUT_TIMEOUT)


def _interrupt(client: Client, result: AsyncResult, signal: int | str) -> None:
    print(
        f"Received Keyboard Interrupt. Sending signal {signal} to engines...",
        file=sys.stderr,
        flush=True,
    )
    if signal == 0:
        return
    # an engine that has finished, or not begun, may be at work for somebody else
    taken_back = _take_back(client, result)
    working = [
        target
        for target, request in zip(result._targets or (), result._children, strict=True)
        if not request.done() and request.msg_id not in taken_back
    ]
    if working:
        client.send_signal(signal, targets=working, block=True)
    _wait(result, progress_after=-1)


def _take_back(client: Client, result: AsyncResult) -> set[str]:
    """Abort what waits for other clients' work alone, and return its msg_ids.

    Where it waits for this client's own work, that is what the user interrupts.
    """
    outstanding = client._outstanding_dict
    alone = [
        request.msg_id
        for request in result._children
        if outstanding.get(request.metadata["engine_uuid"]) == {request.msg_id}
    ]
    # an engine that is too busy to answer is at work on something, and gets the signal
    answered = wait_for(client._abort(alone), ABORT_TIMEOUT).done
    return {m for answer in answered if answer.exception() is None for m in answer.result()}


def _streamed(result: AsyncResult, failure: Exception) -> bool:
    """Whether every error in ``failure`` was on the screen while the request ran.

    A request that was aborted or lost its engine fails without having said so.
    """
    failures = len(failure.elist) if isinstance(failure, error.CompositeError) else 1
    records = result.metadata if isinstance(result.metadata, list) else [result.metadata]
    return sum(record["error"] is not None for record in records) >= failures

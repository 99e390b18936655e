"""Ends a ``%px`` early: when its time is up, or when one engine has failed."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from ..children import reply_error_of
from ..display import ranges
from ..error import InvalidEngineId, RemoteError, TaskAborted
from ..futures import MessageFuture
from ..waiting import Countdown

if TYPE_CHECKING:
    from ..asyncresult import AsyncResult
    from ..client import Client

__all__ = ["CellTimeout", "Watch"]


class CellTimeout(TimeoutError):
    """The engines have not finished in the time that ``%px --timeout`` gave them."""

    def _render_traceback_(self) -> list[str]:
        # IPython's hook: where the magic waited explains nothing
        lines = []
        if isinstance(self.__cause__, RemoteError):
            lines += self.__cause__.render_traceback()
        return [*lines, f"TimeoutError: {self}"]


class Watch:
    """Interrupts the engines still at work on a result, at most once.

    Where the request still waits behind others it is taken back, so that what is
    interrupted is never somebody else's work.

    Parameters
    ----------
    signal : int or str
        What engines are interrupted with; 0: they are left running.
    timeout : float
        Seconds from now that the engines may take; 0: any number.
    on_error : bool
        Whether to interrupt the others when one engine has failed.
    """

    def __init__(
        self,
        client: Client,
        result: AsyncResult,
        signal: int | str,
        *,
        timeout: float = 0,
        on_error: bool = False,
    ) -> None:
        self._client = client
        self._result = result
        self._signal = signal
        self._timeout = timeout
        self._lock = threading.Lock()
        self._acted = False
        self._late: list[tuple[MessageFuture, int | None]] = []
        if on_error:
            for child in result._children:
                child.add_done_callback(self._ended)
        if timeout:
            timer = threading.Timer(timeout, self._expire)
            timer.daemon = True
            timer.start()
            Countdown(result._children, threading.Timer.cancel, timer)

    def late(self) -> CellTimeout | None:
        """What to raise when the time was up before the engines had finished."""
        if not self._late:
            return None
        text = f"%px was to take {self._timeout:g} s"
        # not what abort answered: its answer may come after the request's own
        aborted = [i for child, i in self._late if child.done() and _was_aborted(child)]
        begun = [i for _, i in self._late if i not in aborted]
        if aborted:
            text += f"; {_engines(aborted)} had other work and never began it"
        if begun and self._signal:
            text += f"; {_engines(begun)} had not finished and got {_name(self._signal)}"
        running = [i for child, i in self._result._targeted() if not child.done()]
        if running:
            text += (
                f"; {_engines(running)} still at work:"
                f" client.send_signal('SIGKILL', targets={running}) would end them"
            )
        return CellTimeout(text)

    # -- in threads of the client's or the timer's ------------------------------

    def _ended(self, child: Future[Any]) -> None:
        assert isinstance(child, MessageFuture)
        if reply_error_of(child) is not None:
            self._stop_the_rest()

    def _expire(self) -> None:
        self._late = [pair for pair in self._result._targeted() if not pair[0].done()]
        self._stop_the_rest()

    def _stop_the_rest(self) -> None:
        with self._lock:
            if self._acted:
                return
            self._acted = True
        for child, engine in self._result._targeted():
            for answer in () if child.done() else self._client._abort([child.msg_id]):
                answer.add_done_callback(partial(self._interrupt, child, engine))

    def _interrupt(
        self, child: MessageFuture, engine: int | None, aborted: Future[list[str]]
    ) -> None:
        """Signal an engine that has answered whether the request was still waiting."""
        if aborted.exception() is None and child.msg_id in aborted.result():
            return
        if self._signal and not child.done():
            try:
                self._client.send_signal(self._signal, targets=[engine], block=False)
            except InvalidEngineId:
                return  # gone in the meantime, and the request with it


def _was_aborted(child: MessageFuture) -> bool:
    return isinstance(reply_error_of(child), TaskAborted)


def _engines(ids: list[int | None]) -> str:
    return f"engine{'s' * (len(ids) > 1)} {ranges(ids)}"


def _name(signal: int | str) -> str:
    return f"signal {signal}" if isinstance(signal, int) else signal

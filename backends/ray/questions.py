"""Questions of a client that have no answer yet."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import Future
from typing import Any

from pxcompat.engine.interrupts import OwnFuture
from pxcompat.error import BackendError, EngineError

__all__ = ["Questions"]


class Questions:
    """Futures of answers, by the numbers of their calls.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[int, tuple[Future[Any], str]] = {}
        self._call_ids = itertools.count()

    def new(self, name: str) -> tuple[int, Future[Any]]:
        """Number and answer of another one, for whom errors are to name so."""
        answer: Future[Any] = OwnFuture()
        with self._lock:
            call_id = next(self._call_ids)
            self._open[call_id] = (answer, name)
        return call_id, answer

    def answer(self, call_id: int, ok: bool | None, value: Any) -> None:
        """One is answered; ``ok`` is None when it could not be asked."""
        with self._lock:
            asked = self._open.pop(call_id, None)
        if asked is None:
            return
        future, name = asked
        if ok:
            future.set_result(value)
        elif ok is None:
            future.set_exception(EngineError(f"{name} is out of reach: {value}"))
        else:
            future.set_exception(BackendError(f"{name} answers: {value}"))

    def lost(self, reason: str) -> None:
        """None of those that are open will be answered."""
        with self._lock:
            call_ids = list(self._open)
        for call_id in call_ids:
            self.answer(call_id, None, reason)

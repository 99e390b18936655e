"""A client's channels to the registry and to engines: what it asks there, and is answered."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from pxcompat.engine.interrupts import OwnFuture, on_main_thread, uninterrupted
from pxcompat.error import BackendError, EngineError
from pxcompat.protocol import EngineInfo

from .channel import Channel, ChannelClosed
from .wire import Message

__all__ = ["EngineLine", "Line"]


class Line:
    """A channel with questions and answers on it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.channel: Channel | None = None
        self.task: asyncio.Task[None] | None = None
        self._questions: dict[int, Future[Any]] = {}
        self._ids = itertools.count()
        self._lock = threading.Lock()

    def ask(self, question: str, args: Mapping[str, Any]) -> Future[Any]:
        """Ask the other side; thread-safe."""
        answer: Future[Any] = OwnFuture()
        with self._lock:
            call_id = next(self._ids)
            self._questions[call_id] = answer
        try:
            if self.channel is None:
                raise ChannelClosed("not connected")
            with uninterrupted():
                self.channel.send(("ask", call_id, question, dict(args)))
        except ChannelClosed as error:
            with self._lock:
                self._questions.pop(call_id, None)
            answer.set_exception(EngineError(f"{self.name} is out of reach: {error}"))
        return answer

    def answer(self, message: Message) -> None:
        _, call_id, ok, value = message
        with self._lock:
            future = self._questions.pop(call_id, None)
        if future is None:
            return
        if ok:
            future.set_result(value)
        else:
            future.set_exception(BackendError(f"{self.name} answers: {value}"))

    def fail(self, reason: str) -> None:
        """Nobody will answer any more."""
        with self._lock:
            questions, self._questions = list(self._questions.values()), {}
        for future in questions:
            future.set_exception(EngineError(f"{self.name} is out of reach: {reason}"))


class EngineLine(Line):
    """A client's channel to an engine."""

    def __init__(self, info: EngineInfo) -> None:
        super().__init__(f"engine {info.id}")
        self.info = info
        #: why it ended, and what it had begun of each batch of balanced calls, if that is known
        self.reason: asyncio.Future[tuple[str, dict[str, int] | None]] = (
            asyncio.get_running_loop().create_future()
        )
        #: requests sent to it that have no reply
        self.waiting: set[str] = set()
        self.turn = 0

    def offer(self, msg_ids: list[str], packed: bytes) -> bool:
        """Send balanced calls, for the engine to take if it is idle; thread-safe."""
        self.waiting.update(msg_ids)
        try:
            assert self.channel is not None
            self.channel.send(("offer", msg_ids, packed), here=on_main_thread())
        except ChannelClosed:
            self.waiting.difference_update(msg_ids)
            return False
        return True

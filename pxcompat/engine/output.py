"""Output of requests: captured, numbered, coalesced and handed on while they run."""

from __future__ import annotations

import base64
import io
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from queue import SimpleQueue
from typing import Any

from ..protocol import OutputEvent
from .interrupts import uninterrupted

__all__ = [
    "Flusher",
    "RequestOutput",
    "Stream",
    "asking",
    "followed",
    "of_no_request",
    "plain",
    "routed",
]

#: seconds for which printed text is collected into one event
INTERVAL = 0.05
#: characters after which it is not waited any longer
FULL = 64 * 1024


class RequestOutput:
    """The output of one request, in the order it was made.

    Text is collected until the stream changes, something is displayed, it is much, or
    :data:`INTERVAL` has passed (the :class:`Flusher` sees to that).
    """

    def __init__(self, send: Callable[[OutputEvent], None], flusher: Flusher) -> None:
        self._send = send
        self._flusher = flusher
        self._lock = threading.RLock()
        self._stream = ""
        self._text: list[str] = []
        self._size = 0
        self._noticed = False
        self._ended = False
        self.count = 0

    def write(self, stream: str, text: str) -> None:
        """Add printed text."""
        with self._lock:
            if stream != self._stream:
                self.flush()
                self._stream = stream
            self._text.append(text)
            self._size += len(text)
            if self._size >= FULL:
                self.flush()
            elif not self._noticed:
                self._flusher.notice(self)
                self._noticed = True

    def emit(self, type: str, content: dict[str, Any]) -> None:
        """Send an event that is not text, after the text before it."""
        with uninterrupted(), self._lock:
            self._send_text()
            self._emit(type, content)

    def flush(self) -> None:
        """Send the text collected."""
        if self._text:
            with uninterrupted(), self._lock:
                self._send_text()

    def end(self) -> int:
        """The request has ended, and interrupts with it; how many events it had.  What comes now
        is not counted."""
        with self._lock:
            self._send_text()
            self._ended = True
            return self.count

    def _send_text(self) -> None:
        self._noticed = False
        if self._text:
            text = "".join(self._text)
            self._text.clear()
            self._size = 0
            self._emit("stream", {"name": self._stream, "text": text})

    def _emit(self, type: str, content: dict[str, Any]) -> None:
        if self._ended:
            self._send(OutputEvent(-1, type, content))
            return
        event = OutputEvent(self.count, type, content)
        self.count += 1
        self._send(event)


#: the output of the request that code runs for.  Whoever has another thread's event loop run
#: something, as ``%%bash`` does, hands its context on; what such loops keep of it must not keep
#: what the request returned.
asking: ContextVar[weakref.ref[RequestOutput] | None] = ContextVar("asking", default=None)


def _output_asking() -> RequestOutput | None:
    reference = asking.get()
    return None if reference is None else reference()


class Flusher:
    """A thread that flushes outputs which have been holding text for a while."""

    def __init__(self) -> None:
        # an interrupt within threading.Event would leave its lock taken for good
        self._waiting: SimpleQueue[RequestOutput | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="pxcompat-output", daemon=True)
        self._thread.start()

    def notice(self, output: RequestOutput) -> None:
        """Flush this output soon."""
        self._waiting.put(output)

    def stop(self) -> None:
        """End the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            time.sleep(INTERVAL)
            outputs = {first}
            stopped = False
            while not self._waiting.empty():
                output = self._waiting.get()
                if output is None:
                    stopped = True
                else:
                    outputs.add(output)
            for output in outputs:
                output.flush()
            if stopped:
                return


_thread = threading.local()


def of_no_request() -> None:
    """Have what this thread prints go to the log, whatever the engine runs."""
    _thread.of_no_request = True


class Stream(io.TextIOBase):
    """``sys.stdout`` or ``sys.stderr`` of an engine.

    Text goes to the request that the engine runs.  A thread that outlives the request
    in which it first printed goes on printing there; the thread of an event loop, to the
    request that has it do something.  Without a request, or from a thread that is
    :func:`of_no_request`, it goes to the ``log``, the stream that was there before.
    """

    def __init__(
        self,
        name: str,
        current: Callable[[], RequestOutput | None],
        log: Any,
        descriptor: int | None = None,
    ) -> None:
        self._name = name
        self._current = current
        self._log = log
        self._descriptor = descriptor
        self._of_thread = threading.local()

    @property
    def name(self) -> str:
        return f"<{self._name}>"

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return int(self._log.fileno()) if self._descriptor is None else self._descriptor

    def forked(self) -> None:
        """In a process that forked off: what is no request's is for the engine to read."""
        if self._descriptor is not None:
            self._log = open(  # noqa: SIM115
                self._descriptor,
                "w",
                buffering=1,
                encoding="utf-8",
                errors="backslashreplace",
                closefd=False,
            )

    def _output(self) -> RequestOutput | None:
        if threading.current_thread() is threading.main_thread():
            return self._current()
        if getattr(_thread, "of_no_request", False):
            return None
        mine = _output_asking() or getattr(self._of_thread, "output", None) or self._current()
        self._of_thread.output = mine
        return mine

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        output = self._output()
        if output is None:
            self._log.write(text)
        elif text:
            output.write(self._name, text)
        return len(text)

    def flush(self) -> None:
        output = self._output()
        if output is not None:
            output.flush()
        elif not self._log.closed:  # as it may be when Python finalizes what is left
            self._log.flush()


@contextmanager
def followed(before: Any, after: Any) -> Iterator[None]:
    """Have loggers that write to one stream, since it was ``sys.stderr`` then, write to another."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {h for logger in loggers for h in getattr(logger, "handlers", ())}
    moved = [h for h in handlers if isinstance(h, logging.StreamHandler) and h.stream is before]
    for handler in moved:
        handler.setStream(after)
    try:
        yield
    finally:
        for handler in moved:
            handler.setStream(before)


class _RoutedStream(Stream):
    """A stream of a process that is not the engine's: each write asks whose thread it is."""

    def _output(self) -> RequestOutput | None:
        return self._current() or _output_asking()

    def isatty(self) -> bool:
        return bool(self._log.isatty())

    def __getattr__(self, name: str) -> Any:
        # what its owner knows of the stream that was there before
        return getattr(self._log, name)


class _Routing:
    """``sys.stdout`` and ``sys.stderr`` of a process that has engines on threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before: tuple[Any, Any] = (None, None)
        self._ours: tuple[Any, Any] = (None, None)

    @contextmanager
    def __call__(self, current: Callable[[], RequestOutput | None]) -> Iterator[None]:
        """Lead what engines' threads print to their requests, the rest to where it went."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._before = sys.stdout, sys.stderr
                self._ours = (
                    _RoutedStream("stdout", current, sys.stdout),
                    _RoutedStream("stderr", current, sys.stderr),
                )
                sys.stdout, sys.stderr = self._ours
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users and (sys.stdout, sys.stderr) == self._ours:
                    sys.stdout, sys.stderr = self._before


#: for engines that share their process
routed = _Routing()


def plain(value: Any) -> Any:
    """The value with nothing in it that JSON has not: bytes become base64, as in Jupyter's
    messages, and other objects their ``repr``."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    return repr(value)

"""Writes small messages to a comm from other threads than its event loop's.

To have the loop write is to wake it: a system call, a switch of threads that then contend for
the interpreter, and two rounds of the loop, which together cost more than the write.
"""

from __future__ import annotations

import logging
import struct
import threading
from collections.abc import Callable
from typing import Any

from distributed.comm.core import Comm
from distributed.comm.tcp import TCP
from distributed.protocol.core import dumps
from distributed.protocol.serialize import Serialized
from distributed.protocol.utils import pack_frames

from .wire import SMALL, Message

__all__ = ["Shortcut"]

log = logging.getLogger("pxcompat.dask")


class Shortcut:
    """The way to a comm's socket past its loop.

    Whoever uses it sees to it that the loop writes nothing meanwhile; that it reads, or closes,
    is fine.

    Attributes
    ----------
    rest : bytes
        What the operating system has not taken yet of the latest message.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self.rest = b""
        # OpenSSL's connections are not for two threads at once, and the descriptor of a closed
        # socket may be another's
        for name in ("read_from_fd", "write_to_fd", "close_fd"):
            setattr(stream, name, self._alone(getattr(stream, name)))

    @classmethod
    def of(cls, comm: Comm) -> Shortcut | None:
        """The shortcut of a comm, if it is of a kind that has one."""
        return cls(comm.stream) if isinstance(comm, TCP) and comm.stream is not None else None

    def _alone(self, method: Callable[..., Any]) -> Callable[..., Any]:
        lock, stream = self._lock, self._stream

        def alone(*args: Any) -> Any:
            with lock:
                if stream.socket is None:
                    raise ConnectionResetError("the connection has been closed")
                return method(*args)

        return alone

    def write(self, message: Message) -> bool:
        """Write a message, at least in part; False when it has to go the usual way."""
        if not all(map(_is_small, message)):
            return False
        stream = self._stream
        try:
            payload = pack_frames(dumps([message]))
        except Exception as error:  # likewise: the loop is where that ends
            log.debug("a message cannot be packed: %s", error)
            return False
        data = struct.pack("Q", len(payload)) + payload
        if stream.socket is None or stream.writing():
            return False
        try:
            written = stream.write_to_fd(memoryview(data))
        except BlockingIOError:
            written = 0
        except OSError as error:  # the loop will find out, and say so
            log.debug("a message could not be written: %s", error)
            return False
        self.rest = data[written:]
        return True

    async def write_rest(self) -> None:
        """Write what was left, on the loop."""
        rest, self.rest = self.rest, b""
        await self._stream.write(rest)


def _is_small(item: Any) -> bool:
    return type(item) is not Serialized and (type(item) is not bytes or len(item) <= SMALL)

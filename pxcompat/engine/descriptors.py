"""Output that bypasses ``sys.stdout``: of C code, and of child processes."""

from __future__ import annotations

import array
import codecs
import fcntl
import os
import select
import termios
import threading
import time
from collections.abc import Callable

__all__ = ["Descriptor"]


class Descriptor:
    """File descriptor 1 or 2 of an engine's process, led through a pipe.

    Parameters
    ----------
    fd : int
        The descriptor to take over.
    write : callable
        Called with the text read, in a thread of ours; returns whether it had a use for
        it.  What it does not want goes to where the descriptor led before.
    """

    def __init__(self, fd: int, write: Callable[[str], bool]) -> None:
        self._write = write
        self.before = os.dup(fd)
        self._pipe, end = os.pipe()
        os.set_inheritable(self._pipe, False)
        os.dup2(end, fd)
        os.close(end)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._busy = threading.Lock()
        #: bytes in the pipe, for who drains it
        self._pending = array.array("i", [0])
        threading.Thread(target=self._read, name=f"pxcompat-fd{fd}", daemon=True).start()

    def _read(self) -> None:
        readable = select.poll()
        readable.register(self._pipe, select.POLLIN)
        while True:
            # waiting is not reading, so that what has been read is always under the lock
            readable.poll()
            with self._busy:
                data = os.read(self._pipe, 1 << 16)
                text = self._decoder.decode(data)
                if not self._write(text):
                    os.write(self.before, data)
            if not data:
                return

    def drain(self) -> None:
        """Return when all that was written until now has been handed on."""
        while True:
            fcntl.ioctl(self._pipe, termios.FIONREAD, self._pending)
            if not self._pending[0]:
                break
            time.sleep(0.001)
        with self._busy:
            return

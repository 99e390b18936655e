"""Anonymous memory for other processes to map, kept for a moment to be used again.

The system clears new memory page by page, which takes longer than the copy into it; so who hands
over large buffers again and again writes into the same pages.  Not before nobody has them mapped
any more, whoever it was, nor what forked off from them: the kernel knows, and is asked by way of
a lease (``F_SETLEASE``, see fcntl(2)), which it gives to nobody while others have the file open.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import signal
import threading
import time
from collections import deque
from queue import Empty, SimpleQueue

import psutil

__all__ = ["HEAD", "LEAST", "Memory", "check", "on_the_way", "take"]

#: bytes from which it is worth while to hand them over so
LEAST = 1 << 20
#: bytes at the beginning, of which the first say what it is used for
HEAD = 64
_MARK = 8
#: descriptors that may be in use at a time
MOST = 256
#: seconds that memory is kept unused
SECONDS = 5.0
#: bytes, part of the machine's memory, and descriptors that are kept unused at most
SPARE, SHARE, PIECES = 1 << 30, 1 / 16, 32
#: by which part memory may be larger than what is put in: who maps that keeps it all
SLACK = 1 / 8


class Memory:
    """Memory without a name, which processes of the same user map by way of ``/proc``.

    Attributes
    ----------
    fd : int
        The descriptor, in this process.
    length : int
        Its bytes.
    again : bool
        Whether it is worth keeping for the next one who needs some.
    mark : bytes
        What it begins with for as long as it is in use, and never again.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self._owner = os.getpid()
        made = os.memfd_create("pxcompat", os.MFD_CLOEXEC)
        try:
            # opened once more, for where leases are concerned its making does not count as that
            self.fd = os.open(f"/proc/self/fd/{made}", os.O_RDWR | os.O_CLOEXEC)
        finally:
            os.close(made)
        os.ftruncate(self.fd, length)
        self.again = False
        self.mark = b""

    def begin(self) -> Memory:
        """Use it, from now on."""
        self.mark = os.urandom(_MARK)
        self.write(memoryview(self.mark), 0)
        return self

    def write(self, data: memoryview, offset: int) -> None:
        """Copy bytes to where they are to be."""
        written = 0
        while written < data.nbytes:
            written += os.pwrite(self.fd, data[written:], offset + written)

    def alone(self) -> bool:
        """Whether nobody else has it open or mapped.

        Raises
        ------
        OSError
            When this system cannot tell.
        """
        try:
            # who opens it in the very moment waits, and has this signal sent, which is ignored;
            # by default it is one that ends a process
            fcntl.fcntl(self.fd, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return False
            raise
        fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return True

    def give_back(self) -> None:
        """Nobody needs it here.  This may be called wherever garbage is collected."""
        if self._owner != os.getpid():
            self.close()
            return
        _in_use.pop(self.fd, None)
        os.pwrite(self.fd, bytes(_MARK), 0)
        if not self.again:
            self.close()
            return
        _given_back.append(self)
        _wake.put(None)

    def close(self) -> None:
        """Let go of it; it stays with those who have it mapped."""
        os.close(self.fd)


#: bytes of what is in use, by descriptor
_in_use: dict[int, int] = {}
#: what came back lately; and what tells the thread so
_given_back: deque[Memory] = deque()
_wake: SimpleQueue[None] = SimpleQueue()
#: what may be used again, and when it came back; oldest first
_spare: list[tuple[float, Memory]] = []
#: for these and the thread; a finalizer must not wait for it
_lock = threading.Lock()
_keeper: threading.Thread | None = None


def take(length: int, *, again: bool = True) -> Memory:
    """Memory of so many bytes, or a few more, that nobody else has.

    Parameters
    ----------
    length : int
        Bytes.
    again : bool
        Whether it may be kept, once it is given back, for the next one who needs some.

    Raises
    ------
    OSError
        When there is none to be had.
    """
    if length < LEAST:
        return Memory(length).begin()
    if len(_in_use) >= MOST:
        raise OSError(errno.EMFILE, "as many descriptors are open as may be")
    # not waited for: in a signal handler it may be held by what that has interrupted
    if again and _can_tell() and _lock.acquire(blocking=False):
        try:
            _look()
            memory = _fitting(length) or Memory(length)
            memory.again = True
            _in_use[memory.fd] = memory.length
            _keep()
        finally:
            _lock.release()
    else:
        memory = Memory(length)
        _in_use[memory.fd] = memory.length
    return memory.begin()


def check(fd: int, mark: bytes) -> None:
    """See whether memory is used for what this mark says.

    Raises
    ------
    OSError
        When it is not, any more.
    """
    if os.pread(fd, _MARK, 0) != mark:
        raise OSError(errno.ESTALE, "the memory is not used for this any more")


def on_the_way() -> int:
    """Bytes that this process has in such memory until their receivers have them."""
    return sum(list(_in_use.values()))


def _fitting(length: int) -> Memory | None:
    for entry in reversed(_spare):  # so that the others get old
        memory = entry[1]
        if length <= memory.length <= length * (1 + SLACK) and memory.alone():
            _spare.remove(entry)
            return memory
    return None


def _look() -> None:
    """See what came back, and let go of what is not kept any longer."""
    now = time.monotonic()
    while _given_back:
        _spare.append((now, _given_back.popleft()))
    nbytes = sum(memory.length for _, memory in _spare)
    while _spare and (now - _spare[0][0] >= SECONDS or len(_spare) > PIECES or nbytes > _most()):
        _, memory = _spare.pop(0)
        nbytes -= memory.length
        memory.close()


def _keep() -> None:
    """Have somebody let go of it in time."""
    global _keeper
    if _keeper is None:
        _keeper = threading.Thread(target=_let_go, name="px-memory", daemon=True)
        _keeper.start()


def _let_go() -> None:
    """The thread's: it is there while there is something to wait for."""
    global _keeper
    wait: float | None = None
    while True:
        with contextlib.suppress(Empty):
            _wake.get(timeout=wait)
        with _lock:
            _look()
            if not _spare and not _in_use:
                _keeper = None
                return
            wait = max(0.0, _spare[0][0] + SECONDS - time.monotonic()) if _spare else None


@functools.cache
def _most() -> float:
    return min(SPARE, float(psutil.virtual_memory().total) * SHARE)


@functools.cache
def _can_tell() -> bool:
    """Whether this system knows who has a file open."""
    try:
        memory = Memory(1)
    except OSError:
        return False
    try:
        other = os.open(f"/proc/self/fd/{memory.fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            shared = memory.alone()
        finally:
            os.close(other)
        return memory.alone() and not shared
    except (OSError, AttributeError):  # not on this kernel; not on this platform
        return False
    finally:
        memory.close()


def _forked() -> None:
    """In a process that forked off: what is kept is its parent's, and so is the thread."""
    global _lock, _wake, _keeper
    for memory in [*(memory for _, memory in _spare), *_given_back]:
        memory.close()
    for kept in (_spare, _given_back, _in_use):
        kept.clear()
    _lock, _wake, _keeper = threading.Lock(), SimpleQueue(), None


os.register_at_fork(after_in_child=_forked)

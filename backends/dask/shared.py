"""Large buffers between processes of one machine: handed over in memory, not sent.

The sender copies buffers once, into anonymous memory (``memfd_create``), and the message says
where; the receiver maps that privately, which copies nothing until somebody writes.  The
memory has no name, so nothing is left behind, whoever dies; and it can be opened, through
``/proc``, by processes of the same user alone.  Whether the other side can is tried when a
channel opens (:meth:`Sharing.question`); where it cannot, buffers go the usual way.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import logging
import mmap
import os
import secrets
import weakref
from collections.abc import Sequence
from typing import Any

from distributed.protocol.serialize import Serialized

from pxcompat.engine.records import copied
from pxcompat.protocol import Frames

__all__ = ["KeptFrames", "SharedFrames", "Sharing", "kept"]

log = logging.getLogger("pxcompat.dask")

#: bytes from which it is worth while
LEAST = 1 << 20
#: descriptors that may be open for it at a time
MOST = 256
#: what a field of a message is that stands for such buffers
MARK = "_px_shared"
_ALIGNMENT = 64


#: descriptors of memory that is on its way
_open: set[int] = set()


def _close(fd: int) -> None:
    _open.discard(fd)
    os.close(fd)


class SharedFrames:
    """A :class:`pxcompat.protocol.Handle`: frames in memory of this process for others to map.

    The memory is let go with the last reference, and with the last mapping.
    """

    def __init__(self, frames: Frames) -> None:
        views = [memoryview(frame).cast("B") for frame in frames]
        self.sizes = [view.nbytes for view in views]
        self.nbytes = sum(self.sizes)
        if len(_open) >= MOST:
            raise OSError(errno.EMFILE, "as many descriptors are open as may be")
        self.fd = os.memfd_create("pxcompat", os.MFD_CLOEXEC)
        _open.add(self.fd)
        weakref.finalize(self, _close, self.fd)
        offset = 0
        for view in views:
            written = 0
            while written < view.nbytes:
                written += os.pwrite(self.fd, view[written:], offset + written)
            offset += _padded(view.nbytes)
        os.ftruncate(self.fd, max(offset, 1))

    def field(self, ticket: int = 0) -> dict[str, Any]:
        """What says in a message where they are; a receiver that maps them returns the ticket."""
        return {MARK: [os.getpid(), self.fd, self.sizes, ticket]}


class KeptFrames(list[Any]):
    """Frames whose memory can be shared as it is, once: then the descriptor is the sender's."""

    shared: SharedFrames | None

    def __init__(self, shared: SharedFrames) -> None:
        super().__init__(_mapped(os.getpid(), shared.fd, shared.sizes))
        self.shared = shared


def kept(frames: Frames) -> Frames:
    """A copy of frames whose buffers belong to somebody: where they are large, one to share."""
    if len(frames) > 1 and sum(memoryview(f).nbytes for f in frames) >= LEAST and _can_share():
        try:
            return KeptFrames(SharedFrames(frames))
        except OSError as error:
            log.debug("no memory to share: %s", error)
    return copied(frames)


def _can_share() -> bool:
    return hasattr(os, "memfd_create") and os.path.exists("/proc/self/fd")


def _padded(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _mapped(pid: int, fd: int, sizes: Sequence[int]) -> Frames:
    here = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        length = max(1, sum(_padded(size) for size in sizes))
        memory = _map_privately(here, length)
    finally:
        os.close(here)
    frames: Frames = []
    offset = 0
    for size in sizes:
        frames.append(memory[offset : offset + size])
        offset += _padded(size)
    # the pickle itself is read at once
    return [bytes(frames[0]), *frames[1:]] if frames else frames


def _map_privately(fd: int, length: int) -> memoryview:
    """Map a file so that what is written there is this process's own.

    Not by :mod:`mmap`, which keeps a descriptor open for as long as the memory is mapped.
    """
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    address = _libc().mmap(None, length, protection, mmap.MAP_PRIVATE, fd, 0)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "cannot map shared memory")
    memory: Any = (ctypes.c_ubyte * length).from_address(address)
    memory.px_mapping = _Mapping(address, length)  # goes with the last view of it
    return memoryview(memory).cast("B")


class _Mapping:
    def __init__(self, address: int, length: int) -> None:
        weakref.finalize(self, _libc().munmap, address, length).atexit = False


@functools.cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


class Sharing:
    """One side of a channel: what is on its way to the other through memory."""

    def __init__(self) -> None:
        #: whether the other side has shown that it can map what this one shares
        self.ready = False
        self._held: dict[int, SharedFrames] = {}
        self._tickets = 0
        self._token = b""

    def question(self) -> tuple[Any, ...] | None:
        """The message that asks the other side whether it can; None where this side cannot."""
        if not _can_share():
            return None
        self._token = secrets.token_bytes(16)
        try:
            self._held[0] = frames = SharedFrames([self._token])
        except OSError as error:
            log.debug("memory cannot be shared here: %s", error)
            return None
        return ("share?", frames.field())

    def hear(self, message: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The answer to a message of this kind, if it wants one."""
        kind = message[0]
        if kind == "share?":
            try:
                pid, fd, sizes, _ = message[1][MARK]
                (token,) = _mapped(pid, fd, sizes)
            except (OSError, ValueError) as error:
                log.debug("no memory is shared with the other side: %s", error)
                return None
            return ("share!", bytes(token))
        if kind == "share!":
            self.ready = bool(self._token) and message[1] == self._token
            self._held.pop(0, None)
        elif kind == "mapped":
            self._held.pop(message[1], None)
        return None

    def outgoing(self, message: tuple[Any, ...]) -> tuple[Any, ...]:
        """The message, with large buffers replaced by where they are.  Copies them."""
        return tuple(
            self._share(item) if type(item) is Serialized and _is_large(item) else item
            for item in message
        )

    def _share(self, item: Serialized) -> Any:
        try:
            frames = getattr(item, "px_shared", None) or SharedFrames(item.frames)
        except OSError as error:
            log.debug("no memory to share: %s", error)
            return item
        self._tickets += 1
        ticket = self._tickets
        self._held[ticket] = frames
        return frames.field(ticket)

    def incoming(self, message: tuple[Any, ...]) -> tuple[tuple[Any, ...], list[int]]:
        """The message with its buffers in place, and the tickets to return.

        A field whose memory is gone becomes None.
        """
        if not any(type(item) is dict and MARK in item for item in message):
            return message, []
        tickets, items = [], []
        for item in message:
            if type(item) is dict and MARK in item:
                pid, fd, sizes, ticket = item[MARK]
                if ticket:
                    tickets.append(ticket)
                try:
                    item = Serialized({}, _mapped(pid, fd, sizes))
                except (OSError, ValueError) as error:
                    log.warning("shared memory was gone before it was used: %s", error)
                    item = None
            items.append(item)
        return tuple(items), tickets

    def close(self) -> None:
        """Let go of what the other side has not fetched."""
        self._held.clear()


def _is_large(item: Serialized) -> bool:
    return sum(memoryview(frame).nbytes for frame in item.frames) >= LEAST

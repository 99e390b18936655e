"""Large buffers between processes of one machine: handed over in memory, not sent.

The sender copies buffers once, into anonymous memory (``memfd_create``), and the message says
where; the receiver maps that privately, which copies nothing until somebody writes.  The
memory has no name, so nothing is left behind, whoever dies; and it can be opened, through
``/proc``, by processes of the same user alone.  Whether the other side can is tried when the
two meet; where it cannot, buffers go the usual way.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import mmap
import os
import weakref
from typing import Any

from pxcompat.engine.interrupts import uninterrupted
from pxcompat.engine.records import copied
from pxcompat.protocol import Frames

from .memory import HEAD, LEAST, check, on_the_way, take

__all__ = [
    "LEAST",
    "MARK",
    "KeptFrames",
    "SharedFrames",
    "can_share",
    "kept",
    "mapped",
    "on_the_way",
]

log = logging.getLogger("pxcompat")

#: what a field of a message is that stands for such buffers
MARK = "_px_shared"
_ALIGNMENT = 64


class SharedFrames:
    """A :class:`pxcompat.protocol.Handle`: frames in memory of this process for others to map.

    The memory is let go with the last reference, and with the last mapping; ``again`` says
    whether to keep it for a moment, for the next frames.
    """

    def __init__(self, frames: Frames, *, again: bool = True) -> None:
        views = [memoryview(frame).cast("B") for frame in frames]
        self.sizes = [view.nbytes for view in views]
        self.nbytes = sum(self.sizes)
        offsets = _offsets(self.sizes)
        with uninterrupted():  # or nobody would give it back
            self._memory = take(offsets.pop(), again=again)
            weakref.finalize(self, self._memory.give_back)
        for view, offset in zip(views, offsets, strict=True):
            self._memory.write(view, offset)

    def frames(self) -> Frames:
        """The frames, in memory of this process's own."""
        return mapped(self.field())

    def field(self, ticket: int = 0) -> dict[str, Any]:
        """What says in a message where they are; a receiver that maps them returns the ticket."""
        return {MARK: [os.getpid(), self._memory.fd, self.sizes, ticket, self._memory.mark]}


class KeptFrames(list[Any]):
    """Frames whose memory can be shared as it is, once: then the descriptor is the sender's."""

    shared: SharedFrames | None

    def __init__(self, shared: SharedFrames) -> None:
        super().__init__(shared.frames())
        self.shared = shared


def kept(frames: Frames) -> Frames:
    """A copy of frames whose buffers belong to somebody: where they are large, one to share."""
    if len(frames) > 1 and sum(memoryview(f).nbytes for f in frames) >= LEAST and can_share():
        try:
            # it stays mapped here for as long as the frames are remembered
            return KeptFrames(SharedFrames(frames, again=False))
        except OSError as error:
            log.debug("no memory to share: %s", error)
    return copied(frames)


def can_share() -> bool:
    """Whether this system has such memory."""
    return hasattr(os, "memfd_create") and os.path.exists("/proc/self/fd")


def _offsets(sizes: list[int]) -> list[int]:
    """Where buffers of these sizes begin, and the end."""
    offsets = [HEAD]
    for size in sizes:
        offsets.append(offsets[-1] + -(-size // _ALIGNMENT) * _ALIGNMENT)
    return offsets


def mapped(field: dict[str, Any]) -> Frames:
    """The frames that a field of a message stands for, in memory of this process's own.

    Raises
    ------
    OSError
        When the memory is gone, or another user's, or used for something else by now.
    """
    pid, fd, sizes, _, mark = field[MARK]
    offsets = _offsets(sizes)
    here = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        check(here, mark)
        memory = _map_privately(here, offsets[-1])
    finally:
        os.close(here)
    frames: Frames = [
        memory[offset : offset + size] for offset, size in zip(offsets, sizes, strict=False)
    ]
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

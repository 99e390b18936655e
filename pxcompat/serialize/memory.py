"""Copies of large buffers, made at the speed of memory."""

from __future__ import annotations

import mmap

__all__ = ["owned"]

#: bytes from which on a copy has huge pages, where the system has them: a fresh page at a time,
#: each of 4 kB, a large copy would spend most of its time in page faults
HUGE = 4 << 20
_MADVICE: int | None = getattr(mmap, "MADV_HUGEPAGE", None)


def owned(buffer: bytes | bytearray | memoryview) -> bytearray | memoryview:
    """A writable copy of a buffer, in memory that nobody else has."""
    source = memoryview(buffer)
    if source.nbytes < HUGE or _MADVICE is None:
        return bytearray(source)
    memory = mmap.mmap(-1, source.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(_MADVICE)
    except OSError:  # a kernel without: as any other memory
        return bytearray(source)
    copy = memoryview(memory)
    copy[:] = source.cast("B")
    return copy

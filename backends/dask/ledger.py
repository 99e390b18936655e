"""Which balanced calls an engine has begun: known also when its process has ended.

A call that had begun when its engine died must not run again, and one that had not is to be
placed elsewhere.  So the engine writes what it begins into memory that its supervisor shares,
which costs a call less than a microsecond; a message could be lost with the process, or
would have to be waited for.
"""

from __future__ import annotations

import mmap

__all__ = ["Ledger"]

#: the latest batches that are remembered: more than can have replies on their way
SLOTS = 64
#: bytes of a slot: how many calls were begun, the length of the name, the name
SIZE = 2048
COUNT, LENGTH, NAME = 0, 4, 6


class Ledger:
    """Batches of calls, and how many of each were begun, in order.

    Made before the fork, written by the child alone, read by the parent when it is gone.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, SLOTS * SIZE)
        self._next = 0
        self._at = 0

    def open(self, batch: str) -> None:
        """A batch comes next."""
        name = batch.encode()[: SIZE - NAME]
        at = self._at = self._next * SIZE
        self._next = (self._next + 1) % SLOTS
        memory = self._memory
        memory[at : at + 6] = bytes(6)  # what is half written counts for nothing
        memory[at + NAME : at + NAME + len(name)] = name
        memory[at + LENGTH : at + NAME] = len(name).to_bytes(2, "little")

    def begin(self, count: int) -> None:
        """The batch's call of this number, from 1, begins."""
        at = self._at
        self._memory[at : at + LENGTH] = count.to_bytes(4, "little")

    def read(self) -> dict[str, int]:
        """The batches of which calls were begun, and how many."""
        memory, found = self._memory, {}
        for at in range(0, SLOTS * SIZE, SIZE):
            count = int.from_bytes(memory[at : at + LENGTH], "little")
            length = int.from_bytes(memory[at + LENGTH : at + NAME], "little")
            if count and length:
                found[memory[at + NAME : at + NAME + length].decode(errors="replace")] = count
        return found

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()

"""Large buffers between a client and engines on its machine: in memory that both map.

What is in Ray's store is read-only, so a value that is to be somebody's own is copied into the
store and out of it.  Where client and engine can map each other's memory
(``backends/shared.py``) it is copied once, whoever has it.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable
from typing import Any

from pxcompat.error import EngineError
from pxcompat.protocol import Frames, Handle

from ..shared import LEAST, MARK, KeptFrames, SharedFrames, can_share, mapped, on_the_way
from .wire import size

__all__ = ["Borrowed", "Lender", "Proof", "hand_over"]

log = logging.getLogger("pxcompat.ray")

#: bytes in such memory that nobody has taken yet; what is more goes through Ray's store, which
#: writes to disk what does not fit
MOST = 2 << 30
#: seconds that a client has to map a result of an engine that ends
GRACE = 1.0


def hand_over(frames: Frames | Handle | None, near: bool) -> Frames | Handle | None:
    """Frames for an engine: where it can map them, if it is near and they are large."""
    if isinstance(frames, SharedFrames):
        return frames if near else frames.frames()
    if not near or not isinstance(frames, list) or len(frames) == 1:
        return frames
    if not LEAST <= size(frames) <= MOST - on_the_way():
        return frames
    try:
        return SharedFrames(frames)
    except OSError as error:
        log.debug("no memory to share: %s", error)
        return frames


class Proof:
    """Finds out whether an engine and this process can map each other's memory.

    Attributes
    ----------
    field
        What the engine is asked to map; it answers with the same in memory of its own.
    """

    def __init__(self) -> None:
        self._token = os.urandom(16)
        self._frames = SharedFrames([self._token])
        self.field = self._frames.field()

    def given(self, field: dict[str, Any] | None) -> bool:
        """Whether an engine that answers so can."""
        try:
            return field is not None and mapped(field) == [self._token]
        except OSError as error:
            log.debug("no memory is shared with an engine: %s", error)
            return False


class Borrowed:
    """A result (:class:`pxcompat.protocol.LargeResult`) in memory that its engine made.

    The engine counts it as lent until it was looked at, or nobody refers to it.
    """

    def __init__(self, field: dict[str, Any], let_go: Callable[[], None]) -> None:
        self.nbytes = sum(field[MARK][2])
        self._frames: Frames | None = None
        try:
            self._frames = mapped(field)
        except OSError as error:
            self._why = error
        self._let_go = weakref.finalize(self, let_go)
        self._let_go.atexit = False

    def fetch(self, *, copy: bool = True) -> Frames:
        """The frames, which are this process's own already."""
        if self._frames is None:
            raise EngineError(
                f"a result of {self.nbytes} bytes is lost: its engine ended before it was here "
                f"({self._why})"
            )
        self._let_go()
        return self._frames


class Lender:
    """What an engine has lent to clients.  Thread-safe."""

    def __init__(self) -> None:
        #: by msg_id, or by the client that asked for a proof
        self._lent: dict[str, tuple[str, SharedFrames]] = {}
        #: clients that are there, and can map this process's memory
        self._near: set[str] = set()
        self._latest = 0.0

    def prove(self, client: str, field: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to a client's :class:`Proof`."""
        if not can_share():
            return None
        try:
            proof = SharedFrames(mapped(field))
        except OSError as error:
            log.debug("no memory is shared with a client: %s", error)
            return None
        self._lent[client] = client, proof
        return proof.field()

    def met(self, client: str, *, near: bool) -> None:
        """What came of a client's proof."""
        self._lent.pop(client, None)
        if near:
            self._near.add(client)

    def lend(self, client: str, msg_id: str, frames: Any) -> dict[str, Any] | None:
        """What says where a result is; None where it is to go through the store."""
        if client not in self._near:
            return None
        if not isinstance(frames, KeptFrames) or frames.shared is None or on_the_way() > MOST:
            return None
        self._lent[msg_id] = client, frames.shared
        self._latest = time.monotonic()
        return frames.shared.field()

    def take_back(self, name: str) -> None:
        """A client is done with a result."""
        self._lent.pop(name, None)

    def forget(self, client: str) -> None:
        """A client is gone; what it has not been sent yet is not lent."""
        self._near.discard(client)
        for name, (borrower, _) in list(self._lent.items()):
            if borrower == client:
                self._lent.pop(name, None)

    def wait(self) -> None:
        """Before the process ends: for clients to map what was lent just now."""
        if self._lent:
            time.sleep(max(0.0, self._latest + GRACE - time.monotonic()))

"""What is on its way over a channel in memory that both sides map: see ``backends/shared.py``."""

from __future__ import annotations

import logging
import secrets
from typing import Any

from distributed.protocol.serialize import Serialized

from ..shared import LEAST, MARK, SharedFrames, can_share, mapped

__all__ = ["Sharing"]

log = logging.getLogger("pxcompat.dask")


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
        if not can_share():
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
                (token,) = mapped(message[1])
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
        if Serialized not in map(type, message):
            return message
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
                if ticket := item[MARK][3]:
                    tickets.append(ticket)
                try:
                    item = Serialized({}, mapped(item))
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

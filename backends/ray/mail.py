"""What waits for a client until it asks; signs of life."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

__all__ = ["Mail", "Sign"]

#: bytes of mail that may wait for a client before its engines have to wait
ROOM = 64 << 20


class Sign:
    """Of life, from whoever calls again and again."""

    def __init__(self) -> None:
        self._calls = 0
        self._heard = time.monotonic()

    def __enter__(self) -> None:
        self._calls += 1

    def __exit__(self, *_: object) -> None:
        self._calls -= 1
        self._heard = time.monotonic()

    def silent(self, seconds: float) -> bool:
        """Whether it is so long ago that the last call returned."""
        return not self._calls and time.monotonic() - self._heard > seconds


class _Box:
    """The mail of one client."""

    def __init__(self) -> None:
        self.messages: deque[tuple[Any, ...]] = deque()
        self.nbytes = 0
        self.changed = asyncio.Condition()
        self.closed = asyncio.Event()
        #: ids of its requests that no engine has yet
        self.unassigned: list[str] = []


class Mail:
    """A box for each client."""

    def __init__(self) -> None:
        self._boxes: dict[str, _Box] = {}

    def __bool__(self) -> bool:
        return bool(self._boxes)

    def __contains__(self, session: str) -> bool:
        return session in self._boxes

    async def keep(self, session: str) -> None:
        """Have a box for a client that comes, until that is closed."""
        box = self._boxes[session] = _Box()
        await box.closed.wait()

    def clear(self, session: str) -> None:
        """Throw away what waits for a client."""
        if (box := self._boxes.get(session)) is not None:
            box.messages.clear()
            box.nbytes = 0

    async def close(self, session: str) -> bool:
        """A client is gone; whether it was there."""
        box = self._boxes.pop(session, None)
        if box is None:
            return False
        box.closed.set()
        async with box.changed:
            box.changed.notify_all()
        return True

    async def take(self, session: str) -> list[tuple[Any, ...]] | None:
        """A client's mail, once there is some; None when we do not know the client (any more)."""
        box = self._boxes.get(session)
        if box is None:
            return None
        async with box.changed:
            await box.changed.wait_for(lambda: box.messages or session not in self._boxes)
            mail = list(box.messages)
            box.messages.clear()
            box.nbytes = 0
            box.changed.notify_all()
        return mail

    async def put(self, session: str, message: tuple[Any, ...], nbytes: int = 100) -> None:
        """A message for a client."""
        box = self._boxes.get(session)
        if box is None:
            return  # its client is gone; what engines remember stays for who asks
        async with box.changed:
            box.messages.append(message)
            box.nbytes += nbytes
            box.changed.notify_all()

    async def put_to_all(self, message: tuple[Any, ...]) -> None:
        """A message for every client."""
        for session in list(self._boxes):
            await self.put(session, message)

    async def room(self, session: str) -> None:
        """Wait until a client has taken its mail, or is dead."""
        while (box := self._boxes.get(session)) is not None and box.nbytes > ROOM:
            async with box.changed:
                try:
                    await asyncio.wait_for(box.changed.wait(), 1)
                except asyncio.TimeoutError:
                    continue

    def note(self, session: str, unassigned: list[str]) -> None:
        """Which of a client's requests no engine has yet."""
        if session in self._boxes:
            self._boxes[session].unassigned = unassigned

    def unassigned(self) -> list[str]:
        """Those of all clients."""
        return [msg_id for box in self._boxes.values() for msg_id in box.unassigned]

"""An engine's outgoing mail: output while a request runs, answers, other clients' replies."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Collection
from typing import Any, NamedTuple

import ray

from pxcompat.engine.interrupts import Condition

__all__ = ["Letter", "Post"]

log = logging.getLogger("pxcompat.ray")

#: seconds that mail waits for more, or for the reply that can take it along, where nothing else
#: is said
PATIENCE = 0.01
#: bytes that may wait before who makes output has to wait
ROOM = 8 << 20


class Letter(NamedTuple):
    """A message for a client.

    Attributes
    ----------
    session
        The client.
    message
        Its kind, then plain fields.
    nbytes
        About how large it is.
    """

    session: str
    message: tuple[Any, ...]
    nbytes: int

    @property
    def msg_id(self) -> str | None:
        """The request that it is about."""
        kind, about, *_ = self.message
        if kind == "output":
            return str(about)
        return str(about[0]) if kind == "reply" else None


class Post:
    """Sends letters through the registry, in order, one parcel at a time."""

    def __init__(self, registry: Any) -> None:
        self._registry = registry
        self._changed = Condition()
        #: letters, and when they have to leave
        self._letters: deque[tuple[float, Letter]] = deque()
        self._nbytes = 0
        #: when the thread looks again, if nobody wakes it
        self._looks = math.inf
        self._thread = threading.Thread(target=self._run, name="pxcompat-post", daemon=True)
        self._thread.start()

    def send(self, letter: Letter, patience: float = PATIENCE) -> None:
        """Send a letter, within so many seconds; thread-safe, does not block."""
        due = time.monotonic() + patience
        with self._changed:
            self._letters.append((due, letter))
            self._nbytes += letter.nbytes
            if due < self._looks or self._nbytes >= ROOM:
                self._changed.notify_all()

    def wait_for_room(self) -> None:
        """Wait until little mail is waiting."""
        with self._changed:
            while self._nbytes > ROOM:
                self._changed.wait(1)

    def take_back(self, session: str, msg_ids: Collection[str]) -> list[tuple[Any, ...]]:
        """What there is about requests that has not left yet, for their call to take along."""
        mine: list[tuple[Any, ...]] = []
        with self._changed:
            if not self._letters:
                return mine
            others: deque[tuple[float, Letter]] = deque()
            for item in self._letters:
                letter = item[1]
                if letter.session == session and letter.msg_id in msg_ids:
                    mine.append(letter.message)
                    self._nbytes -= letter.nbytes
                else:
                    others.append(item)
            self._letters = others
        return mine

    def _left(self) -> float:
        """Seconds until something has to leave."""
        if self._letters and self._nbytes >= ROOM:
            return 0.0
        self._looks = min((due for due, _ in self._letters), default=math.inf)
        return self._looks - time.monotonic()

    def _run(self) -> None:
        while True:
            with self._changed:
                while (left := self._left()) > 0:
                    self._changed.wait(None if left == math.inf else left)
                parcel = [letter for _, letter in self._letters]
                self._letters.clear()
            try:
                # the registry's answer is the permission to send more
                ray.get(self._registry.tell.remote(parcel))
            except ray.exceptions.RayError as error:
                log.error("the registry is out of reach, and this engine ends: %s", error)
                return  # Ray ends the engine, whose owner the registry is
            with self._changed:
                self._nbytes -= sum(letter.nbytes for letter in parcel)
                self._changed.notify_all()

"""An engine's outgoing mail: output while a request runs, answers, other clients' replies."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import Any, NamedTuple

import ray

__all__ = ["Letter", "Post"]

log = logging.getLogger("pxcompat.ray")

#: seconds that mail waits for more, or for the reply that can take it along
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


class Post:
    """Sends letters through the registry, in order, one parcel at a time."""

    def __init__(self, registry: Any) -> None:
        self._registry = registry
        self._changed = threading.Condition()
        self._letters: deque[Letter] = deque()
        self._nbytes = 0
        self._thread = threading.Thread(target=self._run, name="pxcompat-post", daemon=True)
        self._thread.start()

    def send(self, letter: Letter) -> None:
        """Send a letter; thread-safe, does not block."""
        with self._changed:
            self._letters.append(letter)
            self._nbytes += letter.nbytes
            if len(self._letters) == 1:
                self._changed.notify_all()

    def wait_for_room(self) -> None:
        """Wait until little mail is waiting."""
        with self._changed:
            while self._nbytes > ROOM:
                self._changed.wait(1)

    def take_back(self, session: str, msg_id: str) -> list[tuple[Any, ...]]:
        """The output of a request that has not left yet, for its reply to take along."""
        with self._changed:
            mine = [
                letter
                for letter in self._letters
                if letter.session == session and letter.message[:2] == ("output", msg_id)
            ]
            if mine:
                self._letters = deque(letter for letter in self._letters if letter not in mine)
                self._nbytes -= sum(letter.nbytes for letter in mine)
        return [letter.message[2:] for letter in mine]

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._letters:
                    self._changed.wait()
                if self._nbytes < ROOM:
                    self._changed.wait(PATIENCE)
                parcel = list(self._letters)
                self._letters.clear()
            if not parcel:
                continue
            try:
                # the registry's answer is the permission to send more
                ray.get(self._registry.tell.remote(parcel))
            except ray.exceptions.RayError as error:
                log.error("the registry is out of reach, and this engine ends: %s", error)
                return  # Ray ends the engine, whose owner the registry is
            with self._changed:
                self._nbytes -= sum(letter.nbytes for letter in parcel)
                self._changed.notify_all()

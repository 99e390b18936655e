"""Telling engines and the registry of what waits where they cannot see it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from pxcompat.error import EngineError

if TYPE_CHECKING:
    from .backend import RayBackend

__all__ = ["ANNOUNCE", "Announcer"]

#: seconds after which a request that has no reply is announced to its engine
ANNOUNCE = 0.1


class Announcer:
    """Tells engines what waits for them in Ray's queue, where nobody else can see it, and the
    registry what waits in the client; on a thread of its own, while anything does."""

    def __init__(self, backend: RayBackend) -> None:
        self._backend = backend
        self._woken = threading.Event()
        self._awake = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pxcompat-ray-announce", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Something was sent."""
        if not self._awake:
            self._awake = True
            self._woken.set()

    def stop(self) -> None:
        """End, and wait for that."""
        self._stopped.set()
        self._woken.set()
        self._thread.join()

    def _run(self) -> None:
        backend = self._backend
        while not self._stopped.is_set():
            self._woken.wait()
            self._woken.clear()
            self._awake = False  # what is sent from here on has it look again
            pause, noted = ANNOUNCE, False
            while not self._stopped.wait(pause):
                waiting = backend.unassigned()
                # ids of very many are not told often
                pause = max(ANNOUNCE, len(waiting) * ANNOUNCE / 1000)
                try:
                    backend.announce(waiting if waiting or noted else None, ANNOUNCE)
                except EngineError:
                    return  # disconnected
                noted = bool(waiting)
                if backend.settled() and not noted:
                    break

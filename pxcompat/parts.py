"""Collections of the backend's own, taken apart over engines and put together from them.

What they are, the backend knows (:meth:`.protocol.Backend.take_apart` and ``put_together``).
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import serialize
from .asyncresult import AsyncResult
from .engine import parts
from .error import EngineError
from .futures import MessageFuture
from .objects import Accepted
from .protocol import Part
from .waiting import Countdown, wait_for

if TYPE_CHECKING:
    from .client import Client

__all__ = ["Scattering", "gather"]

log = logging.getLogger("pxcompat")

#: seconds for engines that are there to undo what they have bound
UNDOING = 60


class Scattering:
    """A name bound on several engines: on all of them, or on none.

    Parameters
    ----------
    natives
        What each engine is to bind.
    """

    def __init__(
        self,
        client: Client,
        name: str,
        keys: Sequence[str],
        natives: Sequence[Any],
        info: dict[str, Any],
        *,
        flatten: bool = False,
    ) -> None:
        self._client = client
        self._keys = keys
        self._info = info
        self._token = uuid.uuid4().hex
        self._undone = threading.Event()
        self._undoing: list[MessageFuture] = []
        self._futures: list[MessageFuture] = []
        self._arguments = [
            serialize.dumps(((name, Accepted(n), self._token, flatten), {}), natives=True)
            for n in natives
        ]

    def send(self) -> list[MessageFuture]:
        """Have the engines bind it; once."""
        function = serialize.dumps(parts.bind)
        arguments, self._arguments = self._arguments, []  # which hold what they stand for
        self._futures = [
            self._client._submit_apply(key, function, frames, **self._info)
            for key, frames in zip(self._keys, arguments, strict=True)
        ]
        # before anybody else is told of the end
        Countdown(self._futures, type(self)._settle, self)
        return self._futures

    def _settle(self) -> None:
        good = all(future.exception() is None for future in self._futures)
        function = serialize.dumps(parts.settle)
        arguments = serialize.dumps(((self._token, good), {}))
        try:
            for key, future in zip(self._keys, self._futures, strict=True):
                if future.exception() is None:
                    self._undoing.append(
                        self._client._submit_apply(key, function, arguments, label="settle")
                    )
        except EngineError as error:  # closed, or out of reach: so is what was bound
            log.debug("a scatter was not settled: %s", error)
        self._undone.set()

    def wait(self, result: AsyncResult) -> None:
        """Wait until all is bound; else until all is undone, and raise why."""
        try:
            result.get()
        except Exception:
            self._undone.wait(UNDOING)
            wait_for(self._undoing, UNDOING)
            raise


def gather(
    client: Client, name: str, keys: Sequence[str], ids: Sequence[int], info: dict[str, Any]
) -> Any:
    """A collection of the backend's own over what engines have under a name."""
    token = uuid.uuid4().hex
    futures = client._submit_apply_many(
        keys, serialize.dumps(parts.set_aside), serialize.dumps(((name, token), {})), **info
    )
    result = AsyncResult(client, futures, fname="gather", targets=list(ids), owner=True)
    try:
        found = [
            Part(key, engine, token, description)
            for key, engine, description in zip(keys, ids, result.get(), strict=True)
        ]
        return client._backend.put_together(name, found)
    except BaseException:
        there = [key for key in keys if key in client._dispatcher.engines]
        client._submit_apply_many(
            there, serialize.dumps(parts.give_up), serialize.dumps(((token,), {})), label="give up"
        )
        raise

"""What clients say has become of their requests, for other clients: see ``EventSink.fates``."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pxcompat.protocol import Fate

__all__ = ["Fates"]

#: seconds for a client to answer; one that is busy has what it had
PATIENCE = 2


class Fates:
    """A controller's part: it asks the clients.  On its event loop.

    Parameters
    ----------
    ask : callable
        Sends a client a message; whether that is there.
    """

    def __init__(self, ask: Callable[[str, tuple[Any, ...]], Awaitable[bool]]) -> None:
        self._ask = ask
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[dict[str, Fate]]] = {}

    async def of(self, msg_ids: Sequence[str]) -> dict[str, Fate]:
        """What has become of requests whose clients are there."""
        theirs: dict[str, list[str]] = {}
        for msg_id in msg_ids:
            theirs.setdefault(msg_id.rpartition("_")[0], []).append(msg_id)
        fates: dict[str, Fate] = {}
        numbers = []
        for client, ids in theirs.items():
            number = next(self._numbers)
            self._asked[number] = asyncio.get_running_loop().create_future()
            numbers.append(number)
            if await self._ask(client, ("fates?", number, ids)):
                fates.update(dict.fromkeys(ids, ("held", None)))
            else:
                self.say(number, {})
        answers = [self._asked[number] for number in numbers if number in self._asked]
        if answers:
            await asyncio.wait(answers, timeout=PATIENCE)
        for number in numbers:
            self._asked.pop(number, None)
        for answer in answers:
            if answer.done():
                fates.update(answer.result())
        return fates

    def say(self, number: int, fates: dict[str, Fate]) -> None:
        """A client answers."""
        answer = self._asked.pop(number, None)
        if answer is not None and not answer.done():
            answer.set_result(fates)

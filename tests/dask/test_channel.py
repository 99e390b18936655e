"""What a channel holds on to: nothing."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

from pxcompat.backends.dask.channel import Channel


class Payload:
    pass


class FakeComm:
    """A comm whose other side is the test."""

    peer_address = "fake://"

    def __init__(self) -> None:
        self.arriving: asyncio.Queue[list[Any]] = asyncio.Queue()
        self.written = asyncio.Event()

    async def read(self) -> list[Any]:
        return await self.arriving.get()

    async def write(self, batch: list[Any], on_error: str) -> None:
        if any(message[0] == "value" for message in batch):
            self.written.set()

    def abort(self) -> None:
        pass


async def test_the_latest_message_is_let_go() -> None:
    heard = asyncio.Event()
    comm = FakeComm()
    channel = Channel(comm, lambda message: heard.set())  # type: ignore[arg-type]
    running = asyncio.create_task(channel.run())
    there, here = Payload(), Payload()
    alive = [weakref.ref(there), weakref.ref(here)]
    comm.arriving.put_nowait([("value", there)])
    channel.send(("value", here))
    del there, here
    await heard.wait()
    await comm.written.wait()
    await asyncio.sleep(0)  # until it waits for more
    gc.collect()
    assert [ref() for ref in alive] == [None, None]
    running.cancel()
    await asyncio.wait([running])

"""What a channel holds on to: nothing; and how it writes."""

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
        self.batches: list[list[Any]] = []
        self.arriving: asyncio.Queue[list[Any]] = asyncio.Queue()
        self.written = asyncio.Event()

    async def read(self) -> list[Any]:
        return await self.arriving.get()

    async def write(self, batch: list[Any], on_error: str) -> None:
        self.batches.append([message[1] for message in batch if message[0] == "number"])
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


async def test_what_comes_in_numbers_is_gathered() -> None:
    comm = FakeComm()
    channel = Channel(comm, lambda message: None)  # type: ignore[arg-type]
    running = asyncio.create_task(channel.run())
    for number in range(100):
        channel.send(("number", number))
    for number in range(100, 200):
        await asyncio.sleep(0)  # the writer has a turn between any two
        channel.send(("number", number))
    last = asyncio.Event()
    channel.send(("number", 200), last.set)
    await last.wait()
    assert [number for batch in comm.batches for number in batch] == list(range(201))
    assert len(comm.batches) < 50
    running.cancel()
    await asyncio.wait([running])


async def test_one_message_after_another_waits_for_nothing(monkeypatch: Any) -> None:
    monkeypatch.setattr("pxcompat.backends.dask.channel.GATHER", 1000)
    comm = FakeComm()
    channel = Channel(comm, lambda message: None)  # type: ignore[arg-type]
    running = asyncio.create_task(channel.run())
    for number in range(10):
        sent = asyncio.Event()
        channel.send(("number", number), sent.set)
        await asyncio.wait_for(sent.wait(), 30)
    running.cancel()
    await asyncio.wait([running])

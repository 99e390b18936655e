"""What a channel holds on to: nothing; and how it writes."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from distributed.comm import connect, listen
from distributed.comm.core import Comm
from tornado.iostream import IOStream

from pxcompat.backends.dask import shortcut
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


@asynccontextmanager
async def channel_and_other_side() -> AsyncIterator[tuple[Channel, Comm]]:
    """A channel over a real comm, and what the other side reads from."""
    comms: asyncio.Queue[Comm] = asyncio.Queue()
    async with listen("tcp://127.0.0.1:0", comms.put, deserialize=False) as listener:
        channel = Channel(await connect(listener.contact_address), lambda message: None)
        running = asyncio.create_task(channel.run())
        other = await comms.get()
        question = asyncio.Event()  # of memory that can be shared, which comes first
        channel.send(("first",), question.set)
        await question.wait()
        try:
            yield channel, other
        finally:
            other.abort()
            await running


async def numbers(comm: Comm, last: Any) -> list[Any]:
    """What arrives until the last one."""
    found: list[Any] = []
    while last not in found:
        messages = await asyncio.wait_for(comm.read(), 60)
        found += [message[1] for message in messages if message[0] == "number"]
    return found


async def test_a_message_by_itself_is_written_where_it_is_sent() -> None:
    async with channel_and_other_side() as (channel, other):
        sent: list[int] = []
        channel.send(("number", 1), lambda: sent.append(1), here=True)
        assert sent == [1]  # the loop had no turn
        assert await numbers(other, 1) == [1]


async def test_messages_keep_their_order_whoever_writes_them(monkeypatch: Any) -> None:
    monkeypatch.setattr("pxcompat.backends.dask.channel.GATHER", 0)
    async with channel_and_other_side() as (channel, other):
        reading = asyncio.create_task(numbers(other, 499))
        for number in range(500):
            # more than the operating system takes before the other side reads
            channel.send(("number", number, "x" * 100_000), here=number % 3 > 0)
            if number % 5 == 0:
                await asyncio.sleep(0)
        assert await reading == list(range(500))


async def test_what_did_not_fit_goes_before_what_comes_next() -> None:
    async with channel_and_other_side() as (channel, other):
        channel.send(("number", 1, "x" * 20_000_000), here=True)
        channel.send(("number", 2), here=True)
        assert await numbers(other, 2) == [1, 2]


async def test_what_a_finalizer_sends_while_a_message_is_written_arrives(monkeypatch: Any) -> None:
    async with channel_and_other_side() as (channel, other):
        dumps = shortcut.dumps

        def interrupted(message: Any) -> Any:
            monkeypatch.undo()
            channel.send(("number", "finalizer's"))
            return dumps(message)

        monkeypatch.setattr(shortcut, "dumps", interrupted)
        thread = threading.Thread(
            target=channel.send, args=[("number", 1)], kwargs={"here": True}, daemon=True
        )
        thread.start()
        assert await numbers(other, "finalizer's") == [1, "finalizer's"]


async def test_what_a_signal_handler_sends_while_a_message_is_written_arrives(
    monkeypatch: Any,
) -> None:
    monkeypatch.setattr("pxcompat.backends.dask.channel.GATHER", 0)
    handler: list[Any] = []
    write = IOStream.write_to_fd

    def interrupted(stream: IOStream, data: memoryview) -> int:
        if handler:
            handler.pop()()
        return int(write(stream, data))

    monkeypatch.setattr(IOStream, "write_to_fd", interrupted)
    async with channel_and_other_side() as (channel, other):
        handler.append(lambda: channel.send(("number", "handler's"), here=True))
        thread = threading.Thread(
            target=channel.send, args=[("number", 1)], kwargs={"here": True}, daemon=True
        )
        thread.start()
        await asyncio.to_thread(thread.join, 60)
        assert not thread.is_alive()
        assert await numbers(other, "handler's") == [1, "handler's"]

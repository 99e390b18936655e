"""An ordered, two-way stream of messages over one Dask comm."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from distributed.comm.core import Comm, CommClosedError
from distributed.comm.inproc import InProc
from distributed.protocol.serialize import Serialized

from pxcompat.engine.interrupts import Event

from .sharing import Sharing
from .shortcut import Shortcut
from .wire import Message

__all__ = ["Channel", "ChannelClosed"]

log = logging.getLogger("pxcompat.dask")


#: messages that may wait to be written before who makes output has to wait
ROOM = 1000
#: seconds from one write to the next while more than a few messages come for each
GATHER = 0.002
#: as many as one request may have: its start, the last of its output, its reply
FEW = 3


class ChannelClosed(ConnectionError):
    """The other side is gone."""


class Channel:
    """Messages to and from the other side of a comm.

    Lives on one event loop; only :meth:`send` may be called from any thread.  What is
    sent while a write is under way goes out together with the next.  One message by itself
    need not wake the loop: it can be written where it is sent.

    Parameters
    ----------
    comm : distributed.comm.Comm
    on_message : callable
        Called on the loop with each message, in order.  When it returns an awaitable,
        the next message waits for it.
    """

    def __init__(self, comm: Comm, on_message: Callable[[Message], Any]) -> None:
        self._comm = comm
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._outgoing: deque[tuple[Message, Callable[[], None] | None]] = deque()
        self._wake = asyncio.Event()
        #: Held where it is decided who writes: the loop, while it has something to write, or
        #: whoever sends.  The garbage collector, or a signal handler, may come and send.
        self._turn = threading.RLock()
        self._loop_writes = False
        #: messages in the loop's latest write
        self._written = 0
        #: whether something came since a message was written past the loop, and when that was
        self._heard = True
        self._passed = 0.0
        self._shortcut = Shortcut.of(comm)
        #: whether one is being written so: who comes by meanwhile would wait for itself
        self._passing = False
        self._room = Event()
        self.closed = asyncio.Event()
        # frames are not for Dask to look into, nor worth a thread to pass them on
        comm.deserialize = False
        comm.allow_offload = False
        self._shares_memory = isinstance(comm, InProc)
        self.sharing = Sharing()
        question = None if self._shares_memory else self.sharing.question()
        if question is not None:
            self.send(question)

    def send(
        self,
        message: Message,
        on_sent: Callable[[], None] | None = None,
        *,
        here: bool = False,
    ) -> None:
        """Send a message.  Thread-safe, returns at once.

        Parameters
        ----------
        on_sent : callable, optional
            Called when the message's buffers have left, on the loop or here.
        here : bool
            Whether this thread may write it, if nothing else is to be written.  No exception
            may be raised in it meanwhile, by a signal for example.

        Raises
        ------
        ChannelClosed
            When it is known that nobody is there to receive it.
        """
        if self.closed.is_set():
            raise ChannelClosed(f"the connection to {self._comm.peer_address} is closed")
        if self.sharing.ready:
            message = self.sharing.outgoing(message)
        with self._turn:
            passed = here and self._pass(message)
            if not passed:
                self._outgoing.append((message, on_sent))
                self._have_loop_write()
        if passed and on_sent is not None:
            on_sent()

    def _have_loop_write(self) -> None:
        if not self._loop_writes:
            self._loop_writes = True
            self._loop.call_soon_threadsafe(self._wake.set)

    def _pass(self, message: Message) -> bool:
        """Write a message past the loop, unless it has others to write, or many have come."""
        if self._shortcut is None or self._loop_writes or self._passing or self._written > FEW:
            return False
        now = time.monotonic()
        if not (self._heard or now - self._passed > GATHER):
            return False
        self._heard, self._passed = False, now
        self._passing = True
        try:
            passed = self._shortcut.write(message)
        finally:
            self._passing = False
        if passed and self._shortcut.rest:
            self._have_loop_write()
        return passed

    def wait_for_room(self) -> None:
        """Wait while a good deal is waiting to be written.  Not on the loop."""
        while len(self._outgoing) > ROOM and not self.closed.is_set():
            self._room.clear()
            self._room.wait(0.1)

    async def run(self) -> None:
        """Read and write until either side closes."""
        writer = asyncio.create_task(self._write())
        try:
            while True:
                messages = deque(await self._comm.read())
                # none is held on to while the next are waited for: it may be large
                while messages:
                    answer = self._hear(messages.popleft())
                    if answer is not None:
                        await answer
        except (CommClosedError, OSError):
            return
        finally:
            writer.cancel()
            self.closed.set()
            self.sharing.close()
            self._comm.abort()

    def _hear(self, message: Message) -> Any:
        """Take a message in; what :attr:`_on_message` returns of it."""
        self._heard = True
        if message[0] in ("share?", "share!", "mapped"):
            reply = self.sharing.hear(message)
            if reply is not None:
                self.send(reply)
            return None
        message, tickets = self.sharing.incoming(message)
        for ticket in tickets:
            self.send(("mapped", ticket))
        return self._on_message(message)

    async def _write(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._has_more():
                    if self._written > FEW:
                        # a write costs both sides more than its messages: it wakes threads that
                        # take the interpreter from those that make them
                        await asyncio.sleep(GATHER)
                    self._written = await self._write_out()
        except (CommClosedError, OSError):
            self._comm.abort()  # the reader notices, and tells
        except Exception:
            log.exception("a message cannot be written, and the connection is given up")
            self._comm.abort()

    def _has_more(self) -> bool:
        """Whether the loop has something to write; otherwise others may."""
        with self._turn:
            self._loop_writes = False
            if self._outgoing or (self._shortcut is not None and self._shortcut.rest):
                self._loop_writes = True
            return self._loop_writes

    async def _write_out(self) -> int:
        """Write what waits; nothing holds on to it afterwards.  How many messages it was."""
        if self._shortcut is not None and self._shortcut.rest:
            await self._shortcut.write_rest()
        batch = []
        sent = []
        while self._outgoing:
            message, on_sent = self._outgoing.popleft()
            batch.append(_without_sharing(message) if self._shares_memory else message)
            if on_sent is not None:
                sent.append(on_sent)
        if batch:
            await self._comm.write(batch, on_error="raise")
            await self._flushed()
        self._room.set()
        for on_sent in sent:
            on_sent()
        return len(batch)

    async def _flushed(self) -> None:
        """Wait until the operating system has taken all that was written."""
        stream = getattr(self._comm, "stream", None)
        if stream is not None and stream.writing():
            await stream.write(b"")

    def close(self) -> None:
        """Close at once; on the loop."""
        self._comm.abort()

    async def finish(self, timeout: float) -> None:
        """Write what is waiting, then close; on the loop."""
        written = asyncio.Event()
        try:
            self.send(("bye",), written.set)
            await asyncio.wait_for(written.wait(), timeout)
        except (ChannelClosed, asyncio.TimeoutError):
            log.debug("closed a channel to %s with unsent messages", self._comm.peer_address)
        self._comm.abort()


def _without_sharing(message: Any) -> Any:
    """The message, with frames copied: in one process both sides would see one memory."""
    if isinstance(message, Serialized):
        return Serialized(dict(message.header), [bytearray(frame) for frame in message.frames])
    if isinstance(message, tuple):
        return tuple(_without_sharing(item) for item in message)
    if isinstance(message, dict):
        return {key: _without_sharing(item) for key, item in message.items()}
    return message

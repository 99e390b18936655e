"""A thousand engines in one process: they speak the real channel, and do nothing.

What a broadcast costs its client grows with the number of engines, and so many cannot run on one
machine.  These are one listener, under an address each (127.0.x.y), whose replies come at once.

Run as ``python -m tests.benchmarks.crowd N`` it writes one line of JSON, what ``pxcompat.Client``
connects with, and ends with its stdin.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from typing import Any

from pxcompat.backends.dask.channel import Channel
from pxcompat.backends.dask.registry import Registry
from pxcompat.backends.dask.wire import Message, pack_reply, unpack_request
from pxcompat.cluster.connection import Connection
from pxcompat.protocol import Reply
from pxcompat.serialize import dumps

__all__ = ["Crowd"]


class Crowd:
    """The process, as a context manager; ``info`` is for ``pxcompat.Client``."""

    def __init__(self, n: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.crowd", str(n)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError("the simulated engines did not come up; their log says why")
        self.info: dict[str, Any] = json.loads(line)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


class _Engines:
    """All of them."""

    def __init__(self) -> None:
        self._result = dumps(None, name="the result")
        #: by the host part of its address
        self.keys: dict[str, str] = {}

    async def serve(self, comm: Any) -> None:
        """A client's channel to one of them."""
        comm.deserialize = False
        await comm.read()  # what it wants, as of any Dask server: an engine
        key = self.keys[comm.local_address.rpartition("/")[2].rpartition(":")[0]]
        channel = Channel(comm, lambda message: self._answer(channel, key, message))
        channel.send(("hello", key))
        await channel.run()

    def _answer(self, channel: Channel, key: str, message: Message) -> None:
        if message[0] != "request":
            return
        request, now = unpack_request(message), time.time()
        reply = Reply(request.msg_id, "ok", key, now, now, self._result)
        channel.send(pack_reply(reply))


async def _run(n: int) -> None:
    from distributed import Scheduler
    from distributed.comm import listen

    scheduler = Scheduler(host="127.0.0.1", port=0, protocol="tcp", dashboard_address=":0")
    await scheduler
    registry = Registry()
    scheduler.add_plugin(registry)
    await registry.start(scheduler)
    engines = _Engines()
    listener = await listen("tcp://0.0.0.0:0", engines.serve, allow_offload=False)
    port = listener.listen_address.rpartition(":")[2]
    for number in range(n):
        host, key = f"127.0.{1 + number // 250}.{1 + number % 250}", uuid.uuid4().hex
        engines.keys[host] = key
        await registry.register(key, os.getpid(), "here", True, f"tcp://{host}:{port}")
    connection = Connection("dask", {"address": scheduler.address, "security": {}})
    print(json.dumps(connection.to_dict()), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    listener.stop()
    await scheduler.close()


if __name__ == "__main__":
    asyncio.run(_run(int(sys.argv[1])))

"""A Dask scheduler for engines that are no Dask workers, until ``become_dask`` makes them some.

It runs on a thread of the client's process, with TLS and credentials of its own, and ends with
the client, or by ``stop_dask``.
"""

from __future__ import annotations

import logging
import threading
import warnings
import weakref
from typing import Any

from distributed import Client, Scheduler
from distributed.security import Security
from distributed.utils import LoopRunner, get_ip, silence_logging_cmgr, sync

__all__ = ["Host"]

#: seconds for the scheduler to start, and to end
TIMEOUT = 30


class Host:
    """A scheduler in this process.

    Parameters
    ----------
    local : bool
        Whether all its workers will be on this machine; otherwise it listens beyond.
    options : dict
        Passed to ``distributed.Scheduler``.

    Attributes
    ----------
    worker : dict
        What a ``distributed.Worker`` on an engine is to be told.
    """

    def __init__(self, *, local: bool, options: dict[str, Any]) -> None:
        security = Security.temporary()
        host = "127.0.0.1" if local else get_ip()
        given = {
            "host": host,
            "protocol": "tls",
            "security": security,
            "dashboard_address": f"{host}:8787",
            **options,
        }
        # who works in this process need not read who comes and goes, as with a LocalCluster
        self._quiet = silence_logging_cmgr(logging.WARNING)
        self._lock = threading.Lock()
        self._closed = False
        self._clients: weakref.WeakSet[Client] = weakref.WeakSet()
        self._runner = LoopRunner(asynchronous=False)
        self._runner.start()
        self._quiet.__enter__()

        async def start() -> Any:
            return await Scheduler(**given)

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the dashboard's usual port is taken
                self._scheduler: Scheduler = sync(
                    self._runner.loop, start, callback_timeout=TIMEOUT
                )
        except BaseException:
            self._end()
            raise
        self._security = given["security"]
        self.worker = {
            "address": self._scheduler.address,
            "security": self._security,
            "nthreads": 1,
            # unencrypted, so for the worker's machine alone
            "dashboard_address": "127.0.0.1:0",
            **({"host": "127.0.0.1"} if local else {}),
        }

    def client(self) -> Client:
        """A client of the scheduler, the caller's to close."""
        client = Client(self._scheduler.address, security=self._security)
        self._clients.add(client)
        return client

    def close(self) -> None:
        """End the scheduler, and with it its workers and clients.  Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            for client in list(self._clients):
                client.close()  # it would look for the scheduler, and complain, for half a minute
            sync(self._runner.loop, self._scheduler.close, callback_timeout=TIMEOUT)
        finally:
            self._end()

    def _end(self) -> None:
        self._runner.stop()
        self._quiet.__exit__(None, None, None)

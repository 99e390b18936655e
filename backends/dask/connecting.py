"""How a client connects to a Dask scheduler, and says why it cannot."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Mapping
from typing import Any

import dask
from distributed import Client
from distributed.security import Security

from pxcompat.engine.interrupts import uninterrupted
from pxcompat.error import ConnectError, ConnectionFileError

from .process import security_of

__all__ = ["connect_client", "reasons"]


class _Client(Client):
    """Dask's client, which ends quietly when its scheduler does, and leaves nothing behind."""

    def start(self, **kwargs: Any) -> None:
        # as Dask's own, but for interrupts: a loop that is half started cannot be stopped, and a
        # start that is cancelled while it connects leaves a connection, and a warning
        starting = None
        try:
            with uninterrupted():
                self._loop_runner.start()
                loop = self._loop_runner.loop.asyncio_loop
                starting = asyncio.run_coroutine_threadsafe(self._start(**kwargs), loop)
            starting.result()
        except BaseException:
            if starting is not None:
                concurrent.futures.wait([starting], timeout=1)
                starting.cancel()
            # Its own __del__ would stop its thread, or try to: whenever the garbage collector
            # comes by, under a lock that may be held, and not at all when it closed itself.
            self.close(timeout=1)
            raise

    def close(self, *args: Any, **kwargs: Any) -> Any:
        closed = super().close(*args, **kwargs)
        # not when called by the garbage collector, once closed: it may come by under a lock
        if self._loop_runner.is_started() and not self.asynchronous:
            self._loop_runner.stop()
        return closed

    async def _start(self, timeout: Any = None, **kwargs: Any) -> Any:
        # its own timeout does not cover the greeting, which a scheduler that hangs never says
        return await asyncio.wait_for(super()._start(timeout=timeout, **kwargs), timeout + 0.5)

    async def _reconnect(self) -> None:
        # a scheduler that is gone takes its engines along: there is nothing to come back to,
        # and nothing to log that the errors of the requests do not say
        await self._close()


def _security(info: Mapping[str, Any]) -> Any:
    given = info.get("security_object")
    if given is not None:
        return given
    pems = info.get("security") or {}
    if isinstance(pems, Security):  # as Dask's own Client takes it
        return pems
    try:
        with uninterrupted():  # Dask has the key in a temporary file meanwhile
            security = security_of(pems)
            security.get_connection_args("client")  # reads them
    except (KeyError, OSError, ValueError) as error:
        raise ConnectError(
            f"the credentials for the Dask scheduler at {info['address']} are damaged "
            f"(stage: reading the credentials); restart the cluster for new ones "
            f"({reasons(error)})"
        ) from error
    return security


def connect_client(info: Mapping[str, Any], timeout: float) -> Client:
    """Connect to the scheduler that a connection file, or an address, describes.

    Raises
    ------
    ConnectError
        Naming the stage, the address and what helps.
    """
    address = info.get("address")
    if not address:
        raise ConnectionFileError("the connection info of a Dask cluster has no 'address'")
    security = _security(info)
    try:
        with dask.config.set({"distributed.comm.timeouts.connect": f"{timeout}s"}):
            return _Client(
                address,
                security=security,
                timeout=timeout,
                set_as_default=False,
                name="pxcompat",
            )
    except (OSError, TimeoutError, asyncio.TimeoutError, ValueError, TypeError) as error:
        why = reasons(error)
        hint = "is it running, and reachable from here?"
        if any(word in why for word in ("SSL", "ssl_context", "TLS certificate")):
            hint = "are these its credentials? Its connection file has them."
        elif "ConnectionReset" in why and str(address).startswith("tcp:"):
            hint = "does it speak TLS? Then use its connection file, which has credentials."
        raise ConnectError(
            f"cannot connect to the Dask scheduler at {address} "
            f"(stage: connecting to the scheduler; waited {timeout:g} s at most); {hint} "
            f"({why})"
        ) from error


def reasons(error: BaseException | None) -> str:
    """An error and what caused it, on one line."""
    texts: list[str] = []
    while error is not None and len(texts) < 4:
        text = f"{type(error).__name__}: {error}".strip().rstrip(":")
        if text not in texts:
            texts.append(text)
        error = error.__cause__ or error.__context__
    return "; ".join(texts)

"""An engine that works for somebody else's Dask scheduler as well."""

from __future__ import annotations

import logging
import threading
from typing import Any

from distributed import Nanny, Worker
from distributed.utils import LoopRunner, sync

from pxcompat.engine import namespace

__all__ = ["join", "leave"]

log = logging.getLogger("pxcompat")

#: what the user's code knows the worker by
NAMES = ("dask_worker", "distributed_worker")
#: seconds for the scheduler to answer
TIMEOUT = 30

_lock = threading.Lock()
_guest: tuple[LoopRunner, Worker | Nanny] | None = None


def join(address: str, *, nanny: bool = False, **options: Any) -> None:
    """Start a worker for the scheduler at ``address`` in this process, unless there is one.

    With ``nanny`` the worker is a process of its own.

    Raises
    ------
    TimeoutError, OSError
        When the scheduler does not answer.
    """
    global _guest
    with _lock:
        if _guest is not None:
            log.info("this engine is a worker already; %s goes without", address)
            return
        runner = LoopRunner(asynchronous=False)
        runner.start()

        async def start() -> Any:
            return await (Nanny if nanny else Worker)(address, **options)

        try:
            worker: Worker | Nanny = sync(runner.loop, start, callback_timeout=TIMEOUT)
        except BaseException:
            runner.stop()
            raise
        _guest = runner, worker
    namespace().update(dict.fromkeys(NAMES, worker))


def leave() -> None:
    """Stop that worker; nothing to do where there is none."""
    global _guest
    with _lock:
        if _guest is None:
            return
        (runner, worker), _guest = _guest, None
        try:
            sync(runner.loop, worker.close, callback_timeout=TIMEOUT)
        finally:
            runner.stop()
    names = namespace()
    for name in NAMES:
        if names.get(name) is worker:
            del names[name]

"""An engine's process: user code on the main thread, the Dask worker on a thread beside it."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import signal
import threading
from dataclasses import dataclass, field
from typing import Any

import psutil

from .ledger import Ledger

__all__ = ["EngineSpec", "run_engine", "security_of"]

log = logging.getLogger("pxcompat.dask")

#: seconds for running code to end after the cluster has gone, before it is ended
GRACE = 3
#: seconds for processes that a user's code has started to end as they are asked to
CHILDREN = 0.5


@dataclass
class EngineSpec:
    """What an engine's process needs to know."""

    key: str
    scheduler: str
    host: str
    security: dict[str, str]
    local_directory: str
    options: dict[str, Any]
    ledger: Ledger
    #: where it gets its rank of an MPI world, or ""
    rank: str = ""
    #: what is added to its environment
    env: dict[str, str] = field(default_factory=dict)


def security_of(pems: dict[str, str]) -> Any:
    """Dask's Security for one set of credentials, used in every role."""
    from distributed.security import Security

    if not pems:
        return Security()
    roles = {}
    for role in ("client", "scheduler", "worker"):
        roles[f"tls_{role}_cert"] = pems["tls_cert"]
        roles[f"tls_{role}_key"] = pems["tls_key"]
    return Security(tls_ca_file=pems["tls_ca"], require_encryption=True, **roles)


def run_engine(spec: EngineSpec) -> None:
    """Run an engine until it is stopped or its cluster is gone."""
    os.environ.update(spec.env)
    import dask

    from pxcompat import alias
    from pxcompat.engine.runtime import Engine

    from .. import mpi

    # first of all, so that it is last: what users' code registers may end them better
    atexit.register(_end_children)
    atexit.register(mpi.leave)
    # notebooks written for ipyparallel import it on engines too
    alias.enable()
    # nobody looks at the worker's profile; it costs a thread that wakes 100 times a second
    dask.config.set({"distributed.worker.profile.enabled": False})
    engine = Engine(spec.key, own_process=True, **spec.options)
    engine.folder = spec.local_directory
    if spec.rank:
        mpi.join(spec.rank)
        engine.prelude = mpi.INIT
    engine.home = {"backend": "dask", "address": spec.scheduler, "security": spec.security}
    thread = threading.Thread(target=_run_thread, args=(spec, engine), name="pxcompat-worker")
    # the engine's first task, after the user's start-up files: what cannot start up is
    # never offered to anybody
    engine.call(thread.start)
    try:
        engine.run()
    finally:
        _stopping.set()
        if thread.ident is not None:
            thread.join()


def _end_children() -> None:
    """End the processes that users' code has started, which go with an engine of ipyparallel's."""
    children = psutil.Process().children(recursive=True)
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                end(child)
        _, children = psutil.wait_procs(children, CHILDREN)


#: set when the engine's loop has ended and the worker should follow
_stopping = threading.Event()
#: set when the engine has been told to end because its cluster is gone
_ending = threading.Event()


def _run_thread(spec: EngineSpec, engine: Any) -> None:
    from pxcompat.engine.output import of_no_request

    of_no_request()  # what Dask logs here is not for who looks at a cell
    try:
        asyncio.run(_run_worker(spec, engine))
    finally:
        if not _stopping.is_set():
            _end_soon(engine)  # without its worker nobody could reach it


async def _run_worker(spec: EngineSpec, engine: Any) -> None:
    from distributed import Worker

    from .service import EngineThreadPoolExecutor, Service

    try:
        worker = Worker(
            spec.scheduler,
            nthreads=1,
            name=f"engine-{spec.key[:8]}",
            host=spec.host,
            security=security_of(spec.security),
            executor={"default": EngineThreadPoolExecutor(engine)},
            # engines keep what they are given: no pausing, spilling or killing over memory
            memory_limit=0,
            local_directory=spec.local_directory,
            # Dask always serves metrics; unencrypted, so for this machine alone
            dashboard_address="127.0.0.1:0",
            dashboard=False,
            death_timeout=30,
        )
        await worker
        service = Service(worker, engine, spec.ledger)
        await service.start()
    except BaseException:
        log.exception("the engine could not join its cluster at %s", spec.scheduler)
        _end_soon(engine)
        return
    finished = asyncio.ensure_future(worker.finished())
    stopping = asyncio.get_running_loop().run_in_executor(None, _stopping.wait)
    await asyncio.wait([finished, stopping], return_when=asyncio.FIRST_COMPLETED)
    if finished.done():
        _end_soon(engine)  # which ends the waiting for it, too
    else:
        await worker.close(executor_wait=False, nanny=False, reason="engine-stopped")


def _end_soon(engine: Any) -> None:
    """The cluster is gone: end, also when user code is running and does not."""
    if _ending.is_set():
        return
    _ending.set()

    def insist() -> None:
        if not _stopping.wait(GRACE):
            os.kill(os.getpid(), signal.SIGKILL)

    engine.stop()
    os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=insist, daemon=True).start()

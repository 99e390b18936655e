"""Making engines of the workers of a Dask cluster that somebody else runs."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import tempfile
from collections.abc import Collection, Iterator
from typing import Any

from distributed import Client, Worker, WorkerPlugin
from distributed.diagnostics.plugin import SchedulerUploadFile, UploadFile

import pxcompat
from pxcompat.error import BackendError

from ..packing import NAME, pack

__all__ = ["install", "prepare"]

log = logging.getLogger("pxcompat.dask")

#: what has to be there where a worker or the scheduler runs
WORKER_PART = "pxcompat.backends.dask.service"
SCHEDULER_PART = "pxcompat.backends.dask.registry"
#: what the scheduler is called in errors
SCHEDULER = "the scheduler"


async def prepare(
    client: Client, session: str, address: str, *, upload: bool, timeout: float
) -> set[str]:
    """See to it that there is a registry in the scheduler, for a client that is about to come.

    Parameters
    ----------
    client : distributed.Client
        Connected, and used from its own event loop.
    session : str
        The client's id, for the registry.
    address : str
        What the cluster is called in errors.
    upload : bool
        Whether to send the package to those that lack it.
    timeout : float
        Seconds for each worker to answer.

    Returns
    -------
    set of str
        The workers that there are, answer, and can be engines.

    Raises
    ------
    BackendError
        Naming who cannot import the package, and what is missing, when that is the scheduler or
        every worker.
    """
    workers, missing = await _missing(client, timeout)
    if missing and upload and any(name == NAME for name in missing.values()):
        await _upload(client, missing)
        workers, missing = await _missing(client, timeout)
    if missing:
        if SCHEDULER in missing or not workers:
            raise BackendError(_explained(missing, address, upload))
        log.warning("%s. They have no engines.", _explained(missing, address, upload))
    from .registry import enlist

    await client._run_on_scheduler(enlist, session)
    return workers


async def install(client: Client, options: dict[str, Any], *, upload: bool) -> None:
    """Make engines of the workers, and of those to come, once the registry knows the client; the
    first client's options are those of all, and whether those to come are sent the package."""
    with _packed() if upload else contextlib.nullcontext(None) as path:
        plugin = _plugin(path, options)
    await client.register_plugin(plugin, name=NAME)


def _plugin(path: str | None, options: dict[str, Any]) -> WorkerPlugin:
    """An :class:`~.service.EnginePlugin` for workers that may lack the package: it brings it, if
    that is packed there, or else leaves them without an engine.

    Dask sets all plugins of a new worker up at the same time, so that another one that uploads
    might be too late.  The class is made here for pickle to send it by value, for what names
    the package cannot be unpickled where that is not, and a worker that cannot does not start.
    """

    class EnginePlugin(WorkerPlugin):
        name = NAME
        idempotent = True
        engine: Any = None
        bringing = None if path is None else UploadFile(path)

        async def setup(self, worker: Worker) -> None:
            import importlib

            lacking = None
            for bringing in (None, self.bringing):
                if bringing is not None:
                    await bringing.setup(worker)
                try:
                    service = importlib.import_module(WORKER_PART)
                except ImportError as error:
                    lacking = error
                else:
                    self.engine = service.EnginePlugin(options)
                    await self.engine.setup(worker)
                    return
            await self.go_without(worker, lacking)

        async def go_without(self, worker: Worker, error: Any) -> None:
            import logging

            log = logging.getLogger("distributed.worker")
            log.warning("This worker is no engine of pxcompat's: %s", error)
            try:
                module = error.name or str(error)
                await worker.scheduler.pxcompat_lacks(address=worker.address, module=module)
            except Exception as failure:  # it is to start all the same
                log.debug("nobody is told of it: %r", failure)

        async def teardown(self, worker: Worker) -> None:
            if self.engine is not None:
                await self.engine.teardown(worker)

    return EnginePlugin()


async def _missing(client: Client, timeout: float) -> tuple[set[str], dict[str, str]]:
    """The workers that answer, and who cannot import its part: by address, the module that is
    not there."""
    found = {}
    try:
        await client._run_on_scheduler(importlib.import_module, SCHEDULER_PART)
    except ImportError as error:
        found[SCHEDULER] = error.name or str(error)
    answers = await _ask_each(client, timeout)
    for worker, answer in answers.items():
        if isinstance(answer, ImportError):
            found[f"worker {worker}"] = answer.name or str(answer)
        elif isinstance(answer, OSError):
            continue  # it left while it was asked
        elif isinstance(answer, BaseException):
            raise answer
    return {worker for worker in answers if f"worker {worker}" not in found}, found


async def _ask_each(client: Client, timeout: float) -> dict[str, Any]:
    """What each worker says to its part being imported; one that hangs keeps us from no other."""

    def ask(worker: str) -> Any:
        part = WORKER_PART
        return client._run(importlib.import_module, part, workers=[worker], on_error="return")

    assert client.scheduler is not None  # of a client that is connected
    workers = await client.scheduler.ncores(workers=None)
    asked = {asyncio.ensure_future(ask(worker)): worker for worker in workers}
    if not asked:
        return {}
    answered, hanging = await asyncio.wait(asked, timeout=timeout)
    if hanging:
        who = ", ".join(asked[task] for task in hanging)
        log.warning("workers that do not answer within %g s have no engine yet: %s", timeout, who)
    for task in hanging:
        task.cancel()
    return {worker: answer for task in answered for worker, answer in task.result().items()}


def _explained(missing: dict[str, str], address: str, upload: bool) -> str:
    modules = sorted(set(missing.values()))
    who = ", ".join(list(missing)[:8]) + (", ..." if len(missing) > 8 else "")
    how = "install pxcompat where they run"
    if upload:
        how += "; it was uploaded, what it depends on has to be installed"
    elif any(name == NAME for name in modules):
        how += ", or have it uploaded: Client(..., upload=True)"
    return f"the Dask cluster at {address} cannot import {', '.join(modules)} on {who}: {how}"


async def _upload(client: Client, missing: Collection[str]) -> None:
    """Send the package to those that lack it."""
    with _packed() as path:
        name = os.path.basename(path)
        if SCHEDULER in missing:  # one in this process would load it in place of what runs here
            await client.register_plugin(SchedulerUploadFile(path), name=name)
        await client.register_plugin(UploadFile(path), name=name)
        await client.unregister_worker_plugin(name)


@contextlib.contextmanager
def _packed() -> Iterator[str]:
    """The package as a file."""
    with tempfile.TemporaryDirectory(prefix="pxcompat-") as folder:
        path = os.path.join(folder, f"pxcompat-{pxcompat.__version__}.zip")
        pack(path)
        yield path

"""The controller's process: a supervisor that forks, feeds and reaps.

::

    owner (Client, Cluster, pxcluster)
      │  stdin: one JSON line, the order; then held open.  Its end is the owner's end.
      │  stdout: one JSON line, where the cluster is
      ▼
    supervisor ── fork ── scheduler    (a socket pair between the two)
               └─ fork ── engine, engine, ...

The supervisor imports what scheduler and engines need, once, and stays single-threaded, so
that forking it is safe and quick.  Every child is killed by the kernel when it dies
(Linux), and ends by itself when its cluster is gone (everywhere).
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import gc
import itertools
import json
import logging
import os
import select
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from typing import Any

import psutil

from ..controlled import read_order, say, settle
from .ledger import Ledger
from .process import EngineSpec, run_engine, security_of

__all__ = ["main"]

log = logging.getLogger("pxcompat.dask")

#: seconds for children to end by themselves, before they are killed
GRACE = 3
#: bytes of an engine's log that are looked through for its last error, and characters told of that
TAIL = 1 << 14
MOST = 400


class Lines:
    """JSON lines over a socket, received without blocking."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._rest = b""

    def send(self, message: dict[str, Any]) -> None:
        self.sock.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """The messages that have arrived; None when the other side is gone."""
        try:
            data = self.sock.recv(1 << 16)
        except (ConnectionError, OSError):
            return None
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]


# -- children -----------------------------------------------------------------------


def _die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, where it can (Linux)."""
    if sys.platform == "linux":
        import ctypes

        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _fork(run: Callable[[], None], log_path: str, keep: tuple[int, ...] = ()) -> int:
    """Fork a child that runs a function and ends; its pid."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _die_with_parent(parent)
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(signum, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDONLY)
        out = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for fd, target in ((null, 0), (out, 1), (out, 2)):
            os.dup2(fd, target)
        low = 3
        for fd in sorted(keep):
            os.closerange(low, fd)
            low = fd + 1
        os.closerange(low, 1024)
        run()
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        # the supervisor's frames below must not run; what the child registered must
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def _signal(pid: int, signum: int) -> None:
    """Send a signal to an engine; what it has started goes with one that is killed, which cannot
    see to that."""
    killed = signum == signal.SIGKILL
    started = psutil.Process(pid).children(recursive=True) if killed else []
    os.kill(pid, signum)
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


class _Link:
    """The scheduler's end of the socket pair: a :class:`registry.Supervisor`."""

    def __init__(self, lines: Lines, end: asyncio.Event) -> None:
        self._lines = lines
        self._end = end
        self.on_exit: Callable[[str, str, str], None] = lambda key, reason, error: None
        self._pids: dict[int, str] = {}
        self._reasons: dict[str, tuple[str, dict[str, int]]] = {}
        #: by its number, each signal that the supervisor has not sent yet
        self._signals: dict[int, asyncio.Future[None]] = {}
        self._numbers = itertools.count()
        self._arrived = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        asyncio.get_running_loop().add_reader(lines.sock.fileno(), self._receive)

    def _receive(self) -> None:
        messages = self._lines.receive()
        if messages is None:
            asyncio.get_running_loop().remove_reader(self._lines.sock.fileno())
            self._end.set()
            return
        for message in messages:
            task = asyncio.ensure_future(self._handle(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _handle(self, message: dict[str, Any]) -> None:
        async with self._arrived:
            if "started" in message:
                self._pids[message["pid"]] = message["started"]
            elif "exited" in message:
                self._reasons[message["exited"]] = message["reason"], message["begun"]
                self.on_exit(message["exited"], message["reason"], message["error"])
            elif "signalled" in message:
                self._signals.pop(message["signalled"]).set_result(None)
            elif "stop" in message:
                self._end.set()
            self._arrived.notify_all()

    async def start_engines(
        self, names: dict[str, str], ranks: dict[str, str], env: dict[str, str] | None = None
    ) -> None:
        self._lines.send({"start": names, "ranks": ranks, "env": env})
        async with self._arrived:
            await self._arrived.wait_for(lambda: names.keys() <= set(self._pids.values()))

    def owns(self, pid: int) -> bool:
        return pid in self._pids

    def pid(self, key: str) -> int | None:
        return next((pid for pid, engine in self._pids.items() if engine == key), None)

    def kill(self, pid: int, signum: int) -> asyncio.Future[None]:
        number = next(self._numbers)
        sent = self._signals[number] = asyncio.get_running_loop().create_future()
        self._lines.send({"kill": pid, "signum": signum, "number": number})
        return sent

    async def reason(self, key: str, timeout: float) -> tuple[str, dict[str, int]] | None:
        async with self._arrived:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(
                    self._arrived.wait_for(lambda: key in self._reasons), timeout
                )
        return self._reasons.pop(key, None)

    def stop(self) -> None:
        self._lines.send({"stop": True})


def _run_scheduler(sock: socket.socket, order: dict[str, Any], directory: str) -> None:
    asyncio.run(_scheduler(Lines(sock), order))


async def _scheduler(lines: Lines, order: dict[str, Any]) -> None:
    import warnings

    import dask
    from distributed import Scheduler
    from distributed.comm.addressing import get_address_host
    from distributed.security import Security

    from .on_demand import Dashboard
    from .registry import Registry

    options = order["options"]
    # a slot per engine: what is not running stays with the scheduler, which can still
    # give it to any engine, or drop it
    dask.config.set({"distributed.scheduler.worker-saturation": 1.0})
    end = asyncio.Event()
    pems: dict[str, str] = {}
    if options.get("tls", True):
        temporary = Security.temporary()
        pems = {
            "tls_ca": temporary.tls_ca_file,
            "tls_cert": temporary.tls_client_cert,
            "tls_key": temporary.tls_client_key,
        }
    host = order["host"]
    dashboard_address = options.get("dashboard_address") or f"{host}:8787"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the dashboard's usual port is taken
        scheduler = Scheduler(
            host=host,
            port=options.get("port", 0),
            protocol="tls" if pems else "tcp",
            security=security_of(pems),
            dashboard_address=dashboard_address,
            dashboard=False,
            allowed_failures=0,
        )
        await scheduler
    registry = Registry()
    registry.supervisor = _Link(lines, end)
    scheduler.add_plugin(registry)
    await registry.start(scheduler)
    registry.supervisor.on_exit = registry.process_ended
    Dashboard(scheduler, registry.monitor.add_pages)
    http: Any = scheduler.http_server
    shown = str(dashboard_address).rpartition(":")[0]
    if shown in ("", "0.0.0.0"):  # every interface: name one that can be reached
        shown = get_address_host(scheduler.address)
    dashboard = f"http://{shown}:{http.port}/status"
    info = {
        "backend": "dask",
        "address": scheduler.address,
        "dashboard": dashboard,
        "security": pems,
        "scheduler_pid": os.getpid(),
    }
    lines.send({"info": info})
    await end.wait()
    await scheduler.close(reason="cluster stopped")


# -- the supervisor -------------------------------------------------------------------


class _Supervisor:
    def __init__(self, order: dict[str, Any]) -> None:
        import dask

        self.order = order
        self.directory: str = order["folder"]
        # whatever Dask writes, in whichever process, goes when the cluster goes
        dask.config.set({"temporary-directory": self.directory})
        self.logs = order.get("log_dir") or self.directory
        os.makedirs(self.logs, mode=0o700, exist_ok=True)
        self.info: dict[str, Any] = {}
        self.scheduler = 0
        self.engines: dict[int, str] = {}
        self.ledgers: dict[str, Ledger] = {}
        #: where each logs
        self.files: dict[str, str] = {}
        #: by an engine's name, what it and its successors have in their environment beyond ours
        self.environments: dict[str, dict[str, str]] = {}
        self.lines: Lines
        self.ending = False

    def run(self) -> None:
        try:
            self._start_scheduler()
            if self._is_let_go():
                return  # given up meanwhile: engines that are just starting end late
            n, first = self.order["n"], self.order["first"]
            keys = [uuid.uuid4().hex for _ in range(n + first)]
            self._start_engines({key: key for key in keys}, {}, {})
            say(
                {
                    "info": {
                        **self.info,
                        "first": keys[n:],
                        "pid": os.getpid(),
                        "logs": self.logs,
                    }
                }
            )
            self._watch()
        finally:
            self._end_children()
            shutil.rmtree(self.directory, ignore_errors=True)

    def _log_path(self, name: str) -> str:
        return os.path.join(self.logs, f"{name}.log")

    def _start_scheduler(self) -> None:
        ours, theirs = socket.socketpair()
        self.lines = Lines(ours)
        self.scheduler = _fork(
            lambda: _run_scheduler(theirs, self.order, self.directory),
            self._log_path("scheduler"),
            keep=(theirs.fileno(),),
        )
        theirs.close()
        for message in self.lines.receive() or []:
            self.info = message["info"]
        if not self.info:
            with open(self._log_path("scheduler"), errors="replace") as log:
                tail = "".join(log.readlines()[-10:])
            raise RuntimeError(f"the scheduler ended before it was ready\n{tail}")

    def _start_engines(
        self, names: dict[str, str], ranks: dict[str, str], env: dict[str, str] | None
    ) -> None:
        for key, name in names.items():
            if env:
                self.environments[name] = env
            spec = EngineSpec(
                key,
                self.info["address"],
                self.order["host"],
                self.info["security"],
                self.directory,
                self.order["options"].get("engine", {}),
                self.ledgers.setdefault(key, Ledger()),
                ranks.get(key, ""),
                self.environments.get(name, {}),
            )
            run = functools.partial(run_engine, spec)
            self.files[key] = path = self._log_path(f"engine-{name[:8]}")
            pid = _fork(run, path)
            self.engines[pid] = key
            self._tell({"started": key, "pid": pid})

    def _tell(self, message: dict[str, Any]) -> None:
        try:
            self.lines.send(message)
        except OSError:
            self.ending = True  # the scheduler is gone, and with it the cluster

    def _watch(self) -> None:
        """Until the owner, the scheduler, or somebody's word ends the cluster."""
        wake, end = os.pipe()
        os.set_blocking(end, False)
        signal.set_wakeup_fd(end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._end())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._reap()
        while not self.ending:
            ready, _, _ = select.select([0, self.lines.sock.fileno(), wake], [], [])
            if wake in ready:
                os.read(wake, 4096)
            self._reap()
            if self.lines.sock.fileno() in ready:
                self._obey(self.lines.receive())
            if self._is_let_go():
                self._end()

    @staticmethod
    def _is_let_go() -> bool:
        """Whether the owner is gone, or wants the cluster no more."""
        ready, _, _ = select.select([0], [], [], 0)
        return bool(ready) and not os.read(0, 4096)

    def _end(self) -> None:
        self.ending = True

    def _obey(self, messages: list[dict[str, Any]] | None) -> None:
        if messages is None:
            self.ending = True
            return
        for message in messages:
            if "start" in message:
                self._start_engines(message["start"], message["ranks"], message["env"])
            elif "kill" in message:
                # only a child not yet reaped: its pid cannot be somebody else's
                if message["kill"] in self.engines:
                    _signal(message["kill"], message["signum"])
                self._tell({"signalled": message["number"]})
            elif "stop" in message:
                self.ending = True

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self.scheduler:
                self.scheduler = 0
                self.ending = True
            elif pid in self.engines:
                key = self.engines.pop(pid)
                ledger = self.ledgers.pop(key)
                error = _error_of(self.files.pop(key)) if status else ""
                said = {"reason": _how(status), "error": error, "begun": ledger.read()}
                self._tell({"exited": key, **said})
                ledger.close()

    def _end_children(self) -> None:
        if self.scheduler:
            with contextlib.suppress(OSError):
                self.lines.send({"stop": True})
        deadline = time.monotonic() + GRACE
        while (self.scheduler or self.engines) and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.01)
        for pid in [*self.engines, *([self.scheduler] if self.scheduler else [])]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return f"its process was killed by signal {-code} ({signal.Signals(-code).name})"
    return "it was shut down" if code == 0 else f"its process exited with status {code}"


def _error_of(path: str) -> str:
    """The exception that a log ends with, on one line; "" where it ends with none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - TAIL))
            text = file.read().decode(errors="replace")
    except OSError:  # somebody has removed it
        return ""
    _, found, said = text.rpartition("Traceback (most recent call last):\n")
    lines = list(itertools.dropwhile(lambda line: line[:1] in (" ", ""), said.splitlines()))
    return " ".join(" ".join(lines).split())[:MOST] if found else ""


def main() -> None:
    """Run the controller that stdin orders."""
    order = read_order()
    if order is None:
        return
    settle(order)
    try:
        import distributed.scheduler
        import distributed.worker  # noqa: F401
        import IPython.core.interactiveshell  # noqa: F401

        import pxcompat.engine.runtime  # noqa: F401

        from . import registry, service  # noqa: F401

        # what is here is shared by every child; collecting it would copy it
        gc.collect()
        gc.freeze()
        _Supervisor(order).run()
    except BaseException as error:
        traceback.print_exc()
        say({"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)


if __name__ == "__main__":
    main()

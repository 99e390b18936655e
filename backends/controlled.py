"""A controller as a child of this process, the same way for every backend.

::

    this process ── stdin: one JSON line, the order; then held open.  Its end is our end. ──> child
                 <─ stdout: one JSON line, {"info": ...} or {"error": ...} ──
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import IO, Any

import psutil

from pxcompat.engine.interrupts import uninterrupted
from pxcompat.error import BackendError
from pxcompat.protocol import LaunchSpec

__all__ = ["LaunchedCluster", "check_host", "read_order", "remove", "say", "settle", "start"]

log = logging.getLogger("pxcompat.backends")

#: seconds for a controller to end by itself, whose start was given up
GRACE = 10


class LaunchedCluster:
    """A controller that this process started (:class:`pxcompat.protocol.Launched`)."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        info: dict[str, Any],
        log: IO[bytes],
        folder: str,
    ):
        self._process = process
        self._log = log
        self._folder = folder
        self._stopped = False
        self._lock = threading.Lock()
        self.info = info

    def poll(self) -> str | None:
        return self._why() if self._process.poll() is not None else None

    def wait(self, timeout: float | None = None) -> str | None:
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        if self._process.returncode:
            _sweep(self._process)
        return self._why()

    def _why(self) -> str:
        if self._stopped and not self._process.returncode:
            return "it was stopped"
        return f"its controller exited with status {self._process.returncode}"

    def stop(self, *, timeout: float = 10) -> None:
        with self._lock:
            self._stopped = True
            if self._process.stdin and not self._process.stdin.closed:
                self._process.stdin.close()  # the controller takes that for our end
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stdout:
                self._process.stdout.close()
            if self._process.returncode:
                _sweep(self._process)
                log.debug("%s\n%s", self._why(), _tail(self._log))
            self._log.close()
            # a controller that was killed could not
            remove(self._folder)


def check_host(host: str) -> None:
    """Raise BackendError for an address that this machine does not have."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.bind(address)
    except OSError as error:
        raise BackendError(
            f"this machine cannot listen at {host!r}: {error.strerror}; give an address of its"
            " own, or '*' for all of them"
        ) from error


def remove(folder: str, timeout: float = 2) -> None:
    """Remove a folder in which processes that are just ending may still write."""
    deadline = time.monotonic() + timeout
    while os.path.isdir(folder):
        shutil.rmtree(folder, ignore_errors=True)
        if time.monotonic() > deadline:
            return
        time.sleep(0.01)


def start(
    module: str,
    spec: LaunchSpec,
    *,
    what: str,
    timeout: float,
    env: Mapping[str, str] | None = None,
    longest: int | None = None,
    meanwhile: Callable[[], object] = lambda: None,
) -> LaunchedCluster:
    """Run a module as the controller of a new cluster; returns when it answers.

    Parameters
    ----------
    what
        What is started, for errors: ``"the Dask cluster"``.
    env
        Changes to the controller's environment.
    longest
        Characters that the path of the cluster's folder may have; else it is in ``/tmp``.
    meanwhile
        Called while the controller starts.

    Raises
    ------
    BackendError
        With the end of the controller's log.
    """
    with contextlib.ExitStack() as started:
        log = started.enter_context(tempfile.TemporaryFile())
        # ours, so that it goes even when the controller has to be killed before it answers
        folder = _make_folder(spec.env.get("TMPDIR"), longest)
        started.callback(remove, folder)
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=spec.cwd,
            env={**os.environ, **(env or {})},
            # a Ctrl-C in this terminal is for us, not for the cluster
            start_new_session=True,
        )
        started.callback(_end, process)
        assert process.stdin is not None
        order = {**asdict(spec), "folder": folder}
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
        meanwhile()
        deadline = time.monotonic() + timeout
        answer = _first_line(process, deadline)
        silent = time.monotonic() >= deadline
        if "info" in answer:
            started.pop_all()
            return LaunchedCluster(process, answer["info"], log, folder)
        _end(process)
        tail = _tail(log)
    reason = answer.get("error")
    if reason is None:
        reason = (
            f"its controller did not answer within {timeout:g} s"
            if silent
            else f"its controller exited with status {process.returncode}"
        )
    raise BackendError(f"{what} did not start: {reason}\n{tail}".rstrip())


def _make_folder(under: str | None, longest: int | None) -> str:
    """The temporary folder of a cluster."""
    if under is None or not os.path.isdir(under):
        under = tempfile.gettempdir()
    if longest is not None and len(under) + len("/pxcompat-12345678") > longest:
        under = "/tmp"
    return tempfile.mkdtemp(prefix="pxcompat-", dir=under)


def _sweep(process: subprocess.Popen[bytes]) -> None:
    """End what a controller that did not end well has left: whatever is in its session."""
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) == process.pid:
                os.kill(pid, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a controller that has not answered: by its leash, so that it cleans up, or by force."""
    assert process.stdin is not None and process.stdout is not None
    try:
        with contextlib.suppress(OSError):
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    finally:  # also when whoever pressed Ctrl-C does so again
        with uninterrupted():
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.returncode:
                # before its stdout is closed, at which we wait for who still has it
                _sweep(process)
            process.stdout.close()


def _first_line(process: subprocess.Popen[bytes], deadline: float) -> dict[str, Any]:
    """What the controller says first; {} when it says nothing in time, or ends."""
    lines: list[bytes] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: lines.append(process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
    reader.start()
    while reader.is_alive() and time.monotonic() < deadline:
        reader.join(max(0.0, deadline - time.monotonic()))
    answer: dict[str, Any] = json.loads(lines[0]) if lines and lines[0].strip() else {}
    return answer


def _tail(log: IO[bytes], lines: int = 20) -> str:
    log.seek(0)
    return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])


# -- the controller's side ------------------------------------------------------------


def read_order() -> dict[str, Any] | None:
    """The order from stdin; None when whoever was to give it is gone."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)  # unbuffered: the rest of stdin is the leash
        if not byte:
            return None
        line += byte
    order: dict[str, Any] = json.loads(line)
    return order


def settle(order: Mapping[str, Any]) -> None:
    """Make this process one of the cluster's: its environment, ``sys.path``, folder.

    What another host has not is left as it is.
    """
    os.environ.update(order["env"])
    if order["cwd"] and os.path.isdir(order["cwd"]):
        os.chdir(order["cwd"])
    sys.path[:0] = [entry for entry in order["path"] if entry not in sys.path]


def say(message: dict[str, Any]) -> None:
    """Answer the order."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()

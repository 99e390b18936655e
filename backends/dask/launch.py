"""Starting a Dask cluster of engines, and finding one that is there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import IO, Any

from pxcompat.error import BackendError
from pxcompat.protocol import Backend, LaunchSpec

__all__ = ["DaskProvider", "LaunchedCluster", "provider"]


class LaunchedCluster:
    """A controller that this process started (:class:`pxcompat.protocol.Launched`)."""

    def __init__(self, process: subprocess.Popen[bytes], info: dict[str, Any], log: IO[bytes]):
        self._process = process
        self._log = log
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
        return self._why()

    def _why(self) -> str:
        if self._stopped:
            return "it was stopped"
        return f"its controller exited with status {self._process.returncode}"

    def stop(self, *, timeout: float = 10) -> None:
        with self._lock:
            self._stopped = True
            if self._process.stdin and not self._process.stdin.closed:
                self._process.stdin.close()  # the supervisor takes that for our end
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stdout:
                self._process.stdout.close()
            self._log.close()
            # a controller that was killed could not
            shutil.rmtree(self.info["folder"], ignore_errors=True)


class DaskProvider:
    """The Dask backend's :class:`pxcompat.protocol.Provider`."""

    name = "dask"

    def launch(self, spec: LaunchSpec, *, timeout: float = 30) -> LaunchedCluster:
        if not hasattr(os, "fork"):
            raise BackendError(
                "local Dask engines need a system with fork (Linux, macOS); start the cluster "
                "on one and connect to it with its connection file"
            )
        order = {
            "n": spec.n,
            "host": spec.host,
            "cwd": spec.cwd,
            "path": spec.path,
            "env": spec.env,
            "log_dir": spec.log_dir,
            "options": spec.options,
        }
        log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the cluster
        process = subprocess.Popen(
            [sys.executable, "-m", "pxcompat.backends.dask.controller"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=spec.cwd,
            # a Ctrl-C in this terminal is for us, not for the cluster
            start_new_session=True,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
        import distributed  # noqa: F401  needed next; meanwhile the controller starts

        answer = _first_line(process, timeout)
        if "info" in answer:
            return LaunchedCluster(process, answer["info"], log)
        process.kill()
        process.wait()
        tail = _tail(log)
        log.close()
        reason = answer.get("error") or f"its controller did not answer within {timeout:g} s"
        raise BackendError(f"the Dask cluster did not start: {reason}\n{tail}".rstrip())

    def connect(self, info: Mapping[str, Any]) -> Backend:
        from .backend import DaskBackend

        return DaskBackend(info)

    def adopt(self, target: Any, **options: Any) -> Backend | None:
        if isinstance(target, str):
            if not target.startswith(
                ("tcp://", "tls://", "ucx://", "ws://", "wss://", "inproc://")
            ):
                return None
            return self.connect({"backend": "dask", "address": target, "adopt": True, **options})
        # asked without importing: who has one of these has imported distributed
        modules = {cls.__module__.partition(".")[0] for cls in type(target).__mro__}
        if not modules & {"distributed", "dask"} and not hasattr(target, "scheduler_address"):
            return None
        from .backend import DaskBackend

        return DaskBackend.around(target)


def _first_line(process: subprocess.Popen[bytes], timeout: float) -> dict[str, Any]:
    """What the controller says first; {} when it says nothing in time."""
    lines: list[bytes] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: lines.append(process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
    reader.start()
    deadline = time.monotonic() + timeout
    while reader.is_alive() and time.monotonic() < deadline:
        reader.join(max(0.0, deadline - time.monotonic()))
    answer: dict[str, Any] = json.loads(lines[0]) if lines and lines[0].strip() else {}
    return answer


def _tail(log: IO[bytes], lines: int = 20) -> str:
    log.seek(0)
    return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])


provider = DaskProvider()

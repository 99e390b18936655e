"""A process of its own that holds a cluster, so that it outlives whoever started it.

:func:`spawn` starts ``python -m pxcompat.cluster.daemon``, hands it a
:class:`~pxcompat.cluster.launcher.Plan` and returns once its cluster runs::

    starter ── stdin: the plan, one JSON object ──> daemon ── owns ──> controller, engines
            <─ stdout: {"ok": true} or {"error": ...} ──

SIGTERM or SIGINT ends the daemon and the cluster; when the cluster ends by itself the
daemon does too.  Either way the connection file goes.  What it has to say is in its log.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ..error import BackendError, KernelError
from .connection import AlreadyRunning, Connection, read
from .launcher import OwnController, Plan, launch

__all__ = ["main", "spawn"]

_log = logging.getLogger("pxcompat.cluster.daemon")

#: Seconds beyond a plan's own timeout, for the interpreter to start.
_MARGIN = 15


def spawn(plan: Plan, log_file: Path) -> Connection:
    """Start a daemon with a cluster.

    Raises
    ------
    AlreadyRunning
        When another process of the same profile and cluster_id was quicker.
    BackendError
        When the cluster does not start; shows the end of the daemon's log.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pxcompat.cluster.daemon"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(plan.to_dict()).encode())
        process.stdin.close()
        patience = plan.timeout + _MARGIN
        ready, _, _ = select.select([process.stdout], [], [], patience)
        line = process.stdout.readline() if ready else b""
        if not ready:
            _end_all(process, signal.SIGKILL)
    except BaseException:
        # nobody is left who waits for this cluster
        _end_all(process, signal.SIGTERM)
        raise
    finally:
        process.stdout.close()
        # the process we know is only the daemon's parent, so that nobody need wait for that
        process.wait()
    answer = json.loads(line) if line.endswith(b"\n") else {}
    if answer.get("ok"):
        return read(plan.path)
    if "running" in answer:
        raise AlreadyRunning(answer["running"])
    if "refused" in answer:
        raise BackendError(answer["refused"])
    reason = answer.get("error") or (
        "its process ended" if ready else f"it was not ready within {patience:g} s"
    )
    raise BackendError(f"The cluster did not start: {reason}\n{_tail(log_file)}".rstrip())


def _end_all(process: subprocess.Popen[bytes], signum: signal.Signals) -> None:
    """Signal the daemon, which has left its parent but not its process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signum)


def _tail(log_file: Path, lines: int = 20) -> str:
    text = "\n".join(log_file.read_text(errors="replace").splitlines()[-lines:])
    return f"The end of {log_file}:\n{text}" if text else ""


def main() -> None:
    """Hold the cluster that stdin describes."""
    plan = Plan.from_dict(json.load(sys.stdin))
    if os.fork():
        os._exit(0)
    # Our own processes get the log as stdout, and the pipe stays with us.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [%(name)s] %(message)s")
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _end)

    controller: OwnController | None = None
    try:
        try:
            controller = launch(plan, _log, dedicated=True)
        except AlreadyRunning as exc:
            print(json.dumps({"running": str(exc)}), file=answer)
            return
        except KernelError as exc:  # which says it all
            _log.error("%s", exc)
            print(json.dumps({"refused": str(exc)}), file=answer)
            return
        except Exception as exc:
            print(json.dumps({"error": f"{type(exc).__name__}: {exc}"}), file=answer)
            raise
        print(json.dumps({"ok": True}), file=answer)
        answer.close()
        _log.info("Cluster %r runs at %s", plan.cluster_id, controller.connection.address)
        controller.ended.wait()  # in which, unlike in waitpid, a signal's exception is raised
    finally:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, signal.SIG_IGN)
        if controller is not None:
            controller.stop()
            _log.info("Cluster %r stopped", plan.cluster_id)


def _end(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


if __name__ == "__main__":
    main()

"""The process that holds a Ray cluster which pxcompat started.

It starts Ray, or connects to the Ray whose address it was given, and owns the registry
actor, which owns the engines.  All of it ends with its owner (see ``controlled``), by
SIGTERM, or when a client asks for it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import Future
from typing import Any

import psutil

from ..controlled import read_order, remove, say, settle
from . import session
from .later import Later
from .order import registry_order

#: seconds for the Ray of somebody else to answer
CONNECT_TIMEOUT = 10

__all__ = ["main"]

#: seconds for the registry to end the engines
PARTING = 3
#: seconds for Ray's processes to end by themselves, before they are killed
GRACE = 5
#: what the main thread is told: the cluster is to end; nobody has said so yet; the engines are
#: there; the dashboard is, or never will be
END, ASK, UP, SERVED = b"x?us"


class _Controller:
    def __init__(self, order: dict[str, Any]) -> None:
        self.ray = session.import_ray()  # before there is anything to clean up
        self.order = order
        self.options: dict[str, Any] = order["options"]
        self.address = self.options.get("address")
        self.folder: str = order["folder"]
        self.logs = "" if self.address else order.get("log_dir") or self.folder
        self.registry: Any = None
        #: what of Ray is to start once the engines are there
        self.later: Later | None = None
        self.detached = False
        self.wake, self.end = os.pipe()

    def run(self) -> None:
        try:
            if self.logs:
                os.makedirs(self.logs, mode=0o700, exist_ok=True)
            info = self._start()
            say({"info": info})
            self._watch()
        finally:
            self._stop()

    def _start(self) -> dict[str, Any]:
        if self.address:
            info = {
                "address": self.address,
                "namespace": os.path.basename(self.folder),
            }
            connection = session.join(info, CONNECT_TIMEOUT)
            address, dashboard = connection.address, connection.dashboard
            token = None
        else:
            self._keep_temporary_files()
            threading.Thread(target=_load, name="pxcompat-load", daemon=True).start()
            token = session.user_token()
            context, self.later = session.start_head(
                self.order["host"], self.folder, token, self.options.get("init", {})
            )
            address = context.address_info["address"]
            dashboard = f"http://{context.dashboard_url}" if context.dashboard_url else ""
            info = {"address": address, "namespace": "pxcompat"}
        from . import registry

        self.detached = self.order["lasting"]
        self.registry = registry.create(
            registry_order(
                self.options,
                self.order,
                info["namespace"],
                self.logs,
                own=not self.address,
                folder=self.folder,
            ),
            detached=self.detached,
        )
        n, first = self.order["n"], self.order["first"]
        keys = self.ray.get(self.registry.start_engines.remote(n + first))
        if self.later is not None:
            self.registry.settled.remote().future().add_done_callback(lambda _: self._say(UP))
        return {
            "backend": "ray",
            **info,
            "first": keys[n:],
            "dashboard": dashboard,
            "token": token,
            "pid": os.getpid(),
            "logs": self.logs,
        }

    def _keep_temporary_files(self) -> None:
        """Have Ray's processes, which leave theirs behind when they are killed, keep them in the
        cluster's folder; those of engines are the user's."""
        self.order["env"].setdefault("TMPDIR", tempfile.gettempdir())
        os.environ["TMPDIR"] = os.path.join(self.folder, "tmp")
        os.mkdir(os.environ["TMPDIR"], 0o700)

    def _watch(self) -> None:
        """Until the owner, Ray, or somebody's word ends the cluster."""
        signal.signal(signal.SIGTERM, lambda *_: self._say(END))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._ask_registry()
        while True:
            ready, _, _ = select.select([0, self.wake], [], [])
            if 0 in ready and not os.read(0, 4096):
                return
            for said in os.read(self.wake, 4096) if self.wake in ready else b"":
                if said == END:
                    return
                if said == ASK:
                    self._ask_registry()
                elif self.later is not None and said == UP:
                    self.later.start(lambda: self._say(SERVED))
                elif self.later is not None and said == SERVED:
                    self.registry.serve.remote(self.later.url, self.later.why)

    def _say(self, what: int) -> None:
        """Have the main thread hear; others in Ray when it is shut down end the process."""
        os.write(self.end, bytes([what]))

    def _ask_registry(self) -> None:
        """Have it say when the cluster is to end, or that we should ask again."""

        def answered(call: Future[bool]) -> None:
            self._say(END if call.exception() is not None or call.result() else ASK)

        self.registry.ended.remote().future().add_done_callback(answered)

    def _stop(self) -> None:
        ray = self.ray
        _adopt_orphans()
        if self.later is not None:
            self.later.end()
        children = psutil.Process().children(recursive=True)
        with contextlib.suppress(Exception):
            if self.registry is not None:
                ray.get(self.registry.stop.remote(), timeout=PARTING)
                if self.address:  # somebody else's Ray goes on, without our actors
                    ray.kill(self.registry)
        if ray.is_initialized():
            ray.shutdown()
        deadline = time.monotonic() + GRACE
        _, alive = psutil.wait_procs(children, max(0, deadline - time.monotonic()))
        # and those that Ray started while it was being shut down
        left = {*alive, *psutil.Process().children(recursive=True)}
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1)
        remove(self.folder)


def _adopt_orphans() -> None:
    """Have processes whose parent ends become children of this one, where they can (Linux)."""
    if sys.platform == "linux":
        import ctypes

        PR_SET_CHILD_SUBREAPER = 36
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def _load() -> None:
    """Load, while Ray's processes start, what is needed when they have."""
    from . import registry  # noqa: F401


def main() -> None:
    """Run the controller that stdin orders."""
    order = read_order()
    if order is None:
        return
    settle(order)
    faulthandler.enable()
    # what Ray prints is for the log; the answer is alone on stdout
    answer = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(answer, "w", buffering=1)
    try:
        _Controller(order).run()
    except BaseException as error:
        traceback.print_exc()
        say({"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)
    finally:
        gc.freeze()  # or the interpreter, as it ends, would look through all that Ray has loaded


if __name__ == "__main__":
    main()

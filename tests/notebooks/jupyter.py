"""A Jupyter kernel, and what it says, by the cell that it says it of."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

#: seconds for anything to happen that a test waits for
PATIENCE = 90

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Cell:
    """A cell under way or done: its messages, in order."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.idle = False
        self.reply: dict[str, Any] | None = None

    def contents(self, kind: str) -> list[dict[str, Any]]:
        """The contents of its messages of a kind."""
        return [m["content"] for m in self.messages if m["msg_type"] == kind]

    def stream(self, name: str) -> str:
        """What it printed itself."""
        parts = [c["text"] for c in self.contents("stream") if c["name"] == name]
        return _ANSI.sub("", "".join(parts))

    def shown(self) -> list[dict[str, Any]]:
        """The displays and results, each as it is in the end."""
        displays: list[dict[str, Any]] = []
        by_id: dict[str, dict[str, Any]] = {}
        for message in self.messages:
            content = message["content"]
            display_id = content.get("transient", {}).get("display_id")
            if message["msg_type"] == "update_display_data":
                by_id[display_id]["data"] = content["data"]
            elif message["msg_type"] in ("display_data", "execute_result"):
                displays.append({"data": content["data"]})
                if display_id:
                    by_id[display_id] = displays[-1]
        return displays

    def texts(self) -> list[str]:
        """The displays and results as text."""
        return [_ANSI.sub("", d["data"].get("text/plain", "")) for d in self.shown()]

    def all_text(self) -> str:
        """Everything that can be read beneath the cell."""
        errors = ["\n".join(c["traceback"]) for c in self.contents("error")]
        parts = [self.stream("stdout"), self.stream("stderr"), *self.texts(), *errors]
        return _ANSI.sub("", "\n".join(parts))


class Notebook:
    """A notebook's kernel: cells are run one after another, or left running."""

    def __init__(self, name: str, folder: Path, env: dict[str, str]) -> None:
        self._specs = KernelSpecManager(kernel_dirs=[str(folder / "share/jupyter/kernels")])
        self._manager = KernelManager(
            kernel_name=name, kernel_spec_manager=self._specs, transport="ipc", ip=f"{folder}/k"
        )
        self._manager.start_kernel(cwd=str(folder), env={**os.environ, **env})
        self._client = self._manager.blocking_client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=PATIENCE)
        self._cells: dict[str, Cell] = {}
        #: what widgets have said, whatever cell they are of
        self.widgets: list[dict[str, Any]] = []

    def start(self, code: str) -> Cell:
        """Send a cell."""
        cell = self._cells[self._client.execute(code, allow_stdin=False)] = Cell()
        return cell

    def wait(self, condition: Callable[[], Any]) -> None:
        """Take the kernel's messages until a condition holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"still not so: {condition}"
            try:
                message = self._client.get_iopub_msg(timeout=0.1)
            except Empty:
                continue
            if message["msg_type"].startswith("comm_"):
                self.widgets.append(message)
            cell = self._cells.get(message["parent_header"].get("msg_id"))
            if cell is None:
                continue
            if message["msg_type"] == "status":
                cell.idle = message["content"]["execution_state"] == "idle"
            else:
                cell.messages.append(message)

    def run(self, code: str) -> Cell:
        """Run a cell to its end."""
        cell = self.start(code)
        self.wait(lambda: cell.idle)
        return cell

    def interrupt(self) -> None:
        """Press the square button."""
        self._manager.interrupt_kernel()

    def tell_widget(self, comm_id: str, data: dict[str, Any]) -> None:
        """Say something to a widget, as the browser does when somebody moves it."""
        content = {"comm_id": comm_id, "data": data}
        message = self._client.session.msg("comm_msg", content)
        self._client.shell_channel.send(message)

    def close(self) -> None:
        """End the kernel, and its engines with it."""
        self._client.stop_channels()
        self._manager.shutdown_kernel()


def install_kernel(python: str, folder: Path, *options: str) -> str:
    """Install a kernel with ``pxcompat kernel install``; what the command printed."""
    command = [python, "-m", "pxcompat.app", "kernel", "install", "--prefix", str(folder)]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    return done.stdout


#: interpreters to test with, each of an environment with pxcompat: of another IPython, say
PYTHONS = os.environ.get("PXCOMPAT_TEST_PYTHONS", sys.executable).split(os.pathsep)
BACKENDS = os.environ.get("PXCOMPAT_TEST_BACKEND", "dask").split(",")

"""Runs a notebook, unchanged, with the alias on (``pxcompat run FILE.ipynb``)."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
import psutil
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

from .display import ANSI
from .kernel import ARGV, DISPLAY_NAME
from .transcript import IMAGES, Transcript

__all__ = ["NotFit", "read", "run"]

#: seconds that an interrupted cell, and then the kernel with its engines, has to end by itself
GRACE = 10.0

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
OUTPUTS = {"stream", "display_data", "update_display_data", "clear_output"}


class NotFit(ValueError):
    """A file is not a notebook that can be run here; one line says why."""


def read(path: Path) -> nbformat.NotebookNode:
    """A notebook of any format, upgraded to the present one.

    Raises
    ------
    NotFit
        When it is not a notebook, or not one in Python.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise NotFit(f"{path} is not a notebook: it is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise NotFit(f"{path} is not a notebook: it is not JSON ({error})") from None
    if not isinstance(content, dict) or "nbformat" not in content:
        raise NotFit(f"{path} is not a notebook: it has no nbformat")
    try:
        with warnings.catch_warnings():
            # of missing cell ids, which the upgrade adds
            warnings.simplefilter("ignore")
            notebook: nbformat.NotebookNode = nbformat.reads(json.dumps(content), as_version=4)
            nbformat.validate(notebook)
    except Exception as error:
        # nbformat raises whatever its code for that version runs into
        raise NotFit(f"{path} is not a valid notebook: {str(error).splitlines()[0]}") from None
    metadata = notebook.metadata
    language = metadata.get("kernelspec", {}).get("language") or metadata.get(
        "language_info", {}
    ).get("name", "python")
    if language.lower() not in ("python", "ipython"):
        raise NotFit(f"{path} is a notebook in {language}, not in Python")
    return notebook


def run(
    path: Path, notebook: nbformat.NotebookNode, output: Path, *, show: bool, allow_errors: bool
) -> int:
    """Execute a notebook in a kernel of its own, and write it with its outputs.

    Parameters
    ----------
    path : Path
        Where the notebook is; its folder is the kernel's working directory.
    notebook : NotebookNode
        Gets its new outputs in place.
    output : Path
        The executed notebook, also when a cell fails.  Plots are written beside it, too, as files
        in a folder ``<stem>_files``.
    show : bool
        Whether text outputs are copied to the terminal as they come.
    allow_errors : bool
        Whether to go on after a cell that fails.

    Returns
    -------
    int
        Exit code: 0; 1 after a failed cell; 128 + n when signal n ended it.

    Raises
    ------
    OSError
        When the executed notebook or a plot cannot be written.
    """
    return asyncio.run(_Run(path, notebook, output, show=show, allow_errors=allow_errors).run())


class _KernelManager(AsyncKernelManager):
    """Starts :mod:`pxcompat.kernel` with this interpreter, whatever kernels are installed.

    Its sockets are files in a folder that only this user can enter.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(
            transport="ipc",
            ip=f"{folder}/kernel",
            connection_file=f"{folder}/kernel.json",
            shutdown_wait_time=GRACE,
        )

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(argv=ARGV, display_name=DISPLAY_NAME, language="python")


class _Client(NotebookClient):
    """Says what a cell's output is as it comes, also when it comes while another cell runs."""

    on_output: Callable[[nbformat.NotebookNode, str | None], None]
    on_update: Callable[[dict[str, Any], str], None]

    def keep_late_output(self, channels: Any) -> None:
        """From now on, output for a cell that has ended goes beneath that cell.

        nbclient looks at messages for the running cell alone.
        """
        ended: dict[str, tuple[nbformat.NotebookNode, int]] = {}
        receive = channels.iopub_channel.get_msg

        async def get_msg(timeout: float | None = None) -> Any:
            while True:
                message = await receive(timeout=timeout)
                cell = ended.get(message["parent_header"].get("msg_id"))
                if cell is None or message["msg_type"] not in OUTPUTS:
                    return message
                self.process_message(message, *cell)

        def executed(
            cell: nbformat.NotebookNode, cell_index: int, execute_reply: dict[str, Any]
        ) -> None:
            ended[execute_reply["parent_header"]["msg_id"]] = cell, cell_index

        channels.iopub_channel.get_msg = get_msg
        self.on_cell_executed = executed

    def output(self, outs: Any, msg: Any, display_id: Any, cell_index: int) -> Any:
        said = super().output(outs, msg, display_id, cell_index)
        if said is not None:
            self.on_output(said, display_id)
        return said

    def process_message(self, msg: Any, cell: nbformat.NotebookNode, cell_index: int) -> Any:
        if msg["msg_type"] == "update_display_data":
            content = msg["content"]
            self.on_update(content["data"], content["transient"]["display_id"])
        return super().process_message(msg, cell, cell_index)


class _Run:
    """One run of one notebook."""

    def __init__(
        self,
        path: Path,
        notebook: nbformat.NotebookNode,
        output: Path,
        *,
        show: bool,
        allow_errors: bool,
    ) -> None:
        self.path = path
        self.notebook = notebook
        self.output = output
        self.plots = output.with_name(f"{output.stem}_files")
        self.transcript = Transcript() if show else None
        self.allow_errors = allow_errors
        self.manager: _KernelManager
        self.executing = False
        self.error_shown = False
        self.error: dict[str, Any] | None = None
        self.failed = 0
        self.drawn = 0
        self.stopped_by: signal.Signals | None = None

    async def run(self) -> int:
        for stale in self.plots.glob("cell-*"):
            stale.unlink()
        with self._signals_stop(), TemporaryDirectory(prefix="pxcompat-") as folder:
            self.manager = _KernelManager(folder)
            try:
                await self._run_cells()
            except (asyncio.CancelledError, DeadKernelError):
                # nbclient turns one into the other
                if self.stopped_by is None:
                    self.failed += 1
                    _say("The kernel died; the cells after this one were not run.")
            finally:
                try:
                    self._write()
                finally:
                    await self._end_kernel()
        if self.stopped_by is not None:
            _say(f"Stopped by {self.stopped_by.name}.")
            return 128 + self.stopped_by
        return 1 if self.failed and not self.allow_errors else 0

    # -- cells -----------------------------------------------------------------

    async def _run_cells(self) -> None:
        cells = [(i, c) for i, c in enumerate(self.notebook.cells) if c.cell_type == "code"]
        for _, cell in cells:
            cell.update(outputs=[], execution_count=None)
        await self.manager.start_kernel(cwd=str(self.path.parent.resolve()))
        # errors are ours to judge: nbclient would end with an exception at the first
        client = _Client(
            self.notebook,
            km=self.manager,
            timeout=None,
            allow_errors=True,
            on_cell_error=self._on_error,
        )
        client.on_output = self._on_output
        client.on_update = self._on_update
        channels = await client.async_start_new_kernel_client()
        client.keep_late_output(channels)
        try:
            for number, (index, cell) in enumerate(cells, 1):
                if sys.stderr.isatty():
                    first = (cell.source.strip().splitlines() or [""])[0]
                    _say(f"[{number}/{len(cells)}] {first[:80]}")
                if not await self._run_cell(client, index, cell, f"{number} of {len(cells)}"):
                    break
                self._save_plots(cell, number)
            client.set_widgets_metadata()
        finally:
            channels.stop_channels()

    async def _run_cell(
        self, client: _Client, index: int, cell: nbformat.NotebookNode, which: str
    ) -> bool:
        """Whether to go on with the next cell."""
        self.error, self.error_shown = None, False
        self.executing = True
        try:
            await client.async_execute_cell(cell, index)
        finally:
            self.executing = False
            if self.transcript is not None:
                self.transcript.end_of_cell()
        if self.stopped_by is not None:
            return False
        if self.error is None or "raises-exception" in cell.metadata.get("tags", ()):
            return True
        self.failed += 1
        if not self.error_shown:
            _show_error(self.error)
        _say(f"Cell {which} failed: {self.error['ename']}: {self.error['evalue']}")
        return self.allow_errors

    def _on_error(
        self, cell: nbformat.NotebookNode, cell_index: int, execute_reply: dict[str, Any]
    ) -> None:
        self.error = execute_reply["content"]

    def _on_output(self, output: nbformat.NotebookNode, display_id: str | None) -> None:
        if output.output_type == "error":
            self.error_shown = True
            _show_error(output)
        elif self.transcript is None:
            return
        elif output.output_type == "stream":
            self.transcript.stream(output.name, output.text)
        else:
            self.transcript.display(output.data, display_id)

    def _on_update(self, data: dict[str, Any], display_id: str) -> None:
        if self.transcript is not None:
            self.transcript.display(data, display_id)

    # -- files -----------------------------------------------------------------

    def _save_plots(self, cell: nbformat.NotebookNode, number: int) -> None:
        images = [
            (kind, output.data[kind])
            for output in cell.outputs
            for kind in IMAGES.keys() & output.get("data", {}).keys()
        ]
        for count, (kind, data) in enumerate(images, 1):
            suffix = f"-{count}" if len(images) > 1 else ""
            file = self.plots / f"cell-{number:02}{suffix}.{IMAGES[kind]}"
            self.plots.mkdir(exist_ok=True)
            file.write_bytes(data.encode() if kind.endswith("xml") else base64.b64decode(data))
            self.drawn += 1
            if self.transcript is not None:
                print(f"[plot: {file}]", flush=True)

    def _write(self) -> None:
        # never half a notebook, and never none where there was one
        partial = self.output.with_name(f".{self.output.name}.{os.getpid()}")
        nbformat.write(self.notebook, partial)
        partial.replace(self.output)
        plots = f", {self.drawn} plot(s) in {self.plots}" if self.drawn else ""
        _say(f"Executed notebook: {self.output}{plots}")

    # -- the end ---------------------------------------------------------------

    @contextmanager
    def _signals_stop(self) -> Iterator[None]:
        """Ends cell and kernel, with what they started, before a signal ends this process."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        pending: list[Any] = []

        def stop(signum: signal.Signals) -> None:
            if self.stopped_by is None and self.executing:
                # as in a browser: engines are interrupted, too, and the cell's output is kept
                pending.append(asyncio.ensure_future(self.manager.interrupt_kernel()))
                pending.append(loop.call_later(GRACE, lambda: self.executing and task.cancel()))
            else:
                task.cancel()
            self.stopped_by = signum

        for signum in SIGNALS:
            loop.add_signal_handler(signum, stop, signum)
        try:
            yield
        finally:
            for signum in SIGNALS:
                loop.remove_signal_handler(signum)

    async def _end_kernel(self) -> None:
        if not self.manager.has_kernel:
            return
        assert isinstance(self.manager.provisioner, LocalProvisioner)
        family = _family(self.manager.provisioner.pid)
        with suppress(asyncio.CancelledError):
            await self.manager.shutdown_kernel()
        if self.stopped_by is not None:
            for end in (psutil.Process.terminate, psutil.Process.kill):
                for process in family:
                    with suppress(psutil.NoSuchProcess):
                        end(process)
                _, family = psutil.wait_procs(family, timeout=3)
        if self.manager.has_kernel:
            await self.manager.shutdown_kernel(now=True)


def _family(pid: int | None) -> list[psutil.Process]:
    """A kernel and all that it started and that still belongs to it."""
    try:
        kernel = psutil.Process(pid)
        return [*kernel.children(recursive=True), kernel]
    except psutil.NoSuchProcess:
        return []


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _show_error(content: dict[str, Any]) -> None:
    text = "\n".join(content["traceback"]) or f"{content['ename']}: {content['evalue']}"
    _say(text if sys.stderr.isatty() else ANSI.sub("", text))

"""The engine's IPython shell: a persistent namespace, magics, displays, tracebacks."""

from __future__ import annotations

import atexit
import builtins
import getpass
import glob
import os
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.error import StdinNotImplementedError
from IPython.core.inputtransformer2 import TransformerManager
from IPython.core.interactiveshell import InteractiveShell
from traitlets import Instance
from traitlets.config import Config

from .failure import end_with_users
from .interrupts import uninterrupted
from .output import plain

if TYPE_CHECKING:
    from .output import RequestOutput

__all__ = ["EngineShell", "make_shell"]

#: cells that are remembered as Python, and the characters that one may have
CELLS, CELL_LIMIT = 64, 4096


class EngineDisplayHook(DisplayHook):
    """Makes the value of a cell's last expression an ``execute_result`` of its request."""

    def __call__(self, result: Any = None) -> None:
        self.check_for_underscore()
        if result is None or self.quiet():
            return
        data, metadata = self.compute_format_data(result)
        self.update_user_ns(result)
        self.fill_exec_result(result)
        if data:
            count = self.prompt_count
            content = {"data": data, "metadata": metadata, "execution_count": count}
            shell: Any = self.shell
            shell.emit("execute_result", content)
        self.log_output(data)


class EngineDisplayPublisher(DisplayPublisher):
    """Makes displays events of the running request."""

    def publish(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        source: Any = None,
        *,
        transient: dict[str, Any] | None = None,
        update: bool = False,
        **kwargs: Any,
    ) -> None:
        content: dict[str, Any] = {"data": data, "metadata": metadata or {}}
        if transient:
            content["transient"] = transient
        self.shell.emit("update_display_data" if update else "display_data", content)

    def clear_output(self, wait: bool = False) -> None:
        self.shell.emit("clear_output", {"wait": wait})


class EngineTransformerManager(TransformerManager):
    """Makes Python of cells, and remembers the latest: a loop sends the same line every time."""

    def __init__(self) -> None:
        super().__init__()
        self._known: OrderedDict[str, str] = OrderedDict()
        self._own = self._transforms()

    def _transforms(self) -> tuple[list[Any], ...]:
        return (
            list(self.cleanup_transforms),
            list(self.line_transforms),
            list(self.token_transformers),
        )

    def transform_cell(self, cell: str) -> str:
        if len(cell) > CELL_LIMIT or self._transforms() != self._own:
            # the user's transforms may do anything, and the same cell become another each time
            return super().transform_cell(cell)
        known = self._known.get(cell)
        if known is None:
            known = self._known[cell] = super().transform_cell(cell)
            if len(self._known) > CELLS:
                self._known.popitem(last=False)
        return known


class EngineShell(InteractiveShell):
    """An IPython shell whose output belongs to the request that runs."""

    input_transformer_manager: Any = Instance(EngineTransformerManager, ())
    #: the output of the running request; None between requests
    output: RequestOutput | None = None
    #: the last error and the lines of its traceback, as long as nobody has been shown it
    _last_traceback: tuple[BaseException, list[str]] | None = None
    #: whether the shell's namespace is this process's ``__main__``
    is_main = True

    def init_sys_modules(self) -> None:
        if self.is_main:
            super().init_sys_modules()

    def init_displayhook(self) -> None:
        self.displayhook_class = EngineDisplayHook
        super().init_displayhook()

    def init_display_pub(self) -> None:
        self.display_pub_class = EngineDisplayPublisher
        super().init_display_pub()

    def init_magics(self) -> None:
        super().init_magics()
        # kernels have it; here it is loaded when it is used
        self.magics_manager.register_lazy("store", "IPython.extensions.storemagic")

    def emit(self, type: str, content: dict[str, Any]) -> None:
        """Make an event of the running request's output; without a request, log it."""
        if self.output is not None:
            self.output.emit(type, plain(content))
        else:
            sys.stdout.write(str(content.get("data", {}).get("text/plain", content)) + "\n")

    def should_run_async(
        self, raw_cell: str, *, transformed_cell: str | None = None, **kwargs: Any
    ) -> bool:
        """Whether a cell awaits something; IPython compiles it to find out, a second time."""
        cell = transformed_cell
        if cell is not None and "await" not in cell and "async" not in cell:
            return False
        asynchronous: bool = super().should_run_async(
            raw_cell, transformed_cell=transformed_cell, **kwargs
        )
        return asynchronous

    def close(self) -> None:
        """Let go of the user's objects, in a process that goes on."""
        # IPython has it called at the process's end, and so keeps the shell until then
        atexit.unregister(self.atexit_operations)
        self.atexit_operations()

    @contextmanager
    def _tee(self, channel: str) -> Iterator[None]:
        # IPython 9 would keep all that cells print, as long as the engine lives
        yield

    def _get_exc_info(self, exc_tuple: Any = None) -> tuple[Any, Any, Any]:
        etype, value, tb = super()._get_exc_info(exc_tuple)
        end_with_users(tb)
        return etype, value, tb

    def showtraceback(
        self,
        exc_tuple: Any = None,
        filename: str | None = None,
        tb_offset: int | None = None,
        exception_only: bool = False,
        running_compiled_code: bool = False,
    ) -> None:
        """Format and show what was raised; an interrupt is for code of the user's, not for this,
        of which it would show hundreds of lines."""
        try:
            with uninterrupted():
                super().showtraceback(
                    exc_tuple, filename, tb_offset, exception_only, running_compiled_code
                )
        except KeyboardInterrupt as interrupt:
            # a cell that has ended by an error needs no interrupt; one that goes on does
            if not running_compiled_code:
                raise interrupt from None

    def _showtraceback(self, etype: Any, evalue: Any, stb: list[str]) -> None:
        # IPython's hook for frontends: a failed cell's travels in the reply
        self.print_traceback()
        self._last_traceback = evalue, list(stb)

    def take_traceback(self, error: BaseException) -> list[str] | None:
        """The lines of the last traceback, to be shown by the caller, if it is this error's."""
        if self._last_traceback is None or self._last_traceback[0] is not error:
            return None
        _, lines = self._last_traceback
        self._last_traceback = None
        return lines

    def print_traceback(self) -> None:
        """Print the last traceback, which is no failed cell's: of a script that ``%run`` ran, say,
        or of the ``repr`` of a result."""
        if self._last_traceback is not None:
            _, lines = self._last_traceback
            self._last_traceback = None
            sys.stderr.write("\n".join(lines) + "\n")

    def ask_exit(self) -> None:
        """``exit`` in a cell: say how an engine is ended."""
        sys.stderr.write("To end this engine, use client.shutdown(targets=...)\n")

    def enable_gui(self, gui: str | None = None) -> None:
        """Engines have no event loop to integrate with a GUI."""
        if gui not in (None, "inline", "agg"):
            sys.stderr.write(
                f"GUI {gui!r} is of no use on an engine; plots need %matplotlib inline\n"
            )


def _no_input(prompt: str = "", stream: Any = None) -> str:
    raise StdinNotImplementedError(
        "input() is not supported on engines: pass the value as an argument or push it"
    )


def run_startup_files(shell: EngineShell, profile_dir: str | None) -> None:
    """Run what IPython runs when it starts: ``PYTHONSTARTUP``, and the profile's ``startup``
    files in the order of their names.  A failing file is reported, and the next one run."""
    files = []
    if os.environ.get("PYTHONSTARTUP"):
        files.append(os.environ["PYTHONSTARTUP"])
    if profile_dir:
        folder = os.path.join(profile_dir, "startup")
        found = glob.glob(os.path.join(folder, "*.py")) + glob.glob(os.path.join(folder, "*.ipy"))
        files += sorted(found)
    for file in files:
        if file.endswith(".ipy"):
            shell.safe_execfile_ipy(file)
        else:
            shell.safe_execfile(file, shell.user_ns)
        shell.print_traceback()


def make_shell(*, is_main: bool) -> EngineShell:
    """A shell with a namespace of its own.

    Parameters
    ----------
    is_main : bool
        Whether it is the shell of its process: its namespace is then ``__main__``, it is
        IPython's singleton, modules of the working directory can be imported, and ``input``
        and ``getpass`` are replaced for everybody.
    """
    config = Config()
    config.HistoryManager.enabled = False
    config.HistoryManager.hist_file = ":memory:"
    config.InteractiveShell.colors = "Neutral" if _has_capital_colours() else "neutral"
    module = types.ModuleType("__main__", "The engine's interactive namespace")
    if is_main:
        shell = EngineShell.instance(config=config, user_module=module)
        # get_ipython() and subclasses' instance() find it under any class
        InteractiveShell._instance = shell  # type: ignore[assignment]
    else:
        from .shared import SharedShell

        # a class of its own: another engine's is not its singleton
        shell = type("EngineShell", (SharedShell,), {})(config=config, user_module=module)
    if is_main:
        if "" not in sys.path:
            sys.path.insert(0, "")  # what is in the folder that `%cd` goes to can be imported
        builtins.input = _no_input  # type: ignore[assignment]
        getpass.getpass = _no_input
    return shell


def _has_capital_colours() -> bool:
    import IPython

    return IPython.version_info[0] < 9

"""The set of magics on one view."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, magics_class, no_var_expand

from ..progress import noninteractive
from .arguments import cell_parser, config_parser, documents, parse, result_parser, targets_of
from .autopx import AutoPx
from .execution import OUTPUT_TIMEOUT, Presentation, collect

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from ..asyncresult import AsyncResult
    from ..view import DirectView

__all__ = ["ParallelMagics"]

_CELL = cell_parser()
_CONFIG = config_parser()
_RESULT = result_parser()


@magics_class
class ParallelMagics(Magics):
    """``%px``, ``%%px``, ``%pxresult``, ``%pxconfig``, ``%autopx`` and ``%%pxlocal`` on one view
    (ipyparallel.client.magics.ParallelMagics).

    Parameters
    ----------
    shell : InteractiveShell
    view : DirectView or None
        Where they run.  None: nowhere yet, and they say so.
    suffix : str
        Ends every name, for further sets on other views: ``"_even"`` makes ``%px_even``.

    Attributes
    ----------
    last_result : AsyncResult or None
        Of the last ``%px``.
    verbose : bool
        Say at each execution where it runs.
    stream_output : bool
        Show output as it comes, when blocking.  True, unless the environment sets
        ``PXCOMPAT_NONINTERACTIVE`` or ``IPP_NONINTERACTIVE``.
    progress_after_seconds : float
        When to show a progress bar, when blocking; negative for never.
    signal_on_interrupt : int, str or None
        Signal for the engines on a KeyboardInterrupt; None leaves it to the caller.
    """

    shell: InteractiveShell
    suffix: str

    def __init__(self, shell: InteractiveShell, view: DirectView | None, suffix: str = "") -> None:
        # IPython lists every Magics it meets, for %config; our predecessor there would
        # keep its view, and so its client, alive
        shell.configurables[:] = [
            other
            for other in shell.configurables
            if not (isinstance(other, ParallelMagics) and other.suffix == suffix)
        ]
        super().__init__(shell=shell)
        self.view = view
        self.suffix = suffix
        self.last_result: AsyncResult | None = None
        self.verbose = False
        self.stream_output = not noninteractive()
        self.progress_after_seconds = 2.0
        self.signal_on_interrupt: int | str | None = "SIGINT"

        line: dict[str, Callable[..., Any]] = {
            "px": self.px,
            "pxresult": self.result,
            "pxconfig": self.pxconfig,
            "autopx": self.autopx,
        }
        cell: dict[str, Callable[..., Any]] = {"px": self.cell_px}
        # notebooks define a %%pxlocal of their own, ipyparallel having none: theirs stays
        if not _is_users(shell, "line", "pxlocal" + suffix):
            line["pxlocal"] = self.pxlocal
        if not _is_users(shell, "cell", "pxlocal" + suffix):
            cell["pxlocal"] = self.cell_pxlocal
        if not suffix:
            line["result"] = self.result
        self.magics = {
            kind: {name + suffix: method for name, method in table.items()}
            for kind, table in (("line", line), ("cell", cell))
        }
        self._autopx: AutoPx | None = None

    def _active(self) -> DirectView:
        if self.view is None:
            raise UsageError(
                "the parallel magics have no engines yet: make a client first,"
                " `import ipyparallel as ipp; rc = ipp.Client()`, or activate() a view"
            )
        return self.view

    # -- the magics ------------------------------------------------------------

    @no_var_expand
    def px(self, line: str = "") -> AsyncResult | None:
        """Run one line of code on the engines.

        All of the line is code, sent as it stands: ``%%px`` takes options.

        Examples
        --------
        ::

            In [1]: %px import os

            In [2]: %px print(os.getpid())
            [stdout:0] 1234
            [stdout:1] 1235
        """
        return self.parallel_execute(line)

    @documents(_CELL)
    def cell_px(self, line: str = "", cell: str = "") -> AsyncResult | None:
        """Run the cell on the engines.

        Options left out are as ``%pxconfig`` set them.

        Examples
        --------
        ::

            In [1]: %%px --targets 0:2
               ...: import os
               ...: os.getpid()
            Out[0:1]: 1234
            Out[1:1]: 1235

            In [2]: %%px --noblock --out pids
               ...: os.getpid()
            Out[2]: <AsyncResult(%px): pending>
        """
        options = parse(_CELL, line)
        view = self._active()
        targets = None
        if options.targets:
            targets = targets_of(options.targets, view.client.ids, self.shell)
        return self.parallel_execute(
            cell,
            block=options.block,
            groupby=options.groupby,
            save_name=options.save_name,
            stream_output=options.stream,
            progress_after=options.progress_after_seconds,
            signal_on_interrupt=options.signal_on_interrupt,
            targets=targets,
            verbose=options.set_verbose,
            local=options.local,
        )

    @no_var_expand
    def pxlocal(self, line: str = "") -> AsyncResult | None:
        """Run one line of code on the engines and here; see ``%%pxlocal``."""
        return self.parallel_execute(line, local=True)

    def cell_pxlocal(self, line: str = "", cell: str = "") -> AsyncResult | None:
        """Run the cell on the engines and here: ``%%px --local``, whose options it takes.

        What a cell defines, classes above all, is then known on both sides.
        """
        return self.cell_px(f"--local {line}", cell)

    @documents(_RESULT)
    def result(self, line: str = "") -> None:
        """Wait for the last ``%px`` and show its output.

        Examples
        --------
        ::

            In [1]: %pxconfig --noblock

            In [2]: %px os.getpid()
            Out[2]: <AsyncResult(%px): pending>

            In [3]: %pxresult
            Out[0:2]: 1234
            Out[1:2]: 1235
        """
        options = parse(_RESULT, line)
        result = self.last_result
        if result is None:
            raise UsageError(
                f"%pxresult{self.suffix} shows the last %px{self.suffix}; none has run"
            )
        if options.save_name:
            self.shell.user_ns[options.save_name] = result
            return
        result.wait()
        result.wait_for_output(OUTPUT_TIMEOUT)
        result.display_outputs(options.groupby)
        result.get()

    @documents(_CONFIG)
    def pxconfig(self, line: str = "") -> None:
        """Set where and how ``%px`` runs from now on."""
        options = parse(_CONFIG, line)
        view = self._active()
        if options.targets:
            view.targets = targets_of(options.targets, view.client.ids, self.shell)
        if options.block is not None:
            view.block = options.block
        if options.set_verbose is not None:
            self.verbose = options.set_verbose
        if options.stream is not None:
            self.stream_output = options.stream
        if options.progress_after_seconds is not None:
            self.progress_after_seconds = options.progress_after_seconds
        if options.signal_on_interrupt is not None:
            self.signal_on_interrupt = options.signal_on_interrupt

    def autopx(self, line: str = "") -> None:
        """Begin, or end, running every cell on the engines.

        They run where, and as, ``%pxconfig`` says.  This set's own magics, such as
        ``%pxresult``, still run here.

        Examples
        --------
        ::

            In [1]: %autopx
            %autopx enabled

            In [2]: import os; print(os.getpid())
            [stdout:0] 1234
            [stdout:1] 1235

            In [3]: %autopx
            %autopx disabled
        """
        if self._autopx is not None and self._autopx.enabled:
            self._autopx.disable()
            return
        self._active()
        family = {name + self.suffix for name in ("px", "pxlocal", "pxresult", "pxconfig")}
        self._autopx = AutoPx(
            self.shell, "autopx" + self.suffix, family, execute=self.parallel_execute
        )
        self._autopx.enable()

    # -- running ---------------------------------------------------------------

    def parallel_execute(
        self,
        cell: str,
        block: bool | None = None,
        groupby: str = "type",
        save_name: str | None = None,
        stream_output: bool | None = None,
        progress_after: float | None = None,
        signal_on_interrupt: int | str | None = None,
        *,
        targets: Any = None,
        verbose: bool | None = None,
        local: bool = False,
    ) -> AsyncResult | None:
        """Run code on the view's engines: what ``%px`` and ``%%px`` do.

        Parameters
        ----------
        cell : str
            The code, in IPython's syntax.
        block, groupby, save_name, stream_output, progress_after, signal_on_interrupt
            As the options of ``%%px``; None for what the view or ``%pxconfig`` says.
        targets, verbose
            Likewise.
        local : bool
            Run the code here too, while the engines run it.

        Returns
        -------
        AsyncResult or None
            None when blocking: output and errors have been shown.
        """
        view = self._active()
        block = _first(block, view.block)
        targets = _first(targets, view.targets)
        if _first(verbose, self.verbose):
            kind = "Parallel" if block else "Async parallel"
            print(f"{kind} execution on engine(s): {_targets_text(targets)}")

        result = view.execute(cell, silent=False, targets=targets, block=False)
        result._fname = "%px"
        self.last_result = result
        if save_name:
            self.shell.user_ns[save_name] = result

        interrupted = False
        if local:
            here = self.shell.run_cell(cell)
            interrupted = isinstance(here.error_in_exec, KeyboardInterrupt)
        if not block:
            return result
        how = Presentation(
            # what the engines said while the cell ran here is late for streaming
            stream=_first(stream_output, self.stream_output and not local),
            groupby=groupby,
            progress_after=_first(progress_after, self.progress_after_seconds),
            signal_on_interrupt=_first(signal_on_interrupt, self.signal_on_interrupt),
        )
        collect(view.client, result, how, interrupted=interrupted)
        return None


def _first(value: Any, default: Any) -> Any:
    return default if value is None else value


def _targets_text(targets: Any) -> str:
    if isinstance(targets, list) and len(targets) > 10:
        return f"[{', '.join(map(str, targets[:4]))}, ..., {', '.join(map(str, targets[-4:]))}]"
    return str(targets)


def _is_users(shell: InteractiveShell, kind: str, name: str) -> bool:
    """Whether a magic of that name exists and is not one of ours."""
    magic = shell.magics_manager.magics[kind].get(name)
    return magic is not None and not isinstance(getattr(magic, "__self__", None), ParallelMagics)

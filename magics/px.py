"""The set of magics on one view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, magics_class, no_var_expand
from IPython.display import display

from ..engine.interrupts import held_from_the_first_on
from ..engine.names import describe
from ..progress import noninteractive
from ..streaming import OutputStreamer
from .arguments import (
    cell_parser,
    config_parser,
    documents,
    parse,
    result_parser,
    targets_of,
    who_parser,
)
from .autopx import AutoPx
from .execution import OUTPUT_TIMEOUT, Presentation, collect, raise_error, wait
from .watch import Watch
from .who import Names

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from ..asyncresult import AsyncResult
    from ..view import DirectView

__all__ = ["NO_LAST_RESULT", "ParallelMagics"]

NO_LAST_RESULT = "%pxresult{suffix} shows the last %px{suffix}; none has run"

_CELL = cell_parser()
_CONFIG = config_parser()
_RESULT = result_parser()
_WHO = who_parser()


@magics_class
class ParallelMagics(Magics):
    """``%px``, ``%%px``, ``%pxresult``, ``%pxconfig``, ``%autopx``, ``%%pxlocal`` and ``%pxwho``
    on one view (ipyparallel.client.magics.ParallelMagics).

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
    groupby : str
        How output that was not streamed is grouped.
    timeout : float
        Seconds after which engines still at work are interrupted; 0: never.
    interrupt_on_error : bool
        Interrupt the other engines when one fails.
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
        self.groupby = "type"
        self.timeout = 0.0
        self.interrupt_on_error = False

        line: dict[str, Callable[..., Any]] = {
            "px": self.px,
            "pxresult": self.result,
            "pxconfig": self.pxconfig,
            "autopx": self.autopx,
            "pxwho": self.pxwho,
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

            In [3]: %%px --push a,b --pull c --timeout 60 --interrupt-on-error
               ...: c = a + b

            In [4]: c
            Out[4]: [3, 3]
        """
        options = parse(_CELL, line)
        targets = self._targets_option(options.targets)
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
            push=options.push,
            pull=options.pull,
            timeout=options.timeout,
            interrupt_on_error=options.interrupt_on_error,
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
            raise UsageError(NO_LAST_RESULT.format(suffix=self.suffix))
        if options.save_name:
            self.shell.user_ns[options.save_name] = result
            return
        result.wait()
        result.wait_for_output(OUTPUT_TIMEOUT)
        groupby = _first(options.groupby, self.groupby)
        result.display_outputs(groupby)
        raise_error(result, folded=groupby == "folded")

    @documents(_CONFIG)
    def pxconfig(self, line: str = "") -> None:
        """Set where and how ``%px`` runs from now on."""
        options = parse(_CONFIG, line)
        view = self._active()
        if options.targets:
            view.targets = self._targets_option(options.targets)
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
        self.groupby = _first(options.groupby, self.groupby)
        self.timeout = _first(options.timeout, self.timeout)
        self.interrupt_on_error = _first(options.interrupt_on_error, self.interrupt_on_error)

    @documents(_WHO)
    def pxwho(self, line: str = "") -> None:
        """List the names on the engines: type, shape, bytes, and of small plain values the value.

        What is the same on all engines is one line; where engines differ, the lines are marked.

        Examples
        --------
        ::

            In [1]: %pxwho
               Name  Engines  Type                Shape  Bytes  Value
            ---------------------------------------------------------
               np    0-3      module                        72  numpy
            ≠  part  0-2      ndarray of float64  100      800
            ≠  part  3        ndarray of float64  64       512
        """
        options = parse(_WHO, line)
        view = self._active()
        targets = _first(self._targets_option(options.targets), view.targets)
        result = view.client.direct_view(targets).apply_async(describe, options.names)
        wait(result, self.progress_after_seconds)
        names = Names(result.get_dict(), options.names, differences=options.differences)
        display(names)

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
            self._disable_autopx()
        else:
            self._enable_autopx()

    # what libraries that begin and end it themselves call, as idr_torch does

    def _enable_autopx(self) -> None:
        if self._autopx is not None and self._autopx.enabled:
            return
        self._active()
        names = ("px", "pxlocal", "pxresult", "pxconfig", "pxwho")
        family = {name + self.suffix for name in names}
        self._autopx = AutoPx(
            self.shell, "autopx" + self.suffix, family, execute=self.parallel_execute
        )
        self._autopx.enable()

    def _disable_autopx(self) -> None:
        if self._autopx is not None:
            self._autopx.disable()

    # -- running ---------------------------------------------------------------

    def parallel_execute(
        self,
        cell: str,
        block: bool | None = None,
        groupby: str | None = None,
        save_name: str | None = None,
        stream_output: bool | None = None,
        progress_after: float | None = None,
        signal_on_interrupt: int | str | None = None,
        *,
        targets: Any = None,
        verbose: bool | None = None,
        local: bool = False,
        push: Sequence[str] | None = None,
        pull: Sequence[str] | None = None,
        timeout: float | None = None,
        interrupt_on_error: bool | None = None,
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
        push, pull : list of str, optional
            Names of the session that the engines get before, and names of the engines that
            the session gets afterwards.
        timeout, interrupt_on_error
            As the options of ``%%px``; None for what ``%pxconfig`` says.

        Returns
        -------
        AsyncResult or None
            None when blocking: output and errors have been shown.

        Raises
        ------
        UsageError
            When a name to push is not there.
        TimeoutError
            When blocking, and the engines have not finished in time.
        """
        view = self._active()
        block = _first(block, view.block)
        targets = _first(targets, view.targets)
        if _first(verbose, self.verbose):
            kind = "Parallel" if block else "Async parallel"
            print(f"{kind} execution on engine(s): {_targets_text(targets)}")

        if (push or pull) and not isinstance(targets, int):
            # the same engines for all of it
            targets = view.client._build_targets(targets)[1]
        values = self._pushed(push or ())
        pushed = view.push(values, targets=targets, block=False) if values else None

        # a Ctrl-C that comes once the cell was sent is for the engines: it is held off until
        # somebody is there to pass it on
        with held_from_the_first_on() as holding:
            result: AsyncResult = view.execute(cell, silent=False, targets=targets, block=False)
            result._fname = "%px"
            self.last_result = result
            if save_name:
                self.shell.user_ns[save_name] = result

            timeout = _first(timeout, self.timeout)
            interrupt = _first(interrupt_on_error, self.interrupt_on_error)
            signal = _first(signal_on_interrupt, self.signal_on_interrupt)
            watch = None
            if timeout or interrupt:
                watch = Watch(
                    view.client,
                    result,
                    _first(signal, "SIGINT"),
                    timeout=timeout,
                    on_error=interrupt,
                )

            interrupted = local and self._run_here(cell, holding, block)
            if not block:
                holding.close()
                if stream_output:
                    OutputStreamer(result._targeted()).show_until_done()
                for name in pull or ():
                    self.shell.user_ns[name] = view.pull(name, targets=targets, block=False)
                return result
            groupby = _first(groupby, self.groupby)
            # folded output is that of all engines, and what they said while the cell ran here is
            # late
            streamed = self.stream_output and not local and groupby != "folded"
            how = Presentation(
                stream=_first(stream_output, streamed),
                groupby=groupby,
                progress_after=_first(progress_after, self.progress_after_seconds),
                signal_on_interrupt=signal,
                timeout=timeout,
            )
            try:
                completed = collect(
                    view.client, result, how, holding, watch=watch, interrupted=interrupted
                )
            finally:
                if pushed is not None and pushed.ready():
                    pushed.get()  # that it failed explains what came after
        if completed:
            for name in pull or ():
                self.shell.user_ns[name] = view.pull(name, targets=targets, block=True)
        return None

    def _run_here(self, cell: str, holding: held_from_the_first_on, block: bool) -> bool:
        """Run a cell in this process; whether that was interrupted, when somebody waits."""
        try:
            holding.close()
        except KeyboardInterrupt:  # as it was sent
            if not block:
                raise
            return True
        return isinstance(self.shell.run_cell(cell).error_in_exec, KeyboardInterrupt)

    def _pushed(self, names: Sequence[str]) -> dict[str, Any]:
        """The values of names here."""
        values = self.shell.user_ns
        missing = [name for name in names if name not in values]
        if missing:
            raise UsageError(f"--push {','.join(names)}: there is no {missing[0]!r} here")
        return {name: values[name] for name in names}

    def _targets_option(self, text: str | None) -> Any:
        if not text:
            return None
        return targets_of(text, self._active().client.ids, self.shell)


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

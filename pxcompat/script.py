"""Runs a script, unchanged, with the alias on (``pxcompat run FILE.py`` and ``FILE.ipy``)."""

from __future__ import annotations

import runpy
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["run_ipython", "run_python"]


def run_python(path: Path, args: Sequence[str]) -> int:
    """Run a Python script as ``python path args`` would, in this process.

    Returns
    -------
    int
        1 after an exception, whose traceback was shown; else 0.

    Raises
    ------
    SystemExit, KeyboardInterrupt
        When the script does.
    """
    file = str(path)
    sys.argv = [file, *args]
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        runpy.run_path(file, run_name="__main__")
    except Exception as error:
        # to a user the script begins in the script
        error.__traceback__ = _from_file(error.__traceback__, file)
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


def _from_file(traceback: TracebackType | None, file: str) -> TracebackType | None:
    """The part of a traceback that begins in a file; none of it when that is nowhere."""
    while traceback is not None and traceback.tb_frame.f_code.co_filename != file:
        traceback = traceback.tb_next
    return traceback


def run_ipython(path: Path, args: Sequence[str]) -> int:
    """Run a script with IPython's syntax as ``ipython path args`` would, in this process.

    The user's IPython profile applies.

    Returns
    -------
    int
        1 after an exception, whose traceback was shown; else 0.

    Raises
    ------
    SystemExit
        When the script does.
    """
    from IPython.terminal.interactiveshell import TerminalInteractiveShell
    from IPython.terminal.ipapp import TerminalIPythonApp

    class Shell(TerminalInteractiveShell):
        def showtraceback(self, *args: Any, **kwargs: Any) -> None:
            # to leave is no error in a script
            if not isinstance(sys.exc_info()[1], SystemExit):
                super().showtraceback(*args, **kwargs)

    app = TerminalIPythonApp.instance(interactive_shell_class=Shell)
    options = ["--no-banner", "--HistoryManager.enabled=False"]
    if not sys.stdout.isatty():
        options.append("--colors=nocolor")
    app.initialize(options)
    shell = app.shell
    assert shell is not None
    sys.argv = [str(path), *args]
    sys.path.insert(0, str(path.parent.resolve()))
    shell.user_ns["__file__"] = str(path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "To exit: use")
        result = shell.run_cell(path.read_text(encoding="utf-8"), silent=True)
    if isinstance(result.error_in_exec, SystemExit):
        raise result.error_in_exec
    return 0 if result.success else 1

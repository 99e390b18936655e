"""An engine's shell in a process with other shells: what IPython keeps once a process, by thread.

``sys.displayhook``, the builtins that cells see and the shell that ``display()`` asks are one
of each in a process.  Engines that share theirs, with one another or with a notebook, would
get each other's values.
"""

from __future__ import annotations

import ast
import builtins
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from IPython.core.builtin_trap import BuiltinTrap
from IPython.core.compilerop import CachingCompiler
from IPython.core.display_functions import display
from IPython.core.display_trap import DisplayTrap
from IPython.core.interactiveshell import InteractiveShell

from . import engine_of_thread
from .shell import EngineShell

__all__ = ["SharedShell", "sharing"]

#: the builtin that a cell's last value is given to, instead of ``sys.displayhook``
SHOW = "__pxcompat_show__"


def _show(value: Any) -> None:
    engine = engine_of_thread()
    if engine is not None:
        engine.shell.displayhook(value)


class _Compiler(CachingCompiler):
    """Compiles an expression that is to be displayed to a call of our own builtin."""

    def __call__(self, source: Any, filename: str, symbol: str, **kwargs: Any) -> Any:
        if symbol == "single" and isinstance(source, ast.Interactive):
            body = [self._shown(node) for node in source.body]
            source, symbol = ast.Module(body, []), "exec"
        return super().__call__(source, filename, symbol, **kwargs)

    @staticmethod
    def _shown(node: ast.stmt) -> ast.stmt:
        if not isinstance(node, ast.Expr):
            return node
        call = ast.Call(ast.Name(SHOW, ast.Load()), [node.value], [])
        shown = ast.copy_location(ast.Expr(ast.copy_location(call, node.value)), node)
        return ast.fix_missing_locations(shown)


class _NoTrap(DisplayTrap):
    """Leaves ``sys.displayhook`` to whose it is."""

    def set(self) -> None:
        """Nothing to set."""

    def unset(self) -> None:
        """Nothing was set."""


class SharedShell(EngineShell):
    """The shell of an engine that does not have its process to itself."""

    is_main = False
    compiler_class = _Compiler

    def init_displayhook(self) -> None:
        super().init_displayhook()
        self.display_trap = _NoTrap(hook=self.displayhook)

    def init_builtins(self) -> None:
        # its namespace has get_ipython, exit and quit; see sharing for the rest
        self.builtin_trap = BuiltinTrap(shell=self)
        self.builtin_trap.auto_builtins = {}


class _ShellOfThread:
    """Stands for IPython's one shell of the process: on an engine's thread, the engine's."""

    def __init__(self, before: Any) -> None:
        self.before = before

    def __get__(self, instance: Any, owner: Any) -> Any:
        engine = engine_of_thread()
        return self.before if engine is None else engine.shell


class _Sharing:
    """While there are engines on threads of this process."""

    _ADDED = (("display", display), ("__IPYTHON__", True), (SHOW, _show))

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._shell: _ShellOfThread
        self._builtins: list[str] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._begin()
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._end()

    def _begin(self) -> None:
        before = InteractiveShell.__dict__.get("_instance")
        self._shell = _ShellOfThread(before)
        InteractiveShell._instance = self._shell  # type: ignore[assignment]
        self._builtins = [name for name, _ in self._ADDED if not hasattr(builtins, name)]
        for name, value in self._ADDED:
            if name in self._builtins:
                setattr(builtins, name, value)

    def _end(self) -> None:
        # a shell that was made or ended meanwhile stays so
        if InteractiveShell.__dict__.get("_instance") is self._shell:
            InteractiveShell._instance = self._shell.before
        for name in self._builtins:
            builtins.__dict__.pop(name, None)


#: for engines that share their process
sharing = _Sharing()

"""``%autopx``: a shell whose cells run on the engines."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import ExecutionResult, InteractiveShell

__all__ = ["AutoPx"]


class AutoPx:
    """Sends a shell's cells to the engines, from ``enable()`` to ``disable()``, once.

    It takes the place of ``shell.run_ast_nodes``, which every cell comes to, awaiting
    or not, once IPython has transformed and parsed it.

    Parameters
    ----------
    shell : InteractiveShell
    name : str
        The magic that ends it, which always runs here.
    family : collection of str
        Magics about the engines, which mean nothing on one: a cell that begins with one of
        them runs here.
    execute : callable
        ``execute(code)`` runs code on the engines, shows its output and raises its error.
    """

    def __init__(
        self,
        shell: InteractiveShell,
        name: str,
        family: Collection[str],
        execute: Callable[[str], object],
    ) -> None:
        self.shell = shell
        self.name = name
        self.family = family
        self.execute = execute
        self.enabled = False
        self._here = False

    def enable(self) -> None:
        """Begin; ends another one that the shell is under."""
        active = getattr(self.shell.run_ast_nodes, "__self__", None)
        if isinstance(active, AutoPx):
            active.disable()
        self._original = self.shell.run_ast_nodes
        self._hook = self.run_ast_nodes
        # restoring by deletion keeps the shell's own method visible to later patches
        self._shadowed = "run_ast_nodes" in vars(self.shell)
        setattr(self.shell, "run_ast_nodes", self._hook)  # noqa: B010 - mypy: a method
        self.enabled = True
        print(f"%{self.name} enabled")

    def disable(self) -> None:
        """End.  A patch made on top of ours stays, and finds us passing cells through."""
        if not self.enabled:
            return
        self.enabled = False
        if vars(self.shell).get("run_ast_nodes") is self._hook:
            if self._shadowed:
                setattr(self.shell, "run_ast_nodes", self._original)  # noqa: B010
            else:
                del self.shell.run_ast_nodes
        print(f"%{self.name} disabled")

    async def run_ast_nodes(
        self,
        nodelist: list[ast.stmt],
        cell_name: str,
        *,
        result: ExecutionResult | None = None,
        **options: Any,
    ) -> bool | None:
        """Stand in for the shell's method; True when something was raised."""

        async def run_here(nodes: list[ast.stmt]) -> bool | None:
            outer, self._here = self._here, True
            try:
                failed: bool | None = await self._original(
                    nodes, cell_name, result=result, **options
                )
                return failed
            finally:
                self._here = outer

        info = None if result is None else result.info
        # a cell run from within one that runs here (%%px --local) belongs here too
        if not self.enabled or self._here or result is None or info is None or not nodelist:
            return await run_here(nodelist)
        magics = [_magic(node) for node in nodelist]
        if magics[0] in self.family:
            return await run_here(nodelist)
        if self.name not in magics:
            return self._run_there(info.raw_cell, result)
        end = magics.index(self.name)
        if end and self._run_there(ast.unparse(ast.Module(nodelist[:end], [])), result):
            return True
        self.disable()
        rest = nodelist[end + 1 :]
        return await run_here(rest) if rest else False

    def _run_there(self, code: str, result: ExecutionResult) -> bool:
        try:
            self.execute(code)
        except (Exception, KeyboardInterrupt) as failure:
            result.error_in_exec = failure
            self.shell.showtraceback()
            return True
        return False


def _magic(node: ast.stmt) -> str | None:
    """The magic that a statement of a transformed cell calls: ``get_ipython().run_..._magic``."""
    match node:
        case ast.Expr(
            ast.Call(
                ast.Attribute(
                    ast.Call(ast.Name("get_ipython")), "run_line_magic" | "run_cell_magic"
                ),
                [ast.Constant(str(name)), *_],
            )
        ):
            return name
    return None

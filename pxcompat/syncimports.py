"""Importing modules here and on engines with one import statement."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .asyncresult import AsyncResult
    from .view import DirectView

__all__ = ["forward_imports"]


@contextmanager
def forward_imports(view: DirectView, *, quiet: bool) -> Iterator[None]:
    """Repeat on the view's engines what is imported in the body of the ``with``.

    Imports that those modules make in turn are not repeated.
    """
    import_here = builtins.__import__
    # this generator is run by contextlib's __enter__, which the ``with`` statement called
    body = sys._getframe(2)
    seen: set[tuple[str, tuple[str, ...]]] = set()
    results: list[AsyncResult] = []

    def import_everywhere(
        name: str,
        globals: Any = None,
        locals: Any = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        module = import_here(name, globals, locals, fromlist or (), level)
        statement = (name, tuple(fromlist or ()))
        # a relative import means nothing on an engine
        if sys._getframe(1) is body and level == 0 and statement not in seen:
            seen.add(statement)
            if not quiet:
                names = f"{','.join(fromlist)} from {name}" if fromlist else name
                print(f"importing {names} on engine(s)")
            results.append(view.apply_async(import_into_namespace, *statement))
        return module

    builtins.__import__ = import_everywhere
    try:
        yield
    finally:
        builtins.__import__ = import_here
    for result in results:
        # an ImportError on an engine is raised here
        result.get()


def import_into_namespace(name: str, fromlist: Sequence[str]) -> None:
    """Run on an engine: import a module, or names from it, into the namespace."""
    from .engine import namespace

    scope = namespace()
    module = __import__(name, fromlist=fromlist)
    if not fromlist:
        # the package, for ``import package.module``, as the statement would
        scope[name.partition(".")[0]] = module
    for key in _public(module) if "*" in fromlist else fromlist:
        try:
            scope[key] = getattr(module, key)
        except AttributeError:
            raise ImportError(f"cannot import name {key!r} from {name!r}", name=name) from None


def _public(module: Any) -> Sequence[str]:
    names: Sequence[str] = getattr(module, "__all__", None) or [
        key for key in vars(module) if not key.startswith("_")
    ]
    return names

"""``ipyparallel`` and ``IPython.parallel`` as names for pxcompat.

After :func:`enable`, an import of either name, or of a module below it, gives pxcompat's: with
ipyparallel installed or not, imported before or not.  Its files are never touched, and
:func:`disable` gives back what was there.

A module of ipyparallel's with one counterpart here is that counterpart, the same object, so
that classes are the same classes.  The rest (packages whose modules lie elsewhere here, or
modules that are several here) are facades: they hold nothing and look names up where they are
each time.  The one name a facade has of its own is the version: ``ipyparallel.__version__`` is
:data:`API_LEVEL`, since that is what code which asks wants to know.

This module is imported at the start of every interpreter of an environment where
``pxcompat enable`` was said, so it imports next to nothing.
"""

from __future__ import annotations

import sys
from _thread import RLock  # threading would take longer to import than all of this
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = ["API_LEVEL", "disable", "enable", "is_enabled"]

#: the ipyparallel release whose API this is
API_LEVEL = "9.2.0"

ROOTS = ("ipyparallel", "IPython.parallel")

#: module below either root -> the modules here that make it up
MODULES: dict[str, tuple[str, ...]] = {
    "": ("pxcompat",),
    "apps": (),
    "apps.ipclusterapp": ("pxcompat.cluster.staging", "pxcompat.cluster.app"),
    "apps.ipcontrollerapp": ("pxcompat.cluster.staging",),
    "apps.ipengineapp": ("pxcompat.cluster.staging",),
    "client": ("pxcompat.client",),
    "client._joblib": ("pxcompat.joblib",),
    "client.asyncresult": ("pxcompat.asyncresult",),
    "client.client": ("pxcompat.client",),
    "client.futures": ("pxcompat.futures",),
    "client.magics": ("pxcompat.magics",),
    "client.map": ("pxcompat.mapping",),
    "client.remotefunction": ("pxcompat.remotefunction",),
    "client.view": ("pxcompat.view", "pxcompat.lbview", "pxcompat.executor"),
    "cluster": ("pxcompat.cluster",),
    "cluster.app": ("pxcompat.cluster.app",),
    "cluster.cluster": ("pxcompat.cluster",),
    "controller": ("pxcompat.dependency",),
    "controller.dependency": ("pxcompat.dependency",),
    "datapub": ("pxcompat.engine.calls",),
    "engine": ("pxcompat.engine",),
    "engine.datapub": ("pxcompat.engine.calls",),
    "engine.log": ("pxcompat.engine.log",),
    "error": ("pxcompat.error",),
    "joblib": ("pxcompat.joblib",),
    "serialize": ("pxcompat.serialize",),
    "serialize.canning": ("pxcompat.serialize.canning",),
    "serialize.codeutil": ("pxcompat.serialize.codeutil",),
    "serialize.serialize": ("pxcompat.serialize.canning",),
    "util": ("pxcompat.util",),
}


#: ``python -m`` module below the first root -> what to run
COMMANDS = {"cluster.__main__": "pxcompat.cluster.app"}


def _children(key: str) -> list[str]:
    """The names right below a module of the table."""
    prefix = f"{key}." if key else ""
    below = (other[len(prefix) :] for other in MODULES if other.startswith(prefix) and other)
    return sorted(name for name in below if "." not in name)


def _split(fullname: str) -> tuple[str, str] | None:
    """``(root, key of the table)`` of a name that is ours to answer for, else None."""
    for root in ROOTS:
        if fullname == root:
            return root, ""
        if fullname.startswith(root) and fullname[len(root)] == ".":
            return root, fullname[len(root) + 1 :]
    return None


class Facade(ModuleType):
    """A module that finds its names in others."""

    def __init__(self, fullname: str, key: str) -> None:
        super().__init__(fullname, f"{fullname}, as pxcompat provides it.")
        self._children = _children(key)
        self._sources = MODULES[key]
        if not key:
            self.__version__ = API_LEVEL
            self.version_info = tuple(map(int, API_LEVEL.split(".")))

    def __getattr__(self, name: str) -> Any:
        if name in self._children:
            return _load(f"{self.__name__}.{name}")
        if name == "__all__":
            return sorted({name for source in self._sources for name in _public(source)})
        # what Python asks of any module must not import the sources of this one
        if name == "__file__" or not name.startswith("__"):
            for source in self._sources:
                try:
                    return getattr(import_module(source), name)
                except AttributeError:
                    continue
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        names = {name for source in self._sources for name in dir(import_module(source))}
        return sorted({*vars(self), *self._children, *names})

    def __reduce__(self) -> tuple[Any, ...]:
        # a function that uses ``ipp`` reaches engines where the alias is not on
        return _load, (self.__name__,)


def _public(module: str) -> list[str]:
    loaded = import_module(module)
    names: list[str] | None = getattr(loaded, "__all__", None)
    return [name for name in vars(loaded) if name[0] != "_"] if names is None else names


def _load(fullname: str) -> ModuleType:
    """An aliased module, whether or not the alias is on."""
    return import_module(fullname) if is_enabled() else _make(fullname)


def _make(fullname: str) -> ModuleType:
    split = _split(fullname)
    assert split is not None
    key = split[1]
    if len(MODULES[key]) == 1 and key and not _children(key):
        return import_module(MODULES[key][0])
    return Facade(fullname, key)


class _Loader:
    """Puts the module that a name stands for where the import system looks for it."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made = _make(spec.name)
        # None: an empty module, for the import system to write its attributes on.  On
        # a real module of ours it would overwrite the spec.
        return made if isinstance(made, Facade) else None

    def exec_module(self, module: ModuleType) -> None:
        if not isinstance(module, Facade):
            sys.modules[module.__name__] = _make(module.__name__)


class _CommandLoader:
    """For ``python -m ipyparallel.cluster``: code that runs the command of that name here."""

    def __init__(self, module: str) -> None:
        self._module = module

    def get_code(self, fullname: str) -> Any:
        # asked for its version under this name, it answers as ipyparallel's would
        run = (
            f"from {self._module} import PxCluster, main; PxCluster.version = {API_LEVEL!r}; main()"
        )
        return compile(run, fullname, "exec")

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(self.get_code(module.__name__), vars(module))


class _Finder:
    """Answers for the roots and all that is below them, before any other finder."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        split = _split(fullname)
        if split is None:
            return None
        root, key = split
        if key in COMMANDS:
            command: Any = _CommandLoader(COMMANDS[key])
            return ModuleSpec(fullname, command, origin="pxcompat")
        if key not in MODULES:
            parent = key.rpartition(".")[0]
            known = [f"{parent}.{name}" if parent else name for name in _children(parent)]
            offer = f" and has {', '.join(known)} there" if known else ""
            raise ModuleNotFoundError(
                f"No module named {fullname!r}: pxcompat stands in for {root}{offer}."
                " pxcompat.disable() gives an installed ipyparallel back.",
                name=fullname,
            )
        is_package = not key or bool(_children(key))
        return ModuleSpec(fullname, _Loader(), origin="pxcompat", is_package=is_package)  # type: ignore[arg-type]


_finder = _Finder()
_lock = RLock()
_replaced: dict[str, ModuleType] = {}


def _set_modules(modules: dict[str, ModuleType]) -> dict[str, ModuleType]:
    """Make these the loaded modules at and below the roots; returns those before."""
    before = {name: module for name, module in list(sys.modules.items()) if _split(name)}
    for name in before:
        del sys.modules[name]
    sys.modules.update(modules)
    for root in ROOTS:
        # ``from package import name`` asks the package first
        package, _, name = root.rpartition(".")
        if package in sys.modules:
            vars(sys.modules[package]).pop(name, None)
            if root in modules:
                setattr(sys.modules[package], name, modules[root])
    return before


def enable() -> None:
    """Make ``ipyparallel`` and ``IPython.parallel`` mean pxcompat in this process.

    Imports nothing: each module is loaded when it is asked for.  Modules of ipyparallel that
    are loaded already are set aside until :func:`disable`; names that code bound to them
    before keep them.  Does nothing when it is on.  Thread-safe.
    """
    with _lock:
        if _finder not in sys.meta_path:
            sys.meta_path.insert(0, _finder)
            _replaced.update(_set_modules({}))


def disable() -> None:
    """Undo :func:`enable`.  Names bound while it was on keep what they were bound to."""
    with _lock:
        if _finder in sys.meta_path:
            sys.meta_path.remove(_finder)
            _set_modules(_replaced)
            _replaced.clear()


def is_enabled() -> bool:
    """Whether the alias is on in this process."""
    return _finder in sys.meta_path

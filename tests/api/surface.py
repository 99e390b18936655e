"""What ipyparallel's public names are: a walk over the installed package.

Run as a script, since under its own name ipyparallel must be itself, and not pxcompat:
``python surface.py ipyparallel`` prints JSON, dotted name -> :class:`Name`.  The same
functions, given classes of pxcompat, say what is here (:mod:`.compare`).
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import pkgutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

#: special methods whose presence is part of what a class can do
PROTOCOLS = frozenset(
    f"__{name}__"
    for name in (
        *("call", "len", "iter", "next", "getitem", "setitem", "delitem", "contains", "await"),
        *("enter", "exit", "aenter", "aexit", "getattr", "dir"),
    )
)
#: programs, and the class that defines each one's command line
PROGRAMS = {
    "ipcluster": "cluster.app.IPCluster",
    "ipcontroller": "controller.app.IPController",
    "ipengine": "engine.app.IPEngine",
}


@dataclass
class Parameter:
    """One parameter of a callable."""

    name: str
    kind: str
    optional: bool = False
    default: str = ""


@dataclass
class Name:
    """One public name.

    Attributes
    ----------
    kind
        ``module``, ``class``, ``function``, ``constant``; of a class: ``method``,
        ``coroutine``, ``property``, ``attribute``, ``setting`` (a trait that configuration
        sets); of a program: ``subcommand``, ``flag``; of a magic: ``magic``, ``option``.
    parameters
        Of what can be called and has a signature.
    """

    kind: str
    parameters: list[Parameter] | None = None


def parameters(obj: Any) -> list[Parameter] | None:
    """The parameters of a callable; None where it does not say."""
    try:
        signature = inspect.signature(obj)
    except (TypeError, ValueError):
        return None
    return [
        Parameter(
            p.name,
            # nobody passes ``_View__ipp_f`` by name
            "POSITIONAL_ONLY" if _is_hidden(p) else p.kind.name,
            p.default is not p.empty,
            "" if p.default is p.empty else repr(p.default),
        )
        for p in signature.parameters.values()
    ]


def _is_hidden(p: inspect.Parameter) -> bool:
    return p.name.startswith("_") and p.kind is p.POSITIONAL_OR_KEYWORD


@functools.cache
def members(cls: type, package: str) -> dict[str, Name]:
    """The public members of a class that it has from ``package``."""
    found: dict[str, Name] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.partition(".")[0] != package or "._" in base.__module__:
            continue
        for name, value in vars(base).items():
            if is_public(name) or name in PROTOCOLS:
                found[name] = _member(cls, name, value)
        for name in sorted(assigned(base)) if _initialises(cls, base) else ():
            found.setdefault(name, Name("attribute"))
        for name in vars(base).get("__annotations__", ()):
            if is_public(name):
                found.setdefault(name, Name("attribute"))
    if any(base.__name__ == "AsyncFirst" for base in cls.__mro__):
        # its __getattr__ makes a blocking twin of each coroutine
        for name, member in list(found.items()):
            if member.kind == "coroutine" and is_public(name):
                found[f"{name}_sync"] = Name("method", member.parameters)
    return found


def _initialises(cls: type, base: type) -> bool:
    """Whether the ``__init__`` of a base runs, for all that can be read."""
    for between in cls.__mro__[: cls.__mro__.index(base)]:
        if "__init__" in vars(between):
            return "super()" in inspect.getsource(between.__init__)  # type: ignore[misc]
    return True


def _member(cls: type, name: str, value: Any) -> Name:
    if isinstance(value, (property, functools.cached_property)):
        return Name("property")
    traits = getattr(cls, "class_traits", dict)()
    if name in traits:
        return Name("setting" if traits[name].metadata.get("config") else "attribute")
    if isinstance(value, (classmethod, staticmethod)) or inspect.isroutine(value):
        bound = getattr(cls, name)
        given = parameters(bound)
        if given and not isinstance(value, (classmethod, staticmethod)):
            given = given[1:]  # self
        awaits = any(map(inspect.iscoroutinefunction, (bound, inspect.unwrap(bound))))
        kind = "coroutine" if awaits else "method"
        return Name(kind, given)
    return Name("attribute")


@functools.cache
def assigned(cls: type) -> set[str]:
    """Public attributes that the methods of a class give its instances."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return set()
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
        and is_public(node.attr)
    }


def is_public(name: str) -> bool:
    return not name.startswith("_")


# -- ipyparallel ---------------------------------------------------------------------------------


def walk(package: str) -> Iterator[tuple[str, Name]]:
    """Every public name of a package, as ``module.name`` and ``module.Class.member``."""
    root = importlib.import_module(package)
    modules = [info.name for info in pkgutil.walk_packages(root.__path__, f"{package}.")]
    for fullname in [package, *sorted(modules)]:
        path = fullname.split(".")[1:]
        if any(part.startswith("_") or part == "tests" for part in path):
            continue
        if path:
            yield ".".join(path), Name("module")
        try:
            module = importlib.import_module(fullname)
        except ImportError:  # of a driver that is not installed: it is known by its name alone
            continue
        yield from _names(module, package, ".".join(path))


def _names(module: ModuleType, package: str, prefix: str) -> Iterator[tuple[str, Name]]:
    exported = set(getattr(module, "__all__", ()))
    is_package = hasattr(module, "__path__")
    constants = _constants(module)
    for name, value in sorted(vars(module).items()):
        if not is_public(name) or isinstance(value, ModuleType) or value is None:
            continue
        home = getattr(value, "__module__", None) or ""
        own = home == module.__name__
        foreign = home.partition(".")[0] != package
        if "._" in home and not foreign:
            continue
        # what a package's __init__ takes from the modules below it, it offers; a module
        # imports for itself, and so does a package from elsewhere unless it says the name
        offered = is_package and home.startswith(f"{module.__name__}.")
        if not (own or name in exported or name in constants or offered):
            continue
        dotted = f"{prefix}.{name}" if prefix else name
        if inspect.isclass(value):
            yield dotted, Name("class", parameters(value))
            if own:
                for member, described in members(value, package).items():
                    yield f"{dotted}.{member}", described
        elif not callable(value):
            yield dotted, Name("constant")
        elif not foreign:
            yield dotted, Name("function", parameters(value))


def _constants(module: ModuleType) -> set[str]:
    """Names that a module's text binds to values, and those a package takes from others."""
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, SyntaxError):
        return set()
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names.update(t.id for t in node.targets if isinstance(t, ast.Name))
        elif isinstance(node, ast.ImportFrom) and hasattr(module, "__path__"):
            names.update(alias.asname or alias.name for alias in node.names)
    return names


def programs(package: str) -> Iterator[tuple[str, Name]]:
    """The commands, their subcommands and flags, as ``ipcluster start --daemonize``."""
    for program, where in PROGRAMS.items():
        module, _, cls = where.rpartition(".")
        app = getattr(importlib.import_module(f"{package}.{module}"), cls)
        yield program, Name("program")
        yield from _flags(program, app)
        for name, (sub, _) in app().subcommands.items():
            yield f"{program} {name}", Name("subcommand")
            if isinstance(sub, str):
                where, _, cls = sub.rpartition(".")
                sub = getattr(importlib.import_module(where), cls)
            yield from _flags(f"{program} {name}", sub)


def _flags(program: str, cls: Any) -> Iterator[tuple[str, Name]]:
    app = cls()
    for table in (app.flags, app.aliases):
        for names in table:
            for name in (names,) if isinstance(names, str) else names:
                dashes = "-" if len(name) == 1 else "--"
                yield f"{program} {dashes}{name}", Name("flag")


def magics(package: str) -> Iterator[tuple[str, Name]]:
    """The magics and their options, as ``%%px --targets``."""
    from IPython.core.interactiveshell import InteractiveShell

    module = importlib.import_module(f"{package}.client.magics")
    shell = InteractiveShell.instance()
    registered = module.ParallelMagics(shell, None)
    for kind, marker in (("line", "%"), ("cell", "%%")):
        for name, function in registered.magics[kind].items():
            yield f"{marker}{name}", Name("magic")
            parser = getattr(function, "parser", None)
            for action in getattr(parser, "_actions", ()):
                for spelling in action.option_strings:
                    if action.dest != "help":
                        yield f"{marker}{name} {spelling}", Name("option")


def main(package: str) -> None:
    found = {**dict(walk(package)), **dict(programs(package)), **dict(magics(package))}
    json.dump({name: asdict(described) for name, described in found.items()}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])

"""pxcompat held against ipyparallel's public names: what is here, and what a call would notice.

:func:`compare` gives one :class:`Finding` for each name.  ``absent.toml`` is the table of those
that are not here as they are there.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pxcompat import alias
from pxcompat.cluster.app import PxCluster
from pxcompat.magics import arguments

from . import surface
from .surface import Name, Parameter

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent

#: ipyparallel's programs -> what takes their place, for their flags
PROGRAMS = {"ipcontroller": "start", "ipengine": "engines"}

_PARSERS = {
    "px": None,
    "autopx": None,
    "pxresult": arguments.result_parser,
    "result": arguments.result_parser,
    "pxconfig": arguments.config_parser,
    "%px": arguments.cell_parser,
}


@dataclass(frozen=True)
class Exemption:
    """A row of the table.

    Attributes
    ----------
    kind
        ``absent``, for good; ``changed``, as no working call notices; ``pending``, to come.
    names
        Patterns.
    instead
        What to use, where the names are absent.
    """

    kind: str
    names: tuple[str, ...]
    reason: str
    instead: str = ""

    def covers(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.names)


@dataclass(frozen=True)
class Finding:
    """One of ipyparallel's names, and how it is here.

    Attributes
    ----------
    problems
        What somebody who uses it would notice; empty when there is nothing.
    exemption
        The row of the table that is about it.
    """

    name: str
    theirs: Name
    problems: tuple[str, ...] = ()
    exemption: Exemption | None = None


@functools.cache
def theirs() -> dict[str, Name]:
    """The public names of the installed ipyparallel, from a process where it is itself."""
    command = [sys.executable, "-W", "ignore", str(HERE / "surface.py"), "ipyparallel"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"the walk over ipyparallel failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return {name: _name(entry) for name, entry in found.items()}


def _name(entry: dict[str, Any]) -> Name:
    given = entry["parameters"]
    return Name(entry["kind"], None if given is None else [Parameter(**p) for p in given])


@functools.cache
def exemptions() -> tuple[Exemption, ...]:
    """The table."""
    table = tomllib.loads((HERE / "absent.toml").read_text())
    return tuple(
        Exemption(kind, tuple(row["names"]), row["reason"], row.get("instead", ""))
        for kind, rows in table.items()
        for row in rows
    )


@functools.cache
def compare() -> tuple[Finding, ...]:
    """Every public name of ipyparallel's."""
    return tuple(_find(name, described) for name, described in theirs().items())


def unused() -> list[str]:
    """Patterns of the table that match no name which is missing or different."""
    named = [f.name for f in compare() if f.problems]
    return [
        pattern
        for row in exemptions()
        for pattern in row.names
        if not any(fnmatchcase(name, pattern) for name in named)
    ]


def _find(name: str, described: Name) -> Finding:
    problems = tuple(dict.fromkeys(_problems(name, described)))
    rows = (row for row in exemptions() if problems and row.covers(name))
    return Finding(name, described, problems, next(rows, None))


def _problems(name: str, described: Name) -> Iterable[str]:
    match described.kind:
        case "program" | "subcommand" | "flag":
            return () if _has_command(name) else ("missing",)
        case "magic" | "option":
            return () if _has_magic(name) else ("missing",)
        case "module":
            return () if name in alias.MODULES else ("missing",)
    module, *rest = split(name)
    if module not in alias.MODULES or not rest:
        return ("missing",)
    owner: Any = alias._make(f"ipyparallel.{module}".rstrip("."))
    if len(rest) == 2:
        owner = getattr(owner, rest[0], None)
        if owner is None:
            return ("missing",)
        return _member_problems(owner, rest[1], described)
    if not hasattr(owner, rest[0]):
        return ("missing",)
    return _object_problems(getattr(owner, rest[0]), described)


def split(name: str) -> list[str]:
    """``[module, name]`` or ``[module, class, member]``."""
    modules = {other for other, found in theirs().items() if found.kind == "module"}
    parts = name.split(".")
    for length in range(len(parts) - 1, -1, -1):
        if ".".join(parts[:length]) in modules or not length:
            return [".".join(parts[:length]), *parts[length:]]
    raise AssertionError("unreachable")


def _object_problems(ours: Any, described: Name) -> Iterator[str]:
    if described.kind == "class" and not inspect.isclass(ours):
        yield "not a class"
    elif described.kind in ("class", "function"):
        if not callable(ours):
            yield "cannot be called"
        yield from call_problems(described.parameters, surface.parameters(ours))


def _member_problems(cls: Any, name: str, described: Name) -> Iterator[str]:
    found = surface.members(cls, "pxcompat").get(name)
    if found is None and hasattr(cls, name):
        found = surface._member(cls, name, inspect.getattr_static(cls, name))
    if found is None:
        yield "missing"
        return
    callables = ("method", "coroutine")
    if described.kind == "coroutine" and found.kind != "coroutine":
        yield "not a coroutine"
    elif described.kind == "method" and found.kind == "coroutine":
        yield "a coroutine"
    elif described.kind not in callables and found.kind in callables:
        yield "a method"
    elif described.kind == "method" and found.kind not in callables:
        value = getattr(cls, name, None)
        if not callable(value):
            yield "not a method"
    elif described.kind == "setting" and found.kind != "setting":
        yield "not configurable"
    if described.kind in callables:
        yield from call_problems(described.parameters, found.parameters)


POSITIONAL = ("POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD")
NAMED = ("POSITIONAL_OR_KEYWORD", "KEYWORD_ONLY")


def call_problems(theirs: list[Parameter] | None, ours: list[Parameter] | None) -> Iterator[str]:
    """Why a call that is valid there would not be, or would mean something else, here."""
    if theirs is None or ours is None:
        return
    by_name = {p.name: p for p in ours if p.kind in NAMED}
    positions = [p for p in ours if p.kind in POSITIONAL]
    kinds = {p.kind for p in ours}
    known = set()
    for index, p in enumerate(q for q in theirs if q.kind in POSITIONAL):
        at = positions[index] if index < len(positions) else None
        known.add(at.name if at else p.name)
        if at is None:
            if "VAR_POSITIONAL" not in kinds:
                yield f"no {p.name} by position"
        elif p.kind == "POSITIONAL_OR_KEYWORD" and at.name != p.name:
            yield f"{at.name} in the place of {p.name}"
        elif p.kind == "POSITIONAL_ONLY" and p.optional and not at.optional:
            yield f"{p.name} is required"
    for p in theirs:
        if p.kind in NAMED:
            known.add(p.name)
            if p.name not in by_name:
                if "VAR_KEYWORD" not in kinds:
                    yield f"no {p.name} by name"
            elif p.optional and not by_name[p.name].optional:
                yield f"{p.name} is required"
            elif p.optional and not _same_default(by_name[p.name].default, p.default):
                yield f"{p.name}={by_name[p.name].default}, not {p.default}"
        elif p.kind == "VAR_POSITIONAL" and p.kind not in kinds:
            yield f"no *{p.name}"
        elif p.kind == "VAR_KEYWORD" and p.kind not in kinds:
            yield f"no **{p.name}"
    for p in ours:
        # those that there are there, too, have been looked at
        if not p.optional and not p.kind.startswith("VAR_") and p.name not in known:
            yield f"{p.name} is required"


def _same_default(ours: str, theirs: str) -> bool:
    empty = ("()", "[]", "{}", "None")  # nothing given
    return ours == theirs or (ours in empty and theirs in empty)


# -- programs and magics -------------------------------------------------------------------------


@functools.cache
def _commands() -> dict[str, set[str]]:
    """Flags of each subcommand of pxcluster."""
    return {
        name: {flag.rpartition(" ")[2] for flag, _ in surface._flags(name, cls)}
        for name, (cls, _) in PxCluster().subcommands.items()
    }


def _has_command(name: str) -> bool:
    program, *rest = name.split(" ")
    if program in PROGRAMS:
        rest = [PROGRAMS[program], *rest]
    if not rest:
        return True
    flags = _commands().get(rest[0])
    return flags is not None and (len(rest) == 1 or rest[1] in flags)


@functools.cache
def _magics() -> set[str]:
    from IPython.core.interactiveshell import InteractiveShell

    from pxcompat.magics import ParallelMagics

    shell = InteractiveShell()
    found = ParallelMagics(shell, None).magics
    return {f"{'%' * n}{name}" for n, kind in ((1, "line"), (2, "cell")) for name in found[kind]}


def _has_magic(name: str) -> bool:
    magic, _, option = name.partition(" ")
    if magic not in _magics():
        return False
    parser = _PARSERS.get(magic[1:])
    if not option:
        return True
    made: argparse.ArgumentParser | None = None if parser is None else parser()
    return made is not None and any(option in a.option_strings for a in made._actions)

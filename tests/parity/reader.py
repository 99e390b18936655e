"""Reads the snippet files: cells of notebook code, each with a name.

A file of ``snippets/`` is a list of cells::

    # %% push-key-is-an-expression
    dv.push({"d": {}}, block=True)
    dv.push({"d['k']": 3}, block=True)
    dv["d"]

Every cell starts with no names on the engines, and with ``rc`` (three engines), ``dv = rc[:]``,
``e0`` and ``e1`` (one engine each) and ``lv`` (load-balanced). Its outcome is what it printed, and
the repr of its last expression, or the exception that ended it. A cell whose header ends in
``[fresh]`` has a cluster of its own, so that it may end engines.

Where pxcompat means to do better, the cell says so, and both outcomes are written out after
a reason; ``...`` stands for any text::

    # better: the error names what would have supplied the name
    # ipyparallel: RemoteError NameError: name 'x' is not defined
    # pxcompat: RemoteError NameError: name 'x' is not defined...push...
"""

from __future__ import annotations

import doctest
import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "snippets"

_HEADER = re.compile(r"^# %% (?P<name>[\w-]+)(?P<fresh> \[fresh\])?$")
_EXPECTED = re.compile(r"^# (?P<side>better|ipyparallel|pxcompat): (?P<text>.*)$")


@dataclass
class Snippet:
    """One cell; ``expected`` has ``ipyparallel`` and ``pxcompat`` where the two are to differ."""

    name: str
    code: str
    fresh: bool
    expected: dict[str, str]


def load(folder: Path = FOLDER) -> dict[str, Snippet]:
    """Every snippet, by name, in the order of the files."""
    snippets: dict[str, Snippet] = {}
    for path in sorted(folder.glob("*.ipy")):
        for cell in re.split(r"^(?=# %% )", path.read_text(), flags=re.MULTILINE)[1:]:
            header, *lines = cell.splitlines()
            match = _HEADER.match(header)
            if match is None or match["name"] in snippets:
                raise ValueError(f"{path.name}: bad or repeated header: {header}")
            said = [_EXPECTED.match(line) for line in lines]
            expected = {m["side"]: m["text"] for m in said if m}
            if expected and set(expected) != {"better", "ipyparallel", "pxcompat"}:
                raise ValueError(f"{path.name}: {match['name']}: needs a reason and two outcomes")
            code = "\n".join(line for line, m in zip(lines, said, strict=True) if not m)
            name = match["name"]
            snippets[name] = Snippet(name, code.strip() + "\n", bool(match["fresh"]), expected)
    return snippets


def matches(want: str, got: str) -> bool:
    """Whether an outcome is the one written out, in which ``...`` stands for anything."""
    return doctest.OutputChecker().check_output(want + "\n", got + "\n", doctest.ELLIPSIS)

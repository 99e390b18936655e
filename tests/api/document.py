"""``docs/compat.md``, from the walk over ipyparallel: ``python -m tests.api.document``."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pxcompat import alias

from .compare import Exemption, Finding, compare, exemptions, split

PATH = Path(__file__).parents[2] / "docs" / "compat.md"

HEAD = """\
# What of ipyparallel is here

[README](../README.md) · [semantics](semantics.md) · [commands](commands.md)

Written by `python -m tests.api.document`, which walks the installed ipyparallel {version}
and looks for each of its public names here: modules, classes, methods, properties, functions
and their parameters, magics and their options, commands and their flags.
`tests/unit/test_api.py` fails when this page is not what the walk says. How things behave is
in [semantics](semantics.md).

{here} names are here, and every call of them that is valid there is valid here; {changed} differ,
as no working call notices{pending}. The others are absent: they are about
ZeroMQ, its sockets, its launch scripts or its database drivers.
"""

HERE = """\
What takes the place of ipcontroller's flags are `pxcluster start`'s, and of ipengine's
`pxcluster engines`'.
"""


def document() -> str:
    """The page."""
    findings = compare()
    rows = {kind: [r for r in exemptions() if r.kind == kind] for kind in _KINDS}
    kinds = Counter(f.exemption.kind if f.exemption else "here" for f in findings)
    head = HEAD.format(
        version=alias.API_LEVEL,
        here=kinds["here"],
        changed=kinds["changed"],
        pending=f"; {kinds['pending']} are to come" if kinds["pending"] else "",
    )
    parts = [
        head,
        "## Absent\n",
        _table(("Names", "About", "Use instead"), rows["absent"]),
        "## Changed\n",
        _table(("Names", "Difference"), rows["changed"]),
    ]
    if rows["pending"]:
        parts += ["## To come\n", _table(("Names", "What"), rows["pending"])]
    parts += ["## Here\n", HERE, *_here([f for f in findings if f.exemption is None])]
    return "\n".join(parts)


_KINDS = ("absent", "changed", "pending")


def _table(heads: Sequence[str], rows: Iterable[Exemption]) -> str:
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for row in rows:
        cells = [", ".join(f"`{name}`" for name in row.names), row.reason, row.instead]
        lines.append(f"| {' | '.join(cells[: len(heads)])} |")
    return "\n".join(lines) + "\n"


def _here(findings: Sequence[Finding]) -> Iterator[str]:
    """The names that are here, a section a module."""
    sections: dict[str, dict[str, list[str]]] = {}
    for finding in findings:
        match finding.theirs.kind:
            case "module":
                continue
            case "program" | "subcommand" | "flag":
                program, _, rest = finding.name.partition(" ")
                command, _, flag = rest.rpartition(" ")
                owner = " ".join(filter(None, (program, command if flag else rest)))
                group, item = "Commands", flag if flag.startswith("-") else ""
                owner = owner if item else finding.name
            case "magic" | "option":
                owner, _, item = finding.name.partition(" ")
                group = "Magics"
            case _:
                module, owner, *member = split(finding.name)
                group = ".".join(filter(None, ("ipyparallel", module)))
                item = member[0] if member else ""
        items = sections.setdefault(group, {}).setdefault(owner, [])
        if item:
            items.append(item)
    for group in sorted(sections):
        yield f"### {group}\n"
        plain = [owner for owner, items in sections[group].items() if not items]
        if plain:
            yield ", ".join(f"`{name}`" for name in plain) + "\n"
        for owner, items in sections[group].items():
            if items:
                yield f"- `{owner}`: " + ", ".join(f"`{item}`" for item in items)
        if len(plain) < len(sections[group]):
            yield ""


if __name__ == "__main__":
    PATH.write_text(document(), encoding="utf-8")
    sys.stdout.write(f"{PATH}\n")

"""``%pxwho``: what is bound where, and where engines differ."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import filter as filter_names
from typing import TYPE_CHECKING

from ..display import ranges

if TYPE_CHECKING:
    from ..engine.names import Described

__all__ = ["Names"]

HEADER = ("", "Name", "Engines", "Type", "Shape", "Bytes", "Value")
DIFFERS = "≠"


@dataclass(frozen=True)
class Row:
    """One name, on the engines on which it is the same."""

    differs: bool
    cells: tuple[str, ...]


class Names:
    """The names of several engines, shown as a table.

    What looks the same on all engines is one line.  A name that differs in type, shape,
    bytes or value, or is not everywhere, has a line for each way it looks, marked with ``≠``.

    Parameters
    ----------
    engines : dict
        Of each engine's id, a dict of name to (type, shape, bytes, value).
    asked : sequence of str
        What was asked for, with wildcards; what is nowhere is said.
    differences : bool
        Leave out what is the same everywhere.
    """

    def __init__(
        self,
        engines: Mapping[int, Mapping[str, Described]],
        asked: Sequence[str] = (),
        *,
        differences: bool = False,
    ) -> None:
        self.engines = engines
        names = sorted({name for names in engines.values() for name in names}, key=str.lower)
        rows = [row for name in names for row in self._rows(name)]
        self.rows = [row for row in rows if row.differs or not differences]
        where = f"on engines {ranges(engines)}"
        nowhere = [pattern for pattern in asked if not filter_names(names, pattern)]
        #: what the rows do not say
        self._note = ""
        if nowhere:
            self._note = f"nothing named {', '.join(nowhere)} {where}"
        elif not self.rows:
            self._note = f"no names {'that differ ' if rows else ''}{where}"

    def _rows(self, name: str) -> list[Row]:
        alike: dict[Described | None, list[int | None]] = {}
        for engine, names in self.engines.items():
            alike.setdefault(names.get(name), []).append(engine)
        differs = len(alike) > 1
        rows = []
        for what, engines in alike.items():
            where = ranges(engines)
            if what is None:
                rows.append(Row(differs, (name, where, "not there", "", "", "")))
            else:
                kind, shape, nbytes, value = what
                rows.append(Row(differs, (name, where, kind, shape, f"{nbytes:,}", value)))
        return rows

    def __repr__(self) -> str:
        if not self.rows:
            return self._note
        table = [HEADER, *((DIFFERS * row.differs, *row.cells) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = []
        for cells in table:
            # numbers end where numbers end
            padded = [
                cell.rjust(width) if title == "Bytes" else cell.ljust(width)
                for cell, width, title in zip(cells, widths, HEADER, strict=True)
            ]
            lines.append("  ".join(padded).rstrip())
        lines.insert(1, "-" * max(map(len, lines)))
        if self._note:
            lines.append(self._note)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        note = f"<p>{html.escape(self._note)}</p>" if self._note else ""
        if not self.rows:
            return note
        left = ' style="text-align: left"'
        head = "".join(f"<th{left}>{title}</th>" for title in HEADER)
        body = []
        for row in self.rows:
            mark = ' style="background: rgba(255, 193, 7, 0.2)"' if row.differs else ""
            cells = "".join(
                f"<td{'' if title == 'Bytes' else left}>{html.escape(cell)}</td>"
                for cell, title in zip((DIFFERS * row.differs, *row.cells), HEADER, strict=True)
            )
            body.append(f"<tr{mark}>{cells}</tr>")
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>{note}"

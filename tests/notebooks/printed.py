"""Turns a notebook that was printed as text (``In [None]:`` and its code) back into one."""

from __future__ import annotations

import ast
import re

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbformat.v4 import new_code_cell, new_notebook

MARK = "In [None]:\n"


def _is_code(text: str) -> bool:
    # what follows a cell magic is code of the notebook's language, too
    body = re.sub(r"^%%.*\n", "", text)
    try:
        ast.parse(TransformerManager().transform_cell(body))
    except SyntaxError:
        return False
    return True


def _code_of(cell: str) -> str:
    """The code at the start of a text in which prose may follow it.

    Prose is told by its not being Python, or by reading like a heading or a sentence.
    """
    taken: list[str] = []
    for paragraph in re.split(r"\n[ \t]*\n", cell.rstrip("\n")):
        if taken and not _is_code("\n\n".join([*taken, paragraph])):
            break
        if taken and (paragraph.startswith("#") or re.match(r"[A-Z][a-z]* [a-z]", paragraph)):
            break
        taken.append(paragraph)
    return "\n\n".join(taken).strip("\n")


def to_notebook(text: str) -> nbformat.NotebookNode:
    """A notebook of the code cells of ``text``."""
    cells = [new_code_cell(_code_of(part)) for part in text.split(MARK)[1:]]
    return new_notebook(cells=cells)

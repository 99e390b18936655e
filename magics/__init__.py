"""``%px`` and its family: the magics of ``ipyparallel.client.magics``.

``Client()`` inside IPython activates them, so a notebook needs no ``%load_ext``::

    rc = Client()
    %px import numpy              # one line on every engine
    %%px --targets 0:2 --noblock  # a cell, on two engines, in the background
    %pxresult                     # what the last %px did
    %pxconfig --noblock           # defaults for the rest of the session
    %autopx                       # every cell from now on runs on the engines
    %%pxlocal                     # a cell, on the engines and here
    %pxwho                        # what is bound where

``view.activate("_even")`` defines a further set on that view: ``%px_even`` and so on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arguments import exec_args, output_args
from .px import NO_LAST_RESULT, ParallelMagics

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from ..view import DirectView

__all__ = [
    "NO_LAST_RESULT",
    "ParallelMagics",
    "active_view",
    "exec_args",
    "load_ipython_extension",
    "output_args",
]


def active_view(shell: InteractiveShell, suffix: str = "") -> DirectView | None:
    """The view that ``%px`` (with this suffix) runs on; None if a client should supply one.

    That is so before the first client, and once the view's client is closed.
    """
    px = shell.magics_manager.magics["line"].get("px" + suffix)
    magics = getattr(px, "__self__", None)
    if not isinstance(magics, ParallelMagics) or magics.view is None:
        return None
    return None if magics.view.client._closed else magics.view


def load_ipython_extension(shell: InteractiveShell) -> None:
    """``%load_ext pxcompat.magics``: define the magics before there is a client.

    Until then they say that a client is needed; where one has activated them already
    this changes nothing.
    """
    if active_view(shell) is None:
        shell.magics_manager.register(ParallelMagics(shell, None))

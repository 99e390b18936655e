"""Loading what is heavy before it is needed, and so that requests do not pay for it."""

from __future__ import annotations

import gc
import importlib
import sys
from typing import Any

__all__ = ["load"]


def load(module: str) -> Any:
    """Import a backend's module with all that it needs.

    That makes a hundred thousand objects that stay.  The garbage collector has not been through
    them then, and would go when a few hundred more have been made: in the midst of a client's
    first map, for 50 ms or more.  So it goes now, where somebody waits anyway.
    """
    known = module in sys.modules
    loaded = importlib.import_module(module)  # also where another thread is still at it
    if not known and gc.isenabled():
        gc.collect()
    return loaded

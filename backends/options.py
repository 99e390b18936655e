"""A backend's own settings, by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from pxcompat.error import BackendError

__all__ = ["check"]


def check(backend: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raise BackendError for a setting that a backend does not have."""
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise BackendError(
                f"the {backend} backend has no option {name!r}{hint}; there are {', '.join(known)}"
            )

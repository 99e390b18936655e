"""The backends, by name.  A backend is imported when it is chosen, and not before."""

from __future__ import annotations

import importlib
from typing import cast

from pxcompat.error import BackendError
from pxcompat.protocol import Provider

__all__ = ["get", "names"]

#: name: (module that has the ``provider``, how to install what it needs)
_BACKENDS = {
    "dask": ("pxcompat.backends.dask", "pip install pxcompat"),
    "ray": ("pxcompat.backends.ray", 'pip install "pxcompat[ray]"'),
}


def names() -> list[str]:
    """Names of the backends that can be asked for."""
    return list(_BACKENDS)


def get(name: str) -> Provider:
    """The provider of a backend.

    Raises
    ------
    pxcompat.error.BackendError
        For an unknown name, or when what the backend needs is not installed; says what to
        install.
    """
    try:
        module, install = _BACKENDS[name]
    except KeyError:
        known = ", ".join(repr(n) for n in _BACKENDS)
        raise BackendError(f"no backend is called {name!r}; there are {known}") from None
    try:
        return cast(Provider, importlib.import_module(module).provider)
    except ModuleNotFoundError as error:
        raise BackendError(
            f"the {name!r} backend needs {error.name}, which is not installed: {install}"
        ) from error

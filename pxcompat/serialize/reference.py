"""References: arguments that are names on the engine."""

from __future__ import annotations

from typing import Any

from .context import current_namespace, evaluate

__all__ = ["Reference"]


class Reference:
    """Stands for an expression that the engine evaluates in its namespace
    (ipyparallel.Reference).

    Use it as an argument, at any depth within one, or as the function itself.

    Parameters
    ----------
    name : str
        A name, or any expression: ``Reference("d['k'].x")``.

    Raises
    ------
    TypeError
        When ``name`` is not a string.

    Examples
    --------
    >>> view.push({"a": 5})                      # doctest: +SKIP
    >>> view.apply_sync(abs, Reference("-a"))    # doctest: +SKIP
    5
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"illegal name: {name!r} is not a string")
        self.name = name

    #: nothing travels beside it (ipyparallel's is a canned object)
    buffers: tuple[Any, ...] = ()

    def get_object(self, g: dict[str, Any] | None = None) -> Any:
        """What it stands for, with ``g`` as the namespace."""
        return eval(self.name, current_namespace() if g is None else g)

    def __reduce__(self) -> tuple[Any, ...]:
        return (evaluate, (self.name,))

    def __repr__(self) -> str:
        return f"<Reference: {self.name!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reference) and other.name == self.name

    def __hash__(self) -> int:
        return hash((Reference, self.name))

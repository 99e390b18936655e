"""Names on engines as objects: references that other engines, and the backend's own tasks,
resolve without the client."""

from __future__ import annotations

from typing import Any

from .serialize import Reference, register_native

__all__ = ["Accepted", "RemoteReference"]


class RemoteReference(Reference):
    """Stands for a name on a certain engine; made by :meth:`DirectView.ref`.

    As an argument of a request, at any depth, it is the value that the name has on its engine
    when all is done that this client had sent there before; a copy, which goes from one engine to
    the other.  Not in ipyparallel.

    Attributes
    ----------
    name : str
        The name, or expression.
    key : str
        The engine's uuid.
    engine : int
        The engine's id.
    """

    def __init__(self, name: str, key: str, engine: int) -> None:
        super().__init__(name)
        self.key = key
        self.engine = engine

    def __reduce__(self) -> tuple[Any, ...]:
        return (RemoteReference, (self.name, self.key, self.engine))

    def __repr__(self) -> str:
        return f"<RemoteReference: {self.name!r} on engine {self.engine}>"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, RemoteReference) and other.name == self.name and other.key == self.key
        )

    def __hash__(self) -> int:
        return hash((RemoteReference, self.name, self.key))


class Accepted:
    """What a backend has accepted already (:meth:`.protocol.Backend.take_apart`), as an argument
    of a request."""

    def __init__(self, native: Any) -> None:
        self.native = native


register_native(RemoteReference)
register_native(Accepted)

"""Names on engines as objects: references that other engines, and the backend's own tasks,
resolve without the client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .error import EngineError
from .serialize import Reference, register_native

__all__ = ["Accepted", "RemoteReference"]


class RemoteReference(Reference):
    """Stands for a name on a certain engine; made by :meth:`DirectView.ref`.

    As an argument of a request, at any depth, it is the value that the name has on its engine
    when all is done that this client had sent there before; a copy, which goes from one engine to
    the other.  In the backend's own graphs and tasks, too.  Not in ipyparallel.

    Attributes
    ----------
    name : str
        The name, or expression.
    uuid : str
        The engine's key.
    engine : int
        The engine's id.
    """

    def __init__(
        self,
        name: str,
        uuid: str,
        engine: int,
        keep: Callable[[RemoteReference], Any] | None = None,
    ) -> None:
        super().__init__(name)
        self.uuid = uuid
        self.engine = engine
        self._keep = keep

    def keep(self) -> Any:
        """Have the engine put the value aside; what the backend resolves
        (:meth:`.protocol.Backend.keep`).

        Raises
        ------
        EngineError
            When the engine is gone, or this is a copy, which has no client.
        """
        if self._keep is None:
            raise EngineError(
                f"{self!r} cannot be read here: it is a copy, or of a cluster that this process "
                "is not connected to; make it where it is used, with view.ref(name)"
            )
        return self._keep(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return (RemoteReference, (self.name, self.uuid, self.engine))

    def __repr__(self) -> str:
        return f"<RemoteReference: {self.name!r} on engine {self.engine}>"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, RemoteReference)
            and other.name == self.name
            and other.uuid == self.uuid
        )

    def __hash__(self) -> int:
        return hash((RemoteReference, self.name, self.uuid))


class Accepted:
    """What a backend has accepted already (:meth:`.protocol.Backend.take_apart`), as an argument
    of a request."""

    def __init__(self, native: Any) -> None:
        self.native = native


register_native(RemoteReference)
register_native(Accepted)

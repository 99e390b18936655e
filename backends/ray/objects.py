"""What requests refer to and engines resolve among themselves: object references, and values
that one engine puts aside for others, which are object references, too.

They travel beside the pickled arguments of a call, so that Ray knows who has them.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import register_serializer
from ray.util.client.common import ClientObjectRef

from pxcompat import serialize
from pxcompat.engine import current, engine_of_process
from pxcompat.error import EngineError
from pxcompat.objects import RemoteReference
from pxcompat.serialize.memory import owned

from .wire import unpack_frames

__all__ = ["Blocks", "Kept", "Lost", "StoredObject", "accept", "pack_natives", "unpack_natives"]

serialize.register_native(ray.ObjectRef)
serialize.register_native(ClientObjectRef)


class StoredObject:
    """An object that the user, or a task, put into Ray's store."""

    __slots__ = ("ref",)

    def __init__(self, ref: Any) -> None:
        self.ref = ref

    def pack(self) -> tuple[Any, ...]:
        return ("ref", [self.ref])

    def resolve(self, copy: bool = True) -> Any:
        """The object, on an engine's thread; its arrays in the store where ``copy`` is False."""
        try:
            value = ray.get(self.ref)
        except ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None
        except RayError as error:
            raise EngineError(f"the object {self.ref} cannot be had: {error}") from error
        if not copy:
            return value
        return _own(value)


def _own(value: Any) -> Any:
    """A copy of what lies in the store, in memory of this process."""
    frames = serialize.dumps(value, name="an object of Ray's store")
    return serialize.loads([frames[0], *(owned(frame) for frame in frames[1:])])


class Blocks:
    """Some of a dataset's blocks, or of a list of references, for one engine.

    Parameters
    ----------
    refs
        To the blocks, in order.
    kind
        ``"array"``: of a dataset that is one array; ``"table"``: of any other; ``"values"``:
        objects of any kind.
    own
        Whether what is made of them may not be shared with whoever else has them.
    empty
        A block of the dataset without rows: those of its own that have none have no columns.
    """

    __slots__ = ("empty", "kind", "own", "refs")

    def __init__(self, refs: list[Any], kind: str, own: bool, empty: Any = None) -> None:
        self.refs = refs
        self.kind = kind
        self.own = own
        self.empty = empty

    def pack(self) -> tuple[Any, ...]:
        return ("blocks", [self.refs, self.kind, self.own, self.empty])

    def resolve(self, copy: bool = True) -> Any:
        """One array, dataframe or list of them, on an engine's thread."""
        if self.kind == "values":
            return [StoredObject(ref).resolve(self.own) for ref in self.refs]
        from .tables import join

        blocks = [StoredObject(ref).resolve(copy=False) for ref in self.refs]
        return join(blocks, self.kind, self.own, self.empty)


class Kept:
    """A value that an engine puts aside: what its call returns, in two values."""

    __slots__ = ("apart", "engine", "reply")

    def __init__(self, reply: Any, apart: Any, engine: int) -> None:
        self.reply = reply
        self.apart = apart
        self.engine = engine

    def pack(self) -> tuple[Any, ...]:
        return ("kept", [self.reply, self.apart, self.engine])

    def resolve(self, copy: bool = True) -> Any:
        """The value, on an engine's thread."""
        who = f"engine {self.engine} could not give its value"
        try:
            head, _ = pickle.loads(ray.get(self.reply))
            _, status, _, _, _, result, content, _ = head
            if status != "ok":
                why = f"{content['ename']}: {content['evalue']}" if content else "it was aborted"
                raise EngineError(f"{who}: {why}")
            field = ray.get(self.apart) if isinstance(result, int) else result
        except RayError as error:
            raise EngineError(f"{who}: it is gone ({error})") from error
        frames = unpack_frames(field, copy=copy)
        assert frames is not None
        # one of Ray's own tasks runs in no engine
        return serialize.loads(frames, current().shell.user_ns if engine_of_process() else None)


class Lost:
    """What never came to be kept."""

    __slots__ = ("why",)

    def __init__(self, why: str) -> None:
        self.why = why

    def pack(self) -> tuple[Any, ...]:
        return ("lost", [self.why])

    def resolve(self, copy: bool = True) -> Any:
        raise EngineError(self.why)


def accept(obj: Any, address: str) -> StoredObject:
    """An object reference of ours for a request.

    Raises
    ------
    EngineError
        When it is none.
    """
    if not isinstance(obj, (ray.ObjectRef, ClientObjectRef)):
        raise EngineError(f"{obj!r} is not of the Ray cluster at {address}")
    if isinstance(obj, ray.ObjectRef):
        try:
            ray.wait([obj], timeout=0, fetch_local=False)
        except ValueError as error:  # its owner is unknown
            raise EngineError(
                f"{obj!r} is not of the Ray cluster at {address}, but of a connection that this "
                "process had before"
            ) from error
    return StoredObject(obj)


def pack_natives(natives: Mapping[str, Any]) -> dict[str, Any] | None:
    """A request's natives as an argument of its call."""
    return {token: native.pack() for token, native in natives.items()} or None


_KINDS: dict[str, Any] = {"ref": StoredObject, "kept": Kept, "blocks": Blocks, "lost": Lost}


def unpack_natives(field: Mapping[str, Any] | None) -> dict[str, Any]:
    """The inverse of :func:`pack_natives`."""
    return {token: _KINDS[kind](*args) for token, (kind, args) in (field or {}).items()}


# -- references as arguments of Ray's own tasks, which unpickle what they stand for ------


def _keep(reference: RemoteReference) -> tuple[str, list[Any]]:
    kind, args = reference.keep().pack()
    return kind, args


def _resolve(packed: tuple[str, list[Any]]) -> Any:
    if _in_client_server():
        return _Passing(packed)
    kind, args = packed
    return _KINDS[kind](*args).resolve()


class _Passing:
    """A reference in Ray's client server, which unpickles the arguments of ``ray://`` tasks to
    pickle them again: the value is the task's, and so is the error when there is none."""

    __slots__ = ("packed",)

    def __init__(self, packed: tuple[str, list[Any]]) -> None:
        self.packed = packed

    def __reduce__(self) -> Any:
        return _resolve, (self.packed,)


def _in_client_server() -> bool:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name.startswith("ray.util.client.server")


def _refuse(reference: serialize.Reference) -> Any:
    raise EngineError(
        f"{reference!r} says of no engine whose name it is, and Ray's tasks run in none: "
        f"use rc[0].ref({reference.name!r})"
    )


register_serializer(RemoteReference, serializer=_keep, deserializer=_resolve)
register_serializer(serialize.Reference, serializer=_refuse, deserializer=_refuse)

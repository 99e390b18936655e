"""``ipyparallel.serialize``'s own vocabulary, for code that speaks it: ``can`` and ``uncan``,
``serialize_object``, ``pack_apply_message``.

Requests do not travel this way; they use :func:`~pxcompat.serialize.pickling.dumps`, and
so does what is here, one object at a time.
"""

from __future__ import annotations

import functools
import pickle
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

from .pickling import current_namespace, dumps, loads
from .reference import Reference

__all__ = [
    "Canned",
    "CannedArray",
    "CannedBytes",
    "CannedClass",
    "CannedFunction",
    "CannedObject",
    "CannedPartial",
    "CannedReference",
    "PrePickled",
    "can",
    "can_map",
    "deserialize_object",
    "pack_apply_message",
    "serialize_object",
    "uncan",
    "uncan_map",
    "unpack_apply_message",
]

#: buffers at least this long are sent beside the pickle (ipyparallel's thresholds)
MAX_BYTES = 1024
MAX_ITEMS = 64

Buffer = Any


class CannedObject:
    """An object pickled by itself; picklable by plain pickle.

    Attributes
    ----------
    buffers : list
        What may travel beside the pickle.
    """

    buffers: list[Any]

    def __init__(self, obj: Any) -> None:
        head, *self.buffers = dumps(obj)
        self.pickled = bytes(head)

    def get_object(self, g: dict[str, Any] | None = None) -> Any:
        """The object, with ``g`` as the interactive namespace."""
        return loads([self.pickled, *self.buffers], current_namespace() if g is None else g)


#: the base of the others in ipyparallel too
Canned = CannedObject


class CannedFunction(CannedObject):
    """A function."""


class CannedClass(CannedObject):
    """A class of the interactive namespace."""


class CannedArray(CannedObject):
    """A NumPy array."""

    def __init__(self, obj: Any) -> None:
        import numpy

        self.shape, self.dtype = obj.shape, obj.dtype
        self.pickled = b""
        whole = obj.size and not obj.dtype.hasobject and obj.dtype.fields is None
        if whole:
            self.buffers = [numpy.ascontiguousarray(obj).view(numpy.uint8).reshape(-1).data]
        else:
            super().__init__(obj)

    def get_object(self, g: dict[str, Any] | None = None) -> Any:
        import numpy

        if self.pickled:
            return super().get_object(g)
        return numpy.frombuffer(self.buffers[0], dtype=self.dtype).reshape(self.shape)


class CannedBytes(CannedObject):
    """Bytes, a bytearray or a memoryview."""

    def __init__(self, obj: Any) -> None:
        self.kind = type(obj)
        self.buffers = [obj]

    def get_object(self, g: dict[str, Any] | None = None) -> Any:
        data = self.buffers[0]
        return data if isinstance(data, self.kind) else self.kind(data)

    def __getstate__(self) -> dict[str, Any]:
        # a memoryview cannot be pickled, its bytes can
        buffers = [bytes(b) if isinstance(b, memoryview) else b for b in self.buffers]
        return {"kind": self.kind, "buffers": buffers}


class CannedReference(CannedObject):
    """A :class:`~pxcompat.serialize.reference.Reference`."""

    def __init__(self, obj: Reference) -> None:
        self.name = obj.name
        self.buffers = []

    def get_object(self, g: dict[str, Any] | None = None) -> Any:
        return eval(self.name, current_namespace() if g is None else g)


class CannedPartial(CannedObject):
    """A ``functools.partial``, its parts canned."""

    def __init__(self, obj: functools.partial[Any]) -> None:
        self.parts = [can(obj.func), [can(a) for a in obj.args], can_dict(obj.keywords)]
        self.buffers = []
        for part in self._canned():
            self.buffers.extend(part.buffers)
            part.buffers = [None] * len(part.buffers)

    def _canned(self) -> list[CannedObject]:
        func, args, keywords = self.parts
        return [p for p in (func, *args, *keywords.values()) if isinstance(p, CannedObject)]

    def get_object(self, g: dict[str, Any] | None = None) -> Any:
        buffers = iter(self.buffers)
        for part in self._canned():
            part.buffers = [next(buffers) for _ in part.buffers]
        func, args, keywords = self.parts
        return functools.partial(
            uncan(func, g), *[uncan(a, g) for a in args], **uncan_dict(keywords, g)
        )


class PrePickled:
    """An object pickled once, to be sent many times (ipyparallel.serialize.PrePickled).

    Pass it as an argument in the object's place.
    """

    def __init__(self, obj: Any) -> None:
        self.cached = CannedObject(obj)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_uncan_cached, (self.cached,))


def _uncan_cached(cached: CannedObject) -> Any:
    return cached.get_object()


#: type to what cans it; may be added to, as in ipyparallel
can_map: dict[Any, Callable[[Any], Any]] = {
    types.FunctionType: CannedFunction,
    functools.partial: CannedPartial,
    Reference: CannedReference,
    bytes: CannedBytes,
    bytearray: CannedBytes,
    memoryview: CannedBytes,
}

#: type to what uncans it
uncan_map: dict[Any, Callable[[Any, Any], Any]] = {}


def can(obj: Any) -> Any:
    """The object in a form that plain pickle can take; containers item by item."""
    for cls in type(obj).__mro__:
        if cls in can_map:
            return can_map[cls](obj)
    if isinstance(obj, type):
        return CannedClass(obj) if obj.__module__ == "__main__" else obj
    if _is_array(obj):
        return CannedArray(obj)
    if isinstance(obj, dict):
        return can_dict(obj)
    if type(obj) in (list, tuple, set):
        return type(obj)(can(item) for item in obj)
    return obj


def uncan(obj: Any, g: dict[str, Any] | None = None) -> Any:
    """The inverse of :func:`can`, with ``g`` as the interactive namespace."""
    for cls, undo in uncan_map.items():
        if isinstance(obj, cls):
            return undo(obj, g)
    if isinstance(obj, CannedObject):
        return obj.get_object(g)
    if isinstance(obj, dict):
        return uncan_dict(obj, g)
    if type(obj) in (list, tuple, set):
        return type(obj)(uncan(item, g) for item in obj)
    return obj


def can_dict(obj: dict[Any, Any]) -> dict[Any, Any]:
    """Can a dict's values."""
    return {key: can(value) for key, value in obj.items()} if type(obj) is dict else obj


def uncan_dict(obj: dict[Any, Any], g: dict[str, Any] | None = None) -> dict[Any, Any]:
    """Uncan a dict's values."""
    return {key: uncan(value, g) for key, value in obj.items()} if type(obj) is dict else obj


def _is_array(obj: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(obj, numpy.ndarray)


def _members(obj: Any) -> Iterable[CannedObject]:
    """Canned objects in what :func:`can` made, in a fixed order."""
    if isinstance(obj, CannedObject):
        yield obj
    elif isinstance(obj, dict):
        for key in sorted(obj, key=repr):
            yield from _members(obj[key])
    elif type(obj) in (list, tuple):
        for item in obj:
            yield from _members(item)


def serialize_object(
    obj: Any, buffer_threshold: int = MAX_BYTES, item_threshold: int = MAX_ITEMS
) -> list[Buffer]:
    """An object as a pickle and its large buffers (ipyparallel.serialize.serialize_object).

    Parameters
    ----------
    buffer_threshold : int
        Bytes from which a buffer travels beside the pickle.
    item_threshold : int
        Ignored: containers of any length are looked through.
    """
    canned = can(obj)
    beside: list[Buffer] = []
    for member in _members(canned):
        for index, buffer in enumerate(member.buffers):
            if memoryview(buffer).nbytes > buffer_threshold:
                beside.append(buffer)
                member.buffers[index] = None
            elif isinstance(buffer, memoryview):
                member.buffers[index] = bytes(buffer)
    return [pickle.dumps(canned, 5), *beside]


def deserialize_object(
    buffers: list[Buffer], g: dict[str, Any] | None = None
) -> tuple[Any, list[Buffer]]:
    """The inverse of :func:`serialize_object`; also the buffers that are not the object's."""
    left = list(buffers)
    canned = pickle.loads(left.pop(0))
    for member in _members(canned):
        for index, buffer in enumerate(member.buffers):
            if buffer is None:
                member.buffers[index] = left.pop(0)
    return uncan(canned, g), left


def pack_apply_message(
    f: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    buffer_threshold: int = MAX_BYTES,
    item_threshold: int = MAX_ITEMS,
) -> list[Buffer]:
    """A call as buffers (ipyparallel.serialize.pack_apply_message)."""
    return serialize_object([f, list(args), dict(kwargs)], buffer_threshold)


def unpack_apply_message(
    bufs: list[Buffer], g: dict[str, Any] | None = None, copy: bool = True
) -> tuple[Any, list[Any], dict[str, Any]]:
    """The inverse of :func:`pack_apply_message`."""
    (f, args, kwargs), _ = deserialize_object(bufs, g)
    return f, args, kwargs

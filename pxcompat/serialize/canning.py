"""``ipyparallel.serialize``'s own vocabulary, for code that speaks it: ``can`` and ``uncan``,
``serialize_object``, ``pack_apply_message``.

Requests do not travel this way; they use :func:`~pxcompat.serialize.pickling.dumps`, and
so does what is here, one object at a time.
"""

from __future__ import annotations

import copy
import functools
import pickle
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from .context import current_namespace
from .pickling import (
    dumps,
    loads,
    use_cloudpickle as use_cloudpickle,
    use_dill as use_dill,
    use_pickle as use_pickle,
)
from .reference import Reference

__all__ = [
    "Canned",
    "CannedArray",
    "CannedBuffer",
    "CannedBytes",
    "CannedCell",
    "CannedClass",
    "CannedFunction",
    "CannedMemoryView",
    "CannedObject",
    "CannedPartial",
    "CannedReference",
    "PrePickled",
    "can",
    "can_class",
    "can_dependent",
    "can_dict",
    "can_map",
    "can_sequence",
    "cell_type",
    "deserialize_object",
    "interactive",
    "istype",
    "pack_apply_message",
    "sequence_types",
    "serialize_object",
    "uncan",
    "uncan_dict",
    "uncan_map",
    "uncan_sequence",
    "unpack_apply_message",
    "use_cloudpickle",
    "use_dill",
    "use_pickle",
]

#: buffers at least this long are sent beside the pickle (ipyparallel's thresholds)
MAX_BYTES = 1024
MAX_ITEMS = 64

Buffer = Any
F = TypeVar("F", bound=Callable[..., Any])

#: the type of what a closure holds its variables in
cell_type = types.CellType
#: what :func:`can_sequence` looks through
sequence_types = (list, tuple, set)


class CannedObject:
    """An object pickled by itself; picklable by plain pickle.

    To be subclassed, or called by a function, that is put into :data:`can_map`.

    Parameters
    ----------
    obj
    keys : sequence of str
        Attributes of it that are canned by the rules of :data:`can_map` themselves.
    hook : callable, optional
        ``hook(obj, g)`` is called with what comes out again, before it is handed over.

    Attributes
    ----------
    buffers : list
        What may travel beside the pickle.
    """

    buffers: list[Any]
    keys: Sequence[str] = ()
    hook: Any = None

    def __init__(
        self, obj: Any, keys: Sequence[str] = (), hook: Callable[[Any, Any], object] | None = None
    ) -> None:
        self.keys = list(keys)
        self.hook = can(hook)
        if keys:
            obj = copy.copy(obj)
            for key in keys:
                setattr(obj, key, can(getattr(obj, key)))
        head, *self.buffers = dumps(obj)
        self.pickled = bytes(head)

    @property
    def obj(self) -> Any:
        """What was canned; a copy of it each time."""
        return self.get_object()

    def get_object(self, g: dict[str, Any] | None = None) -> Any:
        """The object, with ``g`` as the interactive namespace."""
        g = current_namespace() if g is None else g
        obj = loads([self.pickled, *self.buffers], g)
        for key in self.keys:
            setattr(obj, key, uncan(getattr(obj, key), g))
        if self.hook is not None:
            uncan(self.hook, g)(obj, g)
        return obj


#: the base of the others in ipyparallel too
Canned = CannedObject


class CannedFunction(CannedObject):
    """A function."""

    def __init__(self, f: Callable[..., Any]) -> None:
        super().__init__(f)
        self.module, self.__name__ = f.__module__, f.__name__

    # its parts, canned, as ipyparallel has them

    @property
    def code(self) -> types.CodeType:
        code: types.CodeType = self.obj.__code__
        return code

    @property
    def defaults(self) -> list[Any] | None:
        return [can(value) for value in self.obj.__defaults__ or ()] or None

    @property
    def kwdefaults(self) -> dict[str, Any] | None:
        return can_dict(self.obj.__kwdefaults__ or {}) or None

    @property
    def annotations(self) -> dict[str, Any] | None:
        return can_dict(self.obj.__annotations__) or None

    @property
    def closure(self) -> tuple[CannedCell, ...] | None:
        return tuple(CannedCell(cell) for cell in self.obj.__closure__ or ()) or None


class CannedCell(CannedObject):
    """A cell of a function's closure."""

    def __init__(self, cell: types.CellType) -> None:
        self.cell_contents = can(cell.cell_contents)
        self.buffers = []

    def get_object(self, g: dict[str, Any] | None = None) -> types.CellType:
        return types.CellType(uncan(self.cell_contents, g))


class CannedClass(CannedObject):
    """A class of the interactive namespace."""

    old_style = False

    def __init__(self, cls: type) -> None:
        super().__init__(cls)
        self.name = cls.__name__

    @property
    def parents(self) -> list[Any]:
        return [can(parent) for parent in self.obj.__mro__[1:]]


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

    @staticmethod
    def wrap(data: Any) -> Any:
        """A buffer as bytes."""
        return data if isinstance(data, bytes) else bytes(data)

    def __getstate__(self) -> dict[str, Any]:
        # a memoryview cannot be pickled, its bytes can
        buffers = [bytes(b) if isinstance(b, memoryview) else b for b in self.buffers]
        return {"kind": self.kind, "buffers": buffers}


class CannedMemoryView(CannedBytes):
    """A memoryview, whatever buffer it was made of."""

    def __init__(self, obj: Any) -> None:
        super().__init__(memoryview(obj))

    wrap = memoryview  # type: ignore[assignment]


CannedBuffer = CannedMemoryView


class CannedReference(CannedObject):
    """A :class:`~pxcompat.serialize.reference.Reference`."""

    def __init__(self, obj: Reference) -> None:
        self.name = obj.name
        self.buffers = []

    def get_object(self, g: dict[str, Any] | None = None) -> Any:
        return Reference(self.name).get_object(g)


class CannedPartial(CannedObject):
    """A ``functools.partial``, its parts canned."""

    def __init__(self, f: functools.partial[Any]) -> None:
        self.func = can(f.func)
        self.args = [can(a) for a in f.args]
        self.keywords = can_dict(f.keywords)
        self.arg_buffer_counts = [_n_buffers(a) for a in self.args]
        self.keyword_buffer_counts = {k: _n_buffers(a) for k, a in self.keywords.items()}
        self.buffers = []
        for part in self._canned():
            self.buffers.extend(part.buffers)
            part.buffers = [None] * len(part.buffers)

    def _canned(self) -> list[CannedObject]:
        parts = (self.func, *self.args, *self.keywords.values())
        return [part for part in parts if isinstance(part, CannedObject)]

    def get_object(self, g: dict[str, Any] | None = None) -> Any:
        buffers = iter(self.buffers)
        for part in self._canned():
            part.buffers = [next(buffers) for _ in part.buffers]
        args = [uncan(a, g) for a in self.args]
        return functools.partial(uncan(self.func, g), *args, **uncan_dict(self.keywords, g))


def _n_buffers(part: Any) -> int:
    return len(part.buffers) if isinstance(part, CannedObject) else 0


class PrePickled:
    """An object pickled once, to be sent many times (ipyparallel.serialize.PrePickled).

    Pass it as an argument in the object's place.
    """

    def __init__(self, obj: Any) -> None:
        self.cached = CannedObject(obj)

    @property
    def buffers(self) -> list[Buffer]:
        """It as :func:`serialize_object` would give it."""
        cached = copy.copy(self.cached)
        cached.buffers = list(cached.buffers)
        return serialize_object(cached)

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
    cell_type: CannedCell,
}

#: type to what uncans it
uncan_map: dict[Any, Callable[[Any, Any], Any]] = {}


def can(obj: Any) -> Any:
    """The object in a form that plain pickle can take; containers item by item."""
    for cls in type(obj).__mro__:
        if cls in can_map:
            return can_map[cls](obj)
    if isinstance(obj, type):
        return can_class(obj)
    if _is_array(obj):
        return CannedArray(obj)
    if isinstance(obj, dict):
        return can_dict(obj)
    return can_sequence(obj)


def uncan(obj: Any, g: dict[str, Any] | None = None) -> Any:
    """The inverse of :func:`can`, with ``g`` as the interactive namespace."""
    for cls, undo in uncan_map.items():
        if isinstance(obj, cls):
            return undo(obj, g)
    if isinstance(obj, CannedObject):
        return obj.get_object(g)
    if isinstance(obj, dict):
        return uncan_dict(obj, g)
    return uncan_sequence(obj, g)


def interactive(f: F) -> F:
    """Let a function's globals be the interactive namespace, as if typed in a notebook
    (ipyparallel.interactive).

    For functions of a module which, sent to an engine, are to see the engine's names.
    """
    if not isinstance(f, types.FunctionType):
        f.__module__ = "__main__"
        return f
    scope = __import__("__main__").__dict__
    twin = types.FunctionType(f.__code__, scope, f.__name__, f.__defaults__, f.__closure__)
    twin.__kwdefaults__ = f.__kwdefaults__
    twin.__dict__.update(f.__dict__)
    twin.__doc__ = f.__doc__
    twin.__annotations__ = f.__annotations__
    twin.__qualname__ = f.__qualname__
    twin.__module__ = "__main__"
    return twin  # type: ignore[return-value]


def can_dependent(obj: Any) -> CannedObject:
    """Can a function with a condition, which is checked where it is uncanned."""
    return CannedObject(obj)


def can_class(obj: Any) -> Any:
    """Can a class, if it is one of the interactive namespace."""
    if isinstance(obj, type) and obj.__module__ == "__main__":
        return CannedClass(obj)
    return obj


def can_sequence(obj: Any) -> Any:
    """Can the items of a list, tuple or set."""
    return type(obj)(can(item) for item in obj) if istype(obj, sequence_types) else obj


def uncan_sequence(obj: Any, g: dict[str, Any] | None = None) -> Any:
    """Uncan the items of a list, tuple or set."""
    return type(obj)(uncan(item, g) for item in obj) if istype(obj, sequence_types) else obj


def istype(obj: Any, check: type | tuple[type, ...]) -> bool:
    """Whether an object is of this type, or one of these; a subclass is not."""
    return type(obj) in (check if isinstance(check, tuple) else (check,))


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

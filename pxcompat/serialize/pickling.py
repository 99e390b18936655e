"""How objects travel: pickle protocol 5 over cloudpickle, with ipyparallel's rules for names.

The rules (see docs/semantics): a function of ``__main__`` is sent as code, defaults and
closure, and its globals are the *receiver's* interactive namespace.  A class of
``__main__`` is looked up by name in the receiver's namespace first and travels by value
for when it is missing.  A function that its module does not hold under its own name
(a closure, a lambda) is sent as code and runs with the receiver's module of that name.
Everything else goes by cloudpickle's own rules.

Large buffers stay out of band, uncopied; arrays arrive writable.
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
import types
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import cloudpickle

from ..protocol import Frames
from .classes import import_module_of, reduce_class
from .context import context, is_native, namespace_of, resolve
from .culprit import explain
from .functions import (
    SCALARS,
    copy_of,
    is_constant,
    is_importable,
    is_interactive,
    new_code,
    reduce_function,
)

__all__ = [
    "Pickled",
    "dumps",
    "loads",
    "loads_function",
    "use_cloudpickle",
    "use_dill",
    "use_pickle",
]

#: buffers below this many bytes are pickled in band: a frame each would cost more
OUT_OF_BAND = 16 * 1024


class Pickled(list[bytes | bytearray | memoryview]):
    """Frames that refer to objects which are resolved where they arrive.

    Attributes
    ----------
    natives : dict
        These objects, by the token that the pickle has in their place.
    """

    natives: dict[str, Any]

    def __reduce__(self) -> tuple[Any, ...]:
        # the objects stay here; the request has what the backend made of them
        return (list, (list(self),))


#: what ``functools.lru_cache`` makes of a function
_Cached = type(functools.lru_cache(len))


def _new_cached(function: Any, parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


#: formats that a memoryview can be cast to
_FORMATS = frozenset("bBchHiIlLqQnNfd?")


def _new_view(buffer: Any, format: Any, shape: tuple[int, ...] | None) -> memoryview:
    view = memoryview(buffer).cast("B")
    return view.cast(format) if shape is None else view.cast(format, shape)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle with ipyparallel's rules for functions and classes of ``__main__``."""

    def __init__(
        self,
        file: io.BytesIO,
        buffer_callback: Any = None,
        natives: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffer_callback)
        self._found = natives

    def reducer_override(self, obj: Any) -> Any:
        if self._found is not None and is_native(obj):
            token = uuid.uuid4().hex
            self._found[token] = obj
            return (resolve, (token,))
        if type(obj) is types.CodeType:
            # cloudpickle leaves out the file, where tracebacks and inspect find the source
            _, args = self.dispatch_table[types.CodeType](obj)
            return new_code, (obj.co_filename, *args)
        if type(obj) is _Cached and not _is_known_there(obj):
            # as the function within it travels; what it has cached stays here
            state = {k: v for k, v in vars(obj).items() if k != "__wrapped__"}
            return _new_cached, (obj.__wrapped__, obj.cache_parameters()), state
        return self._reduce(obj)

    def _reduce(self, obj: Any) -> Any:
        if type(obj) is types.FunctionType:
            if is_interactive(obj.__module__):
                return reduce_function(obj)
            if is_importable(obj):
                return NotImplemented
            if obj.__module__ in sys.modules:
                return reduce_function(obj)
            # of no module at all, as namedtuple's methods are: with its own globals
            return super().reducer_override(obj)
        if isinstance(obj, type):
            import_module_of(obj)
            by_value = super().reducer_override(obj)
            if not is_interactive(obj.__module__) or by_value is NotImplemented:
                return by_value
            return reduce_class(obj, by_value)
        if type(obj) is memoryview:
            buffer = pickle.PickleBuffer(obj) if obj.c_contiguous else obj.tobytes()
            format = obj.format if obj.format in _FORMATS else "B"
            shape = obj.shape if obj.ndim > 1 and obj.nbytes and format == obj.format else None
            return _new_view, (buffer, format, shape)
        if _is_copied(obj):
            return obj.copy().__reduce_ex__(5)
        return super().reducer_override(obj)


class _CloudPickler(_Pickler):
    """cloudpickle with its own rules."""

    def _reduce(self, obj: Any) -> Any:
        return cloudpickle.Pickler.reducer_override(self, obj)


def _is_copied(obj: Any) -> bool:
    """Whether an array is copied to be sent: one that is read-only, since arrays arrive writable,
    and one with gaps, of which numpy would make bytes in the pickle, in this machine's order."""
    numpy = sys.modules.get("numpy")  # whoever has an array has imported numpy
    if numpy is None or type(obj) is not numpy.ndarray:
        return False
    return not (obj.flags.writeable and obj.flags.forc)


def _is_known_there(function: Any) -> bool:
    """Whether a receiver, too, has it in a module."""
    return not is_interactive(function.__module__) and is_importable(function)


class _DillPickle:
    """An object pickled by dill, unpickled by dill wherever it arrives."""

    def __init__(self, obj: Any) -> None:
        self._obj = obj

    def __reduce__(self) -> tuple[Any, ...]:
        import dill

        return (_dill_loads, (dill.dumps(self._obj),))


def _dill_loads(data: bytes) -> Any:
    import dill

    return dill.loads(data)


_flavour = "pickle"


def use_pickle() -> None:
    """Pickle by ipyparallel's default rules (``ipyparallel.serialize.use_pickle``).

    For everything that this process sends from now on.
    """
    _set_flavour("pickle")


def use_cloudpickle() -> None:
    """Let functions carry the sender's globals (``ipyparallel.serialize.use_cloudpickle``).

    For everything that this process sends from now on, until :func:`use_pickle`.
    """
    _set_flavour("cloudpickle")


def use_dill() -> None:
    """Pickle with dill (``ipyparallel.serialize.use_dill``), which must be installed.

    For everything that this process sends from now on, until :func:`use_pickle`.
    """
    try:
        import dill  # noqa: F401
    except ImportError:
        raise ImportError(
            "use_dill() needs dill on the client and on every engine: pip install dill"
        ) from None
    _set_flavour("dill")


def _set_flavour(flavour: str) -> None:
    global _flavour
    _flavour = flavour


def _is_plain(obj: Any, depth: int = 3) -> bool:
    """Whether an object is a scalar, or a small container of such."""
    kind = type(obj)
    if kind in SCALARS:
        return True
    if not depth or kind not in (tuple, list, dict) or len(obj) > 16:
        return False
    items = obj
    if kind is dict:
        if not SCALARS.issuperset(map(type, obj)):
            return False
        items = obj.values()
    for item in items:  # noqa: SIM110  quicker than a generator
        if type(item) not in SCALARS and not _is_plain(item, depth - 1):
            return False
    return True


#: functions pickled lately, by the identity of their code
_functions: OrderedDict[int, tuple[Any, ...]] = OrderedDict()
_FUNCTIONS = 256


def _dump_function(function: types.FunctionType, name: str) -> Frames | None:
    """A function of ``__main__`` that has nothing that may change, pickled once for many calls."""
    if not is_interactive(function.__module__) or not is_constant(function):
        return None
    code = function.__code__
    said = (
        function.__name__,
        function.__qualname__,
        function.__module__,
        function.__doc__,
        # not the values: 1, 1.0 and True are equal
        repr((function.__defaults__, function.__kwdefaults__)),
        tuple(function.__annotations__.items()),
    )
    known = _functions.get(id(code))
    if known is not None and known[0] is code and known[1] == said:
        return [known[2]]
    frames = _dump(function, name, True, False)
    if len(frames) == 1:
        _functions[id(code)] = code, said, frames[0]
        if len(_functions) > _FUNCTIONS:
            with suppress(KeyError):  # another thread did
                _functions.popitem(last=False)
    return frames


def dumps(
    obj: Any, *, name: str = "object", keep_buffers: bool = True, natives: bool = False
) -> Frames:
    """Pickle an object.

    Parameters
    ----------
    name : str
        What to call the object in an error.
    keep_buffers : bool
        Whether large buffers stay out of band, sharing the object's memory.
    natives : bool
        Whether objects of registered types (:func:`register_native`) stay out of the pickle.
        The frames are :class:`Pickled` where there are some.

    Returns
    -------
    list of buffers
        The pickle, then its out-of-band buffers: views of the object's own memory.

    Raises
    ------
    SerializationError
        When something in it cannot be pickled; names it and the path to it.
    """
    if _flavour == "pickle":
        if _is_plain(obj):
            return [pickle.dumps(obj, 5)]
        if type(obj) is types.FunctionType and (frames := _dump_function(obj, name)) is not None:
            return frames
    return _dump(obj, name, keep_buffers, natives)


def _dump(obj: Any, name: str, keep_buffers: bool, natives: bool) -> Frames:
    buffers: list[memoryview] = []

    def keep_small_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if raw.nbytes < OUT_OF_BAND:
            return True
        buffers.append(raw)
        return False

    file = io.BytesIO()
    callback = keep_small_in_band if keep_buffers else None
    found: dict[str, Any] | None = {} if natives else None
    try:
        if _flavour == "cloudpickle":
            _CloudPickler(file, callback, found).dump(obj)
        else:
            payload = _DillPickle(obj) if _flavour == "dill" else obj
            _Pickler(file, callback, found).dump(payload)
    except Exception as error:
        raise explain(obj, name, error, _try) from error
    if not found:
        return [file.getvalue(), *buffers]
    frames = Pickled([file.getvalue(), *buffers])
    frames.natives = found
    return frames


def _try(obj: Any) -> None:
    _Pickler(io.BytesIO()).dump(obj)


def loads(
    frames: Frames,
    namespace: dict[str, Any] | None = None,
    natives: Mapping[str, Callable[[], Any]] | None = None,
) -> Any:
    """Unpickle what :func:`dumps` made.

    Parameters
    ----------
    namespace : dict, optional
        The interactive namespace: globals of functions of ``__main__``, home of its
        classes, and where References are evaluated.  Default: ``__main__``'s, with
        References left alone.
    natives : mapping, optional
        By token, what gives the value of an object that was left out of the pickle.

    Notes
    -----
    Arrays share the memory of the frames.
    """
    if natives:
        before, context.natives = context.natives, natives
        try:
            return loads(frames, namespace)
        finally:
            context.natives = before
    if namespace is context.namespace:
        return pickle.loads(frames[0], buffers=frames[1:])
    with namespace_of(namespace):
        return pickle.loads(frames[0], buffers=frames[1:])


#: functions of ``__main__`` that have nothing that may change, by their pickles; see
#: loads_function
_templates: OrderedDict[bytes, types.FunctionType] = OrderedDict()


def loads_function(frames: Frames, namespace: dict[str, Any]) -> Any:
    """Unpickle a function that may be called many times: :func:`loads`, but quicker.

    What has nothing that may change is unpickled once; each call has a new function all the same.
    What a Reference stands for is looked up every time: its name may have another value by then.
    """
    data = frames[0]
    if len(frames) > 1 or type(data) is not bytes:
        return loads(frames, namespace)
    known = _templates.get(data)
    if known is not None and known.__globals__ is namespace:
        return copy_of(known)
    context.evaluated = False
    function = loads(frames, namespace)
    if (
        type(function) is types.FunctionType
        and not context.evaluated
        and function.__globals__ is namespace
        and is_constant(function)
    ):
        _templates[data] = copy_of(function)
        if len(_templates) > _FUNCTIONS:
            with suppress(KeyError):  # another thread did
                _templates.popitem(last=False)
    return function

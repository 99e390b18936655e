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

import importlib
import io
import pickle
import sys
import threading
import types
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import cloudpickle

from ..error import SerializationError
from ..protocol import Frames

__all__ = [
    "Pickled",
    "dumps",
    "loads",
    "namespace_of",
    "register_native",
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


class _Context(threading.local):
    namespace: dict[str, Any] | None = None
    #: by token: what gives the value of an object that was left out of the pickle
    natives: Mapping[str, Callable[[], Any]] | None = None
    #: whether a Reference was evaluated; see loads_function
    evaluated = False


_context = _Context()


@contextmanager
def namespace_of(namespace: dict[str, Any] | None) -> Iterator[None]:
    """Unpickle within this namespace: functions of ``__main__`` get it as globals."""
    before, _context.namespace = _context.namespace, namespace
    try:
        yield
    finally:
        _context.namespace = before


def current_namespace() -> dict[str, Any]:
    """The interactive namespace that is being unpickled into; ``__main__``'s by default."""
    if _context.namespace is not None:
        return _context.namespace
    return sys.modules["__main__"].__dict__


#: types whose instances stay out of a request's pickle; see :func:`register_native`
_natives: set[type] = set()


def register_native(kind: type) -> None:
    """Have instances of a type travel as references that the engine resolves: futures of a
    backend's own, say.  Subclasses are not meant."""
    _natives.add(kind)


def resolve(token: str) -> Any:
    """The value of an object that was left out of the pickle being unpickled."""
    native = (_context.natives or {}).get(token)
    if native is None:
        raise SerializationError(
            "a future or reference of the cluster's cannot be resolved here: it travels as an "
            "argument of a request, not inside of something that was pickled before"
        )
    return native()


def evaluate(expression: str) -> Any:
    """What a Reference stands for; only while unpickling for an engine's namespace."""
    if _context.namespace is None:
        from .reference import Reference

        return Reference(expression)
    _context.evaluated = True
    return eval(expression, _context.namespace)


# -- functions --------------------------------------------------------------------


class _Empty:
    """Stands for the content of a cell that has none yet."""

    def __reduce__(self) -> str:
        return "_EMPTY"


_EMPTY = _Empty()


def _is_interactive(module: str | None) -> bool:
    """Whether a name of this module is a name of the interactive namespace."""
    return not module or module.startswith("__")


def _is_importable(obj: Any) -> bool:
    """Whether the object can be had from its module under its own name."""
    found: Any = sys.modules.get(obj.__module__)
    for part in obj.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is obj


def _import_module_of(cls: type) -> None:
    """Import the module that a class says it is of, where nobody has yet, as pickle does: that of
    ``numpy.recarray`` is ``numpy.rec``.  cloudpickle would take the class for one without."""
    module = cls.__module__
    if module in sys.modules or module.partition(".")[0] not in sys.modules:
        return
    with suppress(ImportError):  # it is of none
        importlib.import_module(module)


def _new_function(code: types.CodeType, module: str, n_free: int) -> types.FunctionType:
    if _is_interactive(module):
        scope = current_namespace()
    else:
        scope = importlib.import_module(module).__dict__
    cells = tuple(types.CellType() for _ in range(n_free))
    return types.FunctionType(code, scope, None, None, cells)


def _cell_content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _EMPTY


def _set_function_state(function: types.FunctionType, state: dict[str, Any]) -> None:
    for cell, content in zip(function.__closure__ or (), state.pop("closure"), strict=True):
        if content is not _EMPTY:
            cell.cell_contents = content
    function.__dict__.update(state.pop("dict"))
    for name, value in state.items():
        setattr(function, name, value)


def _reduce_function(function: types.FunctionType) -> tuple[Any, ...]:
    state = {
        # filled in after the function exists, so that it may contain itself
        "closure": tuple(_cell_content(cell) for cell in function.__closure__ or ()),
        "dict": function.__dict__,
        "__defaults__": function.__defaults__,
        "__kwdefaults__": function.__kwdefaults__,
        "__name__": function.__name__,
        "__qualname__": function.__qualname__,
        "__module__": function.__module__,
        "__doc__": function.__doc__,
        "__annotations__": function.__annotations__,
    }
    args = (function.__code__, function.__module__ or "__main__", len(function.__closure__ or ()))
    return (_new_function, args, state, None, None, _set_function_state)


#: formats that a memoryview can be cast to
_FORMATS = frozenset("bBchHiIlLqQnNfd?")


def _new_view(buffer: Any, format: Any, shape: tuple[int, ...] | None) -> memoryview:
    view = memoryview(buffer).cast("B")
    return view.cast(format) if shape is None else view.cast(format, shape)


# -- classes ----------------------------------------------------------------------


#: classes that came by value and were bound on this engine, so that their methods find
#: them; a newer one of the name takes the place of an older
_sent_classes: weakref.WeakSet[type] = weakref.WeakSet()


def _own_class(qualname: str) -> type | None:
    """The receiver's own interactive class of that name."""
    first, *rest = qualname.split(".")
    found: Any = current_namespace().get(first)
    for part in rest:
        found = getattr(found, part, None)
    if not isinstance(found, type) or _is_sent(found):
        return None
    return found if _is_interactive(found.__module__) else None


def _find_or_make_class(qualname: str, make: Callable[..., type], *args: Any) -> type:
    """The receiver's own class of that name, else the sender's, still without its contents."""
    own = _own_class(qualname)
    if own is not None:
        return own
    made = make(*args)
    scope = _context.namespace
    if scope is not None and (qualname not in scope or _is_sent(scope[qualname])):
        # old code says super(MyClass, self)
        scope[qualname] = made
        _sent_classes.add(made)
    return made


def _is_sent(obj: Any) -> bool:
    return isinstance(obj, type) and obj in _sent_classes


def _fill_class(cls: type, state: tuple[str, Callable[..., Any], Any]) -> None:
    """Give the sender's class its contents; the receiver's own has its own."""
    qualname, fill, contents = state
    if cls is not _own_class(qualname):
        fill(cls, contents)


# -- picklers ---------------------------------------------------------------------


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
        if type(obj) in _natives and self._found is not None:
            token = uuid.uuid4().hex
            self._found[token] = obj
            return (resolve, (token,))
        return self._reduce(obj)

    def _reduce(self, obj: Any) -> Any:
        if type(obj) is types.FunctionType:
            if _is_interactive(obj.__module__):
                return _reduce_function(obj)
            if _is_importable(obj):
                return NotImplemented
            if obj.__module__ in sys.modules:
                return _reduce_function(obj)
            # of no module at all, as namedtuple's methods are: with its own globals
            return super().reducer_override(obj)
        if isinstance(obj, type):
            _import_module_of(obj)
            by_value = super().reducer_override(obj)
            if not _is_interactive(obj.__module__) or by_value is NotImplemented:
                return by_value
            # in two steps, as cloudpickle makes classes, which may contain each other
            make, args, contents, _, _, fill = by_value
            args = (obj.__qualname__, make, *args)
            state = (obj.__qualname__, fill, contents)
            return (_find_or_make_class, args, state, None, None, _fill_class)
        elif type(obj) is memoryview:
            buffer = pickle.PickleBuffer(obj) if obj.c_contiguous else obj.tobytes()
            format = obj.format if obj.format in _FORMATS else "B"
            shape = obj.shape if obj.ndim > 1 and obj.nbytes and format == obj.format else None
            return _new_view, (buffer, format, shape)
        elif _is_copied(obj):
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


#: what the standard pickler writes in a tenth of the time, and no otherwise
_SCALARS = frozenset({int, float, complex, bool, str, bytes, type(None), range})


def _is_plain(obj: Any, depth: int = 3) -> bool:
    """Whether an object is a scalar, or a small container of such."""
    kind = type(obj)
    if kind in _SCALARS:
        return True
    if not depth or kind not in (tuple, list, dict) or len(obj) > 16:
        return False
    items = obj
    if kind is dict:
        if not all(type(key) in _SCALARS for key in obj):
            return False
        items = obj.values()
    for item in items:
        if type(item) not in _SCALARS and not _is_plain(item, depth - 1):
            return False
    return True


#: functions pickled lately, by the identity of their code
_functions: OrderedDict[int, tuple[Any, ...]] = OrderedDict()
_FUNCTIONS = 256


def _is_constant(function: types.FunctionType) -> bool:
    """Whether a function is nothing but code, with scalars for defaults and builtins, or their
    names, for annotations."""
    if function.__closure__ or function.__dict__:
        return False
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    return all(type(value) in _SCALARS for value in defaults) and all(
        hint is None or type(hint) is str or (type(hint) is type and hint.__module__ == "builtins")
        for hint in function.__annotations__.values()
    )


def _dump_function(function: types.FunctionType, name: str) -> Frames | None:
    """A function of ``__main__`` that has nothing that may change, pickled once for many calls."""
    if not _is_interactive(function.__module__) or not _is_constant(function):
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
        raise _explain(obj, name, error) from error
    if not found:
        return [file.getvalue(), *buffers]
    frames = Pickled([file.getvalue(), *buffers])
    frames.natives = found
    return frames


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
        before, _context.natives = _context.natives, natives
        try:
            return loads(frames, namespace)
        finally:
            _context.natives = before
    if namespace is _context.namespace:
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
        return _like(known)
    _context.evaluated = False
    function = loads(frames, namespace)
    if (
        type(function) is types.FunctionType
        and not _context.evaluated
        and function.__globals__ is namespace
        and _is_constant(function)
    ):
        _templates[data] = _like(function)
        if len(_templates) > _FUNCTIONS:
            with suppress(KeyError):  # another thread did
                _templates.popitem(last=False)
    return function


def _like(function: types.FunctionType) -> types.FunctionType:
    new = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__
    )
    new.__qualname__ = function.__qualname__
    new.__module__ = function.__module__
    new.__doc__ = function.__doc__
    if function.__kwdefaults__:
        new.__kwdefaults__ = dict(function.__kwdefaults__)
    if function.__annotations__:
        new.__annotations__ = dict(function.__annotations__)
    return new


# -- errors -----------------------------------------------------------------------


def _explain(obj: Any, name: str, error: Exception) -> SerializationError:
    path, culprit = _find_culprit(obj, name, depth=0)
    return SerializationError(
        f"cannot pickle {path}, of type {_type_name(culprit)}: {error}. "
        "Send what it is made from and build it on the engine, or define it there with %px."
    )


def _type_name(obj: Any) -> str:
    cls = type(obj)
    prefix = "" if cls.__module__ == "builtins" else f"{cls.__module__}."
    return prefix + cls.__qualname__


def _find_culprit(obj: Any, path: str, depth: int) -> tuple[str, Any]:
    """The innermost part of an object that cannot be pickled by itself."""
    if depth < 12:
        for part, where in _parts(obj, path):
            try:
                _Pickler(io.BytesIO()).dump(part)
            except Exception:
                return _find_culprit(part, where, depth + 1)
    return path, obj


def _parts(obj: Any, path: str) -> Iterator[tuple[Any, str]]:
    if isinstance(obj, Mapping):
        for key, value in obj.items():
            yield value, f"{path}[{key!r}]"
    elif isinstance(obj, (list, tuple, set, frozenset)):
        for index, value in enumerate(obj):
            yield value, f"{path}[{index}]"
    elif isinstance(obj, types.FunctionType):
        for variable, cell in zip(obj.__code__.co_freevars, obj.__closure__ or (), strict=True):
            yield _cell_content(cell), f"{path}: closure variable {variable!r}"
        for index, value in enumerate(obj.__defaults__ or ()):
            yield value, f"{path}: default argument {index}"
    elif isinstance(obj, types.MethodType):
        yield obj.__self__, f"{path}.__self__"
    elif isinstance(getattr(obj, "__dict__", None), dict) and not isinstance(obj, type):
        for attribute, value in vars(obj).items():
            yield value, f"{path}.{attribute}"

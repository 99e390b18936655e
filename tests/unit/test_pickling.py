"""How functions, classes and data travel: the rules, without an engine."""

from __future__ import annotations

import collections
import fnmatch
import functools
import pickle
import sys
import threading
import types
from typing import Any

import pytest

from pxcompat import serialize
from pxcompat.error import SerializationError
from pxcompat.serialize import Reference
from pxcompat.serialize.canning import CannedArray, CannedPartial, PrePickled, deserialize_object
from pxcompat.serialize.context import current_namespace, namespace_of
from pxcompat.serialize.pickling import OUT_OF_BAND, loads_function


@pytest.fixture(autouse=True)
def default_flavour():
    yield
    serialize.use_pickle()


def notebook(code: str, **names: Any) -> dict[str, Any]:
    """The names of a notebook that has run the code."""
    namespace = {"__name__": "__main__", **names}
    exec(compile(code, "<notebook>", "exec", dont_inherit=True), namespace)
    return namespace


def sent(obj: Any, namespace: dict[str, Any] | None = None) -> Any:
    return serialize.loads(serialize.dumps(obj), {} if namespace is None else namespace)


# -- functions ----------------------------------------------------------------------


def test_globals_are_the_receivers():
    here = notebook("x = 1\ndef f(): return x\ndef put(v):\n    global x\n    x = v")
    there = {"x": 2}
    assert sent(here["f"], there)() == 2
    sent(here["put"], there)(7)
    assert (there["x"], here["x"]) == (7, 1)
    with pytest.raises(NameError, match="'x'"):
        sent(here["f"], {})()


def test_code_defaults_closure_and_attributes_travel():
    here = notebook(
        """
def outer(n):
    def f(a, b=2, *, c=3) -> int:
        "doc"
        return a + b + c + n
    f.note = "kept"
    return f
f = outer(10)
"""
    )
    f = sent(here["f"])
    assert f(1) == 16
    assert (f.__doc__, f.note, f.__qualname__) == ("doc", "kept", "outer.<locals>.f")
    assert (f.__module__, f.__annotations__) == ("__main__", {"return": int})


@pytest.mark.parametrize("flavour", [serialize.use_pickle, serialize.use_cloudpickle])
def test_code_is_still_of_its_file(flavour):
    flavour()
    f = sent(notebook("\ndef f(): return lambda: 1")["f"])
    for code in (f.__code__, f().__code__):
        assert (code.co_filename, code.co_firstlineno) == ("<notebook>", 2)


def test_a_closure_may_hold_its_own_function():
    here = notebook(
        """
def outer():
    def fac(n): return 1 if n < 2 else n * fac(n - 1)
    return fac
"""
    )
    assert sent(here["outer"]())(5) == 120


def test_a_cell_without_content_stays_empty():
    here = notebook(
        """
def outer():
    def f(): return later
    g = f
    if False:
        later = 1
    return g
"""
    )
    with pytest.raises(NameError, match="later"):
        sent(here["outer"]())()


def test_functions_of_modules_go_by_reference():
    assert sent(pickle.whichmodule) is pickle.whichmodule
    assert sent(len) is len


def test_what_a_module_does_not_hold_runs_with_the_receivers_module(monkeypatch):
    module = types.ModuleType("a_module")
    monkeypatch.setitem(sys.modules, "a_module", module)
    exec("y = 1\nf = lambda: y", module.__dict__)
    frames = serialize.dumps(module.f)
    module.y = 5
    assert serialize.loads(frames, {"y": "the namespace's"})() == 5


def test_use_cloudpickle_carries_the_senders_globals():
    here = notebook("x = 1\ndef f(): return x")
    serialize.use_cloudpickle()
    assert sent(here["f"], {"x": 2})() == 1
    serialize.use_pickle()
    assert sent(here["f"], {"x": 2})() == 2


@pytest.mark.parametrize("flavour", [serialize.use_pickle, serialize.use_cloudpickle])
def test_cached_functions_travel_as_the_functions_within_them(flavour):
    flavour()
    here = notebook(
        """
import functools
@functools.lru_cache(maxsize=5, typed=True)
def f(x): return x + y
f.note = "kept"
def outer():
    @functools.cache
    def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
    return fib
""",
        y=1,
    )
    f = sent(here["f"], {"y": 1})
    assert [f(1), f(1)] == [2, 2]
    assert (f.cache_info().hits, f.cache_parameters()) == (1, {"maxsize": 5, "typed": True})
    assert (f.note, f.__name__) == ("kept", "f")
    fib = sent(here["outer"]())
    assert fib(30) == 832040
    assert fib.cache_info().misses == 31  # it calls itself, and not another one
    assert sent(fnmatch._compile_pattern) is fnmatch._compile_pattern


def test_use_dill_and_back():
    pytest.importorskip("dill")
    here = notebook("def f(x): return x + 1")
    serialize.use_dill()
    frames = serialize.dumps({"f": here["f"], "n": 3})
    assert b"_dill_loads" in bytes(frames[0])
    got = serialize.loads(frames, {})
    assert got["f"](got["n"]) == 4
    serialize.use_pickle()
    assert b"_dill_loads" not in bytes(serialize.dumps(1)[0])


def test_use_dill_without_dill_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dill", None)
    with pytest.raises(ImportError, match="pip install dill"):
        serialize.use_dill()
    assert b"_dill_loads" not in bytes(serialize.dumps(1)[0])


# -- classes ------------------------------------------------------------------------

CLASSES = """
class Base:
    def who(self): return "base"
class Sub(Base):
    def who(self): return super().who() + " sub"
"""


def test_a_class_travels_by_value_where_it_is_missing():
    here = notebook(CLASSES)
    assert sent(here["Sub"]()).who() == "base sub"


def test_the_receivers_own_class_comes_first():
    here, there = notebook(CLASSES), notebook(CLASSES.replace('" sub"', '" of the engine"'))
    got = sent(here["Sub"](), there)
    assert type(got) is there["Sub"]
    assert got.who() == "base of the engine"


def test_a_name_that_is_no_class_there_does_not_count():
    here = notebook(CLASSES)
    assert sent(here["Base"](), {"Base": "a string"}).who() == "base"
    assert sent(here["Base"](), {"Base": int}).who() == "base"


def test_nested_classes_are_found_by_their_qualified_name():
    code = "class Outer:\n    class Inner:\n        v = {}"
    here, there = notebook(code.format(1)), notebook(code.format(2))
    assert sent(here["Outer"].Inner(), there).v == 2
    assert sent(here["Outer"].Inner()).v == 1


def test_classes_of_one_message_stay_related():
    here = notebook(CLASSES)
    base, sub = sent((here["Base"](), here["Sub"]()))
    assert isinstance(sub, type(base))


def test_classes_may_know_each_other():
    here = notebook(
        CLASSES + "Base.known = [Base, Sub]\nclass Other:\n    base = Base\nBase.other = Other"
    )
    sub = sent(here["Sub"]())
    assert sub.who() == "base sub"
    assert type(sub).known == [type(sub).__mro__[1], type(sub)]
    assert type(sub).other.base is type(sub).known[0]


def test_namedtuples_and_enums_of_the_notebook():
    here = notebook(
        "import enum\nfrom collections import namedtuple\n"
        "T = namedtuple('T', 'a b')\nclass Colour(enum.Enum):\n    RED = 1"
    )
    t = sent(here["T"](1, 2))
    assert (t.a, t.b) == (1, 2)
    assert sent(here["Colour"].RED).name == "RED"


# -- references ---------------------------------------------------------------------


def test_references_are_evaluated_at_any_depth():
    there = {"a": 5, "d": {"k": [7]}}
    obj = [Reference("a"), {"x": (Reference("d['k'][0]"),)}, Reference("a + 1")]
    assert sent(obj, there) == [5, {"x": (7,)}, 6]
    assert sent(Reference("d"), there) is there["d"]


def test_references_stay_references_without_a_namespace():
    frames = serialize.dumps(Reference("a"))
    assert serialize.loads(frames) == Reference("a")
    with pytest.raises(NameError):
        serialize.loads(frames, {})


def test_a_reference_is_a_name():
    with pytest.raises(TypeError, match="5 is not a string"):
        Reference(5)  # type: ignore[arg-type]
    assert len({Reference("a"), Reference("a"), Reference("b")}) == 2


def test_the_namespace_is_put_back():
    outer: dict[str, Any] = {}
    with namespace_of(outer):
        with pytest.raises(ZeroDivisionError), namespace_of({}):
            raise ZeroDivisionError
        assert current_namespace() is outer
    assert current_namespace() is sys.modules["__main__"].__dict__


def test_namespaces_are_a_threads_own():
    seen = []
    with namespace_of({}):
        thread = threading.Thread(target=lambda: seen.append(current_namespace()))
        thread.start()
        thread.join()
    assert seen == [sys.modules["__main__"].__dict__]


# -- buffers ------------------------------------------------------------------------


def test_classes_of_modules_that_nobody_has_imported_go_by_reference():
    numpy = pytest.importorskip("numpy")
    records = numpy.zeros(3, dtype=[("i", "i4")]).view(numpy.recarray)
    assert records.__class__.__module__ == "numpy.rec"
    sys.modules.pop("numpy.rec", None)
    assert type(sent(records)) is numpy.recarray
    assert len(serialize.dumps(numpy.recarray)[0]) < 100


def test_memoryviews_arrive_as_they_are():
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(12, dtype="i4").reshape(3, 4)
    for view in (memoryview(b"abc"), memoryview(array), memoryview(array[:, ::2]), memoryview(b"")):
        got = sent(view)
        assert type(got) is memoryview and (got.format, got.shape) == (view.format, view.shape)
        assert got.tobytes() == view.tobytes()
    records = memoryview(numpy.zeros(3, dtype=[("i", "i4")]))
    assert sent(records).tobytes() == records.tobytes()  # of a kind that no memoryview can tell
    large = memoryview(bytearray(OUT_OF_BAND))
    assert len(serialize.dumps(large)) == 2


def test_large_buffers_stay_out_of_band_uncopied():
    numpy = pytest.importorskip("numpy")
    a = numpy.zeros(OUT_OF_BAND, dtype="u1")
    head, buffer = serialize.dumps({"a": a})
    assert len(head) < 1000
    a[0] = 9
    assert memoryview(buffer)[0] == 9
    small = numpy.zeros(OUT_OF_BAND - 1, dtype="u1")
    assert len(serialize.dumps(small)) == 1
    assert len(serialize.dumps(a, keep_buffers=False)) == 1


@pytest.mark.parametrize("n", [3, 100_000])
@pytest.mark.parametrize("readonly", [False, True])
def test_arrays_arrive_writable(n, readonly):
    numpy = pytest.importorskip("numpy")
    a = numpy.arange(n)
    a.flags.writeable = not readonly
    # a backend receives frames into memory of its own
    frames = [bytearray(frame) for frame in serialize.dumps(a)]
    b = serialize.loads(frames)
    b[0] = 5
    assert (b[0], a[0]) == (5, 0)
    assert (b[1:] == a[1:]).all()


def test_arrays_that_are_not_contiguous():
    numpy = pytest.importorskip("numpy")
    a = numpy.arange(100_000).reshape(100, 1000)
    for view in (a[::2, ::3], a.T, numpy.asfortranarray(a)):
        assert (sent(view) == view).all()


# -- errors -------------------------------------------------------------------------


def lock_in(obj: Any) -> str:
    with pytest.raises(SerializationError) as caught:
        serialize.dumps(obj, name="argument")
    assert isinstance(caught.value, TypeError)
    assert caught.value.__cause__ is not None
    return str(caught.value)


def test_errors_name_the_object_and_its_path():
    lock = threading.Lock()
    assert "cannot pickle argument, of type _thread.lock" in lock_in(lock)
    assert "argument[1]['k'], of type _thread.lock" in lock_in([1, {"k": lock}])
    assert "argument.lock, of type _thread.lock" in lock_in(types.SimpleNamespace(lock=lock))


def test_errors_name_closure_variables_and_defaults():
    here = notebook("def outer(l):\n    def f(x=1): return l\n    return f")
    lock = threading.Lock()
    f = here["outer"](lock)
    assert "argument: closure variable 'l', of type _thread.lock" in lock_in(f)
    f = here["outer"](1)
    f.__defaults__ = (lock,)
    assert "argument: default argument 0" in lock_in(f)


def test_an_object_that_contains_itself_can_be_explained():
    loop: list[Any] = []
    loop += [loop, threading.Lock()]
    assert "of type" in lock_in(loop)


# -- ipyparallel's vocabulary -------------------------------------------------------


def test_can_and_uncan():
    here = notebook("def f(): return x")
    canned = serialize.can({"f": here["f"], "l": [Reference("x")], "n": 3})
    got = serialize.uncan(pickle.loads(pickle.dumps(canned)), {"x": 4})
    assert (got["f"](), got["l"], got["n"]) == (4, [4], 3)


def test_partials_are_canned_in_parts():
    here = notebook("def f(a, b): return a, b, x")
    canned = serialize.can(functools.partial(here["f"], Reference("x"), b=b"bytes"))
    assert isinstance(canned, CannedPartial)
    assert serialize.uncan(canned, {"x": 1})() == (1, b"bytes", 1)


def test_can_map_may_be_added_to():
    class Mine:
        pass

    serialize.can_map[Mine] = lambda obj: "canned"
    serialize.uncan_map[Mine] = lambda obj, g: ("uncanned", g)
    try:
        assert serialize.can([Mine()]) == ["canned"]
        mine, scope = Mine(), {"a": 1}
        assert serialize.uncan(mine, scope) == ("uncanned", scope)
    finally:
        del serialize.can_map[Mine], serialize.uncan_map[Mine]


def test_serialized_objects_leave_what_is_not_theirs():
    numpy = pytest.importorskip("numpy")
    a = numpy.arange(10_000)
    buffers = serialize.serialize_object({"a": a, "b": b"small"})
    assert len(buffers) == 2
    got, rest = deserialize_object([*buffers, b"next"])
    assert (got["a"] == a).all()
    assert (got["b"], rest) == (b"small", [b"next"])


def test_structured_and_object_arrays_are_canned_whole():
    numpy = pytest.importorskip("numpy")
    for a in (
        numpy.array([(1, 2.0)], dtype=[("a", int), ("b", float)]),
        numpy.array([None, {"k": 1}], dtype=object),
        numpy.zeros((0, 3)),
    ):
        got = CannedArray(a).get_object()
        assert (got.shape, got.dtype, got.tolist()) == (a.shape, a.dtype, a.tolist())


def test_apply_messages():
    here = notebook("def f(a, k): return a + k + x")
    message = serialize.pack_apply_message(here["f"], (1,), {"k": Reference("x")})
    f, args, kwargs = serialize.unpack_apply_message(message, {"x": 10})
    assert f(*args, **kwargs) == 21


def test_prepickled_objects_arrive_as_what_they_hold():
    counted = collections.Counter("aab")
    assert sent([PrePickled(counted)]) == [counted]


def test_a_function_that_is_called_again_is_a_new_one_each_time() -> None:
    scope: dict[str, Any] = {"x": 1}
    source = "def f():\n    'says'\n    return x\ndef g(a=[]):\n    a.append(1)\n    return a"
    exec(source, made := {"__name__": "__main__"})
    for name in ("f", "g"):
        frames = serialize.dumps(made[name])
        first, second = (loads_function(frames, scope) for _ in range(2))
        first.mark = 1
        assert first is not second and not hasattr(second, "mark")
        assert (second.__name__, second.__module__) == (name, "__main__")
        first(), second()
    assert second() == [1, 1]  # its default is its own, too
    f = loads_function(serialize.dumps(made["f"]), scope)
    assert (f(), f.__doc__, f.__qualname__) == (1, "says", "f")
    assert loads_function(serialize.dumps(made["f"]), {"x": 2})() == 2


def test_a_function_that_changed_is_pickled_as_it_is_now() -> None:
    def f() -> int:
        return 1

    f.__module__ = "__main__"
    assert serialize.loads(serialize.dumps(f))() == 1
    f.__doc__ = "new"
    f.mark = 2  # type: ignore[attr-defined]
    got = serialize.loads(serialize.dumps(f))
    assert (got.__doc__, got.mark) == ("new", 2)
    f.__code__ = (lambda: 3).__code__
    del f.mark  # type: ignore[attr-defined]
    assert serialize.loads(serialize.dumps(f))() == 3


def test_defaults_and_annotations_that_changed_are_pickled_as_they_are_now() -> None:
    f = notebook("def f(a=1, *, b=2) -> int: return a, b")["f"]
    scope: dict[str, Any] = {}

    def got() -> Any:
        return loads_function(serialize.dumps(f), scope)

    assert got()() == (1, 2)
    f.__defaults__ = (True,)  # which equals 1
    assert got()()[0] is True
    f.__kwdefaults__["b"] = 2.0
    assert repr(got()()) == "(True, 2.0)"
    f.__annotations__["return"] = "bool"
    assert got().__annotations__ == {"return": "bool"}


def test_a_function_called_again_has_its_own_defaults_and_annotations() -> None:
    scope: dict[str, Any] = {}
    frames = serialize.dumps(notebook("def f(a=1, *, b=2) -> int: return a, b")["f"])
    changed = [loads_function(frames, scope) for _ in range(2)][1]
    changed.__defaults__, changed.__kwdefaults__["b"] = (10,), 20
    changed.__annotations__["return"] = str
    again = loads_function(frames, scope)
    assert again() == (1, 2) and again.__annotations__ == {"return": int}


def test_pickled_again_frames_leave_what_they_refer_to_here() -> None:
    class Here:
        def __reduce__(self) -> Any:
            raise AssertionError("it stays here")

    serialize.register_native(Here)
    frames = serialize.dumps([Here()], natives=True)
    assert isinstance(frames, serialize.Pickled)
    assert pickle.loads(pickle.dumps(frames)) == frames

"""How values and functions travel: the pickling rules, and clause 6 of the seam."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import pytest

import pxcompat as ipp
from pxcompat import error

from ..common import PATIENCE

np = pytest.importorskip("numpy")


@pytest.fixture
def notebook() -> Iterator[dict[str, Any]]:
    """A ``__main__`` for what a notebook would define."""
    module = types.ModuleType("__main__")
    before = sys.modules["__main__"]
    sys.modules["__main__"] = module
    module.__dict__.update(ipp=ipp)
    yield module.__dict__
    sys.modules["__main__"] = before


def define(notebook: dict[str, Any], source: str) -> None:
    exec(compile(source, "<cell>", "exec"), notebook)


def test_globals_of_a_notebook_function_are_the_engines(
    e0: ipp.DirectView, notebook: dict[str, Any]
) -> None:
    define(notebook, "a = 'client'\ndef read(): return a\ndef write(x):\n  global a\n  a = x")
    with pytest.raises(ipp.RemoteError, match=r"name 'a' is not defined.*%px.*use_cloudpickle"):
        e0.apply_sync(notebook["read"])
    e0["a"] = "engine"
    assert e0.apply_sync(notebook["read"]) == "engine"
    e0.apply_sync(notebook["write"], "written")
    assert e0["a"] == "written"
    assert notebook["a"] == "client"


def test_use_cloudpickle_carries_the_clients_globals(
    e0: ipp.DirectView, notebook: dict[str, Any]
) -> None:
    define(notebook, "a = 'client'\ndef read(x=None): return a")
    e0.use_cloudpickle()
    try:
        assert e0.apply_sync(notebook["read"]) == "client"
        assert e0.map_sync(notebook["read"], [1, 2]) == ["client"] * 2
        e0["f"] = notebook["read"]
        assert e0.apply_sync(ipp.Reference("f")) == "client"
    finally:
        e0.use_pickle()
    with pytest.raises(ipp.RemoteError, match="NameError"):
        e0.apply_sync(notebook["read"])


def test_closures_defaults_and_recursion(e0: ipp.DirectView) -> None:
    def outer(n: int) -> Any:
        def fact(k: int, one: int = 1) -> int:
            return one if k < 2 else k * fact(k - 1)

        return lambda: fact(n)

    assert e0.apply_sync(outer(5)) == 120


def test_classes_travel_by_value_unless_the_engine_has_them(
    e0: ipp.DirectView, notebook: dict[str, Any]
) -> None:
    define(
        notebook,
        "class Base:\n"
        "  def __init__(self): self.x = 1\n"
        "class Child(Base):\n"
        "  def __init__(self):\n    super().__init__(); self.y = 2\n"
        "  def total(self): return self.x + self.y\n"
        "def total(obj): return obj.total(), type(obj).__name__\n"
        "def make(cls): return cls()\n",
    )
    child = notebook["Child"]
    assert e0.apply_sync(notebook["total"], child()) == (3, "Child")
    assert type(e0.apply_sync(notebook["make"], child)) is child
    e0.execute("class Child:\n  def __init__(self): pass\n  def total(self): return 'engine'")
    assert e0.apply_sync(notebook["total"], child())[0] == "engine"


def test_a_class_that_names_itself_travels_and_can_be_redefined(
    e0: ipp.DirectView, notebook: dict[str, Any]
) -> None:
    source = (
        "class Base:\n"
        "  def value(self): return {}\n"
        "class Child(Base):\n"
        "  def value(self): return super(Child, self).value() + 1\n"
        "def value(obj): return obj.value()\n"
    )
    define(notebook, source.format(1))
    assert e0.apply_sync(notebook["value"], notebook["Child"]()) == 2
    define(notebook, source.format(10))
    assert e0.apply_sync(notebook["value"], notebook["Child"]()) == 11


def test_classes_that_contain_each_other(e0: ipp.DirectView, notebook: dict[str, Any]) -> None:
    define(
        notebook,
        "class Plugin:\n"
        "  registry = []\n"
        "  def __init_subclass__(cls): Plugin.registry.append(cls)\n"
        "class Sub(Plugin):\n"
        "  def who(self): return {c.__name__ for c in self.registry}\n"
        "def who(obj): return obj.who()\n",
    )
    assert e0.apply_sync(notebook["who"], notebook["Sub"]()) == {"Sub"}


def test_a_class_of_the_engine_comes_back(e0: ipp.DirectView, notebook: dict[str, Any]) -> None:
    e0.execute("class There:\n  v = 7\n  def get(self): return self.v\nt = There()")
    assert e0["t"].get() == 7


def test_functions_of_modules_use_the_engines_module(e0: ipp.DirectView) -> None:
    import os.path

    assert e0.apply_sync(os.path.join, "a", "b") == "a/b"
    assert e0.apply_sync(np.linalg.norm, np.array([3.0, 4.0])) == 5.0


def test_references_at_any_depth(e0: ipp.DirectView) -> None:
    e0.push({"d": {"k": [1, 2]}})
    deep = [{"x": (ipp.Reference("d['k'][1]"), [ipp.Reference("len(d)")])}]
    assert e0.apply_sync(lambda v: v, deep) == [{"x": (2, [1])}]
    assert e0.apply_sync(lambda *, k: k, k=ipp.Reference("d")) == {"k": [1, 2]}
    e0.execute("f = lambda x: x + 1")
    assert e0.apply_sync(ipp.Reference("f"), 1) == 2
    with pytest.raises(ipp.RemoteError, match="NameError"):
        e0.apply_sync(lambda x: x, ipp.Reference("nowhere"))


def test_push_and_pull_expressions(e0: ipp.DirectView) -> None:
    e0.execute("class A: pass\na = A(); d = {}")
    e0.push({"a.b": 1, "d['k']": 2})
    assert e0["a.b"] == 1
    assert e0.pull(("d['k'] + 1", "a.b")) == [3, 1]
    assert "_px_value" not in e0.apply_sync(ipp.interactive(lambda: list(globals())))


@pytest.mark.parametrize("shape", [(3,), (1000, 500)], ids=["small", "large"])
def test_arrays_arrive_writable_on_both_sides(e0: ipp.DirectView, shape: tuple[int, ...]) -> None:
    array = np.ones(shape)
    e0["x"] = array
    e0.execute("x += 1")
    back = e0["x"]
    back += 1
    assert (back == 3).all()
    assert (array == 1).all()
    assert (e0["x"] == 2).all()
    array.flags.writeable = False
    e0["x"] = array
    e0.execute("x += 1")


def test_a_result_is_as_it_was_when_it_was_asked_for(e0: ipp.DirectView) -> None:
    e0["x"] = np.zeros(2_000_000)
    pulled = [e0.pull("x", block=False), e0.execute("x += 1", block=False)][0]
    assert (pulled.get(PATIENCE) == 0).all()


def test_a_large_value_for_all_engines(rc: ipp.Client) -> None:
    array = np.arange(1_000_000)
    view = rc[:]
    view.push({"x": array}, block=True)
    rc[rc.ids[0]].execute("x += 1", block=True)
    firsts = view.apply_sync(ipp.interactive(lambda: int(x[0])))  # type: ignore[name-defined]  # noqa: F821
    assert firsts == [1] + [0] * (len(rc) - 1)
    assert all((part == array).all() for part in view.apply_sync(lambda a: a, array))


def test_a_large_value_leaves_the_client_once(rc: ipp.Client) -> None:
    import psutil

    array = np.random.random(4_000_000)  # 32 MB

    def written() -> int:
        return int(psutil.Process().io_counters().write_chars)

    view = rc[:]
    view.push({"x": 0}, block=True)
    before = written()
    view.push({"x": array}, block=True)
    assert written() - before < 1.5 * array.nbytes


def test_balanced_calls_with_large_arguments(rc: ipp.Client) -> None:
    arrays = [np.full(300_000, n) for n in range(4)]
    sums = rc.load_balanced_view().map_sync(lambda a: float(a.mean()), arrays)
    assert sums == [0, 1, 2, 3]


def test_scatter_and_gather(rc: ipp.Client) -> None:
    view = rc[:]
    data = list(range(10))
    view.scatter("part", data, block=True)
    assert view.gather("part", block=True) == data
    array = np.random.random((11, 3))
    view.scatter("part", array, block=True)
    assert (view.gather("part", block=True) == array).all()


@pytest.mark.parametrize("dist", ["b", "r"])
def test_large_arrays_are_gathered_without_a_second_copy(rc: ipp.Client, dist: str) -> None:
    view = rc[:]
    array = np.arange(500_001 * len(view.targets)).reshape(-1, 3)
    view.scatter("part", array, dist=dist, block=True)
    result = view.gather("part", dist=dist, block=False)
    whole = result.get(PATIENCE)
    assert (whole == array).all()
    assert whole.flags.writeable
    for engine, part in result.get_dict().items():
        assert np.shares_memory(part, whole)
        assert (part == rc.direct_view(engine).pull("part", block=True)).all()


def test_what_cannot_be_pickled_is_named(e0: ipp.DirectView) -> None:
    with pytest.raises(error.SerializationError, match=r"'k'\]\[1\].*lock"):
        e0.apply_sync(lambda x: x, {"k": [0, threading.Lock()]})
    with pytest.raises(ipp.RemoteError, match=r"SerializationError.*the result.*lock"):
        e0.apply_sync(lambda: __import__("threading").Lock())
    assert e0.apply_sync(lambda: "still there") == "still there"


def test_a_result_that_cannot_be_unpickled_says_so(e0: ipp.DirectView) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return (int, ("no number",))

    with pytest.raises(ValueError, match="no number"):
        e0.apply_sync(lambda: None) or e0.apply_sync(lambda make: make(), lambda: Bad())


def test_a_reference_to_a_function_is_what_its_name_is_now(e0: ipp.DirectView) -> None:
    for factor in (2, 3):
        e0.execute(f"scaled = lambda x: {factor} * x")
        assert e0.apply_sync(ipp.Reference("scaled"), 5) == 5 * factor

"""Canned objects and their parts, which code that extends ``can_map`` looks at."""

from __future__ import annotations

import functools
import pickle
from types import CellType, SimpleNamespace

import pytest

from pxcompat.serialize import Reference, canning
from pxcompat.serialize.canning import (
    CannedBuffer,
    CannedCell,
    CannedClass,
    CannedFunction,
    CannedObject,
    CannedPartial,
    PrePickled,
    can,
    can_dependent,
    can_map,
    can_sequence,
    deserialize_object,
    istype,
    uncan,
    uncan_sequence,
)
from pxcompat.serialize.codeutil import code_ctor, reduce_code


def twice(a, b=(1, 2), *, c=b"3") -> int:
    return a * 2


def closed_over(value):
    def inner():
        return value

    return inner


def test_a_functions_parts():
    canned = CannedFunction(f=twice)
    assert (canned.module, canned.__name__) == (twice.__module__, "twice")
    assert canned.code.co_name == "twice"
    assert uncan(canned.defaults) == [(1, 2)]
    assert uncan(canned.kwdefaults) == {"c": b"3"}
    assert list(canned.annotations) == ["return"]
    assert canned.closure is None
    assert CannedFunction(lambda: 0).defaults is None
    assert canned.get_object({})(4) == 8


def test_a_closure_is_cells():
    (cell,) = CannedFunction(closed_over([1])).closure
    assert isinstance(cell, CannedCell) and cell.cell_contents == [1]
    assert uncan(pickle.loads(pickle.dumps(can(CellType(b"x"))))).cell_contents == b"x"


def test_a_class_and_what_it_is_made_of():
    class Here: ...

    canned = CannedClass(cls=Here)
    assert canned.name == "Here" and canned.parents == [object] and not canned.old_style
    assert canned.get_object({}).__name__ == "Here"


def test_a_partials_parts():
    canned = CannedPartial(f=functools.partial(twice, b"1", c=b"2"))
    assert canned.arg_buffer_counts == [1]
    assert canned.keyword_buffer_counts == {"c": 1}
    assert canned.buffers == [b"1", b"2"]
    assert uncan(canned)() == b"11"


def test_buffers():
    canned = CannedBuffer(b"abc")
    assert isinstance(canned.get_object(), memoryview) and canned.get_object() == b"abc"
    assert canning.CannedBytes.wrap(memoryview(b"abc")) == b"abc"


def test_attributes_are_canned_by_themselves():
    class Special:
        def __init__(self, value):
            self.value = value

    original = SimpleNamespace(f=Special(3), g=1)
    can_map[Special] = lambda special: CannedObject(special.value, hook=None)
    try:
        canned = CannedObject(original, keys=["f"])
        arrived = pickle.loads(pickle.dumps(canned)).get_object({})
    finally:
        del can_map[Special]
    assert arrived.f == 3 and arrived.g == 1
    assert isinstance(original.f, Special), "the original is as it was"


def test_a_hook_sees_what_comes_out():
    def hook(obj, g):
        obj.seen = g["name"]

    canned = CannedObject(SimpleNamespace(a=1), hook=hook)
    arrived = pickle.loads(pickle.dumps(canned)).get_object({"name": "here"})
    assert (arrived.a, arrived.seen) == (1, "here")


def test_sequences():
    assert isinstance(can_sequence([b"1", 2])[0], CannedObject)
    assert uncan_sequence(can_sequence((b"1", 2))) == (b"1", 2)
    assert can_sequence("text") == "text"


def test_strictly_of_a_type():
    assert istype(1, int) and istype(1, (str, int))
    assert not istype(True, int) and not istype([], (set, tuple))


def test_a_reference_is_looked_up_where_it_is_asked_for():
    assert Reference("a + 1").get_object({"a": 1}) == 2


def test_a_function_with_a_condition():
    assert uncan(can_dependent({"a": 1})) == {"a": 1}


def test_prepickled_buffers_can_be_had_again_and_again():
    cached = PrePickled([1, b"x" * 5000])
    for _ in range(2):
        assert deserialize_object(cached.buffers)[0] == [1, b"x" * 5000]
    assert pickle.loads(pickle.dumps(cached)) == [1, b"x" * 5000]


def test_code_objects_are_pickled():
    code = pickle.loads(pickle.dumps(twice.__code__))
    assert code == twice.__code__
    make, args = reduce_code(code)
    assert make is code_ctor and make(*args) == code


@pytest.mark.parametrize("name", ["use_dill", "use_cloudpickle", "use_pickle", "interactive"])
def test_names_that_are_elsewhere_too(name):
    assert callable(getattr(canning, name))

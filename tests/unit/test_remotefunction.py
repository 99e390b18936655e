"""@remote and @parallel: names, shapes, how often things are pickled."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest

from pxcompat import serialize
from pxcompat.asyncresult import AsyncMapResult, AsyncResult
from pxcompat.lbview import LoadBalancedView
from pxcompat.remotefunction import ParallelFunction, RemoteFunction, getname, parallel, remote
from pxcompat.serialize import Reference
from pxcompat.view import DirectView


@pytest.fixture
def view(client):
    return DirectView(client, targets=[0, 1, 2])


@pytest.fixture
def balanced(client):
    return LoadBalancedView(client)


def double(x):
    """twice x"""
    return x * 2


def test_getname():
    class Awkward:
        def __getattr__(self, name):
            raise RuntimeError(name)

        def __str__(self):
            return "awkward"

    assert getname(double) == "double"
    assert getname(Reference("f")) == "f"
    assert getname(Awkward()) == "awkward"


def test_remote_function_looks_like_what_it_wraps(view):
    f = remote(view, block=True)(double)
    assert isinstance(f, RemoteFunction)
    assert f.__name__ == "double"
    assert f.__doc__ == "RemoteFunction wrapping:\ntwice x"
    assert str(f.__signature__) == "(x)"
    assert f(4) == [8, 8, 8]
    assert view.remote(block=True)(Reference("len")).__name__ == "len"


def test_remote_blocks_as_the_view_does_when_not_told(view):
    f = remote(view)(double)
    assert isinstance(f(1), AsyncResult)
    view.block = True
    assert f(x=1) == [2, 2, 2]


def test_flags_hold_for_the_call(view):
    f = view.remote(block=True, targets=1, label="mine")(double)
    assert f(1) == 2
    assert view.client.requests[-1][1]["label"] == "mine"
    assert view.targets == [0, 1, 2] and view.label is None


def test_parallel_calls_once_a_part(view):
    f = parallel(view, block=True)(double)
    assert isinstance(f, ParallelFunction)
    assert f([[1], [2], [3], [4]]) == [[1], [2], [1], [2], [3], [3], [4], [4]]
    sizes = view.parallel()(len)
    result = sizes(range(7))
    assert isinstance(result, AsyncMapResult)
    assert len(result) == 3 and result.get() == [3, 2, 2]
    np.testing.assert_array_equal(f(np.arange(5)), np.arange(5) * 2)


def test_parallel_map_calls_once_an_item(view):
    f = parallel(view, block=True)(double)
    assert f.map([1, 2, 3, 4]) == [2, 4, 6, 8]
    assert view.parallel("r", block=True)(double).map(range(5)) == [0, 2, 4, 6, 8]
    assert view.parallel("r", block=True)(sorted)(list(range(5))) == [0, 1, 2, 3, 4]


def test_parallel_needs_equal_lengths_and_map_does_not(view):
    f = view.parallel(block=True)(lambda x, y: (x, y))
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        f([1, 2], [1, 2, 3])
    with pytest.raises(TypeError, match="keyword"):
        f([1], y=[1])
    assert f.map([1, 2], count()) == [(1, 0), (2, 1)]
    assert f.map(iter([1, 2]), iter([1])) == [(1, 1)]


def test_empty_input_gives_an_empty_list(view, balanced):
    for v in (view, balanced):
        assert v.parallel(block=False)(double)([]) == []
        assert v.parallel(block=False)(double).map([], [1]) == []
        assert v.parallel(block=False)(double).map(iter(())) == []
    assert view.client.requests == []


def test_fewer_items_than_engines(view):
    result = view.parallel()(double).map([5])
    assert result.get() == [10]
    assert len(result.msg_ids) == 1


def test_balanced_parts_have_chunksize_items(balanced):
    f = balanced.parallel(chunksize=2, block=False)(list)
    result = f(range(5))
    assert result.get() == [0, 1, 2, 3, 4]
    assert len(result.msg_ids) == len(result) == 3
    result = f.map([[i] for i in range(5)])
    assert len(result.msg_ids) == 3 and len(result) == 5


def test_chunksize_is_ignored_by_direct_views_with_a_warning(view):
    f = view.parallel(chunksize=2, block=True)(list)
    with pytest.warns(UserWarning, match="chunksize"):
        assert f(range(3)) == [0, 1, 2]


def test_the_function_is_pickled_once(view, balanced, monkeypatch):
    pickled = []
    dumps = serialize.dumps

    def counting(obj, **kwargs):
        pickled.append(obj)
        return dumps(obj, **kwargs)

    monkeypatch.setattr(serialize, "dumps", counting)
    for v in (view, balanced):
        pickled.clear()
        v.parallel(block=True)(double).map(range(6))
        assert pickled.count(double) == 1
        assert len({id(function) for _, _, function, _ in v.client.requests}) == 1
        v.client.requests.clear()


def test_unknown_distribution(view):
    with pytest.raises(KeyError):
        view.parallel("x")(double)


def test_interrupted_while_blocking_it_returns_the_result(view, monkeypatch):
    def interrupt(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(AsyncResult, "get", interrupt)
    assert isinstance(view.parallel(block=True)(double).map([1]), AsyncMapResult)
    assert isinstance(view.remote(block=True)(double)(1), AsyncResult)

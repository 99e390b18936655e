"""Views on a fake client: flags, shapes, what is sent to whom, and how often it is pickled."""

from __future__ import annotations

import builtins
import gc
import threading
from concurrent.futures import Executor
from itertools import count

import numpy as np
import pytest
from traitlets import TraitError

from pxcompat.asyncresult import AsyncMapResult, AsyncResult
from pxcompat.baseview import View
from pxcompat.dependency import Dependency
from pxcompat.error import CompositeError, InvalidEngineId, NoEnginesRegistered, RemoteError
from pxcompat.executor import ViewExecutor
from pxcompat.lbview import LazyMapIterator, LoadBalancedView
from pxcompat.view import BroadcastView, DirectView

#: what a function sees here, and after use_cloudpickle() everywhere
HERE = "here"


@pytest.fixture
def view(client):
    return DirectView(client, targets=[0, 1, 2])


@pytest.fixture
def one(client):
    return DirectView(client, targets=1)


@pytest.fixture
def balanced(client):
    return LoadBalancedView(client)


def labels(client):
    return [kw["label"] for _, kw, _, _ in client.requests]


def engines(client):
    return [engine_id for engine_id, *_ in client.requests]


# -- the view itself -------------------------------------------------------------------


def test_repr_and_len(client, view, one, balanced):
    assert repr(view) == "<DirectView [0, 1, 2]>"
    assert repr(one) == "<DirectView 1>"
    assert repr(balanced) == "<LoadBalancedView None>"
    assert repr(DirectView(client, targets=list(range(20)))) == "<DirectView [0, 1, 2, 3,...]>"
    every = DirectView(client, targets="all")
    assert [len(v) for v in (view, one, balanced, every)] == [3, 1, 3, 3]
    assert len(LoadBalancedView(client, targets=[0, 1])) == 2


def test_views_inherit_block(client):
    assert DirectView(client, targets="all").block is False
    client.block = True
    assert DirectView(client, targets="all").block is True
    assert LoadBalancedView(client, block=False).block is False


def test_the_base_is_no_view(client):
    with pytest.raises(TypeError):
        View(client)


def test_flags(view):
    assert view.set_flags(block=True, label="x") is view
    with pytest.raises(KeyError, match="Invalid name: 'foo'"):
        view.set_flags(block=False, foo=1)
    assert view.block is True
    with pytest.raises(TraitError):
        view.block = 5


def test_temp_flags_are_undone_also_after_errors(view):
    with pytest.raises(ZeroDivisionError), view.temp_flags(block=True, targets=0):
        assert view.block and view.targets == 0
        raise ZeroDivisionError
    with pytest.raises(TraitError), view.temp_flags(targets=0, block=5):
        pass
    assert view.block is False and view.targets == [0, 1, 2]


def test_history_and_outstanding(client, view):
    client.hold = True
    result = view.apply_async(lambda: 1)
    assert view.history[-3:] == result.msg_ids
    assert view.outstanding == set(result.msg_ids)
    client.release()
    assert view.outstanding == set()
    assert len(view.history) == 3


def test_history_is_bounded(one):
    one.history.limit = 100
    for _ in range(300):
        last = one.apply_async(abs, 1)
    assert 100 <= len(one.history) <= 125
    assert one.history[-1:] == last.msg_ids


def test_outstanding_stays_small_over_many_requests(view):
    for _ in range(1000):
        view.apply_async(abs, 1)
    assert len(view._outstanding) <= 1024 + 3


# -- apply -----------------------------------------------------------------------------


def test_shapes(client, view, one):
    assert view.apply_sync(abs, -1) == [1, 1, 1]
    assert one.apply_sync(abs, -1) == 1
    assert DirectView(client, targets=[1]).apply_sync(abs, -1) == [1]
    assert view.apply_sync(lambda **kw: kw, f=5, block=3) == [{"f": 5, "block": 3}] * 3
    assert isinstance(view.apply(abs, -1), AsyncResult)
    assert view.apply_async(abs, -1)._targets == [0, 1, 2]


def test_one_pickle_serves_all_engines(client, view):
    view.apply_async(len, np.arange(10_000))
    assert engines(client) == [0, 1, 2]
    assert len({id(function) for _, _, function, _ in client.requests}) == 1
    assert len({id(arguments) for *_, arguments in client.requests}) == 1


def test_errors(client, view, one):
    with pytest.raises(CompositeError):
        view.apply_sync(lambda: 1 / 0)
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        one.apply_sync(lambda: 1 / 0)
    del client.namespaces[1]
    with pytest.raises(InvalidEngineId, match="1"):
        view.apply(abs, 1)
    with pytest.raises(IndexError):
        DirectView(client, targets=[]).apply(abs, 1)
    client.namespaces.clear()
    with pytest.raises(NoEnginesRegistered):
        DirectView(client, targets="all").apply(abs, 1)


def test_all_means_the_engines_of_the_moment(client):
    view = DirectView(client, targets="all")
    assert view.apply_sync(abs, 1) == [1, 1, 1]
    client.namespaces[7] = {}
    assert view.apply_sync(abs, 1) == [1] * 4
    assert view.map_sync(abs, range(4)) == [0, 1, 2, 3]
    assert engines(client)[-4:] == [0, 1, 2, 7]


def test_labels(client, one):
    def work(x):
        return x

    one.apply(work, 1)
    one.push({"a": 1, "b": 2})
    one.pull("a")
    one.pull(("a", "b"))
    one.scatter("s", [1])
    one.gather("s")
    one.map(work, [1])
    one.execute("x = 1\ny = 2")
    one.execute("z = " + "9" * 50)
    assert labels(client) == [
        *("work", "push:a,b", "pull:a", "pull:a,b", "scatter:s", "gather:s", "work", "x = 1"),
        "z = " + "9" * 36,
    ]
    assert all(not kw["header"] for _, kw, _, _ in client.requests)


def test_a_label_of_the_user_s(client, one):
    one.set_flags(label="mine")
    assert one.apply(abs, 1).label == "mine"
    assert one.execute("1", label="other").label == "other"
    assert one.map_async(abs, [1], label="third").label == ["third"]
    assert labels(client) == ["mine", "other", "third"]
    assert one.label == "mine"


def test_ctrl_c_while_blocked_gives_the_result_back(view, balanced, monkeypatch):
    def interrupt(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(AsyncResult, "get", interrupt)
    for v in (view, balanced):
        assert isinstance(v.apply_sync(abs, 1), AsyncResult)
        assert isinstance(v.map_sync(abs, [1]), AsyncMapResult)
    assert isinstance(view.execute("1", block=True), AsyncResult)
    assert isinstance(view.pull("a", block=True), AsyncResult)
    assert isinstance(view.gather("a", block=True), AsyncMapResult)
    assert isinstance(view.scatter("a", [1], block=True), AsyncResult)


# -- execute ---------------------------------------------------------------------------


def test_execute_returns_an_async_result_also_when_blocking(client, view, one):
    result = view.execute("a = 5", block=True)
    assert isinstance(result, AsyncResult) and len(result) == 3
    assert one["a"] == 5
    keywords = client.requests[0][1]
    assert keywords["silent"] is True and keywords["store_history"] is False
    one.execute("1", silent=False)
    assert client.requests[-1][1]["store_history"] is True
    with pytest.raises(RemoteError):
        one.execute("1/0", block=True)


def test_run_reads_a_file_here(tmp_path, one):
    file = tmp_path / "script.py"
    file.write_bytes(b"# -*- coding: latin-1 -*-\na = '\xe9'\ndef g():\n    return 5\n    ")
    one.run(str(file), block=True)
    assert one["a"] == "é" and one["g()"] == 5


# -- namespaces ------------------------------------------------------------------------


def test_push_and_pull(view, one):
    assert view.push({"a": 1, "d": {}}, block=True) == [None, None, None]
    assert one.push({"d['k']": 3}, block=True) is None
    assert one["d['k']"] == 3 and one["a + 1"] == 2
    assert one.pull(("a", "a"), block=True) == [1, 1]
    assert view.pull({"a"}, block=True) == [[1], [1], [1]]
    assert view["a"] == [1, 1, 1]
    view["a"] = 7
    assert one.get("a") == 7
    assert isinstance(view.update({"a": 8}), AsyncResult)
    assert view.pull("a", targets=0, block=True) == 8
    assert repr(view.pull("a")).startswith("<AsyncResult(_pull)")


def test_names_are_strings(view):
    with pytest.raises(TypeError, match="dict"):
        view.push([1])
    with pytest.raises(TypeError, match="keys must be str"):
        view.push({5: 1})
    with pytest.raises(TypeError, match="names must be strs"):
        view.pull(5)
    with pytest.raises(TypeError, match="keys must be str"):
        view.pull(["a", 5])


def test_what_cannot_be_pickled_is_named(view):
    with pytest.raises(TypeError, match=r"\['lock'\]"):
        view.push({"lock": threading.Lock()})
    assert view.client.requests == []


def test_scatter_and_gather(client, view, one):
    assert view.scatter("s", list(range(5)), block=True) is None
    assert view["s"] == [[0, 1], [2, 3], [4]]
    assert view.gather("s", block=True) == [0, 1, 2, 3, 4]
    assert isinstance(view.gather("s"), AsyncMapResult)
    view.scatter("s", range(5), dist="r", block=True)
    assert view["list(s)"] == [[0, 3], [1, 4], [2]]
    one.scatter("s", [1, 2])
    assert one["s"] == [1, 2]
    view.scatter("s", iter(range(3)))
    assert view.gather("s", block=True) == [0, 1, 2]
    with pytest.raises(KeyError):
        view.scatter("s", [1], dist="x")


def test_scatter_flatten(view):
    view.scatter("rank", [0, 1, 2], flatten=True)
    assert view["rank"] == [0, 1, 2]
    view.scatter("s", range(4), flatten=True)
    assert view["s"] == [range(2), 2, 3]
    view.scatter("s", [0, 1, 2, 3], flatten=True)
    assert view.gather("s", block=True) == [0, 1, 2, 3]


def test_scatter_sends_each_part_to_its_engine_only(client, view):
    whole = np.arange(30_000, dtype="int64")
    view.scatter("s", whole)
    sizes = [sum(len(memoryview(f).cast("B")) for f in frames) for *_, frames in client.requests]
    assert engines(client) == [0, 1, 2]
    assert all(80_000 <= size < 81_000 for size in sizes)
    gathered = view.gather("s", block=True)
    np.testing.assert_array_equal(gathered, whole)


# -- imports ---------------------------------------------------------------------------


def test_sync_imports(client, view, capsys):
    import_before = builtins.__import__
    with view.sync_imports():
        import json
        import json as again  # noqa: F401
        import os.path
        import wave  # imports others, which are not repeated
        from collections import Counter, deque  # noqa: F401
    assert builtins.__import__ is import_before
    assert capsys.readouterr().out.splitlines() == [
        "importing json on engine(s)",
        "importing os.path on engine(s)",
        "importing wave on engine(s)",
        "importing Counter,deque from collections on engine(s)",
    ]
    import os

    for namespace in client.namespaces.values():
        assert set(namespace) - {"__builtins__"} == {"json", "os", "wave", "Counter", "deque"}
        assert namespace["os"] is os and namespace["json"] is json and namespace["wave"] is wave


def test_importer_and_quiet(one, capsys):
    with one.importer:
        import re  # noqa: F401
    assert capsys.readouterr().out == "importing re on engine(s)\n"
    with one.sync_imports(quiet=True):
        import string  # noqa: F401
    assert capsys.readouterr().out == ""
    assert one["string.digits"] == "0123456789"


def test_imports_that_fail(one, monkeypatch):
    import_before = builtins.__import__
    with pytest.raises(ImportError), one.sync_imports(quiet=True):
        import no_such_module  # noqa: F401
    assert builtins.__import__ is import_before

    def fail(*args):
        raise ImportError("not on the engine")

    monkeypatch.setattr("pxcompat.syncimports.import_into_namespace", fail)
    with pytest.raises(RemoteError, match="ImportError"), one.sync_imports(quiet=True):
        import re  # noqa: F401
    with pytest.raises(NotImplementedError):
        one.sync_imports(local=False)


# -- maps ------------------------------------------------------------------------------


def test_map_is_one_request_an_engine(client, view):
    result = view.map_async(lambda x, y: x + y, range(7), range(10))
    assert result.get() == [0, 2, 4, 6, 8, 10, 12]
    assert len(result) == 7 and len(result.msg_ids) == 3
    assert engines(client) == [0, 1, 2]
    assert all(kw["map"] is True for _, kw, _, _ in client.requests)
    assert list(view.imap(abs, [-1, -2])) == [1, 2]


def test_map_of_nothing(view, balanced):
    for v in (view, balanced):
        assert v.map_async(abs, []) == []
        with pytest.raises(AssertionError, match="some sequences"):
            v.map(abs)
        with pytest.raises(TypeError, match="block"):
            v.map_async(abs, [1], block=False)
        with pytest.raises(TypeError, match="block"):
            v.map_sync(abs, [1], block=False)
    with pytest.raises(AssertionError, match="some sequences"):
        balanced.imap(abs)


@pytest.mark.parametrize(
    "items", [range(5), [1, 2], (3,), {"a": 1, "b": 2}, {7, 8}, "abc", np.arange(7)], ids=str
)
def test_map_takes_what_the_builtin_takes(view, balanced, items):
    for v in (view, balanced):
        assert v.map_sync(lambda x: x, items) == list(items)
        assert v.map_sync(lambda x: x, iter(items)) == list(items)
        assert v.map_sync(lambda x, y: y, count(), items) == list(items)


def test_balanced_map_is_one_request_an_item(client, balanced):
    result = balanced.map_async(lambda x: x * 2, range(5))
    assert result.get() == [0, 2, 4, 6, 8]
    assert len(result.msg_ids) == len(result) == 5
    assert engines(client) == [None] * 5
    result = balanced.map_async(lambda x: x * 2, range(5), chunksize=2)
    assert [child.result() for child in result._children] == [[0, 2], [4, 6], [8]]
    assert len(result) == 5 and result.get() == [0, 2, 4, 6, 8]


def test_map_return_exceptions(view, balanced):
    results = balanced.map_sync(lambda x: 1 / x, [1, 0], return_exceptions=True)
    assert results[0] == 1.0 and isinstance(results[1], RemoteError)
    with pytest.raises(CompositeError):
        view.map_sync(lambda x: 1 / x, [1, 0])


# -- balanced views --------------------------------------------------------------------


def test_task_flags_are_sent(client, balanced):
    dep = Dependency(["a"], all=False)
    with balanced.temp_flags(
        after="m1", follow=dep, timeout=3, retries=2, targets=[0, 2], label="mine"
    ):
        balanced.apply(abs, 1)
        balanced.map(abs, [1])
    balanced.apply(abs, 1)
    for _, kw, _, _ in client.requests[:2]:
        assert kw["targets"] == ["engine-0", "engine-2"]
        assert kw["after"] == {"m1"} and kw["follow"] is dep
        assert (kw["timeout"], kw["retries"], kw["label"]) == (3.0, 2, "mine")
    kw = client.requests[2][1]
    assert {kw[k] for k in ("targets", "after", "follow", "timeout")} == {None}
    assert kw["retries"] == 0


def test_task_flags_are_checked(balanced):
    result = balanced.apply_async(abs, 1)
    for good in (None, "id", result, [result, "id"], {"id"}, Dependency(["a"]).as_dict()):
        balanced.set_flags(after=good, follow=good)
    for bad in (5, [5]):
        with pytest.raises(ValueError, match="Invalid dependency"):
            balanced.set_flags(after=bad)
    with pytest.raises(ValueError, match="Invalid timeout"):
        balanced.set_flags(timeout=-1)
    with pytest.raises(TraitError):
        balanced.set_flags(retries="x")
    with pytest.raises(KeyError):
        balanced.set_flags(foo=1)
    balanced.set_flags(timeout=None)


def test_dead_engine_among_the_targets(client):
    view = LoadBalancedView(client, targets=[0, 1])
    del client.namespaces[1]
    with pytest.raises(InvalidEngineId, match="1"):
        view.apply(abs, 1)


# -- imap ------------------------------------------------------------------------------


def test_imap(balanced):
    results = balanced.imap(lambda x, y: x * y, range(50), count())
    assert isinstance(results, LazyMapIterator)
    assert list(results) == [i * i for i in range(50)]
    assert sorted(balanced.imap(abs, range(50), ordered=False)) == list(range(50))
    assert list(balanced.imap(abs, iter(range(9)), max_outstanding=0)) == list(range(9))
    assert balanced._outstanding_maps == set()


def test_imap_sends_no_more_than_max_outstanding(client, balanced):
    client.hold = True
    read = threading.Semaphore(0)

    def source():
        for i in count():
            read.release()
            yield i

    results = balanced.imap(abs, source(), max_outstanding=4)
    for _ in range(4):
        assert read.acquire(timeout=90)
    assert not read.acquire(timeout=0.05)
    client.hold = False
    client.release()
    assert next(results) == 0 and next(results) == 1
    results.cancel()


def test_imap_of_an_endless_iterator(balanced):
    results = balanced.imap(abs, count(), max_outstanding=2)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    results.cancel()
    remaining = list(results)
    assert remaining == list(range(5, 5 + len(remaining)))
    assert balanced._outstanding_maps == set()


def test_imap_pauses_when_nobody_reads(balanced, monkeypatch):
    monkeypatch.setattr("pxcompat.lbview.MAX_UNREAD", 10)
    consumed = []
    paused = threading.Event()

    def source():
        for i in count():
            consumed.append(i)
            if i == 9:
                paused.set()
            yield i

    results = balanced.imap(abs, source(), max_outstanding=2)
    assert paused.wait(90)
    assert next(results) == 0
    assert len(consumed) <= 11
    results.cancel()


def test_imap_goes_on_after_an_exception(balanced):
    results = balanced.imap(lambda x: 1 / x, [1, 0, 2])
    assert next(results) == 1.0
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        next(results)
    assert list(results) == [0.5]
    first, second = balanced.imap(lambda x: 1 / x, [0, 1], return_exceptions=True)
    assert isinstance(first, RemoteError) and second == 1.0


@pytest.mark.parametrize("ordered", [True, False])
def test_imap_hands_on_an_error_of_the_input(balanced, ordered):
    def source():
        yield 1
        raise LookupError("no more")

    results = balanced.imap(abs, source(), ordered=ordered)
    assert next(results) == 1
    with pytest.raises(LookupError, match="no more"):
        next(results)
    assert list(results) == []
    lock = balanced.imap(abs, [threading.Lock()], ordered=ordered)
    with pytest.raises(TypeError, match="cannot pickle"):
        next(lock)


def test_imap_keeps_the_flags_of_the_call(client, balanced):
    with balanced.temp_flags(retries=2, label="mine"):
        results = balanced.imap(abs, range(5))
    list(results)
    assert {kw["retries"] for _, kw, _, _ in client.requests} == {2}
    assert set(labels(client)) == {"mine"}


def test_a_dropped_iterator_stops_its_map(client, balanced):
    results = balanced.imap(abs, count(), max_outstanding=1)
    next(results)
    del results
    gc.collect()
    assert balanced._outstanding_maps == set()


def test_imap_checks_max_outstanding(balanced):
    for bad in (-1, "many"):
        with pytest.raises(ValueError, match="max_outstanding"):
            balanced.imap(abs, [1], max_outstanding=bad)


def test_imap_without_engines_reads_ahead_little(client, balanced):
    client.namespaces.clear()
    client.hold = True
    consumed = []
    results = balanced.imap(abs, (consumed.append(i) or i for i in count()))
    results.cancel()
    assert len(consumed) <= 2


# -- executors -------------------------------------------------------------------------


def test_executor(view, balanced):
    executor = balanced.executor
    assert isinstance(executor, ViewExecutor) and isinstance(executor, Executor)
    assert executor.view is balanced and executor._max_workers == 3
    assert executor.submit(pow, 2, 3).result() == 8
    assert isinstance(executor.map(abs, [1]), LazyMapIterator)
    assert list(executor.map(abs, range(5), chunksize=2)) == [0, 1, 2, 3, 4]
    with pytest.warns(UserWarning, match="timeout"):
        assert list(executor.map(abs, [1], timeout=3)) == [1]
    assert view.executor.submit(abs, -1).result() == [1, 1, 1]
    assert list(view.executor.map(abs, [-1])) == [1]


def test_executor_waits_for_its_maps(client, balanced, monkeypatch):
    monkeypatch.setattr("pxcompat.lbview.MAX_UNREAD", 2)
    with balanced.executor as executor:
        results = executor.map(abs, iter(range(20)))
    assert len(balanced.history) == 20
    assert client.calls[-1][0] == "wait"
    assert list(results) == list(range(20))


def test_executor_can_cancel(client, balanced):
    results = balanced.executor.map(abs, count())
    balanced.executor.shutdown(wait=False, cancel_futures=True)
    assert client.calls[-1][0] == "abort"
    assert list(results) is not None


# -- the client's methods --------------------------------------------------------------


def test_calls_of_the_client_name_the_view_s_engines(client, view):
    client.hold = True
    result = view.apply_async(abs, 1)
    view.abort()
    assert set(client.calls[-1][1]["jobs"]) == set(result.msg_ids)
    view.abort(result, block=True)
    assert client.calls[-1][1]["targets"] == [0, 1, 2]
    assert client.calls[-1][1]["jobs"] is result and client.calls[-1][1]["block"] is True
    view.wait([-1, result])
    assert client.calls[-1] == ("wait", {"args": ([view.history[-1], result], -1)})
    view.wait(timeout=3)
    jobs, timeout = client.calls[-1][1]["args"]
    assert set(jobs) == set(result.msg_ids) and timeout == 3
    view.get_result()
    assert client.calls[-1][1]["args"] == (view.history[-1],)
    view.get_result([0, "id"], owner=True)
    assert client.calls[-1][1]["args"] == ([view.history[0], "id"],)
    view.queue_status(verbose=True)
    assert client.calls[-1] == ("queue_status", {"args": (), "targets": [0, 1, 2], "verbose": True})
    view.purge_results("all")
    assert client.calls[-1] == ("purge_results", {"args": (), "jobs": "all", "targets": []})
    view.purge_results(targets="all")
    assert client.calls[-1] == ("purge_results", {"args": (), "jobs": [], "targets": [0, 1, 2]})
    view.clear(block=True)
    assert client.calls[-1] == ("clear", {"args": (), "targets": [0, 1, 2], "block": True})
    view.shutdown(targets=1, hub=True)
    assert client.calls[-1][1]["targets"] == 1 and client.calls[-1][1]["hub"] is True


def test_pickling_flavours(view):
    assert view.use_cloudpickle().get() == [None] * 3
    assert view.apply_sync(lambda: HERE) == [HERE] * 3
    view.push({"a": 1})
    assert view["a"] == [1, 1, 1]
    assert view.map_sync(abs, [-1]) == [1]
    view.use_pickle().get()


def test_activate_outside_ipython(view):
    with pytest.warns(UserWarning, match="only work within IPython"):
        view.activate()


def test_broadcast_view(client):
    view = BroadcastView(client, targets=[1])
    view.is_coalescing = True
    assert view.apply_sync(abs, -1) == [1]
    assert view.push({"a": 1}, block=True) == [None]
    assert view.map_sync(abs, [-1, -2]) == [1, 2]

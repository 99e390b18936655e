"""Values in Ray's object store: put once, shared where that was asked for, and released."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

import numpy as np
import psutil
import pytest
import ray

import pxcompat as ipp
from pxcompat.backends.ray import backend

from ..common import PATIENCE, wait_until

MB = 1 << 20


@pytest.fixture(autouse=True)
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that share no memory with engines but the store (see test_lending)."""
    monkeypatch.setattr(backend, "can_share", lambda: False)


@pytest.fixture
def used(rc: ipp.Client) -> Callable[[], float]:
    """Bytes that Ray's object store holds."""

    def used() -> float:
        name = "object_store_memory"
        return float(ray.cluster_resources()[name] - ray.available_resources().get(name, 0))

    wait_until(lambda: used() < MB)
    return used


def test_one_array_for_all_engines_is_put_once(
    rc: ipp.Client, used: Callable[[], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    puts = []
    put = ray.put
    monkeypatch.setattr(ray, "put", lambda value: puts.append(value) or put(value))
    rc[:].push({"x": np.ones(MB)}, block=True)
    assert len(puts) == 1
    assert rc[:]["float(x.sum())"] == [MB] * 2
    wait_until(lambda: used() < MB)  # the engines have theirs


def test_arrays_are_writable(rc: ipp.Client, used: Callable[[], float]) -> None:
    view = rc[:]
    view.push({"x": np.zeros(MB), "small": np.zeros(3)}, block=True)
    view.scatter("part", np.zeros(2 * MB), block=True)
    view.execute("for array in (x, small, part): array += 1", block=True)
    assert [float(part.sum()) for part in view["part"]] == [MB] * 2
    result = view["x"][0]
    result += 1
    assert result.sum() == 2 * MB


def test_arrays_can_be_shared_and_read_only(rc: ipp.Client, used: Callable[[], float]) -> None:
    size = 64 * MB
    view = rc[:]
    pids = view.apply_sync(os.getpid)

    def private() -> list[int]:
        return [psutil.Process(pid).memory_full_info().uss for pid in pids]

    before = private()
    view.push({"x": np.ones(size // 8)}, block=True, copy=False)
    assert view["float(x.sum()), x.flags.writeable"] == [(size // 8, False)] * 2
    assert used() < size + MB
    assert all(after - then < size // 4 for after, then in zip(private(), before, strict=True))
    # released with the names
    view.execute("del x; import gc; gc.collect()", block=True)
    wait_until(lambda: used() < MB)


def test_parts_can_be_shared(rc: ipp.Client, used: Callable[[], float]) -> None:
    view = rc[:]
    view.scatter("part", np.arange(4 * MB), block=True, copy=False)
    assert view["part.flags.writeable"] == [False] * 2
    assert (view.gather("part", block=True) == np.arange(4 * MB)).all()
    view.execute("del part", block=True)
    wait_until(lambda: used() < MB)


def test_a_result_stays_in_the_store_until_it_is_asked_for(
    rc: ipp.Client, used: Callable[[], float]
) -> None:
    view = rc[0]
    result = view.apply_async(lambda n: b"x" * n, 32 * MB)
    result.wait(PATIENCE)
    wait_until(lambda: used() >= 32 * MB)
    assert len(result.get(PATIENCE)) == 32 * MB
    # what is there is released with the result
    rc.purge_results("all")
    del result
    gc.collect()
    wait_until(lambda: used() < MB)


def test_a_result_is_let_go_of_whatever_comes_after_it(
    rc: ipp.Client, used: Callable[[], float]
) -> None:
    def make(n: int, seconds: float) -> bytes:
        import time

        time.sleep(seconds)
        return b"x" * n

    for seconds in (0, 0.1):  # one may come at once, the other does not
        assert len(rc[0].apply_sync(make, 32 * MB, seconds)) == 32 * MB
        assert rc[0].apply_sync(abs, -1) == 1
        wait_until(lambda: used() < MB)


def test_a_result_outlives_its_engine(cluster: ipp.Cluster, rc: ipp.Client) -> None:
    (name,) = [cluster.start_engines_sync(1)]
    rc.wait_for_engines(3, timeout=PATIENCE)
    last = rc.ids[-1]
    result = rc[last].apply_async(lambda n: b"x" * n, 8 * MB)
    result.wait(PATIENCE)
    cluster.stop_engines_sync(name)
    wait_until(lambda: last not in rc.ids)
    assert len(result.get(PATIENCE)) == 8 * MB


def test_nothing_is_left_of_a_thousand_calls(rc: ipp.Client, used: Callable[[], float]) -> None:
    results = [rc[:].apply_async(len, np.ones(MB // 8)) for _ in range(20)]
    results += [rc[:].apply_async(abs, i) for i in range(500)]
    for result in results:
        result.get(PATIENCE)
    wait_until(lambda: used() < MB)

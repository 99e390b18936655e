"""Load-balanced views: placing, dependencies, retries, timeouts."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import pytest

import pxcompat as ipp
from pxcompat import lazymap, lbview

from ..common import PATIENCE, interrupted_at, may_drop, wait_until
from .test_requests import hold


@pytest.fixture
def lbv(rc: ipp.Client) -> ipp.LoadBalancedView:
    return rc.load_balanced_view()


def test_map_keeps_order(lbv: ipp.LoadBalancedView) -> None:
    assert lbv.map_sync(lambda x: x * x, range(40)) == [x * x for x in range(40)]
    assert lbv.map_sync(lambda x, y: x - y, range(10), range(20)) == [0] * 10
    assert lbv.map_sync(lambda x: x, []) == []
    assert lbv.map_sync(lambda x: x, range(7), chunksize=3) == list(range(7))


def test_a_negative_chunksize_is_refused(lbv: ipp.LoadBalancedView) -> None:
    with pytest.raises(ValueError, match="chunksize"):
        lbv.map_sync(abs, [-1, -2], chunksize=-1)


def test_work_reaches_every_engine(rc: ipp.Client, lbv: ipp.LoadBalancedView) -> None:
    ar = lbv.map_async(lambda _: __import__("time").sleep(0.05), range(6 * len(rc)))
    ar.get(PATIENCE)
    assert set(ar.engine_id) == set(rc.ids)


def test_targets_restrict(rc: ipp.Client) -> None:
    ar = rc.load_balanced_view(rc.ids[:1]).map_async(lambda x: x, range(5))
    ar.get(PATIENCE)
    assert set(ar.engine_id) == {rc.ids[0]}


def test_unordered_results_come_as_they_are_done(lbv: ipp.LoadBalancedView, tmp_path: Any) -> None:
    @ipp.interactive
    def maybe(args: Any) -> Any:
        import os
        import time

        n, path = args
        while n == 0 and not os.path.exists(path):
            time.sleep(0.01)
        return n

    items = [(n, str(tmp_path / "go")) for n in range(4)]
    results = iter(lbv.map_async(maybe, items, ordered=False))
    assert sorted(next(results) for _ in range(3)) == [1, 2, 3]
    (tmp_path / "go").touch()
    assert next(results) == 0


@ipp.interactive
def quick_or_held(args: Any) -> Any:
    import os
    import time

    n, path = args
    deadline = time.monotonic() + 90
    while path and not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.01)
    return n


def test_one_slow_call_among_many_short_ones_holds_nobody_back(
    lbv: ipp.LoadBalancedView, tmp_path: Any
) -> None:
    lbv.map_sync(quick_or_held, [(n, "") for n in range(50)])  # known to be short
    go = tmp_path / "go"
    items = [(n, str(go) if n == 150 else "") for n in range(300)]
    results = iter(lbv.map_async(quick_or_held, items, ordered=False))
    others = [next(results) for _ in range(299)]
    assert not go.exists() and sorted(others) == [n for n in range(300) if n != 150]
    go.touch()
    assert next(results) == 150


@pytest.mark.parametrize("balanced", [True, False])
def test_nothing_waits_behind_a_long_call_while_an_engine_is_idle(
    rc: ipp.Client, lbv: ipp.LoadBalancedView, tmp_path: Any, balanced: bool
) -> None:
    go = tmp_path / "go"
    where = lbv if balanced else rc[rc.ids[0]]
    held = where.apply_async(hold, str(go))
    try:
        for n in range(3):  # those of the first are not known to be short
            others = [lbv.map_async(lambda x: x, range(10 + n)) for _ in range(3)]
            for ar in others:
                assert ar.get(PATIENCE) == list(range(10 + n))
        assert not held.ready()
    finally:
        go.touch()
    held.get(PATIENCE)


def test_each_runs_once_however_they_are_placed(
    lbv: ipp.LoadBalancedView, rc: ipp.Client, tmp_path: Any
) -> None:
    @ipp.interactive
    def noted(args: Any) -> None:
        import os

        n, folder, ready = args
        with open(os.path.join(folder, f"{n}-{os.getpid()}"), "x"):
            pass
        quick_or_held((n, ready))

    rc[:].push({"quick_or_held": quick_or_held}, block=True)
    folder = str(tmp_path)
    lbv.map_sync(noted, [(n, folder, "") for n in range(50)])
    go = tmp_path / "go"
    held = {60, 130, 131, 250}
    items = [(n, folder, str(go) if n in held else "") for n in range(50, 300)]
    results = iter(lbv.map_async(noted, items, ordered=False))
    if len(rc) < 2:
        go.touch()
    next(results)
    go.touch()
    assert len(list(results)) == 249
    ran = [name.partition("-")[0] for name in map(str, (p.name for p in tmp_path.iterdir()))]
    assert sorted(int(n) for n in ran if n != "go") == list(range(300))


def test_a_function_may_have_any_name(lbv: ipp.LoadBalancedView) -> None:
    def double(x: int) -> int:
        return 2 * x

    double.__name__ = "a\ud83d"  # which UTF-8 has no bytes for
    assert lbv.map_async(double, range(8)).get(PATIENCE) == [2 * n for n in range(8)]


@may_drop
def test_ctrl_c_as_a_map_begins_leaves_nothing_to_wait_for(lbv: ipp.LoadBalancedView) -> None:
    files = [str(module.__file__) for module in (lbview, lazymap, threading)]
    for count in itertools.count(1):
        came, _ = interrupted_at(count, lambda: lbv.imap(abs, [-1]), *files)
        wait_until(lambda: not lbv._outstanding_maps)
        if not came:
            break
    with lbv.executor as executor:
        assert list(executor.map(abs, [-1])) == [1]


def test_imap_takes_an_endless_iterator(lbv: ipp.LoadBalancedView) -> None:
    gen = lbv.imap(lambda x: x * 2, itertools.count(), max_outstanding=4)
    assert [next(gen) for _ in range(10)] == [2 * n for n in range(10)]
    gen.cancel()


def test_iteration_goes_on_after_an_exception(lbv: ipp.LoadBalancedView) -> None:
    results = iter(lbv.map_async(lambda x: 1 / x, [1, 0, 2]))
    assert next(results) == 1
    with pytest.raises(ipp.RemoteError, match="ZeroDivisionError"):
        next(results)
    assert next(results) == 0.5


def test_after_waits(rc: ipp.Client, lbv: ipp.LoadBalancedView, tmp_path: Any) -> None:
    first = lbv.apply_async(hold, str(tmp_path / "go"))
    with lbv.temp_flags(after=first):
        second = lbv.apply_async(lambda: "second")
    assert rc.result_status(second.msg_ids)["pending"]
    (tmp_path / "go").touch()
    assert second.get(PATIENCE) == "second"
    assert second.started >= first.completed


def test_follow_goes_where_the_other_went(lbv: ipp.LoadBalancedView) -> None:
    first = lbv.apply_async(lambda: 1)
    first.get(PATIENCE)
    with lbv.temp_flags(follow=first):
        for _ in range(4):
            follower = lbv.apply_async(lambda: 2)
            follower.get(PATIENCE)
            assert follower.engine_id == first.engine_id


def test_a_failed_dependency_is_impossible(lbv: ipp.LoadBalancedView) -> None:
    bad = lbv.apply_async(lambda: 1 / 0)
    with lbv.temp_flags(after=bad):
        never = lbv.apply_async(lambda: 1)
    with pytest.raises(ipp.RemoteError) as caught:
        never.get(PATIENCE)
    assert caught.value.ename == "ImpossibleDependency"
    with lbv.temp_flags(after=ipp.Dependency(bad, success=False, failure=True)):
        assert lbv.apply_async(lambda: "cleaned up").get(PATIENCE) == "cleaned up"


def test_retries_avoid_the_engine_that_failed_and_end(
    rc: ipp.Client, lbv: ipp.LoadBalancedView, tmp_path: Any
) -> None:
    @ipp.interactive
    def fail(folder: str) -> None:
        import os

        open(os.path.join(folder, str(os.getpid())), "w").close()
        raise ValueError("always")

    with lbv.temp_flags(retries=10), pytest.raises(ipp.RemoteError, match="always"):
        lbv.apply_async(fail, str(tmp_path)).get(PATIENCE)
    assert len(list(tmp_path.iterdir())) == len(rc)


def test_depend_finds_the_engine_that_qualifies(rc: ipp.Client, lbv: ipp.LoadBalancedView) -> None:
    rc[:].scatter("rank", list(range(len(rc))), flatten=True, block=True)
    last = len(rc) - 1

    @ipp.interactive
    def is_last(n: int) -> bool:
        return bool(rank == n)  # type: ignore[name-defined]  # noqa: F821

    @ipp.depend(is_last, last)
    @ipp.interactive
    def where() -> int:
        return int(rank)  # type: ignore[name-defined]  # noqa: F821

    assert lbv.apply_sync(where) == last

    @ipp.depend(is_last, -1)
    @ipp.interactive
    def nowhere() -> None:
        """Runs on no engine."""

    with pytest.raises(ipp.RemoteError) as caught:
        lbv.apply_async(nowhere).get(PATIENCE)
    assert caught.value.ename == "ImpossibleDependency"


def test_timeout_ends_the_wait_for_a_dependency(lbv: ipp.LoadBalancedView, tmp_path: Any) -> None:
    first = lbv.apply_async(hold, str(tmp_path / "go"))
    with lbv.temp_flags(after=first, timeout=0.05):
        late = lbv.apply_async(lambda: 1)
    with pytest.raises(ipp.RemoteError) as caught:
        late.get(PATIENCE)
    assert caught.value.ename == "TaskTimeout"
    (tmp_path / "go").touch()
    first.get(PATIENCE)


def test_a_graph_of_tasks(lbv: ipp.LoadBalancedView) -> None:
    layers: list[list[ipp.AsyncResult]] = [[lbv.apply_async(lambda: 1) for _ in range(5)]]
    for _ in range(4):
        with lbv.temp_flags(after=layers[-1]):
            layers.append([lbv.apply_async(lambda: 1) for _ in range(5)])
    for ar in layers[-1]:
        ar.get(PATIENCE)
    for upper, lower in itertools.pairwise(layers):
        assert max(ar.completed for ar in upper) <= min(ar.started for ar in lower)


def test_many_small_tasks(lbv: ipp.LoadBalancedView) -> None:
    started = time.monotonic()
    assert sum(lbv.map_sync(lambda x: x, range(500))) == sum(range(500)), time.monotonic() - started


def test_calls_begin_about_in_their_order_also_where_they_take_longer_and_longer(
    rc: ipp.Client,
) -> None:
    # the first ones promise that engines may have many of the others at a time, which they then
    # give back: whoever reads results in order is not to wait for them till the last have run
    def nap(t: float) -> None:
        import time

        time.sleep(t)

    result = rc.load_balanced_view().map_async(nap, [0.003 * n for n in range(100)])
    result.get(PATIENCE)
    began = list(result.started)
    overtaken = [sum(b < began[n] for b in began[n + 1 :]) for n in range(100)]
    assert max(overtaken) < 30

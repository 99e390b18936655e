"""Names of engines, and the backend's own futures, as arguments: resolved on the engine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import pxcompat as ipp

from .conftest import PATIENCE, wait_until

np = pytest.importorskip("numpy")

MB = 1 << 20


@pytest.fixture
def future_of(rc: ipp.Client) -> Callable[..., Any]:
    """Gives a future of the backend's own for ``f(*args)``, computed in the cluster."""
    native = rc._backend.native
    if hasattr(native, "submit"):
        return lambda f, *args: native.submit(f, *args, pure=False)
    return lambda f, *args: native.remote(f).options(num_cpus=0).remote(*args)


def test_a_name_goes_from_engine_to_engine(rc: ipp.Client) -> None:
    first, last = rc[rc.ids[0]], rc[rc.ids[-1]]
    first.push({"a": np.arange(100_000), "d": {"k": [1, 2]}}, block=True)
    last.push({"b": first.ref("a"), "c": first.ref("d['k'][1]")}, block=True)
    assert (last["b"] == np.arange(100_000)).all()
    assert last["c"] == 2
    # its own, whether it was on another engine or on the same
    first.push({"b": first.ref("a")}, block=True)
    for view in (first, last):
        view.execute("b += 1", block=True)
    assert first["int(a[0]), int(b[0])"] == (0, 1)
    assert repr(first.ref("a")) == f"<RemoteReference: 'a' on engine {rc.ids[0]}>"


def test_a_reference_is_what_the_name_was_when_it_was_sent(rc: ipp.Client, tmp_path: Path) -> None:
    first, last = rc[rc.ids[0]], rc[rc.ids[-1]]
    gate = tmp_path / "gate"
    first.execute(f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)")
    first.execute("a = 1")
    pushed = last.push({"b": first.ref("a")}, block=False)
    interrupted = last.push({"b": first.ref("a")}, block=False)
    first.execute("a = 2")
    read = last.pull("b", block=False)
    assert not pushed.ready()
    gate.touch()
    assert pushed.get(PATIENCE) is None
    assert interrupted.get(PATIENCE) is None
    assert read.get(PATIENCE) == 1
    assert first["a"] == 2


def test_who_waits_for_another_engine_can_be_interrupted(rc: ipp.Client, tmp_path: Path) -> None:
    first, last = rc[rc.ids[0]], rc[rc.ids[-1]]
    gate, there = tmp_path / "gate", tmp_path / "there"
    first.execute(f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)")
    last.execute(f"open({str(there)!r}, 'w')")
    pushed = last.push({"b": first.ref("3")}, block=False)
    wait_until(there.exists)
    behind = last.apply_async(lambda: "went on")
    while not pushed.ready():  # a signal that comes before it waits is for nobody
        rc.send_signal("SIGINT", targets=last.targets, block=True)
        pushed.wait(0.2)
    with pytest.raises(ipp.RemoteError, match="KeyboardInterrupt"):
        pushed.get()
    assert behind.get(PATIENCE) == "went on"
    gate.touch()


def test_references_at_any_depth_of_all_that_takes_arguments(rc: ipp.Client) -> None:
    view = rc[:]
    view.scatter("part", list(range(len(rc) * 2)), block=True)
    refs = view.ref("sum(part)")
    total = sum(range(len(rc) * 2))
    e0 = rc[rc.ids[0]]
    assert e0.apply_sync(lambda v: sum(v["k"][0]), {"k": (refs,)}) == total
    assert view.apply_sync(lambda *a, x: sum(a) + x, *refs, x=refs[0]) == [total + 1] * len(rc)
    balanced = rc.load_balanced_view()
    assert balanced.apply_sync(sum, refs) == total
    assert sum(balanced.map_sync(lambda x: x, refs)) == total
    assert sum(view.map_sync(lambda x: x, refs)) == total
    captured = refs[1]
    assert e0.apply_sync(lambda: captured) == 5
    view.scatter("again", refs, block=True, flatten=True)
    assert view["again"] == view["sum(part)"]


def test_use_cloudpickle_knows_references(e0: ipp.DirectView) -> None:
    e0["a"] = 5
    e0.use_cloudpickle()
    assert e0.apply_sync(lambda x: x + 1, e0.ref("a")) == 6


def test_what_cannot_be_read_is_said_by_who_needs_it(rc: ipp.Client) -> None:
    first, last = rc[rc.ids[0]], rc[rc.ids[-1]]
    last["x"] = 1
    with pytest.raises(ipp.RemoteError, match=rf"engine {rc.ids[0]} could not.*NameError.*'no'"):
        last.push({"x": first.ref("no")}, block=True)
    first.execute("lock = __import__('threading').Lock()", block=True)
    with pytest.raises(ipp.RemoteError, match=r"SerializationError.*lock"):
        last.push({"x": first.ref("lock")}, block=True)
    assert last["x"] == 1
    with pytest.raises(TypeError, match="not a string"):
        first.ref(5)  # type: ignore[arg-type]


def test_a_reference_to_an_engine_that_is_gone(rc: ipp.Client, cluster: ipp.Cluster) -> None:
    cluster.start_engines_sync(1)
    rc.wait_for_engines(4, timeout=PATIENCE)
    fourth = rc[rc.ids[-1]]
    fourth["a"] = 1
    reference = fourth.ref("a")
    waiting = fourth.apply_async(lambda: __import__("os").kill(__import__("os").getpid(), 9))
    pushed = rc[rc.ids[0]].push({"a": reference}, block=False)
    with pytest.raises(ipp.EngineError):
        waiting.get(PATIENCE)
    with pytest.raises(ipp.RemoteError, match=f"engine {reference.engine}.*(gone|out of reach)"):
        pushed.get(60)
    wait_until(lambda: reference.engine not in rc.ids)
    with pytest.raises(ipp.EngineError, match=f"engine {reference.engine} is gone"):
        rc[rc.ids[0]].push({"a": reference})


def test_the_client_sees_nothing_of_what_goes_between_engines(rc: ipp.Client) -> None:
    first, last = rc[rc.ids[0]], rc[rc.ids[-1]]
    first.push({"size": 32 * MB}, block=True)
    first.execute("a = b'x' * size", block=True)

    def moved() -> int:
        counters = psutil.Process().io_counters()
        return int(counters.write_chars + counters.read_chars)

    before = moved()
    last.push({"a": first.ref("a")}, block=True)
    assert moved() - before < MB
    assert last["len(a)"] == 32 * MB


def test_futures_are_resolved_on_the_engine(rc: ipp.Client, future_of: Callable[..., Any]) -> None:
    view, e0 = rc[:], rc[rc.ids[0]]
    array = future_of(np.ones, 100_000)
    assert view.apply_sync(lambda x: float(x.sum()), array) == [100_000.0] * len(rc)
    assert e0.apply_sync(lambda v: v["k"][0][0].sum(), {"k": [(array,)]}) == 100_000
    view.push({"x": array, "y": [array]}, block=True)
    view.execute("x += 1", block=True)  # the engine's own, and one object as it was here
    assert view["float(x[0]), float(y[0][0])"] == [(2.0, 2.0)] * len(rc)
    assert e0.apply_sync(lambda x: float(x[0]), array) == 1.0
    numbers = [future_of(int, n) for n in range(5)]
    assert view.map_sync(lambda n: n + 1, numbers) == [1, 2, 3, 4, 5]
    assert rc.load_balanced_view().map_sync(lambda n: n + 1, numbers) == [1, 2, 3, 4, 5]
    # held until it is there, though nobody else holds it
    assert e0.push({"z": future_of(int, 7)}, block=False).get(PATIENCE) is None
    assert e0["z"] == 7


def test_a_future_that_failed_raises_on_the_engine(
    rc: ipp.Client, future_of: Callable[..., Any]
) -> None:
    e0 = rc[rc.ids[0]]
    with pytest.raises(ipp.RemoteError, match="ZeroDivisionError"):
        e0.push({"z": future_of(lambda: 1 / 0)}, block=True)
    assert e0.apply_sync(lambda: "z" in globals()) is False


def test_engines_that_wait_for_futures_do_what_these_wait_for(
    rc: ipp.Client, future_of: Callable[..., Any]
) -> None:
    def slow(n: int) -> int:
        __import__("time").sleep(0.1)
        return n

    view = rc[:]
    futures = [future_of(slow, n) for n in range(2 * len(rc))]
    assert view.apply_sync(sum, futures) == [sum(range(2 * len(rc)))] * len(rc)


def test_many_threads_use_references_at_once(rc: ipp.Client) -> None:
    view = rc[:]
    view.push({"n": 1}, block=True)
    found: list[Any] = []

    def use() -> None:
        for _ in range(10):
            found.append(sum(view.apply_sync(lambda x: x, view.ref("n")[0])))

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [len(rc)] * 40

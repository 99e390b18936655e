"""Names of engines, and the backend's own futures, as arguments: resolved on the engine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import pxcompat as ipp

from ..common import PATIENCE, held, let_go, wait_until

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
    (msg_id,) = pushed.msg_ids
    wait_until(lambda: rc.db_query({"msg_id": msg_id}, keys=["status"])[0]["status"] == "running")
    behind = last.apply_async(lambda: "went on")
    while not pushed.ready():  # a signal that comes a moment before it can be heard is for nobody
        rc.send_signal("SIGINT", targets=last.targets, block=True)
        pushed.wait(5)  # a second one would be for what is behind
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
        pushed.get(PATIENCE)
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
    numbers = [future_of(lambda n: n, n) for n in range(5)]
    assert view.map_sync(lambda n: n + 1, numbers) == [1, 2, 3, 4, 5]
    assert rc.load_balanced_view().map_sync(lambda n: n + 1, numbers) == [1, 2, 3, 4, 5]
    # held until it is there, though nobody else holds it
    assert e0.push({"z": future_of(lambda: 7)}, block=False).get(PATIENCE) is None
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


def test_tasks_of_the_backends_own_take_references(
    rc: ipp.Client, future_of: Callable[..., Any]
) -> None:
    first, last = rc[rc.ids[0]], rc[rc.ids[-1]]
    first.push({"a": np.zeros(100_000), "n": 1}, block=True)
    last.push({"n": 2}, block=True)

    def change(a: Any) -> float:
        a += 1
        return float(a.sum())

    assert last.apply_sync(lambda x: x, future_of(change, first.ref("a"))) == 100_000
    assert first["float(a.sum())"] == 0  # it was a copy
    deep = {"k": [first.ref("n + 10"), last.ref("n + 10")]}
    assert first.apply_sync(lambda x: x, future_of(lambda v: v, deep)) == {"k": [11, 12]}
    assert last.apply_sync(lambda x: x, future_of(lambda v: sum(v), [*rc[:2].ref("5"), 1])) == 11


def test_what_a_task_gets_is_what_the_name_was_when_it_was_submitted(
    rc: ipp.Client, future_of: Callable[..., Any], tmp_path: Path
) -> None:
    first, last = rc[rc.ids[0]], rc[rc.ids[-1]]
    gate = tmp_path / "gate"
    first.execute(f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)")
    first.execute("a = 1")
    task = future_of(lambda v: v, first.ref("a"))
    first.execute("a = 2")
    gate.touch()
    assert last.apply_sync(lambda x: x, task) == 1
    assert first["a"] == 2


def test_a_task_whose_reference_cannot_be_had_says_so(
    rc: ipp.Client, cluster: ipp.Cluster, future_of: Callable[..., Any]
) -> None:
    first, last = rc[rc.ids[0]], rc[rc.ids[-1]]
    why = rf"(?s)engine {rc.ids[0]} could not give.*NameError.*'no'"
    with pytest.raises(ipp.RemoteError, match=why):
        last.apply_sync(lambda x: x, future_of(lambda v: v, first.ref("no")))

    cluster.start_engines_sync(1)
    rc.wait_for_engines(4, timeout=PATIENCE)
    fourth = rc[rc.ids[-1]]
    reference, other = fourth.ref("1"), fourth.ref("1")
    fourth.apply_async(lambda: __import__("os").kill(__import__("os").getpid(), 9))
    task = future_of(lambda v: v, reference)
    with pytest.raises(
        ipp.RemoteError, match=rf"(?s)engine.{reference.engine}.*(gone|out of reach|died)"
    ):
        first.apply_async(lambda x: x, task).get(PATIENCE)
    wait_until(lambda: reference.engine not in rc.ids)
    with pytest.raises(ipp.EngineError, match=f"engine {reference.engine} is gone"):
        future_of(lambda v: v, [other])


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


def test_a_shared_value_is_in_memory_once(rc: ipp.Client) -> None:
    view = rc[:]
    pids = view.apply_sync(os.getpid)
    size = 48 * MB

    def private() -> list[int]:
        return [psutil.Process(pid).memory_full_info().uss for pid in pids]

    view.push({"x": np.zeros(1)}, block=True)  # an engine that has never had numpy grows by that
    before, held_before = private(), view.apply_sync(held)
    view.push({"x": np.ones(size // 8), "small": np.ones(3)}, block=True, shared=True)
    assert view["float(x.sum()), x.flags.writeable"] == [(size / 8, False)] * len(rc)
    wait_until(lambda: all(n - b < size // 4 for n, b in zip(private(), before, strict=True)))
    with pytest.raises(ipp.CompositeError, match="read-only"):
        view.execute("x += 1", block=True)

    rc[rc.ids[0]].push({"y": np.ones(size // 8)}, block=True, shared=True)  # of one engine, too
    assert rc[rc.ids[0]]["y.flags.writeable"] is False
    assert (rc[rc.ids[-1]]["x"] == 1).all()
    with pytest.raises(ValueError, match="not copied"):
        view.push({"x": 1}, shared=True, copy=True)

    # it goes with the names
    view.execute("del x; globals().pop('y', None)", block=True)
    wait_until(lambda: let_go(view, held_before))


def test_what_a_client_has_is_let_go_when_it_is_killed(rc: ipp.Client) -> None:
    program = f"""if True:
        import time
        import pxcompat as ipp
        rc = ipp.Client(cluster_id={rc.cluster.cluster_id!r})
        large = rc[:].apply_async(lambda: __import__("numpy").ones(1 << 20))
        large.wait(60)
        print(large.done(), flush=True)
        time.sleep(600)
    """
    command = [sys.executable, "-c", program]
    before = rc[:].apply_sync(held)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        said = client.stdout.readline()
        client.kill()
    assert said == "True\n"
    wait_until(lambda: let_go(rc[:], before))


def test_a_shared_value_outlives_the_engine_that_had_it_first(
    rc: ipp.Client, cluster: ipp.Cluster
) -> None:
    cluster.start_engines_sync(1)
    rc.wait_for_engines(4, timeout=PATIENCE)
    fourth, first = rc.ids[-1], rc.ids[0]
    rc[[fourth, first]].push({"x": np.ones(4 * MB)}, block=True, shared=True)
    pid = rc[fourth].apply_sync(os.getpid)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: fourth not in rc.ids)
    assert rc[first]["float(x.sum())"] == 4 * MB

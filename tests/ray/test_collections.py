"""Ray's datasets and object references on engines: taken apart, and put together, without the
client."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import ray

import pxcompat as ipp
from pxcompat.backends.ray import objects

from ..common import PATIENCE, wait_until
from .conftest import python

np = pytest.importorskip("numpy")
pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")

MB = 1 << 20


@pytest.fixture
def view(rc: ipp.Client) -> Iterator[ipp.DirectView]:
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    yield rc.direct_view([0, 1], block=True)


def test_a_dataset_is_bound_and_put_together(view: ipp.DirectView) -> None:
    dataset = ray.data.range(100, override_num_blocks=4).map(lambda row: {"n": row["id"] * 2})
    view.scatter("df", dataset)
    assert view["type(df).__name__, len(df)"] == [("DataFrame", 50)] * 2
    assert view["int(df.n.iloc[0])"] == [0, 100]
    view.execute("df['half'] = df.n // 2")  # the engines' own
    again = view.gather("df", to="ray")
    assert again.count() == 100 and again.schema().names == ["n", "half"]
    assert again.sum("half") == sum(range(100))
    assert [row["half"] for row in again.take_all()] == list(range(100))
    assert view.gather("df.n", to="ray").max("n") == 198


def test_parts_without_rows_have_columns(view: ipp.DirectView) -> None:
    dataset = ray.data.range(20, override_num_blocks=4).filter(lambda row: row["id"] > 17)
    view.scatter("df", dataset)
    assert view["df.shape, list(df.columns)"] == [((0, 1), ["id"]), ((2, 1), ["id"])]
    assert len(set(view["str(df.id.dtype)"])) == 1


def test_arrays(view: ipp.DirectView) -> None:
    whole = np.arange(60.0).reshape(10, 6)
    dataset = ray.data.from_numpy(list(np.array_split(whole, 4)))
    view.scatter("x", dataset)
    assert view["x.shape"] == [(6, 6), (4, 6)]
    assert (view.gather("x") == whole).all()
    view.execute("x += 1")
    again = view.gather("x", to="ray")
    assert (np.stack([row["data"] for row in again.take_all()]) == whole + 1).all()
    view.scatter("y", again)  # one block an engine, in Ray's store
    view.execute("y += 1")
    assert (view.gather("y") == whole + 2).all()
    assert (np.stack([row["data"] for row in again.take_all()]) == whole + 1).all()
    view.scatter("z", again, copy=False)
    assert view["z.flags.writeable"] == [False] * 2
    view.scatter("n", ray.data.from_numpy([np.arange(3), np.arange(4)]))
    assert view["n.tolist()"] == [[0, 1, 2], [0, 1, 2, 3]]


def test_references(view: ipp.DirectView) -> None:
    refs = [ray.remote(lambda: os.getpid()).options(num_cpus=0).remote() for _ in range(5)]
    view.scatter("pid", refs)
    assert view.gather("pid") == ray.get(refs)
    assert view["len(pid)"] == [3, 2]
    view.execute("model = {'of': [1, 2]}")
    models = view.gather("model", to="ray")
    assert ray.get(models) == [{"of": [1, 2]}] * 2
    view.scatter("again", models, flatten=True)
    assert view["again"] == [{"of": [1, 2]}] * 2
    assert ray.get(view.client[0].gather("model", to="ray")) == [{"of": [1, 2]}]


def test_what_was_gathered_is_as_it_was_then(view: ipp.DirectView) -> None:
    view.execute("import numpy as np\nx = np.zeros(100_000)")
    (first, _) = view.gather("{'x': x}", to="ray")
    view.execute("x += 1")
    assert ray.get(first)["x"].sum() == 0


def test_what_does_not_fit_is_said(view: ipp.DirectView) -> None:
    with pytest.raises(ValueError, match=r"1 blocks for 2 engines.*repartition\(\)"):
        view.scatter("x", ray.data.range(10, override_num_blocks=1))
    with pytest.raises(ValueError, match="1 objects for 2 engines"):
        view.scatter("x", [ray.put(1)])
    with pytest.raises(ValueError, match="contiguous"):
        view.scatter("x", ray.data.range(10), dist="r")
    with pytest.raises(ValueError, match="to='ray'"):
        view.gather("x", to="dask")
    assert view["'x' in globals()"] == [False] * 2
    view.scatter("x", [np.ones((2, 3)), np.ones((2, 4))], flatten=True)
    with pytest.raises(ValueError, match=r"engine 0 has .*\(2, 3\), engine 1 has .*\(2, 4\)"):
        view.gather("x", to="ray")
    with pytest.raises(ipp.RemoteError, match="NameError"):
        view.gather("nowhere", to="ray")
    view.execute("x = __import__('threading').Lock()")
    with pytest.raises(ipp.EngineError, match=r"engine 0 could not put its part of 'x'.*lock"):
        view.gather("x", to="ray")
    wait_until(lambda: not any(view.apply_sync(left)))


def test_tasks_take_references(view: ipp.DirectView) -> None:
    view.scatter("n", [1, 2], flatten=True)
    first, second = view.ref("n")
    same = ray.remote(lambda *args, **kwargs: (args, kwargs)).options(num_cpus=0)
    assert ray.get(same.remote(first, by={"k": (second,)})) == ((1,), {"by": {"k": (2,)}})
    assert ray.get(ray.put([first, second])) == [1, 2]
    # each time that it is pickled
    view.execute("n += 10")
    assert ray.get(same.remote(first)) == ((11,), {})


def test_a_reference_passes_through_rays_client_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """It unpickles arguments of tasks; an error there would end its client's connection."""
    lost = "lost", ["engine 0 is gone"]
    with monkeypatch.context() as patch:
        patch.setattr(objects, "_in_client_server", lambda: True)
        passed = pickle.dumps(objects._resolve(lost))
        assert pickle.dumps(pickle.loads(passed)) == passed
    with pytest.raises(ipp.EngineError, match="engine 0 is gone"):
        pickle.loads(passed)


def test_what_is_no_reference_to_an_engine_is_refused(view: ipp.DirectView) -> None:
    task = ray.remote(lambda v: v).options(num_cpus=0)
    with pytest.raises(ipp.EngineError, match=r"tasks run in none: use rc\[0\].ref\('n'\)"):
        task.remote([ipp.Reference("n")])
    copy = pickle.loads(pickle.dumps(view.ref("n")[0]))
    with pytest.raises(ipp.EngineError, match="'n' on engine 0> cannot be read here: it is a copy"):
        task.remote(copy)


def left() -> list[str]:
    from pxcompat.engine import current

    return [*current().aside, *current().unsettled]


def test_all_parts_are_bound_or_none(view: ipp.DirectView) -> None:
    @ray.remote(num_cpus=0)
    def fail() -> None:
        raise ZeroDivisionError("no block")

    view.push({"x": "before"})
    with pytest.raises(ipp.CompositeError, match="no block"):
        view.scatter("x", [ray.put(1), fail.remote()])
    assert view["x"] == ["before"] * 2
    with pytest.raises(ipp.CompositeError, match="no block"):
        view.scatter("y", [ray.put(1), fail.remote()])
    assert view["'y' in globals()"] == [False] * 2
    assert not any(view.apply_sync(left))


def test_an_engine_that_died(cluster: ipp.Cluster, rc: ipp.Client) -> None:
    cluster.start_engines_sync(1)
    rc.wait_for_engines(3, timeout=PATIENCE)
    everyone = rc[:]
    pid = rc[rc.ids[-1]].apply_sync(os.getpid)
    everyone.scatter("x", [ray.put(n) for n in range(3)], block=True)
    x = everyone.gather("x", to="ray")
    never = ray.remote(lambda: time.sleep(600)).options(num_cpus=0).remote()
    scattering = everyone.scatter("y", [ray.put(1), ray.put(2), never], block=False)
    os.kill(pid, 9)
    with pytest.raises(ipp.CompositeError, match=r"EngineError.*SIGKILL|EngineError.*died"):
        scattering.get(PATIENCE)  # type: ignore[union-attr]
    ray.cancel(never, force=True)
    wait_until(lambda: len(rc.ids) == 2)
    wait_until(lambda: not any(rc[:].apply_sync(lambda: "y" in globals())))
    assert ray.get(x) == [[0], [1], [2]]  # in Ray's store, which has not died
    with pytest.raises(ipp.InvalidEngineId):
        everyone.gather("x", to="ray")


FOREIGN = """if True:
    import ray
    import pxcompat as ipp
    first = ipp.Client(backend="ray", n=1)
    refs = [ray.put(5)]
    import ray.data
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.range(4, override_num_blocks=2).materialize()
    first.close()
    with ipp.Client(backend="ray", n=1) as rc:
        for thing in (refs, dataset):
            try:
                rc[0].scatter("x", thing, block=True)
            except ipp.EngineError as error:
                print("refused", error)
        try:
            rc[0].push({"x": refs[0]}, block=True)
        except ipp.EngineError as error:
            print("refused", error)
        print(rc[0].apply_sync(lambda: "x" in globals()))
"""


def test_a_collection_of_another_cluster() -> None:
    done = python(FOREIGN)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("is not of the Ray cluster at") == 3, done.stdout
    assert done.stdout.endswith("False\n")


CLIENT = """
import resource, sys
import numpy as np, ray, ray.data
import pxcompat as ipp
part, parts = int(sys.argv[1]), int(sys.argv[2])
ray.data.DataContext.get_current().enable_progress_bars = False
with ipp.Client(cluster_id="ray-tests") as rc:
    view = rc.direct_view([0, 1], block=True)
    def of(rows, columns):
        dataset = ray.data.range(rows, override_num_blocks=rows)
        return dataset.map_batches(lambda b: {"data": np.ones((len(b["id"]), columns))})
    view.scatter("warm", of(2, 2))
    assert view.gather("warm", to="ray").count() == 2
    rc[1].push({"warm": rc[0].ref("warm")})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    view.scatter("x", of(parts, part // 8))
    assert sum(view["len(x)"]) == parts
    x = view.gather("x", to="ray")
    assert x.count() == parts
    view.scatter("again", x)
    (ref, _) = view.gather("[x]", to="ray")
    rc[1].push({"x": ref}, block=True)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_data_does_not_pass_through_the_client(view: ipp.DirectView) -> None:
    part, parts = 10 * MB, 10
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(part), str(parts)],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) < part

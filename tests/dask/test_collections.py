"""Dask's collections on engines: taken apart, and put together, where they are."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from typing import Any

import pytest
from dask.delayed import delayed
from distributed import Client

import pxcompat as ipp

from ..common import PATIENCE, wait_until

np = pytest.importorskip("numpy")
da = pytest.importorskip("dask.array")


@pytest.fixture
def view(rc: ipp.Client) -> ipp.DirectView:
    rc.clear(block=True)
    return rc.direct_view([0, 1], block=True)


def test_an_array_is_bound_and_put_together(view: ipp.DirectView) -> None:
    client = view.client.dask_client
    whole = np.arange(60.0).reshape(10, 6)
    array = da.from_array(whole, chunks=(3, 4))
    view.scatter("x", array)
    assert view["x.shape"] == [(6, 6), (4, 6)]
    assert (view.gather("x") == whole).all()
    view.execute("x += 1")  # the engines' own
    again = view.gather("x", to="dask")
    assert (again.shape, again.dtype, again.chunks) == ((10, 6), np.float64, ((6, 4), (6,)))
    assert (client.compute(again).result() == whole + 1).all()
    assert client.compute(again[8:].sum()).result() == (whole + 1)[8:].sum()
    assert client.compute(array.sum()).result() == whole.sum()


def test_blocks_are_computed_where_they_are_bound(view: ipp.DirectView) -> None:
    view.scatter("pid", [delayed(os.getpid)() for _ in range(5)])
    pids = view.apply_sync(os.getpid)
    assert view["pid"] == [[pids[0]] * 3, [pids[1]] * 2]
    parts = view.gather("pid", to="dask")
    client = view.client.dask_client
    here = client.compute([delayed(lambda part: (part[0], os.getpid()))(p) for p in parts])
    assert client.gather(here) == [(pid, pid) for pid in pids]


def test_blocks_of_a_persisted_array_are_not_changed_with_the_name(view: ipp.DirectView) -> None:
    client = view.client.dask_client
    array = client.persist(da.ones((4, 3), chunks=(2, 3)))
    view.scatter("x", array)
    view.execute("x += 1")
    assert client.compute(array.sum()).result() == 12
    assert view["float(x.sum())"] == [12, 12]
    view.scatter("x", array, block=False).get(PATIENCE)
    assert view["float(x.sum())"] == [6, 6]


def test_of_unknown_size(view: ipp.DirectView) -> None:
    array = da.arange(10, chunks=2)
    view.scatter("x", array[array % 2 == 0])
    assert view["x.tolist()"] == [[0, 2, 4], [6, 8]]
    assert view.gather("x", to="dask").shape == (5,)  # known here


def test_dataframes(view: ipp.DirectView) -> None:
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    dd = pytest.importorskip("dask.dataframe")
    client = view.client.dask_client
    table = pd.DataFrame({"n": range(10), "x": np.linspace(0, 1, 10)})
    view.scatter("df", dd.from_pandas(table, npartitions=3))
    assert sum(view["len(df)"]) == 10
    again = view.gather("df", to="dask")
    assert again.known_divisions and again.divisions[0] == 0 and again.divisions[-1] == 9
    pd.testing.assert_frame_equal(client.compute(again).result(), table)
    assert client.compute(again.loc[7:].n.sum()).result() == 7 + 8 + 9
    assert client.compute(view.gather("df.n", to="dask").max()).result() == 9
    view.execute("df = df[::-1]")
    unsorted = view.gather("df", to="dask")
    assert not unsorted.known_divisions
    assert client.compute(unsorted.n.sum()).result() == 45
    view.execute("df = df.rename(columns={'n': 'm'})", targets=0)
    with pytest.raises(ValueError, match=r"engine 0 has .*'m'.* engine 1 has .*'n'"):
        view.gather("df", to="dask")


def test_bags_and_single_values(view: ipp.DirectView) -> None:
    import dask.bag as db

    view.scatter("b", db.from_sequence(range(7), npartitions=3))
    assert view.gather("b") == list(range(7))
    view.scatter("one", [delayed(int)(n) for n in range(2)], flatten=True)
    assert view["one"] == [0, 1]


def test_what_does_not_fit_is_said(view: ipp.DirectView) -> None:
    array = da.ones((4, 2), chunks=(4, 1))
    with pytest.raises(ValueError, match=r"1 blocks for 2 engines.*rechunk\(\)"):
        view.scatter("x", array)
    with pytest.raises(ValueError, match="plain name"):
        view.scatter("d['x']", da.ones(4, chunks=1))
    with pytest.raises(ValueError, match="contiguous"):
        view.scatter("x", da.ones(4, chunks=1), dist="r")
    with pytest.raises(ValueError, match="scatter a list of them"):
        view.scatter("x", delayed(int)(1))
    with pytest.raises(ValueError, match="only some of the list are Delayed"):
        view.scatter("x", [delayed(int)(1), 2])
    with pytest.raises(ValueError, match="to='dask'"):
        view.gather("x", to="ray")
    view.scatter("x", [np.ones((2, 3)), np.ones((2, 4))], flatten=True)
    with pytest.raises(ValueError, match=r"engine 0 has .*\(2, 3\), engine 1 has .*\(2, 4\)"):
        view.gather("x", to="dask")
    with pytest.raises(ipp.RemoteError, match="NameError"):
        view.gather("nowhere", to="dask")


def test_all_parts_are_bound_or_none(view: ipp.DirectView) -> None:
    view.push({"x": "before"})

    def fail() -> None:
        raise ValueError("no block")

    for block in (True, False):
        with pytest.raises(ipp.CompositeError, match="no block"):
            result = view.scatter("x", [delayed(int)(1), delayed(fail)()], block=block)
            result.get(PATIENCE)  # type: ignore[union-attr]
        assert view["x"] == ["before"] * 2
        with pytest.raises(ipp.CompositeError, match="no block"):
            result = view.scatter("y", [delayed(int)(1), delayed(fail)()], block=block)
            result.get(PATIENCE)  # type: ignore[union-attr]
        assert view["'y' in globals()"] == [False] * 2


def test_a_collection_of_another_cluster(view: ipp.DirectView) -> None:
    with Client(
        n_workers=1, processes=False, dashboard_address=":0", set_as_default=False
    ) as other:
        array = other.persist(da.ones(4, chunks=2))
        with pytest.raises(ipp.EngineError, match="is not of the cluster at"):
            view.scatter("x", array)
        future = other.submit(int, 5)
        with pytest.raises(ipp.EngineError, match="is not of the cluster at"):
            view.push({"x": future})
    assert view["'x' in globals()"] == [False] * 2


def test_an_engine_that_died(environment: None) -> None:
    with ipp.Cluster(n=3, backend="dask", cluster_id="dying") as rc:
        rc.wait_for_engines(3, timeout=PATIENCE)
        view, client = rc.direct_view([0, 1, 2], block=True), rc.dask_client
        view.scatter("x", da.ones(6, chunks=2))
        array = view.gather("x", to="dask")
        assert client.compute(array.sum()).result() == 6
        # one dies before its part is computed: nobody has the name
        kill = delayed(lambda: os.kill(os.getpid(), 9))()
        with pytest.raises(ipp.CompositeError, match=r"Engine 2 died"):
            view.scatter("y", [delayed(int)(1), delayed(int)(2), kill])
        wait_until(lambda: rc.ids == [0, 1])
        assert rc[:].apply_sync(lambda: "y" in globals()) == [False] * 2
        with pytest.raises(ipp.EngineError, match=r"engine 2, which had a part of 'x'.*died"):
            client.compute(array.sum()).result(60)
        with pytest.raises(ipp.InvalidEngineId):
            view.gather("x", to="dask")


CLIENT = """
import resource, sys
import dask.array as da, numpy as np
import pxcompat as ipp
part, parts = int(sys.argv[1]), int(sys.argv[2])
with ipp.Client(cluster_id="dask-tests") as rc:
    view, client = rc.direct_view([0, 1], block=True), rc.dask_client
    view.scatter("warm", da.ones(4, chunks=1))
    client.compute(view.gather("warm", to="dask").sum()).result()
    rc[1].push({"warm": rc[0].ref("warm")}, block=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    view.scatter("x", da.ones((parts, part // 8), chunks=(1, part // 8)))
    x = view.gather("x", to="dask")
    assert x.nbytes == part * parts
    assert client.compute(x.sum()).result() == part // 8 * parts
    rc[1].push({"x": rc[0].ref("x[:1]")}, block=True)
    rc[0].push({"x": client.submit(np.ones, part // 8)}, block=True)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_data_does_not_pass_through_the_client(view: ipp.DirectView) -> None:
    part, parts = 10 << 20, 10
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(part), str(parts)],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < part


def test_nothing_of_it_stays_on_engines(view: ipp.DirectView) -> None:
    view.scatter("x", da.ones(4, chunks=1))
    total = view.client.dask_client.compute(view.gather("x", to="dask").sum())
    assert total.result() == 4
    del total

    gc.collect()

    def left(dask_worker: Any) -> Any:
        engine = dask_worker.extensions["pxcompat"].engine
        return [*engine.aside, *engine.unsettled, *dask_worker.data]

    wait_until(lambda: not any(view.client.dask_client.run(left).values()))

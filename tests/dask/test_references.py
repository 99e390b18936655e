"""Names of engines in Dask's graphs: Dask takes references for futures."""

from __future__ import annotations

import os
import pickle
from typing import Any

import pytest
from dask.delayed import delayed
from distributed import Future

import pxcompat as ipp

from ..common import PATIENCE

da = pytest.importorskip("dask.array")


@pytest.fixture
def client(rc: ipp.Client) -> Any:
    rc.clear(block=True)
    rc[:].scatter("n", [1, 2], flatten=True, block=True)
    rc[:].execute("pid = __import__('os').getpid()", block=True)
    return rc.dask_client


def test_graphs_have_references(rc: ipp.Client, client: Any) -> None:
    first, second = rc[:].ref("n")
    assert client.submit(lambda a, b: (a, b), first, b={"k": [second]}).result() == (1, {"k": [2]})
    assert client.gather(client.map(lambda a: a * 10, rc[:].ref("n"))) == [10, 20]
    total = delayed(sum)([first, second, delayed(int)(second)])
    assert client.compute(total).result() == 5
    blocks = da.ones(4, chunks=2).map_blocks(lambda x, by: x * by, by=second, dtype=float)
    assert client.compute(blocks.sum()).result() == 8


def test_dask_gathers_references(rc: ipp.Client, client: Any) -> None:
    first, second = rc[:].ref("n")
    assert client.gather(first) == 1
    assert client.gather({"k": [first, second]}) == {"k": [1, 2]}
    assert rc[0].ref("n * 10").future.result() == 10
    with pytest.raises(ipp.error.EngineError, match=r"engine 1 .* NameError"):
        client.gather(rc[:].ref("n if n == 1 else missing"))


def test_two_references_to_one_name_are_two_futures(rc: ipp.Client, client: Any) -> None:
    assert client.gather([rc[0].ref("n"), rc[0].ref("n")]) == [1, 1]
    before = rc[0].ref("n")
    assert client.gather(before) == 1
    rc[0].push({"n": 7}, block=True)
    assert client.gather([before, rc[0].ref("n")]) == [1, 7]


def test_what_an_engine_computes_with_dask_stays_there(rc: ipp.Client, client: Any) -> None:
    # also once Dask's futures have come to it: its thread would wait for itself
    rc[:].push({"f": client.submit(abs, -3)}, block=True)
    code = "import dask.array as da; total = float(da.ones(10, chunks=5).sum().compute())"
    rc[:].execute(code).get(PATIENCE)
    assert rc[:]["f, total"] == [(3, 10.0)] * 2


def test_any_client_may_compute_them(rc: ipp.Client) -> None:
    with rc.become_dask() as other:
        for _ in range(20):
            assert other.submit(lambda v: v, rc[0].ref("1")).result() == 1
            assert delayed(lambda v: v)(rc[1].ref("2")).compute() == 2


def test_a_reference_is_one_future(rc: ipp.Client, client: Any) -> None:
    rc[0].push({"n": 1}, block=True)
    reference = rc[0].ref("n")
    assert client.submit(lambda v: v, reference, pure=False).result() == 1
    rc[0].push({"n": 5}, block=True)
    assert client.submit(lambda v: v, reference, pure=False).result() == 1
    assert client.submit(lambda v: v, rc[0].ref("n"), pure=False).result() == 5
    # a request has the name, as ever
    assert rc[1].apply_sync(lambda v: v, reference) == 5
    assert type(pickle.loads(pickle.dumps(reference))) is Future


def test_the_value_is_where_its_engine_is(rc: ipp.Client, client: Any) -> None:
    pids = rc[:].ref("(pid, n)")
    here = [client.submit(lambda v: (v[0], os.getpid()), r).result() for r in pids]
    assert [pid for pid, _ in here] == rc[:].apply_sync(os.getpid)
    assert all(pid == own for pid, own in here)


def test_a_future_of_a_request_that_waits_for_dask(rc: ipp.Client, client: Any) -> None:
    address = rc._backend.engines()[0].address
    gate = client.submit(lambda: 4, workers=[address], pure=False)
    waiting = rc[0].apply_async(lambda v: v, gate)
    rc[0].execute("n = 9")
    assert client.submit(lambda v: v, rc[0].ref("n")).result(30) == 9
    assert waiting.get(PATIENCE) == 4


def test_a_plain_reference_is_the_name_of_whoever_runs_the_task(
    rc: ipp.Client, client: Any
) -> None:
    for info in rc._backend.engines():
        found = client.submit(
            lambda r: r.get_object(), ipp.Reference("pid"), workers=[info.address], pure=False
        )
        assert found.result() == info.pid

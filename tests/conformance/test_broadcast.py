"""BroadcastView: a value leaves the client once, for however many engines."""

from __future__ import annotations

from typing import Any

import numpy as np
import psutil
import pytest

import pxcompat as ipp

from ..common import PATIENCE


@pytest.fixture(params=[False, True], ids=["each", "coalescing"])
def bv(rc: ipp.Client, request: pytest.FixtureRequest) -> ipp.BroadcastView:
    view = rc.broadcast_view(is_coalescing=request.param)
    view.block = True
    return view


def test_every_engine_answers(rc: ipp.Client, bv: ipp.BroadcastView) -> None:
    assert bv.apply(lambda x: x + 1, 1) == [2] * len(rc)
    bv["a"] = 5
    assert bv["a"] == bv.pull("a") == [5] * len(rc)
    bv.execute("b = a + 1")
    assert bv.pull(["a", "b"]) == [[5, 6]] * len(rc)
    result = bv.apply_async(int)
    assert result.get_dict(PATIENCE) == dict.fromkeys(rc.ids, 0)
    bv.block = False
    assert bv.apply(int).get(PATIENCE) == [0] * len(rc)


def test_results_are_lists_whatever_the_targets(rc: ipp.Client) -> None:
    one = rc.ids[-1]
    assert rc.broadcast_view(one).apply_sync(int) == [0]
    assert rc.broadcast_view([one]).apply_async(int).get_dict(PATIENCE) == {one: 0}


def test_maps_and_parts(rc: ipp.Client, bv: ipp.BroadcastView) -> None:
    assert bv.map_sync(lambda x: x * x, range(10)) == [x * x for x in range(10)]
    bv.scatter("part", list(range(10)))
    assert bv.gather("part") == list(range(10))


def test_output_and_errors(rc: ipp.Client, bv: ipp.BroadcastView) -> None:
    ar = bv.apply_async(print, "hello")
    assert ar.get(PATIENCE) == [None] * len(rc)
    assert ar.wait_for_output(PATIENCE)
    assert ar.stdout == ["hello\n"] * len(rc)
    with pytest.raises(ipp.RemoteError, match="ZeroDivisionError"):
        bv.apply_async(lambda: 1 / 0).get(PATIENCE)


@pytest.mark.parametrize("how", ["push", "apply"])
def test_a_value_leaves_once(rc: ipp.Client, bv: ipp.BroadcastView, how: str) -> None:
    array = np.random.random(2_000_000)  # 16 MB

    def written() -> int:
        return int(psutil.Process().io_counters().write_chars)

    def send() -> Any:
        return bv.push({"x": array}) if how == "push" else bv.apply(len, array)

    send()
    before = written()
    send()
    assert written() - before < 1.5 * array.nbytes

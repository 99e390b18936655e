"""Balanced calls in batches: no call of a batch has to do with another."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import pxcompat as ipp
from pxcompat.backends.dask import balanced

from ..common import PATIENCE, wait_until


@pytest.fixture
def lbv(rc: ipp.Client) -> ipp.LoadBalancedView:
    view = rc.load_balanced_view()
    # how long such calls take is known, so that they come in batches
    view.map_sync(note, [(n, None, None) for n in range(200)])
    return view


@ipp.interactive
def note(item: Any) -> int:
    """Leave a line in a file; wait for another, or die, when told to."""
    import os
    import signal
    import time

    n, folder, fate = item
    if folder is not None:
        with open(os.path.join(folder, "ran"), "a") as file:
            file.write(f"{n}\n")
    if fate == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    while fate == "wait" and not os.path.exists(os.path.join(folder, "go")):
        time.sleep(0.01)
    return int(n)


#: a call that idle engines are offered, and one that the scheduler places
EARLY_AND_LATE = pytest.mark.parametrize("which", [1, 100])


@EARLY_AND_LATE
def test_a_slow_call_holds_nothing_back(
    lbv: ipp.LoadBalancedView, tmp_path: Path, which: int
) -> None:
    fates = ["wait" if n == which else None for n in range(400)]
    items = [(n, str(tmp_path), fate) for n, fate in enumerate(fates)]
    results = iter(lbv.map_async(note, items, ordered=False))
    assert sorted(next(results) for _ in range(399)) == [n for n in range(400) if n != which]
    (tmp_path / "go").touch()
    assert next(results) == which
    ran = Counter((tmp_path / "ran").read_text().split())
    assert set(ran.values()) == {1} and len(ran) == 400


@EARLY_AND_LATE
def test_an_engine_that_dies_takes_along_the_call_that_killed_it(
    rc: ipp.Client, lbv: ipp.LoadBalancedView, tmp_path: Path, which: int
) -> None:
    fates = ["die" if n == which else None for n in range(400)]
    items = [(n, str(tmp_path), fate) for n, fate in enumerate(fates)]
    engines = len(rc)
    ar = lbv.map_async(note, items, ordered=False)
    ar.wait(PATIENCE)
    failed = [n for n, child in enumerate(ar._children) if child.exception() is not None]
    assert which in failed
    # those whose replies were under way when it died ran, and are not run again
    ran = Counter((tmp_path / "ran").read_text().split())
    assert set(ran.values()) == {1} and len(ran) == 400
    assert all(isinstance(ar._children[n].exception(), ipp.EngineError) for n in failed)
    wait_until(lambda: len(rc) == engines - 1)
    assert rc.cluster is not None
    rc.cluster.start_engines_sync(1)
    rc.wait_for_engines(engines, timeout=PATIENCE)


def test_what_has_run_does_not_run_again_when_its_engine_dies(
    rc: ipp.Client,
    lbv: ipp.LoadBalancedView,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # the client's word that it wants the tasks no more may come later than the engine's end
    kept: list[Any] = []
    monkeypatch.setattr(balanced, "fire_and_forget", kept.append)
    engines = len(rc)
    items = [(n, str(tmp_path), None) for n in range(400)]
    assert sorted(lbv.map_sync(note, items)) == list(range(400))
    for target in rc.ids[1:]:
        rc.send_signal(signal.SIGKILL, targets=target)
    wait_until(lambda: len(rc) == 1)
    # what Dask runs again comes before these
    assert lbv.map_sync(note, [(n, None, None) for n in range(200)]) == list(range(200))
    assert kept
    ran = Counter((tmp_path / "ran").read_text().split())
    assert set(ran.values()) == {1} and len(ran) == 400
    assert rc.cluster is not None
    rc.cluster.start_engines_sync(engines - 1)
    rc.wait_for_engines(engines, timeout=PATIENCE)


def test_what_waits_can_be_taken_back(
    rc: ipp.Client, lbv: ipp.LoadBalancedView, tmp_path: Path
) -> None:
    rc.direct_view().apply_async(note, (0, str(tmp_path), "wait"))
    items = [(n, str(tmp_path), None) for n in range(1, 300)]
    ar = lbv.map_async(note, items)
    ar.abort()
    (tmp_path / "go").touch()
    ar.wait(PATIENCE)
    assert {type(child.exception()) for child in ar._children} == {ipp.error.TaskAborted}
    rc.wait(timeout=PATIENCE)
    assert set((tmp_path / "ran").read_text().split()) == {"0"}


def test_batches_are_tasks_with_the_calls_name(
    rc: ipp.Client, lbv: ipp.LoadBalancedView, tmp_path: Path
) -> None:
    rc.direct_view().apply_async(note, (0, str(tmp_path), "wait"))
    ar = lbv.map_async(note, [(n, None, None) for n in range(300)])

    def names(dask_scheduler: Any) -> Counter[str]:
        return Counter(task.prefix.name for task in dask_scheduler.tasks.values())

    try:
        found = wait_until(lambda: rc.dask_client.run_on_scheduler(names))
        assert set(found) == {"px:apply:note"}
        assert 3 <= found["px:apply:note"] < 100
        waiting = wait_until(lambda: rc.queue_status(verbose=True)["unassigned"])
        assert set(waiting) <= set(ar.msg_ids)
    finally:
        (tmp_path / "go").touch()
    assert ar.get(PATIENCE) == list(range(300))

"""Engines that are restarted: the same id, everything else is new."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import pxcompat as ipp
from pxcompat import error

from ..common import PATIENCE, wait_until


def uuids(rc: ipp.Client) -> dict[int, str]:
    return {engine: rc._engines[engine] for engine in rc.ids}


def test_an_engine_is_restarted_under_its_id(rc: ipp.Client, cluster: Any, tmp_path: Path) -> None:
    started = tmp_path / "started"
    other = cluster.connect_client_sync()
    ids, before, pids = rc.ids, uuids(rc), rc[:].apply_sync(os.getpid)
    view, target = rc[:], ids[1]
    view.push({"x": 1}, block=True)

    def hold(path: str) -> None:
        open(path, "w").close()
        time.sleep(600)

    running = rc[target].apply_async(hold, str(started))
    queued = rc[target].apply_async(os.getpid)
    wait_until(started.exists)

    rc.shutdown(target, restart=True, block=True)
    assert rc.ids == ids
    for failed in (running, queued):
        with pytest.raises(error.EngineError, match=f"Engine {target} died .*: it was restarted"):
            failed.get(PATIENCE)
    # a view that was made before goes on, and the others have not noticed
    view.execute("there = 'x' in globals()", block=True)
    assert view["there"] == [True, False, True]
    now = view.apply_sync(os.getpid)
    assert [new == old for new, old in zip(now, pids, strict=True)] == [True, False, True]
    assert [i for i, key in uuids(rc).items() if key != before[i]] == [target]
    # other clients see the same
    wait_until(lambda: uuids(other) == uuids(rc))
    assert other[:].apply_sync(os.getpid) == now
    assert sorted(other.load_balanced_view().map_sync(lambda i: i, range(6))) == list(range(6))
    other.close()


def test_a_cluster_restarts_a_set_of_engines(rc: ipp.Client, cluster: Any) -> None:
    name = cluster.start_engines_sync(1)
    cluster.wait_for_engines_sync(name, timeout=PATIENCE)
    rc.wait_for_engines(4, timeout=PATIENCE)
    (mine,) = cluster.engine_ids(name)
    before, pid = uuids(rc), rc[mine].apply_sync(os.getpid)
    cluster.restart_engines_sync(name)
    assert uuids(rc).get(mine) not in (None, before[mine])
    assert {i for i, key in uuids(rc).items() if key != before[i]} == {mine}
    again = rc[mine].apply_sync(os.getpid)
    assert again != pid
    # the set is still the one that it was: a client restarts its engine, and it is stopped
    rc.shutdown(mine, restart=True, block=True)
    assert rc[mine].apply_sync(os.getpid) not in (pid, again)
    wait_until(lambda: cluster.engine_ids(name) == [mine])
    cluster.stop_engines_sync(name)
    wait_until(lambda: mine not in rc.ids)


def test_clients_find_the_engines_that_replace_dead_ones(rc: ipp.Client, cluster: Any) -> None:
    before = rc.ids
    name = cluster.start_engines_sync(2)
    cluster.wait_for_engines_sync(name, timeout=PATIENCE)
    others = [cluster.connect_client_sync() for _ in range(3)]
    for engine in cluster.engine_ids(name):
        with pytest.raises(error.EngineError, match="died"):
            others[0][engine].apply_async(os._exit, 7).get(PATIENCE)
    for client in [rc, *others]:
        wait_until(lambda client=client: client.ids == before)
    cluster.restart_engines_sync(name)
    found = [client.ids for client in [rc, *others]]
    assert found == [before + cluster.engine_ids(name)] * 4
    assert len(cluster.engine_ids(name)) == 2
    for client in others:
        client.close()
    cluster.stop_engines_sync(name)
    wait_until(lambda: rc.ids == before)


def test_engines_are_stopped_while_they_end(rc: ipp.Client, cluster: Any) -> None:
    before = rc.ids
    name = cluster.start_engines_sync(3)
    cluster.wait_for_engines_sync(name, timeout=PATIENCE)
    rc.wait_for_engines(len(before) + 3, timeout=PATIENCE)
    rc.shutdown(cluster.engine_ids(name)[:1], block=True)  # of which the cluster hears later
    cluster.stop_engines_sync(name)
    wait_until(lambda: rc.ids == before)


def test_an_engine_with_a_pool_of_processes_is_stopped(rc: ipp.Client, cluster: Any) -> None:
    name = cluster.start_engines_sync(1)
    cluster.wait_for_engines_sync(name, timeout=PATIENCE)
    (engine,) = cluster.engine_ids(name)
    wait_until(lambda: engine in rc.ids)
    rc[engine].execute(
        "from concurrent.futures import ProcessPoolExecutor\n"
        "pool = ProcessPoolExecutor(1)\n"
        "child = pool.submit(__import__('os').getpid).result()",
        block=True,
    )
    child = rc[engine].pull("child", block=True)
    rc.shutdown(engine, block=True)
    wait_until(lambda: not psutil.pid_exists(child))


def test_engines_are_stopped_while_they_start(rc: ipp.Client, cluster: Any) -> None:
    before = rc.ids
    cluster.start_engines_sync(1, engine_set_id="mine")
    with pytest.raises(ValueError, match="'mine'"):
        cluster.start_engines_sync(1, engine_set_id="mine")
    cluster.stop_engines_sync("mine")
    assert "mine" not in cluster.engines
    # what is started after them is there: they would be, too
    name = cluster.start_engines_sync(1)
    cluster.wait_for_engines_sync(name)
    cluster.stop_engines_sync(name)
    wait_until(lambda: rc.ids == before)


def test_engines_that_did_not_start_say_nothing_of_the_next(rc: ipp.Client, cluster: Any) -> None:
    before = rc.ids
    startup = Path(cluster.profile_dir, "startup", "ends.py")
    startup.write_text("import os; os._exit(3)")
    try:
        name = cluster.start_engines_sync(1)
        with pytest.raises(error.EngineError, match="ended while they were starting"):
            cluster.wait_for_engines_sync(name, timeout=PATIENCE)
    finally:
        startup.unlink()
    with pytest.raises(error.EngineError, match="engines will not come"):
        rc.wait_for_engines(len(before) + 1, timeout=PATIENCE)
    another = cluster.start_engines_sync(1)
    with cluster.connect_client_sync() as other:
        for client in (rc, other):
            client.wait_for_engines(len(before) + 1, timeout=PATIENCE)
    for added in (name, another):
        cluster.stop_engines_sync(added)
    wait_until(lambda: rc.ids == before)


def test_engines_that_somebody_else_starts_are_not_those_that_failed(
    rc: ipp.Client, cluster: Any
) -> None:
    before = rc.ids
    elsewhere = ipp.Cluster.from_file(cluster.cluster_file)
    startup = Path(cluster.profile_dir, "startup", "ends.py")
    startup.write_text("import os; os._exit(3)")
    try:
        name = elsewhere.start_engines_sync(1)
        with pytest.raises(error.EngineError, match="ended while they were starting"):
            elsewhere.wait_for_engines_sync(name, timeout=PATIENCE)
    finally:
        startup.unlink()
    another = elsewhere.start_engines_sync(1)
    wait_until(lambda: len(rc.ids) == len(before) + 1)
    with pytest.raises(TimeoutError, match="not ready"):  # and not that they will not come
        rc.wait_for_engines(len(before) + 2, timeout=0.05)
    for added in (name, another):
        elsewhere.stop_engines_sync(added)
    elsewhere.controller.disconnect()
    wait_until(lambda: rc.ids == before)


def test_engines_are_started_in_an_environment(rc: ipp.Client, cluster: Any) -> None:
    def look() -> list[str | None]:
        return [os.environ.get("FLAVOUR"), os.environ.get("NUMBER")]

    name = cluster.start_engines_sync(1, environment={"FLAVOUR": "mint", "NUMBER": 3})
    rc.wait_for_engines(len(rc) + 1, timeout=PATIENCE)
    *others, target = rc.ids
    assert rc[target].apply_async(look).get(PATIENCE) == ["mint", "3"]
    assert rc[others].apply_async(look).get(PATIENCE) == [[None, None]] * len(others)
    rc.shutdown(target, restart=True, block=True)
    assert rc[target].apply_async(look).get(PATIENCE) == ["mint", "3"]
    cluster.stop_engines_sync(name)
    wait_until(lambda: rc.ids == others)


def test_processes_that_an_engine_has_started_go_with_it(rc: ipp.Client, cluster: Any) -> None:
    def start() -> int:
        import subprocess

        return subprocess.Popen(["sleep", "1000"]).pid

    before = rc.ids
    names = [cluster.start_engines_sync(1) for _ in range(2)]
    rc.wait_for_engines(len(before) + 2, timeout=PATIENCE)
    for name in names:
        cluster.wait_for_engines_sync(name)
    shut_down, stopped = (cluster.engine_ids(name)[0] for name in names)
    pids = rc[[shut_down, stopped]].apply_async(start).get(PATIENCE)
    try:
        rc.shutdown(shut_down)
        wait_until(lambda: not psutil.pid_exists(pids[0]))
        cluster.stop_engines_sync(names[1])
        wait_until(lambda: not psutil.pid_exists(pids[1]))
    finally:
        for pid in filter(psutil.pid_exists, pids):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: rc.ids == before)


def test_a_cluster_that_ends_has_nothing_to_restart(rc: ipp.Client) -> None:
    with pytest.raises(ValueError, match="nothing to restart"):
        rc.shutdown(restart=True, hub=True)
    assert rc.ids

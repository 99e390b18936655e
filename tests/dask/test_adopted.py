"""Engines on a Dask cluster that somebody else runs, and what is left of them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster
from distributed.core import Status

import pxcompat as ipp
from pxcompat.error import BackendError, ConnectError, NoEnginesRegistered

from ..common import PATIENCE, wait_until


def local_cluster(n: int, **options: Any) -> LocalCluster:
    """Workers with four threads each."""
    options = {"dashboard_address": ":0", "silence_logs": 50, "threads_per_worker": 4, **options}
    return LocalCluster(n_workers=n, **options)


@pytest.fixture(scope="module", params=[True, False], ids=["processes", "one-process"])
def cluster(request: pytest.FixtureRequest, environment: None) -> Iterator[LocalCluster]:
    with local_cluster(2, processes=request.param) as cluster:
        yield cluster


@pytest.fixture
def dask_client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster, set_as_default=False) as client:
        yield client


def of_scheduler(dask_scheduler: Any) -> dict[str, Any]:
    from bokeh.server.tornado import BokehTornado
    from distributed.dashboard.scheduler import template_variables

    apps = dask_scheduler.http_application.applications
    return {
        "plugins": sorted(dask_scheduler.plugins),
        "handlers": {
            name: getattr(handler, "__qualname__", "")
            for name, handler in dask_scheduler.handlers.items()
        },
        "worker plugins": sorted(dask_scheduler.worker_plugins),
        "extensions": sorted(dask_scheduler.extensions),
        "tasks": sorted(map(str, dask_scheduler.tasks)),
        "prefixes": sorted(dask_scheduler.task_prefixes),
        "groups": sorted(dask_scheduler.task_groups),
        "intervals": {str(comm.interval) for comm in dask_scheduler.stream_comms.values()},
        "pages": [sorted(app.app_paths) for app in apps if isinstance(app, BokehTornado)],
        "links": list(template_variables(dask_scheduler)["pages"]),
    }


def of_worker(dask_worker: Any) -> dict[str, Any]:
    import builtins
    import sys
    import threading

    from IPython.core.interactiveshell import InteractiveShell

    return {
        "plugins": sorted(dask_worker.plugins),
        "handlers": sorted(dask_worker.handlers),
        "extensions": sorted(dask_worker.extensions),
        "executors": sorted(dask_worker.executors),
        "metrics": sorted(dask_worker.metrics),
        "interval": dask_worker.batched_stream.interval,
        "threads": [t.name for t in threading.enumerate() if "pxcompat-" in t.name],
        "streams": [type(stream).__module__ for stream in (sys.stdout, sys.stderr)],
        "hook": str(sys.displayhook),
        "shell": str(InteractiveShell._instance),
        "builtins": sorted(vars(builtins)),
    }


def get_norms(x: Any) -> Any:
    return x


def pid(folder: str) -> int:
    """Where a call runs: until others run elsewhere, by what they leave in a folder."""
    import os
    import time

    open(os.path.join(folder, str(os.getpid())), "w").close()
    end = time.monotonic() + 90
    while len(os.listdir(folder)) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    return os.getpid()


def snapshot(client: Client) -> dict[str, Any]:
    """The cluster as it is, flat, so that differences are easy to see."""
    parts = {"scheduler": client.run_on_scheduler(of_scheduler), **client.run(of_worker)}
    return {f"{who}: {what}": v for who, part in parts.items() for what, v in part.items()}


def settled(client: Client) -> dict[str, Any]:
    """The same, once what was there before has gone."""

    def quiet() -> Any:
        now = snapshot(client)
        idle = not now["scheduler: tasks"] and not now["scheduler: groups"]
        return now if idle and "pxcompat" not in repr(now) else None

    found: dict[str, Any] = wait_until(quiet)
    return found


def assert_as(before: dict[str, Any], client: Client) -> None:
    """The cluster is, or becomes, as it was."""
    deadline = time.monotonic() + PATIENCE
    while (now := snapshot(client)) != before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert {k: v for k, v in now.items() if before.get(k) != v} == {}
    assert now.keys() == before.keys()


def test_engines_come_and_the_cluster_is_left_as_it_was(
    cluster: LocalCluster, dask_client: Client
) -> None:
    assert dask_client.submit(sum, [1, 2], pure=False).result(PATIENCE) == 3
    before = settled(dask_client)
    interval = dask_client.scheduler_comm.interval
    for target in (cluster, dask_client, cluster.scheduler_address):
        with ipp.Client(target) as rc:
            rc.wait_for_engines(2, timeout=PATIENCE)
            assert len(rc.ids) == 2
            rc[:].push({"a": 20}, block=True)
            assert rc[:].pull("a", block=True) == [20, 20]
            view = rc.load_balanced_view()
            assert view.map_sync(get_norms, range(20)) == list(range(20))
            # the cluster goes on with its own work meanwhile, on the workers' own threads
            assert dask_client.submit(sum, [1, 2], pure=False).result(PATIENCE) == 3
        assert_as(before, dask_client)
        assert dask_client.scheduler_comm.interval == interval
    assert dask_client.submit(sum, [1, 2], pure=False).result(PATIENCE) == 3


def test_credentials_are_given_as_dask_takes_them() -> None:
    with local_cluster(1, protocol="tls://", security=True) as cluster:
        address, security = cluster.scheduler_address, cluster.security
        assert address.startswith("tls://")
        with ipp.Client(address, security=security) as rc:
            assert rc.ids == [0]


def test_a_client_that_is_closed_is_no_cluster(cluster: LocalCluster) -> None:
    with Client(cluster, set_as_default=False) as closed:
        pass
    with pytest.raises(ConnectError, match="is closed: make another one"):
        ipp.Client(closed)


def test_a_cluster_that_is_closed_is_none() -> None:
    with local_cluster(1, processes=False) as closed:
        pass
    with pytest.raises(ConnectError, match="is closed: make another one"):
        ipp.Client(closed)


def test_a_client_of_an_event_loop_may_be_given_there(cluster: LocalCluster) -> None:
    async def attach() -> Any:
        async with Client(
            cluster.scheduler_address, asynchronous=True, set_as_default=False
        ) as native:
            with ipp.Client(native) as rc:
                blocking = rc[:].apply_sync(abs, -1)
                return blocking, await rc[:].apply_async(abs, -2), await native.submit(abs, -3)

    assert asyncio.run(attach()) == ([1, 1], [2, 2], 3)


def test_a_cluster_of_the_event_loop_that_would_wait_for_it_is_refused() -> None:
    async def attach() -> Any:
        async with (
            local_cluster(1, processes=False, asynchronous=True) as cluster,
            Client(cluster, asynchronous=True, set_as_default=False) as native,
        ):
            for given in (cluster, native):
                with pytest.raises(ConnectError, match="runs on this thread's event loop"):
                    ipp.Client(given)
            rc = await asyncio.to_thread(ipp.Client, cluster)
            try:
                return await rc[:].apply_async(abs, -1)
            finally:
                await asyncio.to_thread(rc.close)

    assert asyncio.run(attach()) == [1]


def test_a_cluster_in_this_process_ends_with_its_thread() -> None:
    before = set(threading.enumerate())
    with local_cluster(1, processes=False) as cluster, ipp.Client(cluster) as rc:
        future = rc.dask_client.submit(abs, -1)
        assert rc[:].apply_sync(abs, future) == [1]  # the engine has a client of its own for it
    left = set(threading.enumerate()) - before
    assert not [thread for thread in left if thread.name == "IO loop"]


def test_names_and_results_go_with_the_engines(cluster: LocalCluster, dask_client: Client) -> None:
    with ipp.Client(cluster) as rc:
        rc.wait_for_engines(2, timeout=PATIENCE)
        rc[:].execute("class OfNames: pass\nname = OfNames()", block=True)

    def left() -> int:
        import gc

        gc.collect()
        return sum(type(thing).__name__ == "OfNames" for thing in gc.get_objects())

    wait_until(lambda: not any(dask_client.run(left).values()))


def test_engines_remember_as_much_as_they_are_told(cluster: LocalCluster) -> None:
    with ipp.Client(cluster, engine={"max_records": 1}) as rc:
        rc.wait_for_engines(2, timeout=PATIENCE)
        first, last = (rc[0].apply_async(abs, -n) for n in (1, 2))
        assert (first.get(PATIENCE), last.get(PATIENCE)) == (1, 2)
        with ipp.Client(cluster) as other:
            assert other.get_result(last.msg_ids).get(PATIENCE) == [2]
            with pytest.raises(KeyError):
                other.get_result(first.msg_ids).get(PATIENCE)


def test_what_is_displayed_is_its_own_engines(cluster: LocalCluster) -> None:
    with ipp.Client(cluster) as rc:
        rc.wait_for_engines(2, timeout=PATIENCE)
        for n, view in enumerate(rc):
            view.execute(f"me = {n}", block=True)
        code = "from IPython.display import display\ndisplay(me)\nprint('printed')\nme + 10"
        for _ in range(5):
            result = rc[:].execute(code, silent=False)
            result.get(PATIENCE)
            assert result.wait_for_output(PATIENCE)
            assert result.stdout == ["printed\n"] * 2
            values = [out["data"]["text/plain"] for out in result.execute_result]
            assert values == ["10", "11"]
            shown = [[o["data"]["text/plain"] for o in outs] for outs in result.outputs]
            assert shown == [["0"], ["1"]]
        assert rc[:].execute("None; 5;", silent=False).get(PATIENCE)
        # get_ipython() of a module is the engine's, too
        rc[:].execute("from IPython import get_ipython as g\nmine = g() is get_ipython()").get()
        assert rc[:].pull("mine", block=True) == [True, True]


def test_the_last_to_leave_takes_the_engines_along(
    cluster: LocalCluster, dask_client: Client
) -> None:
    before = settled(dask_client)
    first, second = ipp.Client(cluster), ipp.Client(cluster)
    first.wait_for_engines(2, timeout=PATIENCE)
    assert first.ids == second.ids
    first[:].push({"a": 1}, block=True)
    first.close()
    assert second[:].pull("a", block=True) == [1, 1]
    second.close()
    assert_as(before, dask_client)
    # new engines have empty namespaces
    with ipp.Client(cluster) as rc:
        rc.wait_for_engines(2, timeout=PATIENCE)
        assert rc[0].apply_sync(lambda: "a" in globals()) is False


def test_one_may_come_while_the_last_one_leaves(cluster: LocalCluster) -> None:
    failures: list[BaseException] = []

    def come_and_go() -> None:
        try:
            for _ in range(4):
                with ipp.Client(cluster, timeout=PATIENCE) as rc:
                    rc.wait_for_engines(2, timeout=PATIENCE)
                    assert rc[:].apply_sync(get_norms, 1) == [1, 1]
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=come_and_go) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failures


DIES = """if True:
    import os, sys
    import pxcompat as ipp
    rc = ipp.Client(sys.argv[1])
    rc.wait_for_engines(1, timeout=60)
    rc.load_balanced_view().map_async(lambda n: n, range(50))
    rc[:].apply_sync(os.getpid)
    os._exit(0)
"""


def test_a_client_that_dies_leaves_nothing_either(
    cluster: LocalCluster, dask_client: Client
) -> None:
    if cluster.scheduler_address.startswith("inproc:"):
        pytest.skip("nobody outside of the process reaches it")
    before = settled(dask_client)
    subprocess.run([sys.executable, "-c", DIES, cluster.scheduler_address], check=True, timeout=90)
    assert_as(before, dask_client)


def test_engines_follow_workers() -> None:
    with local_cluster(1, processes=False) as cluster, ipp.Client(cluster) as rc:
        rc.wait_for_engines(1, timeout=PATIENCE)
        everyone = rc.direct_view("all")
        cluster.scale(3)
        rc.wait_for_engines(3, timeout=PATIENCE)
        assert everyone.apply_sync(get_norms, 1) == [1, 1, 1]
        cluster.scale(1)
        wait_until(lambda: len(rc.ids) == 1)
        assert everyone.apply_sync(get_norms, 1) == [1]


def wait_for(path: str) -> bool:
    import os
    import time

    end = time.monotonic() + 90
    while not os.path.exists(path) and time.monotonic() < end:
        time.sleep(0.02)
    return os.path.exists(path)


@pytest.mark.parametrize("balanced", [True, False])
def test_an_adaptive_cluster_keeps_workers_whose_engines_have_calls(
    balanced: bool, tmp_path: Path
) -> None:
    def may_go(dask_scheduler: Any) -> list[str]:
        chosen: list[str] = dask_scheduler.workers_to_close(n=2)  # as Dask's Adaptive asks
        return chosen

    with (
        local_cluster(2, processes=False) as cluster,
        Client(cluster, set_as_default=False) as client,
        ipp.Client(client) as rc,
    ):
        view = rc.load_balanced_view(0) if balanced else rc[0]
        everyone = {worker.address for worker in cluster.workers.values()}
        engine = rc[0].apply_sync(lambda: __import__("pxcompat").engine.current().native.address)
        wait_until(lambda: set(client.run_on_scheduler(may_go)) == everyone)
        result = view.apply_async(wait_for, str(tmp_path / "go on"))
        wait_until(lambda: set(client.run_on_scheduler(may_go)) == everyone - {engine})
        (tmp_path / "go on").touch()
        assert result.get(PATIENCE) is True
        wait_until(lambda: set(client.run_on_scheduler(may_go)) == everyone)


def test_a_worker_that_takes_no_tasks_takes_no_balanced_calls() -> None:
    with local_cluster(1, processes=False) as cluster, ipp.Client(cluster) as rc:
        (worker,) = cluster.workers.values()
        worker.status = Status.paused  # or closing, as when the cluster shrinks
        result = rc.load_balanced_view().apply_async(abs, -1)
        wait_until(lambda: rc.queue_status()["unassigned"] == 1)
        worker.status = Status.running
        assert result.get(PATIENCE) == 1


@pytest.mark.slow
def test_a_balanced_map_makes_the_cluster_grow(tmp_path: Path) -> None:
    with local_cluster(0) as cluster:
        cluster.adapt(minimum=0, maximum=2, interval="200ms")
        with ipp.Client(cluster) as rc:
            assert rc.ids == []
            with pytest.raises(NoEnginesRegistered):
                rc.direct_view("all").apply_sync(get_norms, 1)
            pids = rc.load_balanced_view().map_async(pid, [str(tmp_path)] * 24).get(PATIENCE)
            assert len(set(pids)) == 2


def test_the_dashboard_of_an_adopted_cluster(cluster: LocalCluster) -> None:
    url = f"{cluster.dashboard_link.rpartition('/')[0]}/individual-plots.json"

    def listed() -> bool:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return "Individual Engines" in json.load(answer)

    with ipp.Client(cluster):
        assert listed()
    wait_until(lambda: not listed())


#: a worker's process in which the package is not installed, but may be uploaded
LACKS = """if True:
    import importlib.machinery, sys

    class Lacks:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name != "pxcompat":
                return None
            uploaded = [entry for entry in sys.path if entry.endswith(".zip")]
            spec = importlib.machinery.PathFinder.find_spec(name, uploaded)
            if spec is None:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return spec

    sys.meta_path.insert(0, Lacks)
"""


@pytest.mark.slow
def test_workers_without_the_package_are_named_and_may_get_it(tmp_path: Path) -> None:
    preload = tmp_path / "lacks.py"
    preload.write_text(LACKS)
    with local_cluster(1, preload=[str(preload)]) as cluster:
        worker = next(iter(cluster.scheduler_info["workers"]))
        with pytest.raises(BackendError) as info:
            ipp.Client(cluster)
        message = str(info.value)
        assert worker in message and "pxcompat" in message and "upload=True" in message
        assert "the scheduler" not in message
        with ipp.Client(cluster, upload=True) as rc:
            rc.wait_for_engines(1, timeout=PATIENCE)
            assert rc[0].apply_sync(os.getpid) != os.getpid()
            cluster.scale(2)  # and one that comes later
            rc.wait_for_engines(2, timeout=PATIENCE)
            where = rc[:].apply_sync(lambda: __import__("pxcompat").__file__)
            assert [".zip" in file for file in where] == [True, True]


@pytest.mark.slow
def test_a_worker_without_the_package_that_comes_later_goes_without_an_engine(
    environment: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    preload = tmp_path / "lacks.py"
    preload.write_text(LACKS)
    with local_cluster(1) as cluster, ipp.Client(cluster) as rc:
        engine = rc[0].apply_sync(os.getpid)
        cluster.new_spec["options"]["preload"] = [str(preload)]
        cluster.scale(2)
        with Client(cluster, set_as_default=False) as client:
            wait_until(lambda: len(client.run(os.getpid)) == 2)
            # it is a worker like others
            (bare,) = set(client.run(os.getpid)) - {rc._backend.engines()[0].address}
            assert client.submit(os.getpid, workers=[bare]).result() != engine
            wait_until(lambda: f"{bare} is a worker without an engine" in caplog.text)

        def call(_: int) -> int:
            import os
            import time

            time.sleep(0.06)  # enough for Dask to think of all workers
            return os.getpid()

        view = rc.load_balanced_view()
        assert set(view.map_async(call, range(30)).get(PATIENCE)) == {engine}
        rc._backend._balanced._bare.clear()  # before that is known, too
        assert set(view.map_async(call, range(30)).get(PATIENCE)) == {engine}
        assert rc._backend._balanced._bare == {bare}
        with ipp.Client(cluster) as other:
            assert other.ids == rc.ids == [0]
        assert f"cannot import pxcompat on worker {bare}" in caplog.text


def test_a_worker_that_hangs_is_named_and_waited_for_by_nobody(
    environment: None, caplog: pytest.LogCaptureFixture
) -> None:
    with local_cluster(2) as cluster, Client(cluster, set_as_default=False) as client:
        pids = client.run(os.getpid)
        hanging, pid = next(iter(pids.items()))
        os.kill(pid, signal.SIGSTOP)
        try:
            begun = time.monotonic()
            with ipp.Client(cluster.scheduler_address, timeout=5) as rc:
                assert time.monotonic() - begun < 25  # Dask itself waits for 30 s
                assert rc[:].apply_async(abs, -1).get(PATIENCE) == [1]
                assert f"do not answer within 5 s have no engine yet: {hanging}" in caplog.text
                os.kill(pid, signal.SIGCONT)
                rc.wait_for_engines(2, timeout=PATIENCE)
        finally:
            os.kill(pid, signal.SIGCONT)

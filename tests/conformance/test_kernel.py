"""Jupyter's frontends attached to live engines (``bind_kernel``), and Dask on engines."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import pytest
from jupyter_client.blocking import BlockingKernelClient

import pxcompat as ipp

from ..common import PATIENCE, wait_until
from .test_requests import hold, is_running

#: what ipyparallel calls an engine's Dask worker
WORKER = ("dask_worker", "distributed_worker")


def attach(path: str) -> BlockingKernelClient:
    frontend = BlockingKernelClient()
    frontend.load_connection_file(path)
    frontend.start_channels()
    frontend.wait_for_ready(timeout=PATIENCE)
    return frontend


@pytest.fixture
def bound(e0: ipp.DirectView) -> str:
    """The connection file of an engine's kernel."""
    e0.execute("import ipyparallel; path = ipyparallel.bind_kernel()", silent=False)
    return str(e0["path"])


@pytest.fixture
def frontend(bound: str) -> Iterator[BlockingKernelClient]:
    frontend = attach(bound)
    yield frontend
    frontend.stop_channels()


def run(frontend: BlockingKernelClient, code: str, **options: Any) -> tuple[Any, list[Any]]:
    """A cell's reply and what it put out, as (type, content)."""
    said = []

    def hear(message: Any) -> None:
        said.append((message["msg_type"], message["content"]))

    reply = frontend.execute_interactive(code, timeout=PATIENCE, output_hook=hear, **options)
    return reply["content"], said


def test_a_console_shares_the_engines_names(
    frontend: BlockingKernelClient, e0: ipp.DirectView
) -> None:
    e0["from_the_view"] = 20
    reply, said = run(frontend, "print('hello'); set_there = from_the_view + 1; set_there * 2")
    assert reply["status"] == "ok"
    count = reply["execution_count"]
    assert ("stream", {"name": "stdout", "text": "hello\n"}) in said
    (result,) = [content for kind, content in said if kind == "execute_result"]
    assert (result["data"]["text/plain"], result["execution_count"]) == ("42", count)
    (given,) = [content for kind, content in said if kind == "execute_input"]
    assert given["execution_count"] == count
    assert e0["set_there"] == 21
    assert e0.apply_sync(lambda: "the engine's own requests go on") is not None


def test_cells_run_in_turn_with_the_engines_requests(
    frontend: BlockingKernelClient, e0: ipp.DirectView, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    running = e0.apply_async(hold, str(go))
    wait_until(lambda: is_running(e0.client, running))
    (engine,) = [e0.targets] if isinstance(e0.targets, int) else e0.targets
    sent = frontend.execute("import threading; turn = threading.current_thread().name")
    wait_until(lambda: e0.client.queue_status(engine)["queue"] == 2)
    go.touch()
    running.get(PATIENCE)
    while (reply := frontend.get_shell_msg(timeout=PATIENCE))["parent_header"]["msg_id"] != sent:
        pass
    assert reply["content"]["status"] == "ok"
    assert e0["turn"] == "MainThread"


def test_errors_completions_and_help(frontend: BlockingKernelClient, e0: ipp.DirectView) -> None:
    reply, said = run(frontend, "1/0")
    assert (reply["status"], reply["ename"]) == ("error", "ZeroDivisionError")
    assert any("ZeroDivisionError" in line for line in reply["traceback"])
    assert [content["ename"] for kind, content in said if kind == "error"] == ["ZeroDivisionError"]
    # a failure aborts nothing that is sent when it is known
    reply, _ = run(frontend, "some_name = 1", user_expressions={"twice": "some_name * 2"})
    assert reply["user_expressions"]["twice"]["data"]["text/plain"] == "2"
    found = frontend.complete("x = 1\nsome_n", reply=True, timeout=PATIENCE)["content"]
    assert (found["matches"], found["cursor_start"]) == (["some_name"], 6)
    assert (
        "int"
        in frontend.inspect("some_name", reply=True, timeout=PATIENCE)["content"]["data"][
            "text/plain"
        ]
    )
    answer = frontend.is_complete("for i in x:")
    while (reply := frontend.get_shell_msg(timeout=PATIENCE))["parent_header"]["msg_id"] != answer:
        pass
    assert reply["content"] == {"status": "incomplete", "indent": "    "}


def test_a_frontend_interrupts_its_own_cell(
    frontend: BlockingKernelClient, e0: ipp.DirectView
) -> None:
    sent = frontend.execute("import time; began = True; time.sleep(600)")
    engine = e0.targets if isinstance(e0.targets, int) else e0.targets[0]
    wait_until(lambda: e0.client.queue_status(engine, verbose=True)["queue"])
    while True:  # until it says that it runs
        message = frontend.get_iopub_msg(timeout=PATIENCE)
        if message["msg_type"] == "execute_input" and message["parent_header"]["msg_id"] == sent:
            break
    frontend.control_channel.send(frontend.session.msg("interrupt_request", {}))
    while (reply := frontend.get_shell_msg(timeout=PATIENCE))["parent_header"]["msg_id"] != sent:
        pass
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    assert e0.apply_sync(len, "abc") == 3


def test_only_its_owner_can_attach_and_nothing_stays(bound: str, cluster: Any) -> None:
    assert stat.S_IMODE(Path(bound).stat().st_mode) == 0o600
    # what is in that folder goes with the cluster, however it ends
    assert Path(bound).parent.name.startswith("pxcompat-")
    assert Path(bound).read_text().count("127.0.0.1") == 1
    with cluster.connect_client_sync() as rc:
        added = cluster.start_engines_sync(1)
        cluster.wait_for_engines_sync(added, timeout=PATIENCE)
        (engine,) = cluster.engine_ids(added)
        wait_until(lambda: engine in rc.ids)
        view = rc[engine]
        view.execute("import ipyparallel; paths = [ipyparallel.bind_kernel() for _ in '12']")
        first, second = view.pull("paths", block=True)
        assert first == second != bound
        rc.shutdown(engine, block=True)
    wait_until(lambda: not Path(first).exists())
    cluster.stop_engines_sync(added)


def test_elsewhere_it_says_where_it_belongs() -> None:
    with pytest.raises(RuntimeError, match="runs on an engine"):
        ipp.bind_kernel()


def test_become_dask_with_some_engines(rc: ipp.Client) -> None:
    first, *others = rc.ids
    pid = rc[first].apply_sync(os.getpid)
    with rc.become_dask(targets=[first], ncores=2) as executor:
        executor.wait_for_workers(1, timeout=PATIENCE)
        assert list(executor.nthreads().values()) == [2]
        assert len(executor.scheduler_info()["workers"]) == 1
        assert set(executor.gather(executor.map(lambda n: os.getpid(), range(10)))) == {pid}
        assert "Worker" in rc[first].apply_sync(repr, ipp.Reference("dask_worker"))
        with pytest.raises(ipp.CompositeError, match="NameError"):
            rc[others].apply_sync(repr, ipp.Reference("dask_worker"))
    rc.stop_dask()
    with pytest.raises(ipp.RemoteError, match="NameError"):
        rc[first].apply_sync(repr, ipp.Reference("dask_worker"))


def test_stop_dask_closes_the_clients_of_what_it_ends(rc: ipp.Client) -> None:
    executor = rc.become_dask(targets=[rc.ids[0]])
    assert executor.submit(abs, -1).result(PATIENCE) == 1
    rc.stop_dask()
    assert executor.status == "closed"  # and does not try to connect again


def test_become_dask(rc: ipp.Client) -> None:
    with rc.become_dask() as executor:
        assert distributed.default_client() is executor
        for name in WORKER:
            workers = rc[:].apply_sync(repr, ipp.Reference(name))
            assert all("Worker" in worker for worker in workers)
        executor.wait_for_workers(len(rc), timeout=PATIENCE)
        squares = executor.map(lambda x: x * x, range(10))
        assert executor.submit(sum, squares).result(PATIENCE) == 285
    rc.stop_dask()
    for name in WORKER:
        with pytest.raises(ipp.RemoteError, match="NameError"):
            rc[:].apply_sync(lambda worker: worker, ipp.Reference(name))
    assert rc[:].apply_sync(len, "abc") == [3] * len(rc)

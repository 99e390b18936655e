"""Clauses 7 and 8 of the seam: several clients, and what a closed one leaves."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import psutil
import pytest

import pxcompat as ipp
from pxcompat import client, error, hub
from pxcompat.engine import interrupts

from ..common import PATIENCE, interrupted_at, may_drop, wait_until
from .test_requests import hold


def test_a_second_client_sees_the_same_engines_and_names(rc: ipp.Client, cluster: Any) -> None:
    rc[:].push({"shared": 1}, block=True)
    with cluster.connect_client_sync() as other:
        assert other.ids == rc.ids
        assert other[:].pull("shared", block=True) == [1] * len(rc)
        assert other._engines == rc._engines


def test_a_cluster_that_was_shut_down_is_not_found_again(backend: str, tmp_path: Path) -> None:
    def leave_word(path: str) -> None:
        import atexit
        import pathlib

        atexit.register(pathlib.Path(path).touch)

    for n in range(3):
        client = ipp.Client(n=1, backend=backend)
        client[:].apply_sync(leave_word, str(tmp_path / str(n)))
        client.shutdown(hub=True)
        # its engines end as programs do
        wait_until((tmp_path / str(n)).exists)


def test_no_first_map_waits_for_the_garbage_collector(
    backend: str,
) -> None:
    program = f"""if True:
        import gc
        import pxcompat as ipp

        def count(phase, info):
            full.append(info["generation"] == 2)

        full = []
        with ipp.Cluster(n=1, backend={backend!r}) as rc:
            rc[:].apply_sync(abs, -1)
            gc.callbacks.append(count)
            rc.load_balanced_view().map_sync(abs, range(500))
            gc.callbacks.remove(count)
        print(len(full) > 0, any(full))
    """
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True False"


def test_each_client_gets_its_own_replies(rc: ipp.Client, cluster: Any) -> None:
    with cluster.connect_client_sync() as other:
        mine = [rc[rc.ids[0]].apply_async(lambda n=n: ("mine", n)) for n in range(50)]
        theirs = [other[rc.ids[0]].apply_async(lambda n=n: ("theirs", n)) for n in range(50)]
        assert [ar.get(PATIENCE) for ar in mine] == [("mine", n) for n in range(50)]
        assert [ar.get(PATIENCE) for ar in theirs] == [("theirs", n) for n in range(50)]


def test_another_client_can_fetch_a_result(rc: ipp.Client, cluster: Any, tmp_path: Any) -> None:
    with cluster.connect_client_sync() as other:
        running = other[rc.ids[0]].apply_async(hold, str(tmp_path / "go"))
        done = other[rc.ids[0]].execute("print('hello'); 5", silent=False, block=False)
        seen = rc.get_result(running.msg_ids[0], owner=False)
        assert isinstance(seen, ipp.AsyncHubResult)
        assert not seen.ready()
        (tmp_path / "go").touch()
        assert seen.get(PATIENCE) == running.get(PATIENCE)
        done.get(PATIENCE)
    # its client is gone, its result is not
    fetched = rc.get_result(done.msg_ids[0])
    assert fetched.get(PATIENCE).execute_result["data"]["text/plain"] == "5"
    assert fetched.stdout == "hello\n"


def test_another_client_hears_of_the_death_of_an_engine(rc: ipp.Client, cluster: Any) -> None:
    """It waits for a request that runs there, and for one behind it."""
    target = rc.ids[-1]
    with cluster.connect_client_sync() as other:
        sent = [other[target].apply_async(time.sleep, 60), other[target].apply_async(abs, -1)]
        seen = [rc.get_result(ar.msg_ids[0], owner=False) for ar in sent]
        rc.send_signal("SIGKILL", targets=target)
        for ar in [*sent, *seen]:
            with pytest.raises(error.EngineError, match=f"Engine {target} died"):
                ar.get(PATIENCE)


def test_another_client_can_abort_a_request(rc: ipp.Client, cluster: Any, tmp_path: Any) -> None:
    target = rc.ids[0]
    with cluster.connect_client_sync() as other:
        running = other[target].apply_async(hold, str(tmp_path / "go"))
        queued = other[target].apply_async(lambda: 1)
        wait_until(lambda: rc.queue_status(target)["queue"] == 2)
        rc.abort(queued.msg_ids, block=True)
        with pytest.raises(ipp.TaskAborted):
            queued.get(PATIENCE)
        (tmp_path / "go").touch()
        running.get(PATIENCE)


def test_results_are_in_the_order_asked_for(rc: ipp.Client) -> None:
    view = rc[rc.ids[0]]
    gone = view.apply_async(lambda: "fetched").msg_ids[0]
    rc.wait(timeout=PATIENCE)
    kept = view.apply_async(lambda: "kept")
    assert rc.get_result([gone, *kept.msg_ids]).get(PATIENCE) == ["fetched", "kept"]


def test_work_goes_on_without_its_client(rc: ipp.Client, cluster: Any, tmp_path: Any) -> None:
    other = cluster.connect_client_sync()
    direct = other[rc.ids[0]].apply_async(hold, str(tmp_path / "go")).msg_ids[0]
    balanced = other.load_balanced_view().map_async(hold, [str(tmp_path / "go")] * 2 * len(rc))
    ids = [direct, *balanced.msg_ids]
    wait_until(lambda: len(rc.result_status(ids)["pending"]) == len(ids))
    other.close()
    waiting = rc.get_result(ids)
    (tmp_path / "go").touch()
    results = waiting.get(PATIENCE)
    assert results == [str(tmp_path / "go")] + [[str(tmp_path / "go")]] * len(balanced)


def test_a_client_may_close_at_any_moment(rc: ipp.Client, cluster: Any, tmp_path: Any) -> None:
    def done(msg_ids: list[str]) -> bool:
        try:
            return len(rc.result_status(msg_ids)["completed"]) == len(msg_ids)
        except KeyError:
            return False  # one is between two engines

    # calls that wait behind others are moved by their client, after a while
    for moment in range(0, 120, 12):
        go = str(tmp_path / f"go-{moment}")
        other = cluster.connect_client_sync()
        other[rc.ids[0]].apply_async(hold, go)
        balanced = other.load_balanced_view().map_async(hold, [go] * 2 * len(rc))
        time.sleep(moment / 1000)
        other.close()
        (tmp_path / f"go-{moment}").touch()
        wait_until(functools.partial(done, balanced.msg_ids))
        assert rc.get_result(balanced.msg_ids).get(PATIENCE) == [[go]] * len(balanced)


def test_an_unknown_request_is_a_key_error(rc: ipp.Client) -> None:
    with pytest.raises(KeyError, match="nobody_1"):
        rc.get_result("nobody_1")


def test_a_closed_client_leaves_nothing(rc: ipp.Client, cluster: Any) -> None:
    me = psutil.Process()
    # what libraries keep for the whole process is there after the first
    cluster.connect_client_sync().close()

    def state() -> tuple[int, int, int]:
        # the cluster, which may have more of its own processes to come, is a child of ours
        return threading.active_count(), len(me.net_connections()), len(me.children())

    before = state()
    other = cluster.connect_client_sync()
    other[:].apply_sync(lambda: 1)
    other.load_balanced_view().map_sync(lambda x: x, range(3))
    other.close()
    other.close()
    wait_until(lambda: all(now <= then for now, then in zip(state(), before, strict=True)))
    with pytest.raises(error.EngineError, match="closed"):
        other[:].apply_sync(lambda: 1)


def test_a_client_that_is_interrupted_leaves_nothing(
    rc: ipp.Client, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.connect_client_sync().close()
    before = threading.active_count()
    start = threading.Thread.start

    def start_interrupted(thread: threading.Thread) -> None:
        monkeypatch.undo()
        start(thread)
        signal.raise_signal(signal.SIGINT)

    # while it connects
    monkeypatch.setattr(threading.Thread, "start", start_interrupted)
    with pytest.raises(KeyboardInterrupt):
        cluster.connect_client_sync()
    wait_until(lambda: threading.active_count() <= before)

    # while it closes
    other = cluster.connect_client_sync()
    close = other._backend.close

    def close_interrupted() -> None:
        signal.raise_signal(signal.SIGINT)
        close()

    monkeypatch.setattr(other._backend, "close", close_interrupted)
    with pytest.raises(KeyboardInterrupt):
        other.close()
    wait_until(lambda: threading.active_count() <= before)
    assert rc[:].apply_async(abs, -1).get(PATIENCE) == [1] * len(rc)


@may_drop
def test_ctrl_c_anywhere_in_close_leaves_no_result_to_wait_for(
    rc: ipp.Client, cluster: Any, tmp_path: Path
) -> None:
    files = [str(module.__file__) for module in (client, interrupts)]
    for count in itertools.count(1):
        other = cluster.connect_client_sync()
        running = other[rc.ids[0]].apply_async(hold, str(tmp_path / "go"))
        came, _ = interrupted_at(count, other.close, *files)
        other.close()
        with pytest.raises(error.EngineError, match="closed"):
            running.get(PATIENCE)
        if not came:
            break
    (tmp_path / "go").touch()
    assert rc[:].apply_async(abs, -1).get(PATIENCE) == [1] * len(rc)


@may_drop
def test_ctrl_c_anywhere_in_get_result_leaves_nothing_to_wait_for(
    rc: ipp.Client, cluster: Any
) -> None:
    with cluster.connect_client_sync() as other:
        for count in itertools.count(1):
            done = other[:].apply_async(abs, -1)
            done.wait()
            came, _ = interrupted_at(
                count, lambda msg_ids=done.msg_ids: rc.get_result(msg_ids), str(hub.__file__)
            )
            assert rc.wait(timeout=PATIENCE)
            if not came:
                break


@pytest.mark.parametrize(
    "question",
    [
        lambda rc: rc.queue_status(),
        lambda rc: rc.hub_history(),
        lambda rc: rc.db_query({}),
        lambda rc: rc.get_result("unknown"),
        lambda rc: rc.resubmit(["unknown"]),
        lambda rc: rc.purge_hub_results("all"),
        lambda rc: rc[rc.ids[0]].apply_async(abs, -1),
        lambda rc: rc.send_signal("SIGINT", block=True),
        lambda rc: rc.shutdown(targets=rc.ids[0]),
        lambda rc: rc.shutdown(hub=True),
        lambda rc: rc.wait_for_engines(len(rc.ids) + 1, timeout=PATIENCE),
    ],
)
def test_a_closed_client_says_so(rc: ipp.Client, cluster: Any, question: Any) -> None:
    other = cluster.connect_client_sync()
    other.close()
    with pytest.raises(error.EngineError, match="client is closed"):
        question(other)
    assert rc[:].apply_async(abs, -1).get(PATIENCE) == [1] * len(rc)


def test_who_waits_for_engines_is_told_that_the_client_is_closed(
    rc: ipp.Client, cluster: Any
) -> None:
    other = cluster.connect_client_sync()
    waiting = other.wait_for_engines(len(rc) + 1, block=False)
    other.close()
    with pytest.raises(error.EngineError, match="client is closed"):
        waiting.result(PATIENCE)
    with pytest.raises(RuntimeError, match="client is closed"):  # ipyparallel's kind of error
        other.queue_status()


def test_a_client_that_is_dropped_closes_itself(rc: ipp.Client, cluster: Any) -> None:
    other = cluster.connect_client_sync()
    other[:].apply_sync(lambda: 1)
    backend = other._backend
    shell_free = weakref.ref(other)
    del other
    gc.collect()
    wait_until(lambda: shell_free() is None)
    wait_until(lambda: backend._closed)


def test_a_process_that_forked_off_has_no_client(rc: ipp.Client) -> None:
    if not (pid := os.fork()):
        try:
            rc[:].push({"a": 1}, block=False)
        except error.EngineError:
            rc.close()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert rc[:].apply_async(abs, -1).get(PATIENCE) == [1] * len(rc)


def test_ten_threads_use_one_client(rc: ipp.Client) -> None:
    def work(n: int) -> list[Any]:
        lbv = rc.load_balanced_view()
        return [
            rc[:].apply_sync(lambda: n) == [n] * len(rc),
            rc[rc.ids[0]].apply_sync(lambda: n) == n,
            lbv.map_sync(lambda x: x + n, range(5)) == [x + n for x in range(5)],
        ]

    with ThreadPoolExecutor(10) as pool:
        for done in as_completed([pool.submit(work, n) for n in range(30)]):
            assert all(done.result(PATIENCE))


def test_results_can_be_awaited(rc: ipp.Client) -> None:
    async def main() -> list[Any]:
        one = rc[rc.ids[0]].apply_async(lambda: 1)
        both = rc.load_balanced_view().map_async(lambda x: x, range(3))
        return [await one, await both]

    assert asyncio.run(main()) == [1, [0, 1, 2]]


def test_wait_for_engines_that_do_not_come(rc: ipp.Client) -> None:
    with pytest.raises(TimeoutError, match="not ready"):
        rc.wait_for_engines(len(rc) + 1, timeout=0.05)


def test_records_are_bounded(rc: ipp.Client) -> None:
    # metadata and results of requests whose AsyncResult is gone
    for _ in range(30):
        rc[rc.ids[0]].apply_async(lambda: 1)
    rc.wait(timeout=PATIENCE)
    assert not rc.outstanding
    assert not list(rc.results)
    assert not rc._dispatcher.metadata
    started = time.monotonic()
    ars = [rc[rc.ids[0]].apply_async(lambda: 1) for _ in range(1500)]
    assert all(ar.get(PATIENCE) == 1 for ar in ars), time.monotonic() - started
    assert len(rc.hub_history()) <= 1024 * len(rc)
